//! The fold: one event into one run. The same code live and at recovery, so what a restart finds is what was.

use std::collections::BTreeMap;

use super::{
    analysis::{Series, Verdict},
    cause::Cause,
    deployment::{
        Back, Bake, Budgets, Deployment, Forgiven, HealthRun, HostRun, HostState, Hosts, Judged, Paused, Watched,
        WaveRun, unsafe_because,
    },
    event::{CallResult, Event, GoingBack, Record},
    ids::{EnvironmentName, HostId, Seq},
    pipeline::{Alarm, Environment},
    release::Artifact,
    run::{Call, CallEnd, Checkout, Progress, Run, StageRun, Step, Stop},
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

/// Why each host of a way back that has ended is not there: its own reason, or for one whose turn never came that of them all.
fn not_taken_back(back: &Deployment, cause: Option<&Cause>) -> BTreeMap<HostId, Cause> {
    let why = cause.map_or_else(String::new, |cause| format!(": {}", cause.message));
    let never = || Cause::new("not_taken_back", format!("its turn to go back did not come{why}"));
    back.hosts.iter().map(|host| (host.host.id.clone(), host.cause().cloned().unwrap_or_else(never))).collect()
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
            target: None,
            checkout: Checkout::Due,
            deployments: Vec::new(),
            calls: BTreeMap::new(),
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
        self.follow(record)?;
        self.deployments.iter_mut().for_each(|deployment| deployment.hosts.sort_changed());
        Ok(())
    }

    fn follow(&mut self, record: &Record) -> Result<(), Illegal> {
        let at = &record.at;
        if self.end.is_some() {
            return illegal("a record", "the run has ended");
        }
        match &record.event {
            Event::Started(_) => return illegal("started", "the run has started"),
            Event::Resolved { release, passed, live, target } => {
                if self.release.is_some() {
                    return illegal("resolved", "the commit is known");
                }
                self.release = Some((**release).clone());
                self.passed.clone_from(passed);
                self.live.clone_from(live);
                self.target.clone_from(target);
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
            Event::Return { key, result, undos } => {
                self.returned(key, result.into(), *undos, at)?;
                self.answered(key, result);
            }
            Event::Diverged { key, cause } => {
                if !self.calls.contains_key(key) {
                    return illegal("diverged", format!("call {key} is not open"));
                }
                self.diverged = Some(cause.clone());
            }
            Event::DeploymentCreated { deployment, environment, back } => {
                self.create(*deployment, environment, back.as_deref(), at)?;
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
            Event::Planned { deployment, hosts, previous, changed_paths, max_failures, max_unreachable, phases } => {
                let spec = self.spec_of("planned", *deployment)?;
                let deployment = self.deployment_mut("planned", *deployment)?;
                if deployment.budgets.is_some() {
                    return illegal("planned", "the plan is made");
                }
                deployment.budgets = Some(Budgets { max_failures: *max_failures, max_unreachable: *max_unreachable });
                deployment.previous = previous.as_deref().cloned();
                deployment.changed_paths.clone_from(changed_paths);
                deployment.phases = (**phases).clone();
                let sizes = if phases.waves.is_empty() { vec![u32::MAX] } else { phases.waves.clone() };
                deployment.waves = vec![WaveRun::default(); sizes.len()];
                let waves = (0u32..).zip(sizes).flat_map(|(wave, size)| (0..size).map(move |_| wave));
                let planned = hosts
                    .iter()
                    .zip(waves)
                    .map(|(host, wave)| HostRun::planned(host.clone(), wave, phases.ill.get(&host.id).cloned(), &spec));
                deployment.hosts = planned.collect();
                deployment.waiting = None;
                let watched = |alarm: &Alarm| {
                    let series = Series::new(&alarm.name, &alarm.analysis);
                    Watched { series, at: None, forgiven: false }
                };
                deployment.alarms = spec.alarms.iter().map(watched).collect();
            }
            Event::FleetSeen { deployment, gone, joined, wave, why } => {
                let spec = self.spec_of("fleet_seen", *deployment)?;
                let deployment = self.deployment_mut("fleet_seen", *deployment)?;
                let last = u32::try_from(deployment.waves.len().saturating_sub(1)).unwrap_or(u32::MAX);
                let mut served = 0;
                for host in deployment.hosts.iter_mut().filter(|host| gone.contains(&host.host.id)) {
                    served += u32::from(!host.gone && host.ill.is_none());
                    host.gone = true;
                    host.gone_why = why.get(&host.host.id).map(|why| Cause::new("gone", why.clone()));
                }
                if spec.rollout.min_healthy.is_none() {
                    // Counted from what served when it was planned: these are no more.
                    deployment.phases.min_healthy = deployment.phases.min_healthy.saturating_sub(served);
                }
                for host in joined {
                    if deployment.host(&host.id).is_some() {
                        return illegal("fleet_seen", format!("host {} is there", host.id));
                    }
                    let ill = Some("it has only just come".to_owned());
                    deployment.hosts.push(HostRun::planned(host.clone(), last, ill, &spec));
                }
                match deployment.waves.get_mut(*wave as usize) {
                    Some(wave) => wave.seen = true,
                    None => return illegal("fleet_seen", format!("there is no wave {wave}")),
                }
            }
            Event::Measured { deployment, alarm, measurement } => {
                let deployment = self.deployment_mut("measured", *deployment)?;
                let index = (*alarm as usize).checked_sub(1);
                let Some(alarm) = index.and_then(|index| deployment.alarms.get_mut(index)) else {
                    return illegal("measured", format!("there is no alarm {alarm}"));
                };
                alarm.series.see(measurement);
                alarm.at = Some(at.clone());
            }
            Event::BakeBegan { deployment, wave } => {
                self.wave_mut("bake_began", *deployment, *wave)?.bake =
                    Bake::Baking { since: at.clone(), away: std::time::Duration::ZERO, looked: false };
            }
            Event::LookedOver { deployment } => {
                for wave in &mut self.deployment_mut("looked_over", *deployment)?.waves {
                    if let Bake::Baking { looked, .. } = &mut wave.bake {
                        *looked = true;
                    }
                }
            }
            Event::BakeEnded { deployment, wave, .. } => {
                self.wave_mut("bake_ended", *deployment, *wave)?.bake = Bake::Over;
            }
            Event::Judged { deployment, cause, bad, then } => {
                let deployment = self.deployment_mut("judged", *deployment)?;
                if deployment.judged.is_some() {
                    return illegal("judged", "it was judged before");
                }
                deployment.judged = Some(Judged { cause: cause.clone(), bad: *bad, then: *then });
                deployment.paused = None;
            }
            Event::Paused { deployment, by, reason, failed, bad } => {
                let deployment = self.deployment_mut("paused", *deployment)?;
                let (by, reason, failed) = (by.clone(), reason.clone(), failed.clone());
                deployment.paused = Some(Paused { by, reason, since: at.clone(), failed, bad: *bad });
            }
            Event::Unpaused { deployment, .. } => {
                let deployment = self.deployment_mut("unpaused", *deployment)?;
                deployment.paused = None;
                deployment.progress_at = Some(at.clone());
            }
            Event::Observed { deployment, unwatched_ms } => {
                let deployment = self.deployment_mut("observed", *deployment)?;
                deployment.not_watched(std::time::Duration::from_millis(*unwatched_ms));
            }
            Event::Promoted { deployment, .. } => {
                let deployment = self.deployment_mut("promoted", *deployment)?;
                deployment.paused = None;
                let count = |state| deployment.hosts.iter().filter(|host| host.verdict() == state).count();
                let before = deployment.forgiven;
                let forgiven =
                    Forgiven { failed: count(HostState::Failed), unreachable: count(HostState::Unreachable) };
                deployment.forgiven = forgiven;
                // Whoever goes on from hosts that do not serve goes on without them.
                let fewer = (forgiven.failed + forgiven.unreachable).saturating_sub(before.failed + before.unreachable);
                deployment.phases.min_healthy =
                    deployment.phases.min_healthy.saturating_sub(u32::try_from(fewer).unwrap_or(u32::MAX));
                deployment.progress_at = Some(at.clone());
                for alarm in &mut deployment.alarms {
                    alarm.forgiven |= alarm.series.assess(false).verdict == Verdict::Fail;
                }
                let hooks = deployment.waves.iter_mut().flat_map(|wave| [&mut wave.before, &mut wave.after]);
                for hook in hooks.chain([&mut deployment.verify_canary, &mut deployment.verify]) {
                    if matches!(hook, Progress::Ended(_)) {
                        *hook = Progress::Ended(CallEnd::Returned);
                    }
                }
                for wave in &mut deployment.waves {
                    if matches!(wave.bake, Bake::Baking { .. }) {
                        wave.bake = Bake::Over;
                    }
                }
            }
            Event::PlanFailed { deployment, cause } => {
                self.deployment_mut("plan_failed", *deployment)?.plan_failed = Some(cause.clone());
            }
            Event::HostMet { deployment, host, machine, .. } => {
                self.host_mut("host_met", *deployment, host)?.machine = Some(machine.clone());
            }
            Event::HealthBegan { deployment, host } => {
                self.host_mut("health_began", *deployment, host)?.health =
                    HealthRun::Watching { since: at.clone(), again: false };
            }
            Event::ProcessesSeen { deployment, host, processes } => {
                self.host_mut("processes_seen", *deployment, host)?.processes.clone_from(processes);
            }
            Event::HealthVerdict { deployment, host, unhealthy, .. } => {
                self.host_mut("health_verdict", *deployment, host)?.health =
                    unhealthy.clone().map_or(HealthRun::Healthy, HealthRun::Unhealthy);
                self.came_back(*deployment, host);
                if unhealthy.is_none() {
                    self.deployment_mut("health_verdict", *deployment)?.progress_at = Some(at.clone());
                }
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
                for deployment in self.deployments.iter_mut().filter(|d| d.end.is_none()) {
                    for host in &mut deployment.hosts {
                        if let HealthRun::Watching { again, .. } = &mut host.health {
                            *again = true;
                        }
                    }
                    deployment.not_watched(away);
                }
            }
            Event::DeploymentEnded { deployment, state, cause } => {
                let deployment = self.deployment_mut("deployment_ended", *deployment)?;
                if deployment.end.is_some() {
                    return illegal("deployment_ended", "it has ended");
                }
                deployment.waiting = None;
                deployment.paused = None;
                deployment.end = Some((*state, cause.clone(), at.clone()));
                let back = deployment.rollback_of.map(|of| (of, not_taken_back(deployment, cause.as_ref())));
                if let Some((of, mut left)) = back {
                    // Whatever is not there by now will not be.
                    let of = self.deployment_mut("deployment_ended", of)?;
                    for host in of.hosts.iter_mut().filter(|host| host.back == Some(Back::Going)) {
                        if let Some(why) = left.remove(&host.host.id) {
                            (host.back, host.back_why) = (Some(Back::Failed), Some(why));
                        }
                    }
                }
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
        let place = key.place();
        // Before anything is changed: nobody is on the way yet.
        let first = match &place {
            Some(Place::Host { deployment, .. }) => {
                self.deployment(*deployment).is_some_and(|of| !of.hosts.moving().into_iter().any(HostRun::in_flight))
            }
            _ => false,
        };
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
        if let Some(Place::Host { deployment, host, function }) = &place {
            let of = self.deployment_mut("call", *deployment)?;
            // What prepares must not touch what serves; a host that goes back is on its way from there on.
            let begins = function != "prepare" || of.target.is_some();
            if begins {
                if first {
                    of.progress_at = Some(at.clone());
                }
                self.host_mut("call", *deployment, host)?.begun.get_or_insert_with(|| at.clone());
            }
        }
        let steps = BTreeMap::new();
        let call = Call {
            place,
            cleaning: key.is_cleaning(),
            begun: at.clone(),
            away: std::time::Duration::ZERO,
            steps,
            over: false,
        };
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
        if let (true, Some(Place::Host { deployment, host, function })) = (reached, call_key.place())
            && function != "prepare"
        {
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
            Place::Deployment { deployment, function } => {
                let deployment = self.deployment_mut("call", deployment).ok()?;
                match function.split_once('.').unwrap_or((function.as_str(), "")) {
                    ("rollback_safe", "") => Some(&mut deployment.rollback_safe),
                    ("before", "") => Some(&mut deployment.before),
                    ("after", "") => Some(&mut deployment.after),
                    ("verify", "") => Some(&mut deployment.verify),
                    ("verify", "canary") => Some(&mut deployment.verify_canary),
                    // Waves are counted from 1 where people see them.
                    (hook @ ("before_wave" | "after_wave"), n) => {
                        let wave = deployment.waves.get_mut(n.parse::<usize>().ok()?.checked_sub(1)?)?;
                        Some(if hook == "before_wave" { &mut wave.before } else { &mut wave.after })
                    }
                    _ => None,
                }
            }
            Place::Host { deployment, host, function } => {
                self.host_mut("call", deployment, &host).ok()?.function_mut(&function)
            }
        }
    }

    /// What a function said whose answer matters.
    fn answered(&mut self, key: &CallKey, result: &CallResult) {
        match (key.place(), result) {
            (Some(Place::Deployment { deployment, function }), CallResult::Returned(value))
                if function == "rollback_safe" =>
            {
                let Ok(deployment) = self.deployment_mut("return", deployment) else { return };
                deployment.unsafe_because = unsafe_because(value);
            }
            (Some(Place::Host { deployment, host, .. }), _) => self.came_back(deployment, &host),
            _ => {}
        }
    }

    /// A host of a rollback may have gone all the way: the deployment that is taken back has it so.
    fn came_back(&mut self, deployment: u32, host: &HostId) {
        let Ok(rollback) = self.deployment_mut("rollback", deployment) else { return };
        let Some(of) = rollback.rollback_of else { return };
        let there = if rollback.alone { Back::Aside } else { Back::There };
        let (back, why) = match rollback.host(host) {
            Some(host) if host.verdict() == HostState::Healthy => (there, None),
            Some(host) if host.is_settled() => (Back::Failed, host.cause().cloned()),
            _ => return,
        };
        if let Ok(host) = self.host_mut("rollback", of, host) {
            (host.back, host.back_why) = (Some(back), why);
        }
    }

    fn create(
        &mut self,
        n: u32,
        environment: &EnvironmentName,
        back: Option<&GoingBack>,
        at: &Stamp,
    ) -> Result<(), Illegal> {
        if n as usize != self.deployments.len() + 1 {
            return illegal("deployment_created", format!("number {n} is out of order"));
        }
        let mut deployment = Deployment::created(n, environment.clone(), at);
        deployment.target.clone_from(&self.target);
        if let Some(back) = back {
            let of = self.deployment_mut("deployment_created", back.of)?;
            let Some(target) = of.phases.target.clone() else {
                return illegal("deployment_created", format!("deployment {} has nothing to go back to", back.of));
            };
            let healthy = of.healthy();
            let mut hosts = Hosts::default();
            for id in &back.hosts {
                let Some(host) = of.hosts.of_mut(id) else {
                    return illegal("deployment_created", format!("deployment {} has no host {id}", back.of));
                };
                host.back = Some(Back::Going);
                let ill = (host.verdict() != HostState::Healthy).then(|| "it is taken back".to_owned());
                let mut going = HostRun::planned(host.host.clone(), 0, ill, &target.environment);
                going.machine.clone_from(&host.machine);
                if back.alone {
                    // It stays drained.
                    going.undrain = Progress::Ended(CallEnd::Returned);
                }
                hosts.push(going);
            }
            // At least one has to be taken at a time; where nothing else is said, as many as may go back at once.
            let rollout = &target.environment.rollout;
            let at_once = rollout.rollback_parallel.unwrap_or(rollout.max_parallel).max(1) as usize;
            let taken = if rollout.min_healthy.is_some() { 1 } else { at_once };
            let floor = (of.phases.min_healthy as usize).min(healthy.saturating_sub(taken));
            deployment.phases.min_healthy = u32::try_from(floor).unwrap_or(u32::MAX);
            deployment.budgets = of.budgets;
            deployment.lease = of.lease;
            deployment.previous = self.release.clone();
            deployment.rollback_of = Some(back.of);
            deployment.alone = back.alone;
            deployment.target = Some(target);
            deployment.hosts = hosts;
        }
        self.deployments.push(deployment);
        Ok(())
    }

    fn spec_of(&mut self, event: &'static str, n: u32) -> Result<Environment, Illegal> {
        let deployment = match self.deployment(n) {
            Some(deployment) => deployment,
            None => return illegal(event, format!("there is no deployment {n}")),
        };
        match deployment.spec(self) {
            Some(spec) => Ok(spec.clone()),
            None => illegal(event, format!("the pipeline has no environment {}", deployment.environment)),
        }
    }

    fn wave_mut(&mut self, event: &'static str, n: u32, wave: u32) -> Result<&mut WaveRun, Illegal> {
        match self.deployment_mut(event, n)?.waves.get_mut(wave as usize) {
            Some(wave) => Ok(wave),
            None => illegal(event, format!("deployment {n} has no wave {wave}")),
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
        match deployment.hosts.of_mut(id) {
            Some(host) => Ok(host),
            None => illegal(event, format!("deployment {n} has no host {id}")),
        }
    }
}
