//! What decisions ask of the world, each in a task of its own, each ending in facts for the owner.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    doors::{Doors, Place},
    end, freezes, history, hosts, ledger,
    owner::Message,
    sessions::Sessions,
    world::World,
};
use crate::{
    model::{
        cause::Cause,
        decide::{self, Action},
        doors,
        event::{Event, Wanted},
        health::{Verdict, Watch},
        host::Host,
        ids::{EnvironmentName, RunId},
        input,
        pipeline::{Check, Environment, Health, Queue},
        release::{Commit, Release},
        run::{HealthRun, Run, Waiting},
        step::{Branch, CallKey, StepKey},
    },
    ports::{
        control::CommitError,
        journal::Ticket,
        leases::{Acquired, Leases},
        program::Opening,
    },
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
    Watch {
        deployment: u32,
        host: Box<Host>,
        health: Health,
        since: Since,
        variables: Vec<(String, String)>,
    },
    Undo {
        run: RunId,
        key: CallKey,
    },
    Finish(Box<Run>),
}

/// When a watch began, and whether the daemon came back in the middle of it.
pub(super) struct Since {
    began: Stamp,
    again: bool,
}

impl Job {
    /// `None` for actions the owner does itself.
    pub(super) fn of(run: &Run, action: Action, doors: &Arc<Doors>) -> Option<Job> {
        let whole = || Box::new(run.clone());
        Some(match action {
            Action::Resolve => Job::Resolve(whole()),
            Action::Checkout => Job::Checkout(whole()),
            Action::Lease { deployment } => {
                let names = lease_names(run, deployment);
                let place = doors.join(names.first()?, run, &run.deployment(deployment)?.environment);
                Job::Lease { run: whole(), deployment, names, place }
            }
            Action::Plan { deployment } => {
                let environment = run.environment(&run.deployment(deployment)?.environment)?.clone();
                Job::Plan { run: whole(), deployment, environment: Box::new(environment) }
            }
            Action::Watch { deployment, host } => {
                let of = run.deployment(deployment)?;
                let health = run.environment(&of.environment)?.health.clone()?;
                let call = CallKey::host(of.environment.as_str(), deployment, host.as_str(), "health");
                let variables = input::variables(run, &StepKey::new(&call, &Branch::top(), "health", 1), None);
                let host = of.host(&host)?;
                let HealthRun::Watching { since, again } = &host.health else { return None };
                let since = Since { began: since.clone(), again: *again };
                Job::Watch { deployment, host: Box::new(host.host.clone()), health, since, variables }
            }
            Action::Undo(key) => Job::Undo { run: run.header.run.clone(), key },
            Action::Finish => Job::Finish(whole()),
            Action::Append(_) | Action::Call { .. } | Action::Retry(_) | Action::EndCall { .. } => return None,
        })
    }
}

