//! What one run has printed: which calls, and where it lies, in the log they share and in logs of their own.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use super::{
    Sizes,
    call::CallLog,
    frame,
    frames::Frames,
    shared::{NAME, Shared, SharedReader, Span},
};
use crate::{
    lifecycle::locks::locked,
    model::step::{CallKey, StepKey},
    ports::outputs::{Frame, Stored, Stream},
};

/// One run's output. A call's log is locked before the index, which nobody holds for longer than a short write to the shared log, or once,
/// to read that.
pub(super) struct RunLog {
    dir: PathBuf,
    sizes: Sizes,
    index: Mutex<Index>,
}

struct Index {
    shared: Shared,
    /// What was there has been looked at.
    learnt: bool,
    calls: BTreeMap<CallKey, Entry>,
    /// In the order they began to print.
    order: Vec<CallKey>,
}

struct Entry {
    /// In the shared log.
    spans: Vec<Span>,
    /// It goes on in a log of its own.
    own: bool,
    log: Arc<Mutex<CallLog>>,
}

/// Where the output of a call lies.
pub(super) struct Found {
    pub shared: SharedReader,
    pub spans: Vec<Span>,
    /// The call's own log, if it goes on there.
    pub own: Option<PathBuf>,
    /// No call began to print later.
    pub last: bool,
}

impl RunLog {
    pub fn new(dir: PathBuf, sizes: Sizes) -> Self {
        let index = Index { shared: Shared::new(&dir), learnt: false, calls: BTreeMap::new(), order: Vec::new() };
        RunLog { dir, sizes, index: Mutex::new(index) }
    }

    pub fn append(&self, frame: Frame) -> io::Result<()> {
        let key = frame.step.call();
        let log = Arc::clone(&self.index()?.entry(&self.dir, &key, self.sizes).log);
        locked(&log).append(self, frame)
    }

    /// An attempt that printed nothing has no log, and gets none.
    pub fn finish(&self, step: &StepKey, attempt: u32) -> io::Result<()> {
        let Some(log) = self.log(&step.call())? else { return Ok(()) };
        locked(&log).finish(self, step, attempt)
    }

    pub fn stored(&self, step: &StepKey, attempt: u32, keep: usize) -> io::Result<[Stored; 2]> {
        let Some(log) = self.log(&step.call())? else { return Ok(Default::default()) };
        locked(&log).stored(self, step, attempt, keep)
    }

    /// Of how many calls something is known.
    pub fn count(&self) -> usize {
        locked(&self.index).calls.len()
    }

    /// The calls that have printed, in the order they began to.
    pub fn calls(&self) -> io::Result<Vec<CallKey>> {
        let index = self.index()?;
        if index.order.is_empty() {
            index.shared.reader().whole()?;
        }
        Ok(index.order.clone())
    }

    /// Where the output of `call` lies, of the shared log from `from` on.
    pub fn find(&self, call: &CallKey, from: u64) -> io::Result<Found> {
        let index = self.index()?;
        let shared = index.shared.reader();
        let last = index.order.last() == Some(call);
        Ok(match index.calls.get(call) {
            None => Found { shared, spans: Vec::new(), own: None, last },
            Some(entry) => {
                let spans = entry.spans.iter().copied().filter(|span| span.at >= from).collect();
                let own = entry.own.then(|| self.dir.join(frame::log_name(call)));
                Found { shared, spans, own, last }
            }
        })
    }

