//! People hold environments, give them back, and take them away.

use serde_json::json;

use super::{LEASE, gated, go, waits};
use crate::fixture::{Project, World, eventually};

#[test]
fn a_person_holds_an_environment_over_a_crash_and_gives_it_back() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    let nobody = daemon.api.get(LEASE).is(200).json();
    assert_eq!((&nobody["held"], &nobody["holder"]), (&json!(false), &json!(null)));
    let ask = json!({ "for": "1h", "reason": "debugging the cart", "holder": "ann" });
    let held = daemon.api.put(LEASE, &ask).is(200).json();
    assert_eq!((&held["holder"], &held["reason"]), (&json!("ann"), &json!("debugging the cart")));
    let commit = world.repo.push("one");
    let run = daemon.press();
    let waiting = waits(&run, "lease");
    assert_eq!(
        waiting,
        json!({ "code": "lease", "holder": "ann", "until": held["until"], "reason": "debugging the cart" })
    );
    let status = daemon.cli(&["status", "shop"]).stdout;
    assert!(
        status.contains("production: planned, waits for lease: ann (debugging the cart), at the latest until "),
        "{status}"
    );
    assert!(status.contains("held by ann (debugging the cart), until "), "{status}");

    daemon.kill();
    let daemon = world.start();
    assert_eq!(daemon.api.get(LEASE).is(200).json(), held);
    let run = daemon.run(&run.id);
    assert_eq!(waits(&run, "lease"), waiting);
    assert!(world.untouched());

    // Nobody else takes it or gives it back by mistake.
    let refused = daemon.api.put(LEASE, &json!({ "for": "1h", "holder": "bob" }));
    assert_eq!(refused.problem(), (409, "lease_held".to_owned()));
    assert!(
        refused.text().contains("production of shop is held by ann (debugging the cart) since "),
        "{}",
        refused.text()
    );
    assert_eq!(daemon.api.delete(&format!("{LEASE}?holder=bob")).problem(), (409, "lease_held".to_owned()));
    assert_eq!(run.now()["waiting"], waiting);
    let back = daemon.api.delete(&format!("{LEASE}?holder=ann")).is(200).json();
    assert_ne!(back["holder"], "ann");
    run.wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
}

#[test]
fn a_lease_ends_by_itself_and_the_run_goes_on() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    let first = daemon.api.put(LEASE, &json!({ "for": "1h" })).is(200).json();
    assert_eq!(first["holder"], "uid 0");
    let commit = world.repo.push("one");
    let run = daemon.press();
    waits(&run, "lease");
    // The same person again: the same grant with another end.
    let again = daemon.api.put(LEASE, &json!({ "for": "1s", "reason": "nearly done" })).is(200).json();
    assert_eq!((&again["epoch"], &again["since"]), (&first["epoch"], &first["since"]));
    run.wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
}

