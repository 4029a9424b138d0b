//! Lua's patterns on a matcher of our own, with a budget of steps: Lua's runs inside C, where no limit reaches it.
//!
//! The language is that of the Lua 5.4 manual, §6.4.1, with its error messages; unit tests hold it against Lua's own.

/// Captures of one pattern, as in Lua.
const MAX_CAPTURES: usize = 32;
/// Nesting of the matcher, as in Lua.
const MAX_DEPTH: u32 = 200;

/// A capture of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// From, to (exclusive), in bytes.
    Span(usize, usize),
    /// `()`: a position, from 1.
    Position(usize),
}

/// A match: the whole of it, and its captures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Where it begins.
    pub start: usize,
    /// Where it ends (exclusive).
    pub end: usize,
    /// Without the whole match.
    pub captures: Vec<Capture>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PatternError {
    /// The pattern is malformed; Lua's words.
    Malformed(String),
    /// The budget is used up.
    Budget,
}

#[derive(Clone, Copy)]
enum Open {
    Waiting,
    Position,
    Closed(usize),
}

struct Matcher<'a> {
    text: &'a [u8],
    pattern: &'a [u8],
    captures: Vec<(usize, Open)>,
    depth: u32,
    budget: &'a mut u64,
}

type Step<T> = Result<T, PatternError>;

fn malformed<T>(why: &str) -> Step<T> {
    Err(PatternError::Malformed(why.to_owned()))
}

