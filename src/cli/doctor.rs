//! The part of `phased doctor` that only the daemon knows: asked through the API, like everything else.

use std::sync::Arc;

use super::{
    ClientArgs,
    client::{Address, Client, with_query},
    exit::Failure,
};
use crate::{
    api::render::count,
    app::doctor::Check,
    engine::view::{
        Page, RunView, Status,
        hosts::{FleetView, HostCheckView},
    },
    model::run::Trigger,
    time::SystemClock,
};

/// So many of a project's last runs tell how it hears of pushes.
const LAST_RUNS: &str = "30";

/// Asks the daemon; `expected` = one runs, as far as the disk says.
pub(crate) fn ask(args: &ClientArgs, expected: bool) -> Vec<Check> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![Check::fail("daemon", format!("it cannot be asked: {error}"), "try again")],
    };
    let address = match args.addr.parse::<Address>() {
        Ok(address) => address,
        Err(failure) => return vec![Check::fail("daemon", failure.to_string(), "mend --addr or PHASED_ADDR")],
    };
    let client = Client::new(address, std::env::var("PHASED_TOKEN").ok(), Arc::new(SystemClock::new()));
    runtime.block_on(all(&client, args, expected))
}

async fn all(client: &Client, args: &ClientArgs, expected: bool) -> Vec<Check> {
    let status: Status = match client.get_json("/v1/status").await {
        Ok(status) => status,
        Err(failure) => return vec![unanswered(&failure, args, expected)],
    };
    let mut found = daemon(&status);
    found.extend(environments(&status));
    // What a source says now, not what it said once.
    match client.get_json::<Page<FleetView>>("/v1/hosts?refresh=true").await {
        Ok(page) => found.extend(sources(&page.items)),
        Err(failure) => found.push(not_told("sources", &failure)),
    }
    match client
        .post_once("/v1/hosts/check", &serde_json::json!({}))
        .await
        .and_then(|body| super::client::read::<Page<HostCheckView>>(&body))
    {
        Ok(page) => found.extend(hosts(&page.items)),
        Err(failure) => found.push(not_told("hosts", &failure)),
    }
    for project in &status.projects {
        let pairs = [("project", Some(project.project.clone())), ("limit", Some(LAST_RUNS.to_owned()))];
        match client.get_json::<Page<RunView>>(&with_query("/v1/runs", &pairs)).await {
            Ok(page) => found.extend(pushes(&project.project, &page.items)),
            Err(failure) => found.push(not_told("pushes", &failure)),
        }
    }
    found
}

/// What the daemon does not say: to this caller, or because it cannot.
fn not_told(check: &'static str, failure: &Failure) -> Check {
    let refused = matches!(failure, Failure::Problem(problem) if matches!(problem.status, 401 | 403));
    if !refused {
        return Check::fail(
            check,
            format!("the daemon does not say how they are: {failure}"),
            "its log says what it does; then run doctor again",
        );
    }
    Check::warn(
        check,
        failure.to_string(),
        "run doctor as root or as a member of the group phased, or with a PHASED_TOKEN that may do more",
    )
}

fn unanswered(failure: &Failure, args: &ClientArgs, expected: bool) -> Check {
    match failure {
        Failure::Unreachable(_) if expected => {
            let what = format!("a daemon has the data directory and does not answer at {}", args.addr);
            Check::fail(
                "daemon",
                what,
                "is it still starting? Its log says what it does; the process of LOCK may be stuck",
            )
        }
        Failure::Unreachable(_) => {
            Check::warn("daemon", format!("none answers at {}", args.addr), "systemctl start phased, or phased serve")
        }
        Failure::Problem(problem) => Check::fail(
            "daemon",
            format!("it does not let us in: {}", problem.detail),
            "run doctor as root or as a member of the group phased",
        ),
        other => Check::fail("daemon", other.to_string(), "journalctl -u phased"),
    }
}

