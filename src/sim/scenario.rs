//! What is simulated, as a seed says: a project, its fleet, what becomes of its commits, and everything that goes wrong.
//!
//! A scenario says everything, so that it can be read, and changed by hand to find out what matters. Its `Display` is for people.

use std::{fmt, time::Duration};

use super::random::Random;
use crate::{
    model::{
        analysis::{Analysis, Condition, Level},
        host::{Host, Ssh},
        ids::Sha,
        pipeline::{
            Alarm, AlarmAction, Check, Environment, Health, Hooks, HostSource, Notify, Pipeline, Queue, Source,
            SourceLimits, Stage, Version, VersionFrom, When,
        },
        rollout::{Budget, Canary, OnFailure, OnInconclusive, Rollout, Waves},
    },
    time::Span,
};

/// What happens in one simulation.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Where it came from, and where the small accidents of it come from (how long something takes).
    pub seed: u64,
    /// The project.
    pub pipeline: Pipeline,
    /// What its hooks are written in.
    pub language: Language,
    /// How many hosts there are at the beginning, `h0` and so on.
    pub hosts: u32,
    /// What is pushed, and when.
    pub commits: Vec<Push>,
    /// What befalls hosts.
    pub faults: Vec<Fault>,
    /// What people do.
    pub people: Vec<Person>,
    /// When the daemon dies.
    pub crashes: Vec<Crash>,
}

/// What hooks are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// Behind the port `Program`: many seeds in little time.
    Rust,
    /// By the daemon's own driver.
    Lua,
}

/// A commit that is pushed.
#[derive(Debug, Clone)]
pub struct Push {
    /// When.
    pub at: Duration,
    /// What it turns out to be.
    pub is: Behaviour,
}

/// What a release turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should be.
    Good,
    /// Its tests are red.
    TestsFail,
    /// `prepare` fails on a host.
    PrepareFails(u32),
    /// `before` fails.
    BeforeFails,
    /// `deploy` fails on a host; `None` = on all.
    DeployFails(Option<u32>),
    /// It never gets healthy on a host; `None` = on all.
    Unhealthy(Option<u32>),
    /// It is healthy at first, and not any more after so long.
    SickensAfter(Duration),
    /// It takes so long to get healthy, with breaks in between.
    Flaps(Duration),
    /// It serves nothing wrong, and reports another version.
    WrongVersion,
    /// `verify` fails.
    VerifyFails,
    /// It makes an alarm fire.
    AlarmFires,
    /// Good, and cannot be taken back.
    NoWayBack,
    /// Bad in the same way as one that cannot be taken back.
    NoWayBackUnhealthy,
}

/// Something that befalls a host.
#[derive(Debug, Clone)]
pub struct Fault {
    /// When.
    pub at: Duration,
    /// Which host.
    pub host: u32,
    /// What.
    pub what: HostFault,
    /// For how long, where that is meant.
    pub lasts: Duration,
}

/// What can befall a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostFault {
    /// Nobody listens there.
    Refuses,
    /// Nothing comes back from there.
    Hangs,
    /// Its connections are cut; new ones can be made.
    Cut,
    /// It reboots, and takes so long.
    Reboots,
    /// Its next command does not end by itself.
    CommandHangs,
    /// What it runs falls ill for so long.
    Ill,
    /// Its provider ends it, and discovery knows.
    Gone,
    /// A host comes that was not there.
    Joins,
}

/// What a person does.
#[derive(Debug, Clone)]
pub struct Person {
    /// When.
    pub at: Duration,
    /// What.
    pub does: Does,
}

/// What people do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// Presses the button.
    Start,
    /// Presses it although the release is known to be bad.
    RetryBad,
    /// Stops everything.
    Stop,
    /// The same, now.
    StopNow,
    /// Holds the deployment.
    Pause,
    /// Lets it go on.
    Resume,
    /// Lets it go on whatever held it.
    Promote,
    /// Takes it back.
    Rollback,
}

/// The daemon dies.
#[derive(Debug, Clone, Copy)]
pub struct Crash {
    /// At this call to the disk of that life; recovery's own count.
    pub call: u64,
    /// With the machine's power, and everything that is not on disk.
    pub power: bool,
    /// And is away for so long.
    pub away: Duration,
}

const SECOND: Duration = Duration::from_secs(1);

fn secs(random: &mut Random, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.between(least * 1000, most * 1000))
}

/// The commit number `n`.
#[must_use]
pub fn sha(n: usize) -> Sha {
    let digits = crate::model::ids::Digest::of(format!("commit {n}").as_bytes());
    // Forty digits of a digest are a commit's.
    digits.as_str()[..40].parse().unwrap_or_else(|_| unreachable!("forty hexadecimal digits"))
}

