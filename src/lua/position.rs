//! Where in a file a value was written: maps a path of literal keys below a call to line and column.
//!
//! Only consulted when something is wrong, and only for text that Lua itself could compile: that bounds how deeply it nests.
//! What cannot be followed (a value from another file, a computed key) is shown at the nearest literal around it.

use std::collections::BTreeMap;

use full_moon::{
    ast::{
        Call, Expression, Field, FunctionArgs, FunctionCall, Index, LocalAssignment, Prefix, Suffix, TableConstructor,
    },
    node::Node,
    tokenizer::{TokenReference, TokenType},
    visitors::Visitor,
};

use super::check::{On, Part};

/// Larger files get lines only.
const MAX_TEXT: usize = 1 << 20;

/// The parser recurses where Lua's own does not (a long sum is a deep tree), so it gets a stack that its input cannot exhaust.
const STACK: usize = 512 << 20;

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// In characters, at least 1, to the end of the line at most.
    pub length: usize,
}

/// Which call a path is below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The function as written, `phased.project`; `None` = any.
    pub function: Option<&'a str>,
    /// The line that Lua says it was called at; 0 = any.
    pub line: usize,
}

type Range = std::ops::Range<usize>;

#[derive(Debug, Clone)]
enum Shape {
    Table(Vec<Entry>),
    Name(String),
    Other,
}

#[derive(Debug, Clone)]
struct Literal {
    /// What is underlined: of a table its brace, of a function its first word.
    at: Range,
    shape: Shape,
}

#[derive(Debug, Clone)]
struct Entry {
    part: Part,
    key: Option<Range>,
    value: Literal,
}

#[derive(Debug)]
struct Called {
    name: Option<String>,
    /// What is called, up to its arguments.
    callee: Range,
    arguments_at: usize,
    arguments: Vec<Literal>,
}

/// The calls and local variables of a file.
#[derive(Debug)]
pub struct Positions<'a> {
    text: &'a str,
    calls: Vec<Called>,
    /// Every value given to a local variable, and where.
    locals: BTreeMap<String, Vec<(usize, Literal)>>,
}

impl<'a> Positions<'a> {
    /// Reads `text`; `None` when it cannot be read, then only lines are known.
    #[must_use]
    pub fn of(text: &'a str) -> Option<Self> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let reader = || {
            let ast = full_moon::parse(text).ok()?;
            let mut found = Found::default();
            found.visit_ast(&ast);
            Some(found)
        };
        let found = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("positions".to_owned()).stack_size(STACK);
            thread.spawn_scoped(scope, reader).ok()?.join().ok().flatten()
        })?;
        Some(Positions { text, calls: found.calls, locals: found.locals })
    }

    /// The best place for `path` below `target`.
    #[must_use]
    pub fn find(&self, target: Target<'_>, path: &[Part], on: On) -> Option<Place> {
        let mut best: Option<(usize, bool, Range)> = None;
        for call in &self.calls {
            if target.function.is_some() && call.name.as_deref() != target.function {
                continue;
            }
            let (from, to) = (self.line_of(call.callee.start), self.line_of(call.arguments_at));
            if target.line != 0 && !(from..=to).contains(&target.line) {
                continue;
            }
            let (depth, at) = self.follow(call, path, on);
            let exact = to == target.line;
            if best.as_ref().is_none_or(|(best_depth, best_exact, _)| (depth, exact) > (*best_depth, *best_exact)) {
                best = Some((depth, exact, at));
            }
        }
        best.map(|(_, _, at)| self.place(&at))
    }

    fn follow(&self, call: &Called, path: &[Part], on: On) -> (usize, Range) {
        let mut at = call.callee.clone();
        let (mut here, mut depth) = match (call.arguments.as_slice(), path.first()) {
            ([one], _) if matches!(self.settled(one).shape, Shape::Table(_)) => (one, 0),
            (arguments, Some(Part::Index(n))) => match n.checked_sub(1).and_then(|n| arguments.get(n)) {
                Some(argument) => {
                    at = argument.at.clone();
                    (argument, 1)
                }
                None => return (0, at),
            },
            _ => return (0, at),
        };
        while let Some(part) = path.get(depth) {
            let Shape::Table(entries) = &self.settled(here).shape else { break };
            // The last of two equal keys is the one that Lua keeps.
            let Some(entry) = entries.iter().rev().find(|entry| entry.part == *part) else { break };
            depth += 1;
            here = &entry.value;
            at = match (&entry.key, on) {
                (Some(key), On::Key) if depth == path.len() => key.clone(),
                _ => entry.value.at.clone(),
            };
        }
        (depth, at)
    }

    /// The literal that a local variable was given last before it is used, or the literal itself.
    fn settled<'b>(&'b self, literal: &'b Literal) -> &'b Literal {
        let mut here = literal;
        // A name may stand for a name; each is of an earlier line, so this ends.
        while let Shape::Name(name) = &here.shape {
            let given = self.locals.get(name).and_then(|all| all.iter().rev().find(|(at, _)| *at < here.at.start));
            match given {
                Some((_, given)) => here = given,
                None => break,
            }
        }
        here
    }

    fn line_of(&self, byte: usize) -> usize {
        self.text.get(..byte).map_or(1, |before| before.matches('\n').count() + 1)
    }

    fn place(&self, at: &Range) -> Place {
        place(self.text, at)
    }
}

