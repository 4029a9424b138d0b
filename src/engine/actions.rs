//! What decisions ask of the world, each in a task of its own, each ending in facts for the owner.

mod alarm;
mod health;
mod lease;
mod plan;
mod resolve;

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    alarm::measure,
    health::{Guarded, Watched, guard, look_over, unless_gone, watch},
    lease::lease,
    plan::{Roster, look, plan},
    resolve::{checkout, resolve},
};
pub(super) use self::{
    alarm::tell_of_alarm,
    plan::{Asked, changed_paths, phases, planned},
    resolve::{build, first_build, found, going_back},
};
use super::{
    command::Left,
    doors::{Doors, Place},
    end, history,
    owner::message::Message,
    sessions::Sessions,
    world::World,
};
use crate::{
    model::{
        cause::Cause,
        decide::Action,
        deployment::{Bake, Deployment, HealthRun, HostRun, HostState},
        doors,
        event::Event,
        health::{Deployed, Incarnation, Watch},
        host::Host,
        ids::RunId,
        input,
        pipeline::{AskedAfter, Environment, Health},
        run::Run,
        step::{self, Branch, CallKey, StepKey},
    },
    ports::{journal::Ticket, program::Opening},
    time::Stamp,
};

/// What an action works with.
pub(super) struct Context {
    pub(super) world: Arc<World>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) name: String,
    pub(super) sender: mpsc::Sender<Message>,
    /// The run does not want it any more.
    pub(super) cancel: CancellationToken,
    /// The last record before it.
    pub(super) ticket: Option<Ticket>,
}

/// An action with what it needs of the run, as it was when it was decided.
pub(super) enum Job {
    Resolve(Box<Run>),
    Checkout(Box<Run>),
    /// With its place among those who wait, taken when it was decided: after a restart the oldest run is asked first.
    Lease {
        run: Box<Run>,
        deployment: u32,
        names: Vec<String>,
        place: Place,
    },
    Plan {
        run: Box<Run>,
        deployment: u32,
        environment: Box<Environment>,
    },
    Look {
        run: Box<Run>,
        deployment: u32,
        wave: u32,
    },
    Measure {
        run: Box<Run>,
        deployment: u32,
        alarm: u32,
    },
    Guard {
        watched: Watched,
        bake: Duration,
    },
    LookOver(Watched),
    Watch {
        deployment: u32,
        host: Box<Host>,
        health: Health,
        since: Since,
        known: Known,
        roster: Option<Box<Roster>>,
    },
    /// That a call on a host failed, which is told once it is known whether the host is no more.
    Raised {
        end: Box<Event>,
        roster: Box<Roster>,
    },
    Undo {
        run: RunId,
        key: CallKey,
    },
    Finish(Box<Run>),
    /// Ends what the commands of the run have left running on this machine, those of `call` last.
    Leftovers {
        run: RunId,
        call: CallKey,
    },
}

/// What is known of a host that is watched: what it is to run, and its units and containers, if an earlier life has seen them.
pub(super) struct Known {
    deployed: Option<Deployed>,
    processes: Vec<(usize, Incarnation)>,
}

/// When a watch began, and whether the daemon came back in the middle of it.
pub(super) struct Since {
    began: Stamp,
    again: bool,
}

impl Job {
    /// `end` says that the call of `key` failed, by `cause`; `None` where nobody would know whether that is because its host is no more, and
    /// where that is known not to be so: budgets are to hear of a failure at once.
    pub(super) fn raised(world: &World, run: &Run, key: &CallKey, cause: &Cause, end: &Event) -> Option<Job> {
        let Some(step::Place::Host { deployment, host, .. }) = key.place().filter(|_| key.undone().is_none()) else {
            return None;
        };
        let of = run.deployment(deployment)?;
        let host = of.host(&host).filter(|host| !host.gone)?;
        let id = &host.host.id;
        // One that is being prepared does not bring its wave forward.
        let wave = if host.begun.is_some() { host.wave } else { 0 };
        let roster = Box::new(Roster::of(run, of, wave)?);
        let unsure = cause.is_cut_off() || roster.knows_ended(world, id);
        unsure.then(|| Job::Raised { end: Box::new(end.clone()), roster })
    }

