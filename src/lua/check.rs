//! Holds a Lua value against a shape: plain JSON data when it fits, else every finding with its path.
//!
//! In the data positional values are under their names, secrets are `{"$secret": name}`, text that is not UTF-8 is
//! `{"$b64": ...}`. Functions are left out, or `true` where the caller wants to know that they are there.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use mlua::{MultiValue, Table, Value as Lua};
use serde_json::{Map, Value as Json};

use super::{
    definitions::{Bound, Secret},
    registry,
    shape::{Field, Kind, Receiver, Shape, Text, join, nearest},
};
use crate::{model::step::Verb, time::Span};

/// Deeper data than this is a mistake, such as a table that holds itself.
const MAX_DEPTH: usize = 32;

/// One step down into a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A value without key, from 1.
    Index(usize),
    /// A key.
    Key(String),
}

/// Which part of an entry a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// Its key.
    Key,
    /// Its value.
    Value,
}

/// Something wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where, from the checked value.
    pub path: Vec<Part>,
    /// Key or value.
    pub on: On,
    /// `unknown_key`, `wrong_type`, `missing_key`, `bad_value`, `not_supported`.
    pub code: &'static str,
    /// What is wrong, with the value.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// How functions appear in the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Functions {
    /// Not at all.
    Omitted,
    /// As `true`.
    Marked,
}

/// What a check brought.
#[derive(Debug)]
pub struct Checked {
    /// The data; incomplete when there are findings.
    pub data: Json,
    /// In the order of the keys.
    pub findings: Vec<Finding>,
    /// Every secret that the value names, and where.
    pub secrets: Vec<(Vec<Part>, String)>,
}

/// Holds `value` against `shape`. `what` is how messages call it: `phased.project`.
#[must_use]
pub fn table(what: &str, shape: &Shape, value: &Table, functions: Functions) -> Checked {
    let mut check = Check::new(what, functions, None);
    let entries = Entries::of(value);
    let data = check.shape(shape, &entries);
    Checked { data, findings: check.findings, secrets: check.secrets }
}

/// Holds the arguments of a call against `shape`: one table, or only values without a key.
#[must_use]
pub fn arguments(
    what: &str,
    shape: &Shape,
    args: &MultiValue,
    functions: Functions,
    receiver: Option<Receiver>,
) -> Checked {
    let mut check = Check::new(what, functions, receiver);
    // `run:parallel{...}` and `phased.json.encode{...}`: the table is the value itself.
    let bare = shape.keys.is_empty()
        && matches!(shape.positional.as_slice(), [Field { kind: Kind::Map(..) | Kind::Data | Kind::List(..), .. }]);
    let entries = match args.iter().collect::<Vec<_>>().as_slice() {
        [Lua::Table(table)] if !bare => Entries::of(table),
        values => {
            if !bare && values.iter().any(|value| matches!(value, Lua::Table(_))) {
                check.add(
                    On::Value,
                    "wrong_type",
                    format!("{what} takes one table: put the options into it, beside the first value"),
                    Some(format!("{what} {{ {}, ... }}", values.first().map_or("...".to_owned(), |first| show(first)))),
                );
                return Checked { data: Json::Null, findings: check.findings, secrets: check.secrets };
            }
            Entries { positional: values.iter().map(|value| (*value).clone()).collect(), ..Entries::default() }
        }
    };
    let data = check.shape(shape, &entries);
    Checked { data, findings: check.findings, secrets: check.secrets }
}

/// The arguments of a step as the engine gets them, or what is wrong with the first wrong one. `receiver` is `run` or `host`.
///
/// # Errors
/// One sentence for the author of the pipeline.
pub fn step_args(verb: Verb, receiver: &str, args: &MultiValue) -> Result<Json, String> {
    named_step_args(verb.as_str(), receiver, args)
}

/// [`step_args`] for any method of the registry, also `fail` and `parallel`, which are no verbs.
///
/// # Errors
/// One sentence for the author of the pipeline.
pub fn named_step_args(name: &str, receiver: &str, args: &MultiValue) -> Result<Json, String> {
    let what = format!("{receiver}:{name}");
    let on = Receiver::of(receiver).ok_or_else(|| format!("{receiver:?} has no steps"))?;
    match registry::step(name) {
        Some(step) if step.on.contains(&on) => {
            first(&what, arguments(&what, &step.shape, args, Functions::Omitted, Some(on)))
        }
        Some(step) => Err(format!(
            "{what} does not exist: {name} is a step of {}",
            join(&step.on.iter().map(|on| on.word().to_owned()).collect::<Vec<_>>())
        )),
        None => Err(unknown_step(on, name)),
    }
}

/// The sentence about a method that `run` or `host` does not have.
#[must_use]
pub fn unknown_step(receiver: Receiver, name: &str) -> String {
    let all = registry::registry();
    if all.later_steps.contains(&(receiver, name)) {
        return format!("{}:{name} is not supported by this version of phased", receiver.word());
    }
    let steps = all.steps.iter().filter(|step| step.on.contains(&receiver)).map(|step| step.name);
    let hint = nearest(name, steps).map_or(String::new(), |near| format!(": did you mean {near:?}?"));
    format!("{} has no step {name:?}{hint}", receiver.word())
}

