//! systemd's watchdog, fed by the engine's own progress: a ping goes out only after a round trip through everything a run needs.

use std::{sync::Arc, time::Duration};

use super::notify::Manager;
use crate::{
    engine::Conductor,
    lifecycle::{Tasks, pulse::Pulse},
    time::Clock,
};

/// Feeds the watchdog that `WATCHDOG_USEC` asks for, until the daemon goes down. Returns at once.
pub fn feed(manager: Manager, conductor: Conductor, tasks: &Tasks, clock: Arc<dyn Clock>) {
    if let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) {
        tasks.spawn("service watchdog", pings(limit, manager, conductor, tasks.clone(), clock));
    }
}

async fn pings(limit: Duration, manager: Manager, conductor: Conductor, tasks: Tasks, clock: Arc<dyn Clock>) {
    let stopping = tasks.stopping();
    let pulse = Pulse::new();
    loop {
        let felt = async {
            let mut felt = std::pin::pin!(conductor.pulse(&pulse));
            tokio::select! {
                biased;
                () = &mut felt => return,
                () = clock.sleep(limit / 2) => {}
            }
            // Whoever reads the log after the restart is to know why there was one.
            tracing::error!(
                missing = %pulse.missing().join(", "),
                "the engine has not answered for half of the watchdog's time; without an answer the daemon is restarted"
            );
            felt.await;
        };
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = felt => manager.ping(),
        }
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            // Twice as often as need be: one round may take as long as the other.
            () = clock.sleep(limit / 4) => {}
        }
    }
}
