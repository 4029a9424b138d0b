//! Drives the calls of one run: VMs live on one thread of their own, the engine talks to it by messages.

mod replay;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use mlua::{Function, MultiValue, Table, Value};
use serde_json::{Map, Value as Json};

use super::{
    bundle::Bundle,
    check, convert, definitions, project,
    sandbox::{self, Asked, Limits, Owner, Sandbox},
};
use crate::{
    lifecycle::{pulse::Beat, stall::Stall},
    model::{
        cause::Cause,
        ids::Digest,
        step::{Branch, CallKey, Outcome, Request, Target, Verb},
    },
    ports::program::{Opening, Program, Sink, Turn},
};

/// What a VM of a call has asked for since it was last looked at.
#[derive(Default)]
struct Asking {
    pending: RefCell<Vec<Request>>,
    counts: RefCell<BTreeMap<(String, &'static str), u32>>,
    /// The undos it has left.
    undos: Cell<u32>,
    /// It is undoing now.
    undoing: Cell<bool>,
}

impl Owner for Asking {
    fn is_plugin(&self) -> bool {
        false
    }

    fn begin(&self, asked: Asked<'_>) -> Result<(), String> {
        let verb: Verb = asked.verb.parse().map_err(|()| format!("{:?} is no step", asked.verb))?;
        let args = check::step_args(verb, asked.receiver, asked.args)?;
        let target = match asked.id {
            Some(id) => Target::Host(id.parse().map_err(|e| format!("{e}"))?),
            None => Target::Local,
        };
        let mut counts = self.counts.borrow_mut();
        let n = counts.entry((asked.branch.to_owned(), verb.as_str())).or_insert(0);
        *n += 1;
        let branch = branch(asked.branch);
        self.pending.borrow_mut().push(Request { branch, verb, n: *n, target, args, at: asked.at });
        Ok(())
    }

    fn undo(&self) -> Result<(), String> {
        if self.undoing.get() {
            return Err("undo cannot be used while undoing".to_owned());
        }
        self.undos.set(self.undos.get() + 1);
        Ok(())
    }

