//! The output of one call: its frames in the log that all share, its own log from where it prints much, and the tails that wait for the end
//! of their attempts.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use super::{
    Sizes,
    frame::{self, Header},
    frames::Frames,
    run::RunLog,
    shared,
};
use crate::{
    model::{
        ids::Digest,
        step::{CallKey, StepKey},
    },
    ports::outputs::{Frame, Stored, Stream},
};

/// One attempt's stream.
type Source = (StepKey, u32, u8);

/// A call's log as its writer knows it.
pub(super) struct CallLog {
    /// Its own log.
    path: PathBuf,
    call: CallKey,
    sizes: Sizes,
    /// `None`: not read yet, or a write failed and what lies on disk is not known.
    streams: Option<BTreeMap<Source, Kept>>,
}

/// What is kept of a stream so far.
#[derive(Default)]
struct Kept {
    /// Bytes in the log.
    head: u64,
    /// The raw offset after the last of them.
    end: u64,
    /// The raw offset after the last byte that is stored anywhere: what is appended again, because a part of it found no room, is there
    /// once.
    stored: u64,
    /// The last one or two tail files: number and bytes of output in it.
    tail: Vec<(u64, u64)>,
}

impl CallLog {
    pub fn new(dir: &Path, call: CallKey, sizes: Sizes) -> Self {
        CallLog { path: dir.join(frame::log_name(&call)), call, sizes, streams: None }
    }

    pub fn append(&mut self, run: &RunLog, frame: Frame) -> io::Result<()> {
        let parts = frame::split(frame);
        self.mending(run, |log| parts.iter().try_for_each(|part| log.append_one(run, part)))
    }

    /// Runs `work`; if it fails, half a frame may have been written, and the log is read and cut before the next one.
    fn mending(&mut self, run: &RunLog, work: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let done = self.load(run).and_then(|()| work(self));
        if done.is_err() {
            self.streams = None;
        }
        done
    }

    fn append_one(&mut self, run: &RunLog, frame: &Frame) -> io::Result<()> {
        let Some(source) = source(frame) else { return self.write(run, frame) };
        let size = frame.bytes.len() as u64;
        let kept = self.streams.get_or_insert_default().entry(source.clone()).or_default();
        let end = frame.offset.saturating_add(frame.raw_len);
        if frame.raw_len > 0 && end <= kept.stored {
            return Ok(());
        }
        if kept.head < self.sizes.kept {
            kept.head += size;
            kept.end = end;
            kept.stored = end;
            return self.write(run, frame);
        }
        let first = kept.tail.is_empty();
        if kept.tail.last().is_none_or(|(_, held)| *held >= self.sizes.kept) {
            let number = kept.tail.last().map_or(0, |(number, _)| number + 1);
            kept.tail.push((number, 0));
            if kept.tail.len() > 2 {
                let (oldest, _) = kept.tail.remove(0);
                remove(&tail_path(&self.path, &source, oldest))?;
            }
        }
        if let Some((number, held)) = kept.tail.last_mut() {
            shared::append(&tail_path(&self.path, &source, *number), &own_frame(&self.call, frame))?;
            *held += size;
            kept.stored = end;
        }
        if first {
            let text = format!(
                "[over {} of {}: the last of it follows when the step has ended]\n",
                mib(self.sizes.kept),
                name(frame.stream)
            );
            self.note(run, frame, frame.offset, 0, &text)?;
        }
        Ok(())
    }

    /// A line of our own beside `frame`; `raw_len` bytes from `offset` are what it stands for.
    fn note(&mut self, run: &RunLog, frame: &Frame, offset: u64, raw_len: u64, text: &str) -> io::Result<()> {
        let (step, attempt, wall_ms) = (frame.step.clone(), frame.attempt, frame.wall_ms);
        let bytes = text.as_bytes().to_vec();
        let note = Frame { step, attempt, stream: Stream::Note, offset, raw_len, wall_ms, bytes };
        self.write(run, &note)
    }

