//! The queue, and one deployment per environment at a time.

use serde_json::{Value, json};

use crate::fixture::{Project, World, eventually};

/// Tests wait until the world says go, so that runs pile up.
const GATED: &str = r#"run:sh { 'until [ -e "$GO" ]; do sleep 0.05; done', env = { GO = "@ROOT@/../tested/go" } }"#;

fn go(world: &World) {
    std::fs::write(world.path("tested/go"), "").unwrap();
}

#[test]
fn under_latest_a_newer_push_supersedes_those_still_queued() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).stage("unit", GATED));
    let runs: Vec<_> = ["one", "two", "three", "four"]
        .into_iter()
        .map(|message| {
            world.repo.push(message);
            daemon.press()
        })
        .collect();
    runs[0].until("it is tested", |v| v["state"] == "testing");
    go(&world);
    let states: Vec<String> = runs.iter().map(|r| r.wait().state().to_owned()).collect();
    assert_eq!(states, ["succeeded", "superseded", "superseded", "succeeded"]);
    let superseded = runs[1].wait();
    assert_eq!(superseded.code(), "superseded");
    assert!(world.hosts_have(&["h1"], &world.repo.head()));
    assert_eq!(world.touched("h1").len(), 4);
}

#[test]
fn under_all_every_push_is_a_run() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).stage("unit", GATED).queue_all().webhook());
    let commits: Vec<_> = ["one", "two", "three"]
        .into_iter()
        .map(|message| {
            let commit = world.repo.push(message);
            let run = crate::webhook::tell(&daemon, &commit);
            (commit, run)
        })
        .collect();
    go(&world);
    for (commit, run) in &commits {
        assert_eq!(run.wait().is("succeeded").view["release"]["revision"], commit.as_str());
    }
    let seen: Vec<String> = world.touched("h1").into_iter().step_by(2).map(|t| t.3).collect();
    assert_eq!(seen, commits.iter().map(|(c, _)| c.clone()).collect::<Vec<_>>());
}

#[test]
fn a_run_in_the_queue_says_what_it_waits_for() {
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", GATED));
    world.repo.push("one");
    let first = daemon.press();
    first.until("it is tested", |v| v["state"] == "testing");
    world.repo.push("two");
    let second = daemon.press().until("it waits", |v| v["state"] == "queued");
    assert_eq!((&second["waiting"]["code"], &second["waiting"]["holder"]), (&json!("queue"), &json!(first.id)));
}

#[test]
fn one_deployment_at_a_time_and_the_next_waits_for_the_lease() {
    let deploy = r#"host:sh { 'until [ -e "$GO" ]; do sleep 0.05; done', env = { GO = "@ROOT@/../tested/go" } }"#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).deploy_after(deploy));
    world.repo.push("one");
    let first = daemon.press();
    first.until("it deploys", |v| v["deployments"][0]["hosts"][0]["state"] == "running");
    let second = world.repo.push("two");
    let waiting = daemon.press();
    let held = waiting.until("it waits", |v| v["deployments"][0]["waiting"]["code"] == "lease");
    assert_eq!(held["deployments"][0]["waiting"]["holder"], format!("{}.1", first.id));
    assert_eq!(held["deployments"][0]["state"], "planned");
    let lease = daemon.status()["projects"][0]["environments"][0]["lease"]["holder"].clone();
    assert_eq!(lease, format!("{}.1", first.id));
    go(&world);
    first.wait().is("succeeded");
    waiting.wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &second));
    let touched = world.touched("h1");
    let words: Vec<&str> = touched.iter().map(|t| t.0.as_str()).collect();
    assert_eq!(words, ["begin", "end", "begin", "end"]);
}

#[test]
fn a_run_that_waits_for_the_lease_can_be_stopped() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).deploy_after(r#"host:sh "sleep 3""#));
    world.repo.push("one");
    let first = daemon.press();
    first.until("it deploys", |v| v["state"] == "deploying");
    world.repo.push("two");
    let second = daemon.press();
    second.until("it waits", |v| v["deployments"][0]["waiting"]["code"] == "lease");
    daemon.api.post(&format!("/v1/runs/{}/stop", second.id), &json!({})).is(202);
    second.wait().is("stopped");
    first.wait().is("succeeded");
}

#[test]
fn projects_do_not_wait_for_each_other() {
    let world = World::new();
    world.project(&Project::new("blocked").stage("unit", GATED).hosts(&["h1"]));
    world.project(&Project::new("shop").hosts(&["h2"]));
    let commit = world.repo.push("for both");
    let daemon = world.start();
    eventually("the other has deployed", || world.hosts_have(&["h2"], &commit).then_some(()));
    let blocked: Value = daemon.api.get("/v1/projects/blocked/status").is(200).json();
    assert_eq!(blocked["running"][0]["state"], "testing");
    go(&world);
    eventually("both have", || world.hosts_have(&["h1", "h2"], &commit).then_some(()));
}

#[test]
fn events_tell_what_happens_in_order() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    let follower = daemon.follow(&["--json", "events", "shop"], "events");
    world.repo.push("told");
    let again = || {
        daemon.idle();
        daemon.press_with(&json!({ "redeploy": true, "retest": true })).wait().is("succeeded")
    };
    // Nothing tells from outside when the follower is connected but that it hears something.
    eventually("the follower listens", || {
        again();
        (std::fs::metadata(&follower.path).ok()?.len() > 0).then_some(())
    });
    let run = again();
    let told = eventually("the end is told", || {
        let text = std::fs::read_to_string(&follower.path).unwrap_or_default();
        let events = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        let events: Vec<Value> = events.filter(|e| e["run"] == run.id.as_str()).collect();
        events.iter().any(|e| e["event"] == "run.succeeded").then_some(events)
    });
    let names: Vec<&str> = told.iter().filter_map(|e| e["event"].as_str()).collect();
    let at = |name: &str| names.iter().position(|n| *n == name).unwrap_or_else(|| panic!("{name}: {names:?}"));
    assert!(at("run.queued") < at("run.testing") && at("run.testing") < at("stage.succeeded"), "{names:?}");
    assert!(at("stage.succeeded") < at("host.healthy") && at("host.healthy") < at("run.succeeded"), "{names:?}");
}
