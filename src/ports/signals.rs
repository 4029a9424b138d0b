//! Signatures of signals and answers, and what this daemon listens to.

use std::time::Duration;

use super::secrets::Secret;
use crate::model::{
    cause::Cause,
    ids::HostId,
    signal::{Domain, PublicKey},
};

/// Signs and verifies: Ed25519.
pub trait Signer: Send + Sync {
    /// The signature of `document` by a private key, as text, and the public half of that key.
    ///
    /// # Errors
    /// `signal_key`: the secret holds no such key.
    fn sign(&self, private: &Secret, domain: Domain, document: &[u8]) -> Result<(PublicKey, String), Cause>;

    /// The public key of `host` in a file of receivers: `<host id> ssh-ed25519 AAAA...` a line, `#` begins a comment. Blocks as long as a
    /// small read takes.
    ///
    /// # Errors
    /// `host_key_unknown`: the file cannot be read, or has no key, a bad one or more than one for it. What is wrong with another host's line is
    /// nothing to it.
    fn receiver(&self, file: &str, host: &HostId) -> Result<PublicKey, Cause>;

    /// Whether `signature` is that of `document` by the private half of `key`.
    fn verify(&self, key: &PublicKey, domain: Domain, document: &[u8], signature: &str) -> bool;
}

/// `[signals]`: who this daemon is to others, and to whom it listens.
#[derive(Debug, Clone)]
pub struct Listening {
    /// The id by which senders know this machine.
    pub host: HostId,
    /// Its own private key, which signs its answers; `None` = it listens to nobody.
    pub key: Option<Secret>,
    /// The largest age of a signal.
    pub max_age: Duration,
    /// Who may signal what.
    pub accept: Vec<Accepted>,
}

/// A key that is listened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its public half.
    pub key: PublicKey,
    /// `shop`, `shop/production`, `*`.
    pub projects: Vec<String>,
}

impl Default for Listening {
    fn default() -> Self {
        let host = "localhost".parse().unwrap_or_else(|_| unreachable!("localhost is a host's id"));
        Listening { host, key: None, max_age: Duration::from_secs(300), accept: Vec::new() }
    }
}
