//! What `phased init` says in the end: what lies where, what is still missing, and the one command that comes next.

use std::{fmt::Write as _, path::Path};

use serde::Serialize;

use super::{
    files::Files,
    hosts::State,
    project::{Address, Draft},
};
use crate::{api::text::printable, config::Config, model::ids::ProjectName};

/// All of it, as `--json` shows it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub config: String,
    pub wrote: Vec<String>,
    pub kept: Vec<String>,
    /// Kept, and not what would be written now: what is said here of hosts is of the command's words, not of what these files say.
    pub differs: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    pub found: Vec<String>,
    /// Programs that tests need and this machine lacks.
    pub lacking: Vec<String>,
    pub hosts: Vec<State>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sudoers: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    pub notes: Vec<String>,
    /// The one command, or what else comes next.
    pub next: String,
    #[serde(skip)]
    pub script: String,
    /// The project's file is somebody's own by now: what its hosts need is not known, only whether they let us in.
    #[serde(skip)]
    pub own: bool,
}

/// What a forge is told.
#[derive(Debug, Serialize)]
pub(super) struct Webhook {
    /// `None` = the daemon listens to no TCP.
    pub url: Option<String>,
    /// What is to be known of the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
    pub secret: String,
    /// How it is set there.
    pub how: String,
}

impl Webhook {
    pub fn new(config: &Config, name: &ProjectName, secret: &str, git: &str) -> Self {
        // A proxy's name is another one than the certificate's of a daemon behind it.
        let tls = config.api.tls.is_some();
        let own_tls = tls && config.api.trusted_proxies.is_empty();
        let place = config.api.listen.map(|addr| match config.api.host_names.first() {
            Some(host) if own_tls => (format!("https://{host}:{}", addr.port()), None),
            Some(host) => (format!("https://{host}"), None),
            None if own_tls && !addr.ip().is_loopback() => {
                (format!("https://NAME:{}", addr.port()), Some("NAME is what the certificate calls this machine"))
            }
            None => (
                format!("{}://{addr}", if tls { "https" } else { "http" }),
                Some("the forge has to reach it: put a proxy with TLS before it, or leave it out; the branch is asked for every minute"),
            ),
        });
        let (url, note) = place.map(|(place, note)| (format!("{place}/hooks/github/{name}"), note)).unzip();
        let how = if git.contains("gitlab") || git.contains("bitbucket") {
            "this forge's webhooks are not read yet: pushes are found within a minute by asking (poll)"
        } else {
            "GitHub: Settings, Webhooks, Add webhook: this URL, content type application/json, this secret, just the push event. \
             Webhooks of GitLab, Gitea and others are not read yet: there pushes are found within a minute by asking (poll)"
        };
        Webhook { url, note: note.flatten(), secret: secret.to_owned(), how: how.to_owned() }
    }
}

/// Whether there is a unit to start: what was built from source has brought none.
fn has_unit() -> bool {
    ["/etc", "/usr/lib", "/lib"].iter().any(|dir| Path::new(dir).join("systemd/system/phased.service").exists())
}

impl Report {
    pub fn files(&mut self, files: &Files) {
        let shown = |paths: &[std::path::PathBuf]| paths.iter().map(|path| path.display().to_string()).collect();
        self.wrote = shown(&files.wrote);
        self.kept = shown(&files.kept);
        self.kept.dedup();
    }

