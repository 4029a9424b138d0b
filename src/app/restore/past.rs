//! What was under way when a backup was made is over: the journals and control say so before any daemon reads them.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    blobs::FileBlobs,
    engine::maintenance_entry,
    journal::{ControlLog, DataDisk, Kill, RunJournals},
    model::{
        cause::Cause,
        deployment::{Deployment, DeploymentState},
        event::{Event, Record},
        ids::{Epoch, RunId, Seq},
        run::{Run, RunState},
    },
    ports::{
        backup::Manifest,
        control::{Commit, Control},
        journal::{Feed, Journals as _, Ticket},
    },
    time::{Clock, SystemClock},
};

/// Who writes these records.
const BY: &str = "phased restore";
/// Puts of one record of control, well below what it holds.
const PUTS: usize = 50;

/// What was found to be under way.
#[derive(Debug, Default, Serialize)]
pub(super) struct Past {
    /// Runs that had begun, and how they end.
    pub ended: Vec<Over>,
    /// Runs that had not.
    pub let_go: Vec<Over>,
    /// Journals that were damaged before.
    pub damaged: Vec<String>,
}

/// One run.
#[derive(Debug, Serialize)]
pub(super) struct Over {
    pub run: String,
    pub project: String,
    /// `failed`: nothing was switched; `halted`: something was.
    pub state: &'static str,
}

/// Hears nothing: no view is made here.
struct Nobody;

impl Feed for Nobody {
    fn synced(&self, _: &RunId, _: Vec<(Seq, u32, Record)>) {}
}

/// Ends every run below `dir` that was under way, lets go of what waited, lifts the numbers of leases, and turns maintenance on.
pub(super) fn lay_to_rest(dir: &Path, manifest: &Manifest) -> anyhow::Result<Past> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let data = Arc::new(DataDisk::open(dir)?);
    let blobs = Arc::new(FileBlobs::open(dir.join("blobs"))?);
    let journals =
        RunJournals::open(dir.join("journal/runs"), blobs, Arc::new(Nobody), Arc::clone(&data), Kill::default())?;
    let control = ControlLog::open(&dir.join("journal"), Arc::clone(&clock), data, Kill::default())?;
    let mut past = Past::default();
    let mut tickets = Vec::new();
    let mut begun = Vec::new();
    for id in journals.runs()? {
        let found = journals.read(&id)?;
        if let Some(damage) = found.damage {
            past.damaged.push(format!("the journal of run {id}: {damage}"));
            begun.push(id);
            continue;
        }
        let records = || found.records.iter().map(|(seq, _, record)| (*seq, record));
        if found.records.is_empty() {
            // Cut off before its first record: it waits like those that have no file, and the file would begin it.
            std::fs::remove_dir_all(dir.join("journal/runs").join(id.as_str()))?;
            continue;
        }
        begun.push(id.clone());
        let run = match Run::fold(records()) {
            Ok(run) => run,
            Err(illegal) => {
                past.damaged.push(format!("the journal of run {id}: {illegal}"));
                continue;
            }
        };
        if run.end.is_none() {
            let (ticket, state) = end(&journals, &run, &*clock, manifest)?;
            tickets.push(ticket);
            past.ended.push(Over { run: id.to_string(), project: run.header.project.to_string(), state });
        }
    }
    tickets.push(settle(&control, &begun, &mut past, clock.now().wall_ms, manifest)?);
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for ticket in tickets {
        runtime.block_on(ticket.synced()).context("what was under way could not be ended")?;
    }
    Ok(past)
}

