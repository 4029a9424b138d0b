//! The few calls by which journals reach the disk, as a seam: tests fail the k-th of them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// An open append-only file.
pub(super) trait DiskFile: Send {
    /// Writes all of `bytes` at the end.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Returns when all that was appended is on disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file system.
pub(super) trait Disk: Send + Sync {
    /// Makes a new file, and its directory if that is missing. An existing file is an error.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Puts `bytes` in the place of the file at `path`, or in a new one: on disk, name included, when it returns, and open for more.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<Box<dyn DiskFile>>;
    /// Returns when the names in `dir` are on disk.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// The machine's.
pub(super) struct RealDisk;

struct RealFile(File);

impl DiskFile for RealFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        make_dir(parent(path)?)?;
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<Box<dyn DiskFile>> {
        let dir = parent(path)?;
        make_dir(dir)?;
        let new = path.with_extension("new");
        match fs::remove_file(&new) {
            // Left by a crash between its creation and the rename: it was never the journal.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        self.sync_dir(dir)?;
        Ok(Box::new(RealFile(file)))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

pub(super) fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other(format!("`{}` has no directory", path.display())))
}

/// A disk in which the k-th call that writes or syncs fails, and every later one too, as they do after an `EIO`.
#[cfg(test)]
pub(super) mod faulty {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;

    /// Counts the calls; those from `fail_at` (from 1) on fail.
    #[derive(Clone)]
    pub struct FaultyDisk {
        calls: Arc<AtomicU64>,
        fail_at: u64,
        /// Only the one call fails: what comes after must not be believed either.
        once: bool,
    }

    struct FaultyFile(Box<dyn DiskFile>, FaultyDisk);

    impl FaultyDisk {
        pub fn new(fail_at: u64, once: bool) -> Self {
            FaultyDisk { calls: Arc::default(), fail_at, once }
        }

        pub fn calls(&self) -> u64 {
            self.calls.load(Ordering::SeqCst)
        }

        fn hit(&self) -> io::Result<()> {
            let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
            let fails = if self.once { call == self.fail_at } else { call >= self.fail_at };
            if fails { Err(io::Error::other(format!("injected at call {call}"))) } else { Ok(()) }
        }
    }

    impl DiskFile for FaultyFile {
        fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
            // A failed write leaves half of its bytes behind, as a full disk does.
            if let Err(error) = self.1.hit() {
                self.0.append(&bytes[..bytes.len() / 2])?;
                return Err(error);
            }
            self.0.append(bytes)
        }

        fn sync(&mut self) -> io::Result<()> {
            self.1.hit()
        }
    }

    impl Disk for FaultyDisk {
        fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
            self.hit()?;
            Ok(Box::new(FaultyFile(RealDisk.create(path)?, self.clone())))
        }

        fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<Box<dyn DiskFile>> {
            self.hit()?;
            Ok(Box::new(FaultyFile(RealDisk.replace(path, bytes)?, self.clone())))
        }

        fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
            self.hit()
        }
    }
}
