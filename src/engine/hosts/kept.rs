//! What is known of fleets beyond the life of the daemon: one control record for each environment, `discovery/<project>/<environment>`,
//! and a blob for each list. It is written when something has changed, and once in a while so that the age of a list stays true.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Told,
    fleet::{Change, Failed, Fleet, Gone, Good, KnownSource, Origin},
    sources,
};
use crate::{
    engine::{ledger, world::World},
    model::{
        cause::Cause,
        host::Host,
        ids::{Digest, EnvironmentName, ProjectName},
        pipeline::{Environment, SourceLimits},
    },
    ports::control::Commit,
    time::within,
};

/// A list's age may be so far off after a restart.
const REFRESH_MS: i64 = 10 * 60_000;

/// How long the disk is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    sources: Vec<KeptSource>,
    gone: Vec<Gone>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct KeptSource {
    #[serde(flatten)]
    origin: Origin,
    /// The blob with the last good list, and when it was good.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    hosts: Option<Digest>,
    #[serde(default)]
    at_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    error: Option<Failed>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    change: Option<Change>,
}

fn key(project: &ProjectName, environment: &EnvironmentName) -> String {
    format!("discovery/{project}/{environment}")
}

/// What is known, from what an earlier daemon has left where this one knows nothing yet.
pub(super) async fn fleet(world: &World, project: &ProjectName, environment: &EnvironmentName) -> Arc<Fleet> {
    if let Some(known) = world.fleets.get(project, environment) {
        return known;
    }
    let Some(kept) = read(world, project, environment) else {
        return world.fleets.change(project, environment, Fleet::clone);
    };
    let blobs = Arc::clone(&world.blobs);
    let opened = world.tasks.blocking(move || {
        let list = |digest: &Digest| -> Option<Vec<Host>> { serde_json::from_slice(&blobs.get(digest).ok()?).ok() };
        let sources = kept.sources.into_iter().map(|source| KnownSource {
            good: source.hosts.as_ref().and_then(|blob| {
                let hosts = Arc::new(list(blob)?);
                Some(Good { hosts, at_ms: source.at_ms, blob: Some(blob.clone()) })
            }),
            origin: source.origin,
            asked: None,
            took: Duration::ZERO,
            error: source.error,
            change: source.change,
        });
        Fleet { sources: sources.collect(), gone: kept.gone }
    });
    let opened = opened.await.unwrap_or_default();
    // Whoever is on the way back does not wait for its turn: the one that has it may have asked meanwhile, and knows better.
    world.fleets.change(project, environment, |known| if known.sources.is_empty() { opened } else { known.clone() })
}

fn read(world: &World, project: &ProjectName, environment: &EnvironmentName) -> Option<Kept> {
    let entry = world.control.get(&key(project, environment))?;
    serde_json::from_value(entry.value).ok()
}

/// Takes answers in, and keeps what they change.
pub(super) async fn take_in(
    world: &World,
    project: &ProjectName,
    environment: &Environment,
    told: Vec<Told>,
    accept: bool,
) -> Arc<Fleet> {
    let limits: BTreeMap<Origin, &SourceLimits> =
        sources(environment).into_iter().map(|source| (source.origin, source.limits)).collect();
    let usual = environment.rollout.max_shrink;
    let now_ms = world.clock.now().wall_ms;
    world.fleets.change(project, &environment.name, |known| {
        let mut fleet = known.clone();
        fleet.prune(&limits.keys().collect(), now_ms);
        let before = fleet.merged_before(environment);
        for told in told {
            let (label, origin) = (told.label.clone(), told.origin.clone());
            let failed = |fleet: &Fleet| {
                fleet.known(&origin).and_then(|known| known.error.as_ref()).map(|error| error.cause.clone())
            };
            let was = failed(&fleet);
            if let Some(limits) = limits.get(&origin) {
                fleet.hear(told, limits, usual, accept);
            }
            say(project, environment, &label, was.as_ref(), failed(&fleet).as_ref());
        }
        let now = fleet.merged(environment);
        fleet.compare(&before, &now, now_ms);
        fleet
    });
    keep(world, project, environment).await
}

/// Takes the keys that sources gave a host off their last lists: they are asked for them again. `false` = none gave any.
pub(in crate::engine) async fn forget_keys(
    world: &World,
    project: &ProjectName,
    environment: &Environment,
    id: &str,
) -> bool {
    // What an earlier daemon has left counts too.
    fleet(world, project, &environment.name).await;
    let mut any = false;
    world.fleets.change(project, &environment.name, |known| {
        let mut fleet = known.clone();
        any = fleet.forget_keys(id);
        fleet
    });
    if any {
        keep(world, project, environment).await;
    }
    any
}

