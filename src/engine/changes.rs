//! What a person wants of a deployment under way, or of an environment: pause, resume, promote, rollback, converge, adopt.

use tokio::sync::oneshot;

use super::{
    actions::going_back,
    adoption::{self, Asking},
    conductor::{Ask, Conductor},
    handle::{ChangeAsk, Changed, Refusal},
    hosts, ledger,
    owner::{Change, Message},
};
use crate::{
    lifecycle::locks::locked,
    model::{
        cause::Cause,
        event::{Purpose, Wanted},
        ids::{EnvironmentName, ProjectName, RunId},
        run::Trigger,
    },
    ports::program::Loaded,
};

/// Does what was asked, to the deployment under way there, else as a run of its own; returns once that is on disk.
pub(super) async fn change(
    conductor: &Conductor,
    loaded: &Loaded,
    environment: &EnvironmentName,
    ask: ChangeAsk,
    by: &str,
) -> Result<Changed, Refusal> {
    conductor.writable()?;
    let ChangeAsk { verb, to, reason, once } = ask;
    let change = match verb.as_str() {
        "pause" => Some(Change::Pause),
        "resume" => Some(Change::Resume),
        "promote" => Some(Change::Promote),
        "rollback" => Some(Change::Rollback),
        "converge" | "adopt" => None,
        other => {
            let known = "pause, resume, promote, rollback, converge or adopt";
            return Err(Refusal::Value(format!("an environment knows no {other:?}: it can be asked to {known}")));
        }
    };
    let control = &*conductor.inner.world.control;
    let target = || going_back(control, &loaded.name, environment, to.as_deref());
    if change == Some(Change::Rollback) && to.is_some() {
        // A name that is mistyped ends nothing that is under way.
        target().map_err(nowhere)?;
    }
    if let Some(change) = change {
        match under_way(conductor, &loaded.name, environment, change, by, reason.clone()).await? {
            // What is taken back goes to what was known-good before it; to another one goes a run of its own, behind it. One that had touched
            // nothing ends, and that is all where nothing is from before what is live.
            Some((run, touched)) if change != Change::Rollback || (touched && to.is_none()) || target().is_err() => {
                return Ok(Changed::UnderWay(Box::new(conductor.view_now(&run).await?)));
            }
            // What is live is gone back from.
            Some(_) => {}
            None if change == Change::Rollback => {}
            None => {
                let message = format!(
                    "nothing is being deployed to {environment} of {}, so there is nothing to {verb}",
                    loaded.name
                );
                return Err(Refusal::Unchangeable(Cause::new("not_deploying", message)));
            }
        }
    }
    let (purpose, trigger) = match (change, verb.as_str()) {
        (Some(_), _) => {
            // Asked again once the environment is the run's; who asks in vain hears of it now.
            target().map_err(nowhere)?;
            (Purpose::Rollback { to: to.clone() }, Trigger::Api)
        }
        (None, "adopt") => {
            // As above.
            adoptable(conductor, loaded, environment).await.map_err(Refusal::Unchangeable)?;
            (Purpose::Adopt, Trigger::Api)
        }
        (None, _) => {
            ledger::some_good(control, &loaded.name, environment).map_err(Refusal::Unchangeable)?;
            (Purpose::Converge { hosts: Vec::new() }, Trigger::Converge)
        }
    };
    let ask =
        Ask { wanted: Wanted::Head, environment: Some(environment.clone()), reason, purpose, once, ..Ask::default() };
    let view = conductor.request(&loaded.name, trigger, by.to_owned(), ask, &[], Vec::new()).await?;
    let view = view.ok_or_else(|| Refusal::Degraded("a request without conditions met one".to_owned()))?;
    Ok(Changed::Run(Box::new(view)))
}

/// Why nothing is gone back to, as an answer: what was named, or how things are.
fn nowhere(cause: Cause) -> Refusal {
    if cause.code == "target_unknown" { Refusal::Target(cause) } else { Refusal::Unchangeable(cause) }
}

/// Whether there is something to adopt.
///
/// # Errors
/// Those of [`adoption::adopted`], and that the hosts cannot be found out.
async fn adoptable(conductor: &Conductor, loaded: &Loaded, name: &EnvironmentName) -> Result<(), Cause> {
    let world = &conductor.inner.world;
    let found = loaded.pipeline.environments.iter().find(|environment| environment.name == *name);
    let Some(environment) = found else { return Err(Cause::new("environment_unknown", format!("there is no {name}"))) };
    let asking = Asking::now(world, loaded, environment);
    let hosts = hosts::of(world, &loaded.name, &loaded.code, environment, hosts::Need::New).await?;
    adoption::adopted(world, &asking, &hosts, None).await.map(drop).map_err(|why| {
        let message = format!("nothing can be adopted in {name}: {}", why.message);
        Cause { message, ..why }
    })
}

/// Asks the run that deploys there, if there is one; which, and whether it has touched a host there.
async fn under_way(
    conductor: &Conductor,
    project: &ProjectName,
    environment: &EnvironmentName,
    change: Change,
    by: &str,
    reason: Option<String>,
) -> Result<Option<(RunId, bool)>, Refusal> {
    let owners: Vec<_> = locked(&conductor.inner.runs)
        .iter()
        .filter(|(_, running)| running.project == *project)
        .map(|(id, running)| (id.clone(), running.sender.clone()))
        .collect();
    for (run, sender) in owners {
        let (reply, answer) = oneshot::channel();
        let (environment, by, reason) = (environment.clone(), by.to_owned(), reason.clone());
        if sender.send(Message::Change { environment, change, by, reason, reply }).await.is_err() {
            continue;
        }
        match answer.await {
            Ok(Ok(touched)) => return Ok(Some((run, touched))),
            Ok(Err(cause)) if cause.code == "not_deploying" => {}
            Ok(Err(cause)) if cause.code == "degraded" => return Err(Refusal::Degraded(cause.message)),
            Ok(Err(cause)) => return Err(Refusal::Unchangeable(cause)),
            // It ended just now.
            Err(_) => {}
        }
    }
    Ok(None)
}
