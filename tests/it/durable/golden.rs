//! Journals are formats: those in `tests/golden` were written by earlier builds, and every build reads them to the same views.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use phased::model::event::Event;
use serde_json::Value;

use crate::fixture::{World, journal};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Each journal with its name.
fn journals() -> Vec<(String, PathBuf)> {
    let mut found: Vec<_> = std::fs::read_dir(golden())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    found.sort();
    found
}

fn records(dir: &Path) -> Vec<Value> {
    journal::records(&dir.join("journal"), &dir.join("blobs"))
}

fn run_of(records: &[Value]) -> String {
    records[0]["run"].as_str().unwrap().to_owned()
}

/// Puts `bytes` where the daemon keeps the journal of `run`.
fn place(world: &World, run: &str, bytes: &[u8]) -> PathBuf {
    let path = world.journal_of(run);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn the_journals_of_earlier_builds_are_read_to_the_same_views() {
    let world = World::new();
    let bytes = |dir: &Path| std::fs::read(dir.join("journal")).unwrap();
    for (_, dir) in journals() {
        place(&world, &run_of(&records(&dir)), &bytes(&dir));
    }
    let daemon = world.start();
    assert!(journals().len() >= 10);
    for (name, dir) in journals() {
        let run = run_of(&records(&dir));
        let view: Value = serde_json::from_slice(&std::fs::read(dir.join("view.json")).unwrap()).unwrap();
        let read = daemon.run(&run).now();
        assert!(tells(&read, &view), "{name}: {read:#}\n{view:#}");
        assert!(std::fs::read(world.journal_of(&run)).unwrap() == bytes(&dir), "{name} was written to");
    }
}

/// Whether `read` says everything that `view` says, as it says it; what a later version says besides is no matter.
fn tells(read: &Value, view: &Value) -> bool {
    match (read, view) {
        (Value::Object(read), Value::Object(view)) => {
            view.iter().all(|(key, value)| read.get(key).is_some_and(|read| tells(read, value)))
        }
        (Value::Array(read), Value::Array(view)) => {
            read.len() == view.len() && read.iter().zip(view).all(|(read, view)| tells(read, view))
        }
        (read, view) => read == view,
    }
}

/// Every kind of event that there is, as what reads them names them when it meets another one.
fn kinds() -> BTreeSet<String> {
    let other = serde_json::from_value::<Event>(serde_json::json!({ "event": "?" })).unwrap_err().to_string();
    let (_, known) = other.split_once("expected one of ").unwrap_or_else(|| panic!("{other}"));
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_kind_of_event_that_this_build_writes_is_among_them() {
    let events: BTreeSet<String> = journals()
        .iter()
        .flat_map(|(_, dir)| records(dir))
        .map(|record| record["event"].as_str().unwrap().to_owned())
        .collect();
    let kinds = kinds();
    assert!(kinds.contains("started") && kinds.contains("end") && kinds.len() > 30, "{kinds:?}");
    // It needs a second controller.
    let missing: Vec<&String> = kinds.difference(&events).filter(|kind| *kind != "lease_lost").collect();
    assert!(missing.is_empty(), "no golden journal has {missing:?}");
}

#[test]
fn they_name_no_machine() {
    for (name, dir) in journals() {
        for file in ["journal", "view.json"] {
            let text = std::fs::read_to_string(dir.join(file)).unwrap();
            assert!(!text.contains("phased-it-") && !text.contains("/tmp/"), "{name}/{file}");
        }
    }
}

/// The journal of the whole run, changed; what the daemon makes of it.
#[track_caller]
fn refused(change: impl FnOnce(&mut Vec<Value>)) -> String {
    let world = World::new();
    let mut records = records(&golden().join("succeeded"));
    let run = run_of(&records);
    // Unfinished, so that somebody would go on with it.
    records.truncate(records.len() - 2);
    change(&mut records);
    let path = place(&world, &run, b"");
    journal::write(&path, &records);
    let before = std::fs::read(&path).unwrap();
    let daemon = world.start();
    let trouble = daemon.status()["trouble"].to_string();
    assert!(trouble.contains(&run) && trouble.contains("not continued"), "{trouble}");
    assert!(std::fs::read(&path).unwrap() == before, "it was written to");
    daemon.kill();
    world.start().api.get("/readyz").is(200);
    assert!(std::fs::read(&path).unwrap() == before && world.untouched(), "it was written to");
    trouble
}

#[test]
fn a_journal_of_a_later_format_is_refused_and_left_as_it_is() {
    let told = refused(|records| {
        records[0]["format"] = 99.into();
        records[0]["version"] = "9.9.9".into();
    });
    assert!(told.contains("format 99") && told.contains("9.9.9"), "{told}");
}

#[test]
fn a_journal_with_an_event_of_a_later_build_is_refused_and_left_as_it_is() {
    let told = refused(|records| records[3]["event"] = "teleported".into());
    assert!(told.contains("teleported") && told.contains("record 4"), "{told}");
}

#[test]
fn a_journal_whose_events_cannot_follow_is_refused_and_left_as_it_is() {
    let told = refused(|records| records.swap(2, 4));
    assert!(told.contains("cannot follow"), "{told}");
}

mod made {
    //! Makes them: `cargo test --test it -- --ignored golden_journals_are_made`.

    use serde_json::json;

    use super::*;
    use crate::fixture::{Daemon, Machine, Project, Run};

    /// Writes a run's journal and view below `tests/golden`, without what is of this machine.
    fn keep(world: &World, run: &Run, name: &str) {
        keep_from(world, world.sshd.port, run, name);
    }

    /// The same where the hosts listen on another port.
    fn keep_from(world: &World, port: u16, run: &Run, name: &str) {
        let dir = golden().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let view = run.now();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let neutral = |value: Value| -> Value {
            let text = value.to_string().replace(world.root().to_str().unwrap(), "/srv/golden");
            let text = text.replace(boot.trim(), "00000000-0000-4000-8000-000000000000");
            let text = text.replace(&format!(":{port}"), ":22").replace(&format!("\"port\":{port}"), "\"port\":22");
            serde_json::from_str(&text).unwrap()
        };
        let records: Vec<Value> = world
            .journal(&run.id)
            .into_iter()
            .map(neutral)
            .map(|mut record| {
                record["controller"] = "golden:1".into();
                record
            })
            .collect();
        journal::write(&dir.join("journal"), &records);
        std::fs::write(dir.join("view.json"), format!("{:#}\n", neutral(view))).unwrap();
    }

    fn project() -> Project {
        Project::new("shop").hosts(&["h1", "h2"])
    }

    fn one(name: &str, state: &str, project: &Project, meanwhile: impl FnOnce(&World, Daemon, &Run) -> Daemon) {
        let (world, daemon) = World::with(project);
        world.secret("pw", "correct-horse-battery");
        world.repo.commit(&[("app.txt", "the app")], "an app");
        world.repo.push_as("main");
        let run = daemon.press_with(&json!({ "reason": "golden" }));
        let daemon = meanwhile(&world, daemon, &run);
        let run = daemon.run(&run.id);
        run.wait().is(state);
        daemon.idle();
        keep(&world, &run, name);
    }

    fn nothing(_: &World, daemon: Daemon, _: &Run) -> Daemon {
        daemon
    }

    fn restarted(world: &World, daemon: Daemon, run: &Run) -> Daemon {
        run.prints("waits");
        daemon.kill();
        let daemon = world.start();
        std::fs::write(world.path("tested/go"), "").unwrap();
        daemon
    }

    const WAITS: &str =
        r#"run:sh { 'echo waits; until [ -e "$T/go" ]; do sleep 0.05; done', env = { T = "@TESTED@" } }"#;

    #[test]
    #[ignore = "writes tests/golden, once for each format"]
    fn golden_journals_are_made() {
        let steps = r#"
          run:log "begins"
          local got = run:sh { "cat; exit 0", stdin = "in", env = { A = 1, B = "two" } }
          run:exec { "true", name = "nothing" }
          run:write { "@TESTED@/written", content = "x\255y" }
          run:sleep "10ms"
          run:now()
          run:wait { command = "true" }
          pcall(function() run:sh { "exit 3", retries = 1, backoff = "10ms" } end)
          run:parallel { b = function() run:sh "true" end, a = function() run:parallel { x = function() run:sh "true" end } end }"#;
        let deploy = r#"
          host:upload { "app.txt", to = "@ROOT@/" .. host.id .. "/app", mode = "0640" }
          host:undo("app", function() host:sh "true" end)
          host:sh { "true", env = { PW = phased.secret "key" } }"#;
        let whole = project()
            .stage("unit", &format!("{steps}\n{WAITS}"))
            .deploy_after(deploy)
            .rollout("max_parallel = 2")
            .health(r#"command = "true", min_healthy_time = "100ms", healthy_deadline = "1m", interval = "50ms""#)
            .verify(r#"deployment.hosts[1]:sh "true" return { ok = true }"#);
        one("succeeded", "succeeded", &whole, restarted);

        let keys = r#"setup = function(run) run:undo("all", function() run:sh "echo undone" end) run:sh "exit 3" end,
          run = function(run) end, cleanup = function(run) run:sh "echo cleaned" end"#;
        one("failed_and_undone", "failed", &project().stage_of("unit", keys), nothing);
        one(
            "timed_out",
            "failed",
            &project().stage_of("unit", r#"timeout = "1s", run = function(run) run:sh "sleep 60" end"#),
            nothing,
        );
        one("halted", "halted", &project().deploy(r#"host:sh "exit 4""#), nothing);
        let sick = r#"command = "echo sick; exit 1", min_healthy_time = "100ms", healthy_deadline = "200ms", interval = "50ms""#;
        one("unhealthy", "halted", &project().health(sick), nothing);
        one("not_verified", "halted", &project().verify(r#"run:fail "smoke""#), nothing);
        one("stopped", "stopped", &project().stage("unit", WAITS), |_, daemon, run| {
            run.prints("waits");
            daemon.api.post(&format!("/v1/runs/{}/stop", run.id), &json!({ "now": true, "reason": "enough" })).is(202);
            daemon
        });
        one("lost", "failed", &project().stage("unit", WAITS), |world, daemon, run| {
            run.prints("waits");
            daemon.kill();
            let ours = format!("{}", world.path("data/jobs").display());
            for pid in world.pids() {
                let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
                let held = files.into_iter().any(|f| std::fs::read_link(f.path()).is_ok_and(|f| f.starts_with(&ours)));
                if held {
                    let _gone =
                        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
            }
            world.start()
        });
        one(
            "diverged",
            "damaged",
            &project().stage("unit", &format!("run:sh 'true' {WAITS}")),
            |world, daemon, run| {
                run.prints("waits");
                daemon.kill();
                world.rewrite(&run.id, |records| {
                    let begin = records.iter_mut().find(|r| r["event"] == "begin").unwrap();
                    begin["args"]["command"] = "false".into();
                });
                world.start()
            },
        );
        one("no_checkout", "failed", &project().stage("unit", WAITS), |world, daemon, run| {
            run.prints("waits");
            daemon.kill();
            no_checkout(world, &run.id);
            world.start()
        });

        // Its repository is gone when its turn comes.
        let (world, daemon) = World::with(&project().stage("unit", WAITS));
        world.repo.push("first");
        daemon.press().prints("waits");
        let run = daemon.press_with(&json!({ "retest": true }));
        std::fs::rename(world.path("repo.git"), world.path("gone.git")).unwrap();
        std::fs::write(world.path("tested/go"), "").unwrap();
        run.wait().is("failed");
        daemon.idle();
        keep(&world, &run, "unresolved");

        // One waits for the environment, one is overtaken there, one in the queue.
        let waits = r#"host:sh { 'echo waits; until [ -e "$T/go" ]; do sleep 0.05; done', env = { T = "@TESTED@" } }"#;
        let (world, daemon) = World::with(&project().deploy_after(waits));
        world.repo.push("first");
        let first = daemon.press();
        first.prints("waits");
        world.repo.push("second");
        let second = daemon.press();
        second.until("it waits", |run| run["deployments"][0]["waiting"]["code"] == "lease");
        world.repo.push("third");
        let third = daemon.press();
        second.wait().is("superseded");
        third.until("it waits", |run| run["deployments"][0]["waiting"]["code"] == "lease");
        std::fs::write(world.path("tested/go"), "").unwrap();
        third.wait().is("succeeded");
        daemon.idle();
        keep(&world, &second, "overtaken");
        keep(&world, &third, "waited");
    }

    fn change(daemon: &Daemon, what: &str) {
        let reason = json!({ "reason": "golden" });
        daemon.api.post(&format!("/v1/projects/shop/environments/production/{what}"), &reason).is(200);
    }

    fn bakes(run: &Run, wave: usize) {
        run.until("the wave bakes", |run| run["deployments"][0]["waves"][wave]["baking_since"].is_string());
    }

    #[test]
    #[ignore = "writes tests/golden, once for what has come since"]
    fn golden_journals_of_rollouts_are_made() {
        // A unit that is looked at also while it bakes, with an alarm, and held for a while.
        let world = World::new();
        let key = std::fs::read_to_string(world.path("id.pub")).unwrap();
        let machine = Machine::boot(&world.path("machine"), &key);
        let unit = "[Service]\nExecStart=/bin/sleep infinity\n";
        let deploy = format!(
            "host:sh {{ 'cat >/etc/systemd/system/shop.service; systemctl daemon-reload; systemctl restart shop', stdin = {unit:?} }}"
        );
        let calm = r#"local calm = phased.probe { name = "calm", options = {}, measure = function() return 0 end }"#;
        // Something is measured once, and for half a minute before that nothing happens.
        let quiet = r#"{ "errors", cause = calm {}, alert = require "alerts.log" {}, failure = { above = 1 }, interval = "38s", action = "rollback" }"#;
        world.project(
            &Project::new("shop")
                .hosts(&[&machine.host_table()])
                .phases(r#"bake_time = "50s""#)
                .deploy(&deploy)
                .health(r#"service = "shop", min_healthy_time = "200ms", healthy_deadline = "10s", interval = "100ms""#)
                .head(calm)
                .alarms(quiet),
        );
        let daemon = world.start();
        world.repo.push("watched");
        let run = daemon.press_with(&json!({ "reason": "golden" }));
        bakes(&run, 0);
        change(&daemon, "pause");
        run.until("it is held", |run| run["deployments"][0]["state"] == "paused");
        change(&daemon, "resume");
        run.wait().is("succeeded");
        daemon.idle();
        keep_from(&world, machine.port(), &run, "baked");

        // The canary is promoted, and what is found ill after that goes back; who the hosts are is looked up again on the way.
        let world = World::new();
        let table = |id: &str| {
            let lua = world.host_table(id).replace("{ id = ", "{ \"id\": ").replace(", address = ", ", \"address\": ");
            lua.replace(", base = ", ", \"base\": ")
        };
        std::fs::write(world.path("hosts.json"), format!("[{}, {}]", table("h1"), table("h2"))).unwrap();
        let ill = r#"command = 'test ! -e "@ROOT@/ill-$PHASED_HOST_ID"', min_healthy_time = "100ms", healthy_deadline = "300ms", interval = "50ms""#;
        let found = format!("require \"discovery.file\" {{ {:?} }}", world.path("hosts.json"));
        world.project(&Project::new("shop").hosts(&[&found]).phases(r#"canary = 1, bake_time = "1h""#).health(ill));
        let daemon = world.start();
        world.repo.push("good");
        let first = daemon.press();
        for wave in 0..2 {
            bakes(&first, wave);
            change(&daemon, "promote");
        }
        first.wait().is("succeeded");
        daemon.idle();
        world.repo.push("ill on the second host");
        let run = daemon.press_with(&json!({ "reason": "golden" }));
        bakes(&run, 0);
        std::fs::write(world.path("hosts").join("ill-h2"), "").unwrap();
        change(&daemon, "promote");
        run.until("the way back", |run| run["deployments"][1]["state"].is_string());
        std::fs::remove_file(world.path("hosts").join("ill-h2")).unwrap();
        run.wait().is("rolled_back");
        daemon.idle();
        keep(&world, &run, "taken_back");
    }

    /// Takes the run back to before its checkout, and the git cache away.
    fn no_checkout(world: &World, run: &str) {
        world.rewrite(run, |records| {
            let at = records.iter().position(|r| r["event"] == "resolved").expect("the commit was found") + 1;
            records.truncate(at);
        });
        std::fs::remove_dir_all(world.path("data/work/shop")).unwrap();
    }
}
