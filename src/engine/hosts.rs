//! The hosts of an environment: static lists and discovery, merged by id, in the order of the rollout.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{plugin, world::World};
use crate::model::{
    cause::Cause,
    host::{Host, SecretRef, Ssh},
    ids::{Digest, HostId, ProjectName},
    pipeline::{Environment, HostSource},
};

/// Finds out the hosts of `environment`, by name.
///
/// # Errors
/// `discovery_failed` (with the plugin's own words), `discovery_record` for a host it described wrongly, `no_hosts`.
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
                records(&answer).map_err(|why| {
                    Cause::new("discovery_record", format!("discovery {name} of {}: {why}", environment.name))
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

/// Reads what a discovery function returned: a list of addresses or of records.
fn records(answer: &Value) -> Result<Vec<Host>, String> {
    let items = match answer {
        Value::Array(items) => items.as_slice(),
        // An empty Lua table has no shape.
        Value::Object(map) if map.is_empty() => &[],
        other => return Err(format!("it returned {}, not a list of hosts", kind(other))),
    };
    items.iter().enumerate().map(|(i, item)| record(item).map_err(|why| format!("host {}: {why}", i + 1))).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

fn record(item: &Value) -> Result<Host, String> {
    if let Value::String(address) = item {
        let id = address.parse().map_err(|e| format!("{e}"))?;
        return Ok(Host {
            id,
            name: address.clone(),
            address: address.clone(),
            labels: BTreeMap::new(),
            zone: None,
            ssh: Ssh::default(),
        });
    }
    let Value::Object(map) = item else { return Err(format!("it is {}, not an address or a table", kind(item))) };
    let text = |key: &str| match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) if s.is_empty() => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(Value::Number(n)) => Ok(Some(n.to_string())),
        Some(other) => Err(format!("{key} is {}, not a text", kind(other))),
    };
    let known = [
        "id",
        "name",
        "address",
        "port",
        "user",
        "zone",
        "labels",
        "key",
        "known_hosts",
        "jump",
        "base",
        "path",
        "connect_timeout",
    ];
    if let Some(key) = map.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("{key:?} is not known; a host has {}", known.join(", ")));
    }
    let address = text("address")?.ok_or("it has no address")?;
    let id = text("id")?.unwrap_or_else(|| address.clone());
    let port = match text("port")? {
        None => None,
        Some(port) => {
            Some(port.parse::<u16>().ok().filter(|p| *p > 0).ok_or(format!("port {port:?} is not 1 to 65535"))?)
        }
    };
    let connect_timeout_ms = match text("connect_timeout")? {
        None => None,
        Some(span) => {
            let span: crate::time::Span = span.parse().map_err(|e| format!("connect_timeout: {e}"))?;
            Some(u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX))
        }
    };
    let key = match map.get("key") {
        None | Some(Value::Null) => None,
        Some(secret) => Some(
            serde_json::from_value::<SecretRef>(secret.clone())
                .map_err(|_| "key is not a phased.secret(...)".to_owned())?,
        ),
    };
    let labels = match map.get("labels") {
        None | Some(Value::Null) => BTreeMap::new(),
        Some(Value::Object(labels)) => labels
            .iter()
            .map(|(k, v)| match v {
                Value::String(s) => (k.clone(), s.clone()),
                other => (k.clone(), other.to_string()),
            })
            .collect(),
        Some(other) => return Err(format!("labels are {}, not a table", kind(other))),
    };
    Ok(Host {
        id: id.parse().map_err(|e| format!("{e}"))?,
        name: text("name")?.unwrap_or(id),
        address,
        labels,
        zone: text("zone")?,
        ssh: Ssh {
            user: text("user")?,
            port,
            key,
            known_hosts: text("known_hosts")?,
            jump: text("jump")?,
            connect_timeout_ms,
            path: text("path")?,
            base: text("base")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_records_are_hosts() {
        let hosts = records(&json!(["10.0.0.1", { "id": "i-1", "name": "web-1", "address": "10.0.0.2", "port": "2222",
            "labels": { "role": "web", "n": 3 }, "key": { "$secret": "k" } }]))
        .unwrap();
        assert_eq!((hosts[0].id.as_str(), hosts[0].name.as_str()), ("10.0.0.1", "10.0.0.1"));
        assert_eq!((hosts[1].name.as_str(), hosts[1].ssh.port), ("web-1", Some(2222)));
        assert_eq!(hosts[1].labels["n"], "3");
    }

    #[test]
    fn what_is_no_host_is_named_by_its_place() {
        for (answer, want) in [
            (json!("x"), "a text, not a list"),
            (json!([3]), "host 1: it is a number"),
            (json!([{ "id": "a" }]), "host 1: it has no address"),
            (json!([{ "address": "a", "adress": "b" }]), "\"adress\" is not known"),
            (json!(["ok", { "address": "a", "port": 70000 }]), "host 2: port \"70000\""),
            (json!([{ "address": "a", "key": "pem" }]), "key is not a phased.secret"),
            (json!([{ "address": "a\nb" }]), "control characters"),
        ] {
            let why = records(&answer).unwrap_err();
            assert!(why.contains(want), "{why}");
        }
        assert_eq!(records(&json!({})).unwrap(), []);
    }
}