    fn ask(&self, what: &str, _: Json) -> Result<(), String> {
        Err(format!("phased.{what} cannot be used here"))
    }
}

/// A branch as the prelude holds it.
fn branch(text: &str) -> Branch {
    serde_json::from_value(Json::String(text.to_owned())).unwrap_or_else(|_| Branch::top())
}

/// One call's VM.
struct Vm {
    sandbox: Sandbox,
    asking: Rc<Asking>,
    /// Where the called function begins: shown where a tail call (`return run:sh ...`) has left no place of its own.
    begins: RefCell<String>,
}

/// What a turn of Lua left: the finished fibre, or that it waits.
pub(super) enum Stand {
    Waits,
    Done(Result<Value, Cause>),
    Ended(Cause),
}

/// Reads what the prelude's `start` or `go_on` came back with.
pub(super) fn stand(sandbox: &Sandbox, back: mlua::Result<Value>) -> Stand {
    let fibre = match back {
        Err(error) => {
            let ended = sandbox.tripped(Some(&error));
            return Stand::Ended(ended.unwrap_or_else(|| Cause::new("lua_internal", sandbox::words(&error))));
        }
        Ok(fibre) => fibre,
    };
    if let Some(cause) = sandbox.tripped(None) {
        return Stand::Ended(cause);
    }
    let Value::Table(fibre) = fibre else { return Stand::Waits };
    let ok = fibre.raw_get::<Value>("ok").is_ok_and(|ok| matches!(ok, Value::Boolean(true)));
    if ok {
        return Stand::Done(Ok(fibre.raw_get("value").unwrap_or(Value::Nil)));
    }
    Stand::Done(Err(raised(&fibre.raw_get("error").unwrap_or(Value::Nil))))
}

/// An error as Lua raised it, as a cause: where, what, and by way of which calls.
fn raised(error: &Value) -> Cause {
    let Value::Table(traced) = error else { return spoken(&text_of(error)) };
    let value: Value = traced.raw_get("value").unwrap_or(Value::Nil);
    let traceback: Option<String> = traced.raw_get("traceback").ok();
    let mut cause = match &value {
        Value::Table(table) => structured(table),
        other => spoken(&text_of(other)),
    };
    if let Some(traceback) = traceback.filter(|t| !t.is_empty()) {
        if !cause.facts.contains_key("at")
            && let Some(first) = traceback.lines().next()
        {
            let at = first.split(" in ").next().unwrap_or(first).to_owned();
            cause = cause.with("at", at);
        }
        cause = cause.with("traceback", traceback);
    }
    cause
}

/// A failure of a step, or a table of the author's.
fn structured(table: &Table) -> Cause {
    let text = |key: &str| table.raw_get::<Option<String>>(key).ok().flatten();
    let first = || table.raw_get::<Option<String>>(1).ok().flatten();
    let Some(message) = text("message").or_else(first) else {
        return Cause::new("lua_error", "a table without a message was raised: error { code = ..., message = ... }");
    };
    let mut cause = Cause::new(&text("code").unwrap_or_else(|| "failed".to_owned()), message);
    if let Ok(Json::Object(facts)) = convert::from_lua(&Value::Table(table.clone())) {
        let facts: Map<String, Json> =
            facts.into_iter().filter(|(key, _)| !["code", "message", "1"].contains(&key.as_str())).collect();
        cause.facts = facts;
    }
    cause
}

/// `projects/shop.lua:12: what went wrong`, taken apart.
fn spoken(text: &str) -> Cause {
    let first = text.lines().next().unwrap_or_default();
    if let Some((file, rest)) = first.split_once(".lua:")
        && let Some((line, message)) = rest.split_once(": ")
        && line.bytes().all(|b| b.is_ascii_digit())
        && !file.contains(' ')
    {
        return Cause::new("lua_error", message).with("at", format!("{file}.lua:{line}"));
    }
    Cause::new("lua_error", first)
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string_lossy().to_string(),
        Value::Error(error) => sandbox::words(error),
        Value::Integer(_) | Value::Number(_) => check::show(value).trim_matches('"').to_owned(),
        Value::Nil => "an error without a message was raised: error(nil)".to_owned(),
        other => format!("an error without a message was raised: it is {}", check::show(other)),
    }
}

/// Opens a sandbox over `bundle` and evaluates the project's own file.
pub(super) fn open_project(
    bundle: &Arc<Bundle>,
    limits: &Limits,
    seed: u64,
    owner: Rc<dyn Owner>,
) -> Result<(Sandbox, Table), Cause> {
    let broken = |error: &mlua::Error, sandbox: Option<&Sandbox>| {
        let limit = sandbox.and_then(|s| s.tripped(Some(error)));
        limit.unwrap_or_else(|| spoken(&sandbox::words(error)))
    };
    let files = Arc::clone(bundle);
    let resolver = Box::new(move |name: &str| files.module(name));
    let sandbox = Sandbox::for_call(limits, resolver, seed, owner).map_err(|e| broken(&e, None))?;
    let entry = bundle.main().ok_or_else(|| Cause::new("code_damaged", "the project's own file is missing"))?;
    let returned = sandbox.evaluate(entry).map_err(|e| broken(&e, Some(&sandbox)))?;
    sandbox.loaded();
    let project = definitions::project(&returned).map_err(|why| Cause::new("lua_error", why))?;
    Ok((sandbox, project.table))
}

/// `ok`/`failed`/`unknown`, the value and the cause, as the prelude's fibres take an answer.
pub(super) fn answer(sandbox: &Sandbox, outcome: &Outcome) -> mlua::Result<[Value; 3]> {
    let lua = sandbox.lua();
    let cause = |cause: &Cause| {
        serde_json::to_value(cause).map_err(mlua::Error::external).and_then(|data| definitions::to_lua(lua, &data))
    };
    let word = |word: &str| lua.create_string(word).map(Value::String);
    Ok(match outcome {
        Outcome::Ok(value) => [word("ok")?, definitions::to_lua(lua, value)?, Value::Nil],
        Outcome::Failed { cause: why, value } => [word("failed")?, definitions::to_lua(lua, value)?, cause(why)?],
        Outcome::Unknown { cause: why } | Outcome::Cut { cause: why } => [word("unknown")?, Value::Nil, cause(why)?],
    })
}

