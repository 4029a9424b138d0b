//! The output of commands: `runs/<run>/out/~shared.log`, framed, which all calls of a run share, and `out/<call>.log` of each that prints more.
//!
//! A call's first 16 KiB go to the shared log, the rest to its own. Per attempt and stream the first 5 MiB go straight to the logs. What
//! comes after goes to a row of tail files of 5 MiB, of which the last two are kept; when the attempt is over the last 5 MiB of them follow
//! in the log, behind a note that says how much is missing. So a position in a log stays valid for ever, and neither disk nor memory grows
//! with what a command prints. Output is not synced: a crash may cost the last frames of it, never a record. No file stays open between
//! calls.

mod call;
mod frame;
mod frames;
mod run;
mod shared;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use self::{frames::Frames, run::RunLog};
use crate::{
    lifecycle::{locks::locked, watch},
    model::{
        ids::RunId,
        step::{CallKey, StepKey},
    },
    ports::outputs::{Frame, Outputs, Position, Stored},
};

/// How much goes where, bytes.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Of each end of a stream, what is kept.
    kept: u64,
    /// Of a call, what the shared log takes: reading all of that is quick also with thousands of calls.
    shared: u64,
    /// Above how many calls in all only the runs that were used last are remembered. A call is some hundred bytes, and 20 for each piece that it
    /// has printed.
    calls: usize,
}

const SIZES: Sizes = Sizes { kept: 5 * 1024 * 1024, shared: 16 * 1024, calls: 32 * 1024 };

/// How many runs' logs are remembered, those that were used last; one that was forgotten is read anew.
const REMEMBERED: usize = 64;

/// How many are remembered however many calls they have: runs that print take turns, and none is to be read anew at each.
const LATELY: usize = 16;

/// What one read may hold in memory, whatever its caller asks for.
const MAX_READ: usize = 4 * 1024 * 1024;

/// Positions from here on are in a call's own log, those before in the shared one.
const OWN: u64 = 1 << 62;

/// The output logs below `journal/runs`.
pub struct FileOutputs {
    runs: PathBuf,
    sizes: Sizes,
    known: Mutex<Known>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    /// And when each was used last.
    runs: BTreeMap<RunId, (u64, Arc<RunLog>)>,
    uses: u64,
}

impl Known {
    /// Takes out those that were used longest ago, where there are too many, or more than `most` calls in them.
    fn forgotten(&mut self, most: usize) -> Vec<Arc<RunLog>> {
        let idle = |log: &Arc<RunLog>| Arc::strong_count(log) == 1;
        let mut used: Vec<_> = self.runs.iter().map(|(run, (used, log))| (*used, idle(log), run.clone())).collect();
        used.sort();
        let (mut kept, mut calls, mut gone) = (0, 0, Vec::new());
        for (_, idle, run) in used.into_iter().rev() {
            // There is never a second one of a run: those in use stay. Those that are not can be counted, as nobody is at work on them.
            calls += self.runs.get(&run).filter(|_| idle).map_or(0, |(_, log)| log.count());
            if idle && (kept >= REMEMBERED || (kept >= LATELY && calls > most)) {
                gone.extend(self.runs.remove(&run).map(|(_, log)| log));
            } else {
                kept += 1;
            }
        }
        gone
    }
}

impl FileOutputs {
    /// Over `runs_dir` (`data_dir/journal/runs`). Reads nothing yet: a log that a crash cut off is mended when it is written again.
    ///
    /// # Errors
    /// The disk's, when `runs_dir` cannot be made.
    pub fn open(runs_dir: PathBuf) -> io::Result<Self> {
        FileOutputs::keeping(runs_dir, SIZES)
    }

    fn keeping(runs: PathBuf, sizes: Sizes) -> io::Result<Self> {
        fs::create_dir_all(&runs)?;
        Ok(FileOutputs { runs, sizes, known: Mutex::default(), changed: watch::Sender::new(0) })
    }

    fn dir(&self, run: &RunId) -> PathBuf {
        self.runs.join(run.as_str()).join("out")
    }

    fn log(&self, run: &RunId) -> Arc<RunLog> {
        let mut known = locked(&self.known);
        let Known { runs, uses } = &mut *known;
        *uses += 1;
        if let Some((used, log)) = runs.get_mut(run) {
            *used = *uses;
            return Arc::clone(log);
        }
        let log = Arc::new(RunLog::new(self.dir(run), self.sizes));
        runs.insert(run.clone(), (*uses, Arc::clone(&log)));
        let forgotten = known.forgotten(self.sizes.calls);
        drop(known);
        // Thousands of pieces each: nobody waits until they are freed.
        drop(forgotten);
        log
    }
}

impl Outputs for FileOutputs {
    fn append(&self, run: &RunId, frame: Frame) -> io::Result<()> {
        self.log(run).append(frame)?;
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    fn finish(&self, run: &RunId, step: &StepKey, attempt: u32) -> io::Result<()> {
        self.log(run).finish(step, attempt)?;
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    fn stored(&self, run: &RunId, step: &StepKey, attempt: u32, keep: usize) -> io::Result<[Stored; 2]> {
        self.log(run).stored(step, attempt, keep)
    }

    fn calls(&self, run: &RunId) -> io::Result<Vec<CallKey>> {
        self.log(run).calls()
    }

    fn read(&self, run: &RunId, call: &CallKey, from: Position, limit: usize) -> io::Result<(Vec<Frame>, Position)> {
        let mut limit = limit.clamp(1, MAX_READ);
        let mut found = self.log(run).find(call, from.0)?;
        // Up to the one with which it is enough.
        let mut size = 0;
        let enough = found.spans.iter().position(|span| {
            size += span.length as usize;
            size >= limit
        });
        found.spans.truncate(enough.map_or(found.spans.len(), |last| last + 1));
        let mut frames = found.shared.read(&found.spans)?;
        let mut at = frames.len().checked_sub(1).map_or(from, |last| Position(found.spans[last].end()));
        let all = enough.is_none() && frames.len() == found.spans.len();
        if let Some(log) = found.own.filter(|_| all) {
            limit -= size;
            let (more, end) = read_own(&log, call, at.0.saturating_sub(OWN), limit)?;
            if end > 0 {
                frames.extend(more);
                at = Position(OWN.saturating_add(end));
            }
        }
        if at == from && found.last {
            // Told once all that can be read was.
            found.shared.whole()?;
        }
        Ok((frames, at))
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Up to about `limit` bytes of frames from `from` on, and where they end.
fn read_own(log: &Path, call: &CallKey, from: u64, limit: usize) -> io::Result<(Vec<Frame>, u64)> {
    let mut frames = match Frames::open_at(log, from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), from)),
        frames => frames?,
    };
    let mut found = Vec::new();
    while frames.at - from < limit as u64
        && let Some(payload) = frames.next()?
    {
        found.extend(frame::output(Some(call), &payload));
    }
    if frames.damaged && frames.at == from {
        return Err(frame::damaged(log, from));
    }
    Ok((found, frames.at))
}

#[cfg(test)]
mod tests;
