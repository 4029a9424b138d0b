//! The disk below `data_dir`: its reserve, and whether it can be written.
//!
//! `data_dir/reserve` is 16 MiB of nothing. When a write finds no room it is removed, so that what runs can be brought to an end; it is
//! made again when there is room for it and some more. Records are small: 16 MiB are those of thousands of steps.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use nix::sys::statvfs::statvfs;

use super::disk::is_full;
use crate::lifecycle::watch;
use crate::ports::storage::{Condition, Storage};

const RESERVE: u64 = 16 * 1024 * 1024;

/// What must be free beside the reserve before all is well: else the next write would take it away again.
const SPARE: u64 = 8 * 1024 * 1024;

/// The file system under one data directory.
pub struct DataDisk {
    dir: PathBuf,
    reserve: u64,
    condition: watch::Sender<Condition>,
    /// How often somebody has looked; who waits for room waits for the next look.
    looks: Mutex<u64>,
    looked: Condvar,
}

impl DataDisk {
    /// Makes the reserve in `dir` if it is not there. Where there is no room for it, or hardly any beside it, the disk is full from the
    /// start and the reserve is gone.
    ///
    /// # Errors
    /// The disk's, when the reserve cannot be made for another reason.
    pub fn open(dir: &Path) -> io::Result<Self> {
        DataDisk::keeping(dir, RESERVE)
    }

    /// Without a reserve, over a disk in memory that has always room.
    #[must_use]
    pub fn simulated(dir: &Path) -> Self {
        DataDisk {
            dir: dir.to_owned(),
            reserve: 0,
            condition: watch::Sender::new(Condition::Well),
            looks: Mutex::default(),
            looked: Condvar::new(),
        }
    }

    pub(super) fn keeping(dir: &Path, reserve: u64) -> io::Result<Self> {
        let disk = DataDisk {
            dir: dir.to_owned(),
            reserve,
            condition: watch::Sender::new(Condition::Well),
            looks: Mutex::default(),
            looked: Condvar::new(),
        };
        let there = fs::metadata(disk.path()).is_ok_and(|file| file.blocks() * 512 >= reserve);
        if disk.free()? < SPARE + if there { 0 } else { reserve } {
            disk.lacked();
        } else if !there {
            disk.make()?;
        }
        Ok(disk)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("reserve")
    }

    fn free(&self) -> io::Result<u64> {
        let stat = statvfs(&self.dir)?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    fn make(&self) -> io::Result<()> {
        let length = i64::try_from(self.reserve).unwrap_or(i64::MAX);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.path())?;
        // Allocated, not only promised: a file of holes would be no room.
        let made =
            nix::fcntl::posix_fallocate(&file, 0, length).map_err(io::Error::from).and_then(|()| file.sync_all());
        if let Err(error) = made {
            let _it_would_be_no_reserve = fs::remove_file(self.path());
            return Err(error);
        }
        Ok(())
    }

    fn looks(&self) -> MutexGuard<'_, u64> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write or sync of a journal failed: that stays.
    pub(super) fn failed(&self, why: &str) {
        self.condition.send_if_modified(|condition| {
            let first = !matches!(condition, Condition::Failed(_));
            if first {
                *condition = Condition::Failed(why.to_owned());
            }
            first
        });
        // Who waits for room waits for nothing any more.
        self.wake();
    }

    fn has_failed(&self) -> bool {
        matches!(*self.condition.borrow(), Condition::Failed(_))
    }

