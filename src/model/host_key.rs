//! By what a host is known to be itself: keys given beforehand, an authority, or the first key it ever showed. Always the host's, which is its
//! id in its environment, never that of the address it has today.

use serde::{Deserialize, Serialize};

use super::{
    ids::{EnvironmentName, ProjectName},
    step::encode,
};

/// `host_keys`: a policy, or the keys themselves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HostKeys {
    /// `"pin"`, `"ca"`, `"tofu"`.
    Policy(Policy),
    /// `"SHA256:..."` or `"ssh-ed25519 AAAA..."`, any of them.
    Given(Vec<String>),
}

/// Whom to believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The keys in known_hosts.
    #[default]
    Pin,
    /// Certificates of the authorities in known_hosts, and nothing else.
    Ca,
    /// Trust on first use: the first key that an id shows is its key.
    Tofu,
}

impl Policy {
    /// The words, the usual one first.
    pub const WORDS: &[&str] = &["pin", "ca", "tofu"];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::Pin => "pin",
            Policy::Ca => "ca",
            Policy::Tofu => "tofu",
        }
    }
}

impl std::fmt::Display for HostKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HostKeys::Policy(policy) => f.write_str(policy.as_str()),
            HostKeys::Given(keys) => f.write_str(&keys.join(", ")),
        }
    }
}

/// Which environment of which project a host is one of: within it an id is one host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Realm {
    /// The project.
    pub project: ProjectName,
    /// Its environment.
    pub environment: EnvironmentName,
}

impl Realm {
    /// Shorthand.
    #[must_use]
    pub fn new(project: &ProjectName, environment: &EnvironmentName) -> Self {
        Realm { project: project.clone(), environment: environment.clone() }
    }

    /// Where control keeps the key of the host called `id`; the beginning of all of them for `""`.
    #[must_use]
    pub fn host_key(&self, id: &str) -> String {
        format!("{HOST_KEYS}{}/{}/{}", self.project, self.environment, encode(id))
    }
}

impl std::fmt::Display for Realm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.project, self.environment)
    }
}

/// What the keys of learnt host keys begin with in control.
pub const HOST_KEYS: &str = "host_key/";

/// The key that a host showed when it was first met, in control under [`Realm::host_key`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learnt {
    /// `ssh-ed25519 AAAA...`.
    pub key: String,
    /// `SHA256:...`, for people.
    pub fingerprint: String,
    /// Where it was then, for people.
    pub address: String,
    /// Wall time, ms.
    pub at_ms: i64,
    /// Since when no source names the host, as far as that is known for sure; wall time, ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unnamed_since_ms: Option<i64>,
}

impl Learnt {
    /// For people: `ssh-ed25519 SHA256:...`.
    #[must_use]
    pub fn shown(&self) -> String {
        format!("{} {}", self.key.split(' ').next().unwrap_or_default(), self.fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_a_word_and_keys_are_a_list() {
        for (text, read) in [
            (r#""tofu""#, HostKeys::Policy(Policy::Tofu)),
            (r#"["SHA256:x"]"#, HostKeys::Given(vec!["SHA256:x".to_owned()])),
        ] {
            assert_eq!(serde_json::from_str::<HostKeys>(text).unwrap(), read);
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        assert!(serde_json::from_str::<HostKeys>(r#""trust""#).is_err());
    }

    #[test]
    fn ids_cannot_be_taken_for_others() {
        let realm = Realm { project: "shop".parse().unwrap(), environment: "production".parse().unwrap() };
        assert_eq!(realm.host_key("i-1/x y"), "host_key/shop/production/i-1%2Fx%20y");
    }
}
