//! Learnt host keys over control: `host_key/<project>/<environment>/<id>`, written once by compare-and-set.

use std::sync::Arc;

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
    },
};

/// Host keys in a control log.
pub struct ControlHostKeys(Arc<dyn Control>);

impl ControlHostKeys {
    /// Over `control`.
    #[must_use]
    pub fn new(control: Arc<dyn Control>) -> Self {
        ControlHostKeys(control)
    }
}

fn unkept(id: &str, why: &str) -> Cause {
    Cause::new("host_key_unknown", format!("the key that {id} shows cannot be kept, so it is not trusted: {why}"))
}

#[async_trait]
impl HostKeys for ControlHostKeys {
    fn known(&self, realm: &Realm, id: &str) -> Result<Option<Learnt>, Cause> {
        let Some(entry) = self.0.get(&realm.host_key(id)) else { return Ok(None) };
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
        match self.0.commit(Commit::Setting, &[(at, Revision(0))], puts) {
            Ok(ticket) => {
                ticket.synced().await.map_err(|error| unkept(id, &error.to_string()))?;
                Ok(key)
            }
            Err(CommitError::Conflict { .. }) => {
                self.known(realm, id)?.ok_or_else(|| unkept(id, "it was forgotten in the same moment; try again"))
            }
            Err(error) => Err(unkept(id, &error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::{ControlLog, DataDisk, Kill},
        time::SystemClock,
    };

    fn open(dir: &std::path::Path) -> ControlHostKeys {
        let storage = Arc::new(DataDisk::keeping(dir, 4096).unwrap());
        let clock = Arc::new(SystemClock::new());
        ControlHostKeys::new(Arc::new(ControlLog::open(dir, clock, storage, Kill::default()).unwrap()))
    }

    #[tokio::test]
    async fn the_first_key_is_kept_over_restarts_and_no_other_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let realm = Realm { project: "shop".parse().unwrap(), environment: "production".parse().unwrap() };
        let key = |n: &str| Learnt {
            key: format!("ssh-ed25519 {n}"),
            fingerprint: format!("SHA256:{n}"),
            address: "10.0.0.1".to_owned(),
            at_ms: 7,
        };
        let keys = open(dir.path());
        assert_eq!(keys.known(&realm, "i-1"), Ok(None));
        assert_eq!(keys.learn(&realm, "i-1", key("a")).await, Ok(key("a")));
        // Somebody else met it a moment later.
        assert_eq!(keys.learn(&realm, "i-1", key("b")).await, Ok(key("a")));
        drop(keys);
        let again = open(dir.path());
        assert_eq!(again.known(&realm, "i-1"), Ok(Some(key("a"))));
        assert_eq!(again.known(&realm, "i-2"), Ok(None));
        // A record of a later version, or a damaged one, is no unknown host.
        again.0.commit(Commit::Setting, &[], vec![(realm.host_key("i-2"), Some(json!({ "v": 9 })))]).unwrap();
        assert_eq!(again.known(&realm, "i-2").unwrap_err().code, "host_key_unknown");
    }
}
