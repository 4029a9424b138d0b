//! The plan against the live fleet, and the second look at it before each wave.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Context,
    alarm::quiet,
    lease::superseded,
    resolve::{opens, target},
};
use crate::{
    engine::{
        adoption::{self, Adopted},
        hosts::{self, Need},
        ledger::{self, Good, Live},
        world::World,
    },
    model::{
        cause::Cause,
        deployment::{Deployment, HostState},
        event::{Event, Purpose},
        host::Host,
        ids::{Digest, HostId, ProjectName, ReleaseId},
        pipeline::{Environment, HostSource},
        plan::{self, Fleet, Phases, Target},
        release::Release,
        run::Run,
    },
};

/// Finds out the hosts and puts the numbers down before the first host is touched.
pub(super) async fn plan(context: &Context, run: &Run, deployment: u32, environment: &Environment) -> Event {
    let world = &context.world;
    // The lease is ours: nobody changes what is live here until we do.
    let live = ledger::live(&*world.control, &run.header.project, &environment.name);
    if let Some(newer) = live.as_ref().map(Live::made_by).filter(|live| run.target.is_none() && **live > run.header.run)
    {
        return Event::PlanFailed { deployment, cause: superseded(&environment.name, newer) };
    }
    if let Some(chosen) = run.target.as_ref().filter(|_| run.header.request.purpose != Purpose::Adopt) {
        // It was chosen before the environment was ours.
        match target(world, run) {
            Ok(now) if now.release.id == chosen.release.id => {}
            Ok(_) => {
                let message = format!("what is live in {} changed while this waited; ask again", environment.name);
                return Event::PlanFailed { deployment, cause: Cause::new("outdated", message) };
            }
            Err(cause) => return Event::PlanFailed { deployment, cause },
        }
    }
    let need = if run.target.is_some() { Need::Back } else { Need::New };
    let find = || hosts::of(world, &run.header.project, &run.header.code, environment, need);
    let mut found = find().await;
    if let (Ok(hosts), None, Some(of)) = (&found, &run.target, run.deployment(deployment)) {
        match quiet(context, run, of, environment, hosts).await {
            Ok(false) => {}
            // It may have been long.
            Ok(true) => found = find().await,
            Err(cause) => return Event::PlanFailed { deployment, cause },
        }
    }
    match planned(world, run, deployment, environment, found).await {
        // What hosts were asked may print what a step of this run has used.
        Event::PlanFailed { deployment, cause } => {
            Event::PlanFailed { deployment, cause: context.sessions.redact_cause(&cause) }
        }
        mut planned => {
            if let Event::Planned { phases, .. } = &mut planned {
                phases.no_target = phases.no_target.take().map(|cause| context.sessions.redact_cause(&cause));
            }
            planned
        }
    }
}

