//! The way of one host: its calls in their order, then its health.

use super::{
    Action, Decision,
    calls::{call, undo},
    is_sharp, stopped,
};
use crate::model::{
    cause::Cause,
    deployment::{Deployment, HealthRun, HostRun},
    event::Event,
    pipeline::Environment,
    run::{Progress, Run},
    step::CallKey,
};

/// How many hosts are prepared at the same moment.
const PREPARED: usize = 64;

fn key(deployment: &Deployment, host: &HostRun, function: &str) -> CallKey {
    CallKey::host(deployment.environment.as_str(), deployment.n, host.host.id.as_str(), function)
}

/// The call of `function` on a host.
pub(super) fn calls(run: &Run, deployment: &Deployment, host: &HostRun, function: &str) -> Action {
    call(run, key(deployment, host, function), format!("environments/{}/{function}", deployment.environment))
}

/// What each host that is on its way needs next; how many there are.
pub(super) fn go_on(run: &Run, deployment: &Deployment, spec: &Environment, decision: &mut Decision) -> usize {
    let mut in_flight = 0;
    for host in deployment.hosts.moving() {
        for (function, progress) in host.functions() {
            if matches!(progress, Progress::Undoing(_)) {
                undo(run, &key(deployment, host, function), progress, decision);
            }
        }
        if host.in_flight() {
            in_flight += 1;
            if !host.is_open() {
                decision.act(next(run, deployment, spec, host));
            }
        }
    }
    in_flight
}

/// The next thing on a host's way, on which nothing is under way.
fn next(run: &Run, deployment: &Deployment, spec: &Environment, host: &HostRun) -> Action {
    let due = host.functions().into_iter().find(|(_, progress)| **progress == Progress::Due);
    let (n, id) = (deployment.n, host.host.id.clone());
    let verdict = |unhealthy| {
        let host = id.clone();
        Action::Append(Event::HealthVerdict { deployment: n, host, unhealthy, evidence: Vec::new() })
    };
    match (due, &spec.health, &host.health) {
        (Some((function, _)), ..) if function != "undrain" || host.health == HealthRun::Healthy => {
            if is_sharp(run) {
                // Cut off between two of its calls.
                let why = run.diverged.clone().unwrap_or_else(|| stopped(run));
                let message = format!("{} was left before its {function}: {}", host.host.name, why.message);
                return verdict(Some(Cause { message, ..why }.with("host", host.host.id.as_str())));
            }
            calls(run, deployment, host, function)
        }
        // The verdict of a host that needs none is given at once, so that every host's end is an event.
        (_, None, _) => verdict(None),
        (_, Some(_), HealthRun::Due) => Action::Append(Event::HealthBegan { deployment: n, host: id }),
        (_, Some(_), _) => Action::Watch { deployment: n, host: id },
    }
}

/// Prepares hosts ahead of their turn; true while some are not prepared.
pub(super) fn prepare(run: &Run, deployment: &Deployment, spec: &Environment, decision: &mut Decision) -> bool {
    let most = spec.ssh.max_sessions.map_or(PREPARED, |most| PREPARED.min(most.max(1) as usize));
    let open = deployment.hosts.preparing();
    for host in deployment.hosts.unprepared(most.saturating_sub(open)) {
        decision.act(calls(run, deployment, host, "prepare"));
    }
    deployment.hosts.are_unprepared()
}

/// Those of `hosts` that are in the zone whose turn it is, that of whoever is on its way or of the first of them, where only one zone is
/// touched at a time. One that takes nothing away from its zone, as `counts` says, may go whatever it is in.
pub(super) fn of_one_zone<'a>(
    deployment: &Deployment,
    hosts: Vec<&'a HostRun>,
    counts: impl Fn(&HostRun) -> bool,
) -> Vec<&'a HostRun> {
    let on_its_way = deployment.hosts.moving().into_iter().find(|host| host.in_flight() && counts(host));
    let first = hosts.iter().copied().find(|host| counts(host));
    let Some(zone) = on_its_way.or(first).map(|host| &host.host.zone) else { return hosts };
    hosts.into_iter().filter(|host| !counts(host) || host.host.zone == *zone).collect()
}

/// Those of `hosts` whose turn may come now: not more than `parallel` of them are on their way, and not so many that fewer than `floor`
/// serve, of which there are `serving`.
pub(super) fn whose_turn<'a>(
    hosts: impl Iterator<Item = &'a HostRun>,
    in_flight: usize,
    parallel: usize,
    serving: usize,
    floor: usize,
) -> Vec<&'a HostRun> {
    let mut spare = serving.saturating_sub(floor);
    let free = parallel.saturating_sub(in_flight);
    let may = |host: &&HostRun| {
        // One that does not serve costs nothing.
        if host.is_healthy() {
            let some = spare > 0;
            spare = spare.saturating_sub(1);
            return some;
        }
        true
    };
    hosts.filter(may).take(free).collect()
}
