//! ssh

pub mod server;
