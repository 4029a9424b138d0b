//! The output of commands: `runs/<run>/out/<call>.log`, framed.
//!
//! Per attempt and stream the first 5 MiB go straight to the log. What comes after goes to a row of tail files of 5 MiB, of which the last
//! two are kept; when the attempt is over the last 5 MiB of them follow in the log, behind a note that says how much is missing.
//! So a position in a log stays valid for ever, and neither disk nor memory grows with what a command prints. Output is not synced:
//! a crash may cost the last frames of it, never a record. No file stays open between calls.

mod call;
mod frame;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::{
    call::CallLog,
    frame::{MAX_PAYLOAD, Next, PREFIX},
};
use crate::{
    lifecycle::{locks::locked, watch},
    model::{
        ids::RunId,
        step::{CallKey, StepKey},
    },
    ports::outputs::{Frame, Outputs, Position, Stored},
};

/// How much of each end of a stream is kept.
const KEPT: u64 = 5 * 1024 * 1024;

/// How many logs' states are remembered; one that was forgotten is read anew when it is written again.
const REMEMBERED: usize = 256;

/// What one read may hold in memory, whatever its caller asks for.
const MAX_READ: usize = 4 * 1024 * 1024;

/// The output logs below `journal/runs`.
pub struct FileOutputs {
    runs: PathBuf,
    kept: u64,
    known: Mutex<Known>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    logs: BTreeMap<(RunId, CallKey), Arc<Mutex<CallLog>>>,
    /// How many logs a run has.
    counts: BTreeMap<RunId, u64>,
}

impl FileOutputs {
    /// Over `runs_dir` (`data_dir/journal/runs`). Reads nothing yet: a log that a crash cut off is mended when it is written again.
    ///
    /// # Errors
    /// The disk's, when `runs_dir` cannot be made.
    pub fn open(runs_dir: PathBuf) -> io::Result<Self> {
        FileOutputs::keeping(runs_dir, KEPT)
    }

    fn keeping(runs: PathBuf, kept: u64) -> io::Result<Self> {
        fs::create_dir_all(&runs)?;
        Ok(FileOutputs { runs, kept, known: Mutex::default(), changed: watch::Sender::new(0) })
    }

    fn dir(&self, run: &RunId) -> PathBuf {
        self.runs.join(run.as_str()).join("out")
    }

    fn path(&self, run: &RunId, call: &CallKey) -> PathBuf {
        self.dir(run).join(format!("{}.log", frame::file_name(call)))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log of `call`; made if missing and `make`.
    fn log(&self, run: &RunId, call: &CallKey, make: bool) -> io::Result<Option<Arc<Mutex<CallLog>>>> {
        let mut known = self.known();
        let key = (run.clone(), call.clone());
        if let Some(log) = known.logs.get(&key) {
            return Ok(Some(log.clone()));
        }
        let path = self.path(run, call);
        let exists = path.exists();
        if !exists && !make {
            return Ok(None);
        }
        let mut n = 0;
        if !exists {
            n = match known.counts.get(run) {
                Some(count) => *count,
                None => count_logs(&self.dir(run))?,
            };
            known.counts.insert(run.clone(), n + 1);
        }
        if known.logs.len() >= REMEMBERED {
            known.logs.retain(|_, log| Arc::strong_count(log) > 1);
        }
        while known.counts.len() > REMEMBERED {
            // The oldest run: it is counted anew should it print again.
            known.counts.pop_first();
        }
        let log = Arc::new(Mutex::new(CallLog::new(path, call.clone(), n, self.kept)));
        known.logs.insert(key, log.clone());
        Ok(Some(log))
    }
}

impl Outputs for FileOutputs {
    fn append(&self, run: &RunId, frame: Frame) -> io::Result<()> {
        let call = frame.step.call();
        if let Some(log) = self.log(run, &call, true)? {
            locked(&log).append(frame)?;
        }
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    fn finish(&self, run: &RunId, step: &StepKey, attempt: u32) -> io::Result<()> {
        // An attempt that printed nothing has no log, and gets none.
        let Some(log) = self.log(run, &step.call(), false)? else { return Ok(()) };
        locked(&log).finish(step, attempt)?;
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    fn stored(&self, run: &RunId, step: &StepKey, attempt: u32, keep: usize) -> io::Result<[Stored; 2]> {
        let Some(log) = self.log(run, &step.call(), false)? else { return Ok(Default::default()) };
        locked(&log).stored(step, attempt, keep)
    }

    fn calls(&self, run: &RunId) -> io::Result<Vec<CallKey>> {
        let mut calls = Vec::new();
        for path in logs(&self.dir(run))? {
            let mut bytes = Vec::new();
            File::open(&path)?.take(16 * 1024).read_to_end(&mut bytes)?;
            // One without a header was cut off by a crash before it had any frame.
            if let Next::Payload(payload, _) = frame::next(&bytes)
                && let Some(header) = frame::header(payload)
            {
                calls.push((header.n, header.call));
            }
        }
        calls.sort();
        Ok(calls.into_iter().map(|(_, call)| call).collect())
    }

    fn read(&self, run: &RunId, call: &CallKey, from: Position, limit: usize) -> io::Result<(Vec<Frame>, Position)> {
        let path = self.path(run, call);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), from)),
            other => other?,
        };
        // A position from elsewhere: there is nothing behind the end, and the system refuses to seek beyond what a file can be.
        if from.0 > file.metadata()?.len() {
            return Ok((Vec::new(), from));
        }
        file.seek(io::SeekFrom::Start(from.0))?;
        let limit = limit.clamp(1, MAX_READ);
        let mut bytes = Vec::new();
        file.take((limit + PREFIX + MAX_PAYLOAD) as u64).read_to_end(&mut bytes)?;
        let (mut frames, mut at, mut size) = (Vec::new(), 0, 0);
        while size < limit {
            match frame::next(bytes.get(at..).unwrap_or_default()) {
                Next::Payload(payload, length) => {
                    at += length;
                    size += length;
                    frames.extend(frame::output(call, payload));
                }
                Next::Bad if at == 0 => {
                    let why = format!("the output log `{}` is damaged at byte {}", path.display(), from.0);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
                Next::Open | Next::Bad => break,
            }
        }
        Ok((frames, Position(from.0.saturating_add(at as u64))))
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// The logs in a run's directory; none if there is no directory.
fn logs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut logs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            logs.push(path);
        }
    }
    Ok(logs)
}

fn count_logs(dir: &Path) -> io::Result<u64> {
    Ok(logs(dir)?.len() as u64)
}

#[cfg(test)]
mod tests;
