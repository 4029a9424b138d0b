//! Secrets: resolved when a step uses them, never before, never stored.

use std::sync::Arc;

/// A secret's bytes; not printable, not serialisable.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// From the bytes of its file, one trailing newline taken off.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        Secret(Arc::from(bytes.strip_suffix(b"\r").unwrap_or(bytes)))
    }

    /// The value. Whoever calls this sees to it that it goes nowhere but to its use.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a secret is not to be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SecretError {
    /// No such file.
    #[error("secret {name:?} does not exist: put it into {looked}")]
    Missing {
        /// The name asked for.
        name: String,
        /// The directories looked into.
        looked: String,
    },
    /// A name that would leave the directory, or an empty one.
    #[error("secret name {name:?} is not allowed: parts of A-Z a-z 0-9 . _ - joined by /, none of them . or ..")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// It is there and cannot be read, or is shorter than 8 bytes (it could not be redacted).
    #[error("secret {name:?} cannot be used: {why}")]
    Unusable {
        /// The name asked for.
        name: String,
        /// Why.
        why: String,
    },
}

/// The daemon's secrets.
pub trait Secrets: Send + Sync {
    /// The value of `name` now.
    ///
    /// # Errors
    /// [`SecretError`].
    fn get(&self, name: &str) -> Result<Secret, SecretError>;
}
