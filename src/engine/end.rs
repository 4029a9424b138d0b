//! The end of a run: its outcome, its message to people and its leases go to control in one record.

use serde_json::{Value, json};

use super::{
    ledger::{self, LastRun},
    message,
    world::World,
};
use crate::{
    model::run::{Checkout, Run, RunState},
    ports::{control::Commit, journal::Ticket},
};

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
        Checkout::At(dir) => std::path::PathBuf::from(dir),
        _ if run.release.is_none() => return,
        _ => world.forge.work_dir(&run.header.project).join(run.header.run.as_str()),
    };
    let (hands, project) = (std::sync::Arc::clone(&world.hands), run.header.project.clone());
    let clearing = async move {
        if let Err(cause) = hands.remove(&project, &dir).await {
            tracing::warn!(dir = %dir.display(), %cause, "a checkout is left behind");
        }
    };
    world.tasks.spawn(format!("run {} clear", run.header.run), clearing);
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
