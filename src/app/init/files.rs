//! Files that are written once: nothing that exists is overwritten, whatever the umask is, and the daemon can read them.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::{
    fcntl::OFlag,
    unistd::{Gid, Uid, User},
};

use crate::whole::{Part, sync_name};

/// The user that the packaged daemon runs as.
const DAEMON: &str = "phased";

/// Writes files and remembers what became of each.
#[derive(Debug, Default)]
pub(in crate::app) struct Files {
    /// Written now, in order.
    pub wrote: Vec<PathBuf>,
    /// There already, and left as they are.
    pub kept: Vec<PathBuf>,
    /// Whose secrets are: the daemon's, where root writes them and there is such a user.
    owner: Option<(Uid, Gid)>,
}

impl Files {
    pub fn new() -> Self {
        let daemon = if Uid::effective().is_root() { User::from_name(DAEMON).ok().flatten() } else { None };
        Files { owner: daemon.map(|user| (user.uid, user.gid)), ..Files::default() }
    }

    /// A file that everybody may read: configuration, Lua.
    pub fn public(&mut self, path: &Path, text: &str) -> anyhow::Result<()> {
        self.write(path, text, 0o644).map(|_| ())
    }

    /// The same; false where one is there and says something else.
    pub fn agrees(&mut self, path: &Path, text: &str) -> anyhow::Result<bool> {
        if self.write(path, text, 0o644)? {
            return Ok(true);
        }
        let there = fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
        Ok(there == text.as_bytes())
    }

    /// A secret: the daemon's alone. Returns what is in it: `make`'s, or what was there.
    pub fn secret(
        &mut self,
        dir: &Path,
        name: &str,
        make: impl FnOnce() -> anyhow::Result<String>,
    ) -> anyhow::Result<String> {
        self.secrets_dir(dir)?;
        let path = dir.join(name);
        // A name may have parts: each is a directory that only the daemon can enter.
        let parts: Vec<&Path> =
            Path::new(name).ancestors().skip(1).filter(|part| !part.as_os_str().is_empty()).collect();
        for part in parts.iter().rev() {
            self.secrets_dir(&dir.join(part))?;
        }
        if !path.exists() {
            let text = make()?;
            if self.write(&path, &text, 0o600)? {
                return Ok(text);
            }
        } else {
            self.kept.push(path.clone());
        }
        fs::read_to_string(&path)
            .with_context(|| format!("the secret `{}` is there and cannot be read", path.display()))
    }

    /// Adds a line to a file that everybody may read.
    pub fn append(&mut self, path: &Path, line: &str) -> anyhow::Result<()> {
        let failed = || format!("failed to write `{}`", path.display());
        let new = !path.exists();
        let old = if new { String::new() } else { fs::read_to_string(path).with_context(failed)? };
        let gap = if old.is_empty() || old.ends_with('\n') { "" } else { "\n" };
        let mut file = fs::OpenOptions::new().append(true).create(true).mode(0o644).open(path).with_context(failed)?;
        file.write_all(format!("{gap}{line}\n").as_bytes()).with_context(failed)?;
        if new {
            file.set_permissions(fs::Permissions::from_mode(0o644)).with_context(failed)?;
            self.wrote.push(path.to_owned());
        }
        file.sync_all().with_context(failed)?;
        Ok(())
    }

    /// The directory of secrets, which only the daemon can enter. One that is there is given to it if it could not.
    fn secrets_dir(&self, dir: &Path) -> anyhow::Result<()> {
        let failed = || format!("failed to make the directory `{}`", dir.display());
        let new = !dir.exists();
        if new {
            if let Some(parent) = dir.parent() {
                self.directory(parent)?;
            }
            make(dir, 0o700).with_context(failed)?;
        }
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        let meta = fs::metadata(dir).with_context(failed)?;
        let enters = (meta.uid() == uid.as_raw() && meta.mode() & 0o100 != 0)
            || (meta.gid() == gid.as_raw() && meta.mode() & 0o010 != 0)
            || meta.mode() & 0o001 != 0;
        if !enters {
            let open = opened(dir).with_context(|| {
                format!("`{}` is a link to where the daemon cannot enter: let it in there", dir.display())
            })?;
            fchown(&open, Some(uid.as_raw()), Some(gid.as_raw())).with_context(failed)?;
        }
        Ok(())
    }

    /// A directory that everybody may look into, with those above it.
    pub fn directory(&self, dir: &Path) -> anyhow::Result<()> {
        if dir.as_os_str().is_empty() || dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent() {
            self.directory(parent)?;
        }
        let failed = || format!("failed to make the directory `{}`", dir.display());
        make(dir, 0o755).with_context(failed)
    }

