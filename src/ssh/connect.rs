//! From a host's description to a link: TCP (or bastions), key exchange, the host's key, login.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::unistd::{Uid, User};
use russh::{
    Limits, Preferred,
    client::{self, AuthResult, Handle, Handler},
    compression,
    keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
};

use super::{
    bastions::{Bastions, Through},
    guard::{Guarded, Valve},
    known_hosts::Who,
    link::SshLink,
    prompt::Prompt,
    room::{Held, Room, SshLimits},
    trust::{Belief, Trust},
};
use crate::{
    lifecycle::{
        Tasks,
        names::{self, Names},
        watch,
    },
    model::{
        cause::Cause,
        host::{Host, SecretRef},
        host_key::{HostKeys as Said, Learnt, Realm},
        ids::Digest,
    },
    ports::{
        host_keys::HostKeys,
        link::{Duplex, Link, LinkError},
        secrets::Secrets,
    },
    time::{Clock, within},
};

/// Connect time-out where the host says nothing.
const CONNECT: Duration = Duration::from_secs(10);
/// Per channel, before the server has to wait for us.
const WINDOW: u32 = 256 * 1024;
/// Packets of a channel that wait for their reader; then the connection waits.
const QUEUE: usize = 16;
/// What ssh-key says of an ECDSA key whose number takes fewer bytes than its curve (0.7.0-rc.11, `private/ecdsa.rs`: `MIN_SIZE`).
const SHORT: &str = "length invalid";
/// What is read of a server before it gets a turn: the beginning of its greeting. Larger reads go past this buffer.
const GREETING: usize = 256;

/// Opens links to hosts.
#[derive(Clone)]
pub struct SshLinks {
    secrets: Arc<dyn Secrets>,
    keys: Arc<Mutex<Keys>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tasks: Tasks,
    /// Keys learnt before.
    pub(super) kept: Arc<dyn HostKeys>,
    /// Whether more are.
    learns: bool,
    pub(super) room: Arc<Room>,
    names: Names,
    pub(super) bastions: Arc<Bastions>,
}

/// Where to go and as whom.
#[derive(Clone, Copy)]
pub(super) struct Destination<'a> {
    pub(super) user: &'a str,
    pub(super) address: &'a str,
    pub(super) port: u16,
}

/// One part of the way: to a host, or to a bastion.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) to: Destination<'a>,
    /// The secret to log in with.
    pub(super) key: Option<&'a SecretRef>,
    pub(super) known_hosts: Option<&'a str>,
    pub(super) host_keys: Option<&'a Said>,
    pub(super) connect_timeout_ms: Option<u64>,
}

/// Checks the server's key; russh asks, once the server has proved to hold it.
pub(super) struct Checker {
    trust: Trust,
    clock: Arc<dyn Clock>,
    /// A key that was never seen before.
    new: New,
}

type New = Arc<Mutex<Option<Learnt>>>;

/// Private keys by their secret's name, each with the digest of the text it was read from: a fleet is logged in to with one.
type Keys = BTreeMap<String, (Digest, Arc<PrivateKey>)>;

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
        match self.trust.check(shown, self.clock.now().wall_ms).map_err(Refusal::Key)? {
            Belief::Known => {}
            Belief::New(learnt) => *self.new.lock().unwrap_or_else(PoisonError::into_inner) = Some(learnt),
        }
        Ok(true)
    }
}

impl SshLinks {
    /// `secrets` hold the private keys, `kept` the learnt host keys; sessions and channels run as tasks of `tasks`.
    #[must_use]
    pub fn new(
        secrets: Arc<dyn Secrets>,
        kept: Arc<dyn HostKeys>,
        clock: Arc<dyn Clock>,
        tasks: Tasks,
        limits: SshLimits,
    ) -> Self {
        let room = Arc::new(Room::new(limits));
        let (keys, bastions, names) = (Arc::default(), Arc::default(), Names::new(names::HOSTS));
        SshLinks { secrets, keys, clock, tasks, kept, learns: true, room, names, bastions }
    }

    /// The same room and keys, for looking: what is met for the first time is not learnt. Sessions to bastions are its own, as one whose key
    /// nobody keeps is not to be shared with those who would have kept it.
    #[must_use]
    pub fn looking(&self) -> Self {
        SshLinks { learns: false, bastions: Arc::default(), ..self.clone() }
    }

