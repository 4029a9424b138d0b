//! Whether hosts can be deployed to: each is logged in to and runs nothing, as the daemon would, for whoever looks at an installation.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::{Need, of};
use crate::{
    engine::{
        command::{CommandSpec, Discard, Fleeting, Session, Shell, ToHost, What},
        view::{CauseView, hosts::HostCheckView},
        world::World,
    },
    model::{
        cause::Cause,
        host::{Host, Transport},
        host_key::Realm,
        ids::Digest,
        pipeline::Environment,
    },
    ports::program::Loaded,
};

/// So many at the same moment: a look is not to be felt.
const AT_ONCE: usize = 16;
/// Of what is run; the connection has its own limit.
const LIMIT: Duration = Duration::from_secs(10);

/// Looks at every host of an environment; those that are spoken to by signals have no shell, and are left out.
pub(in crate::engine) async fn check(
    world: &Arc<World>,
    loaded: &Loaded,
    environment: &Environment,
) -> Vec<HostCheckView> {
    let realm = Realm::new(&loaded.name, &environment.name);
    let found = of(world, &loaded.name, &loaded.code, environment, Need::Back).await;
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
            let began = world.clock.now();
            let cause = look(&world, realm, &host).await.err();
            let took = world.clock.now().since(&began);
            (host, u64::try_from(took.as_millis()).unwrap_or(u64::MAX), cause)
        }
    });
    let looked: Vec<_> = futures_util::stream::iter(looks).buffered(AT_ONCE).collect().await;
    looked.iter().map(|(host, took_ms, cause)| view(Some(host), *took_ms, cause.as_ref())).collect()
}

async fn look(world: &World, realm: Realm, host: &Host) -> Result<(), Cause> {
    let connect = ToHost { links: Arc::clone(&world.links), realm: Some(realm), host: host.clone() };
    let session = Session::new(Arc::new(connect), Arc::clone(&world.clock), Arc::new(Fleeting));
    session.link().await.map_err(|error| error.cause)?;
    let mut random = [0; 32];
    (world.random)(&mut random);
    let what = What::Sh { text: b"true".to_vec(), shell: Shell::Sh };
    let mut spec = CommandSpec::new(Digest::of(&random), what, LIMIT);
    spec.path.clone_from(&host.ssh.path);
    spec.reconnect = Duration::ZERO;
    let verdict = session.run(&spec, &mut Discard, &CancellationToken::new()).await;
    session.close().await;
    verdict.cause(&host.name, LIMIT).map_or(Ok(()), Err)
}
