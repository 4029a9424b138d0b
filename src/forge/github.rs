//! GitHub's webhooks.
//!
//! The signature covers the body only: the event's name in the header is a claim, so header and shape of the body must agree, and
//! duplicates are told by the signature as well as by the delivery id. Sources: GitHub, "Validating webhook deliveries" and
//! "Webhook events and payloads".

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq as _};

use crate::{
    model::ids::Sha,
    ports::{
        forge::{Delivery, HookError, Hooks},
        secrets::Secret,
    },
};

/// Reads deliveries of github.com and GitHub Enterprise.
#[derive(Debug, Clone, Copy, Default)]
pub struct GitHub;

/// The parts of a push that matter.
#[derive(Deserialize)]
struct Push {
    #[serde(rename = "ref")]
    reference: String,
    before: String,
    after: String,
    #[serde(default)]
    deleted: bool,
    #[serde(default)]
    forced: bool,
    #[serde(default)]
    pusher: Option<Pusher>,
}

#[derive(Deserialize)]
struct Pusher {
    #[serde(default)]
    name: Option<String>,
}

fn unreadable(why: impl Into<String>) -> HookError {
    HookError::Body("GitHub", why.into())
}

impl Hooks for GitHub {
    fn read(
        &self,
        header: &dyn Fn(&str) -> Vec<String>,
        body: &[u8],
        secrets: &[Secret],
    ) -> Result<(Delivery, Option<String>, String), HookError> {
        let signature = check(&header("x-hub-signature-256"), body, secrets)?;
        let event = one(&header("x-github-event")).ok_or_else(|| unreadable("it needs one X-GitHub-Event header"))?;
        let id = one(&header("x-github-delivery")).filter(|id| is_id(id));
        let json = json(header("content-type").first().map_or("", String::as_str), body)?;
        Ok((delivery(&event, json)?, id, signature))
    }
}

/// The signature's 64 hex digits, if it is the only one and right.
fn check(headers: &[String], body: &[u8], secrets: &[Secret]) -> Result<String, HookError> {
    let [header] = headers else { return Err(HookError::Signature) };
    let hex = header.strip_prefix("sha256=").ok_or(HookError::Signature)?;
    let claimed = unhex(hex).ok_or(HookError::Signature)?;
    let mut genuine = Choice::from(0);
    for secret in secrets {
        // An empty key would be everybody's key.
        if secret.expose().is_empty() {
            continue;
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose()).map_err(|_| HookError::Signature)?;
        mac.update(body);
        // Every secret is tried whatever the one before said: which of them fits takes no different time.
        genuine |= mac.finalize().into_bytes()[..].ct_eq(&claimed[..]);
    }
    if bool::from(genuine) { Ok(hex.to_owned()) } else { Err(HookError::Signature) }
}

/// 32 bytes from exactly 64 lower-case digits: one signature has one text, so that duplicates are found by it.
fn unhex(hex: &str) -> Option<[u8; 32]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    if hex.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

fn one(values: &[String]) -> Option<String> {
    match values {
        [value] => Some(value.clone()),
        _ => None,
    }
}

/// A GUID in fact; anything short and plain will do as a key.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn json(content_type: &str, body: &[u8]) -> Result<Map<String, Value>, HookError> {
    let kind = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let decoded;
    let bytes = match kind.as_str() {
        "application/json" => body,
        "application/x-www-form-urlencoded" => {
            decoded = payload(body)?;
            &decoded
        }
        _ => {
            return Err(unreadable(
                "its Content-Type is neither application/json nor application/x-www-form-urlencoded",
            ));
        }
    };
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(unreadable("its body is no JSON object")),
        Err(error) => Err(unreadable(format!("its body is no JSON: {error}"))),
    }
}

/// The form's one field.
fn payload(body: &[u8]) -> Result<Vec<u8>, HookError> {
    let mut fields = body.split(|b| *b == b'&').filter_map(|field| field.strip_prefix(b"payload="));
    let (Some(value), None) = (fields.next(), fields.next()) else {
        return Err(unreadable("its form must have one field `payload`"));
    };
    let spaced: Vec<u8> = value.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
    Ok(percent_encoding::percent_decode(&spaced).collect())
}

fn delivery(event: &str, json: Map<String, Value>) -> Result<Delivery, HookError> {
    let shape = shape(&json);
    match (event, shape) {
        ("ping", "ping") => Ok(Delivery::Ping),
        ("push", "push") => push(json),
        ("ping" | "push", _) | (_, "push" | "ping") => Err(unreadable(format!(
            "its header says {:?}, its body is {shape}",
            event.chars().take(40).collect::<String>()
        ))),
        _ => Ok(Delivery::Other(event.chars().filter(|c| c.is_ascii_graphic()).take(60).collect())),
    }
}

fn shape(json: &Map<String, Value>) -> &'static str {
    let has = |key: &str| json.contains_key(key);
    // An event about something done to a thing has an action; pushes and pings have none.
    if has("action") {
        "another event"
    } else if has("ref") && has("before") && has("after") {
        "push"
    } else if has("zen") && has("hook_id") {
        "ping"
    } else {
        "neither a push (it has ref, before and after) nor a ping"
    }
}

fn push(json: Map<String, Value>) -> Result<Delivery, HookError> {
    let push: Push = serde_json::from_value(Value::Object(json)).map_err(|error| unreadable(error.to_string()))?;
    let sha = |text: &str, what: &str| text.parse::<Sha>().map_err(|error| unreadable(format!("{what}: {error}")));
    let (_before, after) = (sha(&push.before, "before")?, sha(&push.after, "after")?);
    let sound = push.reference.strip_prefix("refs/").is_some_and(|rest| !rest.is_empty())
        && push.reference.len() <= 300
        && !push.reference.chars().any(char::is_control);
    if !sound {
        return Err(unreadable("its ref is no full ref"));
    }
    let nothing = after.as_str().bytes().all(|b| b == b'0');
    if nothing != push.deleted {
        return Err(unreadable("`deleted` and `after` contradict each other"));
    }
    if push.deleted {
        return Ok(Delivery::Delete { reference: push.reference });
    }
    let pusher = push.pusher.and_then(|pusher| pusher.name);
    Ok(Delivery::Push { reference: push.reference, after, forced: push.forced, pusher })
}

#[cfg(test)]
mod tests;
