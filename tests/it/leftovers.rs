//! What a stage leaves running in the background is ended with it, however it ends, and whoever started it. In units of their own: the
//! package's tests.

use std::os::unix::{fs::chown, net::UnixListener};

use serde_json::{Value, json};

use crate::fixture::{Daemon, Jobs, Project, Run, World, eventually};

/// Leaves a process in the background: one that goes at once, one that must be killed, and one that has a session of its own.
const LEAVES: &str = r#"run:sh [[
    trap "" TERM
    sleep 98761 & (while :; do sleep 98760; done) & setsid sleep 98762 &
    trap - TERM
    sleep 98763 &
    echo begun ]] "#;

/// How many of them there are in this world.
fn left(world: &World) -> usize {
    let ours = |pid: &i32| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        line.contains("sleep 9876") && environment.contains("PHASED_RUN=")
    };
    world.pids().iter().filter(|pid| ours(pid)).count()
}

fn ends(world: &World, state: &str, then: &str, stops: bool) {
    let next = r#"run:sh "echo next""#;
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", &format!("{LEAVES} {then}")).stage("next", next));
    let daemon = world.start();
    world.repo.push("leaves");
    let run = daemon.press();
    if stops {
        run.prints("begun");
        assert!(left(world) >= 3);
        daemon.api.post(&format!("/v1/runs/{}/stop", run.id), &json!({})).is(202);
    }
    let run = run.wait().is(state);
    assert_eq!(left(world), 0, "none of it runs once the run has ended ({state})");
    let log = run.log_of("?step=test/unit");
    assert!(
        log.contains(" processes running, which were ended: ") && log.contains("sleep") && !log.contains("98761"),
        "{log}"
    );
}

