//! Back to a known-good release, or on to it where it is missing: without tests, canary or bake, as many hosts at once as are allowed, those
//! that do not serve first.

use super::{
    Action, Decision,
    environments::{cut, enter, next_number},
    host::{self, of_one_zone, whose_turn},
    judge::of_hosts,
};
use crate::model::{
    cause::Cause,
    deployment::{Back, Deployment, DeploymentState, HostRun, HostState},
    event::{Event, GoingBack, Purpose},
    run::{Progress, Run},
};

/// Hosts that have to be taken back: touched, and not there by another way.
pub(super) fn to_take_back(deployment: &Deployment) -> Vec<&HostRun> {
    let mut hosts: Vec<&HostRun> = deployment
        .hosts
        .iter()
        .filter(|h| h.touched && !h.gone && matches!(h.back, None | Some(Back::Failed)))
        .collect();
    hosts.sort_by_key(|host| host.is_healthy());
    hosts
}

/// The deployment that takes `hosts` of another one back.
pub(super) fn create(run: &Run, of: &Deployment, hosts: &[&HostRun], alone: bool) -> Action {
    let hosts = hosts.iter().map(|host| host.host.id.clone()).collect();
    Action::Append(Event::DeploymentCreated {
        deployment: next_number(run),
        environment: of.environment.clone(),
        back: Some(Box::new(GoingBack { of: of.n, hosts, alone })),
    })
}

/// Puts a deployment's target on its hosts.
pub(super) fn straight(run: &Run, deployment: &Deployment, decision: &mut Decision) {
    let n = deployment.n;
    let ended = |state, cause| Action::Append(Event::DeploymentEnded { deployment: n, state, cause });
    let Some(spec) = deployment.spec(run) else {
        let cause = Cause::new("internal", format!("environment {} is not described", deployment.environment));
        return decision.act(ended(DeploymentState::Halted, Some(cause)));
    };
    let Some(budgets) = deployment.budgets else { return decision.act(enter(run, deployment)) };
    let of = deployment.rollback_of.and_then(|of| run.deployment(of));
    let cut = cut(run, deployment);
    let in_flight = host::go_on(run, deployment, spec, decision);
    let failed = deployment.hosts.of_verdict(&[HostState::Failed, HostState::Unknown]);
    let lost = deployment.hosts.of_verdict(&[HostState::Unreachable]);
    // Where nobody can be reached nothing has come back; a run of its own has a budget for them as any other.
    let too_many = lost.len() == deployment.hosts.len() || (of.is_none() && lost.len() > budgets.max_unreachable);
    // What was cut off from outside is no failure of its own. One alone has nobody to halt for it.
    let really = deployment.hosts.count_verdict(HostState::Failed) > 0;
    let ending = match (failed.first(), lost.first()) {
        _ if cut.is_some() && !really => cut,
        (Some(first), _) if !deployment.alone => Some((worst(run, deployment), could_not(deployment, &failed, first))),
        (None, Some(first)) if too_many && !deployment.alone => {
            Some((worst(run, deployment), could_not(deployment, &lost, first)))
        }
        _ => cut,
    };
    if let Some((state, cause)) = ending {
        // Hosts in flight finish.
        if in_flight == 0 {
            decision.act(ended(state, Some(cause)));
        }
        return;
    }
    let rollout = run.environment(&deployment.environment).map_or(&spec.rollout, |e| &e.rollout);
    let parallel = match run.header.request.purpose {
        Purpose::Converge { .. } => rollout.max_parallel,
        Purpose::Deploy | Purpose::Rollback { .. } | Purpose::Adopt => {
            rollout.rollback_parallel.unwrap_or(rollout.max_parallel)
        }
    };
    let serving = deployment.healthy()
        + of.map_or(0, |of| of.hosts.iter().filter(|h| h.back.is_none() && h.is_healthy()).count());
    let pending: Vec<&HostRun> = deployment.hosts.iter().filter(|h| h.begun.is_none() && !h.is_settled()).collect();
    // One that did not serve is taken from no zone.
    let in_zone = if rollout.zones {
        of_one_zone(deployment, pending.clone(), |host| host.ill.is_none())
    } else {
        pending.clone()
    };
    // Hosts that were lost on the way do not keep the others from it.
    let floor = (deployment.phases.min_healthy as usize).saturating_sub(lost.len());
    let turn = whose_turn(in_zone.into_iter(), in_flight, parallel.max(1) as usize, serving, floor);
    for host in &turn {
        let first = host.functions().into_iter().find(|(_, progress)| **progress == Progress::Due);
        let function = first.map_or("deploy", |(function, _)| function);
        decision.act(host::calls(run, deployment, host, function));
    }
    if in_flight > 0 || !turn.is_empty() {
        return;
    }
    if let Some(first) = pending.first() {
        let message = format!(
            "{} of {} hosts cannot be taken without fewer than {floor} hosts serving (min_healthy); {} is one of them",
            pending.len(),
            deployment.hosts.len(),
            first.host.name
        );
        return decision.act(ended(worst(run, deployment), Some(Cause::new("min_healthy", message))));
    }
    decision.act(match (failed.first(), lost.first()) {
        (Some(first), _) => ended(worst(run, deployment), Some(could_not(deployment, &failed, first))),
        (None, Some(first)) if deployment.alone => {
            ended(worst(run, deployment), Some(could_not(deployment, &lost, first)))
        }
        // Nobody can tell what they have: said, and brought there by what converges.
        (None, Some(first)) => ended(DeploymentState::Succeeded, Some(could_not(deployment, &lost, first))),
        (None, None) => ended(DeploymentState::Succeeded, None),
    });
}

/// How a deployment ends that did not bring a host it could reach to the release it was to have.
fn worst(run: &Run, deployment: &Deployment) -> DeploymentState {
    match (&run.header.request.purpose, deployment.rollback_of) {
        (_, None) if !deployment.touched() => DeploymentState::Failed,
        (Purpose::Converge { .. }, None) => DeploymentState::Halted,
        _ => DeploymentState::RollbackFailed,
    }
}

fn could_not(deployment: &Deployment, failed: &[&HostRun], first: &HostRun) -> Cause {
    let why = first.cause().map_or_else(String::new, |cause| format!(": {}", cause.message));
    let release = deployment.target.as_ref().map_or_else(String::new, |target| format!(" to {}", target.release.id));
    let message = format!(
        "{} of {} hosts could not be brought{release}; first {}{why}",
        failed.len(),
        deployment.hosts.len(),
        first.host.name
    );
    of_hosts(Cause::new("rollback_failed", message), failed)
}
