//! What one run has printed: the log its calls share, which of them printed what of it, and their own logs.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use super::{
    Sizes,
    call::CallLog,
    shared::{Shared, SharedReader, Span},
};
use crate::{
    model::step::{CallKey, StepKey},
    ports::outputs::{Frame, Stored},
};

pub(super) struct RunLog {
    dir: PathBuf,
    sizes: Sizes,
    shared: Shared,
    /// What lies in the shared log is known.
    learnt: bool,
    calls: BTreeMap<CallKey, CallLog>,
    /// In the order they began to print.
    order: Vec<CallKey>,
}

/// What a reader of one call finds from some position on.
pub(super) struct Found {
    pub shared: SharedReader,
    /// In the shared log.
    pub spans: Vec<Span>,
    /// The call's own log, if it goes on there.
    pub own: Option<PathBuf>,
}

impl RunLog {
    pub fn new(dir: PathBuf, sizes: Sizes) -> Self {
        let shared = Shared::new(&dir);
        RunLog { dir, sizes, shared, learnt: false, calls: BTreeMap::new(), order: Vec::new() }
    }

    pub fn append(&mut self, frame: Frame) -> io::Result<()> {
        self.learn()?;
        let key = frame.step.call();
        let log = self.calls.entry(key.clone()).or_insert_with(|| CallLog::new(&self.dir, key.clone(), self.sizes));
        let begins = log.spans().is_empty();
        let done = log.append(&mut self.shared, frame);
        if begins && !log.spans().is_empty() {
            self.order.push(key);
        }
        done
    }

    /// An attempt that printed nothing has no log, and gets none.
    pub fn finish(&mut self, step: &StepKey, attempt: u32) -> io::Result<()> {
        self.learn()?;
        self.calls.get_mut(&step.call()).map_or(Ok(()), |log| log.finish(&mut self.shared, step, attempt))
    }

    pub fn stored(&mut self, step: &StepKey, attempt: u32, keep: usize) -> io::Result<[Stored; 2]> {
        self.learn()?;
        let log = self.calls.get_mut(&step.call());
        log.map_or_else(|| Ok(Default::default()), |log| log.stored(&self.shared, step, attempt, keep))
    }

    /// The calls that have printed, in the order they began to.
    pub fn calls(&mut self) -> io::Result<&[CallKey]> {
        self.learn()?;
        Ok(&self.order)
    }

    /// Where the output of `call` lies that begins at `from` of the shared log or later.
    pub fn find(&mut self, call: &CallKey, from: u64) -> io::Result<Found> {
        self.learn()?;
        let shared = self.shared.reader();
        Ok(match self.calls.get_mut(call) {
            None => Found { shared, spans: Vec::new(), own: None },
            Some(log) => {
                let spans = log.spans().iter().copied().filter(|span| span.at >= from).collect();
                Found { shared, spans, own: log.own() }
            }
        })
    }

    /// Reads the shared log, once: nobody else writes it.
    fn learn(&mut self) -> io::Result<()> {
        if self.learnt {
            return Ok(());
        }
        let (dir, sizes) = (Path::new(&self.dir), self.sizes);
        let (calls, order) = (&mut self.calls, &mut self.order);
        self.shared.learn(|frame, span| {
            let key = frame.step.call();
            let log = calls.entry(key.clone()).or_insert_with(|| {
                order.push(key.clone());
                CallLog::new(dir, key, sizes)
            });
            log.shares(span);
        })?;
        self.learnt = true;
        Ok(())
    }
}
