//! What was on an environment's hosts before phased deployed anything there: asked of the hosts themselves, so that a first failure has
//! something to go back to.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::StreamExt as _;

use super::{ledger, world::World};
use crate::{
    model::{
        adoption::{Adoption, agreed},
        cause::Cause,
        deployment::DeploymentState,
        event::{Header, Wanted},
        health::Fact,
        host::Host,
        host_key::Realm,
        ids::{Digest, ProjectName, ReleaseId, RunId},
        pipeline::{Check, Environment, Source},
        plan::Target,
        release::Release,
    },
    ports::program::Loaded,
    time::{Span, within},
};

/// How many hosts are asked at the same moment.
const WIDE: usize = 64;
/// The longest that one may take, its connection included: a dead one delays nobody longer.
const LIMIT: Duration = Duration::from_secs(10);

/// Who adopts.
pub(super) struct Asking<'a> {
    pub(super) project: &'a ProjectName,
    pub(super) source: &'a Source,
    pub(super) environment: &'a Environment,
    /// What is adopted is deployed by this code from then on.
    pub(super) code: &'a Digest,
    pub(super) run: RunId,
}

impl<'a> Asking<'a> {
    /// For a run's environment.
    pub(super) fn of(header: &'a Header, environment: &'a Environment) -> Self {
        let Header { project, code, run, pipeline, .. } = header;
        Asking { project, source: &pipeline.source, environment, code, run: run.clone() }
    }

    /// For somebody who only wants to know: no run adopts it.
    pub(super) fn now(world: &World, loaded: &'a Loaded, environment: &'a Environment) -> Self {
        let run = RunId::new(world.clock.now().wall_ms, world.random_u128());
        Asking { project: &loaded.name, source: &loaded.pipeline.source, environment, code: &loaded.code, run }
    }
}

/// A release that was there already.
pub(super) struct Adopted {
    pub(super) target: Target,
    pub(super) adoption: Adoption,
}

/// What the first deployment of an environment adopts, or why nothing; `None` = it is not the first. `ships` is what is to be deployed, as
/// far as that is known.
pub(super) async fn first(
    world: &World,
    asking: &Asking<'_>,
    hosts: &[Host],
    ships: Option<&Release>,
) -> Option<Result<Adopted, Cause>> {
    let (control, project, name) = (&*world.control, asking.project, &asking.environment.name);
    if ledger::live(control, project, name).is_some() || !ledger::known_good(control, project, name).is_empty() {
        return None;
    }
    let none = |why: Cause| {
        let message = format!("{name} has no other known-good release: {}", why.message);
        Cause::new("no_target", message).with("adoption", why.code)
    };
    let last = ledger::last(control, project, name).filter(|last| last.state != DeploymentState::Failed);
    let adopted = match last {
        // What its hosts report may be what was just found wanting.
        Some(last) => {
            let message = format!(
                "run {} has left it as it is; once that is good, `phased adopt {project} {name}` makes known-good what its hosts report",
                last.run
            );
            Err(Cause::new("not_the_first", message))
        }
        None => adopted(world, asking, hosts, ships).await.map_err(|why| {
            let message = format!("this is the first, and nothing could be adopted: {}", why.message);
            Cause { message, ..why }
        }),
    };
    Some(adopted.map_err(none))
}

