//! An index in sled. The only file that names sled.
//!
//! sled 0.34 does not fsync when it flushes and may not open after a kill while it opened. It never takes less than five segments, 2.5 MiB,
//! and where more lives about five times as much; what a burst of writes leaves beyond that it gives back later. One tree, its keys `d<key>`
//! (documents), `m/schema`, `p<run>` (the journal position that the documents of a run describe), so that one batch is atomic. A value
//! is `version u8 | crc32c of the rest, u32 LE | bytes`.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use super::checked;
use crate::{
    model::ids::{RunId, Seq},
    ports::index::{Batch, Index, IndexError},
};

/// The documents' shape. A newer one is set aside and folded anew, an older one too: that is cheaper than a migration.
pub(super) const SCHEMA: u32 = 1;

/// A file of ours beside sled's: something in it could not be read while it was used. The next start sets it aside.
const DAMAGED: &str = "damaged";

pub(super) const SCHEMA_KEY: &[u8] = b"m/schema";

/// The envelope's.
const VERSION: u8 = 1;

/// sled's own default is 1 GiB. The whole daemon is to idle in 25 MB.
const CACHE: u64 = 1024 * 1024;

/// How often what is in memory is written. A kill costs what was not, and that is folded anew from its journal.
const FLUSH_MS: u64 = 10_000;

/// Documents in sled; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) db: sled::Db,
    /// Where it lies.
    dir: PathBuf,
    /// sled found no room. It keeps the first error of a write for good and refuses every write after it, and reads of what had not
    /// reached the disk, then all of them; only another database takes writes again.
    full: Arc<AtomicBool>,
}

/// Why there is no index on the disk.
#[derive(Debug)]
pub(super) enum Unopened {
    /// The disk has no room for one; what is there may be as good as it was.
    NoRoom(String),
    /// What is there cannot be used.
    Unusable(String),
}

impl From<Unopened> for IndexError {
    fn from(unopened: Unopened) -> Self {
        let (Unopened::NoRoom(why) | Unopened::Unusable(why)) = unopened;
        IndexError(why)
    }
}

impl Disk {
    /// Opens or makes the one in `dir`. Blocks for up to `limit`.
    pub(super) fn open(dir: &Path, limit: Duration) -> Result<Self, Unopened> {
        let (answer, opened) = mpsc::channel();
        let theirs = dir.to_owned();
        // A thread of its own: an open that hangs is left behind with its files, which are renamed under it.
        std::thread::Builder::new()
            .name("state-open".to_owned())
            .spawn(move || {
                let mut tries = 100;
                let done = loop {
                    let done = open_now(&theirs);
                    match &done {
                        // A process forked while it was open holds sled's lock until its exec; that no other daemon is here, LOCK says.
                        Err(Unopened::Unusable(why)) if tries > 0 && why.contains("could not acquire lock") => {
                            tries -= 1;
                            std::thread::park_timeout(Duration::from_millis(50));
                        }
                        _ => break done,
                    }
                };
                let _nobody_waits_any_more = answer.send(done);
            })
            .map_err(|error| Unopened::Unusable(error.to_string()))?;
        opened.recv_timeout(limit).map_err(|_| Unopened::Unusable(format!("opening took over {limit:?}")))?
    }

    fn of(db: sled::Db, dir: &Path) -> Self {
        Disk { db, dir: dir.to_owned(), full: Arc::default() }
    }

    /// Writes what is in memory.
    pub(super) fn flush(&self) -> Result<(), IndexError> {
        guard("closing", || self.db.flush().map(drop))
    }

    /// Closes it, on a thread that nobody waits for: sled's own threads are joined.
    pub(super) fn let_go(self) {
        let closed = std::thread::Builder::new().name("state-close".to_owned()).spawn(move || {
            // Reads that wait for a write that failed are woken by this.
            let _nothing_of_it_is_kept = guard("closing", move || {
                let flushed = self.db.flush();
                drop(self);
                flushed
            });
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "a state index is not closed in the background");
        }
    }

