//! What to do now, and when to ask again: a pure function of the folded run and the time.

use std::time::Duration;

use serde_json::Value;

use super::{
    cause::Cause,
    doors,
    event::Event,
    ids::{DeploymentId, EnvironmentName, HostId},
    input,
    pipeline::{Environment, OnUnknown, StepOptions},
    run::{
        CallEnd, Checkout, Deployment, DeploymentState, HealthRun, HostRun, HostState, Progress, Run, RunState,
        StageRun,
    },
    step::{CallKey, Outcome, Place, StepKey},
};
use crate::time::{Span, Stamp};

/// Something to do. The owner starts each action once: an action that is under way is not started again.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// A consequence that needs nothing from the world: append it, fold it, and decide again.
    Append(Event),
    /// Find and fetch the commit; ends in `resolved` or `unresolved`.
    Resolve,
    /// Make the run's directory; ends in `checked_out` or `checkout_failed`.
    Checkout,
    /// Append the call and start its program.
    Call {
        /// Which.
        key: CallKey,
        /// The function's path in the code.
        function: String,
        /// Its plain data.
        input: Value,
    },
    /// Begin the next attempt of a failed step.
    Retry(StepKey),
    /// Read what the journal holds of a call that failed, then append the call that undoes it and start its program.
    Undo(CallKey),
    /// End a call from outside; running steps are ended at once (`kill`) or finished first.
    EndCall {
        /// Which.
        key: CallKey,
        /// Why.
        cause: Cause,
        /// Not waiting for the running step.
        kill: bool,
    },
    /// Ask for the environment; ends in `blocked` or `lease_granted`.
    Lease {
        /// For which deployment.
        deployment: u32,
    },
    /// Find out the hosts; ends in `planned` or `plan_failed`.
    Plan {
        /// For which deployment.
        deployment: u32,
    },
    /// Watch a host's health; ends in `health_verdict`.
    Watch {
        /// Of which deployment.
        deployment: u32,
        /// Which host.
        host: HostId,
    },
    /// The run has ended: tell control, release what it holds, let go.
    Finish,
}

impl Action {
    /// Its name: two actions with one name are the same action. `None` for what is done at once.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        match self {
            Action::Append(_) | Action::Call { .. } | Action::Retry(_) => None,
            Action::Resolve => Some("resolve".to_owned()),
            Action::Checkout => Some("checkout".to_owned()),
            Action::Undo(key) => Some(format!("undo {key}")),
            Action::EndCall { key, kill, .. } => Some(format!("end {key} {kill}")),
            Action::Lease { deployment } => Some(format!("lease {deployment}")),
            Action::Plan { deployment } => Some(format!("plan {deployment}")),
            Action::Watch { deployment, host } => Some(format!("watch {deployment} {host}")),
            Action::Finish => Some("finish".to_owned()),
        }
    }
}

/// What to do, and when to ask again at the latest although nothing happened.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// In order.
    pub actions: Vec<Action>,
    /// From now.
    pub wake_in: Option<Duration>,
}

impl Decision {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn wake(&mut self, span: Duration) {
        self.wake_in = Some(self.wake_in.map_or(span, |earlier| earlier.min(span)));
    }
}

/// The first wait before another attempt; it doubles, up to [`LONGEST_BACKOFF`].
const BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// Whether an attempt that ended like this is the step's last: what Lua gets.
#[must_use]
pub fn is_last(args: &Value, attempt: u32, outcome: &Outcome) -> bool {
    let options = StepOptions::of(args);
    match outcome {
        Outcome::Ok(_) | Outcome::Cut { .. } => true,
        Outcome::Failed { .. } => attempt > options.retries,
        // "retry" means that the author knows it to be harmless, but not that it may go on for ever.
        Outcome::Unknown { .. } => options.on_unknown != Some(OnUnknown::Retry) || attempt > options.retries.max(3),
    }
}

/// What to do now.
#[must_use]
pub fn decide(run: &Run, now: &Stamp) -> Decision {
    let mut decision = Decision::default();
    if run.end.is_some() {
        decision.act(Action::Finish);
        return decision;
    }
    for (key, call) in &run.calls {
        open_call(run, key, call, now, &mut decision);
    }
    commit(run, &mut decision);
    decision
}

