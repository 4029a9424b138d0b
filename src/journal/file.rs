//! Append-only files and the one thread that writes and syncs them.
//!
//! Group commit: appending only queues. The writer takes all dirty files, and of each all that queued while it was busy, in one
//! write and one sync; there is no timer to wait for. The first failure of a file is its last word: its queue is dropped, every
//! ticket fails, and the sync is never tried again, because after a failed fsync the page cache is not the disk.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use tokio::sync::watch;

use super::{
    disk::{Disk, DiskFile, parent},
    kill::Kill,
    line,
};
use crate::{
    model::{
        event::Record,
        ids::{RunId, Seq},
    },
    ports::{
        blobs::Blobs,
        journal::{Feed, Synced, Ticket},
    },
};

/// Records over this many bytes of JSON become a blob that the line names.
pub(super) const INLINE_JSON: usize = 16 * 1024;

/// How many files are synced at the same time. Measured on ext4, 50 appenders to 50 files: a third of the wait (p50 2.0 ms, not 6.9)
/// of one file after the other; a single file gains nothing.
const SIDE_BY_SIDE: usize = 8;

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

/// One append-only file. Shared by those who append and the writer.
pub(super) struct Log {
    path: PathBuf,
    reader: Option<Reader>,
    queue: Mutex<Queue>,
    synced: watch::Sender<Synced>,
    /// The writer's side; a lock of its own, so that appending never waits for the disk.
    file: Mutex<Option<Box<dyn DiskFile>>>,
}

struct Queue {
    /// The number of the last record taken, on disk or not.
    last: u64,
    /// The highest number on disk.
    on_disk: u64,
    pending: Vec<Pending>,
    /// Whether the writer has been told of `pending`.
    announced: bool,
    broken: Option<String>,
}

impl Log {
    /// A file that holds everything up to `last`, on disk; without `file` it is created by the first append.
    pub fn new(path: PathBuf, reader: Option<Reader>, last: u64, file: Option<Box<dyn DiskFile>>) -> Self {
        let queue = Queue { last, on_disk: last, pending: Vec::new(), announced: false, broken: None };
        let (synced, _) = watch::channel(Synced::UpTo(Seq(last)));
        Log { path, reader, queue: Mutex::new(queue), synced, file: Mutex::new(file) }
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

    fn fail(&self, why: &str) {
        let mut queue = self.queue();
        queue.pending.clear();
        if queue.broken.is_none() {
            tracing::error!(journal = %self.path.display(), why, "the journal cannot be written; nothing more will be acknowledged");
            queue.broken = Some(why.to_owned());
        }
        drop(queue);
        self.synced.send_replace(Synced::Failed(why.to_owned()));
    }

    /// Writes and syncs all that is queued. Only the writer's thread calls this.
    fn commit(&self, disk: &dyn Disk, kill: &Kill) {
        let (first, on_disk, pending) = {
            let mut queue = self.queue();
            queue.announced = false;
            if queue.broken.is_some() {
                return;
            }
            let pending = std::mem::take(&mut queue.pending);
            (queue.last + 1 - pending.len() as u64, queue.on_disk, pending)
        };
        if pending.is_empty() {
            return;
        }
        let last = first + pending.len() as u64 - 1;
        let mut pending = pending;
        let dies = kill.within(pending.len());
        pending.truncate(dies.unwrap_or(pending.len()));
        let written = if pending.is_empty() { Ok(Vec::new()) } else { self.write(disk, first, on_disk, pending) };
        if dies.is_some() {
            Kill::now();
        }
        match written {
            Err(error) => self.fail(&format!("`{}`: {error}", self.path.display())),
            Ok(records) => {
                self.queue().on_disk = last;
                // The views first: who is woken by its ticket finds them up to date.
                if let Some(reader) = &self.reader {
                    reader.feed.synced(&reader.run, &records);
                }
                self.synced.send_replace(Synced::UpTo(Seq(last)));
            }
        }
    }

    fn write(
        &self,
        disk: &dyn Disk,
        first: u64,
        on_disk: u64,
        pending: Vec<Pending>,
    ) -> io::Result<Vec<(Seq, u32, Record)>> {
        let mut bytes = Vec::with_capacity(pending.iter().map(|p| p.json.len().min(INLINE_JSON) + 64).sum());
        let mut records = Vec::with_capacity(pending.len());
        for (seq, Pending { json, record }) in (first..).zip(pending) {
            let json = match &self.reader {
                Some(reader) if json.len() > INLINE_JSON => {
                    format!(r#"{{"blob":"{}"}}"#, reader.blobs.put(&json)?).into_bytes()
                }
                _ => json,
            };
            let crc = line::encode(&mut bytes, seq, on_disk, &json).map_err(io::Error::other)?;
            records.extend(record.map(|record| (Seq(seq), crc, record)));
        }
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = slot.as_mut() {
            file.append(&bytes)?;
            file.sync()?;
        } else {
            let mut file = disk.create(&self.path)?;
            file.append(&bytes)?;
            file.sync()?;
            // The file's name, then its directory's: after a power loss both are found or neither was acknowledged.
            let dir = parent(&self.path)?;
            disk.sync_dir(dir)?;
            disk.sync_dir(parent(dir)?)?;
            *slot = Some(file);
        }
        Ok(records)
    }
}

/// The thread that writes a set of files. Dropping it writes what is queued and ends the thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    work: Mutex<Work>,
    wake: Condvar,
}

#[derive(Default)]
struct Work {
    dirty: Vec<Arc<Log>>,
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
    pub fn start(name: &str, disk: Arc<dyn Disk>, kill: Kill) -> io::Result<Self> {
        let shared = Arc::new(Shared { work: Mutex::default(), wake: Condvar::new() });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&theirs, &*disk, &kill))?;
        Ok(Writer { shared, thread: Some(thread) })
    }

    /// Queues `records` of `log` after `expected`, and returns at once.
    ///
    /// # Errors
    /// [`Refused`]; then none was taken.
    pub fn append(&self, log: &Arc<Log>, expected: u64, records: Vec<Pending>) -> Result<Ticket, Refused> {
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
        let announce = !queue.announced && !queue.pending.is_empty();
        queue.announced |= announce;
        drop(queue);
        if announce {
            self.shared.work().dirty.push(log.clone());
            self.shared.wake.notify_one();
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
        // The last owner may be a reader that the thread itself lets go of: it cannot wait for itself.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // It has said why if it panicked; its files' tickets fail with it.
            let _ended = thread.join();
        }
    }
}

fn run(shared: &Shared, disk: &dyn Disk, kill: &Kill) {
    loop {
        let dirty = {
            let idle = |work: &mut Work| work.dirty.is_empty() && !work.ending;
            let mut work = shared.wake.wait_while(shared.work(), idle).unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut work.dirty)
        };
        if dirty.is_empty() {
            return;
        }
        pass(&dirty, disk, kill);
    }
}

/// Commits each of `dirty`. Several files are synced side by side, as the file system puts syncs that meet into one commit of its own;
/// the helpers last as long as the pass, for most passes have one file.
fn pass(dirty: &[Arc<Log>], disk: &dyn Disk, kill: &Kill) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(log) = dirty.get(next.fetch_add(1, Ordering::Relaxed)) {
            // A reader that panics must not take every journal of the daemon with it.
            let committed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| log.commit(disk, kill)));
            if committed.is_err() {
                log.fail("a reader of it panicked");
            }
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
