//! Folds synced records into the documents people read, and tells followers. Fed by the journals' writer, on a thread of its own:
//! views may be behind the decisions, never ahead of the disk.

mod milestones;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::Thread,
    time::Duration,
};

use serde::Serialize;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use tokio::sync::broadcast;

use super::view::{
    ArtifactView, CauseView, ClosedView, DeploymentView, EventView, HostView, PausedView, ReleaseView, RunView,
    StageState, StageView, WaitingView, WaveView, shortened,
};
use crate::{
    lifecycle::{pulse::Beat, stall::Stall, watch},
    model::{
        cause::Cause,
        decide,
        deployment::{Back, Bake, Deployment, HostRun, Paused, WaveRun},
        doors,
        event::{Event, Record, Request},
        ids::{DeploymentId, HostId, ProjectName, RunId, Seq},
        release::{Artifact, Content, Release},
        run::{Progress, Run, RunState, StageRun, Waiting},
        step::{CallKey, Place, Verb},
    },
    ports::{
        index::{Batch, Index, IndexError, Medium},
        journal::Feed,
    },
    time::{Clock, rfc3339},
};

/// How far views may be behind the disk where much happens: a write of the index costs more than what it writes.
const BEHIND: Duration = Duration::from_millis(100);
/// How long the thread lets records come before it looks at them, while more come than it need hear of at once: each sync would wake it.
const NAP: Duration = Duration::from_millis(25);

/// How many runs are looked at in one go.
const PAGE: usize = 500;

/// Events kept for followers that come back.
const RING: usize = 4096;

impl From<&Release> for ReleaseView {
    fn from(release: &Release) -> Self {
        ReleaseView {
            id: release.id.to_string(),
            revision: release.commit.sha.to_string(),
            branch: release.branch.clone(),
            tag: release.tag.clone(),
            author: shortened(&release.commit.author),
            message: shortened(&release.commit.message),
            artifacts: release.artifacts.iter().map(ArtifactView::from).collect(),
        }
    }
}

impl From<&Artifact> for ArtifactView {
    fn from(artifact: &Artifact) -> Self {
        let (kind, sha256, size, value) = match &artifact.content {
            Content::Tree { sha256, size, .. } => ("tree", Some(sha256), Some(*size), None),
            Content::File { sha256, size } => ("file", Some(sha256), Some(*size), None),
            Content::Value { value } => ("value", None, None, Some(value)),
        };
        ArtifactView {
            name: artifact.name.to_string(),
            kind: kind.to_owned(),
            sha256: sha256.map(ToString::to_string),
            size,
            value: value.cloned(),
            blob: artifact.content.blob().map(ToString::to_string),
        }
    }
}

impl From<&Waiting> for WaitingView {
    fn from(waiting: &Waiting) -> Self {
        WaitingView {
            code: waiting.code.clone(),
            holder: waiting.holder.clone(),
            until: waiting.until_ms.map(rfc3339),
            reason: waiting.reason.as_deref().map(shortened),
        }
    }
}

/// A run that waits for its turn: all that is known is what was asked.
#[must_use]
pub(super) fn queued(id: &RunId, project: &ProjectName, request: &Request, holder: Option<&RunId>) -> RunView {
    RunView {
        id: id.to_string(),
        project: project.to_string(),
        state: RunState::Queued,
        cause: None,
        trigger: request.trigger,
        by: request.by.clone(),
        reason: request.reason.as_deref().map(shortened),
        release: None,
        created_at: rfc3339(request.requested_at_ms),
        started_at: None,
        finished_at: None,
        waiting: holder.map(|run| WaitingView {
            code: "queue".to_owned(),
            holder: run.to_string(),
            until: None,
            reason: None,
        }),
        closed: None,
        stages: Vec::new(),
        deployments: Vec::new(),
    }
}

/// A run whose journal cannot be trusted: all that is known is what was asked, and why nobody continues it.
#[must_use]
pub(super) fn damaged(id: &RunId, project: &ProjectName, request: &Request, cause: &Cause) -> RunView {
    RunView { state: RunState::Damaged, cause: Some(cause.into()), ..queued(id, project, request, None) }
}

/// What it takes to go on with a run that stopped at a closed door.
pub(super) fn closed(run: &Run) -> Option<ClosedView> {
    let environment = doors::closed(run)?;
    let release = run.release.as_ref()?;
    let reference = release.tag.clone().unwrap_or_else(|| release.commit.sha.as_str().chars().take(12).collect());
    Some(ClosedView {
        environment: environment.name.to_string(),
        when: environment.when.to_string(),
        command: format!("phased start {} {} --ref {reference}", run.header.project, environment.name),
    })
}

fn head(run: &Run) -> RunView {
    let header = &run.header;
    let (cause, finished_at) = match &run.end {
        Some((_, cause, at)) => (cause.as_ref().map(CauseView::from), Some(at.rfc3339())),
        None => (None, None),
    };
    let waiting = run.deployments.last().and_then(|d| d.waiting.as_ref()).map(WaitingView::from);
    RunView {
        state: run.state(),
        cause,
        release: run.release.as_ref().map(ReleaseView::from),
        started_at: Some(run.started_at.rfc3339()),
        finished_at,
        waiting,
        closed: closed(run),
        ..queued(&header.run, &header.project, &header.request, None)
    }
}

fn stage(run: &Run, index: usize) -> Option<StageView> {
    let spec = run.header.pipeline.stages.get(index)?;
    let stage: &StageRun = run.stages.get(index)?;
    let cause = decide::stage_outcome(stage, spec.name.as_str());
    let open = stage.functions().iter().any(|(_, progress)| progress.is_open());
    let cleaned = !spec.cleanup || matches!(stage.cleanup, Progress::Ended(_));
    let tried = matches!(stage.run, Progress::Ended(_)) || cause.is_some();
    let over = tried && cleaned && !open;
    let state = match (&cause, stage.started_at.is_some()) {
        (_, false) if run.end.is_some() || run.passed.is_some() => StageState::Skipped,
        (_, false) => StageState::Pending,
        (_, true) if !over => StageState::Running,
        (Some(cause), true) if cause.code == "stopped" => StageState::Stopped,
        (Some(_), true) => StageState::Failed,
        (None, true) => StageState::Succeeded,
    };
    Some(StageView {
        name: spec.name.to_string(),
        state,
        cause: cause.as_ref().map(CauseView::from),
        started_at: stage.started_at.as_ref().map(crate::time::Stamp::rfc3339),
        finished_at: stage.touched_at.as_ref().filter(|_| over).map(crate::time::Stamp::rfc3339),
    })
}

