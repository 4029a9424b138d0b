//! From a host's description to a link: TCP (or a bastion), key exchange, the host's key, login.

use std::{borrow::Cow, path::Path, sync::Arc, time::Duration};

use nix::unistd::{Uid, User};
use russh::{
    Limits, Preferred,
    client::{self, AuthResult, Handle, Handler},
    compression,
    keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};
use tokio::{net::TcpStream, sync::Semaphore};

use super::{
    guard::{Guarded, Valve},
    known_hosts::{self, Known},
    link::SshLink,
};
use crate::{
    lifecycle::Tasks,
    model::host::{Host, Ssh},
    ports::{
        link::{Duplex, Link, LinkError},
        secrets::Secrets,
    },
    time::{Clock, within},
};

/// Connect time-out where the host says nothing.
const CONNECT: Duration = Duration::from_secs(10);
/// Handshakes at the same moment: they cost both sides' processors, and bastions drop bursts.
const HANDSHAKES: usize = 8;
/// How long a handshake waits for its turn: hosts that hang must not hold up the others.
const TURN: Duration = Duration::from_secs(1);
/// Per channel, before the server has to wait for us.
const WINDOW: u32 = 256 * 1024;
/// Packets of a channel that wait for their reader; then the connection waits.
const QUEUE: usize = 16;

/// Opens links to hosts.
#[derive(Clone)]
pub struct SshLinks {
    secrets: Arc<dyn Secrets>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    turns: Arc<Semaphore>,
}

/// Where to go and as whom.
struct Destination<'a> {
    user: String,
    address: &'a str,
    port: u16,
}

/// Checks the server's key; russh asks.
pub(super) struct Checker {
    known: Known,
}

/// What ends a session.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Ours: the key is not the host's.
    Key(LinkError),
    /// russh's.
    Ssh(russh::Error),
}

impl From<russh::Error> for Refusal {
    fn from(error: russh::Error) -> Self {
        Refusal::Ssh(error)
    }
}

impl Handler for Checker {
    type Error = Refusal;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Refusal> {
        match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => self.known.check(key).map_err(Refusal::Key).map(|()| true),
            // None was asked for: a server that shows one all the same is not believed.
            PublicKeyOrCertificate::Certificate(_) => Err(Refusal::Key(self.known.changed("it shows a certificate"))),
        }
    }
}

impl SshLinks {
    /// `secrets` hold the private keys; sessions and channels run as tasks of `tasks`.
    #[must_use]
    pub fn new(secrets: Arc<dyn Secrets>, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        SshLinks { secrets, clock, tasks, turns: Arc::new(Semaphore::new(HANDSHAKES)) }
    }

    /// A session to `host`: connected, its key checked, logged in. Bounded by its connect time-out (twice that through a
    /// bastion) and the wait for a turn. Cancel safe.
    ///
    /// # Errors
    /// `unreachable`, `connect_timeout`, `connection_lost`, `host_key_*`, `auth_failed`.
    pub async fn connect(&self, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        let key = self.key(&host.ssh)?;
        let user = match &host.ssh.user {
            Some(user) => user.clone(),
            None => own_name()?,
        };
        let target = Destination { user, address: &host.address, port: host.ssh.port.unwrap_or(22) };
        let link = match &host.ssh.jump {
            None => self.session(&target, &host.ssh, &key, None).await?,
            Some(jump) => {
                let bastion = destination(jump, &target.user)?;
                let through = self.session(&bastion, &host.ssh, &key, None).await.map_err(|mut e| {
                    e.cause.message = format!("the bastion of {}: {}", host.name, e.cause.message);
                    e
                })?;
                self.session(&target, &host.ssh, &key, Some(through)).await?
            }
        };
        Ok(link)
    }

