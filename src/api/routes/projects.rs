//! `/v1/projects`: the button, its opposite, and what is where.

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, in_form};
use crate::{
    api::{auth::Caller, fields::Fields, problem::Problem, render},
    engine::{
        handle::{Claim, Start, Started},
        view::{CauseView, Page, Plan, ProjectStatus, RunView, dry_run::DryRun},
    },
    model::ids::EnvironmentName,
};

/// A project in a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProjectView {
    /// Its name.
    pub project: String,
    /// The repository.
    pub source: String,
    /// The branch.
    pub branch: String,
    /// Its environments in order.
    pub environments: Vec<String>,
    /// Ids of its running and queued runs, oldest first.
    pub running: Vec<String>,
    /// What is wrong with the project itself.
    pub trouble: Option<CauseView>,
}

/// The fields of a start, all optional.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct StartBody {
    /// A branch, tag or commit; the branch's head when absent.
    #[serde(rename = "ref")]
    #[schema(example = "v1.2")]
    pub reference: Option<String>,
    /// No further than this environment.
    pub environment: Option<String>,
    /// Why, in your words.
    pub reason: Option<String>,
    /// Also when it is live already.
    #[serde(default)]
    pub redeploy: bool,
    /// Run tests again though this release passed them under the same code.
    #[serde(default)]
    pub retest: bool,
    /// Also a release that was found bad.
    #[serde(default)]
    pub retry_bad: bool,
    /// Do nothing; answer with the commands that would be run. Text with `Accept: text/plain`.
    #[serde(default)]
    pub dry_run: bool,
}

/// The answer to a start of what is live already.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AlreadyLive {
    /// `already_live`.
    #[schema(example = "already_live")]
    pub code: String,
    /// The same for people.
    pub message: String,
    /// What is live where.
    pub status: ProjectStatus,
}

/// The answer to a start that begins nothing.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum NotBegun {
    /// There is nothing to do.
    AlreadyLive(Box<AlreadyLive>),
    /// Nothing was to be done.
    Dry(Box<DryRun>),
}

/// The fields of a stop, all optional.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct StopBody {
    /// Hosts in flight end after their running step instead of finishing.
    #[serde(default)]
    pub now: bool,
    /// Why, in your words.
    pub reason: Option<String>,
}

