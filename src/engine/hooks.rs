//! A forge's delivery: genuine, new, for our branch; on disk before it is answered.

use serde_json::Value;

use super::{
    conductor::{Ask, Conductor},
    handle::{Hooked, Refusal},
    ledger,
};
use crate::{
    model::{
        doors,
        event::Wanted,
        ids::{Digest, RunId},
        run::Trigger,
    },
    ports::{
        control::{Commit, Revision},
        forge::{Delivery, HookError},
    },
};

/// Takes a delivery.
pub(super) async fn take(
    conductor: &Conductor,
    provider: &str,
    project: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Result<Hooked, Refusal> {
    let world = &conductor.inner.world;
    // No such project, no such forge and no secret look the same from outside.
    let loaded = conductor.project(project).map_err(|_| Refusal::HookUnknown)?;
    let dialect = world.hooks.get(provider).ok_or(Refusal::HookUnknown)?;
    let source = &loaded.pipeline.source;
    if source.webhook.is_empty() {
        return Err(Refusal::HookUnknown);
    }
    let mut secrets = Vec::new();
    for reference in &source.webhook {
        match world.secrets.get(&reference.name) {
            Ok(secret) => secrets.push(secret),
            Err(error) => {
                tracing::error!(%project, %error, "a webhook secret cannot be read; deliveries it signs are refused")
            }
        }
    }
    if secrets.is_empty() {
        return Err(Refusal::HookUnknown);
    }
    let header = |name: &str| -> Vec<String> {
        headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone()).collect()
    };
    let (delivery, id, signature) = dialect.read(&header, body, &secrets).map_err(|error| match error {
        HookError::Signature => Refusal::HookSignature,
        HookError::Body(..) => Refusal::HookBody(error.to_string()),
    })?;
    let (after, tag, pusher) = match delivery {
        Delivery::Ping => return Ok(Hooked::Pong),
        Delivery::Other(event) => return Ok(Hooked::Ignored(format!("{event} starts nothing here"))),
        Delivery::Delete { reference } => return Ok(Hooked::Ignored(format!("{reference} was deleted"))),
        Delivery::Push { reference, after, pusher, .. } => {
            let tag = reference.strip_prefix("refs/tags/").filter(|tag| doors::tagged(&source.tags, tag));
            if tag.is_none() && reference != format!("refs/heads/{}", source.branch) {
                let tags = match source.tags.is_empty() {
                    true => String::new(),
                    false => format!(" and matches none of {}", source.tags.join(", ")),
                };
                return Ok(Hooked::Ignored(format!("{reference} is not the branch {}{tags}", source.branch)));
            }
            (after, tag.map(str::to_owned), pusher)
        }
    };
    // The body is signed, the delivery id is not: a replay comes with a new id and the same signature.
    let mut keys = vec![format!("signature/{}", named(project, &signature))];
    keys.extend(id.map(|id| format!("delivery/{provider}/{}", named(project, &id))));
    let by = pusher.map_or_else(|| provider.to_owned(), |pusher| format!("{provider} {pusher}"));
    // Where it is known already what the ref points at.
    let (place, ask) = match tag {
        Some(tag) => (ledger::tag_key(&loaded.name, &tag), Ask::of_tag(&loaded.name, tag, after.clone())),
        None => {
            let ask = Ask { wanted: Wanted::Pushed(after.clone()), head: Some(after.clone()), ..Ask::default() };
            (ledger::head_key(&loaded.name), ask)
        }
    };
    // Two deliveries at the same moment: whoever writes second finds the first when it looks again.
    for _ in 0..16 {
        if let Some(run) = keys.iter().find_map(|key| run_of(&world.control.get(key)?.value)) {
            return seen_before(conductor, run).await;
        }
        let (revision, seen) = ledger::seen(&*world.control, &place);
        if let Some(ledger::Head { sha, run: Some(run) }) = seen
            && sha == after
        {
            // A poll was faster, or the forge sends the same push twice in two forms.
            return seen_before(conductor, run).await;
        }
        let mut only_if: Vec<_> = keys.iter().map(|key| (key.clone(), Revision::default())).collect();
        only_if.push((place.clone(), revision));
        let asked =
            conductor.request(&loaded.name, Trigger::Hook, by.clone(), ask.clone(), &only_if, keys.clone()).await?;
        if let Some(view) = asked {
            let run = view.id.parse().map_err(|_| Refusal::Degraded("a run without an id".to_owned()))?;
            return Ok(Hooked::Accepted(run));
        }
    }
    Err(Refusal::QueueFull(format!("project {project} is given too many pushes at once; send it again")))
}

/// A duplicate, answered once the first is on disk: its own answer may still be on the way.
async fn seen_before(conductor: &Conductor, run: RunId) -> Result<Hooked, Refusal> {
    // Nothing is written; the record's place behind the first is what counts.
    let ticket = conductor.inner.world.control.commit(Commit::RunRequested, &[], Vec::new());
    conductor.synced(&ticket.map_err(|error| conductor.refused(&error))?).await?;
    Ok(Hooked::Duplicate(run))
}

/// What a project was sent, as a key: half of a digest tells as many apart as there will be, and days of them are remembered.
fn named(project: &str, what: &str) -> String {
    Digest::of(format!("{project}|{what}").as_bytes()).as_str()[..32].to_owned()
}

fn run_of(value: &Value) -> Option<RunId> {
    value.as_str()?.parse().ok()
}
