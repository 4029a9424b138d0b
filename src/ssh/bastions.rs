//! Sessions to bastions: one each, shared by all hosts behind it, made anew when it is gone.
//!
//! A bastion that cannot be reached is that bastion's error. Whoever waits for it gets it at once, and so does whoever comes within [`REST`]:
//! a dead bastion costs its own hosts one time-out, and others nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    SshLinks,
    connect::{Destination, Way},
    known_hosts::Who,
    link::SshLink,
    room::WAIT,
    trust::Trust,
};
use crate::{
    model::{
        cause::Cause,
        host::Host,
        host_key::{HostKeys, Policy, Realm},
        jump::{Hop, Jump},
    },
    ports::link::{Duplex, Link as _, LinkError},
    time::{Clock, Span, Stamp, within},
};

/// How long a bastion that could not be reached is not asked again.
const REST: Duration = Duration::from_secs(3);
/// How long one that has not answered a request may take to answer anything.
const PING: Duration = Duration::from_secs(5);
/// How often it is seen whether anybody still uses one; after two looks without, it is let go.
const LOOK: Duration = Duration::from_secs(30);
/// Connections and handshakes through one bastion at the same moment. Each is a connection that its machine makes to another sshd, and
/// bursts of them are what firewalls and `MaxStartups` (10:30:100) drop.
const HANDSHAKES: u32 = 8;

/// All of them.
#[derive(Default)]
pub(super) struct Bastions(Mutex<BTreeMap<String, Arc<Bastion>>>);

/// One, as one user.
struct Bastion {
    /// Held by whoever connects to it.
    state: tokio::sync::Mutex<State>,
    turns: Arc<Semaphore>,
    most: u32,
    /// [`Hop::id`].
    id: String,
}

#[derive(Default)]
struct State {
    link: Option<Arc<SshLink>>,
    /// When it could not be reached last, and why.
    failed: Option<(Stamp, LinkError)>,
}

impl State {
    /// Why it is not tried again yet.
    fn refusal(&self, now: &Stamp) -> Option<&LinkError> {
        self.failed.as_ref().filter(|(at, _)| now.since(at) < REST).map(|(_, error)| error)
    }
}

/// A way through a bastion, and the turn to use it until the host behind it has let us in.
pub(super) struct Through {
    pub(super) link: Arc<SshLink>,
    pub(super) place: String,
    pub(super) turn: OwnedSemaphorePermit,
}

impl SshLinks {
    /// A session to the last of the bastions on the way to `host`, and a turn on it. Cancel safe.
    ///
    /// # Errors
    /// The first bastion that cannot be had, by its name; `session_limit`.
    pub(super) async fn through(
        &self,
        realm: &Realm,
        host: &Host,
        jump: &Jump,
        user: &str,
    ) -> Result<Option<Through>, LinkError> {
        let mut way = String::new();
        let now = self.clock.now();
        let hops = jump.0.iter().map(|hop| {
            let spec = Spec::of(realm, host, hop, user);
            way.push_str(&spec.key());
            Step { bastion: self.bastions.of(&way, &spec, &now), spec }
        });
        let steps: Vec<Step<'_>> = hops.collect();
        self.behind(&steps).await
    }

    /// Ends the sessions to the bastion called `id`; all that goes through them ends with them.
    pub async fn let_go(&self, id: &str) {
        for bastion in self.bastions.called(id) {
            let link = bastion.state.lock().await.link.take();
            if let Some(link) = link {
                link.close().await;
            }
        }
    }

    /// A session to the last of `steps`, and a turn on it. Those before it are only asked where it has no session yet: who finds one takes
    /// nobody's turn but its own.
    fn behind<'a>(&'a self, steps: &'a [Step<'a>]) -> BoxFuture<'a, Result<Option<Through>, LinkError>> {
        Box::pin(async move {
            let Some((Step { bastion, spec }, before)) = steps.split_last() else { return Ok(None) };
            let link = bastion.link(self, spec, before).await.map_err(|error| named(spec.hop, error))?;
            let turn =
                within(&*self.clock, WAIT, Arc::clone(&bastion.turns).acquire_owned()).await.and_then(Result::ok);
            let turn = turn.ok_or_else(|| {
                let message = format!(
                    "the bastion {} has been busy for {}: its max_handshakes = {} are all under way",
                    spec.hop.place(),
                    Span(WAIT),
                    bastion.most
                );
                LinkError::new("session_limit", message).about(spec.hop)
            })?;
            Ok(Some(Through { link, place: spec.hop.place(), turn }))
        })
    }
}

impl Through {
    /// A connection made by the bastion.
    ///
    /// # Errors
    /// `unreachable` is what is behind it; everything else is the bastion's.
    pub(super) async fn dial(&self, address: &str, port: u16) -> Result<Box<dyn Duplex>, LinkError> {
        self.link.dial_ahead(address, port).await.map_err(|error| match error.cause.code.as_str() {
            "forwarding_refused" => {
                let message = format!(
                    "the bastion {} does not connect us to {address} port {port}: set AllowTcpForwarding local in its sshd_config, and no PermitOpen \
                     against it",
                    self.place
                );
                LinkError { cause: Cause { message, ..error.cause } }
            }
            "unreachable" => error,
            _ => LinkError { cause: Cause { message: format!("the bastion {}: {}", self.place, error.cause.message), ..error.cause } },
        })
    }

    /// Asks the bastion whether it is there. One that does not answer is given up, with every session through it: the next one to come
    /// makes it anew.
    ///
    /// # Errors
    /// `connection_lost` of the bastion.
    pub(super) async fn is_there(&self, clock: &dyn Clock) -> Result<(), LinkError> {
        if self.link.answers(clock, PING).await {
            return Ok(());
        }
        self.link.abandon();
        let message = format!("the bastion {} does not answer any more: its session is given up", self.place);
        Err(LinkError { cause: Cause::new("connection_lost", message).with("bastion", self.place.as_str()) })
    }
}

