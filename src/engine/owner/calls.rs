//! The calls of a run and their steps: what their Lua asks for is begun, tried again and answered, and a call is ended from outside.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{LINGER, Message, Owner, turns};
use crate::{
    engine::{actions::Job, history, steps},
    model::{
        canonical,
        cause::Cause,
        decide,
        event::{CallResult, Event},
        ids::Seq,
        run::Step,
        step::{CallKey, Outcome, Place, Request, StepKey, Target, Verb},
    },
    ports::{
        blobs::Hold,
        journal::Ticket,
        program::{Opening, Program, Turn},
    },
    time::Stamp,
};

/// A step as the owner holds it: whose answer it is, and how to end it.
pub(super) struct OpenStep {
    request: Request,
    /// The attempt under way; `None` between attempts.
    running: Option<CancellationToken>,
}

/// A call that is being ended from outside.
pub(super) struct Ending {
    cause: Cause,
    /// Running steps are ended too, not finished.
    kill: bool,
    vm: Vm,
}

/// What has become of its Lua.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vm {
    /// It may still be told what its steps come to.
    Lives,
    /// It has been asked to end, after everything it was told.
    Asked,
    /// It has ended and left so many undos.
    Gone(u32),
}

/// What is known of a step whose task panicked: nothing. Without an answer its call would wait for ever.
fn panicked() -> Outcome {
    Outcome::Unknown { cause: Cause::new("internal", "the step's task panicked; this is a bug of phased") }
}

impl Owner {
    pub(super) fn turn(&mut self, key: &CallKey, turn: Turn) {
        if !self.run.calls.contains_key(key) {
            // The call was ended from outside while its turn was on the way here.
            return;
        }
        match turn {
            Turn::Requests(requests) => requests.into_iter().for_each(|request| self.request(key, request)),
            Turn::Return(value) => self.returned(key, CallResult::Returned(value), 0),
            Turn::Raised { cause, undos } => {
                match self.ending.get(key).map(|ending| ending.cause.clone()) {
                    // What it makes of its last answer while it is being ended is not why it ended.
                    Some(cause) => self.returned(key, CallResult::Ended(cause), undos),
                    None => self.raised(key, &cause, undos),
                }
            }
            Turn::Ended { cause, undos } => {
                // Its own, not one for which all calls of the run are being ended.
                let own = cause.facts.get("call").and_then(Value::as_str) == Some(key.as_str());
                let diverged = cause.code == "diverged" && own;
                if diverged && self.run.diverged.is_none() {
                    let cause = self.sessions.redact_cause(&cause);
                    tracing::error!(project = %self.run.header.project, run = %self.run.header.run, call = %key, %cause, "a replay does not agree with its journal");
                    self.append(Event::Diverged { key: key.clone(), cause });
                    self.let_go();
                }
                // What runs on a host is finished then, see `decide`.
                let kill = !diverged || !matches!(key.place(), Some(Place::Host { .. }));
                // What it leaves to be undone cannot be trusted either.
                let vm = Vm::Gone(if diverged { 0 } else { undos });
                match self.ending.get_mut(key) {
                    Some(ending) => ending.vm = vm,
                    None => self.begin_ending(key, Ending { cause, kill, vm }),
                }
                self.finish_ending(key);
            }
        }
    }

    /// A call failed. Where that may be because its host is no more, this is found out before.
    fn raised(&mut self, key: &CallKey, cause: &Cause, undos: u32) {
        let result = CallResult::Raised(self.sessions.redact_cause(cause));
        let end = Event::Return { key: key.clone(), result: result.clone(), undos };
        match Job::raised(&self.world, &self.run, key, cause, &end).filter(|_| !self.is_sharp()) {
            Some(job) => self.spawn(format!("raised {key}"), job),
            None => self.returned(key, result, undos),
        }
    }

    fn returned(&mut self, key: &CallKey, result: CallResult, undos: u32) {
        self.ending.remove(key);
        let mut result = result;
        if let CallResult::Raised(cause) | CallResult::Ended(cause) = &mut result {
            *cause = self.sessions.redact_cause(cause);
        }
        self.append(Event::Return { key: key.clone(), result, undos });
    }

    fn request(&mut self, call: &CallKey, request: Request) {
        let key = StepKey::new(call, &request.branch, request.verb.as_str(), request.n);
        if request.verb == Verb::Log {
            if !self.lines.remove(&key) {
                self.log(&key, &request.args);
            }
            return;
        }
        if self.resumed.remove(&key) {
            // It was begun before the daemon came back and goes on; the replay knows where it stands in the code.
            if let Some(open) = self.open.get_mut(&key) {
                open.request.at = request.at;
            }
            return;
        }
        if self.ending.contains_key(call) {
            // Nothing new is begun in a call that is being ended.
            return;
        }
        // What is stored and what is done is the same, also after a restart.
        let mut request = request;
        request.args = serde_json::from_str(&canonical::to_string(&request.args)).unwrap_or(request.args);
        let args = request.args.clone();
        self.open.insert(key.clone(), OpenStep { request, running: None });
        self.begin(&key, 1, args);
    }