/// The plan of a run's deployment over the hosts that were found.
pub(in crate::engine) async fn planned(
    world: &World,
    run: &Run,
    deployment: u32,
    environment: &Environment,
    found: Result<Vec<Host>, Cause>,
) -> Event {
    let adopted = match &found {
        Ok(hosts) => adopts(world, run, environment, hosts).await,
        Err(_) => None,
    };
    if let (Purpose::Adopt, Some(Err(cause))) = (&run.header.request.purpose, &adopted) {
        return Event::PlanFailed { deployment, cause: cause.clone() };
    }
    let live = ledger::live(&*world.control, &run.header.project, &environment.name).map(|live| live.release);
    let previous = live.or_else(|| Some(adopted.as_ref()?.as_ref().ok()?.target.release.clone()));
    let changed_paths = match run.release.as_ref().filter(|_| run.target.is_none()) {
        Some(release) => changed_paths(world, &run.header.project, previous.as_ref(), release).await,
        None => None,
    };
    let asked = Asked {
        project: &run.header.project,
        environment,
        ships: run.release.as_ref().map(|release| (&release.id, &run.header.code)),
        target: run.target.as_deref(),
        purpose: &run.header.request.purpose,
    };
    match found.and_then(|hosts| phases(world, &asked, hosts, adopted)) {
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

/// What differs between a release and what is live where it goes; `None` = nothing is, or it cannot be told.
pub(in crate::engine) async fn changed_paths(
    world: &World,
    project: &ProjectName,
    live: Option<&Release>,
    ships: &Release,
) -> Option<Vec<String>> {
    world.forge.changed(project, &live?.commit.sha, &ships.commit.sha).await.ok()
}

/// What a run adopts in an environment, or why nothing; `None` = there is nothing to adopt.
async fn adopts(world: &World, run: &Run, environment: &Environment, hosts: &[Host]) -> Option<Result<Adopted, Cause>> {
    let asking = adoption::Asking::of(&run.header, environment);
    match (&run.target, &run.header.request.purpose) {
        // It was asked before the environment was ours.
        (Some(chosen), Purpose::Adopt) => Some(match adoption::adopted(world, &asking, hosts, None).await {
            Ok(now) if now.target.release.id != chosen.release.id => {
                let message =
                    format!("what the hosts of {} report changed while this waited; ask again", environment.name);
                Err(Cause::new("outdated", message))
            }
            adopted => adopted,
        }),
        (Some(_), _) => None,
        (None, _) => adoption::first(world, &asking, hosts, run.release.as_ref()).await,
    }
}

/// What a plan is made for.
pub(in crate::engine) struct Asked<'a> {
    pub(in crate::engine) project: &'a ProjectName,
    pub(in crate::engine) environment: &'a Environment,
    /// What ships and by which code, if that is known yet.
    pub(in crate::engine) ships: Option<(&'a ReleaseId, &'a Digest)>,
    /// What is put back instead.
    pub(in crate::engine) target: Option<&'a Target>,
    pub(in crate::engine) purpose: &'a Purpose,
}

/// The waves over `hosts`, with what control knows of each, and what they have by what is adopted.
///
/// # Errors
/// `max_shrink`, and those of [`plan::phases`].
pub(in crate::engine) fn phases(
    world: &World,
    asked: &Asked<'_>,
    hosts: Vec<Host>,
    adopted: Option<Result<Adopted, Cause>>,
) -> Result<(Vec<Host>, Phases), Cause> {
    let (project, environment) = (asked.project, asked.environment);
    let known = ledger::hosts(&*world.control, project, &environment.name);
    if asked.target.is_none() {
        let ended = hosts::ended(world, project, environment).iter().filter(|id| known.contains_key(*id)).count();
        shrunk(environment, known.len(), hosts.len() + ended)?;
    }
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
    if let Some(Ok(adopted)) = &adopted {
        let release = &adopted.target.release.id;
        fleet.current.extend(adopted.adoption.reports.keys().map(|host| (host.clone(), release.clone())));
    }
    let Some(target) = asked.target else {
        let (hosts, mut phases) = plan::phases(&environment.rollout, fleet)?;
        let known_good = ledger::known_good(&*world.control, project, &environment.name);
        let back = match adopted {
            Some(adopted) => adopted.map(|Adopted { target, adoption }| {
                phases.adopted = Some(adoption);
                target
            }),
            None => way_back(world, asked, &known_good),
        };
        match back {
            Ok(target) => phases.target = Some(Box::new(target)),
            Err(cause) => phases.no_target = Some(cause),
        }
        phases.expected_ms = known_good.first().map(|good| good.took_ms).filter(|took| *took > 0);
        return Ok((hosts, phases));
    };
    let current = fleet.current.clone();
    let quarantined = fleet.quarantined.clone();
    let goes = |host: &Host| match asked.purpose {
        Purpose::Converge { hosts } if hosts.is_empty() => {
            current.get(&host.id) != Some(&target.release.id) && !quarantined.contains(&host.id)
        }
        Purpose::Converge { hosts } => hosts.contains(&host.id),
        Purpose::Deploy | Purpose::Rollback { .. } => true,
        Purpose::Adopt => false,
    };
    let (hosts, mut phases) = plan::straight(&environment.rollout, fleet, goes);
    phases.adopted = adopted.and_then(Result::ok).map(|adopted| adopted.adoption);
    Ok((hosts, phases))
}

/// A list that has lost too many hosts at once is more likely wrong than they are gone. Hosts that others took the place of are not lost.
fn shrunk(environment: &Environment, before: usize, now: usize) -> Result<(), Cause> {
    let allowed = environment.rollout.max_shrink.of(before);
    let lost = before.saturating_sub(now);
    if lost == 0 || lost <= allowed {
        return Ok(());
    }
    let message = format!(
        "{} had {before} hosts and its list has {now} now: {lost} are missing, and max_shrink allows {allowed}. If they are gone for \
         good, start it once with max_shrink = \"100%\"",
        environment.name,
    );
    Err(Cause::new("max_shrink", message))
}

/// What a failure of this run would go back to.
fn way_back(world: &World, asked: &Asked<'_>, known_good: &[Good]) -> Result<Target, Cause> {
    let (project, environment) = (asked.project, asked.environment);
    let live = ledger::live(&*world.control, project, &environment.name).map(|live| live.release.id);
    // Going back to itself heals nothing; by another code it may.
    let other = |target: &Target| {
        asked.ships.is_none_or(|(release, code)| *release != target.release.id || *code != target.code)
    };
    let targets = || known_good.iter().map(|good| &good.target).filter(|target| other(target));
    // What the untouched hosts have, so that all have the same again.
    let target = targets().find(|target| Some(&target.release.id) == live.as_ref()).or_else(|| targets().next());
    let Some(target) = target else {
        let message = format!("{} has no other known-good release: this is the first", environment.name);
        return Err(Cause::new("no_target", message));
    };
    opens(world, project, target).map(|()| target.clone())
}

/// Which hosts have come or gone since the plan was made.
pub(super) async fn look(context: &Context, run: &Run, deployment: u32, wave: u32) -> Event {
    let world = &context.world;
    let seen = |gone, joined| Event::FleetSeen { deployment, gone, joined, wave, why: BTreeMap::new() };
    let Some((of, environment)) =
        run.deployment(deployment).and_then(|of| Some((of, run.environment(&of.environment)?)))
    else {
        return seen(Vec::new(), Vec::new());
    };
    let stop = |cause| {
        let then = environment.rollout.on_failure;
        Event::Judged { deployment, cause, bad: false, then }
    };
    let found = match hosts::of(world, &run.header.project, &run.header.code, environment, Need::Wave).await {
        Ok(found) => found,
        Err(cause) if cause.code == "no_hosts" => Vec::new(),
        Err(cause) if matches!(cause.code.as_str(), "min_hosts" | "max_shrink") => return stop(cause),
        Err(cause) => {
            // The list as it was is better than none; whoever is gone cannot be reached, and that has a budget.
            tracing::warn!(project = %run.header.project, run = %run.header.run, %cause, "the hosts cannot be looked up again; the plan's are used");
            return seen(Vec::new(), Vec::new());
        }
    };
    let (gone, joined) = difference(of, found);
    let before = of.hosts.iter().filter(|h| !h.gone).count();
    let project = &run.header.project;
    let ended = hosts::ended(world, project, environment).iter().filter(|id| gone.contains(id)).count();
    match shrunk(environment, before, before + joined.len() + ended - gone.len()) {
        Ok(()) => {
            let why = hosts::why_out(world, project, environment, &gone);
            Event::FleetSeen { deployment, gone, joined, wave, why }
        }
        Err(cause) => stop(cause),
    }
}

/// Whom to ask after hosts that something is wrong with: one that its provider has ended is neither unreachable nor ill.
pub(in crate::engine) struct Roster {
    deployment: u32,
    /// The wave that is under way.
    wave: u32,
    project: ProjectName,
    code: Digest,
    environment: Environment,
    /// How many hosts the deployment has, and which of them are no more.
    hosts: usize,
    gone: Vec<HostId>,
}

impl Roster {
    /// `None` = only the project's file says who there is, and nobody in it ends.
    pub(super) fn of(run: &Run, of: &Deployment, wave: u32) -> Option<Roster> {
        let environment = run.environment(&of.environment)?;
        let asks = environment.hosts.iter().any(|source| matches!(source, HostSource::Plugin { .. }));
        (asks && of.rollback_of.is_none()).then(|| Roster {
            deployment: of.n,
            wave,
            project: run.header.project.clone(),
            code: run.header.code.clone(),
            environment: environment.clone(),
            hosts: of.hosts.len(),
            gone: of.hosts.iter().filter(|host| host.gone).map(|host| host.host.id.clone()).collect(),
        })
    }

    /// Whether a source has said already that this host has ended.
    pub(super) fn knows_ended(&self, world: &World, host: &HostId) -> bool {
        hosts::ended(world, &self.project, &self.environment).contains(host)
    }

    /// Those that are no more, with the fact that says so. Of the `lost`, which nobody gets to, the sources are asked now, and it will do that they
    /// name them no more, unless they have lost too many so. An `ill` one must be known to have ended: there are lists of those that are well.
    pub(super) async fn gone(
        &mut self,
        world: &World,
        lost: &[HostId],
        ill: &[HostId],
    ) -> Option<(Vec<HostId>, Event)> {
        let (project, environment) = (&self.project, &self.environment);
        let found = match lost.is_empty() {
            true => None,
            false => Some(hosts::of(world, project, &self.code, environment, Need::Back).await),
        };
        let ended = hosts::ended(world, project, environment);
        let vanished = match found {
            Some(Ok(found)) => lost.iter().filter(|id| found.iter().all(|host| host.id != **id)).cloned().collect(),
            // All that it knew have gone, which it was asked about.
            Some(Err(cause)) if cause.code == "no_hosts" => lost.to_vec(),
            Some(Err(_)) | None => Vec::new(),
        };
        let unsaid: BTreeSet<&HostId> = self.gone.iter().chain(&vanished).filter(|id| !ended.contains(*id)).collect();
        let unsaid = unsaid.len();
        let believed = shrunk(environment, self.hosts, self.hosts.saturating_sub(unsaid)).is_ok();
        let mut gone: BTreeSet<HostId> = lost.iter().chain(ill).filter(|id| ended.contains(*id)).cloned().collect();
        if believed {
            gone.extend(vanished);
        }
        let gone: Vec<HostId> = gone.into_iter().collect();
        let why = hosts::why_out(world, project, environment, &gone);
        self.gone.extend(gone.iter().cloned());
        let (deployment, wave, joined) = (self.deployment, self.wave, Vec::new());
        let seen = Event::FleetSeen { deployment, gone: gone.clone(), joined, wave, why };
        (!gone.is_empty()).then_some((gone, seen))
    }
}

fn difference(of: &Deployment, found: Vec<Host>) -> (Vec<HostId>, Vec<Host>) {
    let there: BTreeSet<&HostId> = found.iter().map(|host| &host.id).collect();
    let gone = of.hosts.iter().filter(|h| !h.gone && !there.contains(&h.host.id)).map(|h| h.host.id.clone()).collect();
    let joined = found.iter().filter(|host| of.host(&host.id).is_none()).cloned().collect();
    (gone, joined)
}
