//! What must hold, whatever happens. Held against what is on disk and what machines really do, at every event.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    fleet::{Command, Machine},
    outside::State,
    scenario::{self, Behaviour, Place},
};
use crate::model::{
    deployment::{Deployment, DeploymentState, HostRun, HostState},
    event::{Event, Header, Purpose, Record},
    ids::{EnvironmentName, HostId, ReleaseId, RunId, Seq, Sha},
    rollout::{Budget, Rollout},
    run::{Run, RunState, Trigger},
    step::{self, CallKey},
};

mod over;

pub(super) use over::over;

/// A letter that people got.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) function: String,
    pub(super) run: String,
    pub(super) event: String,
    pub(super) title: String,
}

/// A run as its journal on disk says.
pub(super) struct Followed {
    pub(super) run: Run,
    last: Seq,
    /// Tokens of steps that were begun.
    begun: BTreeSet<String>,
    /// When each of its deployments had its environment, and how often the daemon had died by then.
    entered: BTreeMap<u32, (Duration, u32)>,
    /// How many hosts have to serve while each of its deployments goes on, as the project says; what the engine makes of that is not asked.
    floors: BTreeMap<u32, usize>,
}

/// What the runs of a project have come to, as people were told.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    /// Trees that were found bad, and when that was known, wall time.
    bad: BTreeMap<Sha, i64>,
    /// How many bad ones there were since the last good one, and since when, wall time.
    in_a_row: (u32, i64),
}

/// What was decided a moment before something was known goes by what was known then.
const MOMENT: Duration = Duration::from_secs(1);
const MOMENT_MS: i64 = 1_000;
/// Whoever puts what is known-good on hosts does not wait longer for a list of hosts that are known.
const PLANNED_BACK: Duration = Duration::from_secs(12);
/// So many bad releases in a row, and nothing starts by itself.
const RESTS_AFTER: u32 = 3;

impl Followed {
    pub(super) fn last(&self) -> u64 {
        self.last.0
    }

    pub(super) fn is_over(&self) -> bool {
        self.run.end.is_some()
    }
}

/// What switches a host.
fn switches(command: &str) -> bool {
    matches!(command, "drain" | "stop" | "deploy" | "undo")
}

/// Records of a run have reached the disk.
pub(super) fn heard(state: &mut State, now: Duration, id: &RunId, records: &[(Seq, u32, Record)]) {
    let deaths = state.deaths;
    for (seq, _, record) in records {
        let known = state.runs.get(id).map_or(Seq(0), |followed| followed.last);
        if *seq <= known {
            continue;
        }
        if seq.0 != known.0 + 1 {
            return state.breaks(now, &format!("run {id}: record {} came after {}", seq.0, known.0));
        }
        if state.tells() && !matches!(record.event, Event::Observed { .. } | Event::Measured { .. }) {
            state.tell(now, &format!("{id}: {}", words(&record.event)));
        }
        before(state, now, id, record);
        let followed = match state.runs.get_mut(id) {
            None => match Run::begin(record) {
                Ok(run) => {
                    let (begun, entered, floors) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
                    let followed = Followed { run, last: *seq, begun, entered, floors };
                    state.runs.insert(id.clone(), followed);
                    continue;
                }
                Err(illegal) => return state.breaks(now, &format!("run {id} cannot begin: {illegal}")),
            },
            Some(followed) => followed,
        };
        followed.last = *seq;
        match &record.event {
            Event::Begin { token, .. } => drop(followed.begun.insert(token.to_string())),
            Event::LeaseGranted { deployment, .. } => drop(followed.entered.insert(*deployment, (now, deaths))),
            _ => {}
        }
        if let Some((deployment, floor)) = floor(followed, &record.event) {
            followed.floors.insert(deployment, floor);
        }
        if let Err(illegal) = followed.run.next(record) {
            return state.breaks(now, &format!("run {id} cannot be folded: {illegal}"));
        }
        after(state, now, id, record);
    }
}

