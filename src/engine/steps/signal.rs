//! `signal`: an order to the host's own daemon, which is followed until its run there has ended.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{Job, values::Resolved};
use crate::{
    engine::signals::send::{Missed, Receiver},
    model::{
        cause::Cause,
        deployment::Deployment,
        ids::{EnvironmentName, Epoch, ProjectName, RunId},
        run::{Run, RunState},
        signal::{Deploy, Order, RunStands, Said, Shipped},
        step::Outcome,
    },
    time::{Span, Stamp},
};

/// How long a receiver may take, where the author says nothing.
const LIMIT: Duration = Duration::from_secs(1800);
/// The first wait between two questions; it doubles up to [`SELDOM`].
const OFTEN: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(2);

/// What a signal of a deployment orders.
#[derive(Clone)]
pub(in crate::engine) struct Errand {
    project: ProjectName,
    environment: EnvironmentName,
    epoch: Epoch,
    deployment: u32,
    run: RunId,
    release: Shipped,
    back: bool,
    retry_bad: bool,
    reason: Option<String>,
}

impl Errand {
    pub(super) fn of(run: &Run, deployment: &Deployment) -> Option<Self> {
        let release = deployment.release(run)?;
        let request = &run.header.request;
        Some(Errand {
            project: run.header.project.clone(),
            environment: deployment.environment.clone(),
            epoch: deployment.lease?,
            deployment: deployment.n,
            run: run.header.run.clone(),
            release: Shipped {
                id: release.id.clone(),
                revision: release.commit.sha.clone(),
                tag: release.tag.clone(),
                artifacts: release.artifacts.clone(),
            },
            back: deployment.target.is_some(),
            retry_bad: request.retry_bad,
            reason: request.reason.clone(),
        })
    }
}

/// Where a conversation with a receiver has got to.
struct Talk<'a> {
    job: &'a Job,
    receiver: Receiver<'a>,
    order: Order,
    /// A genuine answer was heard: it is the host we know, and it knows us. Nothing is ordered before.
    met: bool,
    /// An order to deploy was sent, and nothing genuine was heard of it yet.
    sent: bool,
    /// An order that began a run there may have arrived.
    maybe: bool,
    /// Its run there.
    run: Option<RunId>,
    /// Since when nothing genuine was heard of it.
    silent: Option<Stamp>,
}

pub(super) async fn perform(job: &Job, args: &Resolved) -> Outcome {
    let (Some((_, host)), Some(errand)) = (&job.place.host, &job.place.signal) else {
        let cause = Cause::new("no_signals", "a signal goes to a host of a deployment");
        return Outcome::failed(job.placed(cause));
    };
    let limit = job.timeout(args, LIMIT);
    let clock = Arc::clone(&job.world.clock);
    let began = job.resumed.clone().unwrap_or_else(|| clock.now());
    let receiver = Receiver { world: &job.world, host, project: &errand.project, environment: &errand.environment };
    let order = Order::Deploy(Box::new(Deploy {
        token: job.token.clone(),
        epoch: errand.epoch,
        deployment: errand.deployment,
        step: job.key.as_str().to_owned(),
        attempt: job.attempt,
        run: errand.run.clone(),
        release: errand.release.clone(),
        back: errand.back,
        retry_bad: errand.retry_bad,
        reason: errand.reason.clone(),
    }));
    let maybe = job.resumed.is_some();
    let mut talk = Talk { job, receiver, order, met: false, sent: false, maybe, run: None, silent: None };
    let mut wait = OFTEN;
    loop {
        // Sending what a release has stored may take long: the limit is of all of it.
        let rest = limit.saturating_sub(clock.now().since(&began));
        let said = tokio::select! {
            biased;
            said = talk.ask() => said,
            () = job.stop.cancelled() => return talk.cut().await,
            () = clock.sleep(rest), if !rest.is_zero() => return talk.late(limit).await,
        };
        if let Some(outcome) = talk.heard(said) {
            return outcome;
        }
        if clock.now().since(&began) >= limit {
            return talk.late(limit).await;
        }
        tokio::select! {
            biased;
            () = clock.sleep(wait) => {}
            () = job.stop.cancelled() => return talk.cut().await,
        }
        wait = (wait * 2).min(SELDOM);
    }
}

