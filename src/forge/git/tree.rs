//! Directories of mirrors and checkouts: made private, removed; symlinks are never followed.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
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

/// What unfinished checkouts of `dir` have left beside it.
pub(super) fn beside(dir: &Path) -> Vec<PathBuf> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Vec::new() };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path != dir && path.file_stem() == Some(name)).collect()
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

/// Removes what a killed git left in a mirror: lock files, which would refuse every later fetch, and unfinished packs. Only while
/// nothing else works in it.
pub(super) fn unlock(mirror: &Path) {
    let _best_effort = sweep(mirror, 0);
}

/// Whether a repository's `objects` are in more than `packs` packs, or more than `loose` of them in files of their own. As git does, that is
/// guessed from one of their 256 directories.
pub(super) fn scattered(objects: &Path, packs: usize, loose: usize) -> io::Result<bool> {
    let entries = |name: &str| match fs::read_dir(objects.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>(),
    };
    let packed = entries("pack")?.iter().filter(|path| path.extension().is_some_and(|kind| kind == "pack")).count();
    Ok(packed > packs || entries("17")?.len() * 256 > loose)
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
        if name.starts_with("tmp_") || name.starts_with(".tmp-") {
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
