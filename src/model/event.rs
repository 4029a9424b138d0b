//! The facts of a run, as its journal holds them. A format: names and meanings stay.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    analysis::Measurement,
    cause::Cause,
    deployment::DeploymentState,
    health::Incarnation,
    host::Host,
    ids::{Digest, EnvironmentName, Epoch, HostId, ProjectName, RunId},
    pipeline::Pipeline,
    plan::{Phases, Target},
    release::Release,
    rollout::OnFailure,
    run::{RunState, Trigger, Waiting},
    step::{CallKey, Outcome, StepKey},
};
use crate::time::Stamp;

/// One line of a run's journal. An event over 16 KiB is stored as a blob and the line names it; readers never see the difference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at: Stamp,
    /// The controller that wrote it.
    #[serde(rename = "controller")]
    pub by: Arc<str>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first record: what the run is. Everything a fold needs that is not in later records.
    Started(Box<Header>),
    /// The commit was found and fetched.
    Resolved {
        /// What ships.
        release: Box<Release>,
        /// The run in which this release passed the tests under the same code, if one did: they are not repeated.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        passed: Option<RunId>,
        /// Environments where it is live already, put there by the same code, or which it has passed on its way to a later one that was asked
        /// for: they are not repeated.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        live: Vec<EnvironmentName>,
        /// What is put back, for a run that does not deploy a release of its own.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        target: Option<Box<Target>>,
    },
    /// The commit could not be had, or is stale.
    Unresolved {
        /// `superseded` ends the run as such; every other code fails it.
        cause: Cause,
    },
    /// The checkout is in place.
    CheckedOut {
        /// Its directory, the same after a restart.
        dir: String,
    },
    /// There is no checkout.
    CheckoutFailed {
        /// Why.
        cause: Cause,
    },
    /// A function was called.
    Call {
        /// Which call.
        key: CallKey,
        /// The function's path in the code.
        function: String,
        /// The plain data it got, as they were then.
        input: Value,
    },
    /// An attempt of a step is about to begin: nothing of it has happened before this record is on disk.
    Begin {
        /// Which step.
        key: StepKey,
        /// From 1.
        attempt: u32,
        /// `sha256(run | key | attempt)`.
        token: Digest,
        /// What the author wrote, canonical.
        args: Value,
        /// The host it acts on, where the key does not say it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        host: Option<HostId>,
        /// `file:line` in the pinned code.
        #[serde(skip_serializing_if = "String::is_empty", default)]
        line: String,
    },
    /// An attempt ended.
    Done {
        /// Which step.
        key: StepKey,
        /// Which attempt.
        attempt: u32,
        /// How.
        outcome: Outcome,
        /// Whether this is what Lua gets; otherwise another attempt follows.
        last: bool,
    },
    /// A call ended.
    Return {
        /// Which call.
        key: CallKey,
        /// How.
        result: CallResult,
        /// How many undos it has left (`run:undo`); they are due when it did not return.
        #[serde(skip_serializing_if = "none", default)]
        undos: u32,
    },
    /// A replay of a call did not ask for what its journal holds: nobody can continue the run.
    Diverged {
        /// Which call.
        key: CallKey,
        /// Both sides.
        cause: Cause,
    },
    /// An environment is about to be deployed to.
    DeploymentCreated {
        /// From 1 within the run.
        deployment: u32,
        /// Where.
        environment: EnvironmentName,
        /// What it is for, unless it puts the run's own release on every host.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        back: Option<Box<GoingBack>>,
    },
    /// Something is in the way, or no longer.
    Blocked {
        /// Which deployment.
        deployment: u32,
        /// By what; `None` = the way is free.
        waiting: Option<Waiting>,
    },
    /// The environment is ours.
    LeaseGranted {
        /// Which deployment.
        deployment: u32,
        /// The fencing number that goes with every command.
        epoch: Epoch,
    },
    /// The environment is not ours any more.
    LeaseLost {
        /// Which deployment.
        deployment: u32,
    },
    /// The hosts, in the order of the rollout, and the budgets as numbers: stored before the first host is touched.
    Planned {
        /// Which deployment.
        deployment: u32,
        /// Every host, in order.
        hosts: Vec<Host>,
        /// What is live there, now that nobody else can change it; for `release.previous` and `release:changed`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        previous: Option<Box<Release>>,
        /// Paths that differ from what is live there; `None` = nothing is, or it cannot be told.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        changed_paths: Option<Vec<String>>,
        /// Failed hosts that do not stop it.
        max_failures: usize,
        /// Unreachable hosts that do not stop it.
        max_unreachable: usize,
        /// Waves, floors and the way back.
        #[serde(default)]
        phases: Box<Phases>,
    },
    /// The fleet was looked at again before a wave; or hosts that are watched were found to be no more, and then nobody joins.
    FleetSeen {
        /// Which deployment.
        deployment: u32,
        /// Hosts that are no more.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        gone: Vec<HostId>,
        /// Hosts that have come: they join the last wave.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        joined: Vec<Host>,
        /// The wave it was looked at for, or that is under way, from 0.
        wave: u32,
        /// Why those that are no more are not, as far as their source says.
        #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
        why: BTreeMap<HostId, String>,
    },
    /// An alarm was measured.
    Measured {
        /// For which deployment.
        deployment: u32,
        /// Its place in the environment's list, from 1.
        alarm: u32,
        /// What was found.
        measurement: Measurement,
    },
    /// A wave is being watched from here on.
    BakeBegan {
        /// Which deployment.
        deployment: u32,
        /// Which wave, from 0.
        wave: u32,
    },
    /// The watch over a wave is over, and the deployment goes on.
    BakeEnded {
        /// Which deployment.
        deployment: u32,
        /// Which wave, from 0.
        wave: u32,
        /// `passed` or `inconclusive`; one that a person ends is `promoted`.
        verdict: BakeVerdict,
        /// Its numbers, one line each.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        evidence: Vec<String>,
    },
    /// It has been found out that a deployment goes no further.
    Judged {
        /// Which deployment.
        deployment: u32,
        /// Why.
        cause: Cause,
        /// It is the release that is bad: nothing automatic starts it again.
        #[serde(skip_serializing_if = "std::ops::Not::not", default)]
        bad: bool,
        /// What follows.
        then: OnFailure,
    },
    /// Nothing new begins in a deployment.
    Paused {
        /// Which.
        deployment: u32,
        /// Who holds it: as the audit names them, or `phased`.
        by: String,
        /// In their words.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        reason: Option<String>,
        /// It has failed, and goes on only if it is promoted.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        failed: Option<Cause>,
        /// And it is the release that is bad.
        #[serde(skip_serializing_if = "std::ops::Not::not", default)]
        bad: bool,
    },
    /// Nothing else happened for a while, and somebody was there: what was watched is watched.
    Observed {
        /// Which deployment bakes.
        deployment: u32,
        /// Of the time until now so much was not watched after all, ms: there was no room for the sessions to look.
        #[serde(skip_serializing_if = "is_zero", default)]
        unwatched_ms: u64,
    },
    /// The last look of a bake: when its time was over every host that has the release was looked at once more. One that is not well any more
    /// got its `HealthVerdict` before this. It counts for the bake under way, until it turns out that some of its time was not watched.
    LookedOver {
        /// Which deployment.
        deployment: u32,
    },
    /// A paused deployment goes on.
    Unpaused {
        /// Which.
        deployment: u32,
        /// Who let go of it.
        by: String,
    },
    /// Whatever holds a deployment, a pause, a bake or a failure, somebody has looked at it, and it goes on.
    Promoted {
        /// Which.
        deployment: u32,
        /// Who.
        by: String,
    },
    /// The hosts could not be found out, or a newer run took this one's place.
    PlanFailed {
        /// Which deployment.
        deployment: u32,
        /// Why.
        cause: Cause,
    },
    /// A host answered for the first time: the id that the machine gave itself. On disk before anything begins on it, so that a machine
    /// that took its place is never mistaken for it.
    HostMet {
        /// Which deployment.
        deployment: u32,
        /// Which host.
        host: HostId,
        /// `<base>/id` there.
        machine: String,
        /// Its host key, where it was learnt just now: `ssh-ed25519 SHA256:...`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        key: Option<String>,
    },
    /// A host's health is being watched.
    HealthBegan {
        /// Which deployment.
        deployment: u32,
        /// Which host.
        host: HostId,
    },
    /// The units and containers of a host as its watch saw them first, or after somebody else restarted them: every later look is held against
    /// that, also while the wave bakes, and by another life of the daemon.
    ProcessesSeen {
        /// Which deployment.
        deployment: u32,
        /// Which host.
        host: HostId,
        /// The place of each in the list of checks, and what it was.
        processes: Vec<(usize, Incarnation)>,
    },
    /// The watch ended.
    HealthVerdict {
        /// Which deployment.
        deployment: u32,
        /// Which host.
        host: HostId,
        /// `None` = healthy.
        unhealthy: Option<Cause>,
        /// What was seen last, one line a check.
        evidence: Vec<String>,
    },
    /// A call's own limit passed.
    DeadlineHit {
        /// Which call.
        key: CallKey,
    },
    /// Somebody wants the run to end.
    StopRequested {
        /// Who, as the audit names them.
        by: String,
        /// Also end what hosts in flight do, after their running step.
        now: bool,
        /// In their words.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        reason: Option<String>,
    },
    /// The daemon was gone while the run was not over, and goes on with it.
    Resumed {
        /// The journal's fencing number from here on.
        epoch: Epoch,
        /// The daemon that goes on.
        version: String,
    },
    /// A deployment ended.
    DeploymentEnded {
        /// Which.
        deployment: u32,
        /// A final state.
        state: DeploymentState,
        /// Why, unless it succeeded.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        cause: Option<Cause>,
    },
    /// The last record.
    End {
        /// A final state.
        state: RunState,
        /// Why, unless it succeeded.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        cause: Option<Cause>,
    },
}

