//! Delivers the outbox: retried with backoff, kept over crashes, never able to change a run.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{message::Letter, plugin, world::World};
use crate::ports::control::{Commit, Entry};

/// Waits between tries, seconds; then given up, loudly. About a day in all.
const BACKOFF: [u64; 12] = [1, 5, 15, 60, 120, 300, 900, 1800, 3600, 7200, 21600, 43200];

/// Delivers until the daemon goes down.
pub(super) async fn deliver(world: Arc<World>) {
    let stopping = world.tasks.stopping();
    let mut changed = world.control.changed();
    loop {
        changed.mark_unchanged();
        let now = world.clock.now().wall_ms;
        let mut next = now + 3_600_000;
        let mut due = Vec::new();
        for entry in world.control.scan("outbox/") {
            let Ok(letter) = serde_json::from_value::<Letter>(entry.value.clone()) else {
                tracing::error!(key = entry.key, "a letter in the outbox cannot be read; it is left there");
                continue;
            };
            if letter.next_ms <= now {
                due.push((entry, letter));
            } else {
                next = next.min(letter.next_ms);
            }
        }
        // Side by side: a channel that hangs delays no other.
        let tries = due.into_iter().map(|(entry, letter)| attempt(&world, entry, letter));
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            tried = futures_util::future::join_all(tries) => if !tried.is_empty() { continue },
        }
        let wait = Duration::from_millis(u64::try_from(next - now).unwrap_or(0).max(50));
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = changed.changed() => {}
            () = world.clock.sleep(wait) => {}
        }
    }
}

async fn attempt(world: &World, entry: Entry, mut letter: Letter) {
    let input = json!({ "message": letter.message });
    let tried = plugin::run(world, &letter.project, &letter.code, &letter.function, input).await;
    let value = match tried {
        Ok(_) => {
            tracing::info!(run = %letter.run, channel = letter.channel, "people were told");
            None
        }
        Err(cause) => {
            let wait = BACKOFF.get(letter.attempts as usize);
            letter.attempts += 1;
            match wait {
                Some(seconds) => {
                    tracing::warn!(run = %letter.run, channel = letter.channel, %cause, "people were not told yet; tried again in {seconds} s");
                    letter.next_ms = world.clock.now().wall_ms + i64::try_from(seconds * 1000).unwrap_or(i64::MAX);
                    Some(json!(letter))
                }
                None => {
                    tracing::error!(run = %letter.run, channel = letter.channel, %cause, "people could not be told; tell them, and mend the channel");
                    None
                }
            }
        }
    };
    if let Err(error) =
        world.control.commit(Commit::Outbox, &[(entry.key.clone(), entry.revision)], vec![(entry.key, value)])
    {
        tracing::error!(%error, "the outbox cannot be written; the message may come twice");
    }
}
