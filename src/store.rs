//! The index in sled: the queryable state that the journals fold into. The only file that names sled.
//!
//! sled 0.34 does not fsync when it flushes, may not open after a kill while it opened, and grows. So nothing is asked of it but
//! to be quick: what is wrong with it is set aside and the journals are folded anew. One tree, its keys `d<key>` (documents),
//! `m/schema`, `p<run>` (the journal position that the documents of a run describe), so that one batch is atomic. A value is
//! `version u8 | crc32c of the rest, u32 LE | bytes`.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use crate::{
    model::ids::{RunId, Seq},
    ports::index::{Batch, Index, IndexError, Medium},
    time::Clock,
};

mod memory;

pub use memory::MemoryIndex;

/// The largest document. sled keeps at least 16 values in a leaf and stores leaves over 128 KiB as files that it never syncs.
pub const MAX_DOCUMENT: usize = 4096;

/// Far more than any key has; a bound for the same reason.
const MAX_KEY: usize = 1024;

/// The documents' shape. A newer one is set aside and folded anew, an older one too: that is cheaper than a migration.
const SCHEMA: u32 = 1;

/// A file of ours beside sled's: something in it could not be read while it was used. The next start sets it aside.
const DAMAGED: &str = "damaged";

const SCHEMA_KEY: &[u8] = b"m/schema";

/// The envelope's.
const VERSION: u8 = 1;

/// An index of usual size opens in well under a second; one that takes this long is broken or has grown beyond use.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// How many broken indexes are kept.
const KEPT_ASIDE: usize = 3;

/// sled's own default is 1 GiB. The whole daemon is to idle in 25 MB.
const CACHE: u64 = 1024 * 1024;

/// How often what is in memory is written. A kill costs what was not, and that is folded anew from its journal.
const FLUSH_MS: u64 = 10_000;

/// Documents in sled.
#[derive(Debug)]
pub struct SledIndex {
    dbs: RwLock<Dbs>,
    /// Where it lies.
    dir: PathBuf,
    /// sled found no room. It keeps the first error of a write for good and refuses every write after it, and reads of what had not
    /// reached the disk, then all of them; only another database takes writes again.
    full: AtomicBool,
}

/// Handles, cheap to clone. Nobody holds the lock while sled works: a read may wait in it for as long as nobody writes.
#[derive(Debug)]
struct Dbs {
    /// Takes what is written.
    written: Documents,
    /// While it is made anew: what was there before, for readers.
    before: Option<Documents>,
}

/// Where documents are.
#[derive(Debug, Clone)]
enum Documents {
    Disk(sled::Db),
    Memory(MemoryIndex),
}

/// An index that could not be used any more: the caller folds the journals anew and tells people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it lies now: `state.bad-<wall ms>` beside the new one. Nobody reads it again.
    pub path: PathBuf,
    /// What was wrong.
    pub why: String,
}

impl SledIndex {
    /// Opens or makes the index in `dir` (`data_dir/state`, under `data_dir/LOCK`). Blocks for up to 10 s. One that cannot be opened
    /// in that time, or is of another schema, is renamed and an empty one takes its place.
    ///
    /// # Errors
    /// [`IndexError`] when an empty one cannot be had either.
    pub fn open(dir: &Path, clock: &Arc<dyn Clock>) -> Result<(Self, Option<SetAside>), IndexError> {
        SledIndex::open_within(dir, clock, OPEN_LIMIT)
    }