fn deployment(run: &Run, deployment: &Deployment) -> DeploymentView {
    let (cause, finished_at) = match &deployment.end {
        Some((_, cause, at)) => (cause.as_ref().map(CauseView::from), Some(at.rfc3339())),
        None => (None, None),
    };
    DeploymentView {
        id: DeploymentId { run: run.header.run.clone(), n: deployment.n }.to_string(),
        environment: deployment.environment.to_string(),
        state: deployment.state(),
        cause,
        rollback_of: deployment.rollback_of.map(|n| DeploymentId { run: run.header.run.clone(), n }.to_string()),
        release: deployment.release(run).map(|r| r.id.to_string()).unwrap_or_default(),
        adopted: deployment.adopts().map(|(target, _)| target.release.id.to_string()),
        rollback_unsafe: deployment.unsafe_because.as_deref().map(shortened),
        waiting: deployment.waiting.as_ref().map(WaitingView::from),
        paused: deployment.paused.as_ref().map(PausedView::from),
        waves: waves(deployment),
        started_at: Some(deployment.created_at.rfc3339()),
        finished_at,
        hosts: Vec::new(),
    }
}

fn host(run: &Run, deployment: &Deployment, host: &HostRun) -> HostView {
    HostView {
        id: host.host.id.to_string(),
        name: host.host.name.clone(),
        address: host.host.address.clone(),
        state: host.state(deployment.end.is_some()),
        cause: host.why().map(CauseView::from),
        wave: host.wave + 1,
        release: match (host.back, &deployment.phases.target) {
            (Some(Back::There | Back::Aside), Some(target)) => Some(target.release.id.to_string()),
            _ => deployment.release(run).filter(|_| host.touched).map(|release| release.id.to_string()),
        },
    }
}

fn waves(deployment: &Deployment) -> Vec<WaveView> {
    let of = |(wave, n): (&WaveRun, u32)| WaveView {
        n,
        canary: n == 1 && deployment.phases.canary,
        hosts: u32::try_from(deployment.hosts.iter().filter(|host| host.wave + 1 == n).count()).unwrap_or(u32::MAX),
        baking_since: match &wave.bake {
            Bake::Baking { since, .. } => Some(since.rfc3339()),
            Bake::Due | Bake::Over => None,
        },
        baked: wave.bake == Bake::Over,
    };
    deployment.waves.iter().zip(1..).map(of).collect()
}

impl From<&Paused> for PausedView {
    fn from(paused: &Paused) -> Self {
        PausedView {
            by: paused.by.clone(),
            reason: paused.reason.as_deref().map(shortened),
            since: paused.since.rfc3339(),
            failed: paused.failed.is_some(),
        }
    }
}

/// Documents of one run, by what they are about. Keys sort in the order of the pipeline.
fn head_key(run: &RunId) -> String {
    format!("runs/{run}")
}

fn project_key(project: &ProjectName, run: &RunId) -> String {
    format!("project/{project}/{run}")
}

fn stage_key(run: &RunId, index: usize) -> String {
    format!("run/{run}/stage/{index:04}")
}

fn deployment_key(run: &RunId, n: u32) -> String {
    format!("run/{run}/deployment/{n:04}")
}

fn host_key(run: &RunId, n: u32, index: usize) -> String {
    format!("run/{run}/host/{n:04}/{index:06}")
}

/// What one record may have changed in what people see.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Head,
    Stage(usize),
    Deployment(u32),
    Host(u32, HostId),
    /// Every host of a deployment: it was planned or has ended.
    Hosts(u32),
}

/// What one record may have changed. What happens to a host on its way back is seen where it came from, too.
fn parts(run: &Run, event: &Event) -> Vec<Part> {
    let mut parts = own_parts(run, event);
    let of = |n: u32| run.deployment(n).and_then(|deployment| deployment.rollback_of);
    let whence = parts.iter().filter_map(|part| match part {
        Part::Host(n, host) => Some(Part::Host(of(*n)?, host.clone())),
        Part::Hosts(n) => Some(Part::Hosts(of(*n)?)),
        _ => None,
    });
    let whence: Vec<Part> = whence.collect();
    parts.extend(whence);
    parts
}

