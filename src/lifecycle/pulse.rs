//! Whether everybody still works: each is handed a beat in the way work reaches it, and lets go of it when it gets there.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// One round of asking after the other. Cheap to clone; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Pulse {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    out: Mutex<Out>,
    gone: Notify,
}

#[derive(Debug, Default)]
struct Out {
    /// Who has not let go, by the number of the beat.
    names: BTreeMap<u64, Arc<str>>,
    next: u64,
}

/// What somebody is handed; letting go of it is the answer. Whoever ends while it waits has let go of it too: a run that is over
/// need not be asked any more.
#[derive(Debug)]
pub struct Beat {
    shared: Arc<Shared>,
    number: u64,
}

impl Shared {
    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beat(self: &Arc<Self>, name: Arc<str>) -> Beat {
        let mut out = self.out();
        let number = out.next;
        out.next += 1;
        out.names.insert(number, name);
        Beat { shared: Arc::clone(self), number }
    }
}

impl Pulse {
    /// A round without anybody in it.
    #[must_use]
    pub fn new() -> Self {
        Pulse::default()
    }

    /// Begins a new round: beats of earlier ones count for nothing any more.
    pub fn begin(&self) {
        self.shared.out().names.clear();
    }

    /// For somebody called `name`.
    #[must_use]
    pub fn beat(&self, name: impl Into<Arc<str>>) -> Beat {
        self.shared.beat(name.into())
    }

    /// Waits until nobody holds a beat of this round. Cancel safe.
    pub async fn felt(&self) {
        loop {
            // It hears of every beat let go of from here on.
            let gone = self.shared.gone.notified();
            if self.shared.out().names.is_empty() {
                return;
            }
            gone.await;
        }
    }

    /// Who still holds one.
    #[must_use]
    pub fn missing(&self) -> Vec<Arc<str>> {
        self.shared.out().names.values().cloned().collect()
    }
}

impl Beat {
    /// Another one of the same round, for somebody who is reached through whoever holds this one.
    #[must_use]
    pub fn for_another(&self, name: impl Into<Arc<str>>) -> Beat {
        self.shared.beat(name.into())
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        let last = {
            let mut out = self.shared.out();
            out.names.remove(&self.number).is_some() && out.names.is_empty()
        };
        if last {
            self.shared.gone.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn polled(felt: std::pin::Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
        felt.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn it_is_felt_once_everybody_has_let_go() {
        let pulse = Pulse::new();
        let (journal, owner) = (pulse.beat("journal"), pulse.beat("owner"));
        let lua = owner.for_another("lua");
        let mut felt = std::pin::pin!(pulse.felt());
        drop(owner);
        assert!(polled(felt.as_mut()).is_pending());
        assert_eq!(pulse.missing(), vec![Arc::from("journal"), Arc::from("lua")]);
        drop((journal, lua));
        assert!(polled(felt.as_mut()).is_ready());
    }

    #[test]
    fn a_beat_of_an_earlier_round_is_waited_for_by_nobody() {
        let pulse = Pulse::new();
        let late = pulse.beat("late");
        pulse.begin();
        assert!(polled(std::pin::pin!(pulse.felt())).is_ready());
        let now = pulse.beat("now");
        drop(late);
        assert_eq!(pulse.missing(), vec![Arc::from("now")]);
        drop(now);
    }
}
