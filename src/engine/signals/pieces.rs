//! What a release has stored, on its way to a receiver: built once, the same bytes everywhere.

use std::{io::Read as _, sync::Arc};

use super::super::{conductor::Conductor, world::World};
use crate::{
    model::{
        cause::Cause,
        ids::Digest,
        release::Artifact,
        signal::{MOST_PIECE, Order, Part},
    },
    ports::blobs::Form,
};

/// A piece as it came.
pub(super) struct Piece<'a> {
    pub(super) blob: &'a Digest,
    pub(super) size: u64,
    pub(super) offset: u64,
    pub(super) sha256: &'a Digest,
    pub(super) bytes: &'a [u8],
}

fn refused(message: String) -> Cause {
    Cause::new("signal_artifact", message)
}

/// The blobs of `artifacts` that are not here.
pub(super) async fn missing(conductor: &Conductor, artifacts: &[Artifact]) -> Result<Vec<Part>, Cause> {
    let world = Arc::clone(&conductor.inner.world);
    let blobs: Vec<Digest> = artifacts.iter().filter_map(|artifact| artifact.content.blob().cloned()).collect();
    if blobs.is_empty() {
        return Ok(Vec::new());
    }
    let look = move || blobs.iter().map(|blob| world.blobs.part(blob)).collect::<std::io::Result<Vec<Part>>>();
    let parts = conductor.inner.world.tasks.blocking(look).await.map_err(std::io::Error::other).and_then(|parts| parts);
    let parts = parts.map_err(|error| refused(format!("the blobs here cannot be read: {error}")))?;
    Ok(parts.into_iter().filter(|part| !part.whole).collect())
}

/// Keeps a piece; how much is there then.
pub(super) async fn keep(conductor: &Conductor, piece: Piece<'_>) -> Result<Part, Cause> {
    let most = conductor.inner.world.limits.max_artifact;
    if piece.size > most {
        let message = format!("a blob of {} bytes is larger than max_artifact here ({most} bytes)", piece.size);
        return Err(refused(message));
    }
    conductor.writable().map_err(|refusal| Cause::new("signal_not_taken", refusal.to_string()))?;
    let end = piece.offset.saturating_add(piece.bytes.len() as u64);
    if (piece.bytes.is_empty() && piece.size > 0) || end > piece.size || Digest::of(piece.bytes) != *piece.sha256 {
        return Err(Cause::new("signal_form", "the piece is not the one that was signed"));
    }
    let world = Arc::clone(&conductor.inner.world);
    let (blob, size, offset, bytes) = (piece.blob.clone(), piece.size, piece.offset, piece.bytes.to_vec());
    let hold = world.blobs.hold();
    let kept = conductor.inner.world.tasks.blocking(move || {
        let kept = world.blobs.append(&blob, size, offset, &bytes);
        drop(hold);
        kept
    });
    let kept = kept.await.map_err(std::io::Error::other).and_then(|kept| kept);
    kept.map_err(|error| refused(format!("a blob could not be kept: {error}")))
}

/// The next piece of a blob of which the receiver has `part`; `None` = it has all that there is.
pub(super) async fn next(world: &Arc<World>, part: &Part) -> Result<Option<(Order, Vec<u8>)>, Cause> {
    let (from, blob, offset) = (Arc::clone(world), part.blob.clone(), part.have);
    let read = move || {
        let size = std::fs::metadata(from.blobs.path(&blob))?.len();
        let mut bytes = Vec::new();
        // It has all bytes and did not come to make a blob of them: the last one, again, tells it to.
        let offset = if offset == size { size.saturating_sub(1) } else { offset };
        let mut rest = from.blobs.read(&blob, Form::Plain, offset)?.take(MOST_PIECE as u64);
        rest.read_to_end(&mut bytes)?;
        std::io::Result::Ok((blob, size, offset, bytes))
    };
    let read = world.tasks.blocking(read).await.map_err(std::io::Error::other).and_then(|read| read);
    let (blob, size, offset, bytes) = read.map_err(|error| {
        let message = format!("an artifact of the release is not in the blobs of this daemon any more: {error}");
        Cause::new("artifact_missing", message)
    })?;
    if bytes.is_empty() && size > 0 {
        return Ok(None);
    }
    let order = Order::Piece { blob, size, offset, sha256: Digest::of(&bytes) };
    Ok(Some((order, bytes)))
}
