//! Asks sources of hosts again and again while nothing is deployed, so that what is shown, and who is known to be gone, is not old.

use std::time::Duration;

use futures_util::StreamExt as _;

use super::{Which, ask, sources};
use crate::{
    engine::{conductor::Conductor, world::World},
    ports::program::Loaded,
};

/// Between two looks at which sources are due.
const LOOK: Duration = Duration::from_secs(1);
/// How many environments are asked for at the same moment.
const WIDE: usize = 8;

/// Until the daemon goes down.
pub(in crate::engine) async fn watch(conductor: Conductor) {
    let world = std::sync::Arc::clone(&conductor.inner.world);
    let stopping = world.tasks.stopping();
    loop {
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = round(&conductor) => {}
        }
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = world.clock.sleep(LOOK) => {}
        }
    }
}

/// Asks every source that is due. One that hangs holds up its own environment and its own round, until its `timeout`.
async fn round(conductor: &Conductor) {
    let world = &conductor.inner.world;
    let mut asking = futures_util::stream::FuturesUnordered::new();
    for loaded in conductor.all() {
        for at in 0..loaded.pipeline.environments.len() {
            let loaded = std::sync::Arc::clone(&loaded);
            if !is_due(world, &loaded, at) {
                continue;
            }
            while asking.len() >= WIDE {
                let _one_is_done = asking.next().await;
            }
            asking.push(async move {
                let Some(environment) = loaded.pipeline.environments.get(at) else { return };
                ask(world, &loaded.name, &loaded.code, environment, Which::Due).await;
            });
        }
    }
    while asking.next().await.is_some() {}
}

/// Whether an environment has a source that is due, or was never looked at.
fn is_due(world: &World, loaded: &Loaded, at: usize) -> bool {
    let Some(environment) = loaded.pipeline.environments.get(at) else { return false };
    let Some(known) = world.fleets.get(&loaded.name, &environment.name) else { return true };
    let now = world.clock.now();
    sources(environment).iter().any(|source| known.is_due(source, &now))
}
