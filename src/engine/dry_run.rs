//! A dry run: the commands that a start would run. The engine's own decisions over a run that is nowhere but here: each action is answered
//! as if it had gone well, each step with an empty success, and what was asked for is written down. No step runs anywhere; which hosts
//! there are is asked for real, and, where nothing is known-good yet, what they report.

mod words;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    actions,
    conductor::{Conductor, Requested},
    handle::Refusal,
    history, hosts,
    view::{
        CauseView,
        dry_run::{DryCall, DryPart, DryRun, DryStep},
    },
    views,
    world::World,
};
use crate::{
    model::{
        cause::Cause,
        decide::{Action, decide},
        deployment::{Deployment, unsafe_because, unsafe_to_go_back},
        event::{CallResult, Event, Record},
        ids::{Epoch, HostId, RunId},
        pipeline::Environment,
        run::Run,
        step::{Branch, CallKey, Place, Request, StepKey, Target, Verb},
    },
    ports::{
        forge,
        program::{Loaded, Opening, Program, Turn},
    },
    time::{Span, Stamp, within},
};

/// The longest that a dry run may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The most steps it asks for: more than anybody reads.
const MOST_STEPS: usize = 20_000;
/// The most bytes of what differs from host to host: answers stay under 1 MiB.
const MOST_BYTES: usize = 512 * 1024;
/// Waits in which nothing happens: staggered hosts, bakes.
const MOST_WAITS: usize = 20_000;

/// Plays a start of `found` and says what it would do.
///
/// # Errors
/// The code cannot be opened.
pub(super) async fn dry_run(
    conductor: &Conductor,
    loaded: &Loaded,
    requested: Requested,
    found: forge::Resolved,
) -> Result<DryRun, Refusal> {
    // One at a time: each has a VM for every call.
    let world = Arc::clone(&conductor.inner.world);
    let busy = || Refusal::Degraded("other dry runs are under way: try again in a minute".to_owned());
    let _turn = within(&*world.clock, LIMIT, conductor.inner.rehearsal.lock()).await.ok_or_else(busy)?;
    let now = world.clock.now();
    let mut header = conductor.header(loaded, &RunId::new(now.wall_ms, world.random_u128()), requested);
    // Nobody measures: they are assumed not to fire.
    header.pipeline.environments.iter_mut().for_each(|environment| environment.alarms.clear());
    let (sender, turns) = mpsc::channel(64);
    let sink = Box::new(move |key: &CallKey, turn| {
        let _nobody_listens = sender.blocking_send((key.clone(), turn));
    });
    let broken = |cause: Cause| Refusal::Degraded(cause.message);
    let program = world.programs.open(&header.code, &header.project, header.seed, sink).map_err(broken)?;
    let first = Record { at: now.clone(), by: Arc::clone(&world.controller), event: Event::Started(Box::new(header)) };
    let run = Run::begin(&first).map_err(|error| Refusal::Degraded(error.to_string()))?;
    let mut rehearsal = Rehearsal {
        conductor,
        loaded,
        world: &world,
        run,
        now,
        program,
        turns,
        parts: Vec::new(),
        notes: Vec::new(),
        errors: 0,
        steps: 0,
        bytes: 0,
    };
    rehearsal.notes.push(
        "answers are assumed: every step succeeds and prints nothing, every host becomes healthy, no alarm fires. Where the code looks at an \
         answer, another one may lead another way"
            .to_owned(),
    );
    let played = within(&*world.clock, LIMIT, rehearsal.play(&found)).await;
    let cut = match played {
        Some(Ok(())) => None,
        Some(Err(cause)) => Some(cause),
        None => Some(cut(format!("it took longer than {}", Span(LIMIT)))),
    };
    Ok(rehearsal.told(&found, cut))
}

fn cut(why: String) -> Cause {
    Cause::new("dry_run_cut", format!("this is only the beginning: {why}"))
}

struct Rehearsal<'a> {
    conductor: &'a Conductor,
    loaded: &'a Loaded,
    world: &'a World,
    run: Run,
    /// It waits for nothing: time goes on by itself.
    now: Stamp,
    program: Box<dyn Program>,
    turns: mpsc::Receiver<(CallKey, Turn)>,
    parts: Vec<DryPart>,
    notes: Vec<String>,
    errors: usize,
    steps: usize,
    bytes: usize,
}

