//! A small SSH server inside this process: the demo's hosts, and a peer for tests.
//!
//! One account, one key, commands by `exec` only, forwarding only to the ports it was given. It behaves as OpenSSH's sshd does
//! where a client can tell: a command's exit status is sent when it ends, the channel closes when its output has been read, and a
//! channel that the client closes does not end its command.
//!
//! Output is sent as fast as the client's window allows and no faster. Input of one command is held back up to [`MOST_HELD`]; then
//! the whole session waits for that command.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Disconnect, MethodKind, MethodSet, Sig,
    keys::ssh_key::{self, LineEnding, PrivateKey, PublicKey, private::Ed25519Keypair},
    server::{self, Auth, ChannelOpenHandle, Handle, Handler, Msg, Session},
};
use tokio::net::{TcpListener, TcpStream};

use crate::lifecycle::Tasks;

mod command;
#[cfg(test)]
mod tests;

/// The most input of one command that is held while the command reads none.
const MOST_HELD: usize = 64 << 20;

/// An ed25519 key pair.
#[derive(Clone)]
pub struct Key(PrivateKey);

/// Why a key could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system gave no random numbers.
    #[error("no random numbers for a key: {0}")]
    Random(getrandom::Error),
    /// It has no text form, or a text is none.
    #[error("it is no key of OpenSSH without a passphrase")]
    Encoding(#[from] ssh_key::Error),
}

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(KeyError::Random)?;
        Ok(Key(PrivateKey::from(Ed25519Keypair::from_seed(&seed))))
    }

    /// From the text of a private key's file.
    ///
    /// # Errors
    /// [`KeyError::Encoding`]: it is none, or it has a passphrase.
    pub fn read(text: &str) -> Result<Self, KeyError> {
        let key = PrivateKey::from_openssh(text)?;
        if key.is_encrypted() { Err(ssh_key::Error::Encrypted.into()) } else { Ok(Key(key)) }
    }

    /// The private key as a file that OpenSSH reads, not encrypted.
    ///
    /// # Errors
    /// [`KeyError::Encoding`].
    pub fn private_file(&self) -> Result<String, KeyError> {
        Ok(self.0.to_openssh(LineEnding::LF)?.to_string())
    }

    /// `ssh-ed25519 AAAA...`, as known_hosts and authorized_keys have it.
    ///
    /// # Errors
    /// [`KeyError::Encoding`].
    pub fn public_line(&self) -> Result<String, KeyError> {
        Ok(self.0.public_key().to_openssh()?)
    }
}

/// Who may log in, and what they find.
#[derive(Clone)]
pub struct Account {
    /// The only user.
    pub user: String,
    /// The key they log in with.
    pub key: Key,
    /// Where commands start, and their `HOME`.
    pub home: PathBuf,
    /// `PATH` of commands; besides it they get `HOME USER LOGNAME SHELL` only.
    pub path: String,
    /// Ports of the host's own loopback that may be dialled, and where each really is.
    pub forwards: BTreeMap<u16, SocketAddr>,
}

/// Accepts sessions on `listener` until `tasks` is shut down; returns at once. Commands still running then are killed.
pub fn serve(name: &str, listener: TcpListener, host_key: Key, account: Account, tasks: &Tasks) {
    let name: Arc<str> = Arc::from(name);
    let host = Host::new(host_key, account, tasks);
    let stopping = tasks.stopping();
    tasks.clone().spawn(format!("ssh-server/{name}"), async move {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let tasks = host.tasks.clone();
                    tasks.spawn(format!("ssh-server/{name}/session"), host.clone().session(stream));
                }
                Err(error) => {
                    tracing::warn!(host = %name, %error, "a connection could not be accepted");
                    tokio::task::yield_now().await;
                }
            }
        }
    });
}

/// A host that can be logged in to, by whoever accepts its connections. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    config: Arc<server::Config>,
    account: Arc<Account>,
    tasks: Tasks,
}

