//! The HTTP control API: what the CLI, curl, forges and browsers speak.
//!
//! ```text
//! listen   accepts; one task a connection; time-outs, caps on connections
//!   tls      the certificate, read again when it is renewed (certificate: what it says of itself)
//!   patient  who takes nothing of an answer is given up
//!   strict   refuses request heads that two servers could read differently
//! gate     root of everything: path and Host checks, who asks, scope, body limits, Idempotency-Key, problem+json
//!   proxies  for whom a trusted proxy asks
//!   clients  how much one client may have, and how often
//! routes/  one file per noun: read fields, ask the engine, answer
//! ```
//! Architecture invariant: no route is reached but through the gate, and the gate lets nobody through by default. The API sees the
//! engine's handle and nothing else of the daemon.

use std::sync::{Arc, atomic::AtomicBool};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;

use crate::{engine::handle::Engine, lifecycle::Tasks, time::Clock};

mod accept;
mod auth;
mod certificate;
mod clients;
mod fields;
mod gate;
mod limits;
mod listen;
mod patient;
pub mod problem;
mod proxies;
pub mod render;
pub(crate) mod routes;
mod strict;
pub mod text;
mod tls;

#[cfg(test)]
pub(crate) mod tests;

pub use auth::AuthConfig;
pub use limits::Limits;
pub use proxies::Proxies;
pub use tls::{Certificates, TlsError};

/// Where the API is served. Both are made by the daemon, which knows about modes, groups and socket activation.
#[derive(Debug, Default)]
pub struct Listeners {
    /// The socket; its mode is its gate.
    pub unix: Option<UnixListener>,
    /// TCP; needs a token.
    pub tcp: Option<TcpListener>,
}

/// What those who ask have to go through.
#[derive(Debug, Default)]
pub struct Front {
    /// Who is let in.
    pub auth: AuthConfig,
    /// How much of everything they may take.
    pub limits: Limits,
    /// Who is believed for whom they ask.
    pub proxies: Proxies,
    /// TLS on TCP.
    pub tls: Option<Arc<Certificates>>,
    /// Without it other machines may ask all the same, in the clear.
    pub plaintext: bool,
}

/// What every connection shares.
struct Server {
    engine: Arc<dyn Engine>,
    auth: AuthConfig,
    limits: Limits,
    proxies: Proxies,
    tls: Option<Arc<Certificates>>,
    plaintext: bool,
    tasks: Tasks,
    clock: Arc<dyn Clock>,
    router: axum::Router,
    bodies: Arc<Semaphore>,
    /// Of the bodies, each client's.
    body_shares: Arc<clients::Shares>,
    hooks: clients::Rates,
    refusals: clients::Rates,
    /// A trusted proxy did not say for whom it asks: said once.
    unnamed: AtomicBool,
}

impl Server {
    fn new(engine: Arc<dyn Engine>, front: Front, tasks: &Tasks, clock: Arc<dyn Clock>) -> Arc<Self> {
        let Front { auth, limits, proxies, tls, plaintext } = front;
        let app = routes::App {
            engine: engine.clone(),
            clock: clock.clone(),
            stopping: tasks.stopping(),
            heartbeat: limits.heartbeat,
            tls: tls.clone(),
        };
        let (router, _) = routes::router(app);
        Arc::new(Server {
            engine,
            auth,
            bodies: Arc::new(Semaphore::new(limits.all_bodies_kib)),
            body_shares: clients::Shares::new(limits.client_bodies_kib()),
            hooks: clients::Rates::new(limits.hooks),
            refusals: clients::Rates::new(limits.refusals),
            limits,
            proxies,
            tls,
            plaintext,
            tasks: tasks.clone(),
            clock,
            router,
            unnamed: AtomicBool::new(false),
        })
    }
}

/// Serves the API on `listeners` until `tasks` is shut down: then nothing is accepted any more, answers under way are finished and
/// streams end. Returns at once; the work is done by tasks called `api/...`.
///
/// # Errors
/// TLS cannot be set up at all.
pub fn serve(
    engine: Arc<dyn Engine>,
    listeners: Listeners,
    front: Front,
    tasks: &Tasks,
    clock: Arc<dyn Clock>,
) -> std::io::Result<()> {
    let server = Server::new(engine, front, tasks, clock);
    let acceptor = match &server.tls {
        Some(tls) => Some(TlsAcceptor::from(tls.server().map_err(std::io::Error::other)?)),
        None => None,
    };
    if let Some(listener) = listeners.unix {
        let door = listen::Door::socket(&server);
        tasks.spawn("api/socket", listen::accept(server.clone(), listener, door));
    }
    if let Some(listener) = listeners.tcp {
        let door = listen::Door::tcp(&server, acceptor);
        if let Some(tls) = &server.tls {
            tasks.spawn(
                "api/certificate",
                tls.clone().watch(server.engine.clone(), server.clock.clone(), tasks.stopping()),
            );
        }
        tasks.spawn("api/tcp", listen::accept(server, listener, door));
    }
    Ok(())
}

/// The OpenAPI 3.1 document, made from the handlers.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes::document()
}
