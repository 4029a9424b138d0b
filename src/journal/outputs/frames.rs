//! A log's frames, one at a time.

use std::{
    fs::File,
    io::{self, BufReader, Read as _},
    path::Path,
};

use super::frame::{self, MAX_PAYLOAD, Next, PREFIX};

/// The whole payloads of a file, up to the first that is none.
pub(super) struct Frames {
    file: BufReader<File>,
    /// Where the next one begins.
    pub at: u64,
    /// What begins there is no frame, nor the beginning of one.
    pub damaged: bool,
}

impl Frames {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Frames { file: BufReader::with_capacity(64 * 1024, File::open(path)?), at: 0, damaged: false })
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
