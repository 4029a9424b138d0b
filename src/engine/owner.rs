//! The one task that owns a run: it takes messages, appends facts, folds them, resumes the call concerned and asks `decide`.
//! It never waits for work: each action waits in a task of its own for its record to be on disk.

mod calls;
pub(super) mod change;
mod leases;
pub(super) mod message;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::{
    calls::{Ending, OpenStep},
    message::further,
};
pub(super) use self::{
    change::Change,
    message::{Message, Progress, turns},
};

use super::{actions, doors::Doors, maintenance::Gate, redact::Redactor, sessions::Sessions, world::World};
use crate::{
    model::{
        analysis::{Assessment, Verdict},
        cause::Cause,
        decide::{self, Action, decide},
        event::{CallResult, Event, Record},
        ids::{Digest, EnvironmentName, Epoch, HostId, Seq},
        run::{self, Run, Step},
        step::{Branch, CallKey, Place, StepKey},
    },
    ports::{
        journal::Ticket,
        program::{Opening, Program, Turn},
    },
};

/// How long a request under way may take when the daemon goes down: within the five seconds that all of it has.
const LINGER: Duration = Duration::from_secs(3);

/// The action that ends what commands have left running.
const LEFTOVERS: &str = "leftovers";

/// Messages between two decisions.
const CROWD: usize = 64;

/// What is needed besides the fold to go on with a run that an earlier life began.
pub(super) struct Taken {
    /// How each open call began, and what it did since.
    pub(super) openings: BTreeMap<CallKey, Opening>,
    /// Every secret it has used.
    pub(super) secrets: Redactor,
    /// Lines of its log that are written.
    pub(super) lines: BTreeSet<StepKey>,
}

/// How an owner ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Left {
    /// The run is over and control knows.
    Finished,
    /// The journal cannot be written, or a fact was refused: nothing was done after that.
    Broken(String),
    /// The daemon goes down.
    Stopping,
}

pub(super) struct Owner {
    world: Arc<World>,
    run: Run,
    seq: Seq,
    epoch: Epoch,
    /// The run's own code, and that of the releases it goes back to, by need.
    programs: BTreeMap<Digest, Box<dyn Program>>,
    inbox: mpsc::Receiver<Message>,
    sender: mpsc::Sender<Message>,
    sessions: Arc<Sessions>,
    doors: Arc<Doors>,
    /// Keeps new things from beginning during maintenance.
    gate: Gate,
    /// The call whose commands ran here last: what they may have left running is ended before anything follows.
    loose: Option<CallKey>,
    /// Actions under way, by name.
    busy: BTreeMap<String, CancellationToken>,
    open: BTreeMap<StepKey, OpenStep>,
    /// Calls being ended from outside.
    ending: BTreeMap<CallKey, Ending>,
    /// Steps that an earlier life began and a replay has not come by yet: they go on already.
    resumed: BTreeSet<StepKey>,
    /// Lines of the log that an earlier life has written: a replay comes by them again.
    lines: BTreeSet<StepKey>,
    last_ticket: Option<Ticket>,
    broken: Option<String>,
    finished: bool,
    /// Tells who waits for slots how far the run is.
    progress: crate::lifecycle::watch::Sender<Progress>,
}

/// What the log says of a call that did not end well, or a host that did not get well: where people look is where it stands.
fn told(run: &Run, event: &Event) -> Option<(StepKey, Vec<u8>)> {
    let on_host = |deployment: u32, host: &HostId| {
        let environment = &run.deployment(deployment)?.environment;
        Some(CallKey::host(environment.as_str(), deployment, host.as_str(), "deploy"))
    };
    let line = |call: &CallKey, verb: &str| StepKey::new(call, &Branch::top(), verb, 1);
    let (call, what, cause) = match event {
        Event::HostMet { deployment, host, key: Some(key), .. } => {
            let name = &run.deployment(*deployment)?.host(host)?.host.name;
            let text = format!(
                "{name} was met for the first time, and its host key {key} is kept: compare it with the host's own"
            );
            return Some((line(&on_host(*deployment, host)?, "met"), text.into_bytes()));
        }
        Event::Return { key, result, .. } => (key.clone(), "ended", result.cause()?),
        Event::HealthVerdict { deployment, host, unhealthy: Some(cause), .. } => {
            (on_host(*deployment, host)?, "health", cause)
        }
        _ => return None,
    };
    let at = cause.facts.get("at").and_then(Value::as_str).map(|at| format!(" [{at}]")).unwrap_or_default();
    Some((line(&call, "end"), format!("{what}: {} ({}){at}", cause.message, cause.code).into_bytes()))
}

