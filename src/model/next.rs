//! The fold: one event into one run. The same code live and at recovery, so what a restart finds is what was.

use super::{
    event::{Event, Record},
    ids::{HostId, Seq},
    release::Artifact,
    run::{Budgets, Call, CallEnd, Checkout, Deployment, HealthRun, HostRun, Progress, Run, StageRun, Step, Stop},
    step::{CallKey, Outcome, Place, StepKey, Verb},
};
use crate::time::Stamp;

/// An event that cannot follow what was before it. Live it is a mistake in phased, in a journal it is damage.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{event} cannot follow: {why}")]
pub struct Illegal {
    event: &'static str,
    why: String,
}

fn illegal<T>(event: &'static str, why: impl Into<String>) -> Result<T, Illegal> {
    Err(Illegal { event, why: why.into() })
}

/// The journal's formats this version reads.
pub const FORMAT: u32 = 1;

impl Run {
    /// The run its first record describes.
    ///
    /// # Errors
    /// [`Illegal`] for any other record, or one of a format this version does not know.
    pub fn begin(record: &Record) -> Result<Run, Illegal> {
        let Event::Started(header) = &record.event else {
            return illegal("the first record", "it is not `started`");
        };
        if header.format != FORMAT {
            return illegal(
                "started",
                format!("format {} is not {FORMAT}: written by phased {}", header.format, header.version),
            );
        }
        Ok(Run {
            stages: vec![StageRun::default(); header.pipeline.stages.len()],
            header: (**header).clone(),
            started_at: record.at.clone(),
            last_at: record.at.clone(),
            release: None,
            unresolved: None,
            passed: None,
            live: Vec::new(),
            checkout: Checkout::Due,
            deployments: Vec::new(),
            calls: std::collections::BTreeMap::new(),
            stop: None,
            diverged: None,
            end: None,
        })
    }

