//! What the API shows: documents folded from journals and control, as they are stored in the index and sent as JSON.

pub mod dry_run;
pub mod hosts;
pub mod signals;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::model::{
    cause::Cause,
    deployment::{DeploymentState, HostState},
    ids::Digest,
    rollout::OnFailure,
    run::{RunState, Trigger},
};

/// Why something ended or waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CauseView {
    /// A stable slug.
    #[schema(example = "exit")]
    pub code: String,
    /// What happened, where, and what to do next.
    pub message: String,
    /// Numbers and names behind the message.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub facts: serde_json::Map<String, serde_json::Value>,
}

/// Documents stay under 4 KiB: the longest text in one, in characters.
const LONGEST_TEXT: usize = 1000;

/// `text`, cut at [`LONGEST_TEXT`] characters with a mark.
#[must_use]
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl From<&Cause> for CauseView {
    fn from(cause: &Cause) -> Self {
        let small = |value: &serde_json::Value| value.to_string().len() <= LONGEST_TEXT;
        CauseView {
            code: cause.code.clone(),
            message: shortened(&cause.message),
            facts: cause.facts.iter().filter(|(_, v)| small(v)).take(8).map(|(k, v)| (k.clone(), v.clone())).collect(),
        }
    }
}

/// What ships.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseView {
    /// 12 hex digits of the commit.
    #[schema(example = "a1b2c3d4e5f6")]
    pub id: String,
    /// The full commit hash.
    pub revision: String,
    /// The branch it came by.
    pub branch: Option<String>,
    /// The tag it came by.
    pub tag: Option<String>,
    /// `Name <mail>`.
    pub author: String,
    /// The commit message, at most 1,000 characters.
    pub message: String,
    /// What its tests stored, by name; while they run, so far.
    #[serde(default)]
    pub artifacts: Vec<ArtifactView>,
}

/// Something that ships, by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactView {
    /// What the pipeline calls it.
    #[schema(example = "app")]
    pub name: String,
    /// `tree`, `file` or `value`.
    #[schema(example = "tree")]
    pub kind: String,
    /// Of the file, or of the tree as a tar archive: what hosts compare.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sha256: Option<String>,
    /// Of the same, bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub size: Option<u64>,
    /// Of a value.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<String>,
    /// The sha256 under which the daemon keeps it: a tree lies there compressed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub blob: Option<String>,
}

impl ArtifactView {
    /// The blob it lies in.
    pub(super) fn stored(&self) -> Option<Digest> {
        self.blob.as_ref()?.parse().ok()
    }
}

/// What something waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WaitingView {
    /// `queue`, `lease`, `freeze`, `maintenance`.
    pub code: String,
    /// Who is in the way: a run, a deployment, a person, or the window of a freeze.
    pub holder: String,
    /// Until when at the latest, RFC 3339.
    pub until: Option<String>,
    /// Why, in the holder's words.
    #[serde(default)]
    pub reason: Option<String>,
}

/// An environment that a run did not enter, because nothing opened it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClosedView {
    /// Which.
    pub environment: String,
    /// What opens it: `manual`, or the patterns of tags.
    #[schema(example = "manual")]
    pub when: String,
    /// What to type to go on with this release.
    #[schema(example = "phased start shop production --ref a1b2c3d4e5f6")]
    pub command: String,
}

/// What somebody said of a freeze by hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SaidView {
    /// Who.
    pub by: String,
    /// In their words.
    pub reason: Option<String>,
    /// RFC 3339.
    pub since: String,
    /// RFC 3339; absent: until somebody says otherwise.
    pub until: Option<String>,
}

/// Whether anything new is deployed to an environment. Rollback and convergence are, also in a freeze.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FreezeView {
    /// Whose.
    pub project: String,
    /// Which.
    pub environment: String,
    /// Whether it is frozen now.
    pub frozen: bool,
    /// Who froze it, or the window of the project's file.
    pub holder: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// Until when, RFC 3339; absent while frozen: until `phased unfreeze`.
    pub until: Option<String>,
    /// The freeze by hand, if there is one.
    pub by_hand: Option<SaidView>,
    /// Who lifted the windows of the project's file for this once.
    pub lifted: Option<SaidView>,
    /// The windows of the project's file.
    pub windows: Vec<String>,
}

