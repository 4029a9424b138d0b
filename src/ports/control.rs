//! Control: what outlives a run or what runs contend for. A key-value log; a commit is a set of whole values, last wins.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::journal::Ticket;

/// The number of the control record that wrote a key last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

/// What a commit is, for readers of the log; the meaning is in its puts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum Commit {
    /// The button was pressed, by a hook, a poll or the API: dedupe, queue and 202 in one sync.
    RunRequested,
    /// A run's end: known-good, bad, lease and outbox in one record.
    RunEnded,
    /// A run's deployment to one environment ended.
    DeploymentEnded,
    /// A grant or return of an environment.
    Lease,
    /// A message was delivered, failed or given up.
    Outbox,
    /// A token was made, used or revoked.
    Token,
    /// A project's uid, head, freeze and other settings that the daemon keeps.
    Setting,
    /// An answer kept under an `Idempotency-Key`.
    Idempotency,
}

/// A value under its key.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// `run/<id>`, `delivery/<provider>/<id>`, `signature/<hash>`, `idem/<token>/<key>`, `token/<id>`, `lease/<env>`, `outbox/<id>`, ...
    pub key: String,
    /// The record that wrote it.
    pub revision: Revision,
    /// The whole value.
    pub value: Value,
}

/// Why a commit was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A key is not at the revision the writer saw.
    #[error("{key:?} was changed meanwhile")]
    Conflict {
        /// The first such key.
        key: String,
    },
    /// The values do not fit one record: larger things are blobs that a value names.
    #[error("a control record of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// What was to be written.
        bytes: usize,
        /// What can be.
        limit: usize,
    },
    /// The disk refused earlier.
    #[error("the control journal cannot be written: {0}")]
    Broken(String),
}

/// The control log.
pub trait Control: Send + Sync {
    /// The value now (it may be ahead of the disk: decisions may, views wait for the ticket).
    fn get(&self, key: &str) -> Option<Entry>;

    /// Every entry whose key starts with `prefix`, by key.
    fn scan(&self, prefix: &str) -> Vec<Entry>;

    /// Writes all of `puts` (`None` deletes) if every key of `expected` is at its revision (`Revision(0)` = absent), as one record.
    ///
    /// # Errors
    /// [`CommitError`]; nothing was written then.
    fn commit(
        &self,
        what: Commit,
        expected: &[(String, Revision)],
        puts: Vec<(String, Option<Value>)>,
    ) -> Result<Ticket, CommitError>;

    /// Changes with every commit: waiters look again.
    fn changed(&self) -> crate::lifecycle::watch::Receiver<u64>;

    /// Lets go of `beat` once the writer gets on with what was committed.
    fn beat(&self, beat: crate::lifecycle::pulse::Beat);
}
