//! Takes a command's output: redacted once, then to the log and, its last part, to Lua.

use std::{collections::VecDeque, io};

use async_trait::async_trait;

use super::Job;
use crate::{
    engine::{command::OutputSink, redact},
    ports::{
        outputs::{Frame, Stored, Stream},
        storage::Condition,
    },
};

/// What Lua gets of each stream.
const FOR_LUA: usize = 1024 * 1024;

/// One stream on its way.
struct Flow {
    redact: redact::Stream,
    kept: VecDeque<u8>,
    total: u64,
    /// The raw offset at which this life began to read.
    began: u64,
}

/// The sink of one attempt.
pub(super) struct LogSink<'a> {
    job: &'a Job,
    out: Flow,
    err: Flow,
    /// The disk refused a frame; said once.
    failed: bool,
}

impl<'a> LogSink<'a> {
    /// Where an earlier life left off, if it did: what it stored is what Lua gets, and the host sends what follows.
    pub(super) fn new(job: &'a Job) -> Self {
        let redactor = job.sessions.redactor();
        let stored = if job.resumed.is_some() { Self::stored(job) } else { <[Stored; 2]>::default() };
        let [out, err] = stored.map(|stored| Flow {
            redact: redactor.stream_at(stored.end),
            kept: stored.last.into(),
            total: stored.total,
            began: stored.end,
        });
        LogSink { job, out, err, failed: false }
    }

    fn stored(job: &Job) -> [Stored; 2] {
        job.world.outputs.stored(&job.run, &job.key, job.attempt, FOR_LUA).unwrap_or_else(|error| {
            tracing::error!(project = %job.sessions.project(), run = %job.run, step = %job.key, %error, "stored output cannot be read; it is asked for again");
            <[Stored; 2]>::default()
        })
    }

    /// Where the host is to go on, stdout and stderr.
    pub(super) fn from(&self) -> [u64; 2] {
        [self.out.began, self.err.began]
    }

    /// Stores what came. On a full disk it waits until there is room: nobody reads on meanwhile, and no byte is lost.
    async fn store(&mut self, stream: Stream, pieces: Vec<redact::Piece>) {
        for piece in pieces {
            let flow = if stream == Stream::Out { &mut self.out } else { &mut self.err };
            flow.total += piece.bytes.len() as u64;
            flow.kept.extend(&piece.bytes);
            let excess = flow.kept.len().saturating_sub(FOR_LUA);
            flow.kept.drain(..excess);
            let job = self.job;
            let frame = Frame {
                step: job.key.clone(),
                attempt: job.attempt,
                stream,
                offset: piece.offset,
                raw_len: piece.raw_len,
                wall_ms: job.world.clock.now().wall_ms,
                bytes: piece.bytes,
            };
            if let Err(error) = with_room(job, || job.world.outputs.append(&job.run, frame.clone())).await
                && !std::mem::replace(&mut self.failed, true)
            {
                tracing::error!(project = %job.sessions.project(), run = %job.run, step = %job.key, %error, "output is not stored");
            }
        }
    }

    /// Everything has come: what was held back is let go, the log is closed. `(stdout, stderr, truncated)` for Lua.
    pub(super) async fn finish(mut self) -> (Vec<u8>, Vec<u8>, bool) {
        let held = self.out.redact.flush();
        self.store(Stream::Out, held).await;
        let held = self.err.redact.flush();
        self.store(Stream::Err, held).await;
        let job = self.job;
        if let Err(error) = with_room(job, || job.world.outputs.finish(&job.run, &job.key, job.attempt)).await {
            tracing::error!(project = %job.sessions.project(), run = %job.run, step = %job.key, %error, "the end of its output is not stored");
        }
        let truncated = [&self.out, &self.err].iter().any(|flow| flow.total > flow.kept.len() as u64);
        (Vec::from(self.out.kept), Vec::from(self.err.kept), truncated)
    }
}

/// Does `write` until it finds room. The reserve is for records: on a full disk output is not even tried.
async fn with_room(job: &Job, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let mut condition = job.world.storage.condition();
    loop {
        let _storage_lives_as_long_as_we = condition.wait_for(|condition| *condition != Condition::Full).await.is_ok();
        match write() {
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                job.world.storage.lacked();
                if *condition.borrow() != Condition::Full {
                    // It failed otherwise before: nobody waits for that.
                    return Err(error);
                }
            }
            done => return done,
        }
    }
}

#[async_trait]
impl OutputSink for LogSink<'_> {
    async fn output(&mut self, stream: Stream, _offset: u64, bytes: &[u8]) {
        let flow = if stream == Stream::Out { &mut self.out } else { &mut self.err };
        // Also what other steps of the run have resolved since this one began.
        flow.redact.learn(&self.job.sessions.redactor());
        let pieces = flow.redact.push(bytes);
        self.store(stream, pieces).await;
    }
}
