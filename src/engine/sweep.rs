//! Forgets what control need not know any more: old deliveries, signatures, idempotency keys, expired tokens.

use std::{sync::Arc, time::Duration};

use super::world::World;
use crate::ports::control::Commit;

/// Deliveries and signatures are kept so long: a replay after that finds another head anyway.
pub(super) const SEEN_MS: i64 = 8 * 86_400_000;
/// Answers under an `Idempotency-Key` are kept so long.
pub(super) const KEPT_MS: i64 = 86_400_000;

/// Sweeps hourly until the daemon goes down.
pub(super) async fn sweep(world: Arc<World>) {
    let stopping = world.tasks.stopping();
    loop {
        let now = world.clock.now().wall_ms;
        let age = |entry: &crate::ports::control::Entry| {
            entry.value.get("at_ms").and_then(serde_json::Value::as_i64).map(|at| now - at)
        };
        let old = [("delivery/", SEEN_MS), ("signature/", SEEN_MS), ("idem/", KEPT_MS)].into_iter().flat_map(
            |(prefix, keep)| {
                world.control.scan(prefix).into_iter().filter(move |entry| age(entry).is_some_and(|age| age > keep))
            },
        );
        // A record has a size limit; the rest goes next time.
        let puts: Vec<_> = old.take(200).map(|entry| (entry.key, None)).collect();
        if !puts.is_empty()
            && let Err(error) = world.control.commit(Commit::Setting, &[], puts)
        {
            tracing::warn!(%error, "control is not swept");
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            () = world.clock.sleep(Duration::from_secs(3600)) => {}
        }
    }
}
