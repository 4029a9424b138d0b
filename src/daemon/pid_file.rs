//! The pid file of a daemon in the background. That it is locked says that the daemon lives, not the number in it: that may be anybody's by
//! now.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// A pid file that is ours. The kernel lets go of it with the process, however that ends.
#[derive(Debug)]
pub struct PidFile {
    file: Flock<File>,
    path: PathBuf,
}

impl PidFile {
    /// Takes the file at `path`, whatever an earlier daemon or somebody else wrote into it.
    ///
    /// # Errors
    /// A daemon runs that has it, or it cannot be opened.
    pub fn take(path: &Path) -> anyhow::Result<Self> {
        // Whoever may write beside it must not have root write into another file.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)
            .with_context(|| format!("failed to open the pid file `{}`", path.display()))?;
        // Whoever may read it could hold its lock for ever, and no daemon would start.
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("failed to close the pid file `{}` to others", path.display()))?;
        match locked(file) {
            Ok(file) => {
                // Until there is a process, nobody is to be sent a signal for it.
                file.set_len(0).with_context(|| format!("failed to empty the pid file `{}`", path.display()))?;
                Ok(PidFile { file, path: path.to_owned() })
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                let whose = pid_in(file).map(|pid| format!(" as process {pid}")).unwrap_or_default();
                anyhow::bail!(
                    "phased runs already{whose}: its pid file `{}` is in use. Stop that one first, or give this one another pid file and data_dir",
                    path.display()
                )
            }
            Err((_, errno)) => Err(anyhow::Error::from(errno))
                .with_context(|| format!("failed to lock the pid file `{}`", path.display())),
        }
    }

    /// Writes this process's id: after the last fork.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&mut self) -> anyhow::Result<()> {
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(format!("{}\n", std::process::id()).as_bytes())
        };
        write(&mut self.file).with_context(|| format!("failed to write the pid file `{}`", self.path.display()))
    }

    /// Nobody is left: an empty file says that the daemon has ended in order. It stays where it is, as the daemon may not be allowed to
    /// remove it, and somebody may have it open already.
    pub fn clear(self) {
        let _only_for_people = self.file.set_len(0);
    }
}

/// The lock; somebody who only looks whether a daemon lives may hold it for a moment.
fn locked(mut file: File) -> Result<Flock<File>, (File, Errno)> {
    for _ in 0..20 {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((file, Errno::EWOULDBLOCK)) => file,
            other => return other,
        };
        #[allow(clippy::disallowed_methods)] // before there is any thread that it could hold up
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
}

fn pid_in(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_it_is_named_and_what_is_left_of_others_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        // Left by somebody who is gone, or by a process that is not ours: here pid 1.
        for stale in ["1\n", "999999\n", "garbage", ""] {
            std::fs::write(&path, stale).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
            let mut first = PidFile::take(&path).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "", "nobody yet");
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            first.write().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()), "{stale:?}");
            let error = PidFile::take(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("runs already as process {}", std::process::id())), "{error}");
            first.clear();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        }
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("pid"), dir.path().join("target"));
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let error = format!("{:#}", PidFile::take(&path).unwrap_err());
        assert!(error.contains("failed to open the pid file"), "{error}");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    }
}
