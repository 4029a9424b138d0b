//! Host keys that were learnt: shown, forgotten by people, and forgotten when their host is long gone.

use serde_json::json;

use super::{fleet::Fleet, sources};
use crate::{
    engine::{conductor::Conductor, view::hosts::HostKeyView, world::World},
    model::{
        host_key::{HOST_KEYS, Learnt, Realm},
        ids::HostId,
        pipeline::Environment,
        step::decode,
    },
    ports::{
        control::{Commit, CommitError, Control, Revision},
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
        Some(HostKeyView {
            id: decode(key.strip_prefix(&prefix)?),
            key: learnt.shown(),
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
        unnamed_since_ms: None,
    });
    let ticket = control.commit(Commit::Setting, &[(key.clone(), entry.revision)], vec![(key, None)])?;
    Ok(Some((learnt, ticket)))
}

/// What the project that is loaded says of whose key it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Named,
    /// Every source has been asked, and none names it; or there is no such environment any more.
    Unnamed,
    Unsure,
}

/// Forgets the keys of hosts that nobody has named for as long as history is kept: nobody will come back under such an id. Since when nobody
/// does is kept with the key. Whatever is not known for sure changes nothing, such as a project that is not loaded.
pub(in crate::engine) fn forget_gone(conductor: &Conductor) {
    let world = &conductor.inner.world;
    let age = i64::try_from(world.limits.retention.age.as_millis()).unwrap_or(i64::MAX);
    let now_ms = world.clock.now().wall_ms;
    let projects = conductor.all();
    let standing = |key: &str| {
        let mut parts = key.strip_prefix(HOST_KEYS)?.splitn(3, '/');
        let (project, environment, id) = (parts.next()?, parts.next()?, decode(parts.next()?));
        let loaded = projects.iter().find(|loaded| loaded.name.as_str() == project)?;
        let environment = loaded.pipeline.environments.iter().find(|known| known.name.as_str() == environment);
        let fleet = environment.and_then(|environment| world.fleets.get(&loaded.name, &environment.name));
        Some(stands(environment, &fleet.unwrap_or_default(), &id))
    };
    for entry in world.control.scan(HOST_KEYS) {
        let Ok(learnt) = serde_json::from_value::<Learnt>(entry.value) else { continue };
        let standing = standing(&entry.key).unwrap_or(Standing::Unsure);
        let Some(next) = aged(learnt, standing, now_ms, age) else { continue };
        write(world, &entry.key, entry.revision, next);
    }
}

fn stands(environment: Option<&Environment>, fleet: &Fleet, id: &str) -> Standing {
    let Some(environment) = environment else { return Standing::Unnamed };
    let Ok(host) = id.parse::<HostId>() else { return Standing::Unsure };
    let sure = sources(environment)
        .iter()
        .all(|source| fleet.source(source).is_some_and(|known| known.good.is_some() && known.error.is_none()));
    // Which bastions there are is not known before their hosts are.
    if id.starts_with("bastion ") || fleet.merged(environment).names(&host) {
        Standing::Named
    } else if sure {
        Standing::Unnamed
    } else {
        Standing::Unsure
    }
}

/// What is to be written of a key, if anything; `Some(None)` = it is to be forgotten.
fn aged(learnt: Learnt, standing: Standing, now_ms: i64, age: i64) -> Option<Option<Learnt>> {
    match (standing, learnt.unnamed_since_ms) {
        (Standing::Unsure, _) | (Standing::Named, None) => None,
        (Standing::Named, Some(_)) => Some(Some(Learnt { unnamed_since_ms: None, ..learnt })),
        (Standing::Unnamed, None) => Some(Some(Learnt { unnamed_since_ms: Some(now_ms), ..learnt })),
        (Standing::Unnamed, Some(since)) => (now_ms.saturating_sub(since) >= age).then_some(None),
    }
}

fn write(world: &World, key: &str, revision: Revision, next: Option<Learnt>) {
    let (forgotten, value) = (next.is_none(), next.map(|learnt| json!(learnt)));
    match world.control.commit(Commit::Setting, &[(key.to_owned(), revision)], vec![(key.to_owned(), value)]) {
        Ok(_) if forgotten => tracing::info!(key, "the key of a host that is long gone is forgotten"),
        Ok(_) => {}
        Err(error) => tracing::warn!(key, %error, "what is known of the key of a host cannot be kept up to date yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        host::Host,
        pipeline::{HostSource, SourceLimits},
    };

    const DAY: i64 = 24 * 3_600_000;

    fn learnt(unnamed_since_ms: Option<i64>) -> Learnt {
        Learnt { key: "k".into(), fingerprint: "f".into(), address: "a".into(), at_ms: 1, unnamed_since_ms }
    }

    #[test]
    fn a_key_is_forgotten_once_its_host_has_not_been_named_for_long_enough() {
        let next = |since, standing, now_ms| aged(learnt(since), standing, now_ms, 30 * DAY);
        // However old it is, it is not gone because it is not found once.
        assert_eq!(next(None, Standing::Unnamed, 400 * DAY), Some(Some(learnt(Some(400 * DAY)))));
        assert_eq!(next(Some(400 * DAY), Standing::Unnamed, 430 * DAY - 1), None);
        assert_eq!(next(Some(400 * DAY), Standing::Unnamed, 430 * DAY), Some(None));
        // It has come back.
        assert_eq!(next(Some(400 * DAY), Standing::Named, 440 * DAY), Some(Some(learnt(None))));
        assert_eq!(next(None, Standing::Named, 440 * DAY), None);
        for since in [None, Some(DAY)] {
            assert_eq!(next(since, Standing::Unsure, 400 * DAY), None);
        }
    }

    #[test]
    fn only_who_has_been_asked_can_say_that_a_host_is_not_named() {
        let environment = |hosts: serde_json::Value| {
            let environment = json!({
                "name": "production", "hosts": hosts, "ssh": {}, "rollout": crate::model::rollout::Rollout::default(), "health": null,
                "verify": false, "timeout_ms": 1,
            });
            serde_json::from_value::<Environment>(environment).unwrap()
        };
        let fleet = Fleet::default();
        let listed = HostSource::Static(vec![Host::at("web1".parse().unwrap(), "10.0.0.1".to_owned())]);
        let (name, function) = ("ec2".to_owned(), "discovery/production/2".to_owned());
        let asked = HostSource::Plugin { name, function, options: None, limits: SourceLimits::default() };
        // One that was taken out of the project's list, and an environment that was.
        let list = environment(json!([listed]));
        assert_eq!(stands(Some(&list), &fleet, "web1"), Standing::Named);
        assert_eq!(stands(Some(&list), &fleet, "web2"), Standing::Unnamed);
        assert_eq!(stands(Some(&list), &fleet, "bastion b:22"), Standing::Named);
        assert_eq!(stands(None, &fleet, "web1"), Standing::Unnamed);
        // A source that has not answered yet.
        let both = environment(json!([listed, asked]));
        assert_eq!(stands(Some(&both), &fleet, "web1"), Standing::Named);
        assert_eq!(stands(Some(&both), &fleet, "web2"), Standing::Unsure);
    }
}
