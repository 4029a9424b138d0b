//! `[limits]`: what one call, step, project or client may use.

use std::time::Duration;

use serde::Deserialize;

use super::{Rate, Size};
use crate::time::Span;

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Of one Lua call.
    pub memory: Size,
    /// Lua instructions of one call, over all its turns.
    pub instructions: u64,
    /// Output of one command that nobody has read yet; beyond it the step ends.
    pub max_output: Size,
    /// Of what `run:artifact` stores, not compressed.
    pub max_artifact: Size,
    /// Runs waiting per project; further starts are refused.
    pub max_queued: usize,
    /// How often hosts are looked for that lack what is live in their environment; `"0s"` = never.
    pub converge: Span,
    /// How long a host that is gone in the middle of a command is tried again beyond the step's own time-out.
    pub reconnect: Span,
    /// SSH sessions to hosts at the same moment, of all projects; further ones wait.
    pub sessions: usize,
    /// Of these, handshakes that are under way.
    pub handshakes: usize,
    /// Connections to each listener of the API at the same moment; further ones are closed at once.
    pub connections: usize,
    /// Of these, from one client over TCP. Trusted proxies may have all.
    pub client_connections: usize,
    /// From a connection over TCP to its first byte, and from there to the end of the TLS handshake.
    pub first_byte_timeout: Span,
    /// For the whole head of a request; an idle connection is kept as long.
    pub head_timeout: Span,
    /// For a whole body, beyond what its size takes at 64 KiB/s.
    pub body_timeout: Span,
    /// How long a client over TCP may take nothing of an answer that waits for it; at most 15 s before its connection has brought a token.
    pub write_timeout: Span,
    /// Of a request's head.
    pub head_size: Size,
    /// Headers of a request.
    pub headers: usize,
    /// Of a body, but for those of `/hooks/` and of signals, which have limits of their own.
    pub body_size: Size,
    /// Of a body under `/hooks/`; forges send up to 25 MiB.
    pub hook_body_size: Size,
    /// Of all bodies that are being received without a token, at the same moment. One client may have half of it. Those with a token have an
    /// eighth as much beside it.
    pub all_bodies_size: Size,
    /// Deliveries to `/hooks/` of one client that have no right signature or no such project; beyond it the answer is 429.
    pub hook_rate: Rate,
    /// Other requests of one client that are refused for want of a right token or signature; beyond it the answer is 429. No client is in
    /// the log more often than this.
    pub refusal_rate: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        // A call of the largest sample project needs 2 MiB and a million instructions; a runaway loop is over in a second.
        Limits {
            memory: Size::mib(64),
            instructions: 100_000_000,
            max_output: Size::mib(256),
            max_artifact: Size::mib(2048),
            max_queued: 100,
            converge: Span::minutes(5),
            reconnect: Span(Duration::from_secs(300)),
            // A session is a file descriptor and some 100 KiB; a handshake some milliseconds of a processor on each side.
            sessions: 500,
            handshakes: 16,
            connections: 1024,
            // A proxy that nobody declared as trusted is one client, too.
            client_connections: 256,
            first_byte_timeout: Span::secs(5),
            head_timeout: Span::secs(10),
            body_timeout: Span::secs(10),
            // `phased log -f | less` takes nothing while somebody reads a page.
            write_timeout: Span::minutes(5),
            head_size: Size(64 << 10),
            headers: 100,
            body_size: Size::mib(1),
            hook_body_size: Size::mib(25),
            all_bodies_size: Size::mib(64),
            // A forge sends for all its users from few addresses: a secret that is out of date is not a flood.
            hook_rate: Rate::per_minute(600),
            refusal_rate: Rate::per_minute(60),
        }
    }
}

/// More sessions or connections than this need more file descriptors than a process may usually have.
const MOST: usize = 100_000;

impl Limits {
    pub(super) fn check(&self) -> Result<(), String> {
        // Below these nothing works at all, and the message at run time would not name the cause.
        if self.memory < Size::mib(1) {
            return Err("`memory` is below 1MiB, too little for any Lua call".to_owned());
        }
        if self.instructions < 100_000 {
            return Err("`instructions` is below 100000, too few for any Lua call".to_owned());
        }
        if self.max_output < Size::mib(1) {
            return Err("`max_output` is below 1MiB".to_owned());
        }
        if self.max_artifact < Size::mib(1) {
            return Err("`max_artifact` is below 1MiB".to_owned());
        }
        for (name, value, least, most) in [
            ("sessions", self.sessions, 1, MOST),
            ("handshakes", self.handshakes, 1, MOST),
            ("connections", self.connections, 1, MOST),
            ("client_connections", self.client_connections, 1, MOST),
            // A browser sends some 20, and a proxy adds its own.
            ("headers", self.headers, 30, 1000),
        ] {
            if value < least || value > most {
                return Err(format!("`{name}` must be from {least} to {most}, and is {value}"));
            }
        }
        if self.max_queued == 0 {
            return Err("`max_queued` is 0: nothing could ever start".to_owned());
        }
        self.check_requests()
    }

    fn check_requests(&self) -> Result<(), String> {
        for (name, span) in [
            ("first_byte_timeout", self.first_byte_timeout),
            ("head_timeout", self.head_timeout),
            ("body_timeout", self.body_timeout),
            ("write_timeout", self.write_timeout),
        ] {
            if !(Span::secs(1)..=Span::secs(3600)).contains(&span) {
                return Err(format!("`{name}` must be from 1s to 1h, and is {span}"));
            }
        }
        for (name, size, least, most) in [
            ("head_size", self.head_size, Size(8 << 10), Size::mib(1)),
            ("body_size", self.body_size, Size(64 << 10), Size::mib(1024)),
            ("hook_body_size", self.hook_body_size, Size(64 << 10), Size::mib(1024)),
        ] {
            if !(least..=most).contains(&size) {
                return Err(format!(
                    "`{name}` must be from {} to {} KiB, and is {} bytes",
                    least.0 >> 10,
                    most.0 >> 10,
                    size.0
                ));
            }
        }
        let largest = self.body_size.max(self.hook_body_size);
        if self.all_bodies_size < largest || self.all_bodies_size > Size::mib(64 * 1024) {
            return Err(
                "`all_bodies_size` must hold at least one body of `hook_body_size` and of `body_size`".to_owned()
            );
        }
        Ok(())
    }
}
