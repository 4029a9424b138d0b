//! Log lines for people: what a line quotes (a branch, a reason, another program's words) neither moves the terminal nor passes for a line
//! of its own. tracing-subscriber escapes some of it in messages, and nothing in fields.

use std::io::{self, Write};

/// What events look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lines {
    /// Text. With colours of their own, which stay.
    Text { colours: bool },
    /// JSON: what is escaped is within a text of it.
    Json,
}

/// Standard error, event by event.
pub(super) fn stderr(lines: Lines) -> Harmless<io::Stderr> {
    Harmless { out: io::stderr(), lines }
}

/// Passes on what it is given, which is one whole event each time.
#[derive(Debug)]
pub(super) struct Harmless<W> {
    out: W,
    lines: Lines,
}

impl<W: Write> Write for Harmless<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.out.write_all(shown(&String::from_utf8_lossy(event), self.lines).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What the lines themselves are coloured with: plain, bold, dim, slanted, and the colours of the levels.
const COLOURS: [&str; 9] = ["[0m", "[1m", "[2m", "[3m", "[31m", "[32m", "[33m", "[34m", "[35m"];

/// Lines after the first one of an event are indented; what acts on a terminal is written out, in JSON as JSON writes it.
fn shown(event: &str, lines: Lines) -> String {
    let colours = lines == Lines::Text { colours: true };
    let mut out = String::with_capacity(event.len());
    for (at, c) in event.char_indices() {
        let rest = event.get(at + c.len_utf8()..).unwrap_or_default();
        match c {
            '\n' if rest.is_empty() => out.push(c),
            '\n' if lines != Lines::Json => out.push_str("\n    "),
            '\t' if lines != Lines::Json => out.push(c),
            c if lines == Lines::Json && (c.is_control() || reorders(c)) => {
                out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
            }
            '\u{1b}' if colours && COLOURS.iter().any(|colour| rest.starts_with(colour)) => out.push(c),
            c if c.is_control() || reorders(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Bidirectional controls, and what some viewers take for the end of a line.
fn reorders(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_that_a_terminal_only_shows() {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || Harmless { out: writer.clone(), lines: Lines::Text { colours: false } });
        let nasty = "a\nERROR all is lost\r\u{1b}[31mred\u{9b}m\u{0}\u{202e}x\u{7f}\u{2028}";
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(reason = %nasty, debug = ?nasty, text = nasty, "{nasty}");
            tracing::warn!("next");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || reorders(c)), "{text:?}");
        let own = |line: &&str| line.starts_with(|c: char| c.is_ascii_digit());
        assert_eq!(text.lines().filter(own).count(), 2, "{text}");
        assert!(text.lines().all(|line| own(&line) || line.starts_with("    ")), "{text}");
        assert!(text.ends_with("next\n"), "{text}");
    }

    #[test]
    fn an_event_in_json_says_the_same_and_a_terminal_only_shows_it() {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(move || Harmless { out: writer.clone(), lines: Lines::Json });
        let nasty = "a\nb\r\u{1b}[31mred\u{9b}m\u{0}\u{202e}x\u{7f}\u{85}\u{2028}\t\"\\ü";
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(reason = nasty, "{nasty}");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(text.ends_with("}\n") && text.lines().count() == 1, "{text:?}");
        assert!(!text.trim_end().chars().any(|c| c.is_control() || reorders(c)) && text.contains('ü'), "{text:?}");
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(event["reason"], nasty);
    }

    #[test]
    fn a_terminal_gets_the_colours_of_the_line_and_no_others() {
        assert_eq!(
            shown("\u{1b}[32m INFO\u{1b}[0m x\u{1b}[8m\u{1b}[2J\u{1b}]0;t\n", Lines::Text { colours: true }),
            "\u{1b}[32m INFO\u{1b}[0m x\\u{1b}[8m\\u{1b}[2J\\u{1b}]0;t\n"
        );
        assert_eq!(shown("\u{1b}[32mx\n", Lines::Text { colours: false }), "\\u{1b}[32mx\n");
    }
}
