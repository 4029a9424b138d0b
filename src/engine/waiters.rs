//! Who waits for which environment: the oldest run goes first, and under `queue = "latest"` a newer one takes its place.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

use super::conductor::locked;
use crate::model::ids::RunId;

/// The runs of this daemon that wait for a lease, by its name.
#[derive(Debug)]
pub(super) struct Waiters {
    places: Mutex<BTreeMap<String, BTreeSet<RunId>>>,
    changed: watch::Sender<u64>,
}

impl Default for Waiters {
    fn default() -> Self {
        Waiters { places: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

/// A run's place; given up when it is dropped.
pub(super) struct Place {
    waiters: Arc<Waiters>,
    lease: String,
    run: RunId,
}

impl Waiters {
    /// Takes a place in the queue for `lease`.
    pub(super) fn join(self: &Arc<Self>, lease: &str, run: &RunId) -> Place {
        locked(&self.places).entry(lease.to_owned()).or_default().insert(run.clone());
        self.changed.send_modify(|n| *n += 1);
        Place { waiters: Arc::clone(self), lease: lease.to_owned(), run: run.clone() }
    }
}

impl Place {
    /// Who waits longer.
    pub(super) fn before(&self) -> Option<RunId> {
        let places = locked(&self.waiters.places);
        places.get(&self.lease)?.range::<RunId, _>(..&self.run).next().cloned()
    }

    /// The newest one that came later.
    pub(super) fn newer(&self) -> Option<RunId> {
        let places = locked(&self.waiters.places);
        places.get(&self.lease)?.last().filter(|last| **last > self.run).cloned()
    }

    /// Changes when anybody comes or goes.
    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.waiters.changed.subscribe()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = locked(&self.waiters.places);
        if let Some(waiting) = places.get_mut(&self.lease) {
            waiting.remove(&self.run);
            if waiting.is_empty() {
                places.remove(&self.lease);
            }
        }
        drop(places);
        self.waiters.changed.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_places_are_given_up() {
        let waiters = Arc::new(Waiters::default());
        let [a, b, c] = [1, 2, 3].map(|ms| RunId::new(ms, 0));
        let (second, first) = (waiters.join("e", &b), waiters.join("e", &a));
        let other = waiters.join("f", &c);
        assert_eq!((first.before(), first.newer()), (None, Some(b.clone())));
        assert_eq!((second.before(), second.newer()), (Some(a), None));
        assert_eq!((other.before(), other.newer()), (None, None));
        drop(first);
        assert_eq!(second.before(), None);
        drop((second, other));
        assert!(locked(&waiters.places).is_empty());
    }
}
