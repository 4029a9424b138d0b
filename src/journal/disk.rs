//! The calls by which journals reach the disk, as a seam: tests fail the k-th of them, or cut the power between two.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use crate::whole::unsynced;

/// An open append-only file.
pub(super) trait DiskFile: Send {
    /// Writes all of `bytes` at the end; of a failed one any part may be there.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Takes away what lies beyond `length`.
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// Returns when all that was appended is on disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file system. A name is on disk once its directory was synced, a file's bytes once the file was.
pub(super) trait Disk: Send + Sync {
    /// The whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Whether there is something at `path`.
    fn exists(&self, path: &Path) -> bool;
    /// The names in `dir`, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes a new file, and its directory if that is missing. An existing file is an error.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Gives what is at `from` the name `to`; a file that had it is gone.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; one that is missing is removed.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Returns when the names in `dir` are on disk.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// Puts `bytes` in the place of the file at `path`, or in a new one: on disk, name included, when it returns, and open for more.
/// Until then the old one is as it was.
pub(super) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<Box<dyn DiskFile>> {
    let new = path.with_extension("new");
    // Left by a crash between its creation and the rename: it was never the journal.
    disk.remove(&new)?;
    let made = disk.create(&new).and_then(|mut file| file.append(bytes).map(|()| file));
    let mut file = made.inspect_err(|_| {
        // Half of it is room that somebody may need; the next one removes it if this cannot.
        let _in_nobodys_way = disk.remove(&new);
    })?;
    file.sync().map_err(unsynced)?;
    disk.rename(&new, path)?;
    disk.sync_dir(parent(path)?).map_err(unsynced)?;
    Ok(file)
}

/// Whether a write failed for want of room: it may be tried again once there is some.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The machine's.
pub(super) struct RealDisk;

struct RealFile(File);

impl DiskFile for RealFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Disk for RealDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent(path)?)?;
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

pub(super) fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other(format!("`{}` has no directory", path.display())))
}

#[cfg(test)]
pub(super) mod faulty;
pub(super) mod simulated;