    /// `None` for actions the owner does itself.
    pub(super) fn of(run: &Run, action: Action, doors: &Arc<Doors>) -> Option<Job> {
        let whole = || Box::new(run.clone());
        Some(match action {
            Action::Resolve => Job::Resolve(whole()),
            Action::Checkout => Job::Checkout(whole()),
            Action::Lease { deployment } => {
                let names = doors::leases_of(run, deployment);
                let place = doors.join(names.first()?, run, &run.deployment(deployment)?.environment);
                Job::Lease { run: whole(), deployment, names, place }
            }
            Action::Plan { deployment } => {
                let environment = run.environment(&run.deployment(deployment)?.environment)?.clone();
                Job::Plan { run: whole(), deployment, environment: Box::new(environment) }
            }
            Action::Look { deployment, wave } => Job::Look { run: whole(), deployment, wave },
            Action::Measure { deployment, alarm } => Job::Measure { run: whole(), deployment, alarm },
            Action::Guard { deployment } => {
                let of = run.deployment(deployment)?;
                let bake = Duration::from_millis(of.spec(run)?.rollout.bake_time_ms);
                Job::Guard { watched: watched(run, of), bake }
            }
            Action::LookOver { deployment } => Job::LookOver(watched(run, run.deployment(deployment)?)),
            Action::Watch { deployment, host } => {
                let of = run.deployment(deployment)?;
                let host = of.host(&host)?;
                let (health, deployed) = checks(run, of, host)?;
                let HealthRun::Watching { since, again } = &host.health else { return None };
                let since = Since { began: since.clone(), again: *again };
                let known = Known { deployed, processes: host.processes.clone() };
                let roster = Roster::of(run, of, host.wave).map(Box::new);
                Job::Watch { deployment, host: Box::new(host.host.clone()), health, since, known, roster }
            }
            Action::Undo(key) => Job::Undo { run: run.header.run.clone(), key },
            Action::Finish => Job::Finish(whole()),
            Action::Append(_) | Action::Call { .. } | Action::Retry(_) | Action::EndCall { .. } => return None,
        })
    }
}

/// The hosts of a deployment that have the release and were healthy, while a wave of it bakes.
fn watched(run: &Run, of: &Deployment) -> Watched {
    let healthy = of.hosts.iter().filter(|host| host.verdict() == HostState::Healthy && host.back.is_none());
    let guarded = healthy.filter_map(|host| {
        let (health, deployed) = checks(run, of, host)?;
        let watch = Watch::new(&health, deployed).over(&host.processes);
        Some(Guarded::new(host.host.clone(), health, watch))
    });
    let bakes = (0..).zip(&of.waves).find(|(_, wave)| matches!(wave.bake, Bake::Baking { .. }));
    let roster = bakes.and_then(|(wave, _)| Roster::of(run, of, wave));
    Watched { deployment: of.n, guarded: guarded.collect(), roster }
}

/// The checks of a host in a deployment, and what it is to run.
fn checks(run: &Run, of: &Deployment, host: &HostRun) -> Option<(Health, Option<Deployed>)> {
    let mut health = of.spec(run)?.health.clone()?;
    let call = CallKey::host(of.environment.as_str(), of.n, host.host.id.as_str(), "health");
    let variables = input::variables(run, &StepKey::new(&call, &Branch::top(), "health", 1), None, None);
    let after = of.release(run).map(|release| AskedAfter::of(&run.header.project, &of.environment, release));
    health.fill(&variables, after.as_ref());
    let deployed = of.release(run).map(|release| Deployed::new(release, of.previous.as_ref()));
    Some((health, deployed))
}

impl Job {
    /// The fact it leaves when it is cancelled: a watch that is cut says nothing about the host, and that is its verdict; a call that has
    /// failed has failed.
    fn cut(&self) -> Option<Event> {
        let (deployment, host) = match self {
            Job::Watch { deployment, host, .. } => (deployment, host),
            Job::Raised { end, .. } => return Some((**end).clone()),
            _ => return None,
        };
        let message = format!("the health of {} was not watched to the end: the run is to end", host.name);
        Some(Event::HealthVerdict {
            deployment: *deployment,
            host: host.id.clone(),
            unhealthy: Some(Cause::new("stopped", message).with("host", host.id.as_str())),
            evidence: Vec::new(),
        })
    }
}

