//! Directories of checkouts: made private, handed to the job user, removed; symlinks are never followed.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, lchown},
    path::Path,
};

/// The project's own directory: others may pass through it to what is theirs, and see nothing.
pub(super) fn project_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(dir)?;
    // The umask may have taken from it.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711))
}

/// An empty directory nobody else can enter; what was there is removed.
pub(super) fn fresh(dir: &Path) -> io::Result<()> {
    remove(dir)?;
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::DirBuilder::new().mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

/// Puts `from` where `to` is or was.
pub(super) fn replace(from: &Path, to: &Path) -> io::Result<()> {
    remove(to)?;
    fs::rename(from, to)
}

/// Removes what unfinished checkouts of `dir` have left beside it.
pub(super) fn clear_aside(dir: &Path) {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        if path != dir && path.file_stem() == Some(name) {
            let _somebody_may_still_write_there = remove(&path);
        }
    }
}

/// Removes whatever is at `path`, or nothing.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

/// Gives `dir` and all in it to `uid`. The directory itself comes last: until then its mode 0700 keeps everybody else out, so
/// nothing in it can be exchanged on the way.
pub(super) fn give(dir: &Path, uid: u32, gid: u32) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give(&entry.path(), uid, gid)?;
        } else {
            lchown(entry.path(), Some(uid), Some(gid))?;
        }
    }
    lchown(dir, Some(uid), Some(gid))
}

/// Removes what a killed git left in a mirror: lock files, which would refuse every later fetch, and unfinished packs. Only while
/// nothing else works in it.
pub(super) fn unlock(mirror: &Path) {
    let _best_effort = sweep(mirror, 0);
}

fn sweep(dir: &Path, depth: u32) -> io::Result<()> {
    if depth > 40 {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = entry.path();
        if name.starts_with("tmp_") {
            remove(&path)?;
        } else if entry.file_type()?.is_dir() {
            // Loose objects: no locks there, and many directories.
            if !(name.len() == 2 && dir.ends_with("objects")) {
                sweep(&path, depth + 1)?;
            }
        } else if name.ends_with(".lock") {
            remove(&path)?;
        }
    }
    Ok(())
}
