//! Findings of the loader as a compiler shows them: with the source line, on one line, or as JSON.

use std::{collections::BTreeMap, path::PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde_json::{Value, json};

use crate::ports::program::Diagnostic;

/// One block for each finding, with the line it is on, then how many there are. `styled` colours it for a terminal.
///
/// Files are read again; one that cannot be is shown without its lines.
#[must_use]
pub fn render(diagnostics: &[Diagnostic], styled: bool) -> String {
    let renderer = if styled { Renderer::styled() } else { Renderer::plain() };
    let mut files: BTreeMap<PathBuf, Option<String>> = BTreeMap::new();
    let mut out = String::new();
    for diagnostic in diagnostics {
        let source = files
            .entry(diagnostic.file.clone())
            .or_insert_with(|| std::fs::read_to_string(&diagnostic.file).ok())
            .as_deref();
        out.push_str(&renderer.render(&groups(diagnostic, source)));
        out.push_str("\n\n");
    }
    out.push_str(&summary(diagnostics));
    out
}

fn groups<'a>(diagnostic: &'a Diagnostic, source: Option<&'a str>) -> Vec<Group<'a>> {
    let path = diagnostic.file.to_string_lossy();
    let title = Level::ERROR.primary_title(plain(&diagnostic.message)).id(diagnostic.code);
    let mut group = match source.and_then(|source| range(source, diagnostic).map(|range| (source, range))) {
        Some((source, range)) => Group::with_title(title).element(
            Snippet::source(source).path(path.into_owned()).fold(true).annotation(AnnotationKind::Primary.span(range)),
        ),
        None => {
            let mut origin = Origin::path(path.into_owned());
            if diagnostic.line > 0 {
                origin = origin.line(diagnostic.line);
            }
            Group::with_title(title).element(origin)
        }
    };
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(plain(help)));
    }
    vec![group]
}

/// The bytes that are meant; the whole line where the column is not known.
fn range(source: &str, diagnostic: &Diagnostic) -> Option<std::ops::Range<usize>> {
    let line_index = diagnostic.line.checked_sub(1)?;
    let start = match line_index {
        0 => 0,
        n => source.match_indices('\n').nth(n - 1).map(|(newline, _)| newline + 1)?,
    };
    let line = source.get(start..)?.lines().next().unwrap_or("");
    let byte = |column: usize| line.char_indices().nth(column).map_or(line.len(), |(byte, _)| byte);
    match diagnostic.column.checked_sub(1) {
        Some(column) => Some(start + byte(column)..start + byte(column + diagnostic.length.max(1))),
        None => Some(
            start + (line.len() - line.trim_start().len())
                ..start + line.trim_end().len().max(line.len() - line.trim_start().len()),
        ),
    }
}

/// Control characters of a user's value must not reach the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

fn summary(diagnostics: &[Diagnostic]) -> String {
    let mut files: Vec<_> = diagnostics.iter().map(|diagnostic| &diagnostic.file).collect();
    files.sort();
    files.dedup();
    match (diagnostics.len(), files.len()) {
        (1, _) => "error: 1 error\n".to_owned(),
        (errors, 1) => format!("error: {errors} errors\n"),
        (errors, files) => format!("error: {errors} errors in {files} files\n"),
    }
}

/// `path:line:column: error: message; help`, one line each, as editors and grep read it.
#[must_use]
pub fn short(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(|diagnostic| format!("{}\n", line(diagnostic))).collect()
}

/// One finding on one line.
#[must_use]
pub fn line(diagnostic: &Diagnostic) -> String {
    let mut at = diagnostic.file.display().to_string();
    if diagnostic.line > 0 {
        at.push_str(&format!(":{}", diagnostic.line));
        if diagnostic.column > 0 {
            at.push_str(&format!(":{}", diagnostic.column));
        }
    }
    let help = diagnostic.help.as_ref().map_or(String::new(), |help| format!("; {help}"));
    plain(&format!("{at}: error: {}{help}", diagnostic.message)).replace('\n', " ")
}

/// `[{"file", "line", "column", "length", "code", "message", "help"}]`; `line` and `column` are null where they are not known.
#[must_use]
pub fn json(diagnostics: &[Diagnostic]) -> Value {
    let known = |n: usize| if n == 0 { Value::Null } else { Value::from(n) };
    diagnostics
        .iter()
        .map(|diagnostic| {
            json!({
                "file": diagnostic.file.to_string_lossy(), "line": known(diagnostic.line), "column": known(diagnostic.column),
                "length": diagnostic.length, "code": diagnostic.code, "message": diagnostic.message, "help": diagnostic.help,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnostic(file: PathBuf, line: usize, column: usize, length: usize) -> Diagnostic {
        Diagnostic {
            file,
            line,
            column,
            length,
            code: "unknown_key",
            message: "unknown key \"sorce\" in phased.project".to_owned(),
            help: Some("did you mean \"source\"?".to_owned()),
        }
    }

    #[test]
    fn it_looks_as_a_compiler_would() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shop.lua");
        std::fs::write(&file, "-- shop\nreturn phased.project {\n  sorce = { git = \"é\" },\n}\n").unwrap();
        let shown =
            render(&[diagnostic(file.clone(), 3, 3, 5)], false).replace(&folder.path().display().to_string(), "DIR");
        assert_eq!(
            shown,
            "error[unknown_key]: unknown key \"sorce\" in phased.project\n \
             --> DIR/shop.lua:3:3\n  |\n3 |   sorce = { git = \"é\" },\n  |   ^^^^^\n  |\n  = help: did you mean \"source\"?\n\nerror: 1 error\n"
        );
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gone.lua");
        for (line, column) in [(0, 0), (7, 0), (7, 9)] {
            let shown = render(&[diagnostic(file.clone(), line, column, 1)], false);
            assert!(shown.contains("unknown key") && shown.contains("gone.lua"), "{shown}");
        }
        std::fs::write(&file, "x").unwrap();
        for (line, column, length) in [(1, 0, 1), (1, 50, 9), (40, 1, 1), (1, 1, 0)] {
            assert!(render(&[diagnostic(file.clone(), line, column, length)], false).contains("unknown key"));
        }
        assert_eq!(
            line(&diagnostic("a".into(), 0, 0, 1)),
            "a: error: unknown key \"sorce\" in phased.project; did you mean \"source\"?"
        );
        assert_eq!(json(&[diagnostic("a".into(), 0, 0, 1)])[0]["line"], Value::Null);
        assert_eq!(
            short(&[diagnostic("a".into(), 3, 4, 1)]),
            "a:3:4: error: unknown key \"sorce\" in phased.project; did you mean \"source\"?\n"
        );
    }

    #[test]
    fn a_hostile_value_does_not_reach_the_terminal() {
        let mut bad = diagnostic("a".into(), 1, 1, 1);
        bad.message = "\u{1b}[2J\u{7}".to_owned();
        assert!(!render(&[bad.clone()], false).contains('\u{1b}') && !line(&bad).contains('\u{1b}'));
    }
}
