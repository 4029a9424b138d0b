//! `/v1/hosts`: what is deployed to, who says so, and why others are out. `/v1/inventory`: the same for Prometheus.

use std::collections::BTreeMap;

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, in_form};
use crate::{
    api::{auth::Caller, fields::Fields, problem::Problem, render},
    engine::view::{
        Page,
        hosts::{FleetView, FoundHost, HostCheckView},
    },
};

/// Where a host's metrics are when nothing else is said: the port of the node exporter.
const METRICS_PORT: u16 = 9100;

async fn fleets(
    app: &App,
    caller: &Caller,
    project: Option<&str>,
    environment: Option<&str>,
    refresh: bool,
) -> Result<Vec<FleetView>, Problem> {
    if let Some(project) = project {
        caller.project(project)?;
    }
    let visible = |project: &str| caller.sees(project);
    Ok(app.engine.hosts(project, environment, &visible, refresh).await?)
}

/// One environment's hosts, after a change of them.
fn as_it_is(app: &App, headers: &HeaderMap, fleet: &FleetView) -> Response {
    let now_ms = app.clock.now().wall_ms;
    in_form(headers, fleet, |fleet| render::hosts::fleets(std::slice::from_ref(fleet), now_ms))
}

/// The hosts of every environment as its sources found them last: what each source said, when, what changed since, and why a host is out.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts",
    params(
        ("project" = Option<String>, Query, description = "Only this project's."),
        ("environment" = Option<String>, Query, description = "Only those of environments of this name."),
        ("refresh" = Option<bool>, Query, description = "Ask every source anew before answering.")),
    responses(
        (status = 200, description = "One item for each environment; as text with `Accept: text/plain`.", body = Page<FleetView>),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let (project, environment, refresh) = (fields.text("project"), fields.text("environment"), fields.flag("refresh"));
    fields.finish()?;
    let items = fleets(&app, &caller, project.as_deref(), environment.as_deref(), refresh).await?;
    let now_ms = app.clock.now().wall_ms;
    Ok(in_form(&headers, &Page { items, next_cursor: None }, |page| render::hosts::fleets(&page.items, now_ms)))
}

