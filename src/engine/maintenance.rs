//! Maintenance: the daemon ends what is under way or parks it, and begins nothing new, so that it or its machine can be changed.
//!
//! It is one key of control, so a restart changes nothing about it. Here it is a gate: every owner asks it before an action that would
//! begin something, and says through it what it still works on.

pub(super) mod switch;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::view::{MaintenanceView, RunAtWork, WaitingView};
use crate::{
    lifecycle::watch,
    model::{
        decide::Action,
        deployment::{Deployment, HealthRun},
        ids::{HostId, ProjectName, RunId},
        run::{Run, RunState},
        step::{CallKey, Place},
    },
    ports::{
        control::{Control, Revision},
        journal::Ticket,
    },
    time::rfc3339,
};

const KEY: &str = "maintenance";

/// Who shut the gate, why and when: the value of the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Shut {
    by: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    reason: Option<String>,
    /// Wall time, ms.
    since_ms: i64,
}

/// The gate now: open, or shut, by the control record of this number.
type Now = Option<(Revision, Shut)>;

/// What an owner says of its run.
#[derive(Debug)]
struct Work {
    project: ProjectName,
    /// The gate as it was when the owner last decided.
    under: Now,
    /// What it works on; not told while the gate is open.
    doing: Vec<String>,
    /// The last record of its journal.
    last: Option<Ticket>,
}

/// The gate of one daemon.
#[derive(Debug)]
pub(super) struct Maintenance {
    now: watch::Sender<Now>,
    work: watch::Sender<BTreeMap<RunId, Work>>,
}

/// The key of control, and the value, with which a daemon begins in maintenance: for what is made while none runs.
#[must_use]
pub fn shut(by: &str, reason: &str, since_ms: i64) -> (String, serde_json::Value) {
    (KEY.to_owned(), json!(Shut { by: by.to_owned(), reason: Some(reason.to_owned()), since_ms }))
}

fn read(control: &dyn Control) -> Now {
    let entry = control.get(KEY)?;
    match serde_json::from_value(entry.value) {
        Ok(shut) => Some((entry.revision, shut)),
        Err(error) => {
            // Of a later version, perhaps: whoever shut it meant it.
            tracing::error!(%error, "maintenance is on, and what is kept of it is not understood");
            Some((entry.revision, Shut { by: "somebody".to_owned(), reason: None, since_ms: 0 }))
        }
    }
}

impl Maintenance {
    /// As control has it.
    pub(super) fn of(control: &dyn Control) -> Self {
        Maintenance { now: watch::Sender::new(read(control)), work: watch::Sender::default() }
    }

    /// Whether nothing new is begun.
    pub(super) fn is_on(&self) -> bool {
        self.now.borrow().is_some()
    }

    /// An owner's end, for as long as it owns `run`.
    pub(super) fn gate(self: &Arc<Self>, run: &Run) -> Gate {
        let (id, project) = (run.header.run.clone(), run.header.project.clone());
        let work = Work { project, under: None, doing: Vec::new(), last: None };
        self.work.send_modify(|all| drop(all.insert(id.clone(), work)));
        Gate { maintenance: Arc::clone(self), run: id, now: self.now.subscribe(), seen: None }
    }

    /// Whether every owner has seen the gate as it is.
    fn is_heard(&self) -> bool {
        let now = self.now.borrow().clone();
        self.work.borrow().values().all(|work| work.under == now)
    }

    /// Whether nothing works any more, or it need not.
    fn is_quiet(&self) -> bool {
        !self.is_on() || (self.is_heard() && self.work.borrow().values().all(|work| work.doing.is_empty()))
    }

    /// Waits until what every run has come to is on disk: whoever hears that nothing works may cut the power.
    async fn on_disk(&self) {
        let last: Vec<Ticket> = self.work.borrow().values().filter_map(|work| work.last.clone()).collect();
        for ticket in last {
            // A journal that cannot be written is told as what it is, by the run that stands still.
            let _degraded = ticket.synced().await;
        }
    }

    async fn until(&self, there: impl Fn(&Self) -> bool) {
        let (mut now, mut work) = (self.now.subscribe(), self.work.subscribe());
        while !there(self) {
            // Neither sender can be gone: they are ours.
            tokio::select! {
                biased;
                _ = now.changed() => {}
                _ = work.changed() => {}
            }
        }
    }

    /// What people see of it.
    pub(super) fn view(&self) -> MaintenanceView {
        let now = self.now.borrow().clone();
        let runs = match &now {
            None => Vec::new(),
            Some(_) => self.work.borrow().iter().map(|(id, work)| at_work(id, work, &now)).collect(),
        };
        MaintenanceView {
            on: now.is_some(),
            by: now.as_ref().map(|(_, shut)| shut.by.clone()),
            reason: now.as_ref().and_then(|(_, shut)| shut.reason.clone()),
            since: now.as_ref().map(|(_, shut)| rfc3339(shut.since_ms)),
            runs,
        }
    }

    /// Who a run waits for that this gate keeps from going on.
    fn holder(&self, run: &RunId, state: RunState) -> Option<WaitingView> {
        let now = self.now.borrow().clone();
        let (_, shut) = now.as_ref()?;
        let parked = || self.work.borrow().get(run).is_some_and(|work| work.under == now && work.doing.is_empty());
        let waits = state == RunState::Queued || (!state.is_end() && parked());
        waits.then(|| WaitingView {
            code: KEY.to_owned(),
            holder: shut.by.clone(),
            until: None,
            reason: shut.reason.clone(),
        })
    }
}

