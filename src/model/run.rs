//! A run as folded from its events.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    cause::Cause,
    deployment::Deployment,
    event::{CallResult, Header},
    ids::{EnvironmentName, HostId, RunId},
    pipeline::Environment,
    plan::Target,
    release::Release,
    step::{CallKey, Place, StepKey},
};
use crate::time::Stamp;

/// A run's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waits for its turn in the project.
    Queued,
    /// Its commit is fetched and tested.
    Testing,
    /// It goes through the environments.
    Deploying,
    /// Every environment asked for has it.
    Succeeded,
    /// Nothing was switched.
    Failed,
    /// Every host has the known-good release again.
    RolledBack,
    /// A host could not go back.
    RollbackFailed,
    /// Some hosts have the new release, some not, on purpose.
    Halted,
    /// Ended by a person.
    Stopped,
    /// A newer commit took its place before it began.
    Superseded,
    /// Its journal or code cannot be trusted.
    Damaged,
}

impl RunState {
    /// Whether nothing further happens.
    #[must_use]
    pub fn is_end(self) -> bool {
        !matches!(self, RunState::Queued | RunState::Testing | RunState::Deploying)
    }

    /// Whether people are told it as bad news.
    #[must_use]
    pub fn is_bad(self) -> bool {
        matches!(
            self,
            RunState::Failed | RunState::RolledBack | RunState::RollbackFailed | RunState::Halted | RunState::Damaged
        )
    }
}

/// What pressed the button.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// A webhook.
    Hook,
    /// The branch head was found moved.
    Poll,
    /// A schedule.
    Schedule,
    /// The HTTP API, so also the CLI.
    Api,
    /// An alarm's action.
    Alarm,
    /// A late or returned host.
    Converge,
    /// A signal of another daemon.
    Signal,
}

/// What a run or deployment waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// `lease`, `queue`, `freeze`.
    pub code: String,
    /// Who is in the way.
    pub holder: String,
    /// Until when at the latest, wall ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until_ms: Option<i64>,
    /// Why, in the holder's words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// How a call ended, without what it returned.
#[derive(Debug, Clone, PartialEq)]
pub enum CallEnd {
    /// It returned.
    Returned,
    /// It raised.
    Raised(Cause),
    /// It was ended from outside.
    Ended(Cause),
}

impl CallEnd {
    /// Why it did not return.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            CallEnd::Returned => None,
            CallEnd::Raised(cause) | CallEnd::Ended(cause) => Some(cause),
        }
    }

    /// The same end after its undos have ended as `undo` says: one that failed is told with what it was to undo.
    #[must_use]
    pub fn undone(self, undo: &CallEnd) -> CallEnd {
        let told = |cause: Cause| match undo.cause() {
            None => cause,
            Some(why) => {
                let message = format!("{}; and what it had done could not be undone: {}", cause.message, why.message);
                Cause { message, ..cause }.with("undo", why.message.as_str())
            }
        };
        match self {
            CallEnd::Returned => CallEnd::Returned,
            CallEnd::Raised(cause) => CallEnd::Raised(told(cause)),
            CallEnd::Ended(cause) => CallEnd::Ended(told(cause)),
        }
    }
}

impl From<&CallResult> for CallEnd {
    fn from(result: &CallResult) -> Self {
        match result {
            CallResult::Returned(_) => CallEnd::Returned,
            CallResult::Raised(cause) => CallEnd::Raised(cause.clone()),
            CallResult::Ended(cause) => CallEnd::Ended(cause.clone()),
        }
    }
}

/// One call's way: not called, open, or ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Progress {
    /// Not called yet.
    #[default]
    Due,
    /// Called and not ended.
    Open,
    /// Ended, and what it has left to be undone is not undone yet.
    Undoing(CallEnd),
    /// Ended.
    Ended(CallEnd),
}

