//! `phased.toml`: what the daemon itself needs to know. Projects are Lua, not this.
//!
//! Everything has a default, so an empty file is a valid one; an unknown key is an error, so a slip cannot pass for a setting.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{
    model::{
        ids::{EnvironmentName, HostId, ProjectName},
        signal::PublicKey,
    },
    telemetry,
    time::Span,
};

mod api;
mod error;
mod limits;
mod network;
mod secrets;
mod values;

pub use api::{Api, Tls};
pub use error::ConfigError;
pub use limits::Limits;
pub use network::{ClientHeader, Network};
pub use secrets::{FileSecrets, is_name as is_secret_name};
pub use values::{Rate, Size, UidRange};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Journals, state, blobs, checkouts: everything the daemon writes.
    #[serde(deserialize_with = "values::absolute")]
    pub data_dir: PathBuf,
    /// Where Lua is looked for, the user's directory first, the shipped one last.
    #[serde(deserialize_with = "values::absolutes")]
    pub plugins: Vec<PathBuf>,
    /// Where the daemon is asked.
    pub api: Api,
    /// Where secrets are.
    pub secrets: Secrets,
    /// As whom code under test runs.
    pub exec: Exec,
    /// To which other daemons this one listens.
    pub signals: Signals,
    /// What one call, step or project may use.
    pub limits: Limits,
    /// How long what has happened is kept.
    pub retention: Retention,
    /// How the daemon logs.
    pub log: Log,
}

/// `[secrets]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// One file a secret. `$CREDENTIALS_DIRECTORY` is looked into before it, see [`Config::secret_dirs`].
    #[serde(deserialize_with = "values::absolute")]
    pub dir: PathBuf,
}

/// `[exec]`: at most one of `uids`, `user` and `same_user`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Exec {
    /// One user for the local commands of all projects.
    pub user: Option<String>,
    /// A user id of its own for every project, out of this range.
    pub uids: Option<UidRange>,
    /// Local commands run as the daemon itself: they can read its secrets. For demos and trusted code only.
    pub same_user: bool,
    /// `PATH` of local commands.
    pub path: String,
    /// The socket of the job unit, which starts local commands for a daemon that cannot switch users itself. Without it
    /// [`JOB_SOCKET`], where systemd runs the machine (or that is there) and the daemon is not root.
    #[serde(deserialize_with = "values::some_absolute")]
    pub job_socket: Option<PathBuf>,
}

/// Where the package's `phased-job.socket` listens.
pub const JOB_SOCKET: &str = "/run/phased-job.sock";
/// What to do where it is not there.
pub const START_JOB_SOCKET: &str = "systemctl enable --now phased-job.socket";
/// The user ids of projects where the file names none: up to those that systemd gives to services with `DynamicUser=`.
pub const JOB_UIDS: UidRange = UidRange { first: 61_000, last: 61_183 };

/// Where the packages put the shipped plugins, which are built in as well.
pub const SHIPPED_PLUGINS: &str = "/usr/share/phased/plugins";

/// `[signals]`: another daemon may ask this one to deploy. Without a key it listens to nobody.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Signals {
    /// The secret with this daemon's own private key, which signs its answers; `phased keys make` makes one.
    pub key: Option<String>,
    /// Who it is to senders: the id of its host in their list of hosts; the machine's name when absent.
    pub host: Option<HostId>,
    /// An older signal is refused.
    pub max_age: Span,
    /// Who may signal what.
    pub accept: Vec<Accept>,
}

/// One of `accept`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accept {
    /// The sender's public key, as `phased keys show` prints it there.
    pub key: PublicKey,
    /// `"shop"`, `"shop/production"`, or `"*"`.
    pub projects: Vec<String>,
}

/// `[retention]`: a finished run is kept if one of these keeps it, and the quota allows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// So many of each project, the newest.
    pub runs: usize,
    /// Those that are younger.
    pub age: Span,
    /// Those that did not succeed, if they are younger.
    pub failed: Span,
    /// What the data directory may take; over it the oldest go first, whatever keeps them.
    pub quota: Size,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `"text"` or `"json"`.
    pub format: telemetry::Format,
    /// In `tracing`'s syntax: `"info,phased::ssh=debug"`.
    #[serde(deserialize_with = "values::filter")]
    pub filter: String,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data_dir: "/var/lib/phased".into(),
            plugins: vec!["/etc/phased/plugins".into(), SHIPPED_PLUGINS.into()],
            api: Api::default(),
            secrets: Secrets::default(),
            exec: Exec::default(),
            signals: Signals::default(),
            limits: Limits::default(),
            retention: Retention::default(),
            log: Log::default(),
        }
    }
}

impl Default for Secrets {
    fn default() -> Self {
        Secrets { dir: "/etc/phased/secrets".into() }
    }
}

