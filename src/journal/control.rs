//! The control log: `journal/control`, a key-value log in journal lines.
//!
//! A record is `{"commit":"RunRequested","at_ms":1700000000000,"puts":[{"key":"run/...","value":...}]}`; a `null` value deletes, the
//! last put of a key wins, and a key's revision is the number of the record that wrote it. The whole log is folded into memory when
//! it is opened: it holds what outlives runs, not what happens in them.
//!
//! A log that has grown far beyond what lives in it is compacted, at open and while it is written. The new file begins with what
//! lives, in records of the commit `Kept`, and an end mark, `{"commit":"Compacted","at_ms":...,"lines":<how many>,"puts":[]}`, which has
//! the number of the last record folded into it; those before it count down from there, and what follows goes on from there. It takes
//! the old one's place when it is whole, so one without its mark was tampered with and is refused.

mod packed;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use packed::{Living, Packed};

use super::{
    data_disk::DataDisk,
    disk::{self, RealDisk, simulated::SimulatedDisk},
    file::{Haste, Later, Log, Means, Pending, Refused, Writer},
    kill::Kill,
    line::{self, First},
};
use crate::{
    lifecycle::{pulse::Beat, watch},
    ports::{
        control::{Commit, CommitError, Control, Entry, Revision},
        journal::Ticket,
    },
    time::Clock,
};

/// The largest record: it has to fit a line, with room for what the format may still need.
pub(super) const MAX_RECORD: usize = 60 * 1024;

/// A log is compacted when it is this many times as large as what lives in it, and not before it has `FLOOR` bytes: then it is read
/// in a moment anyway, and people find in it what happened lately.
const TIMES: u64 = 4;
const FLOOR: u64 = 512 * 1024;
const SIMULATED_FLOOR: u64 = 32 * 1024;

/// How much of a record's room a compacted file fills before it begins another.
const FULL: usize = MAX_RECORD - 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    commit: What,
    at_ms: i64,
    /// Of `Compacted`: how many records of `Kept` there are before it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    lines: Option<u64>,
    puts: Vec<Put>,
}

/// What a record is.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum What {
    Commit(Commit),
    Compaction(Compaction),
}

/// The log's own records.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Compaction {
    Kept,
    Compacted,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    key: String,
    value: Option<Value>,
}

/// What lives.
#[derive(Default)]
struct Entries {
    by_key: Packed,
    /// About what it takes in a compacted file.
    bytes: u64,
    /// The length of the file when it was last to be compacted.
    tried_at: u64,
}

fn entry(key: String, revision: u64, text: &str) -> Entry {
    // The text was made of a value.
    Entry { key, revision: Revision(revision), value: serde_json::from_str(text).unwrap_or_default() }
}

/// About what an entry takes in a compacted file. Escapes apart: it is a measure and no promise.
fn size(key: &str, text: usize) -> u64 {
    (key.len() + text + 24) as u64
}

impl Entries {
    fn fold(&mut self, revision: u64, puts: Vec<Put>) {
        for Put { key, value } in puts {
            let text = value.map(|value| value.to_string());
            let old = self.by_key.set(&key, text.as_deref().map(|text| Living { revision, text }));
            self.bytes += text.map_or(0, |text| size(&key, text.len()));
            self.bytes -= old.map_or(0, |old| size(&key, old));
        }
    }

    /// Whether a file of `length` bytes has grown too far beyond what lives in it.
    fn outgrown(&self, length: u64, floor: u64) -> bool {
        length > floor.max(TIMES * self.bytes)
    }

    /// The compacted file that stands for everything up to record `last`; `None` when the numbers do not suffice.
    fn compacted(&self, last: u64, at_ms: i64) -> io::Result<Option<Vec<u8>>> {
        let record =
            |commit, lines, puts| serde_json::to_vec(&Record { commit: What::Compaction(commit), at_ms, lines, puts });
        let (mut records, mut puts, mut size) = (Vec::new(), Vec::new(), 0);
        for (key, living) in self.by_key.since("") {
            // What was committed fits a record, so it fits one alone.
            let put = Put { key, value: Some(serde_json::from_str(living.text)?) };
            let bytes = serde_json::to_vec(&put)?.len() + 1;
            if size + bytes > FULL && !puts.is_empty() {
                records.push(record(Compaction::Kept, None, std::mem::take(&mut puts))?);
                size = 0;
            }
            size += bytes;
            puts.push(put);
        }
        if !puts.is_empty() {
            records.push(record(Compaction::Kept, None, puts)?);
        }
        let lines = records.len() as u64;
        records.push(record(Compaction::Compacted, Some(lines), Vec::new())?);
        let Some(before) = last.checked_sub(records.len() as u64) else { return Ok(None) };
        let mut bytes = Vec::new();
        for (seq, json) in (before + 1..).zip(records) {
            // All of it is on disk before it is the log: a bad line before a good one is damage.
            line::encode(&mut bytes, seq, seq - 1, &json).map_err(io::Error::other)?;
        }
        Ok(Some(bytes))
    }
}

