//! The hosts of a deployment: a list in which each is found by its id, and those that something is to be decided about without going through
//! all of them. Kept by the fold: a fleet of thousands is decided on at each of its events.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, DerefMut, Range},
};

use super::{HostRun, HostState};
use crate::model::{ids::HostId, run::Progress};

/// Hosts in the order of their rollout, which is that of their waves. Read and changed as a slice; no host gets another id.
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    all: Vec<HostRun>,
    at: BTreeMap<HostId, usize>,
    sets: Sets,
    /// Places of hosts that were changed since they were sorted into the sets.
    changed: BTreeSet<usize>,
}

/// Places of hosts, by what they are.
#[derive(Debug, Clone, PartialEq, Default)]
struct Sets {
    /// In flight, or something of theirs is being undone.
    moving: BTreeSet<usize>,
    /// There, and something is still to come of them.
    unsettled: BTreeSet<usize>,
    serving: BTreeSet<usize>,
    /// There, and to be prepared.
    unprepared: BTreeSet<usize>,
    preparing: BTreeSet<usize>,
    verdicts: BTreeMap<HostState, BTreeSet<usize>>,
}

impl Sets {
    fn sort(&mut self, place: usize, host: &HostRun) {
        let undone = host.functions().iter().any(|(_, progress)| matches!(progress, Progress::Undoing(_)));
        for (set, is_in) in [
            (&mut self.moving, undone || host.in_flight()),
            (&mut self.unsettled, !host.gone && !host.is_settled()),
            (&mut self.serving, host.is_healthy()),
            (&mut self.unprepared, !host.gone && host.prepare == Progress::Due),
            (&mut self.preparing, host.prepare.is_open()),
        ] {
            if is_in {
                set.insert(place)
            } else {
                set.remove(&place)
            };
        }
        let verdict = host.verdict();
        self.verdicts.retain(|of, set| {
            if *of != verdict {
                set.remove(&place);
            }
            !set.is_empty()
        });
        self.verdicts.entry(verdict).or_default().insert(place);
    }
}

impl Hosts {
    /// Adds one at the end.
    pub fn push(&mut self, host: HostRun) {
        // Of two with one id the first is found, as in any list.
        self.at.entry(host.host.id.clone()).or_insert(self.all.len());
        self.changed.insert(self.all.len());
        self.all.push(host);
    }

    /// The place of a host.
    #[must_use]
    pub fn position(&self, id: &HostId) -> Option<usize> {
        self.at.get(id).copied()
    }

    /// The host of this id.
    #[must_use]
    pub fn of(&self, id: &HostId) -> Option<&HostRun> {
        self.all.get(self.position(id)?)
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, id: &HostId) -> Option<&mut HostRun> {
        let place = self.position(id)?;
        self.changed.insert(place);
        self.all.get_mut(place)
    }

    /// Sorts what was changed, so that nobody who reads has to.
    pub fn sort_changed(&mut self) {
        for place in std::mem::take(&mut self.changed) {
            if let Some(host) = self.all.get(place) {
                self.sets.sort(place, host);
            }
        }
    }

    fn sets(&self) -> Cow<'_, Sets> {
        if self.changed.is_empty() {
            return Cow::Borrowed(&self.sets);
        }
        let mut sets = self.sets.clone();
        self.changed
            .iter()
            .filter_map(|place| Some((*place, self.all.get(*place)?)))
            .for_each(|(n, h)| sets.sort(n, h));
        Cow::Owned(sets)
    }

    /// Those in flight, or of which something is being undone.
    #[must_use]
    pub fn moving(&self) -> Vec<&HostRun> {
        self.sets().moving.iter().filter_map(|place| self.all.get(*place)).collect()
    }

    /// How many serve, as far as anybody knows.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.sets().serving.len()
    }

    /// How many are being prepared.
    #[must_use]
    pub fn preparing(&self) -> usize {
        self.sets().preparing.len()
    }

    /// Whether one that is there has yet to be prepared, or is being.
    #[must_use]
    pub fn are_unprepared(&self) -> bool {
        let sets = self.sets();
        let is_there =
            |place: &usize| self.all.get(*place).is_some_and(|host| !host.gone && host.prepare == Progress::Open);
        !sets.unprepared.is_empty() || sets.preparing.iter().any(is_there)
    }

    /// Up to `most` of those that are there and not prepared.
    #[must_use]
    pub fn unprepared(&self, most: usize) -> Vec<&HostRun> {
        self.sets().unprepared.iter().take(most).filter_map(|place| self.all.get(*place)).collect()
    }

    /// Those whose [`HostRun::verdict`] is one of these, in their order.
    #[must_use]
    pub fn of_verdict(&self, verdicts: &[HostState]) -> Vec<&HostRun> {
        let sets = self.sets();
        let of = verdicts.iter().filter_map(|verdict| sets.verdicts.get(verdict));
        let places: BTreeSet<usize> = of.flatten().copied().collect();
        places.iter().filter_map(|place| self.all.get(*place)).collect()
    }

    /// How many have this [`HostRun::verdict`].
    #[must_use]
    pub fn count_verdict(&self, verdict: HostState) -> usize {
        self.sets().verdicts.get(&verdict).map_or(0, BTreeSet::len)
    }

    fn wave_places(&self, wave: u32) -> Range<usize> {
        self.all.partition_point(|host| host.wave < wave)..self.all.partition_point(|host| host.wave <= wave)
    }

    /// The hosts of a wave.
    #[must_use]
    pub fn of_wave(&self, wave: u32) -> &[HostRun] {
        self.all.get(self.wave_places(wave)).unwrap_or_default()
    }

    /// Whether something is still to come of a host that is there.
    #[must_use]
    pub fn are_unsettled(&self) -> bool {
        !self.sets().unsettled.is_empty()
    }

    /// The hosts of a wave that are there and of which something is still to come.
    #[must_use]
    pub fn unsettled_of_wave(&self, wave: u32) -> Vec<&HostRun> {
        let sets = self.sets();
        sets.unsettled.range(self.wave_places(wave)).filter_map(|place| self.all.get(*place)).collect()
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_wave_unsettled(&self, wave: u32) -> bool {
        self.sets().unsettled.range(self.wave_places(wave)).next().is_some()
    }
}

#[cfg(test)]
impl Hosts {
    /// Whether everybody is where they would be if all were sorted anew, and nobody is left to be.
    pub fn are_sorted(&self) -> bool {
        let anew: Hosts = self.all.iter().cloned().collect();
        self.changed.is_empty() && self.sets == anew.sets && self.at == anew.at
    }
}

impl PartialEq for Hosts {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl FromIterator<HostRun> for Hosts {
    fn from_iter<I: IntoIterator<Item = HostRun>>(hosts: I) -> Self {
        let mut all = Hosts::default();
        hosts.into_iter().for_each(|host| all.push(host));
        all.sort_changed();
        all
    }
}

impl Deref for Hosts {
    type Target = [HostRun];

    fn deref(&self) -> &[HostRun] {
        &self.all
    }
}

impl DerefMut for Hosts {
    fn deref_mut(&mut self) -> &mut [HostRun] {
        self.changed = (0..self.all.len()).collect();
        &mut self.all
    }
}

impl<'h> IntoIterator for &'h Hosts {
    type Item = &'h HostRun;
    type IntoIter = std::slice::Iter<'h, HostRun>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.iter()
    }
}

impl<'h> IntoIterator for &'h mut Hosts {
    type Item = &'h mut HostRun;
    type IntoIter = std::slice::IterMut<'h, HostRun>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
