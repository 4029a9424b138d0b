//! A value and who waits for it to change, as `tokio::sync::watch` has it, but for one thing: whoever waits is woken in the order in which
//! they began to. Tokio's wakes them in an order of chance, and a simulation could never be played again.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

struct Shared<T> {
    value: RwLock<T>,
    /// Grows with every change.
    version: AtomicU64,
    senders: AtomicUsize,
    changed: Notify,
}

impl<T> Shared<T> {
    fn read(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.senders.load(Ordering::SeqCst) == 0
    }

    async fn changed(&self, seen: &mut u64) -> Result<(), Closed> {
        loop {
            // It hears of every change from here on, polled or not.
            let changed = self.changed.notified();
            let closed = self.is_closed();
            let version = self.version.load(Ordering::SeqCst);
            if *seen != version {
                *seen = version;
                return Ok(());
            }
            if closed {
                return Err(Closed);
            }
            changed.await;
        }
    }
}

/// Changes the value. Clones change the same one.
pub struct Sender<T>(Arc<Shared<T>>);

/// Sees the value, and waits for changes of it. A clone has seen what its original has.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value as it is now. Nobody can change it meanwhile: not to be kept.
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

/// Nobody is left who could change the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody changes it any more")]
pub struct Closed;

/// A value with one of each.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Sender<T> {
    /// For a value that nobody watches yet.
    pub fn new(value: T) -> Self {
        let (version, senders) = (AtomicU64::new(0), AtomicUsize::new(1));
        Sender(Arc::new(Shared { value: RwLock::new(value), version, senders, changed: Notify::new() }))
    }

    /// Watches it from now on: what it is has been seen.
    pub fn subscribe(&self) -> Receiver<T> {
        // Under the lock: no change comes in between.
        let seen = {
            let _value = self.0.read();
            self.0.version.load(Ordering::SeqCst)
        };
        Receiver { shared: Arc::clone(&self.0), seen }
    }

    /// The value now.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.read())
    }

    /// Changes it where `change` says that it has, and tells those who wait; whether it has.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        {
            let mut value = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
            if !change(&mut value) {
                return false;
            }
            self.0.version.fetch_add(1, Ordering::SeqCst);
        }
        self.0.changed.notify_waiters();
        true
    }

    /// Changes it, and tells those who wait.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Puts another in its place, and tells those who wait.
    pub fn send_replace(&self, mut value: T) -> T {
        self.send_modify(|old| std::mem::swap(old, &mut value));
        value
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::SeqCst);
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T> Receiver<T> {
    /// The value now; that does not count as seen.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// The value now, seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.read();
        self.seen = self.shared.version.load(Ordering::SeqCst);
        Ref(value)
    }

    /// What it is counts as seen.
    pub fn mark_unchanged(&mut self) {
        drop(self.borrow_and_update());
    }

    /// Whether it has changed since it was seen.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn has_changed(&self) -> Result<bool, Closed> {
        if self.shared.is_closed() { Err(Closed) } else { Ok(self.seen != self.shared.version.load(Ordering::SeqCst)) }
    }

    /// Waits until it has changed since it was seen; it is seen then. Cancel safe.
    ///
    /// # Errors
    /// [`Closed`], when it has not changed and nobody is left to change it.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        self.shared.changed(&mut self.seen).await
    }

    /// Waits until the value is as wanted, if it is not already; it is seen then. Cancel safe.
    ///
    /// # Errors
    /// [`Closed`], when it is not and nobody is left to change it.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        let shared = &*self.shared;
        loop {
            {
                let value = shared.read();
                self.seen = shared.version.load(Ordering::SeqCst);
                if wanted(&value) {
                    return Ok(Ref(value));
                }
            }
            shared.changed(&mut self.seen).await?;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Receiver { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T: fmt::Debug> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&*self.borrow()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&*self.borrow()).finish()
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Sender::new(T::default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::lifecycle::Tasks;

    #[tokio::test]
    async fn all_who_wait_are_woken_in_their_order() {
        let (sender, receiver) = channel(0);
        let (tasks, woken) = (Tasks::new(), Arc::new(Mutex::new(Vec::new())));
        for n in 0..50 {
            let (mut receiver, woken) = (receiver.clone(), Arc::clone(&woken));
            tasks.spawn("waits", async move {
                receiver.changed().await.unwrap();
                woken.lock().unwrap().push((n, *receiver.borrow()));
            });
        }
        tokio::task::yield_now().await;
        assert_eq!(sender.send_replace(7), 0);
        while woken.lock().unwrap().len() < 50 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*woken.lock().unwrap(), (0..50).map(|n| (n, 7)).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_has_changed_is_seen_once_and_an_end_is_told() {
        let (sender, mut receiver) = channel("a");
        assert_eq!(receiver.has_changed(), Ok(false));
        assert!(!sender.send_if_modified(|_| false));
        assert_eq!(receiver.has_changed(), Ok(false));
        sender.send_modify(|value| *value = "b");
        let late = sender.subscribe();
        assert_eq!((receiver.has_changed(), late.has_changed()), (Ok(true), Ok(false)));
        receiver.changed().await.unwrap();
        assert_eq!(*receiver.wait_for(|value| *value == "b").await.unwrap(), "b");
        let another = sender.clone();
        drop(sender);
        another.send_replace("c");
        drop(another);
        // The last change before the end is no secret.
        receiver.changed().await.unwrap();
        assert_eq!(*receiver.borrow(), "c");
        assert_eq!(receiver.changed().await, Err(Closed));
        assert!(receiver.wait_for(|value| *value == "d").await.is_err());
        assert_eq!(receiver.has_changed(), Err(Closed));
    }
}
