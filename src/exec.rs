//! Local links: commands on the integration server, as their project's job user.
//!
//! A link only opens channels: the command protocol on top is the same as over SSH. `sh` starts with an empty environment but `PATH
//! HOME USER LOGNAME SHELL`, in `/`, in a session of its own, as the job user's uid and gid and with no supplementary group,
//! so that code under test can read neither the daemon's files nor another project's.

mod local;
pub mod pack;

pub use local::{JobUsers, Local, Uids};