/// Host number `n`.
#[must_use]
pub fn host(n: u32) -> Host {
    let id = format!("h{n}");
    let id = id.parse().unwrap_or_else(|_| unreachable!("a host's id"));
    Host { zone: Some(format!("z{}", n % 2)), ..Host::at(id, format!("10.0.0.{n}")) }
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

fn environment(random: &mut Random, hosts: u32) -> Environment {
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
        name: "production".parse().unwrap_or_else(|_| unreachable!("a name")),
        hosts: vec![if discovered {
            HostSource::Plugin {
                name: "sim".to_owned(),
                function: "discovery/production/1".to_owned(),
                limits: SourceLimits::default(),
                options: None,
            }
        } else {
            HostSource::Static((0..hosts).map(host).collect())
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

fn behaviour(random: &mut Random, hosts: u32, prepare: bool) -> Behaviour {
    let host = random.below_u32(hosts);
    match random.below(20) {
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
        _ => Behaviour::Good,
    }
}

impl Scenario {
    /// The scenario of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut random = Random::of(seed, "scenario");
        let random = &mut random;
        let most = if random.one_in(4) { 12 } else { 5 };
        let hosts = 1 + random.below_u32(most);
        let production = environment(random, hosts);
        let stage = |random: &mut Random| Stage {
            name: "unit".parse().unwrap_or_else(|_| unreachable!("a name")),
            setup: random.one_in(3),
            cleanup: random.one_in(3),
            timeout_ms: 600_000,
        };
        let stages = if random.one_in(3) { Vec::new() } else { vec![stage(random)] };
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
            environments: vec![production],
            notify: Notify { bad: vec!["log".to_owned()], good: Vec::new() },
        };
        let prepare = pipeline.environments.iter().any(|e| e.hooks.prepare);
        // Mostly there is something to go back to.
        let mut commits = vec![Push { at: Duration::ZERO, is: Behaviour::Good }];
        if random.one_in(10) {
            commits = vec![Push { at: Duration::ZERO, is: behaviour(random, hosts, prepare) }];
        }
        let mut at = secs(random, 60, 200);
        for _ in 0..1 + random.below(2) {
            commits.push(Push { at, is: behaviour(random, hosts, prepare) });
            at += if random.one_in(2) { secs(random, 0, 30) } else { secs(random, 60, 200) };
        }
        let span = at.as_secs() + 60;
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
            faults.push(Fault { at: secs(random, 0, span), host: random.below_u32(hosts), what, lasts });
        }
        let mut people = Vec::new();
        for _ in 0..if random.one_in(3) { 1 + random.below(3) } else { 0 } {
            let does = match random.below(9) {
                0 => Does::Start,
                1 => Does::RetryBad,
                2 => Does::Stop,
                3 => Does::StopNow,
                4 | 5 => Does::Pause,
                6 => Does::Resume,
                7 => Does::Promote,
                _ => Does::Rollback,
            };
            people.push(Person { at: secs(random, 0, span), does });
        }
        let mut crashes = Vec::new();
        for _ in 0..if random.one_in(2) { 1 + random.below(5) } else { 0 } {
            let away = if random.one_in(4) { secs(random, 100, 1200) } else { secs(random, 1, 20) };
            // Soon after the start: what recovery makes of what it found is cut off as well.
            let call = if random.one_in(3) { random.between(2, 16) } else { random.between(5, 200) };
            crashes.push(Crash { call, power: random.one_in(2), away });
        }
        Scenario { seed, pipeline, language: Language::Rust, hosts, commits, faults, people, crashes }
    }

    /// The same with its hooks in `language`.
    #[must_use]
    pub fn in_language(self, language: Language) -> Self {
        Scenario { language, ..self }
    }

    /// When the last thing happens that the scenario says.
    #[must_use]
    pub fn last(&self) -> Duration {
        let pushes = self.commits.iter().map(|push| push.at);
        let faults = self.faults.iter().map(|fault| fault.at + fault.lasts);
        let people = self.people.iter().map(|person| person.at);
        pushes.chain(faults).chain(people).max().unwrap_or_default() + SECOND
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {} hosts, hooks in {:?}", self.seed, self.hosts, self.language)?;
        for environment in &self.pipeline.environments {
            writeln!(f, "  rollout {:?}", environment.rollout)?;
            writeln!(f, "  hooks {:?} verify {}", environment.hooks, environment.verify)?;
            writeln!(f, "  health {:?}", environment.health)?;
            for alarm in &environment.alarms {
                writeln!(f, "  alarm {:?}", alarm.action)?;
            }
            if let [HostSource::Plugin { .. }] = environment.hosts.as_slice() {
                writeln!(f, "  hosts by discovery")?;
            }
        }
        writeln!(f, "  queue {:?}, stages {}", self.pipeline.queue, self.pipeline.stages.len())?;
        for (n, push) in self.commits.iter().enumerate() {
            writeln!(f, "  {:>8} push {} which is {:?}", Span(push.at).to_string(), &sha(n).as_str()[..12], push.is)?;
        }
        for fault in &self.faults {
            let (at, lasts) = (Span(fault.at).to_string(), Span(fault.lasts));
            writeln!(f, "  {at:>8} h{} {:?} for {lasts}", fault.host, fault.what)?;
        }
        for person in &self.people {
            writeln!(f, "  {:>8} a person: {:?}", Span(person.at).to_string(), person.does)?;
        }
        for crash in &self.crashes {
            let how = if crash.power { "power is lost" } else { "the daemon is killed" };
            writeln!(f, "  {how} at call {} to the disk, away for {}", crash.call, Span(crash.away))?;
        }
        Ok(())
    }
}
