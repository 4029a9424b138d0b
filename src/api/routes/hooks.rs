//! `/hooks/{provider}/{project}`: what forges send.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use crate::{
    api::problem::Problem,
    engine::handle::{Hooked, Refusal},
};

/// The answer to a delivery.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Delivery {
    /// `accepted`, `duplicate`, `pong` or `ignored`.
    #[schema(example = "accepted")]
    pub code: String,
    /// The run, of `accepted` and `duplicate`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run: Option<String>,
    /// Why, of `ignored`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
}

/// A push from a forge. Needs no token: the signature over the body is its proof.
#[utoipa::path(post, path = "/hooks/{provider}/{project}", tag = "hooks", security(()),
    params(
        ("provider" = String, Path, description = "`github`."),
        ("project" = String, Path, description = "The project's name."),
        ("X-Hub-Signature-256" = String, Header, description = "`sha256=` and 64 hex digits."),
        ("X-GitHub-Event" = Option<String>, Header, description = "`push`, `ping`."),
        ("X-GitHub-Delivery" = Option<String>, Header, description = "The delivery's id.")),
    request_body(content = String, description = "As the forge sends it, at most 25 MiB.", content_type = "application/json"),
    responses(
        (status = 202, description = "`accepted`: it is on disk.", body = Delivery),
        (status = 200, description = "`duplicate`, `pong` or `ignored`.", body = Delivery),
        (status = 400, description = "`hook_body`.", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "`hook_signature`.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`hook_unknown`: no such project, or it has no webhook secret.", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`body_too_large`.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`rate_limited`, with `Retry-After`: too many deliveries of this client, or too many without a right signature.", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`queue_full`, `stopping`, `degraded`, `disk_full`; the forge sends it again.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn hook(
    State(app): State<App>,
    Path((provider, project)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    if provider != "github" {
        return Err(Refusal::HookUnknown.into());
    }
    // A value that is not UTF-8 becomes one that can match nothing, rather than none at all.
    let headers: Vec<(String, String)> = headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let hooked = app.engine.hook(&provider, &project, &headers, &body).await.map_err(|refusal| {
        let full = matches!(refusal, Refusal::DiskFull(_));
        let mut problem = Problem::from(refusal);
        if full {
            // What forges and the proxies before them take for "later"; 507 some take for a broken hook.
            problem.status = StatusCode::SERVICE_UNAVAILABLE.as_u16();
            problem.title = "Service Unavailable".to_owned();
        }
        problem
    })?;
    let (status, code, run, message) = match hooked {
        Hooked::Accepted(run) => (StatusCode::ACCEPTED, "accepted", Some(run.to_string()), None),
        Hooked::Duplicate(run) => (StatusCode::OK, "duplicate", Some(run.to_string()), None),
        Hooked::Pong => (StatusCode::OK, "pong", None, None),
        Hooked::Ignored(why) => (StatusCode::OK, "ignored", None, Some(why)),
    };
    Ok((status, Json(Delivery { code: code.to_owned(), run, message })).into_response())
}
