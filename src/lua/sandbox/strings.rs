//! `string.find` and its kin on our own matcher.

use std::rc::Rc;

use mlua::{Error, Lua, MultiValue, Table, Value};

use super::{Meter, STEPS};
use crate::lua::pattern::{self, Capture, PatternError};

/// A position as Lua gives it, as an offset: negative from the end.
fn offset(init: Option<i64>, length: usize) -> usize {
    let length_i = i64::try_from(length).unwrap_or(i64::MAX);
    let at = match init.unwrap_or(1) {
        n if n > 0 => n - 1,
        0 => 0,
        n => (length_i + n).max(0),
    };
    usize::try_from(at).unwrap_or(usize::MAX)
}

fn captures(lua: &Lua, text: &[u8], found: &pattern::Match, whole: bool) -> mlua::Result<Vec<Value>> {
    if found.captures.is_empty() && whole {
        return Ok(vec![Value::String(lua.create_string(&text[found.start..found.end])?)]);
    }
    found
        .captures
        .iter()
        .map(|capture| match capture {
            Capture::Span(from, to) => lua.create_string(&text[*from..*to]).map(Value::String),
            Capture::Position(at) => Ok(Value::Integer(i64::try_from(*at).unwrap_or(i64::MAX))),
        })
        .collect()
}

fn number(n: usize) -> Value {
    Value::Integer(i64::try_from(n).unwrap_or(i64::MAX))
}

/// Whether a template of string.format asks for an address.
fn has_pointer(template: &[u8]) -> bool {
    let mut bytes = template.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte == b'%' && bytes.by_ref().find(|b| !b"-+ #0123456789.".contains(b)) == Some(b'p') {
            return true;
        }
    }
    false
}

