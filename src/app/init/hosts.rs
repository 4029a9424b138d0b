//! Whether SSH servers are who they should be, and whether hosts let us in: by the daemon's own SSH.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    ask::Asker,
    files::Files,
    project::{Address, Draft, host_check},
};
use crate::{
    engine::command::{CommandSpec, Fleeting, OutputSink, Session, Shell, ToHost, What},
    lifecycle::Tasks,
    model::{
        cause::Cause,
        host::Host,
        host_key::{HostKeys as KnownBy, Learnt, Policy, Realm},
        ids::ProjectName,
    },
    ports::{
        host_keys::HostKeys,
        link::{Link, LinkError, Links},
        outputs::Stream,
        secrets::Secrets,
    },
    ssh::{self, Met, SshLimits, SshLinks, known_hosts::Who},
    time::Clock,
};

/// Keys that forges publish, so that nobody need compare them: GitHub, "GitHub's SSH key fingerprints"; GitLab, "Instance configuration".
const PUBLISHED: &[(&str, &str)] = &[
    ("github.com", "ssh-ed25519 SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"),
    ("gitlab.com", "ssh-ed25519 SHA256:eUXGGm1YGsMAS7vkcx6JOJdOGHPem5gQp4taiCfCLB8"),
];

/// What became of a server's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// It is in the file.
    Known,
    /// It was put there now.
    Kept(String),
    /// Nobody has said that it is right.
    NotAccepted(String),
}

/// Sees to it that the file knows the key of a server, if that is agreed to.
pub(super) async fn key(
    address: &str,
    port: u16,
    known_hosts: &Path,
    accept: bool,
    asker: Asker,
    files: &mut Files,
    clock: &dyn Clock,
) -> anyhow::Result<Result<Key, LinkError>> {
    let who = Who { id: address, name: address, address, port };
    let shown = match ssh::meet(&who, known_hosts, clock).await {
        Ok(Met::Known) => return Ok(Ok(Key::Known)),
        Ok(Met::New(shown)) => shown,
        Err(error) => return Ok(Err(error)),
    };
    let published = PUBLISHED.contains(&(address, shown.fingerprint.as_str()));
    let agreed = published
        || accept
        || {
            let question = format!(
                "{address} port {port} shows the key {}\n  compare it with, on the host: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub\nIs it the host's?",
                shown.fingerprint
            );
            asker.yes(&question) == Some(true)
        };
    if !agreed {
        return Ok(Ok(Key::NotAccepted(shown.fingerprint)));
    }
    files.append(known_hosts, &shown.line)?;
    let by = if published { ", which is the one it publishes" } else { "" };
    Ok(Ok(Key::Kept(format!("{}{by}", shown.fingerprint))))
}

/// Whether what `known_hosts` says of a host's key is all that counts when it is logged in to.
pub(super) fn is_pinned(host: &Host, known_hosts: &Path) -> bool {
    let here = host.ssh.known_hosts.as_ref().is_some_and(|file| Path::new(file) == known_hosts);
    let pinned = matches!(host.ssh.host_keys, None | Some(KnownBy::Policy(Policy::Pin)));
    here && pinned && host.ssh.jump.is_none()
}

/// How a host is found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct State {
    /// Its id: its address, with its port where that is not 22, unless the project calls it otherwise.
    pub host: String,
    /// Where it is.
    #[serde(skip)]
    pub address: Address,
    /// The host key that was kept now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// Why it cannot be deployed to yet; empty when it can.
    pub missing: Vec<Cause>,
}

impl State {
    /// Nothing is missing yet.
    pub fn of(host: &Host) -> State {
        State { host: host.id.to_string(), address: Address::of(host), host_key: None, missing: Vec::new() }
    }

    /// Whether it lacks what the script for hosts makes.
    pub fn unprepared(&self) -> bool {
        self.missing.iter().any(|cause| matches!(cause.code.as_str(), "auth_failed" | "directory" | "sudo"))
    }
}

/// Remembers nothing: the file is all there is.
struct NoneLearnt;

#[async_trait]
impl HostKeys for NoneLearnt {
    async fn known(&self, _: &Realm, _: &str) -> Result<Option<Learnt>, Cause> {
        Ok(None)
    }
    async fn learn(&self, _: &Realm, _: &str, key: Learnt) -> Result<Learnt, Cause> {
        Ok(key)
    }
}

struct BySsh(SshLinks);

#[async_trait]
impl Links for BySsh {
    async fn local(&self, _: &ProjectName) -> Result<Arc<dyn Link>, LinkError> {
        Err(LinkError::new("job_user", "this is not done here"))
    }
    async fn host(&self, realm: &Realm, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        self.0.connect(realm, host).await
    }
}

#[derive(Default)]
struct Said(String);

#[async_trait]
impl OutputSink for Said {
    async fn output(&mut self, _: Stream, _: u64, bytes: &[u8]) {
        self.0.push_str(&String::from_utf8_lossy(bytes));
    }
}

/// Logs in, and looks whether a deployment would find what it needs there, where it is known what that is.
pub(super) async fn look(
    host: &Host,
    needs: Option<&Draft>,
    realm: &Realm,
    secrets: &Arc<dyn Secrets>,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> Vec<Cause> {
    let limits = SshLimits { sessions: 16, handshakes: 16 };
    let links = SshLinks::new(Arc::clone(secrets), Arc::new(NoneLearnt), Arc::clone(clock), tasks.clone(), limits);
    let connect = ToHost { links: Arc::new(BySsh(links)), realm: Some(realm.clone()), host: host.clone() };
    let session = Session::new(Arc::new(connect), Arc::clone(clock), Arc::new(Fleeting));
    if let Err(error) = session.link().await {
        return vec![error.cause];
    }
    let mut random = [0; 16];
    if let Err(error) = getrandom::fill(&mut random) {
        return vec![Cause::new("internal", format!("no random numbers: {error}"))];
    }
    let text = needs.map_or_else(|| "true\n".to_owned(), host_check);
    let what = What::Sh { text: text.into_bytes(), shell: Shell::Sh };
    let mut spec = CommandSpec::passing(u128::from_le_bytes(random), what, Duration::from_secs(20));
    spec.reconnect = Duration::from_secs(5);
    let mut said = Said::default();
    let verdict = session.run(&spec, &mut said, &CancellationToken::new()).await;
    session.close().await;
    if let Some(cause) = verdict.cause(host.id.as_str(), spec.timeout) {
        return vec![cause];
    }
    let Some(draft) = needs else { return Vec::new() };
    said.0.lines().filter_map(|line| missing(draft, line)).collect()
}

fn missing(draft: &Draft, line: &str) -> Option<Cause> {
    let unit = draft.service.clone().unwrap_or_default();
    let message = match line {
        "directory" => format!("{} is not there, or {} may not write it", draft.dir, draft.user),
        "sudo" => format!("{} may not restart {unit} by sudo", draft.user),
        "unit" => format!("there is no systemd unit {unit} yet; what it runs will be in {}/current", draft.dir),
        _ => return None,
    };
    Some(Cause::new(line, message))
}
