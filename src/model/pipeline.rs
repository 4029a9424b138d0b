//! What the engine knows of a project: everything of its Lua file but the functions themselves, which are named by path.
//!
//! Recorded in the header of every run, so that a fold needs no Lua. Times are milliseconds.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    analysis::Analysis,
    freeze::Window,
    host::{Host, SecretRef, Signalling, Ssh, Transport},
    ids::{Digest, EnvironmentName, ProjectName, ReleaseId, Sha, StageName},
    release::Release,
    rollout::{Budget, Rollout},
};

/// A project's description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipeline {
    /// Where commits come from.
    pub source: Source,
    /// What happens to pushes while one is being tested.
    pub queue: Queue,
    /// Test stages in order.
    pub stages: Vec<Stage>,
    /// Environments in order.
    pub environments: Vec<Environment>,
    /// Who is told.
    pub notify: Notify,
}

/// The repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// URL as given to git: `https://`, `ssh://`, `user@host:path`, `file://`.
    pub git: String,
    /// The branch that is deployed.
    pub branch: String,
    /// Patterns of tags whose pushes start runs too, and which need not be on the branch.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tags: Vec<String>,
    /// How often the head is asked for; absent = only at start.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub poll_ms: Option<u64>,
    /// The secrets that sign webhooks; empty = there is no webhook endpoint. Two during a rotation.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub webhook: Vec<SecretRef>,
    /// User name for `https://`; `x-access-token` when absent and there is a `token`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user: Option<String>,
    /// Password or token for `https://`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<SecretRef>,
    /// Private key for `ssh://`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<SecretRef>,
    /// known_hosts file for `ssh://`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub known_hosts: Option<String>,
}

/// `queue = "latest" | "all"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Queue {
    /// A newer push supersedes those still queued.
    #[default]
    Latest,
    /// Every accepted push is a run.
    All,
}

/// A test stage. Functions: `test/<name>/setup`, `/run`, `/cleanup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: StageName,
    /// Has `setup`.
    pub setup: bool,
    /// Has `cleanup`.
    pub cleanup: bool,
    /// The limit of each of its calls.
    pub timeout_ms: u64,
}

/// An environment. Functions: `environments/<name>/deploy` and those of its hooks and alarms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Its name.
    pub name: EnvironmentName,
    /// Where its hosts come from, in the order written.
    pub hosts: Vec<HostSource>,
    /// Merged under every host's own values.
    pub ssh: Ssh,
    /// `transport = "signal"`: its hosts have daemons of their own, which are sent signals.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<Signalling>,
    /// How it is rolled out.
    pub rollout: Rollout,
    /// When a host is healthy; `None` = `health = "none"`, on purpose.
    pub health: Option<Health>,
    /// Has `verify`.
    pub verify: bool,
    /// Which of the other hooks it has.
    #[serde(skip_serializing_if = "Hooks::is_none", default)]
    pub hooks: Hooks,
    /// What is watched while a deployment goes on.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub alarms: Vec<Alarm>,
    /// The limit of each of its calls.
    pub timeout_ms: u64,
    /// When nothing new is deployed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub freeze: Vec<Window>,
    /// With whom it shares its lease.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<String>,
    /// Which runs enter it by themselves.
    #[serde(skip_serializing_if = "When::is_push", default)]
    pub when: When,
}

/// `when = "push" | "manual" | "signal" | { tag = ... }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// All.
    #[default]
    Push,
    /// Those that a person starts for it.
    Manual,
    /// Those that another daemon asks for by a signal, and those that a person starts for it.
    Signal,
    /// Those, and runs of tags that match one of these patterns.
    Tag(Vec<String>),
}

impl Pipeline {
    /// Whether nothing begins here but by a signal or a person: nobody asks for the head of its branch.
    #[must_use]
    pub fn only_listens(&self) -> bool {
        self.stages.is_empty()
    }
}

impl Environment {
    /// As a target keeps it: which hosts there are is asked of the project as it is then.
    #[must_use]
    pub fn without_hosts(&self) -> Self {
        Environment { hosts: Vec::new(), ..self.clone() }
    }

    /// The functions that a deployment calls, in the order of their turns.
    #[must_use]
    pub fn functions(&self) -> Vec<&'static str> {
        let Hooks { prepare, before, before_wave, drain, undrain, after_wave, after, rollback_safe } = self.hooks;
        let all = [
            (rollback_safe, "rollback_safe"),
            (prepare, "prepare"),
            (before, "before"),
            (before_wave, "before_wave"),
            (drain, "drain"),
            (true, "deploy"),
            (undrain, "undrain"),
            (after_wave, "after_wave"),
            (self.verify, "verify"),
            (after, "after"),
        ];
        all.into_iter().filter(|(there, _)| *there).map(|(_, name)| name).collect()
    }

    /// `host` with what all hosts of this environment have; its own values win.
    #[must_use]
    pub fn reaching(&self, host: Host) -> Host {
        let transport = match (&host.transport, &self.signal) {
            (Transport::Ssh, Some(signal)) => Transport::Signal(Box::new(signal.clone())),
            (own, _) => own.clone(),
        };
        Host { ssh: self.ssh.of_host(&host.ssh), transport, ..host }
    }
}