    /// Appends to the shared log, and to its own once it has had its part of that.
    fn write(&mut self, run: &RunLog, frame: &Frame) -> io::Result<()> {
        if run.share(&self.call, frame)? {
            return Ok(());
        }
        let mut bytes = Vec::new();
        if run.begins_own(&self.call)? {
            // It is made together with what it begins with; what a crash has left of an attempt before is no log yet.
            frame::put_header(&mut bytes, &Header { format: 1, call: Some(self.call.clone()) })?;
            remove(&self.path)?;
        }
        bytes.extend(own_frame(&self.call, frame));
        shared::append(&self.path, &bytes)
    }

    pub fn finish(&mut self, run: &RunLog, step: &StepKey, attempt: u32) -> io::Result<()> {
        self.mending(run, |log| {
            for stream in 0..2 {
                let source = (step.clone(), attempt, stream);
                let Some(kept) = log.streams.get_or_insert_default().remove(&source) else { continue };
                log.move_tail(run, &source, &kept)?;
                for (number, _) in &kept.tail {
                    remove(&tail_path(&log.path, &source, *number))?;
                }
            }
            // An empty tree has its root still, and there are thousands of calls.
            if log.streams.as_ref().is_some_and(BTreeMap::is_empty) {
                log.streams = Some(BTreeMap::new());
            }
            Ok(())
        })
    }

    /// What lies on disk of an attempt's stdout and stderr, after a crash or not.
    pub fn stored(&mut self, run: &RunLog, step: &StepKey, attempt: u32, keep: usize) -> io::Result<[Stored; 2]> {
        self.load(run)?;
        let mut found = [Stored::default(), Stored::default()];
        let lies = run.find(&self.call, 0)?;
        let first = lies.shared.read(&lies.spans)?;
        for (stream, stored) in found.iter_mut().enumerate() {
            let source = (step.clone(), attempt, u8::try_from(stream).unwrap_or(0));
            let tails = self.streams.get_or_insert_default().get(&source).map(|kept| kept.tail.clone());
            let tails = tails.unwrap_or_default().into_iter().map(|(number, _)| tail_path(&self.path, &source, number));
            let mut take = |frame: &Frame| {
                // A crash while the tail was being moved leaves a part of it in both places.
                if self::source(frame).as_ref() != Some(&source) || frame.offset < stored.end {
                    return;
                }
                stored.total += (frame.offset - stored.end) + frame.bytes.len() as u64;
                stored.end = frame.offset.saturating_add(frame.raw_len);
                stored.last.extend_from_slice(&frame.bytes);
                // Not for every frame: that would move all of it each time.
                if stored.last.len() > 2 * keep {
                    stored.last.drain(..stored.last.len() - keep);
                }
            };
            first.iter().for_each(&mut take);
            for path in lies.own.clone().into_iter().chain(tails) {
                let mut frames = Frames::open(&path)?;
                while let Some(payload) = frames.next()? {
                    frame::output(Some(&self.call), &payload).iter().for_each(&mut take);
                }
            }
            let surplus = stored.last.len().saturating_sub(keep);
            stored.last.drain(..surplus);
        }
        Ok(found)
    }

    /// Appends the last `kept` bytes of a stream's tail files to the log.
    fn move_tail(&mut self, run: &RunLog, source: &Source, kept: &Kept) -> io::Result<()> {
        let held: u64 = kept.tail.iter().map(|(_, held)| held).sum();
        let mut surplus = held.saturating_sub(self.sizes.kept);
        let mut end = Some(kept.end);
        for (number, _) in &kept.tail {
            let mut frames = Frames::open(&tail_path(&self.path, source, *number))?;
            while let Some(payload) = frames.next()? {
                let Some(frame) = frame::output(Some(&self.call), &payload) else { continue };
                let size = frame.bytes.len() as u64;
                if size <= surplus {
                    surplus -= size;
                    continue;
                }
                surplus = 0;
                // A crash while the tail was being moved: this much of it is in the log already.
                if frame.offset < kept.end {
                    continue;
                }
                if let Some(end) = end.take()
                    && let gap @ 1.. = frame.offset.saturating_sub(end)
                {
                    let text = format!("[{} of {} are not kept]\n", bytes_text(gap), name(frame.stream));
                    self.note(run, &frame, end, gap, &text)?;
                }
                self.write(run, &frame)?;
            }
        }
        Ok(())
    }