pub(super) fn install(lua: &Lua, native: &Table, meter: &Rc<Meter>) -> mlua::Result<()> {
    /// Runs the matcher on what is left of the call's instructions.
    fn within<T>(meter: &Meter, work: impl FnOnce(&mut u64) -> Result<T, PatternError>) -> mlua::Result<T> {
        let left = meter.limits.instructions.saturating_sub(meter.used.get()).saturating_mul(STEPS);
        // A slice may not be spent inside one match either.
        let mut budget = left.min(200_000_000);
        let given = budget;
        let done = work(&mut budget);
        meter.look((given - budget) / STEPS)?;
        match done {
            Ok(value) => Ok(value),
            Err(PatternError::Malformed(why)) => Err(Error::runtime(why)),
            Err(PatternError::Budget) => {
                Err(meter.trip("limit_instructions", "a pattern took too many steps to match".to_owned()))
            }
        }
    }
    type Args = (mlua::LuaString, mlua::LuaString, Option<i64>, Option<bool>);
    let counted = Rc::clone(meter);
    let find = move |lua: &Lua, (text, wanted, init, plain): Args| {
        let (text, wanted) = (text.as_bytes(), wanted.as_bytes());
        let init = offset(init, text.len());
        if init > text.len() {
            return Ok(MultiValue::from_vec(vec![Value::Nil]));
        }
        if plain.unwrap_or(false) || pattern::is_plain(&wanted) {
            let at = within(&counted, |budget| pattern::plain(&text, &wanted, init, budget))?;
            return Ok(MultiValue::from_vec(match at {
                Some(at) => vec![number(at + 1), number(at + wanted.len())],
                None => vec![Value::Nil],
            }));
        }
        let found = within(&counted, |budget| pattern::find(&text, &wanted, init, budget))?;
        let Some(found) = found else { return Ok(MultiValue::from_vec(vec![Value::Nil])) };
        let mut values = vec![number(found.start + 1), number(found.end)];
        values.extend(captures(lua, &text, &found, false)?);
        Ok(MultiValue::from_vec(values))
    };
    native.raw_set("find", lua.create_function(find)?)?;
    let counted = Rc::clone(meter);
    let matched = move |lua: &Lua, (text, wanted, init): (mlua::LuaString, mlua::LuaString, Option<i64>)| {
        let (text, wanted) = (text.as_bytes(), wanted.as_bytes());
        let init = offset(init, text.len());
        if init > text.len() {
            return Ok(MultiValue::from_vec(vec![Value::Nil]));
        }
        match within(&counted, |budget| pattern::find(&text, &wanted, init, budget))? {
            Some(found) => captures(lua, &text, &found, true).map(MultiValue::from_vec),
            None => Ok(MultiValue::from_vec(vec![Value::Nil])),
        }
    };
    native.raw_set("match", lua.create_function(matched)?)?;
    // For gmatch and gsub: from `at` on, an empty match right where the last one ended does not count. Start, end, captures.
    type Scan = (mlua::LuaString, mlua::LuaString, i64, Option<i64>, Option<bool>);
    let counted = Rc::clone(meter);
    let scan = move |lua: &Lua, (text, wanted, at, last, anchors): Scan| {
        let (text, whole) = (text.as_bytes(), wanted.as_bytes());
        // In gmatch a leading ^ is a plain character.
        let escaped;
        let wanted: &[u8] = if anchors != Some(true) && whole.starts_with(b"^") {
            escaped = [b"%".as_slice(), &whole].concat();
            &escaped
        } else {
            &whole
        };
        let mut from = offset(Some(at), text.len());
        let last = last.and_then(|last| usize::try_from(last).ok());
        while from <= text.len() {
            let Some(found) = within(&counted, |budget| pattern::find(&text, wanted, from, budget))? else { break };
            if found.start == found.end && Some(found.end) == last {
                if wanted.starts_with(b"^") {
                    break;
                }
                from = found.start + 1;
                continue;
            }
            let mut values = vec![number(found.start + 1), number(found.end)];
            values.extend(captures(lua, &text, &found, true)?);
            return Ok(MultiValue::from_vec(values));
        }
        Ok(MultiValue::from_vec(vec![Value::Nil]))
    };
    native.raw_set("scan", lua.create_function(scan)?)?;
    let counted = Rc::clone(meter);
    let expand = move |lua: &Lua, mut args: MultiValue| {
        let text = |value: Option<Value>| -> mlua::Result<Vec<u8>> {
            match value {
                Some(Value::String(text)) => Ok(text.as_bytes().to_vec()),
                Some(Value::Integer(n)) => Ok(n.to_string().into_bytes()),
                _ => Ok(Vec::new()),
            }
        };
        let (with, whole) = (text(args.pop_front())?, text(args.pop_front())?);
        let groups = args.into_iter().map(|value| text(Some(value))).collect::<mlua::Result<Vec<_>>>()?;
        let mut out = Vec::with_capacity(with.len());
        let mut bytes = with.iter();
        while let Some(&byte) = bytes.next() {
            if byte != b'%' {
                out.push(byte);
                continue;
            }
            match bytes.next() {
                Some(b'%') => out.push(b'%'),
                Some(b'0') => out.extend_from_slice(&whole),
                Some(digit) if digit.is_ascii_digit() => match groups.get(usize::from(digit - b'1')) {
                    Some(group) => out.extend_from_slice(group),
                    None => {
                        let why = format!("invalid capture index %{} in replacement string", digit - b'0');
                        return Err(Error::runtime(why));
                    }
                },
                _ => return Err(Error::runtime("invalid use of '%' in replacement string")),
            }
        }
        counted.look(out.len() as u64 / 16)?;
        lua.create_string(out)
    };
    native.raw_set("expand", lua.create_function(expand)?)?;
    native
        .raw_set("has_pointer", lua.create_function(|_, text: mlua::LuaString| Ok(has_pointer(&text.as_bytes())))?)?;
    let lock = |lua: &Lua, (): ()| {
        if let Some(meta) = lua.type_metatable::<mlua::LuaString>() {
            meta.raw_set("__metatable", false)?;
        }
        Ok(())
    };
    native.raw_set("lock_strings", lua.create_function(lock)?)
}
