//! A receiver looks at the hosts that have what is live, for a sender that asks how it is: also at those that it reaches over SSH, or by
//! signals of its own. What nobody got to look at is not called well.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt as _;

use super::{
    super::{
        hosts::{self, Need},
        ledger::{self, Live},
        world::World,
    },
    send,
};
use crate::{
    lifecycle::locks::locked,
    model::{
        cause::Cause,
        deployment::HostState,
        health::{Deployed, Sight, Watch},
        host::{Host, Transport},
        host_key::Realm,
        ids::{Digest, EnvironmentName, HostId, ProjectName, RunId},
        input::Told,
        pipeline::{AskedAfter, Environment, Health},
    },
    ports::program::Loaded,
    time::{Span, within},
};

/// Of all hosts together: whoever asks waits a little longer.
const LIMIT: Duration = Duration::from_secs(12);
/// How many hosts are looked at at the same moment.
const WIDE: usize = 32;

/// What was seen before of the hosts of each environment since what is live there was put there: a unit that was restarted between two questions
/// is known by it. Where nothing is known yet, as the daemon has been started since or the project's file has changed, it is what the run
/// that put it there has seen that counts.
#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<BTreeMap<(ProjectName, EnvironmentName), Watched>>);

#[derive(Debug)]
struct Watched {
    by: By,
    hosts: BTreeMap<HostId, Watch>,
}

/// The run that put there what is live, and the code whose checks are made.
type By = (RunId, Digest);

impl Watches {
    /// The watch over a host, where there is one.
    fn of(&self, place: &(ProjectName, EnvironmentName), by: &By, host: &HostId) -> Option<Watch> {
        let all = locked(&self.0);
        all.get(place).filter(|watched| watched.by == *by)?.hosts.get(host).cloned()
    }

    fn keep(&self, place: &(ProjectName, EnvironmentName), by: &By, host: HostId, watch: Watch) {
        let mut all = locked(&self.0);
        let anew = || Watched { by: by.clone(), hosts: BTreeMap::new() };
        let watched = all.entry(place.clone()).or_insert_with(anew);
        if watched.by != *by {
            *watched = anew();
        }
        watched.hosts.insert(host, watch);
    }
}

/// What looking at an environment came to.
pub(super) enum Seen {
    /// There is no health to look at.
    Nothing,
    /// Every host that has what is live is well.
    Well,
    /// One is not.
    Ill(Cause),
    /// Not all of them could be looked at.
    Unseen(Cause),
}

/// Looks once at each host that has what is live.
pub(super) async fn look(
    world: &Arc<World>,
    watches: &Watches,
    loaded: &Loaded,
    environment: &Environment,
    live: &Live,
) -> Seen {
    let Some(health) = &environment.health else { return Seen::Nothing };
    let hosts = match hosts::of(world, &loaded.name, &loaded.code, environment, Need::Late).await {
        Ok(hosts) => hosts,
        Err(cause) => return Seen::Unseen(cause),
    };
    let known = ledger::hosts(&*world.control, &loaded.name, &environment.name);
    // What its own budgets have left out is no part of what was called a success.
    let has_it = |host: &Host| {
        let note = known.get(&host.id);
        note.is_some_and(|note| note.release.as_ref() == Some(&live.release.id) && note.state == HostState::Healthy)
    };
    let hosts: Vec<Host> = hosts.into_iter().filter(has_it).collect();
    if hosts.is_empty() {
        let message = format!("none of the hosts of {} has {}", environment.name, live.release.id);
        return Seen::Ill(Cause::new("unhealthy", message));
    }
    let looks = hosts.into_iter().map(|host| async move {
        let health = asked(health, loaded, environment, live, &host);
        let round = one(world, loaded, environment, &health, &host).await;
        (host, health, round)
    });
    let (mut looks, mut looked) = (futures_util::stream::iter(looks).buffer_unordered(WIDE), Vec::new());
    let all = async {
        while let Some(one) = looks.next().await {
            looked.push(one);
        }
    };
    // One that is ill is ill, whoever else was not seen in time.
    let late = within(&*world.clock, LIMIT, all).await.is_none().then(|| {
        let message = format!("looking at the hosts of {} took longer than {}", environment.name, Span(LIMIT));
        Cause::new("timeout", message)
    });
    let place = (loaded.name.clone(), environment.name.clone());
    let by = (live.run.clone(), loaded.code.clone());
    let (mut ill, mut unseen) = (None, late);
    for (host, health, round) in looked {
        match round {
            Err(cause) => unseen = Some(Cause { message: format!("{}: {}", host.name, cause.message), ..cause }),
            Ok(sights) => {
                // Of other code the places are those of other checks.
                let before =
                    known.get(&host.id).map(|note| note.processes.as_slice()).filter(|_| live.code == loaded.code);
                let made = || {
                    let watch = Watch::new(&health, Some(Deployed::new(&live.release, None)));
                    watch.over(before.unwrap_or_default())
                };
                let mut watch = watches.of(&place, &by, &host.id).unwrap_or_else(made);
                if let Some((why, _)) = watch.round(Ok(&sights)) {
                    ill = Some(Cause::new("unhealthy", format!("{why} on {}", host.name)));
                }
                watches.keep(&place, &by, host.id, watch);
            }
        }
    }
    match (ill, unseen) {
        (Some(ill), _) => Seen::Ill(ill),
        (None, Some(unseen)) => Seen::Unseen(unseen),
        (None, None) => Seen::Well,
    }
}

