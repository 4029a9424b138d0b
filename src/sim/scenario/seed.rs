//! A scenario from a seed.

use std::{ops::Range, time::Duration};

use super::{
    Behaviour, Crash, Does, ENVIRONMENTS, Fault, HostFault, Language, Person, Project, Push, ROOM, Scenario, host,
};
use crate::{
    model::{
        analysis::{Analysis, Condition, Level},
        host::Ssh,
        pipeline::{
            Alarm, AlarmAction, Check, Environment, Health, Hooks, HostSource, Notify, Pipeline, Queue, Source,
            SourceLimits, Stage, Version, VersionFrom, When,
        },
        rollout::{Budget, Canary, OnFailure, OnInconclusive, Rollout, Waves},
    },
    sim::random::Random,
};

fn secs(random: &mut Random, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.between(least * 1000, most * 1000))
}

fn budget(random: &mut Random) -> Budget {
    match random.below(4) {
        0 => Budget::Percent(random.below_u32(60)),
        1 => Budget::Count(random.below_u32(3)),
        _ => Budget::Count(0),
    }
}

fn rollout(random: &mut Random) -> Rollout {
    let percent = Budget::Percent;
    let bake_time_ms = random.below(4) * 5_000;
    Rollout {
        canary: Canary::Count(Budget::Count(random.below_u32(3))),
        waves: match random.below(3) {
            0 => Waves::Targets(vec![percent(100)]),
            1 => Waves::Targets(vec![percent(30), percent(60), percent(100)]),
            _ => Waves::Each(Budget::Count(1 + random.below_u32(3))),
        },
        max_parallel: 1 + random.below_u32(3),
        stagger_ms: random.below(2) * 700,
        bake_time_ms,
        max_bake_ms: bake_time_ms * 3,
        max_failures: budget(random),
        max_failures_per_wave: random.one_in(4).then(|| budget(random)),
        max_unreachable: budget(random),
        min_healthy: random.one_in(3).then(|| budget(random)),
        progress_deadline_ms: random.below(2) * 600_000,
        pause_timeout_ms: 300_000,
        rollback_parallel: random.one_in(2).then_some(1 + random.below_u32(4)),
        max_shrink: percent(30 + random.below_u32(70)),
        zones: random.one_in(4),
        on_failure: match random.below(6) {
            0 => OnFailure::Halt,
            1 => OnFailure::Pause,
            _ => OnFailure::Rollback,
        },
        on_inconclusive: match random.below(3) {
            0 => OnInconclusive::Rollback,
            1 => OnInconclusive::Halt,
            _ => OnInconclusive::Promote,
        },
    }
}

fn environment(random: &mut Random, name: &str, hosts: Range<u32>) -> Environment {
    let mut some = |n| random.one_in(n);
    let hooks = Hooks {
        prepare: some(2),
        before: some(2),
        before_wave: some(4),
        drain: some(2),
        undrain: some(2),
        after_wave: some(4),
        after: some(3),
        rollback_safe: some(2),
    };
    let (verify, health, versions, alarm, discovered) = (some(2), !some(8), some(2), some(4), some(2));
    let alarms = alarm.then(|| Alarm {
        name: "errors".to_owned(),
        cause: "probe".to_owned(),
        alert: "log".to_owned(),
        action: match random.below(5) {
            0 => AlarmAction::Halt,
            1 => AlarmAction::Pause,
            _ => AlarmAction::Rollback,
        },
        analysis: Analysis {
            failure: Some(Condition { above: Some(Level(0.5)), ..Condition::default() }),
            interval_ms: 2_000,
            ..Analysis::default()
        },
    });
    let version = Check::Version(Version { from: VersionFrom::Command("version".to_owned()), json: None });
    let checks = [Some(Check::Http(":8080/healthz".to_owned())), versions.then_some(version)];
    Environment {
        name: name.parse().unwrap_or_else(|_| unreachable!("a name")),
        hosts: vec![if discovered {
            HostSource::Plugin {
                name: "sim".to_owned(),
                function: format!("discovery/{name}/1"),
                limits: SourceLimits::default(),
                options: None,
            }
        } else {
            HostSource::Static(hosts.map(host).collect())
        }],
        ssh: Ssh::default(),
        signal: None,
        rollout: rollout(random),
        health: health.then(|| Health {
            checks: checks.into_iter().flatten().collect(),
            min_healthy_time_ms: random.between(1, 4) * 1_000,
            healthy_deadline_ms: random.between(20, 40) * 1_000,
            interval_ms: 1_000,
            timeout_ms: 5_000,
        }),
        verify,
        hooks,
        alarms: alarms.into_iter().collect(),
        timeout_ms: 1_800_000,
        freeze: Vec::new(),
        group: None,
        when: When::Push,
    }
}

