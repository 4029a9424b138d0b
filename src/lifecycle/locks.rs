//! Locks that a panic does not poison: what they guard is whole between any two statements, so whoever comes next may go on with it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What `mutex` guards. Waits for whoever holds it: no lock is held over an await or a call that blocks.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