impl std::fmt::Display for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            When::Push => f.write_str("push"),
            When::Manual => f.write_str("manual"),
            When::Signal => f.write_str("signal"),
            When::Tag(patterns) => write!(f, "tag {}", patterns.join(", ")),
        }
    }
}

impl When {
    fn is_push(&self) -> bool {
        *self == When::Push
    }
}

/// The hooks that an environment may have, beside `deploy` and `verify`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools)] // which of eight functions are there
pub struct Hooks {
    /// Every planned host, before the first wave.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub prepare: bool,
    /// Once, after every `prepare`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub before: bool,
    /// Before each wave.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub before_wave: bool,
    /// Each host, before its `deploy`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drain: bool,
    /// Each host, once it is healthy.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub undrain: bool,
    /// After each wave.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub after_wave: bool,
    /// Once, on success.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub after: bool,
    /// Asked before anything is touched.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rollback_safe: bool,
}

impl Hooks {
    fn is_none(&self) -> bool {
        *self == Hooks::default()
    }
}

/// One source of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostSource {
    /// Written in the file; `ssh` holds the host's own values only.
    Static(Vec<Host>),
    /// A discovery plugin's value; its function is `discovery/<environment>/<index from 1>`, its options are in the code.
    Plugin {
        /// The plugin's `name`.
        name: String,
        /// The function's path.
        function: String,
        /// How it is asked, and which of its answers are believed.
        #[serde(default)]
        limits: SourceLimits,
        /// Of its own options, secrets by name: a source with other options is another source. Journals of before have none.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        options: Option<Digest>,
    },
}

/// What phased itself reads of a source's options: `interval timeout min_hosts max_shrink max_growth max_age port_label user_label`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLimits {
    /// How often it is asked while nothing is deployed; 1 m by default.
    pub interval_ms: u64,
    /// Of one asking; 2 m by default.
    pub timeout_ms: u64,
    /// An answer with fewer running hosts is not believed.
    pub min_hosts: u32,
    /// Nor one that has lost more than this since the last good one; that of the rollout when absent.
    pub max_shrink: Option<Budget>,
    /// Nor one with so many more than the last good one; five times as many when absent, and at least 50.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_growth: Option<u32>,
    /// How old the last good answer may be that stands in for a source that fails, where something new begins; 1 h by default.
    pub max_age_ms: u64,
    /// The label that holds the port of a host's sshd, where the source does not say it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port_label: Option<String>,
    /// The label that holds the user to log in as, where the source does not say it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user_label: Option<String>,
}

impl Default for SourceLimits {
    fn default() -> Self {
        SourceLimits {
            interval_ms: 60_000,
            timeout_ms: 120_000,
            min_hosts: 0,
            max_shrink: None,
            max_growth: None,
            max_age_ms: 3_600_000,
            port_label: None,
            user_label: None,
        }
    }
}

impl SourceLimits {
    /// Takes ports and users from labels, as it says.
    ///
    /// # Errors
    /// A label holds no port or no user name: which, of which host.
    pub fn read_labels(&self, hosts: &mut [Host]) -> Result<(), String> {
        for host in hosts {
            let label = |name: &Option<String>| {
                let name = name.as_ref()?;
                Some((name.clone(), host.labels.get(name).filter(|value| !value.is_empty())?.clone()))
            };
            let (port, user) = (label(&self.port_label), label(&self.user_label));
            let bad = |what: &str, name: &str, value: &str| {
                format!("the label {name} of host {} is {value:?}, which is no {what}", host.id)
            };
            if let Some((name, value)) = port.filter(|_| host.ssh.port.is_none()) {
                let read = value.parse::<u16>().ok().filter(|port| *port != 0);
                host.ssh.port = Some(read.ok_or_else(|| bad("port", &name, &value))?);
            }
            if let Some((name, value)) = user.filter(|_| host.ssh.user.is_none()) {
                let fits = value.len() <= 64
                    && value.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                    && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-$@\\".contains(&b));
                host.ssh.user = Some(fits.then(|| value.clone()).ok_or_else(|| bad("user name", &name, &value))?);
            }
        }
        Ok(())
    }
}

/// When a host is healthy: every check good, without a break, for `min_healthy_time_ms`, before `healthy_deadline_ms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// All of them; at least one.
    pub checks: Vec<Check>,
    /// 10 s by default.
    pub min_healthy_time_ms: u64,
    /// 2 m by default.
    pub healthy_deadline_ms: u64,
    /// Between looks; 1 s by default.
    pub interval_ms: u64,
    /// Of one look; 5 s by default.
    pub timeout_ms: u64,
}

