//! Signals: one daemon asks another to deploy, and follows the run that this one makes of it.
//!
//! ```text
//!   integration server                                     production server
//!   step `signal` of a host ── signed order, POST ──▶ checks, in `receive`: size, signature, form, audience, rights, age, replay,
//!    (steps/signal.rs)                                       order of deployments, its own rules; then a request in control
//!   follows by token  ◀────── signed answer ────────    how that run stands
//! ```
//! Both ends trust signatures only: the network between them may show, drop, repeat and change whatever it likes.
//!
//! Architecture invariant: a token makes one run. What it began is in control, together with the request, before it is answered.

mod look;
mod pieces;
mod receive;
pub(super) mod send;
mod stands;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use serde_json::{Value, json};

pub(super) use receive::{take, view};

use super::view::signals::RefusedView;
use crate::{
    lifecycle::locks::locked,
    model::{
        cause::Cause,
        ids::{EnvironmentName, ProjectName, RunId},
        signal::{Newest, Nonces, Received, Signal},
    },
    time::rfc3339,
};

/// Refusals that are shown.
const SHOWN: usize = 20;
/// How long a refusal is something that is wrong with the daemon.
const FRESH_MS: i64 = 3_600_000;

/// What has come, since the daemon was started.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    nonces: Mutex<Nonces>,
    watches: look::Watches,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Orders that were taken, by their word; `repeated`: asked again by their sender.
    taken: BTreeMap<&'static str, u64>,
    /// By code.
    refused: BTreeMap<String, u64>,
    recent: VecDeque<RefusedView>,
    /// The last genuine one.
    last_ms: Option<i64>,
    /// When the log was told last, by code.
    logged_ms: BTreeMap<String, i64>,
}

impl Inbox {
    fn took(&self, word: &'static str) {
        *locked(&self.counts).taken.entry(word).or_default() += 1;
    }

    /// Counts a refusal; true when it is worth a line of the log: one a second of each code. Only those of a `signal` that is genuine are shown:
    /// what strangers send is counted, and nobody is called for it.
    fn refused(&self, now_ms: i64, signal: Option<&Signal>, cause: &Cause) -> bool {
        let mut counts = locked(&self.counts);
        *counts.refused.entry(cause.code.clone()).or_default() += 1;
        let logs = counts.logged_ms.get(&cause.code).is_none_or(|last| now_ms.saturating_sub(*last) >= 1_000);
        if logs {
            counts.logged_ms.insert(cause.code.clone(), now_ms);
        }
        let same = counts.recent.front().is_some_and(|last| last.code == cause.code);
        let flood = same && counts.last_ms.is_some_and(|last| now_ms.saturating_sub(last) < 1_000);
        let Some(signal) = signal.filter(|_| !flood) else { return logs };
        counts.last_ms = Some(now_ms);
        counts.recent.push_front(RefusedView {
            at: rfc3339(now_ms),
            code: cause.code.clone(),
            message: super::view::shortened(&cause.message),
            project: Some(signal.project.to_string()),
            environment: Some(signal.environment.to_string()),
            order: Some(signal.order.word().to_owned()),
        });
        counts.recent.truncate(SHOWN);
        logs
    }

    /// What people should know of it: signals were refused lately.
    pub(super) fn trouble(&self, now_ms: i64) -> Option<Cause> {
        let counts = locked(&self.counts);
        counts.last_ms.filter(|last| now_ms.saturating_sub(*last) < FRESH_MS)?;
        let last = counts.recent.front()?;
        let message = format!(
            "signals of senders that are known here were refused, the last at {}: {} ({}). All of them: phased signals",
            last.at, last.message, last.code
        );
        Some(Cause::new("signals_refused", message))
    }
}

/// A signal that is to become a run: what is written together with the request.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    pub(super) received: Received,
    project: ProjectName,
    environment: EnvironmentName,
    newest: Newest,
    nonce: String,
}

/// The run of a token.
fn token_key(project: &ProjectName, environment: &EnvironmentName, token: &crate::model::ids::Digest) -> String {
    format!("signal/{project}/{environment}/{token}")
}

/// The newest deployment that was taken.
fn epoch_key(project: &ProjectName, environment: &EnvironmentName) -> String {
    format!("signal-epoch/{project}/{environment}")
}

impl Taken {
    /// What control keeps of it: which run its token began, and that nothing older may follow.
    pub(super) fn puts(&self, run: &RunId, at_ms: i64) -> [(String, Option<Value>); 2] {
        let token = token_key(&self.project, &self.environment, &self.received.token);
        [
            (token, Some(json!({ "run": run, "nonce": self.nonce, "at_ms": at_ms }))),
            (epoch_key(&self.project, &self.environment), Some(json!(self.newest))),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_send_is_counted_and_calls_nobody() {
        let inbox = Inbox::default();
        let forged = Cause::new("signal_signature", "forged");
        let logged = (0..5).filter(|n| inbox.refused(1_000 + n * 400, None, &forged)).count();
        assert_eq!(logged, 2, "one line a second");
        assert!(inbox.refused(1_000, None, &Cause::new("signal_off", "off")), "each code has its own");
        assert!(inbox.trouble(3_000).is_none());
        let counts = locked(&inbox.counts);
        assert!(counts.refused["signal_signature"] == 5 && counts.recent.is_empty());
    }
}
