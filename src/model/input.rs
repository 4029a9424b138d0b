//! What a call gets: the plain data of its Lua objects, and the `PHASED_*` variables of its commands.

use serde_json::{Value, json};

use super::{
    deployment::{Deployment, HostRun},
    host::Host,
    ids::{DeploymentId, EnvironmentName, HostId, ProjectName, RunId},
    release::Release,
    run::{Checkout, Run},
    step::{CallKey, Place, StepKey},
};

/// What a release is compared with: what is live where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Against<'a> {
    /// Absent: nothing is.
    pub previous: Option<&'a Release>,
    /// What differs; absent where that cannot be told.
    pub changed_paths: Option<&'a [String]>,
}

impl<'a> Against<'a> {
    fn of(deployment: &'a Deployment) -> Self {
        let Deployment { previous, changed_paths, .. } = deployment;
        Against { previous: previous.as_ref(), changed_paths: changed_paths.as_deref() }
    }
}

/// The input of `rollback_safe` for somebody who only wants to know: there is neither a run nor a deployment.
#[must_use]
pub fn asked(ships: &Release, against: Against<'_>) -> Value {
    json!({ "release": release(ships, Some(against)) })
}

fn release(release: &Release, against: Option<Against<'_>>) -> Value {
    let commit = &release.commit;
    let mut value = json!({
        "id": release.id, "revision": commit.sha, "short": &commit.sha.as_str()[..7],
        "branch": release.branch, "tag": release.tag, "author": commit.author, "message": commit.message,
        "committed_at": crate::time::rfc3339(commit.committed_at_ms), "artifacts": artifacts(release),
    });
    if let Some(against) = against {
        value["previous"] = match against.previous {
            Some(previous) => json!({ "id": previous.id, "revision": previous.commit.sha }),
            None => Value::Null,
        };
        value["changed_paths"] = json!(against.changed_paths);
    }
    value
}

/// By name, each marked as what it is: Lua gets handles of them.
fn artifacts(release: &Release) -> Value {
    let handles =
        release.artifacts.iter().map(|artifact| (artifact.name.to_string(), json!({ "$artifact": artifact })));
    Value::Object(handles.collect())
}

fn host(host: &HostRun) -> Value {
    let host = &host.host;
    json!({ "id": host.id, "name": host.name, "address": host.address, "labels": host.labels, "zone": host.zone })
}

/// The wave that a function is called for, from 1: that of `before_wave.2`.
fn wave_of(function: &str) -> Option<u32> {
    let (hook, n) = function.split_once('.')?;
    matches!(hook, "before_wave" | "after_wave").then(|| n.parse().ok())?
}

/// The input of the call at `key`.
#[must_use]
pub fn of(run: &Run, key: &CallKey) -> Value {
    let place = key.place();
    let deployment = match &place {
        Some(Place::Deployment { deployment, .. } | Place::Host { deployment, .. }) => run.deployment(*deployment),
        _ => None,
    };
    let ships = deployment.map_or(run.release.as_ref(), |deployment| deployment.release(run));
    let release = ships.map(|r| release(r, deployment.map(Against::of)));
    let dir = match &run.checkout {
        Checkout::At(dir) => Some(dir),
        Checkout::Due | Checkout::Failed(_) => None,
    };
    let header = &run.header;
    let mut input = json!({
        "run": { "id": header.run, "project": header.project, "reason": header.request.reason, "dir": dir },
        "release": release,
    });
    if let Some(deployment) = deployment {
        let id = |n| DeploymentId { run: header.run.clone(), n }.to_string();
        let all = |hosts: &mut dyn Iterator<Item = &HostRun>| hosts.map(host).collect::<Vec<Value>>();
        // The hosts of a wide fleet are not copied into calls that do not get them.
        let mut hosts = Vec::new();
        match &place {
            Some(Place::Host { host: id, .. }) => input["host"] = deployment.host(id).map_or(Value::Null, host),
            Some(Place::Deployment { function, .. }) => match wave_of(function) {
                Some(n) => {
                    let mut hosts = deployment.hosts.iter().filter(|h| h.wave + 1 == n && !h.gone);
                    input["wave"] = json!({
                        "n": n, "canary": n == 1 && deployment.phases.canary, "environment": deployment.environment,
                        "hosts": all(&mut hosts),
                    });
                }
                None if function != "rollback_safe" => hosts = all(&mut deployment.hosts.iter().filter(|h| !h.gone)),
                None => {}
            },
            _ => {}
        }
        input["deployment"] = json!({
            "id": id(deployment.n), "run": header.run, "environment": deployment.environment, "hosts": hosts,
        });
        if let Some(of) = deployment.rollback_of {
            input["deployment"]["rollback_of"] = json!(id(of));
        }
    }
    input
}