/// A line of the log when a source begins to fail, fails otherwise, or is well again.
fn say(project: &ProjectName, environment: &Environment, source: &str, was: Option<&Cause>, is: Option<&Cause>) {
    match (was, is) {
        (Some(was), Some(is)) if was.code == is.code => {}
        (_, Some(cause)) => {
            tracing::warn!(%project, environment = %environment.name, source, %cause, "a source of hosts fails; its last good list stays");
        }
        (Some(_), None) => {
            tracing::info!(%project, environment = %environment.name, source, "a source of hosts is well again")
        }
        (None, None) => {}
    }
}

/// Puts down what is worth it. That it cannot be written takes nothing away: it is only not known after a restart.
async fn keep(world: &World, project: &ProjectName, environment: &Environment) -> Arc<Fleet> {
    let turn = world.fleets.keeping(project, &environment.name);
    let in_order = turn.lock().await;
    let mut fleet = fleet(world, project, &environment.name).await;
    let hold = world.blobs.hold();
    // What is heard of other sources meanwhile is put down with it, so that no list is missing in the record for a moment.
    loop {
        let lists = unkept(&fleet);
        let put = put(world, &lists).await;
        fleet = world.fleets.change(project, &environment.name, |known| {
            let mut fleet = known.clone();
            for good in fleet.sources.iter_mut().filter_map(|source| source.good.as_mut()) {
                let same = put.iter().find(|(hosts, _)| Arc::ptr_eq(hosts, &good.hosts));
                good.blob = same.map(|(_, blob)| blob.clone()).or(good.blob.take());
            }
            fleet
        });
        if put.len() < lists.len() || unkept(&fleet).is_empty() {
            break;
        }
    }
    let kept = Kept {
        sources: fleet
            .sources
            .iter()
            .map(|source| KeptSource {
                origin: source.origin.clone(),
                hosts: source.good.as_ref().and_then(|good| good.blob.clone()),
                at_ms: source.good.as_ref().map_or(0, |good| good.at_ms),
                error: source
                    .error
                    .as_ref()
                    .map(|error| Failed { cause: ledger::brief(&error.cause), ..error.clone() }),
                change: source.change.clone(),
            })
            .collect(),
        gone: fleet.gone.clone(),
    };
    if read(world, project, &environment.name).is_some_and(|before| before.says(&kept)) {
        return fleet;
    }
    let committed =
        world.control.commit(Commit::Setting, &[], vec![(key(project, &environment.name), Some(json!(kept)))]);
    drop(in_order);
    match committed {
        Ok(ticket) => {
            // What is shown is on disk. A disk that has no room does not keep hosts from being asked for.
            if within(&*world.clock, PATIENCE, ticket.synced()).await.is_none() {
                world.tasks.spawn(format!("hosts of {project} {}", environment.name), async move {
                    // The blobs are safe once the record that names them is.
                    let _degraded_and_told_elsewhere = ticket.synced().await;
                    drop(hold);
                });
            }
        }
        Err(error) => {
            tracing::warn!(%project, environment = %environment.name, %error, "the hosts that were found cannot be kept")
        }
    }
    fleet
}

/// The lists that are in no blob yet.
fn unkept(fleet: &Fleet) -> Vec<Arc<Vec<Host>>> {
    let good = fleet.sources.iter().filter_map(|source| source.good.as_ref());
    good.filter(|good| good.blob.is_none()).map(|good| Arc::clone(&good.hosts)).collect()
}

/// Those of the lists that could be put into blobs.
async fn put(world: &World, lists: &[Arc<Vec<Host>>]) -> Vec<(Arc<Vec<Host>>, Digest)> {
    let (blobs, lists) = (Arc::clone(&world.blobs), lists.to_vec());
    let put = world.tasks.blocking(move || {
        let put = |hosts: Arc<Vec<Host>>| {
            let blob = blobs.put(&serde_json::to_vec(&*hosts).ok()?).ok()?;
            Some((hosts, blob))
        };
        lists.into_iter().filter_map(put).collect::<Vec<_>>()
    });
    put.await.unwrap_or_default()
}

impl Kept {
    /// Whether `now` is no news: the same, but for lists that are still good a little later.
    fn says(&self, now: &Kept) -> bool {
        let same = |before: &KeptSource, now: &KeptSource| {
            let error = |of: &KeptSource| of.error.as_ref().map(|error| (error.cause.code.clone(), error.since_ms));
            before.origin == now.origin
                && before.hosts == now.hosts
                && now.at_ms - before.at_ms < REFRESH_MS
                && error(before) == error(now)
                && before.change == now.change
        };
        self.gone == now.gone
            && self.sources.len() == now.sources.len()
            && self.sources.iter().zip(&now.sources).all(|(before, now)| same(before, now))
    }
}
