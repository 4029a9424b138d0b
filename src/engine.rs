//! The engine.

pub mod redact;