/// Who has the exclusive right to deploy to an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LeaseView {
    /// Whose.
    pub project: String,
    /// Which.
    pub environment: String,
    /// The group that shares the lease.
    pub group: Option<String>,
    /// Whether anybody has it.
    pub held: bool,
    /// Who: a person, or the id of a deployment.
    pub holder: Option<String>,
    /// Why, in their words.
    pub reason: Option<String>,
    /// RFC 3339.
    pub since: Option<String>,
    /// RFC 3339; absent for deployments, which give it back at their end.
    pub until: Option<String>,
    /// The fencing number of the grant.
    pub epoch: Option<u64>,
}

/// One press of the button.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunView {
    /// A lower-case ULID.
    pub id: String,
    /// Whose.
    pub project: String,
    /// Where it stands.
    #[schema(value_type = String, example = "testing")]
    pub state: RunState,
    /// Why it ended, unless it succeeded.
    pub cause: Option<CauseView>,
    /// What pressed the button.
    #[schema(value_type = String, example = "hook")]
    pub trigger: Trigger,
    /// Who pressed it.
    pub by: String,
    /// In their words.
    pub reason: Option<String>,
    /// What ships; absent until the commit is found.
    pub release: Option<ReleaseView>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// When its turn came.
    pub started_at: Option<String>,
    /// When it ended.
    pub finished_at: Option<String>,
    /// What it waits for.
    pub waiting: Option<WaitingView>,
    /// Where it ended well and did not go on, because nothing opened the next environment for it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub closed: Option<ClosedView>,
    /// Test stages in order. Empty in lists.
    #[serde(default)]
    pub stages: Vec<StageView>,
    /// Deployments in order. Empty in lists.
    #[serde(default)]
    pub deployments: Vec<DeploymentView>,
}

/// A test stage's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StageState {
    /// Its turn has not come.
    Pending,
    /// It runs.
    Running,
    /// Every test passed.
    Succeeded,
    /// A test failed.
    Failed,
    /// Ended from outside.
    Stopped,
    /// Never ran: an earlier one failed, or the release passed it before.
    Skipped,
}

/// A test stage of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StageView {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: StageState,
    /// Why it did not succeed.
    pub cause: Option<CauseView>,
    /// RFC 3339.
    pub started_at: Option<String>,
    /// RFC 3339.
    pub finished_at: Option<String>,
}

/// One attempt to put a release on an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeploymentView {
    /// `<run>.<n>`.
    pub id: String,
    /// Where.
    pub environment: String,
    /// Where it stands.
    #[schema(value_type = String, example = "rolling")]
    pub state: DeploymentState,
    /// Why it ended, unless it succeeded.
    pub cause: Option<CauseView>,
    /// The deployment it undoes.
    pub rollback_of: Option<String>,
    /// The release it puts there.
    pub release: String,
    /// The release that was known-good from here on because every host reported it: nothing had been deployed there before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub adopted: Option<String>,
    /// Why a failure cannot go back, in the words of the project's `rollback_safe`; absent: it did not forbid it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(example = "the schema changed")]
    pub rollback_unsafe: Option<String>,
    /// What it waits for.
    pub waiting: Option<WaitingView>,
    /// RFC 3339.
    pub started_at: Option<String>,
    /// RFC 3339.
    pub finished_at: Option<String>,
    /// Who holds it, while it is paused.
    #[serde(default)]
    pub paused: Option<PausedView>,
    /// Its waves in order, once it is planned.
    #[serde(default)]
    pub waves: Vec<WaveView>,
    /// Hosts in the order of the rollout. Empty in lists.
    #[serde(default)]
    pub hosts: Vec<HostView>,
}

/// A deployment that is held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PausedView {
    /// By whom.
    pub by: String,
    /// In their words.
    pub reason: Option<String>,
    /// RFC 3339.
    pub since: String,
    /// It has failed, and goes on only if it is promoted.
    pub failed: bool,
}

/// Hosts that are updated together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WaveView {
    /// From 1.
    pub n: u32,
    /// Whether it is the canary.
    pub canary: bool,
    /// How many hosts it has.
    pub hosts: u32,
    /// While it bakes: since when, RFC 3339.
    pub baking_since: Option<String>,
    /// Its bake is over.
    pub baked: bool,
}

/// One host of a deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// The provider's id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where its sshd listens.
    pub address: String,
    /// Where it stands.
    #[schema(value_type = String, example = "healthy")]
    pub state: HostState,
    /// Why it is not healthy.
    pub cause: Option<CauseView>,
    /// Its wave, from 1.
    #[serde(default)]
    pub wave: u32,
    /// The release it was last given by this deployment.
    pub release: Option<String>,
}

