//! Public keys, as `ssh-keygen` writes them: `ssh-ed25519 AAAA... comment`.

use std::{fmt, str::FromStr};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use serde::{Deserialize, Serialize};

const KIND: &[u8] = b"ssh-ed25519";

/// An Ed25519 public key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey {
    bytes: [u8; 32],
    comment: String,
}

/// Why a text is no such key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no public key: {why}; one line as `phased keys show` prints it: ssh-ed25519 AAAA... comment")]
pub struct KeyError {
    text: String,
    why: String,
}

impl KeyError {
    /// Why, without the text.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}

impl PublicKey {
    /// Of its 32 bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32], comment: &str) -> Self {
        PublicKey { bytes, comment: comment.to_owned() }
    }

    /// Its bytes, without the words about it.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Whose it is, in the words of whoever made it; empty when nothing is said.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// `SHA256:...` as OpenSSH shows it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        use sha2::Digest as _;
        format!("SHA256:{}", STANDARD_NO_PAD.encode(sha2::Sha256::digest(self.blob())))
    }

    /// What people call it: its comment, else its fingerprint.
    #[must_use]
    pub fn name(&self) -> String {
        if self.comment.is_empty() { self.fingerprint() } else { self.comment.clone() }
    }

    fn blob(&self) -> Vec<u8> {
        let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes(), bytes].concat();
        [field(KIND), field(&self.bytes)].concat()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ssh-ed25519 {}", STANDARD.encode(self.blob()))?;
        if self.comment.is_empty() { Ok(()) } else { write!(f, " {}", self.comment) }
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let wrong = |why: &str| KeyError { text: text.chars().take(120).collect(), why: why.to_owned() };
        let mut words = text.split_ascii_whitespace();
        match words.next() {
            Some("ssh-ed25519") => {}
            Some(kind) if kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-") => {
                return Err(wrong(&format!("it is of the type {kind}, and signals use ssh-ed25519 only")));
            }
            Some(first) if first.contains("PRIVATE") || first.starts_with("-----") => {
                return Err(wrong("this is a private key: keep it secret, and give its public half"));
            }
            _ => return Err(wrong("it does not begin with ssh-ed25519")),
        }
        let encoded = words.next().ok_or_else(|| wrong("its second word is missing"))?;
        let blob = STANDARD.decode(encoded).map_err(|_| wrong("its second word is no base64"))?;
        let bytes: [u8; 32] =
            blob.get(blob.len().saturating_sub(32)..).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        let key = PublicKey { bytes, comment: words.collect::<Vec<_>>().join(" ") };
        if key.blob() != blob {
            return Err(wrong("its second word is no Ed25519 key"));
        }
        if text.chars().any(char::is_control) {
            return Err(wrong("it is more than one line"));
        }
        Ok(key)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        text.trim_end_matches('\n').parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `ssh-keygen -t ed25519 -C integration`.
    const LINE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1GqVbPJnXxvLkkmNxwLOQ0DwA0nDxG3P7k1d3v2u1H integration one";

    #[test]
    fn a_line_of_openssh_is_read_and_written_again() {
        let key: PublicKey = LINE.parse().unwrap();
        assert_eq!((key.to_string().as_str(), key.comment()), (LINE, "integration one"));
        assert!(key.fingerprint().starts_with("SHA256:") && key.fingerprint().len() == 50, "{}", key.fingerprint());
        assert_eq!(PublicKey::new(*key.bytes(), "").name(), key.fingerprint());
    }

    #[test]
    fn what_is_no_such_key_says_why() {
        let cut = &LINE[..40];
        for (text, why) in [
            ("", "does not begin"),
            ("hello", "does not begin"),
            ("ssh-ed25519", "second word is missing"),
            ("ssh-ed25519 !!!!", "no base64"),
            ("ssh-ed25519 AAAA", "no Ed25519 key"),
            (cut, "no "),
            ("ssh-rsa AAAAB3NzaC1yc2E=", "ssh-ed25519 only"),
            ("-----BEGIN PRIVATE KEY-----", "keep it secret"),
            (&format!("{LINE}\n{LINE}"), "more than one line"),
        ] {
            let error = text.parse::<PublicKey>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
