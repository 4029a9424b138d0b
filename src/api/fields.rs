//! What a request says, in its query and its body (JSON, form, or none), as one set of named fields.
//!
//! Handlers take the fields they know; [`Fields::finish`] then refuses the rest, all errors at once, with a guess at what was meant.

use axum::http::{HeaderMap, StatusCode, header};
use serde_json::Value;

use super::problem::{FieldError, Problem};
use crate::time::Span;

#[derive(Debug)]
struct Field {
    name: String,
    value: Value,
    in_query: bool,
    taken: bool,
}

/// The fields of one request.
#[derive(Debug, Default)]
pub(super) struct Fields {
    fields: Vec<Field>,
    known: Vec<&'static str>,
    errors: Vec<FieldError>,
}

/// More than any request has; beyond it nobody reads the errors either.
const MOST_FIELDS: usize = 100;

impl Fields {
    /// Only the query.
    pub(super) fn of_query(query: Option<&str>) -> Result<Fields, Problem> {
        Fields::read(query, &HeaderMap::new(), &[])
    }

    /// The query and the body by its content type.
    pub(super) fn read(query: Option<&str>, headers: &HeaderMap, body: &[u8]) -> Result<Fields, Problem> {
        let mut fields = Fields::default();
        let pairs = form(query.unwrap_or_default()).map_err(|e| Problem::bad_request("bad_query", e))?;
        fields.fields.extend(pairs.into_iter().map(|(name, value)| Field {
            name,
            value: Value::String(value),
            in_query: true,
            taken: false,
        }));
        if !body.trim_ascii().is_empty() {
            fields.add_body(headers, body)?;
        }
        if fields.fields.len() > MOST_FIELDS {
            return Err(Problem::bad_request("bad_query", format!("there are more than {MOST_FIELDS} fields")));
        }
        Ok(fields)
    }

