//! `/v1/signals`: what other daemons ask for; and to whom this one listens.

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{App, in_form};
use crate::{
    api::{problem::Problem, render},
    engine::{handle::Signalled, view::signals::SignalsView},
    model::signal,
};

/// Takes a signal of another daemon. Its signature is what lets it in; the answer is signed as well, so that it is believed.
#[utoipa::path(post, path = "/v1/signals", tag = "signals",
    params(("Phased-Signature" = String, Header, description = "Fingerprint of the sender's key and the Ed25519 signature (base64) of `phased signal v1\\n` and the body.")),
    request_body(content = String, content_type = "application/json", description = "A signal: canonical JSON (RFC 8785), at most 64 KiB; see docs/signals.md."),
    responses(
        (status = 200, description = "The signed answer: how the run of a token stands, what is live, or which blobs are missing.", body = String, content_type = "application/json"),
        (status = 202, description = "On disk: a run, once for each token; the signed answer says which.", body = String, content_type = "application/json"),
        (status = 400, description = "`signal_form`.", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "`signal_signature`: not signed by a key that is accepted.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`signal_audience`, `signal_not_allowed`; signed.", body = String, content_type = "application/json"),
        (status = 404, description = "`signal_off`, or signed: `signal_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`signal_expired`, `signal_early`, `signal_replayed`, `signal_epoch`, `signal_frozen`, `signal_bad_release`, `signal_artifact`, `signal_no_run`; signed.", body = String, content_type = "application/json"),
        (status = 503, description = "`signal_paused`, `signal_not_taken`; signed.", body = String, content_type = "application/json")),
    security(()))]
pub(super) async fn signal(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    answered(app.engine.signal(&body, &text(&headers, signal::SIGNATURE), None).await)
}

/// Takes a piece of an artifact's blob, which a signal names beside it.
#[utoipa::path(post, path = "/v1/signals/pieces", tag = "signals",
    params(
        ("Phased-Signal" = String, Header, description = "The signal, base64: its order is `piece`."),
        ("Phased-Signature" = String, Header, description = "As for `/v1/signals`.")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The piece, at most 768 KiB."),
    responses(
        (status = 200, description = "The signed answer: how much of the blob is there.", body = String, content_type = "application/json"),
        (status = 401, description = "`signal_signature`.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`signal_artifact` and those of `/v1/signals`; signed.", body = String, content_type = "application/json")),
    security(()))]
pub(super) async fn piece(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let document = STANDARD.decode(text(&headers, signal::DOCUMENT)).unwrap_or_default();
    answered(app.engine.signal(&document, &text(&headers, signal::SIGNATURE), Some(&body)).await)
}

/// To whom this daemon listens, what came since it was started, and what of it was refused.
#[utoipa::path(get, path = "/v1/signals", tag = "signals",
    responses((status = 200, description = "Keys, counters, and the last refusals.", body = SignalsView)))]
pub(super) async fn show(State(app): State<App>, headers: HeaderMap) -> Response {
    in_form(&headers, &app.engine.signals(), render::signals)
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn answered(signalled: Signalled) -> Result<Response, Problem> {
    match signalled {
        Signalled::Answer { status, body, signature } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
            let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
            if let Ok(signature) = HeaderValue::from_str(&signature) {
                response.headers_mut().insert(HeaderName::from_static(signal::SIGNATURE), signature);
            }
            Ok(response)
        }
        Signalled::Nobody { status, cause } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
            Err(Problem::from_cause(status, &cause))
        }
    }
}