    fn key(&self, ssh: &Ssh) -> Result<Arc<PrivateKey>, LinkError> {
        let failed = |why: String| LinkError::new("auth_failed", why);
        let name = match &ssh.key {
            Some(key) => &key.name,
            None => {
                return Err(failed("there is no key to log in with: set ssh.key = phased.secret \"name\"".to_owned()));
            }
        };
        let secret = self.secrets.get(name).map_err(|e| failed(e.to_string()))?;
        // The secret's trailing newline was taken off; the format wants its last line whole.
        let mut text = String::from_utf8(secret.expose().to_vec())
            .map_err(|_| failed(format!("the secret {name:?} is not a private key: it is not text")))?;
        text.push('\n');
        let key = russh::keys::decode_secret_key(&text, None).map_err(|e| {
            let encrypted = if text.contains("ENCRYPTED") || e.to_string().contains("ncrypted") {
                ". It has a passphrase: take it off with ssh-keygen -p"
            } else {
                ""
            };
            failed(format!("the secret {name:?} is not a private key in OpenSSH or PEM format: {e}{encrypted}"))
        })?;
        if key.is_encrypted() {
            return Err(failed(format!(
                "the private key in the secret {name:?} has a passphrase: take it off with ssh-keygen -p"
            )));
        }
        Ok(Arc::new(key))
    }

    async fn session(
        &self,
        to: &Destination<'_>,
        ssh: &Ssh,
        key: &Arc<PrivateKey>,
        through: Option<Arc<SshLink>>,
    ) -> Result<Arc<SshLink>, LinkError> {
        let limit = ssh.connect_timeout_ms.map_or(CONNECT, Duration::from_millis);
        let place = format!("{}@{} port {}", to.user, to.address, to.port);
        let known = match &ssh.known_hosts {
            Some(file) => known_hosts::read(Path::new(file), to.address, to.port)?,
            None => {
                return Err(LinkError::new(
                    "host_key_unknown",
                    format!("{place} cannot be trusted: set ssh.known_hosts to the file with its key"),
                ));
            }
        };
        let timed_out = |what: &str| {
            LinkError::new("connect_timeout", format!("{place} {what} within {}", crate::time::Span(limit)))
        };
        let began = self.clock.now();
        let stream: Box<dyn Duplex> = within(&*self.clock, limit, async {
            match &through {
                Some(bastion) => bastion.dial(to.address, to.port).await,
                None => tcp(to.address, to.port).await,
            }
        })
        .await
        .ok_or_else(|| timed_out("did not accept a connection"))??;
        let left = limit.saturating_sub(self.clock.now().since(&began)).max(Duration::from_millis(1));

        let turn = within(&*self.clock, TURN, self.turns.acquire()).await;
        let valve = Valve::new();
        // Dropped before the login is done (time-out, cancelled): russh's task would wait for the server for ever.
        let cut = CutOnDrop(Some(valve.clone()));
        let stream = Guarded::new(stream, &valve);
        let handle = within(&*self.clock, left, self.login(stream, to, &place, known, key)).await;
        drop(turn);
        let handle = handle.ok_or_else(|| timed_out("did not let us in"))??;
        valve.unbounded();
        cut.keep();
        Ok(Arc::new(SshLink::new(handle, valve, place, ssh.base.clone(), through, self.tasks.clone())))
    }

    async fn login(
        &self,
        stream: Guarded,
        to: &Destination<'_>,
        place: &str,
        known: Known,
        key: &Arc<PrivateKey>,
    ) -> Result<Handle<Checker>, LinkError> {
        let config = Arc::new(config(&known));
        let again = known.clone();
        let mut handle =
            client::connect_stream(config, stream, Checker { known }).await.map_err(|e| failed(place, &again, e))?;
        let lost = |e: russh::Error| failed(place, &again, Refusal::Ssh(e));
        let hash = if key.algorithm().is_rsa() {
            match handle.best_supported_rsa_hash().await.map_err(lost)? {
                Some(Some(hash)) => Some(hash),
                Some(None) => {
                    return Err(LinkError::new(
                        "auth_failed",
                        format!(
                            "{place} takes RSA keys with SHA-1 signatures only: use an ed25519 key, or update the host"
                        ),
                    ));
                }
                None => Some(HashAlg::Sha512),
            }
        } else {
            None
        };
        let asked = handle.authenticate_publickey(&to.user, PrivateKeyWithHashAlg::new(key.clone(), hash)).await;
        match asked.map_err(lost)? {
            AuthResult::Success => Ok(handle),
            AuthResult::Failure { .. } if handle.is_closed() => {
                Err(LinkError::new("connection_lost", format!("{place} closed the connection during the login")))
            }
            AuthResult::Failure { partial_success: true, .. } => Err(LinkError::new(
                "auth_failed",
                format!("{place} wants more than our key (AuthenticationMethods): let this user in with the key alone"),
            )),
            AuthResult::Failure { .. } => Err(LinkError::new(
                "auth_failed",
                format!(
                    "{place} refused our key ({}): is it in the user's authorized_keys?",
                    key.public_key().fingerprint(HashAlg::Sha256)
                ),
            )),
        }
    }
}

