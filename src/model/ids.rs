//! Names and ids, each a type of its own, each checked where it enters.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Why a text is not the id it should be.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a valid {what}: {rule}")]
pub struct IdError {
    what: &'static str,
    rule: &'static str,
    text: String,
}

fn refuse<T>(what: &'static str, rule: &'static str, text: &str) -> Result<T, IdError> {
    Err(IdError { what, rule, text: text.chars().take(80).collect() })
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Arc<str>", into = "Arc<str>")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok($name(Arc::from(text))) } else { refuse($what, $rule, text) }
            }
        }
        impl TryFrom<Arc<str>> for $name {
            type Error = IdError;
            fn try_from(text: Arc<str>) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$name> for Arc<str> {
            fn from(id: $name) -> Self {
                id.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

fn plain_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn lower_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

id!(
    /// A project: the file name of its Lua file without `.lua`.
    ProjectName, "project name", "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit", plain_name
);
id!(
    /// An environment of a project, `production`.
    EnvironmentName, "environment name", "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit", plain_name
);
id!(
    /// A test stage of a project, `unit`.
    StageName, "stage name", "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit", plain_name
);
id!(
    /// An artifact of a release, `app`.
    ArtifactName, "artifact name", "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit", plain_name
);
id!(
    /// A host, by its provider's id and never by its address.
    HostId, "host id", "1 to 255 characters, no control characters",
    |text| (1..=255).contains(&text.len()) && !text.chars().any(char::is_control)
);
id!(
    /// A run: a lower-case ULID.
    RunId, "run id", "a lower-case ULID of 26 characters",
    |text| text.len() == 26 && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()) && ulid::Ulid::from_string(text).is_ok()
);
id!(
    /// A commit: the full lower-case hash, 40 or 64 hex digits.
    Sha, "commit hash", "40 or 64 lower-case hex digits", |text| matches!(text.len(), 40 | 64) && lower_hex(text)
);
id!(
    /// A SHA-256 in lower-case hex: blobs, pinned code, step tokens.
    Digest, "sha256", "64 lower-case hex digits", |text| text.len() == 64 && lower_hex(text)
);
id!(
    /// A release: 12 hex digits of the commit, `.2` and so on for a further build.
    ReleaseId, "release id", "12 hex digits, then perhaps .2, .3 and so on",
    |text| {
        let (hex, build) = text.split_once('.').map_or((text, None), |(hex, build)| (hex, Some(build)));
        hex.len() == 12 && lower_hex(hex) && build.is_none_or(|b| b.parse::<u32>().is_ok_and(|n| n >= 2) && !b.starts_with(['0', '+']))
    }
);

impl RunId {
    /// A new id for `wall_ms`, unique by 80 random bits.
    #[must_use]
    pub fn new(wall_ms: i64, random: u128) -> Self {
        let text = ulid::Ulid::from_parts(u64::try_from(wall_ms).unwrap_or(0), random).to_string().to_ascii_lowercase();
        RunId(Arc::from(text))
    }

    /// The wall time it was made for, ms: ids are in its order.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        let ulid = ulid::Ulid::from_string(&self.0).map_or(0, |ulid| ulid.timestamp_ms());
        i64::try_from(ulid).unwrap_or(i64::MAX)
    }
}

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Digest::from_bytes(&sha2::Sha256::digest(bytes))
    }

    /// From the 32 raw bytes of a finished hasher.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(64);
        for byte in bytes {
            let _infallible = write!(text, "{byte:02x}");
        }
        Digest(Arc::from(text))
    }
}

impl ReleaseId {
    /// The first build of a commit.
    #[must_use]
    pub fn first_build(sha: &Sha) -> Self {
        ReleaseId(Arc::from(&sha.as_str()[..12]))
    }

    /// Which build of its commit it is, from 1.
    #[must_use]
    pub fn build(&self) -> u32 {
        self.0.split_once('.').and_then(|(_, n)| n.parse().ok()).unwrap_or(1)
    }

    /// The build of the same commit after this one.
    #[must_use]
    pub fn further_build(&self) -> Self {
        let commit = self.0.split('.').next().unwrap_or(&self.0);
        ReleaseId(Arc::from(format!("{commit}.{}", self.build().saturating_add(1))))
    }
}

/// One deployment: `<run>.<n>`, n counted within the run from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeploymentId {
    /// The run it belongs to.
    pub run: RunId,
    /// Its number in the run, from 1.
    pub n: u32,
}

impl FromStr for DeploymentId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parts = text.split_once('.').and_then(|(run, n)| Some((run.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((run, n)) if n > 0 => Ok(DeploymentId { run, n }),
            _ => refuse("deployment id", "it is a run's id, a dot and a number from 1", text),
        }
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.run, self.n)
    }
}

/// A record's number in its journal, from 1; never restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

/// A fencing number: max(last + 1, wall ms). Hosts refuse a lower one than they have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_hold_to_their_rules() {
        assert!("shop".parse::<ProjectName>().is_ok());
        for bad in ["", "-x", ".x", "a/b", "a b", "a\n", "é", &"x".repeat(65)] {
            assert!(bad.parse::<ProjectName>().is_err(), "{bad:?}");
        }
        assert!("a1b2c3d4e5f6.2".parse::<ReleaseId>().is_ok());
        for bad in ["a1b2c3d4e5f6.1", "a1b2c3d4e5f6.02", "a1b2c3d4e5f6.+2", "a1b2c3d4e5f6.", "A1B2C3D4E5F6", "a1b2"] {
            assert!(bad.parse::<ReleaseId>().is_err(), "{bad:?}");
        }
        let second = "a1b2c3d4e5f6".parse::<ReleaseId>().unwrap().further_build();
        assert_eq!((second.as_str(), second.build()), ("a1b2c3d4e5f6.2", 2));
        assert_eq!(second.further_build().as_str(), "a1b2c3d4e5f6.3");
        let run = RunId::new(1_700_000_000_000, 7);
        assert_eq!((run.to_string().parse(), run.wall_ms()), (Ok(run), 1_700_000_000_000));
        assert!("01ARZ3NDEKTSV4RRFFQ69G5FAV".parse::<RunId>().is_err(), "upper case is another id");
    }
}
