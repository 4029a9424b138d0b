//! Performs steps: one attempt each, ending in an outcome and never in an error of ours.

mod artifact;
mod command;
mod http;
pub(super) mod plain;
mod reports;
mod signal;
mod sink;
mod transfer;
pub(super) mod values;

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::values::Resolved;
use super::{
    command::{EpochCheck, FORGOTTEN, Session, Verdict},
    redact::Redactor,
    sessions::Sessions,
    world::World,
};
use crate::{
    model::{
        cause::Cause,
        host::Host,
        ids::{ArtifactName, Digest, RunId},
        input,
        pipeline::StepOptions,
        release::Artifact,
        run::{Checkout, Run},
        step::{self, Outcome, Request, StepKey, Target, Verb},
    },
    time::Stamp,
};

/// Of commands on hosts.
const ON_HOSTS: Duration = Duration::from_secs(600);
/// Of commands in stages.
const IN_STAGES: Duration = Duration::from_secs(1800);

/// One attempt of one step.
pub(super) struct Job {
    pub(super) world: Arc<World>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) run: RunId,
    pub(super) key: StepKey,
    pub(super) attempt: u32,
    pub(super) token: Digest,
    pub(super) request: Request,
    pub(super) place: Place,
    /// When it was begun by an earlier life of the daemon; `None` for an attempt of this one.
    pub(super) resumed: Option<Stamp>,
    /// The owner wants it to end.
    pub(super) stop: CancellationToken,
}

/// Where a step acts, as the run knew it when the step began.
#[derive(Clone)]
pub(super) struct Place {
    /// With the number of its deployment; `None`: on this machine.
    host: Option<(u32, Host)>,
    /// The target is a host the plan does not have.
    unknown_host: Option<String>,
    /// The run's directory.
    dir: Option<String>,
    variables: Vec<(String, String)>,
    epoch: Option<EpochCheck>,
    in_stage: bool,
    /// What the release has, for a step that brings one of them.
    artifacts: Vec<Artifact>,
    /// For a step that sends a signal: what it orders, but for its token.
    signal: Option<Box<signal::Errand>>,
    /// For a step that makes one: names that are the release's already, or are being made by other steps.
    taken: Vec<ArtifactName>,
}

impl Place {
    pub(super) fn of(run: &Run, key: &StepKey, request: &Request) -> Self {
        let place = key.call().place();
        let number = match &place {
            Some(step::Place::Deployment { deployment, .. } | step::Place::Host { deployment, .. }) => {
                Some(*deployment)
            }
            _ => None,
        };
        let deployment = number.and_then(|n| run.deployment(n));
        let (mut host, mut unknown_host) = (None, None);
        if let Target::Host(id) = &request.target {
            host = deployment.and_then(|d| Some((d.n, d.host(id)?.host.clone())));
            unknown_host = host.is_none().then(|| id.to_string());
        }
        let name = StepOptions::of(&request.args).name;
        let on = match &request.target {
            Target::Host(id) => Some(id),
            Target::Local => None,
        };
        let epoch = deployment.filter(|_| host.is_some()).and_then(|d| {
            Some(EpochCheck {
                project: run.header.project.clone(),
                environment: d.environment.clone(),
                epoch: d.lease?,
            })
        });
        Place {
            host,
            unknown_host,
            dir: match &run.checkout {
                Checkout::At(dir) => Some(dir.clone()),
                Checkout::Due | Checkout::Failed(_) => None,
            },
            variables: input::variables(run, key, name.as_deref(), on),
            epoch,
            in_stage: matches!(place, Some(step::Place::Stage { .. })),
            signal: if request.verb == Verb::Signal {
                deployment.and_then(|d| signal::Errand::of(run, d)).map(Box::new)
            } else {
                None
            },
            artifacts: match (request.verb, &run.release) {
                (Verb::ArtifactPath, Some(release)) => release.artifacts.clone(),
                _ => Vec::new(),
            },
            taken: if request.verb == Verb::Artifact { taken(run, key) } else { Vec::new() },
        }
    }

    /// What people call the machine.
    fn name(&self) -> &str {
        self.host.as_ref().map_or("the integration server", |(_, host)| host.name.as_str())
    }
}

/// Names of artifacts that are the release's already, or are being made by steps other than `key`.
fn taken(run: &Run, key: &StepKey) -> Vec<ArtifactName> {
    let made = run.release.iter().flat_map(|release| &release.artifacts).map(|artifact| artifact.name.clone());
    let others = run.calls.values().flat_map(|call| &call.steps).filter(|(other, _)| *other != key);
    let making = others.filter(|(other, _)| other.verb().is_some_and(|(verb, _)| verb == Verb::Artifact));
    made.chain(making.filter_map(|(_, step)| step.args.get("name")?.as_str()?.parse().ok())).collect()
}

impl Job {
    fn session(&self) -> Arc<Session> {
        match &self.place.host {
            Some((deployment, host)) => self.sessions.host(*deployment, host),
            None => self.sessions.local(),
        }
    }

    /// Whether an earlier life may have begun it: a machine that was never met has begun nothing.
    fn may_have_begun(&self) -> bool {
        let met = self.place.host.as_ref().is_none_or(|(_, host)| self.sessions.has_met(&host.id));
        self.resumed.is_some() && met
    }

    fn timeout(&self, args: &Resolved, other: Duration) -> Duration {
        args.span("timeout").unwrap_or(other)
    }