/// Does `job` and sends its facts. Never fails: a failure is a fact.
pub(super) async fn perform(context: Context, job: Job) {
    let stopping = context.world.tasks.stopping();
    let cut = job.cut();
    let work = async {
        match job {
            Job::Resolve(run) => context.last(resolve(&context, &run).await).await,
            Job::Checkout(run) => {
                // The first command comes soon after.
                let local = context.sessions.local();
                let (fact, ()) = tokio::join!(checkout(&context, &run), local.ready());
                context.last(fact).await;
            }
            Job::Lease { run, deployment, names, place } => lease(&context, &run, deployment, &names, &place).await,
            Job::Plan { run, deployment, environment } => {
                let fact = plan(&context, &run, deployment, &environment).await;
                context.last(fact).await;
            }
            Job::Look { run, deployment, wave } => context.last(look(&context, &run, deployment, wave).await).await,
            Job::Measure { run, deployment, alarm } => {
                let fact = measure(&context, &run, deployment, alarm).await;
                context.facts(fact.into_iter().collect(), true).await;
            }
            Job::Guard { watched, bake } => guard(&context, watched, bake).await,
            Job::LookOver(watched) => look_over(&context, watched).await,
            Job::Watch { deployment, host, health, since, known, roster } => {
                let fact = watch(&context, deployment, &host, &health, &since, known).await;
                context.facts(unless_gone(&context, fact, roster).await, true).await;
            }
            Job::Raised { end, roster } => {
                context.facts(unless_gone(&context, *end, Some(roster)).await, true).await;
            }
            Job::Undo { run, key } => {
                let action = context.name.clone();
                let message = match read(&context, run, key.clone()).await {
                    Ok(opening) => Message::Undo { action, key, opening: Box::new(opening) },
                    Err(why) => Message::Finished(Err(format!("what {key} did cannot be read: {why}"))),
                };
                let _owner_gone = context.sender.send(message).await;
            }
            Job::Leftovers { run, call } => {
                end_left(&context, &run, &call).await;
                context.facts(Vec::new(), true).await;
            }
            Job::Finish(run) => {
                let finished = end::finish(&context.world, &run, context.ticket.as_ref()).await;
                let _owner_gone = context.sender.send(Message::Finished(finished)).await;
            }
        }
    };
    tokio::select! {
        biased;
        () = stopping.cancelled() => {}
        () = work => {}
        // The action is over without a fact: the decision that follows the wish knows what to do.
        () = context.cancel.cancelled() => context.facts(cut.into_iter().collect(), true).await,
    }
}

impl Context {
    async fn facts(&self, events: Vec<Event>, over: bool) {
        let _owner_gone = self.sender.send(Message::Facts { action: self.name.clone(), events, over }).await;
    }

    async fn last(&self, event: Event) {
        self.facts(vec![event], true).await;
    }
}

/// Ends what commands have left running here, and says in the run's log what that was.
async fn end_left(context: &Context, run: &RunId, call: &CallKey) {
    // How its commands ended is forgotten with that.
    if let Some(ticket) = &context.ticket
        && ticket.synced().await.is_err()
    {
        return;
    }
    // What was not ended holds up nothing: the next run meets what there is.
    let Some(told) = Left::told(&context.sessions.local().end_left().await) else { return };
    let key = StepKey::new(call, &Branch::top(), "left", 1);
    context.sessions.note(run, &key, 1, told.into_bytes());
}

/// What the journal holds of a call that is over.
async fn read(context: &Context, run: RunId, key: CallKey) -> Result<Opening, String> {
    if let Some(ticket) = &context.ticket {
        ticket.synced().await.map_err(|error| error.to_string())?;
    }
    let journals = Arc::clone(&context.world.journals);
    let read = context.world.tasks.blocking(move || {
        let found = journals.read(&run).map_err(|error| error.to_string())?;
        if let Some(damage) = found.damage {
            return Err(damage);
        }
        let records = found.records.iter().map(|(_, _, record)| record);
        history::openings(records, std::iter::once(&key)).remove(&key).ok_or_else(|| "it is not there".to_owned())
    });
    read.await.map_err(|error| error.to_string())?
}