impl Vm {
    fn open(bundle: &Arc<Bundle>, limits: &Limits, seed: u64) -> Result<(Vm, Table), Cause> {
        let asking = Rc::new(Asking::default());
        let owner: Rc<dyn Owner> = asking.clone();
        let (sandbox, project) = open_project(bundle, limits, seed, owner)?;
        Ok((Vm { sandbox, asking, begins: RefCell::default() }, project))
    }

    fn start(&self, project: &Table, function: &str, input: &Json) -> mlua::Result<Value> {
        let lua = self.sandbox.lua();
        let mut called = project::function(lua, project, function)?;
        let info = called.info();
        if let (Some(chunk), Some(line)) = (info.source.as_deref().and_then(|s| s.strip_prefix('@')), info.line_defined)
        {
            *self.begins.borrow_mut() = format!("{chunk}:{line}");
        }
        let objects: Function = self.sandbox.function("objects")?;
        let (run, host, release, deployment, wave): (Value, Value, Value, Value, Value) =
            objects.call(definitions::to_lua(lua, input)?)?;
        // What each function is given, DESIGN §2.
        let args = match function.rsplit('/').next().unwrap_or_default() {
            "prepare" | "deploy" => vec![host, release],
            "drain" | "undrain" => vec![host],
            "before" | "after" => vec![deployment],
            "before_wave" | "after_wave" => vec![wave],
            "rollback_safe" => vec![release],
            "verify" => vec![run, deployment],
            _ => vec![run],
        };
        if function.ends_with("/rollback_safe") {
            called = self.sandbox.function("answered")?.call(called)?;
        }
        let start: Function = self.sandbox.function("start")?;
        let mut all = MultiValue::from_vec(args);
        all.push_front(Value::Function(called));
        start.call(all)
    }

    /// Calls what was left to be undone, newest first; nothing else of the call goes on.
    fn undo(&self) -> mlua::Result<Value> {
        self.asking.counts.borrow_mut().clear();
        self.asking.pending.borrow_mut().clear();
        self.asking.undos.set(0);
        self.asking.undoing.set(true);
        // What the call has used is not taken from what it leaves to be undone.
        self.sandbox.again();
        let undo: Function = self.sandbox.function("undo")?;
        undo.call(())
    }

    fn go_on(&self, branch: &Branch, outcome: &Outcome) -> mlua::Result<Value> {
        let [how, value, cause] = answer(&self.sandbox, outcome)?;
        let go_on: Function = self.sandbox.function("go_on")?;
        go_on.call((branch.as_str(), how, value, cause))
    }

    fn undos(&self) -> u32 {
        self.asking.undos.get()
    }

    /// Where the call stands after `back`, and what it has asked for since. A line of the log is answered at once: answered by the
    /// engine it would come between other answers by chance, and a replay would differ.
    fn stand(&self, back: mlua::Result<Value>) -> (Stand, Vec<Request>) {
        let mut asked = Vec::new();
        let mut stand = stand(&self.sandbox, back);
        loop {
            let mut pending = self.asking.pending.take();
            let begins = self.begins.borrow();
            for request in pending.iter_mut().filter(|request| request.at.is_empty()) {
                request.at.clone_from(&begins);
            }
            let logs: Vec<Branch> =
                pending.iter().filter(|request| request.verb == Verb::Log).map(|log| log.branch.clone()).collect();
            asked.append(&mut pending);
            if logs.is_empty() {
                return (stand, asked);
            }
            for branch in logs {
                if matches!(stand, Stand::Waits) {
                    stand = self::stand(&self.sandbox, self.go_on(&branch, &Outcome::Ok(Json::Null)));
                }
            }
        }
    }

    /// The call's turns after `back`; none: it waits for answers that are still out.
    fn turns(&self, back: mlua::Result<Value>) -> Vec<Turn> {
        let (stand, asked) = self.stand(back);
        self.told(stand, asked)
    }

