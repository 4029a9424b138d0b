//! `Idempotency-Key`: the same request twice is done once and answered alike.

use serde_json::{Value, json};

use super::{
    conductor::{Conductor, locked},
    handle::{KeptAnswer, Refusal},
    sweep,
};
use crate::{
    model::ids::{Digest, RunId},
    ports::control::{Commit, CommitError},
};

/// Larger answers are not kept whole; there are none.
const LARGEST: usize = 32 * 1024;

fn control_key(scope: &str, key: &str) -> String {
    format!("idem/{}", Digest::of(format!("{scope}|{key}").as_bytes()))
}

/// The key under which control remembers the run that a press made.
pub(super) fn pressed_key(pressed_as: &str) -> String {
    format!("press/{}", Digest::of(pressed_as.as_bytes()))
}

/// The run that the same press made, when its answer was lost in a crash.
pub(super) fn pressed(conductor: &Conductor, key: &str) -> Option<RunId> {
    let entry = conductor.inner.world.control.get(key)?;
    let at = entry.value.get("at_ms").and_then(Value::as_i64).unwrap_or(0);
    let fresh = conductor.inner.world.clock.now().wall_ms - at < sweep::KEPT_MS;
    entry.value.get("run")?.as_str()?.parse().ok().filter(|_| fresh)
}

pub(super) fn claim(conductor: &Conductor, scope: &str, key: &str, body: &str) -> Result<Option<KeptAnswer>, Refusal> {
    let name = control_key(scope, key);
    let world = &conductor.inner.world;
    let mut claims = locked(&conductor.inner.claims);
    if let Some(entry) = world.control.get(&name) {
        let at = entry.value.get("at_ms").and_then(Value::as_i64).unwrap_or(0);
        if world.clock.now().wall_ms - at < sweep::KEPT_MS {
            if entry.value.get("body").and_then(Value::as_str) != Some(body) {
                return Err(Refusal::KeyReused);
            }
            let answer = entry.value.get("answer").cloned().unwrap_or_default();
            return serde_json::from_value(answer).map(Some).map_err(|e| Refusal::Degraded(e.to_string()));
        }
    }
    if !claims.insert(name) {
        return Err(Refusal::InFlight);
    }
    Ok(None)
}

pub(super) async fn keep(
    conductor: &Conductor,
    scope: &str,
    key: &str,
    body: &str,
    answer: Option<KeptAnswer>,
) -> Result<(), Refusal> {
    let name = control_key(scope, key);
    let world = &conductor.inner.world;
    let kept = match answer.filter(|answer| answer.body.len() <= LARGEST) {
        None => Ok(None),
        Some(answer) => {
            let value = json!({ "body": body, "answer": answer, "at_ms": world.clock.now().wall_ms });
            match world.control.commit(Commit::Idempotency, &[], vec![(name.clone(), Some(value))]) {
                // As large an answer as one over `LARGEST`, once it is escaped.
                Err(CommitError::TooLarge { .. }) => Ok(None),
                committed => committed.map(Some),
            }
        }
    };
    locked(&conductor.inner.claims).remove(&name);
    match kept {
        Ok(None) => Ok(()),
        Ok(Some(ticket)) => conductor.synced(&ticket).await,
        Err(error) => Err(conductor.refused(&error)),
    }
}