/// Logs in to every host and runs nothing there, as a deployment would begin: whether it can be reached, is the host that was meant, lets the daemon in,
/// and has what commands need.
#[utoipa::path(post, path = "/v1/hosts/check", tag = "hosts",
    params(
        ("project" = Option<String>, Query, description = "Only this project's; or in the body."),
        ("environment" = Option<String>, Query, description = "Only those of environments of this name.")),
    responses(
        (status = 200, description = "One item for each host; `cause` says why it cannot be deployed to.", body = Page<HostCheckView>),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn check(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    mut fields: Fields,
) -> Result<Json<Page<HostCheckView>>, Problem> {
    let (project, environment) = (fields.text("project"), fields.text("environment"));
    fields.finish()?;
    if let Some(project) = &project {
        caller.project(project)?;
    }
    let visible = |project: &str| caller.sees(project);
    let items = app.engine.check_hosts(project.as_deref(), environment.as_deref(), &visible).await?;
    Ok(Json(Page { items, next_cursor: None }))
}

/// Asks every source of an environment and takes what it says as all there is, however much is missing: for when hosts are gone for good
/// and `max_shrink` or `min_hosts` does not believe it, or all of them are ours and `max_growth` does not.
#[utoipa::path(post, path = "/v1/projects/{project}/environments/{environment}/accept", tag = "hosts",
    params(("project" = String, Path, description = "Its name."), ("environment" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "The hosts as they are now; it is on disk.", body = FleetView),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`discovery_failed`: a source does not answer, and nothing is accepted.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn accept(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((project, environment)): Path<(String, String)>,
    headers: HeaderMap,
    fields: Fields,
) -> Result<Response, Problem> {
    caller.project(&project)?;
    fields.finish()?;
    let fleet = app.engine.accept_hosts(&project, &environment, &caller.actor()).await?;
    Ok(as_it_is(&app, &headers, &fleet))
}

/// Forgets the host key that was learnt of one host of an environment: the next one that it shows is learnt. For a host that was installed
/// anew under its old id, once its new key has been compared by another way.
#[utoipa::path(post, path = "/v1/projects/{project}/environments/{environment}/forget_key", tag = "hosts",
    params(
        ("project" = String, Path, description = "Its name."),
        ("environment" = String, Path, description = "Its name."),
        ("host" = String, Query, description = "The id, as `GET /v1/hosts` has it under `host_keys`; or in the body.")),
    responses(
        (status = 200, description = "The hosts, and the keys that are known now; it is on disk. Needs the scope `admin`.", body = FleetView),
        (status = 404, description = "`project_unknown`, `environment_unknown`, `host_key_none`: no key of that id is known.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`bad_value`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn forget_key(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((project, environment)): Path<(String, String)>,
    headers: HeaderMap,
    mut fields: Fields,
) -> Result<Response, Problem> {
    caller.project(&project)?;
    let host = fields.text("host");
    fields.finish()?;
    let host = host.ok_or_else(|| {
        Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad_value",
            "host must be the id of a host whose key was learnt",
        )
    })?;
    let fleet = app.engine.forget_host_key(&project, &environment, &host, &caller.actor()).await?;
    Ok(as_it_is(&app, &headers, &fleet))
}

/// A group of targets, as Prometheus reads it from `http_sd` and `file_sd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TargetGroup {
    /// `address:port`, here always one.
    pub targets: Vec<String>,
    /// `__meta_phased_project`, `_environment`, `_host_id`, `_host_name`, `_zone`, `_release`, `_state`, and `_label_<name>` for each label.
    pub labels: BTreeMap<String, String>,
}

/// The hosts of every environment for Prometheus: point an `http_sd_config` at it.
#[utoipa::path(get, path = "/v1/inventory", tag = "hosts",
    params(
        ("project" = Option<String>, Query, description = "Only this project's."),
        ("environment" = Option<String>, Query, description = "Only those of environments of this name."),
        ("port" = Option<u16>, Query, description = "The port of the metrics; 9100 when absent.")),
    responses(
        (status = 200, description = "One group of one target for each host of each environment.", body = Vec<TargetGroup>),
        (status = 404, description = "`project_unknown`, `environment_unknown`.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`bad_value`.", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`discovery_failed`: a source fails and has no good list yet. Prometheus keeps the targets it has.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn inventory(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Json<Vec<TargetGroup>>, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let (project, environment, port) = (fields.text("project"), fields.text("environment"), fields.text("port"));
    fields.finish()?;
    let port = match port {
        None => METRICS_PORT,
        Some(text) => text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| {
            Problem::bad_request("bad_value", format!("port must be a number from 1 to 65535, and is {text:?}"))
        })?,
    };
    let fleets = fleets(&app, &caller, project.as_deref(), environment.as_deref(), false).await?;
    // An inventory without them would say that there are none.
    for fleet in &fleets {
        let failed = fleet.sources.iter().find(|source| source.good_at.is_none() && source.error.is_some());
        if let Some((source, error)) = failed.and_then(|source| Some((source, source.error.as_ref()?))) {
            let detail = format!(
                "the hosts of {} {} are not known: discovery {} failed: {}",
                fleet.project, fleet.environment, source.name, error.message
            );
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "discovery_failed", detail));
        }
    }
    let groups = fleets.iter().flat_map(|fleet| fleet.hosts.iter().map(|host| group(fleet, host, port)));
    Ok(Json(groups.collect()))
}

fn group(fleet: &FleetView, host: &FoundHost, port: u16) -> TargetGroup {
    let address = if host.address.contains(':') { format!("[{}]", host.address) } else { host.address.clone() };
    let mut labels = BTreeMap::new();
    let mut put = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            labels.insert(format!("__meta_phased_{name}"), value.to_owned());
        }
    };
    put("project", Some(&fleet.project));
    put("environment", Some(&fleet.environment));
    put("host_id", Some(&host.id));
    put("host_name", Some(&host.name));
    put("zone", host.zone.as_deref());
    put("release", host.release.as_deref());
    put("state", host.state.map(|state| crate::api::text::word(&state)).as_deref());
    for (name, value) in &host.labels {
        // What Prometheus does not take in a label's name becomes _, as its own discoveries do it.
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        put(&format!("label_{name}"), Some(value));
    }
    TargetGroup { targets: vec![format!("{address}:{port}")], labels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_target_with_its_facts() {
        let host = FoundHost {
            id: "i-1".into(),
            name: "web 1".into(),
            address: "fd00::1".into(),
            port: 22,
            user: None,
            zone: Some("a".into()),
            labels: BTreeMap::from([("app.kubernetes/x".to_owned(), "web".to_owned())]),
            sources: vec!["ec2".into()],
            release: None,
            state: None,
            why: None,
        };
        let fleet = FleetView {
            project: "shop".into(),
            environment: "production".into(),
            hosts: vec![host],
            out: vec![],
            sources: vec![],
            conflicts: vec![],
            disagreements: 0,
            host_keys: vec![],
        };
        let group = group(&fleet, &fleet.hosts[0], 9100);
        assert_eq!(group.targets, ["[fd00::1]:9100"]);
        let labels: Vec<(&str, &str)> = group.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            labels,
            [
                ("__meta_phased_environment", "production"),
                ("__meta_phased_host_id", "i-1"),
                ("__meta_phased_host_name", "web 1"),
                ("__meta_phased_label_app_kubernetes_x", "web"),
                ("__meta_phased_project", "shop"),
                ("__meta_phased_zone", "a"),
            ]
        );
    }
}
