//! Where the API listens: on what systemd has bound for us (`LISTEN_FDS`), else where the configuration says.
//!
//! With `phased.socket` the kernel keeps connections while no daemon runs, so a restart refuses nobody. Such a socket is systemd's: it is
//! neither bound, nor given another mode, nor removed by us.

use std::{
    net::SocketAddr,
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt::AcceptConn};
use tokio::net::{TcpListener, UnixListener};

use crate::{api::Listeners, config::Api};

/// What was handed over. At most one of each.
#[derive(Debug, Default)]
pub struct Passed {
    unix: Option<std::os::unix::net::UnixListener>,
    tcp: Option<std::net::TcpListener>,
}

/// Where it listens.
#[derive(Debug)]
pub struct Bound {
    /// For the API.
    pub listeners: Listeners,
    /// Where TCP is served.
    pub addr: Option<SocketAddr>,
    /// The socket's file, where it is ours to remove.
    pub ours: Option<PathBuf>,
}

impl Passed {
    /// Takes what systemd handed over, if it did. To be called once, before there are threads: the variables that say so are taken away,
    /// so that no child believes them.
    ///
    /// # Errors
    /// Something that was handed over is no listening stream socket, or there are two of a kind.
    pub fn of_environment() -> anyhow::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        let mut fds = ListenFd::from_env();
        let mut passed = Passed::default();
        for index in 0..fds.len() {
            let name = names.get(index).copied().filter(|name| !name.is_empty()).unwrap_or("without a name");
            let which = format!("file descriptor {} ({name}) of LISTEN_FDS", index + 3);
            passed.take(&mut fds, index).with_context(|| {
                format!("{which} cannot be used: phased.socket hands over at most one ListenStream= that is a path and one that is a port")
            })?;
        }
        Ok(passed)
    }

    fn take(&mut self, fds: &mut ListenFd, index: usize) -> anyhow::Result<()> {
        if let Ok(Some(unix)) = fds.take_unix_listener(index) {
            listens(&unix)?;
            anyhow::ensure!(self.unix.is_none(), "it is a second Unix socket");
            self.unix = Some(unix);
            return Ok(());
        }
        match fds.take_tcp_listener(index) {
            Ok(Some(tcp)) => {
                listens(&tcp)?;
                anyhow::ensure!(self.tcp.is_none(), "it is a second TCP socket");
                self.tcp = Some(tcp);
                Ok(())
            }
            Ok(None) => anyhow::bail!("it was taken before"),
            Err(_) => anyhow::bail!("it is neither a Unix nor a TCP stream socket"),
        }
    }

    /// Listens on what was handed over and binds the rest.
    ///
    /// # Errors
    /// In words for the terminal: what cannot be bound and which setting to change.
    pub async fn listen(self, api: &Api) -> anyhow::Result<Bound> {
        let tcp = match (self.tcp, api.listen) {
            (None, None) => None,
            (Some(tcp), None) => anyhow::bail!(
                "systemd listens on {} for us, and `listen` in [api] is \"none\": take the port's ListenStream= out of phased.socket \
                 (`systemctl edit phased.socket`), or `listen` out of the configuration",
                tcp.local_addr()?
            ),
            (Some(tcp), Some(configured)) => {
                let addr = tcp.local_addr()?;
                if addr != configured {
                    tracing::warn!(passed = %addr, %configured, "systemd listens elsewhere than `listen` in [api] says: phased.socket counts");
                }
                tcp.set_nonblocking(true)?;
                Some(TcpListener::from_std(tcp)?)
            }
            (None, Some(addr)) => {
                let tcp = TcpListener::bind(addr).await.with_context(|| {
                    format!("failed to listen on {addr}: set `listen` in [api] to a free address, or to \"none\"")
                })?;
                rustix::net::listen(&tcp, BACKLOG)?;
                Some(tcp)
            }
        };
        let addr = tcp.as_ref().map(TcpListener::local_addr).transpose()?;
        let (unix, ours) = match self.unix {
            Some(unix) => {
                let at = unix.local_addr()?;
                if at.as_pathname() != Some(&api.socket) {
                    tracing::warn!(passed = ?at, configured = %api.socket.display(), "systemd listens elsewhere than `socket` in [api] says: phased.socket counts");
                }
                unix.set_nonblocking(true)?;
                (UnixListener::from_std(unix)?, None)
            }
            None => {
                let unix = bind(&api.socket).with_context(|| {
                    format!(
                        "failed to listen on the socket `{}`: set `socket` in [api] to a place the daemon may write",
                        api.socket.display()
                    )
                })?;
                (unix, Some(api.socket.clone()))
            }
        };
        Ok(Bound { listeners: Listeners { unix: Some(unix), tcp }, addr, ours })
    }
}

