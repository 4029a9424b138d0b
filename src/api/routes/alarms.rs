//! `/v1/alarms`: what is watched while deployments go on.

use axum::{Extension, Json, extract::State, http::Uri};

use super::App;
use crate::{
    api::{auth::Caller, fields::Fields, problem::Problem},
    engine::view::{AlarmView, Page},
};

/// Every alarm of every environment; with `measure` what each would find now.
#[utoipa::path(get, path = "/v1/alarms", tag = "daemon",
    params(
        ("project" = Option<String>, Query, description = "Only this project's."),
        ("measure" = Option<bool>, Query, description = "Measure each once, now, over the environment's hosts as discovery finds them.")),
    responses(
        (status = 200, description = "Every alarm, in the order of its environment.", body = Page<AlarmView>),
        (status = 404, description = "`project_unknown`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Json<Page<AlarmView>>, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let (project, measure) = (fields.text("project"), fields.flag("measure"));
    fields.finish()?;
    if let Some(project) = &project {
        caller.project(project)?;
    }
    let visible = |project: &str| caller.sees(project);
    let items = app.engine.alarms(project.as_deref(), &visible, measure).await?;
    Ok(Json(Page { items, next_cursor: None }))
}