/// The checks as they are for a host.
fn asked(health: &Health, loaded: &Loaded, environment: &Environment, live: &Live, host: &Host) -> Health {
    let variables = Told {
        project: &loaded.name,
        run: &live.run,
        release: Some(&live.release),
        environment: Some(&environment.name),
        deployment: live.deployment,
        host: Some(host),
        phase: Some("health"),
        step: "health#1",
    };
    let mut health = health.clone();
    health.fill(&variables.variables(), Some(&AskedAfter::of(&loaded.name, &environment.name, &live.release)));
    health
}

/// What each check saw, or why none could look.
async fn one(
    world: &Arc<World>,
    loaded: &Loaded,
    environment: &Environment,
    health: &Health,
    host: &Host,
) -> Result<Vec<Sight>, Cause> {
    let limit = Duration::from_millis(health.timeout_ms);
    let link = match &host.transport {
        Transport::Signal(_) => return Box::pin(send::well(world, host, health, limit)).await,
        Transport::Local => world.links.local(&loaded.name).await,
        Transport::Ssh => world.links.host(&Realm::new(&loaded.name, &environment.name), host).await,
    };
    let link = link.map_err(|error| error.cause)?;
    let looks = health.checks.iter().map(|check| world.probe.look(&*link, check, limit));
    let sights = futures_util::future::join_all(looks).await;
    link.close().await;
    Ok(sights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_of_what_is_live_and_of_the_checks_as_they_are_now() {
        let (watches, place) = (Watches::default(), ("shop".parse().unwrap(), "production".parse().unwrap()));
        let health = Health {
            checks: Vec::new(),
            min_healthy_time_ms: 0,
            healthy_deadline_ms: 0,
            interval_ms: 1,
            timeout_ms: 1,
        };
        let host = || "h1".parse::<HostId>().unwrap();
        let by = |run, code: &str| (RunId::new(run, 1), Digest::of(code.as_bytes()));
        watches.keep(&place, &by(1, "old"), host(), Watch::new(&health, None));
        assert!(watches.of(&place, &by(1, "old"), &host()).is_some());
        // The project's file has changed, and so may have the places of the checks; or something else is live.
        assert!(watches.of(&place, &by(1, "new"), &host()).is_none());
        assert!(watches.of(&place, &by(2, "old"), &host()).is_none());
        watches.keep(&place, &by(1, "new"), "h2".parse().unwrap(), Watch::new(&health, None));
        assert!(watches.of(&place, &by(1, "new"), &host()).is_none());
    }
}
