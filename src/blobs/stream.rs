//! Bytes on their way into a blob and out of one, never all of them in memory.

use std::{
    fs::File,
    io::{self, Read, Seek as _, SeekFrom, Write},
};

use sha2::{Digest as _, Sha256};

use super::archive;
use crate::{
    model::ids::Digest,
    ports::blobs::{Form, Stored},
};

/// What is read at once.
const CHUNK: usize = 64 * 1024;
/// Of zstd: what it calls its default. A higher one costs a test stage more time than hosts save.
const LEVEL: i32 = 3;

/// Takes the digest of what is written to it.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(to: W) -> Self {
        Hashing { to, hash: Sha256::new(), size: 0 }
    }

    fn digest(self) -> (Digest, u64, W) {
        (Digest::from_bytes(&self.hash.finalize()), self.size, self.to)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Copies what is read from it.
struct Tee<'a, W> {
    from: &'a mut dyn Read,
    to: W,
    left: u64,
}

impl<W: Write> Read for Tee<'_, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than an artifact may be"))?;
        self.to.write_all(&buffer[..n])?;
        Ok(n)
    }
}

/// Writes what `from` gives into `file`; the file is not synced.
pub(super) fn store(form: Form, from: &mut dyn Read, most: u64, file: File) -> io::Result<(Stored, File)> {
    match form {
        Form::Plain => {
            let mut tee = Tee { from, to: Hashing::new(file), left: most };
            io::copy(&mut tee, &mut io::sink())?;
            let (sha256, size, file) = tee.to.digest();
            Ok((Stored { blob: sha256.clone(), sha256, size }, file))
        }
        Form::Archive => {
            let packed = zstd::Encoder::new(Hashing::new(file), LEVEL)?;
            let mut tee = Tee { from, to: Hashing::new(packed), left: most };
            // The library reads it in small pieces.
            archive::check(&mut io::BufReader::with_capacity(CHUNK, &mut tee))?;
            let (sha256, size, packed) = tee.to.digest();
            let (blob, _, file) = packed.finish()?.digest();
            Ok((Stored { blob, sha256, size }, file))
        }
    }
}

/// What lies in `file`, from `offset` on.
pub(super) fn read(mut file: File, form: Form, offset: u64) -> io::Result<Box<dyn Read + Send>> {
    match form {
        Form::Plain => {
            file.seek(SeekFrom::Start(offset))?;
            Ok(Box::new(file))
        }
        Form::Archive => {
            let mut unpacked = zstd::Decoder::new(file)?;
            // What was compressed has no other way in; a gigabyte takes a second.
            io::copy(&mut (&mut unpacked).take(offset), &mut io::sink())?;
            Ok(Box::new(unpacked))
        }
    }
}

/// The digest of what `from` gives.
pub(super) fn digest(from: &mut dyn Read) -> io::Result<Digest> {
    let mut to = Hashing::new(io::sink());
    io::copy(&mut io::BufReader::with_capacity(CHUNK, from), &mut to)?;
    Ok(to.digest().0)
}
