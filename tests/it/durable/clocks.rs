//! The wall clock is set, by a day and by ten years, while the daemon is away and while it runs: spans are right, nobody is locked out.
//! No real clock is touched: the daemon runs with a library that adds to what it is told (`wall.c`).

use std::{path::PathBuf, process::Command};

use serde_json::json;

use crate::fixture::{Daemon, Project, Sink, World, eventually, journal::between, run, times};

const DAY: i64 = 86_400;

/// Of all sizes; normally only those that go furthest.
fn jumps() -> impl Iterator<Item = i64> {
    [3652 * DAY, -3652 * DAY, DAY, -DAY].into_iter().take(times(2, 4))
}

/// A wall clock of a world's own.
struct Wall {
    ahead: PathBuf,
    shim: PathBuf,
}

impl Wall {
    fn of(world: &World) -> Wall {
        let wall = Wall { ahead: world.path("wall"), shim: world.path("wall.so") };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/durable/wall.c");
        run(Command::new("cc").args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", source, "-o"]).arg(&wall.shim));
        wall.jumps(0);
        wall
    }

    /// From now on it is `secs` ahead of the machine's.
    fn jumps(&self, secs: i64) {
        let new = self.ahead.with_extension("new");
        std::fs::write(&new, secs.to_string()).unwrap();
        std::fs::rename(new, &self.ahead).unwrap();
    }

    fn start(&self, world: &World) -> Daemon {
        let preload =
            [("LD_PRELOAD", &self.shim), ("WALL", &self.ahead)].map(|(name, path)| (name, path.to_str().unwrap()));
        let daemon = world.start_with(&preload);
        // What cannot be loaded is left out, and nothing is said but a line in its log.
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
        assert!(maps.contains(self.shim.to_str().unwrap()), "{maps}");
        daemon
    }
}

/// A step that has 3 s, one that sleeps 2 s, and a last one that waits to be let go; each has its mark.
fn timed() -> Project {
    let stage = r#"
      local T = { T = "@TESTED@" }
      local late = run:sh { "sleep 600", timeout = "3s", check = false }
      run:sleep "2s"
      run:sh { 'echo marked >>"$T/trace"; echo waits; until [ -e "$T/go" ]; do sleep 0.05; done', env = T, timeout = "10m" }"#;
    Project::new("shop").hosts(&["h1", "h2"]).stage("unit", stage)
}

/// The spans of the first two steps, both taken from clocks that nobody sets.
#[track_caller]
fn spans_are_right(world: &World, run: &str, jump: i64) {
    let (begin, done) = (world.events(run, "begin"), world.events(run, "done"));
    let timed_out = &done[0]["outcome"];
    assert!(timed_out.to_string().contains(r#""code":"timeout""#), "{jump}: {timed_out}");
    let (limit, sleep) = (between(&begin[0], &done[0]), between(&begin[1], &done[1]));
    // Right within a second, and five where the machine is busy.
    assert!((3000..8000).contains(&limit), "{jump}: 3 s took {limit} ms");
    assert!((2000..7000).contains(&sleep), "{jump}: 2 s took {sleep} ms");
}

#[test]
fn set_while_the_daemon_runs_spans_stay_what_they_are() {
    for jump in jumps() {
        let world = World::new();
        world.project(&timed());
        let wall = Wall::of(&world);
        let daemon = wall.start(&world);
        let commit = world.repo.push("x");
        let run = daemon.press();
        eventually("the first step runs", || world.events(&run.id, "begin").pop());
        wall.jumps(jump);
        run.prints("waits");
        std::fs::write(world.path("tested/go"), "").unwrap();
        run.wait().is("succeeded");
        assert!(world.hosts_have(&["h1", "h2"], &commit));
        spans_are_right(&world, &run.id, jump);
        let at = |record: &serde_json::Value| record["at"][0].as_i64().unwrap();
        let journal = world.journal(&run.id);
        let set = journal.iter().any(|record| (at(record) - at(&journal[0]) - jump * 1000).abs() < 600_000);
        assert!(set, "the daemon's wall clock was not set by {jump} s");
    }
}

#[test]
fn set_while_the_daemon_was_away_spans_stay_what_they_are_and_nothing_ran_twice() {
    for jump in jumps() {
        let world = World::new();
        world.project(&timed());
        let wall = Wall::of(&world);
        let daemon = wall.start(&world);
        world.repo.push("x");
        let run = daemon.press();
        eventually("the first step runs", || world.events(&run.id, "begin").pop());
        daemon.kill();
        wall.jumps(jump);
        let daemon = wall.start(&world);
        daemon.run(&run.id).prints("waits");
        daemon.kill();
        wall.jumps(-jump);
        let daemon = wall.start(&world);
        std::fs::write(world.path("tested/go"), "").unwrap();
        daemon.run(&run.id).wait().is("succeeded");
        spans_are_right(&world, &run.id, jump);
        assert_eq!(std::fs::read_to_string(world.path("tested/trace")).unwrap(), "marked\n");
        let epochs: Vec<u64> = world.events(&run.id, "resumed").iter().map(|r| r["epoch"].as_u64().unwrap()).collect();
        assert!(epochs[0] < epochs[1], "a later owner has the higher number: {epochs:?}");
    }
}

#[test]
fn set_back_after_a_run_the_next_run_is_the_younger_one_all_the_same() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let wall = Wall::of(&world);
    for restart in [false, true] {
        wall.jumps(3652 * DAY);
        let mut daemon = wall.start(&world);
        world.repo.push(&format!("in ten years {restart}"));
        daemon.deploy().is("succeeded");
        daemon.idle();
        wall.jumps(-3652 * DAY);
        if restart {
            daemon.kill();
            daemon = wall.start(&world);
        }
        let commit = world.repo.push(&format!("ten years ago {restart}"));
        let run = daemon.press();
        run.wait().is("succeeded");
        assert!(world.hosts_have(&["h1"], &commit));
        assert_eq!(daemon.runs()[0]["id"], run.id, "the newest comes first");
        daemon.idle();
        daemon.kill();
    }
}

#[test]
fn set_back_between_two_tries_people_are_told_soon_all_the_same() {
    let sink = Sink::start();
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", r#"run:fail "no good""#).tells(&sink));
    let wall = Wall::of(&world);
    wall.jumps(3652 * DAY);
    let daemon = wall.start(&world);
    world.repo.push("bad");
    sink.refuse(1);
    let run = daemon.press();
    run.wait().is("failed");
    eventually("it was tried", || (!sink.asked().is_empty()).then_some(()));
    daemon.kill();
    wall.jumps(-3652 * DAY);
    let _daemon = wall.start(&world);
    assert_eq!(sink.message_of(&run.id)["event"], "failed");
}

#[test]
fn set_by_ten_years_the_same_key_is_done_once_and_another_is_done() {
    for jump in jumps() {
        let world = World::new();
        world.project(&Project::new("shop").hosts(&["h1"]).queue_all());
        let wall = Wall::of(&world);
        let daemon = wall.start(&world);
        world.repo.push("x");
        let press = |daemon: &Daemon, key: &str| {
            let api = daemon.api.with("idempotency-key", key);
            api.post("/v1/projects/shop/start", &json!({ "redeploy": true })).is(202).json()["id"].clone()
        };
        let first = press(&daemon, "one");
        assert_eq!(press(&daemon, "one"), first);
        daemon.nth_run(1).wait().is("succeeded");
        daemon.idle();
        wall.jumps(jump);
        let other = press(&daemon, "two");
        assert_ne!(other, first);
        // Whether the first key is still known depends on the clock; that its owner gets an answer does not.
        press(&daemon, "one");
        daemon.nth_run(2).wait().is("succeeded");
    }
}
