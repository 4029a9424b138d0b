//! A deployment of a run, as folded: its phases, its waves, and each of its hosts.

mod hosts;

use serde::{Deserialize, Serialize};

pub use hosts::Hosts;

use super::{
    adoption::Adoption,
    analysis::Series,
    cause::Cause,
    health::Incarnation,
    host::Host,
    ids::{Digest, EnvironmentName, Epoch, HostId},
    pipeline::Environment,
    plan::{Phases, Target},
    release::Release,
    rollout::OnFailure,
    run::{CallEnd, Progress, Run, Waiting},
};
use crate::time::Stamp;

/// A deployment's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentState {
    /// It waits for its lease, or its hosts are being found out.
    Planned,
    /// Hosts are being prepared.
    Preparing,
    /// Hosts are being switched.
    Rolling,
    /// It is being watched.
    Baking,
    /// A person or a verdict holds it.
    Paused,
    /// All hosts that must have it have it.
    Succeeded,
    /// Nothing was switched.
    Failed,
    /// Every host has the known-good release again.
    RolledBack,
    /// A host could not go back.
    RollbackFailed,
    /// It stands still, mixed, on purpose.
    Halted,
    /// Ended by a person.
    Stopped,
}

impl DeploymentState {
    /// Whether hosts may have been left with different releases, on purpose: nothing is done about that by itself.
    #[must_use]
    pub fn is_mixture(self) -> bool {
        matches!(self, DeploymentState::Halted | DeploymentState::Stopped | DeploymentState::RollbackFailed)
    }
}

/// A host's state in a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Its turn has not come.
    Pending,
    /// It is being switched or watched.
    Running,
    /// Nobody can tell what happened on it.
    Unknown,
    /// It has the release and is healthy.
    Healthy,
    /// It was reached and failed.
    Failed,
    /// It could not be reached.
    Unreachable,
    /// Set aside after a failure.
    Quarantined,
    /// Its turn never came.
    Skipped,
    /// It has the known-good release again.
    RolledBack,
    /// Its provider terminated it.
    Gone,
}

/// A deployment of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// Its number in the run, from 1.
    pub n: u32,
    /// Where.
    pub environment: EnvironmentName,
    /// The deployment of this run that it takes back; it has that one's lease.
    pub rollback_of: Option<u32>,
    /// It takes back hosts that failed within the budgets, beside a rollout that goes on.
    pub alone: bool,
    /// What it puts on its hosts and how; `None` = the run's own release by the run's own code.
    pub target: Option<Box<Target>>,
    /// What was live there, once planned.
    pub previous: Option<Release>,
    /// Paths that differ from that.
    pub changed_paths: Option<Vec<String>>,
    /// What it waits for.
    pub waiting: Option<Waiting>,
    /// Its fencing number, while the environment is ours.
    pub lease: Option<Epoch>,
    /// The lease was taken away.
    pub lease_lost: bool,
    /// The budgets, once planned.
    pub budgets: Option<Budgets>,
    /// Its waves and floors, once planned.
    pub phases: Phases,
    /// Why it was not planned.
    pub plan_failed: Option<Cause>,
    /// Its hosts in order.
    pub hosts: Hosts,
    /// Its `rollback_safe`, and what that said: why it is not safe.
    pub rollback_safe: Progress,
    /// Why its environment cannot go back once this is there.
    pub unsafe_because: Option<String>,
    /// Its `before`.
    pub before: Progress,
    /// Its waves, in order.
    pub waves: Vec<WaveRun>,
    /// Its `verify` after the canary.
    pub verify_canary: Progress,
    /// Its `verify` after the last wave.
    pub verify: Progress,
    /// Its `after`.
    pub after: Progress,
    /// Its alarms, in the environment's order.
    pub alarms: Vec<Watched>,
    /// Why it goes no further.
    pub judged: Option<Judged>,
    /// Somebody or something holds it.
    pub paused: Option<Paused>,
    /// Failures that a person has looked at and gone on from.
    pub forgiven: Forgiven,
    /// When a host last became healthy, or the first was begun.
    pub progress_at: Option<Stamp>,
    /// When it was created.
    pub created_at: Stamp,
    /// How it ended, and when.
    pub end: Option<(DeploymentState, Option<Cause>, Stamp)>,
}

/// Budgets as absolute numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Failed hosts that do not stop it.
    pub max_failures: usize,
    /// Unreachable hosts that do not stop it.
    pub max_unreachable: usize,
}

/// Why a deployment goes no further.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// Why.
    pub cause: Cause,
    /// It is the release that is bad.
    pub bad: bool,
    /// What follows.
    pub then: OnFailure,
}