/// A life begins with what is on disk: `last` records of a run.
pub(super) fn found(state: &mut State, now: Duration, id: &RunId, last: usize) {
    let known = state.runs.get(id).map_or(0, |followed| followed.last.0);
    if (last as u64) < known {
        state.breaks(now, &format!("run {id}: {known} records were on disk, and {last} are left"));
    }
}

fn words(event: &Event) -> String {
    let text = serde_json::to_string(event).unwrap_or_default();
    let text: String = text.chars().take(if matches!(event, Event::Started(_)) { 60 } else { 400 }).collect();
    text
}

/// The host whose turn comes with this call.
fn turn(run: &Run, key: &CallKey) -> Option<(u32, HostId)> {
    let Some(step::Place::Host { deployment, host, function }) = key.place() else { return None };
    let of = run.deployment(deployment)?.host(&host)?;
    (matches!(function.as_str(), "drain" | "deploy") && of.begun.is_none()).then_some((deployment, host))
}

/// What must hold before a fact is one: as it was decided.
fn before(state: &mut State, now: Duration, id: &RunId, record: &Record) {
    if let Event::Started(header) = &record.event
        && let Some(why) = disturbs(state, header)
    {
        return state.breaks(now, &format!("run {id} begins by itself although {why}"));
    }
    let Some(followed) = state.runs.get(id) else { return };
    let run = &followed.run;
    let wrong = match &record.event {
        Event::Call { key, .. } => beside(run, key).or_else(|| {
            let (n, host) = turn(run, key)?;
            let of = run.deployment(n)?;
            let forward = Some(of).filter(|of| of.rollback_of.is_none());
            let why = two_zones(run, of, &host)
                .or_else(|| over_budget(run, forward?, &host))
                .or_else(|| too_few(followed, of, &host));
            why.map(|why| format!("{host} is taken although {why}"))
        }),
        Event::Planned { deployment, .. } if run.target.is_some() => {
            let entered = followed.entered.get(deployment).filter(|(_, deaths)| *deaths == state.deaths);
            let waited = entered.map(|(at, _)| now.saturating_sub(*at)).filter(|waited| *waited > PLANNED_BACK);
            waited
                .filter(|_| state.scenario.full.is_empty())
                .map(|waited| format!("its way to what is known-good was planned after {waited:?}"))
        }
        Event::Resolved { release, target: None, .. } => {
            let verdicts = state.verdicts.get(&run.header.project);
            verdicts.and_then(|known| takes_bad(known, run, &release.commit.tree, record.at.wall_ms))
        }
        _ => None,
    };
    if let Some(wrong) = wrong {
        state.breaks(now, &format!("run {id}: {wrong}"));
    }
}

/// Why nothing may be brought to an environment by itself: its last deployment left a mixture, for people to look at.
fn disturbs(state: &State, header: &Header) -> Option<String> {
    let request = &header.request;
    // None of the people here asks for it.
    let environment = request.environment.as_ref().filter(|_| request.trigger == Trigger::Converge)?;
    // By when they were begun, as the engine counts. What ended at the same moment may not have been known.
    let known = |run: &&Run| matches!(&run.end, Some((.., at)) if at.wall_ms + MOMENT_MS < request.requested_at_ms);
    let runs = state.runs.values().map(|followed| &followed.run);
    let own = runs.filter(|run| run.header.project == header.project).filter(known);
    let (mut left_by, mut mixed) = (None, false);
    for run in own.filter(|run| !matches!(run.header.request.purpose, Purpose::Converge { .. })) {
        // One that only waited at the door has left nothing there.
        let here = |of: &&Deployment| of.environment == *environment && of.rollback_of.is_none() && of.lease.is_some();
        for of in run.deployments.iter().filter(here) {
            let Some((end, ..)) = &of.end else { continue };
            mixed = end.is_mixture() && (mixed || of.may_have_touched());
            left_by = Some((&run.header.run, end));
        }
    }
    let (run, end) = left_by.filter(|_| mixed)?;
    Some(format!("run {run} left {environment} {end:?}"))
}

