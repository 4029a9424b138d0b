//! Whole programs, driven as the engine drives them.

mod determinism;
mod discoveries;
mod plugins;
mod replays;
mod runaways;
mod steps;

use std::sync::mpsc;

use serde_json::{Value as Json, json};

use super::*;
use crate::lua::bundle::Source;

/// The project around a function `run` of its one stage; `modules` are further files.
pub(super) fn bundle(text: &str, modules: &[(&str, &str)]) -> Arc<Bundle> {
    let file = |path: &str, text: &str| Source::new(path.to_owned(), text.to_owned());
    let mut files = BTreeMap::from([("projects/shop".to_owned(), file("projects/shop.lua", text))]);
    for (name, text) in modules {
        files.insert((*name).to_owned(), file(&format!("{}.lua", name.replace('.', "/")), text));
    }
    Arc::new(Bundle { entry: "projects/shop".to_owned(), prelude: crate::lua::prelude::VERSION.to_owned(), files })
}

/// A project whose stage and deploy and verify all run `body`; line 2 is its first.
pub(super) fn project(body: &str) -> String {
    format!(
        "local function f(run, release)\n{body}\nend\n\
         return phased.project {{ test = {{ {{ \"unit\", run = f }} }}, environments = {{ {{ \"p\", deploy = f, verify = f }} }} }}"
    )
}

pub(super) fn input() -> Json {
    let host =
        |id: &str| json!({"id": id, "name": format!("name-{id}"), "address": "10.0.0.1", "labels": {"role": "web"}});
    json!({
        "run": {"id": "01k", "project": "shop", "dir": "/work", "reason": null},
        "release": {"id": "a1b2c3d4e5f6", "revision": "a1b2", "short": "a1b2c3d", "branch": "main", "author": "Eve",
                    "message": "m", "committed_at": "2026", "previous": {"id": "old", "revision": "0ld"},
                    "changed_paths": ["db/migrate/1.sql", "src/a.js"], "artifacts": {
                        "tree": {"$artifact": {"name": "tree", "kind": "tree", "sha256": "aa", "size": 5, "blob": "bb"}},
                        "image": {"$artifact": {"name": "image", "kind": "value", "value": "sha256:ab"}}}},
        "host": host("h/1"),
        "deployment": {"id": "01k.1", "run": "01k", "environment": "p", "hosts": [host("h/1"), host("h2")]},
    })
}

/// A new call of `function`.
pub(super) fn opening(function: &str) -> Opening {
    Opening { function: function.to_owned(), input: input(), ..Opening::default() }
}

/// A program and its turns.
pub(super) struct Driving {
    program: Box<dyn Program>,
    turns: mpsc::Receiver<(CallKey, Turn)>,
    pub(super) key: CallKey,
}

impl Driving {
    pub(super) fn of(bundle: Arc<Bundle>, limits: Limits) -> Self {
        let (told, turns) = mpsc::channel();
        let sink: Sink = Box::new(move |key, turn| {
            let _nobody_listens = told.send((key.clone(), turn));
        });
        let program = open(bundle, 7, limits, sink, Stall::default()).unwrap();
        Driving { program, turns, key: CallKey::stage("unit", "run") }
    }

    pub(super) fn new(body: &str) -> Self {
        Driving::of(bundle(&project(body), &[]), Limits::default())
    }

    pub(super) fn call(&mut self, function: &str) -> Turn {
        let key = self.key.clone();
        self.program.call(&key, opening(function));
        self.turn()
    }

    pub(super) fn start(&mut self) -> Turn {
        self.call("test/unit/run")
    }

    pub(super) fn turn(&mut self) -> Turn {
        self.turns.recv_timeout(std::time::Duration::from_secs(60)).expect("a turn").1
    }

    pub(super) fn answer(&mut self, branch: &Branch, outcome: &Outcome) {
        let key = self.key.clone();
        self.program.resume(&key, branch, outcome);
    }

    /// Answers the only open request.
    pub(super) fn resume(&mut self, outcome: &Outcome) -> Turn {
        self.answer(&Branch::top(), outcome);
        self.turn()
    }

    /// Whether no turn comes: asked by letting another call come after.
    pub(super) fn is_silent(&mut self) -> bool {
        let other = CallKey::stage("other", "run");
        self.program.call(&other, opening("test/none/run"));
        let (key, _) = self.turns.recv_timeout(std::time::Duration::from_secs(60)).expect("a turn");
        key == other
    }
}

/// Every step succeeds with what it was asked for; the requests as `branch verb#n target args`, and how it ended.
pub(super) fn through(driving: &mut Driving, function: &str) -> (Vec<String>, Turn) {
    let mut asked = Vec::new();
    let mut open = Vec::new();
    let mut turn = driving.call(function);
    loop {
        match turn {
            Turn::Requests(requests) => {
                for request in requests {
                    let target = match &request.target {
                        Target::Local => "local".to_owned(),
                        Target::Host(id) => id.to_string(),
                    };
                    asked.push(format!(
                        "{} {}#{} {target} {}",
                        request.branch.as_str(),
                        request.verb.as_str(),
                        request.n,
                        crate::model::canonical::to_string(&request.args)
                    ));
                    // The log is answered already.
                    if request.verb != Verb::Log {
                        open.push(request);
                    }
                }
            }
            end => return (asked, end),
        }
        // One answer may bring no turn: others are still open then.
        turn = loop {
            if open.is_empty() {
                break driving.turn();
            }
            let request = open.remove(0);
            let value = json!({"stdout": request.args["command"], "stderr": "", "code": 0});
            driving.answer(&request.branch, &Outcome::Ok(value));
            match driving.turns.recv_timeout(std::time::Duration::from_millis(if open.is_empty() {
                60_000
            } else {
                200
            })) {
                Ok((_, turn)) => break turn,
                Err(_) => assert!(!open.is_empty(), "no turn"),
            }
        };
    }
}

/// What `body` does when every step succeeds.
pub(super) fn run(body: &str) -> (Vec<String>, Turn) {
    through(&mut Driving::new(body), "test/unit/run")
}

/// What `body` returns; it takes no step.
pub(super) fn returned(body: &str) -> Json {
    match Driving::new(body).start() {
        Turn::Return(value) => value,
        other => panic!("{body}\n{other:?}"),
    }
}

/// What `body` raises; it takes no step.
pub(super) fn raised(body: &str) -> Cause {
    match Driving::new(body).start() {
        Turn::Raised { cause, .. } => cause,
        other => panic!("{body}\n{other:?}"),
    }
}

pub(super) fn failed(message: &str) -> Outcome {
    Outcome::Failed {
        cause: Cause::new("exit", message).with("exit", 3),
        value: json!({"stdout": "out", "stderr": "err", "code": 3}),
    }
}

#[test]
fn a_long_queue_of_calls_is_no_standstill() {
    let mut driving = Driving::new("local n = 0; for i = 1, 3000000 do n = n + i end; return n");
    const CALLS: usize = 12;
    for n in 0..CALLS {
        driving.program.call(&CallKey::stage(&format!("s{n}"), "run"), opening("test/unit/run"));
    }
    let pulse = crate::lifecycle::pulse::Pulse::new();
    driving.program.beat(pulse.beat("lua"));
    while !pulse.missing().is_empty() {
        std::thread::yield_now();
    }
    let done = driving.turns.try_iter().count();
    assert!(done < CALLS, "it was let go of after all {done} calls only");
    for _ in done..CALLS {
        assert!(matches!(driving.turn(), Turn::Return(_)));
    }
    // A thread that has ended holds nobody up.
    let Driving { program, .. } = driving;
    drop(program);
}
