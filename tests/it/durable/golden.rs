//! Journals are formats: those in `tests/golden` were written by earlier builds, and every build reads them to the same views.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use phased::model::{
    analysis::Found,
    deployment::{DeploymentState, HostState},
    event::{BakeVerdict, CallResult, Event, Purpose, Wanted},
    run::{RunState, Trigger},
    step::{Outcome, Verb},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

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

/// What the API says of the run.
fn view(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("view.json")).unwrap()).unwrap()
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
        let view = view(&dir);
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

/// Every kind of `T` that there is, as what reads them names them when it meets another one.
fn kinds<T: DeserializeOwned + std::fmt::Debug>(another: Value) -> BTreeSet<String> {
    let refused = serde_json::from_value::<T>(another).expect_err("there is no such kind").to_string();
    let (_, known) = refused.split_once(", expected ").unwrap_or_else(|| panic!("{refused}"));
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Of which kind it is: a kind stands alone, or before what it has.
fn kind(value: &Value) -> Option<String> {
    let alone = value.as_str().map(str::to_owned);
    alone.or_else(|| value.as_object()?.keys().next().cloned())
}

/// Every one of `kinds` is held, but for those that are `nowhere`.
#[track_caller]
fn all_are_held(kinds: BTreeSet<String>, nowhere: &[&str], held: impl IntoIterator<Item = Value>) {
    let held: BTreeSet<String> = held.into_iter().filter_map(|value| kind(&value)).collect();
    let missing: BTreeSet<&str> = kinds.difference(&held).map(String::as_str).collect();
    let nowhere: BTreeSet<&str> = nowhere.iter().copied().collect();
    assert_eq!(missing, nowhere, "what no golden journal has, and what none can have");
}

#[test]
fn every_kind_of_event_that_this_build_writes_is_among_them() {
    let records: Vec<Value> = journals().iter().flat_map(|(_, dir)| records(dir)).collect();
    let events = kinds::<Event>(json!({ "event": "?" }));
    assert!(events.contains("started") && events.contains("end") && events.len() > 30, "{events:?}");
    // It needs a second controller.
    all_are_held(events, &["lease_lost"], records.iter().map(|record| record["event"].clone()));
}

#[test]
fn every_kind_of_what_events_say_is_among_them() {
    let another = || json!("?");
    let records: Vec<Value> = journals().iter().flat_map(|(_, dir)| records(dir)).collect();
    let said = |event: &str, at: &str| -> Vec<Value> {
        records.iter().filter(|record| record["event"] == event).filter_map(|r| r.pointer(at).cloned()).collect()
    };
    // The usual one is not written down.
    all_are_held(kinds::<Purpose>(another()), &["deploy"], said("started", "/request/purpose"));
    // Nothing presses the button like that yet.
    all_are_held(kinds::<Trigger>(another()), &["alarm", "schedule"], said("started", "/request/trigger"));
    all_are_held(kinds::<Wanted>(another()), &[], said("started", "/request/wanted"));
    let verb = |key: Value| key.as_str()?.rsplit('/').next()?.split('#').next().map(Value::from);
    // It is in the run's log only.
    all_are_held(kinds::<Verb>(another()), &["log"], said("begin", "/key").into_iter().filter_map(verb));
    all_are_held(kinds::<Outcome>(another()), &[], said("done", "/outcome"));
    all_are_held(kinds::<CallResult>(another()), &[], said("return", "/result"));
    all_are_held(kinds::<BakeVerdict>(another()), &[], said("bake_ended", "/verdict"));
    all_are_held(kinds::<Found>(another()), &[], said("measured", "/measurement/found"));
    // What is not over is no end.
    all_are_held(kinds::<RunState>(another()), &["queued", "testing", "deploying"], said("end", "/state"));
    all_are_held(
        kinds::<DeploymentState>(another()),
        &["planned", "preparing", "rolling", "baking", "paused"],
        said("deployment_ended", "/state"),
    );
    let list = |value: &Value, of: &str| value[of].as_array().cloned().unwrap_or_default();
    let deployments = journals().into_iter().flat_map(|(_, dir)| list(&view(&dir), "deployments"));
    let hosts = deployments.flat_map(|deployment| list(&deployment, "hosts")).map(|host| host["state"].clone());
    all_are_held(kinds::<HostState>(another()), &["pending", "running"], hosts);
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

    use super::*;
    use crate::{
        fixture::{Answer, Daemon, Machine, Project, Run, Sink, eventually, refused_port},
        rollouts::spoil,
        signals::fleet::{Fleet, Wants},
        webhook,
    };

    /// Writes a run's journal and view below `tests/golden`, without what is of this machine.
    fn keep(world: &World, run: &Run, name: &str) {
        keep_from(&[world], &[world.sshd.port], run, name);
    }

    /// The same for a run of the first of these worlds that knows of the others, and of these ports.
    fn keep_from(worlds: &[&World], ports: &[u16], run: &Run, name: &str) {
        let dir = golden().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let view = run.now();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let neutral = |value: Value| -> Value {
            let text = value.to_string().replace(boot.trim(), "00000000-0000-4000-8000-000000000000");
            let root = |text: String, world: &&World| text.replace(world.root().to_str().unwrap(), "/srv/golden");
            let port = |text: String, port: &u16| {
                text.replace(&format!(":{port}"), ":22").replace(&format!("\"port\":{port}"), "\"port\":22")
            };
            let text = ports.iter().fold(worlds.iter().fold(text, root), port);
            serde_json::from_str(&text).unwrap()
        };
        let records: Vec<Value> = worlds[0]
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

    fn asked(daemon: &Daemon, what: &str) -> Answer {
        let reason = json!({ "reason": "golden" });
        daemon.api.post(&format!("/v1/projects/shop/environments/production/{what}"), &reason)
    }

    /// A change of what is under way.
    fn change(daemon: &Daemon, what: &str) {
        asked(daemon, what).is(200);
    }

    /// One that is a run of its own.
    fn begun(daemon: &Daemon, what: &str) -> Run {
        daemon.run(asked(daemon, what).is(202).json()["id"].as_str().unwrap())
    }

    /// Waits for the end of a run, and keeps it.
    fn ends(world: &World, daemon: &Daemon, run: &Run, state: &str, name: &str) {
        run.wait().is(state);
        daemon.idle();
        keep(world, run, name);
    }

    /// A list of hosts that is looked up, and who is on it now.
    fn list(world: &World, hosts: &[&str]) -> String {
        let json = |id: &&str| {
            let lua = world.host_table(id).replace("{ id = ", "{ \"id\": ").replace(", address = ", ", \"address\": ");
            lua.replace(", base = ", ", \"base\": ")
        };
        let hosts: Vec<String> = hosts.iter().map(json).collect();
        std::fs::write(world.path("hosts.json"), format!("[{}]", hosts.join(", "))).unwrap();
        format!("require \"discovery.file\" {{ {:?} }}", world.path("hosts.json"))
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
        keep_from(&[&world], &[machine.port()], &run, "baked");

        // The canary is promoted, and what is found ill after that goes back; who the hosts are is looked up again on the way.
        let world = World::new();
        let found = list(&world, &["h1", "h2"]);
        let ill = r#"command = 'test ! -e "@ROOT@/ill-$PHASED_HOST_ID"', min_healthy_time = "100ms", healthy_deadline = "300ms", interval = "50ms""#;
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

    #[test]
    #[ignore = "writes tests/golden, once for what has come since"]
    fn golden_journals_of_artifacts_people_and_signals_are_made() {
        built();
        adopted();
        changed_by_people();
        while_the_fleet_changes();
        signalled();
    }

    /// Artifacts are made and uploaded, a host is not there, and nobody has pressed anything: the push was found.
    fn built() {
        let (sink, world, (_refuses, port)) = (Sink::start(), World::new(), refused_port());
        let build = r#"
          run:sh "mkdir out && echo built >out/app && echo single >single"
          run:artifact { "app", path = "out" }
          run:artifact { "single", path = "single" }
          run:artifact { "image", value = "sha256:0123" }
          run:sh { 'cat "$APP/app"', env = { APP = run:artifact_path "app" } }
          run:http "@URL@""#;
        let deploy = r#"
          local to = "@ROOT@/" .. host.id
          host:upload { release.artifacts.app, to = to .. "/app", unpack = true }
          host:upload { release.artifacts.single, to = to .. "/single" }
          host:download { to .. "/app/app", to = "fetched" }
          pcall(function() host:service("shop"):restart() end)"#;
        let away = world.host_table_with("h2", &format!(", port = {port}"));
        world.project(
            &project()
                .hosts(&["h1", &away])
                .stage("build", &build.replace("@URL@", &sink.url()))
                .rollout("max_unreachable = 1")
                .deploy(deploy),
        );
        world.repo.push("found");
        let daemon = world.start();
        let run = daemon.nth_run(1);
        run.wait().is("succeeded");
        daemon.idle();
        keep_from(&[&world], &[world.sshd.port, port, sink.port], &run, "built");
    }

    /// What every host served before there was phased becomes known-good.
    fn adopted() {
        let version = r#"command = "true", version = { command = 'cat "@ROOT@/$PHASED_HOST_ID/revision"' }"#;
        let (world, daemon) = World::with(&project().health(version));
        let commit = world.repo.push("by hand");
        for host in ["h1", "h2"] {
            world.serves(host, &commit);
        }
        ends(&world, &daemon, &begun(&daemon, "adopt"), "succeeded", "adopted");
    }

    /// A late host converges; one that fails is quarantined, what fails is promoted; a bake cannot be concluded; hosts go back, and one does
    /// not.
    fn changed_by_people() {
        let gauge = r#"
local gauge = phased.probe {
  name = "gauge",
  options = { file = { "text", required = true } },
  measure = function(options)
    local text = phased.read(options.file)
    if text == "ill" then error("the gauge is ill", 0) end
    return tonumber(text) or { message = "nothing was measured" }
  end,
}
"#;
        let alarm = |name: &str| {
            format!(
                r#"{{ "{name}", cause = gauge {{ file = "@ROOT@/{name}" }}, alert = require "alerts.log" {{}}, failure = {{ above = 1 }},
                   interval = "500ms", action = "rollback" }}"#
            )
        };
        let health = r#"
          command = 'r=$(cat "@ROOT@/$PHASED_HOST_ID/revision") && test ! -e "@ROOT@/bad-$r-$PHASED_HOST_ID"',
          min_healthy_time = "100ms", healthy_deadline = "2s", interval = "50ms""#;
        let phases = r#"canary = 0, max_parallel = 3, max_failures = 1, bake_time = "2s", on_failure = "pause", on_inconclusive = "promote""#;
        let shop = |hosts: &[&str]| {
            let shop = Project::new("shop").hosts(hosts).webhook().phases(phases).health(health).head(gauge);
            shop.alarms(&[alarm("errors"), alarm("latency")].join(", "))
        };
        let world = World::new();
        let gauges = |errors: &str, latency: &str| {
            std::fs::write(world.path("hosts/errors"), errors).unwrap();
            std::fs::write(world.path("hosts/latency"), latency).unwrap();
        };
        gauges("0", "0");
        std::fs::write(world.path("limits.toml"), "converge = \"500ms\"\n").unwrap();
        world.project(&shop(&["h1", "h2"]));
        let daemon = world.start();
        let first = world.repo.push("good");
        webhook::tell(&daemon, &first).wait().is("succeeded");
        daemon.idle();

        world.project(&shop(&["h1", "h2", "h3"]));
        daemon.api.post("/v1/reload", &json!({})).is(200);
        let late = eventually("a late host converges", || {
            let converges = |run: &Value| run["trigger"] == "converge" && run["state"] == "succeeded";
            daemon.runs().into_iter().find(converges)
        });
        ends(&world, &daemon, &daemon.run(late["id"].as_str().unwrap()), "succeeded", "converged");

        // What goes back is to be well there.
        let heal = |commit: &str, host: &str| {
            std::fs::remove_file(world.path("hosts").join(format!("bad-{commit}-{host}"))).unwrap();
        };
        let second = world.repo.push("ill on one host");
        spoil(&world, &second, "h2");
        ends(&world, &daemon, &webhook::tell(&daemon, &second), "succeeded", "quarantined");
        heal(&second, "h2");

        let third = world.repo.push("ill on two hosts");
        spoil(&world, &third, "h1");
        spoil(&world, &third, "h2");
        let run = daemon.press_with(&json!({ "ref": third, "reason": "golden" }));
        let failed = |run: &Value| run["deployments"][0]["paused"]["failed"] == true;
        run.until("it has failed and waits", failed);
        change(&daemon, "promote");
        ends(&world, &daemon, &run, "succeeded", "promoted");
        heal(&third, "h1");
        heal(&third, "h2");

        let fourth = world.repo.push("nobody can tell");
        gauges("none", "ill");
        ends(&world, &daemon, &webhook::tell(&daemon, &fourth), "succeeded", "inconclusive");
        gauges("0", "0");

        ends(&world, &daemon, &begun(&daemon, "rollback"), "succeeded", "taken_back_by_hand");

        let fifth = world.repo.push("no way back");
        spoil(&world, &fifth, "h1");
        spoil(&world, &fifth, "h2");
        let run = webhook::tell(&daemon, &fifth);
        run.until("it has failed and waits", failed);
        for before in [&first, &second, &third, &fourth] {
            spoil(&world, before, "h3");
        }
        change(&daemon, "rollback");
        ends(&world, &daemon, &run, "rollback_failed", "not_taken_back");
    }

    /// Between two waves a host goes and another comes, and the run is stopped while a host is being deployed to.
    fn while_the_fleet_changes() {
        let world = World::new();
        let found = list(&world, &["h1", "h2", "h3"]);
        let deploy = r#"host:sh { [[
            echo "$PHASED_HOST_ID waits"; until [ -e "$ROOT/go-$PHASED_HOST_ID" ]; do sleep 0.05; done
          ]], env = { ROOT = "@ROOT@" } }"#;
        let phases = r#"canary = 1, bake_time = "1h", max_shrink = "50%""#;
        world.project(&Project::new("shop").hosts(&[&found]).phases(phases).deploy_after(deploy));
        let daemon = world.start();
        world.repo.push("stopped");
        let go = |host: &str| std::fs::write(world.path("hosts").join(format!("go-{host}")), "").unwrap();
        go("h1");
        let run = daemon.press_with(&json!({ "reason": "golden" }));
        bakes(&run, 0);
        list(&world, &["h1", "h2", "h4"]);
        change(&daemon, "promote");
        run.prints("h2 waits");
        let stop = json!({ "now": true, "reason": "golden" });
        daemon.api.post(&format!("/v1/runs/{}/stop", run.id), &stop).is(202);
        go("h2");
        ends(&world, &daemon, &run, "stopped", "stopped_in_a_rollout");
    }

    /// A release with an artifact is sent to a receiver.
    fn signalled() {
        let wants = Wants {
            stages: r#"{ "build", run = function(run) run:sh "echo built >app" run:artifact { "app", path = "app" } end }"#,
            deploy: r#"host:upload { release.artifacts.app, to = "@DIR@/app" }"#,
            ..Wants::default()
        };
        let fleet = Fleet::new(1, &wants);
        fleet.sender.repo.push("sent");
        let sent = fleet.daemon().press_with(&json!({ "reason": "golden" }));
        sent.wait().is("succeeded");
        let receiver = &fleet.receivers[0];
        let received = receiver.daemon().nth_run(1);
        received.wait().is("succeeded");
        fleet.daemon().idle();
        receiver.daemon().idle();
        let ports = [receiver.port, fleet.sender.sshd.port, receiver.world.sshd.port];
        keep_from(&[&fleet.sender, &receiver.world], &ports, &sent, "sent");
        keep_from(&[&receiver.world, &fleet.sender], &ports, &received, "received");
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