    fn open_within(
        dir: &Path,
        clock: &Arc<dyn Clock>,
        limit: Duration,
    ) -> Result<(Self, Option<SetAside>), IndexError> {
        let why = match open(dir, limit) {
            Ok(index) => return Ok((index, None)),
            Err(IndexError(why)) => why,
        };
        let path = set_aside(dir, clock.now().wall_ms)
            .map_err(|error| IndexError(format!("{why}; and `{}` cannot be set aside: {error}", dir.display())))?;
        tracing::warn!(%why, aside = %path.display(), "the state index was set aside; it is made anew from the journals");
        Ok((open(dir, limit)?, Some(SetAside { path, why })))
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
            Documents::Disk(db) => guard("closing", || db.flush().map(|_| ())),
            Documents::Memory(_) => Ok(()),
        }
    }

    fn of(db: sled::Db, dir: &Path) -> Self {
        let dbs = Dbs { written: Documents::Disk(db), before: None };
        SledIndex { dbs: RwLock::new(dbs), dir: dir.to_owned(), full: AtomicBool::new(false) }
    }

    fn written(&self) -> Documents {
        self.dbs.read().unwrap_or_else(PoisonError::into_inner).written.clone()
    }

    fn before(&self) -> Option<Documents> {
        self.dbs.read().unwrap_or_else(PoisonError::into_inner).before.clone()
    }

    /// What sled does with the database that is written, or is done in memory instead.
    fn with_written<T>(
        &self,
        what: &str,
        disk: impl FnOnce(&sled::Db) -> sled::Result<T>,
        memory: impl FnOnce(&MemoryIndex) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        match self.written() {
            Documents::Memory(documents) => memory(&documents),
            Documents::Disk(db) => guard(what, || {
                let done = disk(&db);
                self.full.fetch_or(done.as_ref().is_err_and(no_room), Relaxed);
                done
            }),
        }
    }

    /// What is read. Of a database before, that it has no room is known.
    fn reading<T>(
        &self,
        what: &str,
        disk: impl FnOnce(&sled::Db) -> sled::Result<T>,
        memory: impl FnOnce(&MemoryIndex) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        match self.before() {
            Some(Documents::Disk(before)) => guard(what, || disk(&before)),
            Some(Documents::Memory(before)) => memory(&before),
            None => self.with_written(what, disk, memory),
        }
    }

    /// An answer; of one that is none the next start learns, and folds the journals anew.
    fn noted<T>(&self, read: Result<T, IndexError>) -> Result<T, IndexError> {
        read.map_err(|IndexError(why)| {
            // What could not be written cannot be read; it is not damaged.
            if self.full() || self.before().is_some() {
                return IndexError(format!("{why}; it is being made anew from the journals, ask again in a moment"));
            }
            let file = self.dir.join(DAMAGED);
            if !file.exists()
                && let Err(error) = fs::write(&file, &why)
            {
                tracing::warn!(file = %file.display(), %error, "that the state index is damaged could not be noted down");
            }
            IndexError(format!("{why}; restart the daemon, which makes the index anew from the journals"))
        })
    }

    fn sweep(db: &sled::Db, prefix: &[u8]) -> sled::Result<()> {
        loop {
            let mut batch = sled::Batch::default();
            let mut empty = true;
            for key in db.scan_prefix(prefix).keys().take(1000) {
                batch.remove(key?);
                empty = false;
            }
            if empty {
                return Ok(());
            }
            db.apply_batch(batch)?;
        }
    }
}

fn no_room(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error)
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

/// Closes a database that is not used any more, on a thread that nobody waits for: its own threads are joined.
fn let_go(documents: Documents) {
    let Documents::Disk(db) = documents else { return };
    let closed = std::thread::Builder::new().name("state-close".to_owned()).spawn(move || {
        // Reads that wait for a write that failed are woken by this.
        let _nothing_of_it_is_kept = guard("closing", || {
            let flushed = db.flush();
            drop(db);
            flushed
        });
    });
    if let Err(error) = closed {
        tracing::warn!(%error, "a state index is not closed in the background");
    }
}

/// sled 0.34 panics where it does not expect what it finds on disk; that must end a query and not its caller.
fn guard<T>(what: &str, work: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| IndexError(format!("{what}: {error}"))),
        Err(panic) => Err(IndexError(format!("{what}: sled panicked: {}", panic_text(&*panic)))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}

