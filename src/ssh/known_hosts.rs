//! known_hosts files, read strictly (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
//!
//! Exact names, hashed names, `*` and `?`, `!`, `[host]:port`, `@revoked` and `@cert-authority`. Anything known for a host and no
//! exact match is a changed key, whatever its algorithm; a line that cannot be read is an error and not a line less.

use std::{path::Path, sync::Arc};

use base64::Engine as _;
use hmac::{KeyInit as _, Mac as _};
use russh::keys::{Algorithm, HashAlg, PublicKey, ssh_key::public::KeyData};

use crate::ports::link::LinkError;

/// More than this is no known_hosts file.
const MAX_FILE: u64 = 16 << 20;

/// What a file knows of one host.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// For messages: `[127.0.0.1]:2222 in /etc/phased/known_hosts`.
    place: Arc<str>,
    name: Arc<str>,
    keys: Vec<KeyData>,
    revoked: Vec<KeyData>,
    authority: bool,
}

/// The name a host has in the file: `host`, or `[host]:port` where the port is not 22. Lower case.
#[must_use]
pub fn name(address: &str, port: u16) -> String {
    let address = address.to_ascii_lowercase();
    if port == 22 { address } else { format!("[{address}]:{port}") }
}

/// Reads what `path` knows of the host at `address` and `port`. Blocks on the disk.
///
/// # Errors
/// `host_key_unknown` when the file cannot be read or a line of it cannot.
pub fn read(path: &Path, address: &str, port: u16) -> Result<Known, LinkError> {
    let unreadable = |why: String| {
        LinkError::new("host_key_unknown", format!("the known_hosts file {} cannot be used: {why}", path.display()))
    };
    let size = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?.len();
    if size > MAX_FILE {
        return Err(unreadable(format!("it has {size} bytes")));
    }
    let text = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
    let name = name(address, port);
    let mut known = parse(&String::from_utf8_lossy(&text), &name)
        .map_err(|(line, why)| unreadable(format!("line {line}: {why}")))?;
    known.place = Arc::from(path.display().to_string());
    Ok(known)
}

/// What `text` knows of `name`.
///
/// # Errors
/// The first line (from 1) that cannot be read, and why.
pub fn parse(text: &str, name: &str) -> Result<Known, (usize, &'static str)> {
    let mut known = Known { name: Arc::from(name), ..Known::default() };
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |why| (i + 1, why);
        let mut fields = line.split_ascii_whitespace().peekable();
        let marker = fields.next_if(|field| field.starts_with('@'));
        let (Some(patterns), Some(algorithm), Some(blob)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(bad("it is not \"names algorithm key\""));
        };
        if !matches!(marker, None | Some("@revoked" | "@cert-authority")) {
            return Err(bad("its marker is neither @revoked nor @cert-authority"));
        }
        if !matches(patterns, name).map_err(bad)? {
            continue;
        }
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(blob)
            .or_else(|_| base64::engine::general_purpose::STANDARD_NO_PAD.decode(blob))
            .map_err(|_| bad("its key is not base64"))?;
        let key = match PublicKey::from_bytes(&bytes) {
            Ok(key) if usable(&key.algorithm()) => key.key_data().clone(),
            // A kind of key this client cannot use (DSA, security keys): the server will be asked for another.
            Ok(_) => continue,
            Err(_) if supported(algorithm) => return Err(bad("its key cannot be read")),
            Err(_) => continue,
        };
        match marker {
            Some("@revoked") => known.revoked.push(key),
            Some(_) => known.authority = true,
            None => known.keys.push(key),
        }
    }
    Ok(known)
}

fn supported(algorithm: &str) -> bool {
    matches!(algorithm, "ssh-ed25519" | "ssh-rsa") || algorithm.starts_with("ecdsa-sha2-nistp")
}

fn usable(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. })
}

