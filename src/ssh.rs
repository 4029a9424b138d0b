//! Links to hosts over SSH, by russh: the only module that names it.
//!
//! ```text
//! connect      from a host's description to a link        trust        whether a server is the host that was meant
//! bastions,    shared sessions on the way, and what       known_hosts  our own strict reader of these files
//! ahead        hosts say through them                     certificate  host certificates, checked whole
//! room         how many sessions and handshakes
//! guard, link  a session as a link                        server       a small server, for the demo and tests
//! meet         what a server shows, before anybody logs in
//! ```
//!
//! # Trust
//! A hostile or broken server is a normal input: whatever it does ends in that host's error. It proves to hold its key, and the key is held
//! against what is known of this host (by its id, see [`crate::model::host_key`]) before anything of ours is sent. A key is learnt only where
//! the project says so, once for each id, from a host that has let us in. Compression is not
//! offered, agents and X11 are never forwarded, what a server may say before it has let us in is bounded in bytes and in time.
//!
//! # Limits
//! TCP, key exchange and login together have the host's connect time-out (10 s). After that silence is no error; a keepalive
//! unanswered three times, 15 s apart, is. Output is bounded per channel: a reader that is slow makes the server wait, and with it
//! the other channels of the same host, but never those of other hosts behind its bastion. Sessions and handshakes are bounded in number, see `room`, and through a bastion once more.

mod ahead;
mod bastions;
mod certificate;
mod connect;
mod guard;
pub mod known_hosts;
mod link;
mod meet;
mod prompt;
mod room;
pub mod server;
#[cfg(test)]
mod tests;
mod trust;

pub use connect::SshLinks;
pub use meet::{Met, Shown, meet};
pub use room::SshLimits;
