//! Whether a server is the host that was meant, by the policy of its environment. Nothing of ours is sent before the answer is yes.

use std::{path::Path, str::FromStr as _, sync::Arc};

use russh::keys::{Algorithm, HashAlg, PublicKey, PublicKeyOrCertificate, ssh_key::Fingerprint};

use super::{
    certificate,
    known_hosts::{self, Known, Who},
};
use crate::{
    model::host_key::{HostKeys as Said, Learnt, Policy, Realm},
    ports::{host_keys::HostKeys, link::LinkError},
    time::rfc3339,
};

/// What one host must show.
#[derive(Clone)]
pub(super) struct Trust {
    realm: Realm,
    id: Arc<str>,
    name: Arc<str>,
    address: Arc<str>,
    port: u16,
    known: Known,
    anchor: Anchor,
}

#[derive(Clone)]
enum Anchor {
    /// Keys of known_hosts.
    File,
    /// Keys that the host's record has.
    Given(Arc<[Given]>),
    /// Certificates of authorities in known_hosts.
    Authorities,
    /// The key it showed first, unless it was never met.
    First(Option<Learnt>),
}

enum Given {
    Hash(Fingerprint),
    Key(PublicKey),
}

/// Why a server is believed.
#[derive(Debug, PartialEq)]
pub(super) enum Belief {
    /// It showed what was known.
    Known,
    /// Nothing was known, and this is what it showed: to be kept once it has let us in.
    New(Learnt),
}

impl Trust {
    /// What `who` must show. Blocks on the disk for the known_hosts file.
    ///
    /// # Errors
    /// Nothing is known by which anybody could be recognised: `host_key_unknown`.
    pub(super) async fn of(
        realm: &Realm,
        who: &Who<'_>,
        said: Option<&Said>,
        known_hosts: Option<&str>,
        kept: &dyn HostKeys,
    ) -> Result<Trust, LinkError> {
        let at = certificate::place(who);
        let untrusted = |why: String| LinkError::new("host_key_unknown", format!("{at} cannot be trusted: {why}"));
        let known = match known_hosts {
            Some(file) => Some(known_hosts::read(Path::new(file), who)?),
            None => None,
        };
        let policy = Said::Policy(Policy::Pin);
        let anchor = match said.unwrap_or(&policy) {
            Said::Given(keys) => {
                let keys = keys.iter().map(|text| Given::read(text).ok_or(text)).collect::<Result<Vec<_>, _>>();
                let keys = keys.map_err(|text| untrusted(format!("its host_keys have {text:?}, which is no key")))?;
                Anchor::Given(keys.into())
            }
            Said::Policy(Policy::Pin) if known.is_none() => {
                return Err(untrusted("set ssh.known_hosts to the file with its key".to_owned()));
            }
            Said::Policy(Policy::Pin) => Anchor::File,
            Said::Policy(Policy::Ca) => {
                if known.as_ref().is_none_or(|known| known.authorities().is_empty()) {
                    let file = known_hosts.unwrap_or("the file of ssh.known_hosts, which is not set");
                    return Err(untrusted(format!(
                        "ssh.host_keys is \"ca\", and no line of {file} names an authority for it: add \"@cert-authority * ssh-ed25519 \
                         AAAA...\" with the authority's public key"
                    )));
                }
                Anchor::Authorities
            }
            Said::Policy(Policy::Tofu) if known.as_ref().is_some_and(Known::names_id) => Anchor::File,
            Said::Policy(Policy::Tofu) => {
                match kept.known(realm, who.id).await.map_err(|cause| LinkError { cause })? {
                    // What it showed under its id counts, whoever had its address when the file was written.
                    Some(learnt) => Anchor::First(Some(learnt)),
                    // Where the file has its key, nothing need be learnt.
                    None if known.as_ref().is_some_and(|known| !known.is_empty()) => Anchor::File,
                    None => Anchor::First(None),
                }
            }
        };
        Ok(Trust {
            realm: realm.clone(),
            id: Arc::from(who.id),
            name: Arc::from(who.name),
            address: Arc::from(who.address),
            port: who.port,
            known: known.unwrap_or_default(),
            anchor,
        })
    }

    /// The host-key algorithms to ask for, plain and as certificates: those of the known keys, so that the server shows the one we can
    /// check.
    pub(super) fn algorithms(&self) -> (Vec<Algorithm>, Vec<Algorithm>) {
        let all = known_hosts::all_algorithms();
        let some = |keys: Vec<Algorithm>| {
            let is_kind =
                |algorithm: &Algorithm| keys.iter().any(|key| key == algorithm || (is_rsa(key) && is_rsa(algorithm)));
            all.iter().filter(|algorithm| is_kind(algorithm)).cloned().collect()
        };
        match &self.anchor {
            Anchor::File => (self.known.algorithms(), Vec::new()),
            Anchor::Given(keys) => {
                let kinds: Option<Vec<Algorithm>> = keys
                    .iter()
                    .map(|key| match key {
                        Given::Hash(_) => None,
                        Given::Key(key) => Some(key.algorithm()),
                    })
                    .collect();
                (kinds.map_or_else(|| all.clone(), some), Vec::new())
            }
            // The plain ones too: a server without a certificate is to be named by its key.
            Anchor::Authorities => (all.clone(), all),
            Anchor::First(Some(learnt)) => {
                let key = PublicKey::from_openssh(&learnt.key).map(|key| vec![key.algorithm()]);
                (key.map_or_else(|_| all.clone(), some), Vec::new())
            }
            Anchor::First(None) => (all, Vec::new()),
        }
    }