/// The host that an event may have brought to rest.
fn host_of(event: &Event) -> Option<(u32, HostId)> {
    match event {
        Event::HealthVerdict { deployment, host, .. } => Some((*deployment, host.clone())),
        Event::Return { key, .. } => match key.place()? {
            Place::Host { deployment, host, .. } => Some((deployment, host)),
            _ => None,
        },
        _ => None,
    }
}

/// Whether it says that a call failed.
fn is_failure(event: &Event) -> bool {
    matches!(event, Event::Return { result: CallResult::Raised(_), .. })
}

/// What an owner starts from.
pub(super) struct Begin {
    pub(super) world: Arc<World>,
    pub(super) doors: Arc<Doors>,
    pub(super) gate: Gate,
    pub(super) run: Run,
    /// The number of the journal's last record.
    pub(super) seq: Seq,
    pub(super) epoch: Epoch,
    pub(super) program: Box<dyn Program>,
    pub(super) channel: (mpsc::Sender<Message>, mpsc::Receiver<Message>),
    pub(super) progress: crate::lifecycle::watch::Sender<Progress>,
    /// The ticket of the records that were written before.
    pub(super) ticket: Option<Ticket>,
}

impl Owner {
    pub(super) fn new(begin: Begin) -> Self {
        let Begin { world, doors, gate, run, seq, epoch, program, channel: (sender, inbox), progress, ticket } = begin;
        let (project, id) = (run.header.project.clone(), run.header.run.clone());
        let sessions = Arc::new(Sessions::new(Arc::clone(&world), project, id, sender.clone()));
        sessions.share(&run.header.run);
        let programs = BTreeMap::from([(run.header.code.clone(), program)]);
        Owner {
            sessions,
            world,
            doors,
            gate,
            run,
            seq,
            epoch,
            programs,
            inbox,
            sender,
            loose: None,
            busy: BTreeMap::new(),
            open: BTreeMap::new(),
            ending: BTreeMap::new(),
            resumed: BTreeSet::new(),
            lines: BTreeSet::new(),
            last_ticket: ticket,
            broken: None,
            finished: false,
            progress,
        }
    }

    /// Runs until the run is over, the journal fails, or the daemon goes down.
    pub(super) async fn run(mut self) -> Left {
        let stopping = self.world.tasks.stopping();
        let clock = Arc::clone(&self.world.clock);
        // Kept from turn to turn: the leases are read when control has changed, and not for every message.
        let mut believed = Vec::new();
        let mut lost = std::pin::pin!(leases::lost(Arc::clone(&self.world.leases), Vec::new()));
        let left = loop {
            let wake = self.settle();
            self.report_progress();
            self.gate.report(&self.run, self.busy.keys(), self.last_ticket.as_ref());
            if let Some(why) = self.broken.take() {
                break Left::Broken(why);
            }
            if self.finished {
                break Left::Finished;
            }
            let wake = wake.unwrap_or(Duration::from_secs(3600));
            let believes = leases::believed(&self.run);
            if believes != believed {
                lost.set(leases::lost(Arc::clone(&self.world.leases), believes.clone()));
                believed = believes;
            }
            tokio::select! {
                biased;
                () = stopping.cancelled() => {
                    self.linger().await;
                    break Left::Stopping;
                }
                message = self.inbox.recv() => match message {
                    Some(message) => self.handle_crowd(message),
                    None => break Left::Stopping,
                },
                // What was held back is decided on again.
                () = self.gate.changed() => {}
                // Somebody took an environment away, now or while the daemon was gone.
                deployment = &mut lost => {
                    believed.clear();
                    lost.set(leases::lost(Arc::clone(&self.world.leases), Vec::new()));
                    tracing::error!(project = %self.run.header.project, run = %self.run.header.run, deployment, "its environment was taken away");
                    self.append(Event::LeaseLost { deployment });
                }
                () = clock.sleep(wake) => {}
            }
        };
        // What still waits here is let go of. Running steps are not cancelled: that would stop their commands.
        self.busy.values().for_each(CancellationToken::cancel);
        self.sessions.close().await;
        left
    }

