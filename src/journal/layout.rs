//! The data directory: what lies where, and who may look.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// The directories of one daemon. Job users can pass through the root, `jobs` and `work` to what is theirs, and see nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The data directory, 0711. Holds `LOCK`.
    pub root: PathBuf,
    /// `journal`, 0700: holds `control`.
    pub journal: PathBuf,
    /// `journal/runs`, 0700: a directory a run.
    pub runs: PathBuf,
    /// `blobs`, 0700.
    pub blobs: PathBuf,
    /// `code`, 0700: pinned Lua.
    pub code: PathBuf,
    /// `state`, 0700: the index.
    pub state: PathBuf,
    /// `jobs`, 0711: the command protocol's base of each project, owned by its job user.
    pub jobs: PathBuf,
    /// `work`, 0711: git caches and checkouts.
    pub work: PathBuf,
}

impl Layout {
    /// Makes what is missing in `data_dir` and sets the modes, whatever the umask is or somebody has set since.
    ///
    /// # Errors
    /// The disk's, with the directory's name.
    pub fn create(data_dir: &Path) -> io::Result<Self> {
        let layout = Layout {
            root: data_dir.to_owned(),
            journal: data_dir.join("journal"),
            runs: data_dir.join("journal/runs"),
            blobs: data_dir.join("blobs"),
            code: data_dir.join("code"),
            state: data_dir.join("state"),
            jobs: data_dir.join("jobs"),
            work: data_dir.join("work"),
        };
        let private = [&layout.journal, &layout.runs, &layout.blobs, &layout.code, &layout.state].map(|d| (d, 0o700));
        let passable = [&layout.jobs, &layout.work].map(|dir| (dir, 0o711));
        for (dir, mode) in std::iter::once((&layout.root, 0o711)).chain(private).chain(passable) {
            make(dir, mode).map_err(|error| {
                io::Error::new(error.kind(), format!("failed to make the directory `{}`: {error}", dir.display()))
            })?;
        }
        // The names made just now outlast a power loss, as everything in them is promised to.
        for dir in [&layout.journal, &layout.root] {
            fs::File::open(dir)?.sync_all()?;
        }
        Ok(layout)
    }
}

fn make(dir: &Path, mode: u32) -> io::Result<()> {
    // Created closed: opened a moment later, it was never open to the wrong ones.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if fs::metadata(dir)?.permissions().mode() & 0o7777 != mode {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(dir: &Path) -> u32 {
        fs::metadata(dir).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_modes_hold_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        for _ in 0..2 {
            let made = Layout::create(&root).unwrap();
            assert_eq!([&made.root, &made.jobs, &made.work].map(|d| mode(d)), [0o711; 3]);
            let private = [&made.journal, &made.runs, &made.blobs, &made.code, &made.state];
            assert_eq!(private.map(|d| mode(d)), [0o700; 5]);
            fs::set_permissions(&made.journal, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("blobs"), b"").unwrap();
        assert!(Layout::create(dir.path()).unwrap_err().to_string().contains("/blobs`"));
    }
}
