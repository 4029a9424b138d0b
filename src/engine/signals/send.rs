//! The sender: one signal, one answer, both genuine or nothing is believed.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{super::world::World, pieces};
use crate::{
    model::{
        cause::{Cause, one_line},
        health::{Fact, Sight},
        host::{Host, Signalling, Transport},
        ids::{EnvironmentName, ProjectName},
        pipeline::{AskedAfter, Check, Health},
        signal::{
            self, Answer, DOCUMENT, Domain, LIFETIME, MOST_BYTES, MOST_PIECE, Order, Part, PublicKey, SIGNATURE, Said,
            Signal, Stands,
        },
    },
    ports::{
        http::{Request, Response},
        secrets::Secret,
    },
};

/// Where it is said how receivers are asked.
const ASKED_BY: &str = "whether it is asked by https is `tls` in the environment's signal = { ... }";

/// Of one request, answer included.
const LIMIT: Duration = Duration::from_secs(20);

/// Why there is no answer to go by.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) enum Missed {
    /// It was not sent, or nobody was there: nothing has happened.
    Shut(Cause),
    /// It may have arrived.
    Lost(Cause),
    /// The receiver, which it is for certain, has refused it.
    Refused(Cause),
}

impl Missed {
    pub(in crate::engine) fn cause(self) -> Cause {
        match self {
            Missed::Shut(cause) | Missed::Lost(cause) | Missed::Refused(cause) => cause,
        }
    }
}

/// The daemon of a host, for one environment.
pub(in crate::engine) struct Receiver<'a> {
    pub(in crate::engine) world: &'a Arc<World>,
    pub(in crate::engine) host: &'a Host,
    pub(in crate::engine) project: &'a ProjectName,
    pub(in crate::engine) environment: &'a EnvironmentName,
}

