//! What is wrong with a configuration, where, and what was probably meant.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path:?}: {error}{}", if error.kind() == std::io::ErrorKind::NotFound { "; `phased init` writes one" } else { "" })]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: std::io::Error,
    },
    /// The file says something that it must not.
    #[error("{}:{line}:{column}: {message}{}", path.display(), help.as_ref().map(|help| format!("; {help}")).unwrap_or_default())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong, with the value.
        message: String,
        /// ``did you mean `socket`?``
        help: Option<String>,
    },
}

impl ConfigError {
    pub(super) fn at(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let span = error.span();
        let (line, column) = place(text, span.as_ref().map_or(0, |span| span.start));
        let message = error.message().trim().replace('\n', ", ");
        let help = did_you_mean(&message);
        let value = span.and_then(|span| Value::at(text, span.start));
        let message = value.and_then(|value| value.said(&message)).unwrap_or(message);
        ConfigError::Invalid { path: path.to_owned(), line, column, message, help }
    }

    /// Something that concerns a section as a whole.
    pub(super) fn section(path: &Path, text: &str, section: &str, message: String) -> Self {
        let mut offset = 0;
        let found = text.split_inclusive('\n').find_map(|line| {
            let start = offset;
            offset += line.len();
            let inner = line.trim_start().strip_prefix('[')?.split_once(']')?.0.trim();
            (inner == section).then_some(start + line.len() - line.trim_start().len())
        });
        let (line, column) = place(text, found.unwrap_or(0));
        ConfigError::Invalid {
            path: path.to_owned(),
            line,
            column,
            message: format!("in [{section}]: {message}"),
            help: None,
        }
    }
}

/// What is written where something is wrong.
struct Value {
    /// `[api] listen`, `data_dir`, `[signals] accept 1.key`.
    key: String,
    /// As it stands there, if that is short.
    written: String,
}

impl Value {
    /// The innermost value around a byte offset; none in a file that is no TOML.
    fn at(text: &str, offset: usize) -> Option<Value> {
        let document = DeTable::parse(text).ok()?;
        let mut path = Vec::new();
        let (span, is_table) = in_table(document.get_ref(), offset, &mut path)?;
        let written = if is_table { "a table".to_owned() } else { cut(text.get(span)?) };
        let key = match path.split_first()? {
            (section, []) => section.clone(),
            (section, keys) => format!("[{section}] {}", keys.join(".")),
        };
        Some(Value { key, written })
    }

    /// What serde says of it, in our words; nothing more is to be said of a key that does not exist.
    fn said(&self, message: &str) -> Option<String> {
        let Value { key, written } = self;
        let kinds = ["invalid type: ", "invalid value: ", "unknown variant "];
        let wrong = kinds.iter().find_map(|kind| message.strip_prefix(kind)?.rsplit_once(", expected "));
        // Of a number where one of several words should stand, which are not named then.
        let expected =
            wrong.map(|(_, expected)| expected).or((message == "wanted string or table").then_some("a string"));
        match expected {
            Some(expected) => Some(format!("{key} must be {}, and is {written}", in_words(expected))),
            None if message.starts_with("unknown field ") => None,
            None => Some(format!("{key}: {message}")),
        }
    }
}

fn in_table(table: &DeTable<'_>, offset: usize, path: &mut Vec<String>) -> Option<(Range<usize>, bool)> {
    table.iter().find_map(|(key, value)| {
        path.push(key.get_ref().to_string());
        let found = in_value(value, offset, path);
        if found.is_none() {
            path.pop();
        }
        found
    })
}

fn in_value(value: &Spanned<DeValue<'_>>, offset: usize, path: &mut Vec<String>) -> Option<(Range<usize>, bool)> {
    let inner = match value.get_ref() {
        DeValue::Table(table) => in_table(table, offset, path),
        DeValue::Array(items) => {
            let list = path.pop().unwrap_or_default();
            let found = items.iter().enumerate().find_map(|(i, item)| {
                path.push(format!("{list} {}", i + 1));
                let found = in_value(item, offset, path);
                if found.is_none() {
                    path.pop();
                }
                found
            });
            if found.is_none() {
                path.push(list);
            }
            found
        }
        _ => None,
    };
    let is_table = matches!(value.get_ref(), DeValue::Table(_));
    inner.or_else(|| value.span().contains(&offset).then(|| (value.span(), is_table)))
}

/// The first of what is long.
fn cut(text: &str) -> String {
    const LONGEST: usize = 40;
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None if line.len() < text.len() => format!("{line}..."),
        None => line.to_owned(),
    }
}

/// What serde calls a kind of value, as people do who write it.
fn in_words(expected: &str) -> &str {
    match expected {
        "a string" => "text in quotes",
        "path string" => "a path in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        kind if kind.starts_with("struct ") => "a table",
        ours => ours,
    }
}

/// Line and column of a byte offset.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let mut before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    before = before.rsplit('\n').next().unwrap_or("");
    (line, before.chars().count() + 1)
}

/// serde's message names the wrong word first, then those it knows.
fn did_you_mean(message: &str) -> Option<String> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let wrong = words.next()?;
    let best = words.map(|word| (distance(wrong, word), word)).min()?;
    (best.0 <= wrong.chars().count().max(3) / 3 + 1).then(|| format!("did you mean `{}`?", best.1))
}

/// Edits (insert, delete, replace, swap of neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let mut best =
                (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows.last().and_then(|row| row.last()).copied().unwrap_or(0)
}
