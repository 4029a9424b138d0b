//! `phased doctor`: what is wrong with an installation, where, and what to do. It mends nothing, and learns no host's key; what it
//! leaves behind is the command protocol's directory on hosts where phased was never before.
//!
//! ```text
//! files     the data directory, LOCK, secrets, the socket           by looking at the disk
//! machine   programs, room, clock, files that may be open, systemd, the port
//! code      projects, their secrets, as whom their tests run, who is told
//! ```
//! What only the daemon knows is asked of it, where it answers ([`crate::cli::doctor`]).

mod code;
mod files;
mod machine;
#[cfg(test)]
mod tests;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::unistd::{Uid, User};
use serde::Serialize;

use crate::{
    api::text::printable,
    cli::{self, ClientArgs, DoctorArgs},
    config::Config,
};

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Warn,
    /// It does not work, or is not safe.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is about: `config`, `secrets`, `host`.
    pub check: &'static str,
    /// How it is.
    pub state: State,
    /// What was found, and where.
    pub what: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
}

impl Check {
    /// All is well.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Check { check, state: State::Ok, what: what.into(), todo: None }
    }

    /// Somebody should look.
    pub fn warn(check: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Check { check, state: State::Warn, what: what.into(), todo: Some(todo.into()) }
    }

    /// It is broken.
    pub fn fail(check: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Check { check, state: State::Fail, what: what.into(), todo: Some(todo.into()) }
    }
}

/// As whom the daemon runs, or would run.
#[derive(Debug, Clone)]
struct Daemon {
    uid: Uid,
    name: String,
    /// The process that has the data directory.
    pid: Option<u32>,
}

impl Daemon {
    /// The owner of the process that runs; else the package's user; else, for whoever is not root and cannot see that, the owner of the
    /// data directory; else whoever asks.
    fn find(pid: Option<u32>, data: &Path) -> Daemon {
        use std::os::unix::fs::MetadataExt as _;
        let running =
            pid.and_then(|pid| std::fs::metadata(format!("/proc/{pid}")).ok()).map(|meta| Uid::from_raw(meta.uid()));
        let packaged = || User::from_name("phased").ok().flatten().map(|user| user.uid);
        let owner = || {
            std::fs::metadata(data).ok().map(|meta| Uid::from_raw(meta.uid())).filter(|_| !Uid::effective().is_root())
        };
        let uid = running.or_else(packaged).or_else(owner).unwrap_or_else(Uid::effective);
        let name = User::from_uid(uid).ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name);
        Daemon { uid, name, pid }
    }
}

/// Looks at everything; exit code 1 when something fails.
pub fn run(args: &DoctorArgs, client: &ClientArgs) -> ExitCode {
    let mut found = Vec::new();
    let mut asked = client.clone();
    match Config::load(&args.config) {
        Err(error) => {
            found.push(Check::fail("config", error.to_string(), "mend the file, or say with --config where it is"))
        }
        Ok(config) => {
            found.push(Check::ok("config", args.config.display().to_string()));
            if client.addr == cli::DEFAULT_ADDR {
                asked.addr = format!("unix://{}", config.api.socket.display());
            }
            offline(&config, &mut found);
        }
    }
    if !args.offline {
        let expected = found.iter().any(|check| check.check == "lock" && check.what.starts_with("held"));
        found.extend(cli::doctor::ask(&asked, expected));
    }
    let worst = found.iter().map(|check| check.state).max().unwrap_or(State::Ok);
    match client.json {
        true => println!("{}", serde_json::json!({ "state": worst, "checks": found })),
        false => print!("{}", text(&found)),
    }
    if worst == State::Fail { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

fn offline(config: &Config, found: &mut Vec<Check>) {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let (lock, pid) = files::lock(&config.data_dir);
    let daemon = Daemon::find(pid, &config.data_dir);
    found.push(Check::ok(
        "user",
        format!("the daemon {} {}", if pid.is_some() { "runs as" } else { "would run as" }, daemon.name),
    ));
    found.push(lock);
    found.extend(files::data_dir(&config.data_dir, &daemon));
    found.extend(files::secrets(&config.secrets.dir, &daemon));
    found.extend(files::socket(&config.api.socket, &daemon));
    found.extend(machine::all(config, &daemon));
    found.extend(code::all(config, credentials.as_deref(), &daemon));
}

/// A line a check, and what to do beneath it.
fn text(found: &[Check]) -> String {
    let mut out = String::new();
    for check in found {
        let state = match check.state {
            State::Ok => "ok  ",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        let mut lines = check.what.lines();
        let _infallible = writeln!(out, "{state}  {:<12} {}", check.check, lines.next().unwrap_or_default());
        lines.for_each(|line| out.push_str(&format!("                   {line}\n")));
        if let Some(todo) = &check.todo {
            let _infallible = writeln!(out, "                   -> {todo}");
        }
    }
    let count = |state| found.iter().filter(|check| check.state == state).count();
    let (warned, failed) = (count(State::Warn), count(State::Fail));
    let _infallible = match (warned, failed) {
        (0, 0) => writeln!(out, "\nAll is well: {} checks.", found.len()),
        _ => writeln!(
            out,
            "\n{}: {failed} failed, {warned} to look at.",
            crate::api::render::count(found.len(), "check")
        ),
    };
    printable(&out)
}
