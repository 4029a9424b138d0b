//! A copy of everything the daemon knows, made while it works.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// What a backup says of itself, in its first entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The form of the archive, 1.
    pub format: u32,
    /// The daemon that made it.
    pub version: String,
    /// Who that was: `machine:pid`.
    pub controller: String,
    /// RFC 3339, for people.
    pub at: String,
    /// Wall time, ms.
    pub at_ms: i64,
    /// Whether the files of secrets are in it.
    pub secrets: bool,
}

/// Makes copies.
pub trait Archive: Send + Sync {
    /// Writes a backup to `to`: whatever was on disk when this was called is in it, and of what happens meanwhile only what fits that. Blocks
    /// on the disk and on `to`, in bounded memory. Who calls keeps blobs from being swept meanwhile ([`super::blobs::Blobs::hold`]).
    ///
    /// # Errors
    /// The disk's and `to`'s. What was written until then is no backup: its end is missing.
    fn write(&self, manifest: &Manifest, to: &mut dyn Write) -> io::Result<()>;
}