fn own_parts(run: &Run, event: &Event) -> Vec<Part> {
    let of_call = |key: &CallKey| match key.place() {
        Some(Place::Stage { stage, .. }) => run
            .header
            .pipeline
            .stages
            .iter()
            .position(|s| s.name.as_str() == stage)
            .map(Part::Stage)
            .into_iter()
            .collect(),
        Some(Place::Host { deployment, host, .. }) => vec![Part::Host(deployment, host)],
        Some(Place::Deployment { deployment, .. }) => vec![Part::Deployment(deployment)],
        None => Vec::new(),
    };
    let stages = || (0..run.stages.len()).map(Part::Stage);
    match event {
        Event::Started(_) | Event::Resolved { .. } => [Part::Head].into_iter().chain(stages()).collect(),
        Event::Unresolved { .. } | Event::CheckoutFailed { .. } | Event::StopRequested { .. } => vec![Part::Head],
        Event::CheckedOut { .. }
        | Event::Begin { .. }
        | Event::DeadlineHit { .. }
        | Event::HostMet { .. }
        | Event::ProcessesSeen { .. }
        | Event::Resumed { .. } => Vec::new(),
        Event::Call { key, .. } | Event::Return { key, .. } => of_call(key),
        Event::Done { key, .. } => {
            let made = key.verb().is_some_and(|(verb, _)| verb == Verb::Artifact);
            of_call(&key.call()).into_iter().chain(made.then_some(Part::Head)).collect()
        }
        Event::DeploymentCreated { deployment, back: Some(_), .. } => {
            vec![Part::Head, Part::Deployment(*deployment), Part::Hosts(*deployment)]
        }
        Event::DeploymentCreated { deployment, .. }
        | Event::Blocked { deployment, .. }
        | Event::LeaseGranted { deployment, .. } => {
            vec![Part::Head, Part::Deployment(*deployment)]
        }
        Event::LeaseLost { deployment } | Event::PlanFailed { deployment, .. } => vec![Part::Deployment(*deployment)],
        Event::Measured { .. } | Event::Observed { .. } | Event::LookedOver { .. } => Vec::new(),
        Event::BakeBegan { deployment, .. }
        | Event::BakeEnded { deployment, .. }
        | Event::Judged { deployment, .. }
        | Event::Paused { deployment, .. }
        | Event::Unpaused { deployment, .. }
        | Event::Promoted { deployment, .. } => vec![Part::Deployment(*deployment)],
        Event::FleetSeen { deployment, .. } | Event::Planned { deployment, .. } => {
            vec![Part::Deployment(*deployment), Part::Hosts(*deployment)]
        }
        Event::HealthBegan { deployment, host } | Event::HealthVerdict { deployment, host, .. } => {
            vec![Part::Host(*deployment, host.clone())]
        }
        Event::DeploymentEnded { deployment, .. } => {
            vec![Part::Head, Part::Deployment(*deployment), Part::Hosts(*deployment)]
        }
        Event::Diverged { .. } | Event::End { .. } => [Part::Head].into_iter().chain(stages()).collect(),
    }
}

/// A document, as JSON, and the event it makes when it changed.
struct Document {
    key: String,
    json: Vec<u8>,
    event: String,
}

fn document<T: Serialize>(key: String, kind: &str, state: impl Serialize, view: &T) -> Option<Document> {
    let json = serde_json::to_vec(view).ok()?;
    let state = serde_json::to_value(state).ok()?;
    Some(Document { key, json, event: format!("{kind}.{}", state.as_str().unwrap_or("changed")) })
}

fn documents(run: &Run, part: &Part) -> Vec<Document> {
    let id = &run.header.run;
    match part {
        Part::Head => {
            let view = head(run);
            document(head_key(id), "run", view.state, &view).into_iter().collect()
        }
        Part::Stage(index) => stage(run, *index)
            .and_then(|view| document(stage_key(id, *index), "stage", view.state, &view))
            .into_iter()
            .collect(),
        Part::Deployment(n) => run
            .deployment(*n)
            .map(|d| deployment(run, d))
            .and_then(|view| document(deployment_key(id, *n), "deployment", view.state, &view))
            .into_iter()
            .collect(),
        Part::Host(n, host_id) => {
            let Some(d) = run.deployment(*n) else { return Vec::new() };
            let Some(index) = d.hosts.position(host_id) else { return Vec::new() };
            host_document(run, d, index).into_iter().collect()
        }
        Part::Hosts(n) => {
            let Some(d) = run.deployment(*n) else { return Vec::new() };
            (0..d.hosts.len()).filter_map(|index| host_document(run, d, index)).collect()
        }
    }
}

fn host_document(run: &Run, of: &Deployment, index: usize) -> Option<Document> {
    let view = host(run, of, of.hosts.get(index)?);
    document(host_key(&run.header.run, of.n, index), "host", view.state, &view)
}

/// The most that the index takes as one document, bytes.
const LARGEST: usize = 4096;

/// A document's bytes. One that is too large loses the facts of its causes, then the ends of its texts: a shortened view is better than
/// none, and one that is refused would take the whole batch with it.
fn fitted(mut document: Vec<u8>) -> Vec<u8> {
    if document.len() <= LARGEST {
        return document;
    }
    let bytes = |json: &Value| serde_json::to_vec(json).unwrap_or_default();
    let mut json = value(&document);
    if let Some(Value::Object(cause)) = json.get_mut("cause") {
        cause.retain(|name, _| matches!(name.as_str(), "code" | "message"));
        document = bytes(&json);
    }
    for most in [500, 250, 120, 60, 30] {
        if document.len() <= LARGEST {
            break;
        }
        shorten(&mut json, most);
        document = bytes(&json);
    }
    // Artifacts are told whole or not at all.
    while document.len() > LARGEST
        && let Some(Value::Array(artifacts)) = json.pointer_mut("/release/artifacts")
        && artifacts.pop().is_some()
    {
        document = bytes(&json);
    }
    document
}

/// A document as an event has it: text without a line's end in it, as serde_json writes it.
fn text(document: &[u8]) -> Box<RawValue> {
    serde_json::from_slice(document).unwrap_or_default()
}

/// A document as a value.
fn value(document: &[u8]) -> Value {
    serde_json::from_slice(document).unwrap_or_default()
}

