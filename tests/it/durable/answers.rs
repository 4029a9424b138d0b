//! What was promised, or could not be, when the daemon died.

use serde_json::json;

use crate::fixture::{Project, World, eventually};

#[test]
fn a_press_whose_answer_was_lost_is_the_same_run_when_it_is_pressed_again_with_its_key() {
    for kill in ["control-after:1", "control-before:2", "control-after:2", "before:1", "after:2"] {
        let world = World::new();
        world.project(&Project::new("shop").hosts(&["h1"]).queue_all());
        let daemon = world.start_with(&[("PHASED_KILL", kill)]);
        let commit = world.repo.push("x");
        let press = |api: &crate::fixture::Api| {
            let api = api.with("idempotency-key", "once").with("content-type", "application/json");
            api.try_ask("POST", "/v1/projects/shop/start", json!({ "redeploy": true }).to_string().as_bytes())
        };
        let _may_be_lost = press(&daemon.api);
        daemon.dies();
        let daemon = world.start();
        let id = press(&daemon.api).unwrap().is(202).json()["id"].as_str().unwrap().to_owned();
        daemon.run(&id).wait().is("succeeded");
        assert_eq!(press(&daemon.api).unwrap().is(202).json()["id"], *id, "{kill}");
        assert_eq!(daemon.runs().len(), 1, "{kill}: {:?}", daemon.runs());
        assert!(world.hosts_have(&["h1"], &commit) && world.touched("h1").len() == 2, "{kill}");
    }
}

#[test]
fn stopped_now_before_a_crash_a_host_is_not_watched_after_it() {
    let health = r#"command = "exit 1", min_healthy_time = "1s", healthy_deadline = "20m""#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).health(health));
    world.repo.push("never well");
    let run = daemon.press();
    eventually("it is watched", || world.events(&run.id, "health_began").pop());
    daemon.kill();
    // As if the daemon had died right after it had written the wish down.
    world.rewrite(&run.id, |records| {
        let mut wish = records.last().unwrap().clone();
        wish.as_object_mut().unwrap().retain(|key, _| key == "at" || key == "controller");
        wish["event"] = "stop_requested".into();
        wish["by"] = "uid 0".into();
        wish["now"] = true.into();
        records.push(wish);
    });
    let daemon = world.start();
    let ended = daemon.run(&run.id).wait().is("stopped");
    assert_eq!(ended.hosts(), ["h1:unknown"]);
}

#[test]
fn a_run_whose_journal_cannot_be_read_just_now_is_neither_ended_nor_begun_anew() {
    let wait = r#"run:sh { 'echo waits; until [ -e "$T/go" ]; do sleep 0.05; done; echo ended >>"$T/trace"', env = { T = "@TESTED@" } }"#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).stage("unit", wait));
    let commit = world.repo.push("x");
    let run = daemon.press();
    run.prints("waits");
    daemon.kill();
    std::fs::write(world.path("tested/go"), "").unwrap();
    // A directory in its place: reading it fails, as it does on a disk that is not well.
    let (journal, aside) = (world.journal_of(&run.id), world.path("aside"));
    std::fs::rename(&journal, &aside).unwrap();
    std::fs::create_dir(&journal).unwrap();
    let daemon = world.start();
    let trouble = daemon.status()["trouble"].to_string();
    assert!(trouble.contains(&run.id) && trouble.contains("cannot be taken up"), "{trouble}");
    assert_eq!(daemon.run(&run.id).now()["state"], "testing");
    assert_eq!(daemon.api.post("/v1/projects/shop/start", &json!({})).problem().0, 503);
    daemon.kill();
    std::fs::remove_dir(&journal).unwrap();
    std::fs::rename(&aside, &journal).unwrap();
    let daemon = world.start();
    daemon.run(&run.id).wait().is("succeeded");
    assert_eq!(std::fs::read_to_string(world.path("tested/trace")).unwrap(), "ended\n");
    assert!(world.hosts_have(&["h1"], &commit));
}
