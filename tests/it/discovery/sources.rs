//! Files, services, scripts and DNS.

use std::{
    os::unix::fs::PermissionsExt as _,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{error, ids, out};
use crate::fixture::{Daemon, Dns, Ended, Project, Sshd, Web, World, eventually, fleet, listening_silent};

fn with(hosts: &[&str]) -> (World, Daemon) {
    with_rollout(hosts, "max_parallel = 1")
}

fn with_rollout(hosts: &[&str], rollout: &str) -> (World, Daemon) {
    let world = World::new();
    world.project(&Project::new("shop").rollout(rollout).hosts(hosts));
    let daemon = world.start();
    (world, daemon)
}

fn targets(addresses: &[&str]) -> String {
    json!([{ "targets": addresses, "labels": { "env": "prod" } }]).to_string()
}

#[test]
fn a_service_is_asked_and_what_changed_is_told() {
    let web = Web::start();
    web.gives("/sd", 200, &targets(&["10.0.0.1:9100", "10.0.0.2:9100", "10.0.0.3:9100", "10.0.0.4:9100"]));
    let (_world, daemon) = with(&[&format!(
        "require \"discovery.prometheus\" {{ \"{}\", interval = \"1h\", token = phased.secret \"hook\" }}",
        web.url("/sd")
    )]);
    let first = fleet(&daemon, false);
    assert_eq!(ids(&first), ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
    assert_eq!(first["hosts"][0]["sources"], json!(["prometheus"]));
    assert_eq!(web.asked()[0].headers["authorization"], "Bearer It's a Secret to Everybody");

    web.gives("/sd", 200, &targets(&["10.0.0.1:9100", "10.0.0.2:9100", "10.0.0.4:9100", "10.0.0.5:9100"]));
    assert_eq!(ids(&fleet(&daemon, false)).len(), 4, "nobody asked anew");
    let changed = fleet(&daemon, true);
    assert_eq!(ids(&changed), ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5"]);
    let change = &changed["sources"][0]["change"];
    assert_eq!((&change["came_ids"], &change["went_ids"]), (&json!(["10.0.0.5"]), &json!(["10.0.0.3"])));
    assert_eq!(out(&changed), ["10.0.0.3:not_found"]);
    assert_eq!(changed["out"][0]["message"], "prometheus does not name it any more");

    web.gives("/sd", 200, &targets(&["10.0.0.5:9100", "10.0.0.4:9100", "10.0.0.2:9100", "10.0.0.1:9100"]));
    assert_eq!(&fleet(&daemon, true)["sources"][0]["change"], change, "another order is no change");

    // For people, and for Prometheus.
    let told = daemon.cli(&["hosts", "shop", "production"]);
    assert!(
        told.code == 0 && told.stdout.contains("10.0.0.3: prometheus does not name it any more, since "),
        "{told:?}"
    );
    let groups = daemon.api.get("/v1/inventory?port=9100").json();
    assert_eq!(groups[3]["targets"], json!(["10.0.0.5:9100"]));
    assert_eq!(groups[3]["labels"]["__meta_phased_label_env"], "prod");
    assert_eq!(daemon.cli(&["hosts", "shop", "nowhere"]).code, 8);
}

#[test]
fn a_source_that_fails_keeps_its_last_good_list_also_over_a_restart() {
    let web = Web::start();
    web.gives("/sd", 200, &targets(&["10.0.0.1", "10.0.0.2"]));
    let source = format!("require \"discovery.prometheus\" {{ \"{}\", interval = \"1h\" }}", web.url("/sd"));
    let (world, daemon) = with(&[&source]);
    assert_eq!(ids(&fleet(&daemon, false)).len(), 2);
    web.gives("/sd", 200, "{\"targets\": []}");
    let wrong = fleet(&daemon, true);
    assert_eq!(ids(&wrong).len(), 2);
    let (code, message) = error(&wrong);
    assert!(code == "lua_error" && message.contains("must hold a list of target groups"), "{message}");
    let since = wrong["sources"][0]["error_since"].clone();
    assert!(since.is_string() && wrong["sources"][0]["good_at"].is_string(), "{wrong}");

    daemon.kill();
    web.gives("/sd", 403, "no");
    let daemon = world.start();
    let still = eventually("it was asked again", || {
        let still = fleet(&daemon, false);
        still["sources"][0]["asked_at"].is_string().then_some(still)
    });
    assert_eq!(ids(&still).len(), 2);
    assert!(error(&still).1.contains("answered 403"), "{still}");
    assert_eq!(still["sources"][0]["error_since"], since);
    let told = daemon.cli(&["hosts", "shop"]).stdout;
    assert!(told.contains("WRONG for ") && told.contains("the list that is used is "), "{told}");

    web.gives("/sd", 200, &targets(&["10.0.0.1", "10.0.0.2"]));
    assert!(fleet(&daemon, true)["sources"][0]["error"].is_null());
}

#[test]
fn why_a_host_is_gone_is_known_over_a_restart() {
    let web = Web::start();
    web.gives("/sd", 200, &targets(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]));
    let world = World::new();
    let list = |state: &str| {
        let host = json!([{"id": "i-1", "address": "10.0.1.1", "state": state, "reason": "spot interruption"}, {"id": "i-2", "address": "10.0.1.2"}]);
        std::fs::write(world.path("hosts.json"), host.to_string()).unwrap();
    };
    list("running");
    let service = format!("require \"discovery.prometheus\" {{ \"{}\", interval = \"1h\" }}", web.url("/sd"));
    let file = format!("require \"discovery.file\" {{ {:?}, interval = \"1h\" }}", world.path("hosts.json"));
    world.project(&Project::new("shop").hosts(&[&service, &file]));
    let daemon = world.start();
    assert_eq!(ids(&fleet(&daemon, false)).len(), 6);
    web.gives("/sd", 200, &targets(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
    list("terminated");
    let before = fleet(&daemon, true);
    assert_eq!(out(&before), ["i-1:terminated", "10.0.0.4:not_found"]);
    daemon.kill();
    // Nobody can be asked: what is said is what was kept.
    web.gives("/sd", 503, "down");
    std::fs::remove_file(world.path("hosts.json")).unwrap();
    let daemon = world.start();
    let after = fleet(&daemon, false);
    assert_eq!(after["out"], before["out"], "{after}");
    assert_eq!(after["out"][0]["message"], "file says it is terminated: spot interruption");
    assert_eq!(after["out"][1]["message"], "prometheus does not name it any more");
}

#[test]
fn a_source_is_asked_again_every_interval_of_its_own() {
    let web = Web::start();
    web.gives("/often", 200, &targets(&["10.0.0.1"]));
    web.gives("/seldom", 200, &targets(&["10.0.0.2"]));
    let source = |path: &str, interval: &str| {
        format!("require \"discovery.prometheus\" {{ \"{}\", interval = \"{interval}\" }}", web.url(path))
    };
    let began = Instant::now();
    let (_world, daemon) = with(&[&source("/often", "3s"), &source("/seldom", "1h")]);
    assert_eq!(ids(&fleet(&daemon, false)), ["10.0.0.1", "10.0.0.2"]);
    // What is new is seen without anybody's asking.
    web.gives("/often", 200, &targets(&["10.0.0.1", "10.0.0.3"]));
    web.gives("/seldom", 200, &targets(&["10.0.0.2", "10.0.0.4"]));
    let asked = |path: &str| web.asked().iter().filter(|asked| asked.line == format!("GET {path}")).count();
    eventually("it was asked three times", || (asked("/often") >= 3).then_some(()));
    assert!(began.elapsed() >= Duration::from_secs(6), "more often than every 3 s: {:?}", began.elapsed());
    eventually("what is new is known", || {
        (ids(&fleet(&daemon, false)) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]).then_some(())
    });
    assert_eq!(asked("/seldom"), 1);
}

#[test]
fn a_source_that_hangs_is_cut_at_its_timeout_and_holds_up_no_other() {
    let (silent, port) = listening_silent();
    let web = Web::start();
    web.gives("/sd", 200, &targets(&["10.0.0.1"]));
    let hangs = |timeout: &str| {
        format!(
            "require \"discovery.prometheus\" {{ \"http://127.0.0.1:{port}/\", interval = \"1s\", timeout = \"{timeout}\" }}"
        )
    };
    let answers = format!("require \"discovery.prometheus\" {{ \"{}\", interval = \"1s\" }}", web.url("/sd"));
    let world = World::new();
    world.project(&Project::new("cut").hosts(&[&hangs("2s")]));
    world.project(&Project::new("hangs").hosts(&[&hangs("5m"), &answers]));
    let daemon = world.start();
    eventually("its neighbour is asked again and again", || (web.asked().len() >= 4).then_some(()));
    let cut = eventually("it is cut, and cut again", || {
        let fleet = daemon.api.get("/v1/hosts?project=cut").json()["items"][0].clone();
        let again = fleet["sources"][0]["error_since"] != fleet["sources"][0]["asked_at"];
        (fleet["sources"][0]["error"].is_object() && again).then_some(fleet)
    });
    let (code, message) = error(&cut);
    assert!(code == "timeout" && message.contains("took longer than 2s"), "{code}: {message}");
    assert!((2_000..30_000).contains(&cut["sources"][0]["took_ms"].as_u64().unwrap()), "{cut}");
    drop(silent);
}

#[test]
fn a_list_that_cannot_be_stops_loudly_until_a_person_accepts_it() {
    let web = Web::start();
    let forty: Vec<String> = (1..=40).map(|n| format!("10.0.0.{n}")).collect();
    let forty: Vec<&str> = forty.iter().map(String::as_str).collect();
    web.gives("/sd", 200, &targets(&forty));
    let (world, daemon) =
        with(&[&format!("require \"discovery.prometheus\" {{ \"{}\", interval = \"1h\" }}", web.url("/sd"))]);
    assert_eq!(ids(&fleet(&daemon, false)).len(), 40);

    web.gives("/sd", 200, "[]");
    let none = fleet(&daemon, true);
    assert_eq!(ids(&none).len(), 40);
    let (code, message) = error(&none);
    assert!(
        code == "max_shrink"
            && message.contains("had 40 hosts and finds 0 now: 40 are missing, and max_shrink allows 12"),
        "{message}"
    );
    world.repo.push("to nobody");
    let run = daemon.deploy().is("failed");
    let cause = run.deployment("production")["cause"].clone();
    assert_eq!(cause["code"], "max_shrink", "{cause}");
    assert!(world.untouched());

    web.gives("/sd", 200, &targets(&["10.0.0.1", "10.0.0.2"]));
    let plan = daemon.api.get("/v1/projects/shop/plan").json();
    assert_eq!(plan["environments"][0]["cause"]["code"], "max_shrink", "{plan}");
    let told = daemon.cli(&["hosts", "shop", "production", "--accept"]);
    assert!(told.code == 0 && told.stdout.starts_with("shop production: 2 hosts"), "{told:?}");
    let plan = daemon.api.get("/v1/projects/shop/plan").json();
    assert_eq!(plan["environments"][0]["hosts"].as_array().unwrap().len(), 2, "{plan}");
}

#[test]
fn a_list_that_is_far_too_long_is_not_believed_until_a_person_accepts_it() {
    let web = Web::start();
    let addresses = |n: u32| (1..=n).map(|n| format!("10.0.{}.{}", n / 200, n % 200 + 1)).collect::<Vec<_>>();
    let give = |n: u32| {
        let addresses = addresses(n);
        web.gives("/sd", 200, &targets(&addresses.iter().map(String::as_str).collect::<Vec<_>>()));
    };
    give(4);
    let (world, daemon) =
        with(&[&format!("require \"discovery.prometheus\" {{ \"{}\", interval = \"1h\" }}", web.url("/sd"))]);
    assert_eq!(ids(&fleet(&daemon, false)).len(), 4);
    give(60);
    let found = fleet(&daemon, true);
    let (code, message) = error(&found);
    assert_eq!((ids(&found).len(), code.as_str()), (4, "max_growth"), "{message}");
    assert!(message.contains("56 have come at once, and max_growth allows 50"), "{message}");
    world.repo.push("to the whole company");
    let run = daemon.deploy().is("failed");
    assert_eq!(run.deployment("production")["cause"]["code"], "max_growth", "{}", run.view);
    assert!(world.untouched());
    let told = daemon.cli(&["hosts", "shop", "production", "--accept"]);
    assert!(told.code == 0 && told.stdout.starts_with("shop production: 60 hosts"), "{told:?}");
}

#[test]
fn a_stale_list_does_for_what_is_new_until_max_age_and_min_hosts_is_minded() {
    let web = Web::start();
    web.gives("/sd", 200, &targets(&["10.0.0.1", "10.0.0.2"]));
    let (_world, daemon) = with(&[&format!(
        "require \"discovery.prometheus\" {{ \"{}\", interval = \"1h\", min_hosts = 2, max_shrink = \"100%\", max_age = \"1ms\" }}",
        web.url("/sd")
    )]);
    assert_eq!(ids(&fleet(&daemon, false)).len(), 2);
    web.gives("/sd", 200, &targets(&["10.0.0.1"]));
    let (code, message) = error(&fleet(&daemon, true));
    assert!(
        code == "min_hosts" && message.contains("found 1 running hosts, and min_hosts says there are at least 2"),
        "{message}"
    );
    web.gives("/sd", 404, "gone");
    let cause = eventually("the list is too old", || {
        let plan = daemon.api.get("/v1/projects/shop/plan").json();
        let cause = plan["environments"][0]["cause"].clone();
        cause["message"].as_str().is_some_and(|m| m.contains("and max_age is 1ms")).then_some(cause)
    });
    assert_eq!(cause["code"], "discovery_failed", "{cause}");
}

#[test]
fn several_sources_are_one_fleet() {
    let world = World::new();
    let file = world.path("tested/hosts.json");
    let hosts = json!([
        {"id": "i-1", "name": "web-1", "address": "10.0.0.1", "labels": {"role": "web"}, "zone": "a"},
        {"id": "i-2", "address": "10.0.0.2", "state": "terminated", "reason": "spot interruption"},
        {"id": "i-3", "address": "10.0.0.3"}]);
    std::fs::write(&file, hosts.to_string()).unwrap();
    let file = format!("require \"discovery.file\" {{ \"{}\" }}", file.display());
    let listed = "{ id = \"i-1\", address = \"54.0.0.1\", port = 2222 }";
    let double = "{ id = \"web9\", address = \"10.0.0.3\" }";
    world.project(&Project::new("shop").hosts(&[listed, &file, double, "{ id = \"i-2\", address = \"10.0.0.2\" }"]));
    let daemon = world.start();
    let found = fleet(&daemon, true);
    assert_eq!(ids(&found), ["i-3", "i-1"], "{found}");
    let one = &found["hosts"][1];
    assert_eq!(
        (&one["name"], &one["address"], &one["port"], &one["zone"]),
        (&json!("web-1"), &json!("54.0.0.1"), &json!(2222), &json!("a"))
    );
    assert_eq!(one["sources"], json!(["the project's list", "file"]));
    assert_eq!(out(&found), ["i-2:terminated", "web9:same_address"]);
    assert_eq!(found["out"][0]["message"], "file says it is terminated: spot interruption");
    assert_eq!(found["disagreements"], 1);
    assert_eq!(
        (&found["conflicts"][0]["field"], &found["conflicts"][0]["used"], &found["conflicts"][0]["other"]),
        (&json!("address"), &json!("54.0.0.1"), &json!("10.0.0.1"))
    );
}

#[test]
fn an_inventory_script_runs_as_the_projects_user() {
    let world = World::new();
    let script = world.path("tested/inventory.py");
    let text = "#!/usr/bin/python3\nimport json, os, sys\n\
        assert sys.argv[1:] == ['--list']\n\
        print(json.dumps({'web': {'hosts': ['web1', 'web2'], 'vars': {'ansible_user': 'u%d' % os.getuid()}},\n\
        '_meta': {'hostvars': {'web1': {'ansible_host': '10.0.0.1'}}}}))\n";
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    world.project(
        &Project::new("shop")
            .hosts(&[&format!("require \"discovery.ansible\" {{ \"{}\", group = \"web\" }}", script.display())]),
    );
    let daemon = world.start();
    let found = fleet(&daemon, true);
    assert_eq!(ids(&found), ["web1", "web2"], "{found}");
    assert_eq!(
        (&found["hosts"][0]["address"], &found["hosts"][0]["labels"]["groups"]),
        (&json!("10.0.0.1"), &json!("web"))
    );
    let user = found["hosts"][0]["user"].as_str().unwrap()[1..].parse::<u32>().unwrap();
    assert!((world.uids.0..=world.uids.1).contains(&user), "{user}");
    std::fs::write(&script, "#!/bin/sh\nprintf 'traceback:\n  no database\n' >&2\nexit 3\n").unwrap();
    let (_, message) = error(&fleet(&daemon, true));
    assert!(message.contains("--list ended with 3: traceback: no database"), "{message}");
}

#[test]
fn what_only_ansible_can_read_is_read_by_ansible() {
    let found = Command::new("ansible-inventory").arg("--version").output();
    assert!(
        found.is_ok_and(|said| said.status.success()),
        "ansible-inventory is missing: apt-get install ansible-core"
    );
    let world = World::new();
    let dir = world.path("tested/inventory");
    std::fs::create_dir(&dir).unwrap();
    let hosts = |address: &str| {
        let text = format!(
            "all:\n  children:\n    web:\n      hosts:\n        web[1:2]:\n          ansible_host: {address:?}\n          ansible_port: 2222\n    db:\n      hosts:\n        db1:\n"
        );
        std::fs::write(dir.join("prod.yml"), text).unwrap();
    };
    hosts("10.0.0.9");
    let source =
        format!("require \"discovery.ansible\" {{ \"{}/\", group = \"web\", interval = \"1h\" }}", dir.display());
    world.project(&Project::new("shop").hosts(&[&source]));
    let daemon = world.start();
    let found = fleet(&daemon, false);
    assert_eq!(ids(&found), ["web1", "web2"], "{found}");
    let one = &found["hosts"][0];
    assert_eq!(
        (&one["address"], &one["port"], &one["labels"]["groups"]),
        (&json!("10.0.0.9"), &json!(2222), &json!("web"))
    );
    // A template is for Ansible to fill in when it runs: it is shown as it is written.
    hosts("{{ inventory_hostname }}.example.com");
    let (_, message) = error(&fleet(&daemon, true));
    assert!(message.contains("ansible_host of web1 is the template"), "{message}");
    // By itself it would leave out what it cannot read, and say nothing.
    hosts("10.0.0.9");
    std::fs::write(dir.join("more.yml"), "web: [").unwrap();
    let (_, message) = error(&fleet(&daemon, true));
    assert!(message.contains("Completely failed to parse inventory source"), "{message}");
}

#[test]
fn dns_is_asked_anew_each_time_and_over_tcp_where_it_must_be() {
    let dns = Dns::start();
    dns.holds("_ssh._tcp.web.test", "SRV", &["1 5 2222 web1.web.test.", "1 5 2200 web2.web.test."]);
    let many: Vec<String> = (1..=200).map(|n| format!("10.1.0.{n}")).collect();
    dns.holds("many.test", "A", &many.iter().map(String::as_str).collect::<Vec<_>>());
    dns.holds("six.test", "AAAA", &["fd00::1"]);
    let source = |names: &str, kind: &str| {
        format!(
            "require \"discovery.dns\" {{ {names}, type = \"{kind}\", server = \"{}\", interval = \"1h\", max_shrink = \"100%\" }}",
            dns.server()
        )
    };
    let (_world, daemon) = with(&[
        &source("\"_ssh._tcp.web.test\"", "SRV"),
        &source("\"many.test\", \"six.test\"", "A"),
        &source("names = { \"six.test\" }", "AAAA"),
    ]);
    let found = fleet(&daemon, true);
    assert_eq!(
        found["sources"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["dns 1", "dns 2", "dns 3"]
    );
    let hosts: Vec<Value> = found["hosts"].as_array().unwrap().clone();
    assert_eq!(hosts.len(), 203, "{}", found["sources"]);
    let web1 = hosts.iter().find(|host| host["id"] == "web1.web.test").unwrap();
    assert_eq!(web1["port"], 2222);
    assert!(*dns.by_tcp.lock().unwrap() > 0, "200 addresses fit into no datagram");

    dns.holds("_ssh._tcp.web.test", "SRV", &["1 5 2222 web1.web.test."]);
    assert_eq!(fleet(&daemon, true)["hosts"].as_array().unwrap().len(), 202);
}

#[test]
fn what_dns_does_not_know_is_an_error_and_what_it_does_not_have_is_none() {
    let dns = Dns::start();
    dns.holds("web.test", "A", &["10.0.0.1"]);
    let (_world, daemon) = with(&[
        "{ id = \"x\", address = \"10.9.9.9\" }",
        &format!("require \"discovery.dns\" {{ names = {{ \"wep.test\" }}, server = \"{}\" }}", dns.server()),
        &format!(
            "require \"discovery.dns\" {{ names = {{ \"web.test\" }}, type = \"SRV\", server = \"{}\" }}",
            dns.server()
        ),
        "require \"discovery.dns\" { names = { \"web.test\" }, server = \"ns1\" }",
    ]);
    let found = fleet(&daemon, true);
    let of = |n: usize| (&found["sources"][n]["error"]["code"], &found["sources"][n]["error"]["message"]);
    assert_eq!(of(0).0, "dns_unknown", "{found}");
    assert!(of(0).1.as_str().unwrap().contains("there is no name wep.test"), "{found}");
    assert_eq!(of(1), (&Value::Null, &Value::Null));
    assert!(of(2).1.as_str().unwrap().contains("\"ns1\" is no address with a port"), "{found}");
    let plan = daemon.api.get("/v1/projects/shop/plan").json();
    assert_eq!(plan["environments"][0]["cause"]["code"], "discovery_failed", "{plan}");
}

#[test]
fn a_list_found_with_other_options_does_not_stand_in() {
    let web = Web::start();
    web.gives("/db", 200, &targets(&["10.0.0.1", "10.0.0.2"]));
    web.gives("/web", 429, "slow down");
    let source = |path: &str, more: &str| {
        format!("require \"discovery.prometheus\" {{ \"{}\", interval = \"1h\"{more} }}", web.url(path))
    };
    let (world, daemon) = with(&[&source("/db", "")]);
    assert_eq!(ids(&fleet(&daemon, true)).len(), 2);

    let reload = |source: &str| {
        world.project(&Project::new("shop").rollout("max_parallel = 1").hosts(&[source]));
        daemon.api.post("/v1/reload", &json!({})).is(200);
    };
    reload(&source("/web", ""));
    let plan = daemon.api.get("/v1/projects/shop/plan").json();
    assert_eq!(plan["environments"][0]["cause"]["code"], "discovery_failed", "{plan}");
    assert!(ids(&fleet(&daemon, true)).is_empty());
    let inventory = daemon.api.get("/v1/inventory").is(503).json();
    assert_eq!(inventory["code"], "discovery_failed", "{inventory}");
    let refused = daemon.cli(&["hosts", "shop", "production", "--accept"]);
    assert!(refused.code != 0 && refused.stderr.contains("nothing is accepted"), "{refused:?}");

    // Back again, and how it is asked is no other source.
    web.gives("/db", 503, "down");
    reload(&source("/db", ", max_shrink = \"100%\""));
    let stale = fleet(&daemon, true);
    assert_eq!(ids(&stale), ["10.0.0.1", "10.0.0.2"], "{stale}");
    assert!(error(&stale).1.contains("answered 503"), "{stale}");
}

/// What `discovery.file` finds: hosts of `world`, each with further keys as JSON has them.
fn lists(world: &World, hosts: &[(&str, &str)]) {
    let record = |(id, more): &(&str, &str)| {
        let lua = world.host_table(id).replace("{ id = ", "{ \"id\": ").replace(", address = ", ", \"address\": ");
        lua.replace(", base = ", ", \"base\": ").replace(" }", &format!("{more} }}"))
    };
    let records: Vec<String> = hosts.iter().map(record).collect();
    std::fs::write(world.path("hosts.json"), format!("[{}]", records.join(", "))).unwrap();
}

fn in_file(world: &World) -> String {
    format!("require \"discovery.file\" {{ {:?} }}", world.path("hosts.json"))
}

const TERMINATED: &str = ", \"state\": \"terminated\"";

#[test]
fn one_that_is_ended_while_it_is_watched_is_gone_and_its_illness_says_nothing_of_the_release() {
    let world = World::new();
    lists(&world, &[("h1", ""), ("h2", ""), ("h3", "")]);
    let source = in_file(&world);
    let health = r#"command = 'test ! -e "@ROOT@/ill-$PHASED_HOST_ID"', min_healthy_time = "100ms", healthy_deadline = "2s", interval = "100ms""#;
    let phases = r#"canary = 1, max_parallel = 2, bake_time = "3s""#;
    world.project(&Project::new("shop").hosts(&[&source]).health(health).phases(phases));
    let daemon = world.start();
    world.repo.push("good");
    let run = daemon.press();
    run.until("the rest bakes", |run| run["deployments"][0]["waves"][1]["baking_since"].is_string());
    lists(&world, &[("h1", ""), ("h2", TERMINATED), ("h3", "")]);
    assert_eq!(out(&fleet(&daemon, true)), ["h2:terminated"]);
    // It goes down, and what it serves goes down with it.
    std::fs::write(world.path("hosts").join("ill-h2"), "").unwrap();
    let ended = run.wait().is("succeeded");
    assert_eq!(ended.host("h2")["state"], "gone", "{}", ended.deployment("production"));
    assert!(ended.host("h2")["cause"]["message"].as_str().unwrap().contains("terminated"), "{}", ended.view);
}

/// The machine of `h2` dies while its deploy runs there, and its source says of it `then` from that moment on; nothing, if that is `None`.
fn dies_in_its_deploy(then: Option<&str>) -> Ended {
    let world = World::new();
    let authorized = std::fs::read_to_string(world.path("id.pub")).unwrap();
    let dying = Sshd::start(&world.path("apart"), &authorized, "");
    let known = world.path("known_apart");
    std::fs::write(&known, dying.known_hosts()).unwrap();
    let apart = format!(", \"port\": {}, \"known_hosts\": {known:?}", dying.port);
    lists(&world, &[("h1", ""), ("h2", &apart), ("h3", ""), ("h4", "")]);
    let long = r#"if host.id == "h2" then host:sh { "echo begun; sleep 300", timeout = "20s" } end"#;
    world.project(&Project::new("shop").hosts(&[&in_file(&world)]).rollout("max_parallel = 4").deploy_after(long));
    let daemon = world.start();
    world.repo.push("for those that are there");
    let run = daemon.press();
    run.prints("begun");
    let others = [("h1", ""), ("h3", ""), ("h4", "")];
    let now = then.map(|more| format!("{apart}{more}"));
    lists(&world, &now.iter().map(|more| ("h2", more.as_str())).chain(others).collect::<Vec<_>>());
    drop(dying);
    let ended = run.wait();
    assert!(world.hosts_have(&["h1", "h3", "h4"], &world.repo.head()));
    ended
}

#[test]
fn one_that_is_ended_in_the_middle_of_its_deploy_is_gone() {
    let ended = dies_in_its_deploy(Some(TERMINATED)).is("succeeded");
    assert_eq!(ended.host("h2")["state"], "gone", "{}", ended.deployment("production"));
    assert!(ended.host("h2")["cause"]["message"].as_str().unwrap().contains("terminated"), "{}", ended.view);
}

#[test]
fn one_that_is_lost_in_its_deploy_and_that_nobody_names_any_more_is_gone() {
    let ended = dies_in_its_deploy(None).is("succeeded");
    assert_eq!(ended.host("h2")["state"], "gone", "{}", ended.deployment("production"));
    assert_eq!(ended.host("h2")["cause"]["message"], "file does not name it any more", "{}", ended.view);
}

#[test]
fn one_that_is_lost_in_its_deploy_and_is_still_there_has_failed() {
    let ended = dies_in_its_deploy(Some("")).is("halted");
    assert_eq!(ended.host("h2")["state"], "failed", "{}", ended.deployment("production"));
    assert_eq!(ended.host("h2")["cause"]["code"], "lost", "{}", ended.view);
}
