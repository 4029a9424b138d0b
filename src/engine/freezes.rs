//! Freezes of environments, for people: how it is, and what they say of it by hand.

use serde_json::json;

use super::{
    conductor::Conductor,
    handle::{FreezeAsk, Refusal},
    ledger::{
        self,
        freezes::{by_hand, key, waiting, zones},
    },
    view::{FreezeView, SaidView, WaitingView},
};
use crate::{
    model::{
        freeze::{self, ByHand, Said, Window},
        ids::ProjectName,
        pipeline::Environment,
    },
    ports::{
        control::{Commit, CommitError},
        program::Loaded,
    },
    time::rfc3339,
};

/// How often a change by somebody else is met before giving up.
const TRIES: usize = 16;

fn shown(said: Said) -> SaidView {
    let Said { by, reason, since_ms, until_ms } = said;
    SaidView { by, reason, since: rfc3339(since_ms), until: until_ms.map(rfc3339) }
}

impl Conductor {
    /// What keeps new deployments away from `environment` now.
    pub(super) fn frozen(&self, project: &ProjectName, environment: &Environment) -> Option<WaitingView> {
        let world = &self.inner.world;
        let now = world.clock.now().wall_ms;
        waiting(&*world.control, &environment.freeze, project, &environment.name, now).map(|waiting| (&waiting).into())
    }
}

/// How it is.
pub(super) fn view(conductor: &Conductor, loaded: &Loaded, environment: &Environment) -> FreezeView {
    let world = &conductor.inner.world;
    let (_, said) = by_hand(&*world.control, &loaded.name, &environment.name);
    let said = said.still(world.clock.now().wall_ms);
    let waiting = conductor.frozen(&loaded.name, environment);
    let (holder, reason, until) = waiting.map_or((None, None, None), |w| (Some(w.holder), w.reason, w.until));
    FreezeView {
        project: loaded.name.to_string(),
        environment: environment.name.to_string(),
        frozen: holder.is_some(),
        holder,
        reason,
        until,
        by_hand: said.frozen.map(shown),
        lifted: said.lifted.map(shown),
        windows: environment.freeze.iter().map(Window::to_string).collect(),
    }
}

/// Freezes an environment by hand; what was said before is replaced. Returns once that is on disk.
pub(super) async fn freeze(
    conductor: &Conductor,
    loaded: &Loaded,
    environment: &Environment,
    ask: FreezeAsk,
    by: &str,
) -> Result<FreezeView, Refusal> {
    let said = |now: i64| Said {
        by: ledger::cut(ask.holder.as_deref().unwrap_or(by), 256),
        reason: ask.reason.as_ref().map(|reason| ledger::cut(reason, ledger::LONGEST)),
        since_ms: now,
        until_ms: ask.until_ms,
    };
    change(conductor, loaded, environment, by, |_, now| ByHand { frozen: Some(said(now)), lifted: None }).await
}

/// Lifts the freeze that is on: what somebody said by hand, and for this once a window of the file. Returns once that is on disk.
pub(super) async fn unfreeze(
    conductor: &Conductor,
    loaded: &Loaded,
    environment: &Environment,
    reason: Option<String>,
    by: &str,
) -> Result<FreezeView, Refusal> {
    let reason = reason.map(|reason| ledger::cut(&reason, ledger::LONGEST));
    let lift = |before: ByHand, now: i64| {
        let before = ByHand { frozen: None, ..before };
        let window = freeze::frozen(&environment.freeze, &before, now, &zones).map(|frozen| frozen.until_ms);
        let lifted =
            window.map(|until_ms| Said { by: ledger::cut(by, 256), reason: reason.clone(), since_ms: now, until_ms });
        ByHand { lifted: lifted.or(before.lifted), ..before }
    };
    change(conductor, loaded, environment, by, lift).await
}

async fn change(
    conductor: &Conductor,
    loaded: &Loaded,
    environment: &Environment,
    by: &str,
    next: impl Fn(ByHand, i64) -> ByHand,
) -> Result<FreezeView, Refusal> {
    conductor.writable()?;
    let world = &conductor.inner.world;
    let (project, name) = (&loaded.name, &environment.name);
    let mut tries = TRIES;
    let ticket = loop {
        let (revision, before) = by_hand(&*world.control, project, name);
        let now = world.clock.now().wall_ms;
        let said = next(before.still(now), now).still(now);
        let value = (said != ByHand::default()).then(|| json!(said));
        let puts = vec![(key(project, name), value)];
        match world.control.commit(Commit::Setting, &[(key(project, name), revision)], puts) {
            Err(CommitError::Conflict { .. }) if tries > 0 => tries -= 1,
            other => break other.map_err(|error| conductor.refused(&error))?,
        }
    };
    conductor.synced(&ticket).await?;
    let view = view(conductor, loaded, environment);
    tracing::warn!(%project, environment = %name, by, frozen = view.frozen, until = view.until, "a freeze was changed by hand");
    Ok(view)
}
