//! `kill -9` and SIGTERM at any moment: the run goes on where it stood, and what is told is true.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{Daemon, Project, Run, Sink, World, eventually, output};

/// A stage that says `begun`, writes that down, and waits to be let go; with a cleanup that leaves a mark.
fn waiting() -> Project {
    let keys = r#"run = function(run) run:sh { [[
        echo begun; echo begun >>"$T/trace"
        until [ -e "$T/go" ]; do sleep 0.05; done
        echo ended; echo ended >>"$T/trace"
      ]], env = { T = "@TESTED@" } } end,
      cleanup = function(run) run:sh { 'echo cleaned >>"$T/trace"', env = { T = "@TESTED@" } } end"#;
    Project::new("shop").hosts(&["h1", "h2"]).stage_of("unit", keys)
}

/// Lets what waits go.
fn go(world: &World) {
    std::fs::write(world.path("tested/go"), "").unwrap();
}

fn trace(world: &World) -> String {
    std::fs::read_to_string(world.path("tested/trace")).unwrap_or_default()
}

#[test]
fn a_run_killed_in_a_stage_goes_on_and_nothing_of_it_happens_twice() {
    let (world, daemon) = World::with(&waiting());
    let commit = world.repo.push("cut off");
    let run = daemon.press();
    run.prints("begun");
    daemon.kill();
    let daemon = world.start();
    go(&world);
    let ended = daemon.run(&run.id).wait().is("succeeded");
    assert_eq!(trace(&world), "begun\nended\ncleaned\n");
    let printed: Vec<&str> = ended.logs["?step=test/unit"].lines().collect();
    assert_eq!(printed, ["==> test/unit/run/-/sh#1 <==", "begun", "ended"]);
    assert!(world.hosts_have(&["h1", "h2"], &commit));
}

#[test]
fn a_command_that_ended_while_the_daemon_was_gone_is_not_run_again() {
    let (world, daemon) = World::with(&waiting());
    world.repo.push("cut off");
    let run = daemon.press();
    run.prints("begun");
    daemon.kill();
    go(&world);
    eventually("the command has ended", || trace(&world).contains("ended").then_some(()));
    let daemon = world.start();
    daemon.run(&run.id).wait().is("succeeded").prints("ended");
    assert_eq!(trace(&world), "begun\nended\ncleaned\n");
}

#[test]
fn a_run_killed_while_it_deploys_goes_on_on_its_hosts() {
    let hang = r#"if host.id == "h2" then host:sh { [[
        echo begun; echo begun >>"$ROOT/h2/trace"
        until [ -e "$TESTED/go" ]; do sleep 0.05; done
      ]], env = { ROOT = "@ROOT@", TESTED = "@TESTED@" } } end"#;
    let (world, daemon) = World::with(&Project::new("shop").deploy_after(hang));
    let commit = world.repo.push("cut off");
    let run = daemon.press();
    run.prints("begun");
    daemon.kill();
    let daemon = world.start();
    let now = daemon.run(&run.id).now();
    assert_eq!((&now["state"], &now["deployments"][0]["hosts"][1]["state"]), (&json!("deploying"), &json!("running")));
    go(&world);
    let ended = daemon.run(&run.id).wait().is("succeeded");
    assert_eq!(ended.hosts(), ["h1:healthy", "h2:healthy", "h3:healthy"]);
    assert!(world.hosts_have(&["h1", "h2", "h3"], &commit));
    assert_eq!(std::fs::read_to_string(world.host("h2").join("trace")).unwrap(), "begun\n");
    assert!(["h1", "h2", "h3"].iter().all(|host| world.touched(host).len() == 2));
}

#[test]
fn a_stop_that_was_acknowledged_is_obeyed_after_a_crash() {
    let (world, daemon) = World::with(&waiting());
    world.repo.push("cut off");
    let run = daemon.press();
    run.prints("begun");
    daemon.api.post(&format!("/v1/runs/{}/stop", run.id), &json!({ "reason": "wrong branch" })).is(202);
    daemon.kill();
    let daemon = world.start();
    let ended = daemon.run(&run.id).wait().is("stopped");
    assert!(ended.message().contains("wrong branch"));
    assert_eq!(trace(&world), "begun\ncleaned\n");
    nothing_waits(&world);
}

/// No process of this world is left that waits to be let go.
fn nothing_waits(world: &World) {
    eventually("nothing waits any more", || {
        let sleeps =
            |pid: i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with(b"sleep\x000.05"));
        (!world.pids().into_iter().any(sleeps)).then_some(())
    });
}