    fn told(&self, stand: Stand, asked: Vec<Request>) -> Vec<Turn> {
        let begins = self.begins.borrow();
        let undos = self.undos();
        let last = match stand {
            Stand::Waits => None,
            Stand::Ended(cause) => Some(Turn::Ended { cause, undos }),
            Stand::Done(Err(cause)) if cause.facts.contains_key("at") || begins.is_empty() => {
                Some(Turn::Raised { cause, undos })
            }
            Stand::Done(Err(cause)) => Some(Turn::Raised { cause: cause.with("at", begins.as_str()), undos }),
            // A function may return what it likes; only data is kept.
            Stand::Done(Ok(value)) => Some(Turn::Return(convert::from_lua(&value).unwrap_or(Json::Null))),
        };
        let requests = (!asked.is_empty()).then_some(Turn::Requests(asked));
        requests.into_iter().chain(last).collect()
    }
}

enum Order {
    Call {
        key: CallKey,
        opening: Box<Opening>,
    },
    Resume {
        key: CallKey,
        branch: Branch,
        outcome: Outcome,
    },
    End {
        key: CallKey,
        cause: Cause,
    },
    /// There is a beat to be let go of.
    Beat,
}

/// The engine's side.
struct Driven {
    orders: mpsc::Sender<Order>,
    beats: Beats,
}

/// Beats that the thread has not come by. Beside the orders and not among them: a long queue of orders is no standstill.
type Beats = Arc<Mutex<Vec<Beat>>>;

impl Program for Driven {
    fn call(&mut self, key: &CallKey, opening: Opening) {
        let _thread_gone = self.orders.send(Order::Call { key: key.clone(), opening: Box::new(opening) });
    }

    fn resume(&mut self, key: &CallKey, branch: &Branch, outcome: &Outcome) {
        let order = Order::Resume { key: key.clone(), branch: branch.clone(), outcome: outcome.clone() };
        let _thread_gone = self.orders.send(order);
    }

    fn end(&mut self, key: &CallKey, cause: Cause) {
        let _thread_gone = self.orders.send(Order::End { key: key.clone(), cause });
    }