impl Rehearsal<'_> {
    async fn play(&mut self, found: &forge::Resolved) -> Result<(), Cause> {
        let mut waits = 0;
        loop {
            // Whatever else is to be done has its turn, and the limit of time its look.
            tokio::task::yield_now().await;
            let decision = decide(&self.run, &self.now);
            let mut changed = false;
            for action in decision.actions {
                if action == Action::Finish {
                    return Ok(());
                }
                changed |= self.act(action, found).await?;
            }
            if !changed {
                waits += 1;
                let wake = decision.wake_in.filter(|_| waits < MOST_WAITS);
                let wake = wake.ok_or_else(|| cut("nothing follows; this is a bug of phased".to_owned()))?;
                self.now = self.now.plus(wake.max(Duration::from_millis(1)));
            }
        }
    }

    /// Does as if; whether the run changed by it.
    async fn act(&mut self, action: Action, found: &forge::Resolved) -> Result<bool, Cause> {
        match action {
            Action::Append(event) => self.follows(event)?,
            Action::Resolve => self.fold(actions::found(self.world, &self.run, found.clone()))?,
            Action::Checkout => {
                let dir = self.world.forge.work_dir(&self.run.header.project).join(self.run.header.run.as_str());
                self.fold(Event::CheckedOut { dir: dir.to_string_lossy().into_owned() })?;
            }
            Action::Call { key, function, input } => self.call(&key, function, input).await?,
            Action::Lease { deployment } => self.fold(Event::LeaseGranted { deployment, epoch: Epoch(1) })?,
            Action::Plan { deployment } => self.plan(deployment).await?,
            Action::Watch { deployment, host } => self.watch(deployment, host)?,
            Action::Look { deployment, wave } => {
                self.fold(Event::FleetSeen {
                    deployment,
                    gone: Vec::new(),
                    joined: Vec::new(),
                    why: BTreeMap::new(),
                    wave,
                })?;
            }
            Action::LookOver { deployment } => self.fold(Event::LookedOver { deployment })?,
            // Nothing fails, so nothing is tried again, undone or ended from outside.
            Action::Retry(_) | Action::Undo(_) | Action::EndCall { .. } => {
                return Err(cut(format!("{action:?} was not expected; this is a bug of phased")));
            }
            Action::Guard { .. } | Action::Measure { .. } | Action::Finish => return Ok(false),
        }
        Ok(true)
    }

    fn fold(&mut self, event: Event) -> Result<(), Cause> {
        let record = Record { at: self.now.clone(), by: Arc::clone(&self.world.controller), event };
        self.run.next(&record).map_err(|illegal| cut(format!("{illegal}; this is a bug of phased")))
    }

    /// A consequence that needs nothing from the world.
    fn follows(&mut self, event: Event) -> Result<(), Cause> {
        let (baking, entered) = match &event {
            Event::BakeBegan { deployment, wave } => (Some((*deployment, *wave)), None),
            Event::DeploymentCreated { environment, .. } => (None, Some(environment.clone())),
            _ => (None, None),
        };
        self.fold(event)?;
        if let Some((deployment, wave)) = baking {
            let of =
                self.run.deployment(deployment).and_then(|of| Some((of.environment.to_string(), of.spec(&self.run)?)));
            let Some((environment, spec)) = of else { return Ok(()) };
            let time = Duration::from_millis(spec.rollout.bake_time_ms);
            let described = self.loaded.pipeline.environments.iter().find(|e| e.name.as_str() == environment);
            let alarms: Vec<&str> = described.iter().flat_map(|e| &e.alarms).map(|alarm| alarm.name.as_str()).collect();
            let watched =
                if alarms.is_empty() { String::new() } else { format!(", and measured: {}", alarms.join(", ")) };
            let note = Some(format!("watched for {}{watched}", Span(time)));
            self.parts.push(DryPart { note, wave: Some(wave + 1), ..part(Some(environment), "bake") });
            self.now = self.now.plus(time);
        }
        let environments = &self.loaded.pipeline.environments;
        if let Some(environment) = entered.and_then(|name| environments.iter().find(|e| e.name == name)) {
            self.doors(environment);
        }
        Ok(())
    }

    /// What a start would have to wait for now.
    fn doors(&mut self, environment: &Environment) {
        let doors = [
            self.conductor.frozen(&self.loaded.name, environment).map(|waiting| ("is frozen", waiting)),
            self.conductor.held(&self.loaded.name, environment).map(|waiting| ("is held", waiting)),
        ];
        for (how, waiting) in doors.into_iter().flatten() {
            let until = waiting.until.map(|until| format!(" until {until} at the latest")).unwrap_or_default();
            let why = waiting.reason.map(|why| format!(" ({why})")).unwrap_or_default();
            self.notes.push(format!("{} {how} by {}{why}{until}: a start waits", environment.name, waiting.holder));
        }
    }

    async fn plan(&mut self, n: u32) -> Result<(), Cause> {
        let run = &self.run;
        let environment = run.deployment(n).and_then(|of| run.environment(&of.environment)).cloned();
        let Some(environment) = environment else { return Err(cut(format!("there is no deployment {n}"))) };
        let found = hosts::of(self.world, &run.header.project, &run.header.code, &environment, hosts::Need::New).await;
        let event = actions::planned(self.world, run, n, &environment, found).await;
        self.fold(event)?;
        if let Some(of) = self.run.deployment(n).filter(|of| of.budgets.is_some()) {
            let note = Some(self::plan(of, &environment));
            self.parts.push(DryPart { note, ..part(Some(environment.name.to_string()), "plan") });
        }
        Ok(())
    }

    async fn call(&mut self, key: &CallKey, function: String, input: Value) -> Result<(), Cause> {
        self.fold(Event::Call { key: key.clone(), function: function.clone(), input: input.clone() })?;
        self.program.call(key, Opening { function, input, ..Opening::default() });
        let mut called = DryCall { function: named(key), steps: Vec::new(), error: None };
        let result = loop {
            let Some((of, turn)) = self.turns.recv().await else {
                return Err(cut("the Lua thread ended; this is a bug of phased".to_owned()));
            };
            if of != *key {
                continue;
            }
            match turn {
                Turn::Requests(requests) => {
                    for request in requests {
                        let step = self.step(key, request)?;
                        called.steps.push(step);
                    }
                }
                Turn::Return(value) => break value,
                Turn::Raised { cause, .. } | Turn::Ended { cause, .. } => {
                    self.errors += 1;
                    called.error = Some((&cause).into());
                    break Value::Null;
                }
            }
        };
        if let Some(Place::Deployment { deployment, function }) = key.place().filter(|_| called.error.is_none())
            && function == "rollback_safe"
            && let Some(why) = unsafe_because(&result)
            && let Some(of) = self.run.deployment(deployment)
        {
            let why = unsafe_to_go_back(&why).message;
            self.notes.push(format!("{}: a failure cannot go back: {why}", of.environment));
        }
        self.record(key, called);
        self.fold(Event::Return { key: key.clone(), result: CallResult::Returned(result), undos: 0 })
    }

    /// Writes a step down, and answers it.
    fn step(&mut self, call: &CallKey, request: Request) -> Result<DryStep, Cause> {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return Err(cut(format!("it takes more than {MOST_STEPS} steps")));
        }
        let args = &request.args;
        let step = DryStep {
            verb: request.verb.as_str().to_owned(),
            on: self.place(call, &request.target),
            branch: (request.branch != Branch::top()).then(|| request.branch.to_string()),
            text: words::text(request.verb, args),
            options: words::options(request.verb, args),
            at: request.at.clone(),
        };
        if request.verb == Verb::Log {
            return Ok(step);
        }
        let key = StepKey::new(call, &request.branch, request.verb.as_str(), request.n);
        let outcome = words::answer(&self.run, &request, &self.now);
        self.fold(Event::Begin {
            key: key.clone(),
            attempt: 1,
            token: key.token(&self.run.header.run, 1),
            args: request.args,
            host: history::unsaid(&key, &request.target),
            line: request.at,
        })?;
        self.fold(Event::Done { key, attempt: 1, outcome: outcome.clone(), last: true })?;
        self.program.resume(call, &request.branch, &outcome);
        Ok(step)
    }

    /// Where a step acts, unless its call says so already.
    fn place(&self, call: &CallKey, target: &Target) -> Option<String> {
        let place = call.place()?;
        match (&place, target) {
            (Place::Stage { .. }, Target::Local) => None,
            (_, Target::Local) => Some("the integration server".to_owned()),
            (Place::Host { host, .. }, Target::Host(on)) if host == on => None,
            (Place::Host { deployment, .. } | Place::Deployment { deployment, .. }, Target::Host(on)) => {
                Some(self.host(*deployment, on))
            }
            (Place::Stage { .. }, Target::Host(on)) => Some(on.to_string()),
        }
    }

    fn host(&self, deployment: u32, id: &HostId) -> String {
        let host = self.run.deployment(deployment).and_then(|of| of.host(id));
        host.map_or_else(|| id.to_string(), |host| host.host.name.clone())
    }

    fn watch(&mut self, deployment: u32, host: HostId) -> Result<(), Cause> {
        let of = self
            .run
            .deployment(deployment)
            .and_then(|of| Some((of.environment.clone(), of.spec(&self.run)?.health.clone()?)));
        if let Some((environment, health)) = of {
            let (looks, good) = words::looks(&health);
            let look = |text| DryStep {
                verb: "look".to_owned(),
                on: None,
                branch: None,
                text,
                options: vec![good.clone()],
                at: String::new(),
            };
            let steps = looks.into_iter().map(look).collect();
            let key = CallKey::host(environment.as_str(), deployment, host.as_str(), "health");
            self.record(&key, DryCall { function: "health".to_owned(), steps, error: None });
        }
        self.fold(Event::HealthVerdict { deployment, host, unhealthy: None, evidence: Vec::new() })
    }

    /// Puts a call where it belongs: to its stage, to its hook, or to what else happens to its host in this wave.
    fn record(&mut self, key: &CallKey, called: DryCall) {
        let environment = |n: u32| self.run.deployment(n).map(|of| of.environment.to_string());
        let wanted = match key.place() {
            None => return,
            Some(Place::Stage { stage, .. }) => DryPart { stage: Some(stage), ..part(None, "test") },
            Some(Place::Deployment { deployment, function }) => {
                let (hook, of) = function.split_once('.').unwrap_or((&function, ""));
                let wave = if of == "canary" { Some(1) } else { of.parse().ok() };
                DryPart { wave, ..part(environment(deployment), hook) }
            }
            Some(Place::Host { deployment, host, function }) => {
                let wave = self.run.deployment(deployment).and_then(|of| of.host(&host)).map(|host| host.wave + 1);
                let (phase, wave) = if function == "prepare" { ("prepare", None) } else { ("wave", wave) };
                DryPart { wave, hosts: vec![self.host(deployment, &host)], ..part(environment(deployment), phase) }
            }
        };
        let same = |have: &&mut DryPart| {
            (&have.stage, &have.environment, &have.phase, &have.wave, &have.hosts)
                == (&wanted.stage, &wanted.environment, &wanted.phase, &wanted.wave, &wanted.hosts)
        };
        let several = wanted.phase == "test" || wanted.phase == "wave";
        match self.parts.iter_mut().rev().find(same).filter(|_| several) {
            Some(part) => part.calls.push(called),
            None => self.parts.push(DryPart { calls: vec![called], ..wanted }),
        }
    }

    /// All of it, hosts to which the very same happens together.
    fn told(mut self, found: &forge::Resolved, mut cut_by: Option<Cause>) -> DryRun {
        let mut parts: Vec<DryPart> = Vec::new();
        for part in std::mem::take(&mut self.parts) {
            let alike = parts.last_mut().filter(|last| {
                !part.hosts.is_empty()
                    && (&last.environment, &last.phase, &last.wave, &last.calls)
                        == (&part.environment, &part.phase, &part.wave, &part.calls)
            });
            if let Some(last) = alike {
                last.hosts.extend(part.hosts);
                continue;
            }
            self.bytes += serde_json::to_string(&part).map_or(0, |text| text.len());
            if self.bytes > MOST_BYTES {
                cut_by.get_or_insert_with(|| cut(format!("it has more than {} KiB of commands", MOST_BYTES / 1024)));
                break;
            }
            parts.push(part);
        }
        if let Some(closed) = views::closed(&self.run) {
            self.notes.push(format!("{} is not entered by itself: {}", closed.environment, closed.command));
        }
        let (state, cause) = match (&self.run.end, cut_by) {
            (_, Some(cut)) => (self.run.state(), Some(cut)),
            (Some((state, cause, _)), None) => (*state, cause.clone()),
            (None, None) => (self.run.state(), None),
        };
        let release = self.run.release.clone().unwrap_or_else(|| actions::first_build(&self.run, found));
        DryRun {
            project: self.loaded.name.to_string(),
            release: (&release).into(),
            notes: self.notes,
            parts,
            state,
            cause: cause.as_ref().map(CauseView::from),
            errors: self.errors,
        }
    }
}

