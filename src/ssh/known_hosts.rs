//! known_hosts files, read strictly (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
//!
//! Exact names, hashed names, `*` and `?`, `!`, `[host]:port`, `@revoked` and `@cert-authority`. Anything known for a host and no
//! exact match is a changed key, whatever its algorithm; a line that cannot be read is an error and not a line less.
//!
//! A line may name a host by its id, as ssh's `HostKeyAlias` does: then only such lines count, whatever address it has.

use std::{path::Path, sync::Arc};

use base64::Engine as _;
use hmac::{KeyInit as _, Mac as _};
use russh::keys::{Algorithm, HashAlg, PublicKey, ssh_key::public::KeyData};

use crate::ports::link::LinkError;

/// More than this is no known_hosts file.
const MAX_FILE: u64 = 16 << 20;

/// Who a host is: what lines of a file and certificates may call it.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// Its id.
    pub id: &'a str,
    /// What people call it.
    pub name: &'a str,
    /// Where it is.
    pub address: &'a str,
    /// The port of its sshd.
    pub port: u16,
}

/// What a file knows of one host.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The file, for messages.
    place: Arc<str>,
    /// What the host is called there.
    name: Arc<str>,
    keys: Vec<KeyData>,
    /// Whether the keys are those of its id, and not only of the address it has today.
    names_id: bool,
    revoked: Vec<KeyData>,
    /// Authorities whose certificates are good for it.
    authorities: Vec<KeyData>,
}

/// The name a host has in the file: `host`, or `[host]:port` where the port is not 22. Lower case.
#[must_use]
pub fn name(address: &str, port: u16) -> String {
    let address = address.to_ascii_lowercase();
    if port == 22 { address } else { format!("[{address}]:{port}") }
}

/// Reads what `path` knows of the host. Blocks on the disk.
///
/// # Errors
/// `host_key_unknown` when the file cannot be read or a line of it cannot.
pub fn read(path: &Path, who: &Who<'_>) -> Result<Known, LinkError> {
    let unreadable = |why: String| {
        LinkError::new("host_key_unknown", format!("the known_hosts file {} cannot be used: {why}", path.display()))
    };
    let size = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?.len();
    if size > MAX_FILE {
        return Err(unreadable(format!("it has {size} bytes")));
    }
    let text = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
    let mut known =
        parse(&String::from_utf8_lossy(&text), who).map_err(|(line, why)| unreadable(format!("line {line}: {why}")))?;
    known.place = Arc::from(path.display().to_string());
    Ok(known)
}

/// What `text` knows of the host.
///
/// # Errors
/// The first line (from 1) that cannot be read, and why.
pub fn parse(text: &str, who: &Who<'_>) -> Result<Known, (usize, &'static str)> {
    let name = name(who.address, who.port);
    // An id that is the address says nothing of the port.
    let id = Some(who.id.to_ascii_lowercase()).filter(|id| *id != who.address.to_ascii_lowercase());
    let plain = [Some(who.address), id.as_deref(), Some(who.name)].into_iter().flatten();
    let all_names: Vec<String> =
        plain.flat_map(|plain| [plain.to_ascii_lowercase(), self::name(plain, who.port)]).collect();
    let by_all_names =
        |patterns: &str| all_names.iter().map(|name| hit(patterns, name)).collect::<Result<Vec<_>, &'static str>>();
    let mut known = Known { name: Arc::from(name.as_str()), ..Known::default() };
    let mut by_id = Vec::new();
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
        let (named, names_id) = match marker {
            None => {
                let names_id = id.as_deref().map_or(Ok(false), |id| names(patterns, id)).map_err(bad)?;
                (names_id || matches(patterns, &name).map_err(bad)?, names_id)
            }
            // Whatever may be meant by a name: more is revoked.
            Some("@revoked") => (by_all_names(patterns).map_err(bad)?.contains(&Hit::In), false),
            // And a host that is taken out by one of its names is not let in by another.
            Some("@cert-authority") => {
                let hits = by_all_names(patterns).map_err(bad)?;
                (hits.contains(&Hit::In) && !hits.contains(&Hit::Out), false)
            }
            Some(_) => return Err(bad("its marker is neither @revoked nor @cert-authority")),
        };
        if !named {
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
            Some(_) => known.authorities.push(key),
            None if names_id => by_id.push(key),
            None => known.keys.push(key),
        }
    }
    known.names_id = match id {
        Some(id) if !by_id.is_empty() => {
            (known.keys, known.name) = (by_id, Arc::from(id));
            true
        }
        Some(_) => false,
        None => !known.keys.is_empty(),
    };
    Ok(known)
}

