//! The way to a host that cannot be reached directly: bastions, one behind the other.

use serde::{Deserialize, Serialize};

use super::{host::SecretRef, host_key::HostKeys};

/// `ssh.jump`: bastions in the order of the way; none = directly, whatever the environment says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(from = "Written")]
pub struct Jump(pub Vec<Hop>);

/// One bastion. What it does not say is as for the hosts behind it, but for the port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Hop {
    /// A name or an address.
    pub address: String,
    /// 22 when absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// The user to log in as.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user: Option<String>,
    /// The secret that holds the private key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<SecretRef>,
    /// The known_hosts file to hold it against.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub known_hosts: Option<String>,
    /// By what it is known to be itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host_keys: Option<HostKeys>,
    /// Connections and handshakes through it at the same moment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_handshakes: Option<u32>,
}

/// As a project writes it, and as journals of earlier versions have it: a text, a table, or a list of these. The list comes first: serde
/// would take one for a table whose values stand in order.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Many(Vec<OneHop>),
    One(OneHop),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneHop {
    Text(String),
    Table(Hop),
}

impl From<Written> for Jump {
    fn from(written: Written) -> Self {
        let hop = |one| match one {
            OneHop::Text(text) if text == "none" => None,
            OneHop::Text(text) => Some(Hop::parse(&text).unwrap_or(Hop { address: text, ..Hop::default() })),
            OneHop::Table(hop) => Some(hop),
        };
        match written {
            Written::One(one) => Jump(hop(one).into_iter().collect()),
            Written::Many(many) => Jump(many.into_iter().filter_map(hop).collect()),
        }
    }
}

impl Hop {
    /// Reads `[user@]host[:port]`, `[address]:port` for IPv6.
    #[must_use]
    pub fn parse(text: &str) -> Option<Hop> {
        let (user, rest) = text.rsplit_once('@').map_or((None, text), |(user, rest)| (Some(user), rest));
        let (address, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (address, after) = rest.split_once(']')?;
                (address, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
            }
            None => match rest.rsplit_once(':') {
                Some((address, _)) if address.contains(':') => (rest, None),
                Some((address, port)) => (address, Some(port)),
                None => (rest, None),
            },
        };
        let port = port.map(str::parse::<u16>).transpose().ok()?;
        if address.is_empty() || user == Some("") || port == Some(0) {
            return None;
        }
        Some(Hop { address: address.to_owned(), port, user: user.map(str::to_owned), ..Hop::default() })
    }

    /// `host:port`, by which people and messages know it.
    #[must_use]
    pub fn place(&self) -> String {
        let port = self.port.unwrap_or(22);
        if self.address.contains(':') {
            format!("[{}]:{port}", self.address)
        } else {
            format!("{}:{port}", self.address)
        }
    }

    /// Its id among the hosts of its environment, for what is kept of its key.
    #[must_use]
    pub fn id(&self) -> String {
        format!("bastion {}", self.place())
    }
}

impl std::fmt::Display for Jump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let hop = |hop: &Hop| match &hop.user {
            Some(user) => format!("{user}@{}", hop.place()),
            None => hop.place(),
        };
        f.write_str(&self.0.iter().map(hop).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bastions_are_read_as_they_are_written() {
        let read = |text| Hop::parse(text).map(|hop| (hop.user.unwrap_or_default(), hop.address, hop.port));
        assert_eq!(read("b"), Some((String::new(), "b".into(), None)));
        assert_eq!(read("x@b:2222"), Some(("x".into(), "b".into(), Some(2222))));
        assert_eq!(read("x@[::1]:2222"), Some(("x".into(), "::1".into(), Some(2222))));
        assert_eq!(read("::1"), Some((String::new(), "::1".into(), None)));
        for bad in ["", "@b", "b:x", "b:99999", "b:0", "x@", "[::1", "[::1]2222"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn texts_tables_lists_and_old_journals_are_one_way() {
        let read = |text: &str| serde_json::from_str::<Jump>(text).unwrap();
        let hop = Hop { address: "b".into(), port: Some(2222), user: Some("x".into()), ..Hop::default() };
        assert_eq!(read(r#""x@b:2222""#), Jump(vec![hop.clone()]));
        assert_eq!(read(r#"{"address":"b","port":2222,"user":"x"}"#), Jump(vec![hop.clone()]));
        let two = read(r#"["x@b:2222", {"address": "::1", "key": {"$secret": "k"}}]"#);
        assert_eq!(two.to_string(), "x@b:2222, [::1]:22");
        assert_eq!(read(r#"["x@b:2222"]"#), Jump(vec![hop.clone()]));
        assert_eq!(read(r#"[{"address":"b","port":2222,"user":"x"}]"#), Jump(vec![hop]));
        assert_eq!(read(&serde_json::to_string(&two).unwrap()), two);
        assert_eq!((read(r#""none""#).0.len(), read(r#""none""#).to_string()), (0, "none".to_owned()));
        assert!(serde_json::from_str::<Jump>(r#"{"address":"b","usr":"x"}"#).is_err());
    }
}
