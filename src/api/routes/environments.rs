//! `/v1/projects/{project}/environments/{environment}`: the doors of an environment.

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, in_form};
use crate::{
    api::{auth::Caller, fields::Fields, problem::Problem, render, text::wall_ms},
    engine::{
        handle::{ChangeAsk, Changed, Claim, FreezeAsk, LeaseAsk},
        view::{FreezeView, LeaseView, RunView},
    },
    time::Span,
};

/// The longest that a person holds a lease at a time: who needs longer wants a freeze, or asks again.
const LONGEST_LEASE: Span = Span::minutes(7 * 24 * 60);

/// The fields of a freeze.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct FreezeBody {
    /// How long, from now; or `until`. Without either it lasts until it is lifted.
    #[serde(rename = "for")]
    #[schema(example = "2h")]
    pub span: Option<String>,
    /// RFC 3339.
    #[schema(example = "2026-12-24T18:00:00+01:00")]
    pub until: Option<String>,
    /// Why, for those who wait.
    pub reason: Option<String>,
    /// Who freezes it; whoever asks when absent.
    pub holder: Option<String>,
}

/// The fields of a lease.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct LeaseBody {
    /// How long, from now, at most `7d`; this or `until` is required.
    #[serde(rename = "for")]
    #[schema(example = "2h")]
    pub span: Option<String>,
    /// RFC 3339.
    pub until: Option<String>,
    /// Why, for those who wait.
    pub reason: Option<String>,
    /// Who holds it; whoever asks when absent.
    pub holder: Option<String>,
    /// Take it from a deployment, or from another person.
    #[serde(default)]
    pub force: bool,
}

/// The end that `for` or `until` say, wall ms.
fn end(app: &App, fields: &mut Fields) -> Result<Option<i64>, Problem> {
    let now = app.clock.now().wall_ms;
    let span = fields.parsed("for", |text| match text.parse::<Span>() {
        Ok(span) if span.0.is_zero() => Err("for must be more than nothing".to_owned()),
        Ok(span) => Ok(span),
        Err(error) => Err(error.to_string()),
    });
    let until = fields.parsed("until", |text| match wall_ms(text) {
        None => Err(format!("until must be a moment such as 2026-12-24T18:00:00+01:00, not {text:?}")),
        Some(until) if until <= now => Err(format!("until is over already: {text}")),
        Some(until) => Ok(until),
    });
    match (span, until) {
        (Some(_), Some(_)) => Err(bad("for and until say the same: give one of them")),
        (Some(span), None) => Ok(Some(now.saturating_add(i64::try_from(span.0.as_millis()).unwrap_or(i64::MAX)))),
        (None, until) => Ok(until),
    }
}

fn bad(detail: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_value", detail)
}

/// A name or reason of people: nothing is kept of what nobody can read.
fn words(fields: &mut Fields, name: &'static str) -> Option<String> {
    fields.text(name).filter(|text| !text.trim().is_empty())
}

/// The fields of a change, all optional.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ChangeBody {
    /// Of a rollback: the id or commit of a release that was known-good there, or the beginning of it; the last one when absent.
    pub to: Option<String>,
    /// Why, in your words.
    pub reason: Option<String>,
}

