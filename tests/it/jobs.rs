//! Local commands of a daemon without any right: each channel is started by the job unit, as the project's user, and outlives the daemon.

use std::{
    io::{Read as _, Write as _},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    fixture::{Daemon, Group, Jobs, Project, World, eventually},
    trust,
};

/// What a stage does that needs its directory, artifacts, reports and files of other steps.
const BUILD: &str = r#"run:sh [[id -u; id -g; grep -e ^Groups -e ^CapEff -e ^CapPrm /proc/self/status; ls -ld . | cut -c1-10; stat -c 'modes %a' message.txt .git
      mkdir -p out/closed reports; echo built >out/app; echo '<testsuite><testcase name="a"/></testsuite>' >reports/a.xml
      mkdir -p left/behind && chmod 000 left/behind left]]
    run:sh { "true", reports = "reports/*.xml" }
    run:artifact { "app", path = "out" }
    run:sh "cat out/app; touch .git/mine; git status --short | head -1; chmod 000 .""#;

const DEPLOY: &str = r#"host:upload { release.artifacts.app, to = "@ROOT@/" .. host.id .. "/app", unpack = true }"#;

fn files_below(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_daemon_without_rights_builds_as_the_projects_user_and_leaves_nothing() {
    let world = World::unprivileged();
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", BUILD).deploy(DEPLOY).webhook());
    let jobs = Jobs::start(&world);
    let daemon = world.start();
    world.repo.push("first");
    let run = daemon.deploy().is("succeeded");
    let log = run.log_of("?step=test/unit");
    let lines: Vec<&str> = log.lines().filter_map(|line| line.split_once("] ").map(|(_, text)| text)).collect();
    let uid = world.uids.0.to_string();
    for wanted in [
        uid.as_str(),
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "drwx------",
        "modes 644",
        "modes 755",
        "built",
    ] {
        assert!(log.contains(wanted), "{wanted} is not in {log} {lines:?}");
    }
    assert!(log.contains("Groups:\t \n") || log.contains("Groups:\t\n") || log.contains("Groups: \n"), "{log}");
    assert_eq!(std::fs::read_to_string(world.host("h1").join("app/app")).unwrap(), "built\n");
    let said = jobs.said();
    assert!(!said.contains("refused:") && !said.contains("not now:"), "{said}");
    assert!(said.contains(&format!("phased job: shop as uid {uid}: sh\n")), "each unit says whose it is: {said}");
    // What its commands left is as good as gone with the run: their claims, which are empty.
    let kept: Vec<PathBuf> = files_below(&world.path("data/jobs/shop"));
    let claims = kept.iter().filter(|path| path.extension().is_some_and(|end| end == "lock"));
    assert!(claims.clone().count() > 1, "{kept:?}");
    for path in claims {
        assert_eq!(std::fs::metadata(path).unwrap().len(), 0, "{path:?} of {kept:?}");
        for end in ["go", "out", "err"] {
            assert!(!path.with_extension(end).exists(), "{path:?} of {kept:?}");
        }
    }
    // Also what nobody else could look into.
    eventually("its checkout is gone", || {
        (files_below(&world.path("data/work/shop")) == [world.path("data/work/shop/mirror.git")]).then_some(())
    });
    assert!(!daemon.said().contains("is left behind"), "{}", daemon.said());
    // Its job directory is its own, and so it stays over a restart.
    daemon.kill();
    // What an earlier life could not take away is tried again.
    let (left, run_dir) = (world.path("data/work/shop"), run.id.as_str());
    let left = left.join(run_dir);
    std::fs::create_dir_all(left.join("sub")).unwrap();
    for (path, mode) in [(left.join("sub"), 0o000), (left.clone(), 0o000)] {
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&path, Some(world.uids.0), Some(world.uids.0)).unwrap();
    }
    let daemon = world.start();
    eventually("the old checkout is gone", || (!left.exists()).then_some(()));
    world.repo.push("second");
    daemon.press_with(&json!({ "retest": true })).wait().is("succeeded");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(world.path("data/jobs/shop")).unwrap());
    assert_eq!(owner, world.uids.0);
}

#[test]
fn code_under_test_reads_nothing_and_uses_neither_socket() {
    let world = World::unprivileged();
    let _jobs = Jobs::start(&world);
    let ask = r#"
        python3 - "$ROOT/job.sock" "$ROOT/run/phased.sock" <<'P'
import socket, sys
for path in sys.argv[1:]:
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(path)
        print("CONNECTED", path)
    except OSError as e:
        print("closed", e)
P
        echo looked"#;
    let script = format!("{}\n{}\n{ask}", trust::FILES, trust::PROCESS);
    let (_world, log) = trust::within_a(world, &script);
    for word in trust::HARM.into_iter().chain(["WRITABLE", "CONNECTED"]) {
        assert!(!log.contains(word), "{log}");
    }
    assert_eq!(log.matches("closed [Errno 13]").count(), 2, "{log}");
}

