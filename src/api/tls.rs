//! TLS on the TCP listener: the certificate and its key, read at start, and read again while the daemon runs.
//!
//! A pair that cannot be used never takes the place of one that can: the old one stays, and what is wrong is said.

use std::{
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio_rustls::rustls::{
    self, InconsistentKeys, ServerConfig,
    crypto::{self, CryptoProvider},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;

use super::certificate::{Facts, facts};
use crate::{
    engine::handle::Engine,
    model::cause::Cause,
    time::{Clock, rfc3339},
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Said so long before the certificate ends, or for the last quarter of a life that is shorter than four times that.
const SOON_MS: i64 = 7 * 86_400_000;
/// A certificate that can still be used, and not for long.
const EXPIRES: &str = "tls_expires";
/// What the second file is called; nobody else may read it.
const KEY: &str = "key";
/// Beyond this it is no certificate file.
const LARGEST: u64 = 1 << 20;

/// Why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read the {what} `{}`: {source}; the daemon's user must be able to read it", path.display())]
    Read {
        /// `certificate` or `key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A file has something else in it.
    #[error("the {what} `{}` {why}", path.display())]
    Content {
        /// `certificate` or `key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What, and what to do.
        why: String,
    },
    /// Reading them came to no end.
    #[error("the certificate `{}` could not be read: {source}", cert.display())]
    Failed {
        /// The certificate's file.
        cert: PathBuf,
        /// Why.
        source: tokio::task::JoinError,
    },
    /// They belong to two different ones.
    #[error(
        "the key `{}` does not fit the certificate `{}`: are both of the same renewal, and is the server's own certificate the first in its file?",
        key.display(), cert.display()
    )]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's.
        key: PathBuf,
    },
}

/// What is shown to clients.
struct Pair {
    shown: Arc<CertifiedKey>,
    facts: Facts,
}

/// Which files they were: another one, or the same one written anew, is a new pair.
type Files = Vec<Option<[i128; 7]>>;

struct State {
    pair: Pair,
    /// When the files were read last.
    files: Files,
    /// Why what they hold now is not used.
    wrong: Option<Cause>,
}

/// The listener's certificate.
pub struct Certificates {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    state: RwLock<State>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("cert", &self.cert).field("key", &self.key).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.read(|state| state.pair.shown.clone()))
    }
}

impl Certificates {
    /// Reads them.
    ///
    /// # Errors
    /// Which file cannot be used, why, and what to do.
    pub fn load(cert: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let files = files(cert, key);
        let pair = pair(cert, key, &provider)?;
        let (cert, key) = (cert.to_owned(), key.to_owned());
        Ok(Arc::new(Certificates { cert, key, provider, state: RwLock::new(State { pair, files, wrong: None }) }))
    }