/// Why a run may not take a release with this tree.
fn takes_bad(known: &Verdicts, run: &Run, tree: &Sha, at_ms: i64) -> Option<String> {
    let request = &run.header.request;
    if request.retry_bad {
        return None;
    }
    if known.bad.get(tree).is_some_and(|since| since + MOMENT_MS < at_ms) {
        return Some(format!("it takes a release with the tree {tree}, which is known to be bad"));
    }
    let (count, since) = known.in_a_row;
    let by_itself = request.trigger != Trigger::Api;
    (by_itself && count >= RESTS_AFTER && since + MOMENT_MS < at_ms)
        .then(|| format!("it starts by itself after {count} bad releases in a row"))
}

/// Hosts of two zones are not taken at once; on the way back, one that did not serve is taken from none.
fn two_zones(run: &Run, of: &Deployment, host: &HostId) -> Option<String> {
    let environment = run.environment(&of.environment)?;
    let counts = |host: &HostRun| of.target.is_none() || host.ill.is_none();
    let own = of.host(host).filter(|own| environment.rollout.zones && counts(own))?;
    let elsewhere = |other: &&HostRun| other.in_flight() && counts(other) && other.host.zone != own.host.zone;
    let other = of.hosts.iter().find(elsewhere)?;
    Some(format!("{} of another zone is under way", other.host.id))
}

/// How many hosts of a deployment may be taken at the same moment: what converges goes as a deployment does, what goes back as a rollback.
fn at_once(run: &Run, of: &Deployment, rollout: &Rollout) -> usize {
    let converges = matches!(run.header.request.purpose, Purpose::Converge { .. });
    let back = of.rollback_of.is_some() || (run.target.is_some() && !converges);
    rollout.rollback_parallel.filter(|_| back).unwrap_or(rollout.max_parallel).max(1) as usize
}

/// Why a deployment may not take another host.
fn over_budget(run: &Run, of: &Deployment, host: &HostId) -> Option<String> {
    let Some(budgets) = &of.budgets else { return Some("nothing is planned".to_owned()) };
    let Some(spec) = of.spec(run) else { return Some("it has no environment".to_owned()) };
    let count = |state| of.hosts.iter().filter(|host| host.verdict() == state).count();
    let failed = count(HostState::Failed).saturating_sub(of.forgiven.failed);
    if failed > budgets.max_failures {
        return Some(format!("{failed} hosts failed and max_failures is {}", budgets.max_failures));
    }
    let shut = count(HostState::Unreachable).saturating_sub(of.forgiven.unreachable);
    if shut > budgets.max_unreachable {
        return Some(format!("{shut} hosts are unreachable and max_unreachable is {}", budgets.max_unreachable));
    }
    let flying: Vec<_> = of.hosts.iter().filter(|h| h.in_flight() && h.host.id != *host).collect();
    let most = at_once(run, of, &spec.rollout);
    if flying.len() >= most {
        return Some(format!("{} are under way and max_parallel is {most}", flying.len()));
    }
    of.judged.is_some().then(|| "it is judged".to_owned())
}

/// Hooks of a whole deployment may do something on any host: none of its hosts is on its way back meanwhile.
fn beside(run: &Run, key: &CallKey) -> Option<String> {
    let (deployment, function) = match key.place()? {
        step::Place::Deployment { deployment, function } if key.undone().is_none() => (deployment, function),
        _ => return None,
    };
    let back = run.deployments.iter().find(|of| of.rollback_of == Some(deployment) && of.end.is_none())?;
    Some(format!("{function} begins while {} hosts are on their way back", back.hosts.len()))
}