    /// True when it was not there.
    fn write(&mut self, path: &Path, text: &str, mode: u32) -> anyhow::Result<bool> {
        let failed = || format!("failed to write `{}`", path.display());
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        if fs::symlink_metadata(path).is_ok() {
            self.kept.push(path.to_owned());
            return Ok(false);
        }
        let owner = self.owner.filter(|_| mode == 0o600);
        match new(path, text, mode, owner) {
            Ok(()) => {
                self.wrote.push(path.to_owned());
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.kept.push(path.to_owned());
                Ok(false)
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error)
                .with_context(|| format!("{}: run this as root (sudo), or say another place with --config", failed())),
            Err(error) => Err(error).with_context(failed),
        }
    }
}

/// A new directory with this mode, whatever the umask is: never open to more than that in between.
fn make(dir: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().mode(mode).create(dir)?;
    let open = opened(dir)?;
    open.set_permissions(fs::Permissions::from_mode(mode))?;
    open.sync_all()?;
    sync_name(dir)
}

/// A directory itself, and not where a link of that name leads.
fn opened(dir: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits()).open(dir)
}

/// A new file, whole and on disk before it has its name: half a key would be kept for ever.
fn new(path: &Path, text: &str, mode: u32, owner: Option<(Uid, Gid)>) -> io::Result<()> {
    let mut part = Part::beside(path, mode)?;
    part.fill(text.as_bytes())?;
    if let Some((uid, gid)) = owner {
        fchown(&part.file, Some(uid.as_raw()), Some(gid.as_raw()))?;
    }
    part.name(path)
}

#[cfg(test)]
mod tests {
    use nix::unistd::chown;

    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there_and_never_goes_where_a_link_leads() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::default();
        let path = dir.path().join("a/b/key");
        assert!(files.write(&path, "whole", 0o600).unwrap());
        assert_eq!(
            (fs::read_to_string(&path).unwrap().as_str(), fs::metadata(&path).unwrap().mode() & 0o777),
            ("whole", 0o600)
        );
        assert_eq!(fs::read_dir(dir.path().join("a/b")).unwrap().count(), 1);
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().mode() & 0o777, 0o755);
        // Somebody was faster, or has put a link there: what is there stays, and nothing is made behind it.
        assert_eq!(new(&path, "other", 0o600, None).unwrap_err().kind(), ErrorKind::AlreadyExists);
        let link = dir.path().join("a/b/link");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        assert!(!files.write(&link, "x", 0o600).unwrap() && !dir.path().join("elsewhere").exists());
        assert!(new(&link, "x", 0o600, None).is_err() && !dir.path().join("elsewhere").exists());
        assert_eq!(fs::read_dir(dir.path().join("a/b")).unwrap().count(), 2);
        assert!(opened(&link).is_err());
    }

    #[test]
    fn secrets_are_the_daemons_whoever_writes_them_and_their_directory_lets_it_in() {
        if !Uid::effective().is_root() {
            eprintln!("SKIPPED: only root gives files away");
            return;
        }
        let (uid, gid) = (Uid::from_raw(61_234), Gid::from_raw(61_235));
        let dir = tempfile::tempdir().unwrap();
        let secrets = dir.path().join("secrets");
        // As a package might have left it: root's, and nobody else enters.
        fs::create_dir(&secrets).unwrap();
        fs::set_permissions(&secrets, fs::Permissions::from_mode(0o700)).unwrap();
        let mut files = Files { owner: Some((uid, gid)), ..Files::default() };
        assert_eq!(files.secret(&secrets, "shop/url", || Ok("made".to_owned())).unwrap(), "made");
        // What is there is kept, also by one that is asked to make another.
        assert_eq!(files.secret(&secrets, "shop/url", || panic!("it is there")).unwrap(), "made");
        assert_eq!((files.wrote.len(), files.kept.len()), (1, 1));
        for (path, mode) in [("", 0o700), ("shop", 0o700), ("shop/url", 0o600)] {
            let meta = fs::metadata(secrets.join(path)).unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (61_234, 61_235, mode), "{path:?}");
        }
        files.public(&dir.path().join("plugins/projects/shop.lua"), "return 1").unwrap();
        let meta = fs::metadata(dir.path().join("plugins/projects/shop.lua")).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o644));
        // A group that may enter is enough: the package's own way is left alone.
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).unwrap();
        chown(&shared, None, Some(gid)).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o750)).unwrap();
        files.secret(&shared, "one", || Ok("x".to_owned())).unwrap();
        assert_eq!(fs::metadata(&shared).unwrap().uid(), 0);
    }
}
