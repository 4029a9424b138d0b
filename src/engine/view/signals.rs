//! Signals, as people see them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// To whom this daemon listens, and what came since it was started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SignalsView {
    /// Whether it listens at all: `[signals]` has a key.
    pub listens: bool,
    /// Who it is to senders: the id of its host.
    #[schema(example = "web1")]
    pub host: String,
    /// Its own public key, by which senders know its answers.
    pub key: Option<String>,
    /// The keys that are listened to.
    pub accept: Vec<AcceptedView>,
    /// RFC 3339: since when the numbers count.
    pub since: String,
    /// What was taken, by what it asked for: `deploy look follow stop piece`; `repeated`: asked again by its own sender, `missing`: told what
    /// to send first.
    pub taken: BTreeMap<String, u64>,
    /// What was refused, by code.
    pub refused: BTreeMap<String, u64>,
    /// The last refusals, newest first; a flood of the same is one a second.
    pub recent: Vec<RefusedView>,
}

/// A key that is listened to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AcceptedView {
    /// Its public half.
    pub key: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// What it may signal.
    pub projects: Vec<String>,
}

/// A signal that was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RefusedView {
    /// RFC 3339.
    pub at: String,
    /// Why, a stable slug.
    #[schema(example = "signal_expired")]
    pub code: String,
    /// Why, in words.
    pub message: String,
    /// Whose, where the signature was genuine.
    pub project: Option<String>,
    /// Where, likewise.
    pub environment: Option<String>,
    /// What it asked for, likewise.
    pub order: Option<String>,
}