    fn beat(&mut self, beat: Beat) {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).push(beat);
        if self.orders.send(Order::Beat).is_err() {
            // The thread is gone, and with it everything that could be asked of it.
            self.beats.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

/// The thread's side.
struct Thread {
    bundle: Arc<Bundle>,
    limits: Limits,
    seed: u64,
    vms: BTreeMap<CallKey, Vm>,
    sink: Sink,
}

impl Thread {
    fn obey(&mut self, order: Order) {
        match order {
            // All of them are let go of after each order.
            Order::Beat => {}
            Order::End { key, cause } => {
                // One that ended by itself has had its last turn.
                if let Some(vm) = self.vms.remove(&key) {
                    self.tell(&key, vec![Turn::Ended { cause, undos: vm.undos() }]);
                }
            }
            Order::Call { key, opening } => {
                let turns = self.guarded(|thread| thread.call(&key, &opening));
                self.tell(&key, turns);
            }
            Order::Resume { key, branch, outcome } => {
                let turns = self.guarded(|thread| {
                    let Some(vm) = thread.vms.get(&key) else { return Vec::new() };
                    vm.sandbox.turn();
                    vm.turns(vm.go_on(&branch, &outcome))
                });
                self.tell(&key, turns);
            }
        }
    }

    fn call(&mut self, key: &CallKey, opening: &Opening) -> Vec<Turn> {
        // A call that undoes another is that other one up to where it ended, random numbers included.
        let undone = key.undone();
        let of = undone.as_ref().unwrap_or(key);
        let seed = Digest::of(format!("{}|{of}", self.seed).as_bytes());
        let seed = u64::from_str_radix(&seed.as_str()[..16], 16).unwrap_or(self.seed);
        let (vm, project) = match Vm::open(&self.bundle, &self.limits, seed) {
            Err(cause) if cause.code == "lua_error" => return vec![Turn::Raised { cause, undos: 0 }],
            Err(cause) => return vec![Turn::Ended { cause, undos: 0 }],
            Ok(opened) => opened,
        };
        vm.sandbox.turn();
        let back = vm.start(&project, &opening.function, &opening.input);
        let replayed = if undone.is_none() {
            replay::go(&vm, key, back, &opening.past)
        } else {
            replay::over(&vm, of, back, &opening.undoes).and_then(|()| replay::go(&vm, key, vm.undo(), &opening.past))
        };
        let turns = match replayed {
            Ok((stand, asked)) => vm.told(stand, asked),
            Err(cause) => vec![Turn::Ended { cause, undos: vm.undos() }],
        };
        self.vms.insert(key.clone(), vm);
        turns
    }

    /// A panic in a VM is the end of its call and of nothing else.
    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> Vec<Turn>) -> Vec<Turn> {
        catch_unwind(AssertUnwindSafe(|| work(self))).unwrap_or_else(|_| {
            let cause = Cause::new("lua_internal", "the Lua VM failed; this is a bug of phased");
            vec![Turn::Ended { cause, undos: 0 }]
        })
    }

    fn tell(&mut self, key: &CallKey, turns: Vec<Turn>) {
        for turn in turns {
            if !matches!(turn, Turn::Requests(_)) {
                self.vms.remove(key);
            }
            (self.sink)(key, turn);
        }
    }
}

/// Opens `bundle` for a run. The thread ends when the program is dropped and its queue is empty; `stall` is for tests of the watchdog.
///
/// # Errors
/// `lua_internal` when there can be no thread.
pub fn open(
    bundle: Arc<Bundle>,
    run_seed: u64,
    limits: Limits,
    sink: Sink,
    stall: Stall,
) -> Result<Box<dyn Program>, Cause> {
    Ok(Box::new(start(bundle, run_seed, limits, sink, move || stall.here())?))
}

/// As [`open`], but whoever gives an order waits until it is obeyed, and is told the turns it came to before the order returns: for a
/// world in which nothing happens beside something else.
///
/// # Errors
/// `lua_internal` when there can be no thread.
pub fn open_in_order(
    bundle: Arc<Bundle>,
    run_seed: u64,
    limits: Limits,
    sink: Sink,
) -> Result<Box<dyn Program>, Cause> {
    let (told, turns) = mpsc::channel();
    let obeyed = told.clone();
    let tell = move |key: &CallKey, turn: Turn| {
        let _program_gone = told.send(Some((key.clone(), turn)));
    };
    let over = move || {
        let _program_gone = obeyed.send(None);
    };
    let driven = start(bundle, run_seed, limits, Box::new(tell), over)?;
    Ok(Box::new(InOrder { driven, turns, sink }))
}

fn start(
    bundle: Arc<Bundle>,
    seed: u64,
    limits: Limits,
    sink: Sink,
    obeyed: impl Fn() + Send + 'static,
) -> Result<Driven, Cause> {
    let (orders, received) = mpsc::channel();
    let beats = Beats::default();
    let felt = Arc::clone(&beats);
    let work = move || {
        let mut thread = Thread { bundle, limits, seed, vms: BTreeMap::new(), sink };
        for order in received {
            thread.obey(order);
            drop(std::mem::take(&mut *felt.lock().unwrap_or_else(PoisonError::into_inner)));
            obeyed();
        }
    };
    std::thread::Builder::new()
        .name("lua".to_owned())
        .spawn(work)
        .map_err(|e| Cause::new("lua_internal", format!("there can be no thread for Lua: {e}")))?;
    Ok(Driven { orders, beats })
}

/// The engine's side where it waits.
struct InOrder {
    driven: Driven,
    /// What an order came to; `None` ends it.
    turns: mpsc::Receiver<Option<(CallKey, Turn)>>,
    sink: Sink,
}

impl InOrder {
    fn tell(&mut self) {
        while let Ok(Some((key, turn))) = self.turns.recv() {
            (self.sink)(&key, turn);
        }
    }
}

impl Program for InOrder {
    fn call(&mut self, key: &CallKey, opening: Opening) {
        self.driven.call(key, opening);
        self.tell();
    }

    fn resume(&mut self, key: &CallKey, branch: &Branch, outcome: &Outcome) {
        self.driven.resume(key, branch, outcome);
        self.tell();
    }

    fn end(&mut self, key: &CallKey, cause: Cause) {
        self.driven.end(key, cause);
        self.tell();
    }

    fn beat(&mut self, beat: Beat) {
        self.driven.beat(beat);
        self.tell();
    }
}

#[cfg(test)]
mod tests;
