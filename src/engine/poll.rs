//! Webhooks are hints: the branch's head is asked for at start and on an interval.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    conductor::{Ask, Conductor},
    ledger,
};
use crate::{
    model::{event::Wanted, run::Trigger},
    ports::program::Loaded,
};

/// How soon a remote that could not be asked at start is asked again, where there is no `poll`.
const RETRY: Duration = Duration::from_secs(60);

/// Asks for `loaded`'s head until it is told to end.
pub(super) async fn poll(conductor: Conductor, loaded: Arc<Loaded>, token: CancellationToken) {
    let world = Arc::clone(&conductor.inner.world);
    let stopping = world.tasks.stopping();
    loop {
        let asked = tokio::select! {
            () = stopping.cancelled() => return,
            () = token.cancelled() => return,
            asked = once(&conductor, &loaded) => asked,
        };
        let wait = match (asked, loaded.pipeline.source.poll_ms) {
            (_, Some(ms)) => Duration::from_millis(ms),
            (false, None) => RETRY,
            (true, None) => return,
        };
        tokio::select! {
            () = stopping.cancelled() => return,
            () = token.cancelled() => return,
            () = world.clock.sleep(wait) => {}
        }
    }
}

/// True when the remote answered.
async fn once(conductor: &Conductor, loaded: &Loaded) -> bool {
    let world = &conductor.inner.world;
    let place = format!("project {}", loaded.name);
    let sha = match world.forge.head(&loaded.name, &loaded.pipeline.source).await {
        Ok(sha) => sha,
        Err(cause) => {
            tracing::warn!(project = %loaded.name, %cause, "the head of the branch cannot be asked for");
            conductor.trouble(&place, Some(cause));
            return false;
        }
    };
    conductor.trouble(&place, None);
    if ledger::head(&*world.control, &loaded.name).is_some_and(|head| head.sha == sha) {
        return true;
    }
    let ask = Ask { wanted: Wanted::Pushed(sha.clone()), head: Some(sha), ..Ask::default() };
    if let Err(refusal) = conductor.request(&loaded.name, Trigger::Poll, "phased".to_owned(), ask, Vec::new()).await {
        tracing::error!(project = %loaded.name, %refusal, "a new head is not requested");
    }
    true
}