/// An open call: its limit, its wish to end, its further attempts.
fn open_call(run: &Run, key: &CallKey, call: &super::run::Call, now: &Stamp, decision: &mut Decision) {
    let limit = Duration::from_millis(call_limit(run, key));
    let elapsed = now.since(&call.begun).saturating_sub(call.away);
    let end = |cause, kill| Action::EndCall { key: key.clone(), cause, kill };
    if call.over {
        let message =
            format!("{key} took longer than its limit of {}; raise `timeout` or find what hangs", Span(limit));
        return decision.act(end(Cause::new("timeout", message), true));
    }
    if elapsed >= limit {
        return decision.act(Action::Append(Event::DeadlineHit { key: key.clone() }));
    }
    decision.wake(limit - elapsed);
    let cleaning = key.is_cleaning();
    let on_hosts = matches!(key.place(), Some(Place::Host { .. }));
    if let Some(cause) = run.diverged.as_ref().filter(|_| !cleaning) {
        // What runs on a host is finished: killing it half-way is no safer, and nobody can tell what it was to be part of.
        return decision.act(end(cause.clone(), !on_hosts));
    }
    if let Some(stop) = &run.stop
        // Cleaning up is what a stop waits for, and hosts in flight finish unless the stop is `now`.
        && !cleaning
        && (!on_hosts || stop.now)
    {
        return decision.act(end(stopped(run), !on_hosts));
    }
    for (step_key, step) in &call.steps {
        let Some((failed_at, _)) = &step.failed else { continue };
        let first = StepOptions::of(&step.args).backoff.map_or(BACKOFF, |span| span.0);
        let wait = first.saturating_mul(1 << (step.attempt - 1).min(16)).min(LONGEST_BACKOFF);
        let waited = now.since(failed_at);
        if waited >= wait {
            decision.act(Action::Retry(step_key.clone()));
        } else {
            decision.wake(wait - waited);
        }
    }
}

fn call_limit(run: &Run, key: &CallKey) -> u64 {
    let pipeline = &run.header.pipeline;
    let limit = match key.place() {
        Some(Place::Stage { stage, .. }) => {
            pipeline.stages.iter().find(|s| s.name.as_str() == stage).map(|s| s.timeout_ms)
        }
        Some(Place::Deployment { deployment, .. } | Place::Host { deployment, .. }) => run
            .deployment(deployment)
            .and_then(|d| run.environment(&d.environment))
            .map(|environment| environment.timeout_ms),
        None => None,
    };
    limit.unwrap_or(3_600_000)
}

fn stopped(run: &Run) -> Cause {
    let (by, reason) = run.stop.as_ref().map_or(("nobody", None), |s| (s.by.as_str(), s.reason.as_deref()));
    let why = reason.map(|r| format!(": {r}")).unwrap_or_default();
    Cause::new("stopped", format!("stopped by {by}{why}")).with("by", by)
}

fn end(run: &Run, decision: &mut Decision, state: RunState, cause: Option<Cause>) {
    // Whatever else is true of it: a journal that its code does not agree with is all that can be said.
    let (state, cause) = match &run.diverged {
        Some(diverged) => (RunState::Damaged, Some(diverged.clone())),
        None => (state, cause),
    };
    decision.act(Action::Append(Event::End { state, cause }));
}

/// From the request to the commit in the run's directory.
fn commit(run: &Run, decision: &mut Decision) {
    if let Some(cause) = &run.unresolved {
        let state = if cause.code == "superseded" { RunState::Superseded } else { RunState::Failed };
        return end(run, decision, state, Some(cause.clone()));
    }
    if let Checkout::Failed(cause) = &run.checkout {
        return end(run, decision, RunState::Failed, Some(cause.clone()));
    }
    if run.release.is_some() && matches!(run.checkout, Checkout::At(_)) {
        return stages(run, decision);
    }
    if let Some((state, cause)) = cut_short(run) {
        return end(run, decision, state, Some(cause));
    }
    decision.act(if run.release.is_none() { Action::Resolve } else { Action::Checkout });
}

