//! Alarms that act: while a wave bakes, before anything begins, and what people hear of them.

use serde_json::json;

use super::{all_have, good, nth, project};
use crate::fixture::{Project, Sink, World, eventually};

/// A probe that reads a number from a file; no file, no data.
const PROBE: &str = r#"
local gauge = phased.probe {
  name = "gauge",
  options = {},
  measure = function() return tonumber(phased.read "@ROOT@/gauge") end,
}
"#;

fn alarmed(n: usize, sink: &Sink, keys: &str) -> Project {
    let alarm = format!(
        r#"{{ "error rate", cause = gauge {{}}, alert = require "alerts.webhook" {{ "{}" }}, failure = {{ above = 0.01 }},
             interval = "200ms", {keys} }}"#,
        sink.url()
    );
    project(n, r#"canary = 1, max_parallel = 2, bake_time = "2s""#).head(PROBE).alarms(&alarm)
}

fn shows(world: &World, value: &str) {
    std::fs::write(world.path("hosts/gauge"), value).unwrap();
}

/// A world whose hosts have a good commit while the gauge shows nothing bad.
fn quiet(project: &Project, n: usize) -> (World, crate::fixture::Daemon, String) {
    let world = World::new();
    world.project(project);
    shows(&world, "0");
    let (daemon, commit) = super::first(&world, n);
    (world, daemon, commit)
}

#[test]
fn an_alarm_that_fires_while_the_canary_bakes_takes_it_back() {
    let sink = Sink::start();
    let (world, daemon, good) = quiet(&alarmed(3, &sink, r#"action = "rollback""#), 3);
    world.repo.push("slow");
    let run = daemon.press();
    super::baking(&run, 0);
    shows(&world, "0.5");
    let run = run.wait().is("rolled_back");
    all_have(&world, 3, &good);
    assert_eq!(run.code(), "alarm", "{}", run.view);
    assert!(run.message().contains("error rate 0.5"), "{}", run.message());
    // Its own channel, once.
    eventually("people are told of the alarm", || sink.messages().into_iter().find(|m| m["run"] == run.id));
    assert_eq!(sink.count_of(&run.id), 1);
    // It still fires: the next commit waits for it.
    world.repo.push("next");
    let next = daemon.press();
    let view = next.until("it waits for the alarm", |run| nth(run, 0)["waiting"]["code"] == "alarm");
    assert_eq!(nth(&view, 0)["waiting"]["holder"], "error rate");
    shows(&world, "0");
    next.wait().is("succeeded");
}

#[test]
fn no_data_is_no_pass_and_what_follows_is_as_the_project_says() {
    let sink = Sink::start();
    let (world, daemon, good) = quiet(&alarmed(2, &sink, r#"action = "rollback""#), 2);
    world.repo.push("nobody measures it");
    std::fs::remove_file(world.path("hosts/gauge")).unwrap();
    let run = daemon.press().wait().is("rolled_back");
    assert_eq!(run.code(), "inconclusive", "{}", run.view);
    all_have(&world, 2, &good);
    // That says nothing of the release.
    shows(&world, "0");
    daemon.idle();
    daemon.press().wait().is("succeeded");
}

#[test]
fn an_alarm_without_a_consequence_only_tells() {
    let sink = Sink::start();
    let (world, daemon, _) = quiet(&alarmed(2, &sink, r#"action = "none""#), 2);
    let commit = world.repo.push("noisy");
    let run = daemon.press();
    super::baking(&run, 0);
    shows(&world, "9");
    run.wait().is("succeeded");
    all_have(&world, 2, &commit);
    eventually("people are told of the alarm", || sink.messages().into_iter().find(|m| m["run"] == run.id));
}

#[test]
fn what_is_bad_in_the_second_environment_is_bad() {
    let project = project(1, r#"canary = 0, bake_time = "0s""#)
        .environment("staging")
        .hosts(&["s1"])
        .environment("production")
        .hosts(&["h1"]);
    let (world, daemon, good) = good(&project, 1);
    let bad = world.repo.push("bad in production");
    super::spoil(&world, &bad, "h1");
    daemon.press().wait().is("rolled_back");
    assert!(world.hosts_have(&["h1"], &good));
    daemon.idle();
    let again = daemon.press_with(&json!({})).wait().is("failed");
    assert_eq!(again.code(), "bad_release", "{}", again.view);
}
