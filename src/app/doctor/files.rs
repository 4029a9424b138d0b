//! What lies on the disk: whose it is, and who can get at it.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::Group,
};

use super::{Check, Daemon};
use crate::config::is_secret_name;

/// Who has the data directory, and its process.
pub(super) fn lock(data: &Path) -> (Check, Option<u32>) {
    let path = data.join("LOCK");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return (
                Check::warn(
                    "lock",
                    format!("{} cannot be read by this user", path.display()),
                    "run doctor as root, for all of it",
                ),
                None,
            );
        }
        Err(_) => return (Check::ok("lock", format!("free: no daemon has used {} yet", data.display())), None),
    };
    let mut text = String::new();
    let _said_below = (&mut file).take(200).read_to_string(&mut text);
    // Shared, and given back at once: it says whether somebody has it and takes it from nobody.
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => (Check::ok("lock", format!("free: no daemon runs on {}", data.display())), None),
        Err((_, Errno::EWOULDBLOCK)) => {
            let pid = text.strip_prefix("pid ").and_then(|rest| rest.split(' ').next()?.parse().ok());
            (Check::ok("lock", format!("held by {}", text.lines().next().unwrap_or("somebody"))), pid)
        }
        Err((_, errno)) => (
            Check::fail(
                "lock",
                format!("{} cannot be locked: {errno}", path.display()),
                "data_dir must be on a local file system with locks",
            ),
            None,
        ),
    }
}

/// Directories that nobody but the daemon may look into.
const PRIVATE: &[&str] = &["journal", "blobs", "code", "state"];

pub(super) fn data_dir(data: &Path, daemon: &Daemon) -> Vec<Check> {
    let meta = match fs::metadata(data) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return vec![Check::warn(
                "data_dir",
                format!("{} is not there yet", data.display()),
                format!(
                    "the daemon makes it at its first start, if it may; else: install -d -m 0711 -o {} {}",
                    daemon.name,
                    data.display()
                ),
            )];
        }
        Err(error) => {
            return vec![Check::fail("data_dir", format!("{}: {error}", data.display()), "run doctor as root")];
        }
    };
    let mut found = Vec::new();
    let mut wrong = |path: &Path, meta: &fs::Metadata, private: bool| {
        if !meta.is_dir() {
            found.push(Check::fail("data_dir", format!("{} is no directory", path.display()), "move it away"));
            return;
        }
        if meta.uid() != daemon.uid.as_raw() {
            let what = format!("{} belongs to uid {}, and the daemon is {}", path.display(), meta.uid(), daemon.name);
            // Root works in it all the same, as where the package has made it for the user of its unit and an init script starts root.
            if !daemon.uid.is_root() {
                let todo = format!("chown -R {} {}", daemon.name, path.display());
                found.push(Check::fail("data_dir", what, todo));
                return;
            }
            let todo = format!("let nobody work as that user, or: chown root {}", path.display());
            found.push(Check::warn("data_dir", what, todo));
        }
        if private && meta.mode() & 0o077 != 0 {
            let what = format!(
                "{} has mode {:04o}: others can look at what only the daemon may",
                path.display(),
                meta.mode() & 0o7777
            );
            found.push(Check::fail("data_dir", what, format!("chmod 700 {}", path.display())));
        } else if meta.mode() & 0o022 != 0 {
            let what = format!("{} has mode {:04o}: others can put things there", path.display(), meta.mode() & 0o7777);
            found.push(Check::fail("data_dir", what, format!("chmod 711 {}", path.display())));
        }
    };
    wrong(data, &meta, false);
    for name in PRIVATE {
        let path = data.join(name);
        if let Ok(meta) = fs::metadata(&path) {
            wrong(&path, &meta, true);
        }
    }
    if found.is_empty() {
        found.push(Check::ok("data_dir", data.display().to_string()));
    }
    found
}

