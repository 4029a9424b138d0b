//! `run:undo` over crashes: what was registered runs newest first, exactly once.

use crate::fixture::{Dice, Project, World, eventually, times};

/// Leaves two things to be undone, then does `last`; `env` is where it leaves traces.
fn body(on: &str, env: &str, last: &str) -> String {
    format!(
        r#"local env = {{ T = {env} }}
        {on}:sh {{ 'echo "$PHASED_RUN one" >>"$T/trace"', env = env }}
        {on}:undo("one", function() {on}:sh {{ 'echo "$PHASED_RUN undo one" >>"$T/trace"; sleep 0.2', env = env }} end)
        {on}:sh {{ 'echo "$PHASED_RUN two" >>"$T/trace"', env = env }}
        {on}:undo("two", function() {on}:sh {{ 'echo "$PHASED_RUN undo two" >>"$T/trace"; sleep 0.2', env = env }} end)
        {last}"#
    )
}

fn in_a_stage(last: &str) -> Project {
    Project::new("shop").hosts(&["h1"]).stage("unit", &body("run", "'@TESTED@'", last))
}

fn on_a_host(last: &str) -> Project {
    Project::new("shop").hosts(&["h1"]).deploy(&body("host", "'@ROOT@/h1'", last))
}

fn trace(world: &World, place: &str, run: &str) -> Vec<String> {
    let trace = std::fs::read_to_string(world.path(place).join("trace")).unwrap_or_default();
    trace.lines().filter_map(|line| line.strip_prefix(run)).map(|line| line.trim().to_owned()).collect()
}

const WHOLE: [&str; 4] = ["one", "two", "undo two", "undo one"];

#[test]
fn a_stage_that_fails_is_undone_newest_first_and_once_wherever_it_was_cut() {
    let mut dice = Dice::new("undo_stage");
    let (world, mut daemon) = World::with(&in_a_stage(r#"run:sh "sleep 0.2; exit 3""#));
    for _ in 0..times(1, 30) {
        world.repo.push("bad");
        let run = daemon.press();
        (daemon, _) = world.kills(daemon, &run, 5, &mut dice);
        let ended = daemon.run(&run.id).wait().is("failed");
        assert_eq!(trace(&world, "tested", &run.id), WHOLE);
        assert!(!ended.message().contains("could not be undone"), "{}", ended.message());
        daemon.idle();
    }
}

#[test]
fn a_deploy_that_fails_is_undone_on_its_host_and_once_wherever_it_was_cut() {
    let mut dice = Dice::new("undo_deploy");
    let (world, mut daemon) = World::with(&on_a_host(r#"host:sh "sleep 0.2; exit 3""#));
    for _ in 0..times(1, 30) {
        world.repo.push("bad");
        let run = daemon.press();
        (daemon, _) = world.kills(daemon, &run, 5, &mut dice);
        daemon.run(&run.id).wait().is("halted");
        assert_eq!(trace(&world, "hosts/h1", &run.id), WHOLE);
        daemon.idle();
    }
}

#[test]
fn a_stage_that_is_stopped_is_undone() {
    let mut dice = Dice::new("undo_stopped");
    let (world, mut daemon) = World::with(&in_a_stage(r#"run:sh "echo waits; sleep 600""#));
    for _ in 0..times(1, 20) {
        world.repo.push("slow");
        let run = daemon.press();
        run.prints("waits");
        daemon.api.ask("POST", &format!("/v1/runs/{}/stop", run.id), b"").is(202);
        (daemon, _) = world.kills(daemon, &run, 5, &mut dice);
        daemon.run(&run.id).wait().is("stopped");
        assert_eq!(trace(&world, "tested", &run.id), WHOLE);
        daemon.idle();
    }
}

#[test]
fn an_undo_that_fails_is_told_with_what_it_was_to_undo_and_the_others_happen() {
    let broken = r#"run:undo("three", function() run:sh "echo cannot; exit 7" end) run:fail "a reason of its own""#;
    let (world, daemon) = World::with(&in_a_stage(broken));
    world.repo.push("bad");
    let run = daemon.press();
    eventually("it is being undone", || {
        let calls = world.events(&run.id, "call");
        calls.into_iter().find(|call| call["key"].as_str().is_some_and(|key| key.ends_with(".undo")))
    });
    daemon.kill();
    let daemon = world.start();
    let ended = daemon.run(&run.id).wait().is("failed");
    let told = ended.message();
    assert!(
        told.contains("a reason of its own") && told.contains("could not be undone") && told.contains("cannot"),
        "{told}"
    );
    assert_eq!(trace(&world, "tested", &run.id), WHOLE);
}

#[test]
fn nothing_is_undone_of_what_went_well() {
    let mut dice = Dice::new("undo_good");
    let (world, daemon) = World::with(&on_a_host(r#"host:sh "sleep 0.2""#));
    world.repo.push("good");
    let run = daemon.press();
    let (daemon, _) = world.kills(daemon, &run, 5, &mut dice);
    daemon.run(&run.id).wait().is("succeeded");
    assert_eq!(trace(&world, "hosts/h1", &run.id), ["one", "two"]);
}
