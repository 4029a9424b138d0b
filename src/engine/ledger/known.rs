//! What environments know of releases: which were good there and by which code, what each host has, and which release was found bad.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{brief, brief_release, read};
use crate::{
    model::{
        cause::Cause,
        deployment::{Back, Deployment, DeploymentState, HostState},
        event::Purpose,
        health::Incarnation,
        ids::{EnvironmentName, HostId, ProjectName, ReleaseId, RunId, Sha},
        plan::Target,
        release::{Commit, Release},
        run::{Run, RunState},
        step::{decode, encode},
    },
    ports::{
        control::{Commit as Kind, CommitError, Control},
        journal::Ticket,
    },
};

/// How many known-good releases of an environment are remembered.
const REMEMBERED: usize = 5;

/// A release that was baked and verified in an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::engine) struct Good {
    pub(in crate::engine) target: Target,
    /// How long its deployment took, ms.
    pub(in crate::engine) took_ms: u64,
    /// Wall time, ms.
    pub(in crate::engine) at_ms: i64,
}

/// What a host of an environment has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::engine) struct Note {
    /// `None`: nobody can tell.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(in crate::engine) release: Option<ReleaseId>,
    pub(in crate::engine) state: HostState,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(in crate::engine) why: Option<String>,
    /// The run that left it so.
    pub(in crate::engine) run: RunId,
    /// Its units and containers as that run has seen them, by the place of each in the list of checks.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(in crate::engine) processes: Vec<(usize, Incarnation)>,
}

/// Why a release is bad.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::engine) struct Bad {
    pub(in crate::engine) run: RunId,
    /// Its tree: another commit with the same bytes is as bad.
    pub(in crate::engine) tree: Sha,
    pub(in crate::engine) cause: Cause,
}

/// How many bad releases there were since the last good one, and whose was the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct InARow {
    count: u32,
    run: RunId,
}

fn good_key(project: &ProjectName, environment: &EnvironmentName) -> String {
    format!("good/{project}/{environment}")
}

fn host_key(project: &ProjectName, environment: &EnvironmentName, host: &str) -> String {
    format!("host/{project}/{environment}/{host}")
}

/// Whether a release is known-good in an environment, and was not found bad since.
pub(in crate::engine) fn is_good(
    control: &dyn Control,
    project: &ProjectName,
    environment: &EnvironmentName,
    release: &ReleaseId,
) -> bool {
    known_good(control, project, environment).iter().any(|good| good.target.release.id == *release)
}

/// The known-good releases of an environment that were not found bad since, the last one first.
pub(in crate::engine) fn known_good(
    control: &dyn Control,
    project: &ProjectName,
    environment: &EnvironmentName,
) -> Vec<Good> {
    let mut good: Vec<Good> = read(control, &good_key(project, environment)).unwrap_or_default();
    let bad: Vec<Sha> = all_bad(control, project).map(|(_, bad)| bad.tree).collect();
    good.retain(|good| !bad.contains(&good.target.release.commit.tree));
    good
}

/// The same where there has to be one.
///
/// # Errors
/// `no_target`: there is none.
pub(in crate::engine) fn some_good(
    control: &dyn Control,
    project: &ProjectName,
    environment: &EnvironmentName,
) -> Result<Vec<Good>, Cause> {
    let known_good = known_good(control, project, environment);
    if known_good.is_empty() {
        let message = format!("{environment} has no known-good release yet: none was ever baked and verified there");
        return Err(Cause::new("no_target", message));
    }
    Ok(known_good)
}

/// What each host of an environment has, as the last deployments left them.
pub(in crate::engine) fn hosts(
    control: &dyn Control,
    project: &ProjectName,
    environment: &EnvironmentName,
) -> BTreeMap<HostId, Note> {
    let prefix = host_key(project, environment, "");
    let entries = control.scan(&prefix).into_iter();
    let note = |key: &str, value: Value| {
        let id = decode(key.strip_prefix(&prefix)?).parse().ok()?;
        Some((id, serde_json::from_value(value).ok()?))
    };
    entries.filter_map(|entry| note(&entry.key, entry.value)).collect()
}

/// Forgets what hosts of an environment have, but for those that `stay`.
///
/// # Errors
/// Control cannot be written.
pub(in crate::engine) fn forget_hosts(
    control: &dyn Control,
    project: &ProjectName,
    environment: &EnvironmentName,
    stay: impl Fn(&HostId) -> bool,
) -> Result<Ticket, CommitError> {
    let known = hosts(control, project, environment);
    let gone = known.keys().filter(|id| !stay(id));
    let puts = gone.map(|id| (host_key(project, environment, &encode(id.as_str())), None)).collect();
    control.commit(Kind::Setting, &[], puts)
}

/// The bad releases of a project, by their ids.
pub(in crate::engine) fn all_bad(control: &dyn Control, project: &ProjectName) -> impl Iterator<Item = (String, Bad)> {
    let prefix = format!("bad/{project}/");
    let entries = control.scan(&prefix).into_iter();
    entries.filter_map(move |entry| {
        Some((entry.key.strip_prefix(&prefix)?.to_owned(), serde_json::from_value(entry.value).ok()?))
    })
}

