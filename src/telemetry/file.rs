//! A log file, which a rotation may put aside.
//!
//! Standard error itself is the file, so whatever is written there, a panic's last words too, is in it. A line is one write at the file's
//! end, and changing files is one system call: no line is lost, torn or written twice.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Where standard error goes.
#[derive(Debug, Clone)]
pub struct LogFile {
    path: PathBuf,
}

impl LogFile {
    /// The file at `path`, whatever is there.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        LogFile { path }
    }

    /// Its place.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it for appending; it is made if missing, readable by the owner's group.
    ///
    /// # Errors
    /// The disk's, with the file's name.
    pub fn open(&self) -> io::Result<File> {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path);
        file.map_err(|error| {
            io::Error::new(error.kind(), format!("failed to open the log `{}`: {error}", self.path.display()))
        })
    }

    /// Makes whatever is at that place now standard error: the first time, and after a rotation. Where that fails, what was standard error
    /// stays.
    ///
    /// # Errors
    /// As [`LogFile::open`].
    pub fn begin(&self) -> io::Result<()> {
        let file = self.open()?;
        nix::unistd::dup2_stderr(&file).map_err(io::Error::from)
    }
}
