//! Bearer tokens: 256 random bits, stored as a hash, compared in constant time.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use subtle::ConstantTimeEq;

use super::{
    conductor::Conductor,
    handle::{NewToken, Refusal},
    view::TokenView,
};
use crate::{model::ids::Digest, ports::control::Commit, time::rfc3339};

/// What a token may do, weakest first.
const SCOPES: [&str; 3] = ["read", "deploy", "admin"];
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Token {
    name: String,
    scopes: Vec<String>,
    projects: Vec<String>,
    created_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    expires_ms: Option<i64>,
    by: String,
    /// SHA-256 of the whole text: of 256 random bits, so no slow hash is needed.
    hash: Digest,
}

impl Token {
    fn view(&self, id: &str) -> TokenView {
        TokenView {
            id: id.to_owned(),
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            projects: self.projects.clone(),
            created_at: rfc3339(self.created_ms),
            expires_at: self.expires_ms.map(rfc3339),
        }
    }
}

/// `count` characters of base 62, without bias.
fn base62(conductor: &Conductor, count: usize) -> String {
    let mut text = String::with_capacity(count);
    let mut bytes = [0; 64];
    while text.len() < count {
        (conductor.inner.world.random)(&mut bytes);
        let usable = bytes.iter().filter(|byte| **byte < 248).map(|byte| char::from(ALPHABET[usize::from(byte % 62)]));
        text.extend(usable.take(count - text.len()));
    }
    text
}

pub(super) async fn create(
    conductor: &Conductor,
    name: &str,
    scopes: Vec<String>,
    projects: Vec<String>,
    ttl: Option<Duration>,
    by: &str,
) -> Result<NewToken, Refusal> {
    conductor.writable()?;
    if name.is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
        return Err(Refusal::Value("a token's name has 1 to 100 characters and no control characters".to_owned()));
    }
    if scopes.is_empty() {
        return Err(Refusal::Value(format!("a token needs at least one scope of {}", SCOPES.join(", "))));
    }
    if let Some(scope) = scopes.iter().find(|scope| !SCOPES.contains(&scope.as_str())) {
        return Err(Refusal::Value(format!("scope {scope:?} is not one of {}", SCOPES.join(", "))));
    }
    for project in &projects {
        conductor.project(project)?;
    }
    let world = &conductor.inner.world;
    let now = world.clock.now().wall_ms;
    let id = base62(conductor, 8);
    let text = format!("phd_{id}_{}", base62(conductor, 43));
    let expires_ms = ttl.map(|ttl| now.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)));
    let token = Token {
        name: name.to_owned(),
        scopes,
        projects,
        created_ms: now,
        expires_ms,
        by: by.to_owned(),
        hash: Digest::of(text.as_bytes()),
    };
    let puts = vec![(format!("token/{id}"), Some(json!(token)))];
    let ticket = world.control.commit(Commit::Token, &[], puts).map_err(|e| conductor.refused(&e))?;
    conductor.synced(&ticket).await?;
    Ok(NewToken { text, token: token.view(&id) })
}

pub(super) fn list(conductor: &Conductor) -> Vec<TokenView> {
    let entries = conductor.inner.world.control.scan("token/");
    let view = |entry: crate::ports::control::Entry| {
        let token: Token = serde_json::from_value(entry.value).ok()?;
        Some(token.view(entry.key.strip_prefix("token/")?))
    };
    entries.into_iter().filter_map(view).collect()
}

pub(super) async fn revoke(conductor: &Conductor, id: &str, by: &str) -> Result<(), Refusal> {
    conductor.writable()?;
    let world = &conductor.inner.world;
    let key = format!("token/{id}");
    if world.control.get(&key).is_none() {
        return Err(Refusal::TokenUnknown(id.to_owned()));
    }
    let ticket = world.control.commit(Commit::Token, &[], vec![(key, None)]).map_err(|e| conductor.refused(&e))?;
    conductor.synced(&ticket).await?;
    tracing::info!(token = id, by, "a token was revoked");
    Ok(())
}

pub(super) fn authenticate(conductor: &Conductor, text: &str) -> Option<TokenView> {
    let id = text.strip_prefix("phd_")?.split('_').next()?;
    let world = &conductor.inner.world;
    let token: Token = serde_json::from_value(world.control.get(&format!("token/{id}"))?.value).ok()?;
    let same = Digest::of(text.as_bytes()).as_str().as_bytes().ct_eq(token.hash.as_str().as_bytes());
    let alive = token.expires_ms.is_none_or(|at| world.clock.now().wall_ms < at);
    (bool::from(same) && alive).then(|| token.view(id))
}