/// How many hosts have to serve from this on, where it says something of that: as many as `min_healthy` says, or as served less those that
/// may be missing; on the way back never so many that not one could be taken.
fn floor(followed: &Followed, event: &Event) -> Option<(u32, usize)> {
    let run = &followed.run;
    let known = |n: u32| followed.floors.get(&n).copied().unwrap_or_default();
    let says = |n: u32| Some(run.deployment(n)?.spec(run)?.rollout.min_healthy);
    match event {
        Event::Planned { deployment, hosts, phases, .. } => {
            let rollout = &run.deployment(*deployment)?.spec(run)?.rollout;
            let serving = hosts.iter().filter(|host| !phases.ill.contains_key(&host.id)).count();
            let of = |budget: Budget| budget.of(hosts.len());
            let at_once = rollout.max_parallel as usize;
            let usual = match run.header.request.purpose {
                // What the hosts do that do not go is in no record.
                Purpose::Converge { .. } => return Some((*deployment, phases.min_healthy as usize)),
                Purpose::Deploy => {
                    serving.saturating_sub(at_once + of(rollout.max_failures) + of(rollout.max_unreachable))
                }
                Purpose::Rollback { .. } | Purpose::Adopt => serving.saturating_sub(at_once),
            };
            Some((*deployment, rollout.min_healthy.map_or(usual, |floor| floor.floor_of(hosts.len()))))
        }
        Event::DeploymentCreated { deployment, back: Some(back), .. } => {
            let of = run.deployment(back.of)?;
            let rollout = &of.phases.target.as_ref()?.environment.rollout;
            let at_once = rollout.rollback_parallel.unwrap_or(rollout.max_parallel).max(1) as usize;
            let taken = if rollout.min_healthy.is_some() { 1 } else { at_once };
            Some((*deployment, known(back.of).min(of.healthy().saturating_sub(taken))))
        }
        Event::FleetSeen { deployment, gone, .. } if says(*deployment)?.is_none() => {
            let went = |host: &&HostRun| gone.contains(&host.host.id) && !host.gone && host.ill.is_none();
            let went = run.deployment(*deployment)?.hosts.iter().filter(went).count();
            Some((*deployment, known(*deployment).saturating_sub(went)))
        }
        Event::Promoted { deployment, .. } => {
            let of = run.deployment(*deployment)?;
            let count = |state| of.hosts.iter().filter(|host| host.verdict() == state).count();
            let bad = count(HostState::Failed) + count(HostState::Unreachable);
            let fewer = bad.saturating_sub(of.forgiven.failed + of.forgiven.unreachable);
            Some((*deployment, known(*deployment).saturating_sub(fewer)))
        }
        _ => None,
    }
}

/// Whether fewer hosts would serve than have to, as far as the run knows. On the way back those count too that are not taken back, and
/// hosts that were lost do not keep the others from it.
fn too_few(followed: &Followed, of: &Deployment, host: &HostId) -> Option<String> {
    of.host(host).filter(|own| own.is_healthy())?;
    let whole = of.rollback_of.and_then(|back| followed.run.deployment(back));
    let stay = |whole: &Deployment| whole.hosts.iter().filter(|host| host.back.is_none() && host.is_healthy()).count();
    let lost = of.hosts.iter().filter(|host| host.verdict() == HostState::Unreachable).count();
    let lost = if of.target.is_some() { lost } else { 0 };
    let least = followed.floors.get(&of.n).copied().unwrap_or_default().saturating_sub(lost);
    let left = of.healthy() + whole.map_or(0, stay) - 1;
    (left < least).then(|| format!("{left} hosts would be left that serve, and min_healthy is {least}"))
}

