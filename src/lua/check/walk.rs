//! The walk itself: one method for each kind.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use mlua::{Table, Value as Lua};
use serde_json::{Map, Value as Json};

use super::{
    Finding, Functions, On, Part, artifact, secret,
    words::{dotted, lower_first, ordinal, quote, show, slip, unknown},
};
use crate::{
    lua::{
        definitions::Bound,
        shape::{Definition, Field, Kind, Receiver, Shape, Text, join, nearest},
    },
    time::Span,
};

/// Deeper data than this is a mistake, such as a table that holds itself.
const MAX_DEPTH: usize = 32;
/// So is more of it: a table that holds another twice, which holds another twice, is written out.
const MAX_VALUES: usize = 100_000;

/// A table's content, without metamethods.
#[derive(Default)]
pub(super) struct Entries {
    positional: Vec<Lua>,
    /// Positional values that no counting reaches: `{ nil, "x" }`.
    stray: Vec<i64>,
    keys: BTreeMap<String, Lua>,
    /// Keys that are neither text nor whole numbers.
    odd: Vec<String>,
}

impl Entries {
    /// Only values without a key.
    pub(super) fn positional(positional: Vec<Lua>) -> Self {
        Entries { positional, ..Entries::default() }
    }

    pub(super) fn of(table: &Table) -> Self {
        let mut entries = Entries::default();
        let mut numbered = BTreeMap::new();
        for pair in table.pairs::<Lua, Lua>() {
            match pair {
                Ok((Lua::Integer(n), value)) => {
                    numbered.insert(n, value);
                }
                Ok((Lua::String(key), value)) => {
                    entries.keys.insert(key.to_string_lossy().to_string(), value);
                }
                Ok((key, _)) => entries.odd.push(show(&key)),
                Err(error) => entries.odd.push(error.to_string()),
            }
        }
        for (n, value) in numbered {
            if usize::try_from(n).is_ok_and(|n| n == entries.positional.len() + 1) {
                entries.positional.push(value);
            } else {
                entries.stray.push(n);
            }
        }
        entries.odd.sort();
        entries
    }
}

pub(super) struct Check {
    what: String,
    functions: Functions,
    receiver: Option<Receiver>,
    path: Vec<Part>,
    /// How many values were looked at.
    values: usize,
    /// The same as messages call it.
    called: Vec<Part>,
    pub(super) findings: Vec<Finding>,
    pub(super) secrets: Vec<(Vec<Part>, String)>,
}

