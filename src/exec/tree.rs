//! Trees that are given to a job user.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Everything below `tree`, each after all that is in it, and `tree` itself last. A directory that is not `me`'s any more was given
/// already, with all in it, and is not entered. No link is followed.
pub(super) fn inside_out(tree: &Path, me: u32) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![tree.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() && meta.uid() == me {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
        found.push(path);
    }
    // Each directory came before what is in it.
    found.reverse();
    Ok(found)
}

/// Removes whatever is at `path`, or nothing.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(error) => Err(error),
        // An empty one goes also where it belongs to somebody else and cannot be looked into.
        Ok(meta) if meta.is_dir() => fs::remove_dir(path).or_else(|_| fs::remove_dir_all(path)),
        Ok(_) => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_directory_comes_before_it_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/f"), "").unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/g"), "").unwrap();
        std::os::unix::fs::symlink("../outside", tree.join("link")).unwrap();
        let me = nix::unistd::Uid::effective().as_raw();
        let found = inside_out(&tree, me).unwrap();
        assert_eq!(found.len(), 5, "{found:?}");
        assert_eq!(found.last(), Some(&tree));
        let at = |name: &str| found.iter().position(|path| *path == tree.join(name)).unwrap();
        assert!(at("a/b/f") < at("a/b") && at("a/b") < at("a"));
        assert_eq!(inside_out(&tree, me + 1).unwrap(), std::slice::from_ref(&tree), "given already");
        remove(&tree).unwrap();
        remove(&tree).unwrap();
        assert!(dir.path().join("outside/g").exists());
    }
}