/// What is live in an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LiveView {
    /// Which environment.
    pub environment: String,
    /// The release, absent before the first success.
    pub release: Option<ReleaseView>,
    /// Since when, RFC 3339.
    pub since: Option<String>,
    /// By which run.
    pub run: Option<String>,
    /// Who holds the environment's lease now.
    pub lease: Option<WaitingView>,
    /// What keeps new deployments away now.
    #[serde(default)]
    pub freeze: Option<WaitingView>,
    /// What opens it: `push`, `manual`, or the patterns of tags.
    #[serde(default)]
    #[schema(example = "push")]
    pub when: String,
    /// What is wrong there: how the last deployment ended, unless it succeeded.
    pub trouble: Option<CauseView>,
}

/// A project now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProjectStatus {
    /// Its name.
    pub project: String,
    /// The repository.
    pub source: String,
    /// The branch.
    pub branch: String,
    /// What runs or waits, oldest first, stages, deployments and hosts included.
    pub running: Vec<RunView>,
    /// The last run that ended.
    pub last: Option<RunView>,
    /// Every environment in order.
    pub environments: Vec<LiveView>,
    /// What is wrong with the project itself: the remote cannot be asked, for example.
    pub trouble: Option<CauseView>,
}

/// The daemon and all its projects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Since when it runs, RFC 3339.
    pub since: String,
    /// Whether it begins anything new.
    pub maintenance: MaintenanceView,
    /// What is wrong with the daemon itself.
    pub trouble: Vec<CauseView>,
    /// Every project by name.
    pub projects: Vec<ProjectStatus>,
}

/// Maintenance: while it is on, what is under way is ended or parked and nothing new begins.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct MaintenanceView {
    /// Whether it is on.
    pub on: bool,
    /// Who turned it on.
    pub by: Option<String>,
    /// In their words.
    pub reason: Option<String>,
    /// Since when, RFC 3339.
    pub since: Option<String>,
    /// While it is on: every run that has begun and is not over.
    pub runs: Vec<RunAtWork>,
}

/// A run during maintenance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunAtWork {
    /// Which.
    pub run: String,
    /// Whose.
    pub project: String,
    /// What it still brings to an end: `deploys to web2 (production)`. Empty: it is parked.
    pub doing: Vec<String>,
}

/// Who would get what, in which order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// Whose.
    pub project: String,
    /// The head of the branch, which would be tested and deployed.
    #[serde(default)]
    pub next: Option<ReleaseView>,
    /// Why there is none, or why it would be refused.
    #[serde(default)]
    pub cause: Option<CauseView>,
    /// Test stages that would run, in order.
    pub stages: Vec<String>,
    /// Environments in order.
    pub environments: Vec<EnvironmentPlan>,
}

/// One environment's part of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentPlan {
    /// Which.
    pub environment: String,
    /// The release that is live there now, or that all its hosts report.
    pub current: Option<ReleaseView>,
    /// Its waves in order.
    pub waves: Vec<PlannedWave>,
    /// Hosts in the order of the rollout.
    pub hosts: Vec<PlannedHost>,
    /// Why there is no plan.
    pub cause: Option<CauseView>,
    /// Hosts at the same moment.
    pub max_parallel: u32,
    /// Hosts of two zones are never under way at the same moment.
    #[serde(default)]
    pub zones: bool,
    /// Failed hosts that do not stop it, and how that number came about: `0`, `10% of 25 hosts = 2`.
    pub max_failures: String,
    /// The same within one wave, where the project says so.
    #[serde(default)]
    pub max_failures_per_wave: Option<String>,
    /// The same for unreachable hosts.
    pub max_unreachable: String,
    /// Healthy hosts below which none is taken, and how that number came about.
    pub min_healthy: String,
    /// How long it is watched after each wave.
    pub bake_time: String,
    /// What a failure goes back to.
    pub rollback: Option<ReleaseView>,
    /// How many hosts have that, as far as it is known; the others would get it.
    #[serde(default)]
    pub rollback_on: Option<u32>,
    /// That was adopted: nothing was deployed there before, and all its hosts report it.
    #[serde(default)]
    pub adopted: bool,
    /// Why a failure cannot go back.
    pub no_rollback: Option<CauseView>,
    /// The project's `rollback_safe` is asked about the release, and may forbid it.
    pub rollback_safe: bool,
    /// What that says of the release that would ship, against what is live there now; absent where there is no such function or no such
    /// release.
    #[serde(default)]
    pub rollback_answer: Option<RollbackAnswer>,
    /// What follows when it fails after a host was touched.
    #[schema(value_type = String, example = "rollback")]
    pub on_failure: OnFailure,
    /// How long the last success took.
    pub expected: Option<String>,
    /// What each alarm can see in a bake of that length.
    pub alarms: Vec<String>,
    /// The first alarm that fires now, and what it measures: nothing is deployed before it is silent.
    #[serde(default)]
    pub firing: Option<String>,
    /// Hosts that would get nothing, and why.
    #[serde(default)]
    pub skipped: Vec<hosts::OutHost>,
    /// What keeps new deployments out now.
    pub freeze: Option<WaitingView>,
    /// Who holds the environment now.
    pub lease: Option<WaitingView>,
    /// What opens it: `push`, `manual`, `signal`, or the patterns of tags.
    #[serde(default)]
    #[schema(example = "push")]
    pub when: String,
    /// The project's functions that a deployment there calls, in the order of their turns.
    #[serde(default)]
    pub calls: Vec<String>,
}

