//! Signals: what one daemon asks of another, and what that one answers. Both are signed, over their very bytes.
//!
//! A format: version 1 is canonical JSON ([`super::canonical`]), signed by Ed25519 over a prefix of its own and these bytes. What is not
//! written exactly so is refused, so that no two readers can read it differently.

mod check;
mod key;

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use check::{Newest, Nonces, Rules, SKEW, check, in_order, remembered, replayed};
pub use key::{KeyError, PublicKey};

use super::{
    canonical,
    cause::Cause,
    ids::{Digest, EnvironmentName, Epoch, HostId, ProjectName, ReleaseId, RunId, Sha},
    release::Artifact,
    run::RunState,
};

/// The version of both documents.
pub const VERSION: u32 = 1;
/// The most bytes of a signal or an answer: a release has at most 16 artifacts.
pub const MOST_BYTES: usize = 64 * 1024;
/// The most bytes of a piece of a blob. Senders make them as long, so a receiver takes them whatever limits it has for other bodies.
pub const MOST_PIECE: usize = 768 * 1024;
/// How long after it was made a signal may still arrive.
pub const LIFETIME: Duration = Duration::from_secs(120);

/// The header that goes with a document: the fingerprint of the key, a space, the signature in base64.
pub const SIGNATURE: &str = "phased-signature";
/// The header that holds the document itself, in base64, where the body is a piece of a blob.
pub const DOCUMENT: &str = "phased-signal";

/// What a signature is over, before the bytes of the document: one made for a signal can never pass for one of anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// A signal.
    Signal,
    /// An answer.
    Answer,
}

impl Domain {
    /// What is signed of `document`.
    #[must_use]
    pub fn message(self, document: &[u8]) -> Vec<u8> {
        let prefix: &[u8] = match self {
            Domain::Signal => b"phased signal v1\n",
            Domain::Answer => b"phased answer v1\n",
        };
        [prefix, document].concat()
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Signal {
    /// [`VERSION`].
    pub version: u32,
    /// Of what.
    pub project: ProjectName,
    /// Where.
    pub environment: EnvironmentName,
    /// Whose daemon is meant, by the id of its host: what is for one is nothing for another.
    pub audience: HostId,
    /// 32 random hex digits: no two signals are the same.
    pub nonce: String,
    /// Wall time of the sender, ms.
    pub issued_at_ms: i64,
    /// From then on it is refused, wall ms.
    pub not_after_ms: i64,
    /// What.
    pub order: Order,
}

/// What a signal asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Order {
    /// Deploy a release: a run, once for each token.
    Deploy(Box<Deploy>),
    /// How the run of this token stands.
    Follow {
        /// Of the signal that asked for it.
        token: Digest,
    },
    /// End the run of this token; a host in flight finishes its deploy.
    Stop {
        /// Of the signal that asked for it.
        token: Digest,
        /// In the sender's words.
        reason: String,
    },
    /// What is live, and whether it is well.
    Look {
        /// The release that should be.
        release: ReleaseId,
        /// Its commit.
        revision: Sha,
    },
    /// A piece of a blob that a release needs; it follows beside the signal.
    Piece {
        /// The blob.
        blob: Digest,
        /// Of all of it.
        size: u64,
        /// Where the piece begins; what is there already is said in the answer.
        offset: u64,
        /// Of the piece.
        sha256: Digest,
    },
}

/// The order to deploy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deploy {
    /// The cookie of the sender's step: asked again with the same one it is the same run.
    pub token: Digest,
    /// Of the sender's lease: an older one than was accepted before is refused.
    pub epoch: Epoch,
    /// Of the sender's deployment in its run: a rollback has the lease of what it takes back, and comes after it.
    pub deployment: u32,
    /// The sender's step, and which attempt of it: an earlier one that comes late is refused.
    pub step: String,
    /// From 1.
    pub attempt: u32,
    /// The sender's run.
    pub run: RunId,
    /// What ships.
    pub release: Shipped,
    /// It puts back what was good: a rollback or a convergence. A freeze lets it in, and it may be older than what is live. Where the release
    /// is known-good it is a way back as every other one is; elsewhere it is new, and one that was found bad there is not taken.
    pub back: bool,
    /// Also a release that was found bad here.
    pub retry_bad: bool,
    /// Why, in the words of whoever began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A release as a signal names it: the commit itself comes from the receiver's own source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipped {
    /// Its id.
    pub id: ReleaseId,
    /// Its commit.
    pub revision: Sha,
    /// The tag it came by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// What its tests stored.
    pub artifacts: Vec<Artifact>,
}

/// What a run keeps of the signal that asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// The fingerprint of the key that signed it.
    pub key: String,
    /// Its token.
    pub token: Digest,
    /// The sender's run.
    pub run: RunId,
    /// What ships.
    pub release: Shipped,
    /// It puts back what was good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub back: bool,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// That of the signal it answers.
    pub nonce: String,
    /// Who answers, by the id of its host.
    pub audience: HostId,
    /// What.
    pub said: Said,
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Said {
    /// Nothing was done, and why.
    Refused {
        /// `signal_...`.
        cause: Cause,
    },
    /// How a run stands.
    Run(Box<RunStands>),
    /// What is live.
    Live(Box<Stands>),
    /// These blobs are needed first, and so much of each is there.
    Missing {
        /// By digest: bytes.
        blobs: Vec<Part>,
    },
}

/// How much of a blob a receiver has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which.
    pub blob: Digest,
    /// Bytes from its beginning; all of them = it has the blob.
    pub have: u64,
    /// All of it is there, checked.
    pub whole: bool,
}

/// How a run of a receiver stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStands {
    /// Its id there.
    pub run: RunId,
    /// Its state.
    pub state: RunState,
    /// It is over.
    pub over: bool,
    /// Health, an alarm or a verification there has found the release bad.
    pub bad: bool,
    /// Why it ended, or what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
}

/// What is live at a receiver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stands {
    /// The release that is live there; none was ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// The release asked about was found bad there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad: Option<Cause>,
    /// Something is wrong with what is live: how the last deployment ended, or what a look at its health has just seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrong: Option<Cause>,
    /// It cannot be told how it is: a deployment changes it just now, or not all of its hosts could be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<Cause>,
    /// The checks of that environment's health were made on every host that has what is live, for this answer.
    #[serde(default)]
    pub looked: bool,
    /// A run is under way there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy: Option<RunId>,
    /// Why nothing new would be taken now: a freeze, maintenance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shut: Option<Cause>,
}

/// The bytes of a document, as they are signed and sent.
#[must_use]
pub fn written<T: Serialize>(document: &T) -> Vec<u8> {
    let value = serde_json::to_value(document).unwrap_or_default();
    canonical::to_string(&value).into_bytes()
}

/// A document of these bytes, if they are exactly what [`written`] makes of it.
///
/// # Errors
/// Why not, in words.
pub fn read<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let document: T = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if written(&document) != bytes {
        return Err("it is not canonical JSON of the keys that are known".to_owned());
    }
    Ok(document)
}

impl Order {
    /// Its word in logs and counters.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Order::Deploy(_) => "deploy",
            Order::Follow { .. } => "follow",
            Order::Stop { .. } => "stop",
            Order::Look { .. } => "look",
            Order::Piece { .. } => "piece",
        }
    }
}
