//! What the engine needs from the world, as traits: adapters implement them, the engine sees nothing else.
//!
//! Shaped so that several controllers on a replicated log become another adapter: journals are fenced by epoch and expected
//! number, control is compare-and-set, a lease can be lost.

pub mod backup;
pub mod blobs;
pub mod control;
pub mod discovery;
pub mod forge;
pub mod hands;
pub mod host_keys;
pub mod http;
pub mod index;
pub mod journal;
pub mod leases;
pub mod link;
pub mod mail;
pub mod outputs;
pub mod probe;
pub mod program;
pub mod secrets;
pub mod signals;
pub mod storage;
