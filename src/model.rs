//! What a run is, and what happens next: ids, releases, hosts, events, the fold and the decision.
//!
//! Architecture invariant: nothing here reads a clock, a file or the network, and nothing awaits. `next` folds an event into
//! a run and is the same code live and at recovery; `decide` says what to do now and when to ask again.

pub mod adoption;
pub mod analysis;
pub mod canonical;
pub mod cause;
pub mod decide;
pub mod deployment;
pub mod discovery;
pub mod doors;
pub mod event;
pub mod freeze;
pub mod health;
pub mod host;
pub mod host_key;
pub mod ids;
pub mod input;
pub mod jump;
pub mod next;
pub mod pipeline;
pub mod plan;
pub mod release;
pub mod rollout;
pub mod run;
pub mod signal;
pub mod step;