/// A command begins on a machine.
pub(super) fn begins(state: &mut State, now: Duration, machine: Option<&str>, token: &str, command: &Command) {
    let line = command.line();
    let run: Option<RunId> = command.variable("RUN").parse().ok();
    let told =
        |state: &State| run.as_ref().and_then(|run| state.runs.get(run)).is_some_and(|f| f.begun.contains(token));
    if let Some(run) = run.as_ref().filter(|_| !told(state)) {
        // An earlier life may have begun it, and nobody was told.
        state.catch_up(now, run);
    }
    let Some(followed) = run.as_ref().and_then(|run| state.runs.get(run)) else {
        return state.breaks(now, &format!("{line} begins, and its run is not on disk"));
    };
    if !followed.begun.contains(token) {
        return state.breaks(now, &format!("{line} begins on {machine:?}, and its `begin` is not on disk"));
    }
    if followed.is_over() {
        return state.breaks(now, &format!("{line} begins on {machine:?}, and its run is over"));
    }
    let Some((id, place)) = machine.and_then(|id| Some((id, scenario::place(scenario::number(id)?)))) else { return };
    let name = command.variable("DEPLOYMENT");
    let number = name.rsplit('.').next().and_then(|n| n.parse().ok());
    let Some(of) = number.and_then(|n| followed.run.deployment(n)) else {
        return state.breaks(now, &format!("{line} begins on {id}, and its deployment is not on disk"));
    };
    if of.budgets.is_none() {
        return state.breaks(now, &format!("{line} begins on {id} before its plan is on disk"));
    }
    if of.end.is_some() {
        return state.breaks(now, &format!("{line} begins on {id}, and its deployment has ended"));
    }
    if let Some(why) = shut(state, followed, of, place, now) {
        return state.breaks(now, &format!("{line} begins on {id}, {why}"));
    }
    let most = followed
        .run
        .deployment(of.n)
        .and_then(|of| of.spec(&followed.run))
        .map_or(1, |spec| at_once(&followed.run, of, &spec.rollout));
    let alone = of.alone;
    let watched = of.spec(&followed.run).is_some_and(|spec| spec.health.is_some());
    let all_go = matches!(followed.run.header.request.purpose, Purpose::Deploy | Purpose::Rollback { .. });
    let whole = all_go && of.rollback_of.is_none();
    // The hosts that must serve in such a number: on the way back those of what is taken back.
    let within = of.rollback_of.and_then(|back| followed.run.deployment(back)).unwrap_or(of);
    let within: BTreeSet<HostId> = within.hosts.iter().map(|host| host.host.id.clone()).collect();
    let floor = Floor { hosts: within, least: followed.floors.get(&of.n).copied().unwrap_or_default() };
    let floor = Some(floor).filter(|_| watched && !alone && (whole || of.rollback_of.is_some()));
    // Somebody else's hands on the host.
    let other = state
        .machines
        .get(id)
        .and_then(|machine| machine.running().find(|other| other.variable("DEPLOYMENT") != name))
        .map(Command::line);
    if let Some(other) = other {
        return state.breaks(now, &format!("{line} begins on {id} while {other} runs there"));
    }
    let holding = |state: &State| -> Option<RunId> {
        let near = |other: &Run, of: &Deployment| {
            let other = state.scenario.place_of(other.header.project.as_str(), of.environment.as_str());
            other.is_some_and(|other| state.scenario.share(place, other))
        };
        let holds = |other: &&Run| {
            Some(&other.header.run) != run.as_ref()
                && other.deployments.iter().any(|of| of.end.is_none() && of.touched() && near(other, of))
        };
        state.runs.values().map(|followed| &followed.run).find(holds).map(|other| other.header.run.clone())
    };
    if let Some(other) = holding(state) {
        // A life that was killed may have ended it, and nobody was told.
        state.catch_up(now, &other);
    }
    if let Some(other) = holding(state) {
        return state.breaks(now, &format!("{line} begins on {id} while run {other} deploys"));
    }
    if let Some(why) = below_floor(state, now, id, floor, command) {
        return state.breaks(now, &format!("{line} begins on {id}: {why}"));
    }
    if switches(&command.command) && !alone {
        let busy = state.machines.iter().filter(|(other, machine)| {
            other.as_str() != id && machine.running().any(|c| c.variable("DEPLOYMENT") == name && switches(&c.command))
        });
        let busy = busy.count() + 1;
        if busy > most {
            state.breaks(now, &format!("{line} begins on {id}: {busy} hosts at once, and {most} may be"));
        }
    }
}

