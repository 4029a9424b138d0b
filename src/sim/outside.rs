//! Everything that is not the daemon, and does not end with it: time, machines, the repository, people.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    check::{self, Followed, Letter, Verdicts},
    clock::VirtualClock,
    fleet::{Machine, Reach},
    random::Random,
    scenario::{self, Behaviour, Place, Push, Scenario},
};
use crate::{
    lifecycle::locks::locked,
    model::{
        cause::Cause,
        event::Record,
        host::Host,
        ids::{ProjectName, ReleaseId, RunId, Seq},
        release::Commit,
        run::RunState,
    },
    time::{Clock as _, Span},
};

/// One life of the daemon: what it left is of no interest to anybody once it is over.
#[derive(Clone, Default)]
pub(super) struct Life(Arc<AtomicBool>);

impl Life {
    pub(super) fn end(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The world outside. Clones are the same one.
#[derive(Clone)]
pub(super) struct Outside {
    clock: VirtualClock,
    state: Arc<Mutex<State>>,
}

/// What is out there.
pub(super) struct State {
    pub(super) scenario: Scenario,
    /// The small accidents: how long something takes.
    pub(super) random: Random,
    pub(super) machines: BTreeMap<String, Machine>,
    /// The daemon's own.
    here: Machine,
    /// What discovery finds.
    pub(super) listed: Vec<Host>,
    /// Of each project.
    pushed: Vec<Vec<Commit>>,
    behaviours: BTreeMap<String, Behaviour>,
    /// Hosts that something has befallen.
    pub(super) disturbed: BTreeSet<String>,
    /// Those that may have lost what they had.
    pub(super) rebooted: BTreeSet<String>,
    /// What people were told.
    pub(super) letters: Vec<Letter>,
    /// Environments that people have for themselves, as they were answered.
    pub(super) held: Vec<Kept>,
    /// Those that they have frozen.
    pub(super) frozen: Vec<Kept>,
    /// What projects have learned of trees that are bad.
    pub(super) verdicts: BTreeMap<ProjectName, Verdicts>,
    /// What the journals say that are on disk.
    pub(super) runs: BTreeMap<RunId, Followed>,
    /// How often the daemon has died.
    pub(super) deaths: u32,
    /// How long there was no daemon.
    pub(super) away: Duration,
    /// The first thing that must not be.
    broken: Option<String>,
    story: Option<Vec<String>>,
    /// Of this life.
    pub(super) reader: Option<Reader>,
}

/// An environment that people keep others from.
pub(super) struct Kept {
    pub(super) place: Place,
    pub(super) from: Duration,
    pub(super) until: Duration,
}

/// Reads what is on disk for certain of a run's journal, after a record.
pub(super) type Reader = Arc<dyn Fn(&RunId, Seq) -> Vec<(Seq, u32, Record)> + Send + Sync>;

impl Outside {
    pub(super) fn new(scenario: Scenario, tells: bool) -> Self {
        let numbers: Vec<u32> = scenario.projects.iter().flat_map(|of| of.fleets.iter().cloned().flatten()).collect();
        let machines = numbers.iter().map(|n| (format!("h{n}"), Machine::new(&format!("h{n}")))).collect();
        let state = State {
            random: Random::of(scenario.seed, "outside"),
            machines,
            here: Machine::new("here"),
            listed: numbers.into_iter().map(scenario::host).collect(),
            pushed: vec![Vec::new(); scenario.projects.len()],
            behaviours: BTreeMap::new(),
            disturbed: BTreeSet::new(),
            rebooted: BTreeSet::new(),
            letters: Vec::new(),
            held: Vec::new(),
            frozen: Vec::new(),
            verdicts: BTreeMap::new(),
            runs: BTreeMap::new(),
            deaths: 0,
            away: Duration::ZERO,
            broken: None,
            story: tells.then(Vec::new),
            reader: None,
            scenario,
        };
        Outside { clock: VirtualClock::default(), state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn clock(&self) -> &VirtualClock {
        &self.clock
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Has everything of the scenario happen in its time.
    pub(super) fn begin(&self) {
        let scenario = self.state().scenario.clone();
        for (project, of) in scenario.projects.into_iter().enumerate() {
            for (n, push) in of.commits.into_iter().enumerate() {
                let outside = self.clone();
                self.clock.at(push.at, move || outside.push(project, n, &push));
            }
        }
        for fault in scenario.faults {
            let outside = self.clone();
            self.clock.at(fault.at, move || outside.befall(fault.host, fault.what, fault.lasts));
        }
    }

    fn push(&self, project: usize, n: usize, push: &Push) {
        let (sha, is) = (scenario::sha(project, n), push.is);
        let release = ReleaseId::first_build(&sha);
        let mut state = self.state();
        state.tell(self.clock.elapsed(), &format!("push of {release}, which is {is:?}"));
        state.behaviours.insert(release.to_string(), is);
        let schema = matches!(is, Behaviour::NoWayBack | Behaviour::NoWayBackUnhealthy);
        let commit = Commit {
            tree: push.again.map_or_else(|| sha.clone(), |before| scenario::sha(project, before)),
            sha,
            author: "Ann <ann@example.com>".to_owned(),
            message: if schema { "the schema changes" } else { "a change" }.to_owned(),
            committed_at_ms: self.clock.now().wall_ms,
        };
        state.pushed.get_mut(project).into_iter().for_each(|pushed| pushed.push(commit.clone()));
    }

    /// The commits of a project's branch, the oldest first.
    pub(super) fn commits(&self, project: &ProjectName) -> Vec<Commit> {
        let state = self.state();
        let at = state.scenario.project(project.as_str()).map_or(0, |(at, _)| at);
        state.pushed.get(at).cloned().unwrap_or_default()
    }

    /// Until when the daemon's disk has no room.
    pub(super) fn full(&self) -> Option<Duration> {
        let now = self.clock.elapsed();
        self.state().scenario.full.iter().find(|full| full.contains(&now)).map(|full| full.end)
    }

    /// A person was told that they have an environment for themselves (`held`), or have frozen it.
    pub(super) fn keep(&self, place: Place, until: Duration, held: bool) {
        let from = self.clock.elapsed();
        let state = &mut *self.state();
        let kept = if held { &mut state.held } else { &mut state.frozen };
        // The last word counts.
        let same = |other: Place| if held { state.scenario.share(place, other) } else { place == other };
        kept.retain(|kept| !same(kept.place));
        kept.push(Kept { place, from, until });
    }

    /// How long git takes, and whether it comes to anything.
    pub(super) fn git(&self) -> (u64, bool) {
        let mut state = self.state();
        (state.random.between(2_000, 300_000), !state.random.one_in(40))
    }

    /// How long it takes to look up hosts.
    pub(super) fn lookup(&self) -> Duration {
        let now = self.clock.elapsed();
        let mut state = self.state();
        let silent = state.scenario.silent.iter().find(|silent| silent.contains(&now)).map(|silent| silent.end - now);
        let random = &mut state.random;
        let takes = if random.one_in(12) { random.between(5_000, 100_000) } else { random.between(2, 300) };
        silent.unwrap_or_default() + Duration::from_millis(takes)
    }

    /// How long a word takes to a machine.
    pub(super) fn latency(&self) -> Duration {
        Duration::from_micros(self.state().random.between(150, 3_000))
    }

    /// Discovery of an environment's hosts.
    pub(super) fn discover(&self, project: &ProjectName, environment: &str) -> Result<Value, Cause> {
        let mut state = self.state();
        if state.random.one_in(60) {
            return Err(Cause::new("http_connect", "the provider does not answer"));
        }
        let place = state.scenario.place_of(project.as_str(), environment);
        Ok(json!(place.map(|place| state.hosts_of(place).collect::<Vec<_>>())))
    }

    /// The probe of an alarm.
    pub(super) fn measure(&self, input: &Value) -> Result<Value, Cause> {
        let mut state = self.state();
        let ids = input["hosts"].as_array().into_iter().flatten().filter_map(|host| host["id"].as_str());
        let fires = ids.filter_map(|id| state.machines.get(id)).any(|machine| {
            machine.serves.as_ref().is_some_and(|serves| state.behaviour(serves) == Some(Behaviour::AlarmFires))
        });
        match state.random.below(40) {
            0 => Ok(Value::Null),
            1 => Err(Cause::new("http_connect", "the metrics do not answer")),
            _ => Ok(json!(if fires { 1.0 } else { 0.0 })),
        }
    }

    /// A letter to people; now and then the channel fails.
    pub(super) fn letter(&self, function: &str, message: &Value) -> Result<Value, Cause> {
        let mut state = self.state();
        if state.random.one_in(5) {
            return Err(Cause::new("http_connect", "the channel does not answer"));
        }
        let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
        let letter =
            Letter { function: function.to_owned(), run: text("run"), event: text("event"), title: text("title") };
        state.tell(self.clock.elapsed(), &format!("people hear: {}", letter.title));
        state.letters.push(letter);
        Ok(Value::Null)
    }

    /// Records of a run are on disk.
    pub(super) fn heard(&self, run: &RunId, records: &[(Seq, u32, Record)]) {
        let now = self.clock.elapsed();
        let mut state = self.state();
        let known = state.runs.get(run).map_or(0, Followed::last);
        if records.first().is_some_and(|(seq, ..)| seq.0 > known + 1) {
            // An earlier life wrote them and was killed before anybody was told.
            state.catch_up(now, run);
        }
        check::heard(&mut state, now, run, records);
    }

    /// Hears of what is on disk and nobody was told.
    pub(super) fn catch_up(&self, run: &RunId) {
        self.state().catch_up(self.clock.elapsed(), run);
    }

    /// What must not be, if it is.
    pub(super) fn broken(&self) -> Option<String> {
        self.state().broken.clone()
    }

    /// Runs that are not over, as far as the disk knows.
    pub(super) fn unfinished(&self) -> Vec<RunId> {
        let state = self.state();
        state.runs.iter().filter(|(_, followed)| !followed.is_over()).map(|(run, _)| run.clone()).collect()
    }

    /// Whether every run is over, as far as the disk knows. Control says so: then it must.
    pub(super) fn are_over(&self) -> bool {
        let now = self.clock.elapsed();
        self.unfinished().iter().for_each(|run| self.catch_up(run));
        let open = self.unfinished();
        if let Some(run) = open.first() {
            self.state().breaks(now, &format!("control has forgotten run {run}, and its end is not on disk"));
        }
        open.is_empty()
    }

    /// The daemon has died.
    pub(super) fn dies(&self, power: bool, away: Duration) {
        let mut state = self.state();
        state.deaths += 1;
        state.away += away;
        let how = if power { "the power is lost" } else { "the daemon is killed" };
        state.tell(self.clock.elapsed(), &format!("{how}, for {}", Span(away)));
        if power {
            state.here.lose_power();
        }
    }

    pub(super) fn story(&self) -> Vec<String> {
        self.state().story.clone().unwrap_or_default()
    }
}

impl State {
    /// The hosts of an environment that its provider knows.
    pub(super) fn hosts_of(&self, place: Place) -> impl Iterator<Item = &Host> {
        self.listed.iter().filter(move |host| scenario::number(host.id.as_str()).map(scenario::place) == Some(place))
    }

    /// How runs ended.
    pub(super) fn ends(&self) -> Vec<(RunId, RunState)> {
        let ended = self.runs.iter();
        ended.filter_map(|(run, followed)| Some((run.clone(), followed.run.end.as_ref()?.0))).collect()
    }

    /// Hears of what is on disk and nobody was told.
    pub(super) fn catch_up(&mut self, now: Duration, run: &RunId) {
        let known = self.runs.get(run).map_or(0, Followed::last);
        let records = self.reader.as_ref().map(|read| read(run, Seq(known))).unwrap_or_default();
        check::heard(self, now, run, &records);
    }

    pub(super) fn machine(&self, id: Option<&str>) -> Option<&Machine> {
        id.map_or(Some(&self.here), |id| self.machines.get(id))
    }

    pub(super) fn machine_mut(&mut self, id: Option<&str>) -> Option<&mut Machine> {
        match id {
            None => Some(&mut self.here),
            Some(id) => self.machines.get_mut(id),
        }
    }

    /// What a release turns out to be; a further build is as the first one.
    pub(super) fn behaviour(&self, release: &str) -> Option<Behaviour> {
        self.behaviours.get(release.split('.').next().unwrap_or_default()).copied()
    }

    pub(super) fn is_well(&self, id: &str) -> bool {
        self.machines.get(id).is_some_and(|machine| machine.reach == Reach::Well && !machine.gone)
    }

    /// Whether anybody is to read the story.
    pub(super) fn tells(&self) -> bool {
        self.story.is_some()
    }

    /// Something for the story.
    pub(super) fn tell(&mut self, now: Duration, what: &str) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:>10.3} {what}", now.as_secs_f64()));
        }
    }

    /// Something is that must not be.
    pub(super) fn breaks(&mut self, now: Duration, what: &str) {
        self.tell(now, &format!("BROKEN: {what}"));
        let seed = self.scenario.seed;
        self.broken.get_or_insert_with(|| format!("seed {seed} at {:.3} s: {what}", now.as_secs_f64()));
    }
}
