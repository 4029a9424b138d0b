//! What has happened is kept as long as `[retention]` says, and not longer.

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
