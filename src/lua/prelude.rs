//! The Lua part of every VM, and its version: what a run's pinned code was loaded under.

/// The text.
pub const TEXT: &str = include_str!("prelude.lua");

/// Grows when a script could notice the change. A run goes on only under the version its code was pinned with.
pub const VERSION: &str = "1";
