//! The log that all calls of a run share: what each of them printed first. Most print a line or two, and a file for each would cost a
//! file system more than what is in it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    frame::{self, Header, Next},
    frames::Frames,
};
use crate::ports::outputs::Frame;

/// Its name. Behind all others in the order of names, in which a backup takes them: so it has, in the backup too, what came before a call's
/// own log.
pub(super) const NAME: &str = "~shared.log";

/// Where a frame lies in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub at: u64,
    pub length: u32,
}

impl Span {
    pub fn end(self) -> u64 {
        self.at + u64::from(self.length)
    }
}

/// A run's shared log, as its only writer knows it.
pub(super) struct Shared {
    path: PathBuf,
    /// How far it is known.
    end: u64,
    /// Nothing lies behind that: not before that was looked at, nor after a write that failed.
    mended: bool,
    /// What lies behind that is no frame.
    damaged: bool,
}

impl Shared {
    pub fn new(dir: &Path) -> Self {
        Shared { path: dir.join(NAME), end: 0, mended: false, damaged: false }
    }

    /// Gives `each` every frame of it, with its place.
    pub fn learn(&mut self, mut each: impl FnMut(Frame, Span)) -> io::Result<()> {
        let mut frames = match Frames::of_log(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            frames => frames?,
        };
        (self.end, self.mended) = (frames.at, false);
        while frames.header.is_some()
            && let Some(payload) = frames.next()?
        {
            let span = Span { at: self.end, length: u32::try_from(frames.at - self.end).unwrap_or(u32::MAX) };
            self.end = frames.at;
            if let Some(frame) = frame::output(None, &payload) {
                each(frame, span);
            }
        }
        self.damaged = frames.damaged;
        Ok(())
    }

    /// Appends one frame.
    pub fn append(&mut self, frame: &[u8]) -> io::Result<Span> {
        if !self.mended {
            self.mend()?;
        }
        let mut bytes = Vec::new();
        if self.end == 0 {
            // It is made together with what it begins with.
            frame::put_header(&mut bytes, &Header { format: 1, call: None })?;
        }
        let at = self.end + bytes.len() as u64;
        bytes.extend_from_slice(frame);
        // Half a frame may be there once this has failed.
        self.mended = false;
        append(&self.path, &bytes)?;
        self.mended = true;
        self.end += bytes.len() as u64;
        Ok(Span { at, length: u32::try_from(frame.len()).unwrap_or(u32::MAX) })
    }

    /// Cuts off what a crash or a full disk has left half written.
    fn mend(&mut self) -> io::Result<()> {
        if let Some(dir) = self.path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        if self.path.exists() {
            cut(&self.path, self.end, self.damaged)?;
        }
        (self.mended, self.damaged) = (true, false);
        Ok(())
    }

    /// Frames of it, for whoever reads beside the writer.
    pub fn reader(&self) -> SharedReader {
        SharedReader { path: self.path.clone(), damaged: self.damaged.then_some(self.end) }
    }
}

/// Reads what is known to be there.
pub(super) struct SharedReader {
    path: PathBuf,
    damaged: Option<u64>,
}

impl SharedReader {
    /// The frames at `spans`, up to the first that cannot be read.
    ///
    /// # Errors
    /// That is the first of all.
    pub fn read(&self, spans: &[Span]) -> io::Result<Vec<Frame>> {
        if spans.is_empty() {
            return Ok(Vec::new());
        }
        let file = File::open(&self.path)?;
        let read = |span: &Span| {
            let mut bytes = vec![0; span.length as usize];
            file.read_exact_at(&mut bytes, span.at)?;
            match frame::next(&bytes) {
                Next::Payload(payload, _) => {
                    frame::output(None, payload).ok_or_else(|| frame::damaged(&self.path, span.at))
                }
                Next::Open | Next::Bad => Err(frame::damaged(&self.path, span.at)),
            }
        };
        let mut frames = Vec::with_capacity(spans.len());
        for span in spans {
            match read(span) {
                Err(_) if !frames.is_empty() => break,
                frame => frames.push(frame?),
            }
        }
        Ok(frames)
    }

    /// An error if it is damaged behind all that is known of it.
    pub fn whole(&self) -> io::Result<()> {
        self.damaged.map_or(Ok(()), |at| Err(frame::damaged(&self.path, at)))
    }
}

/// Appends to a log, which is made if it is missing.
pub(super) fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)?.write_all(bytes)
}

/// Cuts a log where its last whole frame ends. Of one that is `damaged` there the whole is kept beside it.
pub(super) fn cut(log: &Path, end: u64, damaged: bool) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(log)?;
    let cut = file.metadata()?.len().saturating_sub(end);
    if cut == 0 {
        return Ok(());
    }
    if damaged {
        let kept = log.with_extension(format!("damaged-{end}"));
        fs::copy(log, &kept)?;
        tracing::error!(log = %log.display(), at = end, kept = %kept.display(), "an output log is damaged; what follows is not shown any more");
    } else {
        tracing::warn!(log = %log.display(), cut, "the end of an output log was cut off by a crash");
    }
    file.set_len(end)
}
