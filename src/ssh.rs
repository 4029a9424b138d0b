//! Links to hosts over SSH, by russh: the only module that names it.
//!
//! # Trust
//! A hostile or broken server is a normal input: whatever it does ends in that host's error. Its key is held against the known_hosts
//! file before anything of ours is sent, by our own strict reader ([`known_hosts`]); no key is ever learnt. Compression is not
//! offered, agents and X11 are never forwarded, what a server may say before it has let us in is bounded in bytes and in time.
//!
//! # Limits
//! TCP, key exchange and login together have the host's connect time-out (10 s). After that silence is no error; a keepalive
//! unanswered three times, 15 s apart, is. Output is bounded per channel: a reader that is slow makes the server wait, and with it
//! the other channels of the same host.

mod connect;
mod guard;
pub mod known_hosts;
mod link;
pub mod server;
#[cfg(test)]
mod tests;

pub use connect::SshLinks;
