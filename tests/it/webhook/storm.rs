//! A forge that sends everything a hundred times: at once, and at a rate of its own, whatever it is answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::*;
use crate::fixture::{Dice, eventually, measured, p99, times};

/// Tests wait until the world says go, so that runs pile up.
const GATED: &str = r#"run:sh { 'until [ -e "$GO" ]; do sleep 0.05; done', env = { GO = "@TESTED@/go" } }"#;

#[track_caller]
fn says_when_to_come_again(answer: &Answer) {
    assert_eq!(answer.problem(), (503, "queue_full".to_owned()));
    assert!(answer.header("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok_and(|wait| wait > 0)));
}

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
            says_when_to_come_again(answer);
            *refused.lock().unwrap() += 1;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while let Some((push, n)) = take() {
                    let sent = Instant::now();
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
    measured("an accepted delivery in a burst", slowest, Duration::from_millis(100));
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

/// Every run that came of a delivery, by its id.
fn hooked_runs(daemon: &Daemon) -> BTreeSet<String> {
    let (mut runs, mut page) = (BTreeSet::new(), String::new());
    loop {
        let found = daemon.api.get(&format!("/v1/runs?project=shop&limit=500{page}")).is(200).json();
        let hooked = found["items"].as_array().unwrap().iter().filter(|run| run["trigger"] == "hook");
        runs.extend(hooked.map(|run| run["id"].as_str().unwrap().to_owned()));
        match found["next_cursor"].as_str() {
            Some(next) => page = format!("&cursor={next}"),
            None => return runs,
        }
    }
}

/// How one delivery of a steady storm was answered, and how long after it was due.
struct Heard {
    push: usize,
    answer: Answer,
    took: Duration,
}

#[test]
fn a_steady_storm_is_answered_in_time_and_what_is_taken_is_one_run() {
    // With full counts 1,000 a second for a minute. Of a hundred deliveries one is new.
    let (rate, seconds) = (times(200, 1000), times(3, 60));
    let (total, pushes) = (rate * seconds, rate * seconds / 100);
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", GATED).queue_all().webhook());
    // Room for half of the pushes: the others hear that there is none.
    std::fs::write(world.path("limits.toml"), format!("max_queued = {}\n", pushes / 2)).unwrap();
    let daemon = world.start();
    let commit = |n: usize| world.repo.commit(&[("message.txt", &n.to_string())], &format!("push {n}"));
    let commits: Vec<String> = (0..pushes).map(commit).collect();
    world.repo.push_as("main");
    let mut dice = Dice::new("steady storm");
    let deliveries: Vec<(usize, String)> = (0..total)
        .map(|n| match n % 100 {
            0 => (n / 100, format!("push-{n}")),
            // By its own id, or by a new one.
            _ => {
                let push = usize::try_from(dice.below((n / 100 + 1) as u64)).unwrap();
                (push, if n.is_multiple_of(2) { format!("push-{}", push * 100) } else { format!("push-{n}") })
            }
        })
        .collect();

    let (heard, next) = (Mutex::new(Vec::with_capacity(total)), AtomicUsize::new(0));
    let (before, began) = (daemon.memory(), Instant::now());
    // Nobody waits for the answer to another: there are more senders than answers under way.
    std::thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some((push, id)) = deliveries.get(n) else { return };
                    let due = began + Duration::from_secs(1) * u32::try_from(n).unwrap() / u32::try_from(rate).unwrap();
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    let answer = Hook::push(MAIN, &commits[*push]).id(id).send(&daemon);
                    heard.lock().unwrap().push(Heard { push: *push, answer, took: due.elapsed() });
                }
            });
        }
    });
    let (lasted, grown) = (began.elapsed(), daemon.memory().saturating_sub(before));

    let mut accepted: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let (mut refused, mut duplicates, mut took) = (0, 0, Vec::new());
    for Heard { push, answer, took: after } in heard.into_inner().unwrap() {
        match answer.status {
            202 => {
                accepted.entry(push).or_default().push(answer.json()["run"].as_str().unwrap().to_owned());
                took.push(after);
            }
            200 => {
                assert_eq!(answer.json()["code"], "duplicate", "{}", answer.text());
                duplicates += 1;
            }
            _ => {
                says_when_to_come_again(&answer);
                refused += 1;
            }
        }
    }
    eprintln!(
        "measured: {total} deliveries in {lasted:?}: {} accepted, {duplicates} duplicates, {refused} told to come again; {grown} KiB more memory",
        accepted.len()
    );
    assert!(accepted.len() >= pushes / 2 && duplicates > 0 && refused > 0);
    assert!(accepted.values().all(|runs| runs.len() == 1), "one run for each push that was taken: {accepted:?}");
    let runs: BTreeSet<String> = accepted.into_values().flatten().collect();
    let there = hooked_runs(&daemon);
    assert!(there == runs, "other runs: {:?}", there.symmetric_difference(&runs));
    measured("an accepted delivery of a steady storm, p99", p99(took), Duration::from_millis(100));
    measured("the storm's lasting, as long as it was sent", lasted, Duration::from_secs(seconds as u64 + 2));
    measured("KiB of memory that a steady storm takes", grown, 64 << 10);
}