/// A deployment that is held.
#[derive(Debug, Clone, PartialEq)]
pub struct Paused {
    /// By whom.
    pub by: String,
    /// In their words, or the cause's.
    pub reason: Option<String>,
    /// Since when.
    pub since: Stamp,
    /// It has failed, and may only go on by being promoted.
    pub failed: Option<Cause>,
    /// And it is the release that is bad.
    pub bad: bool,
}

/// An alarm of a deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Watched {
    /// What was measured so far.
    pub series: Series,
    /// When it was measured last.
    pub at: Option<Stamp>,
    /// It fired, and a person went on from that.
    pub forgiven: bool,
}

/// How many of each a person has gone on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgiven {
    /// Failed hosts.
    pub failed: usize,
    /// Unreachable hosts.
    pub unreachable: usize,
}

/// A wave of a deployment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WaveRun {
    /// Its `before_wave`.
    pub before: Progress,
    /// Its `after_wave`.
    pub after: Progress,
    /// The fleet was looked at again for it.
    pub seen: bool,
    /// It is watched.
    pub bake: Bake,
}

/// The watch after a wave.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Bake {
    /// Not yet.
    #[default]
    Due,
    /// Since when, and how long of that nobody watched.
    Baking {
        /// When it began.
        since: Stamp,
        /// How long nobody looked since: no daemon was there, or it had no room for the sessions.
        away: std::time::Duration,
        /// Its time was over, and its hosts were looked at once more.
        looked: bool,
    },
    /// Over.
    Over,
}

/// One host of a deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct HostRun {
    /// The host as planned.
    pub host: Host,
    /// Its wave, from 0.
    pub wave: u32,
    /// It was not healthy before: why.
    pub ill: Option<String>,
    /// Its `prepare`; what an environment has not is as if it had returned.
    pub prepare: Progress,
    /// Its `drain`.
    pub drain: Progress,
    /// Its `deploy`.
    pub deploy: Progress,
    /// Its `undrain`.
    pub undrain: Progress,
    /// When its turn came.
    pub begun: Option<Stamp>,
    /// The machine it was when something first began on it.
    pub machine: Option<String>,
    /// Something of `drain` or `deploy` may have happened on it.
    pub touched: bool,
    /// Its health after `deploy`.
    pub health: HealthRun,
    /// Its units and containers as they were seen first.
    pub processes: Vec<(usize, Incarnation)>,
    /// Its provider says that it is no more.
    pub gone: bool,
    /// In its words.
    pub gone_why: Option<Cause>,
    /// What a rollback made of it: whether it has the known-good release again.
    pub back: Option<Back>,
    /// Why it could not be brought back.
    pub back_why: Option<Cause>,
}

/// What a rollback made of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Back {
    /// It is on its way.
    Going,
    /// It has the known-good release.
    There,
    /// It has that as well, and stays out of service: it failed while the rollout went on.
    Aside,
    /// It could not be brought back.
    Failed,
}

/// The watch over a host.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum HealthRun {
    /// Not yet.
    #[default]
    Due,
    /// It is being watched.
    Watching {
        /// Since when: the deadline counts from here.
        since: Stamp,
        /// The daemon came back in the middle of it: what it saw before is forgotten.
        again: bool,
    },
    /// Healthy.
    Healthy,
    /// Not healthy in time.
    Unhealthy(Cause),
}

impl Deployment {
    /// Only watched time counts: so much of what bakes was not, and a last look before that was not the last.
    pub(super) fn not_watched(&mut self, span: std::time::Duration) {
        for wave in &mut self.waves {
            if let Bake::Baking { away, looked, .. } = &mut wave.bake {
                *away += span;
                *looked &= span.is_zero();
            }
        }
    }