/// Whether a commit, or one with the same tree, was found bad: as which release, and why.
pub(in crate::engine) fn bad(control: &dyn Control, project: &ProjectName, commit: &Commit) -> Option<(String, Bad)> {
    all_bad(control, project).find(|(_, bad)| bad.tree == commit.tree)
}

/// Why a release was found bad, by its id.
pub(in crate::engine) fn bad_release(control: &dyn Control, project: &ProjectName, release: &ReleaseId) -> Option<Bad> {
    read(control, &format!("bad/{project}/{release}"))
}

/// How many releases of a project in a row were bad.
pub(in crate::engine) fn bad_in_a_row(control: &dyn Control, project: &ProjectName) -> u32 {
    read::<InARow>(control, &format!("bad_in_a_row/{project}")).map_or(0, |row| row.count)
}

/// What the end of a deployment says of its hosts. Idempotent; what a newer run has said stays.
pub(super) fn puts(control: &dyn Control, run: &Run, deployment: &Deployment, puts: &mut Vec<(String, Option<Value>)>) {
    if deployment.rollback_of.is_some() {
        // What is taken back says it.
        return;
    }
    let (project, environment) = (&run.header.project, &deployment.environment);
    let Some(release) = deployment.release(run) else { return };
    let known = hosts(control, project, environment);
    let newer = |id: &HostId| known.get(id).is_some_and(|note| note.run > run.header.run);
    let before = deployment.phases.target.as_ref().map(|target| target.release.id.clone());
    let mut notes: BTreeMap<&HostId, Option<Note>> = BTreeMap::new();
    if let Some((target, adoption)) = deployment.adopts() {
        let (release, run) = (Some(target.release.id.clone()), run.header.run.clone());
        let note = Note { release, state: HostState::Healthy, why: None, run, processes: Vec::new() };
        notes.extend(adoption.reports.keys().map(|host| (host, Some(note.clone()))));
    }
    let converges = matches!(run.header.request.purpose, Purpose::Converge { .. });
    let stays = converges || matches!(deployment.end, Some((DeploymentState::Succeeded, ..)));
    for host in &deployment.hosts {
        let id = &host.host.id;
        let note = |release: Option<ReleaseId>, state| {
            let why = host.why().map(|cause| brief(cause).message).filter(|_| state != HostState::Healthy);
            Some(Note { release, state, why, run: run.header.run.clone(), processes: Vec::new() })
        };
        let note = match (host.back, host.state(true)) {
            (_, HostState::Gone) => None,
            (Some(Back::There), _) => note(before.clone(), HostState::Healthy),
            (Some(Back::Aside), _) => note(before.clone(), HostState::Quarantined),
            (None, HostState::Healthy) => note(Some(release.id.clone()), HostState::Healthy)
                .map(|note| Note { processes: host.processes.clone(), ..note }),
            // Nobody can tell what it has.
            _ if host.touched => note(None, host.state(true)),
            // It failed before it was touched, and what it lacks is live all the same: it is not tried again before the next deployment.
            (None, HostState::Failed) if stays => {
                let has = notes.get(id).and_then(Option::as_ref).or_else(|| known.get(id));
                note(has.and_then(|note| note.release.clone()), HostState::Failed)
            }
            _ => continue,
        };
        notes.insert(id, note);
    }
    for (id, note) in notes.into_iter().filter(|(id, _)| !newer(id)) {
        if known.get(id) != note.as_ref() {
            puts.push((host_key(project, environment, &encode(id.as_str())), note.map(|note| json!(note))));
        }
    }
    let good = |targets, at_ms| {
        let before = read(control, &good_key(project, environment)).unwrap_or_default();
        json!(with(before, &run.header.run, targets, at_ms))
    };
    let adopted = deployment.adopts().map(|(target, _)| (target.clone(), 0));
    if deployment.target.is_some() {
        if let (Some(adopted), Some((DeploymentState::Succeeded, _, at))) = (adopted, &deployment.end) {
            puts.push((good_key(project, environment), Some(good(vec![adopted], at.wall_ms))));
        }
        return;
    }
    // Hosts that were not in the list any more when the plan was made.
    if deployment.budgets.is_some() {
        let left = known.keys().filter(|id| deployment.host(id).is_none() && !newer(id));
        puts.extend(left.map(|id| (host_key(project, environment, &encode(id.as_str())), None)));
    }
    let Some((state, _, at)) = &deployment.end else { return };
    // What it found there is good whatever became of it, and comes before it.
    let mut targets: Vec<(Target, u64)> = adopted.into_iter().collect();
    if let (DeploymentState::Succeeded, Some(spec)) = (state, deployment.spec(run)) {
        let environment = spec.without_hosts();
        let (release, code) = (kept(release), deployment.code(run).clone());
        let took = u64::try_from(at.wall_ms.saturating_sub(deployment.created_at.wall_ms)).unwrap_or(0);
        targets.push((Target { release, code, environment, run: run.header.run.clone() }, took));
    }
    if !targets.is_empty() {
        puts.push((good_key(project, environment), Some(good(targets, at.wall_ms))));
    }
}

