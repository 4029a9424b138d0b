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
    for part in [&format!("\nships {} \"faster\" by ", &new[..12]), "which 3 of them have now", "frozen", "a sale"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Nobody can tell what would ship: the rest of the plan is there.
    std::fs::rename(world.path("repo.git"), world.path("away.git")).unwrap();
    let plan = daemon.api.get("/v1/projects/shop/plan").json();
    assert!(plan["next"].is_null() && plan["cause"]["code"].is_string(), "{plan:#}");
    assert_eq!(plan["environments"][0]["hosts"].as_array().unwrap().len(), 3);
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
