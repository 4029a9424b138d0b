//! Webhooks are hints: the branch's head, and tags, are asked for at start and on an interval.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    conductor::{Ask, Conductor},
    ledger,
};
use crate::{
    model::{cause::Cause, event::Wanted, ids::Sha, run::Trigger},
    ports::{control::Revision, program::Loaded},
};

mod tags;

/// How soon a remote that could not be asked at start is asked again, where there is no `poll`.
const RETRY: Duration = Duration::from_secs(60);

/// Asks for `loaded`'s head until it is told to end.
pub(super) async fn poll(conductor: Conductor, loaded: Arc<Loaded>, token: CancellationToken) {
    let world = Arc::clone(&conductor.inner.world);
    let stopping = world.tasks.stopping();
    loop {
        // Read before the remote is asked: whoever requests a commit meanwhile knows better.
        let seen = ledger::head_revision(&*world.control, &loaded.name);
        let head = tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = token.cancelled() => return,
            head = world.forge.head(&loaded.name, &loaded.pipeline.source) => head,
        };
        // Not given up half-way: a request on disk that the queue was not told of would lie there.
        let asked = once(&conductor, &loaded, head, seen).await;
        let asked = asked && (loaded.pipeline.source.tags.is_empty() || tags::look(&conductor, &loaded, &token).await);
        let wait = match (asked, loaded.pipeline.source.poll_ms) {
            (_, Some(ms)) => Duration::from_millis(ms),
            (false, None) => RETRY,
            (true, None) => return,
        };
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = token.cancelled() => return,
            () = world.clock.sleep(wait) => {}
        }
    }
}

/// True when the remote answered and what it says is taken care of.
async fn once(conductor: &Conductor, loaded: &Loaded, head: Result<Sha, Cause>, seen: Revision) -> bool {
    let world = &conductor.inner.world;
    let place = format!("project {}", loaded.name);
    let sha = match head {
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
    let only_if = [(ledger::head_key(&loaded.name), seen)];
    match conductor.request(&loaded.name, Trigger::Poll, "phased".to_owned(), ask, &only_if, Vec::new()).await {
        // `None`: a hook was faster; the next look sees whether it was for this head.
        Ok(_) => true,
        Err(refusal) => {
            tracing::error!(project = %loaded.name, %refusal, "a new head is not requested");
            false
        }
    }
}
