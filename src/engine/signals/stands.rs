//! How a receiver stands: a run of it, and what is live in an environment.

use super::{
    super::{
        conductor::Conductor,
        handle::Refusal,
        ledger::{self, freezes},
        world::World,
    },
    look::{self, Seen},
};
use crate::{
    model::{
        cause::Cause,
        deployment::DeploymentState,
        doors,
        ids::{ReleaseId, RunId},
        pipeline::Environment,
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
    let (mut wrong, mut unseen) = (ended, changed(world, loaded, environment));
    let mut looked = false;
    // What is being changed is not looked at, as its own run does that, nor is what nobody asks for.
    if let (None, None, Some(live)) = (&wrong, &unseen, live.as_ref().filter(|live| live.release.id == *asked)) {
        match look::look(world, &conductor.inner.inbox.watches, loaded, environment, live).await {
            Seen::Nothing => {}
            Seen::Well => looked = true,
            Seen::Ill(cause) => (looked, wrong) = (true, Some(cause)),
            Seen::Unseen(cause) => unseen = Some(cause),
        }
    }
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
