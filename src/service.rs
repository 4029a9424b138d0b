//! The daemon as a service of the machine: what it and systemd (or whoever else started it) have to tell each other.
//!
//! ```text
//! notify    READY, RELOADING, STOPPING, STATUS: `Type=notify`
//! watchdog  pings only after a round trip through the whole engine
//! sockets   listens where systemd listens for us, else by itself
//! limits    as many file descriptors as there may be
//! ```
//! Architecture invariant: everything here is of no consequence where nobody asks for it: without `NOTIFY_SOCKET`, `WATCHDOG_USEC` and
//! `LISTEN_FDS` the daemon is the same.

use std::path::Path;

pub mod limits;
pub mod notify;
pub mod sockets;
pub mod watchdog;

/// Whether systemd runs this machine, as sd_booted(3) finds out.
#[must_use]
pub fn is_systemd_here() -> bool {
    Path::new("/run/systemd/system").is_dir()
}
