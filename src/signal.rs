//! Ed25519 for signals: keys as files, signatures, and their check. The cryptography that TLS and SSH use already.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    model::{
        cause::Cause,
        ids::HostId,
        signal::{Domain, PublicKey},
    },
    ports::{secrets::Secret, signals::Signer},
};

mod private;

/// Signs and verifies.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ed25519;

impl Signer for Ed25519 {
    fn sign(&self, private: &Secret, domain: Domain, document: &[u8]) -> Result<(PublicKey, String), Cause> {
        let (pair, public) = pair(private)?;
        Ok((public, STANDARD.encode(pair.sign(&domain.message(document)).as_ref())))
    }

    fn receiver(&self, file: &str, host: &HostId) -> Result<PublicKey, Cause> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| unknown(format!("the receivers in {file} cannot be read: {error}")))?;
        let mut found: Option<PublicKey> = None;
        for (n, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line.trim())) {
            // Only its own lines are read: what is wrong with another's is nothing to it. An id may hold a space.
            let Some(rest) = line.strip_prefix(host.as_str()) else { continue };
            let key = rest.trim_start();
            let others = key.len() == rest.len() || (!key.starts_with("ssh-") && key.contains("ssh-"));
            if others && !rest.is_empty() {
                continue;
            }
            if !key.starts_with("ssh-") {
                return Err(unknown(format!("{file}:{n} is no receiver: write `HOST-ID ssh-ed25519 AAAA...`")));
            }
            let key: PublicKey = key.parse().map_err(|error| unknown(format!("{file}:{n}: {error}")))?;
            if found.as_ref().is_some_and(|other| other.bytes() != key.bytes()) {
                return Err(unknown(format!("{file}:{n}: {host} has another key already; keep the one that is right")));
            }
            found = Some(key);
        }
        found.ok_or_else(|| {
            unknown(format!(
                "there is no public key of {host} in {file}: run `phased keys show` on it and add its line, `{host} ssh-ed25519 ...`"
            ))
        })
    }

    fn verify(&self, key: &PublicKey, domain: Domain, document: &[u8], signature: &str) -> bool {
        // Only its one spelling: bits after the end of base64 are refused by the decoder.
        let Ok(signature) = STANDARD.decode(signature) else { return false };
        UnparsedPublicKey::new(&ED25519, key.bytes()).verify(&domain.message(document), &signature).is_ok()
    }
}

/// A new key: the text of its private file (PKCS#8 in PEM, the comment above it), and its public half.
///
/// # Errors
/// The system has no randomness.
pub fn generate(comment: &str) -> Result<(String, PublicKey), Cause> {
    let failed = |_| private::wrong("the system gave no randomness to make one");
    let pair = Ed25519KeyPair::generate().map_err(failed)?;
    let document = pair.to_pkcs8v1().map_err(failed)?;
    let text = private::write(document.as_ref(), comment);
    Ok((text, public(&pair, comment)))
}

/// The public half of a private key's file.
///
/// # Errors
/// `signal_key`: it is no such file.
pub fn public_half(private: &Secret) -> Result<PublicKey, Cause> {
    pair(private).map(|(_, public)| public)
}

fn public(pair: &Ed25519KeyPair, comment: &str) -> PublicKey {
    let bytes = pair.public_key().as_ref().try_into().unwrap_or_default();
    PublicKey::new(bytes, comment)
}

fn unknown(message: String) -> Cause {
    Cause::new("host_key_unknown", message)
}

fn pair(private: &Secret) -> Result<(Ed25519KeyPair, PublicKey), Cause> {
    let (pair, comment) = private::read(private.expose())?;
    let public = public(&pair, &comment);
    Ok((pair, public))
}

#[cfg(test)]
mod tests;
