//! A forge that sends everything a hundred times, at once.

use std::{collections::BTreeMap, sync::Mutex};

use super::*;
use crate::fixture::{Dice, eventually, measured, times};

/// Tests wait until the world says go, so that runs pile up.
const GATED: &str = r#"run:sh { 'until [ -e "$GO" ]; do sleep 0.05; done', env = { GO = "@TESTED@/go" } }"#;

#[test]
fn a_burst_is_one_run_for_each_push_and_a_full_queue_says_when_to_come_again() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", GATED).queue_all().webhook());
    std::fs::write(world.path("limits.toml"), "max_queued = 5\n").unwrap();
    let daemon = world.start();
    let commits: Vec<String> = (0..times(12, 60)).map(|n| world.repo.push(&format!("push {n}"))).collect();

    // Each push a hundred times: by its own id, by new ones, at any moment.
    let mut dice = Dice::new("storm");
    let mut deliveries: Vec<(usize, usize)> =
        (0..commits.len()).flat_map(|push| (0..100).map(move |n| (push, n))).collect();
    for i in (1..deliveries.len()).rev() {
        deliveries.swap(i, usize::try_from(dice.below(i as u64 + 1)).unwrap());
    }
    let deliver = |push: usize, n: usize| {
        let id = if n.is_multiple_of(2) { format!("push-{push}") } else { format!("push-{push}-{n}") };
        Hook::push(MAIN, &commits[push]).id(&id).send(&daemon)
    };
    // What each push was answered: accepted as which run, how often.
    let accepted: Mutex<BTreeMap<usize, Vec<String>>> = Mutex::default();
    let refused = Mutex::new(0usize);
    let took = Mutex::new(Vec::new());
    let next = Mutex::new(deliveries.into_iter());
    let take = || next.lock().unwrap().next();
    let one = |push: usize, answer: &Answer| match answer.status {
        202 => {
            let run = answer.json()["run"].as_str().unwrap().to_owned();
            accepted.lock().unwrap().entry(push).or_default().push(run);
        }
        200 => assert_eq!(answer.json()["code"], "duplicate", "{}", answer.text()),
        _ => {
            assert_eq!(answer.problem(), (503, "queue_full".to_owned()));
            assert!(answer.header("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok_and(|wait| wait > 0)));
            *refused.lock().unwrap() += 1;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while let Some((push, n)) = take() {
                    let sent = std::time::Instant::now();
                    let answer = deliver(push, n);
                    if answer.status == 202 {
                        took.lock().unwrap().push(sent.elapsed());
                    }
                    one(push, &answer);
                }
            });
        }
    });
    // Few are accepted while the queue is full: the slowest counts.
    let slowest = took.into_inner().unwrap().into_iter().max().unwrap_or_default();
    measured("an accepted delivery in a burst", slowest, std::time::Duration::from_millis(100));
    let waiting = daemon.runs().len();
    assert!((1..=7).contains(&waiting), "five wait, one runs, one may be between: {waiting}");
    assert!(*refused.lock().unwrap() > 0);

    // The forge comes again until everything is taken.
    std::fs::write(world.path("tested/go"), "").unwrap();
    for push in 0..commits.len() {
        eventually("the delivery is taken", || {
            let answer = deliver(push, 0);
            one(push, &answer);
            (answer.status < 300).then_some(())
        });
    }
    daemon.idle();
    let runs = daemon.api.get("/v1/runs?project=shop&limit=500").is(200).json();
    let runs: Vec<&str> = runs["items"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap()).collect();
    let accepted = accepted.into_inner().unwrap();
    for (push, of) in &accepted {
        assert_eq!(of.len(), 1, "push {push} was accepted more than once: {of:?}");
        assert!(runs.contains(&of[0].as_str()), "push {push}");
    }
    assert_eq!((accepted.len(), runs.len()), (commits.len(), commits.len()), "one run for each push");
    for run in runs {
        let state = daemon.run(run).wait().state().to_owned();
        assert!(["succeeded", "superseded"].contains(&state.as_str()), "{run}: {state}");
    }
}
