//! The reconciling pass: hosts that came late, came back or were left out get what is live in their environment, also in a freeze.
//!
//! It only asks for runs; what they do, and that nothing else is under way meanwhile, is for them and their leases to see to. A host that has
//! failed is not tried again before the next deployment, and where a mixture was left on purpose nothing is done at all.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::StreamExt as _;

use super::{
    conductor::{Ask, Conductor},
    hosts::{self, Need},
    ledger, signals,
    world::World,
};
use crate::{
    model::{
        deployment::HostState,
        event::{Purpose, Wanted},
        host::{Host, Transport},
        host_key::Realm,
        ids::{HostId, ReleaseId},
        pipeline::{AskedAfter, Environment},
        run::Trigger,
    },
    ports::program::Loaded,
};

/// How many hosts are looked at at the same moment.
const WIDE: usize = 16;

/// Looks at every environment, again and again, until the daemon goes down.
pub(super) async fn converge(conductor: Conductor) {
    let world = std::sync::Arc::clone(&conductor.inner.world);
    let stopping = world.tasks.stopping();
    let every = world.limits.converge;
    if every.is_zero() {
        return;
    }
    loop {
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = world.clock.sleep(every) => {}
        }
        for loaded in conductor.all() {
            for environment in &loaded.pipeline.environments {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = look(&conductor, &loaded, environment) => {}
                }
            }
        }
    }
}

/// Asks for a run if some hosts of `environment` lack what is live there and can be reached.
async fn look(conductor: &Conductor, loaded: &Loaded, environment: &Environment) {
    let world = &conductor.inner.world;
    let (control, project) = (&*world.control, &loaded.name);
    let rests = || ledger::last(control, project, &environment.name).is_some_and(|last| last.is_mixture());
    let busy = conductor.at_work(project) || conductor.held(project, environment).is_some();
    if rests() || busy || conductor.inner.maintenance.is_on() || conductor.writable().is_err() {
        return;
    }
    let Some(release) = ledger::live(control, project, &environment.name).map(|live| live.release) else { return };
    let live = release.id.clone();
    // Only what was good here is put on a host by itself.
    if !ledger::known_good(control, project, &environment.name).iter().any(|good| good.target.release.id == live) {
        return;
    }
    let found = match hosts::of(world, project, &loaded.code, environment, Need::Late).await {
        Ok(found) => found,
        Err(cause) => {
            return tracing::warn!(%project, environment = %environment.name, %cause, "late hosts cannot be looked for");
        }
    };
    let late = late(conductor, loaded, environment, found, &live);
    let after = &AskedAfter::of(project, &environment.name, &release);
    let looks = late.into_iter().map(|host| async move { answers(world, after, &host).await.then_some(host.id) });
    let answering: Vec<_> = futures_util::stream::iter(looks).buffer_unordered(WIDE).collect().await;
    let there: BTreeSet<HostId> = answering.into_iter().flatten().collect();
    // Somebody may have pressed the button meanwhile: what it deploys comes to them as well, or it has left a mixture by now.
    if there.is_empty() || conductor.at_work(project) || rests() {
        return;
    }
    let hosts: Vec<HostId> = there.into_iter().collect();
    tracing::info!(%project, environment = %environment.name, hosts = hosts.len(), "hosts that lack what is live get it");
    let ask = Ask {
        wanted: Wanted::Head,
        environment: Some(environment.name.clone()),
        reason: Some(format!("{} without {live}", if hosts.len() == 1 { "a host" } else { "hosts" })),
        purpose: Purpose::Converge { hosts },
        ..Ask::default()
    };
    let asked = conductor.request(project, Trigger::Converge, "phased".to_owned(), ask, &[], Vec::new()).await;
    if let Err(refusal) = asked {
        tracing::warn!(%project, %refusal, "hosts that lack what is live do not get it yet");
    }
}

/// Whether something can be done on a host now: it lets us in, or its own daemon would take a signal.
async fn answers(world: &Arc<World>, after: &AskedAfter, host: &Host) -> bool {
    if let Transport::Signal(_) = &host.transport {
        return signals::send::would_take(world, host, after).await;
    }
    let realm = Realm::new(&after.project, &after.environment);
    let Ok(link) = world.links.host(&realm, host).await else { return false };
    // At once: others may be waiting for its place.
    link.close().await;
    true
}

/// Those of `found` that do not have what is live, and of which nothing bad is known.
fn late(
    conductor: &Conductor,
    loaded: &Loaded,
    environment: &Environment,
    found: Vec<Host>,
    live: &ReleaseId,
) -> Vec<Host> {
    let known = ledger::hosts(&*conductor.inner.world.control, &loaded.name, &environment.name);
    let lacks = |host: &Host| match known.get(&host.id) {
        None => true,
        Some(note) => {
            note.release.as_ref() != Some(live) && matches!(note.state, HostState::Healthy | HostState::Unreachable)
        }
    };
    found.into_iter().filter(lacks).collect()
}
