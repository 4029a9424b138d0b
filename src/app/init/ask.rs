//! Questions to whoever sits at the terminal; where nobody does, nothing is asked.

use std::io::{IsTerminal as _, Write as _};

/// Who is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    there: bool,
}

impl Asker {
    /// `quiet` = ask nothing at all.
    pub fn new(quiet: bool) -> Self {
        Asker { there: !quiet && std::io::stdin().is_terminal() && std::io::stderr().is_terminal() }
    }

    /// An answer in one line; `None` where nobody is asked, or nothing was answered.
    pub fn line(self, question: &str) -> Option<String> {
        if !self.there {
            return None;
        }
        let mut err = std::io::stderr().lock();
        let _closed = write!(err, "{question} ").and_then(|()| err.flush());
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).ok()?;
        Some(answer.trim().to_owned()).filter(|answer| !answer.is_empty())
    }

    /// The same with a default.
    pub fn or(self, question: &str, default: &str) -> String {
        self.line(&format!("{question} [{default}]")).unwrap_or_else(|| default.to_owned())
    }

    /// Yes in full: what is agreed to here is not to be agreed to by a slip.
    pub fn yes(self, question: &str) -> Option<bool> {
        self.there.then(|| {
            self.line(&format!("{question} (yes/no)")).is_some_and(|answer| answer.eq_ignore_ascii_case("yes"))
        })
    }
}
