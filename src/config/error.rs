//! What is wrong with a configuration, where, and what was probably meant.

use std::path::{Path, PathBuf};

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
        let (line, column) = place(text, error.span().map_or(0, |span| span.start));
        let message = error.message().trim().replace('\n', ", ");
        let help = did_you_mean(&message);
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
