//! One git process: an argument vector, an environment of its own, a deadline, bounded output.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::time::{Clock, within};

/// Standard output beyond this is refused: a listing of paths of the largest repositories is a tenth of it.
const MAX_OUT: usize = 64 * 1024 * 1024;
/// Of standard error the end is kept: git says last what stopped it.
const MAX_ERR: usize = 16 * 1024;
/// How long git may take to remove its lock files once asked to end.
const GRACE: Duration = Duration::from_secs(2);

/// What is run.
#[derive(Debug)]
pub(super) struct Command {
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    config: Vec<(String, String)>,
    stdin: Vec<u8>,
    /// What it writes has the modes that a commit says, and not those of a daemon which keeps all it writes to itself.
    plain_modes: bool,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// By itself; a signal counts as code -1.
    Exit { code: i32, out: Vec<u8>, err: String },
    /// It took longer than its limit and was killed with all it had started.
    TimedOut,
    /// It could not be started, or its pipes failed, or it printed more than 64 MiB.
    Broken(std::io::Error),
}

/// Where git is. std forks for a program that has yet to be looked for in a `PATH` which is not its own, and a fork copies the tables of all
/// the daemon's memory; for one that is named by its place it does not.
fn git(path: &OsStr) -> PathBuf {
    let found = std::env::split_paths(path).map(|dir| dir.join("git")).find(|file| file.is_file());
    found.unwrap_or_else(|| PathBuf::from("git"))
}

impl Command {
    /// `git` with nothing of the daemon's environment but `PATH`, no prompts, no hooks, no configuration but ours.
    pub(super) fn new(home: &std::path::Path) -> Self {
        let (args, env, config, stdin) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut command = Command { args, env, config, stdin, plain_modes: false };
        for (name, value) in [
            ("GIT_TERMINAL_PROMPT", "0"),
            // Present and empty: no askpass program runs.
            ("GIT_ASKPASS", ""),
            ("SSH_ASKPASS", ""),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_PAGER", "cat"),
            ("LC_ALL", "C"),
        ] {
            command = command.env(name, value);
        }
        command = command.env("HOME", home).env("XDG_CONFIG_HOME", home);
        for (key, value) in [
            ("protocol.allow", "never"),
            ("protocol.version", "2"),
            ("core.hooksPath", "/dev/null"),
            ("core.fsmonitor", "false"),
            ("core.askPass", ""),
            ("credential.helper", ""),
            ("submodule.recurse", "false"),
            ("fetch.recurseSubmodules", "false"),
            ("transfer.fsckObjects", "true"),
            // Old and harmless slips that well-known repositories have in their history.
            ("fetch.fsck.zeroPaddedFilemode", "ignore"),
            ("fetch.fsck.badTimezone", "ignore"),
            ("fetch.fsck.missingSpaceBeforeDate", "ignore"),
            ("fetch.fsck.missingSpaceBeforeEmail", "ignore"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            ("advice.detachedHead", "false"),
            ("http.lowSpeedLimit", "1000"),
            ("http.lowSpeedTime", "30"),
        ] {
            command = command.config(key, value);
        }
        command
    }

    pub(super) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(super) fn args<const N: usize>(mut self, args: [&str; N]) -> Self {
        self.args.extend(args.map(OsString::from));
        self
    }

    pub(super) fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// A configuration value of this process only, through its environment: neither in its arguments nor on disk.
    pub(super) fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.push((key.into(), value.into()));
        self
    }

    /// With umask 022, whatever the daemon's is: 0644 and 0755, as in every checkout of that commit.
    pub(super) fn plain_modes(mut self) -> Self {
        self.plain_modes = true;
        self
    }

    pub(super) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Runs it for at most `limit`. Dropping the future kills the process and all it has started.
    pub(super) async fn run(self, clock: &dyn Clock, limit: Duration) -> Ended {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let mut command = if self.plain_modes {
            // The umask is the whole process's: only a child can have another one.
            let mut shell = tokio::process::Command::new("/bin/sh");
            shell.args(["-c", "umask 022 && exec git \"$@\"", "git"]);
            shell
        } else {
            tokio::process::Command::new(git(&path))
        };
        command.args(&self.args).env_clear().env("PATH", path).envs(self.env).current_dir("/");
        command.env("GIT_CONFIG_COUNT", self.config.len().to_string());
        for (i, (key, value)) in self.config.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{i}"), key).env(format!("GIT_CONFIG_VALUE_{i}"), value);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Ended::Broken(error),
        };
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        let (mut stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let talk = async {
            let feed = async {
                if let Some(pipe) = &mut stdin {
                    // A git that ends before it has read everything says why in its exit code.
                    let _closed = pipe.write_all(&self.stdin).await;
                }
                drop(stdin.take());
            };
            let ((), out, err) = tokio::join!(feed, all(out), tail(err));
            let status = child.wait().await?;
            Ok::<_, std::io::Error>((status.code().unwrap_or(-1), out?, err?))
        };
        let mut talk = std::pin::pin!(talk);
        let done = within(clock, limit, &mut talk).await;
        match done {
            Some(Ok((code, out, err))) => {
                group.finished();
                Ended::Exit { code, out, err }
            }
            Some(Err(error)) => Ended::Broken(error),
            None => {
                group.signal(Signal::SIGTERM);
                let _whatever = within(clock, GRACE, &mut talk).await;
                Ended::TimedOut
            }
        }
    }
}

/// The process group of a running git; killed when dropped.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            let _gone = killpg(group, signal);
        }
    }

    /// It has ended and its pipes are closed: nothing of it is left.
    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

async fn all(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MAX_OUT as u64 + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() > MAX_OUT {
        return Err(std::io::Error::other("git printed more than 64 MiB"));
    }
    Ok(bytes)
}

async fn tail(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let Some(mut pipe) = pipe else { return Ok(String::new()) };
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 8192]);
    loop {
        let n = pipe.read(&mut buffer).await?;
        if n == 0 {
            return Ok(String::from_utf8_lossy(&kept).into_owned());
        }
        kept.extend_from_slice(buffer.get(..n).unwrap_or_default());
        if kept.len() > 2 * MAX_ERR {
            kept.drain(..kept.len() - MAX_ERR);
        }
    }
}
