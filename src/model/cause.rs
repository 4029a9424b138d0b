//! Why something ended or waits: a stable code, a sentence for people, and the facts.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `{"code": "...", "message": "...", ...facts}`. The code is for machines and never changes its meaning; the message says what
/// happened, where, and what to do next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// A stable slug, `exit`, `timeout`, `unreachable`.
    pub code: String,
    /// One or more sentences for a person.
    pub message: String,
    /// Numbers and names behind the message; empty mostly.
    #[serde(flatten)]
    pub facts: Map<String, Value>,
}

/// The fact of a command that was lost with the way to its host: why that is barred.
pub const CUT_OFF: &str = "cut_off";

impl Cause {
    /// A cause without facts.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Cause { code: code.to_owned(), message: message.into(), facts: Map::new() }
    }

    /// The same with one more fact.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    /// Codes of a host that could not be reached, as against one that was reached and failed. Asking again may help.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self.code.as_str(), "unreachable" | "connect_timeout" | "connection_lost" | "session_limit")
    }

    /// Whether nobody gets to the host it is about, be it that something may have been done there before.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.is_shut() || self.facts.contains_key(CUT_OFF)
    }

    /// Codes of a host on which nothing was done: it could not be reached, or it is not the one we know, or it did not let us in, or its
    /// own daemon has refused a signal (`signal_...`).
    #[must_use]
    pub fn is_shut(&self) -> bool {
        let refused = ["host_key_", "signal_"].iter().any(|of| self.code.starts_with(of));
        self.is_unreachable() || self.code == "auth_failed" || refused
    }
}

/// Another's words within a sentence of ours: one line, nothing that acts on a terminal, and no more than `most` characters.
#[must_use]
pub fn one_line(text: &str, most: usize) -> String {
    let mut shown = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut line: String = shown.by_ref().take(most).collect();
    if shown.next().is_some() {
        line.pop();
        line.push('…');
    }
    line
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}
