//! The box: a VM without the system, with limits nobody catches, and the same in every process.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use mlua::{Error, HookTriggers, Lua, LuaOptions, MultiValue, StdLib, Table, Value, VmState, chunk::ChunkMode};

use super::{
    bundle::Source,
    check, definitions,
    pattern::{self, Capture, PatternError},
    prelude, registry,
    shape::nearest,
};
use crate::{
    model::{cause::Cause, step::Branch},
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
const LOOK: u32 = 5_000;
/// Steps of the pattern matcher count as so many to one instruction.
const STEPS: u64 = 4;

/// Counts what a call has used.
#[derive(Debug)]
struct Meter {
    limits: Limits,
    used: Cell<u64>,
    slice: RefCell<Stamp>,
    clock: SystemClock,
    tripped: RefCell<Option<Cause>>,
}

impl Meter {
    fn trip(&self, code: &str, message: String) -> Error {
        self.tripped.borrow_mut().get_or_insert_with(|| Cause::new(code, message));
        Error::runtime("phased: a limit was reached")
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
    fn ask(&self, what: &str, _: serde_json::Value) -> Result<(), String> {
        Err(format!("phased.{what} cannot be used while the file is loaded"))
    }
}

/// A boxed VM.
pub struct Sandbox {
    lua: Lua,
    meter: Rc<Meter>,
    /// `start`, `go_on`, `objects` of the prelude.
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
        // Without `catch_rust_panics` mlua replaces pcall and xpcall by C functions that no step could wait in.
        let lua = Lua::new_with(libs, LuaOptions::new())?;
        lua.set_memory_limit(limits.memory)?;
        let clock = SystemClock::new();
        let meter = Rc::new(Meter {
            limits: limits.clone(),
            used: Cell::new(0),
            slice: RefCell::new(clock.now()),
            clock,
            tripped: RefCell::new(None),
        });
        let hooked = Rc::clone(&meter);
        lua.set_global_hook(HookTriggers::new().every_nth_instruction(LOOK), move |_, _| {
            hooked.look(u64::from(LOOK)).map(|()| VmState::Continue)
        })?;
        let globals = lua.globals();
        let phased = lua.create_table()?;
        globals.raw_set("phased", phased.clone())?;
        let native = lua.create_table()?;
        errors(&lua, &native, &meter)?;
        order(&lua, &native, seed)?;
        strings(&lua, &native, &meter)?;
        steps(&lua, &native, owner)?;
        let prelude: Table =
            lua.load(prelude::TEXT).set_name("=prelude").set_mode(ChunkMode::Text).call((native, phased.clone()))?;
        definitions::install(&lua, &phased, loading)?;
        data(&lua, &phased)?;
        require(&lua, &globals, resolver)?;
        strict(&lua, &globals)?;
        Ok(Sandbox { lua, meter, prelude })
    }

    /// The VM.
    #[must_use]
    pub fn lua(&self) -> &Lua {
        &self.lua
    }

    /// A function of the prelude: `start`, `go_on`, `objects`.
    ///
    /// # Errors
    /// Lua's.
    pub fn function(&self, name: &str) -> mlua::Result<mlua::Function> {
        self.prelude.raw_get(name)
    }

    /// Evaluates a file's text; `path` is its name in messages.
    ///
    /// # Errors
    /// Lua's.
    pub fn evaluate(&self, path: &str, text: &str) -> mlua::Result<Value> {
        self.lua.load(text).set_name(format!("@{path}")).set_mode(ChunkMode::Text).call(())
    }

    /// A turn begins: its slice of time is counted from now.
    pub fn turn(&self) {
        *self.meter.slice.borrow_mut() = self.meter.clock.now();
    }

    /// The limit that was reached, if one was; nothing of the VM may go on then.
    #[must_use]
    pub fn tripped(&self, error: Option<&Error>) -> Option<Cause> {
        if let Some(cause) = self.meter.tripped.borrow().as_ref() {
            return Some(cause.clone());
        }
        error.filter(|error| out_of_memory(error)).map(|_| memory(&self.meter.limits))
    }
}

fn memory(limits: &Limits) -> Cause {
    let message = format!("the Lua code used more than {} MiB of memory", limits.memory >> 20);
    Cause::new("limit_memory", message)
}

fn out_of_memory(error: &Error) -> bool {
    match error {
        Error::MemoryError(_) => true,
        Error::RuntimeError(text) => text.starts_with("not enough memory"),
        Error::CallbackError { cause, .. } | Error::WithContext { cause, .. } => out_of_memory(cause),
        _ => false,
    }
}

/// The error at the bottom, without mlua's wrapping.
fn root(error: &Error) -> &Error {
    match error {
        Error::CallbackError { cause, .. } | Error::WithContext { cause, .. } => root(cause),
        other => other,
    }
}

/// `file:line` of the innermost frame of a user's file.
fn place(lua: &Lua) -> Option<String> {
    (0..40).find_map(|level| {
        lua.inspect_stack(level, |frame| {
            let source = frame.source();
            let name = source.source.as_deref()?.strip_prefix('@')?.to_owned();
            Some(format!("{name}:{}", frame.current_line()?))
        })?
    })
}

fn errors(lua: &Lua, native: &Table, meter: &Rc<Meter>) -> mlua::Result<()> {
    let counted = Rc::clone(meter);
    let fatal = move |_: &Lua, value: Value| {
        if counted.tripped.borrow().is_some() {
            return Ok(true);
        }
        let memory_gone = match &value {
            Value::Error(error) => out_of_memory(error),
            Value::String(text) => text.as_bytes().starts_with(b"not enough memory"),
            _ => false,
        };
        if memory_gone {
            counted.tripped.borrow_mut().get_or_insert(memory(&counted.limits));
        }
        Ok(memory_gone)
    };
    native.raw_set("fatal", lua.create_function(fatal)?)?;
    let plain = |lua: &Lua, value: Value| match &value {
        Value::Error(error) => {
            let message = match root(error) {
                Error::RuntimeError(text) => text.clone(),
                other => other.to_string(),
            };
            let first = message.lines().next().unwrap_or_default();
            let text = match place(lua) {
                Some(at) if !first.starts_with(at.split(':').next().unwrap_or("\0")) => format!("{at}: {first}"),
                _ => first.to_owned(),
            };
            lua.create_string(text).map(Value::String)
        }
        _ => Ok(value),
    };
    native.raw_set("plain", lua.create_function(plain)?)?;
    let traceback = |lua: &Lua, (): ()| {
        let frames: Vec<String> = (0..60)
            .map_while(|level| {
                lua.inspect_stack(level, |frame| {
                    let source = frame.source();
                    let name = source.source.as_deref()?.strip_prefix('@')?.to_owned();
                    let line = frame.current_line()?;
                    let function = frame.names().name.map(|n| format!(" in {n}")).unwrap_or_default();
                    Some(format!("{name}:{line}{function}"))
                })
            })
            .flatten()
            .take(20)
            .collect();
        Ok(frames.join("\n"))
    };
    native.raw_set("traceback", lua.create_function(traceback)?)
}

fn order(lua: &Lua, native: &Table, seed: u64) -> mlua::Result<()> {
    // Numbers ascending, then texts by bytes, then booleans; anything else has no order.
    let keys = |lua: &Lua, table: Table| {
        let (mut numbers, mut texts, mut booleans): (Vec<(f64, Value)>, Vec<(Vec<u8>, Value)>, Vec<bool>) =
            Default::default();
        for pair in table.pairs::<Value, Value>() {
            let (key, _) = pair?;
            match &key {
                #[allow(clippy::cast_precision_loss)] // only the order is wanted; ties are broken below
                Value::Integer(n) => numbers.push((*n as f64, key)),
                Value::Number(n) => numbers.push((*n, key)),
                Value::String(text) => texts.push((text.as_bytes().to_vec(), key)),
                Value::Boolean(b) => booleans.push(*b),
                other => return Ok((Value::Nil, Some(other.type_name().to_owned()))),
            }
        }
        numbers.sort_by(|(a, left), (b, right)| {
            let exact = match (left, right) {
                (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
                _ => std::cmp::Ordering::Equal,
            };
            a.total_cmp(b).then(exact)
        });
        texts.sort_by(|(a, _), (b, _)| a.cmp(b));
        booleans.sort_unstable();
        let ordered = numbers.into_iter().map(|(_, key)| key).chain(texts.into_iter().map(|(_, key)| key));
        let ordered = lua.create_sequence_from(ordered.chain(booleans.into_iter().map(Value::Boolean)))?;
        Ok((Value::Table(ordered), None))
    };
    native.raw_set("keys", lua.create_function(keys)?)?;
    native.raw_set(
        "has_tostring",
        lua.create_function(|_, value: Value| Ok(matches!(value, Value::UserData(_) | Value::Error(_))))?,
    )?;
    // SplitMix64: small, and the same everywhere.
    let state = Cell::new(seed);
    let random = move |_: &Lua, (low, high): (Option<i64>, Option<i64>)| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mut z = next;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let (low, high) = match (low, high) {
            #[allow(clippy::cast_precision_loss)] // 53 bits are exact
            (None, _) => return Ok(Value::Number((z >> 11) as f64 / (1u64 << 53) as f64)),
            (Some(high), None) => (1, high),
            (Some(low), Some(high)) => (low, high),
        };
        if low > high {
            return Err(Error::runtime("bad argument to 'random' (interval is empty)"));
        }
        let span = u128::from(high.abs_diff(low)) + 1;
        let offset = (u128::from(z) * span) >> 64;
        let value = i128::from(low) + i128::try_from(offset).unwrap_or(0);
        Ok(Value::Integer(i64::try_from(value).unwrap_or(low)))
    };
    native.raw_set("random", lua.create_function(random)?)
}

/// A position as Lua gives it, as an offset: negative from the end.
fn offset(init: Option<i64>, length: usize) -> usize {
    let length_i = i64::try_from(length).unwrap_or(i64::MAX);
    let at = match init.unwrap_or(1) {
        n if n > 0 => n - 1,
        0 => 0,
        n => (length_i + n).max(0),
    };
    usize::try_from(at).unwrap_or(usize::MAX)
}

fn captures(lua: &Lua, text: &[u8], found: &pattern::Match, whole: bool) -> mlua::Result<Vec<Value>> {
    if found.captures.is_empty() && whole {
        return Ok(vec![Value::String(lua.create_string(&text[found.start..found.end])?)]);
    }
    found
        .captures
        .iter()
        .map(|capture| match capture {
            Capture::Span(from, to) => lua.create_string(&text[*from..*to]).map(Value::String),
            Capture::Position(at) => Ok(Value::Integer(i64::try_from(*at).unwrap_or(i64::MAX))),
        })
        .collect()
}

fn number(n: usize) -> Value {
    Value::Integer(i64::try_from(n).unwrap_or(i64::MAX))
}

fn strings(lua: &Lua, native: &Table, meter: &Rc<Meter>) -> mlua::Result<()> {
    /// Runs the matcher on what is left of the call's instructions.
    fn within<T>(meter: &Meter, work: impl FnOnce(&mut u64) -> Result<T, PatternError>) -> mlua::Result<T> {
        let left = meter.limits.instructions.saturating_sub(meter.used.get()).saturating_mul(STEPS);
        // A slice may not be spent inside one match either.
        let mut budget = left.min(200_000_000);
        let given = budget;
        let done = work(&mut budget);
        meter.look((given - budget) / STEPS)?;
        match done {
            Ok(value) => Ok(value),
            Err(PatternError::Malformed(why)) => Err(Error::runtime(why)),
            Err(PatternError::Budget) => {
                Err(meter.trip("limit_instructions", "a pattern took too many steps to match".to_owned()))
            }
        }
    }
    type Args = (mlua::LuaString, mlua::LuaString, Option<i64>, Option<bool>);
    let counted = Rc::clone(meter);
    let find = move |lua: &Lua, (text, wanted, init, plain): Args| {
        let (text, wanted) = (text.as_bytes(), wanted.as_bytes());
        let init = offset(init, text.len());
        if init > text.len() {
            return Ok(MultiValue::from_vec(vec![Value::Nil]));
        }
        if plain.unwrap_or(false) || pattern::is_plain(&wanted) {
            let at = within(&counted, |budget| pattern::plain(&text, &wanted, init, budget))?;
            return Ok(MultiValue::from_vec(match at {
                Some(at) => vec![number(at + 1), number(at + wanted.len())],
                None => vec![Value::Nil],
            }));
        }
        let found = within(&counted, |budget| pattern::find(&text, &wanted, init, budget))?;
        let Some(found) = found else { return Ok(MultiValue::from_vec(vec![Value::Nil])) };
        let mut values = vec![number(found.start + 1), number(found.end)];
        values.extend(captures(lua, &text, &found, false)?);
        Ok(MultiValue::from_vec(values))
    };
    native.raw_set("find", lua.create_function(find)?)?;
    let counted = Rc::clone(meter);
    let matched = move |lua: &Lua, (text, wanted, init): (mlua::LuaString, mlua::LuaString, Option<i64>)| {
        let (text, wanted) = (text.as_bytes(), wanted.as_bytes());
        let init = offset(init, text.len());
        if init > text.len() {
            return Ok(MultiValue::from_vec(vec![Value::Nil]));
        }
        match within(&counted, |budget| pattern::find(&text, &wanted, init, budget))? {
            Some(found) => captures(lua, &text, &found, true).map(MultiValue::from_vec),
            None => Ok(MultiValue::from_vec(vec![Value::Nil])),
        }
    };
    native.raw_set("match", lua.create_function(matched)?)?;
    // For gmatch and gsub: from `at` on, an empty match right where the last one ended does not count. Start, end, captures.
    type Scan = (mlua::LuaString, mlua::LuaString, i64, Option<i64>, Option<bool>);
    let counted = Rc::clone(meter);
    let scan = move |lua: &Lua, (text, wanted, at, last, anchors): Scan| {
        let (text, whole) = (text.as_bytes(), wanted.as_bytes());
        // In gmatch a leading ^ is a plain character.
        let escaped = [b"%".as_slice(), &whole].concat();
        let wanted: &[u8] = if anchors != Some(true) && whole.starts_with(b"^") { &escaped } else { &whole };
        let mut from = offset(Some(at), text.len());
        let last = last.and_then(|last| usize::try_from(last).ok());
        while from <= text.len() {
            let Some(found) = within(&counted, |budget| pattern::find(&text, wanted, from, budget))? else { break };
            if found.start == found.end && Some(found.end) == last {
                if wanted.starts_with(b"^") {
                    break;
                }
                from = found.start + 1;
                continue;
            }
            let mut values = vec![number(found.start + 1), number(found.end)];
            values.extend(captures(lua, &text, &found, true)?);
            return Ok(MultiValue::from_vec(values));
        }
        Ok(MultiValue::from_vec(vec![Value::Nil]))
    };
    native.raw_set("scan", lua.create_function(scan)?)?;
    let expand = |lua: &Lua, mut args: MultiValue| {
        let text = |value: Option<Value>| -> mlua::Result<Vec<u8>> {
            match value {
                Some(Value::String(text)) => Ok(text.as_bytes().to_vec()),
                Some(Value::Integer(n)) => Ok(n.to_string().into_bytes()),
                _ => Ok(Vec::new()),
            }
        };
        let (with, whole) = (text(args.pop_front())?, text(args.pop_front())?);
        let groups = args.into_iter().map(|value| text(Some(value))).collect::<mlua::Result<Vec<_>>>()?;
        let mut out = Vec::with_capacity(with.len());
        let mut bytes = with.iter();
        while let Some(&byte) = bytes.next() {
            if byte != b'%' {
                out.push(byte);
                continue;
            }
            match bytes.next() {
                Some(b'%') => out.push(b'%'),
                Some(b'0') => out.extend_from_slice(&whole),
                Some(digit) if digit.is_ascii_digit() => match groups.get(usize::from(digit - b'1')) {
                    Some(group) => out.extend_from_slice(group),
                    None => {
                        let why = format!("invalid capture index %{} in replacement string", digit - b'0');
                        return Err(Error::runtime(why));
                    }
                },
                _ => return Err(Error::runtime("invalid use of '%' in replacement string")),
            }
        }
        lua.create_string(out)
    };
    native.raw_set("expand", lua.create_function(expand)?)?;
    let lock = |lua: &Lua, (): ()| {
        let text = lua.create_string("")?;
        if let Some(meta) = lua.type_metatable::<mlua::LuaString>() {
            meta.raw_set("__metatable", false)?;
        }
        drop(text);
        Ok(())
    };
    native.raw_set("lock_strings", lua.create_function(lock)?)
}

fn steps(lua: &Lua, native: &Table, owner: Rc<dyn Owner>) -> mlua::Result<()> {
    let asked = Rc::clone(&owner);
    let begin = move |lua: &Lua, mut args: MultiValue| {
        let mut text = || match args.pop_front() {
            Some(Value::String(text)) => text.to_string_lossy().to_string(),
            _ => String::new(),
        };
        let (branch, receiver, id, verb) = (text(), text(), text(), text());
        let at = place(lua).unwrap_or_default();
        let id = (receiver == "host").then_some(id);
        let request = Asked { branch: &branch, receiver: &receiver, id, verb: &verb, args: &args, at };
        asked.begin(request).map_err(Error::runtime)
    };
    native.raw_set("begin", lua.create_function(begin)?)?;
    let asked = Rc::clone(&owner);
    let ask = move |_: &Lua, mut args: MultiValue| {
        let _branch = args.pop_front();
        let what = match args.pop_front() {
            Some(Value::String(what)) => what.to_string_lossy().to_string(),
            _ => String::new(),
        };
        let args = check::plugin_args(&what, &args).map_err(Error::runtime)?;
        asked.ask(&what, args).map_err(Error::runtime)
    };
    native.raw_set("ask", lua.create_function(ask)?)?;
    native.raw_set("in_plugin", lua.create_function(move |_, (): ()| Ok(owner.is_plugin()))?)?;
    let checked = |lua: &Lua, mut args: MultiValue| {
        let mut text = || match args.pop_front() {
            Some(Value::String(text)) => text.to_string_lossy().to_string(),
            _ => String::new(),
        };
        let (receiver, name) = (text(), text());
        let data = check::named_step_args(&name, &receiver, &args).map_err(Error::runtime)?;
        definitions::to_lua(lua, &data)
    };
    native.raw_set("check", lua.create_function(checked)?)?;
    let branch = |_: &Lua, (parent, name): (String, String)| {
        let parent: Branch = serde_json::from_value(serde_json::Value::String(parent)).map_err(Error::external)?;
        Ok(parent.child(&name).as_str().to_owned())
    };
    native.raw_set("branch", lua.create_function(branch)?)?;
    let verbs = |lua: &Lua, receiver: String| {
        let own = |step: &&registry::Step| {
            step.name.parse::<crate::model::step::Verb>().is_ok()
                && step.name != "service"
                && step.on.iter().any(|on| on.word() == receiver)
        };
        lua.create_sequence_from(registry::registry().steps.iter().filter(own).map(|step| step.name))
    };
    native.raw_set("verbs", lua.create_function(verbs)?)?;
    let unknown = |_: &Lua, (receiver, key): (String, Value)| {
        let name = check::show(&key);
        let all = registry::registry();
        if let Value::String(text) = &key {
            let text = text.to_string_lossy();
            if all.later_steps.iter().any(|(on, later)| on.word() == receiver && *later == text) {
                return Ok(format!("{receiver}:{text} is not supported by this version of phased"));
            }
            let steps =
                all.steps.iter().filter(|step| step.on.iter().any(|on| on.word() == receiver)).map(|step| step.name);
            let fields =
                all.objects.iter().filter(|o| o.name == receiver).flat_map(|o| o.fields.iter().map(|(name, ..)| *name));
            let known: Vec<&str> = steps.chain(fields).collect();
            if let Some(near) = nearest(&text, known.into_iter()) {
                return Ok(format!("{receiver} has no {name}; did you mean {near:?}?"));
            }
        }
        Ok(format!("{receiver} has no {name}"))
    };
    native.raw_set("unknown", lua.create_function(unknown)?)?;
    let functions = |lua: &Lua, (): ()| {
        let waits = registry::registry().functions.iter().filter(|function| !function.name.contains('.'));
        lua.create_sequence_from(waits.map(|function| function.name))
    };
    native.raw_set("functions", lua.create_function(functions)?)?;
    let not_here = |_: &Lua, name: String| {
        let step = match name.as_str() {
            "http" => "run:http or host:http",
            "exec" => "run:exec or host:exec",
            "read" => "run:sh \"cat FILE\" or host:sh",
            "log" => "run:log",
            _ => "notify",
        };
        Ok(format!(
            "phased.{name} is for discovery, probes and alerts; in a pipeline's function use {step}, which is journaled"
        ))
    };
    native.raw_set("not_here", lua.create_function(not_here)?)?;
    let changed = |_: &Lua, (paths, glob): (Value, mlua::LuaString)| {
        let glob = glob.to_string_lossy().to_string();
        let matcher = globset::GlobBuilder::new(&glob)
            .literal_separator(true)
            .build()
            .map_err(|e| Error::runtime(format!("release:changed: {glob:?} is no glob: {e}")))?
            .compile_matcher();
        match paths {
            Value::Table(paths) => {
                for path in paths.sequence_values::<String>() {
                    if matcher.is_match(path?) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            // Nothing is live to compare with, or it cannot be told: everything is new.
            _ => Ok(true),
        }
    };
    native.raw_set("changed", lua.create_function(changed)?)
}

/// `phased.json` and `phased.csv`: plain functions, everywhere.
fn data(lua: &Lua, phased: &Table) -> mlua::Result<()> {
    let text = |args: &MultiValue, what: &str| -> mlua::Result<Vec<u8>> {
        match args.iter().next() {
            Some(Value::String(text)) => Ok(text.as_bytes().to_vec()),
            other => Err(Error::runtime(format!(
                "{what} takes a text, not {}",
                other.map_or("nothing".to_owned(), check::show)
            ))),
        }
    };
    let json = lua.create_table()?;
    json.raw_set(
        "decode",
        lua.create_function(move |lua, args: MultiValue| {
            let bytes = text(&args, "phased.json.decode")?;
            let data: serde_json::Value =
                serde_json::from_slice(&bytes).map_err(|e| Error::runtime(format!("no JSON: {e}")))?;
            definitions::to_lua(lua, &data)
        })?,
    )?;
    json.raw_set(
        "encode",
        lua.create_function(|_, value: Value| {
            let data = super::convert::from_lua(&value).map_err(Error::runtime)?;
            Ok(data.to_string())
        })?,
    )?;
    phased.raw_set("json", json)?;
    let csv = lua.create_table()?;
    csv.raw_set(
        "decode",
        lua.create_function(move |lua, args: MultiValue| {
            let bytes = text(&args, "phased.csv.decode")?;
            let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes.as_slice());
            let wrong = |e: csv::Error| Error::runtime(format!("no CSV: {e}"));
            let headers = reader.headers().map_err(wrong)?.clone();
            let rows = lua.create_table()?;
            for record in reader.records() {
                let record = record.map_err(wrong)?;
                let row = lua.create_table()?;
                for (name, cell) in headers.iter().zip(&record) {
                    row.raw_set(name, cell)?;
                }
                rows.raw_push(row)?;
            }
            Ok(rows)
        })?,
    )?;
    phased.raw_set("csv", csv)
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
        let value: Value =
            lua.load(&source.text).set_name(format!("@{}", source.path)).set_mode(ChunkMode::Text).call(())?;
        modules.borrow_mut().insert(name, Module::Loaded(value.clone()));
        Ok(value)
    })?;
    globals.raw_set("require", require)
}

/// A global that nobody made is a slip of the pen, and so is making one.
fn strict(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    let known: Vec<String> =
        globals.pairs::<String, Value>().filter_map(|pair| pair.ok().map(|(name, _)| name)).collect();
    let meta = lua.create_table()?;
    let index = lua.create_function(move |_, (_, key): (Value, Value)| -> mlua::Result<Value> {
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
