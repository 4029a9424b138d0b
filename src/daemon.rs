//! Into the background, for classic init systems: before any thread exists.
//!
//! The crate `daemonize` forks and detaches; what it lacks is done here: supplementary groups (it would keep root's), and a parent
//! that waits until the daemon answers, so that its exit code is the truth.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::unistd::{User, initgroups, setgid, setuid};

/// The daemon's end of the pipe to the waiting parent.
pub struct Parent {
    pipe: File,
}

impl Parent {
    /// The daemon answers: the parent ends with 0.
    pub fn ready(mut self) {
        let _parent_gone = self.pipe.write_all(b"ready\n");
    }

    /// It did not start: the parent prints `why` and ends with 1.
    pub fn failed(mut self, why: &str) {
        let _parent_gone = self.pipe.write_all(why.as_bytes());
    }
}

/// What to do in the background.
#[derive(Debug, Clone)]
pub struct Background {
    /// Gets the process id.
    pub pid_file: Option<PathBuf>,
    /// Become this user.
    pub user: Option<String>,
    /// Where what is logged goes.
    pub log: PathBuf,
}

/// Goes into the background. Returns in the daemon only; the calling process ends with 0 once the daemon is ready, else prints why
/// it is not and ends with 1.
///
/// # Errors
/// Before the fork: the user is unknown, a file cannot be opened, we may not become that user.
pub fn go(background: &Background) -> anyhow::Result<Parent> {
    let user = background.user.as_deref().map(find).transpose()?;
    let (read, write) = nix::unistd::pipe().context("failed to make a pipe")?;
    let log = append(&background.log)?;
    let mut daemon = daemonize::Daemonize::new().working_directory("/").umask(0o027).stderr(log);
    if let Some(pid_file) = &background.pid_file {
        daemon = daemon.pid_file(pid_file);
    }
    match daemon.execute() {
        daemonize::Outcome::Parent(_) => {
            drop(write);
            wait(read)
        }
        daemonize::Outcome::Child(outcome) => {
            drop(read);
            let parent = Parent { pipe: File::from(write) };
            let became = outcome.map_err(anyhow::Error::from).and_then(|_| become_user(background, user));
            match became {
                Ok(()) => Ok(parent),
                Err(error) => {
                    parent.failed(&format!("{error:#}"));
                    std::process::exit(1);
                }
            }
        }
    }
}

fn find(name: &str) -> anyhow::Result<User> {
    User::from_name(name)?.with_context(|| format!("--user: there is no user {name:?} on this machine"))
}

fn append(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.with_context(|| format!("failed to open the log `{}`", path.display()))
}

/// All three, in this order: groups and gid cannot be set any more once the uid is not root's.
fn become_user(background: &Background, user: Option<User>) -> anyhow::Result<()> {
    let Some(user) = user else { return Ok(()) };
    let name = std::ffi::CString::new(user.name.clone())?;
    for path in background.pid_file.iter().chain([&background.log]) {
        nix::unistd::chown(path, Some(user.uid), Some(user.gid))?;
    }
    initgroups(&name, user.gid).context("failed to set the supplementary groups")?;
    setgid(user.gid).context("failed to set the group")?;
    setuid(user.uid).context("failed to set the user")?;
    Ok(())
}

/// The parent: ends with what the daemon says.
fn wait(read: OwnedFd) -> ! {
    let mut said = String::new();
    let _what_came = File::from(read).read_to_string(&mut said);
    if said == "ready\n" {
        std::process::exit(0);
    }
    let said = if said.is_empty() { "the daemon ended without a word; look at its log".to_owned() } else { said };
    eprintln!("phased: {}", said.trim_end());
    std::process::exit(1)
}