/// How many may wait to be accepted, as phased.socket has it. Whoever is one too many is not refused: it tries again a second later.
const BACKLOG: i32 = 4096;

fn listens(socket: &impl AsFd) -> anyhow::Result<()> {
    anyhow::ensure!(getsockopt(socket, AcceptConn)?, "it does not listen");
    Ok(())
}

/// The socket, 0660 and of group phased where there is such a group. A stale one is taken away: LOCK says that nobody serves it.
fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => anyhow::bail!("another daemon answers there"),
        // A path that was mistyped may be anybody's file.
        Err(_) if std::fs::metadata(path).is_ok_and(|meta| !meta.file_type().is_socket()) => {
            anyhow::bail!("something is there that is no socket: it is left alone")
        }
        Err(_) => drop(std::fs::remove_file(path)),
    }
    let listener = UnixListener::bind(path)?;
    rustix::net::listen(&listener, BACKLOG)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name("phased") {
        let _not_root = nix::unistd::chown(path, None, Some(group.gid));
    }
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(dir: &Path, listen: Option<&str>) -> Api {
        Api { socket: dir.join("own.sock"), listen: listen.map(|addr| addr.parse().unwrap()), ..Api::default() }
    }

    #[tokio::test]
    async fn what_is_handed_over_is_listened_on_and_is_not_ours_to_remove() {
        let dir = tempfile::tempdir().unwrap();
        let unix = std::os::unix::net::UnixListener::bind(dir.path().join("systemd.sock")).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = tcp.local_addr().unwrap();
        let bound =
            Passed { unix: Some(unix), tcp: Some(tcp) }.listen(&api(dir.path(), Some("127.0.0.1:1"))).await.unwrap();
        assert_eq!((bound.addr, bound.ours), (Some(addr), None));
        assert!(!dir.path().join("own.sock").exists());
        let bound = Passed::default().listen(&api(dir.path(), None)).await.unwrap();
        assert_eq!((bound.addr, bound.ours), (None, Some(dir.path().join("own.sock"))));
    }

    #[tokio::test]
    async fn a_burst_of_connections_waits_at_the_door() {
        let dir = tempfile::tempdir().unwrap();
        let bound = Passed::default().listen(&api(dir.path(), Some("127.0.0.1:0"))).await.unwrap();
        let addr = bound.addr.unwrap();
        // Nobody accepts any of them.
        let wait = || std::net::TcpStream::connect_timeout(&addr, std::time::Duration::from_secs(20)).unwrap();
        let waiting: Vec<_> = (0..300).map(|_| wait()).collect();
        let asking = || std::os::unix::net::UnixStream::connect(dir.path().join("own.sock")).unwrap();
        let asked: Vec<_> = (0..300).map(|_| asking()).collect();
        assert_eq!((waiting.len(), asked.len()), (300, 300));
    }

    #[tokio::test]
    async fn a_port_that_the_configuration_forbids_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = Passed { unix: None, tcp: Some(tcp) }.listen(&api(dir.path(), None)).await.unwrap_err().to_string();
        assert!(
            error.contains("`listen` in [api] is \"none\"") && error.contains("systemctl edit phased.socket"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_stale_socket_is_taken_away_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(bind(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "somebody's").unwrap();
        let error = format!("{:#}", bind(&path).unwrap_err());
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody's");
    }

    #[test]
    fn a_socket_that_does_not_listen_is_told_from_one_that_does() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(listens(&one).unwrap_err().to_string().contains("does not listen"));
        listens(&std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    }
}
