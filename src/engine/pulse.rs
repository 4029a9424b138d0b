//! Whether the engine works: a round trip through everything that a run needs to go on. Systemd's watchdog hears from the daemon only after
//! one, so that a daemon that answers requests and deploys nothing is restarted all the same.

use std::time::Duration;

use futures_util::future::join_all;

use super::{Conductor, owner::Message};
use crate::{
    lifecycle::{locks::locked, pulse::Pulse},
    ports::storage::Condition,
};

/// How long a full queue of the views is given before it is asked again.
const FULL: Duration = Duration::from_millis(100);

impl Conductor {
    /// Returns once the journals' writers, the views, which hold these up when their queue is full, the queue, the owner of every run and the
    /// Lua of every run have each done what came before this, and let go of their beat. [`Pulse::missing`] says for whom it waits. Threads
    /// for what blocks are not asked: a name server that is silent holds all of them up, and no restart helps against that. Cancel safe.
    pub async fn pulse(&self, pulse: &Pulse) {
        let mut condition = self.inner.world.storage.condition();
        loop {
            let full = *condition.borrow() == Condition::Full;
            tokio::select! {
                biased;
                () = self.round(pulse, !full) => return,
                // A writer without room waits for it on purpose, and has said so: everybody but the writers is asked again.
                changed = condition.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn round(&self, pulse: &Pulse, writers: bool) {
        pulse.begin();
        let inner = &self.inner;
        if writers {
            inner.world.journals.beat(pulse.beat("the writer of the journals"));
            inner.world.control.beat(pulse.beat("the writer of the control log"));
        }
        locked(&inner.beats).push(pulse.beat("the queue"));
        inner.nudge.notify_one();
        let owners: Vec<_> = {
            let runs = locked(&inner.runs);
            runs.iter().map(|(id, running)| (id.clone(), running.sender.clone())).collect()
        };
        let asked = owners.into_iter().map(|(id, owner)| {
            // Before it is sent: a full queue that nobody empties must not hide whose it is.
            let beat = pulse.beat(format!("the owner of run {id}"));
            async move {
                // One that has ended needs nothing.
                let _owner_gone = owner.send(Message::Beat(beat)).await;
            }
        });
        // An index that is made anew, or has no room, is not waited for.
        let mut views = (writers && !*inner.views.behind().borrow()).then(|| pulse.beat("the views"));
        let shown = async {
            while let Some(beat) = views.take() {
                views = inner.views.beat(beat);
                if views.is_some() {
                    inner.world.clock.sleep(FULL).await;
                }
            }
        };
        let (_, ()) = tokio::join!(join_all(asked), shown);
        pulse.felt().await;
    }
}