/// The control log of one daemon. Dropping it writes what was committed.
pub struct ControlLog {
    clock: Arc<dyn Clock>,
    writer: Writer,
    log: Arc<Log>,
    state: Mutex<Entries>,
    changed: watch::Sender<u64>,
    floor: u64,
}

impl ControlLog {
    /// Opens or makes `dir/control` (`dir` is `data_dir/journal`); an unsynced tail is cut, and what is kept is written anew, as a
    /// page cache that outlived a failed sync cannot be told from the disk. `clock` stamps the records for people, `data` has room for
    /// them and hears of failures, `kill` is for tests of recovery.
    ///
    /// # Errors
    /// The disk's; `InvalidData` when a record that was on disk is damaged or not understood: the message says where and what to do.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>, data: Arc<DataDisk>, kill: Kill) -> io::Result<Self> {
        ControlLog::with(Means { disk: Arc::new(RealDisk), data, kill, later: None }, dir, clock, FLOOR)
    }

    /// The same over a disk in memory, without a thread: `later` says when what was committed is written.
    ///
    /// # Errors
    /// As [`ControlLog::open`].
    pub fn simulated(
        dir: &Path,
        clock: Arc<dyn Clock>,
        data: Arc<DataDisk>,
        disk: &SimulatedDisk,
        later: Arc<dyn Later>,
    ) -> io::Result<Self> {
        let means = Means { disk: Arc::new(disk.clone()), data, kill: Kill::default(), later: Some(later) };
        // Small, so that simulations come by compactions too.
        ControlLog::with(means, dir, clock, SIMULATED_FLOOR)
    }

    pub(super) fn with(means: Means, dir: &Path, clock: Arc<dyn Clock>, floor: u64) -> io::Result<Self> {
        let path = dir.join("control");
        let bytes = match means.disk.read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        let (mut state, last, kept) = read(&path, &bytes)?;
        let kept = bytes.get(..kept).unwrap_or_default();
        let compacted = match state.outgrown(kept.len() as u64, floor) {
            true => state.compacted(last, clock.now().wall_ms)?,
            false => None,
        };
        if let Some(compacted) = &compacted {
            // Their revisions are those that the next start would find, too.
            state = read(&path, compacted)?.0;
        }
        let begin = compacted.as_deref().unwrap_or(kept);
        // Whoever starts a daemon on a full disk is to be told so: there is the reserve and no waiting.
        let file = means.data.with_room(&|| true, || disk::replace(&*means.disk, &path, begin))?;
        let log = Arc::new(Log::new(path, None, last, Some((file, begin.len()))));
        let writer = Writer::start("journal-control", means)?;
        Ok(ControlLog { clock, writer, log, state: Mutex::new(state), changed: watch::Sender::new(last), floor })
    }

    fn state(&self) -> MutexGuard<'_, Entries> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compacts the file when it has outgrown what lives in it. Numbers and revisions stay; who commits does not wait.
    fn compact(&self, state: &mut Entries) {
        let length = self.log.length();
        if length < state.tried_at {
            state.tried_at = 0;
        }
        // Once tried and not done, for want of room, it is tried again when it has grown some more.
        if !state.outgrown(length, self.floor) || length < state.tried_at.saturating_add(self.floor) {
            return;
        }
        state.tried_at = length;
        let last = self.log.last();
        match state.compacted(last, self.clock.now().wall_ms) {
            Ok(Some(bytes)) => self.writer.compact(&self.log, last, bytes),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the control log cannot be compacted; it goes on as it is"),
        }
    }
}

