//! How much of everything one client, or all, may take.

use std::time::Duration;

use crate::{
    config::{self, Rate},
    model::signal::MOST_PIECE,
};

/// The numbers of `[limits]` that are about requests, as the listeners use them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From accepting to the first byte, and from there to the end of the TLS handshake.
    pub(super) first_byte: Duration,
    /// For a whole request head, and how long an idle connection is kept.
    pub(super) head: Duration,
    /// For a whole body, beyond what its size takes at 64 KiB/s.
    pub(super) body: Duration,
    /// How long a client may take nothing of an answer.
    pub(super) write: Duration,
    /// The same before its connection has brought a right token: what strangers are answered is short, and their places are few.
    pub(super) stranger_write: Duration,
    /// Over TCP, so that a flood there leaves the socket free.
    pub(super) connections: usize,
    /// Over the socket.
    pub(super) socket_connections: usize,
    /// Of one client over TCP.
    pub(super) client_connections: usize,
    /// Further ones to each listener, for one request each that must get through: see `gate::is_urgent`.
    pub(super) reserved: usize,
    /// Bytes of a request's head.
    pub(super) head_size: usize,
    /// Headers in it.
    pub(super) headers: usize,
    /// Bytes of a body under /hooks; forges send up to 25 MiB.
    pub(super) hook_body: usize,
    /// Bytes of a piece of an artifact that a signal goes with: all senders make them as long, so it is nothing to configure.
    pub(super) piece_body: usize,
    /// Bytes of any other body.
    pub(super) other_body: usize,
    /// KiB of strangers' bodies held at the same time: hooks are read before anybody is known, so this bounds memory.
    pub(super) all_bodies_kib: usize,
    /// Deliveries of one client without a right signature or a project.
    pub(super) hooks: Rate,
    /// Other refusals of one client, and how often the log tells of any.
    pub(super) refusals: Rate,
    /// Between signs of life in a quiet stream; proxies give up at 30 s or more.
    pub(super) heartbeat: Duration,
}

/// More than people and probes ask at the same moment, each for a few seconds at most.
const RESERVED: usize = 16;

impl Limits {
    /// What is configured, as far as `files` open files allow: half of them may be connections over TCP, an eighth such over the socket; the
    /// rest is for journals, git and hosts, so that clients alone never take what a run needs.
    #[must_use]
    pub fn new(configured: &config::Limits, files: usize) -> Self {
        let bytes = |size: config::Size| usize::try_from(size.0).unwrap_or(usize::MAX);
        Limits {
            first_byte: configured.first_byte_timeout.0,
            head: configured.head_timeout.0,
            body: configured.body_timeout.0,
            write: configured.write_timeout.0,
            stranger_write: Duration::from_secs(15),
            connections: configured.connections.min(files / 2),
            socket_connections: configured.connections.min(files / 8),
            client_connections: configured.client_connections,
            reserved: RESERVED.min(files / 32),
            head_size: bytes(configured.head_size),
            headers: configured.headers,
            hook_body: bytes(configured.hook_body_size),
            piece_body: MOST_PIECE,
            other_body: bytes(configured.body_size),
            all_bodies_kib: (bytes(configured.all_bodies_size) >> 10).max(MOST_PIECE.div_ceil(1024)),
            hooks: configured.hook_rate,
            refusals: configured.refusal_rate,
            heartbeat: Duration::from_secs(15),
        }
    }

    /// KiB of bodies that one client may have under way: half of all, and one whole body in any case.
    pub(super) fn client_bodies_kib(&self) -> usize {
        let largest = self.hook_body.max(self.piece_body).max(self.other_body).div_ceil(1024);
        (self.all_bodies_kib / 2).max(largest).min(self.all_bodies_kib)
    }

    /// KiB of bodies that callers with a right token may have under way, beside the strangers': an eighth as much, and one whole body in
    /// any case.
    pub(super) fn known_bodies_kib(&self) -> usize {
        (self.all_bodies_kib / 8).max(self.other_body.div_ceil(1024))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::new(&config::Limits::default(), usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_never_take_the_files_that_a_run_needs() {
        let configured = config::Limits::default();
        for (files, tcp, socket) in [(256, 128, 32), (1024, 512, 128), (65_536, 1024, 1024)] {
            let limits = Limits::new(&configured, files);
            assert_eq!((limits.connections, limits.socket_connections), (tcp, socket), "{files}");
        }
    }
}
