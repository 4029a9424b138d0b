//! Leases over control: one key each, taken by compare-and-set.
//!
//! `lease/<name>` holds `{"epoch": 1700000000000, "held": {holder, reason, since_ms, until_ms?, epoch} or null}`. The key stays when the
//! lease is given back: the next epoch must be above the last one, which hosts remember.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    lifecycle::watch,
    model::ids::Epoch,
    ports::{
        control::{Commit, CommitError, Control, Revision},
        leases::{Acquired, Holder, Leases},
    },
    time::Clock,
};

/// How often a change by somebody else between reading and writing is met before giving up; each means that somebody else succeeded.
const TRIES: usize = 64;

/// The value of a lease's key.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Lease {
    /// The last epoch granted.
    epoch: Epoch,
    held: Option<Holder>,
}

/// Leases in a control log.
pub struct ControlLeases {
    control: Arc<dyn Control>,
    clock: Arc<dyn Clock>,
}

impl ControlLeases {
    /// Over `control`; `clock` gives the epochs and says what has expired.
    #[must_use]
    pub fn new(control: Arc<dyn Control>, clock: Arc<dyn Clock>) -> Self {
        ControlLeases { control, clock }
    }

    fn lease(&self, key: &str) -> Result<(Revision, Lease), CommitError> {
        let Some(entry) = self.control.get(key) else { return Ok((Revision(0), Lease::default())) };
        match serde_json::from_value(entry.value) {
            Ok(lease) => Ok((entry.revision, lease)),
            // Granting what cannot be read would hand out an epoch that hosts may already have passed.
            Err(error) => Err(CommitError::Broken(format!("{key:?} holds no lease: {error}"))),
        }
    }

    fn live(&self, held: Option<Holder>) -> Option<Holder> {
        let now = self.clock.now().wall_ms;
        held.filter(|held| held.until_ms.is_none_or(|until| now < until))
    }

    /// A new grant after the one of `last`.
    fn granted(&self, last: Epoch, holder: String, reason: String, until_ms: Option<i64>) -> Lease {
        let now = self.clock.now().wall_ms;
        let epoch = Epoch(last.0.saturating_add(1).max(u64::try_from(now).unwrap_or(0)));
        Lease { epoch, held: Some(Holder { holder, reason, since_ms: now, until_ms, epoch }) }
    }

    fn write(&self, key: &str, revision: Revision, lease: &Lease) -> Result<Acquired, CommitError> {
        let value: Value = serde_json::to_value(lease).map_err(|error| CommitError::Broken(error.to_string()))?;
        let expected = [(key.to_owned(), revision)];
        let ticket = self.control.commit(Commit::Lease, &expected, vec![(key.to_owned(), Some(value))])?;
        Ok(Acquired::Granted(lease.epoch, ticket))
    }
}

fn key(lease: &str) -> String {
    format!("lease/{lease}")
}

impl Leases for ControlLeases {
    fn acquire(&self, lease: &str, holder: &str, reason: &str) -> Result<Acquired, CommitError> {
        let key = key(lease);
        let mut tries = TRIES;
        loop {
            let (revision, Lease { epoch, held }) = self.lease(&key)?;
            let lease = match self.live(held) {
                Some(held) if held.holder != holder => return Ok(Acquired::Held(held)),
                // We asked before and crashed, or were not heard: the same grant, written again for a ticket of its own.
                Some(held) => Lease { epoch, held: Some(held) },
                None => self.granted(epoch, holder.to_owned(), reason.to_owned(), None),
            };
            match self.write(&key, revision, &lease) {
                Err(CommitError::Conflict { .. }) if tries > 0 => tries -= 1,
                other => return other,
            }
        }
    }

    fn hold(
        &self,
        lease: &str,
        holder: &str,
        reason: &str,
        until_ms: i64,
        force: bool,
    ) -> Result<Acquired, CommitError> {
        let key = key(lease);
        let mut tries = TRIES;
        loop {
            let (revision, Lease { epoch, held }) = self.lease(&key)?;
            let held = self.live(held);
            let (holder, reason, until_ms) = (holder.to_owned(), reason.to_owned(), Some(until_ms));
            let lease = match held {
                Some(held) if held.holder != holder && !force => return Ok(Acquired::Held(held)),
                Some(held) if held.holder == holder => Lease { epoch, held: Some(Holder { reason, until_ms, ..held }) },
                _ => self.granted(epoch, holder, reason, until_ms),
            };
            match self.write(&key, revision, &lease) {
                Err(CommitError::Conflict { .. }) if tries > 0 => tries -= 1,
                other => return other,
            }
        }
    }

    fn release(&self, lease: &str, holder: &str) -> Result<(), CommitError> {
        let key = key(lease);
        let mut tries = TRIES;
        loop {
            let (revision, Lease { epoch, held }) = self.lease(&key)?;
            if held.is_none_or(|held| held.holder != holder) {
                return Ok(());
            }
            match self.write(&key, revision, &Lease { epoch, held: None }) {
                Err(CommitError::Conflict { .. }) if tries > 0 => tries -= 1,
                other => return other.map(|_| ()),
            }
        }
    }

