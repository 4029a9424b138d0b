//! The log of one call and the tails that wait for the end of their attempts.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::frame::{self, Header, MAX_PAYLOAD, Next, PREFIX};
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
    path: PathBuf,
    call: CallKey,
    /// Its place among the run's logs, for the header of a new one.
    n: u64,
    kept: u64,
    /// What is still to be written before anything else: a new log is made together with what it begins with.
    head: Vec<u8>,
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
    pub fn new(path: PathBuf, call: CallKey, n: u64, kept: u64) -> Self {
        CallLog { path, call, n, kept, head: Vec::new(), streams: None }
    }

    pub fn append(&mut self, frame: Frame) -> io::Result<()> {
        self.mending(|log| frame::split(frame).into_iter().try_for_each(|part| log.append_one(&part)))
    }

    /// Runs `work`; if it fails, half a frame may have been written, and the log is read and cut before the next one.
    fn mending(&mut self, work: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let done = self.load().and_then(|()| work(self));
        if done.is_err() {
            self.streams = None;
        }
        done
    }

    fn append_one(&mut self, frame: &Frame) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(frame.bytes.len() + 256);
        frame::put_frame(&mut bytes, &self.call, frame);
        let source = source(frame);
        let size = frame.bytes.len() as u64;
        let kept = self.streams.get_or_insert_default().entry(source.clone()).or_default();
        let end = frame.offset.saturating_add(frame.raw_len);
        // Lines of our own have no offsets.
        if frame.stream != Stream::Note && frame.raw_len > 0 && end <= kept.stored {
            return Ok(());
        }
        if kept.head < self.kept {
            kept.head += size;
            kept.end = end;
            kept.stored = end;
            return self.write(bytes);
        }
        let first = kept.tail.is_empty();
        if kept.tail.last().is_none_or(|(_, held)| *held >= self.kept) {
            let number = kept.tail.last().map_or(0, |(number, _)| number + 1);
            kept.tail.push((number, 0));
            if kept.tail.len() > 2 {
                let (oldest, _) = kept.tail.remove(0);
                remove(&tail_path(&self.path, &source, oldest))?;
            }
        }
        if let Some((number, held)) = kept.tail.last_mut() {
            write(&tail_path(&self.path, &source, *number), &bytes)?;
            *held += size;
            kept.stored = end;
        }
        if first {
            let text = format!(
                "[over {} of {}: the last of it follows when the step has ended]\n",
                mib(self.kept),
                name(frame.stream)
            );
            self.note(frame, frame.offset, 0, &text)?;
        }
        Ok(())
    }

    /// A line of our own beside `frame`; `raw_len` bytes from `offset` are what it stands for.
    fn note(&mut self, frame: &Frame, offset: u64, raw_len: u64, text: &str) -> io::Result<()> {
        let (step, attempt, wall_ms) = (frame.step.clone(), frame.attempt, frame.wall_ms);
        let bytes = text.as_bytes().to_vec();
        let note = Frame { step, attempt, stream: Stream::Note, offset, raw_len, wall_ms, bytes };
        let mut bytes = Vec::new();
        frame::put_frame(&mut bytes, &self.call, &note);
        self.write(bytes)
    }

    /// Appends to the log itself.
    fn write(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let mut head = std::mem::take(&mut self.head);
        if head.is_empty() {
            return write(&self.path, &bytes);
        }
        head.extend(bytes);
        write(&self.path, &head)
    }

    pub fn finish(&mut self, step: &StepKey, attempt: u32) -> io::Result<()> {
        self.mending(|log| {
            for stream in 0..3 {
                let source = (step.clone(), attempt, stream);
                let Some(kept) = log.streams.get_or_insert_default().remove(&source) else { continue };
                log.move_tail(&source, &kept)?;
                for (number, _) in &kept.tail {
                    remove(&tail_path(&log.path, &source, *number))?;
                }
            }
            Ok(())
        })
    }

    /// What lies on disk of an attempt's stdout and stderr, after a crash or not.
    pub fn stored(&mut self, step: &StepKey, attempt: u32, keep: usize) -> io::Result<[Stored; 2]> {
        self.load()?;
        let mut found = [Stored::default(), Stored::default()];
        // It is not there yet.
        if !self.head.is_empty() {
            return Ok(found);
        }
        for (stream, stored) in found.iter_mut().enumerate() {
            let source = (step.clone(), attempt, u8::try_from(stream).unwrap_or(0));
            let tails = self.streams.get_or_insert_default().get(&source).map(|kept| kept.tail.clone());
            let tails = tails.unwrap_or_default().into_iter().map(|(number, _)| tail_path(&self.path, &source, number));
            for path in std::iter::once(self.path.clone()).chain(tails) {
                let mut frames = Frames::open(&path)?;
                while let Some(payload) = frames.next()? {
                    let Some(frame) = frame::output(&self.call, &payload).filter(|f| self::source(f) == source) else {
                        continue;
                    };
                    // A crash while the tail was being moved leaves a part of it in both places.
                    if frame.offset < stored.end {
                        continue;
                    }
                    stored.total += (frame.offset - stored.end) + frame.bytes.len() as u64;
                    stored.end = frame.offset.saturating_add(frame.raw_len);
                    stored.last.extend_from_slice(&frame.bytes);
                    // Not for every frame: that would move all of it each time.
                    if stored.last.len() > 2 * keep {
                        stored.last.drain(..stored.last.len() - keep);
                    }
                }
            }
            let surplus = stored.last.len().saturating_sub(keep);
            stored.last.drain(..surplus);
        }
        Ok(found)
    }

    /// Appends the last `kept` bytes of a stream's tail files to the log.
    fn move_tail(&mut self, source: &Source, kept: &Kept) -> io::Result<()> {
        let held: u64 = kept.tail.iter().map(|(_, held)| held).sum();
        let mut surplus = held.saturating_sub(self.kept);
        let mut end = Some(kept.end);
        for (number, _) in &kept.tail {
            let mut frames = Frames::open(&tail_path(&self.path, source, *number))?;
            while let Some(payload) = frames.next()? {
                let Some(frame) = frame::output(&self.call, &payload) else { continue };
                let size = frame.bytes.len() as u64;
                if size <= surplus {
                    surplus -= size;
                    continue;
                }
                surplus = 0;
                // A crash while the tail was being moved: this much of it is in the log already. Notes have no offsets.
                if frame.stream != Stream::Note && frame.offset < kept.end {
                    continue;
                }
                if let Some(end) = end.take()
                    && let gap @ 1.. = frame.offset.saturating_sub(end)
                {
                    let text = format!("[{} of {} are not kept]\n", bytes_text(gap), name(frame.stream));
                    self.note(&frame, end, gap, &text)?;
                }
                let mut bytes = Vec::new();
                frame::put_frame(&mut bytes, &self.call, &frame);
                self.write(bytes)?;
            }
        }
        Ok(())
    }

    /// Learns what lies on disk: cuts off what a crash left half written, finds the tails of attempts that were not finished.
    fn load(&mut self) -> io::Result<()> {
        if self.streams.is_some() {
            return Ok(());
        }
        let mut streams: BTreeMap<Source, Kept> = BTreeMap::new();
        let mut good = 0;
        self.head.clear();
        if self.path.exists() {
            let mut frames = Frames::open(&self.path)?;
            let header = frames.next()?.and_then(|payload| frame::header(&payload));
            if header.is_some() {
                good = frames.at;
                while let Some(payload) = frames.next()? {
                    good = frames.at;
                    let Some(frame) = frame::output(&self.call, &payload) else { continue };
                    let kept = streams.entry(source(&frame)).or_default();
                    kept.head += frame.bytes.len() as u64;
                    kept.end = kept.end.max(frame.offset.saturating_add(frame.raw_len));
                    kept.stored = kept.end;
                }
            }
            let file = OpenOptions::new().write(true).open(&self.path)?;
            let length = file.metadata()?.len();
            if length > good {
                tracing::warn!(log = %self.path.display(), cut = length - good, "the end of an output log was cut off by a crash");
                file.set_len(good)?;
            }
        }
        if good == 0 {
            if let Some(dir) = self.path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            }
            frame::put_header(&mut self.head, &Header { format: 1, call: self.call.clone(), n: self.n })?;
        }
        // Only what filled its head can have a tail.
        for (source, kept) in streams.iter_mut().filter(|(_, kept)| kept.head >= self.kept) {
            let end;
            (kept.tail, end) = tails(&self.path, &self.call, source)?;
            kept.stored = kept.stored.max(end);
        }
        self.streams = Some(streams);
        Ok(())
    }
}

fn source(frame: &Frame) -> Source {
    let stream = match frame.stream {
        Stream::Out => 0,
        Stream::Err => 1,
        Stream::Note => 2,
    };
    (frame.step.clone(), frame.attempt, stream)
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
            let Some(frame) = frame::output(call, &payload) else { continue };
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

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)?.write_all(bytes)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The whole payloads of a file, one at a time, up to the first that is none.
struct Frames {
    file: BufReader<File>,
    /// Where the next one begins.
    at: u64,
}

impl Frames {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Frames { file: BufReader::with_capacity(64 * 1024, File::open(path)?), at: 0 })
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::with_capacity(4096);
        self.file.by_ref().take(PREFIX as u64).read_to_end(&mut bytes)?;
        let length = bytes.first_chunk::<4>().map_or(0, |length| u32::from_le_bytes(*length) as usize);
        if length > MAX_PAYLOAD {
            return Ok(None);
        }
        self.file.by_ref().take(length as u64).read_to_end(&mut bytes)?;
        let Next::Payload(_, taken) = frame::next(&bytes) else { return Ok(None) };
        self.at += taken as u64;
        bytes.drain(..PREFIX);
        Ok(Some(bytes))
    }
}