#[test]
fn a_run_goes_on_under_the_code_it_began_with() {
    let (world, daemon) = World::with(&waiting());
    let commit = world.repo.push("cut off");
    let run = daemon.press();
    run.prints("begun");
    daemon.kill();
    world.project(&Project::new("shop").hosts(&["h3"]).stage("unit", r#"run:fail "another project""#));
    let daemon = world.start();
    go(&world);
    daemon.run(&run.id).wait().is("succeeded");
    assert!(world.hosts_have(&["h1", "h2"], &commit) && world.revision("h3").is_none());
    daemon.idle();
    daemon.press_with(&json!({ "redeploy": true })).wait().is("failed");
}

#[test]
fn a_run_that_is_queued_survives_a_crash() {
    let (world, daemon) = World::with(&waiting().queue_all());
    world.repo.push("one");
    let first = daemon.press();
    first.prints("begun");
    let commit = world.repo.push("two");
    let second = daemon.press();
    daemon.kill();
    let daemon = world.start();
    assert_eq!(daemon.run(&second.id).now()["state"], "queued");
    go(&world);
    daemon.run(&first.id).wait().is("succeeded");
    daemon.run(&second.id).wait().is("succeeded");
    assert!(world.hosts_have(&["h1", "h2"], &commit));
}

#[test]
fn sigterm_ends_the_daemon_within_five_seconds_and_what_runs_goes_on() {
    let (world, daemon) = World::with(&waiting());
    world.repo.push("cut off");
    let run = daemon.press();
    run.prints("begun");
    let (status, took) = daemon.terminate();
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    let daemon = world.start();
    go(&world);
    daemon.run(&run.id).wait().is("succeeded");
    assert_eq!(trace(&world), "begun\nended\ncleaned\n");
}

#[test]
fn a_second_daemon_on_the_same_directory_ends_at_once_and_names_the_first() {
    let (world, daemon) = World::with(&Project::new("shop"));
    let second = output(&mut Daemon::command(&daemon.config));
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains(&daemon.pid().to_string()), "{second:?}");
    let rebuild = daemon.cli(&["rebuild", "--config", daemon.config.to_str().unwrap()]);
    assert!(rebuild.code == 1 && rebuild.stderr.contains(&daemon.pid().to_string()), "{rebuild:?}");
    daemon.api.get("/readyz").is(200);
    drop(world);
}

/// Three runs of different ends; what the API says of them.
fn some_history(world: &World, daemon: &Daemon) -> Vec<Run> {
    world.repo.push("good");
    let good = daemon.press();
    good.wait().is("succeeded");
    world.repo.commit(&[("bad", "")], "bad");
    world.repo.push_as("main");
    daemon.idle();
    let bad = daemon.press();
    bad.wait().is("failed");
    daemon.idle();
    vec![good, bad]
}

fn answers(daemon: &Daemon, runs: &[Run]) -> Vec<Value> {
    let mut paths: Vec<String> = runs.iter().map(|r| format!("/v1/runs/{}", r.id)).collect();
    paths.extend(["/v1/runs?project=shop".to_owned(), "/v1/projects/shop/status".to_owned()]);
    let mut answers: Vec<Value> = paths.iter().map(|path| daemon.api.get(path).is(200).json()).collect();
    answers.extend(runs.iter().map(|r| json!(daemon.run(&r.id).log())));
    answers
}

/// Compares answer by answer, so that a difference can be seen.
#[track_caller]
fn same(after: &[Value], before: &[Value]) {
    for (after, before) in after.iter().zip(before) {
        assert_eq!(format!("{after:#}"), format!("{before:#}"));
    }
    assert_eq!(after.len(), before.len());
}

fn tested() -> Project {
    Project::new("shop").hosts(&["h1"]).stage("unit", r#"run:sh "echo testing; test ! -e bad""#)
}

#[test]
fn the_answers_are_the_same_without_the_index() {
    let (world, daemon) = World::with(&tested());
    let runs = some_history(&world, &daemon);
    let before = answers(&daemon, &runs);
    daemon.kill();
    std::fs::remove_dir_all(world.path("data/state")).unwrap();
    let daemon = world.start();
    same(&answers(&daemon, &runs), &before);
}

#[test]
fn the_answers_are_the_same_after_a_rebuild() {
    let (world, daemon) = World::with(&tested());
    let runs = some_history(&world, &daemon);
    let before = answers(&daemon, &runs);
    daemon.terminate();
    let mut rebuild = std::process::Command::new(env!("CARGO_BIN_EXE_phased"));
    let rebuilt = output(rebuild.args(["rebuild", "--config"]).arg(world.path("phased.toml")));
    assert!(rebuilt.code == 0 && rebuilt.stdout.contains("2 runs"), "{rebuilt:?}");
    let daemon = world.start();
    same(&answers(&daemon, &runs), &before);
}

#[test]
fn a_damaged_index_is_set_aside_and_said() {
    let (world, daemon) = World::with(&tested());
    let runs = some_history(&world, &daemon);
    let before = answers(&daemon, &runs);
    daemon.kill();
    for file in ["db", "conf"] {
        let path = world.path("data/state").join(file);
        if path.exists() {
            std::fs::write(path, b"not what sled wrote").unwrap();
        }
    }
    let daemon = world.start();
    same(&answers(&daemon, &runs), &before);
}

#[test]
fn a_journal_cut_in_its_last_line_is_continued() {
    let (world, daemon) = World::with(&waiting());
    world.repo.push("cut off");
    let run = daemon.press();
    run.prints("begun");
    daemon.kill();
    let journal = world.path(&format!("data/journal/runs/{}/journal", run.id));
    let bytes = std::fs::read(&journal).unwrap();
    let torn = [&bytes[..], b"00000000 99 1 {\"half\":"].concat();
    std::fs::write(&journal, torn).unwrap();
    let daemon = world.start();
    go(&world);
    daemon.run(&run.id).wait().is("succeeded");
    assert_eq!(trace(&world), "begun\nended\ncleaned\n");
}

#[test]
fn a_journal_damaged_in_the_middle_is_not_continued_and_people_are_told() {
    let sink = Sink::start();
    let (world, daemon) = World::with(&waiting().tells(&sink));
    world.repo.push("cut off");
    let run = daemon.press();
    run.prints("begun");
    daemon.kill();
    world.damage(&run.id);
    let daemon = world.start();
    assert_eq!(daemon.run(&run.id).wait().state(), "damaged");
    assert_eq!(sink.message_of(&run.id)["event"], "damaged");
    assert!(daemon.status()["trouble"].to_string().contains(&run.id));
    // Nobody holds it any more, and an index made anew shows it all the same.
    let shown = |daemon: &Daemon| daemon.api.get("/v1/runs?project=shop").is(200).json();
    let before = shown(&daemon);
    daemon.kill();
    std::fs::remove_dir_all(world.path("data/state")).unwrap();
    assert_eq!(shown(&world.start()), before);
}

#[test]
fn a_run_killed_before_its_first_record_begins_anew() {
    let (world, daemon) = World::with(&waiting());
    world.repo.push("one");
    let first = daemon.press();
    first.prints("begun");
    let commit = world.repo.push("two");
    let queued = daemon.press();
    daemon.kill();
    // As a crash between making the file and its first sync leaves it.
    let dir = world.path("data/journal/runs").join(&queued.id);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("journal"), "").unwrap();
    let daemon = world.start();
    go(&world);
    daemon.run(&queued.id).wait().is("succeeded");
    assert!(world.hosts_have(&["h1", "h2"], &commit));
}

/// The lines of the only run's journal and of control, after a daemon with this kill point was given a commit and died.
fn killed_at(kill: &str) -> (usize, usize) {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let daemon = world.start_with(&[("PHASED_KILL", kill)]);
    world.repo.push("x");
    let _unanswered = daemon.api.try_ask("POST", "/v1/projects/shop/start", b"");
    daemon.dies();
    let lines = |path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    let mut runs = std::fs::read_dir(world.path("data/journal/runs")).unwrap();
    let run = runs.next().map(|run| lines(run.unwrap().path().join("journal")));
    let control = lines(world.path("data/journal/control"));
    // What it left is taken up.
    world.start().api.get("/readyz").is(200);
    (run.unwrap_or(0), control)
}

#[test]
fn a_kill_point_kills_at_exactly_its_record() {
    for (kill, lines) in [("before:1", 0), ("after:1", 1), ("before:2", 1), ("after:2", 2), ("before:5", 4)] {
        assert_eq!(killed_at(kill).0, lines, "{kill}");
    }
    for (kill, lines) in [("control-before:1", 0), ("control-after:1", 1), ("control-before:3", 2)] {
        assert_eq!(killed_at(kill).1, lines, "{kill}");
    }
}

#[test]
fn a_start_with_a_key_is_one_run_though_the_daemon_died_before_it_answered() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let daemon = world.start_with(&[("PHASED_KILL", "control-after:1")]);
    world.repo.push("x");
    let press = |daemon: &Daemon| {
        let api = daemon.api.with("idempotency-key", "one").with("content-type", "application/json");
        api.try_ask("POST", "/v1/projects/shop/start", b"{\"retest\":true}")
    };
    assert!(press(&daemon).is_err());
    daemon.dies();
    let daemon = world.start();
    let again = press(&daemon).unwrap().is(202);
    let id = again.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(again.header("location"), Some(&*format!("/v1/runs/{id}")));
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    daemon.run(&id).wait().is("succeeded");
    assert_eq!(press(&daemon).unwrap().is(202).json()["id"], id);
    assert_eq!(daemon.runs().len(), 1);
    let other = daemon.api.with("idempotency-key", "one").post("/v1/projects/shop/start", &json!({}));
    assert_eq!(other.problem(), (422, "idempotency_mismatch".to_owned()));
}

