//! The engine as the API sees it. Cheap to clone; every method may be called from any task.

use crate::model::{
    cause::Cause,
    ids::{EnvironmentName, ProjectName, RunId},
    run::RunState,
};

use super::view::{
    AlarmView, EventView, FreezeView, LeaseView, LogLine, MaintenanceView, Page, Plan, ProjectStatus, RunView, Status,
    TokenView,
    dry_run::DryRun,
    hosts::{FleetView, HostCheckView},
    signals::SignalsView,
};

/// Why a request was not done. Each has one HTTP status and one stable code.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// 404 `project_unknown`.
    #[error("there is no project {0:?}; see `phased status` for those there are")]
    ProjectUnknown(String),
    /// 404 `run_unknown`.
    #[error("there is no run {0:?}: there never was, or [retention] does not keep it any more; see `phased runs`")]
    RunUnknown(String),
    /// 404 `environment_unknown`.
    #[error("project {project} has no environment {environment:?}; it has {known}")]
    EnvironmentUnknown {
        /// Whose.
        project: ProjectName,
        /// What was asked for.
        environment: String,
        /// Those it has.
        known: String,
    },
    /// 404 `token_unknown`.
    #[error("there is no token {0:?}; see `phased token list`")]
    TokenUnknown(String),
    /// 404 `host_key_none`.
    #[error(
        "no host key of {id:?} was learnt in {environment} of {project}, and no source gave one; see `phased hosts {project} {environment}` for those that were learnt"
    )]
    HostKeyNone {
        /// Whose.
        project: ProjectName,
        /// Where.
        environment: String,
        /// What was asked for.
        id: String,
    },
    /// 404 `hook_unknown`: no such project, or it has no webhook secret; the two are not told apart.
    #[error("there is no such hook")]
    HookUnknown,
    /// 401 `hook_signature`, always the same text.
    #[error("the signature is missing or wrong")]
    HookSignature,
    /// 400 `hook_body`.
    #[error("{0}")]
    HookBody(String),
    /// 409 `nothing_to_stop`.
    #[error("{0}")]
    NothingToStop(String),
    /// 409, the cause's code: what was wanted of a deployment cannot be.
    #[error("{}", .0.message)]
    Unchangeable(Cause),
    /// 409 `lease_held`: by whom, and what to do.
    #[error("{0}")]
    LeaseHeld(String),
    /// 422 `ref_not_allowed`, `ref_unknown` or `ref_invalid`, from the forge.
    #[error("{}", .0.message)]
    Ref(Cause),
    /// 422 `target_unknown`: what was to be gone back to; the message says to what one can.
    #[error("{}", .0.message)]
    Target(Cause),
    /// 502, the forge's code: `git_unreachable`, `git_auth`, ...
    #[error("{}", .0.message)]
    Forge(Cause),
    /// 422 `bad_value`.
    #[error("{0}")]
    Value(String),
    /// 409 `idempotency_in_flight`: the first request with this key is not answered yet.
    #[error("a request with this Idempotency-Key is being answered; ask again in a moment")]
    InFlight,
    /// 422 `idempotency_mismatch`.
    #[error("this Idempotency-Key was used with another request; use a new key")]
    KeyReused,
    /// 422 `projects_invalid`: the new set was refused, the old one stays. The text is the rendered diagnostics.
    #[error("the projects were not reloaded, what was loaded stays:\n{0}")]
    ProjectsInvalid(String),
    /// 503 `stopping`.
    #[error("the daemon is going down; ask again when it is back")]
    Stopping,
    /// 503 `queue_full`, with Retry-After.
    #[error("{0}")]
    QueueFull(String),
    /// 507 `disk_full`: nothing new is begun until there is room; a forge gets 503 instead, because it tries that again.
    #[error("the disk that holds {} is full, so nothing new is begun; make room there (see `df`), and it goes on by itself within seconds", .0.display())]
    DiskFull(std::path::PathBuf),
    /// 503 `index_damaged`: what people see cannot be read; runs are not concerned.
    #[error("the state index cannot be read: {0}")]
    Unreadable(String),
    /// 503 `degraded`: the journal cannot be written, nothing that changes anything is done.
    #[error("the daemon is degraded and changes nothing: {0}")]
    Degraded(String),
}

