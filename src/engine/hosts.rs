//! The hosts of an environment: static lists and discovery, merged by id, in the order of the rollout.

use std::collections::BTreeMap;

use serde_json::json;

use super::{plugin, world::World};
use crate::model::{
    cause::Cause,
    host::Host,
    ids::{Digest, HostId, ProjectName},
    pipeline::{Environment, HostSource},
};

/// Finds out the hosts of `environment`, by name.
///
/// # Errors
/// `discovery_failed` (with the plugin's own words), `no_hosts`.
pub(super) async fn of(
    world: &World,
    project: &ProjectName,
    code: &Digest,
    environment: &Environment,
) -> Result<Vec<Host>, Cause> {
    let mut hosts: BTreeMap<HostId, Host> = BTreeMap::new();
    for source in &environment.hosts {
        let found = match source {
            HostSource::Static(hosts) => hosts.clone(),
            HostSource::Plugin { name, function } => {
                let input = json!({ "environment": environment.name, "project": project });
                let answer = plugin::run(world, project, code, function, input).await.map_err(|cause| {
                    let message = format!("discovery {name} of {} failed: {}", environment.name, cause.message);
                    Cause { code: "discovery_failed".to_owned(), message, facts: cause.facts }
                })?;
                serde_json::from_value::<Vec<Host>>(answer).map_err(|why| {
                    Cause::new("discovery_failed", format!("discovery {name} of {}: {why}", environment.name))
                })?
            }
        };
        for host in found {
            // Several sources may know one host; the first that names it wins.
            hosts.entry(host.id.clone()).or_insert(host);
        }
    }
    let mut hosts: Vec<Host> =
        hosts.into_values().map(|host| Host { ssh: environment.ssh.overlaid(&host.ssh), ..host }).collect();
    if hosts.is_empty() {
        let message =
            format!("environment {} has no hosts: nothing would be deployed, and that is no success", environment.name);
        return Err(Cause::new("no_hosts", message));
    }
    hosts.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(hosts)
}