pub(super) fn secrets(dir: &Path, daemon: &Daemon) -> Vec<Check> {
    let entries = match fs::metadata(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return vec![Check::warn(
                "secrets",
                format!("{} is not there", dir.display()),
                format!("install -d -m 0700 -o {} {}", daemon.name, dir.display()),
            )];
        }
        Err(error) => return vec![Check::fail("secrets", format!("{}: {error}", dir.display()), "run doctor as root")],
        Ok(meta) => {
            let mine = meta.uid() == daemon.uid.as_raw() || daemon.uid.is_root();
            if meta.mode() & 0o022 != 0 {
                let what =
                    format!("{} has mode {:04o}: others can put secrets there", dir.display(), meta.mode() & 0o7777);
                return vec![Check::fail("secrets", what, format!("chmod 700 {}", dir.display()))];
            }
            if !mine && meta.mode() & 0o011 == 0 {
                let what = format!(
                    "{} belongs to uid {}, and the daemon ({}) cannot enter it",
                    dir.display(),
                    meta.uid(),
                    daemon.name
                );
                return vec![Check::fail("secrets", what, format!("chown -R {} {}", daemon.name, dir.display()))];
            }
            below(dir, Path::new(""))
        }
    };
    let names = match entries {
        Ok(names) => names,
        Err(error) => return vec![Check::fail("secrets", format!("{}: {error}", dir.display()), "run doctor as root")],
    };
    let mut found = Vec::new();
    for name in &names {
        let path = dir.join(name);
        let Ok(meta) = fs::metadata(&path) else { continue };
        if !name.to_str().is_some_and(is_secret_name) {
            let what = format!("{} has a name that no secret can have, so no project can use it", path.display());
            found.push(Check::warn("secrets", what, "rename it: parts of A-Z a-z 0-9 . _ - joined by /"));
        } else if meta.mode() & 0o077 != 0 {
            let what = format!(
                "{} has mode {:04o}: others than its owner can get at it, so it is not used",
                path.display(),
                meta.mode() & 0o7777
            );
            found.push(Check::fail("secrets", what, format!("chmod 600 {}", path.display())));
        } else if meta.uid() != daemon.uid.as_raw() && !daemon.uid.is_root() {
            let what = format!(
                "{} belongs to uid {}, and the daemon ({}) cannot read it",
                path.display(),
                meta.uid(),
                daemon.name
            );
            found.push(Check::fail("secrets", what, format!("chown {} {}", daemon.name, path.display())));
        } else if meta.len() < 8 {
            let what = format!(
                "{} has {} bytes: too few to be kept out of logs, so it is not used",
                path.display(),
                meta.len()
            );
            found.push(Check::fail("secrets", what, "use a longer one, at least 8 bytes"));
        }
    }
    if found.is_empty() {
        found.push(Check::ok("secrets", format!("{}, {} files", dir.display(), names.len())));
    }
    found
}

/// Every file below `dir`, by its name there.
fn below(dir: &Path, prefix: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = prefix.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => names.extend(below(&entry.path(), &name)?),
            false => names.push(name),
        }
    }
    names.sort();
    Ok(names)
}

pub(super) fn socket(socket: &Path, daemon: &Daemon) -> Vec<Check> {
    let mut found = Vec::new();
    let parent = socket.parent().unwrap_or(Path::new("/"));
    match fs::metadata(parent) {
        Err(_) if daemon.uid.is_root() => {}
        Err(_) => {
            let what = format!("{} is not there, where the socket is to be", parent.display());
            found.push(Check::warn(
                "socket",
                what,
                format!(
                    "systemd makes it (RuntimeDirectory); by hand: install -d -o {} {}",
                    daemon.name,
                    parent.display()
                ),
            ));
        }
        Ok(meta) if meta.mode() & 0o002 != 0 && meta.mode() & 0o1000 == 0 => {
            let what =
                format!("{} can be written by everybody: somebody else's socket could stand there", parent.display());
            found.push(Check::fail("socket", what, format!("chmod 755 {}", parent.display())));
        }
        Ok(meta) if meta.uid() != daemon.uid.as_raw() && !daemon.uid.is_root() && meta.uid() != 0 => {
            let what = format!(
                "{} belongs to uid {}, and the daemon ({}) is to make its socket there",
                parent.display(),
                meta.uid(),
                daemon.name
            );
            found.push(Check::fail("socket", what, format!("chown {} {}", daemon.name, parent.display())));
        }
        Ok(_) => {}
    }
    if let Ok(meta) = fs::symlink_metadata(socket) {
        if !meta.file_type().is_socket() {
            found.push(Check::fail(
                "socket",
                format!("{} is there and is no socket", socket.display()),
                "move it away; the daemon makes its own",
            ));
        } else if meta.mode() & 0o007 != 0 {
            let what = format!(
                "{} has mode {:04o}: everybody on this machine may use the daemon",
                socket.display(),
                meta.mode() & 0o7777
            );
            found.push(Check::fail("socket", what, format!("chmod 660 {}", socket.display())));
        }
    }
    if matches!(Group::from_name("phased"), Ok(None)) {
        found.push(Check::warn(
            "socket",
            "there is no group phased: only root may use the daemon",
            "groupadd --system phased, and restart the daemon",
        ));
    }
    if found.is_empty() {
        found.push(Check::ok("socket", socket.display().to_string()));
    }
    found
}