impl Job {
    /// The fact it leaves when it is cancelled: a watch that is cut says nothing about the host, and that is its verdict.
    fn cut(&self) -> Option<Event> {
        let Job::Watch { deployment, host, .. } = self else { return None };
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
            Job::Checkout(run) => context.last(checkout(&context, &run).await).await,
            Job::Lease { run, deployment, names, place } => lease(&context, &run, deployment, &names, &place).await,
            Job::Plan { run, deployment, environment } => {
                let fact = plan(&context, &run, deployment, &environment).await;
                context.last(fact).await;
            }
            Job::Watch { deployment, host, mut health, since, variables } => {
                health.checks.iter_mut().for_each(|check| with_variables(check, &variables));
                let fact = watch(&context, deployment, &host, &health, &since).await;
                context.last(fact).await;
            }
            Job::Undo { run, key } => {
                let action = context.name.clone();
                let message = match read(&context, run, key.clone()).await {
                    Ok(opening) => Message::Undo { action, key, opening: Box::new(opening) },
                    Err(why) => Message::Finished(Err(format!("what {key} did cannot be read: {why}"))),
                };
                let _owner_gone = context.sender.send(message).await;
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

/// Finds and fetches the commit; a push that is not the head any more ends as superseded.
async fn resolve(context: &Context, run: &Run) -> Event {
    let world = &context.world;
    let (header, pipeline) = (&run.header, &run.header.pipeline);
    let project = &header.project;
    let head = ledger::head_revision(&*world.control, project);
    let found = match world.forge.resolve(project, &pipeline.source, &header.request.wanted).await {
        Ok(found) => found,
        Err(cause) if cause.code == "ref_unknown" && matches!(header.request.wanted, Wanted::Pushed(_)) => {
            let message = format!(
                "the pushed commit is not on {} any more; its successor is deployed instead",
                pipeline.source.branch
            );
            return Event::Unresolved { cause: Cause::new("superseded", message) };
        }
        Err(cause) => return Event::Unresolved { cause },
    };
    if let (Wanted::Pushed(_), false) = (&header.request.wanted, found.is_head) {
        let seen_before = match (&header.request.after, pipeline.queue) {
            (_, Queue::Latest) => true,
            (None, Queue::All) => false,
            (Some(after), Queue::All) => {
                world.forge.is_ancestor(project, &found.commit.sha, after).await.unwrap_or(true)
            }
        };
        if seen_before {
            let message = format!("{} has a newer head than the pushed commit", pipeline.source.branch);
            return Event::Unresolved { cause: Cause::new("superseded", message) };
        }
    }
    if found.is_head {
        ledger::saw_head(world, run, &found.commit.sha, head);
    }
    resolved(world, run, found.commit, found.tag)
}

fn resolved(world: &World, run: &Run, commit: Commit, tag: Option<String>) -> Event {
    let header = &run.header;
    let release = Release {
        id: crate::model::ids::ReleaseId::first_build(&commit.sha),
        commit,
        branch: Some(header.pipeline.source.branch.clone()),
        tag,
    };
    let passed = ledger::passed(&*world.control, &header.project, &release.id, &header.code);
    let names = header.pipeline.environments.iter().map(|e| &e.name);
    let live = |name: &EnvironmentName| {
        ledger::live(&*world.control, &header.project, name)
            .is_some_and(|live| live.release.id == release.id && live.code == header.code)
    };
    // On the way to one that was named, what the release has passed is not done again, and a newer one that is live there stays.
    let last = names.clone().position(|name| header.request.environment.as_ref() == Some(name)).unwrap_or(0);
    let passed_by = |at: usize, name: &EnvironmentName| {
        at < last && ledger::good(&*world.control, &header.project, name, &release.id, &header.code)
    };
    let live = names
        .enumerate()
        .filter(|(at, name)| live(name) || passed_by(*at, name))
        .map(|(_, name)| name.clone())
        .collect();
    Event::Resolved { release: Box::new(release), passed, live }
}

async fn checkout(context: &Context, run: &Run) -> Event {
    let world = &context.world;
    let project = &run.header.project;
    let Some(release) = &run.release else {
        return Event::CheckoutFailed { cause: Cause::new("internal", "there is no commit to check out") };
    };
    let dir = world.forge.work_dir(project).join(run.header.run.as_str());
    let owner = match (world.job_user)(project) {
        Ok(owner) => owner,
        Err(error) => {
            let message = format!("the job user of project {project} cannot be had: {error}");
            return Event::CheckoutFailed { cause: Cause::new("job_user", message) };
        }
    };
    match world.forge.checkout(project, &release.commit.sha, &dir, owner).await {
        Ok(()) => Event::CheckedOut { dir: dir.to_string_lossy().into_owned() },
        Err(cause) => Event::CheckoutFailed { cause },
    }
}

/// The leases of a deployment.
pub(super) fn lease_names(run: &Run, deployment: u32) -> Vec<String> {
    let environment = run.deployment(deployment).and_then(|of| run.environment(&of.environment));
    environment.map(|environment| doors::leases(&run.header.project, environment)).unwrap_or_default()
}

/// Takes all of `names` or none, so that nobody holds one and waits for another: the grant of the last, or who is in the way.
fn take(leases: &dyn Leases, names: &[String], holder: &str, reason: &str) -> Result<Acquired, CommitError> {
    // Looked at before anything is written: who waits is woken by every record.
    if let Some(other) = names.iter().find_map(|name| leases.holder(name).filter(|held| held.holder != holder)) {
        return Ok(Acquired::Held(other));
    }
    let mut granted = None;
    for (taken, name) in names.iter().enumerate() {
        match leases.acquire(name, holder, reason)? {
            Acquired::Held(other) => {
                for name in names.iter().take(taken) {
                    leases.release(name, holder)?;
                }
                return Ok(Acquired::Held(other));
            }
            Acquired::Granted(epoch, ticket) => granted = Some(Acquired::Granted(epoch, ticket)),
        }
    }
    granted.ok_or_else(|| CommitError::Broken("a deployment without an environment asks for it".to_owned()))
}

/// How often who waits looks at the clock: it may be set at any time.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Waits for the environment, while it is frozen and while another has it, the oldest run first; says who is in the way each time that changes.
async fn lease(context: &Context, run: &Run, deployment: u32, names: &[String], place: &Place) {
    let Some(of) = run.deployment(deployment) else { return };
    let holder = decide::holder(run, deployment);
    let reason = run.release.as_ref().map_or_else(String::new, |r| format!("deployment of {}", r.id));
    let (leases, clock) = (&context.world.leases, &context.world.clock);
    let pinned = run.environment(&of.environment).map(|environment| environment.freeze.as_slice()).unwrap_or_default();
    let mut changed = leases.changed();
    let mut others = place.changed();
    // An earlier life may have told it.
    let mut told: Option<Waiting> = of.waiting.clone();
    loop {
        changed.mark_unchanged();
        others.mark_unchanged();
        if run.header.pipeline.queue == Queue::Latest
            && let Some(newer) = place.newer()
        {
            return context.last(Event::PlanFailed { deployment, cause: superseded(&of.environment, &newer) }).await;
        }
        // One that is ours already, though a crash kept the run from hearing of it, is nobody else's to wait for.
        let ours = names.iter().all(|name| leases.holder(name).is_some_and(|held| held.holder == holder));
        // By the clock as it is now, whatever it was at the last look; and by the file as it is loaded, if it has this environment still.
        let now = clock.now().wall_ms;
        let loaded = place.windows();
        let windows = loaded.as_deref().unwrap_or(pinned);
        let frozen = freezes::waiting(&*context.world.control, windows, &run.header.project, &of.environment, now)
            .filter(|_| !ours && doors::minds_freeze(run));
        place.stand_aside(frozen.is_some());
        let lease = |holder: String, until_ms, reason: Option<String>| {
            let reason = reason.filter(|reason| !reason.is_empty());
            Waiting { code: "lease".to_owned(), holder, until_ms, reason }
        };
        let first = place.before().filter(|_| !ours);
        let asked = match (frozen, &first) {
            (Some(waiting), _) => Ok(Err(waiting)),
            (None, Some(first)) => Ok(Err(lease(first.to_string(), None, None))),
            (None, None) => take(&**leases, names, &holder, &reason).map(|acquired| match acquired {
                Acquired::Granted(epoch, ticket) => Ok((epoch, ticket)),
                Acquired::Held(other) => Err(lease(other.holder, other.until_ms, Some(other.reason))),
            }),
        };
        let mut look_again = LOOK_AGAIN;
        match asked {
            Ok(Ok((epoch, ticket))) => {
                // Granted is what the disk knows: otherwise another start could grant it to somebody else.
                if ticket.synced().await.is_ok() {
                    return context.last(Event::LeaseGranted { deployment, epoch }).await;
                }
            }
            Ok(Err(waiting)) => {
                let left = waiting.until_ms.and_then(|until| u64::try_from(until.saturating_sub(now)).ok());
                look_again = left.map_or(look_again, |left| look_again.min(Duration::from_millis(left.max(1))));
                if told.as_ref() != Some(&waiting) {
                    told = Some(waiting.clone());
                    context.facts(vec![Event::Blocked { deployment, waiting: Some(waiting) }], false).await;
                }
            }
            Err(error) => tracing::error!(?names, %error, "a lease cannot be asked for"),
        }
        tokio::select! {
            _ = changed.changed() => {}
            _ = others.changed() => {}
            () = clock.sleep(look_again) => {}
        }
    }
}

/// Finds out the hosts and puts the numbers down before the first host is touched.
async fn plan(context: &Context, run: &Run, deployment: u32, environment: &Environment) -> Event {
    let world = &context.world;
    // The lease is ours: nobody changes what is live here until we do.
    let live = ledger::live(&*world.control, &run.header.project, &environment.name);
    if let Some(newer) = live.as_ref().map(|live| &live.run).filter(|live| **live > run.header.run) {
        return Event::PlanFailed { deployment, cause: superseded(&environment.name, newer) };
    }
    let found = hosts::of(world, &run.header.project, &run.header.code, environment).await;
    let hosts = match found {
        Ok(hosts) => hosts,
        Err(cause) => return Event::PlanFailed { deployment, cause },
    };
    let previous = live.map(|live| Box::new(live.release));
    let changed_paths = match (&previous, &run.release) {
        (Some(previous), Some(release)) => {
            world.forge.changed(&run.header.project, &previous.commit.sha, &release.commit.sha).await.ok()
        }
        _ => None,
    };
    let count = hosts.len();
    Event::Planned {
        deployment,
        hosts,
        previous,
        changed_paths,
        max_failures: environment.rollout.max_failures.of(count),
        max_unreachable: environment.rollout.max_unreachable.of(count),
    }
}

/// An older release never overtakes a newer one.
fn superseded(environment: &EnvironmentName, by: &crate::model::ids::RunId) -> Cause {
    Cause::new("superseded", format!("run {by} is newer and took its place in {environment}")).with("by", by.as_str())
}

/// What the journal holds of a call that is over.
async fn read(context: &Context, run: RunId, key: CallKey) -> Result<Opening, String> {
    if let Some(ticket) = &context.ticket {
        ticket.synced().await.map_err(|error| error.to_string())?;
    }
    let journals = Arc::clone(&context.world.journals);
    let read = tokio::task::spawn_blocking(move || {
        let found = journals.read(&run).map_err(|error| error.to_string())?;
        if let Some(damage) = found.damage {
            return Err(damage);
        }
        let records = found.records.iter().map(|(_, _, record)| record);
        history::openings(records, std::iter::once(&key)).remove(&key).ok_or_else(|| "it is not there".to_owned())
    });
    read.await.map_err(|error| error.to_string())?
}

/// Looks at a host until there is a verdict.
async fn watch(context: &Context, deployment: u32, host: &Host, health: &Health, since: &Since) -> Event {
    let clock = &context.world.clock;
    let began = &since.began;
    let mut watch = match since.again {
        false => Watch::new(health),
        true => Watch::again(health, clock.now().since(began)),
    };
    loop {
        let (evidence, bad) = look(context, deployment, host, health).await;
        // A check may print what a step of this run has used.
        let redactor = context.sessions.redactor();
        let evidence: Vec<String> = evidence.iter().map(|seen| redactor.text(seen)).collect();
        let bad = bad.map(|seen| redactor.text(&seen));
        let elapsed = clock.now().since(began);
        let verdict = |unhealthy| Event::HealthVerdict {
            deployment,
            host: host.id.clone(),
            unhealthy,
            evidence: evidence.clone(),
        };
        match watch.see(elapsed, bad) {
            Verdict::Open => {}
            Verdict::Healthy => {
                return verdict(None);
            }
            Verdict::Unhealthy(cause) => {
                return verdict(Some(on_host(cause, host)));
            }
        }
        clock.sleep(Duration::from_millis(health.interval_ms)).await;
    }
}

/// A probe's command knows where it runs, as every command does.
fn with_variables(check: &mut Check, variables: &[(String, String)]) {
    let Check::Command(text) = check else { return };
    let quoted = |value: &str| format!("'{}'", value.replace('\'', r"'\''"));
    let exports: Vec<String> =
        variables.iter().map(|(name, value)| format!("export {name}={}", quoted(value))).collect();
    *text = format!("{}\n{text}", exports.join("\n"));
}

fn on_host(cause: Cause, host: &Host) -> Cause {
    let message = format!("{} on {}", cause.message, host.name);
    Cause { message, ..cause }.with("host", host.id.as_str())
}

/// One round over every check; what each saw, and the first that was bad.
async fn look(context: &Context, deployment: u32, host: &Host, health: &Health) -> (Vec<String>, Option<String>) {
    let limit = Duration::from_millis(health.timeout_ms);
    let mut evidence = Vec::new();
    let mut bad = None;
    let link = match context.sessions.link(deployment, host).await {
        Ok(link) => link,
        Err(error) => {
            let seen = format!("the host cannot be reached: {}", error.cause.message);
            return (vec![seen.clone()], Some(seen));
        }
    };
    for check in &health.checks {
        let sight = context.world.probe.look(&*link, check, limit).await;
        let seen = format!("{}: {}", check_name(check), sight.seen);
        if !sight.good && bad.is_none() {
            bad = Some(seen.clone());
        }
        evidence.push(seen);
    }
    (evidence, bad)
}

fn check_name(check: &Check) -> String {
    match check {
        Check::Http(url) => format!("http {url}"),
        Check::Tcp(address) => format!("tcp {address}"),
        Check::Command(_) => "command".to_owned(),
    }
}
