//! What keeps a rollout from going on: budgets that are exceeded, hooks that failed, floors, deadlines.

use std::time::Duration;

use super::{Decision, rollout::Scene};
use crate::{
    model::{
        analysis::Verdict,
        cause::Cause,
        deployment::{DeploymentState, HealthRun, HostRun, HostState},
        event::Event,
        pipeline::AlarmAction,
        rollout::OnFailure,
        run::{CallEnd, Progress},
    },
    time::Span,
};

/// The fact that a rollout goes no further, or waits for a person, if something is wrong with it.
pub(super) fn found(scene: &Scene<'_>, decision: &mut Decision) -> Option<Event> {
    let d = scene.deployment;
    if d.paused.as_ref().is_some_and(|paused| paused.failed.is_some()) {
        return None;
    }
    wrong(scene, decision).map(|wrong| event(scene, wrong))
}

fn event(scene: &Scene<'_>, Wrong { cause, bad, then }: Wrong) -> Event {
    let d = scene.deployment;
    let then = then.unwrap_or(scene.spec.rollout.on_failure);
    if then == OnFailure::Pause && d.touched() {
        let (by, reason) = ("phased".to_owned(), Some(cause.message.clone()));
        return Event::Paused { deployment: d.n, by, reason, failed: Some(cause), bad };
    }
    Event::Judged { deployment: d.n, cause, bad, then }
}

struct Wrong {
    cause: Cause,
    /// It is the release that is bad.
    bad: bool,
    /// What follows, unless that is what the project says.
    then: Option<OnFailure>,
}

impl From<Cause> for Wrong {
    fn from(cause: Cause) -> Self {
        Wrong { cause, bad: false, then: None }
    }
}

fn wrong(scene: &Scene<'_>, decision: &mut Decision) -> Option<Wrong> {
    let d = scene.deployment;
    if let Some(cause) = over_budget(scene) {
        // Hosts that cannot be reached say nothing of the release.
        let unhealthy = |cause: &Cause| cause.code != "stopped" && !cause.is_shut();
        let ill =
            d.hosts.iter().any(|h| !h.gone && matches!(&h.health, HealthRun::Unhealthy(cause) if unhealthy(cause)));
        return Some(Wrong { bad: ill && cause.code != "max_unreachable", ..Wrong::from(cause) });
    }
    if let Some(cause) = lost_alone(scene) {
        return Some(Wrong { then: Some(OnFailure::Halt), ..Wrong::from(cause) });
    }
    if let Some(wrong) = fired(scene, false) {
        return Some(wrong);
    }
    for (hook, _, progress) in scene.hooks() {
        let Progress::Ended(CallEnd::Raised(cause) | CallEnd::Ended(cause)) = progress else { continue };
        if cause.code == "stopped" {
            continue;
        }
        return Some(match hook {
            "verify" => {
                let message = format!("every host is healthy, and verification failed: {}", cause.message);
                let cause = Cause { code: "verify_failed".to_owned(), message, facts: cause.facts.clone() };
                Wrong { bad: true, ..Wrong::from(cause) }
            }
            // Every host has it and is healthy: going back would heal nothing.
            "after" => Wrong { then: Some(OnFailure::Halt), ..Wrong::from(of_hook(hook, cause)) },
            _ => Wrong::from(of_hook(hook, cause)),
        });
    }
    // Of one that is cut short nobody expects that anything becomes healthy.
    let goes_on = scene.cut_short().is_none();
    late(scene, decision).map(Wrong::from).or_else(|| nobody(scene)).filter(|_| goes_on)
}

/// A host that failed within the budgets and could not be taken back: nobody can tell what it has.
fn lost_alone(scene: &Scene<'_>) -> Option<Cause> {
    let n = scene.deployment.n;
    let mut alone = scene.run.deployments.iter().filter(|d| d.rollback_of == Some(n) && d.alone);
    alone.find_map(|d| match &d.end {
        Some((DeploymentState::RollbackFailed, cause, _)) => cause.clone(),
        _ => None,
    })
}

/// An alarm that fires by what all of a bake has shown.
pub(super) fn fired_at_the_end(scene: &Scene<'_>) -> Option<Event> {
    fired(scene, true).map(|wrong| event(scene, wrong))
}

/// An alarm that fired and is to have a consequence; `over` = nothing more is measured in this bake.
fn fired(scene: &Scene<'_>, over: bool) -> Option<Wrong> {
    scene.deployment.alarms.iter().zip(&scene.spec.alarms).find_map(|(watched, alarm)| {
        let then = match alarm.action {
            AlarmAction::Rollback => OnFailure::Rollback,
            AlarmAction::Halt => OnFailure::Halt,
            AlarmAction::Pause => OnFailure::Pause,
            AlarmAction::None => return None,
        };
        let found = Some(watched).filter(|watched| !watched.forgiven)?.series.assess(over);
        (found.verdict == Verdict::Fail).then(|| {
            let cause = Cause::new("alarm", format!("the alarm fired: {}", found.message));
            Wrong { cause: cause.with("alarm", alarm.name.as_str()), bad: true, then: Some(then) }
        })
    })
}

