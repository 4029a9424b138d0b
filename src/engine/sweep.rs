//! Forgets what control need not know any more: old deliveries, signatures, idempotency keys, signals. And takes away checkouts that were
//! left behind.

use std::{sync::Arc, time::Duration};

use serde_json::Value;

use super::world::World;
use crate::{
    model::ids::RunId,
    ports::control::{Commit, Entry},
};

/// Deliveries and signatures are kept so long: a replay after that finds another head anyway.
pub(super) const SEEN_MS: i64 = 8 * 86_400_000;
/// Answers under an `Idempotency-Key` are kept so long.
pub(super) const KEPT_MS: i64 = 86_400_000;
/// Which run a signal's token began is known so long: longer than any sender asks about it (`FORGOTTEN`).
const SIGNALS_MS: i64 = 10 * 86_400_000;

/// Sweeps hourly until the daemon goes down.
pub(super) async fn sweep(world: Arc<World>) {
    let stopping = world.tasks.stopping();
    loop {
        // A record has a size limit: as many records as it takes.
        while !stopping.is_cancelled() && forget(&world) {}
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = super::end::leftovers(&world) => {}
        }
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = world.clock.sleep(Duration::from_secs(3600)) => {}
        }
    }
}

/// Whether what is to be kept for `keep` ms is not any more.
fn is_old(value: &Value, now: i64, keep: i64) -> bool {
    match value {
        // A run was requested when its id was made. Where that is of days to come a clock was wrong, and ids may be for years.
        Value::String(run) => run.parse().is_ok_and(|run: RunId| now.abs_diff(run.wall_ms()) > keep.unsigned_abs()),
        value => value.get("at_ms").and_then(Value::as_i64).is_some_and(|at| now - at > keep),
    }
}

/// Forgets the first of what is old; true when there is more.
fn forget(world: &World) -> bool {
    const AT_ONCE: usize = 200;
    let now = world.clock.now().wall_ms;
    let found = [("delivery/", SEEN_MS), ("signature/", SEEN_MS), ("idem/", KEPT_MS), ("signal/", SIGNALS_MS)]
        .into_iter()
        .flat_map(|(prefix, keep)| {
            world.control.scan(prefix).into_iter().filter(move |entry| is_old(&entry.value, now, keep))
        });
    let found: Vec<Entry> = found.take(AT_ONCE).collect();
    if found.is_empty() {
        return false;
    }
    // Written again meanwhile is not old any more.
    let only_if: Vec<_> = found.iter().map(|entry| (entry.key.clone(), entry.revision)).collect();
    let count = found.len();
    let puts = found.into_iter().map(|entry| (entry.key, None)).collect();
    match world.control.commit(Commit::Setting, &only_if, puts) {
        Ok(_) => count == AT_ONCE,
        Err(error) => {
            tracing::warn!(%error, "control is not swept");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_kept_long_enough_goes() {
        let (now, day) = (1_800_000_000_000, 86_400_000);
        for (at, goes) in [(0, false), (-8 * day, false), (-8 * day - 1, true), (8 * day, false), (8 * day + 1, true)] {
            let (delivery, other) = (json!(RunId::new(now + at, 7)), json!({ "at_ms": now + at, "run": "x" }));
            assert_eq!(is_old(&delivery, now, SEEN_MS), goes, "{at}");
            // What must not happen twice is rather kept for too long.
            assert_eq!(is_old(&other, now, SEEN_MS), goes && at < 0, "{at}");
        }
        // Of what says no time nothing is known.
        assert!(!is_old(&json!("no run"), now, SEEN_MS) && !is_old(&json!({}), now, SEEN_MS));
    }
}