/// The test stages: in order, the first failure ends the run, cleanup always.
fn stages(run: &Run, decision: &mut Decision) {
    if run.passed.is_some() && !run.header.request.retest {
        return environments(run, decision);
    }
    for (stage, spec) in run.stages.iter().zip(&run.header.pipeline.stages) {
        let call = |function: &str| {
            call(run, CallKey::stage(spec.name.as_str(), function), format!("test/{}/{function}", spec.name))
        };
        let ending = cut_short(run);
        for (function, progress) in stage.functions() {
            undo(run, &CallKey::stage(spec.name.as_str(), function), progress, decision);
        }
        if stage.functions().iter().any(|(_, progress)| progress.is_open()) {
            return;
        }
        match (&stage.setup, &stage.run, &stage.cleanup) {
            (Progress::Due, Progress::Due, _) if ending.is_some() => {}
            (Progress::Due, Progress::Due, _) if spec.setup => return decision.act(call("setup")),
            (Progress::Due | Progress::Ended(CallEnd::Returned), Progress::Due, Progress::Due) if ending.is_none() => {
                return decision.act(call("run"));
            }
            (.., Progress::Due) if spec.cleanup => return decision.act(call("cleanup")),
            _ => {}
        }
        if let Some(cause) = stage_cause(stage, spec.name.as_str()) {
            // An author's failure stays one although a stop came while it was cleaned up.
            let state = if cause.code == "stopped" { RunState::Stopped } else { RunState::Failed };
            return end(run, decision, state, Some(cause));
        }
        if stage.run == Progress::Due {
            // Its turn never came, though its setup may have gone well: what was not run was not passed.
            if let Some((state, cause)) = ending {
                return end(run, decision, state, Some(cause));
            }
        }
    }
    environments(run, decision);
}

/// How a run ends that was cut before any host of it was touched.
fn cut_short(run: &Run) -> Option<(RunState, Cause)> {
    match &run.diverged {
        Some(cause) => Some((RunState::Damaged, cause.clone())),
        None => run.stop.is_some().then(|| (RunState::Stopped, stopped(run))),
    }
}

/// Why a stage that is over did not succeed: what failed first. A cleanup that fails is a failure too: it leaves a mess.
fn stage_cause(stage: &StageRun, name: &str) -> Option<Cause> {
    let (function, cause) = stage
        .functions()
        .into_iter()
        .find_map(|(function, progress)| progress.cause().map(|cause| (function, cause)))?;
    let cause = cause.clone().with("stage", name);
    Some(if function == "run" { cause } else { cause.with("function", function) })
}

/// The stage's own state and cause, for views.
#[must_use]
pub fn stage_outcome(stage: &StageRun, name: &str) -> Option<Cause> {
    stage_cause(stage, name)
}

/// Undoes what a call has left, before anything else happens where it was.
fn undo(run: &Run, key: &CallKey, progress: &Progress, decision: &mut Decision) {
    if matches!(progress, Progress::Undoing(_)) && !run.calls.contains_key(&key.undo()) {
        decision.act(Action::Undo(key.clone()));
    }
}

fn call(run: &Run, key: CallKey, function: String) -> Action {
    let input = input::of(run, &key);
    Action::Call { key, function, input }
}

/// The environments a run goes through, in order.
fn asked_for(run: &Run) -> impl Iterator<Item = &Environment> {
    let last = run.header.request.environment.as_ref();
    let environments = &run.header.pipeline.environments;
    let count =
        last.and_then(|last| environments.iter().position(|e| e.name == *last)).map_or(environments.len(), |i| i + 1);
    environments.iter().take(count)
}