    /// A session to `host` of `realm`: connected, its key checked, logged in. Bounded by its connect time-out, once more for each bastion,
    /// and by the waits for room. Cancel safe.
    ///
    /// # Errors
    /// `unreachable`, `connect_timeout`, `connection_lost`, `session_limit`, `host_key_*`, `auth_failed`.
    pub async fn connect(&self, realm: &Realm, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        let user = match &host.ssh.user {
            Some(user) => user.clone(),
            None => own_name()?,
        };
        let way = Way {
            to: Destination { user: &user, address: &host.address, port: host.ssh.port.unwrap_or(22) },
            key: host.ssh.key.as_ref(),
            known_hosts: host.ssh.known_hosts.as_deref(),
            host_keys: host.ssh.host_keys.as_ref(),
            connect_timeout_ms: host.ssh.connect_timeout_ms,
        };
        let who = Who { id: host.id.as_str(), name: &host.name, address: &host.address, port: way.to.port };
        let trust = Trust::of(realm, &who, way.host_keys, way.known_hosts, &*self.kept).await?;
        let held = self.room.session(&*self.clock, realm, host.ssh.max_sessions).await?;
        let through = match &host.ssh.jump {
            Some(jump) => self.through(realm, host, jump, &user).await?,
            None => None,
        };
        let link = self.session(&way, trust, through, Some(held), host.ssh.base.clone()).await?;
        Ok(link)
    }

    /// How many wait for room.
    #[must_use]
    pub fn waiting(&self) -> watch::Receiver<usize> {
        self.room.waiting()
    }

