//! The box: a VM without the system, with limits nobody catches, and the same in every process.

mod data;
mod errors;
mod order;
mod steps;
mod strings;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::OnceLock,
    time::Duration,
};

use mlua::{Error, HookTriggers, Lua, LuaOptions, MultiValue, StdLib, Table, Value, VmState};

pub use errors::words;

use super::{bundle::Source, check, definitions, prelude, shape::nearest};
use crate::{
    model::cause::Cause,
    time::{Clock as _, Stamp, SystemClock},
};

/// What one call may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of Lua's own memory, bytes.
    pub memory: usize,
    /// VM instructions of a call, all its fibres together.
    pub instructions: u64,
    /// Of one turn, between two waits.
    pub slice: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { memory: 64 << 20, instructions: 50_000_000, slice: Duration::from_secs(10) }
    }
}

/// Instructions between two looks at the limits.
const LOOK: u32 = 1_000;
/// From so many bytes more than its files have come to a VM looks for garbage. Most calls end long before: their VM goes, and all of it at once.
const LITTER: usize = 1 << 20;
/// As long as its files are evaluated: a list of thousands of hosts is no garbage.
const LOADING: usize = 16 << 20;
/// Steps of the pattern matcher count as so many to one instruction.
const STEPS: u64 = 4;

/// Counts what a call has used.
#[derive(Debug)]
struct Meter {
    limits: Limits,
    used: Cell<u64>,
    slice: RefCell<Stamp>,
    /// Bytes from which on garbage is looked for.
    litter: Cell<usize>,
    clock: SystemClock,
    tripped: RefCell<Option<Cause>>,
}

impl Meter {
    fn trip(&self, code: &str, message: String) -> Error {
        self.tripped.borrow_mut().get_or_insert_with(|| Cause::new(code, message));
        Error::runtime("phased: a limit was reached")
    }

    /// Lets garbage be collected from now on where there is much of anything. (Lua looks for it by itself at the limit of memory.)
    fn collect(&self, lua: &Lua) {
        if lua.used_memory() > self.litter.get() && !lua.gc_is_running() {
            lua.gc_restart();
        }
    }

    fn look(&self, instructions: u64) -> mlua::Result<()> {
        if self.tripped.borrow().is_some() {
            return Err(Error::runtime("phased: a limit was reached"));
        }
        let used = self.used.get().saturating_add(instructions);
        self.used.set(used);
        if used > self.limits.instructions {
            let limit = self.limits.instructions;
            let message = format!("the Lua code used more than {limit} instructions: a loop that does not end?");
            return Err(self.trip("limit_instructions", message));
        }
        if self.clock.now().since(&self.slice.borrow()) > self.limits.slice {
            let limit = crate::time::Span(self.limits.slice);
            let message = format!("the Lua code ran for more than {limit} without waiting for a step");
            return Err(self.trip("limit_time", message));
        }
        Ok(())
    }
}

/// What the functions of the prelude ask their VM's owner; one VM, one owner.
pub trait Owner {
    /// Whether this is a plugin's call.
    fn is_plugin(&self) -> bool;
    /// A step was asked for; `Err` is raised to the author.
    fn begin(&self, request: Asked<'_>) -> Result<(), String>;
    /// An undo was left.
    fn undo(&self) -> Result<(), String>;
    /// A function of `phased` was asked for.
    fn ask(&self, what: &str, args: serde_json::Value) -> Result<(), String>;
}

/// A step as the prelude asks for it.
pub struct Asked<'a> {
    /// The fibre's branch.
    pub branch: &'a str,
    /// `run` or `host`.
    pub receiver: &'a str,
    /// The host's id, for hosts.
    pub id: Option<String>,
    /// The word.
    pub verb: &'a str,
    /// As the author wrote them.
    pub args: &'a MultiValue,
    /// `file:line`.
    pub at: String,
}

/// Nobody asks while files are loaded.
struct Loading;

