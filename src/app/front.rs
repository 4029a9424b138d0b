//! What those who ask over HTTP have to go through: certificate, proxies, limits.

use std::net::SocketAddr;

use super::uids;
use crate::{api, config::Config, service};

/// The front door as it is configured.
///
/// # Errors
/// The certificate or its key cannot be used: which file, why, and what to do.
pub(super) fn front(config: &Config, fixed_token: Option<String>) -> anyhow::Result<api::Front> {
    let tls = match &config.api.tls {
        Some(tls) => Some(api::Certificates::load(&tls.cert, &tls.key)?),
        None => None,
    };
    let files = service::limits::open_files().unwrap_or(1024);
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    if files / 8 < config.limits.connections {
        tracing::info!(
            files,
            connections = config.limits.connections,
            "at most half of the open files are for connections over TCP, and an eighth for those to the socket: LimitNOFILE= or ulimit -n gives more"
        );
    }
    Ok(api::Front {
        auth: api::AuthConfig {
            job_uids: uids::range(&config.exec),
            fixed_token,
            host_names: config.api.host_names.clone(),
        },
        limits: api::Limits::new(&config.limits, files),
        proxies: api::Proxies { trusted: config.api.trusted_proxies.clone(), header: config.api.client_header },
        tls,
        plaintext: config.api.plaintext,
    })
}

/// Says how far the TCP listener reaches, where that is farther than this machine and nothing protects it.
pub(super) fn warn(config: &Config, listening: Option<SocketAddr>) {
    let Some(listening) = listening.filter(|listening| !config.api.is_guarded(listening.ip()) || config.api.plaintext)
    else {
        return;
    };
    if listening.ip().to_canonical().is_loopback() {
        return;
    }
    match config.api.plaintext {
        true => {
            tracing::warn!(%listening, "other machines may ask without TLS (plaintext = true): their tokens can be read on the way")
        }
        false => {
            tracing::warn!(%listening, proxies = config.api.trusted_proxies.len(), "without TLS only trusted proxies and signed requests are answered here")
        }
    }
}