    /// The daemon goes down. What has ended is still written, so that nobody need ask about it; requests under way, about which
    /// nobody could be asked, are given a moment.
    async fn linger(&mut self) {
        let clock = Arc::clone(&self.world.clock);
        let mut late = clock.sleep(LINGER);
        loop {
            let message = if self.asks() {
                tokio::select! {
                    biased;
                    message = self.inbox.recv() => message,
                    () = &mut late => None,
                }
            } else {
                self.inbox.try_recv().ok()
            };
            match message {
                Some(message @ Message::StepDone { .. }) => self.handle(message),
                // Whoever asked for something else is told by the end of the connection, or asks the next life.
                Some(_) => {}
                None => return,
            }
        }
    }

    fn report_progress(&mut self) {
        let progress = match (&self.run.end, self.run.deployments.is_empty()) {
            (Some(_), _) => Progress::Over,
            (None, false) if self.run.passed.is_some() => Progress::Deploying,
            // One that is past its tests just now: see `tested`.
            (None, _) => Progress::Testing,
        };
        further(&self.progress, progress);
    }

    /// The tests are over. The next run has its turn once control knows what this one has passed: the same commit would be built again.
    fn tested(&self, ticket: Ticket) {
        let (world, run, progress) = (Arc::clone(&self.world), self.run.clone(), self.progress.clone());
        self.world.tasks.spawn(format!("run {} tested", run.header.run), async move {
            super::ledger::tested(&world, &run, &ticket).await;
            further(&progress, Progress::Deploying);
        });
    }

    /// Does what is to be done until nothing more follows; says when to look again.
    fn settle(&mut self) -> Option<Duration> {
        self.gate.look();
        loop {
            if self.broken.is_some() {
                return None;
            }
            let decision = decide(&self.run, &self.world.clock.now());
            self.let_go_of_guards(&decision.actions);
            let mut changed = false;
            for action in decision.actions {
                changed |= self.act(action);
                if self.broken.is_some() {
                    return None;
                }
            }
            if !changed {
                return decision.wake_in;
            }
        }
    }

    /// Starts an action; true when the run changed by it at once.
    fn act(&mut self, action: Action) -> bool {
        let name = action.name();
        if name.as_ref().is_some_and(|name| self.busy.contains_key(name)) {
            return false;
        }
        // Also before it waits for the end of a maintenance: that may be a reboot.
        if self.busy.contains_key(LEFTOVERS) || self.follows(&action) {
            self.end_left();
            return false;
        }
        if self.gate.holds(&self.run, &action) {
            return false;
        }
        match action {
            Action::Append(event) => {
                if self.is_early(&event) {
                    return false;
                }
                self.append(event);
                true
            }
            Action::Call { key, function, input } => {
                self.append(Event::Call { key: key.clone(), function: function.clone(), input: input.clone() });
                if self.broken.is_none() {
                    self.call(&key, Opening { function, input, ..Opening::default() });
                }
                true
            }
            Action::Retry(key) => self.retry(&key),
            Action::EndCall { key, cause, kill } => self.end_call(&key, cause, kill),
            action @ (Action::Resolve
            | Action::Checkout
            | Action::Lease { .. }
            | Action::Plan { .. }
            | Action::Watch { .. }
            | Action::Look { .. }
            | Action::Guard { .. }
            | Action::LookOver { .. }
            | Action::Measure { .. }
            | Action::Undo(_)
            | Action::Finish) => {
                let Some(name) = name else { return false };
                if matches!(action, Action::Undo(_)) && self.busy.keys().any(|busy| busy.starts_with("undo ")) {
                    // Each reads the whole journal: one after the other.
                    return false;
                }
                if let Some(job) = actions::Job::of(&self.run, action, &self.doors) {
                    self.spawn(name, job);
                }
                false
            }
        }
    }