fn at_work(id: &RunId, work: &Work, now: &Now) -> RunAtWork {
    let doing = match work.under == *now {
        true => work.doing.clone(),
        false => vec!["has not looked up from its work yet".to_owned()],
    };
    RunAtWork { run: id.to_string(), project: work.project.to_string(), doing }
}

/// An owner's end of the gate.
#[derive(Debug)]
pub(super) struct Gate {
    maintenance: Arc<Maintenance>,
    run: RunId,
    now: watch::Receiver<Now>,
    /// As it was when the owner looked last: one round of decisions is made under one answer.
    seen: Now,
}

impl Gate {
    /// Looks whether it is open, for what is decided next.
    pub(super) fn look(&mut self) {
        self.seen = self.now.borrow_and_update().clone();
    }

    /// Whether `action` has to wait until the gate opens.
    pub(super) fn holds(&self, run: &Run, action: &Action) -> bool {
        self.seen.is_some() && begins(run, action)
    }

    /// Says what the owner works on, after it has decided: what the fold says, and its actions under way, `busy`; and its last record.
    pub(super) fn report<'a>(&self, run: &Run, busy: impl Iterator<Item = &'a String>, last: Option<&Ticket>) {
        let doing = if self.seen.is_some() { doing(run, busy) } else { Vec::new() };
        self.maintenance.work.send_if_modified(|all| {
            let Some(work) = all.get_mut(&self.run) else { return false };
            work.last = last.cloned();
            let changed = work.under != self.seen || work.doing != doing;
            (work.under, work.doing) = (self.seen.clone(), doing);
            changed
        });
    }

    /// Returns when it has opened or shut since the last look. Cancel safe.
    pub(super) async fn changed(&mut self) {
        if self.now.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.maintenance.work.send_modify(|all| drop(all.remove(&self.run)));
    }
}

/// Whether an action begins something, rather than bringing to its end what was begun. A lease may be waited for: that takes a place in a
/// queue and touches nothing, and places taken anew when the gate opens would be in another order.
fn begins(run: &Run, action: &Action) -> bool {
    match action {
        Action::Resolve | Action::Checkout | Action::Plan { .. } | Action::Look { .. } => true,
        Action::Call { key, .. } => !key.is_cleaning() && !goes_on(run, key),
        Action::Append(_)
        | Action::Retry(_)
        | Action::Undo(_)
        | Action::EndCall { .. }
        | Action::Lease { .. }
        | Action::Watch { .. }
        | Action::Guard { .. }
        | Action::LookOver { .. }
        | Action::Measure { .. }
        | Action::Finish => false,
    }
}

/// A host in flight is not left half-way, and what goes back is not kept from it.
fn goes_on(run: &Run, key: &CallKey) -> bool {
    let Some(Place::Host { deployment, host, .. }) = key.place() else { return false };
    run.deployment(deployment)
        .is_some_and(|of| of.rollback_of.is_some() || of.host(&host).is_some_and(|host| host.begun.is_some()))
}

/// What a run is at, in words that follow its name: calls, watches, and actions under way.
fn doing<'a>(run: &Run, busy: impl Iterator<Item = &'a String>) -> Vec<String> {
    let calls = run.calls.keys().map(|key| call(run, key));
    let watched = run.deployments.iter().flat_map(|of| of.hosts.iter().map(move |host| (of, host)));
    let watched = watched
        .filter(|(_, host)| matches!(host.health, HealthRun::Watching { .. }))
        .map(|(of, host)| format!("watches the health of {} ({})", host.host.name, of.environment));
    let actions = busy.filter_map(|name| action(run, name));
    calls.chain(watched).chain(actions).collect()
}

fn call(run: &Run, key: &CallKey) -> String {
    if let Some(undone) = key.undone() {
        return format!("undoes what {undone} did");
    }
    let environment = |n: u32| run.deployment(n).map(|of| of.environment.to_string()).unwrap_or_default();
    match key.place() {
        Some(Place::Stage { stage, function }) => match function.as_str() {
            "setup" => format!("sets up stage {stage}"),
            "cleanup" => format!("cleans up after stage {stage}"),
            _ => format!("runs stage {stage}"),
        },
        Some(Place::Deployment { deployment, .. }) => format!("verifies {}", environment(deployment)),
        Some(Place::Host { deployment, host, .. }) => {
            let of = run.deployment(deployment);
            format!("deploys to {} ({})", name(of, &host), environment(deployment))
        }
        None => key.to_string(),
    }
}

fn name(of: Option<&Deployment>, host: &HostId) -> String {
    of.and_then(|of| of.host(host)).map_or_else(|| host.to_string(), |found| found.host.name.clone())
}

/// `None` for what is no work, or is told by the fold.
fn action(run: &Run, name: &str) -> Option<String> {
    let mut words = name.split(' ');
    match (words.next()?, words.next()) {
        ("resolve", _) => Some("looks for its commit".to_owned()),
        ("checkout", _) => Some("checks out its commit".to_owned()),
        ("leftovers", _) => Some("ends what its commands have left running".to_owned()),
        ("plan", Some(n)) => {
            let of = n.parse().ok().and_then(|n| run.deployment(n));
            Some(format!("plans {}", of.map(|of| of.environment.to_string()).unwrap_or_default()))
        }
        ("undo", Some(key)) => Some(format!("reads what is to be undone of {key}")),
        ("finish", _) => Some("ends".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests;
