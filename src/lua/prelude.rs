//! The Lua part of every VM, and its version: what a run's pinned code was loaded under.

use std::sync::LazyLock;

use mlua::{Lua, Table, Value, chunk::ChunkMode};

/// Grows when a script could notice the change. A run goes on only under the version its code was pinned with.
pub const VERSION: &str = "3";

/// The box, the strings, the fibres: in this order, each given what the one before returned.
const PARTS: [(&str, &str); 3] = [
    ("=prelude/box", include_str!("prelude/box.lua")),
    ("=prelude/strings", include_str!("prelude/strings.lua")),
    ("=prelude/fibres", include_str!("prelude/fibres.lua")),
];

/// Compiled once in a process: a call's VM is made in a fraction of the time.
static COMPILED: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let lua = Lua::new();
    let compile = |(name, text): &(&str, &str)| {
        let function = lua.load(*text).set_name(*name).set_mode(ChunkMode::Text).into_function();
        function.map(|function| function.dump(false)).unwrap_or_default()
    };
    PARTS.iter().map(compile).collect()
});

/// Runs the prelude in a fresh VM; its last part's table has `start`, `go_on`, `undo` and `objects`.
///
/// # Errors
/// Lua's.
pub(super) fn install(lua: &Lua, native: &Table, phased: &Table) -> mlua::Result<Table> {
    let run = |n: usize, own: &Value| -> mlua::Result<Value> {
        let compiled = COMPILED.get(n).map(Vec::as_slice).unwrap_or_default();
        lua.load(compiled).set_mode(ChunkMode::Binary).set_name(PARTS[n].0).call((native, own, phased))
    };
    let own = run(0, &Value::Nil)?;
    run(1, &own)?;
    match run(2, &own)? {
        Value::Table(driven) => Ok(driven),
        _ => Err(mlua::Error::runtime("the prelude is broken")),
    }
}