/// The first match of `pattern` in `text` at or after `init`; `anchored` patterns (`^`) only there. Each step takes one off `budget`.
///
/// # Errors
/// [`PatternError`].
pub fn find(text: &[u8], pattern: &[u8], init: usize, budget: &mut u64) -> Result<Option<Match>, PatternError> {
    let (anchored, pattern) = match pattern.strip_prefix(b"^") {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let mut start = init;
    loop {
        let mut matcher = Matcher { text, pattern, captures: Vec::new(), depth: 0, budget };
        if let Some(end) = matcher.run(start, 0)? {
            return Ok(Some(Match { start, end, captures: matcher.closed()? }));
        }
        start += 1;
        if anchored || start > text.len() {
            return Ok(None);
        }
    }
}

/// Where `needle` is in `text`, at or after `init`.
///
/// # Errors
/// [`PatternError::Budget`].
pub fn plain(text: &[u8], needle: &[u8], init: usize, budget: &mut u64) -> Result<Option<usize>, PatternError> {
    let Some(first) = needle.first() else { return Ok((init <= text.len()).then_some(init)) };
    let last = text.len().checked_sub(needle.len());
    for at in init..last.map_or(0, |last| last + 1) {
        // Most places cost a step; a needle that nearly fits costs what is compared.
        let mut cost = 1;
        if text[at] == *first {
            let same = text[at..].iter().zip(needle).take_while(|(a, b)| a == b).count();
            if same == needle.len() {
                return Ok(Some(at));
            }
            cost += same as u64;
        }
        *budget = budget.checked_sub(cost).ok_or(PatternError::Budget)?;
    }
    Ok(None)
}

/// Whether a pattern has no magic in it.
#[must_use]
pub fn is_plain(pattern: &[u8]) -> bool {
    !pattern.iter().any(|byte| b"^$*+?.([%-".contains(byte))
}

impl Matcher<'_> {
    fn closed(&self) -> Step<Vec<Capture>> {
        self.captures
            .iter()
            .map(|(start, state)| match state {
                Open::Closed(end) => Ok(Capture::Span(*start, *end)),
                Open::Position => Ok(Capture::Position(start + 1)),
                Open::Waiting => malformed("unfinished capture"),
            })
            .collect()
    }

    fn run(&mut self, s: usize, p: usize) -> Step<Option<usize>> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return malformed("pattern too complex");
        }
        let result = self.matched(s, p);
        self.depth -= 1;
        result
    }

    fn matched(&mut self, mut s: usize, mut p: usize) -> Step<Option<usize>> {
        loop {
            *self.budget = self.budget.checked_sub(1).ok_or(PatternError::Budget)?;
            let Some(&c) = self.pattern.get(p) else { return Ok(Some(s)) };
            match (c, self.pattern.get(p + 1)) {
                (b'(', Some(b')')) => return self.start_capture(s, p + 2, Open::Position),
                (b'(', _) => return self.start_capture(s, p + 1, Open::Waiting),
                (b')', _) => return self.end_capture(s, p + 1),
                (b'$', None) => return Ok((s == self.text.len()).then_some(s)),
                (b'%', Some(b'b')) => match self.balanced(s, p + 2)? {
                    Some(next) => (s, p) = (next, p + 4),
                    None => return Ok(None),
                },
                (b'%', Some(b'f')) => {
                    let set = p + 2;
                    if self.pattern.get(set) != Some(&b'[') {
                        return malformed("missing '[' after '%f' in pattern");
                    }
                    let end = self.class_end(set)?;
                    let before = if s == 0 { 0 } else { self.text[s - 1] };
                    let here = self.text.get(s).copied().unwrap_or(0);
                    if self.in_set(before, set, end - 1) || !self.in_set(here, set, end - 1) {
                        return Ok(None);
                    }
                    p = end;
                }
                (b'%', Some(digit)) if digit.is_ascii_digit() => match self.back_reference(s, *digit)? {
                    Some(next) => (s, p) = (next, p + 2),
                    None => return Ok(None),
                },
                _ => {
                    let end = self.class_end(p)?;
                    // A long set is looked through at every character.
                    *self.budget = self.budget.checked_sub((end - p) as u64 / 4).ok_or(PatternError::Budget)?;
                    let here = self.single(s, p, end);
                    match self.pattern.get(end) {
                        Some(b'?') => {
                            if here && let Some(found) = self.run(s + 1, end + 1)? {
                                return Ok(Some(found));
                            }
                            p = end + 1;
                        }
                        Some(b'+') => {
                            return if here { self.max_expand(s + 1, p, end) } else { Ok(None) };
                        }
                        Some(b'*') => return self.max_expand(s, p, end),
                        Some(b'-') => return self.min_expand(s, p, end),
                        _ if !here => return Ok(None),
                        _ => (s, p) = (s + 1, end),
                    }
                }
            }
        }
    }

    fn class_end(&self, p: usize) -> Step<usize> {
        match self.pattern.get(p) {
            Some(b'%') => {
                if p + 1 >= self.pattern.len() {
                    return malformed("malformed pattern (ends with '%')");
                }
                Ok(p + 2)
            }
            Some(b'[') => {
                let mut p = p + 1;
                if self.pattern.get(p) == Some(&b'^') {
                    p += 1;
                }
                // Look for a ']'; the first one after '[' or '[^' is a member.
                loop {
                    let Some(c) = self.pattern.get(p) else { return malformed("malformed pattern (missing ']')") };
                    p += if *c == b'%' { 2 } else { 1 };
                    if self.pattern.get(p) == Some(&b']') {
                        return Ok(p + 1);
                    }
                }
            }
            _ => Ok(p + 1),
        }
    }

    fn single(&self, s: usize, p: usize, end: usize) -> bool {
        let Some(&c) = self.text.get(s) else { return false };
        match self.pattern[p] {
            b'.' => true,
            b'%' => in_class(c, self.pattern[p + 1]),
            b'[' => self.in_set(c, p, end - 1),
            literal => literal == c,
        }
    }

    /// `set` is at `[`, `last` at `]`.
    fn in_set(&self, c: u8, set: usize, last: usize) -> bool {
        let mut p = set + 1;
        let negated = self.pattern.get(p) == Some(&b'^');
        if negated {
            p += 1;
        }
        while p < last {
            if self.pattern[p] == b'%' && p + 1 < self.pattern.len() {
                if in_class(c, self.pattern[p + 1]) {
                    return !negated;
                }
                p += 2;
            } else if self.pattern.get(p + 1) == Some(&b'-') && p + 2 < last {
                if (self.pattern[p]..=self.pattern[p + 2]).contains(&c) {
                    return !negated;
                }
                p += 3;
            } else {
                if self.pattern[p] == c {
                    return !negated;
                }
                p += 1;
            }
        }
        negated
    }

    fn balanced(&mut self, s: usize, p: usize) -> Step<Option<usize>> {
        let (Some(&open), Some(&close)) = (self.pattern.get(p), self.pattern.get(p + 1)) else {
            return malformed("malformed pattern (missing arguments to '%b')");
        };
        if self.text.get(s) != Some(&open) {
            return Ok(None);
        }
        let mut depth = 1;
        for (i, &c) in self.text.iter().enumerate().skip(s + 1) {
            *self.budget = self.budget.checked_sub(1).ok_or(PatternError::Budget)?;
            if c == close {
                depth -= 1;
                if depth == 0 {
                    return Ok(Some(i + 1));
                }
            } else if c == open {
                depth += 1;
            }
        }
        Ok(None)
    }

    fn max_expand(&mut self, s: usize, p: usize, end: usize) -> Step<Option<usize>> {
        let mut count = 0;
        while self.single(s + count, p, end) {
            *self.budget = self.budget.checked_sub(1 + (end - p) as u64 / 4).ok_or(PatternError::Budget)?;
            count += 1;
        }
        loop {
            if let Some(found) = self.run(s + count, end + 1)? {
                return Ok(Some(found));
            }
            match count.checked_sub(1) {
                Some(less) => count = less,
                None => return Ok(None),
            }
        }
    }

    fn min_expand(&mut self, mut s: usize, p: usize, end: usize) -> Step<Option<usize>> {
        loop {
            if let Some(found) = self.run(s, end + 1)? {
                return Ok(Some(found));
            }
            *self.budget = self.budget.checked_sub(1 + (end - p) as u64 / 4).ok_or(PatternError::Budget)?;
            if !self.single(s, p, end) {
                return Ok(None);
            }
            s += 1;
        }
    }

    fn start_capture(&mut self, s: usize, p: usize, state: Open) -> Step<Option<usize>> {
        if self.captures.len() >= MAX_CAPTURES {
            return malformed("too many captures");
        }
        self.captures.push((s, state));
        let found = self.run(s, p)?;
        if found.is_none() {
            self.captures.pop();
        }
        Ok(found)
    }

    fn end_capture(&mut self, s: usize, p: usize) -> Step<Option<usize>> {
        let Some(open) = self.captures.iter().rposition(|(_, state)| matches!(state, Open::Waiting)) else {
            return malformed("invalid pattern capture");
        };
        self.captures[open].1 = Open::Closed(s);
        let found = self.run(s, p)?;
        if found.is_none() {
            self.captures[open].1 = Open::Waiting;
        }
        Ok(found)
    }

    fn back_reference(&mut self, s: usize, digit: u8) -> Step<Option<usize>> {
        let index = usize::from(digit - b'0').checked_sub(1);
        let capture = index.and_then(|i| self.captures.get(i));
        let Some((start, Open::Closed(end))) = capture else {
            return Err(PatternError::Malformed(format!("invalid capture index %{}", digit - b'0')));
        };
        let wanted = &self.text[*start..*end];
        *self.budget = self.budget.checked_sub(wanted.len() as u64).ok_or(PatternError::Budget)?;
        Ok(self.text[s..].starts_with(wanted).then_some(s + wanted.len()))
    }
}