fn named(hop: &Hop, error: LinkError) -> LinkError {
    // One behind another one has been named already.
    if error.cause.facts.contains_key("bastion") {
        return error;
    }
    let message = format!("the bastion {}: {}", hop.place(), error.cause.message);
    LinkError { cause: Cause { message, ..error.cause } }.about(hop)
}

impl LinkError {
    fn about(self, hop: &Hop) -> Self {
        LinkError { cause: self.cause.with("bastion", hop.place()) }
    }
}

/// One bastion of a way.
struct Step<'a> {
    bastion: Arc<Bastion>,
    spec: Spec<'a>,
}

/// What is to be known to reach one.
struct Spec<'a> {
    realm: &'a Realm,
    hop: &'a Hop,
    way: Way<'a>,
    most: u32,
}

impl<'a> Spec<'a> {
    /// What it does not say itself is as for the host behind it.
    fn of(realm: &'a Realm, host: &'a Host, hop: &'a Hop, user: &'a str) -> Self {
        // Keys of the host are not the bastion's; how keys are known may well be.
        let usual = host.ssh.host_keys.as_ref().filter(|keys| matches!(keys, HostKeys::Policy(_)));
        let way = Way {
            to: Destination {
                user: hop.user.as_deref().unwrap_or(user),
                address: &hop.address,
                port: hop.port.unwrap_or(22),
            },
            key: hop.key.as_ref().or(host.ssh.key.as_ref()),
            known_hosts: hop.known_hosts.as_deref().or(host.ssh.known_hosts.as_deref()),
            host_keys: hop.host_keys.as_ref().or(usual),
            connect_timeout_ms: host.ssh.connect_timeout_ms,
        };
        Spec { realm, hop, way, most: hop.max_handshakes.unwrap_or(HANDSHAKES) }
    }

    /// By which it is told from others: whoever says the same gets the same session.
    fn key(&self) -> String {
        let Way { to, key, known_hosts, host_keys, .. } = &self.way;
        // What was learnt was learnt for one environment.
        let realm = matches!(host_keys, Some(HostKeys::Policy(Policy::Tofu))).then_some(self.realm);
        serde_json::json!([to.user, to.address, to.port, key, known_hosts, host_keys, realm, self.most]).to_string()
    }
}

impl Bastions {
    fn called(&self, id: &str) -> Vec<Arc<Bastion>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().filter(|bastion| bastion.id == id).cloned().collect()
    }

    fn of(&self, key: &str, spec: &Spec<'_>, now: &Stamp) -> Arc<Bastion> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody uses and of which nothing is to be known are forgotten.
        all.retain(|_, bastion| Arc::strong_count(bastion) > 1 || bastion.is_known(now));
        let most = spec.most;
        let turns = || Arc::new(Semaphore::new(most as usize));
        let made = || Bastion { state: Default::default(), turns: turns(), most, id: spec.hop.id() };
        Arc::clone(all.entry(key.to_owned()).or_insert_with(|| Arc::new(made())))
    }
}

impl Bastion {
    /// Whether there is a session, somebody makes one, or it is not to be tried again yet.
    fn is_known(&self, now: &Stamp) -> bool {
        let Ok(state) = self.state.try_lock() else { return true };
        state.link.as_ref().is_some_and(|link| !link.is_closed()) || state.refusal(now).is_some()
    }

    /// Its session, made where there is none; through the bastions before it, whose turn is held until then.
    async fn link(
        self: &Arc<Self>,
        links: &SshLinks,
        spec: &Spec<'_>,
        before: &[Step<'_>],
    ) -> Result<Arc<SshLink>, LinkError> {
        let mut state = self.state.lock().await;
        if let Some(link) = state.link.as_ref().filter(|link| !link.is_closed()) {
            return Ok(Arc::clone(link));
        }
        state.link = None;
        if let Some(error) = state.refusal(&links.clock.now()) {
            return Err(error.clone());
        }
        let (id, place) = (spec.hop.id(), spec.hop.place());
        let who = Who { id: &id, name: &place, address: &spec.hop.address, port: spec.way.to.port };
        // It may wait for the disk, which is done in nobody's turn.
        let trust = Trust::of(spec.realm, &who, spec.way.host_keys, spec.way.known_hosts, &*links.kept).await;
        let made = match trust {
            // What fails before it is kept there.
            Ok(trust) => links.session(&spec.way, trust, links.behind(before).await?, None, None).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(link) => {
                (state.link, state.failed) = (Some(Arc::clone(&link)), None);
                self.keep(links);
                Ok(link)
            }
            Err(error) => {
                state.failed = Some((links.clock.now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Lets go of the session when nobody has used it for a while.
    fn keep(self: &Arc<Self>, links: &SshLinks) {
        let (bastion, clock, stopping) = (Arc::downgrade(self), Arc::clone(&links.clock), links.tasks.stopping());
        links.tasks.spawn("ssh bastion", async move {
            let mut idle = false;
            loop {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = clock.sleep(LOOK) => {}
                }
                let Some(bastion) = bastion.upgrade() else { return };
                let mut state = bastion.state.lock().await;
                // Another one has been made, which has a keeper of its own; or this one is gone.
                let Some(link) = state.link.as_ref().filter(|link| !link.is_closed()) else { return };
                let unused = Arc::strong_count(link) == 1 && bastion.turns.available_permits() == bastion.most as usize;
                let was_unused = std::mem::replace(&mut idle, unused);
                if !(unused && was_unused) {
                    continue;
                }
                if let Some(link) = state.link.take() {
                    link.close().await;
                }
                return;
            }
        });
    }
}
