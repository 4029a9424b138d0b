//! A run as folded from its events.

use serde::{Deserialize, Serialize};

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

/// A host's state in a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
}
