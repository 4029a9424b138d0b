//! `[api]`: where the daemon is asked, by whom, and how that is kept from others.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::Deserialize;

use super::{ClientHeader, Network, values};

/// `[api]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// The Unix socket; its mode (0660, group phased) is its gate.
    #[serde(deserialize_with = "values::absolute")]
    pub socket: PathBuf,
    /// The TCP address, for bearer tokens and webhooks; `"none"` in the file = not at all. Port 0 takes a free one.
    #[serde(deserialize_with = "values::listen")]
    pub listen: Option<SocketAddr>,
    /// TLS on that address.
    pub tls: Option<Tls>,
    /// Without TLS other machines may ask all the same: a VPN is in between.
    pub plaintext: bool,
    /// Names besides `localhost`, the address itself and those of the certificate under which TCP may be asked, for a reverse proxy in front of it.
    pub host_names: Vec<String>,
    /// Reverse proxies that are believed for whom they ask.
    pub trusted_proxies: Vec<Network>,
    /// The header in which they say so.
    pub client_header: ClientHeader,
}

/// `tls` in `[api]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM: the server's own certificate first, then those between it and the root.
    #[serde(deserialize_with = "values::absolute")]
    pub cert: PathBuf,
    /// PEM: its private key, as PKCS#8, PKCS#1 or SEC1.
    #[serde(deserialize_with = "values::absolute")]
    pub key: PathBuf,
}

impl Default for Api {
    fn default() -> Self {
        Api {
            socket: "/run/phased/phased.sock".into(),
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 7427))),
            tls: None,
            plaintext: false,
            host_names: Vec::new(),
            trusted_proxies: Vec::new(),
            client_header: ClientHeader::default(),
        }
    }
}

impl Api {
    /// Whether those who ask at `local` from elsewhere may do so without TLS.
    #[must_use]
    pub fn is_guarded(&self, local: IpAddr) -> bool {
        self.tls.is_some() || self.plaintext || local.to_canonical().is_loopback()
    }

    /// `signals`: other daemons are listened to, whose signals are signed and need no TLS.
    pub(super) fn check(&self, signals: bool) -> Result<(), String> {
        if self.tls.is_some() && self.plaintext {
            return Err("`tls` and `plaintext` contradict each other: keep one of them".to_owned());
        }
        if self.tls.is_some() && self.listen.is_none() {
            return Err("`tls` is for `listen`, which is \"none\": give it an address, or leave `tls` out".to_owned());
        }
        match self.listen {
            Some(listen) if !self.is_guarded(listen.ip()) && self.trusted_proxies.is_empty() && !signals => {
                Err(format!(
                    "`listen` is {listen}, which other machines reach, and their tokens would cross the network readable: add tls = {{ cert = \"...\", key = \"...\" }}, \
                 or listen on 127.0.0.1 behind a proxy, or name a proxy on another machine in `trusted_proxies`; \
                 plaintext = true allows it as it is, for a VPN"
                ))
            }
            _ => Ok(()),
        }
    }
}
