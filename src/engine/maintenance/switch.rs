//! The gate, for people: it is shown, opened and shut.

use std::time::Duration;

use serde_json::json;

use super::{KEY, Maintenance, Shut, read};
use crate::{
    engine::{
        conductor::Conductor,
        handle::Refusal,
        ledger,
        view::{MaintenanceView, RunView},
    },
    ports::control::{Commit, CommitError, Revision},
    time::within,
};

/// Owners are asked to look at the gate at once; one that is late is only shown as if it still worked.
const HEARD: Duration = Duration::from_secs(1);

impl Conductor {
    /// `run` as it stands, with what no journal knows of: that maintenance keeps it from going on.
    pub(in crate::engine) fn shown(&self, mut view: RunView) -> RunView {
        if let Ok(id) = view.id.parse()
            && let Some(waiting) = self.inner.maintenance.holder(&id, view.state)
        {
            view.waiting = Some(waiting);
        }
        view
    }
}

/// How it is; with `wait`, once nothing works any more, it was turned off, or that time has passed. Cancel safe.
pub(in crate::engine) async fn look(conductor: &Conductor, wait: Option<Duration>) -> MaintenanceView {
    let maintenance = &conductor.inner.maintenance;
    if let Some(limit) = wait {
        let quiet = async {
            maintenance.until(Maintenance::is_quiet).await;
            settled(conductor).await;
        };
        let _or_the_time_is_up = within(&*conductor.inner.world.clock, limit, quiet).await;
    }
    maintenance.view()
}

/// Turns it on or off; the first who turned it on stays the one who did. Returns once that is on disk and every owner has seen it.
pub(in crate::engine) async fn switch(
    conductor: &Conductor,
    on: bool,
    reason: Option<String>,
    by: &str,
) -> Result<MaintenanceView, Refusal> {
    conductor.writable()?;
    let (world, maintenance) = (&conductor.inner.world, &conductor.inner.maintenance);
    let was = world.control.get(KEY);
    if was.is_some() != on {
        let reason = reason.map(|reason| ledger::cut(&reason, ledger::LONGEST));
        let shut = on.then(|| json!(Shut { by: ledger::cut(by, 256), reason, since_ms: world.clock.now().wall_ms }));
        let expected = [(KEY.to_owned(), was.map_or(Revision::default(), |entry| entry.revision))];
        match world.control.commit(Commit::Setting, &expected, vec![(KEY.to_owned(), shut)]) {
            Ok(ticket) => {
                conductor.synced(&ticket).await?;
                tracing::warn!(by, on, "maintenance was switched");
            }
            // Somebody was faster; what they did is shown.
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(conductor.refused(&error)),
        }
    }
    // Read anew: of two who switch at once, the one whose record is the later one is right.
    maintenance.now.send_if_modified(|now| {
        let newest = read(&*world.control);
        std::mem::replace(now, newest.clone()) != newest
    });
    conductor.inner.nudge.notify_one();
    let heard = async {
        maintenance.until(Maintenance::is_heard).await;
        if maintenance.is_quiet() {
            settled(conductor).await;
        }
    };
    let _or_shown_as_working = within(&*world.clock, HEARD, heard).await;
    Ok(maintenance.view())
}

/// What parked runs have come to is on disk, and where people look.
async fn settled(conductor: &Conductor) {
    conductor.inner.maintenance.on_disk().await;
    let views = conductor.inner.views.clone();
    let _views_are_gone = conductor.inner.world.tasks.blocking(move || views.barrier()).await;
}