    fn key(&self, key: Option<&SecretRef>) -> Result<Arc<PrivateKey>, LinkError> {
        let failed = |why: String| LinkError::new("auth_failed", why);
        let name = match key {
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
        let digest = Digest::of(text.as_bytes());
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, read)) = keys.get(name).filter(|(of, _)| *of == digest) {
            return Ok(Arc::clone(read));
        }
        let key = russh::keys::decode_secret_key(&text, None).map_err(|e| {
            let said = e.to_string();
            let remedy = if text.contains("ENCRYPTED") || said.contains("ncrypted") {
                ". It has a passphrase: take it off with ssh-keygen -p"
            } else if said.contains(SHORT) {
                ". An ECDSA key whose number begins with zeros, as one in 512 does, is read only as PEM: ssh-keygen -p -m PEM -f FILE writes it so"
            } else {
                ""
            };
            failed(format!("the secret {name:?} is not a private key in OpenSSH or PEM format: {said}{remedy}"))
        })?;
        if key.is_encrypted() {
            return Err(failed(format!(
                "the private key in the secret {name:?} has a passphrase: take it off with ssh-keygen -p"
            )));
        }
        let key = Arc::new(key);
        keys.insert(name.clone(), (digest, Arc::clone(&key)));
        Ok(key)
    }

    /// `held`: its place among the sessions, for as long as it lives.
    pub(super) async fn session(
        &self,
        way: &Way<'_>,
        trust: Trust,
        through: Option<Through>,
        held: Option<Held>,
        base: Option<String>,
    ) -> Result<Arc<SshLink>, LinkError> {
        let to = &way.to;
        let key = self.key(way.key)?;
        let limit = way.connect_timeout_ms.map_or(CONNECT, Duration::from_millis);
        let place = format!("{}@{} port {}", to.user, to.address, to.port);
        let by_way_of = through.as_ref().map(|through| through.place.clone());
        let timed_out = |what: &str| {
            let limit = crate::time::Span(limit);
            match &by_way_of {
                Some(bastion) => {
                    let message = format!("{place} {what} within {limit}, by way of the bastion {bastion}");
                    LinkError { cause: Cause::new("connect_timeout", message).with("through", bastion.as_str()) }
                }
                None => LinkError::new("connect_timeout", format!("{place} {what} within {limit}")),
            }
        };
        let began = self.clock.now();
        let mut dialled = false;
        let greeted = within(&*self.clock, limit, async {
            let stream: Box<dyn Duplex> = match &through {
                Some(bastion) => bastion.dial(to.address, to.port).await?,
                None => tcp(&self.names, to.address, to.port).await?,
            };
            dialled = true;
            // A server speaks first. Before it does it takes nobody's turn: hosts that hang do not hold up the others.
            let mut stream = BufReader::with_capacity(GREETING, stream);
            match stream.fill_buf().await {
                Ok([]) => {
                    Err(LinkError::new("connection_lost", format!("{place} closed the connection without a word")))
                }
                Ok(_) => Ok(stream),
                Err(e) => Err(LinkError::new("connection_lost", format!("the connection to {place} was lost: {e}"))),
            }
        });
        let stream = match greeted.await {
            Some(stream) => stream?,
            None => {
                // Neither did the bastion say that it cannot: it may be the one that is gone.
                if let Some(bastion) = through.as_ref().filter(|_| !dialled) {
                    bastion.is_there(&*self.clock).await?;
                }
                return Err(timed_out("did not answer"));
            }
        };
        let left = limit.saturating_sub(self.clock.now().since(&began)).max(Duration::from_millis(1));

        let mut turns = vec![self.room.handshake(&*self.clock).await?];
        let through = through.map(|through| {
            turns.push(through.turn);
            through.link
        });
        let valve = Valve::new(turns);
        // Dropped before the login is done (time-out, cancelled): russh's task would wait for the server for ever.
        let cut = CutOnDrop(Some(valve.clone()));
        let stream = Guarded::new(Box::new(stream), &valve, held);
        let new = New::default();
        let handle = within(&*self.clock, left, self.login(stream, to, &place, &trust, &new, &key)).await;
        let handle = handle.ok_or_else(|| timed_out("did not let us in"))??;
        // Only what has let us in is remembered: a stranger at the address of a host is not taken for it because it has a key too.
        let new = new.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The disk is waited for in nobody's turn.
        valve.unbounded();
        let learnt = match new {
            Some(new) if self.learns => Some(trust.learn(&*self.kept, new).await?),
            Some(_) | None => None,
        };
        cut.keep();
        Ok(Arc::new(SshLink::new(handle, valve, place, base, through, learnt, self.tasks.clone())))
    }

    async fn login(
        &self,
        stream: Guarded,
        to: &Destination<'_>,
        place: &str,
        trust: &Trust,
        new: &New,
        key: &Arc<PrivateKey>,
    ) -> Result<Handle<Checker>, LinkError> {
        let config = Arc::new(config(trust));
        let checker = Checker { trust: trust.clone(), clock: Arc::clone(&self.clock), new: Arc::clone(new) };
        let mut handle = client::connect_stream(config, stream, checker).await.map_err(|e| failed(place, trust, e))?;
        let lost = |e: russh::Error| failed(place, trust, Refusal::Ssh(e));
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
        let asked = handle.authenticate_publickey(to.user, PrivateKeyWithHashAlg::new(key.clone(), hash)).await;
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

fn config(trust: &Trust) -> client::Config {
    let (keys, certificates) = trust.algorithms();
    client::Config {
        // Sessions are short; russh's hourly rekey of idle ones has broken connections (its issues 558, 563, 577).
        limits: Limits::new(1 << 30, 1 << 30, Duration::from_secs(7 * 86_400)),
        window_size: WINDOW,
        channel_buffer_size: QUEUE,
        preferred: Preferred {
            key: Cow::Owned(keys),
            host_key_certificates: Cow::Owned(certificates),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::default()
        },
        keepalive_interval: Some(Duration::from_secs(15)),
        keepalive_max: 3,
        nodelay: true,
        ..client::Config::default()
    }
}

async fn tcp(names: &Names, address: &str, port: u16) -> Result<Box<dyn Duplex>, LinkError> {
    let failed = |e| LinkError::new("unreachable", format!("{address} port {port} cannot be reached: {e}"));
    let addresses = names.lookup(address, port).await.map_err(failed)?;
    let stream = TcpStream::connect(addresses.as_slice()).await.map_err(failed)?;
    let _slower = stream.set_nodelay(true);
    Ok(Box::new(Prompt::new(stream)))
}

/// What a handshake failed by.
fn failed(place: &str, trust: &Trust, refusal: Refusal) -> LinkError {
    match refusal {
        Refusal::Key(error) => error,
        Refusal::Ssh(russh::Error::NoCommonAlgo { kind: russh::AlgorithmKind::Key, theirs, .. })
            if trust.is_anchored() =>
        {
            trust.changed(&format!("it has only {}", theirs.join(", ")))
        }
        Refusal::Ssh(error) => LinkError::new("connection_lost", format!("{place}: the SSH handshake failed: {error}")),
    }
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
