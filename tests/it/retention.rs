//! What has happened is kept as long as `[retention]` says, and not longer.

use std::collections::BTreeSet;

use serde_json::json;

use crate::fixture::{Daemon, Project, World, eventually};

/// Nothing is kept for its age.
fn keeping(runs: usize) -> String {
    format!("[retention]\nruns = {runs}\nage = \"0s\"\nfailed = \"0s\"\n")
}

/// Runs of `count` commits, oldest first.
fn history(world: &World, daemon: &Daemon, count: usize) -> Vec<String> {
    let deploy = |n: usize| {
        world.repo.push(&format!("commit {n}"));
        let run = daemon.deploy().is("succeeded");
        daemon.idle();
        run.id.clone()
    };
    (0..count).map(deploy).collect()
}

fn names(world: &World, dir: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(world.path(dir)) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_newest_runs_stay_and_of_the_others_nothing_is_left() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", r#"run:sh "echo testing""#));
    let daemon = world.start();
    let runs = history(&world, &daemon, 4);
    daemon.kill();
    // What a crash left between the rename and the rest of it is completed.
    std::fs::write(world.path("more.toml"), keeping(2)).unwrap();
    std::fs::create_dir(world.path("data/journal/trash")).unwrap();
    let [from, to] = ["runs", "trash"].map(|dir| world.path(&format!("data/journal/{dir}/{}", runs[0])));
    std::fs::rename(from, to).unwrap();
    let orphan = world.path("data/blobs").join("a".repeat(64));
    std::fs::write(&orphan, "nobody names it").unwrap();
    let daemon = world.start();
    eventually("two runs are left", || (names(&world, "data/journal/runs") == runs[2..]).then_some(()));
    eventually("the trash is empty", || names(&world, "data/journal/trash").is_empty().then_some(()));
    eventually("people see two runs", || (daemon.runs().len() == 2).then_some(()));
    eventually("the blob is gone", || (!orphan.exists()).then_some(()));
    for gone in &runs[..2] {
        let answer = daemon.api.get(&format!("/v1/runs/{gone}")).is(404);
        assert!(answer.text().contains("[retention]"), "{}", answer.text());
    }
    for kept in &runs[2..] {
        assert!(daemon.run(kept).log().contains("testing"));
    }
    // What is kept is kept by a start without an index, too.
    let seen = daemon.api.get("/v1/runs?project=shop").is(200).json();
    daemon.kill();
    std::fs::remove_dir_all(world.path("data/state")).unwrap();
    let daemon = world.start();
    assert_eq!(daemon.api.get("/v1/runs?project=shop").is(200).json(), seen);
    daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded");
}

#[test]
fn a_daemon_whose_runs_end_all_day_keeps_no_more_of_them() {
    let world = World::new();
    std::fs::write(world.path("more.toml"), keeping(1)).unwrap();
    let held = r#"run:sh { 'echo begun; until [ -e "$T/go" ]; do sleep 0.05; done', env = { T = "@TESTED@" } }"#;
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", held));
    let daemon = world.start();
    let press = |n: usize| {
        world.repo.push(&format!("commit {n}"));
        daemon.press()
    };
    let first = press(0);
    first.prints("begun");
    // As many as may wait. The newest takes the places of all others.
    let waiting: Vec<_> = (1..=100).map(press).collect();
    std::fs::write(world.path("tested/go"), "").unwrap();
    waiting[99].wait().is("succeeded");
    let there = || names(&world, "data/journal/runs");
    eventually("hardly more are there than are to be kept", || (there().len() <= 4).then_some(()));
    eventually("people see no more", || (daemon.runs().len() <= 4).then_some(()));
    assert!(there().contains(&waiting[99].id) && !there().contains(&waiting[0].id));
}

#[test]
fn what_fetches_have_left_in_the_mirror_is_put_together() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let daemon = world.start();
    history(&world, &daemon, 1);
    daemon.kill();
    let packs =
        || names(&world, "data/work/shop/mirror.git/objects/pack").iter().filter(|n| n.ends_with(".pack")).count();
    let fetches =
        "for n in $(seq 21); do echo $n | git hash-object -w --stdin | git pack-objects -q objects/pack/pack; done";
    let mut git = std::process::Command::new("sh");
    let made = git.args(["-euc", fetches]).current_dir(world.path("data/work/shop/mirror.git")).env("GIT_DIR", ".");
    assert!(made.stdout(std::process::Stdio::null()).status().unwrap().success() && packs() > 20);
    let daemon = world.start();
    eventually("there is one pack", || (packs() == 1).then_some(()));
    world.repo.push("goes on");
    daemon.deploy().is("succeeded");
}

