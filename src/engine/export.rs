//! All of the state as lines of JSON: for reports, audits and other programs. Each line is an object with a `kind`; the last one counts the others.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    conductor::Conductor,
    freezes,
    handle::{ExportQuery, Pieces, Refusal},
    hosts, leases, ledger,
    view::{CauseView, ReleaseView, RunView},
};
use crate::{model::ids::RunId, ports::program::Loaded, time::rfc3339};

/// Runs read at once.
const PAGE: usize = 50;
/// Pieces that wait for who asked.
const WAITING: usize = 4;

/// Begins one.
pub(super) fn begin(conductor: &Conductor, query: ExportQuery) -> Result<Pieces, Refusal> {
    let projects = match &query.project {
        Some(name) => vec![conductor.project(name)?],
        None => conductor.all(),
    };
    let (sender, pieces) = mpsc::channel(WAITING);
    let export = Export { conductor: conductor.clone(), sender, counts: BTreeMap::new() };
    let stopping = conductor.inner.world.tasks.stopping();
    conductor.inner.world.tasks.spawn("export", async move {
        let failed = export.sender.clone();
        let done = tokio::select! {
            biased;
            () = stopping.cancelled() => Err("the daemon goes down".to_owned()),
            done = export.all(projects, query) => done,
        };
        if let Err(why) = done {
            let _nobody_listens = failed.send(Err(why)).await;
        }
    });
    Ok(pieces)
}

struct Export {
    conductor: Conductor,
    sender: mpsc::Sender<Result<Vec<u8>, String>>,
    counts: BTreeMap<&'static str, u64>,
}

/// Lines of one piece.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    counts: BTreeMap<&'static str, u64>,
}

impl Lines {
    /// `value` is an object; its own members stay.
    fn add(&mut self, kind: &'static str, value: impl Serialize) -> Result<(), String> {
        let mut json = serde_json::to_value(value).map_err(|error| error.to_string())?;
        if let Some(members) = json.as_object_mut() {
            members.insert("kind".to_owned(), Value::from(kind));
        }
        serde_json::to_writer(&mut self.bytes, &json).map_err(|error| error.to_string())?;
        self.bytes.push(b'\n');
        *self.counts.entry(kind).or_default() += 1;
        Ok(())
    }
}

impl Export {
    async fn all(mut self, projects: Vec<Arc<Loaded>>, query: ExportQuery) -> Result<(), String> {
        let world = Arc::clone(&self.conductor.inner.world);
        let mut lines = Lines::default();
        lines.add(
            "daemon",
            json!({ "version": world.version, "at": world.clock.now().rfc3339(), "controller": &*world.controller }),
        )?;
        self.send(lines).await?;
        for loaded in &projects {
            let lines = self.project(loaded).await?;
            self.send(lines).await?;
        }
        self.runs(query).await?;
        let mut lines = Lines::default();
        lines.add("end", json!({ "counts": &self.counts }))?;
        self.send(lines).await
    }

    async fn send(&mut self, lines: Lines) -> Result<(), String> {
        for (kind, count) in lines.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        if lines.bytes.is_empty() {
            return Ok(());
        }
        self.sender.send(Ok(lines.bytes)).await.map_err(|_| "who asked for it has gone".to_owned())
    }

