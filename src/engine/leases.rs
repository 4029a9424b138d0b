//! Leases and people: one may hold an environment, and take it away from a deployment, which then ends.

use super::{
    conductor::Conductor,
    handle::{LeaseAsk, Refusal},
    ledger,
    view::{LeaseView, WaitingView},
};
use crate::{
    model::{
        doors,
        ids::{DeploymentId, ProjectName},
        pipeline::Environment,
    },
    ports::{
        control::Commit,
        leases::{Acquired, Holder},
        program::Loaded,
    },
    time::rfc3339,
};

/// Whether it is a deployment's, not a person's.
fn deployment(holder: &str) -> Option<DeploymentId> {
    holder.parse().ok()
}

impl Conductor {
    /// Who holds the lease of `environment`.
    pub(super) fn held(&self, project: &ProjectName, environment: &Environment) -> Option<WaitingView> {
        self.inner.world.leases.holder(&doors::lease(project, environment)).map(|held| WaitingView {
            code: "lease".to_owned(),
            holder: held.holder,
            until: held.until_ms.map(rfc3339),
            reason: Some(held.reason).filter(|reason| !reason.is_empty()),
        })
    }
}

/// How it is.
pub(super) fn view(conductor: &Conductor, loaded: &Loaded, environment: &Environment) -> LeaseView {
    let held = conductor.inner.world.leases.holder(&doors::lease(&loaded.name, environment));
    LeaseView {
        project: loaded.name.to_string(),
        environment: environment.name.to_string(),
        group: environment.group.clone(),
        held: held.is_some(),
        since: held.as_ref().map(|held| rfc3339(held.since_ms)),
        until: held.as_ref().and_then(|held| held.until_ms).map(rfc3339),
        epoch: held.as_ref().map(|held| held.epoch.0),
        reason: held.as_ref().map(|held| held.reason.clone()).filter(|reason| !reason.is_empty()),
        holder: held.map(|held| held.holder),
    }
}

fn refused(loaded: &Loaded, environment: &Environment, held: &Holder) -> Refusal {
    let since = rfc3339(held.since_ms);
    let why = if held.reason.is_empty() { String::new() } else { format!(" ({})", held.reason) };
    let place = match &environment.group {
        Some(group) => format!("{} of {} (group {group})", environment.name, loaded.name),
        None => format!("{} of {}", environment.name, loaded.name),
    };
    Refusal::LeaseHeld(match deployment(&held.holder) {
        Some(id) => format!(
            "{place} is held by deployment {id}{why} since {since}; wait for its end, stop it with `phased stop {}`, or take the lease away with force=true: \
             then it begins no further host, and is halted if it has touched one",
            id.run
        ),
        None => {
            let until = held.until_ms.map(|until| format!(" until {}", rfc3339(until))).unwrap_or_default();
            format!(
                "{place} is held by {}{why} since {since}{until}; ask them, or take it with force=true",
                held.holder
            )
        }
    })
}

/// Gives the environment to a person, or more time to the one who has it. Returns once that is on disk.
pub(super) async fn hold(
    conductor: &Conductor,
    loaded: &Loaded,
    environment: &Environment,
    ask: LeaseAsk,
    by: &str,
) -> Result<LeaseView, Refusal> {
    conductor.writable()?;
    let holder = ledger::cut(ask.holder.as_deref().unwrap_or(by), 256);
    if deployment(&holder).is_some() {
        return Err(Refusal::Value(format!("holder {holder:?} reads as a deployment; give the name of a person")));
    }
    let reason = ledger::cut(ask.reason.as_deref().unwrap_or_default(), ledger::LONGEST);
    let name = doors::lease(&loaded.name, environment);
    let leases = &conductor.inner.world.leases;
    let before = leases.holder(&name).filter(|held| held.holder != holder);
    let asked =
        leases.hold(&name, &holder, &reason, ask.until_ms, ask.force).map_err(|error| conductor.refused(&error))?;
    match asked {
        Acquired::Held(held) => Err(refused(loaded, environment, &held)),
        Acquired::Granted(epoch, ticket) => {
            conductor.synced(&ticket).await?;
            let from = before.map(|held| held.holder);
            tracing::warn!(lease = name, holder, by, epoch = epoch.0, from, "a person holds an environment");
            Ok(view(conductor, loaded, environment))
        }
    }
}

/// Takes it away from whoever has it: from a deployment or another person only by `force`. Returns once that is on disk.
pub(super) async fn give_back(
    conductor: &Conductor,
    loaded: &Loaded,
    environment: &Environment,
    ask: LeaseAsk,
    by: &str,
) -> Result<LeaseView, Refusal> {
    conductor.writable()?;
    let world = &conductor.inner.world;
    let name = doors::lease(&loaded.name, environment);
    let holder = ask.holder.as_deref().unwrap_or(by);
    if let Some(held) = world.leases.holder(&name) {
        if held.holder != holder && !ask.force {
            return Err(refused(loaded, environment, &held));
        }
        world.leases.release(&name, &held.holder).map_err(|error| conductor.refused(&error))?;
        tracing::warn!(lease = name, from = held.holder, by, "an environment was given back by hand");
    }
    // Nothing is written; the record's place behind the return is what counts.
    let ticket = world.control.commit(Commit::Lease, &[], Vec::new()).map_err(|error| conductor.refused(&error))?;
    conductor.synced(&ticket).await?;
    Ok(view(conductor, loaded, environment))
}