#[test]
fn what_a_stage_leaves_running_ends_with_it() {
    for (state, then, stops) in [
        ("succeeded", "", false),
        ("failed", r#"run:sh "exit 3""#, false),
        ("failed", r#"run:sh { "sleep 60", timeout = "1s" }"#, false),
        ("stopped", r#"run:sh "sleep 60""#, true),
    ] {
        ends(&World::new(), state, then, stops);
    }
}

#[test]
fn what_a_stage_leaves_to_the_job_unit_ends_with_it() {
    let world = World::unprivileged();
    let _jobs = Jobs::start(&world);
    ends(&world, "succeeded", "", false);
}

#[test]
fn the_next_stage_begins_when_nothing_of_the_last_one_runs() {
    let world = World::new();
    let looks = r#"run:sh [[! grep -lsz PHASED_PHASE=one /proc/[0-9]*/environ]]"#;
    let served = r#"setup = function(run) run:sh "sleep 98764 & echo $! >pid" end, run = function(run) run:sh 'kill -0 "$(cat pid)"' end,
                    cleanup = function(run) run:sh 'kill -0 "$(cat pid)"' end"#;
    world.project(&Project::new("shop").hosts(&["h1"]).stage_of("one", served).stage("two", looks));
    let daemon = world.start();
    world.repo.push("serves");
    let run = daemon.deploy().is("succeeded");
    assert!(run.log_of("?step=test/one").contains("left 1 processes running"), "{}", run.log());
}

#[test]
fn what_is_left_by_a_stage_of_an_earlier_life_is_ended_too() {
    let world = World::new();
    let waits = format!(
        r#"{LEAVES} run:sh {{ 'while [ ! -e "$GO" ]; do sleep 0.1; done', env = {{ GO = "@ROOT@/../tested/go" }} }}"#
    );
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", &waits));
    let daemon = world.start();
    world.repo.push("leaves");
    let run = daemon.press();
    run.prints("begun");
    daemon.kill();
    std::fs::write(world.path("tested/go"), "").unwrap();
    let daemon = world.start();
    daemon.run(&run.id).wait().is("succeeded");
    assert_eq!(left(&world), 0);
}

/// The daemon of a run is killed while its stage waits, with processes in the background; then `harm` befalls the run, and a daemon comes.
fn ends_with_a_damaged_run(harm: impl FnOnce(&World, &Run, &Project)) {
    let world = World::new();
    let project = Project::new("shop").hosts(&["h1"]).stage("unit", &format!(r#"{LEAVES} run:sh "sleep 98766""#));
    world.project(&project);
    let daemon = world.start();
    world.repo.push("leaves");
    let run = daemon.press();
    run.prints("begun");
    eventually("the next step runs, too", || (left(&world) >= 5).then_some(()));
    daemon.kill();
    harm(&world, &run, &project);
    let daemon = world.start();
    daemon.run(&run.id).wait().is("damaged");
    // Nobody continues the run, and nobody else ends what is left of it. Where its journal can be written, its end is there first.
    eventually("nothing of it runs any more", || (left(&world) == 0).then_some(()));
    eventually("it is said", || daemon.said().contains("processes running, which were ended: ").then_some(()));
}

#[test]
fn what_a_damaged_run_has_left_is_ended() {
    ends_with_a_damaged_run(|world, run, _| world.damage(&run.id));
}

#[test]
fn what_a_run_has_left_whose_code_is_gone_is_ended() {
    ends_with_a_damaged_run(|world, run, project| {
        let code = world.path("data/code").join(world.journal(&run.id)[0]["code"].as_str().unwrap());
        std::fs::remove_dir_all(&code).or_else(|_| std::fs::remove_file(&code)).unwrap();
        // Otherwise the next start would pin the very same code again.
        world.project(&project.clone().head("local another = true\n"));
    });
}

/// When the daemon said these words of a run, ms.
fn said_at(daemon: &Daemon, words: &str, run: &str) -> Option<i64> {
    let said = daemon.said();
    let line = said.lines().find(|line| line.contains(words) && line.contains(run))?;
    let line: Value = serde_json::from_str(line).ok()?;
    Some(line["timestamp"].as_str()?.parse::<jiff::Timestamp>().ok()?.as_millisecond())
}

#[test]
fn damaged_runs_whose_machine_hangs_hold_up_neither_the_daemon_nor_each_other() {
    let world = World::unprivileged();
    let names = ["blog", "shop"];
    for name in names {
        world.project(&Project::new(name).hosts(&["h1"]).stage("unit", r#"run:sh "echo begun; sleep 98767""#));
    }
    let jobs = Jobs::start(&world);
    let daemon = world.start();
    world.repo.push("hangs");
    let runs = names.map(|name| {
        let started = daemon.api.post(&format!("/v1/projects/{name}/start"), &json!({})).is(202).json();
        let run = daemon.run(started["id"].as_str().unwrap());
        run.prints("begun");
        run.id
    });
    daemon.kill();
    drop(jobs);
    // Whoever starts commands here takes each call, and never says a word.
    let _silent = UnixListener::bind(world.job_socket()).unwrap();
    chown(world.job_socket(), world.daemon, world.daemon).unwrap();
    runs.iter().for_each(|run| world.damage(run));
    let daemon = world.start();
    let given_up = runs.each_ref().map(|run| {
        daemon.run(run).wait().is("damaged");
        eventually("it is given up", || said_at(&daemon, "which were not ended", run))
    });
    let ready = said_at(&daemon, "phased is ready", "").unwrap();
    assert!(given_up.iter().all(|at| *at > ready), "nobody waits for them: {ready} {given_up:?}");
    // Each may take 15 s.
    assert!(given_up[0].abs_diff(given_up[1]) < 10_000, "side by side: {given_up:?}");
}

#[test]
fn what_a_deployment_leaves_on_this_very_machine_stays() {
    let world = World::new();
    let serve = r#"host:sh { "sleep 98765 & echo serves", env = { W = "@ROOT@" } }"#;
    let project = Project::new("shop")
        .hosts(&[r#"{ id = "here", address = "127.0.0.1", transport = "local" }"#])
        .stage("unit", r#"run:sh "true""#)
        .deploy(serve);
    world.project(&project);
    let daemon = world.start();
    world.repo.push("serves");
    daemon.deploy().is("succeeded");
    // Its shell does not wait until it has become `sleep`.
    eventually("what is live is no leftover", || (left(&world) == 1).then_some(()));
    for pid in world.pids() {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.starts_with(b"sleep\x0098765") {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }
    eventually("it is gone", || (left(&world) == 0).then_some(()));
}
