//! Projects: whether they load, what they need of this machine, and whether anybody is told of anything.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::unistd::{Uid, User};

use super::{Check, Daemon};
use crate::{
    app::{projects, uids},
    config::{Config, Exec, FileSecrets, JOB_SOCKET, JOB_UIDS, SHIPPED_PLUGINS, START_JOB_SOCKET},
    lua::diagnostics,
    ports::{
        program::{Loaded, Programs as _},
        secrets::Secrets,
    },
};

pub(super) fn all(config: &Config, credentials: Option<&Path>, daemon: &Daemon) -> Vec<Check> {
    let mut found = Vec::new();
    // What the package puts there is built in as well.
    let lacks = |dir: &&PathBuf| !dir.is_dir() && dir.as_path() != Path::new(SHIPPED_PLUGINS);
    for dir in config.plugins.iter().filter(lacks) {
        found.push(Check::warn(
            "plugins",
            format!("{} is not there", dir.display()),
            "make it, or take it out of `plugins`",
        ));
    }
    let secrets: Arc<dyn Secrets> = Arc::new(FileSecrets::new(config.secret_dirs(credentials)));
    let loaded = match projects(config, &secrets).load() {
        Ok(loaded) => loaded,
        Err(errors) => {
            let lines: Vec<String> = errors.iter().map(diagnostics::line).collect();
            found.push(Check::fail("projects", lines.join("\n"), "phased check shows each with its lines"));
            Vec::new()
        }
    };
    if found.iter().all(|check| check.check != "projects") {
        let names: Vec<&str> = loaded.iter().map(|one| one.name.as_str()).collect();
        found.push(match names[..] {
            [] => Check::warn("projects", "there are none", "phased init URL writes the first"),
            _ => Check::ok("projects", names.join(", ")),
        });
    }
    found.push(job_users(&config.exec, daemon.uid, job_socket(&config.exec).exists()));
    found.extend(by_ssh(&loaded, config.exec.path.split(':').any(|dir| Path::new(dir).join("ssh").exists())));
    found.extend(loaded.iter().filter_map(|one| told(one.name.as_str(), &one.pipeline.notify.bad)));
    found
}

/// Where the job unit listens: a daemon that is not root has commands run through it.
fn job_socket(exec: &Exec) -> &Path {
    exec.job_socket.as_deref().unwrap_or(Path::new(JOB_SOCKET))
}

pub(super) fn job_users(exec: &Exec, daemon: Uid, there: bool) -> Check {
    if exec.same_user {
        return Check::warn(
            "job users",
            "same_user = true: tests run as the daemon and can read its secrets",
            "trust all code under test, or take it out of [exec]",
        );
    }
    if let Some(name) = &exec.user {
        return match User::from_name(name) {
            Ok(Some(user)) if user.uid.is_root() => {
                Check::fail("job users", format!("[exec] user is {name}, which is root"), "name another user")
            }
            Ok(Some(_)) => Check::ok("job users", format!("all tests run as {name}")),
            _ => Check::fail(
                "job users",
                format!("[exec] user: there is no user {name}"),
                format!("useradd --system {name}"),
            ),
        };
    }
    let uids = exec.uids.unwrap_or(JOB_UIDS);
    let (first, last) = (uids.first, uids.last);
    if !daemon.is_root() && !there {
        return Check::fail(
            "job users",
            format!(
                "the daemon (uid {daemon}) can give tests no user of their own, so none can run: it is not root, and {} is not there",
                job_socket(exec).display()
            ),
            format!("{START_JOB_SOCKET} (of the package), or run the daemon as root"),
        );
    }
    let taken = (first..=last).find_map(|uid| User::from_uid(Uid::from_raw(uid)).ok().flatten());
    match taken {
        Some(user) => Check::fail(
            "job users",
            format!(
                "uid {} of [exec] uids is the user {}: tests would run as somebody who is there already",
                user.uid, user.name
            ),
            "choose a range in which nobody is: uids = \"70000-70999\"",
        ),
        None => match uids::shared(&uids) {
            Some(shared) => Check::warn(
                "job users",
                shared,
                "choose others: uids = \"70000-70999\"; what projects have already is in data_dir/jobs and must be moved away",
            ),
            None => Check::ok("job users", format!("each project's tests run as a uid of {first} to {last}")),
        },
    }
}

/// Git gets at repositories by ssh with the program of that name.
fn by_ssh(loaded: &[Loaded], there: bool) -> Option<Check> {
    let needs = |one: &&Loaded| crate::forge::Git::ssh_server(&one.pipeline.source.git).is_some();
    let project = loaded.iter().find(needs)?;
    Some(ssh(project.name.as_str(), there))
}

pub(super) fn ssh(project: &str, there: bool) -> Check {
    match there {
        true => Check::ok("ssh", "for repositories by ssh"),
        false => Check::fail(
            "ssh",
            format!("the repository of {project} is asked by ssh, and there is no ssh here"),
            "install openssh-client",
        ),
    }
}

/// Whether bad news gets anywhere but into a log.
pub(super) fn told(project: &str, bad: &[String]) -> Option<Check> {
    bad.iter().all(|channel| channel == "log").then(|| {
        Check::warn(
            "notify",
            format!("bad news of {project} goes to the daemon's log only"),
            "add alerts.slack, alerts.email or alerts.webhook to its notify; phased alert test tries it",
        )
    })
}