/// Does something to an index's directory.
type Breaking = fn(&std::path::Path);

/// What a broken disk or another version may have made of the index.
fn broken_indexes() -> Vec<(&'static str, Breaking)> {
    fn files(state: &std::path::Path, change: impl Fn(&str, &mut Vec<u8>)) {
        for entry in std::fs::read_dir(state).unwrap().map(Result::unwrap).filter(|e| e.file_type().unwrap().is_file())
        {
            let mut bytes = std::fs::read(entry.path()).unwrap();
            change(entry.file_name().to_str().unwrap(), &mut bytes);
            std::fs::write(entry.path(), bytes).unwrap();
        }
    }
    vec![
        ("a newer build wrote it", |state| {
            let db = sled::Config::new().path(state).mode(sled::Mode::LowSpace).open().unwrap();
            let schema = u32::MAX.to_le_bytes();
            // In the envelope that every value has.
            let value = [&[1][..], &crc32c::crc32c(&schema).to_le_bytes(), &schema].concat();
            assert!(db.insert("m/schema", value).unwrap().is_some(), "the schema has another key now");
        }),
        ("every file is zeroed", |state| files(state, |_, bytes| bytes.fill(0))),
        ("every file is flipped", |state| {
            files(state, |_, bytes| bytes.iter_mut().step_by(97).for_each(|b| *b ^= 0x55))
        }),
        ("the configuration is flipped", |state| {
            files(state, |name, bytes| {
                if name == "conf" {
                    bytes.iter_mut().for_each(|b| *b ^= 1)
                }
            });
        }),
        ("the log is flipped", |state| {
            files(state, |name, bytes| {
                if name == "db" {
                    bytes.iter_mut().step_by(1009).for_each(|b| *b ^= 4)
                }
            });
        }),
        ("a snapshot is half written", |state| {
            std::fs::write(state.join("snap.00000000FFFFFFFF.generating"), "x").unwrap()
        }),
        ("a snapshot is no snapshot", |state| std::fs::write(state.join("snap.00000000FFFFFFFF"), "x").unwrap()),
    ]
}

