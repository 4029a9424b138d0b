//! The index: the queryable state that the journals fold into, on the disk, or in memory while that has no room.
//!
//! Nothing is asked of it but to be quick: what is wrong with it is set aside and the journals are folded anew.

use std::{
    fs, io,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use disk::{Disk, Unopened};

use crate::{
    model::ids::{RunId, Seq},
    ports::index::{Batch, Index, IndexError, Medium},
    time::Clock,
};

mod disk;
mod memory;

pub use memory::MemoryIndex;

/// The largest document. sled keeps at least 16 values in a leaf and stores leaves over 128 KiB as files that it never syncs.
pub const MAX_DOCUMENT: usize = 4096;

/// Far more than any key has; a bound for the same reason.
const MAX_KEY: usize = 1024;

/// An index of usual size opens in well under a second; one that takes this long is broken or has grown beyond use.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// How many broken indexes are kept.
const KEPT_ASIDE: usize = 3;

/// The index of a daemon: says where documents are written and where they are read.
#[derive(Debug)]
pub struct StateIndex {
    places: RwLock<Places>,
    /// Where the one on the disk lies.
    dir: PathBuf,
}

/// Handles, cheap to clone. Nobody holds the lock while an index works: a read may wait in it for as long as nobody writes.
#[derive(Debug)]
struct Places {
    /// Takes what is written.
    written: Documents,
    /// While it is made anew: what was there before, for readers.
    before: Option<Documents>,
}

/// Where documents are.
#[derive(Debug, Clone)]
enum Documents {
    Disk(Disk),
    Memory(MemoryIndex),
}

impl Deref for Documents {
    type Target = dyn Index;

    fn deref(&self) -> &Self::Target {
        match self {
            Documents::Disk(disk) => disk,
            Documents::Memory(memory) => memory,
        }
    }
}

impl Documents {
    /// On the disk in `dir`, or in memory where that has no room for them.
    fn open(dir: &Path, limit: Duration) -> Result<Self, IndexError> {
        match Disk::open(dir, limit) {
            Ok(disk) => Ok(Documents::Disk(disk)),
            Err(Unopened::NoRoom(why)) => {
                tracing::warn!(%why, "the state index finds no room: it is kept in memory until there is some");
                Ok(Documents::Memory(MemoryIndex::default()))
            }
            Err(unusable) => Err(unusable.into()),
        }
    }

    /// Nobody uses them any more.
    fn let_go(self) {
        match self {
            Documents::Disk(disk) => disk.let_go(),
            Documents::Memory(_) => {}
        }
    }
}

/// An index that could not be used any more: the caller folds the journals anew and tells people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it lies now: `state.bad-<wall ms>` beside the new one. Nobody reads it again.
    pub path: PathBuf,
    /// What was wrong.
    pub why: String,
}

impl StateIndex {
    /// Opens or makes the index in `dir` (`data_dir/state`, under `data_dir/LOCK`). Blocks for up to 10 s. One that cannot be opened
    /// in that time, or is of another schema, is renamed and an empty one takes its place. Where the disk has no room it is an empty one
    /// in memory; what is in `dir` stays there until there is room again.
    ///
    /// # Errors
    /// [`IndexError`] when an empty one cannot be had either.
    pub fn open(dir: &Path, clock: &Arc<dyn Clock>) -> Result<(Self, Option<SetAside>), IndexError> {
        StateIndex::open_within(dir, clock, OPEN_LIMIT)
    }

    fn open_within(
        dir: &Path,
        clock: &Arc<dyn Clock>,
        limit: Duration,
    ) -> Result<(Self, Option<SetAside>), IndexError> {
        let of = |written| StateIndex { places: RwLock::new(Places { written, before: None }), dir: dir.to_owned() };
        let why = match Documents::open(dir, limit) {
            Ok(documents) => return Ok((of(documents), None)),
            Err(IndexError(why)) => why,
        };
        let path = set_aside(dir, clock.now().wall_ms)
            .map_err(|error| IndexError(format!("{why}; and `{}` cannot be set aside: {error}", dir.display())))?;
        tracing::warn!(%why, aside = %path.display(), "the state index was set aside; it is made anew from the journals");
        Ok((of(Documents::open(dir, limit)?), Some(SetAside { path, why })))
    }

