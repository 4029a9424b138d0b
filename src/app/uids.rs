//! As whom local commands run: a uid of its own for every project, assigned once and kept in control.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    os::unix::fs::FileTypeExt as _,
    sync::{Arc, Mutex},
};

use nix::unistd::{Uid, User};
use serde_json::{Value, json};

use crate::{
    config::{Exec, JOB_SOCKET, JOB_UIDS, START_JOB_SOCKET, UidRange},
    exec::{JobUsers, Uids, Way},
    lifecycle::locks::locked,
    model::ids::ProjectName,
    ports::control::{Commit, Control},
    service,
};

/// Who starts local commands on this machine.
pub(super) fn way(exec: &Exec) -> Way {
    let socket = std::fs::metadata(JOB_SOCKET).is_ok_and(|meta| meta.file_type().is_socket());
    choose(exec, Uid::effective().is_root(), service::is_systemd_here() || socket)
}

/// Says what is not as it should be, and who starts local commands.
pub(super) fn say(exec: &Exec, way: &Way) {
    match way {
        Way::Unit(socket) if socket.exists() => {
            tracing::info!(socket = %socket.display(), "local commands are started by the job unit");
        }
        Way::Unit(socket) => tracing::warn!(
            socket = %socket.display(),
            "local commands are started by the job unit, and its socket is not there: they wait for it and then fail; `{START_JOB_SOCKET}`"
        ),
        Way::Daemon => {}
    }
    if let Some(shared) = exec.uids.filter(|_| exec.user.is_none()).and_then(|uids| shared(&uids)) {
        tracing::warn!("{shared}; choose others");
    }
}

/// What is wrong with `uids` where some of them are systemd's for `DynamicUser=` (<https://systemd.io/UIDS-GIDS/>).
pub(super) fn shared(uids: &UidRange) -> Option<String> {
    let UidRange { first, last } = uids;
    (*first <= 65_519 && *last >= 61_184).then(|| {
        format!(
            "uids {first} to {last} of [exec] reach into those that systemd gives to services with DynamicUser= (61184 to 65519): a project \
             and a service can get the same one"
        )
    })
}

/// The job unit where the configuration names its socket, and for a daemon without rights wherever there can be one: a socket that is not
/// there just now is no reason to run code under test as the daemon.
fn choose(exec: &Exec, root: bool, systemd: bool) -> Way {
    match &exec.job_socket {
        Some(socket) => Way::Unit(socket.clone()),
        None if exec.same_user || root => Way::Daemon,
        None if systemd => Way::Unit(JOB_SOCKET.into()),
        None => Way::Daemon,
    }
}

/// Whether nobody can start local commands as somebody else, and nobody has said that they may run as the daemon: none runs then.
pub(super) fn exposed(exec: &Exec, way: &Way) -> bool {
    *way == Way::Daemon && !Uid::effective().is_root() && !exec.same_user
}

/// The uids of the configuration.
fn configured(exec: &Exec) -> RangeInclusive<u32> {
    let uids = exec.uids.unwrap_or(JOB_UIDS);
    uids.first..=uids.last
}

/// Uids of a range, kept under `uid/<project>`.
struct Range {
    control: Arc<dyn Control>,
    range: RangeInclusive<u32>,
    /// One assignment at a time.
    assigning: Mutex<()>,
}

impl Uids for Range {
    fn uid(&self, project: &ProjectName) -> Result<u32, String> {
        let _one_at_a_time = locked(&self.assigning);
        let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let key = format!("uid/{project}");
        if let Some(uid) = self.control.get(&key).and_then(|entry| number(&entry.value)) {
            return Ok(uid);
        }
        let taken: BTreeSet<u32> = self.control.scan("uid/").iter().filter_map(|entry| number(&entry.value)).collect();
        let free = self.range.clone().find(|uid| !taken.contains(uid)).ok_or_else(|| {
            format!(
                "every uid from {} to {} belongs to a project: widen `uids` in [exec]",
                self.range.start(),
                self.range.end()
            )
        })?;
        let written = self.control.commit(Commit::Setting, &[], vec![(key, Some(json!(free)))]);
        written.map(|_| free).map_err(|error| error.to_string())
    }
}

/// Whose processes local commands are.
///
/// # Errors
/// The configured user does not exist.
pub(super) fn job_users(exec: &Exec, control: &Arc<dyn Control>) -> anyhow::Result<JobUsers> {
    if let Some(name) = &exec.user {
        anyhow::ensure!(User::from_name(name)?.is_some(), "[exec] user: there is no user {name:?} on this machine");
        return Ok(JobUsers::One(name.clone()));
    }
    if exec.same_user {
        return Ok(JobUsers::Same);
    }
    let range = configured(exec);
    Ok(JobUsers::Each(Arc::new(Range { control: Arc::clone(control), range, assigning: Mutex::new(()) })))
}

/// The uids that the socket refuses.
pub(super) fn range(exec: &Exec) -> Vec<RangeInclusive<u32>> {
    if exec.same_user {
        return Vec::new();
    }
    if let Some(name) = &exec.user {
        let uid = User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
        return uid.map(|uid| uid..=uid).into_iter().collect();
    }
    vec![configured(exec)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_same_user_lets_code_under_test_run_as_the_daemon() {
        let unit = || Way::Unit(JOB_SOCKET.into());
        let plain = Exec::default();
        // Booted by systemd the socket need not be there yet: nobody falls back to the daemon's own user.
        assert_eq!(choose(&plain, false, true), unit());
        assert_eq!(choose(&plain, false, false), Way::Daemon);
        assert_eq!(choose(&plain, true, true), Way::Daemon);
        let elsewhere = Exec { job_socket: Some("/x/sock".into()), ..Exec::default() };
        for root in [true, false] {
            assert_eq!(choose(&elsewhere, root, false), Way::Unit("/x/sock".into()));
        }
        let same = Exec { same_user: true, ..Exec::default() };
        assert_eq!(choose(&same, false, true), Way::Daemon);
        let dir = tempfile::tempdir().unwrap();
        let data = Arc::new(crate::journal::DataDisk::open(dir.path()).unwrap());
        let clock = Arc::new(crate::time::SystemClock::new());
        let kill = crate::journal::Kills::named(None).unwrap().control;
        let log = crate::journal::ControlLog::open(&dir.path().join("journal"), clock, data, kill);
        let control: Arc<dyn Control> = Arc::new(log.unwrap());
        assert!(matches!(job_users(&plain, &control).unwrap(), JobUsers::Each(_)));
        assert!(matches!(job_users(&same, &control).unwrap(), JobUsers::Same));
    }

    #[test]
    fn the_default_uids_are_nobody_elses() {
        assert_eq!(shared(&JOB_UIDS), None);
        for (first, last, theirs) in
            [(61_000, 61_184, true), (65_519, 70_000, true), (65_520, 70_000, false), (1, 70_000, true)]
        {
            assert_eq!(shared(&UidRange { first, last }).is_some(), theirs, "{first}-{last}");
        }
    }
}
