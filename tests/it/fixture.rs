//! The words the tests are written in.

mod api;
mod booted;
mod chance;
mod clouds;
mod daemon;
mod debian;
mod famine;
mod fleet;
mod jobs;
pub mod journal;
mod machine;
mod network;
mod packages;
mod project;
mod repo;
pub mod run;
mod sink;
mod wait;
mod world;

pub use api::{Answer, Api};
pub use booted::{Booted, mask};
pub use chance::{Dice, clients, measured, times};
pub use clouds::{Asked, Dns, Moto, Web, fleet};
pub use daemon::{BINARY, Daemon, Output, output};
pub use famine::Famine;
pub use fleet::{Sshd, free_port, listening_silent, refused_port};
pub use jobs::Jobs;
pub use machine::Machine;
pub use network::{Forge, Network};
pub use packages::package;
pub use project::Project;
pub use repo::Repo;
pub use run::{Ended, Run};
pub use sink::Sink;
pub use wait::eventually;
pub use world::{HOOK_SECRET, World, pem};
