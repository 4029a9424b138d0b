//! What is done about the disk: on a full one somebody looks every second whether there is room again.

use std::{sync::Arc, time::Duration};

use super::conductor::Conductor;
use crate::ports::storage::Condition;

/// How often a full disk is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Shows how the disk is, and brings back a full one once there is room, until the daemon goes down.
pub(super) async fn watch(conductor: Conductor) {
    let world = Arc::clone(&conductor.inner.world);
    let stopping = world.tasks.stopping();
    let mut condition = world.storage.condition();
    loop {
        let now = condition.borrow_and_update().clone();
        conductor.trouble("disk", now.cause(&world.data_dir));
        if now == Condition::Well {
            // What was queued meanwhile.
            conductor.inner.nudge.notify_one();
        }
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            changed = condition.changed() => if changed.is_err() { return },
            () = world.clock.sleep(LOOK), if now == Condition::Full => {
                let storage = Arc::clone(&world.storage);
                let _looked = world.tasks.blocking(move || storage.look()).await;
            }
        }
    }
}