    /// Starts a task for `job`, which is busy until it says otherwise.
    fn spawn(&mut self, name: String, job: actions::Job) {
        let cancel = CancellationToken::new();
        if matches!(job, actions::Job::Watch { .. }) && self.is_sharp() {
            // Wished for before this watch, or by an earlier life.
            cancel.cancel();
        }
        self.busy.insert(name.clone(), cancel.clone());
        let context = actions::Context {
            world: Arc::clone(&self.world),
            sessions: Arc::clone(&self.sessions),
            name: name.clone(),
            sender: self.sender.clone(),
            cancel,
            ticket: self.last_ticket.clone(),
        };
        let task = format!("run {} {name}", self.run.header.run);
        let sender = self.sender.clone();
        self.world.tasks.spawn(task, async move {
            if AssertUnwindSafe(actions::perform(context, job)).catch_unwind().await.is_err() {
                // Tried again it would panic again.
                let _owner_gone = sender.send(Message::Finished(Err(format!("{name} panicked")))).await;
            }
        });
    }

    /// Whether `action` follows something whose commands may have left processes running: the next stage, the first deployment after the
    /// last one, the end.
    fn follows(&self, action: &Action) -> bool {
        let Some(loose) = &self.loose else { return false };
        let stage = |key: &CallKey| match key.place() {
            Some(Place::Stage { stage, .. }) => Some(stage),
            _ => None,
        };
        match action {
            Action::Call { key, .. } => stage(key).is_some_and(|next| stage(loose).is_some_and(|stage| stage != next)),
            Action::Append(Event::DeploymentCreated { .. }) => stage(loose).is_some(),
            Action::Append(event @ Event::End { .. }) => !self.is_early(event),
            _ => false,
        }
    }

    /// Ends what commands have left running here, if that is not being done already.
    fn end_left(&mut self) {
        if let Some(call) = self.loose.take() {
            let job = actions::Job::Leftovers { run: self.run.header.run.clone(), call };
            self.spawn(LEFTOVERS.to_owned(), job);
        }
    }

    /// An end waits for what is under way: its facts come before the end or not at all, and a lease that it is just being given can
    /// be given back. Whoever wants the end has cancelled it, so that is soon.
    fn is_early(&self, event: &Event) -> bool {
        match event {
            Event::End { .. } => !self.busy.is_empty(),
            Event::DeploymentEnded { deployment, .. } => {
                let own = ["lease", "plan", "guard", "look_over"].map(|action| format!("{action} {deployment}"));
                let of = self.run.deployment(*deployment).map(|of| &of.environment);
                let calls = of.map(|environment| format!("raised {environment}#{deployment}/"));
                let parts = ["watch", "look", "measure"].map(|action| format!("{action} {deployment} "));
                let for_parts: Vec<String> = parts.into_iter().chain(calls).collect();
                let is_own = |name: &String| own.contains(name) || for_parts.iter().any(|of| name.starts_with(of));
                self.busy.keys().any(is_own)
            }
            _ => false,
        }
    }