impl Receiver<'_> {
    /// Where it is asked.
    pub(in crate::engine) fn url(&self, path: &str) -> Result<String, Cause> {
        let signalling = self.signalling()?;
        let scheme = if signalling.tls { "https" } else { "http" };
        let (address, port) = (&self.host.address, self.host.ssh.port.unwrap_or(signalling.port));
        let address = if address.contains(':') { format!("[{address}]") } else { address.clone() };
        Ok(format!("{scheme}://{address}:{port}{path}"))
    }

    fn signalling(&self) -> Result<&Signalling, Cause> {
        match &self.host.transport {
            Transport::Signal(signalling) => Ok(signalling),
            Transport::Ssh | Transport::Local => Err(Cause::new(
                "no_signals",
                format!(
                    "{} has no daemon that is sent signals: its environment does not say transport = \"signal\"",
                    self.host.name
                ),
            )),
        }
    }

    /// Its public key: bound to the host's id, whatever its address.
    fn key(&self) -> Result<PublicKey, Cause> {
        if let Some(key) = &self.host.receiver_key {
            return Ok(key.clone());
        }
        match &self.signalling()?.receivers {
            Some(file) => self.world.signer.receiver(file, &self.host.id),
            None => Err(Cause::new(
                "host_key_unknown",
                format!(
                    "the public key of {} is not known: run `phased keys show` on it, and give the key as receiver_key of the host or in \
                     the file that signal.receivers names",
                    self.host.name
                ),
            )),
        }
    }

    fn private(&self) -> Result<Secret, Cause> {
        let name = &self.signalling()?.key.name;
        self.world.secrets.get(name).map_err(|error| Cause::new("signal_key", error.to_string()))
    }

    /// Sends an order and reads the answer.
    pub(in crate::engine) async fn ask(&self, order: Order) -> Result<Said, Missed> {
        self.exchange(order, None).await
    }

    /// Sends what the receiver lacks of a blob.
    pub(in crate::engine) async fn push(&self, mut part: Part) -> Result<(), Missed> {
        while !part.whole {
            let Some((order, bytes)) = pieces::next(self.world, &part).await.map_err(Missed::Shut)? else {
                let message = format!(
                    "{} has more of blob {} than there is: its data directory is not sound",
                    self.host.name, part.blob
                );
                return Err(Missed::Refused(Cause::new("signal_artifact", message)));
            };
            let have = part.have;
            match self.exchange(order, Some(bytes)).await? {
                Said::Missing { blobs } => {
                    let next = blobs.into_iter().find(|other| other.blob == part.blob);
                    part = next.ok_or_else(|| Missed::Lost(self.odd("it does not speak of the blob that was sent")))?;
                }
                _ => return Err(Missed::Lost(self.odd("it does not say how much it has"))),
            }
            if part.have <= have && !part.whole {
                return Err(Missed::Lost(self.odd("it keeps nothing of what it is sent")));
            }
        }
        Ok(())
    }

    async fn exchange(&self, order: Order, piece: Option<Vec<u8>>) -> Result<Said, Missed> {
        let world = self.world;
        let mut random = [0; 16];
        (world.random)(&mut random);
        let now = world.clock.now().wall_ms;
        let lifetime = i64::try_from(LIFETIME.as_millis()).unwrap_or(i64::MAX);
        let sent = Signal {
            version: signal::VERSION,
            project: self.project.clone(),
            environment: self.environment.clone(),
            audience: self.host.id.clone(),
            nonce: random.iter().map(|byte| format!("{byte:02x}")).collect(),
            issued_at_ms: now,
            not_after_ms: now.saturating_add(lifetime),
            order,
        };
        let (request, theirs) = self.request(&sent, piece).map_err(Missed::Shut)?;
        let response = match world.http.request(request).await {
            Ok(response) => response,
            Err(cause) => {
                let message = format!("the daemon of {} cannot be asked: {}", self.host.name, cause.message);
                let missed = |code| Cause::new(code, message.clone()).with("host", self.host.id.as_str());
                return Err(match cause.code.as_str() {
                    "http_connect" | "http_url" => Missed::Shut(missed("unreachable")),
                    // Somebody is there, and is not believed to be the host: nothing was sent.
                    "http_tls" => {
                        let cause = missed("host_key_certificate");
                        let message = format!("{}. Its certificate is `tls` in its [api]; {ASKED_BY}", cause.message);
                        Missed::Shut(Cause { message, ..cause })
                    }
                    _ => Missed::Lost(missed("connection_lost")),
                });
            }
        };
        self.answer(&sent, &response, &theirs)
    }

    fn request(&self, sent: &Signal, piece: Option<Vec<u8>>) -> Result<(Request, PublicKey), Cause> {
        let theirs = self.key()?;
        let document = signal::written(sent);
        if document.len() > MOST_BYTES {
            return Err(Cause::new("signal_form", "the release has too much about it for a signal"));
        }
        let (key, signature) = self.world.signer.sign(&self.private()?, Domain::Signal, &document)?;
        let mut headers = vec![(SIGNATURE.to_owned(), format!("{} {signature}", key.fingerprint()))];
        let path = if piece.is_some() { "/v1/signals/pieces" } else { "/v1/signals" };
        let body = match piece {
            Some(piece) => {
                headers.push((DOCUMENT.to_owned(), STANDARD.encode(&document)));
                headers.push(("content-type".to_owned(), "application/octet-stream".to_owned()));
                piece
            }
            None => {
                headers.push(("content-type".to_owned(), "application/json".to_owned()));
                document
            }
        };
        let method = "POST".to_owned();
        let request = Request { method, url: self.url(path)?, headers, body, timeout: LIMIT, max_body: MOST_BYTES };
        Ok((request, theirs))
    }

    /// What it said, if it is the receiver that says so, to this very signal.
    fn answer(&self, sent: &Signal, response: &Response, theirs: &PublicKey) -> Result<Said, Missed> {
        let name = &self.host.name;
        let header = response.headers.iter().find(|(header, _)| header == SIGNATURE).map(|(_, value)| value.as_str());
        let Some((fingerprint, signature)) = header.and_then(|value| value.split_once(' ')) else {
            return Err(self.unsigned(response));
        };
        if fingerprint != theirs.fingerprint() {
            let message = format!(
                "what answers as {name} has the key {fingerprint}, and {name} has {}: somebody else listens there, or it was made anew; \
                 if so, put its new key where the old one is",
                theirs.fingerprint()
            );
            return Err(Missed::Lost(Cause::new("host_key_changed", message)));
        }
        if response.truncated || !self.world.signer.verify(theirs, Domain::Answer, &response.body, signature) {
            let message = format!("the answer of {name} is not signed by its key: somebody has changed it on the way");
            return Err(Missed::Lost(Cause::new("host_key_changed", message)));
        }
        let answer: Answer = signal::read(&response.body).map_err(|why| Missed::Lost(self.odd(&why)))?;
        if answer.version != signal::VERSION || answer.nonce != sent.nonce || answer.audience != self.host.id {
            return Err(Missed::Lost(self.odd("it is the answer to another signal")));
        }
        match answer.said {
            Said::Refused { cause } => {
                let message = format!("the daemon of {name} refuses: {}", cause.message);
                Err(Missed::Refused(Cause { message, ..cause }.with("host", self.host.id.as_str())))
            }
            said => Ok(said),
        }
    }

    /// An answer that anybody could have given.
    fn unsigned(&self, response: &Response) -> Missed {
        let name = &self.host.name;
        let said: Option<serde_json::Value> = serde_json::from_slice(&response.body).ok();
        let said = said.as_ref().and_then(|said| said.get("detail")?.as_str());
        let said = said.map(|said| one_line(said, 300));
        let words = said.as_ref().map(|said| format!(": {said}")).unwrap_or_default();
        let cause = match response.status {
            401 => Cause::new(
                "auth_failed",
                format!("the daemon of {name} does not know the key that signs for it{words}"),
            ),
            404 => Cause::new("host_key_unknown", format!("what answers as {name} listens to no signals{words}")),
            413 => {
                let message = format!(
                    "what answers as {name} takes no body of {} KiB (status 413{words}): let a proxy in front of it pass as much, or upgrade phased there",
                    MOST_PIECE >> 10
                );
                Cause::new("host_key_unknown", message)
            }
            // A daemon that has too much to do, or a proxy whose daemon is away: asked again as after a cut.
            429 | 502..=504 => {
                let status = response.status;
                let message = format!("what answers as {name} takes no signals just now (status {status}{words})");
                Cause::new("connection_lost", message)
            }
            status => {
                Cause::new("host_key_unknown", format!("what answers as {name} signs nothing (status {status}{words})"))
            }
        };
        Missed::Lost(cause.with("host", self.host.id.as_str()))
    }

    pub(in crate::engine) fn odd(&self, why: &str) -> Cause {
        let message = format!("the daemon of {} does not answer what it was asked: {why}", self.host.name);
        Cause::new("connection_lost", message).with("host", self.host.id.as_str())
    }

    async fn look(&self, after: &AskedAfter) -> Result<Stands, Cause> {
        let order = Order::Look { release: after.release.clone(), revision: after.revision.clone() };
        match self.ask(order).await.map_err(Missed::cause)? {
            Said::Live(stands) => Ok(*stands),
            _ => Err(self.odd("it does not say what is live")),
        }
    }
}

