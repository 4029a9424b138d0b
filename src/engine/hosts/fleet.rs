//! What is known of the fleet of an environment: what each of its sources said last, and who is gone and why.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::Source;
use crate::{
    engine::conductor::locked,
    model::{
        cause::Cause,
        discovery::{Merged, Out, believe},
        host::Host,
        ids::{Digest, EnvironmentName, HostId, ProjectName},
        pipeline::SourceLimits,
        rollout::Budget,
    },
    time::Stamp,
};

/// Of those that came or went with the last change, so many are named.
const NAMED: usize = 20;
/// So many of those that are gone are remembered, the last ones.
const REMEMBERED: usize = 100;

/// The fleets of all environments, as they were found last. What outlives the daemon is in control, see [`super::kept`].
#[derive(Debug, Default)]
pub struct Fleets {
    known: Mutex<BTreeMap<Place, Arc<Fleet>>>,
    /// Held by whoever asks the sources of an environment.
    turns: Mutex<BTreeMap<Place, Arc<tokio::sync::Mutex<()>>>>,
}

type Place = (ProjectName, EnvironmentName);

impl Fleets {
    pub(in crate::engine) fn get(&self, project: &ProjectName, environment: &EnvironmentName) -> Option<Arc<Fleet>> {
        locked(&self.known).get(&(project.clone(), environment.clone())).cloned()
    }

    /// To be held while the sources of an environment are asked.
    pub(super) fn turn(&self, project: &ProjectName, environment: &EnvironmentName) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(locked(&self.turns).entry((project.clone(), environment.clone())).or_default())
    }

    /// What `change` makes of it, nobody else changing it meanwhile.
    pub(super) fn change(
        &self,
        project: &ProjectName,
        environment: &EnvironmentName,
        change: impl FnOnce(&Fleet) -> Fleet,
    ) -> Arc<Fleet> {
        let mut all = locked(&self.known);
        let known = all.entry((project.clone(), environment.clone())).or_default();
        *known = Arc::new(change(known));
        Arc::clone(known)
    }
}

/// One environment's.
#[derive(Debug, Clone, Default)]
pub(in crate::engine) struct Fleet {
    pub(super) sources: Vec<KnownSource>,
    /// Hosts that were there, the last one first.
    pub(super) gone: Vec<Gone>,
}

/// What one source said.
#[derive(Debug, Clone)]
pub(super) struct KnownSource {
    pub(super) function: String,
    pub(super) name: String,
    /// When it was asked last; `None` = not since the daemon started.
    pub(super) asked: Option<Stamp>,
    pub(super) took: Duration,
    pub(super) good: Option<Good>,
    pub(super) error: Option<Failed>,
    pub(super) change: Option<Change>,
}

/// The last answer that was believed.
#[derive(Debug, Clone)]
pub(super) struct Good {
    pub(super) hosts: Arc<Vec<Host>>,
    /// Wall time, ms.
    pub(super) at_ms: i64,
    /// Where the hosts are kept, once they are.
    pub(super) blob: Option<Digest>,
}

/// Why the newest answer is not the one that is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Failed {
    pub(super) cause: Cause,
    /// Since when it fails, wall time, ms.
    pub(super) since_ms: i64,
}

impl Failed {
    /// It answered, and its answer cannot be.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.cause.code.as_str(), "min_hosts" | "max_shrink")
    }

    /// What a run ends with over it.
    pub(super) fn code(&self) -> &str {
        if self.is_refusal() { &self.cause.code } else { "discovery_failed" }
    }
}

/// How the last answer that differed did so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Change {
    /// Wall time, ms.
    pub(super) at_ms: i64,
    /// How many have come, and some of them.
    pub(super) came: usize,
    pub(super) came_ids: Vec<HostId>,
    /// How many do not run any more, and some of them.
    pub(super) went: usize,
    pub(super) went_ids: Vec<HostId>,
}

/// A host that was there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::engine) struct Gone {
    pub(in crate::engine) id: HostId,
    /// Since when, wall time, ms.
    pub(in crate::engine) since_ms: i64,
    #[serde(flatten)]
    pub(in crate::engine) out: Out,
}