/// One of the hosts of these environments.
fn one_of(random: &mut Random, fleets: &[Range<u32>]) -> u32 {
    let fleet = usize::try_from(random.below(fleets.len() as u64)).unwrap_or(0);
    fleets.get(fleet).map_or(0, |hosts| hosts.start + random.below_u32(hosts.end - hosts.start))
}

fn behaviour(random: &mut Random, fleets: &[Range<u32>], prepare: bool) -> Behaviour {
    let host = one_of(random, fleets);
    match random.below(22) {
        0 => Behaviour::TestsFail,
        1 if prepare => Behaviour::PrepareFails(host),
        2 => Behaviour::BeforeFails,
        3 => Behaviour::DeployFails(None),
        4 | 5 => Behaviour::DeployFails(Some(host)),
        6 => Behaviour::Unhealthy(None),
        7 | 8 => Behaviour::Unhealthy(Some(host)),
        9 | 10 => Behaviour::SickensAfter(secs(random, 3, 40)),
        11 => Behaviour::Flaps(secs(random, 2, 15)),
        12 => Behaviour::WrongVersion,
        13 => Behaviour::VerifyFails,
        14 => Behaviour::AlarmFires,
        15 => Behaviour::NoWayBack,
        16 => Behaviour::NoWayBackUnhealthy,
        17 | 18 => Behaviour::Clings(host),
        _ => Behaviour::Good,
    }
}

/// What is pushed: mostly something good first, so that there is something to go back to; now and then the same again, or one bad release
/// after the other.
fn commits(random: &mut Random, fleets: &[Range<u32>], prepare: bool) -> Vec<Push> {
    let first = if random.one_in(10) { behaviour(random, fleets, prepare) } else { Behaviour::Good };
    let mut commits = vec![Push { at: Duration::ZERO, is: first, again: None }];
    let mut at = secs(random, 60, 200);
    let plague = random.one_in(12);
    for _ in 0..if plague { 4 } else { 1 + random.below(2) } {
        // One bad release after the other, each with time for its verdict.
        let is = if plague { Behaviour::Unhealthy(None) } else { behaviour(random, fleets, prepare) };
        commits.push(Push { at, is, again: None });
        at += if !plague && random.one_in(2) { secs(random, 0, 30) } else { secs(random, 60, 200) };
    }
    if random.one_in(3) {
        let before = usize::try_from(random.below(commits.len() as u64)).unwrap_or(0);
        let again = if random.one_in(4) { before } else { commits.len() - 1 };
        // Mostly after its verdict.
        at += secs(random, 0, 300);
        commits.push(Push { at, is: commits.get(again).map_or(Behaviour::Good, |push| push.is), again: Some(again) });
    }
    commits
}

fn project(seed: u64, at: usize, environments: &[&str], group: Option<&str>) -> Project {
    let name = if at == 0 { "shop" } else { "billing" };
    let random = &mut Random::of(seed, name);
    // Several are smaller, so that none of them takes much longer than one.
    let most = if environments.len() == 1 && group.is_none() && random.one_in(4) { 12 } else { 5 };
    let fleet = |n: usize, random: &mut Random| {
        let first = u32::try_from(at * ENVIRONMENTS + n).unwrap_or(0) * ROOM;
        first..first + 1 + random.below_u32(most)
    };
    let fleets: Vec<Range<u32>> = (0..environments.len()).map(|n| fleet(n, random)).collect();
    let described = environments.iter().zip(&fleets).map(|(name, hosts)| Environment {
        group: group.map(str::to_owned),
        ..environment(random, name, hosts.clone())
    });
    let environments: Vec<Environment> = described.collect();
    let stages = if random.one_in(3) {
        Vec::new()
    } else {
        vec![Stage {
            name: "unit".parse().unwrap_or_else(|_| unreachable!("a name")),
            setup: random.one_in(3),
            cleanup: random.one_in(3),
            timeout_ms: 600_000,
        }]
    };
    let pipeline = Pipeline {
        source: Source {
            git: "file:///simulated".to_owned(),
            branch: "main".to_owned(),
            tags: Vec::new(),
            poll_ms: Some(random.between(5, 30) * 1_000),
            webhook: Vec::new(),
            user: None,
            token: None,
            key: None,
            known_hosts: None,
        },
        queue: if random.one_in(3) { Queue::All } else { Queue::Latest },
        stages,
        environments,
        notify: Notify { bad: vec!["log".to_owned()], good: Vec::new() },
    };
    let prepare = pipeline.environments.iter().any(|e| e.hooks.prepare);
    let commits = commits(random, &fleets, prepare);
    let name = name.parse().unwrap_or_else(|_| unreachable!("a name"));
    Project { name, pipeline, fleets, commits }
}

