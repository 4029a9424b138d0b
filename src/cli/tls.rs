//! TLS to a daemon: whom we believe, and what it means when we do not.

use std::{io, net::TcpStream, path::Path, sync::Arc};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{self, CryptoProvider},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    },
};

use super::exit::Failure;
use crate::http::tls::{self, Remedies};

/// What to do where the certificate's signer is not known.
const WHOM_TO_TRUST: &str = "--ca-file or PHASED_CA_FILE names the file (PEM) of the authority that signed it, or of the certificate itself where it signed itself";

/// What may be meant where it speaks none.
const PLAIN: &str = "has the daemon a certificate (`tls` in its [api]), or is it meant to be asked by http://?";

/// Whom we believe: the authorities in `ca_file`, or those that this machine trusts.
pub(super) fn config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, Failure> {
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::Broken(format!("TLS cannot be set up: {error}")))?;
    let verifier: Arc<dyn ServerCertVerifier> = match ca_file {
        Some(file) => Arc::new(FromFile::read(file, &provider).map_err(Failure::Usage)?),
        None => Arc::new(rustls_platform_verifier::Verifier::new(provider).map_err(|error| {
            Failure::Usage(format!(
                "this machine knows no authorities ({error}): install ca-certificates, or {WHOM_TO_TRUST}"
            ))
        })?),
    };
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The handshake with `host` over `stream`.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    host: &str,
    stream: S,
) -> io::Result<TlsStream<S>> {
    let name =
        ServerName::try_from(host.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    TlsConnector::from(config).connect(name, stream).await
}

/// TLS over a connection that blocks, with whoever shows the very certificate that is in `file`, for whatever name.
///
/// # Errors
/// In words, why there is none.
pub fn over(mut stream: TcpStream, file: &Path) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    const NAME: &str = "localhost";
    let config = config(Some(file)).map_err(|failure| failure.to_string())?;
    let name = ServerName::try_from(NAME).map_err(|error| error.to_string())?;
    let mut tls = ClientConnection::new(config, name).map_err(|error| error.to_string())?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).map_err(|error| {
            match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(_)) => {
                    format!("it shows another certificate than the one in {}", file.display())
                }
                _ => why(&error, NAME),
            }
        })?;
    }
    Ok(StreamOwned::new(tls, stream))
}

/// In words: why there is no TLS, and what to do.
pub(super) fn why(error: &io::Error, host: &str) -> String {
    tls::why(error, host, &Remedies { trust: WHOM_TO_TRUST, plain: PLAIN })
}

/// The authorities of a file, and the very certificates in it: `openssl req -x509` makes one that is no authority for itself.
#[derive(Debug)]
struct FromFile {
    authorities: Arc<WebPkiServerVerifier>,
    very_own: Vec<CertificateDer<'static>>,
}

impl FromFile {
    fn read(file: &Path, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let shown = file.display();
        let bytes = std::fs::read(file).map_err(|error| format!("cannot read the CA file `{shown}`: {error}"))?;
        let very_own: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&bytes)
                .collect::<Result<_, _>>()
                .map_err(|error| format!("the CA file `{shown}` is damaged PEM: {error}"))?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(very_own.iter().cloned());
        let none =
            || format!("the CA file `{shown}` holds no certificate: it must be PEM, -----BEGIN CERTIFICATE-----");
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|_| none())?;
        Ok(FromFile { authorities, very_own })
    }
}

impl ServerCertVerifier for FromFile {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.very_own.iter().any(|own| own == end_entity) {
            // Byte for byte what the user handed over: that the other side has its key is proven by the handshake.
            return Ok(ServerCertVerified::assertion());
        }
        self.authorities.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}
