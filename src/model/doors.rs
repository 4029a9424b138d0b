//! Which environments a run enters by itself, and by whose name it asks for them.

use super::{
    ids::{EnvironmentName, ProjectName},
    pipeline::{Environment, Pipeline, When},
    run::Run,
};

/// Whether `tag` matches one of `patterns`: `v*`, `release-[0-9]*`, `{a,b}`. A pattern that is none matches nothing; the loader refuses it.
#[must_use]
pub fn tagged(patterns: &[String], tag: &str) -> bool {
    patterns
        .iter()
        .filter_map(|pattern| globset::Glob::new(pattern).ok())
        .any(|glob| glob.compile_matcher().is_match(tag))
}

/// How many of the environments, from the first, a run enters by itself: one that was started for `last` goes there and no further; another
/// one stops at the first that neither a push nor its `tag` opens. No environment is skipped.
#[must_use]
pub fn reach(pipeline: &Pipeline, last: Option<&EnvironmentName>, tag: Option<&str>) -> usize {
    let environments = &pipeline.environments;
    if let Some(at) = last.and_then(|last| environments.iter().position(|e| e.name == *last)) {
        return at + 1;
    }
    let opens = |environment: &&Environment| match &environment.when {
        When::Push => true,
        When::Manual | When::Signal => false,
        When::Tag(patterns) => tag.is_some_and(|tag| tagged(patterns, tag)),
    };
    environments.iter().take_while(opens).count()
}

/// The same of a run that has begun.
#[must_use]
pub fn reach_of(run: &Run) -> usize {
    let request = &run.header.request;
    let tag = run.release.as_ref().and_then(|release| release.tag.as_deref()).or(request.tag.as_deref());
    reach(&run.header.pipeline, request.environment.as_ref(), tag)
}

/// The environment at whose door a run has ended well, because nothing opened it for it.
#[must_use]
pub fn closed(run: &Run) -> Option<&Environment> {
    let (super::run::RunState::Succeeded, ..) = run.end.as_ref()? else { return None };
    if run.header.request.environment.is_some() {
        return None;
    }
    let entered =
        |e: &Environment| run.live.contains(&e.name) || run.deployments.iter().any(|d| d.environment == e.name);
    run.header.pipeline.environments.iter().skip(reach_of(run)).find(|environment| !entered(environment))
}

/// The name of the lease that others contend for with `environment`: its group's, or its own. A group's cannot be an environment's: no name
/// holds a colon.
#[must_use]
pub fn lease(project: &ProjectName, environment: &Environment) -> String {
    match &environment.group {
        Some(group) => format!("group:{group}"),
        None => own(project, environment),
    }
}

fn own(project: &ProjectName, environment: &Environment) -> String {
    format!("{project}/{}", environment.name)
}

/// Every lease that a deployment to `environment` needs, in the order in which they are taken. The last one is the environment's own, also in a
/// group: a run whose code says another group than this one's, or none, must not be there at the same time.
#[must_use]
pub fn leases(project: &ProjectName, environment: &Environment) -> Vec<String> {
    let mut leases = vec![lease(project, environment)];
    if environment.group.is_some() {
        leases.push(own(project, environment));
    }
    leases
}

/// The same of a deployment of a run.
#[must_use]
pub fn leases_of(run: &Run, deployment: u32) -> Vec<String> {
    let environment = run.deployment(deployment).and_then(|of| run.environment(&of.environment));
    environment.map(|environment| leases(&run.header.project, environment)).unwrap_or_default()
}

/// Whether a freeze keeps the deployments of `run` away: it does unless they put something back that is known there.
#[must_use]
pub fn minds_freeze(run: &Run) -> bool {
    let request = &run.header.request;
    request.purpose.is_deploy() && !request.signal.as_ref().is_some_and(|signal| signal.back)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_tags() {
        let patterns = ["v[0-9]*".to_owned(), "release/*".to_owned()];
        for (tag, matches) in [("v1.2", true), ("vx", false), ("release/a/b", true), ("xv1", false), ("", false)] {
            assert_eq!(tagged(&patterns, tag), matches, "{tag}");
        }
        assert!(!tagged(&["[".to_owned()], "["));
    }

    fn pipeline(whens: &[When]) -> Pipeline {
        let environment = |(n, when): (usize, &When)| {
            serde_json::json!({
                "name": format!("e{n}"), "hosts": [], "ssh": {}, "rollout": serde_json::to_value(super::super::rollout::Rollout::default()).unwrap(),
                "health": null, "verify": false, "timeout_ms": 1, "when": when,
            })
        };
        let environments: Vec<_> = whens.iter().enumerate().map(environment).collect();
        serde_json::from_value(serde_json::json!({
            "source": { "git": "file:///x", "branch": "main" }, "queue": "latest", "stages": [], "environments": environments,
            "notify": { "bad": [], "good": [] },
        }))
        .unwrap()
    }

    #[test]
    fn a_run_stops_at_the_first_door_that_nothing_opens() {
        let tag = || When::Tag(vec!["v*".to_owned()]);
        let all = pipeline(&[When::Push, tag(), When::Manual, When::Push]);
        let name = |n: &str| n.parse::<EnvironmentName>().unwrap();
        assert_eq!(reach(&all, None, None), 1);
        assert_eq!(reach(&all, None, Some("x1")), 1);
        assert_eq!(reach(&all, None, Some("v1")), 2);
        assert_eq!(reach(&all, Some(&name("e0")), Some("v1")), 1);
        assert_eq!(reach(&all, Some(&name("e2")), None), 3, "naming it opens it, and those before it");
        assert_eq!(reach(&all, Some(&name("gone")), None), 1);
        assert_eq!(reach(&pipeline(&[When::Manual]), None, None), 0);
    }

    #[test]
    fn a_group_is_no_environment() {
        let mut environment = pipeline(&[When::Push]).environments.remove(0);
        let project = "group".parse().unwrap();
        assert_eq!(lease(&project, &environment), "group/e0");
        environment.group = Some("e0".to_owned());
        assert_eq!(lease(&project, &environment), "group:e0");
        assert_eq!(leases(&project, &environment), ["group:e0", "group/e0"]);
    }
}