/// Pauses, resumes, promotes or takes back what is being deployed to an environment; takes back what was deployed; or brings the hosts that
/// differ to what is live.
///
/// `pause`: nothing new begins, hosts in flight finish. `resume` ends a pause. `promote` goes on from a bake, a pause or a failure that was
/// paused. `rollback` takes back the deployment under way; when there is none, a run of its own goes back to the last known-good release,
/// also in a freeze. `converge` gives hosts that came late or were replaced what is live. `adopt` makes known-good, and live, the one commit
/// that every host reports by the `version` of its health; it touches no host.
#[utoipa::path(post, path = "/v1/projects/{project}/environments/{environment}/{change}", tag = "environments",
    params(("project" = String, Path, description = "Its name."), ("environment" = String, Path, description = "Its name."),
        ("change" = String, Path, description = "`pause`, `resume`, `promote`, `rollback`, `converge` or `adopt`.")),
    request_body(content((ChangeBody = "application/json"), (ChangeBody = "application/x-www-form-urlencoded")), description = "All optional; none is fine."),
    responses(
        (status = 200, description = "The run that deploys there; it is on disk.", body = RunView),
        (status = 202, description = "A run of its own; `Location` is where to watch it.", body = RunView),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It cannot be: `not_deploying`, `deploying`, `paused_already`, `not_paused`, `not_held`, `deployment_failed`, `no_target`, `rollback_unsafe`; nothing can be adopted: `no_version`, `artifacts`, `hosts_disagree`, `adopted_bad`, `ref_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`bad_value`, `unknown_field`; `target_unknown`: `to` names no release that is known-good there, and `detail` names those that are.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn change(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    once: Option<Extension<Claim>>,
    Path((project, environment, verb)): Path<(String, String, String)>,
    mut fields: Fields,
) -> Result<Response, Problem> {
    caller.project(&project)?;
    let to = words(&mut fields, "to");
    if to.is_some() && verb != "rollback" {
        return Err(bad("to is for rollback alone: it names the release to go back to"));
    }
    let ask = ChangeAsk { verb, to, reason: words(&mut fields, "reason"), once: once.map(|Extension(once)| once) };
    fields.finish()?;
    Ok(match app.engine.change(&project, &environment, ask, &caller.actor()).await? {
        Changed::UnderWay(run) => Json(run).into_response(),
        Changed::Run(run) => {
            let location = format!("/v1/runs/{}", run.id);
            (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(run)).into_response()
        }
    })
}

/// Whether an environment is frozen, by whom, why and until when.
#[utoipa::path(get, path = "/v1/projects/{project}/environments/{environment}/freeze", tag = "environments",
    params(("project" = String, Path, description = "Its name."), ("environment" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "How it is.", body = FreezeView),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn freeze(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((project, environment)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Fields::of_query(uri.query())?.finish()?;
    caller.project(&project)?;
    let view = app.engine.freeze(&project, &environment).await?;
    Ok(in_form(&headers, &view, render::freeze))
}

/// Freezes an environment: nothing new is deployed to it. What runs goes on; rollback and convergence go. What was frozen by hand before is
/// replaced.
#[utoipa::path(put, path = "/v1/projects/{project}/environments/{environment}/freeze", tag = "environments",
    params(("project" = String, Path, description = "Its name."), ("environment" = String, Path, description = "Its name.")),
    request_body(content((FreezeBody = "application/json"), (FreezeBody = "application/x-www-form-urlencoded")), description = "All optional; none is fine."),
    responses(
        (status = 200, description = "How it is now; it is on disk.", body = FreezeView),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`bad_value`, `unknown_field`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn set_freeze(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((project, environment)): Path<(String, String)>,
    headers: HeaderMap,
    mut fields: Fields,
) -> Result<Response, Problem> {
    caller.project(&project)?;
    let until_ms = end(&app, &mut fields)?;
    let (reason, holder) = (words(&mut fields, "reason"), words(&mut fields, "holder"));
    fields.finish()?;
    let ask = FreezeAsk { holder, reason, until_ms };
    let view = app.engine.set_freeze(&project, &environment, ask, &caller.actor()).await?;
    Ok(in_form(&headers, &view, render::freeze))
}

/// Lifts what freezes an environment now: a freeze by hand for good, a window of the project's file for this once.
#[utoipa::path(delete, path = "/v1/projects/{project}/environments/{environment}/freeze", tag = "environments",
    params(
        ("project" = String, Path, description = "Its name."), ("environment" = String, Path, description = "Its name."),
        ("reason" = Option<String>, Query, description = "Why, for those who look later.")),
    responses(
        (status = 200, description = "How it is now; also when nothing froze it.", body = FreezeView),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn lift_freeze(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((project, environment)): Path<(String, String)>,
    headers: HeaderMap,
    mut fields: Fields,
) -> Result<Response, Problem> {
    caller.project(&project)?;
    let reason = words(&mut fields, "reason");
    fields.finish()?;
    let view = app.engine.lift_freeze(&project, &environment, reason, &caller.actor()).await?;
    Ok(in_form(&headers, &view, render::freeze))
}

/// Who holds an environment: a deployment, or a person.
#[utoipa::path(get, path = "/v1/projects/{project}/environments/{environment}/lease", tag = "environments",
    params(("project" = String, Path, description = "Its name."), ("environment" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "How it is. Environments of one group share one lease.", body = LeaseView),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn lease(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((project, environment)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Fields::of_query(uri.query())?.finish()?;
    caller.project(&project)?;
    let view = app.engine.lease(&project, &environment).await?;
    Ok(in_form(&headers, &view, render::lease))
}

/// Holds an environment for a time: no deployment begins there, not even a rollback, until it is given back or the time is up. Who holds it
/// already gets the new time.
#[utoipa::path(put, path = "/v1/projects/{project}/environments/{environment}/lease", tag = "environments",
    params(("project" = String, Path, description = "Its name."), ("environment" = String, Path, description = "Its name.")),
    request_body(content((LeaseBody = "application/json"), (LeaseBody = "application/x-www-form-urlencoded"))),
    responses(
        (status = 200, description = "How it is now; it is on disk.", body = LeaseView),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`lease_held`: by whom, and what to do. `force` takes it; a deployment then begins no further host, and is `halted` if it has touched one, `failed` if not.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`bad_value`, `unknown_field`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn hold_lease(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((project, environment)): Path<(String, String)>,
    headers: HeaderMap,
    mut fields: Fields,
) -> Result<Response, Problem> {
    caller.project(&project)?;
    let until_ms = end(&app, &mut fields)?;
    let (reason, holder, force) = (words(&mut fields, "reason"), words(&mut fields, "holder"), fields.flag("force"));
    fields.finish()?;
    let now = app.clock.now().wall_ms;
    let longest = i64::try_from(LONGEST_LEASE.0.as_millis()).unwrap_or(i64::MAX);
    let until_ms = match until_ms {
        None => return Err(bad("for is missing: say how long you need the environment, as in for=2h")),
        Some(until) if until.saturating_sub(now) > longest => {
            return Err(bad("a lease is for at most 7d; ask again before it ends, or freeze the environment"));
        }
        Some(until) => until,
    };
    let ask = LeaseAsk { holder, reason, until_ms, force };
    let view = app.engine.hold_lease(&project, &environment, ask, &caller.actor()).await?;
    Ok(in_form(&headers, &view, render::lease))
}

/// Gives an environment back, so that who waits goes on.
#[utoipa::path(delete, path = "/v1/projects/{project}/environments/{environment}/lease", tag = "environments",
    params(
        ("project" = String, Path, description = "Its name."), ("environment" = String, Path, description = "Its name."),
        ("holder" = Option<String>, Query, description = "Who gives it back; whoever asks when absent."),
        ("force" = Option<bool>, Query, description = "Take it from a deployment, or from another person.")),
    responses(
        (status = 200, description = "How it is now; also when nobody held it.", body = LeaseView),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`lease_held` by somebody else.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn release_lease(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((project, environment)): Path<(String, String)>,
    headers: HeaderMap,
    mut fields: Fields,
) -> Result<Response, Problem> {
    caller.project(&project)?;
    let (holder, force) = (words(&mut fields, "holder"), fields.flag("force"));
    fields.finish()?;
    let ask = LeaseAsk { holder, force, ..LeaseAsk::default() };
    let view = app.engine.release_lease(&project, &environment, ask, &caller.actor()).await?;
    Ok(in_form(&headers, &view, render::lease))
}