/// What all of an environment's hosts report.
///
/// # Errors
/// `no_version`, `artifacts`, `hosts_disagree`, `adopted_bad`, `adopted_same`, or that the commit is not to be had.
pub(super) async fn adopted(
    world: &World,
    asking: &Asking<'_>,
    hosts: &[Host],
    ships: Option<&Release>,
) -> Result<Adopted, Cause> {
    let (project, environment) = (asking.project, asking.environment);
    let Some((check, limit)) = version(environment) else {
        let message = "its health has no `version`, so nobody can tell what its hosts run";
        return Err(Cause::new("no_version", message));
    };
    let artifacts =
        ships.map_or_else(|| ledger::last_passed(&*world.control, project), |ships| ships.artifacts.clone());
    if let Some(artifact) = artifacts.first() {
        let message =
            format!("its releases have artifacts ({}), and of what its hosts run there are none", artifact.name);
        return Err(Cause::new("artifacts", message));
    }
    // Where one cannot be asked nothing is adopted: then nobody waits for the others.
    let in_vain = AtomicBool::new(false);
    let in_vain = &in_vain;
    let asked = hosts.iter().cloned().map(|host| async move {
        if in_vain.load(Ordering::Relaxed) {
            return (host, Err(Cause::new("not_asked", "not asked any more")));
        }
        let said = ask(world, asking, &host, check, limit).await;
        in_vain.fetch_or(said.is_err(), Ordering::Relaxed);
        (host, said)
    });
    let mut said: Vec<(Host, Result<String, Cause>)> =
        futures_util::stream::iter(asked).buffer_unordered(WIDE).collect().await;
    said.sort_by(|(a, _), (b, _)| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    let commit = agreed(&said.iter().map(|(host, said)| (host.name.as_str(), said)).collect::<Vec<_>>())?;
    let found = world.forge.resolve(project, asking.source, &Wanted::Named(commit.clone())).await.map_err(|why| {
        let message = format!("all its hosts report {commit}, and that cannot be had: {}", why.message);
        Cause { message, ..why }
    })?;
    if !found.commit.sha.as_str().starts_with(&commit) {
        let message = format!("all its hosts report {commit}, which is no commit of the repository");
        return Err(Cause::new("ref_unknown", message));
    }
    if let Some((release, bad)) = ledger::bad(&*world.control, project, &found.commit) {
        let message = format!("all its hosts report {release}, which run {} found bad: {}", bad.run, bad.cause.message);
        return Err(Cause::new("adopted_bad", message));
    }
    if ships.is_some_and(|ships| ships.commit.sha == found.commit.sha) {
        let message = format!("all its hosts report {commit}, which is what is deployed now");
        return Err(Cause::new("adopted_same", message));
    }
    let reports: BTreeMap<_, _> =
        said.into_iter().filter_map(|(host, said)| Some((host.id.clone(), said.ok()?.trim().to_owned()))).collect();
    let release = Release {
        id: ReleaseId::first_build(&found.commit.sha),
        branch: Some(asking.source.branch.clone()),
        tag: None,
        artifacts: Vec::new(),
        commit: found.commit,
    };
    tracing::info!(%project, environment = %environment.name, release = %release.id, hosts = reports.len(), "what all hosts report is adopted");
    let (code, run) = (asking.code.clone(), asking.run.clone());
    let target = Target { release, code, environment: environment.without_hosts(), run };
    Ok(Adopted { target, adoption: Adoption { reports } })
}

/// How a host is asked for its version, and how long one look may take.
fn version(environment: &Environment) -> Option<(&Check, Duration)> {
    let health = environment.health.as_ref()?;
    let check = health.checks.iter().find(|check| matches!(check, Check::Version(_)))?;
    Some((check, Duration::from_millis(health.timeout_ms)))
}

/// The version that a host reports.
async fn ask(world: &World, asking: &Asking<'_>, host: &Host, check: &Check, limit: Duration) -> Result<String, Cause> {
    let mut check = check.clone();
    let variables = [
        ("PHASED_PROJECT", asking.project.as_str()),
        ("PHASED_ENVIRONMENT", asking.environment.name.as_str()),
        ("PHASED_HOST_ID", host.id.as_str()),
        ("PHASED_HOST_NAME", host.name.as_str()),
        ("PHASED_PHASE", "health"),
    ];
    let variables: Vec<(String, String)> =
        variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    check.fill(&variables);
    let work = async {
        let link = world
            .links
            .host(&Realm::new(asking.project, &asking.environment.name), host)
            .await
            .map_err(|error| error.cause)?;
        let sight = world.probe.look(&*link, &check, limit).await;
        link.close().await;
        match sight.fact {
            Some(Fact::Version(version)) => Ok(version),
            _ => Err(Cause::new("no_version", sight.seen)),
        }
    };
    let late = || Err(Cause::new("timeout", format!("it did not answer within {}", Span(LIMIT))));
    within(&*world.clock, LIMIT, work).await.unwrap_or_else(late)
}
