//! Lua: projects and plugins, from file to validated description, and from pinned code to driven calls.
//!
//! The description of everything Lua may write is said once, in [`registry`]: it yields the validation ([`check`]), the types
//! for editors ([`types`]) and the reference ([`reference`]). Loading ([`loader`]) evaluates every file in `projects/` in a boxed
//! VM ([`sandbox`]), checks what it returned, maps each finding to its place in the source ([`position`]) and shows it as a
//! compiler would ([`diagnostics`]). A call of a run gets a fresh VM of the pinned files ([`bundle`]) and is driven step by step
//! ([`driver`], [`plugin`]).
//!
//! Architecture invariant: `mlua` and `full_moon` are named nowhere else. Nothing here reaches the network or runs a command.

pub mod bundle;
pub mod check;
pub mod convert;
pub mod definitions;
pub mod diagnostics;
pub mod driver;
pub mod loader;
pub mod pattern;
pub mod plugin;
pub mod position;
pub mod prelude;
pub mod project;
pub mod reference;
pub mod registry;
pub mod rules;
pub mod sandbox;
pub mod shape;
pub mod types;
