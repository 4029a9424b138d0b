//! The end of a run: its outcome, its message to people and its leases go to control in one record.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    command::{Left, Session, ToLocal},
    ledger::{self, LastRun},
    message,
    world::World,
};
use crate::{
    model::{
        cause::Cause,
        ids::{ProjectName, RunId},
        run::{Checkout, Run, RunState},
    },
    ports::{control::Commit, hands::Hands, journal::Ticket},
    time::within,
};

/// How long what follows in its project is kept waiting for what a run that nobody continues has left running: its grace takes 2 s, what nothing ends 7 s.
const LEFT: Duration = Duration::from_secs(15);

/// Completes a run whose journal has its `end`: live, or at the next start. Idempotent by run id.
///
/// # Errors
/// Why control does not know: the disk. The next start completes it.
pub(super) async fn finish(world: &World, run: &Run, ticket: Option<&Ticket>) -> Result<(), String> {
    if let Some(ticket) = ticket {
        // Run first, then control: a crash between the two is completed at start, the other way round would lie.
        ticket.synced().await.map_err(|error| error.to_string())?;
    }
    let Some((state, ..)) = &run.end else { return Err("the run has not ended".to_owned()) };
    if ledger::holds_leases(world, run) {
        // Before control forgets the run: killed in between, nobody would know any more that they are to be given back. And after what
        // the next holder looks at.
        if let Err(error) = ledger::commit(&*world.control, Commit::DeploymentEnded, ledger::puts(&*world.control, run))
        {
            return Err(error.to_string());
        }
        ledger::release_leases(world, run);
    }
    let puts = puts(world, run, *state);
    let ended = match ledger::commit(&*world.control, Commit::RunEnded, puts) {
        Ok(ticket) => ticket.synced().await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = &ended {
        tracing::error!(project = %run.header.project, run = %run.header.run, %error, "the end of a run is not in control; the next start completes it");
        return ended;
    }
    clear(world, run);
    ended
}

/// Takes the run's checkout away, whenever that is done, also one that was never finished: nothing of a run that has ended needs it.
fn clear(world: &World, run: &Run) {
    let dir = match &run.checkout {
        Checkout::At(dir) => PathBuf::from(dir),
        _ if run.release.is_none() => return,
        _ => world.forge.work_dir(&run.header.project).join(run.header.run.as_str()),
    };
    let (hands, project) = (Arc::clone(&world.hands), run.header.project.clone());
    let clearing = async move {
        remove(&*hands, &project, &dir).await;
    };
    world.tasks.spawn(format!("run {} clear", run.header.run), clearing);
}

/// Takes one away; what does not go now is tried again by [`leftovers`].
async fn remove(hands: &dyn Hands, project: &ProjectName, dir: &Path) {
    if let Err(cause) = hands.remove(project, dir).await
        // Another may have been at it as well.
        && std::fs::symlink_metadata(dir).is_ok()
    {
        tracing::warn!(dir = %dir.display(), %cause, "a checkout is left behind; it is tried again within the hour");
    }
}

/// Ends what the commands of a run that nobody continues have left running on this machine, and those that are under way: nobody would
/// read them. Waits for it, so that what follows finds the machine free, but not for long.
pub(super) async fn end_left(world: &World, project: &ProjectName, run: &RunId) {
    let connect = Arc::new(ToLocal { links: Arc::clone(&world.links), project: project.clone() });
    let local = Session::of_run(connect, Arc::clone(&world.clock), run.clone());
    let late = || Err(Cause::new("timeout", format!("this machine has not done it within {} s", LEFT.as_secs())));
    let left = within(&*world.clock, LEFT, local.end_left()).await.unwrap_or_else(late);
    match Left::told(&left) {
        None => {}
        Some(told) if left.as_ref().is_ok_and(|left| left.remain == 0) => {
            tracing::warn!(%project, %run, "its commands {told}");
        }
        Some(told) => {
            tracing::error!(%project, %run, "its commands {told}; look for processes with PHASED_RUN of this run in their environment");
        }
    }
    local.close().await;
}

/// Takes the checkouts of runs away that have ended: those that were left behind.
pub(super) async fn leftovers(world: &World) {
    let work = world.data_dir.join("work");
    let found = match world.tasks.blocking(move || checkouts(&work)).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "nobody has looked for checkouts that were left behind");
            return;
        }
    };
    for (project, run, dir) in found {
        if world.control.get(&ledger::run_key(&run)).is_none() {
            remove(&*world.hands, &project, &dir).await;
        }
    }
}

/// Every checkout there is below `work`. What cannot be read has none that can be removed.
fn checkouts(work: &Path) -> Vec<(ProjectName, RunId, PathBuf)> {
    let below = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().ok();
    let mut found = Vec::new();
    for project in below(work) {
        let Some(of) = name(&project).and_then(|name| name.parse::<ProjectName>().ok()) else { continue };
        let runs = below(&project.path());
        found.extend(runs.filter_map(|run| Some((of.clone(), name(&run)?.parse::<RunId>().ok()?, run.path()))));
    }
    found
}

fn puts(world: &World, run: &Run, state: RunState) -> Vec<(String, Option<Value>)> {
    let header = &run.header;
    let project = &header.project;
    let control = &*world.control;
    let mut puts = ledger::puts(control, run);
    if state != RunState::Superseded {
        let before = ledger::last_run(control, project);
        // Of two runs that overlap the newer one's word stays, but the bad news of each arrives.
        let newest = before.as_ref().is_none_or(|last| last.run <= header.run);
        let recovered = newest && state == RunState::Succeeded && before.is_some_and(|last| last.state.is_bad());
        puts.extend(message::outbox(world, run, state, recovered));
        // A person who stops a run knows; it neither heals nor harms what was said before.
        if newest && state != RunState::Stopped {
            puts.push((format!("last/{project}"), Some(json!(LastRun { run: header.run.clone(), state }))));
        }
    }
    // The last put: until it is written the next start completes the rest.
    puts.push((ledger::run_key(&header.run), None));
    puts
}
