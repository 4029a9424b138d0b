//! What the daemon does, in one line: for `systemctl status`.

use std::collections::BTreeMap;

use super::{Conductor, owner::Progress};
use crate::lifecycle::{locks::locked, watch};

/// So many runs are named; more are counted.
const NAMED: usize = 4;

impl Conductor {
    /// `shop deploying, web testing; 2 queued`, and before it what is wrong.
    #[must_use]
    pub fn summary(&self) -> String {
        let work = Work {
            projects: self.all().len(),
            running: self.running(),
            queued: self.requests().len(),
            maintenance: self.inner.maintenance.is_on(),
            trouble: locked(&self.inner.trouble)
                .iter()
                .map(|(place, cause)| (place.clone(), cause.message.clone()))
                .collect(),
        };
        work.line()
    }

    /// Changes with whatever may change [`Conductor::summary`].
    #[must_use]
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.inner.views.board.version.subscribe()
    }

    fn running(&self) -> Vec<(String, &'static str)> {
        let word = |progress: Progress| match progress {
            Progress::Testing => Some("testing"),
            Progress::Deploying => Some("deploying"),
            Progress::Over => None,
        };
        let runs = locked(&self.inner.runs);
        runs.values().filter_map(|run| Some((run.project.to_string(), word(*run.progress.borrow())?))).collect()
    }
}

/// What there is to say.
#[derive(Default)]
struct Work {
    projects: usize,
    running: Vec<(String, &'static str)>,
    queued: usize,
    maintenance: bool,
    trouble: BTreeMap<String, String>,
}

impl Work {
    fn line(&self) -> String {
        let mut parts = Vec::new();
        if let Some((place, what)) = self.trouble.iter().next() {
            let what: String = what.lines().next().unwrap_or_default().chars().take(120).collect();
            let more = match self.trouble.len() - 1 {
                0 => String::new(),
                n => format!(" (and {n} more)"),
            };
            parts.push(format!("trouble: {place}: {what}{more}"));
        }
        if self.maintenance {
            parts.push("maintenance: nothing new begins".to_owned());
        }
        let named: Vec<String> =
            self.running.iter().take(NAMED).map(|(project, word)| format!("{project} {word}")).collect();
        let unnamed = self.running.len().saturating_sub(NAMED);
        if !named.is_empty() {
            let more = if unnamed > 0 { format!(" and {unnamed} more runs") } else { String::new() };
            parts.push(format!("{}{more}", named.join(", ")));
        }
        if self.queued > 0 {
            parts.push(format!("{} queued", self.queued));
        }
        if self.running.is_empty() && self.queued == 0 {
            parts.push(match self.projects {
                1 => "idle, 1 project".to_owned(),
                n => format!("idle, {n} projects"),
            });
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_what_runs_and_first_what_is_wrong() {
        let run = |project: &str, word: &'static str| (project.to_owned(), word);
        assert_eq!(Work { projects: 1, ..Work::default() }.line(), "idle, 1 project");
        let mut work = Work {
            projects: 9,
            running: vec![run("shop", "deploying"), run("web", "testing")],
            queued: 2,
            ..Work::default()
        };
        assert_eq!(work.line(), "shop deploying, web testing; 2 queued");
        work.running.extend([run("a", "testing"), run("b", "testing"), run("c", "testing")]);
        work.maintenance = true;
        work.trouble.insert("journal".to_owned(), "cannot be written\nsecond line".to_owned());
        work.trouble.insert("project web".to_owned(), "the head cannot be asked for".to_owned());
        assert_eq!(
            work.line(),
            "trouble: journal: cannot be written (and 1 more); maintenance: nothing new begins; \
             shop deploying, web testing, a testing, b testing and 1 more runs; 2 queued"
        );
    }
}