    /// Learns what lies on disk: cuts off what a crash left half written, finds the tails of attempts that were not finished.
    fn load(&mut self, run: &RunLog) -> io::Result<()> {
        if self.streams.is_some() {
            return Ok(());
        }
        let mut streams: BTreeMap<Source, Kept> = BTreeMap::new();
        let mut has = |frame: &Frame| {
            let Some(source) = source(frame) else { return };
            let kept = streams.entry(source).or_default();
            kept.head += frame.bytes.len() as u64;
            kept.end = kept.end.max(frame.offset.saturating_add(frame.raw_len));
            kept.stored = kept.end;
        };
        let lies = run.find(&self.call, 0)?;
        lies.shared.read(&lies.spans)?.iter().for_each(&mut has);
        if lies.own.is_some() && !self.read_own(&mut has)? {
            run.has_no_own(&self.call)?;
        }
        // Only what filled its head can have a tail.
        let most = self.sizes.kept;
        for (source, kept) in streams.iter_mut().filter(|(_, kept)| kept.head >= most) {
            let end;
            (kept.tail, end) = tails(&self.path, &self.call, source)?;
            kept.stored = kept.stored.max(end);
        }
        self.streams = Some(streams);
        Ok(())
    }

    /// Gives `each` the frames of its own log, and cuts off what follows them; false where it could not even be begun.
    fn read_own(&self, mut each: impl FnMut(&Frame)) -> io::Result<bool> {
        let mut frames = match Frames::of_log(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            frames => frames?,
        };
        while frames.header.is_some()
            && let Some(payload) = frames.next()?
        {
            frame::output(Some(&self.call), &payload).iter().for_each(&mut each);
        }
        shared::cut(&self.path, frames.at, frames.damaged)?;
        Ok(frames.header.is_some())
    }
}

/// A frame as the own logs of `call` have it.
fn own_frame(call: &CallKey, frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frame.bytes.len() + 256);
    frame::put_frame(&mut bytes, Some(call), frame);
    bytes
}

fn source(frame: &Frame) -> Option<Source> {
    let stream = match frame.stream {
        Stream::Out => 0,
        Stream::Err => 1,
        // Each of our own lines is a step, and has no offsets: there is nothing to remember of it.
        Stream::Note => return None,
    };
    Some((frame.step.clone(), frame.attempt, stream))
}

fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Out => "stdout",
        Stream::Err => "stderr",
        Stream::Note => "notes",
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}

fn bytes_text(bytes: u64) -> String {
    if bytes < 10 * 1024 * 1024 { format!("{bytes} bytes") } else { mib(bytes) }
}

/// The stem of a stream's tail files; a hash, as a key with a number is longer than a file name may be.
fn tail_stem(log: &Path, (step, attempt, stream): &Source) -> String {
    let stem = log.file_stem().unwrap_or_default().to_string_lossy();
    let hash = Digest::of(format!("{step}|{attempt}|{stream}").as_bytes());
    format!("{stem}.{}.tail", hash.as_str().get(..16).unwrap_or(""))
}

fn tail_path(log: &Path, source: &Source, number: u64) -> PathBuf {
    log.with_file_name(format!("{}{number}", tail_stem(log, source)))
}

/// The tail files a crash left of a stream, oldest first, and the raw offset after the last byte in them.
fn tails(log: &Path, call: &CallKey, source: &Source) -> io::Result<(Vec<(u64, u64)>, u64)> {
    let stem = tail_stem(log, source);
    let (mut tails, mut end) = (Vec::new(), 0);
    let Some(dir) = log.parent() else { return Ok((tails, end)) };
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let number = file_name.to_str().and_then(|name| name.strip_prefix(&stem)).and_then(|n| n.parse::<u64>().ok());
        let Some(number) = number else { continue };
        let (mut held, mut frames) = (0, Frames::open(&entry.path())?);
        while let Some(payload) = frames.next()? {
            let Some(frame) = frame::output(Some(call), &payload) else { continue };
            held += frame.bytes.len() as u64;
            end = end.max(frame.offset.saturating_add(frame.raw_len));
        }
        let good = frames.at;
        OpenOptions::new().write(true).open(entry.path())?.set_len(good)?;
        tails.push((number, held));
    }
    tails.sort_unstable();
    Ok((tails, end))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
