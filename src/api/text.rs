//! Text for people: what comes from outside made harmless for a terminal, tables, ages.

use std::fmt::Write as _;

/// `text` without anything a terminal would act on: control characters except newline and tab, whole ANSI and OSC sequences,
/// and the marks that reorder what is read (Trojan Source). What remains is what was written.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\n' | '\t' => out.push(c),
            '\x1b' => match rest.peek() {
                Some('[') => {
                    rest.next();
                    skip_csi(&mut rest);
                }
                // OSC, DCS, SOS, PM, APC: a text with its own end.
                Some(']' | 'P' | 'X' | '^' | '_') => {
                    rest.next();
                    skip_string(&mut rest);
                }
                // Two or three characters: intermediates, then one final.
                Some(' '..='~') => {
                    while rest.next_if(|c| (' '..='/').contains(c)).is_some() {}
                    rest.next_if(|c| ('0'..='~').contains(c));
                }
                _ => {}
            },
            '\u{9b}' => skip_csi(&mut rest),
            '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => skip_string(&mut rest),
            c if c.is_control() || is_layout(c) => {}
            c => out.push(c),
        }
    }
    out
}

/// JSON with every character written out that a terminal acts on or that some take for the end of a line: JSON itself only asks for that
/// below U+0020. It is the same value, on as many lines.
#[must_use]
pub fn plain_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            // These only stand in strings, and all are of the basic plane.
            c if c.is_control() || is_layout(c) => {
                let _infallible = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Bidirectional controls and the line and paragraph separators.
fn is_layout(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn skip_csi(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while rest.next_if(|c| (' '..='?').contains(c)).is_some() {}
    rest.next_if(|c| ('@'..='~').contains(c));
}

/// Up to BEL or ST; an unended one ends with its line, so that it cannot hide what follows.
fn skip_string(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while let Some(c) = rest.next_if(|c| *c != '\n') {
        match c {
            '\x07' | '\u{9c}' => return,
            '\x1b' => {
                rest.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

/// The first line of `text`, printable, at most `longest` characters.
#[must_use]
pub fn one_line(text: &str, longest: usize) -> String {
    let clean = printable(text);
    let line = clean.trim().lines().next().unwrap_or_default().replace('\t', " ");
    match line.char_indices().nth(longest.saturating_sub(1)) {
        Some((end, last)) if end + last.len_utf8() < line.len() => format!("{}…", &line[..end]),
        _ => line,
    }
}

/// Columns `text` takes on a terminal; near enough for aligning.
#[must_use]
pub fn width(text: &str) -> usize {
    let one = |c: char| match c {
        '\u{300}'..='\u{36f}' | '\u{200b}'..='\u{200d}' | '\u{fe0f}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    };
    text.chars().map(one).sum()
}

/// `text`, filled with blanks to `columns`.
#[must_use]
pub fn padded(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// Aligned columns, two blanks between, a heading, one line a row.
#[must_use]
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let clean: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(|cell| one_line(cell, 120)).collect()).collect();
    let columns = |i: usize| {
        let cells = clean.iter().filter_map(|r| r.get(i)).map(|c| width(c)).max().unwrap_or(0);
        cells.max(headings.get(i).map_or(0, |h| width(h)))
    };
    let widths: Vec<usize> = (0..headings.len()).map(columns).collect();
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let joined: Vec<String> = cells.zip(&widths).map(|(cell, w)| padded(cell, *w)).collect();
        let _infallible = writeln!(out, "{}", joined.join("  ").trim_end());
    };
    line(&mut headings.iter().copied());
    for row in &clean {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

/// A serialised enum's word as people read it: `rolled back`.
#[must_use]
pub fn word(state: &impl serde::Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(text)) => text.replace('_', " "),
        _ => String::new(),
    }
}

/// Milliseconds since the epoch of an RFC 3339 text.
#[must_use]
pub fn wall_ms(rfc3339: &str) -> Option<i64> {
    rfc3339.parse::<jiff::Timestamp>().ok().map(|t| t.as_millisecond())
}

/// How long from `since` to `now_ms`, in its largest units: `12s`, `5m`, `2h 10m`, `3d`; the text itself when it is no time.
#[must_use]
pub fn age(since: &str, now_ms: i64) -> String {
    match wall_ms(since) {
        Some(then) => span(now_ms.saturating_sub(then)),
        None => one_line(since, 40),
    }
}

/// Milliseconds in their largest units.
#[must_use]
pub fn span(ms: i64) -> String {
    let s = (ms / 1000).max(0);
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m", s / 60),
        3600..86_400 if s % 3600 < 60 => format!("{}h", s / 3600),
        3600..86_400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_terminal_acts_on_gets_through() {
        for (dirty, clean) in [
            ("plain\ttext\nnext", "plain\ttext\nnext"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("\x1b]0;title\x07after", "after"),
            ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1b]52;c;aGk=\nnext line stays", "\nnext line stays"),
            ("\u{9b}2Jwiped", "wiped"),
            ("\u{9d}0;t\u{9c}x", "x"),
            ("\x1bPq\x1b\\x", "x"),
            ("\x1bcreset", "reset"),
            ("\x1b(0x", "x"),
            ("a\x08\x00\x7f\rb", "ab"),
            ("if \u{202e}}\u{2066}// begin admins", "if }// begin admins"),
            ("\x1b", ""),
            ("\x1b[", ""),
            ("é 🌕 中", "é 🌕 中"),
        ] {
            assert_eq!(printable(dirty), clean, "{dirty:?}");
        }
    }

    #[test]
    fn json_is_the_same_value_and_nothing_a_terminal_acts_on() {
        let all: String = (0..0x2100).filter_map(char::from_u32).collect();
        let value = serde_json::json!({ all.as_str(): [all.as_str(), 1, null], "🌕": "\u{10ffff}" });
        let plain = plain_json(&value.to_string());
        assert!(!plain.chars().any(|c| c.is_control() || is_layout(c)));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&plain).unwrap(), value);
        assert_eq!(plain_json("{\n  \"a\": 1\n}\n"), "{\n  \"a\": 1\n}\n");
    }

    #[test]
    fn every_control_character_is_gone() {
        let all: String = (0..0x2100).filter_map(char::from_u32).collect();
        for start in 0..64 {
            let text: String = all.chars().skip(start).collect();
            assert!(!printable(&text).chars().any(|c| (c.is_control() && c != '\n' && c != '\t') || is_layout(c)));
        }
    }

    #[test]
    fn tables_align_wide_characters_too() {
        let rows =
            [vec!["shop".into(), "中文".into(), "x".into()], vec!["a".into(), "b\x1b[1m\nmore".into(), "y".into()]];
        assert_eq!(table(&["PROJECT", "TEXT", "Z"], &rows), "PROJECT  TEXT  Z\nshop     中文  x\na        b     y\n");
    }

    #[test]
    fn long_lines_are_cut_with_a_mark() {
        assert_eq!(one_line("abcdef", 6), "abcdef");
        assert_eq!(one_line("abcdefg", 6), "abcde…");
        assert_eq!(one_line("éééé\nx", 3), "éé…");
        assert_eq!(one_line("", 3), "");
    }

    #[test]
    fn ages_read_well() {
        for (ms, text) in [
            (-5, "0s"),
            (12_000, "12s"),
            (300_000, "5m"),
            (7_200_000, "2h"),
            (7_800_000, "2h 10m"),
            (260_000_000, "3d"),
        ] {
            assert_eq!(span(ms), text);
        }
        assert_eq!(age("2026-01-01T00:00:00.000Z", wall_ms("2026-01-01T00:00:12Z").unwrap()), "12s");
        assert_eq!(age("soon", 0), "soon");
    }
}