/// The environments, each only if the one before is good.
fn environments(run: &Run, decision: &mut Decision) {
    let live = |name: &EnvironmentName| !run.header.request.redeploy && run.live.contains(name);
    let reach = doors::reach_of(run);
    for (at, environment) in asked_for(run).enumerate().filter(|(_, e)| !live(&e.name)) {
        let Some(deployment) = run.deployments.iter().find(|d| d.environment == environment.name) else {
            if let Some((state, cause)) = cut_short(run) {
                return end(run, decision, unless_touched(run, state), Some(cause));
            }
            if at >= reach {
                // Everything it was to do is done: this one, and so those behind it, are not opened by a push.
                break;
            }
            let deployment = u32::try_from(run.deployments.len()).unwrap_or(u32::MAX - 1) + 1;
            let environment = environment.name.clone();
            return decision.act(Action::Append(Event::DeploymentCreated { deployment, environment }));
        };
        match &deployment.end {
            None => return deploy(run, environment, deployment, decision),
            Some((DeploymentState::Succeeded, ..)) => {}
            Some((state, cause, _)) => {
                let state = match state {
                    DeploymentState::Failed if cause.as_ref().is_some_and(|c| c.code == "superseded") => {
                        RunState::Superseded
                    }
                    DeploymentState::Failed => unless_touched(run, RunState::Failed),
                    DeploymentState::Stopped => RunState::Stopped,
                    DeploymentState::RolledBack => RunState::RolledBack,
                    DeploymentState::RollbackFailed => RunState::RollbackFailed,
                    _ => RunState::Halted,
                };
                let cause = cause.clone().map(|c| c.with("environment", environment.name.as_str()));
                return end(run, decision, state, cause);
            }
        }
    }
    end(run, decision, RunState::Succeeded, None);
}

/// `failed` says that nothing was switched: a host touched in an earlier environment keeps a run from it.
fn unless_touched(run: &Run, state: RunState) -> RunState {
    let touched = run.deployments.iter().flat_map(|d| &d.hosts).any(|h| h.touched);
    if touched && state == RunState::Failed { RunState::Halted } else { state }
}

/// One deployment: its lease, its plan, its hosts, its verification.
fn deploy(run: &Run, environment: &Environment, deployment: &Deployment, decision: &mut Decision) {
    let n = deployment.n;
    let touched = deployment.hosts.iter().any(|h| h.touched);
    let ended = |state: DeploymentState, cause: Option<Cause>| {
        Action::Append(Event::DeploymentEnded { deployment: n, state, cause })
    };
    let cut_short = || {
        // Once a host was touched, an interruption leaves a mixture: `halted`, not `failed`.
        if let Some(cause) = &run.diverged {
            let state = if touched { DeploymentState::Halted } else { DeploymentState::Failed };
            Some((state, cause.clone()))
        } else if deployment.lease_lost {
            let state = if touched { DeploymentState::Halted } else { DeploymentState::Failed };
            Some((state, Cause::new("lease_lost", format!("the lease of {} was taken away", environment.name))))
        } else if run.stop.is_some() {
            Some((DeploymentState::Stopped, stopped(run)))
        } else {
            None
        }
    };
    let Some(budgets) = deployment.budgets else {
        return decision.act(match (cut_short(), &deployment.plan_failed) {
            (Some((state, cause)), _) => ended(state, Some(cause)),
            (None, Some(cause)) => ended(DeploymentState::Failed, Some(cause.clone())),
            (None, None) if deployment.lease.is_none() => Action::Lease { deployment: n },
            (None, None) => Action::Plan { deployment: n },
        });
    };

    let mut in_flight = 0;
    for host in &deployment.hosts {
        if host.state(false) != HostState::Running {
            continue;
        }
        in_flight += 1;
        let key = CallKey::host(environment.name.as_str(), n, host.host.id.as_str(), "deploy");
        undo(run, &key, &host.deploy, decision);
        if !host.deploy.is_open() {
            decision.act(match (&environment.health, &host.health) {
                // The verdict of a host that needs none is given at once, so that every host's end is an event.
                (None, _) => Action::Append(Event::HealthVerdict {
                    deployment: n,
                    host: host.host.id.clone(),
                    unhealthy: None,
                    evidence: Vec::new(),
                }),
                (Some(_), HealthRun::Due) => {
                    Action::Append(Event::HealthBegan { deployment: n, host: host.host.id.clone() })
                }
                (Some(_), _) => Action::Watch { deployment: n, host: host.host.id.clone() },
            });
        }
    }

    let halt = over_budget(deployment, budgets.max_failures, budgets.max_unreachable)
        .map(|cause| (if touched { DeploymentState::Halted } else { DeploymentState::Failed }, cause));
    // A verdict on the release outranks a wish: what failed is told as a failure.
    // A divergence outranks both: what it cut looks like a failure and is none.
    let ending = if run.diverged.is_some() { cut_short() } else { halt.or_else(cut_short) };
    undo(run, &CallKey::deployment(environment.name.as_str(), n, "verify"), &deployment.verify, decision);
    if let Some((state, cause)) = ending {
        // Hosts in flight finish.
        if in_flight == 0 && !deployment.verify.is_open() {
            decision.act(ended(state, Some(cause)));
        }
        return;
    }
    // At least one: a rollout of none would be a success that touched nothing.
    let free = (environment.rollout.max_parallel.max(1) as usize).saturating_sub(in_flight);
    for host in deployment.hosts.iter().filter(|h| h.deploy == Progress::Due).take(free) {
        in_flight += 1;
        let key = CallKey::host(environment.name.as_str(), n, host.host.id.as_str(), "deploy");
        decision.act(call(run, key, format!("environments/{}/deploy", environment.name)));
    }
    if in_flight > 0 {
        return;
    }
    if !deployment.hosts.is_empty() && deployment.count(HostState::Healthy) == 0 {
        // Budgets as wide as the fleet allow every host to fail; that is no success all the same.
        let message = format!("none of the {} hosts of {} is healthy", deployment.hosts.len(), environment.name);
        let why = deployment.hosts.iter().find_map(HostRun::cause).map(|cause| format!(": {}", cause.message));
        let cause = Cause::new("no_healthy_hosts", message + &why.unwrap_or_default());
        let state = if touched { DeploymentState::Halted } else { DeploymentState::Failed };
        return decision.act(ended(state, Some(cause)));
    }
    match &deployment.verify {
        Progress::Due if environment.verify => {
            let key = CallKey::deployment(environment.name.as_str(), n, "verify");
            decision.act(call(run, key, format!("environments/{}/verify", environment.name)));
        }
        Progress::Open | Progress::Undoing(_) => {}
        Progress::Due | Progress::Ended(CallEnd::Returned) => decision.act(ended(DeploymentState::Succeeded, None)),
        Progress::Ended(CallEnd::Raised(cause) | CallEnd::Ended(cause)) => {
            let message = format!("every host is healthy, and verification failed: {}", cause.message);
            let cause = Cause { code: "verify_failed".to_owned(), message, facts: cause.facts.clone() };
            decision.act(ended(DeploymentState::Halted, Some(cause)));
        }
    }
}

