//! The machine: programs, room, clock, limits, systemd, the port.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::statvfs::statvfs;

use super::{Check, Daemon};
use crate::{
    cli,
    config::{Config, Limits},
    forge::{OLDEST_GIT, git_is_new_enough},
    service,
};

/// How long whoever has the port may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Below the reserve and its spare nothing new begins.
const LEAST_ROOM: u64 = 24 << 20;
/// Below this it will soon be so.
const LITTLE_ROOM: u64 = 1 << 30;

pub(super) fn all(config: &Config, daemon: &Daemon) -> Vec<Check> {
    let path = config.exec.path.clone();
    let mut found = vec![git(said("git", &["--version"]).as_deref())];
    found.push(tools(&|program| path.split(':').any(|dir| Path::new(dir).join(program).exists())));
    if let Some(here) = config.data_dir.ancestors().find(|dir| dir.exists())
        && let Ok(stat) = statvfs(here)
    {
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        found.push(room(here, free, stat.files_available(), stat.files()));
    }
    found.push(clock(said("timedatectl", &["show", "-p", "NTPSynchronized", "--value"]).as_deref()));
    found.push(open_files(files_limit(daemon), &config.limits));
    if service::is_systemd_here() {
        let properties = "LoadState,ActiveState,SubState,NRestarts,UnitFileState,NeedDaemonReload";
        found.push(systemd(
            said("systemctl", &["show", "phased.service", "-p", properties]).as_deref().unwrap_or_default(),
        ));
    }
    found.extend(
        config
            .api
            .listen
            .map(|addr| port(addr, daemon.pid.is_some(), config.api.tls.as_ref().map(|tls| tls.cert.as_path()))),
    );
    found
}

/// What a program says; `None` when it is not there or fails.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).env("LC_ALL", "C").stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub(super) fn git(said: Option<&str>) -> Check {
    let todo = format!("install git {OLDEST_GIT} or newer");
    let Some(said) = said else { return Check::fail("git", "there is no git on this machine", todo) };
    if git_is_new_enough(said) {
        Check::ok("git", said)
    } else {
        Check::fail("git", format!("{said} is too old"), todo)
    }
}

pub(super) fn tools(there: &dyn Fn(&str) -> bool) -> Check {
    let missing: Vec<&str> =
        ["sh", "flock", "setsid", "env", "stat", "dd", "head"].into_iter().filter(|program| !there(program)).collect();
    if missing.is_empty() {
        return Check::ok("programs", "what commands on this machine need is there");
    }
    Check::fail(
        "programs",
        format!("{} missing in [exec] path: no test can run here", missing.join(", ")),
        "install coreutils and util-linux",
    )
}

pub(super) fn room(dir: &Path, free: u64, inodes: u64, all_inodes: u64) -> Check {
    let what = format!("{} MiB free below {}", free >> 20, dir.display());
    let todo = "make room, or lower [retention] quota";
    // Some file systems count no inodes.
    if all_inodes > 0 && inodes < 1000 {
        return Check::fail(
            "disk",
            format!("{what}, and only {inodes} inodes"),
            "remove files: there can be no new ones",
        );
    }
    match free {
        0..LEAST_ROOM => Check::fail("disk", format!("{what}: nothing new is begun"), todo),
        LEAST_ROOM..LITTLE_ROOM => Check::warn("disk", what, todo),
        _ => Check::ok("disk", what),
    }
}

pub(super) fn clock(synchronised: Option<&str>) -> Check {
    match synchronised {
        Some("yes") => Check::ok("clock", "synchronised"),
        Some("no") => Check::warn(
            "clock",
            "not synchronised: freezes, tokens and signals go by it, and so do the numbers that keep an old daemon off hosts",
            "timedatectl set-ntp true, or run chrony",
        ),
        _ => Check::ok("clock", "whether it is synchronised cannot be told here (no timedatectl)"),
    }
}

