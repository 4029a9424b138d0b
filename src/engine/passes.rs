//! What goes on all the while beside the runs: begun when the daemon comes up, ended when it goes down.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Conductor, converge, hosts::watch, outbox, poll, recovery, renewal, retention, storage, sweep};
use crate::{lifecycle::locks::locked, ports::program::Loaded};

impl Conductor {
    /// Takes up what an earlier life left, then begins to work: the queue, the polls, the outbox. `looked_at` hears after each run how
    /// many of how many were looked at.
    pub async fn start(&self, projects: Vec<Loaded>, looked_at: &(dyn Fn(usize, usize) + Sync)) -> std::io::Result<()> {
        self.install(projects).await?;
        let world = &self.inner.world;
        // Before anything is taken up: that may wait for room, and somebody must look whether there is some.
        world.tasks.spawn("storage", storage::watch(self.clone()));
        recovery::recover(self, looked_at).await?;
        self.inner.recovered.send_replace(true);
        world.tasks.spawn("index", renewal::watch(self.clone()));
        let queue = self.clone();
        world.tasks.spawn("queue", async move { queue.work().await });
        world.tasks.spawn("outbox", outbox::deliver(self.clone()));
        world.tasks.spawn("sweep", sweep::sweep(Arc::clone(world)));
        world.tasks.spawn("hosts", watch::watch(self.clone()));
        world.tasks.spawn("converge", converge::converge(self.clone()));
        world.tasks.spawn("retention", retention::keep(self.clone()));
        self.poll_all();
        Ok(())
    }

    /// Polls every project of the loaded set, and none of an earlier one.
    pub(super) fn poll_all(&self) {
        let token = CancellationToken::new();
        std::mem::replace(&mut *locked(&self.inner.polls), token.clone()).cancel();
        for loaded in self.all().into_iter().filter(|loaded| !loaded.pipeline.only_listens()) {
            let conductor = self.clone();
            let token = token.clone();
            self.inner.world.tasks.spawn(format!("poll {}", loaded.name), poll::poll(conductor, loaded, token));
        }
    }
}
