//! The doors of environments: who waits for which lease, and when the project's file says that nothing new goes in. The oldest run goes
//! first; under `queue = "latest"` a newer one that goes at least as far takes its place.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use crate::{
    lifecycle::{locks::locked, watch},
    model::{
        doors,
        freeze::Window,
        ids::{EnvironmentName, ProjectName, RunId},
        run::Run,
    },
    ports::program::Loaded,
};

type Door = (ProjectName, EnvironmentName);

/// The doors of this daemon.
#[derive(Debug)]
pub(super) struct Doors {
    /// The runs that wait for a lease, by its name.
    places: Mutex<BTreeMap<String, BTreeMap<RunId, Waiting>>>,
    /// The windows of the projects that are loaded: a freeze that is added or taken out concerns who waits already.
    windows: Mutex<BTreeMap<Door, Arc<[Window]>>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Waiting {
    door: Door,
    /// How many environments of its project the run goes through.
    reach: usize,
    /// A freeze keeps it from going, so nobody behind it waits for it.
    aside: bool,
    /// It deploys a release of its own, and does not put back what is known there.
    deploys: bool,
}

impl Default for Doors {
    fn default() -> Self {
        Doors { places: Mutex::default(), windows: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

/// A run's place at a door; given up when it is dropped.
pub(super) struct Place {
    doors: Arc<Doors>,
    lease: String,
    run: RunId,
    door: Door,
    reach: usize,
    deploys: bool,
}

impl Doors {
    /// The windows of these projects count from now on.
    pub(super) fn install<'a>(&self, projects: impl Iterator<Item = &'a Loaded>) {
        let of = |loaded: &'a Loaded| {
            let environments = loaded.pipeline.environments.iter();
            environments.map(|e| ((loaded.name.clone(), e.name.clone()), Arc::from(e.freeze.as_slice())))
        };
        *locked(&self.windows) = projects.flat_map(of).collect();
        self.changed.send_modify(|n| *n += 1);
    }

    /// Whether a freeze is all that keeps `run` from going on.
    pub(super) fn is_frozen_out(&self, run: &RunId) -> bool {
        locked(&self.places).values().filter_map(|runs| runs.get(run)).any(|waiting| waiting.aside)
    }

    /// Takes a place of `run` at the door of `environment`, in the queue for `lease`.
    pub(super) fn join(self: &Arc<Self>, lease: &str, run: &Run, environment: &EnvironmentName) -> Place {
        let door = (run.header.project.clone(), environment.clone());
        let request = &run.header.request;
        // By its sender's order a way back is the newest thing for an environment here: what waits for it is overtaken.
        let deploys = request.purpose.is_deploy() || request.signal.is_some();
        self.wait(lease, &run.header.run, door, doors::reach_of(run), deploys)
    }

    fn wait(self: &Arc<Self>, lease: &str, run: &RunId, door: Door, reach: usize, deploys: bool) -> Place {
        let waiting = Waiting { door: door.clone(), reach, aside: false, deploys };
        locked(&self.places).entry(lease.to_owned()).or_default().insert(run.clone(), waiting);
        self.changed.send_modify(|n| *n += 1);
        Place { doors: Arc::clone(self), lease: lease.to_owned(), run: run.clone(), door, reach, deploys }
    }
}

impl Place {
    /// Who goes first: whoever has waited longer and could go, and what puts back before what deploys.
    pub(super) fn before(&self) -> Option<RunId> {
        let places = locked(&self.doors.places);
        let first = |(run, waiting): &(&RunId, &Waiting)| {
            let before = if self.deploys == waiting.deploys { **run < self.run } else { self.deploys };
            !waiting.aside && **run != self.run && before
        };
        places.get(&self.lease)?.iter().find(first).map(|(run, _)| run.clone())
    }

    /// The newest one that came to this very door later and goes at least as far.
    pub(super) fn newer(&self) -> Option<RunId> {
        let places = locked(&self.doors.places);
        if !self.deploys {
            return None;
        }
        let mut newest = places.get(&self.lease)?.iter().rev().take_while(|(run, _)| **run > self.run);
        newest
            .find(|(_, waiting)| waiting.deploys && waiting.door == self.door && waiting.reach >= self.reach)
            .map(|(run, _)| run.clone())
    }

    /// Lets the others by while a freeze keeps this one from going, or takes its place among them again.
    pub(super) fn stand_aside(&self, aside: bool) {
        let mut places = locked(&self.doors.places);
        let Some(waiting) = places.get_mut(&self.lease).and_then(|runs| runs.get_mut(&self.run)) else { return };
        let changed = std::mem::replace(&mut waiting.aside, aside) != aside;
        drop(places);
        if changed {
            self.doors.changed.send_modify(|n| *n += 1);
        }
    }

    /// The windows of the project's file as it is loaded; `None`: it has no such environment any more.
    pub(super) fn windows(&self) -> Option<Arc<[Window]>> {
        locked(&self.doors.windows).get(&self.door).cloned()
    }

    /// Changes when anybody comes or goes, and when projects are loaded.
    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.doors.changed.subscribe()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = locked(&self.doors.places);
        if let Some(waiting) = places.get_mut(&self.lease) {
            waiting.remove(&self.run);
            if waiting.is_empty() {
                places.remove(&self.lease);
            }
        }
        drop(places);
        self.doors.changed.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(project: &str, environment: &str) -> Door {
        (project.parse().unwrap(), environment.parse().unwrap())
    }

    #[test]
    fn the_oldest_goes_first_and_places_are_given_up() {
        let doors = Arc::new(Doors::default());
        let [a, b, c] = [1, 2, 3].map(|ms| RunId::new(ms, 0));
        let at = |lease: &str, run: &RunId| doors.wait(lease, run, door("shop", lease), 1, true);
        let (second, first) = (at("e", &b), at("e", &a));
        let other = at("f", &c);
        assert_eq!((first.before(), first.newer()), (None, Some(b.clone())));
        assert_eq!((second.before(), second.newer()), (Some(a), None));
        assert_eq!((other.before(), other.newer()), (None, None));
        drop(first);
        assert_eq!(second.before(), None);
        drop((second, other));
        assert!(locked(&doors.places).is_empty());
    }

    #[test]
    fn in_a_group_only_runs_of_one_door_take_each_others_places() {
        let doors = Arc::new(Doors::default());
        let [a, b, c] = [1, 2, 3].map(|ms| RunId::new(ms, 0));
        let shop = doors.wait("g", &a, door("shop", "production"), 2, true);
        let bill = doors.wait("g", &b, door("billing", "production"), 2, true);
        assert_eq!(shop.newer(), None, "another project's");
        let short = doors.wait("g", &c, door("shop", "production"), 1, true);
        assert_eq!(shop.newer(), None, "it would not go as far");
        drop(short);
        let far = doors.wait("g", &c, door("shop", "production"), 2, true);
        assert_eq!(shop.newer(), Some(c));
        assert_eq!((bill.before(), far.before()), (Some(a.clone()), Some(a.clone())));
        // The oldest is frozen out: nobody waits for it.
        shop.stand_aside(true);
        assert_eq!((bill.before(), far.before()), (None, Some(b.clone())));
        assert!(doors.is_frozen_out(&a) && !doors.is_frozen_out(&b));
        shop.stand_aside(false);
        assert!(bill.before().is_some());
    }
}