    /// Whether the pair can be used now, for whoever looks at a configuration before it is used.
    ///
    /// # Errors
    /// In words: the file, what is wrong with it, and what to do.
    pub fn check(cert: &Path, key: &Path, now_ms: i64) -> Result<(), String> {
        let pair = Certificates::load(cert, key).map_err(|error| error.to_string())?;
        match pair.due(now_ms) {
            Some(cause) if cause.code != EXPIRES => Err(cause.message),
            _ => Ok(()),
        }
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// TLS 1.2 and 1.3, HTTP/1.1.
    ///
    /// # Errors
    /// The cryptography knows neither version, which does not happen.
    pub(super) fn server(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let versions = &[&rustls::version::TLS13, &rustls::version::TLS12];
        let builder = ServerConfig::builder_with_provider(self.provider.clone()).with_protocol_versions(versions)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Whether the certificate is for `name`.
    pub(super) fn is_for(&self, name: &str) -> bool {
        self.read(|state| state.pair.facts.is_for(name))
    }

    /// Reads both files again; a pair that cannot be used leaves the old one in place, and the status says why.
    ///
    /// # Errors
    /// Why the new pair cannot be used.
    pub async fn reload(self: &Arc<Self>, engine: &dyn Engine, clock: &dyn Clock) -> Result<(), TlsError> {
        let certificates = self.clone();
        let read = tokio::task::spawn_blocking(move || certificates.read_again()).await;
        let read = read.unwrap_or_else(|source| Err(TlsError::Failed { cert: self.cert.clone(), source }));
        self.tell(engine, clock.now().wall_ms);
        read
    }

    fn read_again(&self) -> Result<(), TlsError> {
        let files = files(&self.cert, &self.key);
        let loaded = pair(&self.cert, &self.key, &self.provider);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.files = files;
        match loaded {
            Ok(pair) => {
                let (until, changed) = (rfc3339(pair.facts.not_after_ms), pair.shown.cert != state.pair.shown.cert);
                state.pair = pair;
                state.wrong = None;
                tracing::info!(cert = %self.cert.display(), until, changed, "the certificate was read again");
                Ok(())
            }
            Err(error) => {
                let until = rfc3339(state.pair.facts.not_after_ms);
                let text = format!("the old certificate stays in use, until {until}: {error}");
                let cause = Cause::new("tls_not_reloaded", text);
                if state.wrong.as_ref() != Some(&cause) {
                    tracing::error!(%cause, "the new certificate cannot be used");
                }
                state.wrong = Some(cause);
                Err(error)
            }
        }
    }

    /// Reads the files again if they are others than those that were read last, or could not be used then: what kept the daemon from them
    /// need not show in them, such as the rights of a directory.
    fn look(&self) {
        let (last, wrong) = self.read(|state| (state.files.clone(), state.wrong.is_some()));
        if wrong || files(&self.cert, &self.key) != last {
            let _kept_and_said = self.read_again();
        }
    }

    /// Why what the files hold now is not used.
    fn wrong(&self) -> Option<Cause> {
        self.read(|state| state.wrong.clone())
    }

    /// What is to be done about the certificate that is used.
    fn due(&self, now_ms: i64) -> Option<Cause> {
        let Facts { not_before_ms, not_after_ms, .. } = self.read(|state| state.pair.facts.clone());
        let soon = SOON_MS.min((not_after_ms - not_before_ms) / 4);
        let (cert, from, to) = (self.cert.display(), rfc3339(not_before_ms), rfc3339(not_after_ms));
        let (code, text) = if now_ms >= not_after_ms {
            ("tls_expired", format!("the certificate `{cert}` has expired on {to}: clients refuse it; renew it"))
        } else if now_ms < not_before_ms {
            (
                "tls_not_yet_valid",
                format!("the certificate `{cert}` is valid from {from}: is this machine's clock right?"),
            )
        } else if now_ms >= not_after_ms - soon {
            (EXPIRES, format!("the certificate `{cert}` expires on {to}: renew it; a new one is taken up by itself"))
        } else {
            return None;
        };
        Some(Cause::new(code, text))
    }

    fn tell(&self, engine: &dyn Engine, now_ms: i64) {
        engine.remark("certificate", self.due(now_ms));
        engine.remark("certificate files", self.wrong());
    }

    /// Looks at the files for as long as the daemon runs: new ones are read, and what is wrong is said, in the log once.
    pub(super) async fn watch(
        self: Arc<Self>,
        engine: Arc<dyn Engine>,
        clock: Arc<dyn Clock>,
        stopping: CancellationToken,
    ) {
        let mut said: Option<String> = None;
        loop {
            let now_ms = clock.now().wall_ms;
            let due = self.due(now_ms);
            if let Some(cause) = due.as_ref().filter(|cause| said.as_ref() != Some(&cause.code)) {
                tracing::warn!(%cause, "the certificate needs attention");
            }
            said = due.map(|cause| cause.code);
            self.tell(&*engine, now_ms);
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                () = clock.sleep(LOOK) => {}
            }
            let certificates = self.clone();
            let looked = tokio::task::spawn_blocking(move || certificates.look());
            if looked.await.is_err() {
                tracing::error!("the certificate's files could not be looked at");
            }
        }
    }
}

/// What tells a file from another one that was put there since.
fn files(cert: &Path, key: &Path) -> Files {
    let one = |path: &Path| {
        let of = std::fs::metadata(path).ok()?;
        let (written, changed) = ([of.mtime(), of.mtime_nsec()], [of.ctime(), of.ctime_nsec()]);
        let [dev, ino, size] = [of.dev(), of.ino(), of.size()].map(i128::from);
        let [written, nanos] = written.map(i128::from);
        // Rights and owners are part of it: a key that could not be read may be readable now.
        let [changed, changed_nanos] = changed.map(i128::from);
        Some([dev, ino, size, written, nanos, changed, changed_nanos])
    };
    vec![one(cert), one(key)]
}

fn content(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { what, path: path.to_owned(), source };
    // Opened once and judged by what was opened; a pipe that nobody writes to must not hold anybody up.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let of = file.metadata().map_err(failed)?;
    if !of.is_file() {
        return Err(wrong(what, path, "is no regular file"));
    }
    if what == KEY && of.mode() & 0o007 != 0 {
        let why = format!("is open to everybody on this machine (mode {:04o}): chmod o= it", of.mode() & 0o7777);
        return Err(wrong(what, path, why));
    }
    let mut content = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > LARGEST {
        return Err(wrong(what, path, "is larger than 1 MiB: is it the right file?"));
    }
    Ok(content)
}

fn wrong(what: &'static str, path: &Path, why: impl Into<String>) -> TlsError {
    TlsError::Content { what, path: path.to_owned(), why: why.into() }
}

fn pair(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<Pair, TlsError> {
    let chain = content("certificate", cert)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong("certificate", cert, format!("is damaged PEM: {error}")))?;
    let Some(first) = chain.first() else {
        return Err(wrong("certificate", cert, "holds no certificate: it must be PEM, -----BEGIN CERTIFICATE-----"));
    };
    let facts =
        facts(first).ok_or_else(|| wrong("certificate", cert, "holds something that is no X.509 certificate"))?;
    let bytes = content(KEY, key)?;
    let private = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| wrong("key", key, no_key(&bytes, &error)))?;
    let shown = CertifiedKey::from_der(chain, private, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::Mismatch { cert: cert.to_owned(), key: key.to_owned() }
        }
        rustls::Error::InvalidCertificate(error) => wrong("certificate", cert, format!("cannot be used: {error:?}")),
        error => wrong(
            "key",
            key,
            format!("cannot be used ({error}): RSA from 2048 bits, ECDSA P-256, P-384, P-521 and Ed25519 can"),
        ),
    })?;
    Ok(Pair { shown: Arc::new(shown), facts })
}

fn no_key(bytes: &[u8], error: &pem::Error) -> String {
    let has = |text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    if has("ENCRYPTED") {
        return "is encrypted, and nobody is there to type its passphrase: openssl pkey -in OLD -out NEW writes it without".to_owned();
    }
    match error {
        pem::Error::NoItemsFound if has("BEGIN CERTIFICATE") => {
            "holds a certificate and no private key: are the two files swapped?".to_owned()
        }
        pem::Error::NoItemsFound => {
            "holds no private key: it must be PEM, as PKCS#8 (BEGIN PRIVATE KEY), PKCS#1 (BEGIN RSA PRIVATE KEY) or SEC1 (BEGIN EC PRIVATE KEY)".to_owned()
        }
        error => format!("is damaged PEM: {error}"),
    }
}

#[cfg(test)]
mod tests;
