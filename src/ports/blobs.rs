//! Blobs: bytes by their sha256.

use std::{collections::BTreeSet, io::Read};

use crate::model::{ids::Digest, signal::Part};

/// What stands between a blob and the record that is to name it: as long as it lives no sweep begins.
pub type Hold = Box<dyn Send + Sync>;

/// Every sha256 in a text: each 64 hex digits with no other beside them.
pub fn named(bytes: &[u8]) -> impl Iterator<Item = Digest> + '_ {
    let words = bytes.split(|byte| !byte.is_ascii_digit() && !(b'a'..=b'f').contains(byte));
    words.filter(|word| word.len() == 64).filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok())
}

/// How what is streamed into a blob lies in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Plain,
    /// A tar archive, compressed; whoever reads it gets the archive again.
    Archive,
}

/// What was streamed into a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The blob: what lies on disk.
    pub blob: Digest,
    /// Of what was streamed in; the same as `blob` where that is plain.
    pub sha256: Digest,
    /// Of what was streamed in, bytes.
    pub size: u64,
}

/// Immutable bytes, on disk before anything names them.
pub trait Blobs: Send + Sync {
    /// Stores `bytes`, fsynced when it returns. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn put(&self, bytes: &[u8]) -> std::io::Result<Digest>;

    /// Reads a blob and checks it. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's; `InvalidData` when the bytes are not those of the digest.
    fn get(&self, digest: &Digest) -> std::io::Result<Vec<u8>>;

    /// Stores what `from` gives until its end, in bounded memory, fsynced when it returns. Of an archive every entry is checked: only
    /// files, directories and links, in the order of their names and each once, none outside and none beneath a link. Blocks on the
    /// disk and on `from`.
    ///
    /// # Errors
    /// The disk's and `from`'s; `InvalidData` for an archive that may not be stored, `FileTooLarge` beyond `most` bytes. Nothing is
    /// stored then.
    fn store(&self, form: Form, from: &mut dyn Read, most: u64) -> std::io::Result<Stored>;

    /// What was streamed into a blob, from `offset` on. Not checked while it is read: see [`Blobs::check`]. Opening and each read
    /// block on the disk shortly, opening for longer where much is to be left out.
    ///
    /// # Errors
    /// The disk's.
    fn read(&self, blob: &Digest, form: Form, offset: u64) -> std::io::Result<Box<dyn Read + Send>>;

    /// Whether a blob's bytes are those of its name. Blocks on the disk for as long as reading all of it takes.
    ///
    /// # Errors
    /// The disk's; `InvalidData` when they are not.
    fn check(&self, blob: &Digest) -> std::io::Result<()>;

    /// How much of a blob that comes in pieces is there; one that is damaged is not whole. Blocks on the disk, the first time that a whole one
    /// is asked about for as long as reading it takes.
    ///
    /// # Errors
    /// The disk's.
    fn part(&self, blob: &Digest) -> std::io::Result<Part>;

    /// Adds a piece to a blob of `size` bytes, if it begins where what is there ends; the last one makes it a blob, fsynced, if the bytes are
    /// those of its name, else all of it is forgotten. Where all of them are there already, any piece does that. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's; `InvalidData` when the bytes were not those of the name.
    fn append(&self, blob: &Digest, size: u64, offset: u64, bytes: &[u8]) -> std::io::Result<Part>;

    /// Removes parts of blobs that nobody has asked about or added to since the last call. How many went. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's; some are removed then.
    fn forget_parts(&self) -> std::io::Result<usize>;

    /// Taken before [`Blobs::put`] and [`Blobs::store`] and kept until the record that names the blob is on disk.
    fn hold(&self) -> Hold;

    /// Begins a sweep; false while somebody holds. What is put from here on is safe from it.
    fn begin_sweep(&self) -> bool;

    /// Ends the sweep that was begun: removes every blob that is neither in `keep` nor was put since. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's; some are removed then.
    fn end_sweep(&self, keep: &BTreeSet<Digest>) -> std::io::Result<usize>;

    /// Where the blob lies, for streaming.
    fn path(&self, digest: &Digest) -> std::path::PathBuf;
}