#[test]
fn a_lease_needs_an_end_that_is_near() {
    let (_world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    for (body, why) in [
        (json!({ "reason": "x" }), "for is missing"),
        (json!({ "for": "8d" }), "at most 7d"),
        (json!({ "for": "1h", "holder": "01kc0000000000000000000000.1" }), "reads as a deployment"),
    ] {
        let refused = daemon.api.put(LEASE, &body);
        assert_eq!(refused.problem(), (422, "bad_value".to_owned()));
        assert!(refused.text().contains(why), "{}", refused.text());
    }
    let nowhere = daemon.api.put("/v1/projects/shop/environments/prod/lease", &json!({ "for": "1h" }));
    assert_eq!(nowhere.problem(), (404, "environment_unknown".to_owned()));
    assert_eq!(daemon.api.get(LEASE).is(200).json()["held"], false);
}

#[test]
fn a_deployment_whose_lease_is_taken_away_begins_no_further_host() {
    let (world, daemon) = World::with(&gated());
    world.repo.push("one");
    let run = daemon.press();
    run.until("it deploys", |v| v["deployments"][0]["hosts"][0]["state"] == "running");
    let refused = daemon.api.put(LEASE, &json!({ "for": "1h", "holder": "ann" }));
    assert_eq!(refused.problem(), (409, "lease_held".to_owned()));
    let says = format!("is held by deployment {}.1 (deployment of ", run.id);
    assert!(refused.text().contains(&says) && refused.text().contains("phased stop"), "{}", refused.text());

    let epoch = daemon.api.get(LEASE).json()["epoch"].as_u64().unwrap();
    let held = daemon.api.put(LEASE, &json!({ "for": "1h", "holder": "ann", "force": true })).is(200).json();
    assert!(held["holder"] == "ann" && held["epoch"].as_u64().unwrap() > epoch, "{held}");
    // What is in flight finishes; the next host is not touched.
    go(&world);
    let ended = run.wait().is("halted");
    assert_eq!((ended.code(), ended.hosts()), ("lease_lost", vec!["h1:healthy".to_owned(), "h2:skipped".to_owned()]));
    assert_eq!(daemon.api.get(LEASE).json()["holder"], "ann", "it is still hers");
}

#[test]
fn it_hears_of_that_also_when_the_daemon_was_killed_in_between() {
    let (world, daemon) = World::with(&gated());
    world.repo.push("one");
    let run = daemon.press();
    run.until("it deploys", |v| v["deployments"][0]["hosts"][0]["state"] == "running");
    daemon.api.put(LEASE, &json!({ "for": "1h", "holder": "ann", "force": true })).is(200);
    daemon.kill();
    go(&world);
    let daemon = world.start();
    let ended = daemon.run(&run.id).wait().is("halted");
    assert_eq!((ended.code(), ended.hosts()), ("lease_lost", vec!["h1:healthy".to_owned(), "h2:skipped".to_owned()]));
    assert!(world.touched("h2").is_empty());
}

#[test]
fn a_lease_that_is_given_back_over_its_head_is_lost_too() {
    let (world, daemon) = World::with(&gated().keys(r#"group = "database""#));
    world.repo.push("one");
    let run = daemon.press();
    run.until("it deploys", |v| v["deployments"][0]["hosts"][0]["state"] == "running");
    assert_eq!(daemon.api.delete(LEASE).problem(), (409, "lease_held".to_owned()));
    daemon.api.delete(&format!("{LEASE}?force=true")).is(200);
    go(&world);
    let ended = run.wait().is("halted");
    assert_eq!((ended.code(), ended.hosts()), ("lease_lost", vec!["h1:healthy".to_owned(), "h2:skipped".to_owned()]));
    daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded");
}

#[test]
fn under_all_those_who_wait_go_in_the_order_they_came() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).queue_all().webhook());
    daemon.api.put(LEASE, &json!({ "for": "1h" })).is(200);
    let commits = ["one", "two"].map(|message| world.repo.push(message));
    let runs = commits.clone().map(|commit| crate::webhook::tell(&daemon, &commit));
    runs.iter().for_each(|run| drop(waits(run, "lease")));
    daemon.kill();
    let daemon = world.start();
    let runs = runs.map(|run| daemon.run(&run.id));
    runs.iter().for_each(|run| drop(waits(run, "lease")));
    daemon.api.delete(LEASE).is(200);
    runs.iter().for_each(|run| drop(run.wait().is("succeeded")));
    let seen: Vec<String> = world.touched("h1").into_iter().step_by(2).map(|touched| touched.3).collect();
    assert_eq!(seen, commits);
}

#[test]
fn under_latest_a_newer_one_takes_the_place_of_one_that_waits_and_of_none_that_runs() {
    let (world, daemon) = World::with(&gated());
    let first = world.repo.push("one");
    let running = daemon.press();
    running.until("it deploys", |v| v["deployments"][0]["hosts"][0]["state"] == "running");
    world.repo.push("two");
    let waiting = daemon.press();
    waits(&waiting, "lease");
    let last = world.repo.push("three");
    let newest = daemon.press();
    let superseded = waiting.wait().is("superseded");
    assert!(superseded.message().contains(&newest.id), "{}", superseded.message());
    go(&world);
    running.wait().is("succeeded");
    newest.wait().is("succeeded");
    let seen: Vec<String> = world.touched("h1").into_iter().step_by(2).map(|touched| touched.3).collect();
    assert_eq!(seen, [first, last]);
    eventually("it is free", || (daemon.api.get(LEASE).json()["held"] == false).then_some(()));
}