#[test]
fn whatever_became_of_the_index_the_answers_are_the_same_and_people_are_told_once() {
    let sink = Sink::start();
    let (world, daemon) = World::with(&tested().tells(&sink));
    let runs = some_history(&world, &daemon);
    let before = answers(&daemon, &runs);
    let mut daemon = daemon;
    let told = || sink.messages().iter().filter(|message| message["event"] == "index_set_aside").count();
    let mut set_aside = 0;
    for (what, break_it) in broken_indexes() {
        daemon.kill();
        break_it(&world.path("data/state"));
        daemon = world.start();
        eprintln!("{what}");
        let gave_way = daemon.said().contains("the state index was set aside");
        assert!(gave_way || what != "a newer build wrote it");
        set_aside += usize::from(gave_way);
        same(&answers(&daemon, &runs), &before);
        eventually("people are told", || (told() == set_aside).then_some(()));
    }
    assert!(set_aside > 0);
    let names = std::fs::read_dir(world.path("data")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("state.bad-")).count(), set_aside.min(3));
    daemon.kill();
    let daemon = world.start();
    same(&answers(&daemon, &runs), &before);
    let control = std::fs::read_to_string(world.path("data/journal/control")).unwrap();
    assert_eq!((told(), control.matches("outbox/state.bad-").count() / 2), (set_aside, set_aside), "told again");
}

/// What a power loss leaves: everything is as it was at a moment, but for the index, which is later.
struct Moment(std::path::PathBuf);

impl Moment {
    /// The moment that is now; the daemon is gone.
    fn of(world: &World) -> Moment {
        let kept = world.path("kept");
        let mut copy = std::process::Command::new("cp");
        assert!(copy.arg("-a").arg(world.path("data")).arg(&kept).status().unwrap().success());
        std::fs::remove_dir_all(kept.join("state")).unwrap();
        Moment(kept)
    }