/// What a deployment is for that takes hosts back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoingBack {
    /// The deployment of this run that is taken back; its plan says to what.
    pub of: u32,
    /// Which of its hosts, in the order in which they go back.
    pub hosts: Vec<HostId>,
    /// Beside the rollout, which goes on: they failed within its budgets.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub alone: bool,
}

/// How a bake ended that did not end the deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BakeVerdict {
    /// It was watched long enough, and nothing was wrong.
    Passed,
    /// Nothing could be concluded, and `on_inconclusive` says that it goes on.
    Inconclusive,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(span: &u64) -> bool {
    *span == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn none(count: &u32) -> bool {
    *count == 0
}

/// What a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The journal's format, 1.
    pub format: u32,
    /// The daemon that began it.
    pub version: String,
    /// Its id.
    pub run: RunId,
    /// Whose.
    pub project: ProjectName,
    /// The pinned code.
    pub code: Digest,
    /// What the code describes.
    pub pipeline: Pipeline,
    /// Makes `math.random` the same on replay.
    pub seed: u64,
    /// The fencing number of the journal.
    pub epoch: Epoch,
    /// What was asked for.
    pub request: Request,
}

/// A press of the button, as control queued it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// What pressed it.
    pub trigger: Trigger,
    /// Who, as the audit names them: `uid 0`, `token ci`, `github`.
    pub by: String,
    /// In their words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Which commit.
    pub wanted: Wanted,
    /// No further than this environment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub environment: Option<EnvironmentName>,
    /// What for.
    #[serde(skip_serializing_if = "Purpose::is_deploy", default)]
    pub purpose: Purpose,
    /// The tag by which it was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tag: Option<String>,
    /// Deploy also where the release is live already.
    #[serde(default)]
    pub redeploy: bool,
    /// Deploy also what was found bad.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub retry_bad: bool,
    /// Test also a release that passed.
    #[serde(default)]
    pub retest: bool,
    /// The signal that asked for it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<Box<super::signal::Received>>,
    /// The commit that was requested last before this one; for pushes that come twice or late.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<super::ids::Sha>,
    /// Wall time, ms.
    pub requested_at_ms: i64,
}