    /// Does `write` until it finds room, or the disk has failed otherwise; `ended` says that nobody waits any more.
    pub(super) fn with_room<T>(
        &self,
        ended: &dyn Fn() -> bool,
        mut write: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            // Read before the try: a look that comes between it and the wait is not missed.
            let seen = *self.looks();
            match write() {
                Err(error) if is_full(&error) => {
                    if self.release() {
                        continue;
                    }
                    let waits = |looks: &mut u64| *looks == seen && !ended() && !self.has_failed();
                    drop(self.looked.wait_while(self.looks(), waits).unwrap_or_else(PoisonError::into_inner));
                    if ended() || self.has_failed() {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }

    /// Lets go of the reserve; true when it was there.
    fn release(&self) -> bool {
        let said = self.condition.send_if_modified(|condition| {
            let well = *condition == Condition::Well;
            if well {
                *condition = Condition::Full;
            }
            well
        });
        if said {
            tracing::error!(data_dir = %self.dir.display(), "the disk is full: nothing new is begun; make room, it goes on by itself");
        }
        fs::remove_file(self.path()).is_ok()
    }

    /// Who waits looks whether it is to wait any longer.
    pub(super) fn wake(&self) {
        // Under the lock: nobody is between looking and waiting.
        let _between = self.looks();
        self.looked.notify_all();
    }
}

impl Storage for DataDisk {
    fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    fn lacked(&self) {
        self.release();
    }

    fn look(&self) {
        let room = self.free().is_ok_and(|free| free >= self.reserve + SPARE);
        if room && *self.condition.borrow() == Condition::Full {
            match self.make() {
                Ok(()) => {
                    self.condition.send_if_modified(|condition| {
                        let full = *condition == Condition::Full;
                        if full {
                            *condition = Condition::Well;
                        }
                        full
                    });
                    tracing::info!(data_dir = %self.dir.display(), "there is room again: requests are taken");
                }
                Err(error) => tracing::warn!(%error, "the reserve cannot be made again yet"),
            }
        }
        *self.looks() += 1;
        self.looked.notify_all();
    }

    fn used(&self) -> io::Result<u64> {
        used(&self.dir)
    }
}

/// The blocks of everything below `dir`. What goes away meanwhile takes nothing.
pub(super) fn used(dir: &Path) -> io::Result<u64> {
    let mut total = 0;
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // A job user's: where the daemon is not root it cannot look, and cannot make room there either.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            // Of the entry itself: a link is not followed.
            let Ok(found) = entry.metadata() else { continue };
            total += found.blocks() * 512;
            if found.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_real_and_is_made_again_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DataDisk::open(dir.path()).unwrap();
        let reserve = || fs::metadata(dir.path().join("reserve")).map(|file| file.blocks() * 512).unwrap_or(0);
        assert!(reserve() >= RESERVE && used(dir.path()).unwrap() >= RESERVE);
        disk.lacked();
        assert_eq!((reserve(), disk.condition().borrow().clone()), (0, Condition::Full));
        disk.look();
        assert!(reserve() >= RESERVE && *disk.condition().borrow() == Condition::Well);
        // What was a reserve before is one still; one of holes is made anew.
        fs::write(dir.path().join("reserve"), b"").unwrap();
        DataDisk::open(dir.path()).unwrap();
        assert!(reserve() >= RESERVE);
    }

    #[test]
    fn a_failure_stays_whatever_room_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DataDisk::keeping(dir.path(), 4096).unwrap();
        disk.lacked();
        disk.failed("first");
        disk.failed("second");
        disk.look();
        disk.lacked();
        assert_eq!(*disk.condition().borrow(), Condition::Failed("first".to_owned()));
    }

    #[test]
    fn what_is_written_for_want_of_room_is_written_again_and_other_failures_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DataDisk::keeping(dir.path(), 4096).unwrap();
        let fail = |error: io::ErrorKind| {
            let mut tries = 0;
            let done = disk.with_room(&|| false, || {
                tries += 1;
                if tries > 1 { Ok(()) } else { Err(error.into()) }
            });
            (done.is_ok(), tries)
        };
        assert_eq!(fail(io::ErrorKind::StorageFull), (true, 2));
        assert_eq!(fail(io::ErrorKind::PermissionDenied), (false, 1));
        let ended = disk.with_room(&|| true, || io::Result::<()>::Err(io::ErrorKind::QuotaExceeded.into()));
        assert!(ended.is_err());
    }

    #[test]
    fn who_waits_for_room_is_told_that_the_disk_failed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DataDisk::keeping(dir.path(), 4096).unwrap();
        std::thread::scope(|scope| {
            let waits =
                scope.spawn(|| disk.with_room(&|| false, || io::Result::<()>::Err(io::ErrorKind::StorageFull.into())));
            while *disk.condition().borrow() != Condition::Full {
                std::thread::yield_now();
            }
            disk.failed("EIO");
            assert!(waits.join().unwrap().is_err());
        });
    }
}
