//! What makes runs happen: the queue, the owner of each run, its actions, and the views people see.
//!
//! Read in this order: `world` (what there is), `conductor` (projects, queue, runs), `owner` (one run), `actions` and `steps`
//! (what it asks of the world), `command` (the protocol on hosts), `recovery` and `history` (how a run is taken up again), `passes` (what goes on
//! beside the runs), `views` (what people see), `answers` (what the API asks).
//!
//! Architecture invariant: everything outside is reached through `ports`; no statics, so that a simulation can run several worlds.

mod actions;
mod adoption;
mod alarms;
mod answers;
mod backup;
mod changes;
pub mod command;
mod conductor;
mod converge;
mod doors;
mod dry_run;
mod end;
mod export;
mod freezes;
pub mod handle;
mod history;
mod hooks;
mod hosts;
mod idempotency;
mod leases;
mod ledger;
mod log;
mod maintenance;
mod message;
mod outbox;
mod owner;
mod passes;
mod plans;
mod plugin;
mod poll;
mod pulse;
mod recovery;
pub mod redact;
pub mod reload;
mod renewal;
mod retention;
mod sessions;
mod signals;
mod steps;
mod storage;
mod summary;
mod sweep;
mod tokens;
pub mod view;
mod views;
pub mod world;

pub use conductor::Conductor;
pub use hosts::fleet::Fleets;
pub use maintenance::shut as maintenance_entry;
pub use views::Views;
