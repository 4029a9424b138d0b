//! Step arguments with their secrets resolved, and values on their way to Lua.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use crate::{
    engine::redact::Redactor,
    model::{cause::Cause, host::SecretRef},
    ports::secrets::Secrets,
    time::Span,
};

/// Arguments whose every secret is now its bytes. Lives as long as the step that uses it; not printable.
pub(in crate::engine) struct Resolved(Value);

/// Replaces every `{"$secret": name}` in `args` and tells the redactor.
///
/// # Errors
/// `secret`: it is not to be had.
pub(in crate::engine) fn resolve(
    secrets: &dyn Secrets,
    args: &Value,
    redactor: &mut Redactor,
) -> Result<Resolved, Cause> {
    Ok(Resolved(resolved(secrets, args, redactor)?))
}

fn resolved(secrets: &dyn Secrets, value: &Value, redactor: &mut Redactor) -> Result<Value, Cause> {
    Ok(match value {
        Value::Object(map) if map.len() == 1 && map.contains_key("$secret") => {
            let reference: SecretRef =
                serde_json::from_value(value.clone()).map_err(|e| Cause::new("secret", e.to_string()))?;
            let secret = secrets.get(&reference.name).map_err(|e| Cause::new("secret", e.to_string()))?;
            redactor.add(&reference.name, secret.expose());
            lua_bytes(secret.expose())
        }
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(k, v)| Ok((k.clone(), resolved(secrets, v, redactor)?)))
                .collect::<Result<Map<_, _>, Cause>>()?,
        ),
        Value::Array(items) => {
            Value::Array(items.iter().map(|v| resolved(secrets, v, redactor)).collect::<Result<_, Cause>>()?)
        }
        other => other.clone(),
    })
}

impl Resolved {
    /// The same with `key` set to `value`.
    pub(in crate::engine) fn with(&self, key: &str, value: Value) -> Resolved {
        let mut args = self.0.clone();
        args[key] = value;
        Resolved(args)
    }

    /// The value as it is.
    pub(in crate::engine) fn raw(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    /// A text; numbers count as theirs.
    pub(in crate::engine) fn text(&self, key: &str) -> Option<String> {
        self.bytes(key).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A text or bytes.
    pub(in crate::engine) fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        self.raw(key).map(bytes_of)
    }

    /// A list of texts, or one.
    pub(in crate::engine) fn texts(&self, key: &str) -> Vec<String> {
        self.list(key).into_iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
    }

    /// A list of bytes, or one.
    pub(in crate::engine) fn list(&self, key: &str) -> Vec<Vec<u8>> {
        match self.raw(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => items.iter().map(bytes_of).collect(),
            Some(one) => vec![bytes_of(one)],
        }
    }

    /// A map of texts.
    pub(in crate::engine) fn map(&self, key: &str) -> Vec<(String, Vec<u8>)> {
        match self.raw(key) {
            Some(Value::Object(map)) => map.iter().map(|(k, v)| (k.clone(), bytes_of(v))).collect(),
            _ => Vec::new(),
        }
    }

    /// A duration.
    pub(in crate::engine) fn span(&self, key: &str) -> Option<Duration> {
        self.text(key).and_then(|text| text.parse::<Span>().ok()).map(|span| span.0)
    }

    /// A boolean.
    pub(in crate::engine) fn flag(&self, key: &str) -> Option<bool> {
        self.raw(key).and_then(Value::as_bool)
    }

    /// Numbers, or one.
    pub(in crate::engine) fn numbers(&self, key: &str) -> Vec<u64> {
        match self.raw(key) {
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_u64).collect(),
            Some(one) => one.as_u64().into_iter().collect(),
            None => Vec::new(),
        }
    }
}

/// The bytes of a text, number or `{"$b64": ...}`; nothing else has any.
pub(in crate::engine) fn bytes_of(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        Value::Number(number) => number.to_string().into_bytes(),
        Value::Bool(flag) => flag.to_string().into_bytes(),
        Value::Object(map) => {
            let encoded = map.get("$b64").and_then(Value::as_str).unwrap_or_default();
            STANDARD.decode(encoded).unwrap_or_default()
        }
        Value::Null | Value::Array(_) => Vec::new(),
    }
}

/// Bytes as Lua gets them: a text, or `{"$b64": ...}` where they are no UTF-8.
pub(in crate::engine) fn lua_bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::String(text.to_owned()),
        Err(_) => serde_json::json!({ "$b64": STANDARD.encode(bytes) }),
    }
}

/// A URL for messages: a query often holds a token, and user info always does.
pub(in crate::engine) fn without_query(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or(url);
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{scheme}://{}{path}", authority.rsplit('@').next().unwrap_or(authority))
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bytes_come_and_go_unchanged() {
        for bytes in [&b"plain"[..], b"\xff\x00\xfe", "é".as_bytes()] {
            assert_eq!(bytes_of(&lua_bytes(bytes)), bytes);
        }
        assert_eq!(bytes_of(&json!(8080)), b"8080");
    }

    #[test]
    fn messages_carry_no_credentials_of_a_url() {
        assert_eq!(without_query("https://u:p@h.example/a?token=x#y"), "https://h.example/a");
        assert_eq!(without_query(":8080/healthz?x=1"), ":8080/healthz");
    }
}
