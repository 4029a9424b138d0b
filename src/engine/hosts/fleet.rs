//! What is known of the fleet of an environment: what each of its sources said last, and who is gone and why.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::Source;
use crate::{
    lifecycle::locks::locked,
    model::{
        cause::Cause,
        discovery::{Merged, Out, believe},
        host::Host,
        host_key::HostKeys,
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
/// Sources that the project's file does not have any more, or not yet for whoever asks, are remembered for so long after they were asked last.
const OTHERS_FOR_MS: i64 = 24 * 3_600_000;
/// And so many of them.
const OTHERS: usize = 8;

/// The fleets of all environments, as they were found last. What outlives the daemon is in control, see [`super::kept`].
#[derive(Debug, Default)]
pub struct Fleets {
    known: Mutex<BTreeMap<Place, Arc<Fleet>>>,
    /// Held by whoever asks a source, by its place in the project's file. A slow one holds up no other.
    turns: Mutex<BTreeMap<(Place, String), Turn>>,
    /// Held by whoever writes down what is known of an environment: what is newer is not written over.
    keeping: Mutex<BTreeMap<Place, Turn>>,
}

type Place = (ProjectName, EnvironmentName);
type Turn = Arc<tokio::sync::Mutex<()>>;

impl Fleets {
    pub(in crate::engine) fn get(&self, project: &ProjectName, environment: &EnvironmentName) -> Option<Arc<Fleet>> {
        locked(&self.known).get(&(project.clone(), environment.clone())).cloned()
    }

    /// To be held while a source is asked.
    pub(super) fn turn(&self, project: &ProjectName, environment: &EnvironmentName, source: &Origin) -> Turn {
        let place = ((project.clone(), environment.clone()), source.function.clone());
        Arc::clone(locked(&self.turns).entry(place).or_default())
    }

    /// To be held while it is written down what is known.
    pub(super) fn keeping(&self, project: &ProjectName, environment: &EnvironmentName) -> Turn {
        Arc::clone(locked(&self.keeping).entry((project.clone(), environment.clone())).or_default())
    }

    /// What `change` makes of it. Only whoever has a source's turn changes what it has found.
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

/// Which source. While a run goes on with the code it began with, the project's file may say something else by now: both are asked, and
/// neither has anything to do with what the other is told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Its place in the project's file.
    pub(super) function: String,
    /// The plugin's name.
    pub(super) name: String,
    /// Of its options.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) options: Option<Digest>,
}

impl Origin {
    /// The same but for its options.
    fn is_akin(&self, other: &Origin) -> bool {
        self.function == other.function && self.name == other.name
    }
}

/// What one source said.
#[derive(Debug, Clone)]
pub(super) struct KnownSource {
    pub(super) origin: Origin,
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
        self.is_too_long() || matches!(self.cause.code.as_str(), "min_hosts" | "max_shrink")
    }

    /// It names more than can be: those that are known are right all the same.
    pub(super) fn is_too_long(&self) -> bool {
        self.cause.code == "max_growth"
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
    pub(super) origin: Origin,
    pub(super) label: String,
    pub(super) asked: Stamp,
    pub(super) took: Duration,
    pub(super) answer: Result<Vec<Host>, Cause>,
}

impl Fleet {
    /// What is known of a source; one that has another plugin or other options now is unknown.
    pub(super) fn source(&self, source: &Source<'_>) -> Option<&KnownSource> {
        self.known(&source.origin)
    }

    pub(super) fn known(&self, origin: &Origin) -> Option<&KnownSource> {
        self.sources.iter().find(|known| known.origin == *origin)
    }

    /// What a new answer is measured against: the last good list, or where there is none the newest one with other options. That one
    /// never stands in for an answer.
    pub(super) fn last(&self, origin: &Origin) -> Option<&Good> {
        let akin = || self.sources.iter().filter(|known| known.origin.is_akin(origin)).filter_map(|k| k.good.as_ref());
        self.known(origin).and_then(|known| known.good.as_ref()).or_else(|| akin().max_by_key(|good| good.at_ms))
    }

    /// Keeps what is in use: `used`, and for a while what others, runs with older code, may still ask for.
    pub(super) fn prune(&mut self, used: &BTreeSet<&Origin>, now_ms: i64) {
        let age = |known: &KnownSource| {
            let asked = known.asked.as_ref().map_or(0, |asked| asked.wall_ms);
            now_ms.saturating_sub(asked.max(known.good.as_ref().map_or(0, |good| good.at_ms)))
        };
        let mut others: Vec<(i64, Origin)> = self
            .sources
            .iter()
            .filter(|known| !used.contains(&known.origin))
            .map(|known| (age(known), known.origin.clone()))
            .filter(|(age, _)| *age < OTHERS_FOR_MS)
            .collect();
        others.sort();
        others.truncate(OTHERS);
        self.sources
            .retain(|known| used.contains(&known.origin) || others.iter().any(|(_, other)| *other == known.origin));
    }

    /// Takes an answer in. `accept`: whatever it says.
    pub(super) fn hear(&mut self, told: Told, limits: &SourceLimits, usual_shrink: Budget, accept: bool) {
        let last = self.last(&told.origin).map(|good| Arc::clone(&good.hosts));
        let at = self.sources.iter().position(|known| known.origin == told.origin).unwrap_or_else(|| {
            self.sources.push(KnownSource {
                origin: told.origin.clone(),
                asked: None,
                took: Duration::ZERO,
                good: None,
                error: None,
                change: None,
            });
            self.sources.len() - 1
        });
        let known = &mut self.sources[at];
        let now_ms = told.asked.wall_ms;
        let believed = told.answer.and_then(|hosts| {
            let last = last.as_ref().map(|last| last.as_slice());
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
                    _ => {
                        let before = last.as_ref().map(|last| last.as_slice());
                        known.change = Some(Change::between(before, &hosts, now_ms));
                        Good { hosts: Arc::new(hosts), at_ms: now_ms, blob: None }
                    }
                });
            }
        }
    }

    /// Takes the keys of a host off the last lists. Whether there were any.
    pub(super) fn forget_keys(&mut self, id: &str) -> bool {
        let has_keys = |host: &Host| host.id.as_str() == id && matches!(host.ssh.host_keys, Some(HostKeys::Given(_)));
        let mut any = false;
        for good in self.sources.iter_mut().filter_map(|source| source.good.as_mut()) {
            if !good.hosts.iter().any(has_keys) {
                continue;
            }
            any = true;
            good.blob = None;
            for host in Arc::make_mut(&mut good.hosts).iter_mut().filter(|host| has_keys(host)) {
                host.ssh.host_keys = None;
            }
        }
        any
    }

    /// Writes down who is there no more, and why; whoever is back is taken out.
    pub(super) fn compare(&mut self, before: &Merged, now: &Merged, now_ms: i64) {
        self.gone.retain(|gone| !now.hosts.contains_key(&gone.id));
        for (id, host) in before.hosts.iter().filter(|(id, _)| !now.hosts.contains_key(*id)) {
            // A source that has not answered with its new options yet is measured against the same list each time.
            if self.gone.iter().any(|gone| gone.id == *id) {
                continue;
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        discovery::{Said, merge},
        host::Ssh,
    };

    fn origin(options: &str) -> Origin {
        let function = "discovery/production/1".to_owned();
        Origin { function, name: "ec2".to_owned(), options: Some(Digest::of(options.as_bytes())) }
    }

    fn told(options: &str, at: u64, answer: Result<&[&str], &str>) -> Told {
        let host = |id: &&str| Host::at(id.parse().unwrap(), (*id).to_owned());
        Told {
            origin: origin(options),
            label: "ec2".to_owned(),
            asked: Stamp { wall_ms: i64::try_from(at).unwrap(), boot_ms: at, boot: "boot".into() },
            took: Duration::ZERO,
            answer: answer
                .map(|ids| ids.iter().map(host).collect())
                .map_err(|why| Cause::new("ec2_throttled", why.to_owned())),
        }
    }

    fn hear(fleet: &mut Fleet, told: Told) {
        fleet.hear(told, &SourceLimits::default(), Budget::Percent(30), false);
    }

    fn good(fleet: &Fleet, options: &str) -> Option<Vec<String>> {
        let good = fleet.known(&origin(options))?.good.as_ref()?;
        Some(good.hosts.iter().map(|host| host.id.to_string()).collect())
    }

    #[test]
    fn a_list_found_with_other_options_never_stands_in_but_is_what_a_new_one_is_measured_against() {
        let mut fleet = Fleet::default();
        hear(&mut fleet, told("role=db", 1, Ok(&["db1", "db2", "db3", "db4"])));
        hear(&mut fleet, told("role=web", 2, Err("slow down")));
        assert_eq!(good(&fleet, "role=web"), None);
        assert!(fleet.known(&origin("role=web")).unwrap().error.is_some());
        hear(&mut fleet, told("role=web", 3, Ok(&["web1"])));
        let refused = fleet.known(&origin("role=web")).unwrap().error.clone().unwrap();
        assert!(refused.is_refusal() && good(&fleet, "role=web").is_none(), "{refused:?}");
        hear(&mut fleet, told("role=web", 4, Ok(&["web1", "web2", "web3"])));
        assert_eq!(good(&fleet, "role=web").unwrap().len(), 3);
        // A run that began with the other options asks and is told on its own.
        hear(&mut fleet, told("role=db", 5, Ok(&["db1", "db2", "db3"])));
        assert_eq!(good(&fleet, "role=db").unwrap(), ["db1", "db2", "db3"]);
        assert_eq!(good(&fleet, "role=web").unwrap(), ["web1", "web2", "web3"]);
    }

    #[test]
    fn keys_that_a_source_found_out_are_forgotten_so_that_it_looks_again() {
        let mut fleet = Fleet::default();
        let mut answer = told("", 1, Ok(&["web1", "web2"]));
        let keys = Some(HostKeys::Given(vec!["SHA256:x".to_owned()]));
        answer.answer.as_mut().unwrap().iter_mut().for_each(|host| host.ssh.host_keys = keys.clone());
        hear(&mut fleet, answer);
        assert!(fleet.forget_keys("web1") && !fleet.forget_keys("web1") && !fleet.forget_keys("web3"));
        let known = fleet.known(&origin("")).unwrap().good.as_ref().unwrap();
        assert_eq!([&known.hosts[0].ssh.host_keys, &known.hosts[1].ssh.host_keys], [&None, &keys]);
    }

    #[test]
    fn whoever_is_gone_is_so_once_and_since_it_was_first_missed() {
        let list = ["web1", "web2"].map(|id| Host::at(id.parse().unwrap(), id.to_owned()));
        let named = |hosts: &[Host]| merge(&[Said { source: "ec2", hosts }], &Ssh::default());
        let mut fleet = Fleet::default();
        for now_ms in [7, 8, 9] {
            fleet.compare(&named(&list), &named(&list[..1]), now_ms);
        }
        let gone: Vec<(&str, i64)> = fleet.gone.iter().map(|gone| (gone.id.as_str(), gone.since_ms)).collect();
        assert_eq!(gone, [("web2", 7)]);
        fleet.compare(&named(&list[..1]), &named(&list), 10);
        assert!(fleet.gone.is_empty());
    }

    #[test]
    fn what_nobody_asks_any_more_is_forgotten() {
        let mut fleet = Fleet::default();
        for n in 0..20 {
            hear(&mut fleet, told(&n.to_string(), n + 1, Ok(&["web1"])));
        }
        let used = origin("0");
        fleet.prune(&BTreeSet::from([&used]), 30);
        assert_eq!(fleet.sources.len(), 1 + OTHERS);
        assert!(good(&fleet, "0").is_some() && good(&fleet, "19").is_some() && good(&fleet, "5").is_none());
        fleet.prune(&BTreeSet::from([&used]), 30 + OTHERS_FOR_MS);
        assert_eq!(fleet.sources.len(), 1);
    }
}