fn part(environment: Option<String>, phase: &str) -> DryPart {
    let (stage, wave, hosts, note, calls) = (None, None, Vec::new(), None, Vec::new());
    DryPart { stage, environment, phase: phase.to_owned(), wave, hosts, note, calls }
}

/// The function's own name.
fn named(key: &CallKey) -> String {
    match key.place() {
        Some(Place::Stage { function, .. } | Place::Host { function, .. } | Place::Deployment { function, .. }) => {
            function.split('.').next().unwrap_or_default().to_owned()
        }
        None => key.to_string(),
    }
}

/// `4 hosts: canary 1, then 3, 2 at a time; a failure goes back to a1b2c3d4e5f6`.
fn plan(of: &Deployment, environment: &Environment) -> String {
    let sizes = (0..).zip(&of.phases.waves).map(|(n, size)| match n == 0 && of.phases.canary {
        true => format!("canary {size}"),
        false => size.to_string(),
    });
    let hosts = of.hosts.len();
    let back = match (&of.phases.target, &of.phases.no_target) {
        (Some(target), _) => format!("; a failure goes back to {}", target.release.id),
        (None, Some(why)) => format!("; a failure cannot go back: {}", why.message),
        (None, None) => String::new(),
    };
    format!(
        "{hosts} host{}: {}, {} at a time{back}",
        if hosts == 1 { "" } else { "s" },
        sizes.collect::<Vec<_>>().join(", then "),
        environment.rollout.max_parallel
    )
}