    /// A command's time-out when the author gave none.
    fn command_timeout(&self, args: &Resolved) -> Duration {
        self.timeout(args, if self.place.in_stage { IN_STAGES } else { ON_HOSTS })
    }

    /// The step's name for messages.
    fn name(&self) -> String {
        StepOptions::of(&self.request.args).name.unwrap_or_else(|| self.key.short().to_owned())
    }

    /// Adds to a cause which step it was and where it stands in the code.
    fn placed(&self, cause: Cause) -> Cause {
        let cause = Cause { message: format!("{}: {}", self.name(), cause.message), ..cause };
        let cause = cause.with("step", self.key.as_str());
        if self.request.at.is_empty() { cause } else { cause.with("at", self.request.at.as_str()) }
    }

    /// A verdict that is no exit code, as an outcome.
    fn outcome(&self, verdict: &Verdict, timeout: Duration, value: Value) -> Outcome {
        let Some(cause) = verdict.cause(self.place.name(), timeout).map(|cause| self.placed(cause)) else {
            return Outcome::Ok(value);
        };
        match verdict {
            Verdict::Stopped { .. } | Verdict::Void => Outcome::Cut { cause },
            // Refused now is not refused then, but for those who know.
            Verdict::Refused(_)
                if self.may_have_begun() && !matches!(cause.code.as_str(), "sudo_refused" | "stale_epoch") =>
            {
                Outcome::Unknown { cause }
            }
            verdict if verdict.is_unknown() => Outcome::Unknown { cause },
            _ => Outcome::Failed { cause, value },
        }
    }
}

/// Performs one attempt. Cancelling `job.stop` ends it; the outcome says what is known.
pub(super) async fn perform(job: Job) -> Outcome {
    if let Some(id) = &job.place.unknown_host {
        return Outcome::failed(job.placed(Cause::new("host_unknown", format!("{id} is no host of this deployment"))));
    }
    let mut redactor = Redactor::default();
    let args = match values::resolve(&*job.world.secrets, &job.request.args, &mut redactor) {
        Ok(args) => args,
        // What an earlier life began may run, whatever has become of its secrets.
        Err(cause) if job.may_have_begun() => return Outcome::Unknown { cause: job.placed(cause) },
        Err(cause) => return Outcome::failed(job.placed(cause)),
    };
    job.sessions.learn(&redactor);
    if let Some(cause) = forgotten(&job) {
        return Outcome::Unknown { cause: job.placed(cause) };
    }
    let outcome = match job.request.verb {
        Verb::Sh | Verb::Exec | Verb::Service => command::perform(&job, &args).await,
        Verb::Write => transfer::write(&job, &args).await,
        Verb::Upload => transfer::upload(&job, &args).await,
        Verb::Download => transfer::download(&job, &args).await,
        Verb::Artifact => unless_stopped(&job, artifact::store(&job, &args)).await,
        Verb::ArtifactPath => artifact::path(&job, &args).await,
        Verb::Http => unless_stopped(&job, http::request(&job, &args)).await,
        Verb::Wait => unless_stopped(&job, http::wait(&job, &args)).await,
        Verb::Sleep => {
            let clock = Arc::clone(&job.world.clock);
            let slept = job.resumed.as_ref().map_or(Duration::ZERO, |begun| clock.now().since(begun));
            let left = args.span("duration").unwrap_or_default().saturating_sub(slept);
            unless_stopped(&job, async move {
                clock.sleep(left).await;
                Outcome::Ok(Value::Null)
            })
            .await
        }
        Verb::Now => {
            let now = job.world.clock.now();
            Outcome::Ok(json!({ "ms": now.wall_ms, "text": now.rfc3339() }))
        }
        Verb::Signal => signal::perform(&job, &args).await,
        Verb::Log => Outcome::Ok(Value::Null),
    };
    redacted(&job.sessions.redactor(), outcome)
}

/// Why a command that an earlier life began can no longer be asked about: its machine has thrown its files away.
fn forgotten(job: &Job) -> Option<Cause> {
    // A signal needs no session: nobody has met the machine.
    let signal = job.request.verb == Verb::Signal;
    let begun = job.resumed.as_ref().filter(|_| signal || job.may_have_begun())?;
    let asked =
        signal || matches!(job.request.verb, Verb::Sh | Verb::Exec | Verb::Service | Verb::Write | Verb::Upload);
    let age = job.world.clock.now().since(begun);
    (asked && age > FORGOTTEN).then(|| {
        let (days, host) = (age.as_secs() / 86_400, job.place.name());
        let message = format!(
            "it was begun {days} days ago, when the daemon was last here, and {host} keeps nothing that long: see what it did there and \
             start the run again"
        );
        Cause::new("lost", message)
    })
}

/// For effects that are only here: a stop ends them at once.
async fn unless_stopped(job: &Job, work: impl Future<Output = Outcome>) -> Outcome {
    tokio::select! {
        biased;
        outcome = work => outcome,
        () = job.stop.cancelled() => Outcome::Cut { cause: job.placed(Cause::new("stopped", "stopped")) },
    }
}

/// Causes may quote what a host said; values were redacted as they came in.
fn redacted(redactor: &Redactor, outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Ok(value) => Outcome::Ok(value),
        Outcome::Failed { cause, value } => Outcome::Failed { cause: redactor.cause(&cause), value },
        Outcome::Unknown { cause } => Outcome::Unknown { cause: redactor.cause(&cause) },
        Outcome::Cut { cause } => Outcome::Cut { cause: redactor.cause(&cause) },
    }
}