    fn add_body(&mut self, headers: &HeaderMap, body: &[u8]) -> Result<(), Problem> {
        let mut types = headers.get_all(header::CONTENT_TYPE).iter();
        let kind = types.next().and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if types.next().is_some() {
            return Err(Problem::bad_request("bad_content_type", "there are two Content-Type headers"));
        }
        // curl -d '{...}' says "form" unless told otherwise. No form starts with a brace, so what is meant is plain.
        let braced = body.trim_ascii_start().starts_with(b"{");
        match kind.as_str() {
            "application/json" => self.add_json(body),
            "application/x-www-form-urlencoded" if braced => self.add_json(body),
            "application/x-www-form-urlencoded" => {
                let text =
                    std::str::from_utf8(body).map_err(|_| Problem::bad_request("bad_form", "the body is not UTF-8"))?;
                let pairs = form(text.trim()).map_err(|e| Problem::bad_request("bad_form", e))?;
                self.fields.extend(pairs.into_iter().map(|(name, value)| Field {
                    name,
                    value: Value::String(value),
                    in_query: false,
                    taken: false,
                }));
                Ok(())
            }
            _ => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                format!(
                    "the body is {}; send application/json or application/x-www-form-urlencoded (`curl -d ref=main`)",
                    if kind.is_empty() { "of no stated type" } else { kind.as_str() }
                ),
            )),
        }
    }

    fn add_json(&mut self, body: &[u8]) -> Result<(), Problem> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| Problem::bad_request("bad_json", format!("the body is not JSON: {e}")))?;
        let Value::Object(object) = value else {
            return Err(Problem::bad_request("bad_json", "the body must be a JSON object, {\"ref\": \"main\"}"));
        };
        self.fields.extend(object.into_iter().filter(|(_, v)| !v.is_null()).map(|(name, value)| Field {
            name,
            value,
            in_query: false,
            taken: false,
        }));
        Ok(())
    }

    fn take(&mut self, name: &'static str) -> Vec<(Value, String)> {
        self.known.push(name);
        let mut found = Vec::new();
        for field in self.fields.iter_mut().filter(|f| f.name == name) {
            field.taken = true;
            found.push((field.value.clone(), field.pointer()));
        }
        found
    }

    fn wrong(&mut self, pointer: String, detail: impl Into<String>) {
        self.errors.push(FieldError { pointer, detail: detail.into() });
    }

    fn take_one(&mut self, name: &'static str) -> Option<(Value, String)> {
        let mut found = self.take(name);
        if found.len() > 1 {
            let (_, pointer) = found.swap_remove(1);
            self.wrong(pointer, format!("{name} is given twice"));
            return None;
        }
        found.pop()
    }

    /// A text of at most 1,000 characters without control characters; empty is absent.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        let (value, pointer) = self.take_one(name)?;
        match value {
            Value::String(text) if text.chars().count() > 1000 => {
                self.wrong(pointer, format!("{name} is longer than 1000 characters"));
                None
            }
            Value::String(text) if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') => {
                self.wrong(pointer, format!("{name} has control characters in it"));
                None
            }
            Value::String(text) => Some(text).filter(|t| !t.is_empty()),
            other => {
                self.wrong(pointer, format!("{name} must be a text, not {}", shown(&other)));
                None
            }
        }
    }

    /// What `parse` makes of a text; its error says what would have been right.
    pub(super) fn parsed<T>(&mut self, name: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(name)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(detail) => {
                let pointer = self.pointer(name);
                self.wrong(pointer, detail);
                None
            }
        }
    }

    /// A duration.
    pub(super) fn span(&mut self, name: &'static str) -> Option<std::time::Duration> {
        self.parsed(name, |text| text.parse::<Span>().map(|s| s.0).map_err(|e| e.to_string()))
    }

    /// A whole number.
    pub(super) fn number(&mut self, name: &'static str, allowed: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let (value, pointer) = self.take_one(name)?;
        let number = match &value {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        };
        if let Some(number) = number.filter(|n| allowed.contains(n)) {
            return Some(number);
        }
        let (least, most) = (allowed.start(), allowed.end());
        self.wrong(pointer, format!("{name} must be a whole number from {least} to {most}, not {}", shown(&value)));
        None
    }

    /// Yes or no; a name alone (`?follow`) is yes.
    pub(super) fn flag(&mut self, name: &'static str) -> bool {
        self.switch(name).unwrap_or(false)
    }

    /// The same where saying nothing is not no.
    pub(super) fn switch(&mut self, name: &'static str) -> Option<bool> {
        let (value, pointer) = self.take_one(name)?;
        match &value {
            Value::Bool(flag) => return Some(*flag),
            Value::String(text) => match text.to_ascii_lowercase().as_str() {
                "" | "1" | "true" | "yes" | "on" => return Some(true),
                "0" | "false" | "no" | "off" => return Some(false),
                _ => {}
            },
            _ => {}
        }
        self.wrong(pointer, format!("{name} must be true or false, not {}", shown(&value)));
        None
    }

    /// Texts: a JSON list, or one text, or the name more than once; each also split at commas.
    pub(super) fn list(&mut self, name: &'static str) -> Vec<String> {
        let mut out = Vec::new();
        for (value, pointer) in self.take(name) {
            let items = match value {
                Value::Array(items) => items,
                other => vec![other],
            };
            for item in items {
                match item {
                    Value::String(text) => {
                        out.extend(text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned));
                    }
                    other => {
                        self.wrong(pointer.clone(), format!("{name} must be a list of texts, not {}", shown(&other)));
                    }
                }
            }
        }
        out
    }

    fn pointer(&self, name: &str) -> String {
        self.fields.iter().find(|f| f.name == name).map_or_else(|| format!("#/{name}"), Field::pointer)
    }

    /// Refuses what no handler took and what was wrong with what it took.
    pub(super) fn finish(mut self) -> Result<(), Problem> {
        let mut unknown = false;
        for field in self.fields.iter().filter(|f| !f.taken) {
            unknown = true;
            let name: String = field.name.chars().take(80).collect();
            let detail = match nearest(&name, &self.known) {
                Some(near) => format!("there is no field {name:?}; did you mean {near:?}?"),
                None if self.known.is_empty() => format!("there is no field {name:?}; this takes none"),
                None => format!("there is no field {name:?}; there are {}", self.known.join(", ")),
            };
            self.errors.push(FieldError { pointer: field.pointer(), detail });
        }
        let Some(first) = self.errors.first() else { return Ok(()) };
        let code = if unknown { "unknown_field" } else { "bad_value" };
        let detail = match self.errors.len() {
            1 => first.detail.clone(),
            n => format!("{} ({} more under \"errors\")", first.detail, n - 1),
        };
        let mut problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail);
        problem.errors = self.errors;
        Err(problem)
    }
}

impl Field {
    fn pointer(&self) -> String {
        let name: String = self.name.chars().take(80).collect();
        if self.in_query { format!("?{name}") } else { format!("#/{}", name.replace('~', "~0").replace('/', "~1")) }
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// `a=1&b=x+y&follow`.
fn form(text: &str) -> Result<Vec<(String, String)>, String> {
    let decode = |part: &str| {
        let spaced = part.replace('+', " ");
        percent_encoding::percent_decode_str(&spaced)
            .decode_utf8()
            .map(std::borrow::Cow::into_owned)
            .map_err(|_| format!("{:?} is not UTF-8 after percent-decoding", part.chars().take(80).collect::<String>()))
    };
    let mut pairs = Vec::new();
    for part in text.split('&').filter(|p| !p.is_empty()).take(MOST_FIELDS + 1) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        pairs.push((decode(name)?, decode(value)?));
    }
    Ok(pairs)
}

/// The known name that a slip of the finger away from `name`, if one is.
fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let limit = (name.chars().count() / 3).clamp(1, 3);
    known.iter().map(|k| (distance(name, k), *k)).filter(|(d, _)| *d <= limit).min().map(|(_, k)| k)
}

