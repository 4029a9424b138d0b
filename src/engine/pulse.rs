//! Whether the engine works: a round trip through everything that a run needs to go on. Systemd's watchdog hears from the daemon only after
//! one, so that a daemon that answers requests and deploys nothing is restarted all the same.

use futures_util::future::join_all;

use super::{Conductor, conductor::locked, owner::Message};
use crate::{lifecycle::pulse::Pulse, ports::storage::Condition};

impl Conductor {
    /// Returns once the journals' writers, the views, which hold these up when their queue is full, the threads for what blocks, the queue,
    /// the owner of every run and the Lua of every run have each done what came before this, and let go of their beat. [`Pulse::missing`]
    /// says for whom it waits. Cancel safe.
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
        // Checkouts, uploads and every link to this machine need such a thread. It may wait for room in the views' queue.
        let (thread, stall) = (pulse.beat("a thread for what blocks"), inner.world.stalls.at("blocking"));
        // An index that is made anew, or has no room, is not waited for.
        let views =
            (writers && !*inner.views.behind().borrow()).then(|| (inner.views.clone(), pulse.beat("the views")));
        let blocking = inner.world.tasks.blocking(move || {
            stall.here();
            drop(thread);
            if let Some((views, beat)) = views {
                views.beat(beat);
            }
        });
        let (_, _) = tokio::join!(join_all(asked), blocking);
        pulse.felt().await;
    }
}
