//! Waiting for a run's end, over restarts of the daemon.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use tokio::sync::Notify;

use super::{
    client::{Client, encoded, with_query},
    exit::{Failure, is_paused},
    output::say,
    progress::Progress,
};
use crate::{
    api::render,
    engine::view::{MaintenanceView, RunView},
    time::Span,
};

/// How long a daemon may be away, for an upgrade or a reboot, before waiting for it is given up.
const LONGEST_ABSENCE: Duration = Duration::from_secs(120);

/// How waiting ended.
#[derive(Debug)]
pub(super) enum Waited {
    /// The run has ended, or is paused and goes on only when told to.
    Ended(Box<RunView>),
    /// The time is up; the run goes on.
    TimedOut,
    /// Ctrl-C; the run goes on.
    Interrupted,
}

/// Shows a run's progress until it has ended or `limit` has passed.
pub(super) async fn wait(
    client: &Client,
    id: &str,
    limit: Option<Duration>,
    progress: &mut Progress,
) -> Result<Waited, Failure> {
    let changed = Arc::new(Notify::new());
    let listening = client.tasks.spawn("events", listen(client.clone(), id.to_owned(), changed.clone()));
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let waited = tokio::select! {
        biased;
        _ = &mut interrupted => Ok(Waited::Interrupted),
        waited = follow(client, id, limit, progress, &changed) => waited,
    };
    listening.abort();
    waited
}

async fn follow(
    client: &Client,
    id: &str,
    limit: Option<Duration>,
    progress: &mut Progress,
    changed: &Notify,
) -> Result<Waited, Failure> {
    let path = format!("/v1/runs/{}", encoded(id));
    // A block shows seconds; lines show changes, which events announce.
    let beat = if progress.is_live() { Duration::from_secs(1) } else { Duration::from_secs(5) };
    let started = client.clock.now();
    let mut absent_since = None;
    let mut poll = Duration::ZERO;
    // Goes on while an answer comes: what happened meanwhile is looked at all the same.
    let mut hint = std::pin::pin!(some(client, changed));
    loop {
        let left = limit.map(|limit| limit.saturating_sub(client.clock.now().since(&started)));
        let span = crate::time::Span(left.map_or(poll, |left| poll.min(left)).max(Duration::from_millis(1)));
        let query = (!poll.is_zero()).then(|| span.to_string());
        let path = with_query(&path, &[("wait", query.as_ref().map(|_| "finished".to_owned())), ("timeout", query)]);
        let asked = tokio::select! {
            biased;
            asked = client.get_json::<RunView>(&path) => asked,
            () = &mut hint, if !poll.is_zero() => {
                hint.set(some(client, changed));
                poll = Duration::ZERO;
                continue;
            }
        };
        match asked {
            Ok(run) => {
                if absent_since.take().is_some() {
                    progress.remark("the daemon is back");
                }
                progress.show(&run, client.clock.now().wall_ms);
                if run.state.is_end() || is_paused(&run) {
                    return Ok(Waited::Ended(Box::new(run)));
                }
                poll = beat;
            }
            Err(failure) if is_absence(&failure) => {
                let now = client.clock.now();
                match &absent_since {
                    None => {
                        progress.remark(&format!(
                            "the daemon does not answer; trying again for {} s",
                            LONGEST_ABSENCE.as_secs()
                        ));
                        absent_since = Some(now);
                    }
                    Some(since) if now.since(since) > LONGEST_ABSENCE => return Err(failure),
                    Some(_) => {}
                }
                client.clock.sleep(Duration::from_millis(500)).await;
            }
            Err(failure) => return Err(failure),
        }
        if limit.is_some_and(|limit| client.clock.now().since(&started) >= limit) {
            return Ok(Waited::TimedOut);
        }
    }
}

/// Something has happened, and what else does at the same time: many hosts make many events, two looks a second are enough for a
/// person, and each is work for the daemon. The end is not waited for so, whoever asks for it is told at once.
async fn some(client: &Client, changed: &Notify) {
    changed.notified().await;
    client.clock.sleep(Duration::from_millis(500)).await;
}

/// Says what still works during maintenance until nothing does, it is off, or `limit` has passed; returns how it is then.
pub(super) async fn parked(
    client: &Client,
    mut now: MaintenanceView,
    limit: Option<Duration>,
) -> Result<MaintenanceView, Failure> {
    /// What each run does changes in between: it is told that often.
    const BEAT: Duration = Duration::from_secs(5);
    let started = client.clock.now();
    let mut told = Vec::new();
    loop {
        let works: Vec<String> = now.runs.iter().filter(|r| !r.doing.is_empty()).map(render::working).collect();
        let left = limit.map_or(BEAT, |limit| limit.saturating_sub(client.clock.now().since(&started)));
        if !now.on || works.is_empty() || left.is_zero() {
            return Ok(now);
        }
        for line in works.iter().filter(|line| !told.contains(*line)) {
            say(&format!("waiting for {line}\n"));
        }
        told = works;
        let timeout = Some(Span(left.min(BEAT).max(Duration::from_millis(1))).to_string());
        let path = with_query("/v1/maintenance", &[("wait", Some("parked".to_owned())), ("timeout", timeout)]);
        now = client.get_json(&path).await?;
    }
}

/// Whether the daemon is away for a moment rather than against us.
fn is_absence(failure: &Failure) -> bool {
    match failure {
        Failure::Unreachable(_) | Failure::Broken(_) => true,
        // An index that has found no room is made anew within moments.
        Failure::Problem(problem) => problem.code == "stopping" || problem.code == "index_damaged",
        Failure::Usage(_) | Failure::OutputClosed => false,
    }
}

/// Rings whenever something happens to the run. Only a hint: without it progress comes at every beat.
async fn listen(client: Client, id: String, changed: Arc<Notify>) {
    let path = with_query("/v1/events", &[("run", Some(id))]);
    loop {
        if let Ok(response) = client.open(&path, "application/x-ndjson").await {
            let mut body = response.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                // `{}` is only a sign of life.
                if frame.data_ref().is_some_and(|data| data.len() > 3) {
                    changed.notify_one();
                }
            }
        }
        client.clock.sleep(Duration::from_secs(1)).await;
    }
}