/// Why nothing of a deployment may begin on the hosts of `place`.
fn shut(state: &State, followed: &Followed, of: &Deployment, place: Place, now: Duration) -> Option<String> {
    let (run, scenario) = (&followed.run, &state.scenario);
    let own = scenario.place_of(run.header.project.as_str(), of.environment.as_str());
    if own != Some(place) {
        return Some(format!("which is none of {} of {}", of.environment, run.header.project));
    }
    if state.held.iter().any(|held| scenario.share(held.place, place) && (held.from..held.until).contains(&now)) {
        return Some("and a person has the environment".to_owned());
    }
    if !run.header.request.purpose.is_deploy() || of.rollback_of.is_some() {
        return None;
    }
    let (entered, _) = followed.entered.get(&of.n).copied().unwrap_or_default();
    if state
        .frozen
        .iter()
        .any(|frozen| frozen.place == place && (frozen.from + MOMENT..frozen.until).contains(&entered))
    {
        return Some("which entered while it was frozen".to_owned());
    }
    let good = |name: &EnvironmentName| {
        let succeeded = |of: &&Deployment| matches!(of.end, Some((DeploymentState::Succeeded, ..)));
        run.live.contains(name) || run.deployments.iter().filter(succeeded).any(|of| of.environment == *name)
    };
    let mut earlier = run.header.pipeline.environments.iter().take(place.1).map(|environment| &environment.name);
    earlier.find(|name| !good(name)).map(|name| format!("and {name} before it is not good"))
}

/// How many of these hosts have to serve.
struct Floor {
    hosts: BTreeSet<HostId>,
    least: usize,
}

/// Whether fewer hosts would serve than must, where nothing but the deployment itself has made hosts ill: what else does so nobody can
/// know in time.
fn below_floor(state: &State, now: Duration, id: &str, floor: Option<Floor>, command: &Command) -> Option<String> {
    let Floor { hosts, least } = floor.filter(|_| switches(&command.command) && state.disturbed.is_empty())?;
    let fickle =
        |serves: &String| matches!(state.behaviour(serves), Some(Behaviour::SickensAfter(_) | Behaviour::Flaps(_)));
    let all = || hosts.iter().filter_map(|host| Some((host.as_str(), state.machines.get(host.as_str())?)));
    if all().any(|(_, machine)| !machine.served || machine.serves.as_ref().is_some_and(fickle)) {
        return None;
    }
    let serves = |id: &str, machine: &Machine| {
        state.healthy(id, now) && !machine.drained && !machine.running().any(|command| switches(&command.command))
    };
    let taken = all().any(|(host, machine)| host == id && serves(host, machine));
    let left = all().filter(|(host, machine)| *host != id && serves(host, machine)).count();
    (taken && left < least).then(|| format!("{left} hosts serve then, and min_healthy is {least}"))
}

/// What must hold once a fact is one.
fn after(state: &mut State, now: Duration, id: &RunId, record: &Record) {
    let Some(followed) = state.runs.get(id) else { return };
    if let Event::DeploymentEnded { deployment, .. } = &record.event {
        let claims = followed.run.deployment(*deployment).and_then(|of| claims_too_much(state, &followed.run, of));
        if let Some(why) = claims {
            return state.breaks(now, &format!("run {id} ended deployment {deployment}: {why}"));
        }
    }
    let Event::End { state: end, .. } = &record.event else { return };
    let run = followed.run.clone();
    let found = match end {
        RunState::Failed => untouched(state, &run),
        RunState::RolledBack => gone_back(state, &run),
        RunState::Damaged => Some("it is damaged".to_owned()),
        _ => None,
    };
    if let Some(why) = found {
        state.breaks(now, &format!("run {id} ended {end:?}: {why}"));
    }
    let took = run.last_at.since(&run.started_at);
    let bound = bound(state, &run);
    if took > bound {
        state.breaks(now, &format!("run {id} took {took:?}, its bound is {bound:?}"));
    }
    learn(state.verdicts.entry(run.header.project.clone()).or_default(), &run, *end, record.at.wall_ms);
}

/// What a run's end says of its release.
fn learn(known: &mut Verdicts, run: &Run, end: RunState, at_ms: i64) {
    let Some(release) = run.release.as_ref().filter(|_| run.target.is_none()) else { return };
    let tree = &release.commit.tree;
    if run.deployments.iter().any(|of| of.judged.as_ref().is_some_and(|judged| judged.bad)) {
        known.bad.insert(tree.clone(), at_ms);
        known.in_a_row = (known.in_a_row.0 + 1, at_ms);
    } else if end == RunState::Succeeded && !run.deployments.is_empty() {
        known.bad.remove(tree);
        known.in_a_row = (0, at_ms);
    }
}

