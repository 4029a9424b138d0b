//! Backups: the data directory as a tar archive, compressed with zstd, written while the daemon works.
//!
//! ```text
//! backup.json                          what it is: always first
//! journal/control                      up to a whole record
//! journal/runs/<run>/journal, out/...  the runs there were when control was read
//! code/<sha256>/...   blobs/<sha256>   what these name
//! secrets/<name>                       only if asked for
//! end.json                             how many files, and the sha256 of all of it: without this it is no backup
//! ```
//!
//! # Why this is consistent
//! Control is read first, then each run's journal, then what journals name. Grants are in control before a run's journal has them, and
//! outcomes in a run's journal before control has them: so a journal that is read later than control holds at most an outcome which control has not heard of
//! yet, and that is what every start completes. An append-only file that is read while it grows is a whole prefix and perhaps a torn last
//! line, as after a power loss. Blobs and code are on disk before a line names them, and none is swept while a backup is written.
//!
//! Not in it: the index (it is folded anew), checkouts and git caches (`work`), homes of job users (`jobs`), the reserve.

mod read;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::layout::Layout;
use crate::{
    model::ids::{Digest, RunId},
    ports::backup::{Archive, Manifest},
};

pub use read::{Unpacked, check, read};

const FIRST: &str = "backup.json";
const LAST: &str = "end.json";
/// The form that is written and read.
const FORMAT: u32 = 1;
/// Fast, and most of what is large is compressed already.
const LEVEL: i32 = 3;

/// The last entry.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    /// Entries before this one, the first among them.
    files: u64,
    /// Over the name, size and bytes of each.
    sha256: Digest,
}

/// The digest of everything so far.
#[derive(Default)]
struct Sum {
    files: u64,
    hasher: Sha256,
}

impl Sum {
    fn begin(&mut self, name: &str, size: u64) {
        self.files += 1;
        self.hasher.update(format!("{name}\0{size}\0").as_bytes());
    }

    fn end(self) -> End {
        End { files: self.files, sha256: Digest::from_bytes(&self.hasher.finalize()) }
    }
}

/// So many directories deep secrets may lie: links can lead in a circle.
const DEEPEST: usize = 8;

/// The data directory of a daemon, and where its secrets are.
pub struct DataArchive {
    layout: Layout,
    secrets: PathBuf,
}

impl DataArchive {
    /// Over what lies in `layout`, and `secrets` where they are asked for.
    #[must_use]
    pub fn new(layout: Layout, secrets: PathBuf) -> Self {
        DataArchive { layout, secrets }
    }
}

impl Archive for DataArchive {
    fn write(&self, manifest: &Manifest, to: &mut dyn Write) -> io::Result<()> {
        let mut encoder = zstd::stream::write::Encoder::new(to, LEVEL)?;
        encoder.include_checksum(true)?;
        let mut pack = Pack { tar: tar::Builder::new(encoder), sum: Sum::default() };
        pack.bytes(FIRST, &serde_json::to_vec(&Manifest { format: FORMAT, ..manifest.clone() })?)?;
        // Before control: a run that begins meanwhile is in control perhaps, and then as one that was asked for.
        let runs = self.runs()?;
        pack.bytes("journal/control", &whole_lines(fs::read(self.layout.journal.join("control"))?))?;
        for run in &runs {
            let dir = self.layout.runs.join(run.as_str());
            // Retention may take a finished one away at any moment.
            if pack.file(&format!("journal/runs/{run}/journal"), &dir.join("journal"))? {
                pack.below(&format!("journal/runs/{run}/out"), &dir.join("out"))?;
            }
        }
        pack.below("code", &self.layout.code)?;
        for name in names(&self.layout.blobs)? {
            // What is being written has another name.
            if name.parse::<Digest>().is_ok() {
                pack.file(&format!("blobs/{name}"), &self.layout.blobs.join(&name))?;
            }
        }
        if manifest.secrets {
            pack.secrets("secrets", &self.secrets, 0)?;
        }
        pack.finish()
    }
}

impl DataArchive {
    fn runs(&self) -> io::Result<Vec<RunId>> {
        let mut runs: Vec<RunId> = names(&self.layout.runs)?.iter().filter_map(|name| name.parse().ok()).collect();
        runs.sort();
        Ok(runs)
    }
}

/// Names in a directory, in order; none where there is no such directory.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // Whatever is no UTF-8 is not ours.
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Without a last line that is not whole yet.
fn whole_lines(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
    bytes
}

struct Pack<W: Write> {
    tar: tar::Builder<W>,
    sum: Sum,
}

impl<'a> Pack<zstd::stream::write::Encoder<'a, &'a mut dyn Write>> {
    fn finish(mut self) -> io::Result<()> {
        let end = serde_json::to_vec(&std::mem::take(&mut self.sum).end())?;
        self.tar.append_data(&mut header(end.len() as u64), LAST, &end[..])?;
        self.tar.into_inner()?.finish()?.flush()
    }
}

impl<W: Write> Pack<W> {
    fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let size = bytes.len() as u64;
        self.sum.begin(name, size);
        self.sum.hasher.update(bytes);
        self.tar.append_data(&mut header(size), name, bytes)
    }

    /// A file as long as it is now; false when it is not there any more.
    fn file(&mut self, name: &str, path: &Path) -> io::Result<bool> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        let size = file.metadata()?.len();
        self.sum.begin(name, size);
        let mut reader = Counted { inner: file, left: size, hasher: &mut self.sum.hasher };
        self.tar.append_data(&mut header(size), name, &mut reader)?;
        Ok(true)
    }

    /// Every secret, also those that lie elsewhere and are linked to: a daemon follows such links when it reads them.
    fn secrets(&mut self, name: &str, dir: &Path, depth: usize) -> io::Result<()> {
        for entry in names(dir)? {
            let (name, path) = (format!("{name}/{entry}"), dir.join(&entry));
            match fs::metadata(&path) {
                // What begins with a dot is no secret's name: Kubernetes keeps all of a volume there a second time.
                Ok(meta) if meta.is_dir() && depth < DEEPEST && !entry.starts_with('.') => {
                    self.secrets(&name, &path, depth + 1)?;
                }
                Ok(meta) if meta.is_file() => drop(self.file(&name, &path)?),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Every file below a directory. Links are nothing of ours and are left out.
    fn below(&mut self, name: &str, dir: &Path) -> io::Result<()> {
        for entry in names(dir)? {
            let (name, path) = (format!("{name}/{entry}"), dir.join(&entry));
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => self.below(&name, &path)?,
                Ok(meta) if meta.is_file() => drop(self.file(&name, &path)?),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    header
}

/// Exactly so many bytes of a file that may grow, or be cut: a tail that did not fit the disk is taken off again. Zeros in its place are no line
/// of a journal, as the tail was none.
struct Counted<'a, R> {
    inner: R,
    left: u64,
    hasher: &'a mut Sha256,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(room) = buffer.get_mut(..most).filter(|room| !room.is_empty()) else { return Ok(0) };
        let n = match self.inner.read(room)? {
            0 => {
                room.fill(0);
                room.len()
            }
            n => n,
        };
        self.hasher.update(room.get(..n).unwrap_or_default());
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
