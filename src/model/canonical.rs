//! Canonical JSON (RFC 8785 with integers kept): the same data is the same bytes, in every process and version.
//!
//! A format: step arguments are compared by these bytes on replay. Text that is not UTF-8 is `{"$b64": "..."}`, a secret is
//! `{"$secret": "name"}`; both are made where the value enters, here they are plain objects.

use std::fmt::Write as _;

use serde_json::Value;

/// The canonical text of `value`: keys sorted by UTF-16 code units, no white space, the shortest escapes.
#[must_use]
pub fn to_string(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => write_number(n, out),
        Value::String(s) => write_text(s, out),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_by(|a, b| a.encode_utf16().cmp(b.encode_utf16()));
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_text(key, out);
                out.push(':');
                write(&map[key], out);
            }
            out.push('}');
        }
    }
}

fn write_number(n: &serde_json::Number, out: &mut String) {
    let _infallible = match (n.as_i64(), n.as_u64(), n.as_f64()) {
        (Some(i), ..) => write!(out, "{i}"),
        (_, Some(u), _) => write!(out, "{u}"),
        (.., Some(f)) => return write_float(f, out),
        _ => return out.push_str("null"),
    };
}

/// ECMAScript's `Number::toString`, which RFC 8785 prescribes: the shortest digits, exponents from 1e21 and below 1e-6.
fn write_float(f: f64, out: &mut String) {
    if f == 0.0 {
        return out.push('0');
    }
    let scientific = format!("{f:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-6..21).contains(&exponent) {
        let _infallible = write!(out, "{f}");
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        let _infallible = write!(out, "{digits}e{sign}{}", exponent.abs());
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 => {
                let _infallible = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use serde_json::json;

    #[test]
    fn golden() {
        // RFC 8785 §3.2.3's sorting example, then numbers and escapes.
        let sorted = json!({"\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew Letter Dalet With Dagesh",
                            "1": "One", "\u{1f600}": "Emoji: Grinning Face", "\u{80}": "Control", "\u{f6}": "Latin Small Letter O With Diaeresis"});
        assert_eq!(
            to_string(&sorted),
            "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u{80}\":\"Control\",\"ö\":\"Latin Small Letter O With Diaeresis\",\
             \"€\":\"Euro Sign\",\"😀\":\"Emoji: Grinning Face\",\"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}"
        );
        assert_eq!(
            to_string(&json!([1, -1, 9_007_199_254_740_993_u64, 1.5, 1e21, 1e-7, 0.000_001, 4.5e20, -0.0, null, true])),
            "[1,-1,9007199254740993,1.5,1e+21,1e-7,0.000001,450000000000000000000,0,null,true]"
        );
        assert_eq!(to_string(&json!("\u{7}\"\\\n/\u{7f}é")), "\"\\u0007\\\"\\\\\\n/\u{7f}é\"");
    }

    #[test]
    fn numbers_come_back_as_they_were() {
        // What a journal gives back is compared with what the code asks for again: not one unit in the last place may move.
        let mut dice = Dice::at(0x9e37_79b9_7f4a_7c15);
        for _ in 0..20_000 {
            let bits = dice.bits();
            let number = f64::from_bits(bits);
            let fraction = (bits >> 11) as f64 / (1_u64 << 53) as f64;
            for number in [number, fraction].into_iter().filter(|n| n.is_finite()) {
                let value = serde_json::json!({ "x": number });
                let text = to_string(&value);
                let back: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(to_string(&back), text);
                assert_eq!(back["x"].as_f64(), Some(number), "{text}");
            }
        }
    }
}
