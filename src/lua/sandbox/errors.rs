//! Errors as a script sees them: text with its place, no address, no trace of how Lua is embedded.

use std::rc::Rc;

use mlua::{Error, Lua, Table, Value};

use super::{Meter, memory};

/// The innermost error, without mlua's wrapping.
pub(super) fn root(error: &Error) -> &Error {
    match error {
        Error::CallbackError { cause, .. } | Error::WithContext { cause, .. } => root(cause),
        other => other,
    }
}

/// Whether Lua's memory is used up.
pub(super) fn out_of_memory(error: &Error) -> bool {
    match root(error) {
        Error::MemoryError(_) => true,
        Error::RuntimeError(text) => text.lines().next() == Some("not enough memory"),
        _ => false,
    }
}

/// One line about an error, with `file:line: ` in front where that is known.
#[must_use]
pub fn words(error: &Error) -> String {
    let said = match root(error) {
        Error::RuntimeError(text) => text.clone(),
        Error::SyntaxError { message, .. } => message.clone(),
        Error::BadArgument { to, pos, cause, .. } => {
            let to = to.as_deref().map_or(String::new(), |to| format!(" to '{to}'"));
            format!("bad argument #{pos}{to} ({})", words(cause))
        }
        Error::FromLuaConversionError { from, to, .. } => {
            let to = match to.as_str() {
                "String" | "LuaString" | "&str" => "text",
                "i64" | "integer" => "a whole number",
                "bool" | "boolean" => "true or false",
                "Table" | "table" => "a table",
                other => other,
            };
            format!("{to} expected, got {from}")
        }
        Error::StackError => "stack overflow".to_owned(),
        other => other.to_string(),
    };
    let first = said.lines().next().unwrap_or_default();
    let first = without_prelude(first);
    match called_from(error) {
        Some(at) if !has_place(first) => format!("{at}: {first}"),
        _ => first.to_owned(),
    }
}

/// The place in a user's file that the innermost wrapping names.
fn called_from(error: &Error) -> Option<String> {
    match error {
        Error::CallbackError { traceback, cause } => {
            called_from(cause).or_else(|| traceback.lines().find_map(|line| leading(line.trim())))
        }
        Error::WithContext { cause, .. } => called_from(cause),
        _ => None,
    }
}

/// `alerts/slack.lua:3` of `alerts/slack.lua:3: in function ...`.
fn leading(line: &str) -> Option<String> {
    let (file, rest) = line.split_once(".lua:")?;
    let (number, _) = rest.split_once(':')?;
    let plain = !file.contains([' ', ':']) && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| format!("{file}.lua:{number}"))
}

fn has_place(text: &str) -> bool {
    leading(text).is_some()
}

/// Where in the prelude something was noticed helps nobody.
fn without_prelude(text: &str) -> &str {
    let inside = |text: &str| text.starts_with("prelude/");
    match text.split_once(": ") {
        Some((place, rest)) if inside(place) => rest,
        _ => text,
    }
}

/// `file:line` of the innermost frame of a user's file.
pub(super) fn place(lua: &Lua) -> Option<String> {
    (0..60).find_map(|level| {
        lua.inspect_stack(level, |frame| {
            let source = frame.source();
            let name = source.source.as_deref()?.strip_prefix('@')?.to_owned();
            Some(format!("{name}:{}", frame.current_line()?))
        })?
    })
}

/// The frames of users' files, innermost first.
fn traceback(lua: &Lua) -> String {
    let frames: Vec<String> = (0..200)
        .map_while(|level| {
            lua.inspect_stack(level, |frame| {
                let source = frame.source();
                let name = source.source.as_deref()?.strip_prefix('@')?.to_owned();
                let line = frame.current_line()?;
                let function = frame.names().name.map(|n| format!(" in {n}")).unwrap_or_default();
                Some(format!("{name}:{line}{function}"))
            })
        })
        .flatten()
        .take(20)
        .collect();
    frames.join("\n")
}

pub(super) fn install(lua: &Lua, native: &Table, meter: &Rc<Meter>) -> mlua::Result<()> {
    let counted = Rc::clone(meter);
    // Whether the call ends with this error: then nothing may catch it.
    let fatal = move |_: &Lua, value: Value| {
        if counted.tripped.borrow().is_some() {
            return Ok(true);
        }
        let gone = match &value {
            Value::Error(error) => out_of_memory(error),
            Value::String(text) => text.as_bytes() == *b"not enough memory",
            _ => false,
        };
        if gone {
            counted.tripped.borrow_mut().get_or_insert(memory(&counted.limits));
        }
        Ok(gone)
    };
    native.raw_set("fatal", lua.create_function(fatal)?)?;
    let plain = |lua: &Lua, value: Value| match &value {
        Value::Error(error) => {
            let mut text = words(error);
            if !has_place(&text)
                && let Some(at) = place(lua)
            {
                text = format!("{at}: {text}");
            }
            lua.create_string(text).map(Value::String)
        }
        Value::String(text) if text.as_bytes().starts_with(b"prelude/") => {
            let text = text.to_string_lossy();
            let text = without_prelude(&text);
            let text = place(lua).map_or(text.to_owned(), |at| format!("{at}: {text}"));
            lua.create_string(text).map(Value::String)
        }
        _ => Ok(value),
    };
    native.raw_set("plain", lua.create_function(plain)?)?;
    native.raw_set("traceback", lua.create_function(|lua, (): ()| Ok(traceback(lua)))?)
}
