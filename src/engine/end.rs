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

/// Completes a run whose journal has its `end`: live, or at the next start. Idempotent by run id. True when control knows.
pub(super) async fn finish(world: &World, run: &Run, ticket: Option<&Ticket>) -> bool {
    if let Some(ticket) = ticket {
        // Run first, then control: a crash between the two is completed at start, the other way round would lie.
        if ticket.synced().await.is_err() {
            return false;
        }
    }
    let Some((state, ..)) = &run.end else { return false };
    let puts = puts(world, run, *state);
    match world.control.commit(Commit::RunEnded, &[], puts) {
        Ok(ticket) => {
            let known = ticket.synced().await.is_ok();
            ledger::release_leases(world, run);
            clear(world, run);
            known
        }
        Err(error) => {
            tracing::error!(run = %run.header.run, %error, "the end of a run is not in control; the next start completes it");
            false
        }
    }
}

/// Takes the run's checkout away, whenever that is done: nothing of a run that has ended needs it.
fn clear(world: &World, run: &Run) {
    let Checkout::At(dir) = &run.checkout else { return };
    let dir = std::path::PathBuf::from(dir);
    let clearing = async move {
        // The standard library follows no links here, whatever the code under test left behind.
        if let Err(error) = tokio::fs::remove_dir_all(&dir).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %dir.display(), %error, "a checkout is left behind");
        }
    };
    world.tasks.spawn(format!("run {} clear", run.header.run), clearing);
}

fn puts(world: &World, run: &Run, state: RunState) -> Vec<(String, Option<Value>)> {
    let header = &run.header;
    let project = &header.project;
    let control = &*world.control;
    let mut puts = ledger::puts(control, run);
    puts.push((ledger::run_key(&header.run), None));
    if state == RunState::Superseded {
        return puts;
    }
    let before = ledger::last_run(control, project);
    if before.as_ref().is_some_and(|last| last.run >= header.run) {
        return puts;
    }
    let recovered = state == RunState::Succeeded && before.is_some_and(|last| last.state.is_bad());
    // A person who stops a run knows; it neither heals nor harms what was said before.
    if state != RunState::Stopped {
        puts.push((format!("last/{project}"), Some(json!(LastRun { run: header.run.clone(), state }))));
    }
    puts.extend(message::outbox(world, run, state, recovered));
    puts
}