impl Owner for Loading {
    fn is_plugin(&self) -> bool {
        true
    }
    fn begin(&self, _: Asked<'_>) -> Result<(), String> {
        Err("no step can be taken here".to_owned())
    }
    fn undo(&self) -> Result<(), String> {
        Err("nothing can be undone here".to_owned())
    }
    fn ask(&self, what: &str, _: serde_json::Value) -> Result<(), String> {
        Err(format!("phased.{what} cannot be used while the file is loaded"))
    }
}

/// A boxed VM.
pub struct Sandbox {
    lua: Lua,
    meter: Rc<Meter>,
    /// `start`, `go_on`, `undo`, `objects` of the prelude.
    prelude: Table,
}

/// Finds a module's file.
pub type Resolver = Box<dyn Fn(&str) -> Result<Source, String>>;

impl Sandbox {
    /// A VM for loading files: findings of definitions are collected, nothing can be asked.
    ///
    /// # Errors
    /// Lua's.
    pub fn for_loading(limits: &Limits, resolver: Resolver) -> mlua::Result<Self> {
        Sandbox::build(limits, resolver, 0, Rc::new(Loading), true)
    }

    /// A VM for one call; `seed` decides `math.random`.
    ///
    /// # Errors
    /// Lua's.
    pub fn for_call(limits: &Limits, resolver: Resolver, seed: u64, owner: Rc<dyn Owner>) -> mlua::Result<Self> {
        Sandbox::build(limits, resolver, seed, owner, false)
    }

    fn build(
        limits: &Limits,
        resolver: Resolver,
        seed: u64,
        owner: Rc<dyn Owner>,
        loading: bool,
    ) -> mlua::Result<Self> {
        let libs = StdLib::TABLE | StdLib::STRING | StdLib::UTF8 | StdLib::MATH | StdLib::COROUTINE;
        // Not `catch_rust_panics(false)`: its pcall and xpcall cannot be yielded across. A panic that they catch is raised again
        // by `fatal`, which gets to see it first.
        // The first handle looks for garbage when it goes, now, while there is hardly anything; its clone does not.
        let lua = Lua::new_with(libs, LuaOptions::new())?.clone();
        lua.set_memory_limit(limits.memory)?;
        lua.gc_stop();
        let clock = SystemClock::new();
        let meter = Rc::new(Meter {
            limits: limits.clone(),
            used: Cell::new(0),
            slice: RefCell::new(clock.now()),
            litter: Cell::new(LOADING),
            clock,
            tripped: RefCell::new(None),
        });
        let hooked = Rc::clone(&meter);
        lua.set_global_hook(HookTriggers::new().every_nth_instruction(LOOK), move |lua, _| {
            hooked.collect(lua);
            hooked.look(u64::from(LOOK)).map(|()| VmState::Continue)
        })?;
        let globals = lua.globals();
        let phased = lua.create_table()?;
        globals.raw_set("phased", phased.clone())?;
        let native = lua.create_table()?;
        errors::install(&lua, &native, &meter)?;
        order::install(&lua, &native, &meter, seed)?;
        strings::install(&lua, &native, &meter)?;
        steps::install(&lua, &native, owner)?;
        let prelude = prelude::install(&lua, &native, &phased)?;
        definitions::install(&lua, &phased, loading)?;
        data::install(&lua, &phased, &meter)?;
        require(&lua, &globals, resolver)?;
        strict(&lua, &globals)?;
        Ok(Sandbox { lua, meter, prelude })
    }

    /// The VM.
    #[must_use]
    pub fn lua(&self) -> &Lua {
        &self.lua
    }

    /// A function of the prelude: `start`, `go_on`, `undo`, `objects`.
    ///
    /// # Errors
    /// Lua's.
    pub fn function(&self, name: &str) -> mlua::Result<mlua::Function> {
        self.prelude.raw_get(name)
    }

    /// Evaluates a file.
    ///
    /// # Errors
    /// Lua's.
    pub fn evaluate(&self, file: &Source) -> mlua::Result<Value> {
        file.function(&self.lua)?.call(())
    }

