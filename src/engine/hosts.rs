//! The hosts of an environment: every source is asked, what is believed of its answer is kept, and together they are merged by id.
//!
//! A source that fails, or says what cannot be, does not take hosts away: its last good list stands in for it, visibly. Whether that will do
//! depends on what it is for, see [`Need`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::json;

use super::{ledger, plugin, world::World};
use crate::{
    model::{
        cause::Cause,
        discovery::{self, Merged, Out, Said},
        host::Host,
        host_key::HostKeys,
        ids::{Digest, HostId, ProjectName},
        pipeline::{Environment, HostSource, SourceLimits},
    },
    ports::{control::CommitError, journal::Ticket},
    time::{Span, Stamp, within},
};

pub(super) mod check;
pub(super) mod fleet;
pub(super) mod kept;
pub(super) mod keys;
pub(super) mod show;
pub(super) mod watch;

pub(super) use fleet::Fleet;
use fleet::{Good, Origin, Told};

/// What hosts are wanted for, and with it what will do for a source that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Something new begins: a list may stand in until it is `max_age` old, and one that cannot be stops it.
    New,
    /// The same for hosts that lack what is live, which are looked for again and again: from what is known, where that is no older than each
    /// source's `interval`.
    Late,
    /// A wave of what is under way: the list as it was is better than none, whoever is gone cannot be reached, and that has a budget. One that
    /// cannot be stops it, but for one that is only too long.
    Wave,
    /// The way back, and looks: whatever is known will do, and is not waited for long.
    Back,
}

/// For the way back: how long a source is waited for whose hosts are known.
const PATIENCE: Duration = Duration::from_secs(10);

/// Finds out the hosts of `environment`, by name.
///
/// # Errors
/// `discovery_failed` (with the plugin's own words), `min_hosts`, `max_shrink`, `max_growth`, `no_hosts`.
pub(super) async fn of(
    world: &World,
    project: &ProjectName,
    code: &Digest,
    environment: &Environment,
    need: Need,
) -> Result<Vec<Host>, Cause> {
    let which = if need == Need::Late { Which::Due } else { Which::All };
    let asked = ask(world, project, code, environment, which);
    let fleet = if need == Need::Back { soon(world, project, environment, asked).await } else { asked.await };
    usable(world, project, environment, &fleet, need)
}

/// What is known of the fleet after [`PATIENCE`] at the latest, if every source has told of its hosts before: all of it as it was before, since a
/// host that one source has given up may be in the list that another one owes. Who does not wait gives up its place among those who ask; the
/// next look asks again.
async fn soon(
    world: &World,
    project: &ProjectName,
    environment: &Environment,
    asked: impl Future<Output = Arc<Fleet>>,
) -> Arc<Fleet> {
    let known = kept::fleet(world, project, &environment.name).await;
    let unknown = |source: &Source<'_>| known.source(source).is_none_or(|known| known.good.is_none());
    if sources(environment).iter().any(unknown) {
        return asked.await;
    }
    match within(&*world.clock, PATIENCE, asked).await {
        Some(fleet) => fleet,
        None => {
            tracing::warn!(%project, environment = %environment.name, "the hosts are taken as they were: a source takes longer than {}", Span(PATIENCE));
            known
        }
    }
}

/// The hosts of a fleet, in the order of the rollout, if they will do.
fn usable(
    world: &World,
    project: &ProjectName,
    environment: &Environment,
    fleet: &Fleet,
    need: Need,
) -> Result<Vec<Host>, Cause> {
    let now_ms = world.clock.now().wall_ms;
    for source in sources(environment) {
        let Some(failed) = fleet.source(&source).and_then(|known| known.error.as_ref()) else { continue };
        let good = fleet.source(&source).and_then(|known| known.good.as_ref());
        let said = |more: &str| {
            let message =
                format!("discovery {} of {} failed: {}{more}", source.label, environment.name, failed.cause.message);
            Cause { code: failed.code().to_owned(), message, facts: failed.cause.facts.clone() }
        };
        let Some(good) = good else { return Err(said("")) };
        let age = Duration::from_millis(u64::try_from(now_ms - good.at_ms).unwrap_or(0));
        let age = Duration::from_secs(age.as_secs());
        match need {
            Need::Wave if failed.is_refusal() && !failed.is_too_long() => return Err(said("")),
            Need::New | Need::Late if failed.is_refusal() => return Err(said("")),
            Need::New | Need::Late if age > Duration::from_millis(source.limits.max_age_ms) => {
                let max = Span(Duration::from_millis(source.limits.max_age_ms));
                return Err(said(&format!("; its last good list is {} old, and max_age is {max}", Span(age))));
            }
            Need::New | Need::Late | Need::Wave | Need::Back => {
                tracing::warn!(
                    %project, environment = %environment.name, source = %source.label, age = %Span(age), cause = %failed.cause,
                    "the source's last good list is used"
                );
            }
        }
    }
    let merged = fleet.merged(environment);
    let mut hosts: Vec<Host> = merged.hosts.into_values().map(|host| environment.reaching(host)).collect();
    if hosts.is_empty() {
        let out = match merged.out.len() {
            0 => String::new(),
            n => format!(" ({n} are known and none is running: phased hosts {project} {})", environment.name),
        };
        let message = format!(
            "environment {} has no hosts{out}: nothing would be deployed, and that is no success",
            environment.name
        );
        return Err(Cause::new("no_hosts", message));
    }
    hosts.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(hosts)
}