    /// One that has only been created.
    #[must_use]
    pub fn created(n: u32, environment: EnvironmentName, at: &Stamp) -> Self {
        Deployment {
            n,
            environment,
            rollback_of: None,
            alone: false,
            target: None,
            previous: None,
            changed_paths: None,
            waiting: None,
            lease: None,
            lease_lost: false,
            budgets: None,
            phases: Phases::default(),
            plan_failed: None,
            hosts: Hosts::default(),
            rollback_safe: Progress::Due,
            unsafe_because: None,
            before: Progress::Due,
            waves: Vec::new(),
            verify_canary: Progress::Due,
            verify: Progress::Due,
            after: Progress::Due,
            alarms: Vec::new(),
            judged: None,
            paused: None,
            forgiven: Forgiven::default(),
            progress_at: None,
            created_at: at.clone(),
            end: None,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> DeploymentState {
        if let Some((state, ..)) = &self.end {
            return *state;
        }
        if self.paused.is_some() {
            return DeploymentState::Paused;
        }
        let begun = self.hosts.iter().any(|host| host.begun.is_some());
        let baking = self.waves.iter().any(|wave| matches!(wave.bake, Bake::Baking { .. }));
        match self.budgets {
            None => DeploymentState::Planned,
            Some(_) if baking && self.judged.is_none() => DeploymentState::Baking,
            Some(_) if begun || self.rollback_of.is_some() => DeploymentState::Rolling,
            Some(_) => DeploymentState::Preparing,
        }
    }

    /// The environment as the code describes it that this deployment runs.
    #[must_use]
    pub fn spec<'a>(&'a self, run: &'a Run) -> Option<&'a Environment> {
        match &self.target {
            Some(target) => Some(&target.environment),
            None => run.environment(&self.environment),
        }
    }

    /// What it puts on its hosts.
    #[must_use]
    pub fn release<'a>(&'a self, run: &'a Run) -> Option<&'a Release> {
        self.target.as_ref().map(|target| &target.release).or(run.release.as_ref())
    }

    /// The code it runs.
    #[must_use]
    pub fn code<'a>(&'a self, run: &'a Run) -> &'a Digest {
        self.target.as_ref().map_or(&run.header.code, |target| &target.code)
    }

    /// The environment's own host of this id.
    #[must_use]
    pub fn host(&self, id: &HostId) -> Option<&HostRun> {
        self.hosts.of(id)
    }

    /// How many hosts are in `state`.
    #[must_use]
    pub fn count(&self, state: HostState) -> usize {
        self.hosts.iter().filter(|h| h.state(self.end.is_some()) == state).count()
    }

    /// Whether anything may have been switched on any host.
    #[must_use]
    pub fn touched(&self) -> bool {
        self.hosts.iter().any(|host| host.touched)
    }

    /// The same for one that was cut off: what was under way on a host then may have switched it, and no step has said so yet.
    #[must_use]
    pub fn may_have_touched(&self) -> bool {
        self.hosts.iter().any(|host| host.touched || host.drain.is_open() || host.deploy.is_open())
    }

    /// How many of its hosts are healthy now: those that were and have not been taken, and those that have got there or back.
    #[must_use]
    pub fn healthy(&self) -> usize {
        self.hosts.serving()
    }

    /// What it found on every host and adopted, and by what evidence.
    #[must_use]
    pub fn adopts(&self) -> Option<(&Target, &Adoption)> {
        let adoption = self.phases.adopted.as_ref()?;
        Some((self.target.as_deref().or(self.phases.target.as_deref())?, adoption))
    }

    /// Why nothing can go back from here; `None` = it can.
    #[must_use]
    pub fn no_way_back(&self) -> Option<Cause> {
        match (&self.phases.target, &self.phases.no_target, &self.unsafe_because) {
            (None, Some(cause), _) => Some(cause.clone()),
            (None, None, _) => Some(Cause::new("no_target", "there is no known-good release to go back to")),
            (Some(_), _, Some(why)) => Some(unsafe_to_go_back(why)),
            (Some(_), _, None) => None,
        }
    }
}

/// Why nothing can go back, by what `rollback_safe` returned; `None` = it can.
#[must_use]
pub fn unsafe_because(answer: &serde_json::Value) -> Option<String> {
    let safe = answer.get("safe").and_then(serde_json::Value::as_bool).unwrap_or(false);
    let why = answer.get("reason").and_then(serde_json::Value::as_str).unwrap_or("it gave no reason");
    (!safe).then(|| why.to_owned())
}

/// What people are told where `rollback_safe` has said no.
#[must_use]
pub fn unsafe_to_go_back(why: &str) -> Cause {
    Cause::new("rollback_unsafe", format!("rollback_safe says no: {why}"))
}

impl HostRun {
    /// A host whose turn has not come, in an environment with these hooks.
    #[must_use]
    pub fn planned(host: Host, wave: u32, ill: Option<String>, spec: &Environment) -> Self {
        // What is not there is as if it had gone well: then every host's way is the same.
        let due = |there: bool| if there { Progress::Due } else { Progress::Ended(CallEnd::Returned) };
        HostRun {
            host,
            wave,
            ill,
            prepare: due(spec.hooks.prepare),
            drain: due(spec.hooks.drain),
            deploy: Progress::Due,
            undrain: due(spec.hooks.undrain),
            begun: None,
            machine: None,
            touched: false,
            health: HealthRun::Due,
            processes: Vec::new(),
            gone: false,
            gone_why: None,
            back: None,
            back_why: None,
        }
    }

    /// Its functions, by name, in their order.
    #[must_use]
    pub fn functions(&self) -> [(&'static str, &Progress); 4] {
        [("prepare", &self.prepare), ("drain", &self.drain), ("deploy", &self.deploy), ("undrain", &self.undrain)]
    }

    /// The progress of `function`.
    pub fn function_mut(&mut self, function: &str) -> Option<&mut Progress> {
        match function {
            "prepare" => Some(&mut self.prepare),
            "drain" => Some(&mut self.drain),
            "deploy" => Some(&mut self.deploy),
            "undrain" => Some(&mut self.undrain),
            _ => None,
        }
    }

    /// Whether one of its calls is under way.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.functions().iter().any(|(_, progress)| progress.is_open())
    }

    /// Whether nothing more is to come of it: it has gone all the way, or has failed and nothing is being done about that.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !self.is_open() && (self.cause().is_some() || self.is_through())
    }

    /// It has gone all the way.
    fn is_through(&self) -> bool {
        self.health == HealthRun::Healthy && self.undrain == Progress::Ended(CallEnd::Returned)
    }

    /// Its turn came and it is not settled.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.begun.is_some() && !self.is_settled()
    }

