//! The journals of runs: `runs/<run>/journal`, one line a record.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Deserialize;

use super::{
    data_disk::{self, DataDisk},
    disk::{self, RealDisk, simulated::SimulatedDisk},
    file::{Haste, Later, Log, Means, Pending, Reader, Refused, Writer},
    kill::Kill,
    line::{self, First},
};
use crate::{
    lifecycle::pulse::Beat,
    model::{
        event::Record,
        ids::{Digest, Epoch, RunId, Seq},
    },
    ports::{
        blobs::{self, Blobs},
        journal::{AppendError, Feed, Found, Journals, Ticket},
    },
};

/// All run journals of one daemon, below `journal/runs`, written by one thread.
///
/// Dropping it writes what was appended and ends the thread.
pub struct RunJournals {
    dir: PathBuf,
    blobs: Arc<dyn Blobs>,
    feed: Arc<dyn Feed>,
    means: Means,
    writer: Writer,
    open: Mutex<BTreeMap<RunId, Open>>,
}

struct Open {
    log: Arc<Log>,
    epoch: Epoch,
}

/// What the JSON of most records fits in, bytes.
const USUAL: usize = 1024;

/// A line that stands for a larger record.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Elsewhere {
    blob: Digest,
}

/// The record that `json` is, or names.
fn record(blobs: &dyn Blobs, json: &[u8]) -> Result<Record, String> {
    if json.starts_with(br#"{"blob":"#) {
        let Elsewhere { blob } = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let json = blobs.get(&blob).map_err(|error| format!("blob {blob}: {error}"))?;
        return serde_json::from_slice(&json).map_err(|error| format!("blob {blob}: {error}"));
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

/// The records after `after` in the bytes of a run's journal, as far as they can be read.
pub fn records_after(blobs: &dyn Blobs, bytes: &[u8], after: Seq) -> Vec<(Seq, u32, Record)> {
    let lines = line::scan(bytes, First::One).lines.into_iter().filter(|line| line.seq > after.0);
    let read = lines.map_while(|line| {
        let record = record(blobs, bytes.get(line.json)?).ok()?;
        Some((Seq(line.seq), line.crc, record))
    });
    read.collect()
}

impl RunJournals {
    /// Over the directory `dir` (`data_dir/journal/runs`), which is made if missing. Records over 16 KiB go to `blobs`; `feed` hears
    /// of every record once it is on disk, and not of those that [`Journals::read`] and [`Journals::reopen`] return. `data` has room for
    /// them and hears of failures; `kill` is for tests of recovery.
    ///
    /// # Errors
    /// The disk's, or no thread to be had.
    pub fn open(
        dir: PathBuf,
        blobs: Arc<dyn Blobs>,
        feed: Arc<dyn Feed>,
        data: Arc<DataDisk>,
        kill: Kill,
    ) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        RunJournals::with(Means { disk: Arc::new(RealDisk), data, kill, later: None }, dir, blobs, feed)
    }

    /// The same over a disk in memory, without a thread: `later` says when what was appended is written.
    ///
    /// # Errors
    /// None there could be.
    pub fn simulated(
        dir: PathBuf,
        blobs: Arc<dyn Blobs>,
        feed: Arc<dyn Feed>,
        data: Arc<DataDisk>,
        disk: &SimulatedDisk,
        later: Arc<dyn Later>,
    ) -> io::Result<Self> {
        let means = Means { disk: Arc::new(disk.clone()), data, kill: Kill::default(), later: Some(later) };
        RunJournals::with(means, dir, blobs, feed)
    }

    pub(super) fn with(means: Means, dir: PathBuf, blobs: Arc<dyn Blobs>, feed: Arc<dyn Feed>) -> io::Result<Self> {
        let writer = Writer::start("journal-runs", means.clone())?;
        Ok(RunJournals { dir, blobs, feed, means, writer, open: Mutex::default() })
    }

    fn logs(&self) -> MutexGuard<'_, BTreeMap<RunId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, run: &RunId) -> PathBuf {
        self.dir.join(run.as_str()).join("journal")
    }

    /// Where runs lie that were taken away, beside those that were not: a rename cannot leave a file system.
    fn trash(&self) -> PathBuf {
        self.dir.with_file_name("trash")
    }

    fn reader(&self, run: &RunId) -> Option<Reader> {
        Some(Reader { run: run.clone(), feed: self.feed.clone(), blobs: self.blobs.clone() })
    }

    /// What `bytes` hold, up to record `limit`, and how many bytes of them to keep.
    fn found(&self, path: &Path, bytes: &[u8], limit: u64) -> (Found, usize) {
        let scan = line::scan(bytes, First::One);
        let mut damage = scan.damage.map(|damage| format!("`{}`: {damage}", path.display()));
        let mut records = Vec::with_capacity(scan.lines.len());
        for line in scan.lines.into_iter().take_while(|line| line.seq <= limit) {
            match record(&*self.blobs, bytes.get(line.json).unwrap_or_default()) {
                Ok(record) => records.push((Seq(line.seq), line.crc, record)),
                // The line is as it was written, so what it names is gone or a newer daemon wrote it: never a tail to cut.
                Err(why) => {
                    damage = Some(format!("`{}`: record {} cannot be read: {why}", path.display(), line.seq));
                    break;
                }
            }
        }
        (Found { records, damage }, scan.kept)
    }

    /// The journal to append to, new if `expected` is 0 and there is none.
    fn log(&self, run: &RunId, epoch: Epoch, expected: Seq) -> Result<Arc<Log>, AppendError> {
        let broken = |why: &str| AppendError::Broken { run: run.clone(), why: why.to_owned() };
        let mut open = self.logs();
        if let Some(open) = open.get_mut(run) {
            if epoch < open.epoch {
                return Err(AppendError::Fenced { run: run.clone(), epoch });
            }
            open.epoch = epoch;
            return Ok(open.log.clone());
        }
        if expected != Seq(0) {
            return Err(broken("it is not open: it was closed, or must be reopened first"));
        }
        let path = self.path(run);
        if self.means.disk.exists(&path) {
            return Err(broken("there is one already: it must be reopened first"));
        }
        let log = Arc::new(Log::new(path, self.reader(run), 0, None));
        open.insert(run.clone(), Open { log: log.clone(), epoch });
        Ok(log)
    }
}

