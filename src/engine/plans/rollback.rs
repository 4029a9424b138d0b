//! What a project's `rollback_safe` says of a release before anything begins. It gets nothing but the release, so that asking it has no effect.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    engine::{actions, view::RollbackAnswer, world::World},
    model::{
        cause::Cause,
        deployment::unsafe_because,
        input::{self, Against},
        pipeline::Environment,
        release::Release,
        step::CallKey,
    },
    ports::program::{Loaded, Opening, Turn},
    time::{Span, within},
};

/// For the repository and the code: a plan that says who is to be asked later is better than none.
const PATIENCE: Duration = Duration::from_secs(20);

/// The answer for `ships`, where `live` is live.
pub(super) async fn ask(
    world: &World,
    loaded: &Loaded,
    environment: &Environment,
    ships: &Release,
    live: Option<&Release>,
) -> RollbackAnswer {
    let silent = || Err(Cause::new("timeout", format!("it has not answered within {}", Span(PATIENCE))));
    let asked = within(&*world.clock, PATIENCE, answer(world, loaded, environment, ships, live)).await;
    match asked.unwrap_or_else(silent) {
        Ok(value) => {
            let reason = unsafe_because(&value);
            RollbackAnswer { safe: Some(reason.is_none()), reason }
        }
        Err(cause) => RollbackAnswer { safe: None, reason: Some(cause.message) },
    }
}

/// # Errors
/// It raised, or its code cannot be opened. Of a release that is not built yet it may have asked for an artifact.
async fn answer(
    world: &World,
    loaded: &Loaded,
    environment: &Environment,
    ships: &Release,
    live: Option<&Release>,
) -> Result<Value, Cause> {
    let changed_paths = actions::changed_paths(world, &loaded.name, live, ships).await;
    let (sender, mut turns) = mpsc::channel(1);
    let sink = Box::new(move |_: &CallKey, turn| {
        // The first turn is the answer, and there is room for one.
        let _one_is_enough = sender.try_send(turn);
    });
    let mut program = world.programs.open(&loaded.code, &loaded.name, 0, sink)?;
    let key = CallKey::deployment(environment.name.as_str(), 1, "rollback_safe");
    let against = Against { previous: live, changed_paths: changed_paths.as_deref() };
    let function = format!("environments/{}/rollback_safe", environment.name);
    program.call(&key, Opening { function, input: input::asked(ships, against), ..Opening::default() });
    match turns.recv().await {
        Some(Turn::Return(value)) => Ok(value),
        Some(Turn::Raised { cause, .. } | Turn::Ended { cause, .. }) => Err(cause),
        Some(Turn::Requests(_)) | None => Err(Cause::new("not_answered", "it asks for more than there is yet")),
    }
}
