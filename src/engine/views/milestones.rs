//! What the daemon's own log says of runs: each change of state that is on disk, of a run, its stages, its deployments and their hosts, with
//! the fields by which `journalctl PHASED_PROJECT=shop` finds it.

use serde_json::Value;

use crate::model::{
    ids::{ProjectName, RunId},
    run::Run,
};

/// Says so if `json`, the document under `key`, is in another state than it was `before`. `event` is `host.healthy`.
pub(super) fn tell(run: &Run, key: &str, event: &str, json: &Value, before: Option<&Value>) {
    let Some(milestone) = Milestone::of(event, json, before) else { return };
    let Milestone { environment, host, text, weight } = milestone;
    let number = key.split('/').nth(3).and_then(|n| n.parse::<u32>().ok());
    // A host's document does not say where it is.
    let where_ = number.filter(|_| host.is_some()).and_then(|n| run.deployment(n)).map(|d| d.environment.as_str());
    let environment = environment.or(where_);
    let (project, run): (&ProjectName, &RunId) = (&run.header.project, &run.header.run);
    macro_rules! say {
        ($level:ident) => {
            tracing::$level!(%project, %run, environment, host, "{text}")
        };
    }
    match weight {
        Weight::Small => say!(debug),
        Weight::Usual => say!(info),
        Weight::Bad => say!(warn),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Weight {
    Small,
    Usual,
    Bad,
}

#[derive(Debug, PartialEq, Eq)]
struct Milestone<'a> {
    environment: Option<&'a str>,
    host: Option<&'a str>,
    text: String,
    weight: Weight,
}

impl<'a> Milestone<'a> {
    fn of(event: &str, json: &'a Value, before: Option<&Value>) -> Option<Self> {
        let (kind, state) = event.split_once('.')?;
        if before.is_some_and(|before| before.get("state") == json.get("state")) {
            return None;
        }
        let text = |name: &str| json.get(name).and_then(Value::as_str);
        let (environment, host) = match kind {
            "deployment" => (text("environment"), None),
            "host" => (None, text("id")),
            _ => (None, None),
        };
        let whom = match kind {
            "run" => "the run".to_owned(),
            "stage" => format!("stage {}", text("name").unwrap_or_default()),
            "deployment" => format!("the deployment to {}", environment.unwrap_or_default()),
            _ => format!("{kind} {}", text("name").or(host).unwrap_or_default()),
        };
        let cause = json.pointer("/cause/message").and_then(Value::as_str);
        let cause = cause.and_then(|cause| cause.lines().next()).map(|cause| format!(": {cause}")).unwrap_or_default();
        let weight = match state {
            // A fleet's waiting and beginning would be half of the log.
            "pending" | "running" if kind == "host" => Weight::Small,
            "pending" | "skipped" if kind == "stage" => Weight::Small,
            "failed" | "rolled_back" | "rollback_failed" | "halted" | "damaged" | "unreachable" | "quarantined"
            | "unknown" => Weight::Bad,
            _ => Weight::Usual,
        };
        Some(Milestone { environment, host, text: format!("{whom}: {}{cause}", state.replace('_', " ")), weight })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_of_state_is_told_once_and_bad_ones_with_their_cause() {
        let failed = json!({ "id": "i-1", "name": "web1", "state": "failed", "cause": { "message": "exit 1\nmore" } });
        let told = Milestone::of("host.failed", &failed, Some(&json!({ "state": "running" }))).unwrap();
        assert_eq!(
            (told.text.as_str(), told.host, told.weight),
            ("host web1: failed: exit 1", Some("i-1"), Weight::Bad)
        );
        assert_eq!(Milestone::of("host.failed", &failed, Some(&failed)), None);
        let rolling = json!({ "environment": "production", "state": "rolling" });
        let told = Milestone::of("deployment.rolling", &rolling, None).unwrap();
        assert_eq!(
            (told.text.as_str(), told.environment),
            ("the deployment to production: rolling", Some("production"))
        );
    }
}