/// The arguments of a plugin function (`http`, `json.decode`), or what is wrong with the first wrong one.
///
/// # Errors
/// One sentence for the author of the plugin.
pub fn plugin_args(what: &str, args: &MultiValue) -> Result<Json, String> {
    let function = registry::function(what).ok_or_else(|| format!("phased has no function {what:?}"))?;
    let what = format!("phased.{what}");
    first(&what, arguments(&what, &function.shape, args, Functions::Omitted, None))
}

fn first(what: &str, checked: Checked) -> Result<Json, String> {
    match checked.findings.into_iter().next() {
        None => Ok(checked.data),
        Some(finding) => {
            let help = finding.help.as_ref().map_or(String::new(), |help| format!(" ({help})"));
            Err(format!("{}{help}", finding.said_of(what)))
        }
    }
}

impl Finding {
    /// The message, beginning with what was called unless it names it anyway.
    #[must_use]
    pub fn said_of(&self, what: &str) -> String {
        if self.message.contains(what) { self.message.clone() } else { format!("{what}: {}", self.message) }
    }
}

/// A table's content, without metamethods.
#[derive(Default)]
struct Entries {
    positional: Vec<Lua>,
    /// Positional values that no counting reaches: `{ nil, "x" }`.
    stray: Vec<i64>,
    keys: BTreeMap<String, Lua>,
    /// Keys that are neither text nor whole numbers.
    odd: Vec<String>,
}

