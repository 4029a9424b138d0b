//! Blobs: bytes by their sha256.

use crate::model::ids::Digest;

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

    /// Where the blob lies, for streaming.
    fn path(&self, digest: &Digest) -> std::path::PathBuf;
}
