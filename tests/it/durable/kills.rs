//! The daemon is killed at random moments, several times a run: each run has its right end, and no command ran twice.

use serde_json::json;

use crate::fixture::{Api, Dice, Project, Sink, World, eventually, times};

/// Three steps on each host, each of which writes down that it ran and prints; the last one switches.
const STEPS: &str = r#"
  local env = { HERE = "@ROOT@/" .. host.id }
  host:sh { 'echo "$PHASED_RUN 1" >>"$HERE/trace"; echo one; echo uno >&2', env = env }
  host:sh { 'echo "$PHASED_RUN 2" >>"$HERE/trace"; for i in 1 2 3; do echo "two $i"; sleep 0.1; done; [ ! -e "$HERE/bad" ]', env = env }
  host:sh { 'echo "$PHASED_RUN 3" >>"$HERE/trace"; echo "$PHASED_REVISION" >"$HERE/revision"; echo three', env = env }"#;

/// `h01` and so on.
fn names(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("h{n:02}")).collect()
}

fn fleet(count: usize) -> Project {
    let names = names(count);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Project::new("shop").hosts(&names).deploy(STEPS)
}

/// The steps that ran on a host in `run`, in order.
fn ran(world: &World, host: &str, run: &str) -> Vec<String> {
    let trace = std::fs::read_to_string(world.host(host).join("trace")).unwrap_or_default();
    trace.lines().filter_map(|line| line.strip_prefix(run)).map(|step| step.trim().to_owned()).collect()
}

/// What each of `STEPS` prints on `host`, and nothing else.
#[track_caller]
fn printed_whole(printed: &std::collections::BTreeMap<String, Vec<String>>, host: &str) {
    let step = |n: u32, stream: &str| format!("production#1/{host}/deploy/-/sh#{n} {stream}");
    let wanted = [
        (step(1, "out"), vec!["one"]),
        (step(1, "err"), vec!["uno"]),
        (step(2, "out"), vec!["two 1", "two 2", "two 3"]),
        (step(3, "out"), vec!["three"]),
    ];
    let wanted = wanted.map(|(step, lines)| (step, lines.into_iter().map(str::to_owned).collect::<Vec<_>>()));
    let place = format!("production#1/{host}/");
    let found: Vec<_> = printed.iter().filter(|(step, _)| step.starts_with(&place)).collect();
    let mut wanted: Vec<_> = wanted.iter().map(|(step, lines)| (step, lines)).collect();
    wanted.sort();
    assert_eq!(found, wanted);
}

#[test]
fn fifty_hosts_get_their_release_each_step_once() {
    let mut dice = Dice::new("fifty_hosts");
    let hosts = names(50);
    let (world, mut daemon) = World::with(&fleet(50).rollout("max_parallel = 25"));
    let (mut killed, wanted) = (0, times(10, 500));
    while killed < wanted {
        let commit = world.repo.push(&format!("after {killed} kills"));
        let run = daemon.press();
        let kills;
        (daemon, kills) = world.kills(daemon, &run, 12.min(wanted - killed), &mut dice);
        killed += kills;
        let ended = daemon.run(&run.id).wait().is("succeeded");
        let printed = ended.printed();
        for host in &hosts {
            assert_eq!(ran(&world, host, &run.id), ["1", "2", "3"], "{host}");
            printed_whole(&printed, host);
            assert_eq!(world.revision(host).as_deref(), Some(&*commit), "{host}");
        }
        daemon.idle();
        eprintln!("{killed} kills");
    }
}

#[test]
fn a_rollout_beyond_its_budget_ends_halted_and_no_step_ran_twice() {
    let mut dice = Dice::new("halted");
    let sink = Sink::start();
    let project = fleet(12).rollout("max_parallel = 4, max_failures = 1").tells(&sink);
    let (world, mut daemon) = World::with(&project);
    for bad in ["h02", "h05", "h07"] {
        std::fs::write(world.host(bad).join("bad"), "").unwrap();
    }
    for _ in 0..times(1, 25) {
        world.repo.push("bad on three hosts");
        let run = daemon.press();
        (daemon, _) = world.kills(daemon, &run, 6, &mut dice);
        let ended = daemon.run(&run.id).wait().is("halted");
        assert_eq!(ended.code(), "max_failures", "{}", ended.view);
        for host in ended.deployment("production")["hosts"].as_array().unwrap() {
            let (id, state) = (host["id"].as_str().unwrap(), host["state"].as_str().unwrap());
            let wanted: &[&str] = match state {
                "healthy" => &["1", "2", "3"],
                "failed" => &["1", "2"],
                "skipped" => &[],
                other => panic!("{id} is {other}"),
            };
            assert_eq!(ran(&world, id, &run.id), wanted, "{id} is {state}");
        }
        assert_eq!(sink.message_of(&run.id)["event"], "halted");
        daemon.idle();
    }
}