/// What it says of itself.
pub(super) fn daemon(status: &Status) -> Vec<Check> {
    let mut found = Vec::new();
    let ours = env!("CARGO_PKG_VERSION");
    found.push(if status.version == ours {
        Check::ok("daemon", format!("version {ours}, since {}", status.since))
    } else {
        Check::warn(
            "daemon",
            format!("version {} runs, and this is {ours}", status.version),
            "restart it: what is under way goes on",
        )
    });
    for cause in &status.trouble {
        found.push(Check::fail("daemon", format!("{} ({})", cause.message, cause.code), "see to that first"));
    }
    let maintenance = &status.maintenance;
    if maintenance.on {
        let by = maintenance.by.as_deref().unwrap_or("somebody");
        let why = maintenance.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let since = maintenance.since.as_deref().unwrap_or_default();
        found.push(Check::warn(
            "maintenance",
            format!("on since {since}, by {by}{why}; nothing begins"),
            "phased maintenance off, once it may",
        ));
    }
    found
}

/// What is wrong with projects and what rests.
pub(super) fn environments(status: &Status) -> Vec<Check> {
    let mut found = Vec::new();
    for project in &status.projects {
        let name = &project.project;
        match &project.trouble {
            Some(cause) => found.push(Check::fail(
                "source",
                format!("{name}: {} ({})", cause.message, cause.code),
                "nothing is noticed of pushes until that is mended",
            )),
            None => found.push(Check::ok("source", format!("{name}: {} branch {}", project.source, project.branch))),
        }
        for environment in &project.environments {
            let place = format!("{name} {}", environment.environment);
            if let Some(cause) = &environment.trouble {
                found.push(Check::warn(
                    "environment",
                    format!(
                        "{place}: its last deployment ended badly, and it rests as it is: {} ({})",
                        cause.message, cause.code
                    ),
                    format!("phased runs {name} says which; a deployment or phased rollback {place} ends the rest"),
                ));
            }
            for (waits, ends) in [(&environment.freeze, "phased unfreeze"), (&environment.lease, "ask the holder")] {
                if let Some(waiting) = waits {
                    let until = waiting.until.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
                    let what =
                        format!("{place}: nothing new is deployed: {} by {}{until}", waiting.code, waiting.holder);
                    // What a run holds, it gives back.
                    if waiting.code != "lease" || waiting.holder.len() < 26 {
                        found.push(Check::warn("environment", what, format!("{ends}, if it is not meant")));
                    }
                }
            }
        }
    }
    found
}

/// Whether hosts are found out.
pub(super) fn sources(fleets: &[FleetView]) -> Vec<Check> {
    let mut found = Vec::new();
    for fleet in fleets {
        let place = format!("{} {}", fleet.project, fleet.environment);
        let mut well = true;
        for source in &fleet.sources {
            if let Some(error) = &source.error {
                well = false;
                let since = source.error_since.as_deref().unwrap_or_default();
                let what = format!("{place}: {} fails since {since}: {} ({})", source.name, error.message, error.code);
                found.push(Check::fail("sources", what, format!("phased hosts {place} --refresh")));
            }
        }
        if well && fleet.hosts.is_empty() {
            found.push(Check::fail(
                "sources",
                format!("{place} has no hosts"),
                format!("phased hosts {place} says who is out, and why"),
            ));
        } else if well {
            found.push(Check::ok("sources", format!("{place}: {}", count(fleet.hosts.len(), "host"))));
        }
    }
    found
}

