//! The machine's disk, in which the k-th call that writes or syncs fails.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use nix::errno::Errno;

use super::{Disk, DiskFile, RealDisk};
use crate::{
    journal::data_disk::DataDisk,
    ports::{
        journal::Ticket,
        storage::{Condition, Storage as _},
    },
};

/// Counts the calls; that number `fail_at` (from 1) fails, and if not `once` every later one too, until it is mended.
#[derive(Clone)]
pub struct FaultyDisk {
    calls: Arc<AtomicU64>,
    fail_at: u64,
    /// Only the one call fails: what comes after must not be believed either.
    once: bool,
    error: Errno,
    /// The call that failed first was a sync.
    sync_failed: Arc<AtomicBool>,
    mended: Arc<AtomicBool>,
    /// Calls of one kind that failed and were made again on the same file.
    syncs_after_failure: Arc<AtomicU64>,
}

struct FaultyFile {
    file: Box<dyn DiskFile>,
    disk: FaultyDisk,
    sync_failed: bool,
}

impl FaultyDisk {
    pub fn new(fail_at: u64, once: bool, error: Errno) -> Self {
        FaultyDisk {
            calls: Arc::default(),
            fail_at,
            once,
            error,
            sync_failed: Arc::default(),
            mended: Arc::default(),
            syncs_after_failure: Arc::default(),
        }
    }

    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// From now on nothing fails.
    pub fn mend(&self) {
        self.mended.store(true, Ordering::SeqCst);
    }

    /// How often a file was synced again whose sync had failed: never, it is to be.
    pub fn syncs_after_failure(&self) -> u64 {
        self.syncs_after_failure.load(Ordering::SeqCst)
    }

    /// Whether the first call that failed was one that syncs: nothing heals that.
    pub fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::SeqCst)
    }

    fn hit(&self, sync: bool) -> io::Result<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let fails = if self.once { call == self.fail_at } else { call >= self.fail_at };
        if !fails || self.mended.load(Ordering::SeqCst) {
            return Ok(());
        }
        if call == self.fail_at {
            self.sync_failed.store(sync, Ordering::SeqCst);
        }
        Err(self.error.into())
    }
}

impl DiskFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // A failed write leaves half of its bytes behind, as a full disk does.
        if let Err(error) = self.disk.hit(false) {
            self.file.append(&bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        self.file.append(bytes)
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.file.cut(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.syncs_after_failure.fetch_add(u64::from(self.sync_failed), Ordering::SeqCst);
        let done = self.disk.hit(true);
        self.sync_failed |= done.is_err();
        done
    }
}

impl Disk for FaultyDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        RealDisk.read(path)
    }

    fn exists(&self, path: &Path) -> bool {
        RealDisk.exists(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.hit(false)?;
        Ok(Box::new(FaultyFile { file: RealDisk.create(path)?, disk: self.clone(), sync_failed: false }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.hit(false)?;
        RealDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.hit(true)
    }
}

/// Whether the record of `ticket` gets on disk, where the disk is mended, and looked at, as soon as it is said to be full.
pub async fn acknowledged(ticket: &Ticket, disk: &FaultyDisk, data: &DataDisk) -> bool {
    let mut condition = data.condition();
    loop {
        if *condition.borrow_and_update() == Condition::Full {
            disk.mend();
            data.look();
        }
        tokio::select! {
            biased;
            synced = ticket.synced() => return synced.is_ok(),
            _ = condition.changed() => {}
        }
    }
}

/// The disk of a journal in `dir` with the smallest of reserves, or with none.
pub fn data(dir: &Path, reserve: bool) -> Arc<DataDisk> {
    let data = DataDisk::keeping(dir, 4096).unwrap();
    if !reserve {
        RealDisk.remove(&dir.join("reserve")).unwrap();
    }
    Arc::new(data)
}