/// Each function writes down that it ran, and takes a moment.
fn staged(run_ends: &str) -> Project {
    let function = |name: &str, more: &str| {
        format!(
            r#"{name} = function(run)
              run:sh {{ 'echo "$PHASED_RUN {name}" >>"$T/trace"; sleep 0.2', env = {{ T = "@TESTED@" }} }} {more} end"#
        )
    };
    let keys = [function("setup", ""), function("run", run_ends), function("cleanup", "")].join(", ");
    Project::new("shop").hosts(&["h1", "h2"]).stage_of("unit", &keys)
}

/// What the stages did in `run`.
fn tested(world: &World, run: &str) -> Vec<String> {
    let trace = std::fs::read_to_string(world.path("tested/trace")).unwrap_or_default();
    trace.lines().filter_map(|line| line.strip_prefix(run)).map(|word| word.trim().to_owned()).collect()
}

#[test]
fn a_test_that_fails_ends_the_run_after_its_cleanup_and_people_are_told() {
    let mut dice = Dice::new("failing_stage");
    let sink = Sink::start();
    let (world, mut daemon) = World::with(&staged(r#"run:sh "echo no good; exit 3""#).tells(&sink));
    for _ in 0..times(1, 30) {
        world.repo.push("bad");
        let run = daemon.press();
        (daemon, _) = world.kills(daemon, &run, 4, &mut dice);
        let ended = daemon.run(&run.id).wait().is("failed");
        assert!(ended.message().contains("no good") && world.untouched(), "{}", ended.message());
        assert_eq!(tested(&world, &run.id), ["setup", "run", "cleanup"]);
        assert_eq!(sink.message_of(&run.id)["event"], "failed");
        daemon.idle();
    }
}

#[test]
fn stopped_in_a_stage_it_cleans_up_once_and_ends_stopped() {
    let mut dice = Dice::new("stopped_in_a_stage");
    let (world, mut daemon) = World::with(&staged(r#"run:sh "echo waiting; sleep 600""#));
    for n in 0..times(2, 30) {
        world.repo.push("never ends");
        let run = daemon.press();
        (daemon, _) = world.kills(daemon, &run, 2, &mut dice);
        daemon.api.post(&format!("/v1/runs/{}/stop", run.id), &json!({ "now": n % 2 == 1 })).is(202);
        (daemon, _) = world.kills(daemon, &run, 4, &mut dice);
        daemon.run(&run.id).wait().is("stopped");
        let did = tested(&world, &run.id);
        let whole = ["setup", "run", "cleanup"];
        assert!(
            whole.starts_with(&did.iter().map(String::as_str).filter(|d| *d != "cleanup").collect::<Vec<_>>()),
            "{did:?}"
        );
        // What was begun was cleaned up, once.
        assert_eq!(did.iter().filter(|d| *d == "cleanup").count(), usize::from(!did.is_empty()), "{did:?}");
        assert!(world.untouched());
        daemon.idle();
    }
}

#[test]
fn stopped_in_a_rollout_hosts_in_flight_finish_or_end_after_their_step() {
    let mut dice = Dice::new("stopped_in_a_rollout");
    let (world, mut daemon) = World::with(&fleet(12).rollout("max_parallel = 3"));
    for n in 0..times(2, 30) {
        let now = n % 2 == 1;
        world.repo.push("unwanted");
        let run = daemon.press();
        run.until("it rolls", |run| run["state"] == "deploying");
        (daemon, _) = world.kills(daemon, &run, 1, &mut dice);
        let stopped = daemon.api.post(&format!("/v1/runs/{}/stop", run.id), &json!({ "now": now }));
        (daemon, _) = world.kills(daemon, &run, 3, &mut dice);
        let ended = daemon.run(&run.id).wait();
        // It may have been over before.
        assert_eq!(ended.state(), if stopped.status == 202 { "stopped" } else { "succeeded" }, "{}", ended.view);
        for host in names(12) {
            let ran = ran(&world, &host, &run.id);
            assert!(
                ["1", "2", "3"].starts_with(&ran.iter().map(String::as_str).collect::<Vec<_>>()),
                "{host}: {ran:?}"
            );
            assert!(now || ran.is_empty() || ran.len() == 3, "{host} did not finish: {ran:?}");
        }
        daemon.idle();
    }
}

#[test]
fn verification_happens_once() {
    let mut dice = Dice::new("verify");
    let verify = r#"
      local env = { T = "@TESTED@/trace", H = "@ROOT@/h01/trace" }
      run:sh { 'echo "$PHASED_RUN here" >>"$T"; sleep 0.2', env = env }
      deployment.hosts[1]:sh { 'echo "$PHASED_RUN verified" >>"$H"; sleep 0.2', env = env }
      run:log "verified""#;
    let (world, mut daemon) = World::with(&fleet(2).rollout("max_parallel = 2").verify(verify));
    for _ in 0..times(1, 30) {
        world.repo.push("verified");
        let run = daemon.press();
        (daemon, _) = world.kills(daemon, &run, 5, &mut dice);
        let ended = daemon.run(&run.id).wait().is("succeeded");
        assert_eq!(tested(&world, &run.id), ["here"]);
        assert_eq!(ran(&world, "h01", &run.id), ["1", "2", "3", "verified"]);
        assert_eq!(ended.log().matches("\n# verified\n").count(), 1, "{}", ended.log());
        daemon.idle();
    }
}

#[test]
fn killed_at_any_record_of_control_a_run_ends_well_and_gives_its_environment_back() {
    let sink = Sink::start();
    let (world, daemon) = World::with(&fleet(1).notify(&format!(
        r#"{{ bad = require "alerts.webhook" {{ "{0}" }}, good = require "alerts.webhook" {{ "{0}" }} }}"#,
        sink.url()
    )));
    let lines = || std::fs::read_to_string(world.path("data/journal/control")).unwrap().lines().count();
    world.repo.push("x");
    daemon.deploy().is("succeeded");
    daemon.idle();
    let again = json!({ "redeploy": true, "retest": true });
    let before = lines();
    let run = daemon.press_with(&again);
    run.wait().is("succeeded");
    sink.message_of(&run.id);
    daemon.idle();
    daemon.kill();
    let count = lines() - before;
    assert!(count >= 5, "{count}");
    for (n, place) in (1..=count).step_by(times(2, 1)).flat_map(|n| [(n, "before"), (n, "after")]) {
        // It may die before it can be pressed, when it first tells people of the run before.
        let api = Api::socket(world.path("phased.sock")).with("content-type", "application/json");
        let mut pressed = false;
        world.doomed(&[("PHASED_KILL", &format!("control-{place}:{n}"))], || {
            if !pressed {
                let answer = api.try_ask("POST", "/v1/projects/shop/start", again.to_string().as_bytes());
                pressed = answer.is_ok_and(|answer| answer.status == 202);
                return false;
            }
            let status = api.try_ask("GET", "/v1/projects/shop/status", b"").ok().filter(|answer| answer.status == 200);
            status.is_some_and(|answer| answer.json()["running"].as_array().is_some_and(Vec::is_empty))
        });
        let daemon = world.start();
        let killed = format!("killed {place} record {n} of control");
        for run in daemon.runs() {
            let id = run["id"].as_str().unwrap();
            assert_eq!(daemon.run(id).wait().state(), "succeeded", "{killed}");
            sink.message_of(id);
        }
        daemon.idle();
        // Nobody is left who holds it: the next one gets it.
        daemon.press_with(&again).wait().is("succeeded");
        daemon.idle();
        daemon.kill();
    }
}

#[test]
fn a_git_that_outlives_the_daemon_does_no_harm_to_the_next_one() {
    let world = World::new();
    world.project(&fleet(1));
    // A clone that fails after a while, and cleans up where it was told to work as git does.
    let slow = r#"#!/bin/sh
case " $* " in *" clone "*)
  for last; do :; done
  : >"@ROOT@/clones"; i=0
  while [ $i -lt 2000 ]; do rm -rf "$last/.git"; i=$((i + 1)); done ;;
esac
PATH=${PATH#*:} exec git "$@"
"#;
    let bin = world.path("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("git"), slow.replace("@ROOT@", world.root().to_str().unwrap())).unwrap();
    std::fs::set_permissions(bin.join("git"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let daemon = world.start_with(&[("PATH", &path)]);
    let commit = world.repo.push("x");
    let run = daemon.press();
    eventually("it clones", || world.path("clones").exists().then_some(()));
    daemon.kill();
    let daemon = world.start();
    daemon.run(&run.id).wait().is("succeeded");
    assert!(world.hosts_have(&["h01"], &commit));
}
