//! Blobs that come in pieces: `.part-<sha256>` until all of it is there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

use super::{FileBlobs, stream, unsynced};
use crate::{
    model::{ids::Digest, signal::Part},
    ports::blobs::Blobs as _,
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

pub(super) fn part(blobs: &FileBlobs, blob: &Digest) -> io::Result<Part> {
    // Before it is looked for: no sweep takes what its sender is told is there.
    blobs.spare(blob);
    if let Some(have) = size_of(&blobs.path(blob))? {
        return Ok(Part { blob: blob.clone(), have, whole: true });
    }
    Ok(Part { blob: blob.clone(), have: size_of(&path(blobs, blob))?.unwrap_or(0), whole: false })
}

pub(super) fn append(blobs: &FileBlobs, blob: &Digest, size: u64, offset: u64, bytes: &[u8]) -> io::Result<Part> {
    let there = part(blobs, blob)?;
    if there.whole || there.have != offset {
        // Sent again after an answer that was lost, or by two at once: they are told where it goes on.
        return Ok(there);
    }
    let path = path(blobs, blob);
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
    file.write_all(bytes)?;
    let have = file.metadata()?.len();
    if have < size {
        return Ok(Part { blob: blob.clone(), have, whole: false });
    }
    file.sync_all().map_err(unsynced)?;
    if have != size || stream::digest(&mut File::open(&path)?)? != *blob {
        fs::remove_file(&path)?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its bytes are not those of its name"));
    }
    blobs.name(&path, blob)?;
    Ok(Part { blob: blob.clone(), have, whole: true })
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
}
