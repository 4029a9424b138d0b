//! What people do to a rollout: pause, resume, promote, take back, by hand and over restarts.

use serde_json::json;

use super::{PHASES, all_have, baking, first, good, nth, project, spoil};
use crate::fixture::{World, eventually};

const LONG: &str = r#"canary = 1, max_parallel = 2, bake_time = "1h""#;

fn at(change: &str) -> String {
    format!("/v1/projects/shop/environments/production/{change}")
}

#[test]
fn a_pause_holds_over_a_restart_and_ends_when_it_is_ended() {
    let (world, daemon, good) = good(&project(4, PHASES), 4);
    let commit = world.repo.push("held for a while");
    let run = daemon.press();
    baking(&run, 0);
    let paused = daemon.cli(&["pause", "shop", "production", "--reason", "lunch"]);
    assert!(paused.code == 0, "{paused:?}");
    daemon.kill();
    let daemon = world.start();
    let run = daemon.run(&run.id);
    let view = run.until("it is paused", |run| nth(run, 0)["state"] == "paused");
    assert_eq!(nth(&view, 0)["paused"]["reason"], "lunch");
    // The bake goes on while it is paused; what comes after it does not begin.
    assert!(world.hosts_have(&["h2", "h3", "h4"], &good));
    assert_eq!(daemon.api.post(&at("pause"), &json!({})).problem(), (409, "paused_already".to_owned()));
    daemon.api.post(&at("resume"), &json!({})).is(200);
    run.wait().is("succeeded");
    all_have(&world, 4, &commit);
    assert_eq!(daemon.api.post(&at("resume"), &json!({})).problem(), (409, "not_deploying".to_owned()));
}

#[test]
fn a_bake_can_be_promoted_and_a_rollout_taken_back() {
    let phases = format!("{LONG}, waves = {{ \"50%\", \"100%\" }}");
    let (world, daemon, first) = {
        let (world, daemon) = World::with(&project(4, &phases));
        let commit = world.repo.push("good");
        let run = daemon.press();
        for wave in 0..3 {
            baking(&run, wave);
            daemon.api.post(&at("promote"), &json!({ "reason": "looks fine" })).is(200);
        }
        run.wait().is("succeeded");
        daemon.idle();
        (world, daemon, commit)
    };
    all_have(&world, 4, &first);
    world.repo.push("somebody does not like it");
    let run = daemon.press();
    baking(&run, 0);
    let answer = daemon.api.post(&at("rollback"), &json!({ "reason": "customers call" })).is(200);
    assert_eq!(answer.json()["id"], run.id);
    let run = run.wait().is("rolled_back");
    assert_eq!(run.code(), "rollback_requested");
    assert!(run.message().contains("customers call"), "{}", run.message());
    all_have(&world, 4, &first);
}

#[test]
fn an_environment_goes_back_by_hand_also_in_a_freeze_and_without_its_repository() {
    let (world, daemon, first) = good(&project(3, PHASES), 3);
    let second = world.repo.push("second");
    daemon.deploy().is("succeeded");
    daemon.idle();
    daemon.api.put(&at("freeze"), &json!({ "reason": "Christmas" })).is(200);
    std::fs::rename(world.root().join("repo"), world.root().join("gone")).unwrap();
    let back = daemon.cli(&["rollback", "shop", "production", "--wait"]);
    assert!(back.code == 0, "{back:?}");
    all_have(&world, 3, &first);
    let status = daemon.status().to_string();
    assert!(status.contains(&first[..12]), "{status}");
    // And forward again, to one that is named.
    let forward = daemon.cli(&["rollback", "shop", "production", "--to", &second[..8], "--wait"]);
    assert!(forward.code == 0, "{forward:?}");
    all_have(&world, 3, &second);
}

#[test]
fn a_rollback_to_nowhere_is_refused_at_once_and_says_what_there_is() {
    let (world, daemon, first) = good(&project(2, PHASES), 2);
    let runs = || daemon.runs().len();
    let before = runs();
    let live = format!("known-good there: {} (live)", &first[..12]);
    let answer = daemon.api.post(&at("rollback"), &json!({}));
    assert_eq!(answer.problem(), (409, "no_target".to_owned()));
    assert!(answer.text().contains(&live), "{}", answer.text());
    let said = daemon.cli(&["rollback", "shop", "production"]);
    assert!(said.code == 9 && said.stderr.contains(&live), "{said:?}");
    let answer = daemon.api.post(&at("rollback"), &json!({ "to": "0123456" }));
    assert_eq!(answer.problem(), (422, "target_unknown".to_owned()));
    assert!(answer.text().contains(&live), "{}", answer.text());
    let said = daemon.cli(&["rollback", "shop", "production", "--to", "0123456", "--wait"]);
    assert!(said.code == 1 && said.stderr.contains(&live), "{said:?}");
    assert_eq!(runs(), before, "nothing was begun");

    // Nor does a name that is mistyped take back what is under way.
    world.repo.push("second");
    let run = daemon.press();
    baking(&run, 0);
    let answer = daemon.api.post(&at("rollback"), &json!({ "to": "0123456" }));
    assert_eq!(answer.problem(), (422, "target_unknown".to_owned()));
    run.wait().is("succeeded");
    let back = daemon.cli(&["rollback", "shop", "production", "--to", &first[..7], "--wait"]);
    assert!(back.code == 0, "{back:?}");
    all_have(&world, 2, &first);
}

