//! What a person may want of a deployment under way.

use crate::model::{
    cause::Cause,
    deployment::{Bake, Deployment, Paused},
    event::Event,
    ids::EnvironmentName,
    rollout::OnFailure,
    run::Run,
};

/// What a person may want of a deployment under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Change {
    /// Nothing new begins.
    Pause,
    /// It goes on.
    Resume,
    /// It goes on, whatever held it.
    Promote,
    /// It goes back.
    Rollback,
}

impl Change {
    /// The fact that this makes of `run`'s deployment to `environment`, or why it cannot be.
    pub(super) fn of(
        self,
        run: &Run,
        environment: &EnvironmentName,
        by: &str,
        reason: Option<String>,
    ) -> Result<Event, Cause> {
        let open = |d: &&Deployment| d.environment == *environment && d.end.is_none() && d.rollback_of.is_none();
        let Some(of) = run.deployments.iter().find(open).filter(|d| d.target.is_none()) else {
            return Err(Cause::new(
                "not_deploying",
                format!("run {} does not deploy to {environment} now", run.header.run),
            ));
        };
        if let Some(judged) = &of.judged {
            let message = format!("it has failed already and cannot be changed any more: {}", judged.cause.message);
            return Err(Cause::new("deployment_failed", message));
        }
        let (deployment, by) = (of.n, by.to_owned());
        match (self, &of.paused) {
            (Change::Pause, Some(paused)) => {
                Err(Cause::new("paused_already", format!("{} has paused it already", paused.by)))
            }
            (Change::Pause, None) => Ok(Event::Paused { deployment, by, reason, failed: None, bad: false }),
            (Change::Resume, None) => Err(Cause::new("not_paused", "it is not paused")),
            (Change::Resume, Some(Paused { failed: Some(cause), .. })) => {
                let message = format!(
                    "it is paused because it failed: {}. Promote it to go on all the same, or roll it back",
                    cause.message
                );
                Err(Cause::new("deployment_failed", message))
            }
            (Change::Resume, Some(_)) => Ok(Event::Unpaused { deployment, by }),
            (Change::Promote, None) if !of.waves.iter().any(|wave| matches!(wave.bake, Bake::Baking { .. })) => {
                Err(Cause::new("not_held", "it neither bakes nor is paused: there is nothing to promote it from"))
            }
            (Change::Promote, _) => Ok(Event::Promoted { deployment, by }),
            (Change::Rollback, _) => match of.no_way_back() {
                Some(no_way) if of.touched() => Err(no_way),
                _ => {
                    let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
                    let cause =
                        Cause::new("rollback_requested", format!("{by} asked for a rollback{why}")).with("by", by);
                    let bad = of.paused.as_ref().is_some_and(|paused| paused.bad);
                    Ok(Event::Judged { deployment, cause, bad, then: OnFailure::Rollback })
                }
            },
        }
    }
}