impl Check {
    pub(super) fn new(what: &str, functions: Functions, receiver: Option<Receiver>) -> Self {
        Check {
            what: what.to_owned(),
            functions,
            receiver,
            path: Vec::new(),
            values: 0,
            called: Vec::new(),
            findings: Vec::new(),
            secrets: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, on: On, code: &'static str, message: String, help: Option<String>) {
        self.findings.push(Finding { path: self.path.clone(), on, code, message, help });
    }

    /// How messages call the value at the current path: `environments[1].rollout`.
    fn here(&self) -> String {
        if self.called.is_empty() { self.what.clone() } else { dotted(&self.called) }
    }

    fn within<T>(&mut self, part: Part, work: impl FnOnce(&mut Self) -> T) -> T {
        self.named(part.clone(), vec![part], work)
    }

    /// A value that messages call otherwise than by its place: `command`, not `[1]`.
    fn named<T>(&mut self, part: Part, called: Vec<Part>, work: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.called.len();
        self.path.push(part);
        self.called.extend(called);
        let done = work(self);
        self.path.pop();
        self.called.truncate(before);
        done
    }

    pub(super) fn shape(&mut self, shape: &Shape, entries: &Entries) -> Json {
        let mut data = Map::new();
        let here = self.here();
        for (i, field) in shape.positional.iter().enumerate() {
            match entries.positional.get(i) {
                Some(value) => {
                    let called = vec![Part::Key(field.name.to_string())];
                    if let Some(value) = self.named(Part::Index(i + 1), called, |check| check.value(&field.kind, value))
                    {
                        data.insert(field.name.to_string(), value);
                    }
                }
                None if field.required && !entries.keys.contains_key(field.name.as_ref()) => {
                    let message = format!("{here} has no {}", field.name);
                    self.add(
                        On::Value,
                        "missing_key",
                        message,
                        Some(format!("it is the {} value without a key: {}", ordinal(i), lower_first(&field.doc))),
                    );
                }
                None => {}
            }
        }
        let counted = shape.positional.len().min(entries.positional.len());
        let further = &entries.positional[counted..];
        match &shape.rest {
            Some(rest) => self.rest(rest, &here, further, entries, &mut data),
            None => {
                for (i, value) in further.iter().enumerate() {
                    let message = format!("unexpected value {} without a key in {here}", show(value));
                    let help = match shape.positional.len() {
                        0 => "everything in it has a key".to_owned(),
                        1 => format!("only the {} has no key", shape.positional[0].name),
                        n => format!("only the first {n} have no key"),
                    };
                    self.within(Part::Index(counted + i + 1), |check| {
                        check.add(On::Value, "unknown_key", message, Some(help))
                    });
                }
            }
        }
        for n in &entries.stray {
            self.add(
                On::Value,
                "unknown_key",
                format!("{here} has a value at [{n}] that does not follow the ones before it"),
                None,
            );
        }
        for key in &entries.odd {
            self.add(On::Value, "unknown_key", format!("{here} has a key {key} that is no name"), None);
        }
        let mut meant = BTreeSet::new();
        for (key, value) in &entries.keys {
            meant.extend(self.key(shape, &here, key, value, &mut data));
        }
        // A slip in a key's name is one mistake, not two.
        let missing = |field: &&Field| {
            let name = field.name.as_ref();
            let excused = || shape.excuses.iter().any(|(of, excuse)| *of == name && excuse(&entries.keys));
            field.required && !entries.keys.contains_key(name) && !meant.contains(name) && !excused()
        };
        for field in shape.keys.iter().filter(missing) {
            self.add(
                On::Value,
                "missing_key",
                format!("{here} has no {:?}", field.name),
                Some(lower_first(&field.doc)),
            );
        }
        for (i, field) in shape.fields().enumerate() {
            let positional = i < shape.positional.len() && i < entries.positional.len();
            if let Some(fallback) = &field.fallback
                && !positional
                && !data.contains_key(field.name.as_ref())
                && !entries.keys.contains_key(field.name.as_ref())
            {
                data.insert(field.name.to_string(), fallback.clone());
            }
        }
        for group in &shape.one_of {
            let given: Vec<&str> = group.iter().copied().filter(|name| data.contains_key(*name)).collect();
            let named = group.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            match given.as_slice() {
                [_] => {}
                // A member that is there and wrong has been reported already.
                [] if group.iter().any(|name| entries.keys.contains_key(*name) || self.reported(shape, name)) => {}
                [] => self.add(On::Value, "missing_key", format!("{here} needs one of {}", join(&named)), None),
                _ => self.add(
                    On::Value,
                    "bad_value",
                    format!("{here} has {} and must have only one of them", given.join(" and ")),
                    None,
                ),
            }
        }
        Json::Object(data)
    }

    /// Whether the positional value `name` has a finding.
    fn reported(&self, shape: &Shape, name: &str) -> bool {
        let index = shape.positional.iter().position(|field| field.name == name);
        index.is_some_and(|index| {
            let mut path = self.path.clone();
            path.push(Part::Index(index + 1));
            self.findings.iter().any(|finding| finding.path.starts_with(&path))
        })
    }

    fn rest(&mut self, rest: &Field, here: &str, further: &[Lua], entries: &Entries, data: &mut Map<String, Json>) {
        let Kind::List(item, _) = &rest.kind else { return };
        if further.is_empty() {
            if rest.required && !entries.keys.contains_key(rest.name.as_ref()) {
                self.add(
                    On::Value,
                    "missing_key",
                    format!("{here} has no {}", rest.name),
                    Some(lower_first(&rest.doc)),
                );
            }
            return;
        }
        let mut all = Vec::new();
        for (i, value) in further.iter().enumerate() {
            let called = vec![Part::Key(rest.name.to_string()), Part::Index(i + 1)];
            all.extend(self.named(Part::Index(i + 1), called, |check| check.value(item, value)));
        }
        data.insert(rest.name.to_string(), Json::Array(all));
    }

    /// One key; returns the key that an unknown one was most likely meant to be.
    fn key<'s>(
        &mut self,
        shape: &'s Shape,
        here: &str,
        key: &str,
        value: &Lua,
        data: &mut Map<String, Json>,
    ) -> Option<&'s str> {
        let part = Part::Key(key.to_owned());
        let positional = shape.positional.iter().chain(&shape.rest).find(|field| field.name == key);
        let field = shape.keys.iter().find(|field| field.name == key);
        match (field, positional) {
            (Some(field), _) => {
                if let Some(only) = field.only
                    && self.receiver.is_some_and(|receiver| receiver != only)
                {
                    let message = format!("{key:?} is for steps of {} only", only.word());
                    self.within(part, |check| check.add(On::Key, "unknown_key", message, None));
                } else if let Some(value) = self.within(part, |check| check.value(&field.kind, value)) {
                    data.insert(key.to_owned(), value);
                }
                None
            }
            (None, Some(field)) => {
                if data.contains_key(key) {
                    let message = format!("{here} has {key:?} twice: without a key and with it");
                    self.within(part, |check| check.add(On::Key, "bad_value", message, None));
                } else if let Some(value) = self.within(part, |check| check.value(&field.kind, value)) {
                    data.insert(key.to_owned(), value);
                }
                None
            }
            (None, None) if shape.later.contains(&key) => {
                let message = format!("{key:?} is not supported by this version of phased");
                let help = Some("take it out: it would have no effect".to_owned());
                self.within(part, |check| check.add(On::Key, "not_supported", message, help));
                None
            }
            (None, None) => {
                let (help, near) = unknown(shape, key);
                let message = format!("unknown key {} in {here}", quote(key));
                self.within(part, |check| check.add(On::Key, "unknown_key", message, help));
                near
            }
        }
    }

    fn wrong(&mut self, kind: &Kind, value: &Lua) -> Option<Json> {
        let help = slip(kind, value);
        let message = format!("{} must be {}, not {}", self.here(), kind.expected(), show(value));
        self.add(On::Value, "wrong_type", message, help);
        None
    }

    fn bad(&mut self, value: &str, why: &str, help: Option<String>) -> Option<Json> {
        let message = format!("{}: {} {why}", self.here(), quote(value));
        self.add(On::Value, "bad_value", message, help);
        None
    }

    fn value(&mut self, kind: &Kind, value: &Lua) -> Option<Json> {
        self.values += 1;
        if self.values > MAX_VALUES {
            if self.values == MAX_VALUES + 1 {
                let message = format!("{} has more than {MAX_VALUES} values", self.what);
                self.add(On::Value, "bad_value", message, None);
            }
            return None;
        }
        if self.path.len() > MAX_DEPTH {
            self.add(On::Value, "bad_value", format!("{} is nested too deeply", self.here()), None);
            return None;
        }
        match (kind, value) {
            (Kind::Text(text), _) => self.text(text, kind, value),
            (Kind::Secret, Lua::UserData(_)) => match secret(value) {
                Some(name) => Some(self.secret(name)),
                None => self.wrong(kind, value),
            },
            (Kind::Artifact, Lua::UserData(_)) => match artifact(value) {
                Some(artifact) => Some(serde_json::json!({ "$artifact": artifact.data })),
                None => self.wrong(kind, value),
            },
            (Kind::Duration | Kind::Limit, Lua::String(text)) => {
                let text = text.to_string_lossy().to_string();
                match text.parse::<Span>() {
                    Ok(span) if matches!(kind, Kind::Limit) && span.0.is_zero() => {
                        self.bad(&text, "must be more than nothing", None)
                    }
                    Ok(_) => Some(Json::String(text)),
                    Err(_) => self.bad(
                        &text,
                        "is not a duration",
                        Some(
                            "write a whole number and a unit, as in \"500ms\", \"10s\", \"5m\" or \"1h30m\"".to_owned(),
                        ),
                    ),
                }
            }
            (Kind::Integer(least, most), Lua::Integer(_) | Lua::Number(_)) => match whole(value) {
                Some(n) if n >= *least && n <= *most => Some(Json::from(n)),
                Some(n) => {
                    let message = format!("{} must be {}, not {n}", self.here(), kind.expected());
                    self.add(On::Value, "bad_value", message, None);
                    None
                }
                None => self.wrong(kind, value),
            },
            (Kind::Number, Lua::Integer(n)) => Some(Json::from(*n)),
            (Kind::Number, Lua::Number(n)) if n.is_finite() => Some(Json::from(*n)),
            (Kind::Boolean, Lua::Boolean(b)) => Some(Json::Bool(*b)),
            (Kind::Percentage, Lua::String(text)) => {
                let text = text.to_string_lossy().to_string();
                let number = text.strip_suffix('%').filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
                match number.and_then(|n| n.parse::<u32>().ok()) {
                    Some(0..=100) => Some(Json::String(text)),
                    _ => self.bad(&text, "is not a percentage from \"0%\" to \"100%\"", None),
                }
            }
            (Kind::Enum(words), Lua::String(text)) => {
                let text = text.to_string_lossy().to_string();
                if words.iter().any(|word| *word == text) {
                    return Some(Json::String(text));
                }
                let help =
                    nearest(&text, words.iter().map(AsRef::as_ref)).map(|near| format!("did you mean {near:?}?"));
                let message = format!("{} must be {}, not {}", self.here(), kind.expected(), quote(&text));
                self.add(On::Value, "bad_value", message, help);
                None
            }
            (Kind::Function(_), Lua::Function(_)) => match self.functions {
                Functions::Omitted => None,
                Functions::Marked => Some(Json::Bool(true)),
            },
            (Kind::List(item, least), Lua::Table(table)) => self.list(kind, item, *least, table),
            (Kind::Map(keys, item), Lua::Table(table)) => self.map(keys, item, table),
            (Kind::Table(shape), Lua::Table(table)) => {
                let entries = Entries::of(table);
                Some(self.shape(shape, &entries))
            }
            (Kind::Bound(definition), Lua::UserData(data)) => match data.borrow::<Bound>() {
                Ok(bound) if bound.definition == *definition => {
                    for name in &bound.secrets {
                        self.secrets.push((self.path.clone(), name.clone()));
                    }
                    let mut found = bound.limits();
                    found.insert(format!("${}", definition.word()), Json::String(bound.plugin.clone()));
                    if bound.definition == Definition::Discovery {
                        found.insert("$options".to_owned(), Json::String(bound.digest.to_string()));
                    }
                    Some(Json::Object(found))
                }
                _ => self.wrong(kind, value),
            },
            (Kind::Union(kinds), _) => match kinds.iter().find(|kind| fits(kind, value)) {
                // A word that is none of the words: the other kinds are worth naming too.
                Some(Kind::Enum(words)) if kinds.len() > 1 && !words.iter().any(|word| is_text(value, word)) => {
                    self.wrong(kind, value)
                }
                Some(kind) => self.value(kind, value),
                None => self.wrong(kind, value),
            },
            (Kind::Data, _) => self.data(value),
            _ => self.wrong(kind, value),
        }
    }

    fn text(&mut self, text: &Text, kind: &Kind, value: &Lua) -> Option<Json> {
        let read = match value {
            Lua::String(read) => read,
            Lua::Integer(n) if text.number => return Some(Json::String(n.to_string())),
            Lua::UserData(_) => {
                return match secret(value) {
                    Some(name) if text.secret => Some(self.secret(name)),
                    Some(name) => {
                        let message = format!("{} must be {}, not the secret {}", self.here(), text.what, quote(&name));
                        self.add(
                            On::Value,
                            "wrong_type",
                            message,
                            Some("a secret is passed by env or stdin, never as text".to_owned()),
                        );
                        None
                    }
                    None => self.wrong(kind, value),
                };
            }
            _ => return self.wrong(kind, value),
        };
        let bytes = read.as_bytes();
        match std::str::from_utf8(&bytes) {
            Ok(read) => match (text.rule)(read) {
                Ok(()) => Some(Json::String(read.to_owned())),
                Err(why) => self.bad(read, &why, None),
            },
            Err(_) if text.bytes => Some(base64_value(&bytes)),
            Err(_) => self.bad(&String::from_utf8_lossy(&bytes), "is not UTF-8", None),
        }
    }

    fn secret(&mut self, name: String) -> Json {
        self.secrets.push((self.path.clone(), name.clone()));
        let mut found = Map::new();
        found.insert("$secret".to_owned(), Json::String(name));
        Json::Object(found)
    }

    fn list(&mut self, kind: &Kind, item: &Kind, least: usize, table: &Table) -> Option<Json> {
        let entries = Entries::of(table);
        if let Some(key) = entries.keys.keys().next() {
            let message = format!("{} must be {}, and has the key {}", self.here(), kind.expected(), quote(key));
            self.within(Part::Key(key.clone()), |check| {
                check.add(On::Key, "wrong_type", message, Some("put it into braces of its own".to_owned()))
            });
            return None;
        }
        if !entries.odd.is_empty() || !entries.stray.is_empty() {
            let message = format!("{} must be {} without gaps", self.here(), kind.expected());
            self.add(On::Value, "wrong_type", message, None);
            return None;
        }
        if entries.positional.len() < least {
            self.add(On::Value, "bad_value", format!("{} is empty", self.here()), None);
            return None;
        }
        let mut all = Vec::new();
        for (i, value) in entries.positional.iter().enumerate() {
            // A place is kept for what is wrong: others are found by their number.
            all.push(self.within(Part::Index(i + 1), |check| check.value(item, value)).unwrap_or(Json::Null));
        }
        Some(Json::Array(all))
    }

    fn map(&mut self, keys: &Text, item: &Kind, table: &Table) -> Option<Json> {
        let entries = Entries::of(table);
        let here = self.here();
        let mut found = Map::new();
        for (i, value) in entries.positional.iter().enumerate() {
            let message = format!("unexpected value {} without a key in {here}", show(value));
            self.within(Part::Index(i + 1), |check| {
                check.add(On::Value, "wrong_type", message, Some(format!("each needs {}", keys.what)))
            });
        }
        for key in entries.odd.iter().cloned().chain(entries.stray.iter().map(ToString::to_string)) {
            self.add(On::Value, "wrong_type", format!("{here} has a key {key} that is no name"), None);
        }
        for (key, value) in &entries.keys {
            self.within(Part::Key(key.clone()), |check| match (keys.rule)(key) {
                Ok(()) => {
                    if let Some(value) = check.value(item, value) {
                        found.insert(key.clone(), value);
                    }
                }
                Err(why) => {
                    check.add(On::Key, "bad_value", format!("{here}: {} {why}", quote(key)), None);
                }
            });
        }
        Some(Json::Object(found))
    }

    fn data(&mut self, value: &Lua) -> Option<Json> {
        match value {
            Lua::Nil => Some(Json::Null),
            Lua::Boolean(b) => Some(Json::Bool(*b)),
            Lua::Integer(n) => Some(Json::from(*n)),
            Lua::Number(n) if n.is_finite() => Some(Json::from(*n)),
            Lua::String(text) => {
                let bytes = text.as_bytes();
                Some(
                    std::str::from_utf8(&bytes)
                        .map_or_else(|_| base64_value(&bytes), |text| Json::String(text.to_owned())),
                )
            }
            // A null pointer stands for JSON's null.
            Lua::LightUserData(pointer) if pointer.0.is_null() => Some(Json::Null),
            Lua::UserData(_) if secret(value).is_some() => secret(value).map(|name| self.secret(name)),
            Lua::Table(table) => {
                let entries = Entries::of(table);
                if entries.odd.is_empty()
                    && entries.stray.is_empty()
                    && entries.keys.is_empty()
                    && !entries.positional.is_empty()
                {
                    return self.list(&Kind::Data, &Kind::Data, 0, table);
                }
                self.map(&Text::new("a name", crate::lua::rules::free), &Kind::Data, table)
            }
            _ => self.wrong(&Kind::Data, value),
        }
    }
}