impl Entries {
    fn of(table: &Table) -> Self {
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

struct Check {
    what: String,
    functions: Functions,
    receiver: Option<Receiver>,
    path: Vec<Part>,
    findings: Vec<Finding>,
    secrets: Vec<(Vec<Part>, String)>,
}

impl Check {
    fn new(what: &str, functions: Functions, receiver: Option<Receiver>) -> Self {
        Check {
            what: what.to_owned(),
            functions,
            receiver,
            path: Vec::new(),
            findings: Vec::new(),
            secrets: Vec::new(),
        }
    }

    fn add(&mut self, on: On, code: &'static str, message: String, help: Option<String>) {
        self.findings.push(Finding { path: self.path.clone(), on, code, message, help });
    }

    /// How messages call the value at the current path: `environments[1].rollout`.
    fn here(&self) -> String {
        if self.path.is_empty() { self.what.clone() } else { dotted(&self.path) }
    }

    fn within<T>(&mut self, part: Part, work: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(part);
        let done = work(self);
        self.path.pop();
        done
    }

    fn shape(&mut self, shape: &Shape, entries: &Entries) -> Json {
        let mut data = Map::new();
        let here = self.here();
        for (i, field) in shape.positional.iter().enumerate() {
            match entries.positional.get(i) {
                Some(value) => {
                    if let Some(value) =
                        self.within(Part::Index(i + 1), |check| check.named(&field.kind, value, &field.name))
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
            field.required && !entries.keys.contains_key(field.name.as_ref()) && !meant.contains(field.name.as_ref())
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
            if !entries.keys.contains_key(rest.name.as_ref()) {
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
            all.extend(self.within(Part::Index(i + 1), |check| check.value(item, value)));
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

    /// A positional value: messages call it by its name, since it has no key.
    fn named(&mut self, kind: &Kind, value: &Lua, name: &str) -> Option<Json> {
        let before = self.findings.len();
        let found = self.value(kind, value);
        let (numbered, depth) = (self.here(), self.path.len());
        let parent = dotted(&self.path[..depth - 1]);
        let called = if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") };
        for finding in &mut self.findings[before..] {
            if finding.path.len() == depth && finding.message.starts_with(&numbered) {
                finding.message.replace_range(..numbered.len(), &called);
            }
        }
        found
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
                    let mut found = Map::new();
                    found.insert(format!("${}", definition.word()), Json::String(bound.plugin.clone()));
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
                self.map(&Text::new("a name", super::rules::free), &Kind::Data, table)
            }
            _ => self.wrong(&Kind::Data, value),
        }
    }
}

/// What to say about a key that `shape` does not have, and which it was meant to be.
fn unknown<'s>(shape: &'s Shape, key: &str) -> (Option<String>, Option<&'s str>) {
    let below = shape.keys.iter().find(|field| match &field.kind {
        Kind::Table(inner) => inner.later.contains(&key) || inner.fields().any(|field| field.name == key),
        _ => false,
    });
    if let Some(field) = below {
        return (Some(format!("it belongs into {} = {{ ... }}", field.name)), None);
    }
    let known: Vec<&str> = shape.fields().map(|field| field.name.as_ref()).collect();
    let all = known.iter().copied().chain(shape.later.iter().copied());
    match nearest(key, all) {
        Some(near) => (Some(format!("did you mean {near:?}?")), Some(near)),
        None if known.is_empty() => (Some("it takes no options".to_owned()), None),
        None => (Some(format!("it knows {}", known.join(", "))), None),
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
        (Kind::Bound(definition), Lua::UserData(data)) => {
            data.borrow::<Bound>().is_ok_and(|bound| bound.definition == *definition)
        }
        (Kind::List(..), Lua::Table(table)) => table.raw_len() > 0 || table.pairs::<Lua, Lua>().next().is_none(),
        (Kind::Table(_) | Kind::Map(..), Lua::Table(_)) => true,
        (Kind::Union(kinds), _) => kinds.iter().any(|kind| fits(kind, value)),
        _ => false,
    }
}

/// The name behind a secret handle.
#[must_use]
pub fn secret(value: &Lua) -> Option<String> {
    match value {
        Lua::UserData(data) => data.borrow::<Secret>().ok().map(|secret| secret.name.clone()),
        _ => None,
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

/// Why a value of another type was probably written.
fn slip(kind: &Kind, value: &Lua) -> Option<String> {
    match (kind, value) {
        (Kind::Duration | Kind::Limit, Lua::Integer(n)) => {
            Some(format!("write it as text with a unit: \"{n}s\" or \"{n}m\""))
        }
        (Kind::Boolean, Lua::String(_)) => Some("write true or false without quotes".to_owned()),
        (Kind::Integer(..), Lua::String(text)) if text.to_string_lossy().parse::<i64>().is_ok() => {
            Some(format!("write it without quotes: {}", text.to_string_lossy()))
        }
        (Kind::Percentage, Lua::Integer(n)) => Some(format!("write \"{n}%\"")),
        (Kind::Secret, Lua::String(_)) => {
            Some("write phased.secret \"name\" and put the value into the secrets directory".to_owned())
        }
        (Kind::Bound(definition), Lua::Function(_)) => {
            let (word, function) = (definition.word(), definition.function());
            Some(format!(
                "make it one: phased.{word} {{ name = \"...\", {function} = function(options) ... end }} {{}}"
            ))
        }
        (Kind::Enum(words), Lua::String(text)) => nearest(&text.to_string_lossy(), words.iter().map(AsRef::as_ref))
            .map(|near| format!("did you mean {near:?}?")),
        (Kind::Bound(definition), Lua::UserData(data)) if data.is::<super::definitions::Plugin>() => {
            Some(format!("call the {} with its options, if only {{}}", definition.word()))
        }
        (Kind::Union(kinds), _) => kinds.iter().find_map(|kind| slip(kind, value)),
        (Kind::List(item, _), Lua::String(_)) if matches!(item.as_ref(), Kind::Text(_) | Kind::Union(_)) => {
            Some(format!("put it into braces: {{ {} }}", show(value)))
        }
        _ => None,
    }
}

/// A value as messages show it: short, and no secret in it.
#[must_use]
pub fn show(value: &Lua) -> String {
    match value {
        Lua::Nil => "nil".to_owned(),
        Lua::Boolean(b) => b.to_string(),
        Lua::Integer(n) => n.to_string(),
        Lua::Number(n) => n.to_string(),
        Lua::String(text) => quote(&text.to_string_lossy()),
        Lua::Table(_) => "a table".to_owned(),
        Lua::Function(_) => "a function".to_owned(),
        Lua::UserData(data) => {
            if let Some(name) = secret(value) {
                format!("the secret {}", quote(&name))
            } else if let Ok(bound) = data.borrow::<Bound>() {
                format!("the {} {}", bound.definition.word(), bound.plugin)
            } else if let Ok(plugin) = data.borrow::<super::definitions::Plugin>() {
                format!("the {} plugin {} without its options", plugin.definition.word(), plugin.name)
            } else {
                "an object".to_owned()
            }
        }
        other => format!("a {}", other.type_name()),
    }
}

/// Quoted and cut to a length that a line can hold.
#[must_use]
pub fn quote(text: &str) -> String {
    const SHOWN: usize = 60;
    if text.chars().count() <= SHOWN {
        return format!("{text:?}");
    }
    format!("{:?}...", text.chars().take(SHOWN).collect::<String>())
}

/// `environments[1].rollout.max_parallel`.
#[must_use]
pub fn dotted(path: &[Part]) -> String {
    let mut text = String::new();
    for part in path {
        match part {
            Part::Index(n) => text.push_str(&format!("[{n}]")),
            Part::Key(key) if super::rules::variable(key).is_ok() || key.starts_with("PHASED_") => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
            Part::Key(key) => text.push_str(&format!("[{}]", quote(key))),
        }
    }
    text
}

fn ordinal(i: usize) -> &'static str {
    ["first", "second", "third"].get(i).copied().unwrap_or("next")
}

fn lower_first(sentence: &str) -> String {
    let sentence = sentence.trim_end_matches('.');
    let mut chars = sentence.chars();
    match (chars.next(), chars.clone().next()) {
        // "GET; ..." and "JUnit" keep their capitals.
        (Some(first), Some(second)) if second.is_lowercase() || second == ' ' => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => sentence.to_owned(),
    }
}
