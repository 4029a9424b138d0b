//! The plan against the live fleet, and the second look at it before each wave.

use std::collections::{BTreeMap, BTreeSet};

use super::{Context, alarm::quiet, lease::superseded};
use crate::{
    engine::{hosts, ledger, world::World},
    model::{
        cause::Cause,
        deployment::{Deployment, HostState},
        event::{Event, Purpose},
        host::Host,
        ids::{HostId, ProjectName, ReleaseId},
        pipeline::Environment,
        plan::{self, Fleet, Phases, Target},
        rollout::{Canary, Rollout, Waves},
        run::Run,
    },
};

/// Finds out the hosts and puts the numbers down before the first host is touched.
pub(super) async fn plan(context: &Context, run: &Run, deployment: u32, environment: &Environment) -> Event {
    let world = &context.world;
    // The lease is ours: nobody changes what is live here until we do.
    let live = ledger::live(&*world.control, &run.header.project, &environment.name);
    if let Some(newer) = live.as_ref().map(|live| &live.run).filter(|live| **live > run.header.run) {
        return Event::PlanFailed { deployment, cause: superseded(&environment.name, newer) };
    }
    let previous = live.map(|live| live.release);
    let changed_paths = match (&previous, &run.release) {
        (Some(previous), Some(release)) if run.target.is_none() => {
            world.forge.changed(&run.header.project, &previous.commit.sha, &release.commit.sha).await.ok()
        }
        _ => None,
    };
    let found = hosts::of(world, &run.header.project, &run.header.code, environment).await;
    if let (Ok(hosts), None, Some(of)) = (&found, &run.target, run.deployment(deployment))
        && let Err(cause) = quiet(context, run, of, environment, hosts).await
    {
        return Event::PlanFailed { deployment, cause };
    }
    let asked = Asked {
        project: &run.header.project,
        environment,
        release: run.release.as_ref().map(|release| &release.id),
        target: run.target.as_deref(),
        purpose: &run.header.request.purpose,
    };
    match found.and_then(|hosts| phases(world, &asked, hosts)) {
        Ok((hosts, phases)) => Event::Planned {
            deployment,
            max_failures: environment.rollout.max_failures.of(hosts.len()),
            max_unreachable: environment.rollout.max_unreachable.of(hosts.len()),
            hosts,
            previous: previous.map(Box::new),
            changed_paths,
            phases: Box::new(phases),
        },
        Err(cause) => Event::PlanFailed { deployment, cause },
    }
}

/// What a plan is made for.
pub(in crate::engine) struct Asked<'a> {
    pub(in crate::engine) project: &'a ProjectName,
    pub(in crate::engine) environment: &'a Environment,
    /// What ships, if that is known yet.
    pub(in crate::engine) release: Option<&'a ReleaseId>,
    /// What is put back instead.
    pub(in crate::engine) target: Option<&'a Target>,
    pub(in crate::engine) purpose: &'a Purpose,
}

/// The waves over `hosts`, with what control knows of each.
///
/// # Errors
/// `max_shrink`, and those of [`plan::phases`].
pub(in crate::engine) fn phases(
    world: &World,
    asked: &Asked<'_>,
    hosts: Vec<Host>,
) -> Result<(Vec<Host>, Phases), Cause> {
    let (project, environment) = (asked.project, asked.environment);
    let known = ledger::hosts(&*world.control, project, &environment.name);
    shrunk(environment, known.keys(), &hosts)?;
    let mut fleet = Fleet { hosts, ..Fleet::default() };
    for host in &fleet.hosts {
        let Some(note) = known.get(&host.id) else { continue };
        if let Some(release) = &note.release {
            fleet.current.insert(host.id.clone(), release.clone());
        }
        if note.state == HostState::Quarantined {
            fleet.quarantined.insert(host.id.clone());
        }
        if note.state != HostState::Healthy {
            fleet.ill.insert(host.id.clone(), note.why.clone().unwrap_or_else(|| "it failed last time".to_owned()));
        }
    }
    let Some(target) = asked.target else {
        let (hosts, mut phases) = plan::phases(&environment.rollout, fleet)?;
        match way_back(world, asked) {
            Ok(target) => phases.target = Some(Box::new(target)),
            Err(cause) => phases.no_target = Some(cause),
        }
        phases.expected_ms = ledger::expected(&*world.control, project, &environment.name);
        return Ok((hosts, phases));
    };
    if let Purpose::Converge { hosts } = asked.purpose {
        let differs = |host: &Host| {
            let has = fleet.current.get(&host.id) == Some(&target.release.id);
            if hosts.is_empty() { !has && !fleet.quarantined.contains(&host.id) } else { hosts.contains(&host.id) }
        };
        fleet.hosts.retain(differs);
        if fleet.hosts.is_empty() {
            return Err(Cause::new(
                "converged",
                format!("every host of {} has {} already", environment.name, target.release.id),
            ));
        }
    }
    // All at once, without a canary.
    let straight = Rollout {
        canary: Canary::Count(crate::model::rollout::Budget::Count(0)),
        waves: Waves::Targets(Vec::new()),
        ..environment.rollout.clone()
    };
    plan::phases(&straight, fleet)
}