fn of_hook(hook: &str, cause: &Cause) -> Cause {
    Cause { message: format!("{hook} failed: {}", cause.message), ..cause.clone() }.with("function", hook)
}

/// Nobody has become healthy for too long.
fn late(scene: &Scene<'_>, decision: &mut Decision) -> Option<Cause> {
    let limit = Duration::from_millis(scene.spec.rollout.progress_deadline_ms);
    let since = scene.deployment.progress_at.as_ref()?;
    if limit.is_zero() || !scene.deployment.hosts.moving().into_iter().any(HostRun::in_flight) {
        return None;
    }
    let waited = scene.now.since(since);
    if waited < limit {
        decision.wake(limit - waited);
        return None;
    }
    let message = format!("no host has become healthy for {} (progress_deadline)", Span(limit));
    Some(Cause::new("progress_deadline", message))
}

/// Nothing is under way, and no further host may be taken.
pub(super) fn stuck(scene: &Scene<'_>, pending: &[&HostRun]) -> Option<Event> {
    let d = scene.deployment;
    let first = pending.first()?;
    let message = format!(
        "{} of {} hosts serve, and min_healthy is {}: {} cannot be taken, and neither can {} others",
        d.healthy(),
        d.hosts.len(),
        d.phases.min_healthy,
        first.host.name,
        pending.len() - 1
    );
    Some(event(scene, Wrong::from(Cause::new("min_healthy", message))))
}

/// Budgets as wide as the fleet allow every host to fail; that is no success all the same.
fn nobody(scene: &Scene<'_>) -> Option<Wrong> {
    let d = scene.deployment;
    if d.hosts.is_empty() || d.hosts.are_unsettled() || d.hosts.count_verdict(HostState::Healthy) > 0 {
        return None;
    }
    let message = format!("none of the {} hosts of {} is healthy", d.hosts.len(), scene.spec.name);
    let why = d.hosts.iter().find_map(HostRun::cause).map(|cause| format!(": {}", cause.message));
    Some(Wrong::from(Cause::new("no_healthy_hosts", message + &why.unwrap_or_default())))
}

/// Budgets stop a rollout when they are exceeded.
fn over_budget(scene: &Scene<'_>) -> Option<Cause> {
    let d = scene.deployment;
    let budgets = d.budgets?;
    let [failed, unreachable] =
        [HostState::Failed, HostState::Unreachable].map(|verdict| d.hosts.of_verdict(&[verdict]));
    if failed.len() > budgets.max_failures + d.forgiven.failed {
        return exceeded("max_failures", "failed", &failed, d.hosts.len(), budgets.max_failures);
    }
    if unreachable.len() > budgets.max_unreachable + d.forgiven.unreachable {
        return exceeded(
            "max_unreachable",
            "could not be reached",
            &unreachable,
            d.hosts.len(),
            budgets.max_unreachable,
        );
    }
    let most = d.phases.max_failures_per_wave.filter(|_| d.forgiven.failed == 0)? as usize;
    (0u32..).zip(&d.waves).find_map(|(n, _)| {
        let wave: Vec<&HostRun> = failed.iter().copied().filter(|host| host.wave == n).collect();
        if wave.len() <= most {
            return None;
        }
        let count = d.hosts.of_wave(n).len();
        exceeded("max_failures_per_wave", "failed in one wave", &wave, count, most)
    })
}

/// A cause with the hosts that it is about, and why it is the first one's.
pub(super) fn of_hosts(cause: Cause, hosts: &[&HostRun]) -> Cause {
    let ids: Vec<&str> = hosts.iter().take(20).map(|host| host.host.id.as_str()).collect();
    let cause = cause.with("hosts", ids);
    let Some(first) = hosts.first() else { return cause };
    let cause = cause.with("host", first.host.id.as_str());
    match first.cause() {
        Some(why) => cause.with("host_code", why.code.as_str()),
        None => cause,
    }
}

fn exceeded(code: &str, word: &str, hosts: &[&HostRun], count: usize, budget: usize) -> Option<Cause> {
    let first = hosts.first()?;
    let why = first.cause().map_or_else(String::new, |cause| format!(": {}", cause.message));
    let message =
        format!("{} of {count} hosts {word}, {code} is {budget}; first {}{why}", hosts.len(), first.host.name);
    let mut cause = of_hosts(Cause::new(code, message).with("budget", budget), hosts);
    if let Some(why) = first.cause() {
        for fact in ["at", "step", "traceback"] {
            if let Some(value) = why.facts.get(fact) {
                cause = cause.with(fact, value.clone());
            }
        }
    }
    Some(cause)
}
