//! `/v1/alerts/test`: whether bad news would arrive.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use crate::{
    api::{fields::Fields, problem::Problem},
    engine::view::{CauseView, Page},
};

/// The fields of a test.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct TestBody {
    /// Only this project's channels; all when absent.
    pub project: Option<String>,
}

/// One channel's outcome.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChannelView {
    /// Which.
    pub channel: String,
    /// Why the message did not go out; `null` when it did.
    pub cause: Option<CauseView>,
}

/// Sends a test message through every channel.
#[utoipa::path(post, path = "/v1/alerts/test", tag = "daemon",
    request_body(content((TestBody = "application/json"), (TestBody = "application/x-www-form-urlencoded"))),
    responses(
        (status = 200, description = "Every channel with its outcome.", body = Page<ChannelView>),
        (status = 404, description = "`project_unknown`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn test(State(app): State<App>, mut fields: Fields) -> Result<Json<Page<ChannelView>>, Problem> {
    let project = fields.text("project");
    fields.finish()?;
    let outcomes = app.engine.test_alerts(project.as_deref()).await?;
    let items = outcomes
        .into_iter()
        .map(|(channel, cause)| ChannelView { channel, cause: cause.as_ref().map(CauseView::from) });
    Ok(Json(Page { items: items.collect(), next_cursor: None }))
}