    fn log(&self, key: &StepKey, args: &Value) {
        self.note(key, steps::values::bytes_of(args.get("text").unwrap_or(&Value::Null)));
    }

    pub(super) fn note(&self, key: &StepKey, bytes: Vec<u8>) {
        self.sessions.note(&self.run.header.run, key, 1, bytes);
    }

    /// Begins an attempt: first the record, then, once it is on disk, the effect.
    fn begin(&mut self, key: &StepKey, attempt: u32, args: Value) {
        let Some(open) = self.open.get(key) else { return };
        let begin = Event::Begin {
            key: key.clone(),
            attempt,
            token: key.token(&self.run.header.run, attempt),
            args,
            host: history::unsaid(key, &open.request.target),
            line: open.request.at.clone(),
        };
        if let Some(ticket) = self.append(begin) {
            self.perform(key, attempt, None, Some(ticket));
        }
    }

    /// Performs an attempt, or goes on with one that was `resumed`, begun then by an earlier life.
    fn perform(&mut self, key: &StepKey, attempt: u32, resumed: Option<Stamp>, ticket: Option<Ticket>) {
        let Some(open) = self.open.get_mut(key) else { return };
        // What leaves something on this machine: processes, or what it keeps of a command.
        let here = open.request.target == Target::Local;
        if match open.request.verb {
            Verb::Sh | Verb::Exec | Verb::Write | Verb::ArtifactPath => here,
            Verb::Download => true,
            _ => false,
        } {
            self.loose = Some(key.call());
        }
        let cancel = CancellationToken::new();
        open.running = Some(cancel.clone());
        let job = steps::Job {
            world: Arc::clone(&self.world),
            sessions: Arc::clone(&self.sessions),
            run: self.run.header.run.clone(),
            key: key.clone(),
            attempt,
            token: key.token(&self.run.header.run, attempt),
            request: open.request.clone(),
            place: steps::Place::of(&self.run, key, &open.request),
            resumed,
            stop: cancel,
        };
        let sender = self.sender.clone();
        let stopping = self.world.tasks.stopping();
        let (clock, asks) = (Arc::clone(&self.world.clock), open.request.verb == Verb::Http);
        // Until the record names what it stores, no sweep may take that.
        let hold = (open.request.verb == Verb::Artifact).then(|| self.world.blobs.hold());
        let key = key.clone();
        self.world.tasks.spawn(format!("run {} {key}", self.run.header.run), async move {
            if let Some(ticket) = ticket
                && ticket.synced().await.is_err()
            {
                // The record is not on disk, so nothing may happen; the owner learns of the journal by its next append.
                return;
            }
            // The daemon goes down: a command goes on, and the next start finds it. A request would be lost.
            let leaving = async {
                stopping.cancelled().await;
                if asks {
                    clock.sleep(LINGER).await;
                }
            };
            tokio::select! {
                biased;
                () = leaving => {}
                outcome = AssertUnwindSafe(steps::perform(job)).catch_unwind() => {
                    let outcome = outcome.unwrap_or_else(|_| panicked());
                    let _owner_gone = sender.send(Message::StepDone { key, attempt, outcome, hold }).await;
                }
            }
        });
    }

    /// Lets go of `hold` once what was written since `before` is on disk: the record that names the blob.
    pub(super) fn keep(&self, hold: Option<Hold>, before: Seq) {
        let (Some(hold), Some(ticket)) = (hold, self.last_ticket.clone().filter(|_| self.seq > before)) else { return };
        self.world.tasks.spawn("blob named", async move {
            let _failed_disk_says_so = ticket.synced().await;
            drop(hold);
        });
    }

    pub(super) fn retry(&mut self, key: &StepKey) -> bool {
        if self.ending.contains_key(&key.call()) || !self.open.contains_key(key) {
            return false;
        }
        let step = self.run.calls.get(&key.call()).and_then(|call| call.steps.get(key));
        let Some((attempt, args)) = step.map(|step| (step.attempt + 1, step.args.clone())) else { return false };
        self.begin(key, attempt, args);
        true
    }

    pub(super) fn step_done(&mut self, key: &StepKey, attempt: u32, outcome: Outcome) {
        let call = key.call();
        let Some(open) = self.open.get_mut(key).filter(|_| self.run.calls.contains_key(&call)) else { return };
        open.running = None;
        let last = decide::is_last(&open.request.args, attempt, &outcome) || self.ending.contains_key(&call);
        self.append(Event::Done { key: key.clone(), attempt, outcome: outcome.clone(), last });
        if !last {
            return;
        }
        let Some(open) = self.open.remove(key) else { return };
        match outcome {
            // Ended from outside by an earlier life, which did not get as far as saying so: its call goes no further.
            Outcome::Cut { cause } if !self.ending.contains_key(&call) => {
                self.begin_ending(&call, Ending { cause, kill: true, vm: Vm::Lives });
            }
            Outcome::Cut { .. } => {}
            // Also told to a call that is being ended, as a replay tells it: what it leaves to be undone may come of it.
            outcome => {
                if let Ok(program) = self.program(&call) {
                    program.resume(&call, &open.request.branch, &outcome);
                }
            }
        }
        if self.ending.contains_key(&call) {
            self.finish_ending(&call);
        }
    }

