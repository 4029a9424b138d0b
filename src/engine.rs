//! What makes runs happen: the queue, the owner of each run, its actions, and the views people see.
//!
//! Architecture invariant: everything outside is reached through `ports`; no statics, so that a simulation can run several worlds.

pub mod handle;
pub mod view;
