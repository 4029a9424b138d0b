//! The daemon killed in every phase of a rollout and of its way back: the same end, nothing twice.

use super::{PHASES, all_have, good, project, spoil};
use crate::fixture::{Dice, Sink, times};

/// Killed at random again and again: the bad commit goes back everywhere, people hear of it once, and no deploy was done twice.
#[test]
fn killed_anywhere_the_way_back_is_gone_to_its_end() {
    let mut dice = Dice::new("way_back");
    let sink = Sink::start();
    let (world, mut daemon, good) = good(&project(4, PHASES).tells(&sink), 4);
    for n in 0..times(3, 60) {
        let bad = world.repo.push("bad from the second wave on");
        spoil(&world, &bad, &format!("h{}", 1 + n % 3));
        let run = daemon.press_with(&serde_json::json!({ "retry_bad": true }));
        (daemon, _) = world.kills(daemon, &run, 6, &mut dice);
        let ended = daemon.run(&run.id).wait().is("rolled_back");
        all_have(&world, 4, &good);
        for host in super::hosts(4) {
            let begun =
                world.touched(&host).iter().filter(|(what, _, _, commit)| what == "begin" && *commit == bad).count();
            assert!(begun <= 1, "{host} was given the bad commit {begun} times: {}", ended.view);
        }
        sink.message_of(&run.id);
        assert_eq!(sink.count_of(&run.id), 1);
        daemon.idle();
    }
}

/// The same of a good commit: canary, waves, bakes, verification once.
#[test]
fn killed_anywhere_a_rollout_is_gone_to_its_end() {
    let mut dice = Dice::new("rollout");
    let (world, mut daemon, _) = good(&project(4, PHASES), 4);
    for _ in 0..times(2, 60) {
        let commit = world.repo.push("good");
        let run = daemon.press();
        (daemon, _) = world.kills(daemon, &run, 6, &mut dice);
        daemon.run(&run.id).wait().is("succeeded");
        all_have(&world, 4, &commit);
        for host in super::hosts(4) {
            let begun = world.touched(&host).iter().filter(|(what, _, _, c)| what == "begin" && *c == commit).count();
            assert_eq!(begun, 1, "{host}");
        }
        daemon.idle();
    }
}
