//! What ships: a project at one commit.

use serde::{Deserialize, Serialize};

use super::ids::{ArtifactName, Digest, ReleaseId, Sha};

/// A commit as git tells it. Every text is the author's and hostile until escaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The full hash.
    pub sha: Sha,
    /// The hash of its tree: two commits with one tree are the same bytes.
    pub tree: Sha,
    /// `Name <mail>`.
    pub author: String,
    /// The whole message.
    pub message: String,
    /// Committer time, milliseconds since the epoch.
    pub committed_at_ms: i64,
}

/// The immutable thing that ships.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// 12 hex of the commit, `.2` for a further build.
    pub id: ReleaseId,
    /// Its commit.
    pub commit: Commit,
    /// The branch it came by.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub branch: Option<String>,
    /// The tag it came by.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tag: Option<String>,
    /// What its first green run stored: the same bytes for every environment, re-run and rollback. While its tests still run, what they
    /// have stored so far.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub artifacts: Vec<Artifact>,
}

impl Release {
    /// Its artifact of this name.
    #[must_use]
    pub fn artifact(&self, name: &ArtifactName) -> Option<&Artifact> {
        self.artifacts.iter().find(|artifact| artifact.name == *name)
    }
}

/// The most artifacts a release can have: all of them go wherever the release is named.
pub const MOST_ARTIFACTS: usize = 16;

/// Something that a test stage made, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// What the pipeline calls it.
    pub name: ArtifactName,
    /// What it is.
    #[serde(flatten)]
    pub content: Content,
}

/// What an artifact is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Content {
    /// A directory tree as a tar archive, the same bytes for the same tree.
    Tree {
        /// Of the archive.
        sha256: Digest,
        /// Of the archive, bytes.
        size: u64,
        /// The blob it lies in, compressed.
        blob: Digest,
    },
    /// A file.
    File {
        /// Of its bytes, and the blob they lie in.
        sha256: Digest,
        /// Bytes.
        size: u64,
    },
    /// A value: an image's digest.
    Value {
        /// As the pipeline gave it.
        value: String,
    },
}

impl Content {
    /// The blob that must be there for it.
    #[must_use]
    pub fn blob(&self) -> Option<&Digest> {
        match self {
            Content::Tree { blob, .. } => Some(blob),
            Content::File { sha256, .. } => Some(sha256),
            Content::Value { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_are_golden() {
        let digest = Digest::of(b"");
        let of = |name: &str, content| Artifact { name: name.parse().unwrap(), content };
        let all = [
            of("app", Content::Tree { sha256: digest.clone(), size: 5, blob: digest.clone() }),
            of("app.deb", Content::File { sha256: digest.clone(), size: 0 }),
            of("image", Content::Value { value: "sha256:ab".into() }),
        ];
        let written = [
            format!(r#"{{"name":"app","kind":"tree","sha256":"{digest}","size":5,"blob":"{digest}"}}"#),
            format!(r#"{{"name":"app.deb","kind":"file","sha256":"{digest}","size":0}}"#),
            r#"{"name":"image","kind":"value","value":"sha256:ab"}"#.to_owned(),
        ];
        for (artifact, text) in all.iter().zip(written) {
            assert_eq!(serde_json::to_string(artifact).unwrap(), text);
            assert_eq!(serde_json::from_str::<Artifact>(&text).unwrap(), *artifact);
        }
        assert_eq!(all.map(|a| a.content.blob().is_some()), [true, true, false]);
    }
}
