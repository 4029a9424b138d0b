//! Host keys that were learnt: shown, forgotten by people, and forgotten when their host is long gone.

use super::sources;
use crate::{
    engine::{conductor::Conductor, view::hosts::HostKeyView, world::World},
    model::{
        host_key::{HOST_KEYS, Learnt, Realm},
        ids::HostId,
        step::decode,
    },
    ports::{
        control::{Commit, CommitError, Control},
        journal::Ticket,
    },
    time::rfc3339,
};

/// The keys of an environment's hosts and bastions, by id.
pub(in crate::engine) fn view(control: &dyn Control, realm: &Realm) -> Vec<HostKeyView> {
    let prefix = realm.host_key("");
    let entries = control.scan(&prefix).into_iter();
    let shown = |key: &str, value| {
        let learnt: Learnt = serde_json::from_value(value).ok()?;
        let algorithm = learnt.key.split(' ').next().unwrap_or_default();
        Some(HostKeyView {
            id: decode(key.strip_prefix(&prefix)?),
            key: format!("{algorithm} {}", learnt.fingerprint),
            since: rfc3339(learnt.at_ms),
            address: learnt.address,
        })
    };
    entries.filter_map(|entry| shown(&entry.key, entry.value)).collect()
}

/// Forgets the key of a host: the next one it shows is learnt. `None` = none was known.
///
/// # Errors
/// Control cannot be written.
pub(in crate::engine) fn forget(
    control: &dyn Control,
    realm: &Realm,
    id: &str,
) -> Result<Option<(Learnt, Ticket)>, CommitError> {
    let key = realm.host_key(id);
    let Some(entry) = control.get(&key) else { return Ok(None) };
    // One that cannot be read can be forgotten all the same.
    let learnt = serde_json::from_value(entry.value).unwrap_or(Learnt {
        key: String::new(),
        fingerprint: "unreadable".to_owned(),
        address: String::new(),
        at_ms: 0,
    });
    let ticket = control.commit(Commit::Setting, &[(key.clone(), entry.revision)], vec![(key, None)])?;
    Ok(Some((learnt, ticket)))
}

/// Forgets keys that are older than history is kept and whose hosts are gone for as long: nobody will come back under such an id. Whatever is
/// not known for sure stays.
pub(in crate::engine) fn forget_gone(conductor: &Conductor) {
    let world = &conductor.inner.world;
    let age = i64::try_from(world.limits.retention.age.as_millis()).unwrap_or(i64::MAX);
    let before = world.clock.now().wall_ms.saturating_sub(age);
    let is_gone = |key: &str| {
        let mut parts = key.strip_prefix(HOST_KEYS)?.splitn(3, '/');
        let (project, environment, id) = (parts.next()?, parts.next()?, decode(parts.next()?));
        let loaded = conductor.all().into_iter().find(|loaded| loaded.name.as_str() == project);
        let environment = loaded
            .as_ref()
            .and_then(|loaded| loaded.pipeline.environments.iter().find(|known| known.name.as_str() == environment));
        let (Some(loaded), Some(environment)) = (&loaded, environment) else { return Some(()) };
        let id: HostId = id.parse().ok()?;
        let fleet = world.fleets.get(&loaded.name, &environment.name)?;
        let sure = sources(environment)
            .iter()
            .all(|source| fleet.source(source).is_some_and(|known| known.good.is_some() && known.error.is_none()));
        let recent = fleet.gone.iter().any(|gone| gone.id == id && gone.since_ms > before);
        let is_bastion = id.as_str().starts_with("bastion ");
        (sure && !recent && !is_bastion && !fleet.merged(environment).names(&id)).then_some(())
    };
    for entry in world.control.scan(HOST_KEYS) {
        let old = serde_json::from_value::<Learnt>(entry.value).is_ok_and(|learnt| learnt.at_ms < before);
        if !old || is_gone(&entry.key).is_none() {
            continue;
        }
        forgotten(world, &entry.key, entry.revision);
    }
}

fn forgotten(world: &World, key: &str, revision: crate::ports::control::Revision) {
    let done = world.control.commit(Commit::Setting, &[(key.to_owned(), revision)], vec![(key.to_owned(), None)]);
    match done {
        Ok(_) => tracing::info!(key, "the key of a host that is long gone is forgotten"),
        Err(error) => tracing::warn!(key, %error, "the key of a host that is long gone cannot be forgotten yet"),
    }
}
