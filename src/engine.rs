//! engine

pub mod command;