/// What a command on a host, or here, is told of where it runs.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// Whose it is.
    pub project: &'a ProjectName,
    /// For which run.
    pub run: &'a RunId,
    /// What ships.
    pub release: Option<&'a Release>,
    /// Where to.
    pub environment: Option<&'a EnvironmentName>,
    /// Which deployment of the run.
    pub deployment: Option<u32>,
    /// The host it is about.
    pub host: Option<&'a Host>,
    /// What for.
    pub phase: Option<&'a str>,
    /// The step's name.
    pub step: &'a str,
}

impl Told<'_> {
    /// The `PHASED_*` variables, in a fixed order; what does not apply is absent.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        let deployment = self.deployment.map(|n| DeploymentId { run: self.run.clone(), n }.to_string());
        let variables = [
            ("PROJECT", Some(self.project.as_str())),
            ("RUN", Some(self.run.as_str())),
            ("RELEASE", self.release.map(|release| release.id.as_str())),
            ("REVISION", self.release.map(|release| release.commit.sha.as_str())),
            ("BRANCH", self.release.and_then(|release| release.branch.as_deref())),
            ("ENVIRONMENT", self.environment.map(EnvironmentName::as_str)),
            ("DEPLOYMENT", deployment.as_deref()),
            ("HOST_ID", self.host.map(|host| host.id.as_str())),
            ("HOST_NAME", self.host.map(|host| host.name.as_str())),
            ("PHASE", self.phase),
            ("STEP", Some(self.step)),
        ];
        let there =
            variables.into_iter().filter_map(|(name, value)| Some((format!("PHASED_{name}"), value?.to_owned())));
        there.collect()
    }
}

/// The `PHASED_*` variables of a step's command.
#[must_use]
pub fn variables(run: &Run, step: &StepKey, name: Option<&str>, on: Option<&HostId>) -> Vec<(String, String)> {
    let place = step.call().place();
    let number = match &place {
        Some(Place::Deployment { deployment, .. } | Place::Host { deployment, .. }) => Some(*deployment),
        _ => None,
    };
    let deployment = number.and_then(|n| run.deployment(n));
    // Also what a function of the whole deployment does on one of its hosts.
    let own = match (&place, on) {
        (Some(Place::Host { host, .. }), _) => Some(host),
        (_, on) => on,
    };
    let host = own.and_then(|host| deployment?.host(host));
    let phase = match &place {
        Some(Place::Stage { stage, .. }) => Some(stage.as_str()),
        Some(Place::Deployment { function, .. }) if function == "verify" => Some("final"),
        Some(Place::Deployment { function, .. }) if function == "verify.canary" => Some("canary"),
        Some(Place::Deployment { .. } | Place::Host { .. }) if step.call().undone().is_some() => Some("undo"),
        Some(Place::Deployment { function, .. } | Place::Host { function, .. }) => function.split('.').next(),
        None => None,
    };
    let told = Told {
        project: &run.header.project,
        run: &run.header.run,
        release: deployment.map_or(run.release.as_ref(), |deployment| deployment.release(run)),
        environment: deployment.map(|deployment| &deployment.environment),
        deployment: deployment.map(|deployment| deployment.n),
        host: host.map(|host| &host.host),
        phase,
        step: name.unwrap_or(step.short()),
    };
    told.variables()
}