/// Whether hosts could be deployed to.
pub(super) fn hosts(looked: &[HostCheckView]) -> Vec<Check> {
    let mut found = Vec::new();
    for host in looked {
        let Some(cause) = &host.cause else { continue };
        let name = host.name.as_deref().unwrap_or("its hosts");
        let what = format!("{} {}: {name}: {} ({})", host.project, host.environment, cause.message, cause.code);
        let todo = match cause.code.as_str() {
            "unreachable" | "connect_timeout" => "is it up, is its address right, does a firewall let SSH through?",
            "auth_failed" => {
                "put the public half of ssh.key into its user's authorized_keys (phased init writes a script for that)"
            }
            "host_key_unknown" | "host_key_changed" => {
                "compare its key with the host's own, then mend the known_hosts file"
            }
            "not_looked_at" => "phased doctor again, once the others answer",
            "host_unsupported" => "install what is missing there",
            _ => "see the message",
        };
        found.push(Check::fail("host", what, todo));
    }
    let well = looked.iter().filter(|host| host.cause.is_none()).count();
    if well > 0 {
        found.push(Check::ok("host", format!("{well} of {} can be logged in to and can run commands (where phased was never before, it has made its directory)", count(looked.len(), "host"))));
    }
    found
}

/// Whether pushes are heard of by themselves.
pub(super) fn pushes(project: &str, runs: &[RunView]) -> Option<Check> {
    let by = |trigger| runs.iter().filter(|run| run.trigger == trigger).count();
    let (hooks, polls) = (by(Trigger::Hook), by(Trigger::Poll));
    match (hooks, polls) {
        (0, 0) => None,
        (0, polls) => Some(Check::warn(
            "webhook",
            match polls {
                1 => format!("{project}: the last push was found by asking, it came by no webhook"),
                _ => format!("{project}: the last {polls} pushes were found by asking, none came by a webhook"),
            },
            "set the webhook at the forge (phased init says how), or leave it: pushes are only noticed later",
        )),
        _ => Some(Check::ok("webhook", format!("{project}: {hooks} of the last pushes came by it"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{api::render::tests::a_run, app::doctor::State};

    fn states(checks: &[Check]) -> Vec<(&'static str, State)> {
        checks.iter().map(|check| (check.check, check.state)).collect()
    }

    /// A status with one project; `change` breaks it.
    fn status(change: impl Fn(&mut serde_json::Value)) -> Status {
        let mut status = json!({
            "version": env!("CARGO_PKG_VERSION"), "since": "2026-01-01T00:00:00Z", "trouble": [],
            "maintenance": { "on": false, "by": null, "reason": null, "since": null, "runs": [] },
            "projects": [{
                "project": "shop", "source": "https://x", "branch": "main", "running": [], "last": null, "trouble": null,
                "environments": [{ "environment": "production", "release": null, "since": null, "run": null, "lease": null, "freeze": null, "when": "push", "trouble": null }],
            }],
        });
        change(&mut status);
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn what_the_daemon_says_of_itself() {
        assert_eq!(states(&daemon(&status(|_| {}))), [("daemon", State::Ok)]);
        assert_eq!(states(&daemon(&status(|s| s["version"] = json!("0.0.1")))), [("daemon", State::Warn)]);
        let degraded = status(|s| s["trouble"] = json!([{ "code": "degraded", "message": "the disk failed" }]));
        assert_eq!(states(&daemon(&degraded)), [("daemon", State::Ok), ("daemon", State::Fail)]);
        let on = status(|s| s["maintenance"]["on"] = json!(true));
        assert_eq!(states(&daemon(&on)), [("daemon", State::Ok), ("maintenance", State::Warn)]);
    }

    #[test]
    fn what_is_wrong_with_projects_and_what_rests() {
        assert_eq!(states(&environments(&status(|_| {}))), [("source", State::Ok)]);
        let cause = json!({ "code": "git_auth", "message": "it was refused" });
        let source = status(|s| s["projects"][0]["trouble"] = cause.clone());
        assert_eq!(states(&environments(&source)), [("source", State::Fail)]);
        let broken = |what: &str, value: serde_json::Value| {
            status(|s| s["projects"][0]["environments"][0][what] = value.clone())
        };
        let freeze = json!({ "code": "freeze", "holder": "ann", "until": null });
        let lease = json!({ "code": "lease", "holder": "ann", "until": null });
        for (what, value) in [("trouble", cause.clone()), ("freeze", freeze), ("lease", lease)] {
            assert_eq!(
                states(&environments(&broken(what, value))),
                [("source", State::Ok), ("environment", State::Warn)],
                "{what}"
            );
        }
        // A deployment that is under way holds its environment, and that is as it should be.
        let runs = json!({ "code": "lease", "holder": "01kc0000000000000000000000.1", "until": null });
        assert_eq!(states(&environments(&broken("lease", runs))), [("source", State::Ok)]);
    }

    #[test]
    fn whether_hosts_are_found_and_let_us_in() {
        let fleet = |hosts: serde_json::Value, error: serde_json::Value| -> FleetView {
            let source = json!({ "name": "ec2", "hosts": 0, "asked_at": null, "took_ms": 1, "good_at": null, "error": error, "error_since": "t", "change": null, "interval": "30s" });
            serde_json::from_value(json!({ "project": "shop", "environment": "production", "hosts": hosts, "out": [], "sources": [source], "conflicts": [], "disagreements": 0 })).unwrap()
        };
        let host = json!([{ "id": "i", "name": "i", "address": "a", "port": 22, "user": null, "zone": null, "labels": {}, "sources": [], "release": null, "state": null, "why": null }]);
        let error = json!({ "code": "discovery_failed", "message": "no" });
        assert_eq!(states(&sources(&[fleet(host.clone(), json!(null))])), [("sources", State::Ok)]);
        assert_eq!(states(&sources(&[fleet(host, error)])), [("sources", State::Fail)]);
        assert_eq!(states(&sources(&[fleet(json!([]), json!(null))])), [("sources", State::Fail)]);

        let looked = |cause: serde_json::Value| -> HostCheckView {
            serde_json::from_value(json!({ "project": "shop", "environment": "production", "id": "i", "name": "web1", "address": "a", "took_ms": 3, "cause": cause })).unwrap()
        };
        assert_eq!(states(&hosts(&[looked(json!(null))])), [("host", State::Ok)]);
        for code in ["unreachable", "auth_failed", "host_key_changed", "host_unsupported", "not_looked_at", "other"] {
            let found = hosts(&[looked(json!(null)), looked(json!({ "code": code, "message": "m" }))]);
            assert_eq!(states(&found), [("host", State::Fail), ("host", State::Ok)], "{code}");
        }
    }

    #[test]
    fn a_daemon_that_does_not_say_is_a_failure_and_one_that_may_not_is_none() {
        assert_eq!(not_told("hosts", &Failure::Broken("nothing came".to_owned())).state, State::Fail);
        let problem = |status| -> Failure {
            let code = "forbidden";
            let json =
                json!({ "type": "t", "title": "t", "status": status, "detail": "d", "instance": "/", "code": code });
            Failure::Problem(serde_json::from_value(json).unwrap())
        };
        assert_eq!(not_told("hosts", &problem(403)).state, State::Warn);
        assert_eq!(not_told("hosts", &problem(503)).state, State::Fail);
    }

    #[test]
    fn whether_webhooks_come() {
        let run = |trigger: Trigger| RunView { trigger, ..a_run("succeeded") };
        assert_eq!(pushes("shop", &[run(Trigger::Api)]), None);
        assert_eq!(pushes("shop", &[run(Trigger::Poll), run(Trigger::Hook)]).unwrap().state, State::Ok);
        assert_eq!(pushes("shop", &[run(Trigger::Poll), run(Trigger::Api)]).unwrap().state, State::Warn);
    }

    #[test]
    fn a_daemon_that_does_not_answer() {
        let args = |addr: &str| ClientArgs { addr: addr.to_owned(), ca_file: None, json: false };
        let nobody = args("unix:///nowhere/phased.sock");
        assert_eq!(states(&ask(&nobody, false)), [("daemon", State::Warn)]);
        assert_eq!(states(&ask(&nobody, true)), [("daemon", State::Fail)]);
        assert_eq!(states(&ask(&args("nonsense"), false)), [("daemon", State::Fail)]);
    }
}
