//! Rules that hold on every way, and how they are told.

use std::collections::BTreeSet;

use serde_json::json;

use super::{HEALTH, all_have, first, project};
use crate::fixture::{Project, World};

/// Which zones had hosts under way at the same moment, and how many hosts at most.
fn at_once(trace: &str) -> (Vec<BTreeSet<String>>, usize) {
    let (mut running, mut zones, mut most) = (BTreeSet::new(), Vec::new(), 0);
    for line in trace.lines() {
        let (what, host) = line.split_once(' ').unwrap();
        let changed = if what == "begins" { running.insert(host.to_owned()) } else { running.remove(host) };
        assert!(changed, "{trace}");
        most = most.max(running.len());
        // h1 and h3 are in one zone, h2 and h4 in another.
        let zone = |host: &String| (host.as_bytes()[1] % 2).to_string();
        zones.push(running.iter().map(zone).collect());
    }
    assert!(running.is_empty(), "{trace}");
    (zones, most)
}

#[test]
fn two_zones_are_never_touched_at_once_on_the_way_back_by_hand_either() {
    let deploy = r#"host:sh { [[
        echo "begins $PHASED_HOST_ID" >>"$TESTED/trace"; sleep 0.4
        echo "$PHASED_REVISION" >"$ROOT/$PHASED_HOST_ID/revision"; echo "ends $PHASED_HOST_ID" >>"$TESTED/trace"
      ]], env = { ROOT = "@ROOT@", TESTED = "@TESTED@" } }"#;
    let shop = Project::new("shop")
        .hosts(&["h1@a", "h2@b", "h3@a", "h4@b"])
        .phases(r#"canary = 0, max_parallel = 4, zones = true, bake_time = "0s""#)
        .health(HEALTH)
        .deploy(deploy);
    let world = World::new();
    world.project(&shop);
    let trace = world.path("tested/trace");
    std::fs::write(&trace, "").unwrap();
    std::fs::set_permissions(&trace, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let (daemon, old) = first(&world, 4);
    world.repo.push("second");
    daemon.deploy().is("succeeded");
    daemon.idle();
    std::fs::write(&trace, "").unwrap();
    let back = daemon.cli(&["rollback", "shop", "production", "--wait"]);
    assert!(back.code == 0, "{back:?}");
    all_have(&world, 4, &old);
    let (zones, most) = at_once(&std::fs::read_to_string(&trace).unwrap());
    assert!(zones.iter().all(|zones| zones.len() < 2), "{zones:?}");
    assert_eq!(most, 2, "those of one zone go together");
}

#[test]
fn the_plan_says_what_would_ship_who_has_the_way_back_and_what_is_in_the_way() {
    let world = World::new();
    world.project(&project(3, r#"canary = 1, bake_time = "0s""#));
    let (daemon, old) = first(&world, 3);
    let live = daemon.cli(&["plan", "shop"]).stdout;
    assert!(live.contains("\nbut it is live there already") && live.contains("(already_live)"), "{live}");
    let new = world.repo.push("faster");
    let plan = daemon.api.get("/v1/projects/shop/plan").json();
    let production = &plan["environments"][0];
    assert_eq!(plan["next"]["revision"], json!(new), "{plan:#}");
    for host in production["hosts"].as_array().unwrap() {
        assert_eq!((&host["current"], &host["next"]), (&json!(old[..12]), &json!(new[..12])), "{plan:#}");
    }
    assert_eq!((&production["rollback"]["revision"], &production["rollback_on"]), (&json!(old), &json!(3)), "{plan:#}");
    assert!(production["expected"].is_string() && production["freeze"].is_null(), "{plan:#}");
    let frozen = daemon.cli(&["freeze", "shop", "production", "--reason", "a sale"]);
    assert_eq!(frozen.code, 0, "{frozen:?}");
    let text = daemon.cli(&["plan", "shop"]).stdout;
    for part in [&format!("\nships {} \"faster\" by ", &new[..12]), "which 3 of them have now\n"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains("\n  waits   it is frozen until it is lifted by uid 0 (a sale)\n"), "{text}");
    // And somebody has it for themselves.
    let lease = json!({ "for": "1h", "reason": "debugging the cart", "holder": "ann" });
    let held = daemon.api.put("/v1/projects/shop/environments/production/lease", &lease).is(200).json();
    let plan = daemon.api.get("/v1/projects/shop/plan").json();
    assert_eq!(
        plan["environments"][0]["lease"],
        json!({ "code": "lease", "holder": "ann", "until": held["until"], "reason": "debugging the cart" }),
        "{plan:#}"
    );
    let text = daemon.cli(&["plan", "shop"]).stdout;
    assert!(text.contains("\n  waits   it is held by ann (debugging the cart), until "), "{text}");
    assert!(text.contains("\n  waits   it is frozen"), "{text}");
    // Nobody can tell what would ship: the rest of the plan is there.
    std::fs::rename(world.path("repo.git"), world.path("away.git")).unwrap();
    let plan = daemon.api.get("/v1/projects/shop/plan").json();
    assert!(plan["next"].is_null() && plan["cause"]["code"].is_string(), "{plan:#}");
    assert_eq!(plan["environments"][0]["hosts"].as_array().unwrap().len(), 3);
}

#[test]
fn the_plan_asks_rollback_safe_of_what_would_ship_and_runs_nothing() {
    let safe = r#"rollback_safe = function(release) return not release:changed "db/**", "the schema changed" end"#;
    let world = World::new();
    let shop = project(2, r#"canary = 1, bake_time = "0s""#);
    world.project(&shop.clone().keys(safe));
    let (daemon, _) = first(&world, 2);
    let ask = || {
        let plan = daemon.api.get("/v1/projects/shop/plan").is(200).json();
        (plan["environments"][0]["rollback_answer"].clone(), daemon.cli(&["plan", "shop"]).stdout)
    };
    world.repo.push("faster");
    let (answer, text) = ask();
    assert_eq!(answer, json!({ "safe": true, "reason": null }));
    assert!(text.contains("which 2 of them have now; rollback_safe allows it\n"), "{text}");

    world.repo.commit(&[("db/1.sql", "create")], "a migration");
    let commit = world.repo.push("with a migration");
    let (answer, text) = ask();
    assert_eq!(answer, json!({ "safe": false, "reason": "the schema changed" }));
    assert!(
        text.contains("\n  then    it halts: rollback_safe says no: the schema changed (rollback_unsafe)\n"),
        "{text}"
    );
    // And so it is told while it goes on.
    world
        .project(&shop.clone().keys(safe).deploy_after(r#"host:sh 'until [ -e "@TESTED@/go" ]; do sleep 0.05; done'"#));
    daemon.api.post("/v1/reload", &json!({})).is(200);
    // A reload looks at the branch, and finds that commit.
    let run = daemon.nth_run(2);
    let going = run.until("it has been asked", |run| run["deployments"][0]["hosts"][0]["state"] == "running");
    assert_eq!(going["deployments"][0]["rollback_unsafe"], "the schema changed", "{going:#}");
    let status = daemon.cli(&["status", "shop"]).stdout;
    assert!(status.contains("cannot go back: the schema changed"), "{status}");
    std::fs::write(world.path("tested/go"), "").unwrap();
    run.wait().is("succeeded");
    all_have(&world, 2, &commit);

    // What it needs is not there before the release is built: only the deployment can tell.
    let needs = "rollback_safe = function(release) return release.artifacts.app ~= nil end";
    world.project(&shop.keys(needs));
    daemon.api.post("/v1/reload", &json!({})).is(200);
    world.repo.push("later");
    let (answer, text) = ask();
    assert!(answer["safe"].is_null(), "{answer}");
    assert!(answer["reason"].as_str().unwrap().contains("the release has no artifact app"), "{answer}");
    assert!(
        text.contains(", if rollback_safe does not forbid it, which is asked when the deployment begins"),
        "{text}"
    );
}

#[test]
fn the_plan_says_what_opens_an_environment_and_which_hosts_never_go_together() {
    let world = World::new();
    let shop = Project::new("shop")
        .hosts(&["h1@a", "h2@b", "h3@a", "h4@b"])
        .phases(r#"canary = 1, zones = true, max_failures = "50%", max_failures_per_wave = "25%", bake_time = "0s""#)
        .source(r#"tags = "v*""#)
        .keys(r#"when = { tag = "v*" }"#);
    world.project(&shop);
    let daemon = world.start();
    let plan = daemon.api.get("/v1/projects/shop/plan").json();
    let production = &plan["environments"][0];
    let told = ["when", "zones", "max_failures", "max_failures_per_wave"].map(|key| production[key].clone());
    assert_eq!(told, [json!("tag v*"), json!(true), json!("50% of 4 hosts = 2"), json!("25% of 4 hosts = 1")]);
    let text = daemon.cli(&["plan", "shop"]).stdout;
    for line in [
        "  zones   never two at once: a, b\n",
        "  when    production is entered by tag v* or when somebody says so: phased start shop production\n",
        "          or when more than 25% of 4 hosts = 1 of one wave failed\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn the_plan_says_what_the_floor_comes_to() {
    let world = World::new();
    world.project(&project(4, r#"canary = 1, max_parallel = 2, max_failures = "25%", bake_time = "0s""#));
    let daemon = world.start();
    let plan = daemon.api.get("/v1/projects/shop/plan").json();
    assert_eq!(
        plan["environments"][0]["min_healthy"],
        json!("4 healthy now less max_parallel 2 less max_failures 1 = 1")
    );
}