    /// What comes next; `answers` = a daemon runs already.
    pub fn decide_next(&mut self, draft: &Draft, script: &Path, answers: bool) {
        self.script = script.display().to_string();
        let name = &draft.name;
        let of = |wanted: &dyn Fn(&State) -> bool| self.hosts.iter().find(|state| wanted(state));
        let shut = |state: &State| state.missing.iter().any(|cause| cause.is_shut() && cause.code != "auth_failed");
        self.next = if !self.differs.is_empty() {
            let (are, they, them) =
                if self.differs.len() == 1 { ("is", "it was", "it") } else { ("are", "they were", "them") };
            format!(
                "{} {are} there already and not what this command would write, so {they} kept. What you said here and is not in {them}, put in by hand; \
                 phased check and phased doctor look at what is there. Or move {them} away and run this again",
                self.differs.join(" and ")
            )
        } else if draft.hosts.is_empty() && !self.own {
            format!("put your hosts into {}, then: phased check", draft.file)
        } else if of(&|state| state.missing.iter().any(|cause| cause.code == "host_key_unknown")).is_some() {
            "compare the keys above, then run this again with --accept-host-keys".to_owned()
        } else if let Some(state) = of(&State::unprepared) {
            let to = match &state.address {
                Address { host, port: Some(port) } => format!("-p {port} root@{host}"),
                Address { host, port: None } => format!("root@{host}"),
            };
            format!(
                "ssh {to} sh <{}    (so on each host), then run this again: it looks whether all is well",
                self.script
            )
        } else if of(&shut).is_some() {
            "see to the hosts above, then run this again".to_owned()
        } else if answers {
            format!("phased reload && phased start {name} --wait")
        } else if crate::service::is_systemd_here() && has_unit() {
            "systemctl enable --now phased    (it tests and deploys the branch's head by itself; phased status shows it)".to_owned()
        } else {
            format!(
                "phased serve --config {}    (it tests and deploys the branch's head by itself; phased status shows it)",
                self.config
            )
        };
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (what, paths) in [("wrote", &self.wrote), ("kept ", &self.kept)] {
            for path in paths {
                let _infallible = writeln!(out, "{what}  {path}");
            }
        }
        for note in &self.notes {
            let _infallible = writeln!(out, "note   {note}");
        }
        if let Some(project) = &self.project {
            let found = if self.found.is_empty() {
                "nothing that is known here: write its test stages yourself".to_owned()
            } else {
                self.found.join(", ")
            };
            let _infallible = writeln!(
                out,
                "\nProject {project}, branch {}\n  found      {found}",
                self.branch.as_deref().unwrap_or_default()
            );
            if !self.lacking.is_empty() {
                let _infallible = writeln!(
                    out,
                    "  lacking    {}: its tests need this on this machine; install it",
                    self.lacking.join(", ")
                );
            }
            self.hosts_text(&mut out);
            self.webhook_text(&mut out);
        }
        if !self.next.is_empty() {
            let _infallible = writeln!(out, "\nNext: {}", self.next);
        }
        // Some of it is what servers say of themselves.
        printable(&out)
    }

    fn hosts_text(&self, out: &mut String) {
        for state in &self.hosts {
            let mut lines: Vec<String> =
                state.host_key.iter().map(|key| format!("its host key is kept: {key}")).collect();
            match &state.missing[..] {
                [] if self.differs.is_empty() && !self.own => lines.push("ready".to_owned()),
                // By the command's words, of which nobody knows whether the project's file means them; or no more was looked at.
                [] => lines.push("it lets us in".to_owned()),
                missing => lines.extend(missing.iter().map(|cause| format!("not yet: {}", cause.message))),
            }
            for (n, line) in lines.iter().enumerate() {
                let label = if n == 0 { format!("  host       {}\n", state.host) } else { String::new() };
                let _infallible = writeln!(out, "{label}             {line}");
            }
        }
        let ready = !self.hosts.is_empty() && !self.hosts.iter().any(State::unprepared);
        if let Some(key) = self.public_key.as_ref().filter(|_| !ready) {
            let _infallible = writeln!(
                out,
                "\nEach host needs, once, what {} does when root runs it there. By hand that is:",
                self.script
            );
            let _infallible = writeln!(out, "  in ~/.ssh/authorized_keys   {key}");
            if let Some(line) = &self.sudoers {
                let _infallible = writeln!(out, "  in /etc/sudoers.d/phased    {line}");
            }
        }
    }

    fn webhook_text(&self, out: &mut String) {
        let Some(webhook) = &self.webhook else { return };
        let _infallible = match &webhook.url {
            Some(url) => {
                let note = webhook.note.map(|note| format!("\n             ({note})")).unwrap_or_default();
                writeln!(
                    out,
                    "\nWebhook\n  URL        {url}{note}\n  secret     {}\n  set it at  {}",
                    webhook.secret, webhook.how
                )
            }
            None => {
                writeln!(out, "\nWebhook      none: [api] listen is \"none\"; the branch is asked for every minute")
            }
        };
    }
}
