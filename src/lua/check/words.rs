//! How findings call values and paths.

use mlua::Value as Lua;

use super::{Part, secret};
use crate::lua::{
    definitions::{Bound, Plugin},
    rules,
    shape::{Kind, Shape, nearest},
};

/// What to say about a key that `shape` does not have, and which it was meant to be.
pub(super) fn unknown<'s>(shape: &'s Shape, key: &str) -> (Option<String>, Option<&'s str>) {
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

/// Why a value of another type was probably written.
pub(super) fn slip(kind: &Kind, value: &Lua) -> Option<String> {
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
        (Kind::Bound(definition), Lua::UserData(data)) if data.is::<Plugin>() => {
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
            } else if let Ok(plugin) = data.borrow::<Plugin>() {
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
            Part::Key(key) if rules::variable(key).is_ok() || key.starts_with("PHASED_") => {
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

pub(super) fn ordinal(i: usize) -> &'static str {
    ["first", "second", "third"].get(i).copied().unwrap_or("next")
}

pub(super) fn lower_first(sentence: &str) -> String {
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
