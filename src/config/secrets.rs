//! Secrets as files: one directory of root's, systemd's credentials before it.

use std::{
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::ports::secrets::{Secret, SecretError, Secrets};

/// A secret could not be found in output if it were shorter.
const SHORTEST: usize = 8;
/// A key or token is some kilobytes at most; more is a mistake, and would be searched for in all output.
const LONGEST: u64 = 64 * 1024;

/// Reads a secret's file at each use, so that a rotated one is in force at once. Blocks for as long as a small read takes.
#[derive(Debug, Clone)]
pub struct FileSecrets {
    dirs: Vec<PathBuf>,
}

impl FileSecrets {
    /// Looks into `dirs` in this order; the first file found counts, even if it is unusable.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        FileSecrets { dirs }
    }
}

impl Secrets for FileSecrets {
    fn get(&self, name: &str) -> Result<Secret, SecretError> {
        if !is_name(name) {
            return Err(SecretError::Name { name: name.chars().take(200).collect() });
        }
        for dir in &self.dirs {
            let unusable = |why: String| SecretError::Unusable { name: name.to_owned(), why };
            if let Some(bytes) = read(&dir.join(name)).map_err(unusable)? {
                let secret = Secret::new(&bytes);
                if secret.expose().len() < SHORTEST {
                    let why = format!(
                        "it is shorter than {SHORTEST} bytes and could not be kept out of logs: use a longer one"
                    );
                    return Err(unusable(why));
                }
                return Ok(secret);
            }
        }
        let looked: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        Err(SecretError::Missing { name: name.to_owned(), looked: looked.join(" or ") })
    }
}

/// Whether a secret can be called that: parts of A-Z a-z 0-9 . _ - joined by /.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.len() <= 200
        && name.split('/').all(|part| {
            !matches!(part, "" | "." | "..")
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        })
}

/// The file's bytes; `None` = there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    // Opened first and judged by the descriptor: what is judged is what is read. A FIFO must not block the daemon.
    let opened =
        std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    let fail = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let meta = file.metadata().map_err(fail)?;
    if !meta.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    // systemd lets the unit's user at its credentials by an ACL, and the mask of an ACL shows as the group's bits.
    let forbidden = if path.starts_with("/run/credentials") { 0o037 } else { 0o077 };
    if meta.mode() & forbidden != 0 {
        let mode = meta.mode() & 0o777;
        return Err(format!(
            "{} has mode {mode:04o}, others than its owner can get at it: chmod 600 {}",
            path.display(),
            path.display()
        ));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > LONGEST {
        return Err(format!("{} is longer than {LONGEST} bytes", path.display()));
    }
    Ok(Some(bytes))
}