/// What a project's `rollback_safe` says of a release before anything begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RollbackAnswer {
    /// Whether a failure may go back; absent: only the deployment itself can tell.
    pub safe: Option<bool>,
    /// Why not, in its own words; or why it cannot be told yet.
    pub reason: Option<String>,
}

/// A wave in a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlannedWave {
    /// From 1.
    pub n: u32,
    /// Whether it is the canary.
    pub canary: bool,
    /// How many hosts it has.
    pub hosts: u32,
}

/// A host in a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlannedHost {
    /// The provider's id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where its sshd listens.
    pub address: String,
    /// Its failure domain.
    pub zone: Option<String>,
    /// Its wave, from 1.
    pub wave: u32,
    /// The release it has, as far as that is known.
    pub current: Option<String>,
    /// The release it would get; absent where a push does not get by itself.
    #[serde(default)]
    pub next: Option<String>,
    /// Why it is not healthy, as the last deployment left it.
    pub ill: Option<String>,
}

/// A piece of a run's output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// RFC 3339.
    pub at: String,
    /// Whose output: `test/unit/run/-/sh#1`.
    pub step: String,
    /// `out`, `err` or `note`.
    pub stream: String,
    /// The host's id, for steps on hosts.
    pub host: Option<String>,
    /// One line without its end, redacted; bytes that are no UTF-8 are replaced.
    pub text: String,
}

/// Something that happened, as `/v1/events` tells it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// `<start>-<n>`: resumable within one life of the daemon.
    pub id: String,
    /// `run.queued`, `run.testing`, `run.succeeded`, `stage.failed`, `deployment.rolling`, `host.healthy`, ...
    pub event: String,
    /// RFC 3339.
    pub at: String,
    /// Whose.
    pub project: String,
    /// Which run.
    pub run: String,
    /// What it is about: the run, stage, deployment or host as it is now.
    // As text: thousands are kept.
    #[schema(value_type = Object)]
    pub data: Box<RawValue>,
}

/// An alarm of an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AlarmView {
    /// Whose.
    pub project: String,
    /// Where.
    pub environment: String,
    /// What people call it.
    pub name: String,
    /// The probe that measures.
    pub cause: String,
    /// When it fires, in words.
    #[schema(example = "above 0.01 for 2m")]
    pub fires: String,
    /// The channel that is told.
    pub alert: String,
    /// What happens to a deployment: `rollback`, `halt`, `pause` or `none`.
    pub action: String,
    /// Time between measurements, milliseconds.
    pub interval_ms: u64,
    /// What was measured for this answer; `null` unless that was asked for.
    pub now: Option<MeasuredView>,
}

/// One measurement of an alarm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MeasuredView {
    /// The value; `null` = no data, or an error.
    pub value: Option<f64>,
    /// `good`, `bad`, `neither` by its conditions, `no_data` or `error`.
    pub state: String,
    /// The probe's own words, or what went wrong.
    pub message: Option<String>,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// At most `limit`.
    pub items: Vec<T>,
    /// Give it back as `cursor` for the next page; `null` at the end.
    pub next_cursor: Option<String>,
}

/// A bearer token without its secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Its id, part of the token's text.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// `read`, `deploy`, `admin`.
    pub scopes: Vec<String>,
    /// Projects it may be used for; empty = all.
    pub projects: Vec<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; absent = never.
    pub expires_at: Option<String>,
}