/// Ends one run: first its deployments, those that take others back before those, then itself.
fn end(
    journals: &RunJournals,
    run: &Run,
    clock: &dyn Clock,
    manifest: &Manifest,
) -> anyhow::Result<(Ticket, &'static str)> {
    let id = &run.header.run;
    let now = clock.now();
    let epoch = Epoch(run.header.epoch.0.max(u64::try_from(now.wall_ms).unwrap_or(0)) + 1);
    let found = journals.reopen(id, epoch)?;
    let last = found.records.last().map_or(Seq(0), |(seq, ..)| *seq);
    let cause = Cause::new(
        "restored",
        format!(
            "phased was restored from a backup of {}, when this run was under way. What the daemon of then ({}) did with it afterwards is not known here, and it is not \
             gone on with: look at its hosts, then start again",
            manifest.at, manifest.controller
        ),
    );
    let record = |event| Record { at: now.clone(), by: Arc::from(BY), event };
    let open = run.deployments.iter().rev().filter(|deployment| deployment.end.is_none());
    let mut events: Vec<Record> = open
        .map(|deployment| {
            let state = if deployment.may_have_touched() { DeploymentState::Halted } else { DeploymentState::Failed };
            record(Event::DeploymentEnded { deployment: deployment.n, state, cause: Some(cause.clone()) })
        })
        .collect();
    // Also what ended well before: `failed` says that nothing was switched anywhere.
    let halted = run.deployments.iter().any(Deployment::may_have_touched);
    let (state, word) = if halted { (RunState::Halted, "halted") } else { (RunState::Failed, "failed") };
    events.push(record(Event::End { state, cause: Some(cause) }));
    let ticket = journals.append(id, epoch, last, events)?;
    journals.close(id);
    Ok((ticket, word))
}

/// What control has to say of all this.
fn settle(
    control: &ControlLog,
    begun: &[RunId],
    past: &mut Past,
    now_ms: i64,
    manifest: &Manifest,
) -> anyhow::Result<Ticket> {
    let mut puts: Vec<(String, Option<Value>)> = Vec::new();
    for entry in control.scan("run/") {
        // A run that has a journal is completed from it by the next start, which tells people and gives leases back.
        let id = entry.key.trim_start_matches("run/");
        if begun.iter().all(|run| run.as_str() != id) {
            let project = entry.value["project"].as_str().unwrap_or("?").to_owned();
            past.let_go.push(Over { run: id.to_owned(), project, state: "queued" });
            puts.push((entry.key, None));
        }
    }
    // Hosts remember the highest number: what is granted from here on is above whatever the other daemon was granted until now.
    for entry in control.scan("lease/") {
        let mut value = entry.value;
        // Control was read before the journals: who holds it may have begun in between, and is not in the backup. Nobody would give it back.
        let holder = value["held"]["holder"].as_str().and_then(|holder| holder.rsplit_once('.'));
        let run = holder.and_then(|(run, _)| run.parse::<RunId>().ok());
        if run.is_some_and(|run| !begun.contains(&run)) {
            value["held"] = Value::Null;
        }
        let epoch = value["epoch"].as_i64().unwrap_or(0).max(now_ms);
        value["epoch"] = json!(epoch);
        puts.push((entry.key, Some(value)));
    }
    let reason =
        format!("restored from a backup of {}: make sure that the daemon which made it is stopped", manifest.at);
    for some in puts.chunks(PUTS) {
        control.commit(Commit::Setting, &[], some.to_vec())?;
    }
    let (key, value) = maintenance_entry(BY, &reason, now_ms);
    Ok(control.commit(Commit::Setting, &[], vec![(key, Some(value))])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Layout;

    #[test]
    fn a_lease_of_a_run_that_is_not_in_the_backup_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let open = || {
            let data = Arc::new(DataDisk::open(dir.path()).unwrap());
            ControlLog::open(&layout.journal, Arc::clone(&clock), data, Kill::default()).unwrap()
        };
        let held = |holder: &str| json!({ "epoch": 5, "held": { "holder": holder, "reason": "", "since_ms": 1, "until_ms": null, "epoch": 5 } });
        let control = open();
        let puts = [("run", "01kc0000000000000000000000.1"), ("person", "ann.b")];
        let puts = puts.map(|(name, holder)| (format!("lease/{name}"), Some(held(holder)))).to_vec();
        let ticket = control.commit(Commit::Setting, &[], puts).unwrap();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(ticket.synced()).unwrap();
        drop(control);
        let (version, controller, at) = ("1".to_owned(), "m:1".to_owned(), "then".to_owned());
        let manifest = Manifest { format: 1, version, controller, at, at_ms: 1, secrets: false };
        lay_to_rest(dir.path(), &manifest).unwrap();
        let control = open();
        let of = |name: &str| control.get(&format!("lease/{name}")).unwrap().value;
        assert!(of("run")["held"].is_null() && of("run")["epoch"].as_i64() > Some(5), "{}", of("run"));
        assert_eq!(of("person")["held"]["holder"], json!("ann.b"));
    }
}