/// Whether a list of patterns names `name`: one that matches, and no `!` one that does.
fn matches(patterns: &str, name: &str) -> Result<bool, &'static str> {
    if let Some(hashed) = patterns.strip_prefix("|1|") {
        let (salt, hash) = hashed.split_once('|').ok_or("its hashed name is cut")?;
        let decode = |part| base64::engine::general_purpose::STANDARD.decode(part);
        let (Ok(salt), Ok(hash)) = (decode(salt), decode(hash)) else { return Err("its hashed name is not base64") };
        let mut mac = hmac::Hmac::<sha1::Sha1>::new_from_slice(&salt).map_err(|_| "its salt is empty")?;
        mac.update(name.as_bytes());
        return Ok(mac.verify_slice(&hash).is_ok());
    }
    if patterns.starts_with('|') {
        return Err("its name is hashed in an unknown way");
    }
    let mut found = false;
    for pattern in patterns.split(',') {
        let (pattern, not) = pattern.strip_prefix('!').map_or((pattern, false), |rest| (rest, true));
        if wildcard(pattern.to_ascii_lowercase().as_bytes(), name.as_bytes()) {
            if not {
                return Ok(false);
            }
            found = true;
        }
    }
    Ok(found)
}

/// `*` is any run of characters, `?` one. Linear: only the last `*` is ever gone back to.
fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((star_p, star_t)) => {
                    star = Some((star_p, star_t + 1));
                    p = star_p + 1;
                    t = star_t + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

impl Known {
    /// The host-key algorithms to offer: those of the known keys, so that the server shows the key we can check. All of them when
    /// none is known, so that the refusal can show the key.
    #[must_use]
    pub fn algorithms(&self) -> Vec<Algorithm> {
        let rsa = [HashAlg::Sha512, HashAlg::Sha256].map(|hash| Algorithm::Rsa { hash: Some(hash) });
        let mut offered = Vec::new();
        let ecdsa =
            [russh::keys::EcdsaCurve::NistP256, russh::keys::EcdsaCurve::NistP384, russh::keys::EcdsaCurve::NistP521]
                .map(|curve| Algorithm::Ecdsa { curve });
        for algorithm in std::iter::once(Algorithm::Ed25519).chain(ecdsa) {
            if self.keys.is_empty() || self.keys.iter().any(|key| key.algorithm() == algorithm) {
                offered.push(algorithm);
            }
        }
        if self.keys.is_empty() || self.keys.iter().any(|key| matches!(key.algorithm(), Algorithm::Rsa { .. })) {
            offered.extend(rsa);
        }
        offered
    }

    /// Whether the server's key is this host's.
    ///
    /// # Errors
    /// `host_key_revoked`, `host_key_changed`, `host_key_unknown`.
    pub fn check(&self, key: &PublicKey) -> Result<(), LinkError> {
        let (name, place) = (&self.name, &self.place);
        let shown = format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256));
        if self.revoked.contains(key.key_data()) {
            return Err(LinkError::new(
                "host_key_revoked",
                format!(
                    "{name} shows a key that {place} has revoked ({shown}): do not trust this host before you know why"
                ),
            ));
        }
        if self.keys.contains(key.key_data()) {
            return Ok(());
        }
        if !self.keys.is_empty() {
            return Err(self.changed(&format!("it shows {shown}")));
        }
        let why = if self.authority { ", and host certificates (@cert-authority) cannot be checked" } else { "" };
        let line = key.to_openssh().unwrap_or_default();
        Err(LinkError::new(
            "host_key_unknown",
            format!(
                "{place} knows no key of {name}{why}. It shows {shown}. Compare that with the host's own, then add this line to the \
                 file: {name} {}",
                line.split(' ').take(2).collect::<Vec<_>>().join(" ")
            ),
        ))
    }

    /// The error for a server that does not show any key that is known.
    #[must_use]
    pub fn changed(&self, how: &str) -> LinkError {
        let (name, place) = (&self.name, &self.place);
        LinkError::new(
            "host_key_changed",
            format!(
                "the key of {name} is not the one in {place} ({how}): somebody may be listening in, or the host was installed anew. \
                 If it was, replace its line in the file"
            ),
        )
    }

    /// Whether nothing at all is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X";
    const E: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    fn verdict(file: &str, name: &str, shown: &str) -> Result<(), String> {
        parse(file, name).unwrap().check(&key(shown)).map_err(|e| e.cause.code)
    }

    #[test]
    fn exact_names_ports_and_lists() {
        let file = format!("# comment\n\nweb-1,10.0.0.1 {A} me@here\n[web-1]:2222 {B}\n");
        assert_eq!(verdict(&file, &name("WEB-1", 22), A), Ok(()));
        assert_eq!(verdict(&file, &name("10.0.0.1", 22), A), Ok(()));
        assert_eq!(verdict(&file, &name("web-1", 2222), B), Ok(()));
        assert_eq!(verdict(&file, &name("web-1", 2222), A), Err("host_key_changed".into()));
        assert_eq!(verdict(&file, &name("web-2", 22), A), Err("host_key_unknown".into()));
    }

    #[test]
    fn wildcards_and_negation() {
        let file = format!("*.example.com,!evil.example.com,web-? {A}");
        for (host, good) in [
            ("a.example.com", true),
            ("a.b.example.com", true),
            ("evil.example.com", false),
            ("web-1", true),
            ("web-10", false),
            ("example.com", false),
        ] {
            assert_eq!(verdict(&file, host, A).is_ok(), good, "{host}");
        }
        assert!(!wildcard(b"*a*a*a*a*a*a*a*a*b", &[b'a'; 2000]));
        assert_eq!(verdict(&format!("* {A}"), "[127.0.0.1]:2222", A), Ok(()));
    }

    #[test]
    fn hashed_names() {
        // ssh-keygen -H of "web-1".
        let salt = base64::engine::general_purpose::STANDARD.encode([7; 20]);
        let mut mac = hmac::Hmac::<sha1::Sha1>::new_from_slice(&[7; 20]).unwrap();
        mac.update(b"web-1");
        let hash = base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes());
        let file = format!("|1|{salt}|{hash} {A}");
        assert_eq!(verdict(&file, "web-1", A), Ok(()));
        assert_eq!(verdict(&file, "web-2", A), Err("host_key_unknown".into()));
    }

    #[test]
    fn another_algorithm_is_a_changed_key_and_only_known_ones_are_offered() {
        let file = format!("web-1 {A}");
        assert_eq!(verdict(&file, "web-1", E), Err("host_key_changed".into()));
        assert_eq!(parse(&file, "web-1").unwrap().algorithms(), [Algorithm::Ed25519]);
        assert_eq!(parse(&file, "web-2").unwrap().algorithms().len(), 6);
    }

    #[test]
    fn revoked_wins_over_known() {
        let file = format!("web-1 {A}\n@revoked * {A}\nweb-1 {B}");
        assert_eq!(verdict(&file, "web-1", A), Err("host_key_revoked".into()));
        assert_eq!(verdict(&file, "web-1", B), Ok(()));
    }

    #[test]
    fn an_authority_is_no_key() {
        let error =
            parse(&format!("@cert-authority *.example.com {A}"), "a.example.com").unwrap().check(&key(A)).unwrap_err();
        assert_eq!(error.cause.code, "host_key_unknown");
        assert!(error.cause.message.contains("certificates"), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for bad in [
            "web-1".to_owned(),
            "web-1 ssh-ed25519".to_owned(),
            "web-1 ssh-ed25519 !!!".to_owned(),
            "web-1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5".to_owned(),
            format!("@other web-1 {A}"),
            format!("|1|short {A}"),
            format!("|2|x|y {A}"),
        ] {
            assert_eq!(parse(&bad, "web-1").unwrap_err().0, 1, "{bad}");
        }
        assert!(read(Path::new("/does/not/exist"), "a", 22).is_err());
        // Another kind of key is no error, and no key either.
        assert!(parse("web-1 sk-ssh-ed25519@openssh.com AAAA", "web-1").unwrap().is_empty());
    }
}