/// What a run is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A release goes through the stages and the environments.
    #[default]
    Deploy,
    /// One environment goes back to a release that was known-good there: the last one, or the one named.
    Rollback {
        /// Its id or revision, or the beginning of it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        to: Option<String>,
    },
    /// Hosts of one environment that do not have its known-good release get it.
    Converge {
        /// Which; none = all that differ.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        hosts: Vec<HostId>,
    },
    /// What every host of one environment reports becomes known-good there, and live. No host is touched.
    Adopt,
}

impl Purpose {
    /// Whether it is the usual one.
    #[must_use]
    pub fn is_deploy(&self) -> bool {
        *self == Purpose::Deploy
    }
}

impl Event {
    /// Whether nobody waits for it to be on disk: what comes of it in the run is another event, and that takes it along. Lost with the
    /// power, a call is begun again and a step's host is asked again.
    #[must_use]
    pub fn may_rest(&self) -> bool {
        matches!(self, Event::Call { .. } | Event::Done { .. } | Event::Return { .. })
    }
}

/// What a run was asked to take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// The head of the project's branch.
    #[default]
    Head,
    /// Exactly this commit, the head that a push or poll saw: it must still be (or, under `queue = "all"`, be an ancestor of) the head.
    Pushed(super::ids::Sha),
    /// A branch, tag or hash as a person wrote it; must be reachable from the branch or match `tags`.
    Named(String),
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallResult {
    /// It returned.
    Returned(Value),
    /// It raised.
    Raised(Cause),
    /// It was ended from outside: `stopped`, `timeout`, a limit, `diverged`.
    Ended(Cause),
}

impl CallResult {
    /// Why it did not return.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            CallResult::Returned(_) => None,
            CallResult::Raised(cause) | CallResult::Ended(cause) => Some(cause),
        }
    }
}
