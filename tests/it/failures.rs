//! A failing test: no host is touched, and people are told, once.

use crate::fixture::{Project, Sink, World, eventually};

/// A project whose one test fails loudly, telling `sink`.
fn failing(sink: &Sink) -> Project {
    let test = r#"run:sh "for i in $(seq 30); do echo line $i; done; echo expected 4 but got 5 >&2; exit 7""#;
    Project::new("shop").stage("lint", r#"run:sh "true""#).stage("unit", test).tells(sink)
}

#[test]
fn a_failing_test_means_that_no_host_is_touched() {
    let (world, daemon) = World::with(&failing(&Sink::start()));
    world.repo.push("a bad one");
    let run = daemon.deploy().is("failed");
    assert_eq!((run.code(), run.view["cause"]["stage"].as_str()), ("exit", Some("unit")));
    assert!(run.message().contains("expected 4 but got 5"), "{}", run.message());
    assert_eq!(run.view["deployments"], serde_json::json!([]));
    assert!(world.untouched());
}

#[test]
fn the_log_of_a_failing_test_has_all_it_printed() {
    let (world, daemon) = World::with(&failing(&Sink::start()));
    world.repo.push("a bad one");
    let run = daemon.deploy();
    assert!(run.log().contains("line 1\n") || run.log().contains("line 1"), "{}", run.log());
    assert!(run.log_of("?step=test/unit").contains("line 30"));
    assert!(!run.log_of("?step=test/lint").contains("line 30"));
    assert!(run.log_of("?tail=1").contains("expected 4 but got 5"));
}

#[test]
fn people_are_told_once_and_everything_they_need() {
    let sink = Sink::start();
    let (world, daemon) = World::with(&failing(&sink));
    let commit = world.repo.push("make five of four\n\nwith a body");
    let run = daemon.deploy();
    let told = sink.message_of(&run.id);
    assert_eq!(told["event"], "failed");
    assert_eq!((&told["project"], &told["revision"]), (&"shop".into(), &commit.clone().into()));
    assert_eq!((&told["author"], &told["stage"]), (&"Ada Lovelace <ada@example.com>".into(), &"unit".into()));
    assert!(told["title"].as_str().unwrap().contains("make five of four"), "{told:#}");
    assert!(told["output"].as_str().unwrap().ends_with("line 30\nexpected 4 but got 5"), "{told:#}");
    assert_eq!(told["command"], format!("phased log {}", run.id));
    assert!(told["text"].as_str().unwrap().contains("No host was touched"), "{told:#}");
    daemon.idle();
    // Killed before control knows that it arrived, it would come again, which is allowed: so not killed.
    daemon.terminate();
    let _again = world.start();
    assert_eq!(sink.count_of(&run.id), 1);
}

#[test]
fn people_are_told_although_the_channel_is_away_for_a_while() {
    let sink = Sink::start();
    sink.refuse(2);
    let (world, daemon) = World::with(&failing(&sink));
    world.repo.push("a bad one");
    let run = daemon.deploy().is("failed");
    sink.message_of(&run.id);
    assert_eq!(sink.count_of(&run.id), 1);
}

#[test]
fn an_alert_survives_a_crash_of_the_daemon() {
    let sink = Sink::start();
    sink.refuse(usize::MAX);
    let (world, daemon) = World::with(&failing(&sink));
    world.repo.push("a bad one");
    let run = daemon.deploy().is("failed");
    daemon.kill();
    sink.refuse(0);
    let _daemon = world.start();
    sink.message_of(&run.id);
}

#[test]
fn people_are_told_that_it_works_again() {
    let sink = Sink::start();
    let project = Project::new("shop").stage("unit", r#"run:sh "test ! -e bad""#).tells(&sink);
    let (world, daemon) = World::with(&project);
    world.repo.commit(&[("bad", "")], "bad");
    world.repo.push_as("main");
    assert_eq!(sink.message_of(&daemon.deploy().is("failed").id)["event"], "failed");
    std::fs::remove_file(world.path("repo/bad")).unwrap();
    world.repo.push("good");
    assert_eq!(sink.message_of(&daemon.deploy().is("succeeded").id)["event"], "recovered");
}

#[test]
fn a_command_can_be_the_channel_and_runs_as_the_job_user() {
    let notify = r#"require "alerts.command" { argv = { "/bin/sh", "-c", "id -u >$OUT.uid; cat >$OUT" }, env = { OUT = "@ROOT@/../tested/told" } }"#;
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", r#"run:fail "no""#).notify(notify));
    world.repo.push("a bad one");
    let run = daemon.deploy().is("failed");
    let told = eventually("the command was run", || {
        serde_json::from_slice::<serde_json::Value>(&std::fs::read(world.path("tested/told")).ok()?).ok()
    });
    assert_eq!((&told["run"], &told["cause"]["code"]), (&run.id.clone().into(), &"failed".into()));
    let uid: u32 = std::fs::read_to_string(world.path("tested/told.uid")).unwrap().trim().parse().unwrap();
    assert!((world.uids.0..=world.uids.1).contains(&uid), "{uid}");
}

#[test]
fn several_channels_are_told_and_a_broken_one_harms_no_other() {
    let sink = Sink::start();
    let notify = format!(
        r#"{{ require "alerts.webhook" {{ "http://127.0.0.1:1/" }}, require "alerts.log" {{}}, require "alerts.webhook" {{ "{}" }} }}"#,
        sink.url()
    );
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", r#"run:sh "false""#).notify(&notify));
    world.repo.push("a bad one");
    let run = daemon.deploy().is("failed");
    sink.message_of(&run.id);
    eventually("the log has it too", || daemon.said().contains("look further: phased log").then_some(()));
}

#[test]
fn a_commit_that_cannot_be_fetched_ends_the_run_with_gits_words() {
    let (world, daemon) = World::with(&Project::new("shop"));
    world.repo.push("there");
    std::fs::rename(world.path("repo.git"), world.path("moved.git")).unwrap();
    let answer = daemon.api.post("/v1/projects/shop/start", &serde_json::json!({}));
    assert_eq!(answer.problem().0, 502);
    assert!(answer.text().contains("repo.git"), "{}", answer.text());
}

#[test]
fn a_commit_message_of_any_length_ends_its_run_and_people_are_told() {
    let sink = Sink::start();
    let test = r#"run:sh "[ ! -e bad ] || exit 7""#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).stage("unit", test).tells(&sink));
    let long = "a very long story ".repeat(6000);
    let commit = world.repo.push(&long);
    daemon.deploy().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    world.repo.commit(&[("bad", "1")], &long);
    world.repo.push_as("main");
    let run = daemon.deploy().is("failed");
    assert_eq!(sink.message_of(&run.id)["event"], "failed");
    daemon.idle();
}
