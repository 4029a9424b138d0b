//! What is said and done about the disk: on a full one somebody looks every second whether there is room again.

use std::{sync::Arc, time::Duration};

use super::conductor::Conductor;
use crate::{model::cause::Cause, ports::storage::Condition};

/// How often a full disk is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What people see of a disk that failed.
pub(super) fn failed(why: &str) -> Cause {
    let message = format!(
        "the disk failed, and nothing is changed any more: {why}. What runs on hosts goes on. Look at the disk (`dmesg`), then \
         restart phased: it takes up everything that is on disk"
    );
    Cause::new("degraded", message)
}

fn full(dir: &std::path::Path) -> Cause {
    let message = format!(
        "the disk that holds {dir} is full: nothing new is begun, what runs goes on for a while. Make room there (see `df {dir}`); \
         phased goes on by itself within seconds",
        dir = dir.display()
    );
    Cause::new("disk_full", message)
}

/// Shows how the disk is, and brings back a full one once there is room, until the daemon goes down.
pub(super) async fn watch(conductor: Conductor) {
    let world = Arc::clone(&conductor.inner.world);
    let stopping = world.tasks.stopping();
    let mut condition = world.storage.condition();
    loop {
        let now = condition.borrow_and_update().clone();
        conductor.trouble(
            "disk",
            match &now {
                Condition::Well => None,
                Condition::Full => Some(full(&world.data_dir)),
                Condition::Failed(why) => Some(failed(why)),
            },
        );
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
