//! The control log: `journal/control`, a key-value log in journal lines.
//!
//! A record is `{"commit":"RunRequested","at_ms":1700000000000,"puts":[{"key":"run/...","value":...}]}`; a `null` value deletes, the
//! last put of a key wins, and a key's revision is the number of the record that wrote it. The whole log is folded into memory when
//! it is opened: it holds what outlives runs, not what happens in them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::{
    disk::{Disk, RealDisk},
    file::{Log, Pending, Refused, Writer},
    kill::Kill,
    line::{self, First},
};
use crate::{
    ports::{
        control::{Commit, CommitError, Control, Entry, Revision},
        journal::Ticket,
    },
    time::Clock,
};

/// The largest record: it has to fit a line, with room for what the format may still need.
pub(super) const MAX_RECORD: usize = 60 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    commit: Commit,
    at_ms: i64,
    puts: Vec<Put>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    key: String,
    value: Option<Value>,
}

type Entries = BTreeMap<String, (u64, Value)>;

/// The control log of one daemon. Dropping it writes what was committed.
pub struct ControlLog {
    clock: Arc<dyn Clock>,
    writer: Writer,
    log: Arc<Log>,
    state: Mutex<Entries>,
    changed: watch::Sender<u64>,
}

impl ControlLog {
    /// Opens or makes `dir/control` (`dir` is `data_dir/journal`); an unsynced tail is cut, and what is kept is written anew, as a
    /// page cache that outlived a failed sync cannot be told from the disk. `clock` stamps the records for people, `kill` is for tests
    /// of recovery.
    ///
    /// # Errors
    /// The disk's; `InvalidData` when a record that was on disk is damaged or not understood: the message says where and what to do.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>, kill: Kill) -> io::Result<Self> {
        ControlLog::on(Arc::new(RealDisk), dir, clock, kill)
    }

    pub(super) fn on(disk: Arc<dyn Disk>, dir: &Path, clock: Arc<dyn Clock>, kill: Kill) -> io::Result<Self> {
        let path = dir.join("control");
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        let scan = line::scan(&bytes, First::Any);
        if let Some(damage) = scan.damage {
            return Err(refuse(&path, &damage.to_string(), damage.at));
        }
        let mut state = Entries::new();
        for line in &scan.lines {
            let json = bytes.get(line.json.clone()).unwrap_or_default();
            let record: Record = serde_json::from_slice(json).map_err(|error| {
                refuse(&path, &format!("record {} is not understood: {error}", line.seq), line.json.start)
            })?;
            fold(&mut state, line.seq, record.puts);
        }
        let last = scan.lines.last().map_or(0, |line| line.seq);
        let file = disk.replace(&path, bytes.get(..scan.kept).unwrap_or_default())?;
        let log = Arc::new(Log::new(path, None, last, Some(file)));
        let writer = Writer::start("journal-control", disk, kill)?;
        Ok(ControlLog { clock, writer, log, state: Mutex::new(state), changed: watch::Sender::new(last) })
    }

    fn state(&self) -> MutexGuard<'_, Entries> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

fn fold(state: &mut Entries, seq: u64, puts: Vec<Put>) {
    for Put { key, value } in puts {
        match value {
            Some(value) => state.insert(key, (seq, value)),
            None => state.remove(&key),
        };
    }
}

impl Control for ControlLog {
    fn get(&self, key: &str) -> Option<Entry> {
        let state = self.state();
        let (seq, value) = state.get(key)?;
        Some(Entry { key: key.to_owned(), revision: Revision(*seq), value: value.clone() })
    }

    fn scan(&self, prefix: &str) -> Vec<Entry> {
        let state = self.state();
        let from = state.range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        from.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, (seq, value))| Entry { key: key.clone(), revision: Revision(*seq), value: value.clone() })
            .collect()
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
        let record = Record { commit: what, at_ms: self.clock.now().wall_ms, puts };
        let json = serde_json::to_vec(&record).map_err(|error| CommitError::Broken(error.to_string()))?;
        if json.len() > MAX_RECORD {
            return Err(CommitError::TooLarge { bytes: json.len(), limit: MAX_RECORD });
        }
        let mut state = self.state();
        for (key, revision) in expected {
            if state.get(key).map_or(0, |(seq, _)| *seq) != revision.0 {
                return Err(CommitError::Conflict { key: key.clone() });
            }
        }
        // Everybody who commits holds the state, so nobody else can have appended since.
        let last = self.log.last();
        let ticket = self.writer.append(&self.log, last, vec![Pending { json, record: None }]).map_err(|refused| {
            CommitError::Broken(match refused {
                Refused::Broken(why) => why,
                Refused::Conflict(found) => format!("it stands at {found}, not at {last}"),
            })
        })?;
        fold(&mut state, ticket.seq().0, record.puts);
        drop(state);
        self.changed.send_replace(ticket.seq().0);
        Ok(ticket)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests;
