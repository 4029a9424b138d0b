//! Blobs that come in pieces: `.part-<sha256>` until all of it is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use super::{FileBlobs, stream};
use crate::{
    lifecycle::locks::locked,
    model::{ids::Digest, signal::Part},
    ports::blobs::Blobs as _,
    whole::unsynced,
};

/// What a blob is called that is not all there. A start forgets it: it comes again.
pub(super) const PART: &str = ".part-";

fn path(blobs: &FileBlobs, blob: &Digest) -> PathBuf {
    blobs.dir.join(format!("{PART}{blob}"))
}

fn size_of(path: &std::path::Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What pieces are kept by: one at a time of each blob, and what is whole.
#[derive(Debug, Default)]
pub(super) struct Parts {
    locks: Mutex<BTreeMap<Digest, Arc<Mutex<()>>>>,
    /// Blobs that were read and found right in this life: by then reading all of them again at every question would take too long.
    right: Mutex<BTreeSet<Digest>>,
    /// Those that somebody has asked about or added to since parts were forgotten last.
    wanted: Mutex<BTreeSet<Digest>>,
}

impl Parts {
    fn lock(&self, blob: &Digest) -> Arc<Mutex<()>> {
        let mut locks = locked(&self.locks);
        locks.retain(|other, lock| other == blob || Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(blob.clone()).or_default())
    }
}

pub(super) fn part(blobs: &FileBlobs, blob: &Digest) -> io::Result<Part> {
    let lock = blobs.parts.lock(blob);
    let _alone = locked(&lock);
    there(blobs, blob)
}

/// How much there is; a blob that is damaged comes again.
fn there(blobs: &FileBlobs, blob: &Digest) -> io::Result<Part> {
    // Before it is looked for: no sweep takes what its sender is told is there.
    blobs.spare(blob);
    if let Some(have) = size_of(&blobs.path(blob))? {
        let mut right = locked(&blobs.parts.right).contains(blob);
        if !right {
            right = stream::digest(&mut File::open(blobs.path(blob))?)? == *blob;
        }
        if right {
            locked(&blobs.parts.right).insert(blob.clone());
            return Ok(Part { blob: blob.clone(), have, whole: true });
        }
    }
    locked(&blobs.parts.wanted).insert(blob.clone());
    Ok(Part { blob: blob.clone(), have: size_of(&path(blobs, blob))?.unwrap_or(0), whole: false })
}

pub(super) fn append(blobs: &FileBlobs, blob: &Digest, size: u64, offset: u64, bytes: &[u8]) -> io::Result<Part> {
    let lock = blobs.parts.lock(blob);
    let _alone = locked(&lock);
    let there = there(blobs, blob)?;
    // All of it is there, and whoever was to make it a blob did not come to it.
    let unfinished = !there.whole && there.have == size && size > 0;
    if !unfinished && (there.whole || there.have != offset) {
        // Sent again after an answer that was lost, or by two at once: they are told where it goes on.
        return Ok(there);
    }
    let path = path(blobs, blob);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    if !unfinished && let Err(error) = file.write_all_at(bytes, offset) {
        // A full disk, mostly: what there is of it is room that somebody may need.
        let _in_nobodys_way = fs::remove_file(&path);
        return Err(error);
    }
    let have = file.metadata()?.len();
    if have < size {
        return Ok(Part { blob: blob.clone(), have, whole: false });
    }
    file.sync_all().map_err(unsynced)?;
    if have != size || stream::digest(&mut File::open(&path)?)? != *blob {
        fs::remove_file(&path)?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its bytes are not those of its name"));
    }
    // Over one that is damaged, too.
    blobs.name(&path, blob)?;
    locked(&blobs.parts.right).insert(blob.clone());
    Ok(Part { blob: blob.clone(), have, whole: true })
}

/// Removes the parts that nobody has wanted since this was done last: whoever sent them has given up, or sends something else by now. How many
/// went.
pub(super) fn forget(blobs: &FileBlobs) -> io::Result<usize> {
    let wanted = std::mem::take(&mut *locked(&blobs.parts.wanted));
    let mut removed = 0;
    for entry in fs::read_dir(&blobs.dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(blob) = name.to_str().and_then(|name| name.strip_prefix(PART)?.parse::<Digest>().ok()) else {
            continue;
        };
        let lock = blobs.parts.lock(&blob);
        let _alone = locked(&lock);
        // Its sender may have come back this very moment, or have made a blob of it.
        let kept = wanted.contains(&blob) || locked(&blobs.parts.wanted).contains(&blob);
        if !kept && entry.path().exists() {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_a_blob_and_a_wrong_byte_makes_none() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = FileBlobs::open(dir.path().to_owned()).unwrap();
        let (bytes, blob) = (b"hello, world", Digest::of(b"hello, world"));
        let part = |have, whole| Part { blob: blob.clone(), have, whole };
        assert_eq!(blobs.part(&blob).unwrap(), part(0, false));
        assert_eq!(blobs.append(&blob, 12, 0, &bytes[..5]).unwrap(), part(5, false));
        // The same piece again, and one that leaves a gap: nothing is added.
        for (offset, piece) in [(0, &bytes[..5]), (7, &bytes[7..])] {
            assert_eq!(blobs.append(&blob, 12, offset, piece).unwrap(), part(5, false));
        }
        assert!(blobs.get(&blob).is_err());
        assert_eq!(blobs.append(&blob, 12, 5, b", World").unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(blobs.part(&blob).unwrap(), part(0, false), "all of it comes again");
        blobs.append(&blob, 12, 0, &bytes[..5]).unwrap();
        assert_eq!(blobs.append(&blob, 12, 5, &bytes[5..]).unwrap(), part(12, true));
        assert_eq!(blobs.get(&blob).unwrap(), bytes);
        assert_eq!(blobs.append(&blob, 12, 0, bytes).unwrap(), part(12, true));
        // What a crash left half is forgotten.
        let other = Digest::of(b"other");
        blobs.append(&other, 5, 0, b"oth").unwrap();
        drop(blobs);
        assert_eq!(FileBlobs::open(dir.path().to_owned()).unwrap().part(&other).unwrap().have, 0);
    }

    #[test]
    fn what_was_begun_and_given_up_is_forgotten_and_what_goes_on_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = FileBlobs::open(dir.path().to_owned()).unwrap();
        let [abandoned, slow] = [Digest::of(b"abandoned"), Digest::of(b"slow!")];
        blobs.append(&abandoned, 9, 0, b"aban").unwrap();
        for piece in 0..4 {
            blobs.append(&slow, 5, piece, &b"slow!"[usize::try_from(piece).unwrap()..][..1]).unwrap();
            // The first time everybody has only just been there.
            assert_eq!(blobs.forget_parts().unwrap(), usize::from(piece == 1), "{piece}");
        }
        assert!(!path(&blobs, &abandoned).exists());
        assert!(blobs.append(&slow, 5, 4, b"!").unwrap().whole);
        // Its sender comes back after all, and begins anew; asking about it keeps it as well.
        assert_eq!(blobs.part(&abandoned).unwrap().have, 0);
        blobs.append(&abandoned, 9, 0, b"aban").unwrap();
        assert_eq!(blobs.forget_parts().unwrap(), 0);
        assert_eq!(blobs.part(&abandoned).unwrap().have, 4);
        assert_eq!((blobs.forget_parts().unwrap(), blobs.forget_parts().unwrap()), (0, 1));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the blob itself stays");
    }

    #[test]
    fn all_bytes_that_nobody_made_a_blob_of_become_one_and_a_damaged_blob_comes_again() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = FileBlobs::open(dir.path().to_owned()).unwrap();
        let (bytes, blob) = (b"hello, world", Digest::of(b"hello, world"));
        let part = |have, whole| Part { blob: blob.clone(), have, whole };
        fs::write(path(&blobs, &blob), bytes).unwrap();
        assert_eq!(blobs.part(&blob).unwrap(), part(12, false));
        assert_eq!(blobs.append(&blob, 12, 11, &bytes[11..]).unwrap(), part(12, true));
        assert_eq!(blobs.get(&blob).unwrap(), bytes);
        drop(blobs);
        fs::write(dir.path().join(blob.as_str()), b"hello, World").unwrap();
        let blobs = FileBlobs::open(dir.path().to_owned()).unwrap();
        assert_eq!(blobs.part(&blob).unwrap(), part(0, false));
        assert_eq!(blobs.append(&blob, 12, 0, bytes).unwrap(), part(12, true));
        assert_eq!(blobs.get(&blob).unwrap(), bytes);
    }

    #[test]
    fn of_two_that_send_the_same_piece_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = FileBlobs::open(dir.path().to_owned()).unwrap();
        let bytes: Vec<u8> = (0..64_000u32).flat_map(u32::to_le_bytes).collect();
        let (blob, size) = (Digest::of(&bytes), bytes.len() as u64);
        let send = || {
            for (n, piece) in bytes.chunks(16_000).enumerate() {
                blobs.append(&blob, size, n as u64 * 16_000, piece).unwrap();
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(send))));
        assert_eq!(blobs.get(&blob).unwrap(), bytes);
    }
}