/// How many files the daemon may have open.
fn files_limit(daemon: &Daemon) -> Option<u64> {
    if let Some(pid) = daemon.pid {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
        return line.split_whitespace().nth(3)?.parse().ok();
    }
    service::limits::open_files()
}

pub(super) fn open_files(limit: Option<u64>, limits: &Limits) -> Check {
    let Some(limit) = limit else { return Check::ok("open files", "the limit cannot be told") };
    match service::limits::too_few(limits, limit) {
        None => {
            let needed = service::limits::needed(limits);
            Check::ok("open files", format!("{limit} may be, {needed} may be needed"))
        }
        Some((what, todo)) => Check::warn("open files", what, todo),
    }
}

pub(super) fn systemd(show: &str) -> Check {
    let of = |name: &str| show.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
    let restarts: u32 = of("NRestarts").parse().unwrap_or(0);
    match (of("LoadState"), of("ActiveState")) {
        ("not-found" | "", _) => Check::ok("systemd", "there is no unit phased.service"),
        (_, "failed") => Check::fail(
            "systemd",
            "phased.service has failed",
            "journalctl -u phased -n 50, then systemctl restart phased",
        ),
        (_, "activating") if restarts > 0 => Check::fail(
            "systemd",
            format!("phased.service does not come up ({restarts} restarts)"),
            "journalctl -u phased -n 50",
        ),
        _ if of("NeedDaemonReload") == "yes" => Check::warn(
            "systemd",
            "the unit was changed and systemd has not read it",
            "systemctl daemon-reload, then systemctl restart phased",
        ),
        (_, "active") if restarts > 3 => Check::warn(
            "systemd",
            format!("phased.service was restarted {restarts} times"),
            "journalctl -u phased says why",
        ),
        (_, "active") if of("UnitFileState") == "disabled" => {
            Check::warn("systemd", "phased.service runs, and would not after a reboot", "systemctl enable phased")
        }
        (_, "active") => Check::ok("systemd", "phased.service is active"),
        (_, other) => Check::warn("systemd", format!("phased.service is {other}"), "systemctl enable --now phased"),
    }
}

/// Asked by a connection, never by binding it: a daemon that starts in this moment is to find it free. `tls`: the certificate it shows.
pub(super) fn port(addr: SocketAddr, runs: bool, tls: Option<&Path>) -> Check {
    if addr.port() == 0 {
        return Check::ok("port", "any that is free");
    }
    let who = format!("ss -ltnp 'sport = :{}' says who has it; or change listen in [api]", addr.port());
    match (TcpStream::connect_timeout(&addr, PATIENCE), runs) {
        (Err(_), false) => Check::ok("port", format!("nobody listens on {addr}")),
        (Err(error), true) => Check::warn(
            "port",
            format!("the daemon runs and does not listen on {addr}: {error}"),
            "it was started with another configuration: restart it",
        ),
        (Ok(_), false) => Check::fail("port", format!("{addr} cannot be had: somebody listens there"), who),
        (Ok(stream), true) => match healthy(stream, tls) {
            Ok(()) => Check::ok("port", format!("the daemon answers at {addr}")),
            Err(error) => {
                Check::fail("port", format!("what listens on {addr} is no phased that is well: {error}"), who)
            }
        },
    }
}

/// `GET /healthz`.
fn healthy(stream: TcpStream, tls: Option<&Path>) -> Result<(), String> {
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    let said = match tls {
        None => ask(stream).map_err(|error| error.to_string())?,
        Some(cert) => ask(cli::tls::over(stream, cert)?).map_err(|error| error.to_string())?,
    };
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().next().unwrap_or_default();
    if line.starts_with("HTTP/1.1 200") && said.ends_with("ok\n") {
        return Ok(());
    }
    Err(format!("it says {line:?}"))
}

fn ask(mut stream: impl Read + Write) -> std::io::Result<Vec<u8>> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut said = Vec::new();
    match stream.take(4096).read_to_end(&mut said) {
        // Not everybody who speaks TLS says goodbye.
        Err(error) if said.is_empty() || error.kind() != std::io::ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(said),
    }
}
