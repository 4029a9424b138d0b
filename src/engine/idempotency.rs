//! `Idempotency-Key`: the same request twice is done once and answered alike.
//!
//! A start's key is in the record that requests its run, so no crash can come between the two: until the answer is kept beside it, the
//! run itself is the answer.

use serde_json::{Value, json};

use super::{
    conductor::Conductor,
    handle::{Claim, KeptAnswer, Refusal},
    sweep,
};
use crate::{
    lifecycle::locks::locked,
    model::ids::{Digest, RunId},
    ports::control::{Commit, CommitError},
};

/// Larger answers are not kept whole; there are none.
const LARGEST: usize = 32 * 1024;

impl Claim {
    fn control_key(&self) -> String {
        format!("idem/{}", Digest::of(format!("{}|{}", self.scope, self.key).as_bytes()))
    }

    /// What control says of it together with the request of `run`.
    pub(super) fn began(&self, run: &RunId, at_ms: i64) -> (String, Option<Value>) {
        (self.control_key(), Some(json!({ "body": self.body, "run": run, "at_ms": at_ms })))
    }
}

pub(super) fn claim(conductor: &Conductor, claim: &Claim) -> Result<Option<KeptAnswer>, Refusal> {
    let name = claim.control_key();
    let world = &conductor.inner.world;
    let mut claims = locked(&conductor.inner.claims);
    if claims.contains(&name) {
        return Err(Refusal::InFlight);
    }
    if let Some(entry) = world.control.get(&name) {
        let at = entry.value.get("at_ms").and_then(Value::as_i64).unwrap_or(0);
        if world.clock.now().wall_ms - at < sweep::KEPT_MS {
            if entry.value.get("body").and_then(Value::as_str) != Some(&claim.body) {
                return Err(Refusal::KeyReused);
            }
            let answer = match entry.value.get("answer") {
                Some(answer) => serde_json::from_value(answer.clone()).map_err(|e| Refusal::Degraded(e.to_string()))?,
                // The daemon was gone before it had answered; the run was requested.
                None => requested(conductor, &entry.value)?,
            };
            return Ok(Some(answer));
        }
    }
    claims.insert(name);
    Ok(None)
}

/// The answer to a start whose own was never kept.
fn requested(conductor: &Conductor, kept: &Value) -> Result<KeptAnswer, Refusal> {
    let unreadable = || Refusal::Degraded("what is kept under this Idempotency-Key cannot be read".to_owned());
    let run: RunId = kept.get("run").and_then(Value::as_str).and_then(|run| run.parse().ok()).ok_or_else(unreadable)?;
    let body = serde_json::to_string(&conductor.view(&run)?).map_err(|_| unreadable())?;
    let location = Some(format!("/v1/runs/{run}"));
    Ok(KeptAnswer { status: 202, location, body, content_type: "application/json".to_owned() })
}

pub(super) async fn keep(conductor: &Conductor, claim: &Claim, answer: Option<KeptAnswer>) -> Result<(), Refusal> {
    let name = claim.control_key();
    let world = &conductor.inner.world;
    let kept = match answer.filter(|answer| answer.body.len() <= LARGEST) {
        None => Ok(None),
        Some(answer) => {
            let value = json!({ "body": claim.body, "answer": answer, "at_ms": world.clock.now().wall_ms });
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