impl Progress {
    /// Why it ended other than by returning.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Progress::Ended(end) | Progress::Undoing(end) => end.cause(),
            Progress::Due | Progress::Open => None,
        }
    }

    /// Called, and neither ended nor undone.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self, Progress::Open | Progress::Undoing(_))
    }
}

/// A run, folded.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What it is.
    pub header: Header,
    /// When its turn came.
    pub started_at: Stamp,
    /// When the last record was written.
    pub last_at: Stamp,
    /// The commit, once found.
    pub release: Option<Release>,
    /// Why it was not found.
    pub unresolved: Option<Cause>,
    /// The run in which this release passed the tests under the same code.
    pub passed: Option<RunId>,
    /// Environments where the release is live already.
    pub live: Vec<EnvironmentName>,
    /// What the run puts back; `None` = it deploys its own release.
    pub target: Option<Box<Target>>,
    /// The checkout.
    pub checkout: Checkout,
    /// Its test stages, as the pipeline has them.
    pub stages: Vec<StageRun>,
    /// Its deployments, in order; number n is at n - 1.
    pub deployments: Vec<Deployment>,
    /// Calls that have not ended.
    pub calls: BTreeMap<CallKey, Call>,
    /// Somebody wants it to end.
    pub stop: Option<Stop>,
    /// A replay did not ask for what its journal holds.
    pub diverged: Option<Cause>,
    /// How it ended, and when.
    pub end: Option<(RunState, Option<Cause>, Stamp)>,
}

/// The run's directory.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Checkout {
    /// Not yet.
    #[default]
    Due,
    /// Here.
    At(String),
    /// It could not be made.
    Failed(Cause),
}

/// A wish to end a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Whose.
    pub by: String,
    /// Also what hosts in flight do.
    pub now: bool,
    /// In their words.
    pub reason: Option<String>,
}

/// A test stage of a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StageRun {
    /// Its `setup`.
    pub setup: Progress,
    /// Its `run`.
    pub run: Progress,
    /// Its `cleanup`.
    pub cleanup: Progress,
    /// When the first of them was called.
    pub started_at: Option<Stamp>,
    /// When the last of them ended so far.
    pub touched_at: Option<Stamp>,
}

/// An open call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Where in the run it belongs.
    pub place: Option<Place>,
    /// It brings to its end what another call began.
    pub cleaning: bool,
    /// When it was called.
    pub begun: Stamp,
    /// How long no daemon was there since: its limit does not count that.
    pub away: Duration,
    /// Its open steps.
    pub steps: BTreeMap<StepKey, Step>,
    /// Its own limit has passed.
    pub over: bool,
}

/// An open step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The attempt that began last, from 1.
    pub attempt: u32,
    /// When.
    pub begun: Stamp,
    /// Its arguments.
    pub args: Value,
    /// The host it acts on, where the key does not say it.
    pub host: Option<HostId>,
    /// `file:line` in the pinned code.
    pub line: String,
    /// That attempt ended and another one is to follow: when and why it ended.
    pub failed: Option<(Stamp, Cause)>,
}

impl Run {
    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> RunState {
        match &self.end {
            Some((state, ..)) => *state,
            None if self.deployments.is_empty() => RunState::Testing,
            None => RunState::Deploying,
        }
    }

    /// The deployment numbered `n`.
    #[must_use]
    pub fn deployment(&self, n: u32) -> Option<&Deployment> {
        self.deployments.get((n as usize).checked_sub(1)?)
    }

    /// The pipeline's description of `environment`.
    #[must_use]
    pub fn environment(&self, environment: &EnvironmentName) -> Option<&Environment> {
        self.header.pipeline.environments.iter().find(|e| e.name == *environment)
    }
}

impl StageRun {
    /// Its functions in their order, by name.
    #[must_use]
    pub fn functions(&self) -> [(&'static str, &Progress); 3] {
        [("setup", &self.setup), ("run", &self.run), ("cleanup", &self.cleanup)]
    }
}