#[test]
fn without_a_known_good_release_nothing_goes_back() {
    let (_world, daemon) = World::with(&project(2, PHASES));
    assert_eq!(daemon.api.post(&at("rollback"), &json!({})).problem(), (409, "no_target".to_owned()));
    assert_eq!(daemon.api.post(&at("dance"), &json!({})).problem(), (422, "bad_value".to_owned()));
    assert_eq!(daemon.api.post(&at("pause"), &json!({ "to": "x" })).problem(), (422, "bad_value".to_owned()));
}

#[test]
fn one_that_failed_and_paused_goes_on_only_when_it_is_promoted() {
    let phases = r#"canary = 1, max_parallel = 1, bake_time = "0s", on_failure = "pause""#;
    let (world, daemon, _) = good(&project(3, phases), 3);
    let commit = world.repo.push("bad on one host");
    spoil(&world, &commit, "h1");
    let run = daemon.press();
    let view = run.until("it is paused", |run| nth(run, 0)["state"] == "paused");
    assert_eq!((&nth(&view, 0)["paused"]["failed"], &nth(&view, 0)["paused"]["by"]), (&json!(true), &json!("phased")));
    assert_eq!(daemon.api.post(&at("resume"), &json!({})).problem(), (409, "deployment_failed".to_owned()));
    daemon.api.post(&at("promote"), &json!({})).is(200);
    let run = run.wait().is("succeeded");
    assert!(world.hosts_have(&["h2", "h3"], &commit), "{}", run.view);
}

#[test]
fn hosts_that_come_later_get_what_is_live() {
    let (world, daemon, commit) = good(&project(2, PHASES), 2);
    world.project(&project(3, PHASES));
    daemon.api.post("/v1/reload", &json!({})).is(200);
    let answer = daemon.api.post(&at("converge"), &json!({})).is(202);
    let run = daemon.run(answer.json()["id"].as_str().unwrap()).wait().is("succeeded");
    assert_eq!(nth(&run.view, 0)["hosts"].as_array().unwrap().len(), 1, "{}", run.view);
    all_have(&world, 3, &commit);
    assert_eq!(world.touched("h1").len(), 2, "the others were left alone");
}

#[test]
fn hosts_that_come_or_come_back_are_brought_there_by_themselves() {
    let world = World::new();
    let (socket, port) = crate::fixture::refused_port();
    let away = world.host_table_with("h2", &format!(", port = {port}"));
    let phases = r#"canary = 0, bake_time = "0s", max_parallel = 2, max_unreachable = 1"#;
    std::fs::write(world.path("limits.toml"), "converge = \"500ms\"\n").unwrap();
    world.project(&project(1, phases).hosts(&["h1", &away]));
    let daemon = world.start();
    let commit = world.repo.push("without the second");
    daemon.press().wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit) && world.revision("h2").is_none());
    drop(socket);
    // It is back, and another one has come.
    world.project(&project(3, phases));
    daemon.api.post("/v1/reload", &json!({})).is(200);
    eventually("both have it", || world.hosts_have(&["h2", "h3"], &commit).then_some(()));
    daemon.idle();
    // The list of runs follows what works by a moment.
    eventually("each convergence is shown as a success", || {
        let runs = daemon.runs();
        let converged: Vec<_> = runs.iter().filter(|run| run["trigger"] == "converge").collect();
        (!converged.is_empty() && converged.iter().all(|run| run["state"] == "succeeded")).then_some(())
    });
    assert_eq!(world.touched("h1").len(), 2, "the other was left alone");
}

#[test]
fn in_a_freeze_hosts_that_come_later_get_what_is_live_while_what_is_new_waits() {
    let world = World::new();
    std::fs::write(world.path("limits.toml"), "converge = \"500ms\"\n").unwrap();
    world.project(&project(4, PHASES));
    let (daemon, live) = first(&world, 4);
    daemon.api.put(&at("freeze"), &json!({ "reason": "Christmas" })).is(200);
    let new = world.repo.push("new");
    let run = daemon.press();
    run.until("it waits for the freeze to end", |run| run["waiting"]["code"] == "freeze");
    world.project(&project(5, PHASES));
    daemon.api.post("/v1/reload", &json!({})).is(200);
    eventually("the host that came has what is live", || world.hosts_have(&["h5"], &live).then_some(()));
    assert_eq!(run.now()["waiting"]["code"], "freeze");
    all_have(&world, 5, &live);
    daemon.api.delete(&at("freeze")).is(200);
    run.wait().is("succeeded");
    // The run has the hosts of its own file, and what it does not know is brought there afterwards.
    all_have(&world, 4, &new);
    eventually("the last one has what was kept out", || world.hosts_have(&["h5"], &new).then_some(()));
}
