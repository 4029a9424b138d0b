//! Pings come after a round trip through the engine, and stop when a part of it stands still.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Manager, Served, go, waiting};
use crate::{
    disk::SmallDisk,
    fixture::{Daemon, Project, World, eventually},
};

const LIMIT: Duration = Duration::from_secs(4);

fn watched(world: &World, manager: &Manager, stall: Option<&str>) -> Served {
    let mut command = Daemon::command(&Daemon::configure(world));
    command.env("WATCHDOG_USEC", LIMIT.as_micros().to_string());
    command.envs(stall.map(|stall| ("PHASED_STALL", stall)));
    Served::start(world, manager, command)
}

/// Pings that came after `since`.
fn pings(manager: &Manager, since: Instant) -> usize {
    manager.times("WATCHDOG=1").iter().filter(|at| **at > since).count()
}

#[test]
fn a_part_that_stands_still_stops_the_pings() {
    let parts = [
        ("journal", "the writer of the journals"),
        ("control", "the writer of the control log"),
        ("queue", "the queue"),
        ("owner", "the owner of run"),
        ("lua", "the Lua of run"),
        ("views", "the views"),
    ];
    for (place, named) in parts {
        let world = World::new();
        world.project(&waiting());
        world.repo.push("first");
        let manager = Manager::listen(&world, "notify");
        let file = world.path("stall");
        let served = watched(&world, &manager, Some(&format!("{place}:{}", file.display())));
        let run = served.press();
        manager.status_is("what runs", |status| status == "shop testing");
        let begun = Instant::now();
        eventually("there are pings", || (pings(&manager, begun) >= 2).then_some(()));

        std::fs::write(&file, "").unwrap();
        // Said after half of the limit in which nobody answered.
        eventually(&format!("{place} is missed"), || {
            served.said().lines().any(|l| l.contains("has not answered for half") && l.contains(named)).then_some(())
        });
        // The last one may have been read here later than it was sent.
        let last = *manager.times("WATCHDOG=1").last().unwrap();
        eventually("half of the limit has passed since", || (last.elapsed() >= LIMIT / 2).then_some(()));
        assert_eq!(manager.times("WATCHDOG=1").last(), Some(&last), "{place}: a ping came after all");

        // Nothing was broken by it: it goes on where it stood.
        std::fs::remove_file(&file).unwrap();
        let again = Instant::now();
        eventually("there are pings again", || (pings(&manager, again) >= 1).then_some(()));
        go(&world);
        assert_eq!(served.wait(&run)["state"], "succeeded", "{place}");
    }
}

#[test]
fn a_full_disk_is_no_standstill() {
    let world = World::new();
    let disk = SmallDisk::of(&world);
    // On a host, which has a disk of its own.
    let wait = r#"host:sh { 'until [ -e "$T/go" ]; do sleep 0.05; done', env = { T = "@TESTED@" } }"#;
    world.project(&Project::new("shop").hosts(&["h1"]).deploy_after(wait));
    world.repo.push("first");
    let manager = Manager::listen(&world, "notify");
    let served = watched(&world, &manager, None);
    let run = served.press();
    manager.status_is("what runs", |status| status == "shop deploying");
    disk.fill();
    eventually("the disk is found full", || {
        let _refused_or_taken = served.api.post("/v1/tokens", &json!({ "name": "t", "scopes": ["read"] }));
        // The reserve too, which a write that finds no room lets go of.
        disk.fill();
        served.said().contains("the disk is full").then_some(())
    });
    // The end of the step cannot be written: the journals' writer waits for room.
    go(&world);
    let since = Instant::now();
    eventually("there are pings", || (pings(&manager, since) >= 5).then_some(()));
    assert!(!served.said().contains("has not answered"), "{}", served.said());
    disk.empty();
    assert_eq!(served.wait(&run)["state"], "succeeded");
}

#[test]
fn pings_go_on_under_load() {
    let world = World::new();
    let hosts: Vec<String> = (1..=12).map(|n| format!("h{n}")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let busy = r#"for i = 1, 40 do run:sh { "seq 1 2000; echo " .. i } end
        local n = 0; for i = 1, 3000000 do n = n + i end"#;
    world.project(&Project::new("shop").hosts(&hosts).rollout("max_parallel = 12").stage("unit", busy));
    world.repo.push("first");
    let manager = Manager::listen(&world, "notify");
    let served = watched(&world, &manager, None);
    let began = Instant::now();
    let run = served.press();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while served.api.get(&format!("/v1/runs/{run}")).json()["finished_at"].is_null() {
                    served.api.get("/v1/status").is(200);
                }
            });
        }
    });
    assert_eq!(served.wait(&run)["state"], "succeeded");
    let mut times = manager.times("WATCHDOG=1");
    times.retain(|at| *at > began);
    times.insert(0, began);
    times.push(Instant::now());
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest < LIMIT, "there was no ping for {longest:?}");
}