/// A list that has lost too many hosts at once is more likely wrong than they are gone.
fn shrunk<'a>(environment: &Environment, known: impl Iterator<Item = &'a HostId>, hosts: &[Host]) -> Result<(), Cause> {
    let there: BTreeSet<&HostId> = hosts.iter().map(|host| &host.id).collect();
    let known: Vec<&HostId> = known.collect();
    let lost: Vec<&HostId> = known.iter().copied().filter(|id| !there.contains(id)).collect();
    if lost.is_empty() || lost.len() <= environment.rollout.max_shrink.of(known.len()) {
        return Ok(());
    }
    let message = format!(
        "{} of the {} hosts that {} had are not in its list any more, {} among them, and max_shrink allows {}: nothing was deployed. If \
         they are gone for good, start it with max_shrink = \"100%\" once",
        lost.len(),
        known.len(),
        environment.name,
        lost[0],
        environment.rollout.max_shrink.of(known.len())
    );
    Err(Cause::new("max_shrink", message))
}

/// What a failure of this run would go back to.
fn way_back(world: &World, asked: &Asked<'_>) -> Result<Target, Cause> {
    let (project, environment) = (asked.project, asked.environment);
    let known_good = ledger::known_good(&*world.control, project, &environment.name);
    let Some(good) =
        known_good.into_iter().find(|good| asked.release.is_none_or(|release| *release != good.target.release.id))
    else {
        let message = format!("{} has no other known-good release: this is the first", environment.name);
        return Err(Cause::new("no_target", message));
    };
    let target = good.target;
    match world.programs.open(&target.code, project, 0, Box::new(|_, _| {})) {
        Ok(_) => Ok(target),
        Err(cause) => {
            let message = format!("the code that deployed {} cannot be opened: {}", target.release.id, cause.message);
            Err(Cause { message, ..cause })
        }
    }
}

/// Which hosts have come or gone since the plan was made.
pub(super) async fn look(context: &Context, run: &Run, deployment: u32, wave: u32) -> Event {
    let world = &context.world;
    let seen = |gone, joined| Event::FleetSeen { deployment, gone, joined, wave };
    let Some((of, environment)) =
        run.deployment(deployment).and_then(|of| Some((of, run.environment(&of.environment)?)))
    else {
        return seen(Vec::new(), Vec::new());
    };
    let found = match hosts::of(world, &run.header.project, &run.header.code, environment).await {
        Ok(found) => found,
        Err(cause) => {
            // The list as it was is better than none; whoever is gone cannot be reached, and that has a budget.
            tracing::warn!(run = %run.header.run, %cause, "the hosts cannot be looked up again; the plan's are used");
            return seen(Vec::new(), Vec::new());
        }
    };
    let (gone, joined) = difference(of, found);
    let there: BTreeMap<&HostId, ()> = of.hosts.iter().filter(|h| !h.gone).map(|h| (&h.host.id, ())).collect();
    let left: Vec<Host> = of.hosts.iter().filter(|h| !gone.contains(&h.host.id)).map(|h| h.host.clone()).collect();
    match shrunk(environment, there.keys().copied(), &left) {
        Ok(()) => seen(gone, joined),
        Err(cause) => {
            let then = environment.rollout.on_failure;
            Event::Judged { deployment, cause, bad: false, then }
        }
    }
}

fn difference(of: &Deployment, found: Vec<Host>) -> (Vec<HostId>, Vec<Host>) {
    let there: BTreeSet<&HostId> = found.iter().map(|host| &host.id).collect();
    let gone = of.hosts.iter().filter(|h| !h.gone && !there.contains(&h.host.id)).map(|h| h.host.id.clone()).collect();
    let joined = found.iter().filter(|host| of.host(&host.id).is_none()).cloned().collect();
    (gone, joined)
}
