//! `/v1/runs`.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

use super::{App, in_form, projects::StopBody};
use crate::{
    api::{auth::Caller, fields::Fields, problem::Problem, render, text::word},
    engine::{
        handle::{Refusal, RunsQuery},
        view::{Page, RunView},
    },
    model::{ids::ProjectName, run::RunState},
};

/// How long a `wait` without `timeout` waits.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);
/// Longer waits are asked for again; proxies and laptops do not keep a connection for hours.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The run, if the caller may see its project; otherwise it is as if there were none.
pub(super) async fn seen(app: &App, caller: &Caller, id: &str) -> Result<RunView, Problem> {
    let run = app.engine.run(id).await?;
    if caller.sees(&run.project) { Ok(run) } else { Err(Refusal::RunUnknown(id.to_owned()).into()) }
}

/// Runs, newest first.
#[utoipa::path(get, path = "/v1/runs", tag = "runs",
    params(
        ("project" = Option<String>, Query, description = "Only this project's."),
        ("state" = Option<String>, Query, description = "Only those in this state: queued, testing, deploying, succeeded, failed, ..."),
        ("limit" = Option<u64>, Query, description = "1 to 500, 50 when absent."),
        ("cursor" = Option<String>, Query, description = "The last page's `next_cursor`.")),
    responses((status = 200, description = "A page, without stages, deployments and hosts.", body = Page<RunView>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let mut query = RunsQuery {
        project: fields.parsed("project", |t| t.parse::<ProjectName>().map_err(|e| e.to_string())),
        state: fields.parsed("state", state),
        limit: usize::try_from(fields.number("limit", 1..=500).unwrap_or(50)).unwrap_or(50),
        cursor: fields.text("cursor"),
    };
    fields.finish()?;
    match (&query.project, &caller) {
        (Some(project), _) => caller.project(project.as_str())?,
        // One project is a filter the engine knows, which keeps pages full.
        (None, Caller::Token(token)) if token.projects.len() == 1 => {
            query.project = token.projects.first().and_then(|p| p.parse().ok());
        }
        _ => {}
    }
    let mut page = app.engine.runs(query).await?;
    page.items.retain(|run| caller.sees(&run.project));
    Ok(in_form(&headers, &page, |page| render::runs(&page.items, app.clock.now().wall_ms)))
}

fn state(text: &str) -> Result<RunState, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| {
        format!(
            "{text:?} is no state; there are queued, testing, deploying, succeeded, failed, rolled_back, rollback_failed, halted, \
             stopped, superseded, damaged"
        )
    })
}

/// One run, whole; at once, or when it has started or finished.
///
/// With `fail`, `curl -f` is a gate: a run that did not succeed answers 424, and one that is not there yet when the time is up 504.
/// Without, a wait that is over answers the run as it is.
#[utoipa::path(get, path = "/v1/runs/{id}", tag = "runs",
    params(
        ("id" = String, Path, description = "The run's id."),
        ("wait" = Option<String>, Query, description = "`started`: until it has left the queue; `finished`: until it has ended."),
        ("timeout" = Option<String>, Query, description = "How long to wait, `5m` when absent, at most `1h`."),
        ("fail" = Option<bool>, Query, description = "Answer 424 unless it succeeded. Waits for `finished` when `wait` is absent.")),
    responses(
        (status = 200, description = "The run.", body = RunView),
        (status = 404, description = "`run_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 424, description = "With `fail`: `run_not_succeeded`; `run` is the run.", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "With `fail`: `wait_timed_out`; `run` is the run as it is.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let fail = fields.flag("fail");
    let wait = fields.parsed("wait", |text| match text {
        "finished" => Ok(true),
        "started" => Ok(false),
        _ => Err(format!("wait must be started or finished, not {text:?}")),
    });
    let limit = fields.parsed("timeout", |text| match text.parse::<crate::time::Span>() {
        Ok(span) if span.0 <= LONGEST_WAIT => Ok(span.0),
        Ok(_) => Err("timeout must be at most 1h; ask again after it".to_owned()),
        Err(error) => Err(error.to_string()),
    });
    fields.finish()?;
    let mut run = seen(&app, &caller, &id).await?;
    let wait = wait.or(fail.then_some(true));
    if let Some(finished) = wait {
        run = tokio::select! {
            biased;
            () = app.stopping.cancelled() => return Err(Refusal::Stopping.into()),
            run = app.engine.wait(&id, finished, limit.unwrap_or(DEFAULT_WAIT)) => run?,
        };
    }
    if fail && run.state.is_end() && run.state != RunState::Succeeded {
        let why = run.cause.as_ref().map_or_else(String::new, |cause| format!(": {}", cause.message));
        let detail = format!("run {id} of {} ended {}{why}", run.project, word(&run.state));
        let mut problem = Problem::new(StatusCode::FAILED_DEPENDENCY, "run_not_succeeded", detail);
        problem.run = Some(Box::new(run));
        return Err(problem);
    }
    let reached = run.state.is_end() || (wait == Some(false) && run.state != RunState::Queued);
    if fail && !reached {
        let detail = format!("run {id} of {} is still {} and goes on; ask again", run.project, word(&run.state));
        let mut problem = Problem::new(StatusCode::GATEWAY_TIMEOUT, "wait_timed_out", detail);
        problem.run = Some(Box::new(run));
        return Err(problem.with_header(header::RETRY_AFTER, "1"));
    }
    Ok(in_form(&headers, &run, |run| render::run(run, app.clock.now().wall_ms)))
}

/// Ends one run.
#[utoipa::path(post, path = "/v1/runs/{id}/stop", tag = "runs",
    params(("id" = String, Path, description = "The run's id.")),
    request_body(content((StopBody = "application/json"), (StopBody = "application/x-www-form-urlencoded")), description = "All optional; none is fine."),
    responses(
        (status = 202, description = "It was asked to end.", body = RunView),
        (status = 404, description = "`run_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`nothing_to_stop`: it has ended.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stop(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    mut fields: Fields,
) -> Result<Response, Problem> {
    let (now, reason) = (fields.flag("now"), fields.text("reason"));
    fields.finish()?;
    seen(&app, &caller, &id).await?;
    let run = app.engine.stop_run(&id, now, reason, &caller.actor()).await?;
    Ok((StatusCode::ACCEPTED, Json(run)).into_response())
}