/// The body of `POST /v1/projects/{p}/start`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// A branch, tag or commit; the branch's head when absent.
    pub reference: Option<String>,
    /// No further than this.
    pub environment: Option<String>,
    /// Why, in the caller's words.
    pub reason: Option<String>,
    /// Also when it is live already.
    pub redeploy: bool,
    /// Tests run again though this release passed them under the same code.
    pub retest: bool,
    /// Also a release that was found bad.
    pub retry_bad: bool,
    /// Nothing is done: the answer is what would be.
    pub dry_run: bool,
    /// The `Idempotency-Key` that it came with: on disk together with the run.
    pub once: Option<Claim>,
}

/// An `Idempotency-Key` with what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Token or uid, method and path.
    pub scope: String,
    /// As the client chose it.
    pub key: String,
    /// SHA-256 of what was asked.
    pub body: String,
}

/// What a person wants of an environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeAsk {
    /// `pause`, `resume`, `promote`, `rollback`, `converge` or `adopt`.
    pub verb: String,
    /// What to go back to; the last known-good release when absent.
    pub to: Option<String>,
    /// In their words.
    pub reason: Option<String>,
    /// The `Idempotency-Key` that it came with.
    pub once: Option<Claim>,
}

/// The answer to it.
#[derive(Debug, Clone)]
pub enum Changed {
    /// 200: the run that deploys there, which it was told.
    UnderWay(Box<RunView>),
    /// 202: a run of its own.
    Run(Box<RunView>),
}

/// A freeze by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FreezeAsk {
    /// Who; whoever asks when absent.
    pub holder: Option<String>,
    /// In their words.
    pub reason: Option<String>,
    /// Wall ms; until it is lifted when absent.
    pub until_ms: Option<i64>,
}

/// Something about a lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseAsk {
    /// Who; whoever asks when absent.
    pub holder: Option<String>,
    /// In their words.
    pub reason: Option<String>,
    /// Wall ms; of no meaning where it is given back.
    pub until_ms: i64,
    /// Also from somebody else.
    pub force: bool,
}

/// The answer to a start.
#[derive(Debug, Clone)]
pub enum Started {
    /// 202: a run, perhaps queued.
    Run(Box<RunView>),
    /// 200 `already_live`.
    AlreadyLive(Box<ProjectStatus>),
    /// 200: what a start would do.
    Dry(Box<DryRun>),
}

/// The answer to a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hooked {
    /// 200: it was a ping.
    Pong,
    /// 202: on disk; the run.
    Accepted(RunId),
    /// 200: seen before; its run.
    Duplicate(RunId),
    /// 200: genuine and of no interest; why.
    Ignored(String),
}

/// The answer to a signal, as it is sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Signalled {
    /// To a sender whose signature is genuine.
    Answer {
        /// HTTP status.
        status: u16,
        /// The answer's bytes.
        body: Vec<u8>,
        /// Their signature.
        signature: String,
    },
    /// Nobody knows who asks, or this daemon cannot sign: nothing is signed.
    Nobody {
        /// HTTP status.
        status: u16,
        /// Why.
        cause: Cause,
    },
}

/// Which runs.
#[derive(Debug, Clone, Default)]
pub struct RunsQuery {
    /// Of one project.
    pub project: Option<ProjectName>,
    /// In one state.
    pub state: Option<RunState>,
    /// At most so many, 1 to 500.
    pub limit: usize,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// Which output.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Steps whose key starts with this.
    pub step: Option<String>,
    /// Of one host, by id.
    pub host: Option<String>,
    /// Only the last so many lines of what is there.
    pub tail: Option<usize>,
    /// Go on until the run has ended.
    pub follow: bool,
}

/// A secret shown once: the token's text and its description.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// `phd_<id>_<43 characters>`.
    pub text: String,
    /// Without the secret.
    pub token: TokenView,
}

/// A long answer, piece by piece; an error is its last. Who drops it ends what makes it.
pub type Pieces = tokio::sync::mpsc::Receiver<Result<Vec<u8>, String>>;

/// Which part of the state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportQuery {
    /// Of one project.
    pub project: Option<String>,
    /// Only runs that are newer than this one, by its id.
    pub after: Option<String>,
}

/// Output, piece by piece.
pub trait LogStream: Send {
    /// The next lines; `None` at the end. Cancel safe.
    fn next(&mut self) -> futures_util::future::BoxFuture<'_, Option<Result<Vec<LogLine>, Refusal>>>;
}

