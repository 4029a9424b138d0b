//! Projects in Rust behind the port `Program`: hooks that ask for a few steps, discovery, probes and channels.
//!
//! A hook is a list of steps, one after the other; the first that does not succeed raises, as in Lua. What it has done it knows from the
//! answers it was given, or from its past in a replay. The code of a project is what [`hook`] says, so it is pinned by being compiled.
//! The same hooks are there in Lua, `shop.lua`, run by the daemon's own driver.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{outside::Outside, scenario::Language};
use crate::{
    lua::{
        bundle::{Bundle, Source},
        driver, prelude,
        sandbox::Limits,
    },
    model::{
        cause::Cause,
        ids::{Digest, ProjectName},
        step::{Branch, CallKey, Outcome, Request, Target, Verb},
    },
    ports::program::{
        Diagnostic, Loaded, Opening, Past, Plugin, PluginRequest, PluginTurn, Program, Programs, Sink, Turn,
    },
};

/// The projects of a simulation.
pub(super) struct SimulatedPrograms {
    outside: Outside,
    loaded: Vec<Loaded>,
    /// The hooks in Lua, where that is what they are written in.
    lua: Option<Arc<Bundle>>,
}

impl Programs for SimulatedPrograms {
    fn load(&self) -> Result<Vec<Loaded>, Vec<Diagnostic>> {
        Ok(self.loaded.clone())
    }

    fn pin(&self, _loaded: &Loaded) -> std::io::Result<()> {
        Ok(())
    }

    fn sweep(&self, _keep: &BTreeSet<Digest>) -> std::io::Result<usize> {
        Ok(0)
    }

    fn open(&self, _code: &Digest, _project: &ProjectName, seed: u64, sink: Sink) -> Result<Box<dyn Program>, Cause> {
        match &self.lua {
            Some(bundle) => driver::open_in_order(Arc::clone(bundle), seed, Limits::default(), sink),
            None => Ok(Box::new(RustProgram { calls: BTreeMap::new(), sink })),
        }
    }

    fn plugin(
        &self,
        _code: &Digest,
        project: &ProjectName,
        function: &str,
        input: Value,
    ) -> Result<Box<dyn Plugin>, Cause> {
        let (project, function) = (project.clone(), function.to_owned());
        Ok(Box::new(RustPlugin { outside: self.outside.clone(), project, function, input }))
    }
}

/// A step of a hook.
struct Ask {
    verb: Verb,
    target: Target,
    args: Value,
}

/// What a hook does, and whether it leaves something to be undone when it fails.
struct Hook {
    steps: Vec<Ask>,
    returns: Value,
    undo: bool,
}

/// The hook `function` with its input.
fn hook(function: &str, undoing: bool, input: &Value) -> Hook {
    let on = |host: &Value| host["id"].as_str().and_then(|id| id.parse().ok()).map_or(Target::Local, Target::Host);
    let sh = |target: Target, command: &str| Ask { verb: Verb::Sh, target, args: json!({ "command": command }) };
    let patient = |target: Target, command: &str| Ask {
        verb: Verb::Sh,
        target,
        args: json!({ "command": command, "retries": 1, "backoff": "1s", "timeout": "2m" }),
    };
    let plain = |steps| Hook { steps, returns: Value::Null, undo: false };
    let host = || on(&input["host"]);
    let first = || on(&input["deployment"]["hosts"][0]);
    if undoing {
        return plain(vec![sh(host(), "undo")]);
    }
    match function.rsplit('/').next().unwrap_or_default() {
        "setup" => plain(vec![sh(Target::Local, "setup")]),
        "cleanup" => plain(vec![sh(Target::Local, "cleanup")]),
        "run" => plain(vec![sh(Target::Local, "test"), sh(Target::Local, "test more")]),
        "prepare" => plain(vec![patient(host(), "prepare")]),
        "before" => plain(vec![sh(first(), "migrate")]),
        "before_wave" => plain(vec![sh(on(&input["wave"]["hosts"][0]), "announce")]),
        "after_wave" => plain(vec![sh(on(&input["wave"]["hosts"][0]), "look")]),
        "drain" => plain(vec![sh(host(), "drain")]),
        "undrain" => plain(vec![sh(host(), "undrain")]),
        "deploy" => Hook {
            steps: vec![
                sh(host(), "stop"),
                Ask { verb: Verb::Sleep, target: Target::Local, args: json!({ "duration": "500ms" }) },
                sh(host(), "deploy"),
            ],
            returns: Value::Null,
            undo: true,
        },
        "verify" => plain(vec![sh(Target::Local, "verify")]),
        "rollback_safe" => {
            let schema = input["release"]["message"].as_str().is_some_and(|message| message.contains("schema"));
            Hook { returns: json!({ "safe": !schema, "reason": "the schema changed" }), ..plain(Vec::new()) }
        }
        "after" => plain(vec![sh(first(), "after")]),
        _ => plain(Vec::new()),
    }
}

