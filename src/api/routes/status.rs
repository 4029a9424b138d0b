//! `/v1/status` and `/v1/reload`: the daemon as a whole.

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, in_form};
use crate::{
    api::{auth::Caller, fields::Fields, problem::Problem, render},
    engine::view::Status,
};

/// The answer to a reload.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// The projects there are now, by name.
    pub projects: Vec<String>,
}

/// Everything for a caller: a token for some projects sees those.
pub(super) async fn seen(app: &App, caller: &Caller) -> Result<Status, Problem> {
    let mut status = app.engine.status().await?;
    status.projects.retain(|p| caller.sees(&p.project));
    status.maintenance.runs.retain(|run| caller.sees(&run.project));
    Ok(status)
}

/// What all projects run, what is live where, and what is wrong.
#[utoipa::path(get, path = "/v1/status", tag = "daemon",
    responses((status = 200, description = "Everything now.", body = Status)))]
pub(super) async fn status(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Fields::of_query(uri.query())?.finish()?;
    let status = seen(&app, &caller).await?;
    Ok(in_form(&headers, &status, |status| render::status(status, app.clock.now().wall_ms)))
}

/// Loads the projects anew: all of them, or the old ones stay. The certificate as well, by itself.
#[utoipa::path(post, path = "/v1/reload", tag = "daemon",
    responses(
        (status = 200, description = "The projects there are now.", body = Reloaded),
        (status = 422, description = "`projects_invalid`: `detail` has every error; the old ones stay. `certificate_invalid`: the projects were loaded, and the old certificate stays.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn reload(State(app): State<App>, fields: Fields) -> Result<Response, Problem> {
    fields.finish()?;
    let certificate = match &app.tls {
        Some(tls) => tls.reload(&*app.engine, &*app.clock).await,
        None => Ok(()),
    };
    let projects: Vec<String> = app.engine.reload().await?.iter().map(ToString::to_string).collect();
    if let Err(error) = certificate {
        let detail = format!("the projects were loaded, and the old certificate stays in use: {error}");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "certificate_invalid", detail));
    }
    Ok(Json(Reloaded { projects }).into_response())
}
