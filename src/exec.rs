//! Local links: commands on the integration server, as their project's job user.
//!
//! A link only opens channels: the command protocol on top is the same as over SSH. `sh` starts with an empty environment but `PATH
//! HOME USER LOGNAME SHELL`, in `/`, in a session of its own, as the job user's uid and gid and with no supplementary group,
//! so that code under test can read neither the daemon's files nor another project's.
//!
//! A daemon that is root starts it itself ([`child`]). One that is not cannot switch users and asks the job unit of the package ([`unit`],
//! in the words of [`job`]): systemd accepts on `/run/phased-job.sock` and starts [`shim`] (`phased job`) as root for that connection,
//! in a unit and a control group of its own, which outlive the daemon.
//!
//! ```text
//! phased serve (user phased, no right at all) ── connects ──▶ phased-job.socket (PID 1)
//!        │ a line: who, what, and three pipes                       │ starts, per connection
//!        └────────────────────────────────────────────▶ phased-job@….service: phased job (root, CAP_SETUID SETGID CHOWN)
//!                                                                   └─ setsid sh: the job user, no right at all
//! ```

mod child;
mod job;
mod local;
pub mod pack;
pub mod shim;
mod tree;
mod unit;
mod wire;

pub use local::{JobUsers, Local, Uids, Way};
