//! The order of keys, and numbers that look random: the same in every process.

use std::{cell::Cell, rc::Rc};

use mlua::{Error, Lua, Table, Value};

use super::Meter;

pub(super) fn install(lua: &Lua, native: &Table, meter: &Rc<Meter>, seed: u64) -> mlua::Result<()> {
    // Numbers ascending, then texts by bytes, then booleans; anything else has no order.
    let counted = Rc::clone(meter);
    let keys = move |lua: &Lua, table: Table| {
        let mut numbers: Vec<(f64, Value)> = Vec::new();
        let mut texts: Vec<(Vec<u8>, Value)> = Vec::new();
        let mut booleans = Vec::new();
        // Of several odd keys the same one is named every time.
        let mut odd: Option<&'static str> = None;
        for pair in table.pairs::<Value, Value>() {
            let (key, _) = pair?;
            match &key {
                #[allow(clippy::cast_precision_loss)] // only the order is wanted; ties are broken below
                Value::Integer(n) => numbers.push((*n as f64, key)),
                Value::Number(n) => numbers.push((*n, key)),
                Value::String(text) => texts.push((text.as_bytes().to_vec(), key)),
                Value::Boolean(b) => booleans.push(*b),
                other => odd = Some(odd.map_or(other.type_name(), |odd| odd.min(other.type_name()))),
            }
        }
        if odd.is_some() {
            return Ok((Value::Nil, odd));
        }
        // Sorting is work that no hook sees.
        counted.look(8 * (numbers.len() + texts.len()) as u64)?;
        numbers.sort_by(|(a, left), (b, right)| {
            let exact = match (left, right) {
                (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
                _ => std::cmp::Ordering::Equal,
            };
            a.total_cmp(b).then(exact)
        });
        texts.sort_by(|(a, _), (b, _)| a.cmp(b));
        booleans.sort_unstable();
        let ordered = numbers.into_iter().map(|(_, key)| key).chain(texts.into_iter().map(|(_, key)| key));
        let ordered = lua.create_sequence_from(ordered.chain(booleans.into_iter().map(Value::Boolean)))?;
        Ok((Value::Table(ordered), None))
    };
    native.raw_set("keys", lua.create_function(keys)?)?;
    // The metatable itself, whatever its __metatable says; and set past it.
    native.raw_set("metatable", lua.create_function(|_, table: Table| Ok(table.metatable()))?)?;
    let set = |_: &Lua, (table, meta): (Table, Table)| table.set_metatable(Some(meta));
    native.raw_set("set_metatable", lua.create_function(set)?)?;
    // SplitMix64: small, and the same everywhere.
    let state = Cell::new(seed);
    let random = move |_: &Lua, (low, high): (Option<i64>, Option<i64>)| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mut z = next;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let (low, high) = match (low, high) {
            #[allow(clippy::cast_precision_loss)] // 53 bits are exact
            (None, _) => return Ok(Value::Number((z >> 11) as f64 / (1u64 << 53) as f64)),
            (Some(high), None) => (1, high),
            (Some(low), Some(high)) => (low, high),
        };
        if low > high {
            return Err(Error::runtime("bad argument to 'random' (interval is empty)"));
        }
        let span = u128::from(high.abs_diff(low)) + 1;
        let offset = (u128::from(z) * span) >> 64;
        let value = i128::from(low) + i128::try_from(offset).unwrap_or(0);
        Ok(Value::Integer(i64::try_from(value).unwrap_or(low)))
    };
    native.raw_set("random", lua.create_function(random)?)
}
