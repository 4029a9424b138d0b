//! The way into an environment: who waits for what, and the lease.

use std::time::Duration;

use super::Context;
use crate::{
    engine::{doors::Place, ledger::freezes},
    model::{
        cause::Cause,
        decide, doors,
        event::Event,
        ids::{EnvironmentName, RunId},
        pipeline::Queue,
        run::{Run, Waiting},
    },
    ports::{
        control::CommitError,
        leases::{Acquired, Leases},
    },
};

/// Takes all of `names` or none, so that nobody holds one and waits for another: the grant of the last, or who is in the way.
fn take(leases: &dyn Leases, names: &[String], holder: &str, reason: &str) -> Result<Acquired, CommitError> {
    // Looked at before anything is written: who waits is woken by every record.
    if let Some(other) = names.iter().find_map(|name| leases.holder(name).filter(|held| held.holder != holder)) {
        return Ok(Acquired::Held(other));
    }
    let mut granted = None;
    for (taken, name) in names.iter().enumerate() {
        match leases.acquire(name, holder, reason)? {
            Acquired::Held(other) => {
                for name in names.iter().take(taken) {
                    leases.release(name, holder)?;
                }
                return Ok(Acquired::Held(other));
            }
            Acquired::Granted(epoch, ticket) => granted = Some(Acquired::Granted(epoch, ticket)),
        }
    }
    granted.ok_or_else(|| CommitError::Broken("a deployment without an environment asks for it".to_owned()))
}

/// How often who waits looks at the clock: it may be set at any time.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Waits for the environment, while it is frozen and while another has it, the oldest run first; says who is in the way each time that changes.
pub(super) async fn lease(context: &Context, run: &Run, deployment: u32, names: &[String], place: &Place) {
    let Some(of) = run.deployment(deployment) else { return };
    let holder = decide::holder(run, deployment);
    let reason = run.release.as_ref().map_or_else(String::new, |r| format!("deployment of {}", r.id));
    let (leases, clock) = (&context.world.leases, &context.world.clock);
    let pinned = run.environment(&of.environment).map(|environment| environment.freeze.as_slice()).unwrap_or_default();
    let mut changed = leases.changed();
    let mut others = place.changed();
    // An earlier life may have told it.
    let mut told: Option<Waiting> = of.waiting.clone();
    loop {
        changed.mark_unchanged();
        others.mark_unchanged();
        if run.header.pipeline.queue == Queue::Latest
            && let Some(newer) = place.newer()
        {
            return context.last(Event::PlanFailed { deployment, cause: superseded(&of.environment, &newer) }).await;
        }
        // One that is ours already, though a crash kept the run from hearing of it, is nobody else's to wait for.
        let ours = names.iter().all(|name| leases.holder(name).is_some_and(|held| held.holder == holder));
        // By the clock as it is now, whatever it was at the last look; and by the file as it is loaded, if it has this environment still.
        let now = clock.now().wall_ms;
        let loaded = place.windows();
        let windows = loaded.as_deref().unwrap_or(pinned);
        let frozen = freezes::waiting(&*context.world.control, windows, &run.header.project, &of.environment, now)
            .filter(|_| !ours && doors::minds_freeze(run));
        place.stand_aside(frozen.is_some());
        let lease = |holder: String, until_ms, reason: Option<String>| {
            let reason = reason.filter(|reason| !reason.is_empty());
            Waiting { code: "lease".to_owned(), holder, until_ms, reason }
        };
        let first = place.before().filter(|_| !ours);
        let asked = match (frozen, &first) {
            (Some(waiting), _) => Ok(Err(waiting)),
            (None, Some(first)) => Ok(Err(lease(first.to_string(), None, None))),
            (None, None) => take(&**leases, names, &holder, &reason).map(|acquired| match acquired {
                Acquired::Granted(epoch, ticket) => Ok((epoch, ticket)),
                Acquired::Held(other) => Err(lease(other.holder, other.until_ms, Some(other.reason))),
            }),
        };
        let mut look_again = LOOK_AGAIN;
        match asked {
            Ok(Ok((epoch, ticket))) => {
                // Granted is what the disk knows: otherwise another start could grant it to somebody else.
                if ticket.synced().await.is_ok() {
                    return context.last(Event::LeaseGranted { deployment, epoch }).await;
                }
            }
            Ok(Err(waiting)) => {
                let left = waiting.until_ms.and_then(|until| u64::try_from(until.saturating_sub(now)).ok());
                look_again = left.map_or(look_again, |left| look_again.min(Duration::from_millis(left.max(1))));
                if told.as_ref() != Some(&waiting) {
                    told = Some(waiting.clone());
                    context.facts(vec![Event::Blocked { deployment, waiting: Some(waiting) }], false).await;
                }
            }
            Err(error) => tracing::error!(?names, %error, "a lease cannot be asked for"),
        }
        tokio::select! {
            biased;
            _ = changed.changed() => {}
            _ = others.changed() => {}
            () = clock.sleep(look_again) => {}
        }
    }
}

/// An older release never overtakes a newer one.
pub(super) fn superseded(environment: &EnvironmentName, by: &RunId) -> Cause {
    Cause::new("superseded", format!("run {by} is newer and took its place in {environment}")).with("by", by.as_str())
}