    /// What sled is asked to do, with a look at whether it found room.
    pub(super) fn asked<T>(
        &self,
        what: &str,
        work: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, IndexError> {
        guard(what, || {
            let done = work(&self.db);
            self.full.fetch_or(done.as_ref().is_err_and(no_room), Relaxed);
            done
        })
    }

    /// An answer; of one that is none the next start learns, and folds the journals anew.
    fn noted<T>(&self, read: Result<T, IndexError>) -> Result<T, IndexError> {
        read.map_err(|IndexError(why)| {
            // What could not be written cannot be read; it is not damaged.
            if self.full() {
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
}

impl Index for Disk {
    fn apply(&self, batch: Batch) -> Result<(), IndexError> {
        checked(&batch)?;
        let mut writes = sled::Batch::default();
        for (key, document) in batch.puts {
            match document {
                Some(bytes) => writes.insert(document_key(&key), wrap(&bytes)),
                None => writes.remove(document_key(&key)),
            }
        }
        if let Some((run, seq, crc)) = batch.run {
            let position = [&seq.0.to_le_bytes()[..], &crc.to_le_bytes()].concat();
            writes.insert(position_key(&run), wrap(&position));
        }
        self.asked("writing", |db| db.apply_batch(writes))
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        let value = self.asked("reading", |db| db.get(document_key(key)));
        self.noted(value.and_then(|value| value.map(|value| unwrap(key.as_bytes(), &value)).transpose()))
    }

    fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(String, Vec<u8>)>, IndexError> {
        let found = self.asked("scanning", |db| scan(db, prefix, after, limit, reverse));
        self.noted(found.and_then(|page| page))
    }

    fn position(&self, run: &RunId) -> Result<Option<(Seq, u32)>, IndexError> {
        let key = position_key(run);
        let value = self.asked("reading", |db| db.get(&key))?;
        value.map(|value| position(run, &key, &value)).transpose()
    }

    fn forget(&self, run: &RunId) -> Result<(), IndexError> {
        self.asked("writing", |db| db.remove(position_key(run)).map(drop))
    }

    fn clear(&self) -> Result<(), IndexError> {
        // Positions first: a crash in between leaves documents without them, which are folded anew as well.
        self.asked("clearing", |db| sweep(db, b"p").and_then(|()| sweep(db, b"d")))
    }

    fn full(&self) -> bool {
        self.full.load(Relaxed)
    }
}

fn no_room(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error)
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
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

fn open_now(dir: &Path) -> Result<Disk, Unopened> {
    let (there, mut lacking) = (dir.exists(), false);
    let opened = guard("opening", || found(dir).inspect_err(|error| lacking = no_room(error)));
    opened.and_then(|opened| opened).map_err(|IndexError(why)| {
        if !lacking {
            return Unopened::Unusable(why);
        }
        // Half of a new one would be a broken one to the next start.
        if !there && let Err(error) = fs::remove_dir_all(dir) {
            tracing::warn!(dir = %dir.display(), %error, "half of a state index is left behind");
        }
        Unopened::NoRoom(why)
    })
}

/// What is in `dir`, or why that cannot be used.
fn found(dir: &Path) -> sled::Result<Result<Disk, IndexError>> {
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
            return Ok(Ok(Disk::of(db, dir)));
        }
        None => return Ok(Err(IndexError("it has documents and no schema".to_owned()))),
        Some(schema) => schema,
    };
    Ok(schema.and_then(|schema| {
        if schema == SCHEMA.to_le_bytes() {
            return Ok(Disk::of(db, dir));
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

pub(super) fn wrap(bytes: &[u8]) -> Vec<u8> {
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

pub(super) fn position_key(run: &RunId) -> Vec<u8> {
    [b"p", run.as_str().as_bytes()].concat()
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