/// The projects.
#[utoipa::path(get, path = "/v1/projects", tag = "projects",
    responses((status = 200, description = "All projects the token is for, by name.", body = Page<ProjectView>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Fields::of_query(uri.query())?.finish()?;
    let status = app.engine.status().await?;
    let items = status.projects.into_iter().filter(|p| caller.sees(&p.project)).map(|p| ProjectView {
        environments: p.environments.into_iter().map(|e| e.environment).collect(),
        running: p.running.into_iter().map(|r| r.id).collect(),
        project: p.project,
        source: p.source,
        branch: p.branch,
        trouble: p.trouble,
    });
    let page = Page { items: items.collect::<Vec<_>>(), next_cursor: None };
    Ok(in_form(&headers, &page, |page| render::projects(&page.items)))
}

/// The button: test a commit and, only if every test passes, deploy it.
///
/// The run is on disk when this answers; watch it at `Location`.
#[utoipa::path(post, path = "/v1/projects/{project}/start", tag = "projects",
    params(("project" = String, Path, description = "Its name.")),
    request_body(content((StartBody = "application/json"), (StartBody = "application/x-www-form-urlencoded")), description = "All optional; none is fine."),
    responses(
        (status = 202, description = "A run, perhaps queued; `Location` is where to watch it.", body = RunView),
        (status = 200, description = "`already_live`: nothing to do; `redeploy` does it all the same. With `dry_run`: the commands that would be run; none was, and there is no run.",
            body = NotBegun),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`ref_unknown`, `ref_not_allowed`, `ref_invalid`, `unknown_field`, `bad_value`.", body = Problem, content_type = "application/problem+json"),
        (status = 502, description = "The forge could not be asked: `git_unreachable`, `git_auth`.", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`stopping`, `queue_full`, `degraded`; ask again after `Retry-After`.", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "`disk_full`: nothing new is begun until there is room.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn start(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    once: Option<Extension<Claim>>,
    Path(project): Path<String>,
    headers: HeaderMap,
    mut fields: Fields,
) -> Result<Response, Problem> {
    caller.project(&project)?;
    let start = Start {
        once: once.map(|Extension(once)| once),
        reference: fields.text("ref"),
        environment: fields.text("environment"),
        reason: fields.text("reason"),
        redeploy: fields.flag("redeploy"),
        retest: fields.flag("retest"),
        retry_bad: fields.flag("retry_bad"),
        dry_run: fields.flag("dry_run"),
    };
    fields.finish()?;
    let answer = match app.engine.start(&project, start, &caller.actor()).await? {
        Started::Run(run) => {
            let location = format!("/v1/runs/{}", run.id);
            return Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(run)).into_response());
        }
        Started::AlreadyLive(status) => {
            let message = format!("{project} has this release live already; send redeploy=true to deploy it again");
            let live = AlreadyLive { code: "already_live".to_owned(), message, status: *status };
            NotBegun::AlreadyLive(Box::new(live))
        }
        Started::Dry(view) => NotBegun::Dry(view),
    };
    Ok(in_form(&headers, &answer, |answer| match answer {
        NotBegun::Dry(view) => render::dry_run(view),
        NotBegun::AlreadyLive(live) => {
            format!("{}\n{}", live.message, render::project(&live.status, app.clock.now().wall_ms))
        }
    }))
}

/// Ends what the project runs and has queued.
///
/// Local commands are killed, cleanup happens, hosts in flight finish their deploy.
#[utoipa::path(post, path = "/v1/projects/{project}/stop", tag = "projects",
    params(("project" = String, Path, description = "Its name.")),
    request_body(content((StopBody = "application/json"), (StopBody = "application/x-www-form-urlencoded")), description = "All optional; none is fine."),
    responses(
        (status = 202, description = "The runs that were asked to end.", body = Page<RunView>),
        (status = 404, description = "`project_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`nothing_to_stop`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stop(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(project): Path<String>,
    mut fields: Fields,
) -> Result<Response, Problem> {
    caller.project(&project)?;
    let (now, reason) = (fields.flag("now"), fields.text("reason"));
    fields.finish()?;
    let items = app.engine.stop_project(&project, now, reason, &caller.actor()).await?;
    Ok((StatusCode::ACCEPTED, Json(Page { items, next_cursor: None })).into_response())
}

/// What the project runs, what is live where, and what is wrong.
#[utoipa::path(get, path = "/v1/projects/{project}/status", tag = "projects",
    params(("project" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "The project now.", body = ProjectStatus),
        (status = 404, description = "`project_unknown`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn status(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(project): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Fields::of_query(uri.query())?.finish()?;
    caller.project(&project)?;
    let status = app.engine.project_status(&project).await?;
    Ok(in_form(&headers, &status, |status| render::project(status, app.clock.now().wall_ms)))
}

/// Who would get what, in which order, against the live fleet.
#[utoipa::path(get, path = "/v1/projects/{project}/plan", tag = "projects",
    params(
        ("project" = String, Path, description = "Its name."),
        ("environment" = Option<String>, Query, description = "Only this one.")),
    responses(
        (status = 200, description = "The plan. Hosts are discovered now.", body = Plan),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn plan(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(project): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let environment = fields.parsed("environment", |t| t.parse::<EnvironmentName>().map_err(|e| e.to_string()));
    fields.finish()?;
    caller.project(&project)?;
    let plan = app.engine.plan(&project, environment).await?;
    Ok(in_form(&headers, &plan, render::plan))
}