/// Budgets stop a rollout when they are exceeded.
fn over_budget(deployment: &Deployment, max_failures: usize, max_unreachable: usize) -> Option<Cause> {
    let of = |state: HostState| -> Vec<&HostRun> { deployment.hosts.iter().filter(|h| h.verdict() == state).collect() };
    let (failed, unreachable) = (of(HostState::Failed), of(HostState::Unreachable));
    let (code, word, hosts, budget) = if failed.len() > max_failures {
        ("max_failures", "failed", failed, max_failures)
    } else if unreachable.len() > max_unreachable {
        ("max_unreachable", "could not be reached", unreachable, max_unreachable)
    } else {
        return None;
    };
    let first = hosts.first()?;
    let why = first.cause().map_or_else(String::new, |cause| format!(": {}", cause.message));
    let message = format!(
        "{} of {} hosts {word}, {code} is {budget}; first {}{why}",
        hosts.len(),
        deployment.hosts.len(),
        first.host.name,
    );
    let mut cause = Cause::new(code, message)
        .with("hosts", hosts.iter().take(20).map(|h| h.host.id.as_str()).collect::<Vec<_>>())
        .with("host", first.host.id.as_str())
        .with("budget", budget);
    if let Some(why) = first.cause() {
        cause = cause.with("host_code", why.code.as_str());
        for fact in ["at", "step", "traceback"] {
            if let Some(value) = why.facts.get(fact) {
                cause = cause.with(fact, value.clone());
            }
        }
    }
    Some(cause)
}

/// The holder a deployment takes its lease as.
#[must_use]
pub fn holder(run: &Run, deployment: u32) -> String {
    DeploymentId { run: run.header.run.clone(), n: deployment }.to_string()
}

#[cfg(test)]
mod tests;
