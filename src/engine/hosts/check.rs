//! Whether hosts can be deployed to: each is logged in to and runs nothing, as the daemon would, for whoever looks at an installation.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::{Need, of};
use crate::{
    engine::{
        command::{CommandSpec, Discard, Fleeting, Session, Shell, ToHost, What},
        view::{CauseView, hosts::HostCheckView},
        world::World,
    },
    lifecycle::watch,
    model::{
        cause::Cause,
        host::{Host, Transport},
        host_key::Realm,
        ids::ProjectName,
        pipeline::Environment,
    },
    ports::{
        link::{Link, LinkError, Links},
        program::Loaded,
    },
    time::{Stamp, within},
};

/// So many at the same moment: a look is not to be felt.
const AT_ONCE: usize = 16;
/// Of what is run; the connection has its own limit.
const LIMIT: Duration = Duration::from_secs(10);
/// Of a look at all hosts of all environments: less than whoever asks waits for an answer, so that it hears of those that were looked at.
const WHOLE: Duration = Duration::from_secs(90);

/// Connects, and learns nothing of whom it meets.
struct Looking(Arc<dyn Links>);

#[async_trait]
impl Links for Looking {
    async fn local(&self, project: &ProjectName) -> Result<Arc<dyn Link>, LinkError> {
        self.0.local(project).await
    }
    async fn host(&self, realm: &Realm, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        self.0.look(realm, host).await
    }
    fn waiting(&self) -> Option<watch::Receiver<usize>> {
        self.0.waiting()
    }
}

fn late() -> Cause {
    let message = format!(
        "looking at all hosts took longer than {} s, so that this was not looked at: see to the others first, or ask for one environment",
        WHOLE.as_secs()
    );
    Cause::new("not_looked_at", message)
}

/// Looks at every host of an environment, as long as the look that began at `began` may take; those that are spoken to by signals have no shell, and are left out.
pub(in crate::engine) async fn check(
    world: &Arc<World>,
    loaded: &Loaded,
    environment: &Environment,
    began: &Stamp,
) -> Vec<HostCheckView> {
    let realm = Realm::new(&loaded.name, &environment.name);
    let left = |world: &World| WHOLE.saturating_sub(world.clock.now().since(began));
    let found = of(world, &loaded.name, &loaded.code, environment, Need::Back);
    let found = within(&*world.clock, left(world), found).await.unwrap_or_else(|| Err(late()));
    let view = |host: Option<&Host>, took_ms: u64, cause: Option<&Cause>| HostCheckView {
        project: loaded.name.to_string(),
        environment: environment.name.to_string(),
        id: host.map(|host| host.id.to_string()),
        name: host.map(|host| host.name.clone()),
        address: host.map(|host| host.address.clone()),
        took_ms,
        cause: cause.map(CauseView::from),
    };
    let hosts = match found {
        Ok(hosts) => hosts,
        Err(cause) => return vec![view(None, 0, Some(&cause))],
    };
    let by_ssh = hosts.into_iter().filter(|host| host.transport == Transport::Ssh);
    let looks = by_ssh.map(|host| {
        let (world, realm) = (Arc::clone(world), realm.clone());
        async move {
            let at = world.clock.now();
            let cause = within(&*world.clock, left(&world), look(&world, realm, &host))
                .await
                .unwrap_or_else(|| Err(late()))
                .err();
            let took = world.clock.now().since(&at);
            (host, u64::try_from(took.as_millis()).unwrap_or(u64::MAX), cause)
        }
    });
    let looked: Vec<_> = futures_util::stream::iter(looks).buffered(AT_ONCE).collect().await;
    looked.iter().map(|(host, took_ms, cause)| view(Some(host), *took_ms, cause.as_ref())).collect()
}

async fn look(world: &World, realm: Realm, host: &Host) -> Result<(), Cause> {
    let connect = ToHost { links: Arc::new(Looking(Arc::clone(&world.links))), realm: Some(realm), host: host.clone() };
    let session = Session::new(Arc::new(connect), Arc::clone(&world.clock), Arc::new(Fleeting));
    session.link().await.map_err(|error| error.cause)?;
    let what = What::Sh { text: b"true".to_vec(), shell: Shell::Sh };
    let mut spec = CommandSpec::passing(world.random_u128(), what, LIMIT);
    spec.path.clone_from(&host.ssh.path);
    spec.reconnect = Duration::ZERO;
    let verdict = session.run(&spec, &mut Discard, &CancellationToken::new()).await;
    session.close().await;
    verdict.cause(&host.name, LIMIT).map_or(Ok(()), Err)
}
