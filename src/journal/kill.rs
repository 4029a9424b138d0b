//! A place at which the daemon kills itself, so that a test can ask what recovery makes of exactly that moment.
//!
//! `PHASED_KILL=<where>:<n>` names the n-th record (from 1) that this process writes to journals of runs, or with `control-` before
//! it to the control log:
//!
//! ```text
//! before:7           everything before the 7th record is on disk, nothing of it is
//! after:7            it is on disk too, and nobody has been told
//! control-before:2   control-after:2
//! ```
//!
//! Records that are written together are cut apart at that place. Death is SIGKILL: no destructor runs and nothing is flushed.
//! Only debug builds know the variable; in a release build there is nothing to set (checked below, by the compiler).

use crate::lifecycle::stall::{Stall, Stalls};

#[cfg(debug_assertions)]
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Where the writer of one kind of journal dies or stands still, if anywhere.
#[derive(Debug, Clone, Default)]
pub struct Kill {
    pub(super) stall: Stall,
    #[cfg(debug_assertions)]
    place: Option<Arc<Place>>,
}

#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Kill>() == 0, "a release build has no kill point");

#[cfg(debug_assertions)]
#[derive(Debug)]
struct Place {
    /// So many records are written whole.
    whole: u64,
    /// Whether it dies right after them, or only when another one comes.
    at_once: bool,
    written: AtomicU64,
}

/// The kill points of a daemon; by default there are none.
#[derive(Debug, Clone, Default)]
pub struct Kills {
    /// For journals of runs.
    pub runs: Kill,
    /// For the control log.
    pub control: Kill,
}

impl Kills {
    /// The same, with stall points besides.
    #[must_use]
    pub fn with(mut self, stalls: &Stalls) -> Kills {
        self.runs.stall = stalls.at("journal");
        self.control.stall = stalls.at("control");
        self
    }

    /// What `PHASED_KILL` says. A release build has none whatever it says.
    ///
    /// # Errors
    /// One sentence, when it says something that is no kill point: a test that kills nothing would prove nothing.
    pub fn named(text: Option<&str>) -> Result<Kills, String> {
        #[cfg(debug_assertions)]
        if let Some(text) = text {
            return Kills::parse(text).ok_or_else(|| {
                format!("PHASED_KILL={text:?} is no kill point: write before:N, after:N, control-before:N or control-after:N")
            });
        }
        let _unused_in_release = text;
        Ok(Kills::default())
    }

    #[cfg(debug_assertions)]
    fn parse(text: &str) -> Option<Kills> {
        let (place, number) = text.split_once(':')?;
        let number = number.parse::<u64>().ok().filter(|n| *n > 0)?;
        let (control, moment) = place.strip_prefix("control-").map_or((false, place), |moment| (true, moment));
        let (whole, at_once) = match moment {
            "before" => (number - 1, false),
            "after" => (number, true),
            _ => return None,
        };
        let place = Some(Arc::new(Place { whole, at_once, written: AtomicU64::new(0) }));
        let kill = Kill { place, ..Kill::default() };
        Some(match control {
            true => Kills { control: kill, ..Kills::default() },
            false => Kills { runs: kill, ..Kills::default() },
        })
    }
}

impl Kill {
    /// How many of the next `count` records are written and synced before the writer dies; `None`: all of them, and it lives.
    pub(super) fn within(&self, count: usize) -> Option<usize> {
        #[cfg(debug_assertions)]
        if let Some(place) = &self.place {
            let before = place.written.fetch_add(count as u64, Ordering::SeqCst);
            let left = place.whole.checked_sub(before).and_then(|left| usize::try_from(left).ok())?;
            return (left < count || (left == count && place.at_once)).then_some(left);
        }
        let _unused_in_release = count;
        None
    }

    /// Dies as by `kill -9`.
    pub(super) fn now() -> ! {
        #[cfg(debug_assertions)]
        let _sent = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        // The signal is on its way.
        loop {
            std::thread::park();
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    fn kill(text: &str) -> Kill {
        Kills::named(Some(text)).unwrap().runs
    }

    #[test]
    fn it_dies_before_or_after_the_very_record_however_they_are_batched() {
        let deaths = |text: &str, batches: &[usize]| {
            let kill = kill(text);
            let mut batches = batches.iter().enumerate();
            batches.find_map(|(batch, count)| Some((batch, kill.within(*count)?)))
        };
        assert_eq!(deaths("before:1", &[3]), Some((0, 0)));
        assert_eq!(deaths("before:3", &[2, 2]), Some((1, 0)));
        assert_eq!(deaths("before:3", &[3, 2]), Some((0, 2)));
        assert_eq!(deaths("after:3", &[3, 1]), Some((0, 3)));
        assert_eq!(deaths("after:3", &[2, 4]), Some((1, 1)));
        assert_eq!(deaths("after:9", &[2, 4]), None);
    }

    #[test]
    fn it_is_for_one_kind_of_journal() {
        let kills = Kills::named(Some("control-after:2")).unwrap();
        assert_eq!((kills.runs.within(5), kills.control.within(5)), (None, Some(2)));
        assert_eq!(Kills::named(None).unwrap().runs.within(5), None);
        for bad in ["", "after", "after:0", "after:x", "behind:1", "control:1", "control-control-after:1"] {
            assert!(Kills::named(Some(bad)).unwrap_err().contains("before:N"), "{bad}");
        }
    }
}