    /// Whether a server that shows this, and has proved to hold it, is the host.
    ///
    /// # Errors
    /// `host_key_revoked`, `host_key_changed`, `host_key_unknown`, `host_key_certificate`.
    pub(super) fn check(&self, shown: &PublicKeyOrCertificate, now_ms: i64) -> Result<Belief, LinkError> {
        let key = match (shown, &self.anchor) {
            (PublicKeyOrCertificate::Certificate(shown), Anchor::Authorities) => {
                return certificate::check(shown, &self.known, &self.who(), now_ms).map(|()| Belief::Known);
            }
            // None was asked for: a server that shows one all the same is not believed.
            (PublicKeyOrCertificate::Certificate(_), _) => return Err(self.changed("it shows a certificate")),
            (PublicKeyOrCertificate::PublicKey { key, .. }, _) => key,
        };
        self.known.not_revoked(key.key_data())?;
        match &self.anchor {
            Anchor::File => self.known.check(key).map(|()| Belief::Known),
            Anchor::Given(keys) if keys.iter().any(|given| given.is(key)) => Ok(Belief::Known),
            Anchor::First(Some(learnt))
                if PublicKey::from_openssh(&learnt.key).is_ok_and(|known| known.key_data() == key.key_data()) =>
            {
                Ok(Belief::Known)
            }
            Anchor::Given(_) | Anchor::First(Some(_)) => {
                Err(self.changed(&format!("it shows {}", known_hosts::shown(key))))
            }
            Anchor::Authorities => {
                let message = format!(
                    "{} shows only its key ({}) and no certificate, and ssh.host_keys is \"ca\": sign its key and name the certificate in its \
                     sshd_config (HostCertificate)",
                    certificate::place(&self.who()),
                    known_hosts::shown(key)
                );
                Err(LinkError::new("host_key_certificate", message))
            }
            Anchor::First(None) => {
                let text = key.to_openssh().unwrap_or_default();
                Ok(Belief::New(Learnt {
                    key: text.split(' ').take(2).collect::<Vec<_>>().join(" "),
                    fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
                    address: known_hosts::name(&self.address, self.port),
                    at_ms: now_ms,
                    unnamed_since_ms: None,
                }))
            }
        }
    }

    /// Keeps the key of a host that was met for the first time, on disk.
    ///
    /// # Errors
    /// It cannot be kept, or somebody else met another one under this id in the same moment.
    pub(super) async fn learn(&self, kept: &dyn HostKeys, new: Learnt) -> Result<String, LinkError> {
        let (key, words) = (new.key.clone(), new.shown());
        let counts = kept.learn(&self.realm, &self.id, new).await.map_err(|cause| LinkError { cause })?;
        if counts.key == key {
            tracing::warn!(project = %self.realm.project, environment = %self.realm.environment, host = %self.id, address = %self.address, key = words,
                "a host was met for the first time and its key is kept: compare it with the host's own");
            return Ok(words);
        }
        let other = Trust { anchor: Anchor::First(Some(counts)), ..self.clone() };
        Err(other.changed(&format!("it shows {words}")))
    }

    /// The error for a server that shows none of the keys that are known. What it has, or how it shows that, is `how`.
    pub(super) fn changed(&self, how: &str) -> LinkError {
        let at = certificate::place(&self.who());
        let message = match &self.anchor {
            Anchor::File => return self.known.changed(how),
            Anchor::Authorities => format!("{at} has no certificate of a kind that is known ({how})"),
            Anchor::Given(_) => format!(
                "the key of {at} is none of those that its host_keys give ({how}): somebody may be listening in, or the record is of another \
                 machine. If the host was installed anew, correct its record; where its source found the keys out (console_keys), let it look \
                 again: phased hosts {} --forget-key '{}'",
                self.realm, self.id
            ),
            Anchor::First(Some(learnt)) => {
                let since = rfc3339(learnt.at_ms);
                format!(
                    "the key of {at} is not the one that {} has had since {since}, when it was met at {}: {} ({how}). Somebody may \
                     be listening in, or it was installed anew under its old id. Compare the key with the host's own by another way; if it is \
                     right: phased hosts {} --forget-key '{}'",
                    self.id,
                    learnt.address,
                    learnt.shown(),
                    self.realm,
                    self.id
                )
            }
            Anchor::First(None) => format!("{at} shows no key that can be kept ({how})"),
        };
        LinkError::new("host_key_changed", message)
    }

    /// Whether there is anything that a server could fail to show.
    pub(super) fn is_anchored(&self) -> bool {
        match &self.anchor {
            Anchor::File => !self.known.is_empty(),
            Anchor::Given(_) | Anchor::First(Some(_)) => true,
            Anchor::Authorities | Anchor::First(None) => false,
        }
    }

    fn who(&self) -> Who<'_> {
        Who { id: &self.id, name: &self.name, address: &self.address, port: self.port }
    }
}

/// Whatever it hashes with.
fn is_rsa(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { .. })
}

impl Given {
    fn read(text: &str) -> Option<Given> {
        match text.starts_with("SHA256:") {
            true => Fingerprint::from_str(text.trim_end_matches('=')).ok().map(Given::Hash),
            false => PublicKey::from_openssh(text).ok().map(Given::Key),
        }
    }

    fn is(&self, key: &PublicKey) -> bool {
        match self {
            Given::Hash(hash) => key.fingerprint(HashAlg::Sha256) == *hash,
            Given::Key(given) => given.key_data() == key.key_data(),
        }
    }
}
