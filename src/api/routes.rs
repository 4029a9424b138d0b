//! Every route, one file per noun.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, Request},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use tokio_util::sync::CancellationToken;
use utoipa::{
    OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Certificates,
    accept::Form,
    fields::Fields,
    problem::{Problem, route_unknown},
};
use crate::{engine::handle::Engine, time::Clock};

mod alarms;
pub(crate) mod alerts;
mod backup;
mod environments;
mod events;
mod health;
mod hooks;
mod hosts;
mod log;
mod maintenance;
pub(crate) mod projects;
mod runs;
mod signals;
pub(crate) mod status;
pub(crate) mod tokens;

/// What handlers see.
#[derive(Clone)]
pub(super) struct App {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stopping: CancellationToken,
    pub(super) heartbeat: Duration,
    pub(super) tls: Option<Arc<Certificates>>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "phased",
        description = "Continuous deployment for a fleet of plain Linux servers. The Unix socket needs no token; over TCP send `Authorization: Bearer`. \
            Bodies of POST are JSON, a form or in the query. Every POST takes an `Idempotency-Key`. Errors are problem+json with a stable `code`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/")),
    security(("token" = [])),
    components(schemas(Problem))
)]
struct Document;

fn all() -> OpenApiRouter<App> {
    let mut document = Document::openapi();
    let components = document.components.get_or_insert_default();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "`phased token create` makes one. Scopes: `read`, `deploy` (also start, stop, freeze and hold), `admin`.",
        ))
        .build();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    OpenApiRouter::with_openapi(document)
        .routes(routes!(projects::list))
        .routes(routes!(projects::start))
        .routes(routes!(projects::stop))
        .routes(routes!(projects::status))
        .routes(routes!(projects::plan))
        .routes(routes!(hosts::accept))
        .routes(routes!(hosts::forget_key))
        .routes(routes!(environments::change))
        .routes(routes!(environments::freeze, environments::set_freeze, environments::lift_freeze))
        .routes(routes!(environments::lease, environments::hold_lease, environments::release_lease))
        .routes(routes!(status::status))
        .routes(routes!(status::reload))
        .routes(routes!(maintenance::show, maintenance::switch))
        .routes(routes!(runs::list))
        .routes(routes!(runs::show))
        .routes(routes!(runs::stop))
        .routes(routes!(log::log))
        .routes(routes!(events::events))
        .routes(routes!(hooks::hook))
        .routes(routes!(signals::show, signals::signal))
        .routes(routes!(signals::piece))
        .routes(routes!(backup::backup))
        .routes(routes!(backup::export))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(alerts::test))
        .routes(routes!(alarms::list))
        .routes(routes!(hosts::list))
        .routes(routes!(hosts::check))
        .routes(routes!(hosts::inventory))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::openapi))
}

/// The router behind the gate, and the document of what is in it.
pub(super) fn router(app: App) -> (axum::Router, utoipa::openapi::OpenApi) {
    let (router, document) = all().with_state(app).split_for_parts();
    // The gate has read the body within its limits by now.
    (router.fallback(unknown).layer(DefaultBodyLimit::disable()), document)
}

pub(super) fn document() -> utoipa::openapi::OpenApi {
    all().into_openapi()
}

async fn unknown(uri: Uri) -> Problem {
    route_unknown(uri.path())
}

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (uri, headers) = (request.uri().clone(), request.headers().clone());
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|e| Problem::bad_request("bad_body", format!("the body cannot be read: {e}")))?;
        Fields::read(uri.query(), &headers, &body)
    }
}

/// JSON, or what `text` makes of it for people.
fn in_form<T: serde::Serialize>(headers: &HeaderMap, value: &T, text: impl FnOnce(&T) -> String) -> Response {
    match Form::wanted(headers, &[Form::Json, Form::Text]) {
        Form::Text => ([(header::CONTENT_TYPE, Form::Text.mime())], text(value)).into_response(),
        _ => axum::Json(value).into_response(),
    }
}

/// A stream's headers: nobody on the way holds it back or keeps it.
fn streaming(form: Form, body: axum::body::Body) -> Response {
    let mut response = (StatusCode::OK, [(header::CONTENT_TYPE, form.mime())], body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    response
}
