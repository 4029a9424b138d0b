//! A backup for whoever asks, piece by piece, while everything goes on.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    conductor::Conductor,
    handle::{Pieces, Refusal},
};
use crate::{
    model::cause::Cause,
    ports::{backup::Manifest, control::Commit},
    time::{Clock, within},
};

/// Sent at once; and so many of them wait for who asked.
const PIECE: usize = 64 * 1024;
const WAITING: usize = 4;
/// Who takes nothing for so long is gone.
const SLOWEST: Duration = Duration::from_secs(120);

/// Begins one. Returns once everything that was acknowledged until now is on disk, and so in it.
pub(super) async fn begin(conductor: &Conductor, secrets: bool, by: &str) -> Result<Pieces, Refusal> {
    let world = Arc::clone(&conductor.inner.world);
    let Ok(alone) = Arc::clone(&conductor.inner.backup).try_lock_owned() else {
        let message = "another backup is being made; wait for its end";
        return Err(Refusal::Unchangeable(Cause::new("backup_running", message)));
    };
    // A daemon that cannot write any more is backed up all the same: nothing waits for the disk then.
    if conductor.writable().is_ok() {
        let barrier = world.control.commit(Commit::Setting, &[], Vec::new());
        conductor.synced(&barrier.map_err(|error| conductor.refused(&error))?).await?;
    }
    let now = world.clock.now();
    let manifest = Manifest {
        format: 1,
        version: world.version.to_owned(),
        controller: world.controller.to_string(),
        at: now.rfc3339(),
        at_ms: now.wall_ms,
        secrets,
    };
    let (sender, pieces) = mpsc::channel(WAITING);
    let (tasks, by) = (world.tasks.clone(), by.to_owned());
    tasks.clone().spawn("backup", async move {
        let failed = sender.clone();
        let (runtime, stopping) = (Handle::current(), world.tasks.stopping());
        let written = tasks.blocking(move || {
            let _alone = alone;
            // No blob and no code goes while it is written.
            let _hold = world.blobs.hold();
            let mut to =
                Sending { sender, held: Vec::new(), bytes: 0, runtime, stopping, clock: Arc::clone(&world.clock) };
            world.archive.write(&manifest, &mut to).and_then(|()| to.flush()).map(|()| to.bytes)
        });
        match written.await.map_err(io::Error::other).flatten() {
            Ok(bytes) => tracing::info!(by, secrets, bytes, "a backup was made"),
            Err(error) => {
                tracing::warn!(by, %error, "a backup was not finished");
                // Who does not take it sees the end that is missing.
                let _nobody_listens = failed.try_send(Err(error.to_string()));
            }
        }
    });
    Ok(pieces)
}

/// Bytes on their way to who asked.
struct Sending {
    sender: mpsc::Sender<Result<Vec<u8>, String>>,
    held: Vec<u8>,
    bytes: u64,
    runtime: Handle,
    stopping: CancellationToken,
    clock: Arc<dyn Clock>,
}

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(&mut self.held);
        self.bytes += piece.len() as u64;
        let sending = async {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => Err("the daemon goes down"),
                sent = within(&*self.clock, SLOWEST, self.sender.send(Ok(piece))) => match sent {
                    Some(Ok(())) => Ok(()),
                    Some(Err(_)) => Err("who asked for it has gone"),
                    None => Err("who asked for it has taken nothing for two minutes"),
                },
            }
        };
        self.runtime.block_on(sending).map_err(|why| io::Error::new(io::ErrorKind::BrokenPipe, why))
    }
}