    /// Folds a whole journal.
    ///
    /// # Errors
    /// [`Illegal`] with the number of the record, or when there is none.
    pub fn fold<'a>(records: impl IntoIterator<Item = (Seq, &'a Record)>) -> Result<Run, Illegal> {
        let mut records = records.into_iter();
        let Some((_, first)) = records.next() else { return illegal("nothing", "the journal is empty") };
        let mut run = Run::begin(first)?;
        for (seq, record) in records {
            run.next(record).map_err(|e| Illegal { event: e.event, why: format!("{} (record {})", e.why, seq.0) })?;
        }
        Ok(run)
    }

    /// Folds one more record; a refused one changes nothing.
    ///
    /// # Errors
    /// [`Illegal`].
    pub fn next(&mut self, record: &Record) -> Result<(), Illegal> {
        let at = &record.at;
        if self.end.is_some() {
            return illegal("a record", "the run has ended");
        }
        match &record.event {
            Event::Started(_) => return illegal("started", "the run has started"),
            Event::Resolved { release, passed, live } => {
                if self.release.is_some() {
                    return illegal("resolved", "the commit is known");
                }
                self.release = Some((**release).clone());
                self.passed.clone_from(passed);
                self.live.clone_from(live);
            }
            Event::Unresolved { cause } => self.unresolved = Some(cause.clone()),
            Event::CheckedOut { dir } => self.checkout = Checkout::At(dir.clone()),
            Event::CheckoutFailed { cause } => self.checkout = Checkout::Failed(cause.clone()),
            Event::Call { key, .. } => self.called(key, at)?,
            Event::Begin { key, attempt, args, host, line, .. } => {
                let step = Step {
                    attempt: *attempt,
                    begun: at.clone(),
                    args: args.clone(),
                    host: host.clone(),
                    line: line.clone(),
                    failed: None,
                };
                self.begun(key, step)?;
            }
            Event::Done { key, attempt, outcome, last } => self.done(key, *attempt, outcome, *last, at)?,
            Event::Return { key, result, undos } => self.returned(key, result.into(), *undos, at)?,
            Event::Diverged { key, cause } => {
                if !self.calls.contains_key(key) {
                    return illegal("diverged", format!("call {key} is not open"));
                }
                self.diverged = Some(cause.clone());
            }
            Event::DeploymentCreated { deployment, environment } => {
                if *deployment as usize != self.deployments.len() + 1 {
                    return illegal("deployment_created", format!("number {deployment} is out of order"));
                }
                self.deployments.push(Deployment {
                    n: *deployment,
                    environment: environment.clone(),
                    previous: None,
                    changed_paths: None,
                    waiting: None,
                    lease: None,
                    lease_lost: false,
                    budgets: None,
                    plan_failed: None,
                    hosts: Vec::new(),
                    verify: Progress::Due,
                    created_at: at.clone(),
                    end: None,
                });
            }
            Event::Blocked { deployment, waiting } => {
                self.deployment_mut("blocked", *deployment)?.waiting.clone_from(waiting);
            }
            Event::LeaseGranted { deployment, epoch } => {
                let deployment = self.deployment_mut("lease_granted", *deployment)?;
                deployment.lease = Some(*epoch);
                deployment.waiting = None;
            }
            Event::LeaseLost { deployment } => self.deployment_mut("lease_lost", *deployment)?.lease_lost = true,
            Event::Planned { deployment, hosts, previous, changed_paths, max_failures, max_unreachable } => {
                let deployment = self.deployment_mut("planned", *deployment)?;
                if deployment.budgets.is_some() {
                    return illegal("planned", "the plan is made");
                }
                deployment.budgets = Some(Budgets { max_failures: *max_failures, max_unreachable: *max_unreachable });
                deployment.previous = previous.as_deref().cloned();
                deployment.changed_paths.clone_from(changed_paths);
                deployment.hosts = hosts
                    .iter()
                    .map(|host| HostRun {
                        host: host.clone(),
                        deploy: Progress::Due,
                        machine: None,
                        touched: false,
                        health: HealthRun::Due,
                    })
                    .collect();
            }
            Event::PlanFailed { deployment, cause } => {
                self.deployment_mut("plan_failed", *deployment)?.plan_failed = Some(cause.clone());
            }
            Event::HostMet { deployment, host, machine } => {
                self.host_mut("host_met", *deployment, host)?.machine = Some(machine.clone());
            }
            Event::HealthBegan { deployment, host } => {
                self.host_mut("health_began", *deployment, host)?.health =
                    HealthRun::Watching { since: at.clone(), again: false };
            }
            Event::HealthVerdict { deployment, host, unhealthy, .. } => {
                let host = self.host_mut("health_verdict", *deployment, host)?;
                host.health = unhealthy.clone().map_or(HealthRun::Healthy, HealthRun::Unhealthy);
            }
            Event::DeadlineHit { key } => match self.calls.get_mut(key) {
                Some(call) => call.over = true,
                None => return illegal("deadline_hit", format!("call {key} is not open")),
            },
            Event::StopRequested { by, now, reason } => {
                // A second wish only sharpens the first.
                let now = *now || self.stop.as_ref().is_some_and(|s| s.now);
                self.stop = Some(Stop { by: by.clone(), now, reason: reason.clone() });
            }
            Event::Resumed { epoch, .. } => {
                self.header.epoch = self.header.epoch.max(*epoch);
                let away = at.since(&self.last_at);
                self.calls.values_mut().for_each(|call| call.away += away);
                let open = self.deployments.iter_mut().filter(|d| d.end.is_none());
                for host in open.flat_map(|d| &mut d.hosts) {
                    if let HealthRun::Watching { again, .. } = &mut host.health {
                        *again = true;
                    }
                }
            }
            Event::DeploymentEnded { deployment, state, cause } => {
                let deployment = self.deployment_mut("deployment_ended", *deployment)?;
                if deployment.end.is_some() {
                    return illegal("deployment_ended", "it has ended");
                }
                deployment.waiting = None;
                deployment.end = Some((*state, cause.clone(), at.clone()));
            }
            Event::End { state, cause } => self.end = Some((*state, cause.clone(), at.clone())),
        }
        self.last_at = at.clone();
        Ok(())
    }

    fn called(&mut self, key: &CallKey, at: &Stamp) -> Result<(), Illegal> {
        if self.calls.contains_key(key) {
            return illegal("call", format!("{key} is open"));
        }
        let undone = key.undone();
        let progress = self
            .progress_mut(undone.as_ref().unwrap_or(key))
            .ok_or_else(|| Illegal { event: "call", why: format!("{key} names nothing of this run") })?;
        match (&undone, &progress) {
            (None, Progress::Due) => *progress = Progress::Open,
            (Some(_), Progress::Undoing(_)) => {}
            _ => return illegal("call", format!("{key} was called before")),
        }
        if let Some(stage) = self.stage_mut(key) {
            stage.started_at.get_or_insert_with(|| at.clone());
        }
        let steps = std::collections::BTreeMap::new();
        let call = Call { begun: at.clone(), away: std::time::Duration::ZERO, steps, over: false };
        self.calls.insert(key.clone(), call);
        Ok(())
    }

    fn begun(&mut self, key: &StepKey, step: Step) -> Result<(), Illegal> {
        let Some(call) = self.calls.get_mut(&key.call()) else {
            return illegal("begin", format!("the call of {key} is not open"));
        };
        match call.steps.get(key) {
            None if step.attempt == 1 => {}
            Some(last) if last.failed.is_some() && step.attempt == last.attempt + 1 => {}
            _ => return illegal("begin", format!("attempt {} of {key} is out of order", step.attempt)),
        }
        call.steps.insert(key.clone(), step);
        Ok(())
    }

    fn done(&mut self, key: &StepKey, attempt: u32, outcome: &Outcome, last: bool, at: &Stamp) -> Result<(), Illegal> {
        let call_key = key.call();
        let made = match (outcome, key.verb()) {
            (Outcome::Ok(value), Some((Verb::Artifact, _))) => Some(self.made(value)?),
            _ => None,
        };
        let step = self.calls.get_mut(&call_key).and_then(|call| call.steps.get_mut(key));
        let Some(step) = step.filter(|step| step.attempt == attempt && (step.failed.is_none() || last)) else {
            return illegal("done", format!("attempt {attempt} of {key} is not open"));
        };
        if let (false, Some(cause)) = (last, outcome.cause()) {
            step.failed = Some((at.clone(), cause.clone()));
        } else if let Some(call) = self.calls.get_mut(&call_key) {
            call.steps.remove(key);
        }
        if let (Some(artifact), Some(release)) = (made, &mut self.release) {
            release.artifacts.push(artifact);
        }
        // What could not even be begun because we did not get into the host has not touched it. Where nobody can tell, it may
        // have, whatever was in the way of asking.
        let reached = match outcome {
            Outcome::Failed { cause, .. } => !cause.is_shut(),
            Outcome::Ok(_) | Outcome::Unknown { .. } | Outcome::Cut { .. } => true,
        };
        if let (true, Some(Place::Host { deployment, host, .. })) = (reached, call_key.place()) {
            self.host_mut("done", deployment, &host)?.touched = true;
        }
        Ok(())
    }

    /// The artifact that a step has stored.
    fn made(&self, value: &serde_json::Value) -> Result<Artifact, Illegal> {
        let why = |why: String| Illegal { event: "done", why };
        let artifact: Artifact =
            serde_json::from_value(value.clone()).map_err(|error| why(format!("{value} is no artifact: {error}")))?;
        let Some(release) = &self.release else { return Err(why("an artifact of no release".to_owned())) };
        if release.artifact(&artifact.name).is_some() {
            return Err(why(format!("there is an artifact {} already", artifact.name)));
        }
        Ok(artifact)
    }

    fn returned(&mut self, key: &CallKey, end: CallEnd, undos: u32, at: &Stamp) -> Result<(), Illegal> {
        if self.calls.remove(key).is_none() {
            return illegal("return", format!("call {key} is not open"));
        }
        if let Some(stage) = self.stage_mut(key) {
            stage.touched_at = Some(at.clone());
        }
        if let Some(undone) = key.undone() {
            if let Some(progress) = self.progress_mut(&undone)
                && let Progress::Undoing(first) = progress
            {
                *progress = Progress::Ended(first.clone().undone(&end));
            }
        } else if let Some(progress) = self.progress_mut(key) {
            let due = undos > 0 && end != CallEnd::Returned;
            *progress = if due { Progress::Undoing(end) } else { Progress::Ended(end) };
        }
        Ok(())
    }

    fn stage_mut(&mut self, key: &CallKey) -> Option<&mut StageRun> {
        let Some(Place::Stage { stage, .. }) = key.place() else { return None };
        let index = self.header.pipeline.stages.iter().position(|s| s.name.as_str() == stage)?;
        self.stages.get_mut(index)
    }

    fn progress_mut(&mut self, key: &CallKey) -> Option<&mut Progress> {
        match key.place()? {
            Place::Stage { function, .. } => {
                let stage = self.stage_mut(key)?;
                match function.as_str() {
                    "setup" => Some(&mut stage.setup),
                    "run" => Some(&mut stage.run),
                    "cleanup" => Some(&mut stage.cleanup),
                    _ => None,
                }
            }
            Place::Deployment { deployment, function } if function == "verify" => {
                Some(&mut self.deployment_mut("call", deployment).ok()?.verify)
            }
            Place::Host { deployment, host, function } if function == "deploy" => {
                Some(&mut self.host_mut("call", deployment, &host).ok()?.deploy)
            }
            Place::Deployment { .. } | Place::Host { .. } => None,
        }
    }

    fn deployment_mut(&mut self, event: &'static str, n: u32) -> Result<&mut Deployment, Illegal> {
        let index = (n as usize).checked_sub(1);
        match index.and_then(|i| self.deployments.get_mut(i)) {
            Some(deployment) => Ok(deployment),
            None => illegal(event, format!("there is no deployment {n}")),
        }
    }

    fn host_mut(&mut self, event: &'static str, n: u32, id: &HostId) -> Result<&mut HostRun, Illegal> {
        let deployment = self.deployment_mut(event, n)?;
        match deployment.hosts.iter_mut().find(|h| h.host.id == *id) {
            Some(host) => Ok(host),
            None => illegal(event, format!("deployment {n} has no host {id}")),
        }
    }
}