/// Waits in its stage until it is let go, and notes how often it ran.
const WAITS: &str = r#"run:sh { [[echo first; echo x >>"$TESTED/ran"; until [ -e "$TESTED/go" ]; do sleep 0.05; done; echo "last $(id -u)"]],
      env = { TESTED = "@ROOT@/../tested" } }"#;

fn waiting(world: &World) -> (Daemon, crate::fixture::Run) {
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", WAITS));
    let daemon = world.start();
    world.repo.push("waits");
    let run = daemon.press();
    run.prints("first");
    (daemon, run)
}

#[test]
fn a_command_outlives_the_daemon_and_is_attached_to() {
    for over_before_it_is_back in [false, true] {
        let world = World::unprivileged();
        let _jobs = Jobs::start(&world);
        let (daemon, run) = waiting(&world);
        daemon.kill();
        let go = || std::fs::write(world.path("tested/go"), "").unwrap();
        if over_before_it_is_back {
            go();
            let jobs = world.path("data/jobs/shop");
            eventually("the command is over", || {
                let ended = |path: &PathBuf| std::fs::read_to_string(path).is_ok_and(|text| text.starts_with("end "));
                files_below(&jobs).iter().any(ended).then_some(())
            });
        }
        let daemon = world.start();
        let run = daemon.run(&run.id);
        go();
        let run = run.wait().is("succeeded");
        assert_eq!(std::fs::read_to_string(world.path("tested/ran")).unwrap(), "x\n", "once");
        let log = run.log_of("?step=test/unit");
        let last = format!("last {}", world.uids.0);
        assert!(log.matches("first").count() == 1 && log.matches(&last).count() == 1, "{log}");
    }
}

#[test]
fn a_stop_reaches_a_command_of_an_earlier_life() {
    let world = World::unprivileged();
    let _jobs = Jobs::start(&world);
    let (daemon, run) = waiting(&world);
    daemon.kill();
    let daemon = world.start();
    daemon.api.post(&format!("/v1/runs/{}/stop", run.id), &json!({})).is(202);
    daemon.run(&run.id).wait().is("stopped");
    let sleeping = |pid: &i32| {
        let text = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&text).contains("TESTED=")
    };
    eventually("its processes are gone", || world.pids().iter().all(|pid| !sleeping(pid)).then_some(()));
}

