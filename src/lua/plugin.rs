//! Drives one call of a plugin: discovery, alert or probe. Its requests are answered at once and kept nowhere.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, mpsc},
};

use mlua::{Function, MultiValue, Value};
use serde_json::Value as Json;

use super::{
    bundle::Bundle,
    convert, definitions,
    driver::{self, Stand},
    project,
    sandbox::{self, Asked, Limits, Owner, Sandbox},
};
use crate::{
    model::{cause::Cause, step::Outcome},
    ports::program::{Plugin, PluginRequest, PluginTurn},
};

#[derive(Default)]
struct Asking(RefCell<Option<PluginRequest>>);

impl Owner for Asking {
    fn is_plugin(&self) -> bool {
        true
    }

    fn begin(&self, asked: Asked<'_>) -> Result<(), String> {
        Err(format!(
            "{}:{} is a step; a plugin uses phased.http, phased.exec and their like",
            asked.receiver, asked.verb
        ))
    }

    fn undo(&self) -> Result<(), String> {
        Err("undo is for pipelines; a plugin has no steps to undo".to_owned())
    }

    fn ask(&self, what: &str, args: Json) -> Result<(), String> {
        *self.0.borrow_mut() = Some(PluginRequest { what: what.to_owned(), args });
        Ok(())
    }
}

/// A VM cannot change threads, its owner can: it lives on a thread that ends with it.
struct Called {
    orders: mpsc::Sender<Option<Outcome>>,
    turns: mpsc::Receiver<PluginTurn>,
}

impl Called {
    fn turn(&mut self, order: Option<Outcome>) -> PluginTurn {
        let gone = || {
            PluginTurn::Raised(Cause::new(
                "lua_internal",
                "the plugin's thread ended unexpectedly; this is a bug of phased",
            ))
        };
        if self.orders.send(order).is_err() {
            return gone();
        }
        self.turns.recv().unwrap_or_else(|_| gone())
    }
}

impl Plugin for Called {
    fn start(&mut self) -> PluginTurn {
        self.turn(None)
    }

    fn resume(&mut self, outcome: &Outcome) -> PluginTurn {
        self.turn(Some(outcome.clone()))
    }
}

struct Vm {
    sandbox: Sandbox,
    asking: Rc<Asking>,
}

impl Vm {
    fn open(bundle: &Arc<Bundle>, limits: &Limits, function: &str) -> Result<(Vm, Function), Cause> {
        let asking = Rc::new(Asking::default());
        let owner: Rc<dyn Owner> = asking.clone();
        let (sandbox, project) = driver::open_project(bundle, limits, 0, owner)?;
        let called = project::function(sandbox.lua(), &project, function)
            .map_err(|e| Cause::new("lua_error", sandbox::words(&e)))?;
        Ok((Vm { sandbox, asking }, called))
    }

    fn turn(&self, back: mlua::Result<Value>) -> PluginTurn {
        match driver::stand(&self.sandbox, back) {
            Stand::Ended(cause) | Stand::Done(Err(cause)) => PluginTurn::Raised(cause),
            // A rate of nothing is 0/0: no data, which is no mistake of the probe's.
            Stand::Done(Ok(Value::Number(number))) if number.is_nan() => PluginTurn::Return(Json::Null),
            Stand::Done(Ok(value)) => match convert::from_lua(&value) {
                Ok(value) => PluginTurn::Return(value),
                Err(why) => {
                    PluginTurn::Raised(Cause::new("lua_error", format!("the plugin returned no plain data: {why}")))
                }
            },
            Stand::Waits => match self.asking.0.take() {
                Some(request) => PluginTurn::Request(request),
                None => PluginTurn::Raised(Cause::new(
                    "lua_error",
                    "the plugin waits for nothing; run:parallel is for pipelines",
                )),
            },
        }
    }

    fn start(&self, called: Function, given: Option<&Json>) -> PluginTurn {
        self.sandbox.turn();
        let back = (|| {
            let lua = self.sandbox.lua();
            let mut args = vec![Value::Function(called)];
            // The options are bound already; an alert is also given the message, a probe what it is about.
            if let Some(given) = given {
                args.push(definitions::to_lua(lua, given)?);
            }
            let start: Function = self.sandbox.function("start")?;
            start.call::<Value>(MultiValue::from_vec(args))
        })();
        self.turn(back)
    }

    fn resume(&self, outcome: &Outcome) -> PluginTurn {
        self.sandbox.turn();
        let back = (|| {
            let [how, value, cause] = driver::answer(&self.sandbox, outcome)?;
            // A plugin knows only "failed": what nobody can tell is a failure to it.
            let how = if matches!(outcome, Outcome::Ok(_)) {
                how
            } else {
                Value::String(self.sandbox.lua().create_string("failed")?)
            };
            let go_on: Function = self.sandbox.function("go_on")?;
            go_on.call::<Value>(("-", how, value, cause))
        })();
        self.turn(back)
    }
}

/// What a function gets beside its options: an alert `input.message`, a probe and a discovery all of it.
fn given<'i>(function: &str, input: &'i Json) -> Option<&'i Json> {
    match function.split('/').next() {
        Some("alarms") if function.ends_with("/cause") => Some(input),
        Some("discovery") => Some(input),
        Some("alarms" | "notify") => input.get("message"),
        _ => None,
    }
}

/// Opens one call of `function`, a path of the project's.
///
/// # Errors
/// `lua_internal` when there can be no thread.
pub fn open(bundle: Arc<Bundle>, function: String, input: Json, limits: Limits) -> Result<Box<dyn Plugin>, Cause> {
    let (orders, received) = mpsc::channel::<Option<Outcome>>();
    let (told, turns) = mpsc::channel();
    let work = move || {
        let mut vm: Option<Vm> = None;
        for order in received {
            let turn = match (&vm, order) {
                (Some(vm), Some(outcome)) => vm.resume(&outcome),
                _ => match Vm::open(&bundle, &limits, &function) {
                    Err(cause) => PluginTurn::Raised(cause),
                    Ok((opened, called)) => {
                        let turn = opened.start(called, given(&function, &input));
                        vm = Some(opened);
                        turn
                    }
                },
            };
            if told.send(turn).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("lua plugin".to_owned())
        .spawn(work)
        .map_err(|e| Cause::new("lua_internal", format!("there can be no thread for Lua: {e}")))?;
    Ok(Box::new(Called { orders, turns }))
}
