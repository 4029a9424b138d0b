//! The environments of a run, each only if the one before is good, and their deployments.

use super::{Action, Decision, back, cut_short, end, rollout, stopped};
use crate::{
    model::{
        cause::Cause,
        deployment::{Deployment, DeploymentState},
        doors,
        event::Event,
        ids::EnvironmentName,
        run::{Run, RunState},
    },
    time::Stamp,
};

/// The environments that a run goes through, in order.
pub(super) fn asked_for(run: &Run) -> Vec<&EnvironmentName> {
    if let Some(target) = &run.target {
        return vec![&target.environment.name];
    }
    let last = run.header.request.environment.as_ref();
    if let (Some(only), Some(_)) = (last, &run.header.request.signal) {
        // In which order environments are gone through is the sender's to say.
        return vec![only];
    }
    let names: Vec<&EnvironmentName> = run.header.pipeline.environments.iter().map(|e| &e.name).collect();
    let count = last.and_then(|last| names.iter().position(|name| *name == last)).map_or(names.len(), |i| i + 1);
    names.into_iter().take(count).collect()
}

/// The environments, each only if the one before is good.
pub(super) fn environments(run: &Run, now: &Stamp, decision: &mut Decision) {
    let live = |name: &EnvironmentName| run.target.is_none() && !run.header.request.redeploy && run.live.contains(name);
    let reach = if run.target.is_some() { usize::MAX } else { doors::reach_of(run) };
    for (at, environment) in asked_for(run).into_iter().enumerate().filter(|(_, name)| !live(name)) {
        let found = run.deployments.iter().find(|d| d.environment == *environment && d.rollback_of.is_none());
        let Some(deployment) = found else {
            if let Some((state, cause)) = cut_short(run) {
                return end(run, decision, unless_touched(run, state), Some(cause));
            }
            if at >= reach {
                // Everything it was to do is done: this one, and so those behind it, are not opened by a push.
                break;
            }
            let (deployment, environment) = (next_number(run), environment.clone());
            return decision.act(Action::Append(Event::DeploymentCreated { deployment, environment, back: None }));
        };
        match &deployment.end {
            None => return deploy(run, deployment, now, decision),
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
                let cause = cause.clone().map(|c| c.with("environment", environment.as_str()));
                return end(run, decision, state, cause);
            }
        }
    }
    end(run, decision, RunState::Succeeded, None);
}

/// The number of the deployment that is created next.
pub(super) fn next_number(run: &Run) -> u32 {
    u32::try_from(run.deployments.len()).unwrap_or(u32::MAX - 1) + 1
}

/// `failed` says that nothing was switched: a host touched in an earlier environment keeps a run from it.
fn unless_touched(run: &Run, state: RunState) -> RunState {
    let touched = run.deployments.iter().any(Deployment::touched);
    if touched && state == RunState::Failed { RunState::Halted } else { state }
}

/// How a deployment ends that something from outside cuts short. Once a host was touched that leaves a mixture: `halted`, not `failed`. What
/// takes another one back has that one's lease, and its mixture.
pub(super) fn cut(run: &Run, deployment: &Deployment) -> Option<(DeploymentState, Cause)> {
    let of = deployment.rollback_of.and_then(|of| run.deployment(of));
    let touched = deployment.touched() || of.is_some();
    let mixed = if touched { DeploymentState::Halted } else { DeploymentState::Failed };
    if let Some(cause) = &run.diverged {
        Some((mixed, cause.clone()))
    } else if deployment.lease_lost || of.is_some_and(|of| of.lease_lost) {
        let message = format!("the lease of {} was taken away", deployment.environment);
        Some((mixed, Cause::new("lease_lost", message)))
    } else {
        run.stop.is_some().then(|| (DeploymentState::Stopped, stopped(run)))
    }
}

/// The way of a deployment into its environment: the lease, then the plan.
pub(super) fn enter(run: &Run, deployment: &Deployment) -> Action {
    let n = deployment.n;
    let ended = |state, cause| Action::Append(Event::DeploymentEnded { deployment: n, state, cause: Some(cause) });
    let judged = deployment.judged.as_ref().map(|judged| (DeploymentState::Failed, judged.cause.clone()));
    match (judged.or_else(|| cut(run, deployment)), &deployment.plan_failed) {
        (Some((state, cause)), _) => ended(state, cause),
        (None, Some(cause)) => ended(DeploymentState::Failed, cause.clone()),
        (None, None) if deployment.lease.is_none() => Action::Lease { deployment: n },
        (None, None) => Action::Plan { deployment: n },
    }
}

/// A deployment, and those that take its hosts back.
fn deploy(run: &Run, deployment: &Deployment, now: &Stamp, decision: &mut Decision) {
    for taking_back in run.deployments.iter().filter(|d| d.rollback_of == Some(deployment.n) && d.end.is_none()) {
        back::straight(run, taking_back, decision);
    }
    match deployment.target {
        None => rollout::rollout(run, deployment, now, decision),
        Some(_) => back::straight(run, deployment, decision),
    }
}
