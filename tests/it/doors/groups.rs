//! Environments that share one lease.

use serde_json::json;

use super::waits;
use crate::fixture::{Project, World, eventually};

const GROUP: &str = r#"group = "database""#;

#[test]
fn a_group_is_deployed_to_one_at_a_time_also_across_projects_and_within_a_run() {
    let world = World::new();
    let of = |name: &str, hosts: [&str; 2]| {
        let project = Project::new(name).environment("staging").hosts(&hosts[..1]).deploy_takes(0.5).keys(GROUP);
        project.environment("production").hosts(&hosts[1..]).keys(GROUP)
    };
    world.project(&of("shop", ["a1", "a2"]));
    world.project(&of("bills", ["b1", "b2"]));
    let commit = world.repo.push("for both");
    let daemon = world.start();
    eventually("both have it everywhere", || world.hosts_have(&["a1", "a2", "b1", "b2"], &commit).then_some(()));
    for project in ["shop", "bills"] {
        eventually("both are done", || {
            let runs = daemon.api.get(&format!("/v1/runs?project={project}")).json();
            (runs["items"][0]["state"] == "succeeded").then_some(())
        });
    }
    let mut touched: Vec<_> = ["a1", "a2", "b1", "b2"].iter().flat_map(|host| world.touched(host)).collect();
    touched.sort_by_key(|(_, at, ..)| *at);
    let words: Vec<&str> = touched.iter().map(|(word, ..)| word.as_str()).collect();
    assert_eq!(words, ["begin", "end"].repeat(4), "two at a time");
    let lease = daemon.api.get("/v1/projects/bills/environments/staging/lease").json();
    assert_eq!((&lease["group"], &lease["held"]), (&json!("database"), &json!(false)));
}

#[test]
fn a_group_that_is_written_down_meanwhile_lets_nobody_in_twice() {
    let world = World::new();
    let plain = Project::new("shop").hosts(&["a1"]).deploy_after(super::GATED);
    world.project(&plain);
    let daemon = world.start();
    let first = world.repo.push("one");
    let running = daemon.press();
    running.until("it deploys", |v| v["deployments"][0]["hosts"][0]["state"] == "running");
    world.project(&plain.keys(GROUP));
    assert_eq!(daemon.cli(&["reload"]).code, 0);
    let second = world.repo.push("two");
    let next = daemon.press();
    assert_eq!(waits(&next, "lease")["holder"], format!("{}.1", running.id));
    assert_eq!(daemon.api.get("/v1/projects/shop/environments/production/lease").json()["held"], false, "the group's");
    super::go(&world);
    running.wait().is("succeeded");
    next.wait().is("succeeded");
    let seen: Vec<String> = world.touched("a1").into_iter().map(|touched| touched.3).collect();
    assert_eq!(seen, [first.clone(), first, second.clone(), second]);
}

#[test]
fn who_holds_one_of_a_group_holds_all_and_who_is_frozen_holds_up_nobody() {
    let world = World::new();
    world.project(&Project::new("bills").hosts(&["b1"]).keys(GROUP));
    world.project(&Project::new("shop").hosts(&["a1"]).keys(GROUP));
    let daemon = world.start();
    daemon.api.put("/v1/projects/shop/environments/production/lease", &json!({ "for": "1h" })).is(200);
    daemon.api.put("/v1/projects/bills/environments/production/freeze", &json!({})).is(200);
    let commit = world.repo.push("for both");
    let start = |project: &str| {
        let answer = daemon.api.post(&format!("/v1/projects/{project}/start"), &json!({})).is(202).json();
        daemon.run(answer["id"].as_str().unwrap())
    };
    let older = start("bills");
    waits(&older, "freeze");
    let younger = start("shop");
    assert_eq!(waits(&younger, "lease")["holder"], "uid 0");
    daemon.api.delete("/v1/projects/bills/environments/production/lease").is(200);
    younger.wait().is("succeeded");
    assert!(world.hosts_have(&["a1"], &commit) && world.touched("b1").is_empty());
    daemon.api.delete("/v1/projects/bills/environments/production/freeze").is(200);
    older.wait().is("succeeded");
    assert!(world.hosts_have(&["b1"], &commit));
}