fn open(dir: &Path, limit: Duration) -> Result<SledIndex, IndexError> {
    let (answer, opened) = mpsc::channel();
    let theirs = dir.to_owned();
    // A thread of its own: an open that hangs is left behind with its files, which are renamed under it.
    std::thread::Builder::new()
        .name("state-open".to_owned())
        .spawn(move || {
            let mut tries = 100;
            let done = loop {
                let done = guard("opening", || open_now(&theirs)).and_then(|done| done);
                match &done {
                    // A process forked while it was open holds sled's lock until its exec; that no other daemon is here, LOCK says.
                    Err(IndexError(why)) if tries > 0 && why.contains("could not acquire lock") => {
                        tries -= 1;
                        std::thread::park_timeout(Duration::from_millis(50));
                    }
                    _ => break done,
                }
            };
            let _nobody_waits_any_more = answer.send(done);
        })
        .map_err(|error| IndexError(error.to_string()))?;
    opened.recv_timeout(limit).map_err(|_| IndexError(format!("opening took over {limit:?}")))?
}

fn open_now(dir: &Path) -> sled::Result<Result<SledIndex, IndexError>> {
    fs::create_dir_all(dir)?;
    if let Ok(why) = fs::read_to_string(dir.join(DAMAGED)) {
        return Ok(Err(IndexError(why)));
    }
    remove_half_snapshots(dir)?;
    let db = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(Some(FLUSH_MS))
        .open()?;
    let schema = match db.get(SCHEMA_KEY)?.map(|value| unwrap(SCHEMA_KEY, &value)) {
        None if db.is_empty() => {
            db.insert(SCHEMA_KEY, wrap(&SCHEMA.to_le_bytes()))?;
            return Ok(Ok(SledIndex::of(db, dir)));
        }
        None => return Ok(Err(IndexError("it has documents and no schema".to_owned()))),
        Some(schema) => schema,
    };
    Ok(schema.and_then(|schema| {
        if schema == SCHEMA.to_le_bytes() {
            return Ok(SledIndex::of(db, dir));
        }
        Err(IndexError(format!("it has another schema than {SCHEMA}: {schema:02x?}")))
    }))
}

