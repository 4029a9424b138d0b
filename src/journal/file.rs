//! Append-only files and the one thread that writes and syncs them.
//!
//! Group commit: appending only queues. The writer takes all dirty files, and of each all that queued while it was busy, in one
//! write and one sync. What somebody waits for is written at once; what nobody waits for rests a moment, so that what follows it takes it
//! along. The first failure of a file is its last word: its queue is dropped, every
//! ticket fails, and the sync is never tried again, because after a failed fsync the page cache is not the disk. Only a write that finds
//! no room is made again, once what it left of itself is cut off: nothing was synced, so nothing was lost.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{
    data_disk::DataDisk,
    disk::{self, Disk, DiskFile, parent},
    kill::Kill,
    line,
};
use crate::{
    lifecycle::{pulse::Beat, watch},
    model::{
        event::Record,
        ids::{RunId, Seq},
    },
    ports::{
        blobs::Blobs,
        journal::{Feed, Synced, Ticket},
    },
    whole::unsynced,
};

/// Records over this many bytes of JSON become a blob that the line names.
pub(super) const INLINE_JSON: usize = 16 * 1024;

/// How many files are synced at the same time. Measured on ext4, 50 appenders to 50 files: a third of the wait (p50 2.0 ms, not 6.9)
/// of one file after the other; a single file gains nothing.
const SIDE_BY_SIDE: usize = 8;

/// How long records rest that nobody waits for. Of a fleet's steps about a third of the syncs is spared: an answer is soon followed by the
/// next beginning, which somebody does wait for.
const REST: Duration = Duration::from_millis(5);

/// How soon records are to be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Haste {
    /// With what follows them, or by themselves after [`REST`].
    Rests,
    /// At once.
    Now,
}

/// A record on its way to disk.
pub(super) struct Pending {
    /// The line's JSON, or the blob's.
    pub json: Vec<u8>,
    /// What the feed will hear; the control log has none.
    pub record: Option<Record>,
}

/// Whom a file's records are for.
pub(super) struct Reader {
    pub run: RunId,
    pub feed: Arc<dyn Feed>,
    pub blobs: Arc<dyn Blobs>,
}

/// What a writer writes with.
#[derive(Clone)]
pub(super) struct Means {
    pub disk: Arc<dyn Disk>,
    /// Room, and whom to tell of a failure.
    pub data: Arc<DataDisk>,
    pub kill: Kill,
    /// Who says when to write; `None` = a thread of the writer's own does, at once.
    pub later: Option<Arc<dyn Later>>,
}

/// Has work done a while later, in the order it was given: how files are written in a world without threads.
pub trait Later: Send + Sync {
    /// Does `work`, later.
    fn later(&self, work: Box<dyn FnOnce() + Send>);
}

/// One append-only file. Shared by those who append and the writer.
pub(super) struct Log {
    path: PathBuf,
    reader: Option<Reader>,
    queue: Mutex<Queue>,
    synced: watch::Sender<Synced>,
    /// The writer's side; a lock of its own, so that appending never waits for the disk.
    file: Mutex<Option<Open>>,
    /// The bytes of the file that count.
    length: AtomicU64,
}

/// The file itself.
struct Open {
    file: Box<dyn DiskFile>,
    /// Where the next record begins: whatever lies beyond was never whole.
    length: u64,
    /// Whether its name is on disk.
    named: bool,
}

/// What takes the place of a whole file up to a record.
struct Compaction {
    upto: u64,
    bytes: Vec<u8>,
}

struct Queue {
    /// The number of the last record taken, on disk or not.
    last: u64,
    /// The highest number on disk.
    on_disk: u64,
    pending: Vec<Pending>,
    compaction: Option<Compaction>,
    /// How the writer has been told of `pending` and `compaction`, if it has.
    announced: Option<Haste>,
    broken: Option<String>,
}

/// What the writer does next.
enum Job {
    Append { first: u64, on_disk: u64, pending: Vec<Pending> },
    Replace(Vec<u8>),
}