struct Call {
    hook: Hook,
    /// How many of its steps have ended.
    done: usize,
}

impl Call {
    /// What it does next.
    fn turn(&self) -> Turn {
        let Some(ask) = self.hook.steps.get(self.done) else { return Turn::Return(self.hook.returns.clone()) };
        let before = self.hook.steps.iter().take(self.done).filter(|step| step.verb == ask.verb).count();
        Turn::Requests(vec![Request {
            branch: Branch::top(),
            verb: ask.verb,
            n: u32::try_from(before).unwrap_or(0) + 1,
            target: ask.target.clone(),
            args: ask.args.clone(),
            at: format!("shop.lua:{}", self.done + 1),
        }])
    }

    fn raised(&self, outcome: &Outcome) -> Option<Turn> {
        outcome.cause().map(|cause| Turn::Raised { cause: cause.clone(), undos: self.undos() })
    }

    fn undos(&self) -> u32 {
        u32::from(self.hook.undo && self.done > 0)
    }
}

struct RustProgram {
    calls: BTreeMap<CallKey, Call>,
    sink: Sink,
}

impl RustProgram {
    fn tell(&mut self, key: &CallKey, turn: Turn) {
        if !matches!(turn, Turn::Requests(_)) {
            self.calls.remove(key);
        }
        (self.sink)(key, turn);
    }
}

impl Program for RustProgram {
    fn call(&mut self, key: &CallKey, opening: Opening) {
        let hook = hook(&opening.function, key.undone().is_some(), &opening.input);
        let mut call = Call { hook, done: 0 };
        let mut turn = None;
        for past in &opening.past {
            if let Past::Done { outcome, .. } = past {
                turn = call.raised(outcome);
                call.done += 1;
            }
        }
        let turn = turn.unwrap_or_else(|| call.turn());
        self.calls.insert(key.clone(), call);
        self.tell(key, turn);
    }

    fn resume(&mut self, key: &CallKey, _branch: &Branch, outcome: &Outcome) {
        let Some(call) = self.calls.get_mut(key) else { return };
        let raised = call.raised(outcome);
        call.done += 1;
        let turn = raised.unwrap_or_else(|| call.turn());
        self.tell(key, turn);
    }

    fn end(&mut self, key: &CallKey, cause: Cause) {
        if let Some(call) = self.calls.get(key) {
            let undos = call.undos();
            self.tell(key, Turn::Ended { cause, undos });
        }
    }

    fn beat(&mut self, _: crate::lifecycle::pulse::Beat) {}
}

struct RustPlugin {
    outside: Outside,
    project: ProjectName,
    function: String,
    input: Value,
}

fn turn(done: Result<Value, Cause>) -> PluginTurn {
    match done {
        Ok(value) => PluginTurn::Return(value),
        Err(cause) => PluginTurn::Raised(cause),
    }
}

impl Plugin for RustPlugin {
    fn start(&mut self) -> PluginTurn {
        let parts: Vec<&str> = self.function.split('/').collect();
        let done = match parts.as_slice() {
            // It takes a while, see `Lookups`.
            ["discovery", ..] => {
                let args = json!({ "name": "hosts", "type": "A" });
                return PluginTurn::Request(PluginRequest { what: "dns".to_owned(), args });
            }
            ["alarms", _, _, "cause"] => self.outside.measure(&self.input),
            ["alarms" | "notify", ..] => self.outside.letter(&self.function, &self.input["message"]),
            _ => Err(Cause::new("lua_error", format!("there is no {}", self.function))),
        };
        turn(done)
    }

    fn resume(&mut self, _outcome: &Outcome) -> PluginTurn {
        let environment = self.function.split('/').nth(1).unwrap_or_default();
        turn(self.outside.discover(&self.project, environment))
    }
}

/// The code of every simulated project.
pub(super) fn code() -> Digest {
    Digest::of(b"the hooks of sim::program")
}

fn in_lua() -> Bundle {
    let entry = Bundle::entry_of("shop");
    let file = Source::new("projects/shop.lua".to_owned(), include_str!("shop.lua").to_owned());
    Bundle { prelude: prelude::VERSION.to_owned(), files: BTreeMap::from([(entry.clone(), file)]), entry }
}

/// Programs for a life of the daemon.
pub(super) fn programs(outside: &Outside, loaded: Vec<Loaded>) -> Arc<dyn Programs> {
    let lua = (outside.state().scenario.language == Language::Lua).then(|| Arc::new(in_lua()));
    Arc::new(SimulatedPrograms { outside: outside.clone(), loaded, lua })
}
