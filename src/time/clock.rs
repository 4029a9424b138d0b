//! The clock handed to everything that waits or stamps.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// A moment, as every journal record carries it: wall time, boot time and the boot they belong to.
///
/// Serialised as `[wall_ms, boottime_ms, "boot id"]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, u64, Arc<str>)", into = "(i64, u64, Arc<str>)")]
pub struct Stamp {
    /// Milliseconds since the Unix epoch, UTC. May jump: for people, and for spans that cross a boot.
    pub wall_ms: i64,
    /// Milliseconds of `CLOCK_BOOTTIME`. Never jumps within one boot.
    pub boot_ms: u64,
    /// `/proc/sys/kernel/random/boot_id` of the machine that wrote the stamp.
    pub boot: Arc<str>,
}

impl From<(i64, u64, Arc<str>)> for Stamp {
    fn from((wall_ms, boot_ms, boot): (i64, u64, Arc<str>)) -> Self {
        Stamp { wall_ms, boot_ms, boot }
    }
}

impl From<Stamp> for (i64, u64, Arc<str>) {
    fn from(stamp: Stamp) -> Self {
        (stamp.wall_ms, stamp.boot_ms, stamp.boot)
    }
}

impl Stamp {
    /// Time from `earlier` to `self`: boot time within one boot, wall time (never negative) across.
    #[must_use]
    pub fn since(&self, earlier: &Stamp) -> Duration {
        if self.boot == earlier.boot {
            Duration::from_millis(self.boot_ms.saturating_sub(earlier.boot_ms))
        } else {
            Duration::from_millis(u64::try_from(self.wall_ms.saturating_sub(earlier.wall_ms)).unwrap_or(0))
        }
    }

    /// This moment plus `span`, on both clocks.
    #[must_use]
    pub fn plus(&self, span: Duration) -> Stamp {
        let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX / 4);
        Stamp {
            wall_ms: self.wall_ms.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX / 4)),
            boot_ms: self.boot_ms.saturating_add(ms),
            boot: self.boot.clone(),
        }
    }

    /// RFC 3339 in UTC with milliseconds, as the API shows it.
    #[must_use]
    pub fn rfc3339(&self) -> String {
        rfc3339(self.wall_ms)
    }
}

/// RFC 3339 in UTC with milliseconds of a wall time in milliseconds; out of range gives the epoch.
#[must_use]
pub fn rfc3339(wall_ms: i64) -> String {
    let moment = jiff::Timestamp::from_millisecond(wall_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{moment:.3}")
}

/// Reads the time and waits. One per daemon; the simulation hands in its own.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Stamp;
    /// Waits for `span`. Cancel safe: dropping it forgets the wait.
    async fn sleep(&self, span: Duration);
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    boot: Arc<str>,
}

impl SystemClock {
    /// Reads the boot id, once in a process. A machine without one (a restricted container) gets a constant: then time across a
    /// reboot is not told from time within one, which only lengthens deadlines.
    #[must_use]
    pub fn new() -> Self {
        static BOOT: LazyLock<Arc<str>> = LazyLock::new(|| {
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
            Arc::from(boot.trim())
        });
        SystemClock { boot: Arc::clone(&BOOT) }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Stamp {
        use nix::time::{ClockId, clock_gettime};
        let ms = |clock| {
            clock_gettime(clock).map_or(0, |t| t.tv_sec().saturating_mul(1000).saturating_add(t.tv_nsec() / 1_000_000))
        };
        Stamp {
            wall_ms: ms(ClockId::CLOCK_REALTIME),
            boot_ms: u64::try_from(ms(ClockId::CLOCK_BOOTTIME)).unwrap_or(0),
            boot: self.boot.clone(),
        }
    }

    #[allow(clippy::disallowed_methods)] // this is the one place
    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }
}

/// Runs `work` for at most `limit`. Cancel safe if `work` is.
///
/// # Errors
/// `None` when the limit was reached first; `work` is dropped then.
pub fn within<T>(clock: &dyn Clock, limit: Duration, work: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
    // Boxed here: an async function has room for its argument and once more for what it awaits, in each caller's future.
    let work = Box::pin(work);
    async move {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = clock.sleep(limit) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(wall_ms: i64, boot_ms: u64, boot: &str) -> Stamp {
        Stamp { wall_ms, boot_ms, boot: Arc::from(boot) }
    }

    #[test]
    fn a_set_wall_clock_does_not_move_elapsed_time_within_a_boot() {
        let later = stamp(1_000_000 - 86_400_000, 5_500, "a");
        assert_eq!(later.since(&stamp(1_000_000, 5_000, "a")), Duration::from_millis(500));
    }

    #[test]
    fn across_a_boot_the_wall_clock_counts_and_never_backwards() {
        assert_eq!(stamp(9_000, 10, "b").since(&stamp(4_000, 99_999, "a")), Duration::from_secs(5));
        assert_eq!(stamp(1_000, 10, "b").since(&stamp(4_000, 99_999, "a")), Duration::ZERO);
    }

    #[test]
    fn stamps_are_compact_and_read_back() {
        let json = serde_json::to_string(&stamp(1, 2, "x")).unwrap();
        assert_eq!(json, r#"[1,2,"x"]"#);
        assert_eq!(serde_json::from_str::<Stamp>(&json).unwrap(), stamp(1, 2, "x"));
    }
}