impl Log {
    /// A file that holds everything up to `last`, on disk, in so many bytes; without `file` it is created by the first append.
    pub fn new(path: PathBuf, reader: Option<Reader>, last: u64, file: Option<(Box<dyn DiskFile>, usize)>) -> Self {
        let queue = Queue { last, on_disk: last, pending: Vec::new(), compaction: None, announced: None, broken: None };
        let (synced, _) = watch::channel(Synced::UpTo(Seq(last)));
        let length = file.as_ref().map_or(0, |(_, length)| *length as u64);
        let file = file.map(|(file, _)| Open { file, length, named: true });
        let file = Mutex::new(file);
        Log { path, reader, queue: Mutex::new(queue), synced, file, length: AtomicU64::new(length) }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the last record taken.
    pub fn last(&self) -> u64 {
        self.queue().last
    }

    /// The highest number on disk.
    pub fn on_disk(&self) -> u64 {
        self.queue().on_disk
    }

    /// Whether something waits for the disk.
    pub fn busy(&self) -> bool {
        let queue = self.queue();
        queue.broken.is_none() && queue.last != queue.on_disk
    }

    /// How many bytes the file has.
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }

    fn fail(&self, data: &DataDisk, why: &str) {
        let mut queue = self.queue();
        queue.pending.clear();
        queue.compaction = None;
        if queue.broken.is_none() {
            tracing::error!(journal = %self.path.display(), why, "the journal cannot be written; nothing more will be acknowledged");
            queue.broken = Some(why.to_owned());
        }
        drop(queue);
        // The daemon first: who is woken by its ticket finds it degraded.
        data.failed(why);
        self.synced.send_replace(Synced::Failed(why.to_owned()));
    }

