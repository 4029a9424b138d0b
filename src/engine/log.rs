//! A run's output, read and followed.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{
    conductor::Conductor,
    handle::{LogQuery, LogStream, Refusal},
    ledger,
    view::LogLine,
};
use crate::{
    model::{
        ids::RunId,
        step::{CallKey, Place},
    },
    ports::outputs::{Frame, Position, Stream},
    time::rfc3339,
};

/// Read at once, bytes.
const CHUNK: usize = 256 * 1024;
/// What a frame takes besides its bytes, about.
const EACH: usize = 128;
/// A line longer than this is shown in parts.
const LONGEST_LINE: usize = 16 * 1024;
/// A follower looks again at least so often, though nothing seems to have changed.
const LOOK: Duration = Duration::from_secs(5);

/// A place in a run's output.
pub(super) struct Reader {
    conductor: Conductor,
    run: RunId,
    query: LogQuery,
    positions: BTreeMap<CallKey, Position>,
    /// Lines that have begun: by call, step, attempt and stream.
    partial: BTreeMap<(String, u32, u8), (i64, Vec<u8>)>,
    /// The tail is out, what follows goes out as it comes.
    tailed: bool,
    done: bool,
}

impl Reader {
    pub(super) fn new(conductor: Conductor, run: RunId, query: LogQuery) -> Self {
        let tailed = query.tail.is_none();
        Reader { conductor, run, query, positions: BTreeMap::new(), partial: BTreeMap::new(), tailed, done: false }
    }

    fn wanted(&self, call: &CallKey) -> bool {
        match (&self.query.host, call.place()) {
            (None, _) => true,
            (Some(host), Some(Place::Host { host: of, .. })) => of.as_str() == host,
            (Some(_), _) => false,
        }
    }

    /// Reads what is there beyond the positions; nothing = there is nothing now.
    async fn read(&mut self) -> Result<Vec<LogLine>, Refusal> {
        let outputs = std::sync::Arc::clone(&self.conductor.inner.world.outputs);
        let (run, positions) = (self.run.clone(), self.positions.clone());
        let read = self.conductor.inner.world.tasks.blocking(move || {
            let (mut found, mut size) = (Vec::new(), 0);
            for call in outputs.calls(&run)? {
                let from = positions.get(&call).copied().unwrap_or_default();
                let (frames, next) = outputs.read(&run, &call, from, CHUNK)?;
                if next != from {
                    size += frames.iter().map(|frame| frame.bytes.len() + EACH).sum::<usize>();
                    found.push((call, frames, next));
                    // One call after another: what belongs together is shown together.
                    if size >= CHUNK {
                        break;
                    }
                }
            }
            std::io::Result::Ok(found)
        });
        let found = read.await.map_err(|e| Refusal::Degraded(e.to_string()))?;
        let found =
            found.map_err(|e| Refusal::Degraded(format!("the output of run {} cannot be read: {e}", self.run)))?;
        let mut lines = Vec::new();
        for (call, frames, next) in found {
            let wanted = self.wanted(&call);
            self.positions.insert(call, next);
            if wanted {
                frames.into_iter().for_each(|frame| self.lines(frame, &mut lines));
            }
        }
        Ok(lines)
    }

    fn lines(&mut self, frame: Frame, lines: &mut Vec<LogLine>) {
        let step = frame.step.as_str();
        if self.query.step.as_deref().is_some_and(|wanted| !step.starts_with(wanted)) {
            return;
        }
        let key = (step.to_owned(), frame.attempt, frame.stream as u8);
        let (_, mut bytes) = self.partial.remove(&key).unwrap_or_default();
        bytes.extend_from_slice(&frame.bytes);
        let mut rest = bytes.as_slice();
        while let Some(end) =
            rest.iter().position(|b| *b == b'\n').or((rest.len() > LONGEST_LINE).then_some(LONGEST_LINE))
        {
            lines.push(line(step, frame.stream, frame.wall_ms, &rest[..end]));
            rest = rest.get(end + usize::from(rest[end] == b'\n')..).unwrap_or_default();
        }
        if !rest.is_empty() {
            self.partial.insert(key, (frame.wall_ms, rest.to_vec()));
        }
    }

