//! What ships: a project at one commit.

use serde::{Deserialize, Serialize};

use super::ids::{ReleaseId, Sha};

/// A commit as git tells it. Every text is the author's and hostile until escaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The full hash.
    pub sha: Sha,
    /// The hash of its tree: two commits with one tree are the same bytes.
    pub tree: Sha,
    /// `Name <mail>`.
    pub author: String,
    /// The whole message.
    pub message: String,
    /// Committer time, milliseconds since the epoch.
    pub committed_at_ms: i64,
}

/// The immutable thing that ships.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// 12 hex of the commit, `.2` for a further build.
    pub id: ReleaseId,
    /// Its commit.
    pub commit: Commit,
    /// The branch it came by.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub branch: Option<String>,
    /// The tag it came by.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tag: Option<String>,
}