/// A source that is asked.
#[derive(Debug, Clone)]
pub(super) struct Source<'e> {
    /// What people call it: the plugin's name, numbered where it is not the only one of its kind.
    pub(super) label: String,
    origin: Origin,
    limits: &'e SourceLimits,
}

/// The plugins among the sources of an environment.
fn sources(environment: &Environment) -> Vec<Source<'_>> {
    let plugins = || {
        environment.hosts.iter().filter_map(|source| match source {
            HostSource::Static(_) => None,
            HostSource::Plugin { name, function, limits, options } => {
                Some((Origin { function: function.clone(), name: name.clone(), options: options.clone() }, limits))
            }
        })
    };
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let label = |name: &str, n: usize| {
        let alone = plugins().filter(|(other, _)| other.name == name).count() == 1;
        if alone { name.to_owned() } else { format!("{name} {n}") }
    };
    plugins()
        .map(|(origin, limits)| {
            let n = seen.entry(origin.name.clone()).or_default();
            *n += 1;
            Source { label: label(&origin.name, *n), origin, limits }
        })
        .collect()
}

/// Which sources are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    /// Those that were asked longer ago than their `interval`.
    Due,
    /// Those that were never asked.
    Unknown,
}

impl Which {
    /// Whether `source` is one of them, for somebody who wanted to know at `wanted`.
    fn is_asked(self, source: &Source<'_>, known: &Fleet, wanted: &Stamp, now: &Stamp) -> bool {
        match self {
            // Whoever waits for its turn gets what the one before it was told, if that was asked for since.
            Which::All => {
                let asked = known.source(source).and_then(|known| known.asked.as_ref());
                asked.is_none_or(|asked| asked.boot != wanted.boot || asked.boot_ms < wanted.boot_ms)
            }
            Which::Due => known.is_due(source, now),
            Which::Unknown => known.source(source).is_none(),
        }
    }
}

/// Asks sources, side by side; then what is known of the fleet.
async fn ask(
    world: &World,
    project: &ProjectName,
    code: &Digest,
    environment: &Environment,
    which: Which,
) -> Arc<Fleet> {
    let sources = sources(environment);
    join_all(sources.iter().map(|source| ask_one(world, project, code, environment, source, which))).await;
    kept::fleet(world, project, &environment.name).await
}

/// Asks a source, when its turn has come, and takes its answer in.
async fn ask_one(
    world: &World,
    project: &ProjectName,
    code: &Digest,
    environment: &Environment,
    source: &Source<'_>,
    which: Which,
) {
    let wanted = world.clock.now();
    let known = kept::fleet(world, project, &environment.name).await;
    if !which.is_asked(source, &known, &wanted, &wanted) {
        return;
    }
    let turn = world.fleets.turn(project, &environment.name, &source.origin);
    let _one_at_a_time = turn.lock().await;
    let known = kept::fleet(world, project, &environment.name).await;
    if which.is_asked(source, &known, &wanted, &world.clock.now()) {
        let told = answer(world, project, code, environment, source, &known).await;
        kept::take_in(world, project, environment, vec![told], false).await;
    }
}

/// Asks again and believes whatever is answered: a person says that the rest is gone for good. What is noted of hosts that no source
/// names any more is forgotten; one that only does not run is still there.
///
/// # Errors
/// A source does not answer: nobody can say yet what is gone. And what a commit may say.
pub(super) async fn accept(
    world: &World,
    project: &ProjectName,
    code: &Digest,
    environment: &Environment,
) -> Result<Result<Ticket, Cause>, CommitError> {
    let asked = sources(environment);
    // Whoever holds one turn never waits for another, but for those who accept, and these wait in this order.
    let mut turns = Vec::new();
    for source in &asked {
        turns.push(world.fleets.turn(project, &environment.name, &source.origin).lock_owned().await);
    }
    let known = kept::fleet(world, project, &environment.name).await;
    let asking = asked.iter().map(|source| answer(world, project, code, environment, source, &known));
    let told = join_all(asking).await;
    let failed = told.iter().find_map(|told| Some((told.label.clone(), told.answer.as_ref().err()?.clone())));
    let fleet = kept::take_in(world, project, environment, told, failed.is_none()).await;
    if let Some((label, cause)) = failed {
        let message = format!(
            "nothing is accepted, because discovery {label} of {} failed: {}; mend it, or take it out of the project's file, then accept again",
            environment.name, cause.message
        );
        return Ok(Err(Cause { code: "discovery_failed".to_owned(), message, facts: cause.facts }));
    }
    let there = fleet.merged(environment);
    ledger::forget_hosts(&*world.control, project, &environment.name, |id| there.names(id)).map(Ok)
}

