//! Lua values as plain data, and back.

use mlua::Value;
use serde_json::{Map, Value as Json};

use super::check;

/// Deeper data is a loop or a mistake.
const DEEPEST: usize = 64;
/// A table that holds another a hundred times is written out a hundred times: so many values are a mistake.
const MOST: usize = 1_000_000;
/// The text in them, bytes.
const LARGEST: usize = 64 << 20;

/// What a function returned, as plain data; an empty table is an empty list.
///
/// # Errors
/// One sentence that names what cannot be data.
pub fn from_lua(value: &Value) -> Result<Json, String> {
    at(value, 0, &mut Left { values: MOST, bytes: LARGEST })
}

struct Left {
    values: usize,
    bytes: usize,
}

impl Left {
    fn take(&mut self, bytes: usize) -> Result<(), String> {
        self.values = self.values.checked_sub(1).ok_or_else(|| format!("the data has more than {MOST} values"))?;
        let over = || format!("the data has more than {} MiB of text", LARGEST >> 20);
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(over)?;
        Ok(())
    }
}

fn at(value: &Value, depth: usize, left: &mut Left) -> Result<Json, String> {
    left.take(0)?;
    if depth > DEEPEST {
        return Err(format!("tables are nested deeper than {DEEPEST}"));
    }
    Ok(match value {
        Value::Nil => Json::Null,
        Value::Boolean(b) => Json::Bool(*b),
        Value::Integer(n) => Json::from(*n),
        Value::Number(n) if n.is_finite() => Json::from(*n),
        Value::String(text) => {
            let bytes = text.as_bytes();
            left.take(bytes.len())?;
            match std::str::from_utf8(&bytes) {
                Ok(text) => Json::String(text.to_owned()),
                Err(_) => {
                    use base64::Engine as _;
                    serde_json::json!({ "$b64": base64::engine::general_purpose::STANDARD.encode(&*bytes) })
                }
            }
        }
        Value::Table(table) => {
            let length = table.raw_len();
            let mut count = 0;
            let mut map = Map::new();
            for pair in table.pairs::<Value, Value>() {
                let (key, item) = pair.map_err(|e| e.to_string())?;
                count += 1;
                let name = match &key {
                    Value::String(text) => text.to_string_lossy().to_string(),
                    Value::Integer(n) => n.to_string(),
                    other => return Err(format!("{} is no key of data", check::show(other))),
                };
                left.take(name.len())?;
                map.insert(name, at(&item, depth + 1, left)?);
            }
            if count == length {
                let items = (1..=length).map(|i| map.remove(&i.to_string()).unwrap_or_default());
                Json::Array(items.collect())
            } else {
                Json::Object(map)
            }
        }
        other => match check::secret(other) {
            Some(name) => serde_json::json!({ "$secret": name }),
            None => return Err(format!("{} is no data", check::show(other))),
        },
    })
}
