//! `/v1/hosts`: what sources say of the hosts of environments.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::CauseView;
use crate::model::deployment::HostState;

/// The hosts of an environment, and what each source said of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetView {
    /// Whose.
    pub project: String,
    /// Which.
    pub environment: String,
    /// What is deployed to, in the order of a rollout.
    pub hosts: Vec<FoundHost>,
    /// What a source names, or named, and why it is not deployed to; the last hundred of those that are gone.
    pub out: Vec<OutHost>,
    /// The sources, in the order written.
    pub sources: Vec<SourceView>,
    /// Where they disagree: the first hundred cases.
    pub conflicts: Vec<ConflictView>,
    /// How many cases there are.
    pub disagreements: usize,
    /// Host keys that were learnt (`ssh.host_keys = "tofu"`), of hosts and bastions.
    #[serde(default)]
    pub host_keys: Vec<HostKeyView>,
}

/// A host key that was learnt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostKeyView {
    /// The host's id, or `bastion <address>:<port>`.
    pub id: String,
    /// Its algorithm and fingerprint.
    #[schema(example = "ssh-ed25519 SHA256:2ymZ...")]
    pub key: String,
    /// When it was met.
    pub since: String,
    /// Where it was met.
    pub address: String,
}

/// A host that is deployed to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FoundHost {
    /// The provider's id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where its sshd listens.
    pub address: String,
    /// The port of its sshd.
    pub port: u16,
    /// The user to log in as, where that is said.
    pub user: Option<String>,
    /// Its failure domain.
    pub zone: Option<String>,
    /// Free facts.
    pub labels: BTreeMap<String, String>,
    /// Who names it.
    pub sources: Vec<String>,
    /// The release it has, as far as that is known.
    pub release: Option<String>,
    /// How the last deployment left it.
    #[schema(value_type = Option<String>, example = "healthy")]
    pub state: Option<HostState>,
    /// Why it is not healthy.
    pub why: Option<String>,
}

/// Whether a host could be deployed to when it was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostCheckView {
    /// Whose.
    pub project: String,
    /// Which environment.
    pub environment: String,
    /// The provider's id; absent: the hosts could not be found out.
    pub id: Option<String>,
    /// What people call it.
    pub name: Option<String>,
    /// Where its sshd listens.
    pub address: Option<String>,
    /// How long it took to log in and run nothing.
    pub took_ms: u64,
    /// Why it cannot be deployed to.
    pub cause: Option<CauseView>,
}

/// A host that is not deployed to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutHost {
    /// The provider's id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where it is or was.
    pub address: String,
    /// Who says so.
    pub source: String,
    /// `starting`, `stopped`, `terminated`, `same_address` (another is the same machine) or `not_found` (it is not named any more).
    pub code: String,
    /// One sentence.
    pub message: String,
    /// Since when, where it was deployed to before.
    pub since: Option<String>,
}

/// A source of hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SourceView {
    /// The plugin's name.
    pub name: String,
    /// Running hosts in the list that is used.
    pub hosts: usize,
    /// When it was asked last; absent = not since the daemon started.
    pub asked_at: Option<String>,
    /// How long that took.
    pub took_ms: u64,
    /// When it gave the list that is used.
    pub good_at: Option<String>,
    /// Why its newest answer is not used.
    pub error: Option<CauseView>,
    /// Since when it fails.
    pub error_since: Option<String>,
    /// What changed last.
    pub change: Option<SourceChange>,
    /// How often it is asked.
    pub interval: String,
}

/// How a source's last answer that differed did so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SourceChange {
    /// When.
    pub at: String,
    /// How many have come.
    pub came: usize,
    /// Some of them.
    pub came_ids: Vec<String>,
    /// How many do not run any more.
    pub went: usize,
    /// Some of them.
    pub went_ids: Vec<String>,
}

/// Two sources say different things of one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConflictView {
    /// Which host.
    pub host: String,
    /// What of it.
    pub field: String,
    /// What counts.
    pub used: String,
    /// Who says so.
    pub from: String,
    /// What does not.
    pub other: String,
    /// Who says that.
    pub other_from: String,
}