/// Cuts every text in `json` at `most` characters; what names something stays whole, it is short.
fn shorten(json: &mut Value, most: usize) {
    match json {
        Value::String(text) => {
            if let Some((end, _)) = text.char_indices().nth(most) {
                text.truncate(end);
                text.push('…');
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| shorten(item, most)),
        Value::Object(map) => {
            const NAMES: &[&str] = &["id", "code", "revision", "project", "holder", "artifacts"];
            let named = |name: &str| NAMES.contains(&name) || name.ends_with("_at");
            map.iter_mut().filter(|(name, _)| !named(name)).for_each(|(_, value)| shorten(value, most));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The runs a view thread follows, and what it wrote of them last.
struct Folding {
    index: Arc<dyn Index>,
    runs: BTreeMap<RunId, (Run, HashMap<String, Vec<u8>>)>,
    /// What the index does not have yet.
    unwritten: BTreeMap<RunId, Unwritten>,
    /// The index is made anew: what is read of it is from before.
    renewing: bool,
    /// Runs that were removed while the index could not forget them.
    removed: Vec<RunId>,
    /// Requests that followers were told of, and which have not begun.
    told: BTreeSet<RunId>,
    board: Arc<Board>,
}

/// Of one run: what is not made from its fold, which of its documents have changed, and the record they come from.
#[derive(Default)]
struct Unwritten {
    puts: Vec<(String, Option<Vec<u8>>)>,
    changed: BTreeSet<String>,
    position: Option<(RunId, Seq, u32)>,
}

/// A page of runs.
#[derive(Debug, Default)]
pub(super) struct RunsPage {
    /// Without their parts. Fewer than were asked for where one is removed in this moment or cannot be read: that is no end.
    pub(super) runs: Vec<RunView>,
    /// After which run the next page begins; `None` = this is the last.
    pub(super) next: Option<String>,
}

fn runs(
    index: &dyn Index,
    project: Option<&ProjectName>,
    after: Option<&str>,
    limit: usize,
) -> Result<RunsPage, IndexError> {
    let prefix = project.map_or_else(|| "runs/".to_owned(), |project| format!("project/{project}/"));
    let after = after.map(|run| format!("{prefix}{run}"));
    let found = index.scan(&prefix, after.as_deref(), limit, true)?;
    let next = found.last().filter(|_| found.len() == limit);
    let next = next.and_then(|(key, _)| key.strip_prefix(&prefix)).map(str::to_owned);
    let mut runs = Vec::new();
    for (key, document) in found {
        let head = match project {
            None => Some(document),
            Some(_) => match key.strip_prefix(&prefix) {
                Some(id) => index.get(&format!("runs/{id}"))?,
                None => None,
            },
        };
        runs.extend(head.and_then(|bytes| serde_json::from_slice(&bytes).ok()));
    }
    Ok(RunsPage { runs, next })
}

impl Folding {
    fn new(index: &Arc<dyn Index>, start: String) -> Self {
        let board = Arc::new(Board {
            start,
            ring: Mutex::new((0, VecDeque::new())),
            live: broadcast::channel(1024).0,
            version: watch::channel(0).0,
            behind: watch::channel(false).0,
        });
        Folding {
            index: Arc::clone(index),
            runs: BTreeMap::new(),
            unwritten: BTreeMap::new(),
            renewing: false,
            removed: Vec::new(),
            told: BTreeSet::new(),
            board,
        }
    }

    fn take(&mut self, fed: Fed) {
        match fed {
            Fed::Records(run, records) => {
                self.fold(&run, &records, false);
                self.write();
            }
            Fed::Recovered(run, records) => {
                self.fold(&run, &records, true);
                self.unsay(&run);
                self.write();
            }
            Fed::Queued(view) => self.queued(&view),
            Fed::Replaced(view) => self.replaced(&view),
            Fed::Removed(run) if self.renewing || self.index.full() => self.removed.push(run),
            Fed::Removed(run) => self.removed(&run),
            Fed::Renew(medium, answer) => {
                let _asker_gone = answer.send(self.renew(medium));
            }
            Fed::Known(view) => self.known(&view),
            Fed::Ended(run, records) => self.ended(&run, &records),
            Fed::Renewed(answer) => {
                let _asker_gone = answer.send(self.renewed());
            }
            Fed::Barrier(reached) => {
                let _asker_gone = reached.send(());
            }
            Fed::Beat(beat) => drop(beat),
        }
    }

    /// Tells followers what records have changed, and keeps it for the next write of the index. Whether the run is over.
    fn fold(&mut self, id: &RunId, records: &[(Seq, u32, Record)], quiet: bool) -> bool {
        let unwritten = self.unwritten.entry(id.clone()).or_default();
        for (seq, crc, record) in records {
            let run = match self.runs.get_mut(id) {
                Some((run, _)) => match run.next(record) {
                    Ok(()) => run,
                    Err(illegal) => {
                        tracing::error!(project = %run.header.project, run = %id, %illegal, "a view cannot follow its journal");
                        return false;
                    }
                },
                None => match Run::begin(record) {
                    Ok(run) => {
                        // It may have begun while it was on its way here that it was requested; or an earlier life told it.
                        let told = self.told.remove(id);
                        if !told && !quiet && self.index.get(&head_key(id)).is_ok_and(|head| head.is_none()) {
                            let header = &run.header;
                            self.board.requested(id, &queued(id, &header.project, &header.request, None));
                        }
                        unwritten.puts.push((project_key(&run.header.project, id), Some(Vec::new())));
                        &mut self.runs.entry(id.clone()).or_insert((run, HashMap::new())).0
                    }
                    Err(illegal) => {
                        tracing::error!(run = %id, %illegal, "a view cannot follow its journal");
                        return false;
                    }
                },
            };
            let made: Vec<Document> = parts(run, &record.event).iter().flat_map(|part| documents(run, part)).collect();
            let project = run.header.project.to_string();
            let Some((run, written)) = self.runs.get_mut(id) else { return false };
            for Document { key, json, event } in made {
                let before = written.get(&key);
                if before == Some(&json) {
                    continue;
                }
                unwritten.changed.insert(key.clone());
                if !quiet {
                    milestones::tell(run, &key, &event, &json, before.map(Vec::as_slice));
                    self.board.tell(event, &record.at.rfc3339(), &project, id, text(&json));
                }
                written.insert(key, json);
            }
            unwritten.position = Some((id.clone(), *seq, *crc));
        }
        self.runs.get(id).is_some_and(|(run, _)| run.end.is_some())
    }

    /// Takes from the index, with the next write, what it has of a run beyond the run's fold: it was ahead of a journal that has lost its end.
    fn unsay(&mut self, id: &RunId) {
        let Some((_, written)) = self.runs.get(id) else { return };
        match self.index.scan(&format!("run/{id}/"), None, usize::MAX, false) {
            Ok(parts) => {
                let beyond = parts.into_iter().map(|(key, _)| key).filter(|key| !written.contains_key(key));
                self.unwritten.entry(id.clone()).or_default().puts.extend(beyond.map(|key| (key, None)));
            }
            Err(error) => tracing::error!(run = %id, %error, "what people see of this run may be ahead of its journal"),
        }
    }

    /// Writes what was folded, a batch a run.
    fn write(&mut self) {
        for (id, Unwritten { mut puts, changed, position }) in std::mem::take(&mut self.unwritten) {
            let folded = self.runs.get(&id);
            puts.extend(changed.into_iter().filter_map(|key| {
                let document = folded?.1.get(&key)?;
                Some((key, Some(fitted(document.clone()))))
            }));
            let over = folded.is_some_and(|(run, _)| run.end.is_some());
            if let Err(error) = self.index.apply(Batch { run: position, puts }) {
                let project = folded.map(|(run, _)| tracing::field::display(&run.header.project));
                tracing::error!(project, run = %id, %error, "what people see of this run is behind");
                self.board.look(&*self.index);
            }
            if over {
                self.runs.remove(&id);
            }
        }
        self.board.version.send_modify(|version| *version += 1);
    }
}

/// What followers look at: recent events, and a number that grows with every change.
pub(super) struct Board {
    start: String,
    ring: Mutex<(u64, VecDeque<Arc<EventView>>)>,
    live: broadcast::Sender<Arc<EventView>>,
    /// Grows with every change of any view.
    pub(super) version: watch::Sender<u64>,
    /// The index lacks what was folded, because the disk was full, until it is made anew.
    behind: watch::Sender<bool>,
}

impl Board {
    /// Tells that a run was requested.
    fn requested(&self, id: &RunId, view: &RunView) {
        let json = to_raw_value(view).unwrap_or_default();
        self.tell("run.queued".to_owned(), &view.created_at, &view.project, id, json);
    }

    /// Notes that the index found no room, if that is so.
    fn look(&self, index: &dyn Index) {
        if index.full() {
            self.behind.send_if_modified(|behind| !std::mem::replace(behind, true));
        }
    }

    fn tell(&self, event: String, at: &str, project: &str, run: &RunId, data: Box<RawValue>) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.0 += 1;
        let event = Arc::new(EventView {
            id: format!("{}-{}", self.start, ring.0),
            event,
            at: at.to_owned(),
            project: project.to_owned(),
            run: run.to_string(),
            data,
        });
        if ring.1.len() == RING {
            ring.1.pop_front();
        }
        ring.1.push_back(Arc::clone(&event));
        let _nobody_follows = self.live.send(event);
    }

    /// Events after `after`, and those to come.
    pub(super) fn follow(&self, after: Option<&str>) -> super::handle::EventStream {
        // Under the ring's lock, so that nothing falls between the backlog and the subscription.
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.live.subscribe();
        let Some(after) = after else { return super::handle::EventStream { backlog: Vec::new(), reset: false, live } };
        let number =
            after.strip_prefix(&self.start).and_then(|n| n.strip_prefix('-')).and_then(|n| n.parse::<u64>().ok());
        let oldest = ring.0 - ring.1.len() as u64;
        match number {
            Some(n) if (oldest..=ring.0).contains(&n) => {
                let skip = usize::try_from(n - oldest).unwrap_or(0);
                let backlog = ring.1.iter().skip(skip).cloned().collect();
                super::handle::EventStream { backlog, reset: false, live }
            }
            _ => super::handle::EventStream { backlog: Vec::new(), reset: true, live },
        }
    }
}

enum Fed {
    Records(RunId, Vec<(Seq, u32, Record)>),
    /// Told before, by an earlier life.
    Recovered(RunId, Vec<(Seq, u32, Record)>),
    Queued(Box<RunView>),
    Replaced(Box<RunView>),
    Removed(RunId),
    Barrier(mpsc::SyncSender<()>),
    /// Somebody wants to know whether this still works.
    Beat(Beat),
    /// The index is to be made anew, of which follows what the fold does not know.
    Renew(Medium, mpsc::SyncSender<Result<(), IndexError>>),
    /// A run that is folded nowhere, told before.
    Known(Box<RunView>),
    /// The journal of a run that may have ended, told before.
    Ended(RunId, Vec<(Seq, u32, Record)>),
    /// That was all.
    Renewed(mpsc::SyncSender<Result<(), IndexError>>),
}

impl Fed {
    /// Whether nobody minds that it is looked at after the nap that the thread may be having.
    fn may_rest(&self) -> bool {
        matches!(self, Fed::Records(_, records)
            if !records.iter().any(|(.., record)| matches!(record.event, Event::End { .. })))
    }
}

/// The views of one daemon. Cheap to clone.
#[derive(Clone)]
pub struct Views {
    feed: Way,
    pub(super) board: Arc<Board>,
    index: Arc<dyn Index>,
}

/// How what is fed gets to the fold.
#[derive(Clone)]
enum Way {
    /// To a thread of its own, which is woken for whatever cannot wait for a nap's end.
    Thread(mpsc::SyncSender<Fed>, Thread),
    /// At once.
    Here(Arc<Mutex<Folding>>),
}

impl Way {
    fn send(&self, fed: Fed) -> Result<(), mpsc::SendError<Fed>> {
        match self {
            Way::Thread(feed, thread) => {
                let hurries = !fed.may_rest();
                feed.send(fed)?;
                if hurries {
                    thread.unpark();
                }
                Ok(())
            }
            Way::Here(folding) => {
                folding.lock().unwrap_or_else(PoisonError::into_inner).take(fed);
                Ok(())
            }
        }
    }
}

impl Feed for Views {
    fn synced(&self, run: &RunId, records: Vec<(Seq, u32, Record)>) {
        // A full queue holds the journals' writer back for a moment: views lag, they do not lose.
        let _thread_gone = self.feed.send(Fed::Records(run.clone(), records));
    }
}

impl Views {
    /// Starts the thread. `start` tells this life of the daemon from others, in event ids; `stall` is where a test holds it up.
    ///
    /// # Errors
    /// The system's, when there can be no thread.
    pub fn start(index: Arc<dyn Index>, clock: Arc<dyn Clock>, start: String, stall: Stall) -> std::io::Result<Views> {
        let (feed, fed) = mpsc::sync_channel(4096);
        let mut folding = Folding::new(&index, start);
        let board = Arc::clone(&folding.board);
        let thread = std::thread::Builder::new().name("views".to_owned()).spawn(move || {
            let mut next: Option<Fed> = None;
            let mut written = clock.now();
            while let Some(now) = next.take().or_else(|| fed.recv().ok()) {
                stall.here();
                match now {
                    Fed::Records(run, records) => {
                        let mut over = folding.fold(&run, &records, false);
                        // What comes within a moment of the last write is one write a run, not as many as there were syncs. Only of an end
                        // everybody learns at once.
                        next = loop {
                            let left = BEHIND.saturating_sub(clock.now().since(&written));
                            if over || left.is_zero() {
                                break None;
                            }
                            match fed.try_recv() {
                                Ok(Fed::Records(run, records)) => over = folding.fold(&run, &records, false),
                                Ok(other) => break Some(other),
                                Err(mpsc::TryRecvError::Empty) => std::thread::park_timeout(left.min(NAP)),
                                Err(mpsc::TryRecvError::Disconnected) => break None,
                            }
                        };
                        folding.write();
                        written = clock.now();
                    }
                    other => folding.take(other),
                }
            }
        })?;
        Ok(Views { feed: Way::Thread(feed, thread.thread().clone()), board, index })
    }

    /// Views that are folded where they are fed, without a thread: for a world in which nothing happens beside something else.
    #[must_use]
    pub fn in_order(index: Arc<dyn Index>, start: String) -> Views {
        let folding = Folding::new(&index, start);
        let board = Arc::clone(&folding.board);
        Views { feed: Way::Here(Arc::new(Mutex::new(folding))), board, index }
    }

    /// A run was requested and is on disk.
    pub(super) fn queued(&self, view: RunView) {
        let _thread_gone = self.feed.send(Fed::Queued(Box::new(view)));
    }

    /// A run whose journal cannot be folded is shown like this.
    pub(super) fn replace(&self, view: RunView) {
        let _thread_gone = self.feed.send(Fed::Replaced(Box::new(view)));
    }

    /// A run is not kept any more. Blocks while the queue is full.
    pub(super) fn remove(&self, run: &RunId) {
        let _thread_gone = self.feed.send(Fed::Removed(run.clone()));
    }

    /// Waits until everything fed so far can be read. Blocks.
    pub(super) fn barrier(&self) {
        let (reached, wait) = mpsc::sync_channel(1);
        if self.feed.send(Fed::Barrier(reached)).is_ok() {
            let _thread_gone = wait.recv();
        }
    }

    /// Lets go of `beat` once everything fed so far was folded; gives it back where the queue is full.
    pub(super) fn beat(&self, beat: Beat) -> Option<Beat> {
        let Way::Thread(feed, thread) = &self.feed else { return None };
        match feed.try_send(Fed::Beat(beat)) {
            Err(mpsc::TrySendError::Full(Fed::Beat(beat))) => Some(beat),
            Ok(()) | Err(_) => {
                thread.unpark();
                None
            }
        }
    }

    /// Takes up a journal that was there before: its documents are made anew unless the index describes this very journal.
    /// Unfinished runs are kept for what follows. Blocks.
    pub(super) fn recover(&self, run: &RunId, records: Vec<(Seq, u32, Record)>, finished: bool) {
        let last = records.last().map(|(seq, crc, _)| (*seq, *crc));
        if finished && last.is_some() && self.index.position(run).ok().flatten() == last {
            return;
        }
        let _thread_gone = self.feed.send(Fed::Recovered(run.clone(), records));
    }

    /// Folds a journal into documents whatever the index says of it. Blocks while the queue is full.
    pub fn refold(&self, run: &RunId, records: Vec<(Seq, u32, Record)>) {
        let _thread_gone = self.feed.send(Fed::Recovered(run.clone(), records));
    }

    /// Waits until everything given so far is in the index. Blocks.
    pub fn settled(&self) {
        self.barrier();
    }

    /// Whether the index lacks what was folded and has to be made anew, and every change of that.
    pub(super) fn behind(&self) -> watch::Receiver<bool> {
        self.board.behind.subscribe()
    }

    /// Whether the index is in memory, for want of room on the disk.
    pub(super) fn in_memory(&self) -> bool {
        self.index.in_memory()
    }

    /// Begins to make the index anew; until [`Views::renewed`] what is read is as old as it was. What is folded now is written. Blocks.
    pub(super) fn renew(&self, medium: Medium) -> Result<(), IndexError> {
        self.asked(|answer| Fed::Renew(medium, answer))
    }

    /// A run that has no journal, or none that can be read, is written as it was seen before. Blocks while the queue is full.
    pub(super) fn known(&self, view: RunView) {
        let _thread_gone = self.feed.send(Fed::Known(Box::new(view)));
    }

    /// A run that has ended is written from its journal; one that goes on is written as it does. Blocks while the queue is full.
    pub(super) fn ended(&self, run: &RunId, records: Vec<(Seq, u32, Record)>) {
        let _thread_gone = self.feed.send(Fed::Ended(run.clone(), records));
    }

    /// Everything was given: the new index is read. Blocks.
    pub(super) fn renewed(&self) -> Result<(), IndexError> {
        self.asked(Fed::Renewed)
    }

    fn asked(&self, fed: impl FnOnce(mpsc::SyncSender<Result<(), IndexError>>) -> Fed) -> Result<(), IndexError> {
        let (answer, wait) = mpsc::sync_channel(1);
        let gone = || IndexError("the thread of the views is gone".to_owned());
        self.feed.send(fed(answer)).map_err(|_| gone())?;
        wait.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Takes out what is there of runs that had a journal and are `gone`. Blocks while the queue is full. Returns how many.
    ///
    /// # Errors
    /// [`IndexError`].
    pub(super) fn forget(&self, gone: impl Fn(&RunId) -> bool) -> Result<u64, IndexError> {
        let mut forgotten = 0;
        self.each_run(|view| {
            let run = view.id.parse::<RunId>().ok().filter(&gone);
            // What never had one is known from here only.
            if let Some(run) = run.filter(|run| matches!(self.index.position(run), Ok(Some(_)))) {
                self.remove(&run);
                forgotten += 1;
            }
        })?;
        Ok(forgotten)
    }

    /// One run, whole.
    pub(super) fn run(&self, id: &RunId) -> Result<Option<RunView>, IndexError> {
        let Some(mut view) = self.read::<RunView>(&head_key(id))? else { return Ok(None) };
        view.stages = self.scan(&format!("run/{id}/stage/"))?;
        view.deployments = self.scan(&format!("run/{id}/deployment/"))?;
        for (i, deployment) in view.deployments.iter_mut().enumerate() {
            deployment.hosts = self.scan(&format!("run/{id}/host/{:04}/", i + 1))?;
        }
        Ok(Some(view))
    }

    /// One run without its parts.
    pub(super) fn head(&self, id: &RunId) -> Result<Option<RunView>, IndexError> {
        self.read(&head_key(id))
    }

    /// A page of runs, newest first, of one project or of all.
    pub(super) fn runs(
        &self,
        project: Option<&ProjectName>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RunsPage, IndexError> {
        runs(&*self.index, project, after, limit).inspect_err(|_| self.board.look(&*self.index))
    }

    /// Every run, newest first, without its parts.
    pub(super) fn each_run(&self, mut each: impl FnMut(RunView)) -> Result<(), IndexError> {
        let mut after = None;
        loop {
            let page = self.runs(None, after.as_deref(), PAGE)?;
            page.runs.into_iter().for_each(&mut each);
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    fn read<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, IndexError> {
        let bytes = self.index.get(key).inspect_err(|_| self.board.look(&*self.index))?;
        bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(|e| IndexError(format!("{key}: {e}")))).transpose()
    }

    fn scan<T: serde::de::DeserializeOwned>(&self, prefix: &str) -> Result<Vec<T>, IndexError> {
        let found = self.index.scan(prefix, None, usize::MAX, false);
        let found = found.inspect_err(|_| self.board.look(&*self.index))?;
        found
            .into_iter()
            .map(|(key, bytes)| serde_json::from_slice(&bytes).map_err(|e| IndexError(format!("{key}: {e}"))))
            .collect()
    }
}

impl Folding {
    fn queued(&mut self, view: &RunView) {
        let Ok(id) = view.id.parse::<RunId>() else { return };
        // The run may have started while this was on the way.
        if !self.runs.contains_key(&id) && self.index.position(&id).ok().flatten().is_none() {
            self.put(view);
            self.board.requested(&id, view);
            self.told.insert(id);
        }
    }

    fn removed(&mut self, run: &RunId) {
        self.told.remove(run);
        let forget = || {
            let mut keys = vec![head_key(run)];
            if let Some(head) = self.index.get(&head_key(run))? {
                let view: Option<RunView> = serde_json::from_slice(&head).ok();
                keys.extend(view.and_then(|view| Some(project_key(&view.project.parse().ok()?, run))));
            }
            let parts = self.index.scan(&format!("run/{run}/"), None, usize::MAX, false)?;
            keys.extend(parts.into_iter().map(|(key, _)| key));
            self.index.apply(Batch { run: None, puts: keys.into_iter().map(|key| (key, None)).collect() })?;
            self.index.forget(run)
        };
        if let Err(error) = forget() {
            self.board.look(&*self.index);
            if self.index.full() {
                self.removed.push(run.clone());
            } else {
                tracing::error!(%run, %error, "what people see of a removed run is left behind");
            }
        }
        self.board.version.send_modify(|version| *version += 1);
    }

    /// Lets an empty index take the place of the one there is, and writes what is folded. Until it has everything it is behind: an attempt
    /// that comes to nothing is not forgotten.
    fn renew(&mut self, medium: Medium) -> Result<(), IndexError> {
        self.index.renew(medium)?;
        self.board.behind.send_replace(true);
        self.renewing = true;
        for (id, (run, written)) in &self.runs {
            let unwritten = self.unwritten.entry(id.clone()).or_default();
            unwritten.puts.push((project_key(&run.header.project, id), Some(Vec::new())));
            unwritten.changed.extend(written.keys().cloned());
        }
        self.write();
        Ok(())
    }

    fn known(&mut self, view: &RunView) {
        // Otherwise it has begun since it was looked at.
        if view.id.parse::<RunId>().is_ok_and(|id| !self.runs.contains_key(&id)) {
            self.put(view);
        }
    }

    fn ended(&mut self, id: &RunId, records: &[(Seq, u32, Record)]) {
        if self.runs.contains_key(id) {
            return;
        }
        if self.fold(id, records, true) {
            self.write();
        } else {
            // It began a moment ago: its records come by themselves.
            self.runs.remove(id);
            self.unwritten.remove(id);
        }
    }

    fn renewed(&mut self) -> Result<(), IndexError> {
        if self.index.full() {
            return Err(IndexError("there is no room again".to_owned()));
        }
        self.index.renewed();
        self.renewing = false;
        std::mem::take(&mut self.removed).iter().for_each(|run| self.removed(run));
        self.board.behind.send_replace(false);
        self.board.version.send_modify(|version| *version += 1);
        Ok(())
    }

    fn replaced(&mut self, view: &RunView) {
        self.put(view);
        let Ok(id) = view.id.parse::<RunId>() else { return };
        let at = view.finished_at.as_deref().unwrap_or(&view.created_at);
        if let Some(document) = document(head_key(&id), "run", view.state, view) {
            self.board.tell(document.event, at, &view.project, &id, text(&document.json));
        }
    }

    fn put(&mut self, view: &RunView) {
        let (Ok(id), Ok(project)) = (view.id.parse::<RunId>(), view.project.parse::<ProjectName>()) else { return };
        let json = serde_json::to_vec(view).unwrap_or_default();
        let puts = vec![(head_key(&id), Some(fitted(json))), (project_key(&project, &id), Some(Vec::new()))];
        if let Err(error) = self.index.apply(Batch { run: None, puts }) {
            tracing::error!(%project, run = %id, %error, "what people see of this run is behind");
            self.board.look(&*self.index);
        }
        self.board.version.send_modify(|version| *version += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_fits_whatever_people_wrote_in_it() {
        let loud = "\u{1}é\"".repeat(1000);
        let facts: serde_json::Map<String, Value> =
            (0..8).map(|n| (format!("fact{n}"), Value::String("x".repeat(900)))).collect();
        let id = "ü".repeat(120);
        let view = HostView {
            id: id.clone(),
            name: loud.clone(),
            address: loud.clone(),
            state: crate::model::deployment::HostState::Failed,
            wave: 1,
            cause: Some(CauseView { code: "exit".to_owned(), message: loud.clone(), facts }),
            release: None,
        };
        let bytes = fitted(serde_json::to_vec(&view).unwrap());
        assert!(bytes.len() <= LARGEST, "{}", bytes.len());
        let read: HostView = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((read.id, read.cause.map(|c| c.code)), (id, Some("exit".to_owned())));
        let small = serde_json::json!({ "name": "web1", "cause": { "code": "a", "message": "b", "fact": 1 } });
        let small = small.to_string().into_bytes();
        assert_eq!(fitted(small.clone()), small);
    }

    /// Keys and documents, to be read.
    #[derive(Default)]
    struct Rows(Mutex<BTreeMap<String, Vec<u8>>>);

    impl Index for Rows {
        fn apply(&self, batch: Batch) -> Result<(), IndexError> {
            let documents = batch.puts.into_iter().filter_map(|(key, document)| Some((key, document?)));
            self.0.lock().unwrap().extend(documents);
            Ok(())
        }
        fn get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
            Ok(self.0.lock().unwrap().get(key).cloned())
        }
        fn scan(
            &self,
            prefix: &str,
            after: Option<&str>,
            limit: usize,
            _: bool,
        ) -> Result<Vec<(String, Vec<u8>)>, IndexError> {
            let rows = self.0.lock().unwrap();
            let rows = rows.iter().rev().filter(|(key, _)| key.starts_with(prefix));
            let rows = rows.filter(|(key, _)| after.is_none_or(|after| key.as_str() < after));
            Ok(rows.take(limit).map(|(key, document)| (key.clone(), document.clone())).collect())
        }
        fn position(&self, _: &RunId) -> Result<Option<(Seq, u32)>, IndexError> {
            Ok(None)
        }
        fn forget(&self, _: &RunId) -> Result<(), IndexError> {
            Ok(())
        }
        fn clear(&self) -> Result<(), IndexError> {
            Ok(())
        }
    }

    #[test]
    fn that_a_run_was_requested_is_told_first_and_once_however_soon_it_begins() {
        let journal = include_str!("../../tests/golden/succeeded/journal");
        let records: Vec<(Seq, u32, Record)> = (1..)
            .zip(journal.lines().take(2))
            .map(|(n, line)| (Seq(n), 0, serde_json::from_str(line.splitn(4, ' ').nth(3).unwrap()).unwrap()))
            .collect();
        let Event::Started(header) = &records[0].2.event else { panic!("{records:?}") };
        let request = || Fed::Queued(Box::new(queued(&header.run, &header.project, &header.request, None)));
        let begun = || Fed::Records(header.run.clone(), records.clone());
        for fed in [[request(), begun()], [begun(), request()]] {
            let index: Arc<dyn Index> = Arc::new(Rows::default());
            let mut folding = Folding::new(&index, "start".to_owned());
            for fed in fed {
                folding.take(fed);
            }
            let told: Vec<String> =
                folding.board.ring.lock().unwrap().1.iter().map(|event| event.event.clone()).collect();
            assert_eq!(told.first().map(String::as_str), Some("run.queued"), "{told:?}");
            assert_eq!(told.iter().filter(|event| *event == "run.queued").count(), 1, "{told:?}");
        }
    }

    #[test]
    fn a_run_that_cannot_be_read_is_not_the_end_of_all_runs() {
        let mut rows = BTreeMap::new();
        for n in 0..9 {
            let id = format!("01kc000000000000000000000{n}");
            let view = serde_json::json!({
                "id": id, "project": "shop", "state": "succeeded", "trigger": "api", "by": "ann", "created_at": "2026-01-02T02:59:00Z",
            });
            // One of each page of three: half written, or removed meanwhile.
            match n {
                1 | 8 => drop(rows.insert(format!("runs/{id}"), b"{".to_vec())),
                4 => {}
                _ => drop(rows.insert(format!("runs/{id}"), view.to_string().into_bytes())),
            }
            rows.insert(format!("project/shop/{id}"), Vec::new());
        }
        let index = Rows(Mutex::new(rows));
        let shop: ProjectName = "shop".parse().unwrap();
        for project in [None, Some(&shop)] {
            let (mut seen, mut after, mut pages) = (Vec::new(), None, 0);
            loop {
                let page = runs(&index, project, after.as_deref(), 3).unwrap();
                seen.extend(page.runs.into_iter().map(|run| run.id[25..].to_owned()));
                pages += 1;
                match page.next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
            assert_eq!(seen.concat(), "765320", "{project:?}");
            assert!(pages <= 4);
        }
    }

    #[test]
    fn artifacts_fit_and_their_digests_stay_whole() {
        let digest = crate::model::ids::Digest::of(b"").to_string();
        let of = |n: usize, name: &str| serde_json::json!({ "name": format!("{name}{n}"), "kind": "tree", "sha256": digest, "size": 1_u64 << 40, "blob": digest });
        let run = |name: &str, message: &str| {
            let artifacts: Vec<Value> = (0..crate::model::release::MOST_ARTIFACTS).map(|n| of(n, name)).collect();
            serde_json::json!({ "id": "01k", "release": { "message": message, "revision": digest, "artifacts": artifacts } })
        };
        for (name, message, all) in
            [("app", "short", true), ("app", &*"long ".repeat(200), true), (&*"x".repeat(62), "m", false)]
        {
            let read: Value = value(&fitted(run(name, message).to_string().into_bytes()));
            let artifacts = read["release"]["artifacts"].as_array().unwrap();
            assert_eq!(artifacts.len() == crate::model::release::MOST_ARTIFACTS, all, "{read}");
            assert!(!artifacts.is_empty());
            assert!(
                artifacts.iter().enumerate().all(|(n, artifact)| *artifact == of(n, name)),
                "each is whole: {read}"
            );
        }
    }
}
