//! Polling: the branch's head is found at start, when it moves, and only then.

use crate::fixture::{Project, World, eventually};

#[test]
fn the_head_is_found_at_start() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let commit = world.repo.push("before the daemon");
    let daemon = world.start();
    let run = daemon.nth_run(1).wait().is("succeeded");
    assert_eq!(run.view["trigger"], "poll");
    assert!(world.hosts_have(&["h1"], &commit));
}

#[test]
fn a_head_that_moves_is_found_on_the_interval() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).source(r#"poll = "1s""#));
    world.repo.push("one");
    daemon.nth_run(1).wait().is("succeeded");
    let commit = world.repo.push("two");
    daemon.nth_run(2).wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    assert_eq!(daemon.runs().len(), 2);
}

#[test]
fn a_restart_does_not_repeat_a_run() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).source(r#"poll = "1s""#));
    world.repo.push("once");
    let daemon = world.start();
    daemon.nth_run(1).wait().is("succeeded");
    daemon.kill();
    let daemon = world.start();
    let commit = world.repo.push("the next");
    let next = daemon.nth_run(2).wait().is("succeeded");
    assert_eq!(next.view["release"]["revision"], commit.as_str());
    assert_eq!(daemon.runs().len(), 2);
}

#[test]
fn a_remote_that_is_away_is_shown_and_found_again() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).source(r#"poll = "1s""#));
    world.repo.push("one");
    daemon.nth_run(1).wait().is("succeeded");
    std::fs::rename(world.path("repo.git"), world.path("away.git")).unwrap();
    let trouble = || daemon.status()["projects"][0]["trouble"].clone();
    eventually("the trouble shows", || {
        trouble()["message"].as_str().is_some_and(|m| m.contains("repo.git")).then_some(())
    });
    std::fs::rename(world.path("away.git"), world.path("repo.git")).unwrap();
    let commit = world.repo.push("two");
    daemon.nth_run(2).wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit) && trouble().is_null());
}

#[test]
fn a_branch_whose_name_is_a_hash_is_polled() {
    let branch = "0123456789abcdef0123456789abcdef01234567";
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).branch(branch));
    let commit = world.repo.commit(&[("a", "b")], "on an odd branch");
    world.repo.push_as(branch);
    let daemon = world.start();
    daemon.nth_run(1).wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
}
