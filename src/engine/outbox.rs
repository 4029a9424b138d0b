//! Delivers the outbox: retried with backoff, kept over crashes, never able to change a run.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde_json::json;

use super::{conductor::Conductor, message::Letter, plugin, world::World};
use crate::{
    model::{
        cause::Cause,
        pipeline::{Alarm, Pipeline},
    },
    ports::control::{Commit, Entry},
};

/// Waits between tries, seconds; then given up, loudly. About a day in all.
const BACKOFF: [u64; 12] = [1, 5, 15, 60, 120, 300, 900, 1800, 3600, 7200, 21600, 43200];

/// How long letters under way are waited for when the daemon goes down.
const LINGER: Duration = Duration::from_secs(3);

/// Letters under way at the same moment; each has a Lua VM.
const SIDE_BY_SIDE: usize = 16;

/// Delivers until the daemon goes down.
pub(super) async fn deliver(conductor: Conductor) {
    let world = &conductor.inner.world;
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
            if letter.is_early(now) {
                next = next.min(letter.next_ms);
            } else if under_way.len() < SIDE_BY_SIDE {
                under_way.insert(entry.key.clone());
                let conductor = &conductor;
                tries.push(async move { (entry.key.clone(), attempt(conductor, entry, letter).await) });
            }
        }
        let wait = Duration::from_millis(u64::try_from(next - now).unwrap_or(0).max(50));
        tokio::select! {
            biased;
            () = stopping.cancelled() => {
                // What is under way may have arrived: told to control it does not come twice.
                let ending = async { while tries.next().await.is_some() {} };
                crate::time::within(&*world.clock, LINGER, ending).await;
                return;
            }
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

async fn deliver_once(world: &World, letter: &Letter) -> Result<(), Cause> {
    let input = json!({ "message": letter.message });
    plugin::run(world, &letter.project, &letter.code, &letter.function, input).await.map(|_| ())
}

/// Readdresses a letter to the project's code as it is loaded now; false when that has no such channel either.
fn elsewhere(conductor: &Conductor, letter: &mut Letter) -> bool {
    let Ok(loaded) = conductor.project(letter.project.as_str()) else { return false };
    let Some((function, channel)) = present(&loaded.pipeline, letter) else { return false };
    if loaded.code == letter.code {
        return false;
    }
    letter.code = loaded.code.clone();
    (letter.function, letter.channel) = (function, channel);
    true
}

/// The function and name of the channel that takes a letter's place in `pipeline`.
pub(super) fn present(pipeline: &Pipeline, letter: &Letter) -> Option<(String, String)> {
    let parts: Vec<&str> = letter.function.split('/').collect();
    let notify = &pipeline.notify;
    let of = |kind: &str, channels: &[String], number: usize| {
        // With fewer channels than before the last one hears of it more than once, which is better than never.
        let number = number.min(channels.len());
        let channel = channels.get(number.checked_sub(1)?)?;
        Some((format!("notify/{kind}/{number}"), channel.clone()))
    };
    match parts.as_slice() {
        ["alarms", environment, ..] => {
            let alarms = pipeline.environments.iter().find(|e| e.name.as_str() == *environment).map(|e| &e.alarms);
            let named = |alarm: &Alarm| letter.message["alarm"] == alarm.name.as_str();
            let own = alarms.and_then(|alarms| Some((alarms.iter().position(named)?, alarms)));
            match own {
                Some((at, alarms)) => {
                    Some((format!("alarms/{environment}/{}/alert", at + 1), alarms.get(at)?.alert.clone()))
                }
                // The alarm is gone, and what it said is bad news all the same.
                None => of("bad", &notify.bad, 1),
            }
        }
        ["notify", "good", n] => of("good", &notify.good, n.parse().ok()?),
        ["notify", _, n] => of("bad", &notify.bad, n.parse().ok()?),
        _ => None,
    }
}

impl Letter {
    /// Whether it is to wait. Never longer than between two tries: the wall clock may have been set back since.
    fn is_early(&self, now: i64) -> bool {
        let longest = BACKOFF[BACKOFF.len() - 1] * 1000;
        (now + 1..=now.saturating_add_unsigned(longest)).contains(&self.next_ms)
    }
}

/// Tries once; true when control knows what came of it.
async fn attempt(conductor: &Conductor, entry: Entry, mut letter: Letter) -> bool {
    let world = &conductor.inner.world;
    let tried = match deliver_once(world, &letter).await {
        // Its channel went with the code. The project has one as it is now, and bad news always arrives.
        Err(cause) if cause.code.starts_with("code_") && elsewhere(conductor, &mut letter) => {
            tracing::warn!(project = %letter.project, run = letter.run.as_ref().map(tracing::field::display), %cause, "people are told through the project's present channels");
            deliver_once(world, &letter).await
        }
        tried => tried,
    };
    let value = match tried {
        Ok(_) => {
            tracing::info!(
                project = %letter.project, run = letter.run.as_ref().map(tracing::field::display),
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
                    tracing::warn!(project = %letter.project, run = letter.run.as_ref().map(tracing::field::display), channel = letter.channel, %cause, "people were not told yet; tried again in {seconds} s");
                    letter.next_ms = world.clock.now().wall_ms + i64::try_from(seconds * 1000).unwrap_or(i64::MAX);
                    Some(json!(letter))
                }
                None => {
                    tracing::error!(project = %letter.project, run = letter.run.as_ref().map(tracing::field::display), channel = letter.channel, %cause, "people could not be told; tell them, and mend the channel");
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
