//! What is simulated, as a seed says: projects, their fleets, what becomes of their commits, and everything that goes wrong.
//!
//! A scenario says everything, so that it can be read, and changed by hand to find out what matters. Its `Display` is for people.

use std::{fmt, ops::Range, time::Duration};

use crate::{
    model::{
        host::Host,
        ids::{Digest, ProjectName, Sha},
        pipeline::{Environment, HostSource, Pipeline},
    },
    time::Span,
};

mod seed;

/// What happens in one simulation.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Where it came from, and where the small accidents of it come from (how long something takes).
    pub seed: u64,
    /// What is deployed.
    pub projects: Vec<Project>,
    /// What hooks are written in.
    pub language: Language,
    /// What befalls hosts.
    pub faults: Vec<Fault>,
    /// What people do.
    pub people: Vec<Person>,
    /// When the daemon's disk is full.
    pub full: Vec<Range<Duration>>,
    /// When nobody answers who is asked for hosts.
    pub silent: Vec<Range<Duration>>,
    /// When the daemon dies.
    pub crashes: Vec<Crash>,
}

/// A project.
#[derive(Debug, Clone)]
pub struct Project {
    /// What it is called.
    pub name: ProjectName,
    /// What its file says.
    pub pipeline: Pipeline,
    /// The hosts of each of its environments at the beginning, by number.
    pub fleets: Vec<Range<u32>>,
    /// What is pushed, and when.
    pub commits: Vec<Push>,
}

/// An environment: its project, and its place among that one's.
pub type Place = (usize, usize);

/// Environments have so many numbers for their hosts each: whose a host is can be told by its number.
const ROOM: u32 = 60;
/// And so many numbers of them are for hosts that come later.
const COME: u32 = 20;
/// A project has at most so many environments.
const ENVIRONMENTS: usize = 2;

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
    /// The earlier one whose very tree it has.
    pub again: Option<usize>,
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
    /// It is never healthy, and on a host nothing else can be put in its place.
    Clings(u32),
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
    /// Where: which of all environments.
    pub place: Place,
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
    /// Takes the environment for themselves, if nobody else has it, and gives it back after so long.
    Hold(Duration),
    /// Freezes it for so long.
    Freeze(Duration),
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

/// The commit number `n` of a project.
#[must_use]
pub fn sha(project: usize, n: usize) -> Sha {
    let digits = Digest::of(format!("commit {n} of {project}").as_bytes());
    // Forty digits of a digest are a commit's.
    digits.as_str()[..40].parse().unwrap_or_else(|_| unreachable!("forty hexadecimal digits"))
}

/// The number of a host.
#[must_use]
pub fn number(id: &str) -> Option<u32> {
    id.strip_prefix('h')?.parse().ok()
}

/// The environment whose host this number is.
#[must_use]
pub fn place(host: u32) -> Place {
    let nth = (host / ROOM) as usize;
    (nth / ENVIRONMENTS, nth % ENVIRONMENTS)
}

/// The number of a host that comes to the environment of `host`, as the `nth` of all machines.
#[must_use]
pub fn newcomer(host: u32, nth: u32) -> u32 {
    host / ROOM * ROOM + COME + nth % (ROOM - COME)
}

/// Host number `n`.
#[must_use]
pub fn host(n: u32) -> Host {
    let id = format!("h{n}");
    let id = id.parse().unwrap_or_else(|_| unreachable!("a host's id"));
    Host { zone: Some(format!("z{}", n % 2)), ..Host::at(id, format!("10.0.0.{n}")) }
}

impl Scenario {
    /// The same with its hooks in `language`.
    #[must_use]
    pub fn in_language(self, language: Language) -> Self {
        Scenario { language, ..self }
    }

    /// When the last thing happens that the scenario says.
    #[must_use]
    pub fn last(&self) -> Duration {
        let pushes = self.projects.iter().flat_map(|project| &project.commits).map(|push| push.at);
        let faults = self.faults.iter().map(|fault| fault.at + fault.lasts);
        let people = self.people.iter().map(|person| person.at + person.does.lasts());
        let spans = self.full.iter().chain(&self.silent).map(|span| span.end);
        let last = pushes.chain(faults).chain(people).chain(spans).max();
        last.unwrap_or_default() + Duration::from_secs(1)
    }