impl Default for Exec {
    fn default() -> Self {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
        Exec { user: None, uids: None, same_user: false, path, job_socket: None }
    }
}

impl Default for Signals {
    fn default() -> Self {
        Signals { key: None, host: None, max_age: Span::minutes(5), accept: Vec::new() }
    }
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: u64 = 86_400;
        Retention { runs: 200, age: Span::secs(30 * DAY), failed: Span::secs(90 * DAY), quota: Size::mib(10 * 1024) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { format: telemetry::Format::Text, filter: "info".to_owned() }
    }
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or the first thing in it that is wrong, with `file:line:column` and what was probably meant.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        Config::parse(&text, path)
    }

    /// Reads `text` as if it stood in a file at `path`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|error| ConfigError::at(path, text, &error))?;
        config
            .api
            .check(!config.signals.accept.is_empty())
            .map_err(|message| ConfigError::section(path, text, "api", message))?;
        config.exec.check().map_err(|message| ConfigError::section(path, text, "exec", message))?;
        config.signals.check().map_err(|message| ConfigError::section(path, text, "signals", message))?;
        config.limits.check().map_err(|message| ConfigError::section(path, text, "limits", message))?;
        config.retention.check().map_err(|message| ConfigError::section(path, text, "retention", message))?;
        Ok(config)
    }

    /// Where secrets are looked for, in order. `credentials` is the value of `$CREDENTIALS_DIRECTORY`.
    #[must_use]
    pub fn secret_dirs(&self, credentials: Option<&Path>) -> Vec<PathBuf> {
        credentials.map(Path::to_owned).into_iter().chain([self.secrets.dir.clone()]).collect()
    }
}

impl Exec {
    /// Reads `[exec]` of the file at `path`, whatever else it has.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(path: &Path) -> Result<Exec, ConfigError> {
        #[derive(Deserialize)]
        struct Only {
            #[serde(default)]
            exec: Exec,
        }
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        let Only { exec } = toml::from_str(&text).map_err(|error| ConfigError::at(path, &text, &error))?;
        exec.check().map_err(|message| ConfigError::section(path, &text, "exec", message))?;
        Ok(exec)
    }

    fn check(&self) -> Result<(), String> {
        let chosen = [("user", self.user.is_some()), ("uids", self.uids.is_some()), ("same_user", self.same_user)];
        let chosen: Vec<&str> = chosen.into_iter().filter_map(|(name, set)| set.then_some(name)).collect();
        if let [first, second, ..] = chosen[..] {
            return Err(format!(
                "`{first}` and `{second}` contradict each other: keep one of `uids`, `user`, `same_user`"
            ));
        }
        if self.same_user && self.job_socket.is_some() {
            return Err("`same_user` and `job_socket` contradict each other: the job unit never runs commands as the daemon itself; keep one".to_owned());
        }
        if self.user.as_deref() == Some("") {
            return Err("`user` is empty: name a user, or leave it out".to_owned());
        }
        if self.path.is_empty() || self.path.contains('\0') || !self.path.split(':').all(|dir| dir.starts_with('/')) {
            return Err("`path` must be absolute directories joined by `:`".to_owned());
        }
        Ok(())
    }
}

impl Signals {
    fn check(&self) -> Result<(), String> {
        if self.key.is_none() && !self.accept.is_empty() {
            return Err(
                "`accept` names senders and `key` is missing, so that nothing they are answered could be believed: \
                        `phased keys make signals` makes one, key = \"signals\""
                    .to_owned(),
            );
        }
        if self.max_age < Span::secs(10) {
            return Err("`max_age` is below 10s: no two clocks agree so well".to_owned());
        }
        for (n, accept) in self.accept.iter().enumerate().map(|(n, accept)| (n + 1, accept)) {
            if accept.projects.is_empty() {
                return Err(format!("accept {n} has no `projects`: name those that this key may signal, or \"*\""));
            }
            if let Some(wrong) = accept.projects.iter().find(|name| !is_right(name)) {
                return Err(format!(
                    "accept {n}: {wrong:?} is no project: write \"shop\", \"shop/production\" or \"*\""
                ));
            }
            if self.accept.iter().take(n - 1).any(|other| other.key.bytes() == accept.key.bytes()) {
                return Err(format!("accept {n} has the key of an earlier one: put all of its projects into one"));
            }
        }
        Ok(())
    }
}

fn is_right(text: &str) -> bool {
    let (project, environment) = text.split_once('/').map_or((text, None), |(of, only)| (of, Some(only)));
    text == "*"
        || (project.parse::<ProjectName>().is_ok() && environment.is_none_or(|e| e.parse::<EnvironmentName>().is_ok()))
}

impl Retention {
    fn check(&self) -> Result<(), String> {
        // The reserve, an index and a few runs: below that everything would be removed for nothing.
        if self.quota < Size::mib(64) {
            return Err("`quota` is below 64MiB, too little for any history".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
