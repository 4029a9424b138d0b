//! Asks sources of hosts again and again while nothing is deployed, so that what is shown, and who is known to be gone, is not old.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};

use super::{Which, ask_one, sources};
use crate::{
    engine::{conductor::Conductor, world::World},
    ports::program::Loaded,
};

/// Between two looks at which sources are due.
const LOOK: Duration = Duration::from_secs(1);
/// How many sources are asked at the same moment: each has a thread while it is.
const WIDE: usize = 32;

/// Until the daemon goes down. Each source has a rhythm of its own: one that hangs holds up no other, unless [`WIDE`] of them do.
pub(in crate::engine) async fn watch(conductor: Conductor) {
    let world = Arc::clone(&conductor.inner.world);
    let stopping = world.tasks.stopping();
    let (mut asked, mut asking) = (BTreeSet::new(), FuturesUnordered::new());
    loop {
        let free = WIDE.saturating_sub(asking.len());
        for one in due(&conductor, &asked).into_iter().take(free) {
            asked.insert(one.place());
            asking.push(one.ask(&world));
        }
        let mut next_look = world.clock.sleep(LOOK);
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                Some(place) = asking.next() => {
                    asked.remove(&place);
                }
                () = &mut next_look => break,
            }
        }
    }
}

/// A source whose turn it is: the `source`th of the `environment`th of a project.
struct Due {
    loaded: Arc<Loaded>,
    environment: usize,
    source: usize,
    /// When it was asked last, wall time, ms; `None` = never.
    asked_ms: Option<i64>,
}

/// Which source, whatever becomes of the project's file meanwhile.
type Place = (String, usize, usize);

impl Due {
    fn place(&self) -> Place {
        (self.loaded.name.to_string(), self.environment, self.source)
    }

    async fn ask(self, world: &World) -> Place {
        if let Some(environment) = self.loaded.pipeline.environments.get(self.environment)
            && let Some(source) = sources(environment).get(self.source)
        {
            ask_one(world, &self.loaded.name, &self.loaded.code, environment, source, Which::Due).await;
        }
        self.place()
    }
}

/// The sources that are due and not among those that are being `asked`: those that have waited longest come first.
fn due(conductor: &Conductor, asked: &BTreeSet<Place>) -> Vec<Due> {
    let world = &conductor.inner.world;
    let now = world.clock.now();
    let mut due = Vec::new();
    for loaded in conductor.all() {
        for (at, environment) in loaded.pipeline.environments.iter().enumerate() {
            let known = world.fleets.get(&loaded.name, &environment.name).unwrap_or_default();
            for (n, source) in sources(environment).iter().enumerate() {
                let asked_ms = known.source(source).and_then(|known| Some(known.asked.as_ref()?.wall_ms));
                let one = Due { loaded: Arc::clone(&loaded), environment: at, source: n, asked_ms };
                if known.is_due(source, &now) && !asked.contains(&one.place()) {
                    due.push(one);
                }
            }
        }
    }
    due.sort_by_key(|one| one.asked_ms);
    due
}
