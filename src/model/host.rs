//! A deploy target and how to reach it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{host_key::HostKeys, ids::HostId, jump::Jump, signal::PublicKey};

/// A host as discovery gave it, `ssh` of its environment already merged in (the host's own values win).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The provider's id; the identity of the host.
    pub id: HostId,
    /// What people call it; its place in the order of a rollout.
    pub name: String,
    /// Where its sshd listens: a name or an address.
    pub address: String,
    /// Free facts of discovery, shown to Lua.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its failure domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// How to get in.
    pub ssh: Ssh,
    /// How it is reached; an environment may say it for all of its hosts.
    #[serde(default, skip_serializing_if = "Transport::is_ssh")]
    pub transport: Transport,
    /// The public key of its own daemon, where that is reached by signals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver_key: Option<PublicKey>,
    /// What its source says of it; only a running one is deployed to.
    #[serde(default, skip_serializing_if = "Presence::is_running")]
    pub state: Presence,
    /// Why it is in that state, in its source's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Host {
    /// A running host of which no more is known than this; its name is its id.
    #[must_use]
    pub fn at(id: HostId, address: String) -> Self {
        Host {
            name: id.to_string(),
            id,
            address,
            labels: BTreeMap::new(),
            zone: None,
            ssh: Ssh::default(),
            transport: Transport::Ssh,
            receiver_key: None,
            state: Presence::Running,
            reason: None,
        }
    }
}

/// How a host is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// By SSH.
    #[default]
    Ssh,
    /// It is the daemon's own machine; its commands run as the project's job user.
    Local,
    /// By signals to a daemon of its own.
    Signal(Box<Signalling>),
}

impl Transport {
    fn is_ssh(&self) -> bool {
        *self == Transport::Ssh
    }
}

/// `signal` of an environment: how the daemons of its hosts are spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signalling {
    /// The secret that holds the private key which signs.
    pub key: SecretRef,
    /// A file with the public keys of the receivers, `<host id> ssh-ed25519 AAAA...` a line; a host's own key wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receivers: Option<String>,
    /// Where the daemons listen, unless a host has a `port` of its own.
    pub port: u16,
    /// By https, where a proxy in front of them speaks it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
}

/// `state` of a host, as its source says it; a worse one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// It is there; what a source that says nothing means.
    #[default]
    Running,
    /// It is coming.
    Starting,
    /// It is there and off, or on its way to that.
    Stopped,
    /// It will never come back.
    Terminated,
}

impl Presence {
    /// The words, in the order of a machine's life.
    pub const WORDS: &[&str] = &["starting", "running", "stopped", "terminated"];

    /// Whether it is deployed to.
    #[must_use]
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde calls it so
    pub fn is_running(&self) -> bool {
        *self == Presence::Running
    }

    /// Whether its source says that it is off or gone, as against not here yet.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Presence::Stopped | Presence::Terminated)
    }

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Presence::Running => "running",
            Presence::Starting => "starting",
            Presence::Stopped => "stopped",
            Presence::Terminated => "terminated",
        }
    }
}

/// How to reach a host by SSH. Times are milliseconds, so that a record is plain numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Ssh {
    /// The user to log in as; the daemon's own user name when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// 22 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The secret that holds the private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretRef>,
    /// The known_hosts file to hold the host against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<String>,
    /// By what a host is known to be itself; `pin` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_keys: Option<HostKeys>,
    /// Bastions on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jump: Option<Jump>,
    /// TCP, key exchange and authentication together; 10 s when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<u64>,
    /// `PATH` of commands on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Where the command protocol keeps its files on the host; `/var/tmp/phased-<uid>` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Sessions to hosts of the environment at the same moment; no limit of its own when absent. An environment's, never a host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<u32>,
}

impl Ssh {
    /// `self` with what `own` says instead, value by value.
    #[must_use]
    pub fn overlaid(&self, own: &Ssh) -> Ssh {
        let (own, base) = (own.clone(), self.clone());
        Ssh {
            user: own.user.or(base.user),
            port: own.port.or(base.port),
            key: own.key.or(base.key),
            known_hosts: own.known_hosts.or(base.known_hosts),
            host_keys: own.host_keys.or(base.host_keys),
            jump: own.jump.or(base.jump),
            connect_timeout_ms: own.connect_timeout_ms.or(base.connect_timeout_ms),
            path: own.path.or(base.path),
            base: own.base.or(base.base),
            max_sessions: own.max_sessions.or(base.max_sessions),
        }
    }

    /// `self`, an environment's, under a host's `own`. Keys of the host are not its bastions': how those are known is as for the environment.
    #[must_use]
    pub fn of_host(&self, own: &Ssh) -> Ssh {
        let mut ssh = self.overlaid(own);
        let hops = ssh.jump.iter_mut().flat_map(|jump| &mut jump.0);
        if let (Some(HostKeys::Given(_)), Some(usual @ HostKeys::Policy(_))) = (&ssh.host_keys, &self.host_keys) {
            hops.for_each(|hop| hop.host_keys = hop.host_keys.take().or_else(|| Some(usual.clone())));
        }
        ssh
    }
}

/// A secret by name, never by value: `{"$secret": "deploy_key"}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    /// The name under the secrets directory; may contain `/`.
    #[serde(rename = "$secret")]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{host_key::Policy, jump::Hop};

    #[test]
    fn keys_of_a_host_do_not_take_the_policy_of_its_environment_from_its_bastions() {
        let (tofu, given) = (HostKeys::Policy(Policy::Tofu), HostKeys::Given(vec!["SHA256:x".to_owned()]));
        let hop = |keys: Option<&HostKeys>| Hop { host_keys: keys.cloned(), ..Hop::parse("b").unwrap() };
        let jump = Some(Jump(vec![hop(None), hop(Some(&given))]));
        let environment = Ssh { host_keys: Some(tofu.clone()), jump, ..Ssh::default() };
        let console = Ssh { host_keys: Some(given.clone()), ..Ssh::default() };
        let ssh = environment.of_host(&console);
        assert_eq!(
            (ssh.host_keys, ssh.jump),
            (Some(given.clone()), Some(Jump(vec![hop(Some(&tofu)), hop(Some(&given))])))
        );
        // Without keys of its own there is nothing to fill in.
        assert_eq!(environment.of_host(&Ssh::default()).jump, environment.jump);
    }
}
