//! The engine in a simulated world: the same code, other adapters, and everything that can go wrong, from a seed.
//!
//! # What is simulated
//! Time, the machines and their connections, discovery (silent at times), repositories, probes, people and their letters, and the disk
//! under the journals, which loses what was not synced and is full at times. One project or two, with an environment or two each, alone or in a
//! group. A project is Rust behind the port `Program` ([`program`]), or Lua in the daemon's own driver.
//!
//! # What is not
//! Everything in `engine/`, `model/` and `journal/` is the daemon's own: the conductor, the owner, sessions and their resending,
//! journals and their recovery, control, leases, the outbox. The shell text of the command protocol is not run: [`shell`] reads what is
//! asked and answers in frames. Artifacts, files, requests and mail are not simulated, nor is a disk that fails. On one that is full for a
//! time whoever writes waits; that half a line is left behind there is tested with the journals.
//!
//! # Reading order
//! `scenario` (what happens, from a seed), `life` (how it is played), `outside` and `fleet` (the world), `check` (what must hold).
//!
//! The same scenario is played to the same bytes in its journals, every time: nothing reads a real clock, one thread does everything, and
//! what is random comes from the seed.

mod check;
mod clock;
mod fleet;
mod forge;
mod index;
mod life;
mod outside;
mod ports;
mod program;
mod random;
pub mod scenario;
mod shell;

pub use life::{Broken, Played, play};
#[cfg(test)]
pub(crate) use random::Random;
pub use scenario::{Language, Scenario};
