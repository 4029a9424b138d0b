//! Times in which nothing new is deployed.

use serde_json::json;

use super::{FREEZE, gated, go, waits};
use crate::fixture::{Project, World};

/// A window that is on, whenever this is run.
const ALWAYS: &str =
    r#"freeze = { { from = "2020-01-01", to = "2099-12-31", zone = "Europe/Berlin", reason = "the audit" } }"#;

#[test]
fn in_a_freeze_by_hand_a_run_waits_over_a_crash_and_goes_on_when_it_is_lifted() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    let frozen = daemon.cli(&["freeze", "shop", "production", "--reason", "the big sale"]);
    assert_eq!(
        (frozen.code, &*frozen.stdout),
        (0, "production of shop is frozen until it is lifted by uid 0 (the big sale)\n")
    );
    assert!(frozen.stderr.contains("phased unfreeze shop production"), "{}", frozen.stderr);
    world.repo.push("one");
    let run = daemon.press();
    let waiting = waits(&run, "freeze");
    assert_eq!(waiting, json!({ "code": "freeze", "holder": "uid 0", "until": null, "reason": "the big sale" }));

    daemon.kill();
    let daemon = world.start();
    let run = daemon.run(&run.id);
    assert_eq!(waits(&run, "freeze"), waiting);
    let status = daemon.cli(&["status", "shop"]).stdout;
    assert!(
        status.contains("production: planned, waits, frozen until it is lifted by uid 0 (the big sale)"),
        "{status}"
    );
    assert!(world.untouched());

    // A newer one takes its place at the door.
    let commit = world.repo.push("two");
    let newer = daemon.press();
    waits(&newer, "freeze");
    run.wait().is("superseded");
    let lifted = daemon.cli(&["unfreeze", "shop", "production"]);
    assert_eq!((lifted.code, &*lifted.stdout), (0, "production of shop is not frozen\n"));
    newer.wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    assert_eq!(world.touched("h1").len(), 2);
}

#[test]
fn a_freeze_ends_by_itself_also_while_the_daemon_is_away() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    daemon.api.put(FREEZE, &json!({ "for": "1h" })).is(200);
    world.repo.push("one");
    let run = daemon.press();
    waits(&run, "freeze");
    let shorter = daemon.api.put(FREEZE, &json!({ "for": "1s" })).is(200).json();
    assert!(shorter["until"].is_string(), "{shorter}");
    run.wait().is("succeeded");
    assert_eq!(daemon.api.get(FREEZE).is(200).json()["frozen"], false);

    daemon.api.put(FREEZE, &json!({ "for": "1h" })).is(200);
    let commit = world.repo.push("two");
    let run = daemon.press();
    waits(&run, "freeze");
    daemon.api.put(FREEZE, &json!({ "for": "500ms" })).is(200);
    daemon.kill();
    let daemon = world.start();
    daemon.run(&run.id).wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
}

#[test]
fn what_is_under_way_when_a_freeze_begins_goes_on() {
    let (world, daemon) = World::with(&gated());
    let commit = world.repo.push("one");
    let run = daemon.press();
    run.until("it deploys", |v| v["deployments"][0]["hosts"][0]["state"] == "running");
    daemon.api.put(FREEZE, &json!({})).is(200);
    // Also over a restart: the lease is its own.
    daemon.kill();
    let daemon = world.start();
    go(&world);
    daemon.run(&run.id).wait().is("succeeded");
    assert!(world.hosts_have(&["h1", "h2"], &commit));
    world.repo.push("two");
    let next = daemon.press();
    waits(&next, "freeze");
    daemon.api.post(&format!("/v1/runs/{}/stop", next.id), &json!({})).is(202);
    next.wait().is("stopped");
}

#[test]
fn a_window_of_the_file_counts_as_the_file_is_now() {
    let frozen = Project::new("shop").hosts(&["h1"]).keys(ALWAYS);
    let (world, daemon) = World::with(&frozen);
    let commit = world.repo.push("one");
    let run = daemon.press();
    let waiting = waits(&run, "freeze");
    assert_eq!(
        waiting,
        json!({
            "code": "freeze", "holder": "2020-01-01 to 2099-12-31 Europe/Berlin", "until": "2099-12-31T23:00:00.000Z",
            "reason": "the audit",
        })
    );
    let view = daemon.api.get(FREEZE).is(200).json();
    assert_eq!((&view["frozen"], &view["by_hand"]), (&json!(true), &json!(null)));
    let status = daemon.status()["projects"][0]["environments"][0]["freeze"].clone();
    assert_eq!(status, waiting);
    world.project(&Project::new("shop").hosts(&["h1"]));
    assert_eq!(daemon.cli(&["reload"]).code, 0);
    run.wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));

    // And one that is put in again keeps the next away.
    world.project(&frozen);
    assert_eq!(daemon.cli(&["reload"]).code, 0);
    let commit = world.repo.push("two");
    let run = daemon.press();
    waits(&run, "freeze");
    let lifted = daemon.cli(&["unfreeze", "shop", "production", "--reason", "the hotfix"]);
    assert!(
        lifted.stdout.starts_with("production of shop is not frozen\n  lifted  by uid 0 (the hotfix)"),
        "{lifted:?}"
    );
    run.wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    // It holds over a restart, and a freeze by hand ends it.
    daemon.kill();
    let daemon = world.start();
    assert_eq!(daemon.api.get(FREEZE).is(200).json()["lifted"]["reason"], "the hotfix");
    let again = daemon.api.put(FREEZE, &json!({ "for": "1h" })).is(200).json();
    assert_eq!((&again["lifted"], &again["until"]), (&json!(null), &json!("2099-12-31T23:00:00.000Z")));
}

#[test]
fn the_command_line_says_what_is_wrong_with_a_time() {
    let (_world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    let wrong = daemon.cli(&["freeze", "shop", "production", "--until", "tomorrow"]);
    assert!(wrong.code == 1 && wrong.stderr.contains("until must be a moment such as"), "{wrong:?}");
    assert_eq!(daemon.cli(&["freeze", "shop", "production", "--for", "soon"]).code, 2);
    assert_eq!(daemon.cli(&["freeze", "shop", "staging"]).code, 8);
    let until = daemon.cli(&["freeze", "shop", "production", "--until", "2099-12-24T18:00:00+01:00"]);
    assert!(until.stdout.contains("frozen until 2099-12-24 17:00:00 UTC by uid 0"), "{until:?}");
}
