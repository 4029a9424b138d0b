//! Errors as `application/problem+json` (RFC 9457) with a stable `code`.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{engine::handle::Refusal, model::cause::Cause};

/// An error answer. Boxed, because every handler's `Result` has room for one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Problem(Box<Members>);

/// What a problem says.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Members {
    /// `urn:phased:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, where, and what to do next.
    pub detail: String,
    /// The path that was asked for.
    #[serde(default)]
    pub instance: String,
    /// A stable slug for machines.
    #[schema(example = "project_unknown")]
    pub code: String,
    /// The same as the answer's `X-Request-Id`, and in the daemon's log.
    #[serde(default)]
    pub request_id: String,
    /// Every field that is wrong, where fields are.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub errors: Vec<FieldError>,
    /// With `code = run_not_succeeded` and `wait_timed_out`: the run as it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run: Option<Box<crate::engine::view::RunView>>,
    #[serde(skip)]
    #[schema(ignore)]
    headers: Vec<(header::HeaderName, HeaderValue)>,
}

impl std::ops::Deref for Problem {
    type Target = Members;
    fn deref(&self) -> &Members {
        &self.0
    }
}

impl std::ops::DerefMut for Problem {
    fn deref_mut(&mut self) -> &mut Members {
        &mut self.0
    }
}

impl utoipa::PartialSchema for Problem {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        Members::schema()
    }
}

impl ToSchema for Problem {
    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>) {
        Members::schemas(schemas);
    }
}

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Where: `#/ref` in a body, `?limit` in a query.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

impl Problem {
    /// A problem of `status` with a stable `code`.
    #[must_use]
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Problem(Box::new(Members {
            kind: format!("urn:phased:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            instance: String::new(),
            code: code.to_owned(),
            request_id: String::new(),
            errors: Vec::new(),
            run: None,
            headers: Vec::new(),
        }))
    }

    /// What a cause says.
    #[must_use]
    pub fn from_cause(status: StatusCode, cause: &Cause) -> Self {
        Problem::new(status, &cause.code, cause.message.clone())
    }

    /// 400.
    #[must_use]
    pub fn bad_request(code: &str, detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// The same with one more header in the answer; a value that no header can hold is left out.
    #[must_use]
    pub fn with_header(mut self, name: header::HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    /// As an answer to the request `request_id` for `instance`.
    #[must_use]
    pub fn answer(mut self, instance: &str, request_id: &str) -> Response {
        instance.clone_into(&mut self.instance);
        request_id.clone_into(&mut self.request_id);
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        response.headers_mut().extend(self.0.headers.into_iter().map(|(name, value)| (Some(name), value)));
        response
    }
}

/// The handlers' way out: the gate takes the problem from the extensions and writes it with what only the gate knows.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        let (status, code) = match &refusal {
            Refusal::ProjectUnknown(_) => (StatusCode::NOT_FOUND, "project_unknown"),
            Refusal::RunUnknown(_) => (StatusCode::NOT_FOUND, "run_unknown"),
            Refusal::EnvironmentUnknown { .. } => (StatusCode::NOT_FOUND, "environment_unknown"),
            Refusal::TokenUnknown(_) => (StatusCode::NOT_FOUND, "token_unknown"),
            Refusal::HostKeyNone { .. } => (StatusCode::NOT_FOUND, "host_key_none"),
            Refusal::HookUnknown => (StatusCode::NOT_FOUND, "hook_unknown"),
            Refusal::HookSignature => (StatusCode::UNAUTHORIZED, "hook_signature"),
            Refusal::HookBody(_) => (StatusCode::BAD_REQUEST, "hook_body"),
            Refusal::NothingToStop(_) => (StatusCode::CONFLICT, "nothing_to_stop"),
            Refusal::Unchangeable(cause) => (StatusCode::CONFLICT, cause.code.as_str()),
            Refusal::LeaseHeld(_) => (StatusCode::CONFLICT, "lease_held"),
            Refusal::Ref(cause) | Refusal::Target(cause) => (StatusCode::UNPROCESSABLE_ENTITY, cause.code.as_str()),
            Refusal::Forge(cause) => (StatusCode::BAD_GATEWAY, cause.code.as_str()),
            Refusal::Value(_) => (StatusCode::UNPROCESSABLE_ENTITY, "bad_value"),
            Refusal::InFlight => (StatusCode::CONFLICT, "idempotency_in_flight"),
            Refusal::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_mismatch"),
            Refusal::ProjectsInvalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "projects_invalid"),
            Refusal::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            Refusal::QueueFull(_) => (StatusCode::SERVICE_UNAVAILABLE, "queue_full"),
            Refusal::DiskFull(_) => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            Refusal::Degraded(_) => (StatusCode::SERVICE_UNAVAILABLE, "degraded"),
            Refusal::Unreadable(_) => (StatusCode::SERVICE_UNAVAILABLE, "index_damaged"),
        };
        let problem = Problem::new(status, code, detail);
        match refusal {
            Refusal::Stopping => problem.with_header(header::RETRY_AFTER, "1"),
            Refusal::QueueFull(_) | Refusal::Degraded(_) | Refusal::DiskFull(_) => {
                problem.with_header(header::RETRY_AFTER, "10")
            }
            Refusal::HookSignature => problem.with_header(header::WWW_AUTHENTICATE, "Signature"),
            Refusal::InFlight => problem.with_header(header::RETRY_AFTER, "1"),
            _ => problem,
        }
    }
}

/// 429: `what` came too often from this client; `wait` says when there is room again.
#[must_use]
pub(super) fn rate_limited(what: &str, wait: std::time::Duration) -> Problem {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let detail = format!("{what}; there is room again in {seconds} s");
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
        .with_header(header::RETRY_AFTER, &seconds.to_string())
}

/// 404 for a path that is no route.
#[must_use]
pub(super) fn route_unknown(path: &str) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "route_unknown",
        format!("there is nothing at {path}; GET /openapi.json lists what there is"),
    )
}

/// 500, after a panic.
#[must_use]
pub(super) fn internal() -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "the daemon failed at this request; its log has the reason under this request_id",
    )
}
