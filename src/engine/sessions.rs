//! One session per host for as long as a run needs it, one for this machine, and what the run's secrets look like.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    command::{Acquaintance, Connect, Session, ToHost, ToLocal},
    owner::message::Message,
    redact::Redactor,
    world::World,
};
use crate::{
    lifecycle::locks::locked,
    model::{
        cause::Cause,
        host::{Host, Transport},
        host_key::Realm,
        ids::{EnvironmentName, HostId, ProjectName, RunId},
        run::Run,
        step::StepKey,
    },
    ports::{
        link::{Link, LinkError},
        outputs::{Frame, Stream},
    },
};

/// The machines that a run has met: in its journal before anything begins on one, so that none is ever taken for another.
struct Machines {
    known: Mutex<BTreeMap<HostId, String>>,
    owner: mpsc::Sender<Message>,
}

/// A host of a deployment, and who it turned out to be.
struct Met {
    machines: Arc<Machines>,
    deployment: u32,
    host: HostId,
}

#[async_trait]
impl Acquaintance for Met {
    fn known(&self) -> Option<String> {
        locked(&self.machines.known).get(&self.host).cloned()
    }

    async fn met(&self, id: &str, key: Option<String>) -> Result<(), Cause> {
        let gone =
            || Cause::new("stopping", format!("nothing was begun on {}: the run is not gone on with", self.host));
        let (reply, kept) = oneshot::channel();
        let (deployment, host, machine) = (self.deployment, self.host.clone(), id.to_owned());
        let met = Message::HostMet { deployment, host, machine, key, reply };
        self.machines.owner.send(met).await.map_err(|_| gone())?;
        kept.await.map_err(|_| gone())?.map_err(|why| Cause::new("degraded", why))?;
        locked(&self.machines.known).insert(self.host.clone(), id.to_owned());
        Ok(())
    }
}

/// A session that nobody has asked for within this is given back when others wait for one.
const UNUSED: Duration = Duration::from_secs(2);
/// How often, as long as others wait.
const GIVING: Duration = Duration::from_millis(500);

/// A channel of this machine that nobody has used for this is closed: the next step opens another.
const IDLE: Duration = Duration::from_secs(30);

/// The sessions of one run.
pub(super) struct Sessions {
    world: Arc<World>,
    project: ProjectName,
    /// Of each deployment so far.
    environments: Mutex<BTreeMap<u32, EnvironmentName>>,
    machines: Arc<Machines>,
    hosts: Mutex<BTreeMap<HostId, Arc<Session>>>,
    local: Arc<Session>,
    /// Every secret a step of the run has used so far.
    redactor: Mutex<Redactor>,
    over: CancellationToken,
    _over: DropGuard,
}

impl Sessions {
    /// For the run whose owner hears of new machines.
    pub(super) fn new(world: Arc<World>, project: ProjectName, run: RunId, owner: mpsc::Sender<Message>) -> Self {
        let connect = Arc::new(ToLocal { links: Arc::clone(&world.links), project: project.clone() });
        // What is begun on a host is a deployment's, and stays, also where the host is this machine.
        let local = Arc::new(Session::of_run(connect, Arc::clone(&world.clock), run));
        let machines = Arc::new(Machines { known: Mutex::default(), owner });
        let over = CancellationToken::new();
        Sessions {
            world,
            project,
            environments: Mutex::default(),
            machines,
            hosts: Mutex::default(),
            local,
            redactor: Mutex::default(),
            _over: over.clone().drop_guard(),
            over,
        }
    }

    /// Gives sessions that are not in use back as long as others wait for one, until all of them are dropped.
    pub(super) fn share(self: &Arc<Self>, run: &RunId) {
        self.tire(&self.local);
        let Some(mut waiting) = self.world.links.waiting() else { return };
        let (sessions, clock) = (Arc::downgrade(self), Arc::clone(&self.world.clock));
        let (over, stopping) = (self.over.clone(), self.world.tasks.stopping());
        self.world.tasks.spawn(format!("sessions of run {run}"), async move {
            loop {
                tokio::select! {
                    biased;
                    () = over.cancelled() => return,
                    () = stopping.cancelled() => return,
                    some = waiting.wait_for(|n| *n > 0) => if some.is_err() { return },
                }
                let Some(sessions) = sessions.upgrade() else { return };
                let all: Vec<Arc<Session>> = locked(&sessions.hosts).values().cloned().collect();
                drop(sessions);
                for session in all {
                    session.give_back(UNUSED).await;
                }
                clock.sleep(GIVING).await;
            }
        });
    }