    /// Whether it serves, as far as anybody knows.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        match self.back {
            Some(Back::There) => true,
            Some(Back::Going | Back::Aside | Back::Failed) => false,
            None if self.gone => false,
            None if self.begun.is_none() && !self.touched => self.ill.is_none(),
            None => self.verdict() == HostState::Healthy,
        }
    }

    /// Where it stands; `over` = its deployment has ended.
    #[must_use]
    pub fn state(&self, over: bool) -> HostState {
        match self.back {
            Some(Back::There) => return HostState::RolledBack,
            Some(Back::Aside) => return HostState::Quarantined,
            Some(Back::Failed) if over => return HostState::Failed,
            _ => {}
        }
        match (&self.deploy, &self.health) {
            // The deployment was ended over it: nobody follows what is under way there.
            (Progress::Open | Progress::Undoing(_), _)
            | (Progress::Ended(CallEnd::Returned), HealthRun::Due | HealthRun::Watching { .. })
                if over =>
            {
                HostState::Unknown
            }
            // Whatever its end says, something is still being done on it.
            (Progress::Undoing(_), _) => HostState::Running,
            (Progress::Due, _) if over && self.cause().is_none() && !self.gone => HostState::Skipped,
            _ => self.verdict(),
        }
    }

    /// The same while its deployment goes on, but one whose call has failed counts as failed also while that is being undone: budgets
    /// do not wait for it.
    #[must_use]
    pub fn verdict(&self) -> HostState {
        let ended = self.functions().into_iter().find_map(|(_, progress)| match progress {
            Progress::Ended(end) | Progress::Undoing(end) => end.cause().map(|cause| (end, cause)),
            Progress::Due | Progress::Open => None,
        });
        match (ended, &self.health) {
            _ if self.gone => HostState::Gone,
            (Some((_, cause)), _) | (None, HealthRun::Unhealthy(cause)) if cause.is_shut() => HostState::Unreachable,
            // Cut off from outside: that says nothing about the release, and nobody has looked at the host since.
            (Some((CallEnd::Ended(_), cause)), _) | (_, HealthRun::Unhealthy(cause))
                if matches!(cause.code.as_str(), "diverged" | "stopped") =>
            {
                HostState::Unknown
            }
            (Some(_), _) | (_, HealthRun::Unhealthy(_)) => HostState::Failed,
            _ if self.is_through() => HostState::Healthy,
            _ if self.begun.is_none() => HostState::Pending,
            _ => HostState::Running,
        }
    }

    /// Why it is where it stands, for people: one that was well until it was to go back failed because of that.
    #[must_use]
    pub fn why(&self) -> Option<&Cause> {
        self.gone_why.as_ref().filter(|_| self.gone).or_else(|| self.cause()).or(self.back_why.as_ref())
    }

    /// Why it is not healthy.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        match &self.health {
            HealthRun::Unhealthy(cause) => Some(cause),
            _ => self.functions().into_iter().find_map(|(_, progress)| progress.cause()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_watched_is_no_part_of_a_bake() {
        let at = Stamp { wall_ms: 0, boot_ms: 0, boot: "boot".into() };
        let wave = |bake| WaveRun { bake, ..WaveRun::default() };
        let baking =
            |away| Bake::Baking { since: at.clone(), away: std::time::Duration::from_secs(away), looked: false };
        let mut deployment = Deployment::created(1, "production".parse().unwrap(), &at);
        deployment.waves = vec![wave(Bake::Over), wave(baking(3)), wave(Bake::Due)];
        deployment.not_watched(std::time::Duration::from_secs(4));
        assert_eq!(deployment.waves, [wave(Bake::Over), wave(baking(7)), wave(Bake::Due)]);
    }
}
