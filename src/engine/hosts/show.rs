//! The fleet of an environment as people see it.

use std::{sync::Arc, time::Duration};

use super::{Fleet, Which, ask, fleet::KnownSource, kept, keys, sources};
use crate::{
    engine::{
        ledger,
        view::{
            CauseView,
            hosts::{ConflictView, FleetView, FoundHost, OutHost, SourceChange, SourceView},
        },
        world::World,
    },
    model::{
        discovery::{Merged, Out},
        host_key::Realm,
        ids::{HostId, ProjectName},
        pipeline::Environment,
    },
    ports::program::Loaded,
    time::{Span, rfc3339},
};

/// Without `refresh` as it is known, asking only sources that were never asked.
pub(in crate::engine) async fn view(
    world: &World,
    loaded: &Loaded,
    environment: &Environment,
    refresh: bool,
) -> FleetView {
    let which = if refresh { Which::All } else { Which::Unknown };
    let fleet = ask(world, &loaded.name, &loaded.code, environment, which).await;
    shown(world, loaded, environment, &fleet)
}

fn shown(world: &World, loaded: &Loaded, environment: &Environment, fleet: &Arc<Fleet>) -> FleetView {
    let mut merged = fleet.merged(environment);
    let out = out(&merged, fleet);
    let notes = ledger::hosts(&*world.control, &loaded.name, &environment.name);
    let text = |id: &HostId| id.to_string();
    let mut hosts: Vec<FoundHost> = merged
        .hosts
        .into_values()
        .map(|host| {
            let note = notes.get(&host.id);
            let ssh = environment.ssh.of_host(&host.ssh);
            FoundHost {
                sources: merged.named_by.remove(&host.id).unwrap_or_default(),
                id: text(&host.id),
                name: host.name,
                address: host.address,
                port: ssh.port.or(environment.signal.as_ref().map(|signal| signal.port)).unwrap_or(22),
                user: ssh.user,
                zone: host.zone,
                labels: host.labels,
                release: note.and_then(|note| note.release.as_ref()).map(ToString::to_string),
                state: note.map(|note| note.state),
                why: note.and_then(|note| note.why.clone()),
            }
        })
        .collect();
    hosts.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    FleetView {
        project: loaded.name.to_string(),
        environment: environment.name.to_string(),
        hosts,
        out,
        sources: sources(environment)
            .into_iter()
            .map(|source| {
                let interval = Span(Duration::from_millis(source.limits.interval_ms)).to_string();
                source_view(source.label.clone(), interval, fleet.source(&source))
            })
            .collect(),
        conflicts: merged
            .conflicts
            .into_iter()
            .map(|conflict| ConflictView {
                host: text(&conflict.host),
                field: conflict.field,
                used: conflict.used,
                from: conflict.from,
                other: conflict.other,
                other_from: conflict.other_from,
            })
            .collect(),
        disagreements: merged.disagreements,
        host_keys: keys::view(&*world.control, &Realm::new(&loaded.name, &environment.name)),
    }
}

/// Hosts that are not deployed to, as it is known.
pub(in crate::engine) async fn skipped(
    world: &World,
    project: &ProjectName,
    environment: &Environment,
) -> Vec<OutHost> {
    let fleet = kept::fleet(world, project, &environment.name).await;
    out(&fleet.merged(environment), &fleet)
}

fn out(merged: &Merged, fleet: &Fleet) -> Vec<OutHost> {
    let gone = |id: &HostId| fleet.gone.iter().find(|gone| gone.id == *id);
    let of = |id: &HostId, out: &Out| OutHost {
        id: id.to_string(),
        name: out.name.clone(),
        address: out.address.clone(),
        source: out.source.clone(),
        code: out.code.clone(),
        message: out.message.clone(),
        since: gone(id).map(|gone| rfc3339(gone.since_ms)),
    };
    let named = merged.out.iter().map(|(id, out)| of(id, out));
    // Runs with older code may have other options: what is gone for them need not be for this.
    let vanished = fleet.gone.iter().filter(|gone| !merged.names(&gone.id)).map(|gone| of(&gone.id, &gone.out));
    named.chain(vanished).collect()
}

fn source_view(name: String, interval: String, known: Option<&KnownSource>) -> SourceView {
    let good = known.and_then(|known| known.good.as_ref());
    let error = known.and_then(|known| known.error.as_ref());
    let some = |ids: &[HostId]| ids.iter().map(ToString::to_string).collect();
    SourceView {
        name,
        interval,
        hosts: good.map_or(0, |good| good.hosts.iter().filter(|host| host.state.is_running()).count()),
        asked_at: known.and_then(|known| known.asked.as_ref()).map(|asked| asked.rfc3339()),
        took_ms: known.map_or(0, |known| u64::try_from(known.took.as_millis()).unwrap_or(u64::MAX)),
        good_at: good.map(|good| rfc3339(good.at_ms)),
        error: error.map(|error| CauseView::from(&error.cause)),
        error_since: error.map(|error| rfc3339(error.since_ms)),
        change: known.and_then(|known| known.change.as_ref()).map(|change| SourceChange {
            at: rfc3339(change.at_ms),
            came: change.came,
            came_ids: some(&change.came_ids),
            went: change.went,
            went_ids: some(&change.went_ids),
        }),
    }
}
