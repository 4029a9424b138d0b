//! What a call gets: the plain data of its Lua objects, and the `PHASED_*` variables of its commands.

use serde_json::{Value, json};

use super::{
    ids::DeploymentId,
    release::Release,
    run::{Checkout, Deployment, HostRun, Run},
    step::{CallKey, Place, StepKey},
};

fn release(release: &Release, deployment: Option<&Deployment>) -> Value {
    let commit = &release.commit;
    let mut value = json!({
        "id": release.id, "revision": commit.sha, "short": &commit.sha.as_str()[..7],
        "branch": release.branch, "tag": release.tag, "author": commit.author, "message": commit.message,
        "committed_at": crate::time::rfc3339(commit.committed_at_ms), "artifacts": artifacts(release),
    });
    if let Some(deployment) = deployment {
        value["previous"] = match &deployment.previous {
            Some(previous) => json!({ "id": previous.id, "revision": previous.commit.sha }),
            None => Value::Null,
        };
        value["changed_paths"] = json!(deployment.changed_paths);
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

/// The input of the call at `key`.
#[must_use]
pub fn of(run: &Run, key: &CallKey) -> Value {
    let place = key.place();
    let deployment = match &place {
        Some(Place::Deployment { deployment, .. } | Place::Host { deployment, .. }) => run.deployment(*deployment),
        _ => None,
    };
    let release = run.release.as_ref().map(|r| release(r, deployment));
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
        let id = DeploymentId { run: header.run.clone(), n: deployment.n };
        // The hosts of a wide fleet are not copied into each of its calls.
        let hosts: Vec<Value> = match &place {
            Some(Place::Host { host: id, .. }) => {
                input["host"] = deployment.host(id).map_or(Value::Null, host);
                Vec::new()
            }
            _ => deployment.hosts.iter().map(host).collect(),
        };
        input["deployment"] = json!({
            "id": id.to_string(), "run": header.run, "environment": deployment.environment, "hosts": hosts,
        });
    }
    input
}

/// The `PHASED_*` variables of a command, in a fixed order; what does not apply is absent.
#[must_use]
pub fn variables(run: &Run, step: &StepKey, name: Option<&str>) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    let mut set = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            variables.push((format!("PHASED_{name}"), value.to_owned()));
        }
    };
    let release = run.release.as_ref();
    set("PROJECT", Some(run.header.project.as_str()));
    set("RUN", Some(run.header.run.as_str()));
    set("RELEASE", release.map(|r| r.id.as_str()));
    set("REVISION", release.map(|r| r.commit.sha.as_str()));
    set("BRANCH", release.and_then(|r| r.branch.as_deref()));
    let place = step.call().place();
    let number = match &place {
        Some(Place::Deployment { deployment, .. } | Place::Host { deployment, .. }) => Some(*deployment),
        _ => None,
    };
    if let Some(deployment) = number.and_then(|n| run.deployment(n)) {
        set("ENVIRONMENT", Some(deployment.environment.as_str()));
        set("DEPLOYMENT", Some(&DeploymentId { run: run.header.run.clone(), n: deployment.n }.to_string()));
        if let Some(Place::Host { host, .. }) = &place {
            set("HOST_ID", Some(host.as_str()));
            set("HOST_NAME", deployment.host(host).map(|h| h.host.name.as_str()));
        }
    }
    let phase = match &place {
        Some(Place::Stage { stage, .. }) => Some(stage.as_str()),
        Some(Place::Deployment { function, .. }) if function == "verify" => Some("final"),
        Some(Place::Deployment { .. } | Place::Host { .. }) if step.call().undone().is_some() => Some("undo"),
        Some(Place::Deployment { function, .. } | Place::Host { function, .. }) => Some(function.as_str()),
        None => None,
    };
    set("PHASE", phase);
    set("STEP", Some(name.unwrap_or(step.short())));
    variables
}