    fn holder(&self, lease: &str) -> Option<Holder> {
        // A lease that cannot be read is nobody's to show; acquiring it says what is wrong.
        self.lease(&key(lease)).ok().and_then(|(_, lease)| self.live(lease.held))
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.control.changed()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicI64, Ordering},
        time::Duration,
    };

    use serde_json::json;

    use super::*;
    use crate::{
        journal::{ControlLog, DataDisk, Kill},
        time::Stamp,
    };

    struct Set(AtomicI64);

    #[async_trait::async_trait]
    impl Clock for Set {
        fn now(&self) -> Stamp {
            Stamp { wall_ms: self.0.load(Ordering::SeqCst), boot_ms: 0, boot: "b".into() }
        }
        async fn sleep(&self, _span: Duration) {}
    }

    fn leases(dir: &tempfile::TempDir, now: i64) -> (ControlLeases, Arc<ControlLog>, Arc<Set>) {
        let clock = Arc::new(Set(AtomicI64::new(now)));
        let control = Arc::new({
            let data = Arc::new(DataDisk::keeping(dir.path(), 4096).unwrap());
            ControlLog::open(dir.path(), clock.clone(), data, Kill::default()).unwrap()
        });
        (ControlLeases::new(control.clone(), clock.clone()), control, clock)
    }

    fn granted(acquired: Acquired) -> u64 {
        match acquired {
            Acquired::Granted(epoch, _) => epoch.0,
            Acquired::Held(holder) => panic!("held by {holder:?}"),
        }
    }

    #[test]
    fn one_holds_the_others_are_told_who() {
        let dir = tempfile::tempdir().unwrap();
        let (leases, ..) = leases(&dir, 1000);
        assert_eq!(granted(leases.acquire("shop/production", "r.1", "release a").unwrap()), 1000);
        let Acquired::Held(holder) = leases.acquire("shop/production", "s.1", "release b").unwrap() else { panic!() };
        assert_eq!((&*holder.holder, &*holder.reason, holder.since_ms), ("r.1", "release a", 1000));
        assert_eq!(granted(leases.acquire("shop/production", "r.1", "again").unwrap()), 1000);
        assert_eq!(leases.holder("shop/production"), Some(holder));
        assert_eq!(granted(leases.acquire("shop/staging", "s.1", "another").unwrap()), 1000);
        leases.release("shop/production", "s.1").unwrap();
        assert!(leases.holder("shop/production").is_some(), "not theirs to give back");
    }

    #[test]
    fn epochs_rise_through_returns_restarts_and_a_clock_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let (first, ..) = leases(&dir, 1000);
        assert_eq!(granted(first.acquire("e", "r.1", "").unwrap()), 1000);
        first.release("e", "r.1").unwrap();
        first.release("e", "r.1").unwrap();
        assert_eq!(first.holder("e"), None);
        drop(first);
        let (second, _, clock) = leases(&dir, 400);
        assert_eq!(granted(second.acquire("e", "r.2", "").unwrap()), 1001);
        second.release("e", "r.2").unwrap();
        clock.0.store(5000, Ordering::SeqCst);
        assert_eq!(granted(second.acquire("e", "r.3", "").unwrap()), 5000);
    }

    #[test]
    fn what_has_expired_is_free_and_what_is_no_lease_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (leases, control, clock) = leases(&dir, 1000);
        let held =
            json!({"epoch": 7, "held": {"holder": "ann", "reason": "x", "since_ms": 1, "until_ms": 2000, "epoch": 7}});
        control.commit(Commit::Lease, &[], vec![("lease/e".into(), Some(held))]).unwrap();
        assert!(matches!(leases.acquire("e", "r.1", "").unwrap(), Acquired::Held(_)));
        clock.0.store(2000, Ordering::SeqCst);
        assert_eq!(leases.holder("e"), None);
        assert_eq!(granted(leases.acquire("e", "r.1", "").unwrap()), 2000);
        control.commit(Commit::Lease, &[], vec![("lease/e".into(), Some(json!("what")))]).unwrap();
        assert!(leases.acquire("e", "r.1", "").is_err());
    }

    #[test]
    fn people_hold_for_a_time_and_take_by_force_only() {
        let dir = tempfile::tempdir().unwrap();
        let (leases, _, clock) = leases(&dir, 1000);
        assert_eq!(granted(leases.hold("e", "ann", "debugging", 5000, false).unwrap()), 1000);
        assert!(matches!(leases.acquire("e", "r.1", "").unwrap(), Acquired::Held(held) if held.reason == "debugging"));
        assert!(
            matches!(leases.hold("e", "bob", "", 9000, false).unwrap(), Acquired::Held(held) if held.holder == "ann")
        );
        assert_eq!(
            granted(leases.hold("e", "ann", "still", 2000, false).unwrap()),
            1000,
            "longer or shorter, it is hers"
        );
        let held = leases.holder("e").unwrap();
        assert_eq!((&*held.reason, held.since_ms, held.until_ms), ("still", 1000, Some(2000)));
        assert_eq!(granted(leases.hold("e", "bob", "", 3000, true).unwrap()), 1001);
        leases.release("e", "ann").unwrap();
        assert_eq!(leases.holder("e").unwrap().holder, "bob");
        clock.0.store(3000, Ordering::SeqCst);
        assert_eq!(granted(leases.acquire("e", "r.1", "").unwrap()), 3000);
        assert_eq!(granted(leases.hold("e", "ann", "", 9000, true).unwrap()), 3001, "also from a deployment");
    }

    #[test]
    fn the_value_is_golden() {
        let dir = tempfile::tempdir().unwrap();
        let (leases, control, _) = leases(&dir, 5);
        leases.acquire("e", "r.1", "why").unwrap();
        let held = json!({"holder": "r.1", "reason": "why", "since_ms": 5, "epoch": 5});
        assert_eq!(control.get("lease/e").unwrap().value, json!({"epoch": 5, "held": held}));
        leases.release("e", "r.1").unwrap();
        assert_eq!(control.get("lease/e").unwrap().value, json!({"epoch": 5, "held": null}));
    }
}