/// A kill while sled opened leaves `snap.*.generating`, which the next open takes for the newest snapshot and fails on for ever.
/// It is renamed only when whole, so it is never the only copy.
fn remove_half_snapshots(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(b"snap.") && name.ends_with(b".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
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

fn wrap(bytes: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(bytes.len() + 5);
    value.push(VERSION);
    value.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
    value.extend_from_slice(bytes);
    value
}

fn unwrap(key: &[u8], value: &[u8]) -> Result<Vec<u8>, IndexError> {
    let damaged = || IndexError(format!("the value of {:?} is damaged", String::from_utf8_lossy(key)));
    let (version, rest) = value.split_first().ok_or_else(damaged)?;
    let (crc, bytes) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    if *version != VERSION || u32::from_le_bytes(*crc) != crc32c::crc32c(bytes) {
        return Err(damaged());
    }
    Ok(bytes.to_vec())
}

fn document_key(key: &str) -> Vec<u8> {
    [b"d", key.as_bytes()].concat()
}

fn position(run: &RunId, key: &[u8], value: &[u8]) -> Result<(Seq, u32), IndexError> {
    let position = unwrap(key, value)?;
    let damaged = || IndexError(format!("the position of run {run} is damaged"));
    let (seq, crc) = position.split_first_chunk::<8>().ok_or_else(damaged)?;
    let crc = crc.try_into().map_err(|_| damaged())?;
    Ok((Seq(u64::from_le_bytes(*seq)), u32::from_le_bytes(crc)))
}

fn position_key(run: &RunId) -> Vec<u8> {
    [b"p", run.as_str().as_bytes()].concat()
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

impl Index for SledIndex {
    fn apply(&self, batch: Batch) -> Result<(), IndexError> {
        checked(&batch)?;
        let writes = || {
            let mut writes = sled::Batch::default();
            for (key, document) in &batch.puts {
                match document {
                    Some(bytes) => writes.insert(document_key(key), wrap(bytes)),
                    None => writes.remove(document_key(key)),
                }
            }
            if let Some((run, seq, crc)) = &batch.run {
                let position = [&seq.0.to_le_bytes()[..], &crc.to_le_bytes()].concat();
                writes.insert(position_key(run), wrap(&position));
            }
            writes
        };
        self.with_written("writing", |db| db.apply_batch(writes()), |memory| memory.apply(batch.clone()))
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        let disk = |db: &sled::Db| {
            let value = db.get(document_key(key))?;
            Ok(value.map(|value| unwrap(key.as_bytes(), &value)).transpose())
        };
        self.noted(self.reading("reading", disk, |memory| Ok(memory.get(key))).and_then(|read| read))
    }

    fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(String, Vec<u8>)>, IndexError> {
        let disk = |db: &sled::Db| scan(db, prefix, after, limit, reverse);
        let found = self.reading("scanning", disk, |memory| Ok(memory.scan(prefix, after, limit, reverse)));
        self.noted(found.and_then(|page| page))
    }

    fn position(&self, run: &RunId) -> Result<Option<(Seq, u32)>, IndexError> {
        let key = position_key(run);
        let disk = |db: &sled::Db| Ok(db.get(&key)?.map(|value| position(run, &key, &value)).transpose());
        self.with_written("reading", disk, |memory| Ok(memory.position(run))).and_then(|read| read)
    }

    fn forget(&self, run: &RunId) -> Result<(), IndexError> {
        let disk = |db: &sled::Db| db.remove(position_key(run)).map(drop);
        self.with_written("writing", disk, |memory| memory.forget(run))
    }

    fn clear(&self) -> Result<(), IndexError> {
        // Positions first: a crash in between leaves documents without them, which are folded anew as well.
        let disk = |db: &sled::Db| SledIndex::sweep(db, b"p").and_then(|()| SledIndex::sweep(db, b"d"));
        self.with_written("clearing", disk, Index::clear)
    }

    fn full(&self) -> bool {
        self.full.load(Relaxed)
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
                Ok(()) | Err(_) => open(&self.dir, OPEN_LIMIT)?.written(),
            },
        };
        let unread = {
            let mut dbs = self.dbs.write().unwrap_or_else(PoisonError::into_inner);
            let written = std::mem::replace(&mut dbs.written, empty);
            // An earlier attempt that came to nothing: readers still have what was there before it.
            if dbs.before.is_some() {
                Some(written)
            } else {
                dbs.before = Some(written);
                None
            }
        };
        self.full.store(false, Relaxed);
        unread.into_iter().for_each(let_go);
        Ok(())
    }

    fn renewed(&self) {
        let before = self.dbs.write().unwrap_or_else(PoisonError::into_inner).before.take();
        before.into_iter().for_each(let_go);
    }
}

/// The documents of a page, or the first of them that is damaged.
type Page = Result<Vec<(String, Vec<u8>)>, IndexError>;

fn scan(db: &sled::Db, prefix: &str, after: Option<&str>, limit: usize, reverse: bool) -> sled::Result<Page> {
    use std::ops::Bound::{Excluded, Included};
    let prefix = document_key(prefix);
    let end = end_of(&prefix);
    let (from, to) = match after.map(document_key) {
        None => (Included(prefix.clone()), end),
        Some(after) if reverse => (Included(prefix.clone()), after.min(end)),
        Some(after) if after < prefix => (Included(prefix.clone()), end),
        Some(after) => (Excluded(after), end),
    };
    // sled panics on a range that ends before it begins.
    if matches!(&from, Included(from) | Excluded(from) if *from >= to) {
        return Ok(Ok(Vec::new()));
    }
    let range = db.range((from, Excluded(to)));
    let mut page = Vec::new();
    let items: &mut dyn Iterator<Item = _> = if reverse { &mut range.rev() } else { &mut range.into_iter() };
    for item in items.take(limit) {
        let (key, value) = item?;
        let name = String::from_utf8_lossy(key.get(1..).unwrap_or_default()).into_owned();
        match unwrap(&key, &value) {
            Ok(document) => page.push((name, document)),
            Err(damaged) => return Ok(Err(damaged)),
        }
    }
    Ok(Ok(page))
}

/// The first key after all that begin with `prefix`, which is not empty and, being `d` and UTF-8, has no byte 0xff.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

#[cfg(test)]
mod tests;