    /// Has `session`, of this machine, keep no channel for long that nobody uses.
    fn tire(&self, session: &Arc<Session>) {
        let (session, over, stopping) = (Arc::clone(session), self.over.clone(), self.world.tasks.stopping());
        self.world.tasks.spawn(format!("idle channels of {}", self.project), async move {
            tokio::select! {
                biased;
                () = over.cancelled() => {}
                () = stopping.cancelled() => {}
                () = session.tire(IDLE) => {}
            }
        });
    }

    /// A deployment of the run has begun.
    pub(super) fn expect(&self, deployment: u32, environment: &EnvironmentName) {
        locked(&self.environments).insert(deployment, environment.clone());
    }

    fn realm(&self, deployment: u32) -> Option<Realm> {
        locked(&self.environments).get(&deployment).map(|environment| Realm::new(&self.project, environment))
    }

    /// What the journal says of the machines of an unfinished run.
    pub(super) fn remember(&self, run: &Run) {
        for deployment in &run.deployments {
            self.expect(deployment.n, &deployment.environment);
        }
        let hosts = run.deployments.iter().flat_map(|deployment| &deployment.hosts);
        let met = hosts.filter_map(|host| Some((host.host.id.clone(), host.machine.clone()?)));
        locked(&self.machines.known).extend(met);
    }

    /// Whether something may have begun on `host`: it has been met.
    pub(super) fn has_met(&self, host: &HostId) -> bool {
        locked(&self.machines.known).contains_key(host)
    }

    /// This machine, as the project's job user.
    pub(super) fn local(&self) -> Arc<Session> {
        Arc::clone(&self.local)
    }

    /// The session to `host` of a deployment, made at first use.
    pub(super) fn host(&self, deployment: u32, host: &Host) -> Arc<Session> {
        let mut hosts = locked(&self.hosts);
        let made = || {
            let links = Arc::clone(&self.world.links);
            let connect: Arc<dyn Connect> = match &host.transport {
                Transport::Local => Arc::new(ToLocal { links, project: self.project.clone() }),
                Transport::Ssh | Transport::Signal(_) => {
                    Arc::new(ToHost { links, realm: self.realm(deployment), host: host.clone() })
                }
            };
            let met = Met { machines: Arc::clone(&self.machines), deployment, host: host.id.clone() };
            let session = Arc::new(Session::new(connect, Arc::clone(&self.world.clock), Arc::new(met)));
            if host.transport == Transport::Local {
                self.tire(&session);
            }
            session
        };
        Arc::clone(hosts.entry(host.id.clone()).or_insert_with(made))
    }

    /// A connected link to `host`, for probes.
    pub(super) async fn link(&self, deployment: u32, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        self.host(deployment, host).link().await
    }

    /// Nothing more is wanted of `host`.
    pub(super) async fn forget(&self, host: &HostId) {
        let session = locked(&self.hosts).remove(host);
        if let Some(session) = session {
            session.close().await;
        }
    }

    /// Ends every session. Commands go on.
    pub(super) async fn close(&self) {
        let hosts = std::mem::take(&mut *locked(&self.hosts));
        futures_util::future::join_all(hosts.values().map(|session| session.close())).await;
        self.local.close().await;
    }

    /// Learns what a step resolved.
    pub(super) fn learn(&self, redactor: &Redactor) {
        if !redactor.is_empty() {
            locked(&self.redactor).merge(redactor);
        }
    }

    /// Whose run it is.
    pub(super) fn project(&self) -> &ProjectName {
        &self.project
    }

    /// Everything learnt so far.
    pub(super) fn redactor(&self) -> Redactor {
        locked(&self.redactor).clone()
    }

    pub(super) fn redact_cause(&self, cause: &Cause) -> Cause {
        locked(&self.redactor).cause(cause)
    }

    pub(super) fn redact_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        locked(&self.redactor).bytes(bytes)
    }

    /// A line of the pipeline, or of phased itself, in the run's output.
    pub(super) fn note(&self, run: &RunId, key: &StepKey, attempt: u32, mut bytes: Vec<u8>) {
        bytes.push(b'\n');
        let bytes = self.redact_bytes(&bytes);
        let (raw_len, wall_ms) = (bytes.len() as u64, self.world.clock.now().wall_ms);
        let frame = Frame { step: key.clone(), attempt, stream: Stream::Note, offset: 0, raw_len, wall_ms, bytes };
        if let Err(error) = self.world.outputs.append(run, frame) {
            tracing::warn!(project = %self.project, %run, %error, "a line of the pipeline's log was not stored");
        }
    }
}
