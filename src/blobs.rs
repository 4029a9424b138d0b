//! Blobs on disk: `blobs/<sha256>`.

mod archive;
mod parts;
mod stream;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    lifecycle::locks::locked,
    model::{ids::Digest, signal::Part},
    ports::blobs::{Blobs, Form, Hold, Stored},
    whole::{Part as Whole, sync_name},
};

/// What a file being written is called before it is a blob.
const TEMPORARY: &str = ".new-";

/// Blobs in one directory of one daemon.
#[derive(Debug)]
pub struct FileBlobs {
    dir: PathBuf,
    next: AtomicU64,
    sweep: Arc<Mutex<Sweep>>,
    parts: parts::Parts,
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

impl FileBlobs {
    /// Over `dir`, which is made if missing (0700); what a crash left half written is removed.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let half = [TEMPORARY, parts::PART].iter().any(|of| name.as_encoded_bytes().starts_with(of.as_bytes()));
            if half {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(FileBlobs { dir, next: AtomicU64::new(0), sweep: Arc::default(), parts: parts::Parts::default() })
    }

    /// A name that no blob has yet.
    fn temporary(&self) -> PathBuf {
        self.dir.join(format!("{TEMPORARY}{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// From here on no sweep takes it.
    fn spare(&self, digest: &Digest) {
        if let Some(put) = &mut locked(&self.sweep).put {
            put.insert(digest.clone());
        }
    }

    /// Gives a synced file its name.
    fn name(&self, file: &Path, digest: &Digest) -> io::Result<()> {
        self.spare(digest);
        fs::rename(file, self.path(digest))?;
        sync_name(&self.path(digest))
    }

    /// A file that is no blob yet; what a crash leaves of it, [`FileBlobs::open`] removes.
    fn new_file(&self) -> io::Result<Whole> {
        Whole::at(self.temporary(), 0o600)
    }
}

impl FileBlobs {
    fn damaged(&self, digest: &Digest) -> io::Error {
        let why = format!("`{}` is damaged: its bytes are not those of its name", self.path(digest).display());
        io::Error::new(io::ErrorKind::InvalidData, why)
    }
}

impl Blobs for FileBlobs {
    fn put(&self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        // Before it is looked for.
        self.spare(&digest);
        // A blob that is there was synced before it got its name; one that was damaged since is put right.
        let there = fs::read(self.path(&digest)).is_ok_and(|old| old == bytes);
        if there {
            // Another thread may have renamed it a moment ago and not have synced the directory yet.
            sync_name(&self.path(&digest))?;
        } else {
            let mut file = self.new_file()?;
            file.fill(bytes)?;
            file.replace(&self.path(&digest))?;
        }
        Ok(digest)
    }

    fn get(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        let bytes = fs::read(self.path(digest))?;
        if Digest::of(&bytes) != *digest {
            return Err(self.damaged(digest));
        }
        Ok(bytes)
    }

    fn store(&self, form: Form, from: &mut dyn Read, most: u64) -> io::Result<Stored> {
        let file = self.new_file()?;
        let (stored, _) = stream::store(form, from, most, file.file.try_clone()?)?;
        self.spare(&stored.blob);
        // Over one that is there, too: if that was damaged, it is put right.
        file.replace(&self.path(&stored.blob))?;
        Ok(stored)
    }

    fn read(&self, blob: &Digest, form: Form, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        stream::read(File::open(self.path(blob))?, form, offset)
    }

    fn check(&self, blob: &Digest) -> io::Result<()> {
        if stream::digest(&mut File::open(self.path(blob))?)? == *blob { Ok(()) } else { Err(self.damaged(blob)) }
    }

    fn part(&self, blob: &Digest) -> io::Result<Part> {
        parts::part(self, blob)
    }

    fn append(&self, blob: &Digest, size: u64, offset: u64, bytes: &[u8]) -> io::Result<Part> {
        parts::append(self, blob, size, offset, bytes)
    }

    fn forget_parts(&self) -> io::Result<usize> {
        parts::forget(self)
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

    /// A tree with one file of these bytes, as a tar archive.
    fn tree(bytes: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append_data(&mut header, "file", bytes).unwrap();
        builder.into_inner().unwrap()
    }

    fn all(mut from: impl Read) -> Vec<u8> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_streams_in_streams_out_from_any_offset() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = FileBlobs::open(dir.path().to_owned()).unwrap();
        let bytes: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        for (form, bytes) in [(Form::Plain, bytes.clone()), (Form::Archive, tree(&bytes))] {
            let stored = blobs.store(form, &mut bytes.as_slice(), u64::MAX).unwrap();
            assert_eq!((&stored.sha256, stored.size), (&Digest::of(&bytes), bytes.len() as u64));
            assert_eq!(stored.blob == stored.sha256, form == Form::Plain);
            assert_eq!(Digest::of(&fs::read(blobs.path(&stored.blob)).unwrap()), stored.blob);
            for offset in [0, 1, 70_000, bytes.len()] {
                assert!(all(blobs.read(&stored.blob, form, offset as u64).unwrap()) == bytes[offset..]);
            }
            // The same again is the same blob, and one that was damaged is put right.
            blobs.check(&stored.blob).unwrap();
            fs::write(blobs.path(&stored.blob), b"other").unwrap();
            assert_eq!(blobs.check(&stored.blob).unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(blobs.store(form, &mut bytes.as_slice(), u64::MAX).unwrap(), stored);
            blobs.check(&stored.blob).unwrap();
        }
    }

    #[test]
    fn what_may_not_be_stored_leaves_nothing() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the cable was cut"))
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let blobs = FileBlobs::open(dir.path().to_owned()).unwrap();
        let whole = tree(b"hello");
        for (form, most, bytes, kind) in [
            (Form::Plain, 9, &b"ten bytes!"[..], io::ErrorKind::FileTooLarge),
            (Form::Archive, 99, &whole, io::ErrorKind::FileTooLarge),
            (Form::Archive, u64::MAX, &whole[..600], io::ErrorKind::Other),
            (Form::Archive, u64::MAX, &b"no archive"[..], io::ErrorKind::Other),
        ] {
            let error = blobs.store(form, &mut (&mut { bytes }), most).unwrap_err();
            assert!(kind == io::ErrorKind::Other || error.kind() == kind, "{error:?}");
        }
        for form in [Form::Plain, Form::Archive] {
            assert!(blobs.store(form, &mut (&b"half"[..]).chain(Fails), u64::MAX).is_err());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_sweep_spares_what_was_streamed_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = FileBlobs::open(dir.path().to_owned()).unwrap();
        assert!(blobs.begin_sweep());
        let stored = blobs.store(Form::Plain, &mut &b"late"[..], 4).unwrap();
        assert_eq!(blobs.end_sweep(&BTreeSet::new()).unwrap(), 0);
        blobs.check(&stored.blob).unwrap();
    }
}