    /// Appends and folds a fact. A refused one breaks the run: what the disk does not know has not happened.
    fn append(&mut self, event: Event) -> Option<Ticket> {
        let record = Record { at: self.world.clock.now(), by: Arc::clone(&self.world.controller), event };
        let fired = self.fires(&record.event);
        if let Err(illegal) = self.run.next(&record) {
            tracing::error!(project = %self.run.header.project, run = %self.run.header.run, %illegal, "a decision made a fact that cannot follow; the run is left alone");
            self.broken = Some(illegal.to_string());
            return None;
        }
        let ended = matches!(&record.event, Event::DeploymentEnded { .. });
        // A fleet's connections are not kept until the run's end. One that leaves something to be undone is asked again at once.
        let fires = fired.is_none() && self.fires(&record.event).is_some();
        let told_of = match &record.event {
            Event::Measured { deployment, alarm, .. } if fires => Some((*deployment, *alarm)),
            _ => None,
        };
        let done_with = host_of(&record.event).filter(|(deployment, host)| {
            let host = self.run.deployment(*deployment).and_then(|deployment| deployment.host(host));
            host.is_some_and(|host| host.is_settled() || (host.begun.is_none() && !host.is_open()))
        });
        let tested =
            self.run.passed.is_none() && matches!(&record.event, Event::DeploymentCreated { deployment: 1, .. });
        if let Event::DeploymentCreated { deployment, environment, .. } = &record.event {
            self.sessions.expect(*deployment, environment);
        }
        if let Some((key, text)) = told(&self.run, &record.event) {
            // An earlier life may have written it and not have got as far as the record.
            if !self.lines.remove(&key) {
                self.note(&key, text);
            }
        }
        match self.world.journals.append(&self.run.header.run, self.epoch, self.seq, vec![record]) {
            Ok(ticket) => {
                if let Some((_, host)) = done_with {
                    let sessions = Arc::clone(&self.sessions);
                    self.world.tasks.spawn("session end", async move { sessions.forget(&host).await });
                }
                self.seq = ticket.seq();
                self.last_ticket = Some(ticket.clone());
                if ended {
                    self.tell_control(ticket.clone());
                }
                if tested {
                    self.tested(ticket.clone());
                }
                if let Some((deployment, alarm)) = told_of {
                    self.tell_of_alarm(deployment, alarm, ticket.clone());
                }
                Some(ticket)
            }
            Err(error) => {
                tracing::error!(project = %self.run.header.project, run = %self.run.header.run, %error, "the run stands still: its journal cannot be written");
                self.broken = Some(error.to_string());
                None
            }
        }
    }

    /// A verdict on a deployment that has one already, or has ended, comes too late, as does how a call failed that was ended meanwhile.
    fn is_late(&self, event: &Event) -> bool {
        match event {
            Event::Judged { deployment, .. } => {
                self.run.deployment(*deployment).is_none_or(|of| of.judged.is_some() || of.end.is_some())
            }
            Event::Return { key, .. } => !self.run.calls.contains_key(key),
            _ => false,
        }
    }

    /// Tells control how deployments have ended, once that is on disk, and gives their environments back.
    fn tell_control(&self, ticket: Ticket) {
        let (world, run) = (Arc::clone(&self.world), self.run.clone());
        let task = format!("run {} ledger", run.header.run);
        self.world.tasks.spawn(task, async move { super::ledger::deployment_ended(&world, &run, &ticket).await });
    }

