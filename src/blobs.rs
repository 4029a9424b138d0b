//! Blobs on disk: `blobs/<sha256>`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{model::ids::Digest, ports::blobs::Blobs};

/// What a file being written is called before it is a blob.
const TEMPORARY: &str = ".new-";

/// Blobs in one directory of one daemon.
#[derive(Debug)]
pub struct FileBlobs {
    dir: PathBuf,
    next: AtomicU64,
}

impl FileBlobs {
    /// Over `dir`, which is made if missing (0700); what a crash left half written is removed.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(FileBlobs { dir, next: AtomicU64::new(0) })
    }

    fn write(&self, temporary: &Path, bytes: &[u8], digest: &Digest) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        file.write_all(bytes)?;
        file.sync_all().map_err(unsynced)?;
        fs::rename(temporary, self.path(digest))
    }
}

/// A failed sync, whatever it failed with, is nothing to try again.
fn unsynced(error: io::Error) -> io::Error {
    io::Error::other(format!("syncing it failed, which cannot be tried again: {error}"))
}

impl Blobs for FileBlobs {
    fn put(&self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        // A blob that is there was synced before it got its name; one that was damaged since is put right.
        let there = fs::read(self.path(&digest)).is_ok_and(|old| old == bytes);
        if !there {
            let temporary = self.dir.join(format!("{TEMPORARY}{}", self.next.fetch_add(1, Ordering::Relaxed)));
            self.write(&temporary, bytes, &digest).inspect_err(|_| {
                // It is in nobody's way, and `open` tries again.
                let _ignored = fs::remove_file(&temporary);
            })?;
        }
        // Also for one that was there: another thread may have renamed it a moment ago and not have synced the directory yet.
        File::open(&self.dir)?.sync_all().map_err(unsynced)?;
        Ok(digest)
    }

    fn get(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        let bytes = fs::read(self.path(digest))?;
        if Digest::of(&bytes) != *digest {
            let why = format!("`{}` is damaged: its bytes are not those of its name", self.path(digest).display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(bytes)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_got_and_putting_twice_is_putting_once() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = FileBlobs::open(dir.path().join("blobs")).unwrap();
        let digest = blobs.put(b"hello").unwrap();
        assert_eq!(digest, Digest::of(b"hello"));
        assert_eq!(blobs.put(b"hello").unwrap(), digest);
        assert_eq!(blobs.get(&digest).unwrap(), b"hello");
        assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 1);
        assert_eq!(blobs.get(&Digest::of(b"other")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_damaged_blob_is_never_handed_out_and_is_put_right_by_the_next_put() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = FileBlobs::open(dir.path().to_owned()).unwrap();
        let digest = blobs.put(b"hello").unwrap();
        fs::write(blobs.path(&digest), b"hellp").unwrap();
        assert_eq!(blobs.get(&digest).unwrap_err().kind(), io::ErrorKind::InvalidData);
        blobs.put(b"hello").unwrap();
        assert_eq!(blobs.get(&digest).unwrap(), b"hello");
    }

    #[test]
    fn what_a_crash_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".new-0"), b"half").unwrap();
        let blobs = FileBlobs::open(dir.path().to_owned()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        blobs.put(b"").unwrap();
    }
}