fn in_class(c: u8, class: u8) -> bool {
    let matched = match class.to_ascii_lowercase() {
        b'a' => c.is_ascii_alphabetic(),
        b'd' => c.is_ascii_digit(),
        b'l' => c.is_ascii_lowercase(),
        // C's isspace also has the vertical tab.
        b's' => c.is_ascii_whitespace() || c == 0x0b,
        b'u' => c.is_ascii_uppercase(),
        b'w' => c.is_ascii_alphanumeric(),
        b'x' => c.is_ascii_hexdigit(),
        b'p' => c.is_ascii_punctuation(),
        b'c' => c.is_ascii_control(),
        b'g' => c.is_ascii_graphic(),
        _ => return class == c,
    };
    matched != class.is_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lua's own answer: `(start, end, captures...)` as text, or its error.
    fn real(lua: &mlua::Lua, text: &str, pattern: &str) -> String {
        let find: mlua::Function = lua.globals().get::<mlua::Table>("string").unwrap().get("find").unwrap();
        match find.call::<mlua::MultiValue>((text, pattern)) {
            Ok(values) => format!("{:?}", values.iter().map(|v| v.to_string().unwrap()).collect::<Vec<_>>()),
            Err(error) => error.to_string().lines().next().unwrap().to_owned(),
        }
    }

    fn ours(text: &str, pattern: &str) -> String {
        // As string.find does: `a)` has no magic for it.
        if is_plain(pattern.as_bytes()) {
            let at = plain(text.as_bytes(), pattern.as_bytes(), 0, &mut 1_000_000).unwrap();
            return at.map_or("[\"nil\"]".to_owned(), |at| {
                format!("{:?}", [at + 1, at + pattern.len()].map(|n| n.to_string()))
            });
        }
        match find(text.as_bytes(), pattern.as_bytes(), 0, &mut 1_000_000) {
            Ok(None) => "[\"nil\"]".to_owned(),
            Ok(Some(found)) => {
                let mut values = vec![(found.start + 1).to_string(), found.end.to_string()];
                values.extend(found.captures.iter().map(|capture| match capture {
                    Capture::Span(from, to) => text[*from..*to].to_owned(),
                    Capture::Position(at) => at.to_string(),
                }));
                format!("{values:?}")
            }
            Err(PatternError::Malformed(why)) => format!("runtime error: {why}"),
            Err(PatternError::Budget) => "budget".to_owned(),
        }
    }

    #[test]
    fn it_answers_as_lua_does() {
        let lua = mlua::Lua::new();
        let texts = [
            "",
            "a",
            "hello world",
            "key = value",
            "  trim  ",
            "a.b.c",
            "THE (quick) fox",
            "x=1, y=22;z=333",
            "f(a(b)c)d)",
            "aaa",
            "aXb",
            "[[x]]",
            "100%",
            "2026-11-23T04:05:06Z",
            "foo123bar",
            "\t\n tab",
            "((()))",
            "ab]c",
            "a-b-c",
            "^caret$",
        ];
        let patterns = [
            "",
            "a",
            ".",
            ".*",
            ".-",
            "^a",
            "a$",
            "%a+",
            "%d+",
            "(%w+)",
            "^%s*(.-)%s*$",
            "(%w+)%s*=%s*(%w+)",
            "%b()",
            "%f[%w]%w+",
            "%f[%a]%a+%f[%A]",
            "[abc]",
            "[^abc]+",
            "[a-c]+",
            "[%w_]+",
            "()",
            "()a()",
            "(a)(b)?",
            "a?",
            "a?b",
            "a*b",
            "(a)%1",
            "%%",
            "[]]",
            "[^]]",
            "[]-a]",
            "[a-]",
            "[%a-z]",
            "(%d+)%-(%d+)%-(%d+)",
            "%x+",
            "%p",
            "%u%u",
            "%S+",
            "%D",
            "(a",
            "a)",
            "%",
            "[a",
            "[",
            "%f",
            "%b",
            "%bx",
            "%1",
            "(%1)",
            "(()",
            "[%",
            "a**",
            "$",
            "^$",
            "a$b",
            "^^",
            "(.)(.)%2%1",
            "%g+",
            "%c",
            "(((((((((((((((((((((((((((((((((",
        ];
        for text in texts {
            for pattern in patterns {
                let (real, ours) = (real(&lua, text, pattern), ours(text, pattern));
                // Lua adds where it was called to its errors, and %1 in an open capture is worded by number.
                assert_eq!(
                    ours.replace("runtime error: ", ""),
                    real.replace("runtime error: ", ""),
                    "find({text:?}, {pattern:?})"
                );
            }
        }
    }

    #[test]
    fn a_pattern_that_explodes_is_stopped() {
        let text = "a".repeat(200);
        let mut budget = 100_000;
        assert_eq!(find(text.as_bytes(), b".-.-.-.-.-.-.-b", 0, &mut budget), Err(PatternError::Budget));
    }
}
