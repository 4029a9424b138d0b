//! The real daemon, in this process.

use std::{net::SocketAddr, path::Path};

use anyhow::Context as _;

use crate::{
    app::{App, Options},
    config::Config,
};

/// It runs.
pub(super) struct Daemon {
    app: App,
    addr: SocketAddr,
}

/// Starts the daemon as `phased serve --config FILE` would; `token` has every right.
///
/// # Errors
/// Why it does not start.
pub(super) async fn start(config: &Path, token: &str) -> anyhow::Result<Daemon> {
    let config = Config::load(config)?;
    let options = Options { fixed_token: Some(token.to_owned()), ..Options::default() };
    let app = App::start(config, options).await?;
    let addr = app.addr().context("the daemon does not listen on TCP")?;
    Ok(Daemon { app, addr })
}

impl Daemon {
    /// Where its API listens.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it in order.
    pub(super) async fn shut_down(self) {
        self.app.shut_down().await;
    }
}
