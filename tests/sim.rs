//! The engine in a simulated world, from many seeds: see `phased::sim`.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use phased::sim::{Language, Scenario, play};

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
