//! What control knows of projects: what is live, what passed, what the head was, how the last deployment ended.
//!
//! Outcomes cross to control only after the run's journal is synced, and every put can be made again from the journal.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{actions::lease_name, world::World};
use crate::{
    model::{
        cause::Cause,
        decide,
        ids::{Digest, EnvironmentName, ProjectName, ReleaseId, RunId, Sha},
        release::Release,
        run::{Deployment, DeploymentState, HostState, Run, RunState},
    },
    ports::{
        control::{Commit, Control},
        journal::Ticket,
    },
};

/// What is live in an environment: every host that must have it has it, healthy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Live {
    pub(super) release: Release,
    pub(super) run: RunId,
    /// The code that put it there.
    pub(super) code: Digest,
    /// Wall time, ms.
    pub(super) since_ms: i64,
}

/// How the last deployment to an environment ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Last {
    pub(super) run: RunId,
    pub(super) state: DeploymentState,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) cause: Option<Cause>,
}

/// How the project's last run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LastRun {
    pub(super) run: RunId,
    pub(super) state: RunState,
}

fn read<T: DeserializeOwned>(control: &dyn Control, key: &str) -> Option<T> {
    control.get(key).and_then(|entry| serde_json::from_value(entry.value).ok())
}

fn live_key(project: &ProjectName, environment: &EnvironmentName) -> String {
    format!("live/{project}/{environment}")
}

pub(super) fn live(control: &dyn Control, project: &ProjectName, environment: &EnvironmentName) -> Option<Live> {
    read(control, &live_key(project, environment))
}

pub(super) fn last(control: &dyn Control, project: &ProjectName, environment: &EnvironmentName) -> Option<Last> {
    read(control, &format!("last/{project}/{environment}"))
}

pub(super) fn last_run(control: &dyn Control, project: &ProjectName) -> Option<LastRun> {
    read(control, &format!("last/{project}"))
}

/// The commit that was requested last, and by which run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) sha: Sha,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) run: Option<RunId>,
}

/// The commit that was requested last.
pub(super) fn head(control: &dyn Control, project: &ProjectName) -> Option<Head> {
    read(control, &head_key(project))
}

pub(super) fn head_key(project: &ProjectName) -> String {
    format!("head/{project}")
}

/// Remembers a head that a run found by itself, so that a poll does not request it again.
pub(super) fn saw_head(world: &World, run: &Run, sha: &Sha) {
    let project = &run.header.project;
    if head(&*world.control, project).is_none_or(|head| head.sha != *sha) {
        let head = Head { sha: sha.clone(), run: Some(run.header.run.clone()) };
        let puts = vec![(head_key(project), Some(json!(head)))];
        if let Err(error) = world.control.commit(Commit::Setting, &[], puts) {
            tracing::warn!(%project, %error, "the head is not remembered");
        }
    }
}

/// The run in which `release` passed all stages under `code`.
pub(super) fn passed(
    control: &dyn Control,
    project: &ProjectName,
    release: &ReleaseId,
    code: &Digest,
) -> Option<RunId> {
    let entry = control.get(&format!("passed/{project}/{release}"))?;
    let same = entry.value.get("code").and_then(Value::as_str) == Some(code.as_str());
    same.then(|| entry.value.get("run").and_then(Value::as_str)?.parse().ok()).flatten()
}

/// Everything a run's journal says to control so far. Idempotent: the same puts whenever it is made.
pub(super) fn puts(control: &dyn Control, run: &Run) -> Vec<(String, Option<Value>)> {
    let (header, project) = (&run.header, &run.header.project);
    let mut puts = Vec::new();
    let Some(release) = &run.release else { return puts };
    if run.passed.is_none() && !run.deployments.is_empty() {
        puts.push((
            format!("passed/{project}/{}", release.id),
            Some(json!({ "code": header.code, "run": header.run })),
        ));
    }
    for deployment in &run.deployments {
        let Some((state, cause, at)) = &deployment.end else { continue };
        let environment = &deployment.environment;
        let newer = |run: &RunId| *run > header.run;
        if last(control, project, environment).is_none_or(|last| !newer(&last.run)) {
            let cause = cause.clone().or_else(|| left_out(deployment));
            let last = Last { run: header.run.clone(), state: *state, cause };
            puts.push((format!("last/{project}/{environment}"), Some(json!(last))));
        }
        if *state == DeploymentState::Succeeded
            && live(control, project, environment).is_none_or(|live| !newer(&live.run))
        {
            let live = Live {
                release: release.clone(),
                run: header.run.clone(),
                code: header.code.clone(),
                since_ms: at.wall_ms,
            };
            puts.push((live_key(project, environment), Some(json!(live))));
        }
    }
    puts
}

/// The hosts within the budgets that do not have what is live: a success that names them.
fn left_out(deployment: &Deployment) -> Option<Cause> {
    let hosts: Vec<_> = deployment.hosts.iter().filter(|h| h.state(true) != HostState::Healthy).collect();
    let first = hosts.first()?;
    let why = first.cause().map_or("it was skipped", |cause| cause.message.as_str());
    let message = format!(
        "{} of {} hosts do not have it, which the budgets allow; first {}: {why}",
        hosts.len(),
        deployment.hosts.len(),
        first.host.name
    );
    let ids: Vec<&str> = hosts.iter().take(20).map(|h| h.host.id.as_str()).collect();
    Some(Cause::new("hosts_left_out", message).with("hosts", ids))
}

/// A deployment has ended: its outcome, then its lease, for whoever waits.
pub(super) async fn deployment_ended(world: &World, run: &Run, ticket: &Ticket) {
    if ticket.synced().await.is_err() {
        return;
    }
    let puts = puts(&*world.control, run);
    if let Err(error) = world.control.commit(Commit::DeploymentEnded, &[], puts) {
        // The next start makes the same puts from the journal.
        tracing::error!(run = %run.header.run, %error, "the end of a deployment is not in control yet");
        return;
    }
    release_leases(world, run);
}

/// Gives back the leases of every deployment of `run` that has ended.
pub(super) fn release_leases(world: &World, run: &Run) {
    for deployment in run.deployments.iter().filter(|d| d.end.is_some() && d.lease.is_some()) {
        let Some(name) = lease_name(run, deployment.n) else { continue };
        if let Err(error) = world.leases.release(&name, &decide::holder(run, deployment.n)) {
            tracing::error!(lease = name, %error, "a lease is not given back yet");
        }
    }
}

/// The key of a request or run that control still has to do with.
pub(super) fn run_key(run: &RunId) -> String {
    format!("run/{run}")
}
