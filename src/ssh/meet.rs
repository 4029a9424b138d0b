//! The key that a server shows, before anybody logs in: for whoever is to say whether it is right.

use std::{
    borrow::Cow,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use russh::{
    Preferred,
    client::{self, Handler},
    compression,
    keys::{PublicKey, PublicKeyOrCertificate},
};

use super::{
    guard::{Guarded, Valve},
    known_hosts::{self, Known, Who},
};
use crate::{
    ports::link::{Duplex, LinkError},
    time::{Clock, within},
};

/// For TCP and the key exchange together.
const LIMIT: Duration = Duration::from_secs(10);

/// A key that nobody has vouched for yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// `ssh-ed25519 SHA256:...`, for people.
    pub fingerprint: String,
    /// The line that a known_hosts file takes.
    pub line: String,
}

/// What is known of a server that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Met {
    /// It shows a key that the file has.
    Known,
    /// The file has no key of it.
    New(Shown),
}

/// Asks `who` for its key and holds that against the known_hosts file `known`, which need not exist. Nothing else is sent.
///
/// # Errors
/// `unreachable`, `connect_timeout`, `connection_lost`; `host_key_changed`, `host_key_revoked`, and `host_key_unknown` when the file cannot be read.
pub async fn meet(who: &Who<'_>, known: &Path, clock: &dyn Clock) -> Result<Met, LinkError> {
    let known = if known.exists() { known_hosts::read(known, who)? } else { Known::default() };
    let place = known_hosts::name(who.address, who.port);
    let met = within(clock, LIMIT, shown(who, &place, &known)).await;
    let key = met.ok_or_else(|| LinkError::new("connect_timeout", format!("{place} did not answer within 10s")))??;
    known.not_revoked(key.key_data())?;
    if known.is_empty() {
        let text = key.to_openssh().unwrap_or_default();
        let line = format!("{place} {}", text.split(' ').take(2).collect::<Vec<_>>().join(" "));
        return Ok(Met::New(Shown { fingerprint: known_hosts::shown(&key), line }));
    }
    known.check(&key).map(|()| Met::Known)
}

/// Keeps the key and refuses to go on.
struct Looker(Arc<Mutex<Option<PublicKey>>>);

impl Handler for Looker {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        if let PublicKeyOrCertificate::PublicKey { key, .. } = shown {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        }
        Ok(false)
    }
}

async fn shown(who: &Who<'_>, place: &str, known: &Known) -> Result<PublicKey, LinkError> {
    let stream = tokio::net::TcpStream::connect((who.address, who.port))
        .await
        .map_err(|e| LinkError::new("unreachable", format!("{place} cannot be reached: {e}")))?;
    let stream: Box<dyn Duplex> = Box::new(stream);
    let config = client::Config {
        preferred: Preferred {
            key: Cow::Owned(known.algorithms()),
            host_key_certificates: Cow::Borrowed(&[]),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::default()
        },
        ..client::Config::default()
    };
    let seen = Arc::new(Mutex::new(None));
    let valve = Valve::new(Vec::new());
    // Dropped by the time-out too: russh's own task ends with the connection only.
    let _cut = Cut(valve.clone());
    let stream = Guarded::new(stream, &valve, None);
    let ended = client::connect_stream(Arc::new(config), stream, Looker(Arc::clone(&seen))).await;
    let key = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (key, ended) {
        (Some(key), _) => Ok(key),
        (None, Err(russh::Error::NoCommonAlgo { kind: russh::AlgorithmKind::Key, theirs, .. }))
            if !known.is_empty() =>
        {
            Err(known.changed(&format!("it has only {}", theirs.join(", "))))
        }
        (None, Err(error)) => Err(LinkError::new(
            "connection_lost",
            format!("{place}: the SSH handshake failed: {error}; is an SSH server there?"),
        )),
        (None, Ok(_)) => Err(LinkError::new("connection_lost", format!("{place} shows no key"))),
    }
}

struct Cut(Valve);

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.cut();
    }
}