    /// Is there again, under the index that was written since.
    fn comes_back(self, world: &World) {
        let data = world.path("data");
        std::fs::rename(data.join("state"), self.0.join("state")).unwrap();
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::rename(self.0, data).unwrap();
    }
}

/// The index says of these runs what one says that is made anew.
fn as_from_journals(world: &World, daemon: Daemon, runs: &[Run]) {
    let before = answers(&daemon, runs);
    daemon.kill();
    std::fs::remove_dir_all(world.path("data/state")).unwrap();
    same(&before, &answers(&world.start(), runs));
}

#[test]
fn of_an_index_ahead_of_a_cut_journal_nothing_is_told_that_did_not_happen() {
    let (world, daemon) = World::with(&waiting());
    world.repo.push("cut off");
    let run = daemon.press();
    run.prints("begun");
    daemon.kill();
    let cut = Moment::of(&world);
    let daemon = world.start();
    go(&world);
    let ended = daemon.run(&run.id).wait().is("succeeded");
    assert_eq!(ended.hosts(), ["h1:healthy", "h2:healthy"]);
    // At its end it writes all of the index.
    daemon.terminate();
    cut.comes_back(&world);
    let daemon = world.start();
    // In this history its command never came to an end.
    let ended = daemon.run(&run.id).wait().is("failed");
    assert_eq!((ended.code(), ended.hosts()), ("lost", Vec::new()), "{}", ended.view);
    as_from_journals(&world, daemon, &[run]);
}

#[test]
fn an_index_of_another_journal_of_the_same_length_is_not_believed() {
    let (world, daemon) = World::with(&tested());
    world.repo.push("one");
    let first = daemon.deploy().is("succeeded").id.clone();
    daemon.idle();
    daemon.terminate();
    let daemon = world.start_with(&[("PHASED_KILL", &format!("after:{}", world.journal(&first).len()))]);
    world.repo.push("two");
    let run = daemon.press();
    daemon.dies();
    // It has ended, and control does not know.
    assert!(world.is_over(&run.id));
    let cut = Moment::of(&world);
    let daemon = world.start();
    let ended = daemon.run(&run.id).wait().is("succeeded").view["finished_at"].clone();
    daemon.terminate();
    cut.comes_back(&world);
    world.rewrite(&run.id, |records| {
        let end = records.last_mut().unwrap();
        end["at"][0] = (end["at"][0].as_i64().unwrap() + 1000).into();
    });
    let daemon = world.start();
    assert_ne!(daemon.run(&run.id).wait().is("succeeded").view["finished_at"], ended);
    as_from_journals(&world, daemon, &[run]);
}

/// The journal of a finished run again, as that of `count` others.
fn multiply(world: &World, run: &str, count: u128) {
    let dir = world.path("data/journal/runs");
    let text = std::fs::read_to_string(dir.join(run).join("journal")).unwrap();
    let began = phased::time::Clock::now(&phased::time::SystemClock::new()).wall_ms;
    for n in 0..count {
        let id = phased::model::ids::RunId::new(began, n).to_string();
        let mut bytes = Vec::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.splitn(4, ' ').collect();
            let json = fields[3].replace(run, &id);
            let (seq, synced) = (fields[1].parse().unwrap(), fields[2].parse().unwrap());
            phased::journal::line::encode(&mut bytes, seq, synced, json.as_bytes()).unwrap();
        }
        std::fs::create_dir(dir.join(&id)).unwrap();
        std::fs::write(dir.join(&id).join("journal"), bytes).unwrap();
    }
}

#[test]
fn the_index_of_a_thousand_runs_is_made_anew_at_start() {
    let (world, daemon) = World::with(&tested());
    world.repo.push("good");
    let run = daemon.deploy().is("succeeded").id.clone();
    daemon.idle();
    daemon.kill();
    multiply(&world, &run, 1000);
    std::fs::remove_dir_all(world.path("data/state")).unwrap();
    let began = std::time::Instant::now();
    let daemon = world.start();
    let up = began.elapsed();
    eprintln!("measured: up with the index of 1,000 runs to be made: {up:?}, meant to be at most 10 s");
    // On a busy machine, in a debug build.
    assert!(up < Duration::from_secs(50), "{up:?}");
    let (mut count, mut cursor) = (0, String::new());
    loop {
        let page = daemon.api.get(&format!("/v1/runs?project=shop&limit=500{cursor}")).is(200).json();
        let items = page["items"].as_array().unwrap();
        assert!(items.iter().all(|run| run["state"] == "succeeded"));
        count += items.len();
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(count, 1001);
}
