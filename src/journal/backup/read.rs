//! Backups read: every byte is held against the end of the archive, every blob against its name.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::OsStringExt as _,
    path::{Component, Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{End, FIRST, FORMAT, LAST, Sum};
use crate::{model::ids::Digest, ports::backup::Manifest};

/// The first and the last entry are some hundred bytes.
const SMALL: u64 = 64 * 1024;

/// The system's longest path; outputs have long names, and nothing else has.
const LONGEST_NAME: u64 = 4096;

/// What was read.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// What it says of itself.
    pub manifest: Manifest,
    /// Files, without the first and last entry.
    pub files: u64,
    /// Of these.
    pub runs: u64,
    /// Of these.
    pub blobs: u64,
    /// Of all of them.
    pub bytes: u64,
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// What is wrong with the bytes, not with the disk they come from.
fn broken(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::StorageFull => error,
        _ => bad(format!("it is no backup of phased, or it is damaged or cut: {error}")),
    }
}

/// Reads a backup and gives each file to `place`, with its path below the data directory and its bytes, which are all to be read. Only
/// when this returns it is known that they are right.
///
/// # Errors
/// `InvalidData`: it is none, of a later form, damaged or cut; and `place`'s.
pub fn read(
    from: &mut dyn Read,
    place: &mut dyn FnMut(&Path, &mut dyn Read) -> io::Result<()>,
) -> io::Result<Unpacked> {
    let mut archive = tar::Archive::new(zstd::stream::read::Decoder::new(from)?);
    let mut sum = Sum::default();
    let mut unpacked: Option<Unpacked> = None;
    let mut long: Option<PathBuf> = None;
    // Raw: what extends an entry would otherwise be read whole into memory, however large it says it is.
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let mut entry = entry.map_err(broken)?;
        if entry.header().entry_type() == tar::EntryType::GNULongName {
            if long.is_some() || entry.header().size().map_err(broken)? > LONGEST_NAME {
                return Err(bad("it is no backup of phased: a name in it is too long"));
            }
            let mut name = Vec::new();
            entry.read_to_end(&mut name).map_err(broken)?;
            name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
            long = Some(PathBuf::from(OsString::from_vec(name)));
            continue;
        }
        let path = match long.take() {
            Some(path) => path,
            None => entry.path().map_err(broken)?.into_owned(),
        };
        let name = path.to_str().ok_or_else(|| bad("it holds a name that is no text"))?.to_owned();
        let size = entry.header().size().map_err(broken)?;
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(bad(format!("{name:?} in it is no file")));
        }
        if name == LAST {
            let Some(unpacked) = unpacked else { return Err(bad("it has no beginning")) };
            return ended(small(entry, size)?, sum, archive).map(|()| unpacked);
        }
        sum.begin(&name, size);
        let Some(unpacked) = &mut unpacked else {
            let text = small(entry, size)?;
            sum.hasher.update(&text);
            unpacked = Some(first(&name, &text)?);
            continue;
        };
        let expected = wanted(&path, &name)?;
        let mut own = Sha256::new();
        let mut reader = Both { inner: entry, all: &mut sum.hasher, own: expected.as_ref().map(|_| &mut own), size: 0 };
        place(&path, &mut reader)?;
        if reader.size != size {
            return Err(bad(format!("{name} in it is cut")));
        }
        if let Some(expected) = expected {
            if Digest::from_bytes(&own.finalize()) != expected {
                return Err(bad(format!("{name} in it is damaged: its bytes are not those of its name")));
            }
            unpacked.blobs += 1;
        }
        unpacked.files += 1;
        unpacked.bytes += size;
        unpacked.runs += u64::from(name.starts_with("journal/runs/") && name.ends_with("/journal"));
    }
    Err(bad("its end is missing: it was cut on the way; make another one"))
}

/// Reads all of a backup and keeps nothing.
///
/// # Errors
/// As [`read`].
pub fn check(from: &mut dyn Read) -> io::Result<Unpacked> {
    read(from, &mut |_, bytes| io::copy(bytes, &mut io::sink()).map(|_| ()))
}

fn small(mut from: impl Read, size: u64) -> io::Result<Vec<u8>> {
    if size > SMALL {
        return Err(bad("it is no backup of phased: its first or last entry is too large"));
    }
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).map_err(broken)?;
    Ok(bytes)
}

fn first(name: &str, text: &[u8]) -> io::Result<Unpacked> {
    if name != FIRST {
        return Err(bad(format!("it is no backup of phased: it begins with {name:?}")));
    }
    let format = serde_json::from_slice::<serde_json::Value>(text).ok().and_then(|json| json["format"].as_u64());
    if format != Some(u64::from(FORMAT)) {
        return Err(bad(
            "it is of a later form than this phased reads: install the version that made it, or a newer one",
        ));
    }
    let manifest =
        serde_json::from_slice(text).map_err(|error| bad(format!("its first entry is not understood: {error}")))?;
    Ok(Unpacked { manifest, files: 0, runs: 0, blobs: 0, bytes: 0 })
}

fn ended(text: Vec<u8>, sum: Sum, archive: tar::Archive<impl Read>) -> io::Result<()> {
    let end: End = serde_json::from_slice(&text).map_err(|error| bad(format!("its end is not understood: {error}")))?;
    let found = sum.end();
    if (end.files, &end.sha256) != (found.files, &found.sha256) {
        return Err(bad("it is damaged: its bytes are not those that were written"));
    }
    // To the end of the stream: the compressor's own checksum stands there.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    Ok(())
}

/// Whether a file may be called so; and of a blob, what it must be.
fn wanted(path: &Path, name: &str) -> io::Result<Option<Digest>> {
    let refused = || bad(format!("{name:?} is no file of a backup"));
    let parts: Option<Vec<&str>> = path
        .components()
        .map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect();
    let parts = parts.ok_or_else(refused)?;
    match parts[..] {
        ["journal", "control"] | ["journal", "runs", _, "journal"] | ["journal", "runs", _, "out", ..] => Ok(None),
        ["code", _, _, ..] | ["secrets", _, ..] => Ok(None),
        ["blobs", digest] => digest.parse().map(Some).map_err(|_| refused()),
        _ => Err(refused()),
    }
}

/// Bytes that are counted and summed up on their way.
struct Both<'a, R> {
    inner: R,
    all: &'a mut Sha256,
    own: Option<&'a mut Sha256>,
    size: u64,
}

impl<R: Read> Read for Both<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer).map_err(broken)?;
        let bytes = buffer.get(..n).unwrap_or_default();
        self.all.update(bytes);
        if let Some(own) = &mut self.own {
            own.update(bytes);
        }
        self.size += n as u64;
        Ok(n)
    }
}
