//! Host keys belong to ids: learnt once, kept over restarts, refused when they change, forgotten by people.

use serde_json::{Value, json};

use crate::fixture::{Daemon, Project, Sshd, World, fleet};

/// A world whose hosts are trusted on first use: h1 at its own sshd, h2 wherever `port` is.
fn tofu(world: &World, port: u16) {
    std::fs::write(world.path("empty"), "").unwrap();
    let empty = world.path("empty");
    let h2 = world.host_table_with("h2", &format!(", port = {port}"));
    let project = Project::new("shop").hosts(&["h1", &h2]).rollout("max_parallel = 2, max_unreachable = 1");
    world.project(&project.ssh(&format!("known_hosts = \"{}\", host_keys = \"tofu\"", empty.display())));
}

fn learnt(daemon: &Daemon) -> Vec<(String, String)> {
    let text = |key: &Value, name: &str| key[name].as_str().unwrap().to_owned();
    let keys = fleet(daemon, false)["host_keys"].as_array().unwrap().clone();
    keys.iter().map(|key| (text(key, "id"), text(key, "key"))).collect()
}

#[test]
fn the_first_key_of_a_host_is_kept_and_shown_and_another_one_refused_until_a_person_forgets_it() {
    let world = World::new();
    let authorized = std::fs::read_to_string(world.path("id.pub")).unwrap();
    let first = Sshd::start(&world.path("first"), &authorized, "");
    tofu(&world, first.port);
    let daemon = world.start();
    // Whoever only looks learns nothing.
    let looked = daemon.api.post("/v1/hosts/check", &json!({})).is(200).json();
    assert!(looked["items"].as_array().unwrap().iter().all(|host| host["cause"].is_null()), "{looked:#}");
    assert!(learnt(&daemon).is_empty());
    world.repo.push("met");
    let run = daemon.deploy().is("succeeded");
    let keys = learnt(&daemon);
    assert_eq!(keys.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["h1", "h2"]);
    let log = run.log();
    for (_, key) in &keys {
        assert!(key.starts_with("ssh-ed25519 SHA256:"), "{key}");
        let line = format!("was met for the first time, and its host key {key} is kept");
        assert_eq!(log.matches(&line).count(), 1, "{log}");
    }
    let shown = daemon.cli(&["hosts", "shop", "production"]);
    assert!(shown.stdout.contains("host keys learnt:") && shown.stdout.contains(&keys[1].1), "{}", shown.stdout);

    // Kept over a restart, and said once.
    daemon.kill();
    let daemon = world.start();
    world.repo.push("known");
    assert!(!daemon.deploy().is("succeeded").log().contains("met for the first time"));
    assert_eq!(learnt(&daemon), keys);

    // Somebody else answers for h2.
    let second = Sshd::start(&world.path("second"), &authorized, "");
    tofu(&world, second.port);
    assert_eq!(daemon.cli(&["reload"]).code, 0);
    world.repo.push("changed");
    let run = daemon.deploy();
    let host = run.host("h2");
    assert_eq!(
        (host["state"].as_str(), host["cause"]["code"].as_str()),
        (Some("unreachable"), Some("host_key_changed"))
    );
    let message = host["cause"]["message"].as_str().unwrap();
    for part in [keys[1].1.as_str(), "phased hosts shop production --forget-key 'h2'"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let log = std::fs::read_to_string(world.path("second/sshd.log")).unwrap();
    assert!(!log.contains("publickey"), "it was asked to let us in: {log}");
    assert_eq!(learnt(&daemon), keys, "nothing is learnt of it");

    let none = daemon.cli(&["hosts", "shop", "production", "--forget-key", "h9"]);
    assert!(none.code == 8 && none.stderr.contains("h9"), "{none:?}");
    let forgotten = daemon.cli(&["hosts", "shop", "production", "--forget-key", "h2"]);
    assert_eq!(forgotten.code, 0, "{forgotten:?}");
    assert_eq!(learnt(&daemon), keys[..1]);
    let said = daemon.said();
    let audit = said.lines().find(|line| line.contains("the learnt key of a host is forgotten")).unwrap();
    assert!(audit.contains("\"by\":\"uid 0\"") && audit.contains("\"host\":\"h2\""), "{audit}");
    world.repo.push("installed anew");
    daemon.deploy().is("succeeded");
    let now = learnt(&daemon);
    assert!(now[0] == keys[0] && now[1].0 == "h2" && now[1].1 != keys[1].1, "{now:?}");
}

#[test]
fn a_token_that_may_only_deploy_forgets_no_key() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    world.repo.push("x");
    let token = daemon.api.post("/v1/tokens", &json!({ "name": "ci", "scopes": ["deploy"] })).is(201).json();
    let api = daemon.tcp().bearer(token["text"].as_str().unwrap());
    let path = "/v1/projects/shop/environments/production/forget_key";
    api.post(path, &json!({ "host": "h1" })).is(403);
    assert_eq!(daemon.api.post(path, &json!({ "host": "h1" })).is(404).json()["code"], "host_key_none");
    assert_eq!(daemon.api.post(path, &json!({})).is(422).json()["code"], "bad_value");
}
