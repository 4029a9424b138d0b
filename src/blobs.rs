//! Blobs on disk: `blobs/<sha256>`.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    model::ids::Digest,
    ports::blobs::{Blobs, Hold},
};

/// What a file being written is called before it is a blob.
const TEMPORARY: &str = ".new-";

/// Blobs in one directory of one daemon.
#[derive(Debug)]
pub struct FileBlobs {
    dir: PathBuf,
    next: AtomicU64,
    sweep: Arc<Mutex<Sweep>>,
}

/// What a sweep must not touch.
#[derive(Debug, Default)]
struct Sweep {
    /// How many are between a put and its record.
    holding: usize,
    /// What was put since the sweep under way began.
    put: Option<BTreeSet<Digest>>,
}

/// Counted as long as it lives.
struct Held(Arc<Mutex<Sweep>>);

impl Drop for Held {
    fn drop(&mut self) {
        locked(&self.0).holding -= 1;
    }
}

fn locked(sweep: &Mutex<Sweep>) -> MutexGuard<'_, Sweep> {
    sweep.lock().unwrap_or_else(PoisonError::into_inner)
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
        Ok(FileBlobs { dir, next: AtomicU64::new(0), sweep: Arc::default() })
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
        // Before it is looked for: from here on no sweep takes it.
        if let Some(put) = &mut locked(&self.sweep).put {
            put.insert(digest.clone());
        }
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

    fn hold(&self) -> Hold {
        locked(&self.sweep).holding += 1;
        Box::new(Held(self.sweep.clone()))
    }

    fn begin_sweep(&self) -> bool {
        let mut sweep = locked(&self.sweep);
        let begins = sweep.holding == 0;
        sweep.put = begins.then(BTreeSet::new);
        begins
    }

    fn end_sweep(&self, keep: &BTreeSet<Digest>) -> io::Result<usize> {
        // Held to the end: who puts meanwhile waits, and then finds what is there.
        let mut sweep = locked(&self.sweep);
        let Some(put) = sweep.put.take() else { return Ok(0) };
        let mut removed = 0;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
            if digest.is_some_and(|digest| !keep.contains(&digest) && !put.contains(&digest)) {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
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

    #[test]
    fn a_sweep_takes_what_nobody_names_and_nothing_that_somebody_is_about_to_name() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = FileBlobs::open(dir.path().to_owned()).unwrap();
        let [named, unnamed, late] = [&b"named"[..], b"unnamed", b"late"].map(|bytes| blobs.put(bytes).unwrap());
        let hold = blobs.hold();
        assert!(!blobs.begin_sweep() && blobs.end_sweep(&BTreeSet::new()).unwrap() == 0);
        drop(hold);
        assert!(blobs.begin_sweep());
        // Between the scan of the journals and the end: it was there before, and a record is about to name it.
        assert_eq!(blobs.put(b"late").unwrap(), late);
        assert_eq!(blobs.end_sweep(&BTreeSet::from([named.clone()])).unwrap(), 1);
        assert!(blobs.get(&named).is_ok() && blobs.get(&late).is_ok() && blobs.get(&unnamed).is_err());
    }
}