/// Whether the Lua type of `value` is that of `kind`, so that its findings are the ones to show.
fn fits(kind: &Kind, value: &Lua) -> bool {
    match (kind, value) {
        (Kind::Data, _) => true,
        (Kind::Text(text), Lua::Integer(_)) => text.number,
        (Kind::Text(text), Lua::UserData(_)) => text.secret && secret(value).is_some(),
        (Kind::Text(_) | Kind::Duration | Kind::Limit | Kind::Percentage | Kind::Enum(_), Lua::String(_))
        | (Kind::Integer(..) | Kind::Number, Lua::Integer(_) | Lua::Number(_))
        | (Kind::Boolean, Lua::Boolean(_))
        | (Kind::Function(_), Lua::Function(_)) => true,
        (Kind::Secret, Lua::UserData(_)) => secret(value).is_some(),
        (Kind::Artifact, Lua::UserData(_)) => artifact(value).is_some(),
        (Kind::Bound(definition), Lua::UserData(data)) => {
            data.borrow::<Bound>().is_ok_and(|bound| bound.definition == *definition)
        }
        (Kind::List(..), Lua::Table(table)) => table.raw_len() > 0 || table.pairs::<Lua, Lua>().next().is_none(),
        (Kind::Table(_) | Kind::Map(..), Lua::Table(_)) => true,
        (Kind::Union(kinds), _) => kinds.iter().any(|kind| fits(kind, value)),
        _ => false,
    }
}

fn base64_value(bytes: &[u8]) -> Json {
    let mut found = Map::new();
    found.insert("$b64".to_owned(), Json::String(base64::engine::general_purpose::STANDARD.encode(bytes)));
    Json::Object(found)
}

fn is_text(value: &Lua, text: &str) -> bool {
    value.as_string().is_some_and(|value| value.as_bytes() == text.as_bytes())
}

fn whole(value: &Lua) -> Option<i64> {
    match value {
        Lua::Integer(n) => Some(*n),
        #[allow(clippy::cast_possible_truncation)] // only whole numbers that a double holds exactly
        Lua::Number(n) if n.fract() == 0.0 && n.abs() < 9_007_199_254_740_992.0 => Some(*n as i64),
        _ => None,
    }
}
