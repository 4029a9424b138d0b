//! How a receiver stands: a run of it, and what is live in an environment.

use std::time::Duration;

use super::super::{
    actions::with_variables,
    conductor::Conductor,
    freezes,
    handle::Refusal,
    ledger::{self, Live},
    world::World,
};
use crate::{
    model::{
        cause::Cause,
        deployment::DeploymentState,
        doors,
        health::{Deployed, Fact},
        host::Transport,
        ids::{ReleaseId, RunId},
        pipeline::{Environment, HostSource},
        signal::{RunStands, Stands},
    },
    ports::program::Loaded,
    time::rfc3339,
};

/// How a run stands.
pub(super) async fn run(conductor: &Conductor, run: &RunId) -> Result<RunStands, Cause> {
    let control = &*conductor.inner.world.control;
    // Read before the view: what control knows of an end is in the views.
    let known = control.get(&ledger::run_key(run)).is_none();
    let view = match conductor.view_now(run).await {
        Ok(view) => view,
        Err(Refusal::RunUnknown(_)) => {
            let message = format!("run {run} is not kept here any more ([retention]); nobody can tell how it ended");
            return Err(Cause::new("signal_no_run", message));
        }
        Err(refusal) => return Err(Cause::new("signal_not_taken", refusal.to_string())),
    };
    // Over is what is on disk everywhere: what is live then, and whether the release is bad, is known as well.
    let over = view.state.is_end() && known;
    let release = view.release.as_ref().and_then(|release| release.id.parse::<ReleaseId>().ok());
    let project = view.project.parse().ok();
    let bad = project.zip(release).and_then(|(project, release)| ledger::bad_release(control, &project, &release));
    let waits = view.waiting.as_ref().map(|waiting| {
        let why = waiting.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        Cause::new(&waiting.code, format!("it waits for {}: {}{why}", waiting.code, waiting.holder))
    });
    let ended = view.cause.as_ref().map(|cause| Cause::new(&cause.code, cause.message.clone()));
    Ok(RunStands {
        run: run.clone(),
        state: view.state,
        over,
        bad: over && bad.is_some_and(|bad| bad.run == *run),
        cause: if over { ended } else { waits },
    })
}

/// Why nothing new is taken in an environment now.
pub(super) fn shut(
    conductor: &Conductor,
    loaded: &Loaded,
    environment: &Environment,
    now_ms: i64,
    back: bool,
) -> Option<Cause> {
    if conductor.inner.maintenance.is_on() {
        return Some(Cause::new("signal_paused", "maintenance is on there: `phased maintenance off` ends it"));
    }
    let control = &*conductor.inner.world.control;
    let waiting = freezes::waiting(control, &environment.freeze, &loaded.name, &environment.name, now_ms)?;
    if back {
        return None;
    }
    let until = waiting.until_ms.map(|until| format!(" until {}", rfc3339(until))).unwrap_or_default();
    let why = waiting.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let message = format!("{} is frozen there by {}{until}{why}", environment.name, waiting.holder);
    Some(Cause::new("signal_frozen", message))
}

/// What is live in an environment, and whether it is well.
pub(super) async fn live(
    conductor: &Conductor,
    loaded: &Loaded,
    environment: &Environment,
    asked: &ReleaseId,
    now_ms: i64,
) -> Stands {
    let world = &conductor.inner.world;
    let control = &*world.control;
    let live = ledger::live(control, &loaded.name, &environment.name);
    let bad = ledger::bad_release(control, &loaded.name, asked)
        .filter(|_| live.as_ref().is_none_or(|live| live.release.id != *asked))
        .map(|bad| Cause::new("bad_release", format!("run {} there found it bad: {}", bad.run, bad.cause.message)));
    let busy = conductor.active(&loaded.name).into_iter().next();
    let last = ledger::last(control, &loaded.name, &environment.name);
    let ended = last.filter(|last| last.state != DeploymentState::Succeeded).map(|last| {
        let why = last.cause.map(|cause| format!(": {}", cause.message)).unwrap_or_default();
        Cause::new("last_deployment", format!("the last deployment there (run {}) did not end well{why}", last.run))
    });
    let unseen = changed(world, loaded, environment);
    let (looked, wrong) = match (ended, &live, &unseen) {
        (Some(ended), ..) => (false, Some(ended)),
        // What is being changed is not looked at: its own run does that.
        (None, Some(live), None) => ill(world, loaded, environment, live).await,
        (None, ..) => (false, None),
    };
    Stands {
        release: live.map(|live| live.release.id),
        bad,
        wrong,
        unseen,
        looked,
        busy,
        shut: shut(conductor, loaded, environment, now_ms, false),
    }
}

/// The deployment that holds an environment; a person who holds it changes nothing by that.
fn changed(world: &World, loaded: &Loaded, environment: &Environment) -> Option<Cause> {
    let own = doors::leases(&loaded.name, environment).pop()?;
    let held = world.leases.holder(&own)?;
    held.holder.split('.').next()?.parse::<RunId>().ok()?;
    let message = format!("deployment {} is under way there, and nobody looks meanwhile", held.holder);
    Some(Cause::new("connection_lost", message))
}

/// What one look at this machine's health finds wrong, if it is looked at: the checks of the environment, once. Hosts elsewhere are not.
async fn ill(world: &World, loaded: &Loaded, environment: &Environment, live: &Live) -> (bool, Option<Cause>) {
    let Some(health) = &environment.health else { return (false, None) };
    let local = environment.hosts.iter().any(|source| match source {
        HostSource::Static(hosts) => hosts.iter().any(|host| host.transport == Transport::Local),
        HostSource::Plugin { .. } => false,
    });
    if !local {
        return (false, None);
    }
    let link = match world.links.local(&loaded.name).await {
        Ok(link) => link,
        Err(error) => return (false, Some(error.cause)),
    };
    let deployed = Deployed::new(&live.release, None);
    let variables = [
        ("PHASED_PROJECT", loaded.name.as_str()),
        ("PHASED_ENVIRONMENT", environment.name.as_str()),
        ("PHASED_RELEASE", live.release.id.as_str()),
        ("PHASED_REVISION", live.release.commit.sha.as_str()),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    for check in &health.checks {
        let mut asked = check.clone();
        with_variables(&mut asked, &variables);
        let sight = world.probe.look(&*link, &asked, Duration::from_millis(health.timeout_ms)).await;
        let wrong = match &sight.fact {
            _ if !sight.good => Some(sight.seen),
            Some(Fact::Version(reported)) => deployed.check(reported).err(),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return (true, Some(Cause::new("unhealthy", format!("{}: {wrong}", check.name()))));
        }
    }
    (true, None)
}
