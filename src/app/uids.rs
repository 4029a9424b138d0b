//! As whom local commands run: a uid of its own for every project, assigned once and kept in control.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    os::unix::fs::FileTypeExt as _,
    path::Path,
    sync::{Arc, Mutex},
};

use nix::unistd::{Uid, User};
use serde_json::{Value, json};

use super::locked;
use crate::{
    config::{Exec, JOB_SOCKET, JOB_UIDS},
    exec::{JobUsers, Uids, Way},
    model::ids::ProjectName,
    ports::control::{Commit, Control},
};

/// Who starts local commands: the job unit where the configuration names its socket, or the daemon is not root and the package's socket is
/// there; else the daemon itself.
pub(super) fn way(exec: &Exec) -> Way {
    let is_socket = |path: &Path| std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    match &exec.job_socket {
        Some(socket) => Way::Unit(socket.clone()),
        None if exec.same_user || Uid::effective().is_root() => Way::Daemon,
        None if is_socket(Path::new(JOB_SOCKET)) => Way::Unit(JOB_SOCKET.into()),
        None => Way::Daemon,
    }
}

/// Whether local commands can only run as the daemon itself, and nobody has said that they may.
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
pub(super) fn job_users(exec: &Exec, way: &Way, control: &Arc<dyn Control>) -> anyhow::Result<JobUsers> {
    if let Some(name) = &exec.user {
        anyhow::ensure!(User::from_name(name)?.is_some(), "[exec] user: there is no user {name:?} on this machine");
        return Ok(JobUsers::One(name.clone()));
    }
    if exec.same_user || (exec.uids.is_none() && exposed(exec, way)) {
        return Ok(JobUsers::Same);
    }
    let range = configured(exec);
    Ok(JobUsers::Each(Arc::new(Range { control: Arc::clone(control), range, assigning: Mutex::new(()) })))
}

/// The uids that the socket refuses.
pub(super) fn range(exec: &Exec, way: &Way) -> Vec<RangeInclusive<u32>> {
    if exec.same_user {
        return Vec::new();
    }
    if exec.user.is_none() && exec.uids.is_none() && exposed(exec, way) {
        // Tests run as the daemon's own user: whoever comes as that user may be one of them.
        let own = Uid::effective().as_raw();
        return vec![own..=own];
    }
    if let Some(name) = &exec.user {
        let uid = User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
        return uid.map(|uid| uid..=uid).into_iter().collect();
    }
    vec![configured(exec)]
}