impl Talk<'_> {
    /// Orders, or asks how the run stands that came of it; what the receiver lacks is sent first. Before all it is asked about, which changes
    /// nothing: whoever cannot answer that truly is never sent an order.
    async fn ask(&mut self) -> Result<Said, Missed> {
        if self.run.is_some() || !self.met {
            let said = self.receiver.ask(Order::Follow { token: self.job.token.clone() }).await;
            match said {
                Err(Missed::Refused(cause)) if self.run.is_none() && cause.code == "signal_no_run" => self.met = true,
                said => return said,
            }
        }
        let said = self.deploy().await?;
        let Said::Missing { blobs } = said else { return Ok(said) };
        for part in blobs {
            self.receiver.push(part).await?;
        }
        self.deploy().await
    }

    async fn deploy(&mut self) -> Result<Said, Missed> {
        self.sent = true;
        let said = self.receiver.ask(self.order.clone()).await;
        // What never left, and what was answered truly, is in nobody's hands.
        self.sent = !matches!(said, Ok(_) | Err(Missed::Shut(_)));
        said
    }

    /// The outcome, if what was heard is one.
    fn heard(&mut self, said: Result<Said, Missed>) -> Option<Outcome> {
        let name = &self.receiver.host.name;
        match said {
            Ok(Said::Run(stands)) => {
                self.silent = None;
                if self.run.is_none() {
                    self.note(&format!(
                        "run {} deploys it there; phased log {} on {name} tells more",
                        stands.run, stands.run
                    ));
                    self.run = Some(stands.run.clone());
                }
                stands.over.then(|| self.ended(&stands))
            }
            Ok(_) => self.silence(self.receiver.odd("it says nothing of a run")),
            Err(Missed::Refused(cause)) if self.is_proof(&cause) => Some(Outcome::failed(self.job.placed(cause))),
            Err(Missed::Refused(cause)) => {
                self.maybe = true;
                if passes(&cause) || (self.run.is_none() && cause.code == "signal_no_run") {
                    return self.silence(cause);
                }
                let message = format!("{}; nobody can tell what became of the release there", cause.message);
                Some(Outcome::Unknown { cause: self.job.placed(Cause { message, ..cause }) })
            }
            Err(Missed::Shut(cause)) if self.run.is_none() && !self.maybe => {
                Some(Outcome::failed(self.job.placed(cause)))
            }
            // Somebody answers, and it is not the host we know, or it does not know us; no order of ours is under way to it.
            Err(Missed::Lost(cause)) if self.run.is_none() && !self.maybe && !self.sent && !cause.is_unreachable() => {
                Some(Outcome::failed(self.job.placed(cause)))
            }
            // An answer that was lost or that anybody could have given is no answer: the order may have been taken.
            Err(Missed::Lost(cause)) => {
                self.maybe |= self.sent;
                self.silence(cause)
            }
            Err(Missed::Shut(cause)) => self.silence(cause),
        }
    }

    /// Whether a refusal, which is the receiver's for certain, says that nothing was done there.
    fn is_proof(&self, cause: &Cause) -> bool {
        if self.run.is_some() {
            false
        } else if self.maybe {
            // What is known by its token is never refused by a rule, so nothing has begun.
            by_rule(cause)
        } else if self.sent {
            // Not what somebody gets who has recorded the order and sends it after us.
            !matches!(cause.code.as_str(), "signal_replayed" | "signal_expired" | "signal_no_run" | "signal_unsure")
        } else {
            // It was only asked about; one whose run it cannot read has begun that run.
            cause.code != "signal_not_taken"
        }
    }

    /// Nothing was heard that can be believed: for a while that is a cut, then nobody can tell.
    fn silence(&mut self, cause: Cause) -> Option<Outcome> {
        let now = self.job.world.clock.now();
        let since = self.silent.get_or_insert_with(|| now.clone());
        let patience = self.job.world.limits.reconnect;
        if now.since(since) < patience {
            return None;
        }
        let run = self.run.as_ref().map_or_else(String::new, |run| format!(" (its run {run} was under way)"));
        if self.run.is_none() && !self.maybe {
            let message = format!("{}; nothing was heard of it for {}", cause.message, Span(patience));
            return Some(Outcome::failed(self.job.placed(Cause { message, ..cause })));
        }
        let message = format!(
            "{}{run}; nothing was heard of it for {}, so nobody can tell what became of the release there",
            cause.message,
            Span(patience)
        );
        Some(Outcome::Unknown { cause: self.job.placed(Cause { message, ..cause }) })
    }

    fn ended(&self, stands: &RunStands) -> Outcome {
        let name = &self.receiver.host.name;
        let mut value = json!({ "run": stands.run, "state": stands.state });
        if stands.state == RunState::Succeeded {
            return Outcome::Ok(value);
        }
        let state = serde_json::to_value(stands.state).unwrap_or_default();
        let state = state.as_str().unwrap_or_default().replace('_', " ");
        let why = stands.cause.as_ref().map_or_else(String::new, |cause| format!(": {}", cause.message));
        let message = format!("run {} on {name} ended {state}{why} (phased log {} on {name})", stands.run, stands.run);
        if stands.bad {
            // The release was deployed and found bad there: what that means for it is for the host's health to say, which asks.
            self.note(&message);
            value["bad"] = Value::Bool(true);
            return Outcome::Ok(value);
        }
        let code = stands.cause.as_ref().map_or("unknown", |cause| cause.code.as_str());
        let cause = Cause::new("receiver_failed", message).with("receiver_run", stands.run.as_str());
        Outcome::Failed { cause: self.job.placed(cause.with("receiver_code", code)), value }
    }

    /// The limit of the whole call, or of a daemon that is told to let go: the receiver is told as well.
    async fn cut(&self) -> Outcome {
        let told = self.tell_to_stop("the sender's call was ended").await;
        Outcome::Cut { cause: self.job.placed(Cause::new("stopped", format!("stopped; {told}"))) }
    }

    async fn late(&self, limit: Duration) -> Outcome {
        let told = self.tell_to_stop("it took longer than the sender waits").await;
        let message = format!("{} was not ready within {}; {told}", self.receiver.host.name, Span(limit));
        Outcome::failed(self.job.placed(Cause::new("timeout", message)))
    }

    async fn tell_to_stop(&self, reason: &str) -> String {
        let name = &self.receiver.host.name;
        let order = Order::Stop { token: self.job.token.clone(), reason: reason.to_owned() };
        match self.receiver.ask(order).await {
            Ok(_) => format!("{name} was told to stop"),
            Err(Missed::Refused(cause)) if cause.code == "signal_no_run" => {
                format!("{name} had begun nothing, and will not")
            }
            Err(missed) => format!("{name} could not be told to stop: {}", missed.cause().message),
        }
    }

    /// A line in the run's log.
    fn note(&self, text: &str) {
        let job = self.job;
        job.sessions.note(&job.run, &job.key, job.attempt, text.into());
    }
}

/// Refusals that a receiver only gives to an order whose token it does not know.
fn by_rule(cause: &Cause) -> bool {
    matches!(
        cause.code.as_str(),
        "signal_epoch"
            | "signal_stopped"
            | "signal_frozen"
            | "signal_paused"
            | "signal_bad_release"
            | "signal_artifact"
    )
}

/// Refusals after which the same may be answered: a receiver that goes down, or has much to do, or was sent it twice.
fn passes(cause: &Cause) -> bool {
    matches!(cause.code.as_str(), "signal_not_taken" | "signal_unsure" | "signal_replayed" | "signal_expired")
}