    /// What has come meanwhile is decided on together: a fleet's answers come in crowds. Not so what wants something else to be done: that
    /// is decided on before anything further begins.
    fn handle_crowd(&mut self, first: Message) {
        let mut message = first;
        for left in (0..CROWD).rev() {
            let alone = matches!(
                &message,
                Message::Stop { .. }
                    | Message::Change { .. }
                    | Message::Turn(_, Turn::Ended { .. } | Turn::Raised { .. })
            ) || matches!(&message, Message::Facts { events, .. } if events.iter().any(is_failure));
            self.handle(message);
            if alone || left == 0 || self.broken.is_some() || self.finished {
                return;
            }
            let Ok(next) = self.inbox.try_recv() else { return };
            message = next;
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Turn(key, turn) => self.turn(&key, turn),
            Message::Facts { action, events, over } => {
                for event in events.into_iter().filter(|event| !self.is_late(event)).collect::<Vec<_>>() {
                    if let Event::Return { key, .. } = &event {
                        self.ending.remove(key);
                    }
                    self.append(event);
                }
                if over {
                    self.busy.remove(&action);
                }
            }
            Message::StepDone { key, attempt, outcome, hold } => {
                let before = self.seq;
                self.step_done(&key, attempt, outcome);
                self.keep(hold, before);
            }
            Message::Stop { by, now, reason, reply } => {
                if self.run.end.is_some() {
                    let _gone = reply.send(Err("the run has ended".to_owned()));
                    return;
                }
                let ticket = self.append(Event::StopRequested { by, now, reason });
                self.let_go();
                self.acknowledge("stop acknowledged", ticket, reply, (), |why| why);
            }
            Message::HostMet { deployment, host, machine, key, reply } => {
                let over = self.run.end.is_some();
                let met = Event::HostMet { deployment, host, machine, key };
                let ticket = if over { None } else { self.append(met) };
                self.acknowledge("host met", ticket, reply, (), |why| why);
            }
            Message::Undo { action, key, opening } => {
                self.busy.remove(&action);
                let (key, Opening { function, input, past, .. }) = (key.undo(), *opening);
                self.append(Event::Call { key: key.clone(), function: function.clone(), input: input.clone() });
                if self.broken.is_none() {
                    self.call(&key, Opening { function, input, past: Vec::new(), undoes: past });
                }
            }
            Message::Change { environment, change, by, reason, reply } => {
                match change.of(&self.run, &environment, &by, reason) {
                    Ok(event) => {
                        let touched = self.touches(&environment);
                        let ticket = self.append(event);
                        if change == Change::Rollback {
                            self.let_go_of_entering();
                        }
                        self.acknowledge("change", ticket, reply, touched, |why| Cause::new("degraded", why));
                    }
                    Err(cause) => {
                        let _gone = reply.send(Err(cause));
                    }
                }
            }
            Message::Beat(beat) => {
                self.world.stalls.at("owner").here();
                for program in self.programs.values_mut() {
                    program.beat(beat.for_another(format!("the Lua of run {}", self.run.header.run)));
                }
            }
            Message::Finished(Ok(())) => self.finished = true,
            Message::Finished(Err(why)) => self.broken = Some(why),
        }
    }

    /// Answers once a record is on disk.
    fn acknowledge<T: Send + 'static, E: Send + 'static>(
        &self,
        task: &'static str,
        ticket: Option<Ticket>,
        reply: oneshot::Sender<Result<T, E>>,
        done: T,
        broken: fn(String) -> E,
    ) {
        self.world.tasks.spawn(task, async move {
            let answer = match ticket {
                Some(ticket) => ticket.synced().await.map(|()| done).map_err(|e| broken(e.to_string())),
                None => Err(broken("the journal cannot be written".to_owned())),
            };
            let _gone = reply.send(answer);
        });
    }

    /// Whether hosts in flight are not to be watched to the end.
    fn is_sharp(&self) -> bool {
        decide::is_sharp(&self.run)
    }

    /// What an alarm says that was measured, if it fires.
    fn fires(&self, event: &Event) -> Option<Assessment> {
        let Event::Measured { deployment, alarm, .. } = event else { return None };
        let index = (*alarm as usize).checked_sub(1)?;
        let found = self.run.deployment(*deployment)?.alarms.get(index)?.series.assess(false);
        (found.verdict == Verdict::Fail).then_some(found)
    }

    /// Tells people of an alarm that has fired just now, through its own channel, once that is on disk.
    fn tell_of_alarm(&self, deployment: u32, alarm: u32, ticket: Ticket) {
        let watched = self.run.deployment(deployment).and_then(|d| d.alarms.get((alarm as usize).checked_sub(1)?));
        let Some(found) = watched.map(|watched| watched.series.assess(false)) else { return };
        let (world, run) = (Arc::clone(&self.world), self.run.clone());
        self.world.tasks.spawn("alarm", async move {
            if ticket.synced().await.is_ok() {
                actions::tell_of_alarm(&world, &run, deployment, alarm, &found).await;
            }
        });
    }