/// Whether a list of patterns has exactly this name in it, and nothing that takes it out again.
fn names(patterns: &str, id: &str) -> Result<bool, &'static str> {
    let exact = patterns.starts_with('|') || patterns.split(',').any(|pattern| pattern.eq_ignore_ascii_case(id));
    Ok(exact && matches(patterns, id)?)
}

fn supported(algorithm: &str) -> bool {
    matches!(algorithm, "ssh-ed25519" | "ssh-rsa") || algorithm.starts_with("ecdsa-sha2-nistp")
}

fn usable(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. })
}

/// What a list of patterns says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hit {
    /// One matches, and no `!` one does.
    In,
    /// A `!` one does.
    Out,
    /// Nothing.
    None,
}

/// Whether a list of patterns names `name`.
fn matches(patterns: &str, name: &str) -> Result<bool, &'static str> {
    Ok(hit(patterns, name)? == Hit::In)
}

fn hit(patterns: &str, name: &str) -> Result<Hit, &'static str> {
    if let Some(hashed) = patterns.strip_prefix("|1|") {
        let (salt, hash) = hashed.split_once('|').ok_or("its hashed name is cut")?;
        let decode = |part| base64::engine::general_purpose::STANDARD.decode(part);
        let (Ok(salt), Ok(hash)) = (decode(salt), decode(hash)) else { return Err("its hashed name is not base64") };
        let mut mac = hmac::Hmac::<sha1::Sha1>::new_from_slice(&salt).map_err(|_| "its salt is empty")?;
        mac.update(name.as_bytes());
        return Ok(if mac.verify_slice(&hash).is_ok() { Hit::In } else { Hit::None });
    }
    if patterns.starts_with('|') {
        return Err("its name is hashed in an unknown way");
    }
    let mut found = Hit::None;
    for pattern in patterns.split(',') {
        let (pattern, not) = pattern.strip_prefix('!').map_or((pattern, false), |rest| (rest, true));
        if wildcard(pattern.to_ascii_lowercase().as_bytes(), name.as_bytes()) {
            if not {
                return Ok(Hit::Out);
            }
            found = Hit::In;
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
        self.not_revoked(key.key_data())?;
        if self.keys.contains(key.key_data()) {
            return Ok(());
        }
        let (name, place, shown) = (&self.name, &self.place, shown(key));
        if !self.keys.is_empty() {
            return Err(self.changed(&format!("it shows {shown}")));
        }
        let why = match self.authorities.is_empty() {
            true => "",
            false => ", and its @cert-authority lines are for ssh.host_keys = \"ca\"",
        };
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

    /// Whether the key is one that nobody may use any more.
    ///
    /// # Errors
    /// `host_key_revoked`.
    pub fn not_revoked(&self, key: &KeyData) -> Result<(), LinkError> {
        if !self.revoked.contains(key) {
            return Ok(());
        }
        let (name, place, shown) = (&self.name, &self.place, shown(&PublicKey::from(key.clone())));
        Err(LinkError::new(
            "host_key_revoked",
            format!(
                "{name} shows a key that {place} has revoked ({shown}): do not trust this host before you know why"
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

    /// Whether no key of the host is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether the file has a key of the host's id. An address that is no id may have been another machine's.
    #[must_use]
    pub fn names_id(&self) -> bool {
        self.names_id
    }

    /// Authorities whose certificates are good for the host.
    #[must_use]
    pub fn authorities(&self) -> &[KeyData] {
        &self.authorities
    }
}

/// Algorithm and fingerprint, for people.
pub(super) fn shown(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}

/// Every algorithm this client can check, the best one first.
pub(super) fn all_algorithms() -> Vec<Algorithm> {
    Known::default().algorithms()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{below, chance, mutated};

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X";
    const E: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    /// A host at `address` or `[address]:port`.
    fn who(at: &str) -> Who<'_> {
        let (address, port) = at.strip_prefix('[').and_then(|at| at.split_once("]:")).unwrap_or((at, "22"));
        Who { id: address, name: address, address, port: port.parse().unwrap() }
    }

    fn verdict(file: &str, at: &str, shown: &str) -> Result<(), String> {
        parse(file, &who(at)).unwrap().check(&key(shown)).map_err(|e| e.cause.code)
    }

    #[test]
    fn a_line_may_name_a_host_by_its_id_and_then_its_address_says_nothing() {
        let host = |id| Who { id, name: "web 1", address: "10.0.0.1", port: 22 };
        let verdict =
            |file: &str, id, shown| parse(file, &host(id)).unwrap().check(&key(shown)).map_err(|e| e.cause.code);
        let changed = || Err("host_key_changed".to_owned());
        // The address was another machine's before.
        let file = format!("10.0.0.1 {A}\ni-0new {B}");
        assert_eq!(verdict(&file, "i-0new", B), Ok(()));
        assert_eq!(verdict(&file, "i-0new", A), changed());
        assert_eq!(verdict(&file, "i-0old", A), Ok(()));
        // A pattern names addresses; an id is named exactly.
        assert_eq!(verdict(&format!("i-* {A}\n10.0.0.1 {B}"), "i-0new", A), changed());
        assert!(parse(&file, &host("i-0new")).unwrap().names_id());
        assert!(!parse(&file, &host("i-0old")).unwrap().names_id());
        assert_eq!(verdict(&format!("I-0NEW,!i-0new {A}\n10.0.0.1 {B}"), "i-0new", B), Ok(()));
        // What is revoked for it by any name is revoked.
        for name in ["i-0new", "10.0.0.1", "*"] {
            let file = format!("i-0new {B}\n@revoked {name} {B}");
            assert_eq!(verdict(&file, "i-0new", B), Err("host_key_revoked".to_owned()), "{name}");
        }
        // The id of a host in a plain list is its address, which has a port.
        let plain = Who { id: "10.0.0.1", name: "10.0.0.1", address: "10.0.0.1", port: 2222 };
        let known = parse(&format!("10.0.0.1 {A}"), &plain).unwrap();
        assert_eq!(known.check(&key(A)).unwrap_err().cause.code, "host_key_unknown");
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
        assert_eq!(parse(&file, &who("web-1")).unwrap().algorithms(), [Algorithm::Ed25519]);
        assert_eq!(parse(&file, &who("web-2")).unwrap().algorithms().len(), 6);
    }

    #[test]
    fn revoked_wins_over_known() {
        let file = format!("web-1 {A}\n@revoked * {A}\nweb-1 {B}");
        assert_eq!(verdict(&file, "web-1", A), Err("host_key_revoked".into()));
        assert_eq!(verdict(&file, "web-1", B), Ok(()));
    }

    #[test]
    fn an_authority_is_no_key() {
        let known = parse(&format!("@cert-authority *.example.com {A}"), &who("a.example.com")).unwrap();
        let error = known.check(&key(A)).unwrap_err();
        assert_eq!(error.cause.code, "host_key_unknown");
        assert!(error.cause.message.contains("@cert-authority"), "{error}");
    }

    #[test]
    fn an_authority_is_not_one_of_a_host_that_any_of_its_names_takes_out() {
        let authorities = |patterns: &str, address, port| {
            let who = Who { id: "i-1", name: "web-1", address, port };
            parse(&format!("@cert-authority {patterns} {A}"), &who).unwrap().authorities().len()
        };
        assert_eq!(authorities("*,!10.0.9.*", "10.0.1.1", 22), 1);
        assert_eq!(authorities("*,!10.0.9.*", "10.0.9.1", 22), 0);
        assert_eq!(authorities("*,!10.0.9.*", "10.0.9.1", 2222), 0);
        assert_eq!(authorities("*,![10.0.9.1]:2222", "10.0.9.1", 2222), 0);
        assert_eq!(authorities("*,![WEB-1]:2222", "10.0.9.1", 2222), 0);
        assert_eq!(authorities("10.*,!i-1", "10.0.1.1", 22), 0);
        assert_eq!(authorities("10.*,!i-2", "10.0.1.1", 22), 1);
        // What is revoked for it by one name is not let in again by another.
        let who = Who { id: "i-1", name: "web-1", address: "10.0.9.1", port: 22 };
        let known = parse(&format!("10.0.9.1 {A}\n@revoked *,!10.0.9.* {A}"), &who).unwrap();
        assert_eq!(known.check(&key(A)).unwrap_err().cause.code, "host_key_revoked");
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
            assert_eq!(parse(&bad, &who("web-1")).unwrap_err().0, 1, "{bad}");
        }
        assert!(read(Path::new("/does/not/exist"), &who("a")).is_err());
        // Another kind of key is no error, and no key either.
        assert!(parse("web-1 sk-ssh-ed25519@openssh.com AAAA", &who("web-1")).unwrap().is_empty());
    }

    /// Whatever becomes of a file: it is refused with the line, or says no more than what is in it, and what is revoked stays so.
    #[test]
    fn random_files_let_nobody_in_whom_no_line_names() {
        const WORDS: [&str; 20] = [
            "@revoked ",
            "@cert-authority ",
            "@",
            "|1|",
            "|",
            "*",
            "?",
            "!",
            ",",
            "[",
            "]:22",
            "]:2222",
            " ",
            "\n",
            "\t",
            "#",
            "web-1",
            "ssh-rsa",
            "=",
            "\0\u{ff}",
        ];
        const C: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1GqVbPJnXxvLkkmNxwLOQ0DwA0nDxG3P7k1d3v2u1H";
        let whole = format!(
            "# ours\nweb-1,10.0.0.1 {A} me@here\n[web-1]:2222 {B}\n*.example.com,!evil.example.com {E}\n\
             |1|BwcHBwcHBwcHBwcHBwcHBwcHBwc=|BwcHBwcHBwcHBwcHBwcHBwcHBwc= {A}\n@cert-authority * {B}\n@revoked * {C}\n"
        );
        let blob = |key: &'static str| key.split(' ').nth(1).unwrap().trim_end_matches('=');
        let (mut random, cases) = chance("known_hosts", 1000, 200_000);
        let mut seen = [0; 3];
        for case in cases {
            let mut text = String::from_utf8_lossy(&mutated(&mut random, &whole, &WORDS)).into_owned();
            let revoked = [A, B, E][below(&mut random, 3)];
            // On a line of its own, whatever the one before has become.
            text.push_str(&format!("\n@revoked * {revoked}\n"));
            for at in ["web-1", "[web-1]:2222", "a.example.com", "evil.example.com"] {
                let known = match parse(&text, &who(at)) {
                    Ok(known) => known,
                    Err((line, why)) => {
                        assert!((1..=text.lines().count()).contains(&line) && !why.is_empty(), "case {case}: {text}");
                        seen[0] += 1;
                        continue;
                    }
                };
                for shown in [A, B, C, E] {
                    if known.check(&key(shown)).is_err() {
                        seen[1] += 1;
                        continue;
                    }
                    let names = |line: &str| !line.trim().starts_with(['#', '@']) && line.contains(blob(shown));
                    assert!(shown != revoked && text.lines().any(names), "case {case}: {at} shows {shown}: {text}");
                    seen[2] += 1;
                }
            }
        }
        assert!(seen.iter().all(|n| *n > 100), "all of it is met: {seen:?}");
    }
}