/// Mostly one project with one environment; else two of either, which take turns where they share a group.
fn projects(seed: u64, random: &mut Random) -> Vec<Project> {
    let (one, two) = (&["production"][..], &["staging", "production"][..]);
    let group = random.one_in(2).then_some("racks");
    match random.below(8) {
        0 => vec![project(seed, 0, one, group), project(seed, 1, one, group)],
        1 => vec![project(seed, 0, two, group)],
        _ => vec![project(seed, 0, one, None)],
    }
}

fn faults(random: &mut Random, fleets: &[Range<u32>], span: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    for _ in 0..if random.one_in(2) { 0 } else { 1 + random.below(3) } {
        let what = match random.below(10) {
            0 | 1 => HostFault::Refuses,
            2 | 3 => HostFault::Hangs,
            4 => HostFault::Cut,
            5 => HostFault::Reboots,
            6 => HostFault::CommandHangs,
            7 => HostFault::Ill,
            8 => HostFault::Gone,
            _ => HostFault::Joins,
        };
        let lasts = if random.one_in(3) { secs(random, 60, 900) } else { secs(random, 1, 40) };
        faults.push(Fault { at: secs(random, 0, span), host: one_of(random, fleets), what, lasts });
    }
    faults
}

fn people(random: &mut Random, places: &[(usize, usize)], span: u64) -> Vec<Person> {
    let mut people = Vec::new();
    for _ in 0..if random.one_in(3) { 1 + random.below(3) } else { 0 } {
        let does = match random.below(12) {
            0 => Does::Start,
            1 => Does::RetryBad,
            2 => Does::Stop,
            3 => Does::StopNow,
            4 | 5 => Does::Pause,
            6 => Does::Resume,
            7 => Does::Promote,
            8 => Does::Rollback,
            9 => Does::Freeze(secs(random, 30, 300)),
            _ => Does::Hold(secs(random, 30, 300)),
        };
        let place = usize::try_from(random.below(places.len() as u64)).unwrap_or(0);
        let place = places.get(place).copied().unwrap_or_default();
        people.push(Person { at: secs(random, 0, span), place, does });
    }
    people
}

/// Now and then discovery says nothing for a while, and mostly somebody wants to go back just then.
fn silent(seed: u64, places: &[(usize, usize)], span: u64) -> (Vec<Range<Duration>>, Vec<Person>) {
    let random = &mut Random::of(seed, "silent");
    if !random.one_in(8) {
        return (Vec::new(), Vec::new());
    }
    let from = secs(random, 0, span);
    let silent = from..from + secs(random, 20, 200);
    let place = usize::try_from(random.below(places.len() as u64)).unwrap_or(0);
    let place = places.get(place).copied().unwrap_or_default();
    let wants = !random.one_in(4);
    let person = Person { at: from + secs(random, 0, 15), place, does: Does::Rollback };
    (vec![silent], wants.then_some(person).into_iter().collect())
}

fn crashes(random: &mut Random) -> Vec<Crash> {
    let mut crashes = Vec::new();
    for _ in 0..if random.one_in(2) { 1 + random.below(5) } else { 0 } {
        let away = if random.one_in(4) { secs(random, 100, 1200) } else { secs(random, 1, 20) };
        // Soon after the start: what recovery makes of what it found is cut off as well.
        let call = if random.one_in(3) { random.between(2, 16) } else { random.between(5, 200) };
        crashes.push(Crash { call, power: random.one_in(2), away });
    }
    crashes
}

impl Scenario {
    /// The scenario of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let random = &mut Random::of(seed, "scenario");
        let projects = projects(seed, random);
        let fleets: Vec<Range<u32>> = projects.iter().flat_map(|project| project.fleets.clone()).collect();
        let last = projects.iter().flat_map(|project| &project.commits).map(|push| push.at).max();
        let span = last.unwrap_or_default().as_secs() + 60;
        let places: Vec<(usize, usize)> = projects
            .iter()
            .enumerate()
            .flat_map(|(at, project)| (0..project.fleets.len()).map(move |environment| (at, environment)))
            .collect();
        let full = random.one_in(12).then(|| {
            let from = secs(random, 0, span);
            from..from + secs(random, 2, 90)
        });
        let (silent, wanting) = silent(seed, &places, span);
        let faults = faults(random, &fleets, span);
        let mut people = people(random, &places, span);
        people.extend(wanting);
        people.sort_by_key(|person| person.at);
        Scenario {
            seed,
            faults,
            people,
            silent,
            crashes: crashes(random),
            full: full.into_iter().collect(),
            language: Language::Rust,
            projects,
        }
    }
}