/// Edits from `a` to `b`, a swap of neighbours counted as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.to_lowercase().chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |i: usize, j: usize| rows.get(i).and_then(|r| r.get(j)).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(i, j) + usize::from(x != y)).min(at(i, j + 1) + 1).min(row.last().map_or(0, |n| n + 1));
            if i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x) {
                best = best.min(at(i - 1, j - 1) + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows.last().and_then(|r| r.last()).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(body: &str) -> Result<Fields, Problem> {
        let headers =
            HeaderMap::from_iter([(header::CONTENT_TYPE, "application/json; charset=utf-8".parse().unwrap())]);
        Fields::read(None, &headers, body.as_bytes())
    }

    fn curl(query: &str, body: &str) -> Result<Fields, Problem> {
        let kind = "application/x-www-form-urlencoded".parse().unwrap();
        Fields::read(Some(query), &HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]), body.as_bytes())
    }

    #[test]
    fn json_form_and_query_say_the_same() {
        for fields in [
            json(r#"{"ref":"v1.2 x","redeploy":true,"reason":null}"#),
            curl("", "ref=v1.2+x&redeploy=true"),
            curl("ref=v1.2%20x&redeploy", ""),
            curl("redeploy=1", "ref=v1.2%20x"),
            curl("", r#" {"ref":"v1.2 x","redeploy":true}"#),
        ] {
            let mut fields = fields.unwrap();
            assert_eq!(fields.text("ref").as_deref(), Some("v1.2 x"));
            assert_eq!(fields.text("reason"), None);
            assert!(fields.flag("redeploy"));
            assert!(!fields.flag("retest"));
            fields.finish().unwrap();
        }
    }

    #[test]
    fn all_errors_come_at_once_with_a_guess() {
        let mut fields = curl("redploy=1", "reason=a%00b&limit=x&retest=perhaps&zzzz=1&ref=a&ref=b").unwrap();
        fields.text("ref");
        fields.text("reason");
        fields.number("limit", 1..=500);
        fields.flag("retest");
        fields.flag("redeploy");
        let problem = fields.finish().unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (422, "unknown_field"));
        let told: Vec<String> = problem.errors.iter().map(|e| format!("{}: {}", e.pointer, e.detail)).collect();
        assert_eq!(
            told,
            [
                "#/ref: ref is given twice",
                "#/reason: reason has control characters in it",
                "#/limit: limit must be a whole number from 1 to 500, not \"x\"",
                "#/retest: retest must be true or false, not \"perhaps\"",
                "?redploy: there is no field \"redploy\"; did you mean \"redeploy\"?",
                "#/zzzz: there is no field \"zzzz\"; there are ref, reason, limit, retest, redeploy",
            ]
        );
    }

    #[test]
    fn bodies_of_no_use_are_refused() {
        let code = |r: Result<Fields, Problem>| r.map(|_| ()).unwrap_err().code.clone();
        assert_eq!(code(json("[1]")), "bad_json");
        assert_eq!(code(json("{\"a\":")), "bad_json");
        assert_eq!(code(json("ref=a")), "bad_json");
        assert_eq!(code(json(&"[".repeat(100_000))), "bad_json");
        assert_eq!(code(curl("", "a=%ff")), "bad_form");
        assert_eq!(code(curl("%ff", "")), "bad_query");
        assert_eq!(code(curl("", &"a&".repeat(200))), "bad_query");
        assert_eq!(code(Fields::read(None, &HeaderMap::new(), b"x=1")), "unsupported_media_type");
        let two = HeaderMap::from_iter([(header::CONTENT_TYPE, "text/xml".parse().unwrap())]);
        assert_eq!(code(Fields::read(None, &two, b"x")), "unsupported_media_type");
    }

    #[test]
    fn lists_come_in_every_way_people_write_them() {
        for fields in [
            json(r#"{"scopes":["read","deploy"]}"#),
            curl("", "scopes=read&scopes=deploy"),
            curl("scopes=read,deploy", ""),
        ] {
            assert_eq!(fields.unwrap().list("scopes"), ["read", "deploy"]);
        }
        let mut fields = json(r#"{"scopes":[1]}"#).unwrap();
        fields.list("scopes");
        assert!(fields.finish().is_err());
    }

    #[test]
    fn guesses_are_near_ones_only() {
        assert_eq!(nearest("enviroment", &["environment", "ref"]), Some("environment"));
        assert_eq!(nearest("fer", &["ref"]), None);
        assert_eq!(nearest("rfe", &["ref"]), Some("ref"));
        assert_eq!(nearest("", &["ref"]), None);
    }
}