    /// Goes on with a step that an earlier life began: its replay will come by it.
    pub(super) fn go_on(&mut self, key: StepKey, step: Step) {
        let Some((verb, n)) = key.verb() else { return };
        let target = history::target(&key, step.host.as_ref());
        let request = Request { branch: key.branch(), verb, n, target, args: step.args, at: step.line };
        self.open.insert(key.clone(), OpenStep { request, running: None });
        self.resumed.insert(key.clone());
        // Between two attempts: the next one is begun when it is due.
        if step.failed.is_none() {
            self.perform(&key, step.attempt, Some(step.begun), None);
        }
    }

    /// Whether a request to somewhere is under way.
    pub(super) fn asks(&self) -> bool {
        self.open.values().any(|open| open.request.verb == Verb::Http && open.running.is_some())
    }

    /// Ends a call from outside; its running steps are ended first, or finished.
    pub(super) fn end_call(&mut self, key: &CallKey, cause: Cause, kill: bool) -> bool {
        match self.ending.get_mut(key) {
            Some(ending) if ending.kill || !kill => return false,
            Some(ending) => ending.kill = true,
            None => {
                self.begin_ending(key, Ending { cause, kill, vm: Vm::Lives });
                return self.finish_ending(key);
            }
        }
        self.kill_steps(key);
        self.finish_ending(key)
    }

    fn begin_ending(&mut self, key: &CallKey, ending: Ending) {
        let kill = ending.kill;
        self.ending.insert(key.clone(), ending);
        if kill {
            self.kill_steps(key);
        }
    }

    fn kill_steps(&self, key: &CallKey) {
        for (_, open) in self.open.iter().filter(|(step, _)| step.call() == *key) {
            if let Some(running) = &open.running {
                running.cancel();
            }
        }
    }

    /// Completes the end of a call once none of its steps runs any more and its Lua has ended; true when it has.
    fn finish_ending(&mut self, key: &CallKey) -> bool {
        let steps: Vec<StepKey> = self.open.keys().filter(|step| step.call() == *key).cloned().collect();
        if steps.iter().any(|step| self.open.get(step).is_some_and(|open| open.running.is_some())) {
            return false;
        }
        let Some(Ending { cause, vm, .. }) = self.ending.get(key) else { return false };
        let (cause, vm) = (cause.clone(), *vm);
        for step in steps {
            // Between two attempts: the next one never begins.
            self.open.remove(&step);
            let attempt = self.run.calls.get(key).and_then(|call| call.steps.get(&step)).map(|step| step.attempt);
            if let Some(attempt) = attempt {
                let outcome = Outcome::Cut { cause: cause.clone() };
                self.append(Event::Done { key: step, attempt, outcome, last: true });
            }
        }
        match vm {
            Vm::Gone(undos) => {
                self.returned(key, CallResult::Ended(cause), undos);
                true
            }
            Vm::Asked => false,
            Vm::Lives => {
                if let Some(ending) = self.ending.get_mut(key) {
                    ending.vm = Vm::Asked;
                }
                // Without a program its end is on the way.
                if let Ok(program) = self.program(key) {
                    program.end(key, cause);
                }
                false
            }
        }
    }

    /// The program that a call belongs to: the run's own, or that of what is gone back to.
    fn program(&mut self, key: &CallKey) -> Result<&mut dyn Program, Cause> {
        let number = match key.place() {
            Some(Place::Deployment { deployment, .. } | Place::Host { deployment, .. }) => Some(deployment),
            _ => None,
        };
        let header = &self.run.header;
        let deployment = number.and_then(|n| self.run.deployment(n));
        let code = deployment.map_or(&header.code, |deployment| deployment.code(&self.run));
        if !self.programs.contains_key(code) {
            let sink = turns(self.sender.clone());
            let program = self.world.programs.open(code, &header.project, header.seed, sink)?;
            self.programs.insert(code.clone(), program);
        }
        match self.programs.get_mut(code) {
            Some(program) => Ok(&mut **program),
            None => Err(Cause::new("internal", "a program is not there that was just opened")),
        }
    }

    /// Starts a call's Lua, or ends the call if there is none to be had.
    pub(super) fn call(&mut self, key: &CallKey, opening: Opening) {
        match self.program(key) {
            Ok(program) => program.call(key, opening),
            Err(cause) => {
                tracing::error!(project = %self.run.header.project, run = %self.run.header.run, call = %key, %cause, "the code of a call cannot be opened");
                let (sender, key) = (self.sender.clone(), key.clone());
                self.world.tasks.spawn("no code", async move {
                    let ended = Turn::Ended { cause, undos: 0 };
                    let _owner_gone = sender.send(Message::Turn(key, ended)).await;
                });
            }
        }
    }
}
