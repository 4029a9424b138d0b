//! `/v1/maintenance`: nothing new begins, so that the daemon or its machine can be changed.

use std::time::Duration;

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, in_form};
use crate::{
    api::{auth::Caller, fields::Fields, problem::Problem, render},
    engine::{handle::Refusal, view::MaintenanceView},
};

/// How long a `wait` without `timeout` waits.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);
/// Longer waits are asked for again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The fields of a switch.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct MaintenanceBody {
    /// `true` = begin nothing new; `false` = go on.
    pub on: bool,
    /// Why, for those who wonder.
    pub reason: Option<String>,
}

/// Whether maintenance is on, and what still works.
#[utoipa::path(get, path = "/v1/maintenance", tag = "daemon",
    params(
        ("wait" = Option<String>, Query, description = "`parked`: until nothing is at work any more (or maintenance is off)."),
        ("timeout" = Option<String>, Query, description = "How long to wait, `5m` when absent, at most `1h`; then the answer is how it is.")),
    responses((status = 200, description = "Every run that has begun; `doing` is empty for those that are parked.", body = MaintenanceView)))]
pub(super) async fn show(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let wait = fields.parsed("wait", |text| match text {
        "parked" => Ok(()),
        _ => Err(format!("wait must be parked, not {text:?}")),
    });
    let limit = fields.parsed("timeout", |text| match text.parse::<crate::time::Span>() {
        Ok(span) if span.0 <= LONGEST_WAIT => Ok(span.0),
        Ok(_) => Err("timeout must be at most 1h; ask again after it".to_owned()),
        Err(error) => Err(error.to_string()),
    });
    fields.finish()?;
    let wait = wait.map(|()| limit.unwrap_or(DEFAULT_WAIT));
    let view = tokio::select! {
        biased;
        view = app.engine.maintenance(wait) => view,
        () = app.stopping.cancelled() => return Err(Refusal::Stopping.into()),
    };
    Ok(in_form(&headers, &view, render::maintenance))
}

/// Turns maintenance on or off. What is so already stays as it is: the first who turned it on is the one who is shown.
#[utoipa::path(post, path = "/v1/maintenance", tag = "daemon",
    request_body(content((MaintenanceBody = "application/json"), (MaintenanceBody = "application/x-www-form-urlencoded"))),
    responses(
        (status = 200, description = "How it is now; it is on disk, and holds after a restart.", body = MaintenanceView),
        (status = 422, description = "`bad_value`, `unknown_field`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn switch(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    mut fields: Fields,
) -> Result<Response, Problem> {
    let (on, reason) = (fields.switch("on"), fields.text("reason"));
    fields.finish()?;
    let Some(on) = on else {
        let detail = "on is missing: true begins nothing new, false goes on";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_value", detail));
    };
    let view = app.engine.switch_maintenance(on, reason, &caller.actor()).await?;
    Ok(in_form(&headers, &view, render::maintenance))
}