/// What the bytes of a log hold, the number of its last record, and how many bytes count.
fn read(path: &Path, bytes: &[u8]) -> io::Result<(Entries, u64, usize)> {
    let scan = line::scan(bytes, First::Any);
    if let Some(damage) = scan.damage {
        return Err(refuse(path, &damage.to_string(), damage.at));
    }
    let mut state = Entries::default();
    let (mut kept, mut whole) = (0, true);
    for (line, index) in scan.lines.iter().zip(0..) {
        let bad = |why: String| refuse(path, &format!("record {} {why}", line.seq), line.json.start);
        let json = bytes.get(line.json.clone()).unwrap_or_default();
        let record: Record =
            serde_json::from_slice(json).map_err(|error| bad(format!("is not understood: {error}")))?;
        match record.commit {
            What::Compaction(Compaction::Kept) if kept == index => (kept, whole) = (index + 1, false),
            What::Compaction(Compaction::Compacted) if kept == index && record.lines == Some(kept) => whole = true,
            What::Compaction(_) => return Err(bad("is of a compaction and stands in the wrong place".to_owned())),
            // A log that was never compacted begins with record 1.
            What::Commit(_) if whole && (index > 0 || line.seq == 1) => {}
            What::Commit(_) => return Err(bad("follows a compaction that has no end mark".to_owned())),
        }
        state.fold(line.seq, record.puts);
    }
    // A first record may be torn, but only if it is the first of all.
    let later = scan.lines.is_empty() && begins_later(bytes);
    if !whole || later {
        return Err(refuse(path, "it was compacted, and the end of that is missing", scan.kept));
    }
    Ok((state, scan.lines.last().map_or(0, |line| line.seq), scan.kept))
}

/// Whether the first line, though it cannot be read, has a number above 1.
fn begins_later(bytes: &[u8]) -> bool {
    let Some(begin) = bytes.get(..11) else { return false };
    let (crc, seq) = begin.split_at(8);
    let number = matches!(seq, [b' ', b'1'..=b'9', b'0'..=b'9' | b' ']) && seq != b" 1 ";
    number && crc.iter().all(u8::is_ascii_hexdigit)
}

fn refuse(path: &Path, what: &str, at: usize) -> io::Error {
    let path: PathBuf = path.to_owned();
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "the control log `{path}` cannot be trusted from byte {at} on: {what}. Nothing was changed. Restore `{path}` from a \
             backup (with the rest of its directory); if there is none, keep a copy of it and cut it with `head -c`, at the last newline \
             before that byte: every request, outcome, token and lease written later is then forgotten",
            path = path.display()
        ),
    )
}

impl Control for ControlLog {
    fn get(&self, key: &str) -> Option<Entry> {
        let (revision, text) = {
            let state = self.state();
            let Living { revision, text } = state.by_key.get(key)?;
            (revision, text.to_owned())
        };
        Some(entry(key.to_owned(), revision, &text))
    }

    fn scan(&self, prefix: &str) -> Vec<Entry> {
        let state = self.state();
        let found = state.by_key.since(prefix).take_while(|(key, _)| key.starts_with(prefix));
        let found: Vec<_> = found.map(|(key, living)| (key, living.revision, living.text.to_owned())).collect();
        drop(state);
        found.into_iter().map(|(key, revision, text)| entry(key, revision, &text)).collect()
    }

    fn commit(
        &self,
        what: Commit,
        expected: &[(String, Revision)],
        puts: Vec<(String, Option<Value>)>,
    ) -> Result<Ticket, CommitError> {
        // In the log a null value deletes, so it deletes here as well.
        let puts =
            puts.into_iter().map(|(key, value)| Put { key, value: value.filter(|value| !value.is_null()) }).collect();
        let record = Record { commit: What::Commit(what), at_ms: self.clock.now().wall_ms, lines: None, puts };
        let json = serde_json::to_vec(&record).map_err(|error| CommitError::Broken(error.to_string()))?;
        if json.len() > MAX_RECORD {
            return Err(CommitError::TooLarge { bytes: json.len(), limit: MAX_RECORD });
        }
        let mut state = self.state();
        for (key, revision) in expected {
            if state.by_key.get(key).map_or(0, |living| living.revision) != revision.0 {
                return Err(CommitError::Conflict { key: key.clone() });
            }
        }
        // Everybody who commits holds the state, so nobody else can have appended since.
        let last = self.log.last();
        let ticket = self.writer.append(&self.log, last, vec![Pending { json, record: None }], Haste::Now).map_err(
            |refused| {
                CommitError::Broken(match refused {
                    Refused::Broken(why) => why,
                    Refused::Conflict(found) => format!("it stands at {found}, not at {last}"),
                })
            },
        )?;
        state.fold(ticket.seq().0, record.puts);
        self.compact(&mut state);
        drop(state);
        self.changed.send_replace(ticket.seq().0);
        Ok(ticket)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn beat(&self, beat: Beat) {
        self.writer.beat(beat);
    }
}

#[cfg(test)]
mod tests;