/// Events from a point on.
pub struct EventStream {
    /// What happened since the id asked for, or nothing.
    pub backlog: Vec<std::sync::Arc<EventView>>,
    /// The id asked for is not known any more: send `reset` and the whole state first.
    pub reset: bool,
    /// What happens from now on. Lagging behind = send `reset` again.
    pub live: tokio::sync::broadcast::Receiver<std::sync::Arc<EventView>>,
}

/// An earlier answer under an `Idempotency-Key`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeptAnswer {
    /// HTTP status.
    pub status: u16,
    /// `Location`, if any.
    pub location: Option<String>,
    /// The body as sent.
    pub body: String,
    /// Its content type.
    pub content_type: String,
}

/// What the API does with the engine.
#[async_trait::async_trait]
pub trait Engine: Send + Sync {
    /// The button. Returns once the request is on disk.
    async fn start(&self, project: &str, start: Start, by: &str) -> Result<Started, Refusal>;
    /// Takes a forge's delivery; returns once the event is on disk. `header` gives every value of a header, by lower-case name.
    async fn hook(
        &self,
        provider: &str,
        project: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> Result<Hooked, Refusal>;
    /// Asks the project's running and queued runs to end; returns them once that is on disk.
    async fn stop_project(
        &self,
        project: &str,
        now: bool,
        reason: Option<String>,
        by: &str,
    ) -> Result<Vec<RunView>, Refusal>;
    /// Asks one run to end.
    async fn stop_run(&self, run: &str, now: bool, reason: Option<String>, by: &str) -> Result<RunView, Refusal>;
    /// Everything.
    async fn status(&self) -> Result<Status, Refusal>;
    /// One project.
    async fn project_status(&self, project: &str) -> Result<ProjectStatus, Refusal>;
    /// Who would get what. Runs discovery.
    async fn plan(&self, project: &str, environment: Option<EnvironmentName>) -> Result<Plan, Refusal>;
    /// Does what a person wants of an environment; returns once it is on disk.
    async fn change(&self, project: &str, environment: &str, ask: ChangeAsk, by: &str) -> Result<Changed, Refusal>;
    /// Whether an environment is frozen.
    async fn freeze(&self, project: &str, environment: &str) -> Result<FreezeView, Refusal>;
    /// Freezes it by hand; returns once that is on disk.
    async fn set_freeze(
        &self,
        project: &str,
        environment: &str,
        ask: FreezeAsk,
        by: &str,
    ) -> Result<FreezeView, Refusal>;
    /// Lifts what freezes it now; returns once that is on disk.
    async fn lift_freeze(
        &self,
        project: &str,
        environment: &str,
        reason: Option<String>,
        by: &str,
    ) -> Result<FreezeView, Refusal>;
    /// Who holds an environment.
    async fn lease(&self, project: &str, environment: &str) -> Result<LeaseView, Refusal>;
    /// Gives it to a person; returns once that is on disk.
    async fn hold_lease(&self, project: &str, environment: &str, ask: LeaseAsk, by: &str)
    -> Result<LeaseView, Refusal>;
    /// Takes it from whoever has it; returns once that is on disk.
    async fn release_lease(
        &self,
        project: &str,
        environment: &str,
        ask: LeaseAsk,
        by: &str,
    ) -> Result<LeaseView, Refusal>;
    /// Takes a signal of another daemon: its bytes, its signature, and a piece of a blob that came beside it. Returns once what it begins is
    /// on disk.
    async fn signal(&self, document: &[u8], signature: &str, piece: Option<&[u8]>) -> Signalled;
    /// To whom this daemon listens, and what came.
    fn signals(&self) -> SignalsView;
    /// A page of runs, newest first, without stages, deployments and hosts.
    async fn runs(&self, query: RunsQuery) -> Result<Page<RunView>, Refusal>;
    /// One run, whole.
    async fn run(&self, run: &str) -> Result<RunView, Refusal>;
    /// Waits until the run has left the queue (`finished = false`) or ended, or `limit` has passed; then as [`Engine::run`]. Cancel safe.
    async fn wait(&self, run: &str, finished: bool, limit: std::time::Duration) -> Result<RunView, Refusal>;
    /// A run's output.
    async fn log(&self, run: &str, query: LogQuery) -> Result<Box<dyn LogStream>, Refusal>;
    /// Events after `after` (a `Last-Event-ID`), or from now on.
    fn events(&self, after: Option<&str>) -> EventStream;
    /// Loads the projects anew; returns their names.
    async fn reload(&self) -> Result<Vec<ProjectName>, Refusal>;
    /// Sends a test message through every channel of `project` (of all when `None`); each channel with `None` or why it failed.
    async fn test_alerts(&self, project: Option<&str>) -> Result<Vec<(String, Option<Cause>)>, Refusal>;
    /// Every alarm of `project` (of all when `None`) that `visible` lets through; with `measure` each is measured now, once.
    async fn alarms(
        &self,
        project: Option<&str>,
        visible: &(dyn for<'p> Fn(&'p str) -> bool + Sync),
        measure: bool,
    ) -> Result<Vec<AlarmView>, Refusal>;
    /// The hosts of every environment of `project` (of all when `None`) that `visible` lets through, or of the one called `only`; with
    /// `refresh` every source is asked anew.
    async fn hosts(
        &self,
        project: Option<&str>,
        only: Option<&str>,
        visible: &(dyn for<'p> Fn(&'p str) -> bool + Sync),
        refresh: bool,
    ) -> Result<Vec<FleetView>, Refusal>;
    /// Logs in to the hosts of every environment of `project` (of all when `None`) that `visible` lets through, or of the one called `only`, and runs
    /// nothing there.
    async fn check_hosts(
        &self,
        project: Option<&str>,
        only: Option<&str>,
        visible: &(dyn for<'p> Fn(&'p str) -> bool + Sync),
    ) -> Result<Vec<HostCheckView>, Refusal>;
    /// Asks every source of an environment and believes what it says, whatever is missing; returns once it is on disk.
    async fn accept_hosts(&self, project: &str, environment: &str, by: &str) -> Result<FleetView, Refusal>;
    /// Forgets the host key that was learnt of one host; the next one it shows is learnt.
    async fn forget_host_key(&self, project: &str, environment: &str, id: &str, by: &str)
    -> Result<FleetView, Refusal>;
    /// Whether maintenance is on, and what still works. With `wait` once nothing works any more, it was turned off, or so long has passed.
    /// Cancel safe.
    async fn maintenance(&self, wait: Option<std::time::Duration>) -> MaintenanceView;
    /// Turns maintenance on or off; what is so already stays as it is.
    async fn switch_maintenance(&self, on: bool, reason: Option<String>, by: &str) -> Result<MaintenanceView, Refusal>;
    /// A backup of everything, with the files of secrets if that is asked for. Returns once all that was acknowledged until now is on disk.
    async fn backup(&self, secrets: bool, by: &str) -> Result<Pieces, Refusal>;
    /// The state as lines of JSON.
    async fn export(&self, query: ExportQuery) -> Result<Pieces, Refusal>;
    /// Whether everything needed is there; each check with `None` or what is wrong.
    fn ready(&self) -> Vec<(&'static str, Option<String>)>;
    /// Shows `cause` as what is wrong at `place`, which is no part of the engine, until it is `None`.
    fn remark(&self, place: &str, cause: Option<Cause>);

    /// Makes a token. `scopes`: `read`, `deploy`, `admin`.
    async fn create_token(
        &self,
        name: &str,
        scopes: Vec<String>,
        projects: Vec<String>,
        ttl: Option<std::time::Duration>,
        by: &str,
    ) -> Result<NewToken, Refusal>;
    /// All tokens.
    fn tokens(&self) -> Vec<TokenView>;
    /// Makes a token useless.
    async fn revoke_token(&self, id: &str, by: &str) -> Result<(), Refusal>;
    /// The token of this text, if it is genuine and not expired; compared in constant time.
    fn authenticate(&self, text: &str) -> Option<TokenView>;

    /// Claims an `Idempotency-Key`: `Ok(None)` = go on and call [`Engine::keep`], `Ok(Some)` = answer this again.
    fn claim(&self, claim: &Claim) -> Result<Option<KeptAnswer>, Refusal>;
    /// Keeps the answer for 24 h; `None` gives the claim back (the request was not done).
    async fn keep(&self, claim: &Claim, answer: Option<KeptAnswer>) -> Result<(), Refusal>;
}
