//! systemd's watchdog, fed by the engine's own progress: a ping goes out only after a round trip through everything a run needs.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

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
    let felt = complain_of_silence(limit / 2, pulse.clone());
    loop {
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = conductor.pulse(&pulse) => manager.ping(),
        }
        let _thread_gone = felt.send(());
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            // Twice as often as need be: one round may take as long as the other.
            () = clock.sleep(limit / 4) => {}
        }
    }
}

/// Logs who is missing when nothing was felt for `patience`: whoever reads the log after the restart is to know why there was one. On a thread
/// of its own, since the runtime may be what stands still; it ends with what it returns.
fn complain_of_silence(patience: Duration, pulse: Pulse) -> mpsc::Sender<()> {
    let (felt, feels) = mpsc::channel();
    let work = move || loop {
        match feels.recv_timeout(patience) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let missing = match pulse.missing().join(", ") {
                    nobody if nobody.is_empty() => "the runtime itself".to_owned(),
                    missing => missing,
                };
                tracing::error!(
                    missing,
                    "the engine has not answered for half of the watchdog's time; without an answer the daemon is restarted"
                );
                if feels.recv().is_err() {
                    return;
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("watchdog".to_owned()).spawn(work) {
        tracing::warn!(%error, "there is no thread to say why the watchdog gets no ping");
    }
    felt
}
