//! What is seen: lines everywhere; on a terminal also colours, and a moon that waxes while a rollout goes on.

use std::io::{IsTerminal as _, Write as _};

const MOONS: [&str; 5] = ["🌑", "🌒", "🌓", "🌔", "🌕"];

/// How a line is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Heading,
    Good,
    Bad,
    Quiet,
}

/// Standard output.
pub(super) struct Terminal {
    live: bool,
    colours: bool,
    /// A line is there that the next one takes away.
    passing: bool,
}

impl Terminal {
    /// As it is.
    pub(super) fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        let live = std::io::stdout().is_terminal() && !dumb;
        let colours = live && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Terminal { live, colours, passing: false }
    }

    /// Says one line that stays.
    pub(super) fn line(&mut self, tone: Tone, text: &str) {
        let code = match tone {
            Tone::Plain => "",
            Tone::Heading => "1",
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Quiet => "2",
        };
        let text = text.trim_end();
        let text = if self.colours && !code.is_empty() && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        };
        let clear = self.clear();
        write(&format!("{clear}{text}\n"));
    }

    /// Shows how far a rollout is until the next line comes; nothing without a terminal.
    pub(super) fn moon(&mut self, done: usize, all: usize, text: &str) {
        if self.live {
            let clear = self.clear();
            self.passing = true;
            // Cut at the edge, so that it stays one line.
            write(&format!("{clear}\x1b[?7l   {} {text}\x1b[?7h", phase(done, all)));
        }
    }

    fn clear(&mut self) -> &'static str {
        if std::mem::take(&mut self.passing) { "\r\x1b[2K" } else { "" }
    }
}

/// Dark = nobody done, full = everybody.
fn phase(done: usize, all: usize) -> &'static str {
    let lit = match (done, all) {
        (0, _) | (_, 0) => 0,
        (done, all) if done >= all => 4,
        (done, all) => 1 + done * 3 / all,
    };
    MOONS.get(lit).copied().unwrap_or("🌕")
}

/// A closed pipe ends nothing here: the verdict is the exit code.
fn write(text: &str) {
    if cfg!(test) {
        return print!("{text}");
    }
    let mut out = std::io::stdout().lock();
    let _nobody_reads = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moon_waxes() {
        let phases: Vec<&str> = (0..=5).map(|done| phase(done, 5)).collect();
        assert_eq!(phases, ["🌑", "🌒", "🌓", "🌓", "🌔", "🌕"]);
        assert_eq!(phase(0, 0), "🌑");
    }
}
