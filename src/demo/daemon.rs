//! The real daemon, in this process.

use std::{net::SocketAddr, path::Path};

/// It runs.
pub(super) struct Daemon {
    addr: SocketAddr,
}

/// Starts the daemon as `phased serve --config FILE` would; `token` has every right.
///
/// # Errors
/// Why it does not start.
pub(super) async fn start(config: &Path, token: &str) -> anyhow::Result<Daemon> {
    let _ = (config, token);
    anyhow::bail!("the daemon is not part of this build")
}

impl Daemon {
    /// Where its API listens.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it in order.
    pub(super) async fn shut_down(self) {}
}