    /// A bake that is over is not watched any more.
    fn let_go_of_guards(&self, wanted: &[Action]) {
        let guards = |name: &str| ["guard ", "look_over ", "measure "].iter().any(|of| name.starts_with(of));
        for (name, cancel) in self.busy.iter().filter(|(name, _)| guards(name)) {
            if !wanted.iter().any(|action| action.name().as_ref() == Some(name)) {
                cancel.cancel();
            }
        }
    }

    fn touches(&self, environment: &EnvironmentName) -> bool {
        self.run.deployments.iter().any(|d| d.environment == *environment && d.end.is_none() && d.touched())
    }

    /// A deployment that goes no further does not wait for its environment, its hosts or its alarms any more.
    fn let_go_of_entering(&self) {
        let enters = |name: &str| ["lease ", "plan ", "look "].iter().any(|action| name.starts_with(action));
        self.busy.iter().filter(|(name, _)| enters(name)).for_each(|(_, cancel)| cancel.cancel());
    }

    /// Actions that wait for the world (a fetch, a lease, discovery) are not worth finishing any more; a host in flight is watched to
    /// the end, unless the end is a sharp one.
    fn let_go(&self) {
        let sharp = self.is_sharp();
        let finish = Action::Finish.name().unwrap_or_default();
        let of_host = |name: &str| ["watch ", "raised "].iter().any(|of| name.starts_with(of));
        for (name, cancel) in &self.busy {
            if *name != finish && *name != LEFTOVERS && !name.starts_with("undo ") && (sharp || !of_host(name)) {
                cancel.cancel();
            }
        }
    }

    /// What an earlier life may have begun here last: a call of the deployment it came to, or the stage. What a stage left was ended before
    /// the first deployment was there.
    fn last_here(&self) -> Option<CallKey> {
        if let Some(deployment) = self.run.deployments.last() {
            return Some(CallKey::deployment(deployment.environment.as_str(), deployment.n, "verify"));
        }
        let stages = self.run.stages.iter().zip(&self.run.header.pipeline.stages);
        let begun = stages.rev().find(|(stage, _)| stage.functions().iter().any(|(_, at)| **at != run::Progress::Due));
        begun.map(|(_, spec)| CallKey::stage(spec.name.as_str(), "run"))
    }

    /// Goes on where an earlier life was cut off. Every step that had begun and not ended goes on at once, each in its own way (a command
    /// is attached to, or begun if it never was); every open call is replayed; what is not a call is decided anew.
    pub(super) fn take_up(&mut self, taken: Taken) {
        let Taken { openings, secrets, lines } = taken;
        self.sessions.learn(&secrets);
        self.sessions.remember(&self.run);
        self.lines = lines;
        self.loose = self.last_here();
        let resumed = self.append(Event::Resumed { epoch: self.epoch, version: self.world.version.to_owned() });
        if let Some(ticket) = resumed.filter(|_| self.run.deployments.iter().any(|deployment| deployment.end.is_some()))
        {
            // Killed between the end of a deployment and control: others wait for its environment.
            self.tell_control(ticket);
        }
        if let Some(ticket) =
            self.last_ticket.clone().filter(|_| self.run.passed.is_none() && !self.run.deployments.is_empty())
        {
            self.tested(ticket);
        }
        let open: Vec<(StepKey, Step)> = self.run.calls.values().flat_map(|call| call.steps.clone()).collect();
        open.into_iter().for_each(|(key, step)| self.go_on(key, step));
        let calls: Vec<CallKey> = self.run.calls.keys().cloned().collect();
        for (key, opening) in openings.into_iter().filter(|(key, _)| calls.contains(key)) {
            self.call(&key, opening);
        }
        // Here and not in its own task: runs are taken up oldest first, and so they wait for environments.
        self.settle();
    }
}
