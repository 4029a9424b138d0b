//! New tags, found by asking. What was there when the patterns were first looked at is old: it starts nothing.
//!
//! Control holds `tags/<project>`, the patterns that were looked at, and `tag/<project>/<name>`, where each tag pointed.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::{
    conductor::{Ask, Conductor},
    ledger::{self, Head},
};
use crate::{
    model::{ids::Sha, run::Trigger},
    ports::{
        control::{Commit, Revision},
        program::Loaded,
    },
};

/// Looks once; true when the remote answered and what it says is taken care of.
pub(super) async fn look(conductor: &Conductor, loaded: &Loaded, token: &CancellationToken) -> bool {
    let world = &conductor.inner.world;
    let (project, source) = (&loaded.name, &loaded.pipeline.source);
    // Read before the remote is asked: whoever requests a tag meanwhile knows better.
    let prefix = ledger::tag_key(project, "");
    let known = world.control.scan(&prefix).into_iter();
    let known: BTreeMap<String, (Revision, Option<Head>)> =
        known.map(|entry| (entry.key, (entry.revision, serde_json::from_value(entry.value).ok()))).collect();
    let stopping = world.tasks.stopping();
    let found = tokio::select! {
        biased;
        () = stopping.cancelled() => return false,
        () = token.cancelled() => return false,
        found = world.forge.tags(project, source) => found,
    };
    let place = format!("project {project}");
    let tags = match found {
        Ok(tags) => tags,
        Err(cause) => {
            tracing::warn!(%project, %cause, "the tags cannot be asked for");
            conductor.trouble(&place, Some(cause));
            return false;
        }
    };
    let marker = format!("tags/{project}");
    let is_first = world.control.get(&marker).is_none_or(|entry| entry.value != json!(source.tags));
    if is_first {
        let unknown = tags.iter().filter(|(tag, _)| !known.contains_key(&ledger::tag_key(project, tag)));
        let seen = |(tag, sha): &(String, Sha)| {
            (ledger::tag_key(project, tag), Some(json!(Head { sha: sha.clone(), run: None })))
        };
        let mut puts: Vec<(String, Option<Value>)> = unknown.map(seen).collect();
        // The last put: until it is written this is the first look.
        puts.push((marker, Some(json!(source.tags))));
        return match ledger::commit(&*world.control, Commit::Setting, puts) {
            Ok(ticket) => ticket.synced().await.is_ok(),
            Err(error) => {
                tracing::error!(%project, %error, "the tags are not remembered");
                false
            }
        };
    }
    forget(conductor, loaded, &known, &tags);
    for (tag, sha) in tags {
        let key = ledger::tag_key(project, &tag);
        let (revision, seen) = known.get(&key).cloned().unwrap_or_default();
        if seen.is_some_and(|seen| seen.sha == sha) {
            continue;
        }
        let only_if = [(key, revision)];
        let ask = Ask::of_tag(project, tag.clone(), sha);
        // `None`: a hook was faster; the next look sees whether it was for this tag.
        if let Err(refusal) =
            conductor.request(project, Trigger::Poll, "phased".to_owned(), ask, &only_if, Vec::new()).await
        {
            tracing::error!(%project, tag, %refusal, "a new tag is not requested");
            return false;
        }
    }
    true
}

/// Forgets tags that are gone: one that comes back is a new one.
fn forget(
    conductor: &Conductor,
    loaded: &Loaded,
    known: &BTreeMap<String, (Revision, Option<Head>)>,
    tags: &[(String, Sha)],
) {
    let there: std::collections::BTreeSet<String> =
        tags.iter().map(|(tag, _)| ledger::tag_key(&loaded.name, tag)).collect();
    for (key, (revision, _)) in known.iter().filter(|(key, _)| !there.contains(*key)) {
        // Another's word on it meanwhile is the newer one.
        let puts = vec![(key.clone(), None)];
        if let Err(error) = conductor.inner.world.control.commit(Commit::Setting, &[(key.clone(), *revision)], puts) {
            tracing::debug!(key, %error, "a tag that is gone is not forgotten yet");
        }
    }
}
