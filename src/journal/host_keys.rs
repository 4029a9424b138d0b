//! Learnt host keys over control: `host_key/<project>/<environment>/<id>`, written once by compare-and-set.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use serde_json::json;

use crate::{
    model::{
        cause::Cause,
        host_key::{Learnt, Realm},
    },
    ports::{
        control::{Commit, CommitError, Control, Revision},
        host_keys::HostKeys,
        journal::Ticket,
    },
};

/// Host keys in a control log.
pub struct ControlHostKeys {
    control: Arc<dyn Control>,
    /// Records that were written and may not be on disk yet. Held while one is written: nobody finds a key there without its ticket.
    unsynced: Mutex<BTreeMap<String, Ticket>>,
}

impl ControlHostKeys {
    /// Over `control`.
    #[must_use]
    pub fn new(control: Arc<dyn Control>) -> Self {
        ControlHostKeys { control, unsynced: Mutex::default() }
    }

    fn unsynced(&self) -> MutexGuard<'_, BTreeMap<String, Ticket>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn synced(&self, id: &str, at: &str, ticket: &Ticket) -> Result<(), Cause> {
        ticket.synced().await.map_err(|error| unkept(id, &error.to_string()))?;
        let mut unsynced = self.unsynced();
        // It may have been forgotten and learnt anew meanwhile.
        if unsynced.get(at).is_some_and(|newest| newest.seq() == ticket.seq()) {
            unsynced.remove(at);
        }
        Ok(())
    }
}

fn unkept(id: &str, why: &str) -> Cause {
    Cause::new("host_key_unknown", format!("the key that {id} shows cannot be kept, so it is not trusted: {why}"))
}

#[async_trait]
impl HostKeys for ControlHostKeys {
    async fn known(&self, realm: &Realm, id: &str) -> Result<Option<Learnt>, Cause> {
        let at = realm.host_key(id);
        let (entry, ticket) = {
            let unsynced = self.unsynced();
            (self.control.get(&at), unsynced.get(&at).cloned())
        };
        let Some(entry) = entry else { return Ok(None) };
        // Somebody else has met it this very moment.
        if let Some(ticket) = ticket {
            self.synced(id, &at, &ticket).await?;
        }
        serde_json::from_value(entry.value).map(Some).map_err(|error| {
            let message = format!(
                "what is kept of the key of {id} cannot be read ({error}): compare its key by another way, then `phased hosts {realm} \
                 --forget-key '{id}'`"
            );
            Cause::new("host_key_unknown", message)
        })
    }