#[test]
fn an_index_that_was_not_written_since_brings_no_removed_run_back() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let daemon = world.start();
    let runs = history(&world, &daemon, 3);
    daemon.terminate();
    let [state, kept] = ["data/state", "kept"].map(|name| world.path(name));
    assert!(std::process::Command::new("cp").arg("-a").args([&state, &kept]).status().unwrap().success());
    std::fs::write(world.path("more.toml"), keeping(1)).unwrap();
    let daemon = world.start();
    eventually("one run is left", || (names(&world, "data/journal/runs") == runs[2..]).then_some(()));
    daemon.kill();
    // As while it was in memory.
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(kept, &state).unwrap();
    let daemon = world.start();
    let seen: Vec<String> = daemon.runs().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(seen, runs[2..]);
    daemon.api.get(&format!("/v1/runs/{}", runs[0])).is(404);
}

#[test]
fn what_is_live_stays_though_newer_runs_have_failed() {
    let world = World::new();
    let fails = r#"run:sh "test ! -e bad""#;
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", fails));
    let daemon = world.start();
    let mut runs = history(&world, &daemon, 2);
    for n in 0..3 {
        world.repo.commit(&[("bad", &n.to_string())], "bad");
        world.repo.push_as("main");
        let run = daemon.press();
        run.wait().is("failed");
        daemon.idle();
        runs.push(run.id.clone());
    }
    daemon.kill();
    std::fs::write(world.path("more.toml"), keeping(1)).unwrap();
    let daemon = world.start();
    let wanted = [runs[1].clone(), runs[4].clone()];
    eventually("the live and the last run are left", || (names(&world, "data/journal/runs") == wanted).then_some(()));
    let status = daemon.api.get("/v1/projects/shop/status").is(200).json();
    assert_eq!(status["environments"][0]["run"], runs[1].as_str());
    // The code of both can still be opened: the live one's would be needed to go back to it.
    assert!(!names(&world, "data/code").is_empty());
}

#[test]
fn for_want_of_room_the_oldest_go_the_live_run_stays_and_code_goes_that_no_run_began_with() {
    let world = World::new();
    // Each run and which edition of the project's file it began with; the second one is live from then on.
    let runs: Vec<(String, String)> = [("bad", 1), ("good", 2), ("bad", 3), ("bad", 3), ("bad", 4)]
        .into_iter()
        .enumerate()
        .map(|(n, (content, edition))| {
            let stage = format!(r#"run:sh "echo {edition}; grep -q good content""#);
            world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", &stage));
            let daemon = world.start();
            world.repo.commit(&[("content", content), ("n", &n.to_string())], content);
            world.repo.push_as("main");
            let run = daemon.deploy().is(if content == "good" { "succeeded" } else { "failed" });
            daemon.idle();
            daemon.kill();
            // As if it had printed that much.
            std::fs::write(world.journal_of(&run.id).with_file_name("ballast"), vec![0xa5; 20 << 20]).unwrap();
            (run.id.clone(), world.journal(&run.id)[0]["code"].as_str().unwrap().to_owned())
        })
        .collect();
    let of = |chosen: &[usize]| -> (Vec<String>, BTreeSet<String>) { chosen.iter().map(|n| runs[*n].clone()).unzip() };
    let there = || -> (Vec<String>, BTreeSet<String>) {
        (names(&world, "data/journal/runs"), names(&world, "data/code").into_iter().collect())
    };
    assert_eq!(there(), of(&[0, 1, 2, 3, 4]));
    // 100 MiB are the runs', 16 the reserve's, a few the rest's: without two runs it is enough.
    std::fs::write(world.path("more.toml"), "[retention]\nquota = \"90MiB\"\n").unwrap();
    let daemon = world.start();
    eventually("the two oldest that may go are gone, and their code", || (there() == of(&[1, 3, 4])).then_some(()));
    assert_eq!(daemon.runs().len(), 3);
    let status = daemon.api.get("/v1/projects/shop/status").is(200).json();
    assert_eq!(status["environments"][0]["run"], runs[1].0.as_str());
}
