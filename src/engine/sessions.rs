//! One session per host for as long as a run needs it, one for this machine, and what the run's secrets look like.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use super::{
    command::{Fleeting, Session, ToHost, ToLocal},
    conductor::locked,
    redact::Redactor,
    world::World,
};
use crate::{
    model::{
        cause::Cause,
        host::Host,
        ids::{HostId, ProjectName},
    },
    ports::link::{Link, LinkError},
};

/// The sessions of one run.
pub(super) struct Sessions {
    world: Arc<World>,
    hosts: Mutex<BTreeMap<HostId, Arc<Session>>>,
    local: Arc<Session>,
    /// Every secret a step of the run has used so far.
    redactor: Mutex<Redactor>,
}

impl Sessions {
    pub(super) fn new(world: Arc<World>, project: ProjectName) -> Self {
        let connect = Arc::new(ToLocal { links: Arc::clone(&world.links), project });
        let local = Arc::new(Session::new(connect, Arc::clone(&world.clock), Arc::new(Fleeting)));
        Sessions { world, hosts: Mutex::default(), local, redactor: Mutex::default() }
    }

    /// This machine, as the project's job user.
    pub(super) fn local(&self) -> Arc<Session> {
        Arc::clone(&self.local)
    }

    /// The session to `host`, made at first use.
    pub(super) fn host(&self, host: &Host) -> Arc<Session> {
        let mut hosts = locked(&self.hosts);
        let made = || {
            let connect = Arc::new(ToHost { links: Arc::clone(&self.world.links), host: host.clone() });
            Arc::new(Session::new(connect, Arc::clone(&self.world.clock), Arc::new(Fleeting)))
        };
        Arc::clone(hosts.entry(host.id.clone()).or_insert_with(made))
    }

    /// A connected link to `host`, for probes.
    pub(super) async fn link(&self, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        self.host(host).link().await
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
}