/// One thing to look at on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// GET; good is a status from 200 to 299. `":8080/path"` is the host's own loopback through its session, a full URL is asked from here.
    Http(String),
    /// `":5432"`: something listens on the host's own loopback, asked through its session; `"host:port"`: dialled by the host.
    Tcp(String),
    /// Shell text on the host; good is exit code 0.
    Command(String),
    /// A systemd unit by its full name, `shop.service`: good is active, and not restarted since the watch began.
    Service(String),
    /// A container of docker or podman by its name: good is running, and not restarted since the watch began.
    Container(String),
    /// What the host says it runs: good is the release that was deployed.
    Version(Version),
    /// What the host's own daemon says: good is that this release is live there, and well. Which one is filled in when it is asked.
    Signal(#[serde(default)] Option<Box<AskedAfter>>),
}

/// What another daemon is asked after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedAfter {
    /// Of what.
    pub project: ProjectName,
    /// Where.
    pub environment: EnvironmentName,
    /// The release that should be live.
    pub release: ReleaseId,
    /// Its commit.
    pub revision: Sha,
}

impl AskedAfter {
    /// A release, in an environment of a project.
    #[must_use]
    pub fn of(project: &ProjectName, environment: &EnvironmentName, release: &Release) -> Self {
        AskedAfter {
            project: project.clone(),
            environment: environment.clone(),
            release: release.id.clone(),
            revision: release.commit.sha.clone(),
        }
    }
}

/// Where a host tells the version it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Asked for it.
    pub from: VersionFrom,
    /// The answer is JSON, and the version is under this path of keys: `build.revision`; absent = the answer is the version.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub json: Option<String>,
}

/// Who is asked for the version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionFrom {
    /// GET, as [`Check::Http`].
    Http(String),
    /// Standard output of shell text on the host.
    Command(String),
}

impl Health {
    /// Gives the checks of a host what they are asked with, and the release that another daemon is asked after.
    pub fn fill(&mut self, variables: &[(String, String)], after: Option<&AskedAfter>) {
        for check in &mut self.checks {
            check.fill(variables);
            if let (Check::Signal(asked), Some(after)) = (check, after) {
                *asked = Some(Box::new(after.clone()));
            }
        }
    }
}

impl Check {
    /// Gives a probe's command the variables that every command has: it knows where it runs.
    pub fn fill(&mut self, variables: &[(String, String)]) {
        let (Check::Command(text) | Check::Version(Version { from: VersionFrom::Command(text), .. })) = self else {
            return;
        };
        let quoted = |value: &str| format!("'{}'", value.replace('\'', r"'\''"));
        let exports: Vec<String> =
            variables.iter().map(|(name, value)| format!("export {name}={}", quoted(value))).collect();
        *text = format!("{}\n{text}", exports.join("\n"));
    }

    /// What people call it: `http :8080/healthz`.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Check::Http(url) => format!("http {url}"),
            Check::Tcp(address) => format!("tcp {address}"),
            Check::Command(_) => "command".to_owned(),
            Check::Service(unit) => format!("service {unit}"),
            Check::Container(name) => format!("container {name}"),
            Check::Version(Version { from: VersionFrom::Http(url), .. }) => format!("version {url}"),
            Check::Version(Version { from: VersionFrom::Command(_), .. }) => "version".to_owned(),
            Check::Signal(_) => "its own daemon".to_owned(),
        }
    }
}

/// Cause, alert and action, all three. Functions, counted from 1: `alarms/<environment>/<n>/cause`, `/alert`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// What people call it; no other one of its environment is called so.
    pub name: String,
    /// The probe's plugin name.
    pub cause: String,
    /// The channel's plugin name.
    pub alert: String,
    /// What happens to a deployment.
    pub action: AlarmAction,
    /// How measurements are judged.
    pub analysis: Analysis,
}

/// What an alarm does to a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmAction {
    /// The release is bad: every host gets the known-good one again.
    Rollback,
    /// The release is bad: everything stays as it is.
    Halt,
    /// A person decides.
    Pause,
    /// People are told, no more.
    None,
}

impl AlarmAction {
    /// Its word in Lua and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AlarmAction::Rollback => "rollback",
            AlarmAction::Halt => "halt",
            AlarmAction::Pause => "pause",
            AlarmAction::None => "none",
        }
    }
}

/// Who is told: channels are functions `notify/bad/<n>`, `notify/good/<n>` of the code, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Notify {
    /// For every bad end and `recovered`; the plugin names, in order.
    pub bad: Vec<String>,
    /// For good ends.
    pub good: Vec<String>,
}

/// Options of a step that the engine reads; the rest is the verb's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct StepOptions {
    /// Shown instead of `sh#1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of one attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<crate::time::Span>,
    /// Further attempts after a failure.
    pub retries: u32,
    /// Before the next attempt; doubles each time, at most 5 m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<crate::time::Span>,
    /// `"fail"` (default) or `"retry"`; a function is the program's own business and absent here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_unknown: Option<OnUnknown>,
}

/// What to do when nobody can tell whether a step happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// The step fails.
    Fail,
    /// Another attempt, even without `retries`.
    Retry,
}

impl StepOptions {
    /// Reads the engine's options out of a step's arguments; the loader has validated them.
    #[must_use]
    pub fn of(args: &Value) -> Self {
        serde_json::from_value(args.clone()).unwrap_or_default()
    }
}