    /// Appends to the shared log what it still takes of `call`; false = that goes to the call's own log.
    pub(super) fn share(&self, call: &CallKey, frame: &Frame) -> io::Result<bool> {
        let mut index = self.index()?;
        let Index { shared, calls, order, .. } = &mut *index;
        let Some(entry) = calls.get_mut(call) else { return Ok(false) };
        let begins = entry.spans.is_empty();
        if entry.own && !begins {
            return Ok(false);
        }
        let has: u64 = entry.spans.iter().map(|span| u64::from(span.length)).sum();
        let mut bytes = Vec::with_capacity(frame.bytes.len() + 256);
        frame::put_frame(&mut bytes, None, frame);
        let fits = !entry.own && has + bytes.len() as u64 <= self.sizes.shared;
        if !fits {
            if !begins {
                return Ok(false);
            }
            // Which calls have printed is in the shared log, and in which order.
            let nothing = Frame { stream: Stream::Out, offset: 0, raw_len: 0, ..frame.clone_head() };
            bytes.clear();
            frame::put_frame(&mut bytes, None, &nothing);
        }
        entry.spans.push(shared.append(&bytes)?);
        if begins && !entry.own {
            order.push(call.clone());
        }
        Ok(fits)
    }

    /// From now on `call` has a log of its own; false = it had one.
    pub(super) fn begins_own(&self, call: &CallKey) -> io::Result<bool> {
        let mut index = self.index()?;
        Ok(index.calls.get_mut(call).is_some_and(|entry| !std::mem::replace(&mut entry.own, true)))
    }

    /// Its own log could not be made.
    pub(super) fn has_no_own(&self, call: &CallKey) -> io::Result<()> {
        if let Some(entry) = self.index()?.calls.get_mut(call) {
            entry.own = false;
        }
        Ok(())
    }

    fn log(&self, call: &CallKey) -> io::Result<Option<Arc<Mutex<CallLog>>>> {
        Ok(self.index()?.calls.get(call).map(|entry| Arc::clone(&entry.log)))
    }

    /// What is known of it, once what is there has been read: nobody else writes it.
    fn index(&self) -> io::Result<MutexGuard<'_, Index>> {
        let mut index = locked(&self.index);
        if !index.learnt {
            index.learn(&self.dir, self.sizes)?;
            index.learnt = true;
        }
        Ok(index)
    }
}

impl Index {
    fn entry(&mut self, dir: &Path, call: &CallKey, sizes: Sizes) -> &mut Entry {
        self.calls.entry(call.clone()).or_insert_with(|| {
            let log = Arc::new(Mutex::new(CallLog::new(dir, call.clone(), sizes)));
            Entry { spans: Vec::new(), own: false, log }
        })
    }

    fn learn(&mut self, dir: &Path, sizes: Sizes) -> io::Result<()> {
        let mut found = Vec::new();
        self.shared.learn(|frame, span| found.push((frame.step.call(), span)))?;
        let own = own_logs(dir)?;
        // No error can leave half of it any more.
        for (call, span) in found {
            let entry = self.entry(dir, &call, sizes);
            entry.spans.push(span);
            if entry.spans.len() == 1 {
                self.order.push(call);
            }
        }
        let named: BTreeMap<String, CallKey> =
            self.calls.keys().map(|call| (frame::log_name(call), call.clone())).collect();
        for (name, call) in own {
            // One whose header cannot be read says so to whoever reads it.
            let Some(call) = call.or_else(|| named.get(&name).cloned()) else { continue };
            let entry = self.entry(dir, &call, sizes);
            entry.own = true;
            // The shared log has lost that it has printed.
            if entry.spans.is_empty() {
                self.order.push(call);
            }
        }
        Ok(())
    }
}

/// The logs of calls by themselves, and whose, as far as that can be read; without those that a crash cut off before they had any frame.
fn own_logs(dir: &Path) -> io::Result<Vec<(String, Option<CallKey>)>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok().filter(|name| name.ends_with(".log") && name != NAME));
    }
    names.sort();
    let mut found = Vec::new();
    for name in names {
        let call = match Frames::of_log(&dir.join(&name)) {
            Ok(Frames { header: None, damaged: false, .. }) => continue,
            Ok(frames) => frames.header.and_then(|header| header.call),
            // What cannot be read today is told to whoever wants to read it.
            Err(_) => None,
        };
        found.push((name, call));
    }
    Ok(found)
}