    /// Writes and syncs all that is queued. Only the writer calls this.
    fn commit(&self, means: &Means, ended: &dyn Fn() -> bool) {
        // What is queued from here on is announced again, and nobody else takes this file up before we are done.
        self.queue().announced = None;
        // What comes before a compaction, the compaction, what comes after.
        for _ in 0..3 {
            let Some(job) = self.next() else { return };
            let done = match job {
                Job::Append { first, on_disk, pending } => self.append(means, ended, first, on_disk, pending),
                Job::Replace(bytes) => self.replace(means, bytes),
            };
            if let Err(error) = done {
                self.fail(&means.data, &format!("`{}`: {error}", self.path.display()));
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.queue();
        if queue.broken.is_some() {
            return None;
        }
        let first = queue.last + 1 - queue.pending.len() as u64;
        // What a compaction replaces is in the old file first: should there be no new one, the old one goes on.
        let upto = queue.compaction.as_ref().map_or(queue.last, |compaction| compaction.upto);
        let count = usize::try_from((upto + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        if count > 0 {
            let pending = queue.pending.drain(..count).collect();
            return Some(Job::Append { first, on_disk: queue.on_disk, pending });
        }
        queue.compaction.take().map(|compaction| Job::Replace(compaction.bytes))
    }

    fn append(
        &self,
        means: &Means,
        ended: &dyn Fn() -> bool,
        first: u64,
        on_disk: u64,
        mut pending: Vec<Pending>,
    ) -> io::Result<()> {
        let dies = means.kill.within(pending.len());
        pending.truncate(dies.unwrap_or(pending.len()));
        let last = first + pending.len() as u64 - 1;
        let records = if pending.is_empty() { Vec::new() } else { self.write(means, ended, first, on_disk, pending)? };
        if dies.is_some() {
            Kill::now();
        }
        self.queue().on_disk = last;
        // The views first: who is woken by its ticket waits for nothing but them (see `Views::barrier`).
        if let Some(reader) = &self.reader {
            reader.feed.synced(&reader.run, records);
        }
        self.synced.send_replace(Synced::UpTo(Seq(last)));
        Ok(())
    }

    fn write(
        &self,
        means: &Means,
        ended: &dyn Fn() -> bool,
        first: u64,
        on_disk: u64,
        pending: Vec<Pending>,
    ) -> io::Result<Vec<(Seq, u32, Record)>> {
        // A blob is safe from sweeps until the record that names it is on disk.
        let _held = self.reader.as_ref().map(|reader| reader.blobs.hold());
        let mut bytes = Vec::with_capacity(pending.iter().map(|p| p.json.len().min(INLINE_JSON) + 64).sum());
        let mut records = Vec::with_capacity(pending.len());
        for (seq, Pending { json, record }) in (first..).zip(pending) {
            let json = match &self.reader {
                Some(reader) if json.len() > INLINE_JSON => {
                    let blob = means.data.with_room(ended, || reader.blobs.put(&json))?;
                    format!(r#"{{"blob":"{blob}"}}"#).into_bytes()
                }
                _ => json,
            };
            let crc = line::encode(&mut bytes, seq, on_disk, &json).map_err(io::Error::other)?;
            records.extend(record.map(|record| (Seq(seq), crc, record)));
        }
        means.data.with_room(ended, || self.put(&*means.disk, &bytes))?;
        Ok(records)
    }

    /// Puts `bytes` at the end, on disk when it returns. After a write that found no room the file is as it was before.
    fn put(&self, disk: &dyn Disk, bytes: &[u8]) -> io::Result<()> {
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(Open { file: disk.create(&self.path)?, length: 0, named: false });
        }
        let Some(open) = slot.as_mut() else { return Ok(()) };
        if let Err(error) = open.file.append(bytes) {
            if disk::is_full(&error) {
                open.file
                    .cut(open.length)
                    .map_err(|cut| io::Error::other(format!("{error}; what it left stays: {cut}")))?;
            }
            return Err(error);
        }
        open.file.sync().map_err(unsynced)?;
        if !open.named {
            // The file's name, then its directory's: after a power loss both are found or neither was acknowledged.
            let dir = parent(&self.path)?;
            disk.sync_dir(dir).map_err(unsynced)?;
            disk.sync_dir(parent(dir)?).map_err(unsynced)?;
            open.named = true;
        }
        open.length += bytes.len() as u64;
        self.length.store(open.length, Ordering::Relaxed);
        Ok(())
    }

    /// Puts a compacted file in the place of this one.
    fn replace(&self, means: &Means, bytes: Vec<u8>) -> io::Result<()> {
        match disk::replace(&*means.disk, &self.path, &bytes) {
            Ok(file) => {
                let length = bytes.len() as u64;
                tracing::info!(journal = %self.path.display(), before = self.length(), after = length, "compacted");
                self.length.store(length, Ordering::Relaxed);
                *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(Open { file, length, named: true });
                Ok(())
            }
            // Everything is in the old file, which goes on.
            Err(error) if disk::is_full(&error) => {
                tracing::warn!(journal = %self.path.display(), %error, "there is no room to compact it");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// What writes a set of files: a thread, as a rule. Dropping it writes what is queued and ends the thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    data: Arc<DataDisk>,
    way: Way,
}

enum Way {
    /// `None` once it has ended.
    Thread(Option<JoinHandle<()>>),
    /// What is queued when this is dropped is not written: nobody was told that it was.
    Later(Arc<dyn Later>, Means),
}

struct Shared {
    work: Mutex<Work>,
    wake: Condvar,
}

#[derive(Default)]
struct Work {
    dirty: Vec<Arc<Log>>,
    /// Somebody waits for one of them: all are written, since syncs that meet are cheap.
    hurried: bool,
    /// Who asks whether the writer works; let go of by its thread alone, so that one that died answers nobody.
    beats: Vec<Beat>,
    ending: bool,
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Starts the thread; `name` shows in `ps -T`, at most 15 bytes.
    ///
    /// # Errors
    /// The system's, when it has no thread to give.
    pub fn start(name: &str, means: Means) -> io::Result<Self> {
        let shared = Arc::new(Shared { work: Mutex::default(), wake: Condvar::new() });
        let (theirs, data) = (shared.clone(), means.data.clone());
        let way = match means.later.clone() {
            Some(later) => Way::Later(later, means),
            None => {
                let thread = std::thread::Builder::new().name(name.to_owned());
                Way::Thread(Some(thread.spawn(move || run(&theirs, &means))?))
            }
        };
        Ok(Writer { shared, data, way })
    }

    /// Has `bytes` take the place of all of `log` up to record `upto`, which is its last; soon, or never if there is no room.
    pub fn compact(&self, log: &Arc<Log>, upto: u64, bytes: Vec<u8>) {
        let mut queue = log.queue();
        if queue.broken.is_some() || queue.compaction.is_some() || queue.last != upto {
            return;
        }
        queue.compaction = Some(Compaction { upto, bytes });
        let announce = queue.announced.replace(Haste::Now) < Some(Haste::Now);
        drop(queue);
        if announce {
            self.announce(log, Haste::Now);
        }
    }

    /// Lets go of `beat` once the writer gets on: it has written a file, or has nothing to write.
    pub fn beat(&self, beat: Beat) {
        match &self.way {
            Way::Thread(_) => {
                self.shared.work().beats.push(beat);
                self.shared.wake.notify_one();
            }
            Way::Later(..) => drop(beat),
        }
    }

    fn announce(&self, log: &Arc<Log>, haste: Haste) {
        let first = {
            let mut work = self.shared.work();
            work.hurried |= haste == Haste::Now;
            // One that rests already is hurried from here on.
            let rests = work.dirty.iter().any(|dirty| Arc::ptr_eq(dirty, log));
            if !rests {
                work.dirty.push(log.clone());
            }
            !rests && work.dirty.len() == 1
        };
        match &self.way {
            Way::Thread(_) => self.shared.wake.notify_one(),
            Way::Later(later, means) if first => {
                let (shared, means) = (Arc::clone(&self.shared), means.clone());
                later.later(Box::new(move || {
                    let dirty = std::mem::take(&mut shared.work().dirty);
                    dirty.iter().for_each(|log| log.commit(&means, &|| shared.work().ending));
                }));
            }
            Way::Later(..) => {}
        }
    }

    /// Queues `records` of `log` after `expected`, and returns at once.
    ///
    /// # Errors
    /// [`Refused`]; then none was taken.
    pub fn append(
        &self,
        log: &Arc<Log>,
        expected: u64,
        records: Vec<Pending>,
        haste: Haste,
    ) -> Result<Ticket, Refused> {
        let mut queue = log.queue();
        if let Some(why) = &queue.broken {
            return Err(Refused::Broken(why.clone()));
        }
        if queue.last != expected {
            return Err(Refused::Conflict(queue.last));
        }
        queue.last += records.len() as u64;
        queue.pending.extend(records);
        let ticket = Ticket::new(Seq(queue.last), log.synced.subscribe());
        let announce = queue.announced < Some(haste) && !queue.pending.is_empty();
        if announce {
            queue.announced = Some(haste);
        }
        drop(queue);
        if announce {
            self.announce(log, haste);
        }
        Ok(ticket)
    }
}

/// Why a file took no records.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It failed earlier.
    Broken(String),
    /// Its last number is this one.
    Conflict(u64),
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.work().ending = true;
        self.shared.wake.notify_one();
        // It may wait for room: what finds none now is not written.
        self.data.wake();
        // The last owner may be a reader that the thread itself lets go of: it cannot wait for itself.
        if let Way::Thread(thread) = &mut self.way
            && let Some(thread) = thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // It has said why if it panicked; its files' tickets fail with it.
            let _ended = thread.join();
        }
    }
}

fn run(shared: &Shared, means: &Means) {
    loop {
        let dirty = {
            let idle = |work: &mut Work| work.dirty.is_empty() && work.beats.is_empty() && !work.ending;
            let rests = |work: &mut Work| !work.hurried && work.beats.is_empty() && !work.ending;
            let work = shared.wake.wait_while(shared.work(), idle).unwrap_or_else(PoisonError::into_inner);
            let (mut work, _) =
                shared.wake.wait_timeout_while(work, REST, rests).unwrap_or_else(PoisonError::into_inner);
            if work.dirty.is_empty() && work.beats.is_empty() {
                return;
            }
            work.hurried = false;
            std::mem::take(&mut work.dirty)
        };
        means.kill.stall.here();
        // After each file: many files on a slow disk are no standstill.
        let gets_on = || drop(std::mem::take(&mut shared.work().beats));
        pass(&dirty, means, &|| shared.work().ending, &gets_on);
        gets_on();
    }
}

/// Commits each of `dirty`. Several files are synced side by side, as the file system puts syncs that meet into one commit of its own;
/// the helpers last as long as the pass, for most passes have one file.
fn pass(dirty: &[Arc<Log>], means: &Means, ended: &(dyn Fn() -> bool + Sync), gets_on: &(dyn Fn() + Sync)) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(log) = dirty.get(next.fetch_add(1, Ordering::Relaxed)) {
            // A reader that panics must not take every journal of the daemon with it.
            let committed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| log.commit(means, &ended)));
            if committed.is_err() {
                log.fail(&means.data, "a reader of it panicked");
            }
            gets_on();
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..dirty.len().min(SIDE_BY_SIDE) {
            // Without a helper the writer does it all itself.
            let _started = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}
