//! The index when the disk is full: sled takes no writes any more and soon answers no reads, so it is made anew from the journals in
//! memory, and once there is room on the disk again, while the daemon goes on.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{conductor::Conductor, recovery::Damage};
use crate::{
    model::{cause::Cause, ids::RunId},
    ports::{
        index::{IndexError, Medium},
        storage::Condition,
    },
};

/// How long after a first attempt that came to nothing the next one is made; twice as long each time after it, at most [`SELDOM`]: each
/// reads every journal.
const AGAIN: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_mins(10);

/// Makes the index anew when it has found no room, in memory while there is none, until the daemon goes down.
pub(super) async fn watch(conductor: Conductor) {
    let world = Arc::clone(&conductor.inner.world);
    let stopping = world.tasks.stopping();
    let mut condition = world.storage.condition();
    let mut behind = conductor.inner.views.behind();
    let mut pause = AGAIN;
    loop {
        let well = *condition.borrow_and_update() == Condition::Well;
        let lacking = *behind.borrow_and_update();
        let mut failed = false;
        conductor.trouble("views", lacking.then(cause));
        if well && (lacking || conductor.inner.views.in_memory()) {
            match renew(&conductor, Medium::Disk).await {
                Ok(()) => {
                    tracing::info!("there is room again: the state index was made anew from the journals");
                    pause = AGAIN;
                }
                Err(error) => {
                    tracing::warn!(%error, "the state index is not made anew yet");
                    failed = true;
                }
            }
        }
        if *behind.borrow_and_update() {
            match renew(&conductor, Medium::Memory).await {
                Ok(()) => tracing::info!("the state index finds no room: it is kept in memory until there is some"),
                Err(error) => {
                    tracing::warn!(%error, "the state index is not made anew in memory yet");
                    failed = true;
                }
            }
        }
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            changed = condition.changed() => if changed.is_err() { return },
            changed = behind.changed(), if !failed => if changed.is_err() { return },
            () = world.clock.sleep(pause), if failed => pause = (pause * 2).min(SELDOM),
        }
    }
}

fn cause() -> Cause {
    let message = "what is shown of runs is behind, because the disk is full: nothing is lost, it is being made anew from the journals";
    Cause::new("index_behind", message)
}

/// One attempt. Until it has succeeded people read what they could read before.
async fn renew(conductor: &Conductor, medium: Medium) -> Result<(), IndexError> {
    let world = &conductor.inner.world;
    let made = world.tasks.blocking({
        let conductor = conductor.clone();
        move || fill(&conductor, medium)
    });
    made.await.unwrap_or_else(|error| Err(IndexError(error.to_string())))
}

fn fill(conductor: &Conductor, medium: Medium) -> Result<(), IndexError> {
    let (world, views) = (&conductor.inner.world, &conductor.inner.views);
    let stopping = world.tasks.stopping();
    views.renew(medium)?;
    // Before the journals: one of these may have begun and ended meanwhile, and its journal says so.
    conductor.waiting().for_each(|(_, view)| views.known(view));
    let mut folded: BTreeSet<RunId> = BTreeSet::new();
    for run in world.journals.runs().map_err(|error| IndexError(format!("the journals cannot be listed: {error}")))? {
        if stopping.is_cancelled() {
            return Err(IndexError("the daemon goes down".to_owned()));
        }
        let Ok(found) = world.journals.read(&run) else { continue };
        if let Some(damage) = Damage::of(&found) {
            // It may say so little that only the index before knows of it.
            if let Some(view) = damage.view(world, &run) {
                views.known(view);
            }
        } else if !found.records.is_empty() {
            folded.insert(run.clone());
            views.ended(&run, found.records);
        }
    }
    // What ended without a journal is known only from the index before, which may also know more of a damaged one.
    let seen = views.each_run(|view| {
        if view.state.is_end() && !folded.contains(view.id.as_str()) {
            views.known(view);
        }
    });
    if let Err(error) = seen {
        tracing::warn!(%error, "runs without a journal may not be shown any more");
    }
    views.renewed()
}