    /// A project, its environments, hosts and learnt host keys, and the releases that were found bad.
    async fn project(&self, loaded: &Arc<Loaded>) -> Result<Lines, String> {
        let (conductor, world) = (&self.conductor, &self.conductor.inner.world);
        let control = &*world.control;
        let (project, pipeline) = (&loaded.name, &loaded.pipeline);
        let mut lines = Lines::default();
        let environments: Vec<&str> = pipeline.environments.iter().map(|e| e.name.as_str()).collect();
        let stages: Vec<&str> = pipeline.stages.iter().map(|stage| stage.name.as_str()).collect();
        let (git, branch, tags) = (&pipeline.source.git, &pipeline.source.branch, &pipeline.source.tags);
        lines.add(
            "project",
            json!({ "project": project, "git": git, "branch": branch, "tags": tags, "code": loaded.code, "stages": stages, "environments": environments }),
        )?;
        for environment in &pipeline.environments {
            let good = ledger::known_good(control, project, &environment.name);
            let good = good.iter().map(|good| {
                json!({ "release": ReleaseView::from(&good.target.release), "run": good.target.run, "since": rfc3339(good.at_ms) })
            });
            let live = ledger::live(control, project, &environment.name);
            let live = live.map(|live| json!({ "release": ReleaseView::from(&live.release), "run": live.run, "since": rfc3339(live.since_ms) }));
            let last = ledger::last(control, project, &environment.name);
            let last = last.map(|last| json!({ "run": last.run, "state": last.state, "cause": last.cause.as_ref().map(CauseView::from) }));
            lines.add(
                "environment",
                json!({
                    "project": project, "environment": environment.name, "live": live, "last": last, "known_good": good.collect::<Vec<Value>>(),
                    "freeze": freezes::view(conductor, loaded, environment), "lease": leases::view(conductor, loaded, environment),
                }),
            )?;
        }
        for environment in &pipeline.environments {
            let fleet = hosts::show::view(world, loaded, environment, false).await;
            let of = |value: Value| {
                let mut value = value;
                if let Some(members) = value.as_object_mut() {
                    members.insert("project".to_owned(), json!(fleet.project));
                    members.insert("environment".to_owned(), json!(fleet.environment));
                }
                value
            };
            for host in &fleet.hosts {
                lines.add("host", of(json!(host)))?;
            }
            for key in &fleet.host_keys {
                lines.add("host_key", of(json!(key)))?;
            }
        }
        for (release, bad) in ledger::all_bad(control, project) {
            lines.add(
                "bad_release",
                json!({ "project": project, "release": release, "run": bad.run, "tree": bad.tree, "cause": CauseView::from(&bad.cause) }),
            )?;
        }
        Ok(lines)
    }

    /// Runs, newest first, page by page, each followed by its deployments.
    async fn runs(&mut self, query: ExportQuery) -> Result<(), String> {
        let (world, views) = (Arc::clone(&self.conductor.inner.world), self.conductor.inner.views.clone());
        let project = query.project.as_deref().and_then(|name| name.parse().ok());
        let mut cursor: Option<String> = None;
        loop {
            let (views, project, after) = (views.clone(), project.clone(), cursor.take());
            let page = world.tasks.blocking(move || -> Result<(Vec<RunView>, Option<String>), String> {
                let page = views.runs(project.as_ref(), after.as_deref(), PAGE).map_err(|error| error.to_string())?;
                let whole = |head: RunView| match head.id.parse::<RunId>() {
                    Ok(id) => views.run(&id).map(|run| run.unwrap_or(head)).map_err(|error| error.to_string()),
                    Err(_) => Ok(head),
                };
                Ok((page.runs.into_iter().map(whole).collect::<Result<_, String>>()?, page.next))
            });
            let (page, next) = page.await.map_err(|error| error.to_string())??;
            let mut lines = Lines::default();
            for mut run in page {
                if query.after.as_ref().is_some_and(|after| run.id <= *after) {
                    return self.send(lines).await;
                }
                let deployments = std::mem::take(&mut run.deployments);
                lines.add("run", &run)?;
                for deployment in deployments {
                    let mut json = json!(deployment);
                    if let Some(members) = json.as_object_mut() {
                        members.insert("project".to_owned(), json!(run.project));
                        members.insert("run".to_owned(), json!(run.id));
                    }
                    lines.add("deployment", json)?;
                }
            }
            self.send(lines).await?;
            if next.is_none() {
                return Ok(());
            }
            cursor = next;
        }
    }
}
