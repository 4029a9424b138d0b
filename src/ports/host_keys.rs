//! Host keys that were learnt: the first one that each host showed.

use async_trait::async_trait;

use crate::model::{
    cause::Cause,
    host_key::{Learnt, Realm},
};

/// What is known of the keys of hosts that are trusted on first use.
#[async_trait]
pub trait HostKeys: Send + Sync {
    /// The key of the host called `id`, once that is on disk: nobody is to act on one that a crash would forget.
    ///
    /// # Errors
    /// What is kept cannot be read: a host whose key may be known is not to be met anew.
    async fn known(&self, realm: &Realm, id: &str) -> Result<Option<Learnt>, Cause>;

    /// Keeps the first key of a host and returns once that is on disk, with the key that counts: another one if somebody was faster.
    ///
    /// # Errors
    /// It cannot be kept.
    async fn learn(&self, realm: &Realm, id: &str, key: Learnt) -> Result<Learnt, Cause>;
}