/// The place of a range of bytes, cut at the end of its first line.
#[must_use]
pub fn place(text: &str, at: &Range) -> Place {
    let before = text.get(..at.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let meant = text.get(at.clone()).unwrap_or("");
    let meant = meant.lines().next().unwrap_or("");
    Place {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        length: meant.chars().count().max(1),
    }
}

/// The place that a syntax error of Lua means: its line, and there the text it stands near. `same` tells whether the text up to
/// a byte has that very error: so of several equal words the right one is found.
#[must_use]
pub fn near(text: &str, line: usize, message: &str, same: impl Fn(&str) -> bool) -> Place {
    let lines = || text.split_inclusive('\n');
    let before: usize = lines().take(line.saturating_sub(1)).map(str::len).sum();
    let shown = lines().nth(line.saturating_sub(1)).unwrap_or("").trim_end_matches(['\n', '\r']);
    let token = message.rsplit_once(" near ").map(|(_, token)| token.trim());
    let token = token.and_then(|token| token.strip_prefix('\'')?.strip_suffix('\'')).filter(|token| !token.is_empty());
    let all: Vec<usize> = token.map(|token| shown.match_indices(token).map(|(at, _)| at).collect()).unwrap_or_default();
    let found = match (token, all.as_slice()) {
        (None, _) | (_, []) => None,
        (Some(token), [one]) => Some((*one, token)),
        (Some(token), [first, ..]) => {
            let exact = all.iter().find(|at| text.get(..before + **at + token.len()).is_some_and(&same));
            Some((*exact.unwrap_or(first), token))
        }
    };
    // "near <eof>" and tokens that are not on the line leave the whole line.
    let (start, length) = match found {
        Some((start, token)) => (start, token.chars().count()),
        None => (shown.len() - shown.trim_start().len(), shown.trim().chars().count()),
    };
    Place { line: line.max(1), column: shown[..start].chars().count() + 1, length: length.max(1) }
}

#[derive(Default)]
struct Found {
    calls: Vec<Called>,
    locals: BTreeMap<String, Vec<(usize, Literal)>>,
}

impl Visitor for Found {
    fn visit_function_call(&mut self, call: &FunctionCall) {
        let Some(start) = call.prefix().start_position().map(|position| position.bytes()) else { return };
        let mut end = call.prefix().end_position().map_or(start, |position| position.bytes());
        let mut name = match call.prefix() {
            Prefix::Name(token) => Some(word(token)),
            _ => None,
        };
        for suffix in call.suffixes() {
            match suffix {
                Suffix::Index(Index::Dot { name: index, .. }) => {
                    if let Some(name) = &mut name {
                        name.push('.');
                        name.push_str(&word(index));
                    }
                }
                Suffix::Call(Call::AnonymousCall(arguments)) => {
                    self.calls.push(called(name.take(), start..end, arguments));
                }
                Suffix::Call(Call::MethodCall(method)) => {
                    name = None;
                    self.calls.push(called(None, start..end, method.args()));
                }
                _ => name = None,
            }
            end = suffix.end_position().map_or(end, |position| position.bytes());
        }
    }

    fn visit_local_assignment(&mut self, local: &LocalAssignment) {
        for (name, value) in local.names().iter().zip(local.expressions().iter()) {
            let at = name.start_position().map_or(0, |position| position.bytes());
            self.locals.entry(word(name)).or_default().push((at, literal(value)));
        }
    }
}

fn called(name: Option<String>, callee: Range, arguments: &FunctionArgs) -> Called {
    let arguments_at = arguments.start_position().map_or(callee.end, |position| position.bytes());
    let arguments = match arguments {
        FunctionArgs::Parentheses { arguments, .. } => arguments.iter().map(literal).collect(),
        FunctionArgs::String(token) => vec![Literal { at: range(token), shape: Shape::Other }],
        FunctionArgs::TableConstructor(table) => vec![constructor(table)],
        _ => Vec::new(),
    };
    Called { name, callee, arguments_at, arguments }
}

fn literal(expression: &Expression) -> Literal {
    let at = range(expression);
    match expression {
        Expression::TableConstructor(table) => constructor(table),
        Expression::Function(_) => Literal { at: at.start..at.start + "function".len(), shape: Shape::Other },
        Expression::Parentheses { expression, .. } => literal(expression),
        Expression::Var(full_moon::ast::Var::Name(name)) => Literal { at, shape: Shape::Name(word(name)) },
        _ => Literal { at, shape: Shape::Other },
    }
}

fn constructor(table: &TableConstructor) -> Literal {
    let start = table.start_position().map_or(0, |position| position.bytes());
    let mut entries = Vec::new();
    let mut count = 0;
    for field in table.fields() {
        match field {
            Field::NameKey { key, value, .. } => {
                entries.push(Entry { part: Part::Key(word(key)), key: Some(range(key)), value: literal(value) });
            }
            Field::ExpressionKey { key, value, .. } => {
                if let Some(part) = constant(key) {
                    entries.push(Entry { part, key: Some(range(key.as_ref())), value: literal(value) });
                }
            }
            Field::NoKey(value) => {
                count += 1;
                entries.push(Entry { part: Part::Index(count), key: None, value: literal(value) });
            }
            _ => {}
        }
    }
    Literal { at: start..start + 1, shape: Shape::Table(entries) }
}

/// A key that is written out: `["a-b"]`, `[1]`.
fn constant(key: &Expression) -> Option<Part> {
    match key {
        Expression::String(token) => match token.token().token_type() {
            TokenType::StringLiteral { literal, .. } if !literal.contains('\\') => Some(Part::Key(literal.to_string())),
            _ => None,
        },
        Expression::Number(token) => token.token().to_string().parse().ok().map(Part::Index),
        _ => None,
    }
}

fn word(token: &TokenReference) -> String {
    token.token().to_string()
}

fn range(node: &impl Node) -> Range {
    let start = node.start_position().map_or(0, |position| position.bytes());
    start..node.end_position().map_or(start, |position| position.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"-- é before it all
local slack = require "alerts.slack" { url = phased.secret "slack", chanel = "x" }
local shared = { max_parallel = 0 }
local rollout = shared

return phased.project {
  source = { git = "ü", branch = 5 }, ["queue"] = "x",
  environments = {
    { "production", rollout = rollout, [2] = "two",
      deploy = function(host)
      end },
  },
}
"#;

    fn path(text: &str) -> Vec<Part> {
        text.split('.')
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().map_or_else(|_| Part::Key(part.to_owned()), Part::Index))
            .collect()
    }

    fn at(function: Option<&str>, line: usize, keys: &str, on: On) -> (usize, usize, usize) {
        let place = Positions::of(FILE).unwrap().find(Target { function, line }, &path(keys), on).unwrap();
        (place.line, place.column, place.length)
    }

    #[test]
    fn literal_keys_are_found() {
        let project = Some("phased.project");
        assert_eq!(at(project, 6, "source.branch", On::Value), (7, 34, 1));
        assert_eq!(at(project, 0, "source.branch", On::Key), (7, 25, 6));
        assert_eq!(at(project, 0, "source.git", On::Value), (7, 20, 3));
        assert_eq!(at(project, 0, "queue", On::Value), (7, 51, 3));
        assert_eq!(at(project, 0, "environments.1.1", On::Value), (9, 7, 12));
        assert_eq!(at(project, 0, "environments.1.deploy", On::Value), (10, 16, 8));
        assert_eq!(at(project, 0, "environments.1.2", On::Value), (9, 46, 5));
    }

    #[test]
    fn local_variables_are_followed() {
        assert_eq!(at(Some("phased.project"), 0, "environments.1.rollout.max_parallel", On::Value), (3, 33, 1));
    }

    #[test]
    fn what_is_not_there_is_shown_at_the_nearest_literal() {
        let project = Some("phased.project");
        assert_eq!(at(project, 0, "", On::Value), (6, 8, 14));
        assert_eq!(at(project, 0, "notify", On::Value), (6, 8, 14));
        assert_eq!(at(project, 0, "environments.1.health.http", On::Value), (9, 5, 1));
        assert_eq!(at(project, 0, "environments.1.deploy.x", On::Value), (10, 16, 8));
    }

    #[test]
    fn any_call_is_found_by_its_line_and_what_is_in_it() {
        assert_eq!(at(None, 2, "chanel", On::Key), (2, 69, 6));
        assert_eq!(at(None, 2, "1", On::Value), (2, 23, 14));
    }

    #[test]
    fn long_sums_and_broken_text_do_no_harm() {
        assert!(Positions::of("return {{{").is_none());
        let sum = format!("return {}1", "1+".repeat(100_000));
        let _whatever = Positions::of(&sum);
        assert!(Positions::of(&" ".repeat(MAX_TEXT + 1)).is_none());
    }

    #[test]
    fn syntax_errors_have_a_column() {
        let text = "return {\n  é = 1 = 2,\n}\n";
        let message = "'}' expected (to close '{' at line 1) near '='";
        let same = |cut: &str| cut.ends_with("= 1 =");
        assert_eq!(near(text, 2, message, same), Place { line: 2, column: 9, length: 1 });
        let near = |text: &str, line, message: &str| near(text, line, message, |_| false);
        assert_eq!(near(text, 3, "'}' expected near <eof>"), Place { line: 3, column: 1, length: 1 });
        assert_eq!(near(text, 99, "x near 'y'"), Place { line: 99, column: 1, length: 1 });
    }
}
