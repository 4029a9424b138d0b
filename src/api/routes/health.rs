//! `/healthz`, `/readyz`, `/openapi.json`: for load balancers, supervisors and tools; no token needed.

use std::fmt::Write as _;

use axum::{
    Extension, Json,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

use super::App;
use crate::api::{
    accept::Form,
    auth::Caller,
    fields::Fields,
    problem::{FieldError, Problem},
};

fn ok(text: impl IntoResponse) -> Response {
    ([(header::CONTENT_TYPE, Form::Text.mime())], text).into_response()
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "daemon", security(()),
    responses((status = 200, description = "`ok`.", body = String, content_type = "text/plain")))]
pub(super) async fn healthz() -> Response {
    ok("ok\n")
}

/// Whether everything it needs is there.
#[utoipa::path(get, path = "/readyz", tag = "daemon", security(()),
    params(("verbose" = Option<bool>, Query, description = "Names every check.")),
    responses(
        (status = 200, description = "`ok`.", body = String, content_type = "text/plain"),
        (status = 503, description = "`not_ready`; `errors` names the checks that fail.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn readyz(
    State(app): State<App>,
    Extension(caller): Extension<Option<Caller>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let verbose = fields.flag("verbose");
    fields.finish()?;
    let checks = app.engine.ready();
    // Paths and addresses in the reasons are not for strangers.
    let reason = |why: &str| if caller.is_some() { why.to_owned() } else { "failing".to_owned() };
    let errors: Vec<FieldError> = checks
        .iter()
        .filter_map(|(check, why)| {
            why.as_ref().map(|why| FieldError { pointer: (*check).to_owned(), detail: reason(why) })
        })
        .collect();
    if errors.is_empty() {
        let mut text = String::new();
        if verbose {
            for (check, _) in &checks {
                let _infallible = writeln!(text, "{check}: ok");
            }
        }
        return Ok(ok(text + "ok\n"));
    }
    let names: Vec<&str> = errors.iter().map(|e| e.pointer.as_str()).collect();
    let detail = format!("not ready: {}", names.join(", "));
    let mut problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", detail);
    problem.errors = errors;
    Err(problem.with_header(header::RETRY_AFTER, "1"))
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "daemon", security(()),
    responses((status = 200, description = "OpenAPI 3.1.", body = Object)))]
pub(super) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(super::document())
}