    /// The names of indexes that were set aside, in this life or before, and still lie beside `dir`; oldest first.
    #[must_use]
    pub fn set_aside(dir: &Path) -> Vec<String> {
        let name = |path: PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        set_aside_before(dir).into_iter().filter_map(name).collect()
    }

    /// Writes what is in memory and lets go of the files. Not needed for safety, only to start faster next time.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn close(self) -> Result<(), IndexError> {
        match self.written() {
            Documents::Disk(disk) => disk.flush(),
            Documents::Memory(_) => Ok(()),
        }
    }

    fn written(&self) -> Documents {
        self.places.read().unwrap_or_else(PoisonError::into_inner).written.clone()
    }

    fn read(&self) -> Documents {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        places.before.as_ref().unwrap_or(&places.written).clone()
    }
}

fn set_aside(dir: &Path, wall_ms: i64) -> io::Result<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let mut stamp = wall_ms;
    let aside = loop {
        let aside = dir.with_file_name(format!("{name}.bad-{stamp}"));
        if !aside.exists() {
            break aside;
        }
        stamp += 1;
    };
    fs::rename(dir, &aside)?;
    forget_oldest(dir);
    Ok(aside)
}

/// Those of an index that were set aside, oldest first.
fn set_aside_before(dir: &Path) -> Vec<PathBuf> {
    let prefix = format!("{}.bad-", dir.file_name().unwrap_or_default().to_string_lossy());
    let Some(entries) = dir.parent().and_then(|parent| fs::read_dir(parent).ok()) else { return Vec::new() };
    let stamp = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix(&prefix)?.parse::<i64>().ok();
    let mut found: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| stamp(path).is_some()).collect();
    found.sort_by_key(stamp);
    found
}

/// A few are enough to look at; an index that breaks every day must not fill the disk.
fn forget_oldest(dir: &Path) {
    let found = set_aside_before(dir);
    for path in found.iter().take(found.len().saturating_sub(KEPT_ASIDE)) {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "an old index is left behind");
        }
    }
}

/// Whether it is within the limits, before any of it is written.
fn checked(batch: &Batch) -> Result<(), IndexError> {
    for (key, document) in &batch.puts {
        let size = document.as_ref().map_or(0, Vec::len);
        if key.len() > MAX_KEY {
            return Err(IndexError(format!("a key of {} bytes is over the limit of {MAX_KEY}", key.len())));
        }
        if size > MAX_DOCUMENT {
            return Err(IndexError(format!("{key:?}: {size} bytes are over the limit of {MAX_DOCUMENT}")));
        }
    }
    Ok(())
}

impl Index for StateIndex {
    fn apply(&self, batch: Batch) -> Result<(), IndexError> {
        self.written().apply(batch)
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.read().get(key)
    }

    fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(String, Vec<u8>)>, IndexError> {
        self.read().scan(prefix, after, limit, reverse)
    }

    fn position(&self, run: &RunId) -> Result<Option<(Seq, u32)>, IndexError> {
        self.written().position(run)
    }

    fn forget(&self, run: &RunId) -> Result<(), IndexError> {
        self.written().forget(run)
    }

    fn clear(&self) -> Result<(), IndexError> {
        self.written().clear()
    }

    fn full(&self) -> bool {
        self.written().full()
    }

    fn in_memory(&self) -> bool {
        matches!(self.written(), Documents::Memory(_))
    }

    fn renew(&self, medium: Medium) -> Result<(), IndexError> {
        let empty = match medium {
            Medium::Memory => Documents::Memory(MemoryIndex::default()),
            // A database before keeps its files, without names, until it is closed. A crash from here on is an index that was lost: the
            // next start folds what is missing.
            Medium::Disk => match fs::remove_dir_all(&self.dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(IndexError(format!("`{}` cannot be removed: {error}", self.dir.display())));
                }
                Ok(()) | Err(_) => Documents::Disk(Disk::open(&self.dir, OPEN_LIMIT)?),
            },
        };
        let unread = {
            let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
            let written = std::mem::replace(&mut places.written, empty);
            // An earlier attempt that came to nothing: readers still have what was there before it.
            if places.before.is_some() {
                Some(written)
            } else {
                places.before = Some(written);
                None
            }
        };
        unread.into_iter().for_each(Documents::let_go);
        Ok(())
    }

    fn renewed(&self) {
        let before = self.places.write().unwrap_or_else(PoisonError::into_inner).before.take();
        before.into_iter().for_each(Documents::let_go);
    }
}

#[cfg(test)]
mod tests;
