//! The HTTP control API: what the CLI, curl, forges and browsers speak.
//!
//! ```text
//! listen   accepts; one task a connection; time-outs, the cap on connections
//! strict   refuses request heads that two servers could read differently
//! gate     root of everything: path and Host checks, who asks, scope, body limits, Idempotency-Key, problem+json
//! routes/  one file per noun: read fields, ask the engine, answer
//! ```
//! Architecture invariant: no route is reached but through the gate, and the gate lets nobody through by default. The API sees the
//! engine's handle and nothing else of the daemon.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};

use crate::{engine::handle::Engine, lifecycle::Tasks, time::Clock};

mod accept;
mod auth;
mod fields;
mod gate;
mod listen;
pub mod problem;
pub mod render;
pub(crate) mod routes;
mod strict;
pub mod text;

#[cfg(test)]
pub(crate) mod tests;

pub use auth::AuthConfig;

/// Where the API is served. Both are made by the daemon, which knows about modes, groups and socket activation.
#[derive(Debug, Default)]
pub struct Listeners {
    /// The socket; its mode is its gate.
    pub unix: Option<UnixListener>,
    /// TCP; needs a token.
    pub tcp: Option<TcpListener>,
}

/// How much of everything one client, or all, may take.
#[derive(Debug, Clone)]
struct Limits {
    /// From accepting to the first byte.
    first_byte: Duration,
    /// For a whole request head, and how long an idle connection is kept.
    head: Duration,
    /// For a whole body, beyond what its size takes at 64 KiB/s.
    body: Duration,
    /// Of each listener, so that a flood on TCP leaves the socket free.
    connections: usize,
    /// Bytes of a body under /hooks; forges send up to 25 MiB.
    hook_body: usize,
    /// Bytes of any other body.
    other_body: usize,
    /// KiB of bodies held at the same time: hooks are read before anybody is known, so this bounds memory.
    all_bodies_kib: usize,
    /// Between signs of life in a quiet stream; proxies give up at 30 s or more.
    heartbeat: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            first_byte: Duration::from_secs(5),
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            connections: 1024,
            hook_body: 25 << 20,
            other_body: 1 << 20,
            all_bodies_kib: 64 << 10,
            heartbeat: Duration::from_secs(15),
        }
    }
}

/// What every connection shares.
struct Server {
    engine: Arc<dyn Engine>,
    auth: AuthConfig,
    limits: Limits,
    tasks: Tasks,
    clock: Arc<dyn Clock>,
    router: axum::Router,
    bodies: Arc<Semaphore>,
}

/// Serves the API on `listeners` until `tasks` is shut down: then nothing is accepted any more, answers under way are finished and
/// streams end. Returns at once; the work is done by tasks called `api/...`.
pub fn serve(engine: Arc<dyn Engine>, listeners: Listeners, auth: AuthConfig, tasks: &Tasks, clock: Arc<dyn Clock>) {
    serve_within(Limits::default(), engine, listeners, auth, tasks, clock);
}

fn serve_within(
    limits: Limits,
    engine: Arc<dyn Engine>,
    listeners: Listeners,
    auth: AuthConfig,
    tasks: &Tasks,
    clock: Arc<dyn Clock>,
) {
    let app = routes::App {
        engine: engine.clone(),
        clock: clock.clone(),
        stopping: tasks.stopping(),
        heartbeat: limits.heartbeat,
    };
    let (router, _) = routes::router(app);
    let bodies = Arc::new(Semaphore::new(limits.all_bodies_kib));
    let server = Arc::new(Server { engine, auth, limits, tasks: tasks.clone(), clock, router, bodies });
    if let Some(listener) = listeners.unix {
        tasks.spawn("api/socket", listen::accept(server.clone(), listener));
    }
    if let Some(listener) = listeners.tcp {
        tasks.spawn("api/tcp", listen::accept(server, listener));
    }
}

/// The OpenAPI 3.1 document, made from the handlers.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes::document()
}