/// A host that is said to be healthy, or back, serves what it is said to.
fn claims_too_much(state: &State, run: &Run, of: &Deployment) -> Option<String> {
    let good = known_good(state, run, of);
    let release = of.release(run).map(|release| &release.id);
    of.hosts.iter().find_map(|host| {
        let id = host.host.id.as_str();
        let claims = host.state(true);
        let holds = |serves: &str| match claims {
            HostState::Healthy => release.is_some_and(|release| release.as_str() == serves),
            HostState::RolledBack | HostState::Quarantined => good.iter().any(|good| good.as_str() == serves),
            _ => true,
        };
        let machine = state.machines.get(id).filter(|_| !state.rebooted.contains(id))?;
        let serves = machine.serves.as_deref().unwrap_or_default();
        (!holds(serves)).then(|| format!("{id} is said to be {claims:?}, and serves {serves:?}"))
    })
}

/// Nothing was switched by a run that failed.
fn untouched(state: &State, run: &Run) -> Option<String> {
    let id = run.header.run.as_str();
    let touches = |c: &Command| c.variable("RUN") == id && switches(&c.command);
    let (host, _) = state.machines.iter().find(|(_, machine)| machine.commands.values().any(touches))?;
    Some(format!("{host} was touched"))
}

/// Every host that was touched and can be reached has a known-good release.
fn gone_back(state: &State, run: &Run) -> Option<String> {
    for of in run.deployments.iter().filter(|of| matches!(of.end, Some((DeploymentState::RolledBack, ..)))) {
        for host in of.hosts.iter().filter(|host| host.touched && !host.gone) {
            let id = host.host.id.as_str();
            let back = run.deployments.iter().filter(|back| back.rollback_of == Some(of.n));
            let shut = back.filter_map(|back| back.host(&host.host.id)).any(|h| h.verdict() == HostState::Unreachable);
            if shut || state.rebooted.contains(id) || !state.is_well(id) {
                continue;
            }
            let serves = state.machines.get(id).and_then(|machine| machine.serves.clone());
            let good = |release: &String| known_good(state, run, of).iter().any(|good| good.as_str() == release);
            if !serves.as_ref().is_some_and(good) {
                return Some(format!("{id} serves {serves:?}, which is not known-good"));
            }
        }
    }
    None
}

/// Releases that a deployment of theirs has made known-good in an environment.
fn known_good(state: &State, run: &Run, of: &Deployment) -> BTreeSet<ReleaseId> {
    let own = state.runs.values().filter(|followed| followed.run.header.project == run.header.project);
    let deployments = own.flat_map(|followed| {
        followed.run.deployments.iter().filter(|other| other.environment == of.environment).filter_map(|of| {
            let good = matches!(of.end, Some((DeploymentState::Succeeded, ..)));
            of.release(&followed.run).filter(|_| good).map(|release| release.id.clone())
        })
    });
    deployments.collect()
}

/// The longest a run may take: every call its whole limit, one host after the other, forwards and back, each watch and bake to its end.
fn bound(state: &State, run: &Run) -> Duration {
    let ms = |ms: u64| Duration::from_millis(ms);
    let mut bound = Duration::from_secs(3600) + state.away * 2 + state.scenario.kept();
    for stage in &run.header.pipeline.stages {
        bound += ms(stage.timeout_ms) * 3;
    }
    for environment in &run.header.pipeline.environments {
        let hosts = u32::try_from(state.machines.len()).unwrap_or(u32::MAX);
        let watch = environment.health.as_ref().map_or(0, |health| health.healthy_deadline_ms);
        let rollout = &environment.rollout;
        // Two calls that time out each, with what a lost connection may add.
        let host = ms(environment.timeout_ms) * 3 + ms(watch) + ms(rollout.stagger_ms);
        bound += host * (hosts * 2) + (ms(rollout.max_bake_ms) + ms(environment.timeout_ms) * 2) * (hosts + 1);
        bound += ms(environment.timeout_ms) * 6 + ms(rollout.pause_timeout_ms) * 8;
    }
    bound
}
