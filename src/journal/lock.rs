//! `data_dir/LOCK`: one daemon at a time.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::schema::{self, SchemaError};
use crate::time::Stamp;

/// `phased doctor` has the lock for a moment, to see whether anybody else has: so often, and so long each time, a start looks again.
const AGAIN: u32 = 5;
const MOMENT: std::time::Duration = std::time::Duration::from_millis(20);

/// The data directory is ours while this lives. The kernel lets go of it when the process ends, however it ends; the file stays.
#[derive(Debug)]
pub struct DataLock {
    _flock: Flock<File>,
}

/// Why the data directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon, or an offline command such as `phased rebuild`, works on it.
    #[error("`{path}` is in use by {holder}: stop that one first, or give this one a data_dir of its own")]
    Held {
        /// The lock file.
        path: PathBuf,
        /// As the holder wrote it: `pid 812 since 2026-01-02T03:04:05.678Z`.
        holder: String,
    },
    /// It is ours, but not to be worked on by this phased.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The lock cannot be had at all.
    #[error("failed to lock `{path}`")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DataLock {
    /// Takes `data_dir/LOCK` and writes this process's id and `now` into it. Waits no longer than a tenth of a second. Data of a format that this phased does not know
    /// is refused here, so that nobody works on it.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(data_dir: &Path, now: &Stamp) -> Result<Self, LockError> {
        let path = data_dir.join("LOCK");
        let failed = |source| LockError::Io { path: path.clone(), source };
        // Not truncated: until the lock is ours the text in it is the holder's.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let mut again = AGAIN;
        let locked = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Err((held, Errno::EWOULDBLOCK)) if again > 0 => {
                    again -= 1;
                    #[allow(clippy::disallowed_methods)]
                    // at the start, before there is anything that it could hold up
                    std::thread::sleep(MOMENT);
                    file = held;
                }
                done => break done,
            }
        };
        match locked {
            Ok(mut flock) => {
                write(&mut flock, &format!("pid {} since {}\n", std::process::id(), now.rfc3339())).map_err(failed)?;
                schema::check(data_dir)?;
                Ok(DataLock { _flock: flock })
            }
            Err((file, Errno::EWOULDBLOCK)) => Err(LockError::Held { holder: holder(file), path }),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

fn write(file: &mut File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

fn holder(file: File) -> String {
    let mut text = String::new();
    let read = file.take(200).read_to_string(&mut text);
    let line = text.lines().next().unwrap_or("").trim();
    if read.is_err() || line.is_empty() || line.chars().any(char::is_control) {
        return "another process, which has not written its name yet".to_owned();
    }
    line.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Stamp {
        Stamp { wall_ms: 1_700_000_000_000, boot_ms: 0, boot: "b".into() }
    }

    #[test]
    fn the_second_is_told_who_holds_it_and_gets_it_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataLock::take(dir.path(), &now()).unwrap();
        let error = DataLock::take(dir.path(), &now()).unwrap_err().to_string();
        let holder = format!("in use by pid {} since 2023-11-14T22:13:20.000Z:", std::process::id());
        assert!(error.contains(&holder), "{error}");
        drop(first);
        DataLock::take(dir.path(), &now()).unwrap();
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn who_only_looks_for_a_moment_keeps_nobody_from_it() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataLock::take(dir.path(), &now()).unwrap());
        let looks = Flock::lock(File::open(dir.path().join("LOCK")).unwrap(), FlockArg::LockSharedNonblock).unwrap();
        let look = std::thread::spawn(move || {
            std::thread::sleep(MOMENT);
            drop(looks);
        });
        DataLock::take(dir.path(), &now()).unwrap();
        look.join().unwrap();
    }

    #[test]
    fn what_an_earlier_holder_wrote_is_replaced_whatever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("LOCK"), [0xff; 1000]).unwrap();
        let _held = DataLock::take(dir.path(), &now()).unwrap();
        assert!(std::fs::read_to_string(dir.path().join("LOCK")).unwrap().starts_with("pid "));
        std::fs::write(dir.path().join("LOCK"), [0x1b; 1000]).unwrap();
        assert!(DataLock::take(dir.path(), &now()).unwrap_err().to_string().contains("another process"));
    }

    #[test]
    fn a_missing_directory_is_an_error_that_names_the_file() {
        let error = DataLock::take(Path::new("/nonexistent/phased"), &now()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/phased/LOCK"));
    }
}