/// Cuts the connection when dropped before [`CutOnDrop::keep`].
struct CutOnDrop(Option<Valve>);

impl CutOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        if let Some(valve) = &self.0 {
            valve.cut();
        }
    }
}

fn config(known: &Known) -> client::Config {
    client::Config {
        // Sessions are short; russh's hourly rekey of idle ones has broken connections (its issues 558, 563, 577).
        limits: Limits::new(1 << 30, 1 << 30, Duration::from_secs(7 * 86_400)),
        window_size: WINDOW,
        channel_buffer_size: QUEUE,
        preferred: Preferred {
            key: Cow::Owned(known.algorithms()),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::default()
        },
        keepalive_interval: Some(Duration::from_secs(15)),
        keepalive_max: 3,
        nodelay: true,
        ..client::Config::default()
    }
}

async fn tcp(address: &str, port: u16) -> Result<Box<dyn Duplex>, LinkError> {
    let stream = TcpStream::connect((address, port))
        .await
        .map_err(|e| LinkError::new("unreachable", format!("{address} port {port} cannot be reached: {e}")))?;
    let _slower = stream.set_nodelay(true);
    Ok(Box::new(stream))
}

/// What a handshake failed by.
fn failed(place: &str, known: &Known, refusal: Refusal) -> LinkError {
    match refusal {
        Refusal::Key(error) => error,
        Refusal::Ssh(russh::Error::NoCommonAlgo { kind: russh::AlgorithmKind::Key, theirs, .. })
            if !known.is_empty() =>
        {
            known.changed(&format!("it has only {}", theirs.join(", ")))
        }
        Refusal::Ssh(error) => LinkError::new("connection_lost", format!("{place}: the SSH handshake failed: {error}")),
    }
}

/// `[user@]host[:port]`, `[address]:port` for IPv6.
fn destination<'a>(text: &'a str, user: &str) -> Result<Destination<'a>, LinkError> {
    let bad = || LinkError::new("unreachable", format!("ssh.jump = {text:?} is not \"[user@]host[:port]\""));
    let (user, rest) = text.rsplit_once('@').map_or((user, text), |(user, rest)| (user, rest));
    let (address, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(bad)?;
            (address, port.strip_prefix(':'))
        }
        None => match rest.rsplit_once(':') {
            Some((address, _)) if address.contains(':') => (rest, None),
            Some((address, port)) => (address, Some(port)),
            None => (rest, None),
        },
    };
    let port = port.map_or(Ok(22), str::parse).map_err(|_| bad())?;
    if address.is_empty() || user.is_empty() {
        return Err(bad());
    }
    Ok(Destination { user: user.to_owned(), address, port })
}

fn own_name() -> Result<String, LinkError> {
    let uid = Uid::effective();
    match User::from_uid(uid) {
        Ok(Some(user)) => Ok(user.name),
        _ => {
            Err(LinkError::new("auth_failed", format!("the daemon's uid {uid} has no name to log in as: set ssh.user")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bastions() {
        let read =
            |text| destination(text, "me").map(|d| (d.user, d.address.to_owned(), d.port)).map_err(|e| e.cause.code);
        assert_eq!(read("b"), Ok(("me".into(), "b".into(), 22)));
        assert_eq!(read("x@b:2222"), Ok(("x".into(), "b".into(), 2222)));
        assert_eq!(read("x@[::1]:2222"), Ok(("x".into(), "::1".into(), 2222)));
        assert_eq!(read("::1"), Ok(("me".into(), "::1".into(), 22)));
        for bad in ["", "@b", "b:x", "b:99999", "x@", "[::1"] {
            assert_eq!(read(bad), Err("unreachable".into()), "{bad:?}");
        }
    }
}
