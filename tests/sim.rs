//! The engine in a simulated world, from many seeds: see `phased::sim`.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use phased::{
    model::{
        pipeline::HostSource,
        rollout::{Budget, Canary, OnFailure, OnInconclusive, Rollout},
        run::RunState,
    },
    sim::{
        Language, Scenario, play,
        scenario::{Behaviour, Fault, HostFault, Push},
    },
};

/// As many as a build without optimisation has time for. `scripts/test` plays 10,000 after all other tests, see `scripts/worlds`.
const USUAL: u64 = 200;
/// For so many of them one is played with its hooks in Lua, too.
const IN_LUA: u64 = 50;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

/// What a failing seed leaves: what was to happen, and what did.
fn show(scenario: &Scenario) -> String {
    let (seed, lua) = (scenario.seed, if scenario.language == Language::Lua { "PHASED_SIM_LUA=1 " } else { "" });
    let (what, story) = match play(scenario, true) {
        Ok(played) => (format!("all is well: {:?}", played.ends), played.story),
        Err(broken) => (broken.what, broken.story),
    };
    format!(
        "{scenario}\n{}\n\n{what}\n({lua}PHASED_SIM_SEED={seed} cargo test --test sim plays it again)",
        story.join("\n")
    )
}

/// Plays `seeds` scenarios on all processors.
fn all_hold(first: u64, seeds: u64, language: Language) {
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let scenario = |seed| Scenario::of(seed).in_language(language);
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    let (mut broken, mut deaths, mut events) = (Vec::new(), 0, 0);
    let worked = std::thread::scope(|scope| {
        let work = || {
            let mut results = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + seeds {
                    return results;
                }
                results.push((seed, play(&scenario(seed), false)));
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    for (seed, result) in worked {
        match result {
            Ok(played) => {
                deaths += played.deaths;
                events += played.events;
                for (end, why) in played.ends {
                    *ends.entry(format!("{end:?} {why}")).or_default() += 1;
                }
            }
            Err(what) => broken.push((seed, what.what)),
        }
    }
    println!("{seeds} seeds in {language:?}, {deaths} deaths, {events} events: {ends:?}");
    if let Some((seed, _)) = broken.first() {
        let list: Vec<&str> = broken.iter().map(|(_, what)| what.as_str()).take(40).collect();
        panic!("{}\n\n{} of {seeds} seeds are broken:\n{}", show(&scenario(*seed)), broken.len(), list.join("\n"));
    }
}

#[test]
fn whatever_happens_the_engine_keeps_its_promises() {
    if let Some(seed) = number("PHASED_SIM_SEED") {
        let language = if number("PHASED_SIM_LUA").is_some() { Language::Lua } else { Language::Rust };
        let scenario = Scenario::of(seed).in_language(language);
        println!("{}", show(&scenario));
        play(&scenario, false).unwrap();
        return;
    }
    all_hold(number("PHASED_SIM_FIRST").unwrap_or(0), number("PHASED_SIM_SEEDS").unwrap_or(USUAL), Language::Rust);
}

/// With hooks in Lua: calls are replayed by the daemon's own driver.
#[test]
fn whatever_happens_lua_is_replayed_to_where_it_was() {
    all_hold(
        number("PHASED_SIM_FIRST").unwrap_or(0),
        number("PHASED_SIM_SEEDS").unwrap_or(USUAL) / IN_LUA,
        Language::Lua,
    );
}

#[test]
fn a_seed_is_played_to_the_same_bytes_each_time() {
    for seed in 0..40 {
        let scenario = Scenario::of(seed);
        let [first, second] = [(); 2].map(|()| play(&scenario, true).unwrap_or_else(|broken| panic!("{broken}")));
        let differ = first.story.iter().zip(&second.story).find(|(first, second)| first != second);
        assert_eq!(differ, None, "seed {seed}");
        assert!(!first.journals.is_empty() && first.journals == second.journals, "seed {seed}");
    }
}

/// One environment of four hosts that discovery finds, a canary and the rest, and nothing that befalls anybody.
fn calm(bake: Duration) -> Scenario {
    let is_plain = |scenario: &Scenario| {
        let [project] = &scenario.projects[..] else { return false };
        let [environment] = &project.pipeline.environments[..] else { return false };
        matches!(environment.hosts[..], [HostSource::Plugin { .. }])
            && environment.health.is_some()
            && !environment.verify
    };
    let mut scenario = (0..).map(Scenario::of).find(is_plain).unwrap();
    let project = &mut scenario.projects[0];
    project.fleets.clear();
    project.fleets.push(0..4);
    project.commits = vec![Push { at: Duration::ZERO, is: Behaviour::Good, again: None }];
    let environment = &mut project.pipeline.environments[0];
    (environment.hooks.rollback_safe, environment.alarms) = (false, Vec::new());
    let bake_time_ms = u64::try_from(bake.as_millis()).unwrap();
    environment.rollout = Rollout {
        canary: Canary::Count(Budget::Count(1)),
        bake_time_ms,
        max_bake_ms: bake_time_ms * 3,
        max_parallel: 4,
        on_failure: OnFailure::Rollback,
        on_inconclusive: OnInconclusive::Rollback,
        ..Rollout::default()
    };
    Scenario {
        faults: Vec::new(),
        people: Vec::new(),
        full: Vec::new(),
        silent: Vec::new(),
        crashes: Vec::new(),
        ..scenario
    }
}

#[test]
fn a_host_that_its_provider_ends_while_a_wave_bakes_is_gone_and_not_unreachable() {
    let (bake, lasts) = (Duration::from_secs(600), Duration::ZERO);
    // In the bake of the rest, and so late in it that only the last look finds out; the canary, after which nobody has the release.
    for (at, host, ends) in
        [(1000, 2, RunState::Succeeded), (1190, 3, RunState::Succeeded), (300, 0, RunState::RolledBack)]
    {
        let mut scenario = calm(bake);
        scenario.faults = vec![Fault { at: Duration::from_secs(at), host, what: HostFault::Gone, lasts }];
        let played = play(&scenario, true).unwrap_or_else(|broken| panic!("{broken}\n{}", show(&scenario)));
        let (ended, why) = &played.ends[0];
        assert_eq!(*ended, ends, "{why}\n{}", show(&scenario));
        assert!(ends == RunState::Succeeded || why.contains("inconclusive"), "{why}");
        // One that only does not answer is another matter.
        scenario.faults[0].what = HostFault::Refuses;
        scenario.faults[0].lasts = Duration::from_secs(900);
        let played = play(&scenario, false).unwrap_or_else(|broken| panic!("{broken}\n{}", show(&scenario)));
        assert!(played.ends.iter().any(|(_, why)| why.contains("max_unreachable")), "{at}: {:?}", played.ends);
    }
}

#[test]
fn a_host_that_its_provider_ends_in_the_middle_of_its_deploy_is_gone_and_neither_unreachable_nor_failed() {
    let lasts = Duration::from_secs(900);
    let mut in_deploy = 0;
    for at in 1..=20 {
        let mut scenario = calm(Duration::ZERO);
        // Everybody at once: whoever goes leaves others that have the release.
        scenario.projects[0].pipeline.environments[0].rollout.canary = Canary::Count(Budget::Count(0));
        let at = Duration::from_secs(at);
        scenario.faults = vec![Fault { at, host: 2, what: HostFault::Refuses, lasts }];
        let played = play(&scenario, false).unwrap_or_else(|broken| panic!("{broken}\n{}", show(&scenario)));
        in_deploy += u32::from(
            played.ends.iter().any(|(_, why)| why.contains("max_unreachable") || why.contains("max_failures")),
        );
        scenario.faults[0].what = HostFault::Gone;
        let played = play(&scenario, true).unwrap_or_else(|broken| panic!("{broken}\n{}", show(&scenario)));
        let (ended, why) = &played.ends[0];
        assert_eq!(*ended, RunState::Succeeded, "{at:?}: {why}\n{}", show(&scenario));
    }
    assert!(in_deploy > 2, "the fault never comes in the middle of a deploy");
}
