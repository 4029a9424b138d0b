//! Stages: setup, run, cleanup; stop; time-outs; exit codes.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::fixture::{Project, World, eventually};

/// A stage that writes down which of its functions ran, with what each does besides.
fn traced(setup: &str, run: &str, cleanup: &str) -> Project {
    let note = |word: &str, more: &str| {
        format!(
            r#"{word} = function(run) run:sh {{ 'echo {word} >>"$T"', env = {{ T = "@ROOT@/../tested/trace" }} }} {more} end"#
        )
    };
    let keys = [note("setup", setup), note("run", run), note("cleanup", cleanup)].join(", ");
    Project::new("shop").stage_of("integration", &keys)
}

fn trace(world: &World) -> Vec<String> {
    let text = std::fs::read_to_string(world.path("tested/trace")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_stage_is_set_up_run_and_cleaned_up() {
    let (world, daemon) = World::with(&traced("", "", ""));
    world.repo.push("x");
    daemon.deploy().is("succeeded");
    assert_eq!(trace(&world), ["setup", "run", "cleanup"]);
}

#[test]
fn a_failing_run_is_cleaned_up() {
    let (world, daemon) = World::with(&traced("", r#"run:sh "exit 3""#, ""));
    world.repo.push("x");
    assert_eq!(daemon.deploy().is("failed").code(), "exit");
    assert_eq!(trace(&world), ["setup", "run", "cleanup"]);
}

#[test]
fn a_failing_setup_is_cleaned_up_and_nothing_is_run() {
    let (world, daemon) = World::with(&traced(r#"run:fail "no database""#, "", ""));
    world.repo.push("x");
    let run = daemon.deploy().is("failed");
    assert!(run.message().contains("no database"), "{}", run.message());
    assert_eq!(trace(&world), ["setup", "cleanup"]);
}

#[test]
fn a_failing_cleanup_fails_the_run_and_no_host_is_touched() {
    let (world, daemon) = World::with(&traced("", "", r#"run:sh "echo still there >&2; exit 1""#));
    world.repo.push("x");
    let run = daemon.deploy().is("failed");
    assert!(run.message().contains("still there"), "{}", run.message());
    assert!(world.untouched());
}

#[test]
fn the_first_failing_stage_skips_those_after_it() {
    let project = Project::new("shop")
        .stage("one", r#"run:sh "true""#)
        .stage("two", r#"run:sh "false""#)
        .stage("three", r#"run:sh { 'echo ran >"$T"', env = { T = "@ROOT@/../tested/three" } }"#);
    let (world, daemon) = World::with(&project);
    world.repo.push("x");
    let run = daemon.deploy().is("failed");
    let states = ["one", "two", "three"].map(|s| run.stage(s)["state"].as_str().unwrap_or("").to_owned());
    assert_eq!(states, ["succeeded", "failed", "skipped"]);
    assert!(!world.path("tested/three").exists());
}

#[test]
fn the_first_failing_line_fails_the_step() {
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", r#"run:sh "false; echo reached""#));
    world.repo.push("x");
    let run = daemon.deploy().is("failed");
    assert!(!run.log().contains("reached"));
}

#[test]
fn an_error_in_lua_is_told_with_its_line() {
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", "local x = nil; return x.y"));
    world.repo.push("x");
    let run = daemon.deploy().is("failed");
    assert!(run.message().contains("shop.lua:") || run.view["cause"]["at"].to_string().contains("shop.lua:"));
}

#[test]
fn stop_ends_a_running_command_and_all_it_started_within_five_seconds() {
    let sleep = r#"run:sh "echo begun; sleep 300 & (trap '' TERM; sleep 301) & sleep 302""#;
    let (world, daemon) = World::with(&traced("", sleep, ""));
    world.repo.push("x");
    let run = daemon.press();
    run.prints("begun");
    let began = Instant::now();
    daemon.api.post("/v1/projects/shop/stop", &json!({ "reason": "enough" })).is(202);
    let ended = run.wait().is("stopped");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(ended.message().contains("enough"), "{}", ended.message());
    assert_eq!(trace(&world), ["setup", "run", "cleanup"]);
    // What ignores TERM is killed 2 s later.
    eventually("nothing sleeps any more", || sleepers(&world).is_empty().then_some(()));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(world.untouched());
}

/// Command lines of this world's sleeps.
fn sleepers(world: &World) -> Vec<String> {
    let lines = world.pids().into_iter().filter_map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.starts_with("sleep 30")).collect()
}

#[test]
fn a_step_ends_at_its_time_out_and_a_stage_at_its_own() {
    let project = Project::new("shop").stage("slow", r#"run:sh { "sleep 300", timeout = "1s" }"#);
    let (world, daemon) = World::with(&project);
    world.repo.push("x");
    assert_eq!(daemon.deploy().is("failed").code(), "timeout");
    eventually("nothing sleeps any more", || sleepers(&world).is_empty().then_some(()));
    let keys = r#"timeout = "1s", run = function(run) pcall(function() run:sh "sleep 300" end) run:sh "sleep 301" end"#;
    world.project(&Project::new("shop").stage_of("slow", keys));
    daemon.api.post("/v1/reload", &json!({})).is(200);
    daemon.idle();
    assert_eq!(daemon.deploy().is("failed").code(), "timeout");
    eventually("nothing sleeps any more", || sleepers(&world).is_empty().then_some(()));
}

#[test]
fn a_runaway_loop_in_lua_ends_and_the_daemon_lives() {
    let (world, daemon) = World::with(&Project::new("shop").stage("loop", "while true do end"));
    world.repo.push("x");
    daemon.deploy().is("failed");
    daemon.api.get("/healthz").is(200);
}

#[test]
fn a_queued_run_can_be_stopped() {
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", r#"run:sh "echo begun; sleep 300""#));
    world.repo.push("one");
    let first = daemon.press();
    first.prints("begun");
    world.repo.push("two");
    let second = daemon.press();
    daemon.api.post(&format!("/v1/runs/{}/stop", second.id), &json!({})).is(202);
    second.wait().is("stopped");
    assert_eq!(first.now()["state"], "testing");
}

#[test]
fn the_command_line_ends_with_the_code_of_what_happened() {
    let project = Project::new("shop").hosts(&["h1"]).stage("unit", r#"run:sh "sh ./test.sh""#);
    let (world, daemon) = World::with(&project);
    let test = |script: &str| {
        world.repo.commit(&[("test.sh", script)], script);
        world.repo.push_as("main");
        daemon.idle();
    };
    let code = |args: &[&str]| daemon.cli(args).code;
    test("true");
    assert_eq!(code(&["start", "shop", "--wait"]), 0);
    assert_eq!(code(&["start", "shop", "--wait"]), 0, "already live is fine");
    test("false");
    assert_eq!(code(&["start", "shop", "--wait"]), 3);
    test("sleep 300");
    assert_eq!(code(&["start", "shop", "--wait", "--timeout", "1s"]), 6);
    assert_eq!(code(&["stop", "shop"]), 0);
    daemon.idle();
    assert_eq!(code(&["stop", "shop"]), 9);
    assert_eq!(code(&["start", "nothing"]), 8);
    assert_eq!(code(&["status", "nothing"]), 8);
    assert_eq!(code(&["start"]), 2);
    assert_eq!(code(&["--addr", "unix:///nonexistent/phased.sock", "status"]), 10);
    assert_eq!(code(&["--addr", &format!("http://{}", daemon.addr), "status"]), 7);
}

#[test]
fn whoever_waits_may_leave_and_what_is_waited_for_goes_on() {
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", r#"run:sh "echo begun; sleep 300""#));
    world.repo.push("one");
    let run = daemon.press();
    run.prints("begun");
    let (code, told) = daemon.follow(&["start", "shop", "--wait"], "start").interrupt_at("unit");
    assert!(code == Some(130) && told.contains("goes on: follow it"), "{code:?} {told}");
    let (code, told) = daemon.follow(&["maintenance", "on", "--wait"], "park").interrupt_at("waiting for shop run");
    assert!(code == Some(130) && told.contains("maintenance stays on"), "{code:?} {told}");
    assert_eq!(run.now()["state"], "testing");
    assert!(daemon.cli(&["maintenance"]).stdout.contains("maintenance is on"));
}

#[test]
fn the_command_line_shows_runs_status_log_and_plan() {
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", r#"run:sh "echo hello from the test""#));
    world.repo.push("shown");
    let waited = daemon.cli(&["start", "shop", "--wait"]);
    assert!(waited.stderr.contains("production") || waited.stdout.contains("production"), "{waited:?}");
    assert!(daemon.cli(&["log", "shop"]).stdout.contains("hello from the test"));
    assert!(daemon.cli(&["status"]).stdout.contains("shop"));
    assert!(daemon.cli(&["runs", "shop"]).stdout.contains("succeeded"));
    assert!(daemon.cli(&["plan", "shop"]).stdout.contains("h2"));
    let followed = daemon.cli(&["log", "-f", "shop"]);
    assert!(followed.code == 0 && followed.stdout.contains("hello from the test"), "{followed:?}");
    // What is not there is not an empty log.
    let step = daemon.cli(&["log", "shop", "--step", "test/unti"]);
    assert!(step.code == 8 && step.stderr.contains("there are test/unit, production#1"), "{step:?}");
    let host = daemon.cli(&["log", "-f", "shop", "--host", "web9"]);
    assert!(host.code == 8 && host.stdout.is_empty() && host.stderr.contains("there are h1, h2"), "{host:?}");
    let silent = daemon.cli(&["--json", "log", "-f", "shop", "--step", "test/unit", "--host", "h1"]);
    assert!(silent.code == 0 && silent.stderr.contains("has printed nothing in test/unit on h1"), "{silent:?}");
    let json: serde_json::Value = serde_json::from_str(&daemon.cli(&["--json", "status"]).stdout).unwrap();
    assert_eq!(json["projects"][0]["project"], "shop");
}

#[test]
fn a_stop_at_any_moment_leaves_nothing_behind() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).stage("unit", r#"run:sh "true""#));
    for n in 0..12 {
        world.repo.push(&format!("stopped {n}"));
        let run = daemon.press();
        std::thread::sleep(std::time::Duration::from_millis(n * 15));
        let answer = daemon.api.post(&format!("/v1/runs/{}/stop", run.id), &json!({ "now": n % 2 == 0 }));
        assert!([202, 409].contains(&answer.status), "{}", answer.text());
        let ended = run.wait();
        assert!(["stopped", "succeeded"].contains(&ended.state()), "{:#}", ended.view);
    }
    assert_eq!(daemon.status()["trouble"], json!([]), "the daemon is well");
    let commit = world.repo.push("goes through");
    daemon.deploy().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    daemon.idle();
    assert_eq!(daemon.status()["projects"][0]["environments"][0]["lease"], json!(null));
}
