//! Blobs: bytes by their sha256.

use std::collections::BTreeSet;

use crate::model::ids::Digest;

/// What stands between a blob and the record that is to name it: as long as it lives no sweep begins.
pub type Hold = Box<dyn Send + Sync>;

/// Every sha256 in a text: each 64 hex digits with no other beside them.
pub fn named(bytes: &[u8]) -> impl Iterator<Item = Digest> + '_ {
    let words = bytes.split(|byte| !byte.is_ascii_digit() && !(b'a'..=b'f').contains(byte));
    words.filter(|word| word.len() == 64).filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok())
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

    /// Taken before [`Blobs::put`] and kept until the record that names the blob is on disk.
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
