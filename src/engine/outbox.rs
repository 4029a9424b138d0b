//! Delivers the outbox: retried with backoff, kept over crashes, never able to change a run.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde_json::json;

use super::{message::Letter, plugin, world::World};
use crate::ports::control::{Commit, Entry};

/// Waits between tries, seconds; then given up, loudly. About a day in all.
const BACKOFF: [u64; 12] = [1, 5, 15, 60, 120, 300, 900, 1800, 3600, 7200, 21600, 43200];

/// Letters under way at the same moment; each has a Lua VM.
const SIDE_BY_SIDE: usize = 16;

/// Delivers until the daemon goes down.
pub(super) async fn deliver(world: Arc<World>) {
    let stopping = world.tasks.stopping();
    let mut changed = world.control.changed();
    // Side by side: a channel that hangs delays no other.
    let mut tries = FuturesUnordered::new();
    let mut under_way = BTreeSet::new();
    // Tried, but control does not know what came of it: not again in this life, or people would be told for ever.
    let mut untold = BTreeSet::new();
    loop {
        changed.mark_unchanged();
        let now = world.clock.now().wall_ms;
        let mut next = now + 3_600_000;
        for entry in world.control.scan("outbox/") {
            if under_way.contains(&entry.key) || untold.contains(&entry.key) {
                continue;
            }
            let Ok(letter) = serde_json::from_value::<Letter>(entry.value.clone()) else {
                tracing::error!(key = entry.key, "a letter in the outbox cannot be read; it is left there");
                untold.insert(entry.key);
                continue;
            };
            if letter.next_ms > now {
                next = next.min(letter.next_ms);
            } else if under_way.len() < SIDE_BY_SIDE {
                under_way.insert(entry.key.clone());
                let world = &world;
                tries.push(async move { (entry.key.clone(), attempt(world, entry, letter).await) });
            }
        }
        let wait = Duration::from_millis(u64::try_from(next - now).unwrap_or(0).max(50));
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            Some((key, known)) = tries.next() => {
                under_way.remove(&key);
                if !known {
                    untold.insert(key);
                }
            }
            _ = changed.changed() => {}
            () = world.clock.sleep(wait) => {}
        }
    }
}

/// Tries once; true when control knows what came of it.
async fn attempt(world: &World, entry: Entry, mut letter: Letter) -> bool {
    let input = json!({ "message": letter.message });
    let tried = plugin::run(world, &letter.project, &letter.code, &letter.function, input).await;
    let value = match tried {
        Ok(_) => {
            tracing::info!(
                run = letter.run.as_ref().map(tracing::field::display),
                channel = letter.channel,
                "people were told"
            );
            None
        }
        Err(cause) => {
            let wait = BACKOFF.get(letter.attempts as usize);
            letter.attempts += 1;
            match wait {
                Some(seconds) => {
                    tracing::warn!(run = letter.run.as_ref().map(tracing::field::display), channel = letter.channel, %cause, "people were not told yet; tried again in {seconds} s");
                    letter.next_ms = world.clock.now().wall_ms + i64::try_from(seconds * 1000).unwrap_or(i64::MAX);
                    Some(json!(letter))
                }
                None => {
                    tracing::error!(run = letter.run.as_ref().map(tracing::field::display), channel = letter.channel, %cause, "people could not be told; tell them, and mend the channel");
                    None
                }
            }
        }
    };
    let expected = [(entry.key.clone(), entry.revision)];
    let written = world.control.commit(Commit::Outbox, &expected, vec![(entry.key, value)]);
    if let Err(error) = &written {
        tracing::error!(%error, "the outbox cannot be written; the message may come twice");
    }
    written.is_ok()
}
