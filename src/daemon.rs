//! Into the background, for classic init systems: before any thread exists.
//!
//! The crate `daemonize` forks and detaches; what it lacks is done here: supplementary groups (it would keep root's), a pid file that
//! root may trust, and a parent that waits until the daemon answers, so that its exit code is the truth.

mod pid_file;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::{
    fcntl::OFlag,
    unistd::{User, initgroups, setgid, setuid},
};

use crate::telemetry::file::LogFile;
use pid_file::PidFile;

/// The daemon, in the background.
pub struct Daemon {
    /// The pipe to the waiting parent, until that has been told.
    parent: Option<File>,
    pid_file: Option<PidFile>,
}

impl Daemon {
    /// It answers: it may be sent signals, and the parent ends with 0.
    ///
    /// # Errors
    /// The pid file cannot be written.
    pub fn ready(&mut self) -> anyhow::Result<()> {
        if let Some(pid_file) = &mut self.pid_file {
            pid_file.write()?;
        }
        self.tell(b"ready\n");
        Ok(())
    }

    /// It ends. If it never was ready, the parent prints `why` and ends with 1.
    pub fn ended(mut self, why: Option<&str>) {
        self.tell(why.unwrap_or("it was told to end before it was ready").as_bytes());
        if let Some(pid_file) = self.pid_file {
            pid_file.clear();
        }
    }

    fn tell(&mut self, what: &[u8]) {
        if let Some(mut parent) = self.parent.take() {
            let _parent_gone = parent.write_all(what);
        }
    }
}

/// What to do in the background.
#[derive(Debug, Clone)]
pub struct Background {
    /// Gets the process id.
    pub pid_file: Option<PathBuf>,
    /// Become this user.
    pub user: Option<String>,
    /// Where what is logged goes; that user opens it.
    pub log: LogFile,
    /// Directories that user needs: those that are missing are made for it.
    pub dirs: Vec<PathBuf>,
}

/// Goes into the background. Returns in the daemon only; the calling process ends with 0 once the daemon is ready, else prints why
/// it is not and ends with 1.
///
/// # Errors
/// Before the fork: the user is unknown, a daemon runs already, a file cannot be opened.
pub fn go(background: &Background) -> anyhow::Result<Daemon> {
    let user = background.user.as_deref().map(find).transpose()?;
    let pid_file = background.pid_file.as_deref().map(PidFile::take).transpose()?;
    background.dirs.iter().try_for_each(|dir| provide(dir, user.as_ref()))?;
    // Closed in every command: one that outlives the daemon's start must not keep the parent waiting.
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("failed to make a pipe")?;
    // The usual umask: what is private is made so by name, and test commands get what they would get anywhere.
    match daemonize::Daemonize::new().working_directory("/").umask(0o022).execute() {
        daemonize::Outcome::Parent(_) => {
            drop(write);
            // The lock of the pid file is the daemon's now: this process only closes it, at its end.
            wait(read)
        }
        daemonize::Outcome::Child(outcome) => {
            drop(read);
            let mut parent = File::from(write);
            let done = outcome.map_err(anyhow::Error::from).and_then(|_| settle(background, user));
            match done {
                Ok(()) => Ok(Daemon { parent: Some(parent), pid_file }),
                Err(error) => {
                    let _parent_gone = parent.write_all(format!("{error:#}").as_bytes());
                    std::process::exit(1);
                }
            }
        }
    }
}

fn find(name: &str) -> anyhow::Result<User> {
    User::from_name(name)?.with_context(|| format!("--user: there is no user {name:?} on this machine"))
}

/// Makes `dir` for `user` if it is missing. One that is there is whosever it is.
fn provide(dir: &Path, user: Option<&User>) -> anyhow::Result<()> {
    if dir.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(dir).with_context(|| format!("failed to make `{}`", dir.display()))?;
    if let Some(user) = user {
        // What was made just now, and not what a link has put in its place since.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_DIRECTORY;
        let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(dir);
        opened
            .and_then(|made| std::os::unix::fs::fchown(made, Some(user.uid.as_raw()), Some(user.gid.as_raw())))
            .with_context(|| format!("failed to give `{}` to {}", dir.display(), user.name))?;
    }
    Ok(())
}

/// What the process does once it is in the background. The pid file stays root's, so that whoever reads it to send a signal may trust it;
/// the log is opened by the user who writes it, who could have root open another file otherwise.
fn settle(background: &Background, user: Option<User>) -> anyhow::Result<()> {
    become_user(user)?;
    background.log.begin()?;
    Ok(())
}

/// All three, in this order: groups and gid cannot be set any more once the uid is not root's.
fn become_user(user: Option<User>) -> anyhow::Result<()> {
    let Some(user) = user else { return Ok(()) };
    let name = std::ffi::CString::new(user.name.clone())?;
    initgroups(&name, user.gid).context("failed to set the supplementary groups: --user needs root")?;
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
