//! Which signals are taken: everything that can be told from the signal itself, a clock, and what was taken before.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Deploy, Order, Signal, VERSION};
use crate::model::{
    cause::Cause,
    ids::{EnvironmentName, Epoch, HostId, ProjectName},
};
use crate::time::{Span, rfc3339};

/// How far the sender's clock may be ahead of ours.
pub const SKEW: Duration = Duration::from_secs(60);

/// What a receiver goes by.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Who it is.
    pub host: &'a HostId,
    /// What the key that signed the signal may signal: `shop`, `shop/production`, `*`.
    pub projects: &'a [String],
    /// The largest age of a signal.
    pub max_age: Duration,
    /// Its own clock, wall ms.
    pub now_ms: i64,
}

fn refuse(code: &str, message: String) -> Result<(), Cause> {
    Err(Cause::new(code, message))
}

/// Whether a signal, whose signature is genuine, may be taken as far as it tells by itself: form, rights, audience, age.
///
/// # Errors
/// `signal_form`, `signal_not_allowed`, `signal_audience`, `signal_early`, `signal_expired`.
pub fn check(signal: &Signal, rules: &Rules<'_>) -> Result<(), Cause> {
    if signal.version != VERSION {
        let message = format!("the signal has version {}, and this daemon reads {VERSION}", signal.version);
        return refuse("signal_form", message);
    }
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if signal.nonce.len() != 32 || !signal.nonce.bytes().all(hex) {
        return refuse("signal_form", "its nonce is not 32 lower-case hex digits".to_owned());
    }
    if let Order::Deploy(deploy) = &signal.order
        && !deploy.release.revision.as_str().starts_with(&deploy.release.id.as_str()[..12])
    {
        return refuse("signal_form", "its release is not one of its commit".to_owned());
    }
    if signal.audience != *rules.host {
        let message = format!(
            "the signal is for {}, and this is {}: `host` in [signals] here must be the host's id there",
            signal.audience, rules.host
        );
        return refuse("signal_audience", message);
    }
    if !may(rules.projects, &signal.project, &signal.environment) {
        let message = format!(
            "the key that signed it may not signal {}/{}; it may {}",
            signal.project,
            signal.environment,
            rules.projects.join(", ")
        );
        return refuse("signal_not_allowed", message);
    }
    let clocks = || {
        let (issued, here) = (rfc3339(signal.issued_at_ms), rfc3339(rules.now_ms));
        format!("it was made at {issued} by the sender's clock, and it is {here} here: are both clocks right?")
    };
    if signal.issued_at_ms > rules.now_ms.saturating_add(ms(SKEW)) {
        return refuse("signal_early", format!("the signal comes from the future: {}", clocks()));
    }
    if signal.not_after_ms < signal.issued_at_ms {
        return refuse("signal_form", "it ends before it begins".to_owned());
    }
    if rules.now_ms >= signal.not_after_ms {
        return refuse(
            "signal_expired",
            format!("the signal is too old, its time was over before it came: {}", clocks()),
        );
    }
    if rules.now_ms.saturating_sub(signal.issued_at_ms) > ms(rules.max_age) {
        let message = format!("the signal is older than max_age ({}): {}", Span(rules.max_age), clocks());
        return refuse("signal_expired", message);
    }
    Ok(())
}

fn ms(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// Whether a list of rights covers an environment of a project.
fn may(projects: &[String], project: &ProjectName, environment: &EnvironmentName) -> bool {
    projects.iter().any(|right| match right.split_once('/') {
        None => right == "*" || right == project.as_str(),
        Some((of, only)) => of == project.as_str() && only == environment.as_str(),
    })
}

/// Whether a signal was made since this daemon began to remember nonces, as far as clocks tell: an older one may have been here before.
///
/// # Errors
/// `signal_expired`.
pub fn remembered(signal: &Signal, began_ms: i64) -> Result<(), Cause> {
    if signal.issued_at_ms >= began_ms.saturating_sub(ms(SKEW)) {
        return Ok(());
    }
    let message = format!(
        "the signal was made at {}, before this daemon was started at {}, which cannot tell whether it was here before: send a new one",
        rfc3339(signal.issued_at_ms),
        rfc3339(began_ms)
    );
    refuse("signal_expired", message)
}

/// Nonces of signals that came, until they would be refused for their age.
#[derive(Debug, Default)]
pub struct Nonces {
    seen: BTreeMap<String, i64>,
    /// When it was looked last for those that may be forgotten.
    swept_ms: i64,
}

/// How often that is looked for.
const SWEEP_MS: i64 = 10_000;

impl Nonces {
    /// Remembers the nonce of a signal that has passed [`check`].
    ///
    /// # Errors
    /// `signal_replayed`: it was here before.
    pub fn see(&mut self, signal: &Signal, rules: &Rules<'_>) -> Result<(), Cause> {
        let now_ms = rules.now_ms;
        if now_ms.saturating_sub(self.swept_ms).abs() > SWEEP_MS {
            self.seen.retain(|_, until| *until > now_ms);
            self.swept_ms = now_ms;
        }
        // From then on its age is enough to refuse it.
        let oldest = signal.issued_at_ms.saturating_add(ms(rules.max_age)).saturating_add(1);
        if self.seen.insert(signal.nonce.clone(), signal.not_after_ms.min(oldest)).is_some() {
            return Err(replayed());
        }
        Ok(())
    }
}

/// Why a signal that came twice is refused.
#[must_use]
pub fn replayed() -> Cause {
    let message = "this very signal was here before: somebody has recorded it and sends it again; nothing was done";
    Cause::new("signal_replayed", message)
}

/// The newest deployment that was taken in an environment, as control keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newest {
    /// Of the sender's lease.
    pub epoch: Epoch,
    /// Of the sender's deployment.
    #[serde(default)]
    pub deployment: u32,
    /// Of the sender's step.
    #[serde(default)]
    pub step: String,
    /// Which attempt of it.
    #[serde(default)]
    pub attempt: u32,
}

impl Newest {
    /// What `deploy` is once it was taken.
    #[must_use]
    pub fn of(deploy: &Deploy) -> Self {
        let (step, attempt) = (deploy.step.clone(), deploy.attempt);
        Newest { epoch: deploy.epoch, deployment: deploy.deployment, step, attempt }
    }
}

/// Whether an order may follow the `newest` deployment that was taken in its environment.
///
/// # Errors
/// `signal_epoch`: that one is newer.
pub fn in_order(signal: &Signal, newest: Option<&Newest>) -> Result<(), Cause> {
    let (Order::Deploy(deploy), Some(newest)) = (&signal.order, newest) else { return Ok(()) };
    let (this, last) = ((deploy.epoch, deploy.deployment), (newest.epoch, newest.deployment));
    // Steps of one deployment come as its code says; only attempts of the same one have an order by themselves.
    let late = this < last || (this == last && deploy.step == newest.step && deploy.attempt < newest.attempt);
    if !late {
        return Ok(());
    }
    let message = format!(
        "a newer deployment to {} has been here (epoch {}, deployment {}, attempt {}, and this one is epoch {}, deployment {}, attempt {}): \
         it comes too late",
        signal.environment, last.0.0, last.1, newest.attempt, this.0.0, this.1, deploy.attempt
    );
    refuse("signal_epoch", message)
}

#[cfg(test)]
mod tests;
