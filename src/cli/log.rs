//! `phased log`: a run's output, and what there is of it where nothing is as it was asked for.

use std::collections::BTreeSet;

use hyper::http::StatusCode;
use serde_json::Value;

use super::{
    LogArgs,
    client::{encoded, with_query},
    exit::Failure,
    output::say,
    verbs::Asking,
};
use crate::{
    api::{problem::Problem, text::one_line},
    engine::view::{Page, RunView, StageState},
    model::ids::RunId,
};

/// So many names are told, and how many more there are.
const NAMED: usize = 20;

impl Asking {
    pub(super) async fn log(&self, args: &LogArgs) -> Result<(), Failure> {
        let id = match args.target.parse::<RunId>() {
            Ok(id) => id.to_string(),
            Err(_) => self.newest_run(&args.target).await?,
        };
        let pairs = [
            ("step", args.step.clone()),
            ("host", args.host.clone()),
            ("tail", args.tail.map(|n| n.to_string())),
            ("follow", args.follow.then(|| "true".to_owned())),
        ];
        let path = format!("/v1/runs/{}", encoded(&id));
        if self.stream(&with_query(&format!("{path}/log"), &pairs)).await? || args.tail == Some(0) {
            return Ok(());
        }
        let run: RunView = self.client.get_json(&path).await?;
        say(&format!("{}\n", silent(&run, args.step.as_deref(), args.host.as_deref())?));
        Ok(())
    }

    async fn newest_run(&self, project: &str) -> Result<String, Failure> {
        let path = with_query("/v1/runs", &[("project", Some(project.to_owned())), ("limit", Some("1".to_owned()))]);
        let page: Page<RunView> = self.client.get_json(&path).await?;
        if let Some(run) = page.items.into_iter().next() {
            return Ok(run.id);
        }
        // A list of no runs does not tell whether there is such a project; this does.
        let _there_is: Value = self.client.get_json(&format!("/v1/projects/{}/status", encoded(project))).await?;
        Err(not_found(
            "run_unknown",
            format!("project {project} has had no run yet; `phased start {project}` makes one"),
        ))
    }
}

fn not_found(code: &str, detail: String) -> Failure {
    Failure::Problem(Problem::new(StatusCode::NOT_FOUND, code, detail))
}

/// What is said where nothing was printed.
///
/// # Errors
/// `host_unknown`, `step_unknown`: the run has no such thing; what it has.
fn silent(run: &RunView, step: Option<&str>, host: Option<&str>) -> Result<String, Failure> {
    let id = one_line(&run.id, 40);
    let hosts: BTreeSet<&str> = run.deployments.iter().flat_map(|of| &of.hosts).map(|host| host.id.as_str()).collect();
    if let Some(host) = host.filter(|host| !hosts.contains(host)) {
        let detail = format!("run {id} has no host {host:?}; {}", listed(&hosts));
        return Err(not_found("host_unknown", detail));
    }
    let begun = run.stages.iter().filter(|stage| !matches!(stage.state, StageState::Pending | StageState::Skipped));
    let stages = begun.map(|stage| format!("test/{}", stage.name));
    // As the key of each of its steps begins: by its number in the run.
    let number = |id: &str| id.rsplit('.').next().unwrap_or_default().to_owned();
    let deployments = run.deployments.iter().map(|of| format!("{}#{}", of.environment, number(&of.id)));
    let steps: Vec<String> = stages.chain(deployments).collect();
    let within = |step: &str, of: &str| step.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'));
    if let Some(step) = step.filter(|step| !steps.iter().any(|of| of.starts_with(step) || within(step, of))) {
        let detail = format!("run {id} has no step that begins with {step:?}; {}", listed(&steps));
        return Err(not_found("step_unknown", detail));
    }
    let of = step.map(|step| format!(" in {}", one_line(step, 200))).unwrap_or_default();
    let on = host.map(|host| format!(" on {}", one_line(host, 64))).unwrap_or_default();
    let yet = if run.state.is_end() { "" } else { " yet" };
    Ok(format!("run {id} has printed nothing{of}{on}{yet}"))
}

/// `there are a, b`, no more than people look at.
fn listed<T: AsRef<str>>(names: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>) -> String {
    let names = names.into_iter();
    let more = names.len().saturating_sub(NAMED);
    let shown: Vec<String> = names.take(NAMED).map(|name| one_line(name.as_ref(), 64)).collect();
    match more {
        _ if shown.is_empty() => "there is none yet".to_owned(),
        0 => format!("there are {}", shown.join(", ")),
        more => format!("there are {} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::render::tests::a_run;

    #[test]
    fn where_nothing_is_printed_it_says_what_there_is() {
        let said = |step, host| match silent(&a_run("deploying"), step, host) {
            Ok(said) => said,
            Err(Failure::Problem(problem)) => format!("{} {}: {}", problem.status, problem.code, problem.detail),
            Err(failure) => panic!("{failure}"),
        };
        let run = "run 01kc0000000000000000000000 has";
        for (step, host, text) in [
            (None, None, format!("{run} printed nothing yet")),
            (Some("test/u"), None, format!("{run} printed nothing in test/u yet")),
            (Some("test/unit/run/-/sh#9"), None, format!("{run} printed nothing in test/unit/run/-/sh#9 yet")),
            (Some("production#1"), Some("i-3"), format!("{run} printed nothing in production#1 on i-3 yet")),
            (None, Some("web-1"), format!("404 host_unknown: {run} no host \"web-1\"; there are i-1, i-2, i-3")),
        ] {
            assert_eq!(said(step, host), text);
        }
        // What has not begun has no steps; nor has what only begins alike.
        for step in ["test/integration", "test/unity", "production#11"] {
            let there = "there are test/build, test/unit, production#1";
            assert_eq!(
                said(Some(step), None),
                format!("404 step_unknown: {run} no step that begins with {step:?}; {there}")
            );
        }
        let many: Vec<String> = (1..=22).map(|n| format!("h{n}")).collect();
        assert!(listed(&many).ends_with(", h20 and 2 more"), "{}", listed(&many));
        assert_eq!(listed(&many[..0]), "there is none yet");
    }
}
