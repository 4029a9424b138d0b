//! Tasks with names and an orderly end: the only place that spawns.

pub mod locks;
pub mod names;
pub mod pulse;
pub mod stall;
pub mod watch;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tasks of one daemon. Cheap to clone; every clone spawns into the same set.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    alive: Arc<Mutex<BTreeMap<u64, Arc<str>>>>,
    next: Arc<std::sync::atomic::AtomicU64>,
    blocking: Blocking,
}

/// Where work is done that blocks.
#[derive(Debug, Clone, Copy, Default)]
enum Blocking {
    /// On threads of the runtime.
    #[default]
    OnThreads,
    /// Where it is asked for.
    Here,
}

/// Takes a task's name off the list however the task ends, panics included.
struct Alive {
    tasks: Tasks,
    id: u64,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.tasks.names().remove(&self.id);
    }
}

impl Tasks {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Tasks::default()
    }

    /// The same, for a world in which nothing may happen beside something else: what blocks is done where it is asked for.
    #[must_use]
    pub fn in_order() -> Self {
        Tasks { blocking: Blocking::Here, ..Tasks::default() }
    }

    /// Does `work`, which may block on the disk or run for a while, without holding up other tasks.
    ///
    /// # Errors
    /// It panicked.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        match self.blocking {
            Blocking::OnThreads => tokio::task::spawn_blocking(work).await,
            Blocking::Here => Ok(work()),
        }
    }

    fn names(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<str>>> {
        self.alive.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Starts `work` under `name`; a panic in it ends that task alone and is logged.
    #[allow(clippy::disallowed_methods)] // this is the one place
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<Arc<str>>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.names().insert(id, name.into());
        let alive = Alive { tasks: self.clone(), id };
        // Not a block that awaits it: that would have room for it twice, as long as the task lives. Boxed, because the runtime moves what
        // it is given several times, and that of a step is large.
        self.tracker.spawn(Box::pin(work.map(|done| {
            drop(alive);
            done
        })))
    }

    /// Cancelled when the daemon goes down: tasks that only wait select on it.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Asks every task to end and waits for at most `limit`; returns the names of those still working then.
    #[allow(clippy::disallowed_methods)] // the shutdown's own limit
    pub async fn shut_down(&self, limit: Duration) -> Vec<Arc<str>> {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(limit, self.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        self.names().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shut_down_names_who_is_still_working() {
        let tasks = Tasks::new();
        let stop = tasks.stopping();
        tasks.spawn("polite", async move { stop.cancelled().await });
        tasks.spawn("stubborn", std::future::pending::<()>());
        assert_eq!(tasks.shut_down(Duration::from_millis(50)).await, vec![Arc::from("stubborn")]);
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_task_only() {
        let tasks = Tasks::new();
        let bad = tasks.spawn("bad", async { panic!("on purpose") });
        let good = tasks.spawn("good", async { 7 });
        assert!(bad.await.is_err());
        assert_eq!(good.await.unwrap(), 7);
        assert!(tasks.shut_down(Duration::from_secs(1)).await.is_empty());
    }
}
