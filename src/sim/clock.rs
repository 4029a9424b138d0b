//! Virtual time: it stands still while anybody has something to do, then goes on to what is due next.
//!
//! Whatever is to happen later lies in one list, in the order of its time and, at the same time, of its coming. A task that waits is on
//! it with its waker, and so is everything that the world outside the daemon does. The runtime asks for the next one when it has run out
//! of work, see [`super::life`].

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    journal::Later,
    ports::storage::Storage as _,
    time::{Clock, Stamp},
};

/// When simulations begin, wall time.
const BEGIN_MS: i64 = 1_700_000_000_000;

type Work = Box<dyn FnOnce() + Send>;

/// Something that is due at a time.
enum Due {
    Wake(Waker),
    Work(Work),
}

struct State {
    /// Microseconds since the beginning: finer than anything that is measured, so that what comes one after the other stays so.
    now: u64,
    list: BTreeMap<(u64, u64), Due>,
    next: u64,
    /// How often the machine of the daemon was started, and when it was last.
    boots: u32,
    booted: u64,
    moved: u64,
}

/// The clock. Clones are the same one.
#[derive(Clone)]
pub struct VirtualClock(Arc<Mutex<State>>);

impl Default for VirtualClock {
    fn default() -> Self {
        let state = State { now: 0, list: BTreeMap::new(), next: 0, boots: 1, booted: 0, moved: 0 };
        VirtualClock(Arc::new(Mutex::new(state)))
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX / 4)
}

impl VirtualClock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(self.state().now)
    }

    fn put(&self, at: u64, due: Due) -> (u64, u64) {
        let mut state = self.state();
        let key = (at.max(state.now), state.next);
        state.next += 1;
        state.list.insert(key, due);
        key
    }

    /// Has `work` done at `at`, counted from the beginning; at once, but after all else, when that is past.
    pub fn at(&self, at: Duration, work: impl FnOnce() + Send + 'static) {
        self.put(micros(at), Due::Work(Box::new(work)));
    }

    /// Has `work` done after `span`.
    pub fn after(&self, span: Duration, work: impl FnOnce() + Send + 'static) {
        let now = self.state().now;
        self.put(now.saturating_add(micros(span)), Due::Work(Box::new(work)));
    }

    /// Goes on to what is due next and does it; false when there is nothing.
    pub fn go_on(&self) -> bool {
        let due = {
            let mut state = self.state();
            let Some(((at, _), due)) = state.list.pop_first() else { return false };
            state.now = at;
            state.moved += 1;
            due
        };
        match due {
            Due::Wake(waker) => waker.wake(),
            Due::Work(work) => work(),
        }
        true
    }

    /// How many things have happened.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.state().moved
    }

    /// Wall time at a moment that is counted from the beginning.
    #[must_use]
    pub fn wall_ms(&self, at: Duration) -> i64 {
        BEGIN_MS.saturating_add(i64::try_from(at.as_millis()).unwrap_or(0))
    }

    /// The daemon's machine has started again.
    pub fn reboot(&self) {
        let mut state = self.state();
        state.boots += 1;
        state.booted = state.now;
    }
}

#[async_trait]
impl Clock for VirtualClock {
    fn now(&self) -> Stamp {
        let state = self.state();
        Stamp {
            wall_ms: BEGIN_MS.saturating_add(i64::try_from(state.now / 1000).unwrap_or(0)),
            boot_ms: (state.now - state.booted) / 1000,
            boot: format!("boot-{}", state.boots).into(),
        }
    }

    async fn sleep(&self, span: Duration) {
        let at = self.state().now.saturating_add(micros(span));
        Sleep { clock: self.clone(), at, key: None }.await;
    }
}

/// A wait. Dropped, it is taken off the list.
struct Sleep {
    clock: VirtualClock,
    at: u64,
    key: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let waker = Due::Wake(context.waker().clone());
        let Some(key) = self.key else {
            self.key = Some(self.clock.put(self.at, waker));
            return Poll::Pending;
        };
        let waits = match self.clock.state().list.get_mut(&key) {
            // Polled for another reason: its place stays.
            Some(due) => {
                *due = waker;
                true
            }
            None => false,
        };
        if !waits {
            self.key = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.clock.state().list.remove(&key);
        }
    }
}

/// Writes reach the disk a moment after they were appended, so that there is a moment to crash in; while it is full, once it is not any more.
pub(super) struct DiskTime {
    pub(super) clock: VirtualClock,
    pub(super) random: Mutex<super::random::Random>,
    pub(super) room: Arc<super::ports::Room>,
}

impl Later for DiskTime {
    fn later(&self, work: Box<dyn FnOnce() + Send>) {
        let micros = self.random.lock().unwrap_or_else(PoisonError::into_inner).between(200, 6_000);
        let (clock, room, moment) = (self.clock.clone(), Arc::clone(&self.room), Duration::from_micros(micros));
        self.clock.after(moment, move || match room.full() {
            None => work(),
            Some(until) => {
                room.lacked();
                clock.at(until + moment, work);
            }
        });
    }
}
