//! `/v1/backup` and `/v1/export`: all there is, for another day and for other programs.

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};

use super::{App, streaming};
use crate::{
    api::{accept::Form, auth::Caller, fields::Fields, problem::Problem},
    engine::handle::{ExportQuery, Pieces},
    model::ids::RunId,
};

const BACKUP: &str = "application/zstd";

/// The pieces as a body: one that fails breaks off, so that nobody takes it for whole.
fn body(pieces: Pieces) -> Body {
    Body::from_stream(futures_util::stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((piece.map(Bytes::from).map_err(std::io::Error::other), pieces))
    }))
}

/// Everything the daemon knows as one archive, made while it works: what was acknowledged before is in it, and it fits together. One that broke off
/// has no end, which `phased restore` sees. Checkouts, caches and the index are not in it; nor are secrets, unless that is asked for.
#[utoipa::path(get, path = "/v1/backup", tag = "daemon",
    params(("secrets" = Option<bool>, Query, description = "`true`: with the files of secrets. By the socket only.")),
    responses(
        (status = 200, description = "A tar archive, compressed by zstd.", body = Vec<u8>, content_type = "application/zstd"),
        (status = 403, description = "`secrets_by_socket_only`.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`backup_running`.", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`stopping`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn backup(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let secrets = fields.flag("secrets");
    fields.finish()?;
    if secrets && !matches!(caller, Caller::Uid(_)) {
        let detail = "a token gets no secrets: ask by the socket, on the daemon's machine";
        return Err(Problem::new(StatusCode::FORBIDDEN, "secrets_by_socket_only", detail));
    }
    let pieces = app.engine.backup(secrets, &caller.actor()).await?;
    let mut response = (StatusCode::OK, [(header::CONTENT_TYPE, BACKUP)], body(pieces)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::CONTENT_DISPOSITION,
        HeaderValue::from_static("attachment; filename=\"phased-backup.tar.zst\""),
    );
    Ok(response)
}

/// The state as lines of JSON, each an object with a `kind`: `daemon`, `project`, `environment` (what is live, known-good releases, freeze, lease),
/// `host`, `host_key`, `bad_release`, `run` and its `deployment`s, newest first. The last line has the kind `end` and counts the others: without it something is missing.
#[utoipa::path(get, path = "/v1/export", tag = "daemon",
    params(
        ("project" = Option<String>, Query, description = "Only this project's."),
        ("after" = Option<String>, Query, description = "Only runs that are newer than this one, by its id.")),
    responses(
        (status = 200, description = "Lines of JSON.", body = String, content_type = "application/x-ndjson"),
        (status = 404, description = "`project_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`bad_value`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn export(State(app): State<App>, uri: Uri) -> Result<Response, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let project = fields.text("project");
    let after = fields.parsed("after", |text| text.parse::<RunId>().map_err(|error| error.to_string()));
    fields.finish()?;
    let query = ExportQuery { project, after: after.map(|run| run.to_string()) };
    let pieces = app.engine.export(query).await?;
    Ok(streaming(Form::Lines, body(pieces)))
}