    /// How long environments are kept from going on, by people, by a full disk and by those who do not name their hosts.
    #[must_use]
    pub fn kept(&self) -> Duration {
        let people = self.people.iter().map(|person| person.does.lasts());
        people.chain(self.full.iter().chain(&self.silent).map(|span| span.end - span.start)).sum()
    }

    /// The project of this name, and its place.
    #[must_use]
    pub fn project(&self, name: &str) -> Option<(usize, &Project)> {
        self.projects.iter().enumerate().find(|(_, project)| project.name.as_str() == name)
    }

    /// The environment `name` of a project.
    #[must_use]
    pub fn place_of(&self, project: &str, name: &str) -> Option<Place> {
        let (at, project) = self.project(project)?;
        Some((at, project.pipeline.environments.iter().position(|e| e.name.as_str() == name)?))
    }

    /// The environment at `place`.
    #[must_use]
    pub fn environment(&self, place: Place) -> Option<&Environment> {
        self.projects.get(place.0)?.pipeline.environments.get(place.1)
    }

    /// Whether only one of two environments may be deployed to at a time.
    #[must_use]
    pub fn share(&self, one: Place, other: Place) -> bool {
        let group = |place: Place| self.environment(place)?.group.as_ref();
        one == other || group(one).is_some_and(|shared| group(other) == Some(shared))
    }
}

impl Does {
    /// How long it has consequences by itself.
    #[must_use]
    pub fn lasts(self) -> Duration {
        match self {
            Does::Hold(lasts) | Does::Freeze(lasts) => lasts,
            _ => Duration::ZERO,
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: hooks in {:?}", self.seed, self.language)?;
        for (at, project) in self.projects.iter().enumerate() {
            let Project { name, pipeline, fleets, commits } = project;
            writeln!(f, "  {name}: queue {:?}, stages {}", pipeline.queue, pipeline.stages.len())?;
            for (environment, hosts) in pipeline.environments.iter().zip(fleets) {
                describe(f, environment, hosts)?;
            }
            for (n, push) in commits.iter().enumerate() {
                let sha = sha(at, n);
                write!(f, "  {:>8} push {} which is {:?}", Span(push.at).to_string(), &sha.as_str()[..12], push.is)?;
                match push.again {
                    Some(before) => writeln!(f, ", the same as {}", &self::sha(at, before).as_str()[..12])?,
                    None => writeln!(f)?,
                }
            }
        }
        for fault in &self.faults {
            let (at, lasts) = (Span(fault.at).to_string(), Span(fault.lasts));
            writeln!(f, "  {at:>8} h{} {:?} for {lasts}", fault.host, fault.what)?;
        }
        for Person { at, place, does } in &self.people {
            let name = self.projects.get(place.0).map_or("", |project| project.name.as_str());
            let environment = self.environment(*place).map_or("", |e| e.name.as_str());
            writeln!(f, "  {:>8} a person to {name} {environment}: {does:?}", Span(*at).to_string())?;
        }
        for full in &self.full {
            writeln!(f, "  {:>8} the disk is full until {}", Span(full.start).to_string(), Span(full.end))?;
        }
        for silent in &self.silent {
            writeln!(f, "  {:>8} discovery is silent until {}", Span(silent.start).to_string(), Span(silent.end))?;
        }
        for crash in &self.crashes {
            let how = if crash.power { "power is lost" } else { "the daemon is killed" };
            writeln!(f, "  {how} at call {} to the disk, away for {}", crash.call, Span(crash.away))?;
        }
        Ok(())
    }
}

fn describe(f: &mut fmt::Formatter<'_>, environment: &Environment, hosts: &Range<u32>) -> fmt::Result {
    let found = matches!(environment.hosts.as_slice(), [HostSource::Plugin { .. }]);
    let by = if found { " by discovery" } else { "" };
    let group = environment.group.as_ref().map_or_else(String::new, |group| format!(", group {group}"));
    writeln!(f, "  {}: hosts h{} to h{}{by}{group}", environment.name, hosts.start, hosts.end - 1)?;
    writeln!(f, "    rollout {:?}", environment.rollout)?;
    writeln!(f, "    hooks {:?} verify {}", environment.hooks, environment.verify)?;
    writeln!(f, "    health {:?}", environment.health)?;
    environment.alarms.iter().try_for_each(|alarm| writeln!(f, "    alarm {:?}", alarm.action))
}
