//! Open calls: their limits, their wishes to end, their further attempts; and what failed ones leave to be undone.

use std::time::Duration;

use serde_json::Value;

use super::{Action, Decision, stopped};
use crate::{
    model::{
        cause::Cause,
        event::Event,
        input,
        pipeline::{OnUnknown, StepOptions},
        run::{Call, Progress, Run},
        step::{CallKey, Outcome, Place},
    },
    time::{Span, Stamp},
};

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

/// An open call: its limit, its wish to end, its further attempts.
pub(super) fn open_call(run: &Run, key: &CallKey, call: &Call, now: &Stamp, decision: &mut Decision) {
    let limit = Duration::from_millis(call_limit(run, call));
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
    let cleaning = call.cleaning;
    let on_hosts = matches!(call.place, Some(Place::Host { .. }));
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
    if let Some(cause) = goes_no_further(run, call).filter(|_| !cleaning) {
        return decision.act(end(cause, true));
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

/// Why a hook is not worth finishing: what is wrong is known, and the way back does not wait for it.
fn goes_no_further(run: &Run, call: &Call) -> Option<Cause> {
    let n = match call.place.as_ref()? {
        Place::Deployment { deployment, .. } => *deployment,
        Place::Host { deployment, function, .. } if function == "prepare" => *deployment,
        _ => return None,
    };
    let deployment = run.deployment(n).filter(|deployment| deployment.target.is_none())?;
    let judged = deployment.judged.as_ref()?;
    let message = format!("the deployment goes no further: {}", judged.cause.message);
    Some(Cause::new("stopped", message))
}

fn call_limit(run: &Run, call: &Call) -> u64 {
    let pipeline = &run.header.pipeline;
    let limit = match &call.place {
        Some(Place::Stage { stage, .. }) => {
            pipeline.stages.iter().find(|s| s.name.as_str() == *stage).map(|s| s.timeout_ms)
        }
        Some(Place::Deployment { deployment, .. } | Place::Host { deployment, .. }) => run
            .deployment(*deployment)
            .and_then(|deployment| deployment.spec(run))
            .map(|environment| environment.timeout_ms),
        None => None,
    };
    limit.unwrap_or(3_600_000)
}

/// Undoes what a call has left, before anything else happens where it was.
pub(super) fn undo(run: &Run, key: &CallKey, progress: &Progress, decision: &mut Decision) {
    if matches!(progress, Progress::Undoing(_)) && !run.calls.contains_key(&key.undo()) {
        decision.act(Action::Undo(key.clone()));
    }
}

pub(super) fn call(run: &Run, key: CallKey, function: String) -> Action {
    let input = input::of(run, &key);
    Action::Call { key, function, input }
}
