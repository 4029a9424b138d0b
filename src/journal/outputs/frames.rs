//! A log's frames, one at a time.

use std::{
    fs::File,
    io::{self, BufReader, Read as _, Seek as _},
    path::Path,
};

use super::frame::{self, Header, MAX_PAYLOAD, Next, PREFIX};

/// The whole payloads of a file, up to the first that is none.
pub(super) struct Frames {
    file: BufReader<File>,
    /// Where the next one begins.
    pub at: u64,
    /// What begins there is no frame, nor the beginning of one.
    pub damaged: bool,
    /// What the log is of, if it was opened as one and has that: one without was cut off by a crash before it had any frame, or is damaged.
    pub header: Option<Header>,
}

impl Frames {
    /// Of a file without a header.
    pub fn open(path: &Path) -> io::Result<Self> {
        Frames::open_at(path, 0)
    }

    /// From `at` on, where a frame begins; behind its end a file has none.
    pub fn open_at(path: &Path, at: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        // The system refuses to seek beyond what a file can be.
        file.seek(io::SeekFrom::Start(at.min(file.metadata()?.len())))?;
        Ok(Frames { file: BufReader::with_capacity(64 * 1024, file), at, damaged: false, header: None })
    }

    /// Of a log, behind its header; without one there are none.
    pub fn of_log(path: &Path) -> io::Result<Self> {
        let mut frames = Frames::open(path)?;
        if let Some(payload) = frames.next()? {
            frames.header = frame::header(&payload);
            if frames.header.is_none() {
                (frames.at, frames.damaged) = (0, true);
            }
        }
        Ok(frames)
    }

    pub fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::with_capacity(4096);
        self.file.by_ref().take(PREFIX as u64).read_to_end(&mut bytes)?;
        let length = bytes.first_chunk::<4>().map_or(0, |length| u32::from_le_bytes(*length) as usize);
        if length > MAX_PAYLOAD {
            self.damaged = true;
            return Ok(None);
        }
        self.file.by_ref().take(length as u64).read_to_end(&mut bytes)?;
        match frame::next(&bytes) {
            Next::Payload(_, taken) => {
                self.at += taken as u64;
                bytes.drain(..PREFIX);
                return Ok(Some(bytes));
            }
            Next::Bad => self.damaged = true,
            Next::Open => {}
        }
        Ok(None)
    }
}