    async fn learn(&self, realm: &Realm, id: &str, key: Learnt) -> Result<Learnt, Cause> {
        let at = realm.host_key(id);
        let puts = vec![(at.clone(), Some(json!(key)))];
        let written = {
            let mut unsynced = self.unsynced();
            let written = self.control.commit(Commit::Setting, &[(at.clone(), Revision(0))], puts);
            if let Ok(ticket) = &written {
                unsynced.insert(at.clone(), ticket.clone());
            }
            written
        };
        match written {
            Ok(ticket) => self.synced(id, &at, &ticket).await.map(|()| key),
            Err(CommitError::Conflict { .. }) => {
                self.known(realm, id).await?.ok_or_else(|| unkept(id, "it was forgotten in the same moment; try again"))
            }
            Err(error) => Err(unkept(id, &error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        journal::{ControlLog, DataDisk, Kill},
        lifecycle::{pulse::Beat, watch},
        model::ids::Seq,
        ports::{control::Entry, journal::Synced},
        time::SystemClock,
    };

    fn open(dir: &std::path::Path) -> ControlHostKeys {
        let storage = Arc::new(DataDisk::keeping(dir, 4096).unwrap());
        let clock = Arc::new(SystemClock::new());
        ControlHostKeys::new(Arc::new(ControlLog::open(dir, clock, storage, Kill::default()).unwrap()))
    }

    fn realm() -> Realm {
        Realm { project: "shop".parse().unwrap(), environment: "production".parse().unwrap() }
    }

    fn key(n: &str) -> Learnt {
        Learnt {
            key: format!("ssh-ed25519 {n}"),
            fingerprint: format!("SHA256:{n}"),
            address: "10.0.0.1".to_owned(),
            at_ms: 7,
            unnamed_since_ms: None,
        }
    }

    /// A control log on a disk that takes its time.
    struct Unhurried {
        entries: Mutex<BTreeMap<String, Entry>>,
        disk: watch::Sender<Synced>,
    }

    impl Control for Unhurried {
        fn get(&self, key: &str) -> Option<Entry> {
            self.entries.lock().unwrap().get(key).cloned()
        }
        fn scan(&self, _: &str) -> Vec<Entry> {
            Vec::new()
        }
        fn commit(
            &self,
            _: Commit,
            expected: &[(String, Revision)],
            puts: Vec<(String, Option<serde_json::Value>)>,
        ) -> Result<Ticket, CommitError> {
            let mut entries = self.entries.lock().unwrap();
            if let Some((key, _)) = expected.iter().find(|(key, _)| entries.contains_key(key)) {
                return Err(CommitError::Conflict { key: key.clone() });
            }
            let revision = Revision(entries.len() as u64 + 1);
            for (key, value) in puts {
                entries.insert(key.clone(), Entry { key, revision, value: value.unwrap() });
            }
            Ok(Ticket::new(Seq(revision.0), self.disk.subscribe()))
        }
        fn changed(&self) -> watch::Receiver<u64> {
            watch::Sender::new(0).subscribe()
        }
        fn beat(&self, _: Beat) {}
    }

    #[tokio::test]
    async fn a_key_that_is_not_on_disk_yet_is_nothing_to_go_by() {
        let realm = realm();
        let open = || {
            let disk = watch::Sender::new(Synced::UpTo(Seq(0)));
            let control = Arc::new(Unhurried { entries: Mutex::default(), disk });
            (ControlHostKeys::new(control.clone()), control)
        };
        let (keys, control) = open();
        let mut learning = keys.learn(&realm, "i-1", key("a"));
        assert!((&mut learning).now_or_never().is_none());
        // Somebody who looks for it, and somebody who has met the host as well.
        let (mut known, mut other) = (keys.known(&realm, "i-1"), keys.learn(&realm, "i-1", key("b")));
        assert!((&mut known).now_or_never().is_none());
        assert!((&mut other).now_or_never().is_none());
        // Whoever waits may be given up; the next one waits all the same.
        drop(learning);
        assert!(keys.known(&realm, "i-1").now_or_never().is_none());
        control.disk.send_replace(Synced::UpTo(Seq(1)));
        assert_eq!((known.await, other.await), (Ok(Some(key("a"))), Ok(key("a"))));
        // A disk that fails: what it may have forgotten is no key of anybody, now and later.
        let (keys, control) = open();
        let mut learning = keys.learn(&realm, "i-1", key("a"));
        assert!((&mut learning).now_or_never().is_none());
        control.disk.send_replace(Synced::Failed("no power".to_owned()));
        assert_eq!(learning.await.unwrap_err().code, "host_key_unknown");
        assert!(keys.known(&realm, "i-1").await.is_err() && keys.learn(&realm, "i-1", key("b")).await.is_err());
    }

    #[tokio::test]
    async fn the_first_key_is_kept_over_restarts_and_no_other_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let realm = realm();
        let keys = open(dir.path());
        assert_eq!(keys.known(&realm, "i-1").await, Ok(None));
        assert_eq!(keys.learn(&realm, "i-1", key("a")).await, Ok(key("a")));
        // Somebody else met it a moment later.
        assert_eq!(keys.learn(&realm, "i-1", key("b")).await, Ok(key("a")));
        assert!(keys.unsynced().is_empty());
        drop(keys);
        let again = open(dir.path());
        assert_eq!(again.known(&realm, "i-1").await, Ok(Some(key("a"))));
        assert_eq!(again.known(&realm, "i-2").await, Ok(None));
        // A record of a later version, or a damaged one, is no unknown host.
        again.control.commit(Commit::Setting, &[], vec![(realm.host_key("i-2"), Some(json!({ "v": 9 })))]).unwrap();
        assert_eq!(again.known(&realm, "i-2").await.unwrap_err().code, "host_key_unknown");
    }
}
