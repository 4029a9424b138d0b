//! Host certificates, checked whole (OpenSSH's PROTOCOL.certkeys).
//!
//! That the server holds the key in the certificate was proved by the key exchange before this is asked. What is left is whether somebody we
//! trust says that this key is the host's.

use russh::keys::{
    Algorithm, Certificate, HashAlg, PublicKey,
    ssh_key::{certificate::CertType, public::KeyData},
};

use super::known_hosts::{Known, Who, shown};
use crate::{ports::link::LinkError, time::rfc3339};

/// Whether `certificate` makes its key the key of `who`, now.
///
/// It must be a host's and not a user's, of an authority that `known` has for this host, signed by it, within its time, for this host, and
/// without a critical option, of which hosts have none. Neither the key nor the authority may be revoked. The host is its id, its name or its
/// address: exactly one of these must be a principal. A certificate without principals is good for every host there is, and so for none here.
///
/// # Errors
/// `host_key_revoked`, `host_key_certificate`, with what is wrong.
pub(super) fn check(certificate: &Certificate, known: &Known, who: &Who<'_>, now_ms: i64) -> Result<(), LinkError> {
    known.not_revoked(certificate.public_key())?;
    known.not_revoked(certificate.signature_key())?;
    wrong(certificate, known, who, now_ms).map_or(Ok(()), |why| {
        let key = shown(&PublicKey::from(certificate.public_key().clone()));
        // Whatever a server says of itself is shown short and in quotes.
        let id: String = certificate.key_id().chars().take(80).collect();
        let message = format!("the certificate {id:?} that {} shows for its key {key} is not good: {why}", place(who));
        Err(LinkError::new("host_key_certificate", message))
    })
}

/// The host and where it is, for messages.
pub(super) fn place(who: &Who<'_>) -> String {
    let at = super::known_hosts::name(who.address, who.port);
    if who.name == who.address { at } else { format!("{} ({at})", who.name) }
}

fn wrong(certificate: &Certificate, known: &Known, who: &Who<'_>, now_ms: i64) -> Option<String> {
    if certificate.cert_type() != CertType::Host {
        return Some("it is a user's, not a host's".to_owned());
    }
    let authority = certificate.signature_key();
    if matches!(authority, KeyData::Certificate(_)) {
        return Some("its authority is itself a certificate, and chains of them are not a thing".to_owned());
    }
    let signer = PublicKey::from(authority.clone());
    if !known.authorities().contains(authority) {
        return Some(format!("it is signed by {}, which no @cert-authority line names for this host", shown(&signer)));
    }
    let sound = match certificate.signature().algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } => true,
        // SHA-1 can be made to fit another certificate.
        Algorithm::Rsa { hash } => hash.is_some(),
        _ => false,
    };
    if !sound {
        return Some(
            "its signature is made with SHA-1 or an unknown method: sign it anew (ssh-keygen -t rsa-sha2-512)"
                .to_owned(),
        );
    }
    let now = u64::try_from(now_ms / 1000).unwrap_or(0);
    let at = |secs: u64| i64::try_from(secs).ok().and_then(|s| s.checked_mul(1000)).map_or("ever".to_owned(), rfc3339);
    if now < certificate.valid_after() {
        return Some(format!("it is good from {} on: is this machine's clock right?", at(certificate.valid_after())));
    }
    if now >= certificate.valid_before() {
        return Some(format!("it expired at {}: sign the host's key anew", at(certificate.valid_before())));
    }
    // The signature, and the two above once more.
    if certificate.validate_at(now, &[signer.fingerprint(HashAlg::Sha256)]).is_err() {
        return Some("its signature is not that of its authority: it was tampered with".to_owned());
    }
    let is_host = |principal: &String| {
        [who.id, who.name, who.address].iter().any(|name| !name.is_empty() && name.eq_ignore_ascii_case(principal))
    };
    match certificate.valid_principals() {
        [] => return Some("it names no host (ssh-keygen -n), so it would do for every one".to_owned()),
        names if !names.iter().any(is_host) => {
            let names: Vec<String> = names.iter().take(5).map(|name| name.chars().take(64).collect()).collect();
            return Some(format!(
                "it is for {names:?}, and this host is {:?}, {:?} or {:?}",
                who.id, who.name, who.address
            ));
        }
        _ => {}
    }
    let option = certificate.critical_options().keys().next();
    option.map(|option| {
        let option: String = option.chars().take(64).collect();
        format!("it has the critical option {option:?}, and no such option of a host is known")
    })
}