    /// Lines that never got their end.
    fn leftovers(&mut self) -> Vec<LogLine> {
        let stream = |n: u8| {
            [Stream::Out, Stream::Err, Stream::Note].into_iter().find(|s| *s as u8 == n).unwrap_or(Stream::Note)
        };
        std::mem::take(&mut self.partial)
            .into_iter()
            .map(|((step, _, n), (wall_ms, bytes))| line(&step, stream(n), wall_ms, &bytes))
            .collect()
    }

    fn over(&self) -> bool {
        match self.conductor.inner.views.head(&self.run) {
            Ok(Some(run)) => run.state.is_end(),
            // Requested, and the index does not know it yet.
            Ok(None) => self.conductor.inner.world.control.get(&ledger::run_key(&self.run)).is_none(),
            Err(_) => true,
        }
    }

    async fn step(&mut self) -> Option<Result<Vec<LogLine>, Refusal>> {
        if self.done {
            return None;
        }
        let mut changed = self.conductor.inner.world.outputs.changed();
        let mut version = self.conductor.inner.views.board.version.subscribe();
        let mut tail = VecDeque::new();
        loop {
            changed.mark_unchanged();
            version.mark_unchanged();
            // Looked at before reading: what is printed before the end is read before the end is believed.
            let over = !self.query.follow || self.over();
            let lines = match self.read().await {
                Ok(lines) => lines,
                Err(refusal) => {
                    self.done = true;
                    return Some(Err(refusal));
                }
            };
            let at_end = lines.is_empty() && self.caught_up().await;
            if !self.tailed {
                let keep = self.query.tail.unwrap_or(0);
                tail.extend(lines);
                tail.drain(..tail.len().saturating_sub(keep));
                if !at_end {
                    continue;
                }
                self.tailed = true;
                if over {
                    self.done = true;
                    tail.extend(self.leftovers());
                    tail.drain(..tail.len().saturating_sub(keep));
                }
                return Some(Ok(tail.into()));
            }
            if !lines.is_empty() {
                return Some(Ok(lines));
            }
            if !at_end {
                continue;
            }
            if over {
                self.done = true;
                let rest = self.leftovers();
                return (!rest.is_empty()).then_some(Ok(rest));
            }
            let clock = std::sync::Arc::clone(&self.conductor.inner.world.clock);
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                _ = version.changed() => {}
                () = clock.sleep(LOOK) => {}
            }
        }
    }

    /// Whether there is nothing beyond the positions.
    async fn caught_up(&self) -> bool {
        let outputs = std::sync::Arc::clone(&self.conductor.inner.world.outputs);
        let (run, positions) = (self.run.clone(), self.positions.clone());
        let more = self.conductor.inner.world.tasks.blocking(move || {
            outputs.calls(&run).unwrap_or_default().into_iter().any(|call| {
                let from = positions.get(&call).copied().unwrap_or_default();
                outputs.read(&run, &call, from, 1).is_ok_and(|(_, next)| next != from)
            })
        });
        !more.await.unwrap_or(false)
    }
}

fn line(step: &str, stream: Stream, wall_ms: i64, bytes: &[u8]) -> LogLine {
    let host = step.rsplitn(3, '/').nth(2).and_then(|call| {
        // The call's key, from its text.
        let call: CallKey = serde_json::from_value(serde_json::Value::String(call.to_owned())).ok()?;
        match call.place() {
            Some(Place::Host { host, .. }) => Some(host.to_string()),
            _ => None,
        }
    });
    let stream = match stream {
        Stream::Out => "out",
        Stream::Err => "err",
        Stream::Note => "note",
    };
    LogLine {
        at: rfc3339(wall_ms),
        step: step.to_owned(),
        stream: stream.to_owned(),
        host,
        text: String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes)).into_owned(),
    }
}

impl LogStream for Reader {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Vec<LogLine>, Refusal>>> {
        Box::pin(self.step())
    }
}