/// What the job unit answers `asker` on `line`; everybody may connect here.
fn answer(jobs: &Jobs, asker: u32, line: &str) -> String {
    std::fs::set_permissions(&jobs.socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let ask = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.sendall(sys.argv[2].encode() + b'\\n')\n\
               print(s.recv(65536).decode())";
    let output = Command::new("python3").args(["-c", ask]).arg(&jobs.socket).arg(line).uid(asker).gid(asker).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn only_the_daemon_may_ask_and_only_for_job_users() {
    let world = World::unprivileged();
    let jobs = Jobs::start(&world);
    Daemon::configure(&world);
    let (daemon, first, last) = (world.daemon.unwrap(), world.uids.0, world.uids.1);
    let give = |uid: u32, gid: u32| {
        json!({ "v": 1, "give": { "to": { "project": "shop", "uid": uid, "gid": gid } } }).to_string()
    };
    assert_eq!(answer(&jobs, daemon, &give(first, first)).trim(), r#""ready""#);
    assert_eq!(answer(&jobs, 0, &give(last, last)).trim(), r#""ready""#, "root may");
    for (asker, uid, gid, why) in [
        (first, first, first, "asked, and only the daemon"),
        (daemon + 1, first, first, "asked, and only the daemon"),
        (65_534, first, first, "asked, and only the daemon"),
        (daemon, 0, 0, "no job user's"),
        (daemon, first, 0, "no job user's"),
        (daemon, daemon, daemon, "never as root or the daemon itself"),
        (daemon, first - 1, first - 1, "allows uids"),
        (daemon, last + 1, last + 1, "allows uids"),
        (daemon, 1, 1, "allows uids"),
        (daemon, first, last, "allows uids"),
        (0, 1, 1, "allows uids"),
    ] {
        let said = answer(&jobs, asker, &give(uid, gid));
        let refused: Value = serde_json::from_str(said.trim()).unwrap();
        assert!(refused["refused"].as_str().is_some_and(|text| text.contains(why)), "{asker} {uid}:{gid}: {said}");
    }
    // A program needs pipes; who comes without them, or with other things, gets nothing started.
    let marker = world.path("tested/started");
    let run = json!({ "v": 1, "run": {
        "as": { "project": "shop", "uid": first, "gid": first },
        "argv": ["touch", marker], "env": [["PATH", "/usr/bin:/bin"]], "cwd": "/",
    } });
    assert!(answer(&jobs, daemon, &run.to_string()).contains("0 file descriptors, not three"));
    for line in ["", "[[[[", "{\"v\":1,\"run\":{}}", "\u{1}\u{ff}"] {
        assert!(answer(&jobs, daemon, line).contains("no request"), "{line:?}");
    }
    // Of a daemon of another version: it is to ask again.
    for line in ["{}", "{\"v\":2,\"walk\":{}}"] {
        let said: Value = serde_json::from_str(answer(&jobs, daemon, line).trim()).unwrap();
        assert!(said["later"].as_str().is_some_and(|text| text.contains("different versions")), "{line}: {said}");
    }
    assert!(!marker.exists());
    // Whoever may write the configuration could name other users.
    std::os::unix::fs::chown(world.path("phased.toml"), Some(daemon), None).unwrap();
    assert!(answer(&jobs, daemon, &give(first, first)).contains("can be written by others than root"));
    assert!(jobs.said().contains("refused: "), "the unit's log says it too");
}

#[test]
fn half_a_request_starts_nothing() {
    let world = World::unprivileged();
    let jobs = Jobs::start(&world);
    Daemon::configure(&world);
    let mut connection = UnixStream::connect(&jobs.socket).unwrap();
    connection.write_all(b"{\"run\":").unwrap();
    connection.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    connection.read_to_string(&mut said).unwrap();
    assert!(said.contains("the request was cut"), "{said}");
}

#[test]
fn steps_wait_for_a_place_where_there_are_as_many_jobs_as_there_may_be() {
    let world = World::unprivileged();
    let many = r#"run:parallel { a = function() run:sh "sleep 0.4; echo a" end, b = function() run:sh "sleep 0.4; echo b" end,
                  c = function() run:sh "sleep 0.4; echo c" end }"#;
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", many));
    let jobs = Jobs::start_with(&world, 2, &[]);
    let daemon = world.start();
    world.repo.push("many");
    daemon.deploy().is("succeeded");
    assert!(jobs.turned_away() > 0, "there was a place for all of them");
}

#[test]
fn a_socket_that_comes_late_is_waited_for_and_a_refusal_is_not() {
    let world = World::unprivileged();
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", r#"run:sh "echo here""#));
    let daemon = world.start();
    world.repo.push("late");
    let run = daemon.press();
    eventually("the socket was asked in vain", || daemon.said().contains("the job unit is asked again").then_some(()));
    let jobs = Jobs::start(&world);
    run.wait().is("succeeded");
    // The unit reads the configuration anew for each connection.
    let config = world.path("phased.toml");
    let (first, last) = world.uids;
    let (old, new) = (format!("uids = \"{first}-{last}\""), format!("uids = \"{last}-{last}\""));
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&old, &new)).unwrap();
    let run = daemon.press_with(&json!({ "retest": true })).wait().is("failed");
    let cause = run.view["cause"]["message"].as_str().unwrap();
    assert!(cause.contains("the job unit refused") && cause.contains("journalctl -u 'phased-job@*'"), "{cause}");
    assert!(jobs.said().contains("allows uids"), "{}", jobs.said());
}

/// The cause of a stage that runs `script` within a limit, which has a file for each version of control groups.
fn within_limit(controller: &str, files: [&str; 2], limit: &str, script: &str) -> Value {
    let group = Group::new(controller);
    std::fs::write(group.file(files), limit).unwrap();
    let world = World::unprivileged();
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", &format!("run:sh [==[{script}]==]")));
    let _jobs = Jobs::start_with(&world, 256, &[group.path()]);
    let daemon = world.start();
    world.repo.push("too much");
    let run = daemon.deploy().is("failed");
    run.view["cause"].clone()
}

const MEMORY: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];

#[test]
fn a_command_that_is_killed_for_want_of_memory_says_so() {
    let script = "echo begins; python3 -c 'x = bytearray(1 << 30)'";
    let cause = within_limit("memory", MEMORY, "134217728", script);
    assert_eq!((&cause["code"], &cause["exit_code"]), (&json!("out_of_memory"), &json!(137)), "{cause}");
    let message = cause["message"].as_str().unwrap();
    assert!(message.contains("killed 1 processes of its unit") && message.contains("128 MiB"), "{message}");
}

#[test]
fn a_command_that_may_not_have_more_processes_says_so() {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do sleep 60 & done; wait";
    let cause = within_limit("pids", ["pids.max"; 2], "24", script);
    assert!(cause["code"] == "exit" && cause["too_many_tasks"].as_u64() > Some(0), "{cause}");
    assert!(cause["message"].as_str().unwrap().contains("it may have 24"), "{cause}");
}

#[test]
fn a_failure_within_the_limits_is_just_that() {
    let cause = within_limit("memory", MEMORY, "134217728", "kill -KILL $$");
    assert_eq!((&cause["code"], &cause["exit_code"]), (&json!("exit"), &json!(137)), "{cause}");
}