    /// Its files are evaluated.
    pub fn loaded(&self) {
        self.meter.litter.set(self.lua.used_memory() + LITTER);
    }

    /// A turn begins: its slice of time is counted from now.
    pub fn turn(&self) {
        self.meter.collect(&self.lua);
        *self.meter.slice.borrow_mut() = self.meter.clock.now();
    }

    /// Instructions are counted anew, from nothing.
    pub fn again(&self) {
        self.meter.used.set(0);
        self.turn();
    }

    /// The limit that was reached, if one was; nothing of the VM may go on then.
    #[must_use]
    pub fn tripped(&self, error: Option<&Error>) -> Option<Cause> {
        if let Some(cause) = self.meter.tripped.borrow().as_ref() {
            return Some(cause.clone());
        }
        error.filter(|error| errors::out_of_memory(error)).map(|_| memory(&self.meter.limits))
    }
}

fn memory(limits: &Limits) -> Cause {
    let message = format!("the Lua code used more than {} MiB of memory", limits.memory >> 20);
    Cause::new("limit_memory", message)
}

fn require(lua: &Lua, globals: &Table, resolver: Resolver) -> mlua::Result<()> {
    enum Module {
        Loading,
        Loaded(Value),
    }
    let modules: RefCell<BTreeMap<String, Module>> = RefCell::default();
    let require = lua.create_function(move |lua, name: Value| {
        let Value::String(name) = &name else {
            return Err(Error::runtime("require takes a module's name: require \"alerts.slack\""));
        };
        let name = name.to_string_lossy().to_string();
        match modules.borrow().get(&name) {
            Some(Module::Loaded(value)) => return Ok(value.clone()),
            Some(Module::Loading) => {
                return Err(Error::runtime(format!("module {name:?} requires itself, by way of another")));
            }
            None => {}
        }
        let source = resolver(&name).map_err(Error::runtime)?;
        modules.borrow_mut().insert(name.clone(), Module::Loading);
        let value = source.function(lua).and_then(|file| file.call::<Value>(()));
        // After an error it may be asked for again, and fails again in the same way.
        match &value {
            Ok(value) => modules.borrow_mut().insert(name, Module::Loaded(value.clone())),
            Err(_) => modules.borrow_mut().remove(&name),
        };
        value
    })?;
    globals.raw_set("require", require)
}

/// A global that nobody made is a slip of the pen, and so is making one.
fn strict(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    // The same in every VM, and in order, so that of two that are as near the same one is named. Not asked of the globals when it is needed:
    // a script may have put others there by then.
    static KNOWN: OnceLock<Vec<String>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let names = globals.pairs::<String, Value>().filter_map(|pair| pair.ok().map(|(name, _)| name));
        names.collect::<BTreeSet<_>>().into_iter().collect()
    });
    let meta = lua.create_table()?;
    let index = lua.create_function(|_, (_, key): (Value, Value)| -> mlua::Result<Value> {
        let Value::String(name) = &key else { return Ok(Value::Nil) };
        let name = name.to_string_lossy().to_string();
        let hint = match name.as_str() {
            "print" => "; use run:log in a pipeline's function, phased.log in a plugin".to_owned(),
            "os" | "io" | "debug" | "coroutine" | "package" | "load" | "loadstring" | "loadfile" | "dofile"
            | "collectgarbage" => "; it is not in the box that Lua runs in: see the steps of run and host".to_owned(),
            _ => nearest(&name, known.iter().map(String::as_str))
                .map(|near| format!("; did you mean {near:?}?"))
                .unwrap_or_default(),
        };
        Err(Error::runtime(format!("there is no variable {name:?}{hint}")))
    })?;
    let new = lua.create_function(|_, (_, key, _): (Value, Value, Value)| -> mlua::Result<()> {
        let name = check::show(&key);
        Err(Error::runtime(format!("a global {name} would be made here: write local")))
    })?;
    meta.raw_set("__index", index)?;
    meta.raw_set("__newindex", new)?;
    meta.raw_set("__metatable", false)?;
    globals.set_metatable(Some(meta))
}
