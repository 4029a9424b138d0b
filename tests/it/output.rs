//! A step may print whatever it likes.

use crate::fixture::{Daemon, Project, World, eventually};

/// Prints `mib` MiB of lines of 64 bytes between a first and a last line.
fn torrent(mib: usize) -> String {
    format!(
        r#"local r = host:sh {{ [[
          echo the first line
          yes 0123456789012345678901234567890123456789012345678901234567890ab | head -c {}
          echo; echo the last line; echo an error >&2 ]], timeout = "5m" }}
        assert(r.truncated and #r.stdout <= 1048576, "Lua gets the last MiB")
        assert(r.stdout:find("the last line", 1, true) and r.stderr == "an error\n")"#,
        mib * 1024 * 1024
    )
}

/// The most memory the daemon ever had, KiB.
fn peak(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn size_of(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => size_of(&e.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}

fn a_torrent_is_bounded(mib: usize) {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).deploy(&torrent(mib)));
    world.repo.push("chatty");
    let run = daemon.deploy().is("succeeded");
    let log = run.log();
    assert!(log.contains("the first line") && log.contains("the last line") && log.contains("an error"));
    assert!(log.len() < 12 << 20, "{}", log.len());
    let stored = size_of(&world.path("data/journal/runs"));
    assert!(stored < 16 << 20, "{stored} bytes are stored");
    assert!(peak(&daemon) < 160 << 10, "{} KiB", peak(&daemon));
    eventually("the gap shows", || {
        (log.contains("not kept") || log.contains("…") || log.contains("gap")).then_some(())
    });
}

#[test]
fn a_step_that_prints_300_mb_succeeds_and_is_stored_bounded() {
    a_torrent_is_bounded(300);
}

#[test]
#[ignore = "takes a minute"]
fn a_step_that_prints_1_gb_succeeds_and_is_stored_bounded() {
    a_torrent_is_bounded(1024);
}

#[test]
fn standard_output_and_error_are_kept_apart() {
    let test = r#"local r = run:sh "echo out; echo err >&2; printf 'no newline'"
      assert(r.stdout == "out\nno newline" and r.stderr == "err\n" and r.code == 0 and not r.truncated)
      assert(type(r.duration_ms) == "number")"#;
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", test));
    world.repo.push("x");
    let run = daemon.deploy().is("succeeded");
    let lines = run.api.with("accept", "application/x-ndjson").get(&format!("/v1/runs/{}/log", run.id)).text();
    let lines: Vec<serde_json::Value> = lines.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let of = |text: &str| lines.iter().find(|l| l["text"] == text).map(|l| l["stream"].as_str().unwrap().to_owned());
    assert_eq!((of("out"), of("err")), (Some("out".to_owned()), Some("err".to_owned())), "{lines:?}");
}

#[test]
fn bytes_that_are_no_text_reach_lua_as_they_are() {
    let test = r#"local r = run:sh [[printf '\000\377\200x']]
      assert(r.stdout == "\0\xff\x80x", #r.stdout)"#;
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", test));
    world.repo.push("x");
    daemon.deploy().is("succeeded");
}

#[test]
fn a_daemon_left_behind_by_a_step_delays_nothing() {
    let test = r#"run:sh "setsid -f sleep 299 >/dev/null 2>&1 </dev/null; sleep 298 & echo left""#;
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", test));
    world.repo.push("x");
    let began = std::time::Instant::now();
    daemon.deploy().is("succeeded");
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[test]
fn the_log_can_be_followed_while_it_grows() {
    let test = r#"run:sh "echo first; until [ -e go ]; do sleep 0.05; done; echo second""#;
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", test));
    world.repo.push("x");
    let run = daemon.press();
    run.prints("first");
    let follower = {
        let run = run.clone();
        std::thread::spawn(move || run.log_of("?follow"))
    };
    let dir = world.path(&format!("data/work/shop/{}", run.id));
    std::fs::write(dir.join("go"), "").unwrap();
    run.wait().is("succeeded");
    let followed = follower.join().unwrap();
    assert!(followed.contains("first") && followed.contains("second"), "{followed}");
}