/// One answer of one source.
pub(super) struct Told {
    pub(super) function: String,
    pub(super) name: String,
    pub(super) label: String,
    pub(super) asked: Stamp,
    pub(super) took: Duration,
    pub(super) answer: Result<Vec<Host>, Cause>,
}

impl Fleet {
    /// What is known of a source; one that has another plugin in its place now is unknown.
    pub(super) fn source(&self, source: &Source<'_>) -> Option<&KnownSource> {
        self.sources.iter().find(|known| known.function == source.function && known.name == source.name)
    }

    /// Takes an answer in. `accept`: whatever it says.
    pub(super) fn hear(&mut self, told: Told, limits: &SourceLimits, usual_shrink: Budget, accept: bool) {
        let same = |known: &KnownSource| known.function == told.function && known.name == told.name;
        let at = self.sources.iter().position(same).unwrap_or_else(|| {
            self.sources.retain(|known| known.function != told.function);
            self.sources.push(KnownSource {
                function: told.function.clone(),
                name: told.name.clone(),
                asked: None,
                took: Duration::ZERO,
                good: None,
                error: None,
                change: None,
            });
            self.sources.len() - 1
        });
        let known = &mut self.sources[at];
        // Two may ask at once; an older answer says nothing about a newer one.
        if known.asked.as_ref().is_some_and(|asked| asked.boot == told.asked.boot && asked.boot_ms > told.asked.boot_ms)
        {
            return;
        }
        let now_ms = told.asked.wall_ms;
        let believed = told.answer.and_then(|hosts| {
            let last = known.good.as_ref().map(|good| good.hosts.as_slice());
            match accept {
                true => Ok(hosts),
                false => believe(&told.label, last, &hosts, limits, usual_shrink).map(|()| hosts),
            }
        });
        (known.asked, known.took) = (Some(told.asked), told.took);
        match believed {
            Err(cause) => {
                let since_ms = known.error.as_ref().map_or(now_ms, |error| error.since_ms);
                known.error = Some(Failed { cause, since_ms });
            }
            Ok(hosts) => {
                known.error = None;
                known.good = Some(match known.good.take() {
                    Some(good) if *good.hosts == hosts => Good { at_ms: now_ms, ..good },
                    last => {
                        let before = last.as_ref().map(|last| last.hosts.as_slice());
                        known.change = Some(Change::between(before, &hosts, now_ms));
                        Good { hosts: Arc::new(hosts), at_ms: now_ms, blob: None }
                    }
                });
            }
        }
    }

    /// Writes down who is there no more, and why; whoever is back is taken out.
    pub(super) fn compare(&mut self, before: &Merged, now: &Merged, now_ms: i64) {
        self.gone.retain(|gone| !now.hosts.contains_key(&gone.id));
        for (id, host) in before.hosts.iter().filter(|(id, _)| !now.hosts.contains_key(*id)) {
            let out = now.out.get(id).cloned().unwrap_or_else(|| {
                let by = before.named_by.get(id).map(|by| by.join(", ")).unwrap_or_default();
                Out {
                    name: host.name.clone(),
                    address: host.address.clone(),
                    message: format!("{by} does not name it any more"),
                    source: by,
                    code: "not_found".to_owned(),
                }
            });
            self.gone.insert(0, Gone { id: id.clone(), since_ms: now_ms, out });
        }
        // One that only was not named may be known to have ended since.
        for gone in &mut self.gone {
            if let Some(out) = now.out.get(&gone.id).filter(|out| out.code != gone.out.code) {
                gone.out = out.clone();
            }
        }
        self.gone.truncate(REMEMBERED);
    }
}

impl Change {
    fn between(before: Option<&[Host]>, now: &[Host], at_ms: i64) -> Change {
        fn running(hosts: &[Host]) -> BTreeSet<&HostId> {
            hosts.iter().filter(|host| host.state.is_running()).map(|host| &host.id).collect()
        }
        let (before, now) = (running(before.unwrap_or_default()), running(now));
        let some = |ids: &[&HostId]| ids.iter().take(NAMED).map(|id| (*id).clone()).collect();
        let came: Vec<&HostId> = now.difference(&before).copied().collect();
        let went: Vec<&HostId> = before.difference(&now).copied().collect();
        Change { at_ms, came: came.len(), came_ids: some(&came), went: went.len(), went_ids: some(&went) }
    }
}
