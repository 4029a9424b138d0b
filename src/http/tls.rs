//! Why there is no TLS with a server, in words, and what to do about it.

use std::io;

use tokio_rustls::rustls::{self, CertificateError};

/// What whoever asks can do about a server.
pub struct Remedies {
    /// How its authority comes to be trusted.
    pub trust: &'static str,
    /// What there is to see to where it speaks no TLS.
    pub plain: &'static str,
}

/// For people who reach TLS servers from the daemon: whom it believes is what its machine trusts, read once.
pub(super) const MACHINE: Remedies = Remedies {
    trust: "make this machine trust the authority that signed it (update-ca-certificates, or SSL_CERT_FILE in the daemon's environment) and \
            start the daemon again",
    plain: "is it meant to be asked by http://?",
};

/// Why a handshake with `host` has failed, and what to do.
#[must_use]
pub fn why(error: &io::Error, host: &str, remedies: &Remedies) -> String {
    let Remedies { trust, plain } = remedies;
    let Some(cause) = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                format!("it hangs up instead of speaking TLS: {plain}")
            }
            _ => error.to_string(),
        };
    };
    match cause {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("nobody whom this machine trusts signed its certificate: {trust}")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is not for {host:?} ({error}): ask for a name that is in it")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("its certificate has expired ({error}): it must be renewed on its own machine")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("its certificate is not valid yet ({error}): are both clocks right?")
            }
            error => format!("its certificate cannot be believed: {error}"),
        },
        rustls::Error::InvalidMessage(_) => format!("it answers, and not in TLS: {plain}"),
        error => format!("no TLS with it: {error}"),
    }
}

/// What a handshake was refused with, if that is what an error came of. One that was cut off is no refusal.
pub(super) fn refusal<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e io::Error> {
    let (mut at, mut found) = (Some(error), None);
    while let Some(error) = at {
        let refuses = |error: &&io::Error| error.get_ref().is_some_and(|error| error.is::<rustls::Error>());
        found = error.downcast_ref::<io::Error>().map(innermost).filter(refuses).or(found);
        at = error.source();
    }
    found
}

/// The error within errors of its own kind, which give the source of what they hold as theirs.
fn innermost(error: &io::Error) -> &io::Error {
    let within = error.get_ref().and_then(|within| within.downcast_ref::<io::Error>());
    within.map_or(error, innermost)
}
