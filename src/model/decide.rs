//! What to do now, and when to ask again: a pure function of the folded run and the time.

use std::time::Duration;

use serde_json::Value;

use super::{
    cause::Cause,
    event::Event,
    ids::{DeploymentId, HostId},
    run::{Checkout, Run, RunState, StageRun},
    step::{CallKey, StepKey},
};
use crate::time::Stamp;

pub use calls::is_last;

mod back;
mod calls;
mod environments;
mod host;
mod judge;
mod rollout;
mod stages;

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
    /// Look again which hosts there are; ends in `fleet_seen`.
    Look {
        /// For which deployment.
        deployment: u32,
        /// Before which wave, from 0.
        wave: u32,
    },
    /// Watch the hosts that have the release while it bakes; each that is not healthy any more is a `health_verdict`. It is let go of
    /// once it is not wanted any more.
    Guard {
        /// Of which deployment.
        deployment: u32,
    },
    /// Look once more at every host that has the release, as the time of a bake is over; ends in `looked_over`, after a `health_verdict` for each
    /// that is not healthy any more. It is let go of once it is not wanted any more.
    LookOver {
        /// Of which deployment.
        deployment: u32,
    },
    /// Measure an alarm now; ends in `measured`. It is let go of once it is not wanted any more.
    Measure {
        /// For which deployment.
        deployment: u32,
        /// Its place in the environment's list, from 1.
        alarm: u32,
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
            Action::Look { deployment, wave } => Some(format!("look {deployment} {wave}")),
            Action::Guard { deployment } => Some(format!("guard {deployment}")),
            Action::LookOver { deployment } => Some(format!("look_over {deployment}")),
            Action::Measure { deployment, alarm } => Some(format!("measure {deployment} {alarm}")),
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

/// What to do now.
#[must_use]
pub fn decide(run: &Run, now: &Stamp) -> Decision {
    let mut decision = Decision::default();
    if run.end.is_some() {
        decision.act(Action::Finish);
        return decision;
    }
    for (key, call) in &run.calls {
        calls::open_call(run, key, call, now, &mut decision);
    }
    commit(run, now, &mut decision);
    decision
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
fn commit(run: &Run, now: &Stamp, decision: &mut Decision) {
    if let Some(cause) = &run.unresolved {
        let state = if cause.code == "superseded" { RunState::Superseded } else { RunState::Failed };
        return end(run, decision, state, Some(cause.clone()));
    }
    if let Checkout::Failed(cause) = &run.checkout {
        return end(run, decision, RunState::Failed, Some(cause.clone()));
    }
    if run.target.is_some() {
        return environments::environments(run, now, decision);
    }
    if run.release.is_some() && matches!(run.checkout, Checkout::At(_)) {
        return stages::stages(run, now, decision);
    }
    if let Some((state, cause)) = cut_short(run) {
        return end(run, decision, state, Some(cause));
    }
    decision.act(if run.release.is_none() { Action::Resolve } else { Action::Checkout });
}

/// Whether hosts in flight are not to be watched to the end.
#[must_use]
pub fn is_sharp(run: &Run) -> bool {
    run.diverged.is_some() || run.stop.as_ref().is_some_and(|stop| stop.now)
}

/// The stage's own state and cause, for views.
#[must_use]
pub fn stage_outcome(stage: &StageRun, name: &str) -> Option<Cause> {
    stages::stage_cause(stage, name)
}

/// How a run ends that was cut before any host of it was touched.
fn cut_short(run: &Run) -> Option<(RunState, Cause)> {
    match &run.diverged {
        Some(cause) => Some((RunState::Damaged, cause.clone())),
        None => run.stop.is_some().then(|| (RunState::Stopped, stopped(run))),
    }
}

/// The holder a deployment takes its lease as.
#[must_use]
pub fn holder(run: &Run, deployment: u32) -> String {
    DeploymentId { run: run.header.run.clone(), n: deployment }.to_string()
}

#[cfg(test)]
mod tests;
