//! As whom local commands run: a uid of its own for every project, assigned once and kept in control.

use std::{
    collections::BTreeSet,
    io,
    ops::RangeInclusive,
    sync::{Arc, Mutex},
};

use nix::unistd::{Uid, User};
use serde_json::{Value, json};

use super::locked;
use crate::{
    config::Exec,
    engine::world::JobUser,
    exec::{JobUsers, Uids},
    model::ids::ProjectName,
    ports::control::{Commit, Control},
};

/// The uids of projects where the configuration names none and the daemon is root.
const DEFAULT: RangeInclusive<u32> = 61_000..=61_999;

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
    if exec.same_user || (exec.uids.is_none() && !Uid::effective().is_root()) {
        return Ok(JobUsers::Same);
    }
    let range = exec.uids.map_or(DEFAULT, |uids| uids.first..=uids.last);
    Ok(JobUsers::Each(Arc::new(Range { control: Arc::clone(control), range, assigning: Mutex::new(()) })))
}

/// The uids that the socket refuses.
pub(super) fn range(exec: &Exec) -> Vec<RangeInclusive<u32>> {
    if exec.same_user {
        return Vec::new();
    }
    if exec.user.is_none() && exec.uids.is_none() && !Uid::effective().is_root() {
        // Tests run as the daemon's own user: whoever comes as that user may be one of them.
        let own = Uid::effective().as_raw();
        return vec![own..=own];
    }
    if let Some(name) = &exec.user {
        let uid = User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
        return uid.map(|uid| uid..=uid).into_iter().collect();
    }
    vec![exec.uids.map_or(DEFAULT, |uids| uids.first..=uids.last)]
}

/// Who owns a project's checkouts.
pub(super) fn owner(users: JobUsers) -> Arc<JobUser> {
    Arc::new(move |project| match &users {
        JobUsers::Same => Ok(None),
        JobUsers::Each(uids) => uids.uid(project).map(|uid| Some((uid, uid))).map_err(io::Error::other),
        JobUsers::One(name) => {
            let user = User::from_name(name).map_err(io::Error::from)?;
            let user = user.ok_or_else(|| io::Error::other(format!("there is no user {name:?} any more")))?;
            Ok(Some((user.uid.as_raw(), user.gid.as_raw())))
        }
    })
}