/// What one source answers now.
async fn answer(
    world: &World,
    project: &ProjectName,
    code: &Digest,
    environment: &Environment,
    source: &Source<'_>,
    known: &Fleet,
) -> Told {
    let asked = world.clock.now();
    let last = known.last(&source.origin);
    let ids: Vec<&HostId> =
        last.iter().flat_map(|good| good.hosts.iter()).filter(|h| h.state.is_running()).map(|h| &h.id).collect();
    // Keys that a source found out with some trouble need not be found out again: an id is one machine.
    let keys: BTreeMap<&HostId, &HostKeys> = last
        .iter()
        .flat_map(|good| good.hosts.iter())
        .filter_map(|h| Some((&h.id, h.ssh.host_keys.as_ref()?)))
        .collect();
    let input = json!({ "environment": environment.name, "project": project, "known": ids, "host_keys": keys });
    let limit = Duration::from_millis(source.limits.timeout_ms);
    let answer = plugin::run_within(world, project, code, &source.origin.function, input, limit).await;
    let answer = answer.and_then(|hosts| {
        serde_json::from_value::<Vec<Host>>(hosts).map_err(|why| Cause::new("discovery_failed", why.to_string()))
    });
    let answer = answer.and_then(|mut hosts| {
        let read = source.limits.read_labels(&mut hosts);
        read.map(|()| hosts).map_err(|why| Cause::new("discovery_failed", why))
    });
    // Services give their hosts in any order; another order is no other list.
    let answer = answer.map(|mut hosts| {
        hosts.sort_by(|a, b| a.id.cmp(&b.id));
        hosts
    });
    let took = world.clock.now().since(&asked);
    Told { origin: source.origin.clone(), label: source.label.clone(), asked, took, answer }
}

impl Fleet {
    /// Whether a source was asked longer ago than its `interval`.
    fn is_due(&self, source: &Source<'_>, now: &Stamp) -> bool {
        let asked = self.source(source).and_then(|known| known.asked.as_ref());
        asked.is_none_or(|asked| now.since(asked) >= Duration::from_millis(source.limits.interval_ms))
    }

    /// What all sources come to: the lists in the project's file, and the last good list of each plugin, in the order written.
    pub(super) fn merged(&self, environment: &Environment) -> Merged {
        self.merged_of(environment, |source| self.source(source)?.good.as_ref())
    }

    /// The same, and where a source was never asked with these options what it said with others: of what went with them it is told so.
    pub(super) fn merged_before(&self, environment: &Environment) -> Merged {
        self.merged_of(environment, |source| self.last(&source.origin))
    }

    fn merged_of<'f>(&'f self, environment: &'f Environment, good: impl Fn(&Source<'_>) -> Option<&'f Good>) -> Merged {
        let mut plugins = sources(environment).into_iter();
        let lists: Vec<(String, &[Host])> = environment
            .hosts
            .iter()
            .filter_map(|source| match source {
                HostSource::Static(hosts) => Some(("the project's list".to_owned(), hosts.as_slice())),
                HostSource::Plugin { .. } => {
                    let source = plugins.next()?;
                    let good = good(&source)?;
                    Some((source.label, good.hosts.as_slice()))
                }
            })
            .collect();
        let said: Vec<Said<'_>> = lists.iter().map(|(source, hosts)| Said { source, hosts }).collect();
        discovery::merge(&said, &environment.ssh)
    }
}

/// Why hosts are out, as far as anyone says.
pub(super) fn why_out(
    world: &World,
    project: &ProjectName,
    environment: &Environment,
    hosts: &[HostId],
) -> BTreeMap<HostId, String> {
    let Some(fleet) = world.fleets.get(project, &environment.name) else { return BTreeMap::new() };
    let now = fleet.merged(environment).out;
    let before = |id: &HostId| fleet.gone.iter().find(|gone| gone.id == *id).map(|gone| &gone.out);
    let why = |id: &HostId| Some((id.clone(), before(id).or(now.get(id))?.message.clone()));
    hosts.iter().filter_map(why).collect()
}

/// Hosts that a source says have ended, as against those that only are not named any more.
pub(super) fn ended(world: &World, project: &ProjectName, environment: &Environment) -> BTreeSet<HostId> {
    let Some(fleet) = world.fleets.get(project, &environment.name) else { return BTreeSet::new() };
    let has_ended = |out: &Out| matches!(out.code.as_str(), "stopped" | "terminated");
    let now = fleet.merged(environment).out.into_iter().filter(|(_, out)| has_ended(out)).map(|(id, _)| id);
    // Sources forget those that ended some time ago; not all of them are remembered here.
    let before = fleet.gone.iter().filter(|gone| has_ended(&gone.out)).map(|gone| gone.id.clone());
    now.chain(before).collect()
}
