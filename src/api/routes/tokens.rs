//! `/v1/tokens`: who may use the API over TCP.

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
    api::{auth::Caller, fields::Fields, gate::KeepInstead, problem::Problem, render},
    engine::view::{Page, TokenView},
    model::ids::ProjectName,
};

/// The fields of a new token.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct TokenBody {
    /// What people call it.
    pub name: String,
    /// `read`, `deploy`, `admin`; `read` when absent.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Projects it may be used for; all when absent.
    #[serde(default)]
    pub projects: Vec<String>,
    /// How long it works, `90d`; for ever when absent.
    pub ttl: Option<String>,
}

/// A new token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The secret, shown this once; `null` when the answer is repeated under an `Idempotency-Key`.
    #[schema(example = "phd_...")]
    pub text: Option<String>,
    /// What it is.
    #[serde(flatten)]
    pub token: TokenView,
}

/// All tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens",
    responses((status = 200, description = "All tokens.", body = Page<TokenView>)))]
pub(super) async fn list(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    Fields::of_query(uri.query())?.finish()?;
    let page = Page { items: app.engine.tokens(), next_cursor: None };
    Ok(in_form(&headers, &page, |page| render::tokens(&page.items)))
}

/// Makes a token. Its text is shown this once.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens",
    request_body(content((TokenBody = "application/json"), (TokenBody = "application/x-www-form-urlencoded"))),
    responses(
        (status = 201, description = "The token with its secret.", body = CreatedToken),
        (status = 422, description = "`bad_value`, `unknown_field`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    mut fields: Fields,
) -> Result<Response, Problem> {
    let name = fields.parsed("name", |t| {
        if t.chars().count() <= 100 { Ok(t.to_owned()) } else { Err("name is longer than 100 characters".to_owned()) }
    });
    let mut scopes = fields.list("scopes");
    let projects = fields.list("projects");
    let ttl = fields.span("ttl");
    fields.finish()?;
    let bad = |detail: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_value", detail);
    let Some(name) = name else { return Err(bad("name is missing: say who or what the token is for".to_owned())) };
    if scopes.is_empty() {
        scopes.push("read".to_owned());
    }
    if let Some(scope) = scopes.iter().find(|s| !matches!(s.as_str(), "read" | "deploy" | "admin")) {
        return Err(bad(format!(
            "{scope:?} is no scope; there are read, deploy (also start and stop) and admin (everything)"
        )));
    }
    for project in &projects {
        project.parse::<ProjectName>().map_err(|e| bad(e.to_string()))?;
    }
    let new = app.engine.create_token(&name, scopes, projects, ttl, &caller.actor()).await?;
    let location = format!("/v1/tokens/{}", new.token.id);
    let again = CreatedToken { text: None, token: new.token.clone() };
    let again = KeepInstead(serde_json::to_string(&again).unwrap_or_default());
    let created = CreatedToken { text: Some(new.text), token: new.token };
    let mut response = (StatusCode::CREATED, [(header::LOCATION, location)], Json(created)).into_response();
    response.extensions_mut().insert(again);
    Ok(response)
}

/// Makes a token useless.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens",
    params(("id" = String, Path, description = "Its id, the middle part of its text.")),
    responses(
        (status = 204, description = "It is of no use any more."),
        (status = 404, description = "`token_unknown`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn revoke(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    fields: Fields,
) -> Result<StatusCode, Problem> {
    fields.finish()?;
    app.engine.revoke_token(&id, &caller.actor()).await?;
    Ok(StatusCode::NO_CONTENT)
}