impl Journals for RunJournals {
    fn append(&self, run: &RunId, epoch: Epoch, expected: Seq, records: Vec<Record>) -> Result<Ticket, AppendError> {
        let haste = if records.iter().all(|record| record.event.may_rest()) { Haste::Rests } else { Haste::Now };
        let pending = records
            .into_iter()
            .map(|record| {
                let mut json = Vec::with_capacity(USUAL);
                serde_json::to_writer(&mut json, &record)?;
                Ok(Pending { json, record: Some(record) })
            })
            .collect::<Result<Vec<_>, serde_json::Error>>()
            .map_err(|error| AppendError::Broken { run: run.clone(), why: format!("a record of it: {error}") })?;
        let log = self.log(run, epoch, expected)?;
        self.writer.append(&log, expected.0, pending, haste).map_err(|refused| match refused {
            Refused::Broken(why) => AppendError::Broken { run: run.clone(), why },
            Refused::Conflict(found) => AppendError::Conflict { run: run.clone(), expected, found: Seq(found) },
        })
    }

    fn beat(&self, beat: Beat) {
        self.writer.beat(beat);
    }

    fn read(&self, run: &RunId) -> io::Result<Found> {
        // Views may not be ahead of the disk: of a journal being written only what was synced before the read is shown.
        let limit = self.logs().get(run).map_or(u64::MAX, |open| open.log.on_disk());
        let path = self.path(run);
        let bytes = match self.means.disk.read(&path) {
            // Created in memory only: nothing of it is on disk yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound && limit == 0 => Vec::new(),
            other => other?,
        };
        Ok(self.found(&path, &bytes, limit).0)
    }

    fn reopen(&self, run: &RunId, epoch: Epoch) -> io::Result<Found> {
        if let Some(open) = self.logs().get(run) {
            if epoch < open.epoch {
                return Err(io::Error::other(format!("the journal of run {run} belongs to a later epoch")));
            }
            if open.log.busy() {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    format!("the journal of run {run} is being written"),
                ));
            }
        }
        let path = self.path(run);
        let bytes = self.means.disk.read(&path)?;
        let (found, kept) = self.found(&path, &bytes, u64::MAX);
        if found.damage.is_some() {
            return Ok(found);
        }
        let kept = bytes.get(..kept).unwrap_or_default();
        // A run that finds no room is not damaged: it waits for some.
        let file = self.means.data.with_room(&|| false, || disk::replace(&*self.means.disk, &path, kept))?;
        // The name of the run's directory may never have been synced: the crash may have come before the first sync ended.
        self.means.disk.sync_dir(&self.dir)?;
        let last = found.records.last().map_or(0, |(seq, ..)| seq.0);
        let log = Arc::new(Log::new(path, self.reader(run), last, Some((file, kept.len()))));
        self.logs().insert(run.clone(), Open { log, epoch });
        Ok(found)
    }

    fn runs(&self) -> io::Result<Vec<RunId>> {
        let mut runs = Vec::new();
        for name in self.means.disk.list(&self.dir)? {
            // Anything else in there is not ours.
            if let Ok(run) = name.parse::<RunId>()
                && self.means.disk.exists(&self.path(&run))
            {
                runs.push(run);
            }
        }
        // Run ids begin with their time.
        runs.sort();
        Ok(runs)
    }

    fn close(&self, run: &RunId) {
        // The writer keeps the file until what is queued is on disk.
        self.logs().remove(run);
    }

    fn retire(&self, run: &RunId) -> io::Result<()> {
        if self.logs().contains_key(run) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("the journal of run {run} is open")));
        }
        let (runs, trash) = (&self.dir, self.trash());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&trash)?;
        self.means.disk.rename(&runs.join(run.as_str()), &trash.join(run.as_str()))?;
        // The new name first: after a power loss it is in one of them, or in both.
        self.means.disk.sync_dir(&trash)?;
        self.means.disk.sync_dir(runs)
    }

    fn retired(&self) -> io::Result<Vec<RunId>> {
        match self.means.disk.list(&self.trash()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => Ok(names?.iter().filter_map(|name| name.parse().ok()).collect()),
        }
    }

    fn shred(&self, run: &RunId) -> io::Result<()> {
        match fs::remove_dir_all(self.trash().join(run.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn size(&self, run: &RunId) -> io::Result<u64> {
        data_disk::used(&self.dir.join(run.as_str()))
    }

    fn named(&self) -> io::Result<BTreeSet<Digest>> {
        let mut found = BTreeSet::new();
        for run in self.runs()? {
            found.extend(blobs::named(&self.means.disk.read(&self.path(&run))?));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
