//! Files that are whole or not there, whatever cuts their making: written under a name of their own, on disk before they get their name,
//! and the name on disk before anybody is told.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// A file that is gone again unless it gets its name.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    /// Open for reading and writing.
    pub file: File,
}

impl Part {
    /// A new file beside `to`, with a name that nobody else has. `mode` holds whatever the umask is, and never more than it.
    ///
    /// # Errors
    /// The disk's.
    pub fn beside(to: &Path, mode: u32) -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        Part::at(to.with_file_name(format!(".{name}.{:016x}.part", u64::from_ne_bytes(random))), mode)
    }

    /// A new file at `path`, for whoever looks for what was left of them.
    ///
    /// # Errors
    /// The disk's; also where there is one.
    pub fn at(path: PathBuf, mode: u32) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&path)?;
        let part = Part { path, file };
        part.file.set_permissions(Permissions::from_mode(mode))?;
        Ok(part)
    }

    /// Adds to it.
    ///
    /// # Errors
    /// The disk's.
    pub fn fill(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Returns when its bytes are on disk.
    ///
    /// # Errors
    /// [`unsynced`].
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all().map_err(unsynced)
    }

    /// Puts it in the place of whatever is at `to`.
    ///
    /// # Errors
    /// The disk's; `to` is as it was, unless syncing its directory failed.
    pub fn replace(self, to: &Path) -> io::Result<()> {
        self.sync()?;
        fs::rename(&self.path, to)?;
        sync_name(to)
    }

    /// Gives it the name `to`, which nobody must have.
    ///
    /// # Errors
    /// `AlreadyExists` where somebody was faster, and else the disk's.
    pub fn name(self, to: &Path) -> io::Result<()> {
        self.sync()?;
        match fs::hard_link(&self.path, to) {
            // A file system without links, as of a stick: there it is as good as can be.
            Err(error) if error.kind() != ErrorKind::AlreadyExists && fs::symlink_metadata(to).is_err() => {
                fs::rename(&self.path, to)?;
            }
            linked => linked?,
        }
        sync_name(to)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _has_its_name = fs::remove_file(&self.path);
    }
}

/// Returns when the name of `path` is on disk.
///
/// # Errors
/// [`unsynced`], or the directory cannot be opened.
pub fn sync_name(path: &Path) -> io::Result<()> {
    match File::open(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))) {
        // One may write into a directory that one may not list.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        open => open?.sync_all().map_err(unsynced),
    }
}

/// A failed sync, whatever it failed with: after it the page cache is not the disk, so it must look like nothing that can be retried.
#[must_use]
#[allow(clippy::needless_pass_by_value)] // for `map_err`
pub fn unsynced(error: io::Error) -> io::Error {
    io::Error::other(format!("syncing it failed, which cannot be tried again: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_when_it_is_whole_and_only_one_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let (to, names) = (dir.path().join("it"), || fs::read_dir(dir.path()).unwrap().count());
        let part = |text: &str| {
            let mut part = Part::beside(&to, 0o640).unwrap();
            part.fill(text.as_bytes()).unwrap();
            part
        };
        drop(part("half"));
        assert_eq!(names(), 0, "given up");
        let (first, second) = (part("first"), part("second"));
        assert!(names() == 2 && !to.exists());
        first.name(&to).unwrap();
        assert_eq!(second.name(&to).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&to).unwrap(), "first");
        part("third").replace(&to).unwrap();
        assert_eq!((fs::read_to_string(&to).unwrap().as_str(), names()), ("third", 1));
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o7777, 0o640);
        // Never behind a link that somebody has put there.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        assert!(part("x").name(&link).is_err() && !dir.path().join("elsewhere").exists());
    }
}