/// What a run says of its release: bad, or, once it is over and well, good. Idempotent.
pub(super) fn release_puts(
    control: &dyn Control,
    run: &Run,
    release: &Release,
    puts: &mut Vec<(String, Option<Value>)>,
) {
    let (project, tree) = (&run.header.project, &release.commit.tree);
    if run.target.is_some() {
        return;
    }
    let row_key = format!("bad_in_a_row/{project}");
    let judged = run.deployments.iter().filter(|d| d.end.is_some()).find_map(|d| d.judged.as_ref().filter(|j| j.bad));
    if let Some(judged) = judged {
        let row: Option<InARow> = read(control, &row_key);
        let run = run.header.run.clone();
        let count = match &row {
            Some(row) if row.run == run => row.count,
            row => row.as_ref().map_or(0, |row| row.count) + 1,
        };
        puts.push((row_key, Some(json!(InARow { count, run: run.clone() }))));
        let bad = Bad { run, tree: tree.clone(), cause: brief(&judged.cause) };
        puts.push((format!("bad/{project}/{}", release.id), Some(json!(bad))));
    } else if matches!(run.end, Some((RunState::Succeeded, ..))) && !run.deployments.is_empty() {
        puts.extend(
            all_bad(control, project)
                .filter(|(_, bad)| bad.tree == *tree)
                .map(|(id, _)| (format!("bad/{project}/{id}"), None)),
        );
        if control.get(&row_key).is_some() {
            puts.push((row_key, None));
        }
    }
}

/// The list of what is known-good with what `run` made so at its head: each with how long its deployment took, the last one first.
/// Idempotent.
fn with(mut all: Vec<Good>, run: &RunId, targets: Vec<(Target, u64)>, at_ms: i64) -> Vec<Good> {
    // A run that ends later than a newer one does not take its place.
    let newer = all.first().is_some_and(|good| good.target.run > *run);
    for (target, took_ms) in targets.into_iter().filter(|_| !newer) {
        let same = |good: &Good| good.target.run == target.run && good.target.release.id == target.release.id;
        if !all.iter().any(same) {
            all.retain(|good| good.target.release.id != target.release.id);
            all.insert(0, Good { target, took_ms, at_ms });
        }
    }
    all.truncate(REMEMBERED);
    all
}

/// A release as control keeps it: no more of its message than people look at.
fn kept(release: &Release) -> Release {
    let brief = brief_release(release, serde_json::value::Serializer).and_then(serde_json::from_value);
    brief.unwrap_or_else(|_| release.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        host::Ssh,
        pipeline::{Environment, Hooks},
        rollout::Rollout,
    };

    fn target(n: u8, run: i64) -> (Target, u64) {
        let sha: Sha = format!("{n:02x}").repeat(20).parse().unwrap();
        let commit = Commit {
            tree: sha.clone(),
            author: "Ann".to_owned(),
            message: "it ships".to_owned(),
            committed_at_ms: 0,
            sha: sha.clone(),
        };
        let release =
            Release { id: ReleaseId::first_build(&sha), commit, branch: None, tag: None, artifacts: Vec::new() };
        let environment = Environment {
            name: "production".parse().unwrap(),
            hosts: Vec::new(),
            ssh: Ssh::default(),
            signal: None,
            rollout: Rollout::default(),
            health: None,
            verify: false,
            hooks: Hooks::default(),
            alarms: Vec::new(),
            timeout_ms: 1,
            freeze: Vec::new(),
            group: None,
            when: crate::model::pipeline::When::Push,
        };
        let code = crate::model::ids::Digest::of(b"code");
        (Target { release, code, environment, run: RunId::new(run, 0) }, u64::from(n))
    }

    fn names(all: &[Good]) -> Vec<u64> {
        all.iter().map(|good| good.took_ms).collect()
    }

    #[test]
    fn what_was_adopted_is_known_good_behind_what_replaced_it() {
        let run = RunId::new(1, 0);
        let all = with(Vec::new(), &run, vec![target(1, 1), target(2, 1)], 0);
        assert_eq!(names(&all), [2, 1]);
        // Told again after a crash it is the same, whatever came in between.
        assert_eq!(names(&with(all.clone(), &run, vec![target(1, 1), target(2, 1)], 9)), [2, 1]);
        let later = with(all, &RunId::new(2, 0), vec![target(3, 2)], 1);
        assert_eq!(names(&with(later.clone(), &run, vec![target(1, 1), target(2, 1)], 9)), [3, 2, 1]);
        // One that was good before and is again comes to the head; the oldest are forgotten.
        assert_eq!(names(&with(later, &RunId::new(3, 0), vec![target(1, 3)], 2)), [1, 3, 2]);
        let many = (1..=7)
            .fold(Vec::new(), |all, n| with(all, &RunId::new(i64::from(n), 0), vec![target(n, i64::from(n))], 0));
        assert_eq!(names(&many), [7, 6, 5, 4, 3]);
    }
}
