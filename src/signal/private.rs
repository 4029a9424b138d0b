//! Private keys as files: PKCS#8 in PEM, which is what is made here and by openssl, and what ssh-keygen makes.

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::model::cause::Cause;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
const BEGIN_OPENSSH: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END_OPENSSH: &str = "-----END OPENSSH PRIVATE KEY-----";

/// What is recognised, so that it can be said by its name, and is no key to sign with.
const OTHERS: &[(&str, &str)] = &[
    (
        "-----BEGIN ENCRYPTED PRIVATE KEY-----",
        "it is a PKCS#8 key with a passphrase, and nobody is there to type it: take it off with `openssl pkey -in FILE -out NEW`",
    ),
    ("-----BEGIN RSA PRIVATE KEY-----", "it is an RSA key (PKCS#1), and signals are signed by Ed25519"),
    ("-----BEGIN EC PRIVATE KEY-----", "it is an ECDSA key (SEC1), and signals are signed by Ed25519"),
    ("-----BEGIN DSA PRIVATE KEY-----", "it is a DSA key, and signals are signed by Ed25519"),
    (
        "PuTTY-User-Key-File-",
        "it is a key of PuTTY: `puttygen FILE -O private-openssh -o NEW` writes one that is read here",
    ),
    ("-----BEGIN PUBLIC KEY-----", "it is a public key: the private half is the one that signs"),
    ("-----BEGIN CERTIFICATE-----", "it is a certificate: the private key is the one that signs"),
    ("ssh-", "it is a public key of OpenSSH: the private half, the file without .pub, is the one that signs"),
];

/// The text of a key's file.
pub(super) fn write(pkcs8: &[u8], comment: &str) -> String {
    let encoded = STANDARD.encode(pkcs8);
    let mut text = String::new();
    if !comment.is_empty() {
        text.push_str(&format!("# {comment}\n"));
    }
    text.push_str(BEGIN);
    for line in encoded.as_bytes().chunks(64) {
        text.push('\n');
        text.push_str(&String::from_utf8_lossy(line));
    }
    text.push_str(&format!("\n{END}\n"));
    text
}

/// The key in a file, and its comment.
///
/// # Errors
/// `signal_key`: what it is instead, and what to do.
pub(super) fn read(bytes: &[u8]) -> Result<(Ed25519KeyPair, String), Cause> {
    let text = std::str::from_utf8(bytes).map_err(|_| {
        wrong("it is no text (if it is DER: `openssl pkey -inform DER -in FILE -out NEW` writes one that is read here)")
    })?;
    if text.contains(BEGIN_OPENSSH) {
        let (_, der) = body(text, BEGIN_OPENSSH, END_OPENSSH)?;
        return openssh(&der);
    }
    if text.contains(BEGIN) {
        let (before, der) = body(text, BEGIN, END)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
            .map_err(|_| wrong("it is a PKCS#8 key, and no Ed25519 one"))?;
        let comment = before.lines().find_map(|line| line.strip_prefix('#')).map(str::trim).unwrap_or_default();
        return Ok((pair, comment.to_owned()));
    }
    let other = OTHERS.iter().find(|(sign, _)| text.lines().any(|line| line.starts_with(sign)));
    Err(wrong(other.map_or("it has no -----BEGIN PRIVATE KEY-----", |(_, what)| what)))
}

pub(super) fn wrong(why: &str) -> Cause {
    let message = format!(
        "the signing key cannot be used: {why}; `phased keys make NAME` makes one that can (and so do openssl genpkey -algorithm ed25519 and \
         ssh-keygen -t ed25519 -N '')"
    );
    Cause::new("signal_key", message)
}

/// What stands before a block of PEM, and its bytes.
fn body<'t>(text: &'t str, begin: &str, end: &str) -> Result<(&'t str, Vec<u8>), Cause> {
    let (before, rest) = text.split_once(begin).unwrap_or_default();
    let (body, _) = rest.split_once(end).ok_or_else(|| wrong(&format!("its end is missing ({end})")))?;
    let body: String = body.split_whitespace().collect();
    Ok((before, STANDARD.decode(body).map_err(|_| wrong("it is no base64"))?))
}

/// A private key of OpenSSH (PROTOCOL.key in its source).
fn openssh(bytes: &[u8]) -> Result<(Ed25519KeyPair, String), Cause> {
    let damaged = || wrong("it is a private key of OpenSSH, and damaged");
    let mut file = Fields(bytes.strip_prefix(b"openssh-key-v1\0").ok_or_else(damaged)?);
    let (cipher, _kdf, _options) = (file.text()?, file.text()?, file.text()?);
    if cipher != b"none" {
        return Err(wrong(
            "it is a private key of OpenSSH with a passphrase, and nobody is there to type it: take it off with `ssh-keygen -p -N '' -f FILE`",
        ));
    }
    let (keys, _public) = (file.number()?, file.text()?);
    let mut key = Fields(file.text()?);
    // Twice the same number: what was decrypted rightly has it.
    if keys != 1 || key.number()? != key.number()? {
        return Err(damaged());
    }
    let kind = key.text()?;
    if kind != b"ssh-ed25519" {
        let kind = String::from_utf8_lossy(kind);
        return Err(wrong(&format!(
            "it is a private key of OpenSSH of type {kind}, and signals are signed by Ed25519"
        )));
    }
    let (public, private, comment) = (key.text()?, key.text()?, key.text()?);
    let seed = private.get(..32).ok_or_else(damaged)?;
    let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(|_| damaged())?;
    Ok((pair, String::from_utf8_lossy(comment).chars().filter(|c| !c.is_control()).collect()))
}

/// Numbers and strings as SSH writes them (RFC 4251, section 5).
struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    fn take(&mut self, n: usize) -> Result<&'b [u8], Cause> {
        let (taken, rest) =
            self.0.split_at_checked(n).ok_or_else(|| wrong("it is a private key of OpenSSH, and cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, Cause> {
        Ok(self.take(4)?.iter().fold(0, |n, byte| n << 8 | u32::from(*byte)))
    }

    fn text(&mut self) -> Result<&'b [u8], Cause> {
        let length = self.number()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }
}