impl Host {
    /// One with this key; it ends when `tasks` is shut down.
    #[must_use]
    pub fn new(host_key: Key, account: Account, tasks: &Tasks) -> Self {
        let config = server::Config {
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            keys: vec![host_key.0],
            // A client's first try is always "none"; making it wait would make every login wait.
            auth_rejection_time_initial: Some(Duration::ZERO),
            inactivity_timeout: None,
            nodelay: true,
            ..server::Config::default()
        };
        Host { config: Arc::new(config), account: Arc::new(account), tasks: tasks.clone() }
    }

    /// One connection, from its first byte to its last.
    pub async fn session(self, stream: TcpStream) {
        let _nagle_only_delays = stream.set_nodelay(true);
        let stopping = self.tasks.stopping();
        let login = Login::new(self.account, self.tasks);
        let running = tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            running = server::run_stream(self.config, stream, login) => running,
        };
        let running = match running {
            Ok(running) => running,
            Err(error) => return tracing::debug!(%error, "a session did not begin"),
        };
        let handle = running.handle();
        tokio::select! {
            biased;
            () = stopping.cancelled() => {
                let _gone_already = handle.disconnect(Disconnect::ByApplication, "the host goes down".into(), "en".into()).await;
            }
            ended = running => if let Err(error) = ended {
                tracing::debug!(%error, "a session ended");
            },
        }
    }
}

/// The process groups of commands that run, by channel.
#[derive(Clone, Default)]
struct Groups(Arc<Mutex<HashMap<ChannelId, Pid>>>);

impl Groups {
    fn lock(&self) -> MutexGuard<'_, HashMap<ChannelId, Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A group is taken out as soon as its leader has been waited for, so that no stranger's is meant.
    fn signal(&self, channel: ChannelId, signal: Signal) {
        if let Some(group) = self.lock().get(&channel) {
            let _gone_already = killpg(*group, signal);
        }
    }
}

/// One session's state: channels that wait for their command.
struct Login {
    account: Arc<Account>,
    tasks: Tasks,
    idle: HashMap<ChannelId, Channel<Msg>>,
    groups: Groups,
}

impl Login {
    fn new(account: Arc<Account>, tasks: Tasks) -> Self {
        Login { account, tasks, idle: HashMap::new(), groups: Groups::default() }
    }

    fn is_ours(&self, user: &str, key: &PublicKey) -> bool {
        user == self.account.user && key.key_data() == self.account.key.0.public_key().key_data()
    }

    fn start(&mut self, channel: ChannelId, command: &[u8], handle: Handle) -> io::Result<()> {
        let command = std::str::from_utf8(command).map_err(|_| io::Error::other("the command is not UTF-8"))?;
        let idle = self.idle.remove(&channel).ok_or_else(|| io::Error::other("no such channel"))?;
        let running = command::start(command, &self.account, channel, self.groups.clone())?;
        let stopping = self.tasks.stopping();
        let groups = self.groups.clone();
        self.tasks.spawn("ssh-server/command", async move {
            tokio::select! {
                biased;
                () = stopping.cancelled() => groups.signal(channel, Signal::SIGKILL),
                () = running.attend(idle, handle) => {}
            }
        });
        Ok(())
    }
}

impl Handler for Login {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: server::PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(if self.is_ours(user, offer.public_key) { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, user: &str, key: server::VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(if self.is_ours(user, key.public_key) { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.idle.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        self.idle.remove(&channel);
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.start(channel, command, session.handle()) {
            Ok(()) => session.channel_success(channel),
            Err(error) => {
                tracing::warn!(%error, "a command could not be started");
                session.channel_failure(channel)
            }
        }
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn signal(&mut self, channel: ChannelId, signal: Sig, _session: &mut Session) -> Result<(), Self::Error> {
        if let Some(signal) = command::signal(&signal) {
            self.groups.signal(channel, signal);
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _from: &str,
        _from_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let loopback = matches!(host, "127.0.0.1" | "localhost" | "::1");
        let to = u16::try_from(port).ok().filter(|_| loopback).and_then(|port| self.account.forwards.get(&port));
        let Some(to) = to.copied() else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        // Loopback answers at once, yes or no.
        let Ok(mut far) = TcpStream::connect(to).await else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        reply.accept().await;
        let stopping = self.tasks.stopping();
        self.tasks.spawn("ssh-server/forward", async move {
            let mut near = channel.into_stream();
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                _either_end_may_break = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            }
        });
        Ok(())
    }
}