fn receiver<'a>(world: &'a Arc<World>, host: &'a Host, after: &'a AskedAfter) -> Receiver<'a> {
    Receiver { world, host, project: &after.project, environment: &after.environment }
}

/// Looks at a host through its own daemon: that this release is live there, and well.
pub(in crate::engine) async fn well(
    world: &Arc<World>,
    host: &Host,
    health: &Health,
    limit: Duration,
) -> Result<Vec<Sight>, Cause> {
    let mut sights = Vec::new();
    for check in &health.checks {
        let Check::Signal(Some(after)) = check else { continue };
        let asked = crate::time::within(&*world.clock, limit, receiver(world, host, after).look(after)).await;
        let late = || Err(Cause::new("connection_lost", format!("the daemon of {} did not answer in time", host.name)));
        let stands = asked.unwrap_or_else(late)?;
        // What it says of what is being changed is neither good nor bad.
        if let (None, Some(unseen)) = (&stands.bad, &stands.unseen) {
            let message = format!("the daemon of {} cannot tell how it is: {}", host.name, unseen.message);
            return Err(Cause::new("connection_lost", message));
        }
        sights.push(sight(after, &stands));
    }
    Ok(sights)
}

fn sight(after: &AskedAfter, stands: &Stands) -> Sight {
    let bad = |seen: String, fact| Sight { good: false, seen, fact };
    match (&stands.bad, &stands.release, &stands.wrong) {
        (Some(why), ..) => bad(why.message.clone(), Some(Fact::Hopeless)),
        (None, Some(live), None) if *live == after.release => {
            let well = if stands.looked { "and well" } else { "and was deployed well; there is no health to look at" };
            Sight { good: true, seen: format!("{live} is live {well}"), fact: None }
        }
        (None, Some(live), Some(wrong)) if *live == after.release => bad(wrong.message.clone(), None),
        (None, Some(live), _) => bad(format!("{live} is live there, and not {}", after.release), None),
        (None, None, _) => bad("nothing is live there".to_owned(), None),
    }
}

/// Whether a host's daemon is there, has nothing else to do, has not found the release bad, and would take a signal.
pub(in crate::engine) async fn would_take(world: &Arc<World>, host: &Host, after: &AskedAfter) -> bool {
    let takes = |stands: &Stands| stands.shut.is_none() && stands.busy.is_none() && stands.bad.is_none();
    receiver(world, host, after).look(after).await.is_ok_and(|stands| takes(&stands))
}
