//! A way to a machine: the integration server itself or a host over SSH. A link only opens channels.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    lifecycle::watch,
    model::{cause::Cause, host::Host, host_key::Realm, ids::ProjectName},
};

/// Why a link or channel could not be had, or broke. `cause.code` is one of `unreachable` (refused, no route, name unknown),
/// `connect_timeout`, `connection_lost`, `session_limit` (our own, waited for in vain), `auth_failed`, `host_key_unknown`,
/// `host_key_changed`, `host_key_revoked`, `host_key_certificate` (it is not good), `host_unsupported`, `channel_refused`,
/// `forwarding_refused`, `job_user` (the local job user cannot be used), `job_unit` (the unit that starts local commands did not).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{cause}")]
pub struct LinkError {
    /// For the journal and people.
    pub cause: Cause,
}

impl LinkError {
    /// Shorthand.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        LinkError { cause: Cause::new(code, message) }
    }
}

/// How long a machine that refuses another channel (`channel_refused`) is asked again: somebody else's may end. Whoever waits within
/// [`Link::open`] itself waits as long, so that nobody waits twice.
pub const REFUSED: Duration = Duration::from_secs(30);

/// How a channel's command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(u32),
    /// By this signal, without `SIG`.
    Signal(String),
    /// The channel closed without saying.
    Unsaid,
}

/// A running command's streams. Dropping all of it closes the channel; that never kills a command of the command protocol.
pub struct Channel {
    /// Its standard input; shut it down to send end of file.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// Its standard output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    /// Resolves when the command has ended (all output may not be read yet), or the link broke.
    pub exit: BoxFuture<'static, Result<Exit, LinkError>>,
}

/// Both directions of a TCP connection seen from a host.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One session to one machine. Cheap to share; channels are opened side by side.
#[async_trait]
pub trait Link: Send + Sync {
    /// Starts `command` (a bare word such as `sh`, or a probe's shell text) with its three streams.
    ///
    /// # Errors
    /// [`LinkError`]. Cancel safe: a channel opened meanwhile is closed.
    async fn open(&self, command: &str) -> Result<Channel, LinkError>;

    /// A TCP connection made by the machine itself to `host:port`.
    ///
    /// # Errors
    /// [`LinkError`]; `forwarding_refused` where `AllowTcpForwarding` forbids it, `unreachable` where nobody listens.
    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Duplex>, LinkError>;

    /// Whether the session is known to be gone; a new one is to be made then.
    fn is_closed(&self) -> bool;

    /// Ends the session.
    async fn close(&self);

    /// Where the command protocol keeps its files there; `None` = its default.
    fn base(&self) -> Option<String>;

    /// Whether each channel has a control group of its own, so that what the kernel counts there is of that channel's commands.
    fn counted(&self) -> bool {
        false
    }

    /// The host's key, where it was first met, and learnt, in making this link: `ssh-ed25519 SHA256:...`.
    fn learnt(&self) -> Option<String> {
        None
    }
}

/// Makes links.
#[async_trait]
pub trait Links: Send + Sync {
    /// Commands of `project` on this machine, as its job user, in its directory under the data directory.
    ///
    /// # Errors
    /// [`LinkError`] `job_user` when commands could only run as the daemon itself, `job_unit` when the job unit does not start them.
    async fn local(&self, project: &ProjectName) -> Result<Arc<dyn Link>, LinkError>;

    /// A session to `host` of `realm`, connected, its key checked, authenticated. While there are as many sessions as there may be it
    /// waits until one is given back.
    ///
    /// # Errors
    /// [`LinkError`]. Bounded by the connect time-outs on the way, and by what such a wait may take. Cancel safe.
    async fn host(&self, realm: &Realm, host: &Host) -> Result<Arc<dyn Link>, LinkError>;

    /// The same for whoever only looks: a key that the host shows for the first time is believed and not kept.
    ///
    /// # Errors
    /// As [`Links::host`].
    async fn look(&self, realm: &Realm, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        self.host(realm, host).await
    }

    /// How many wait for a session because there are as many as there may be: as long as anybody does, whoever holds one that is not in use
    /// gives it back. `None` = there is no such limit.
    fn waiting(&self) -> Option<watch::Receiver<usize>> {
        None
    }

    /// Ends the shared sessions to the bastion called `id`, if it is one: the next one to need it meets it anew.
    async fn let_go(&self, id: &str) {
        let _no_bastion = id;
    }
}
