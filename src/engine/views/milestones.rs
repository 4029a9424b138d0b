//! What the daemon's own log says of runs: each change of state that is on disk, of a run, its stages, its deployments and their hosts, with
//! the fields by which `journalctl PHASED_PROJECT=shop` finds it.

use serde::Deserialize;

use crate::model::{
    ids::{ProjectName, RunId},
    run::Run,
};

/// Says so if `json`, the document under `key`, is in another state than it was `before`. `event` is `host.healthy`.
pub(super) fn tell(run: &Run, key: &str, event: &str, json: &[u8], before: Option<&[u8]>) {
    let Some(facts) = Facts::new(json, before) else { return };
    let Some(milestone) = Milestone::of(event, &facts) else { return };
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

/// What a document says of these, as far as it does.
#[derive(Deserialize)]
struct Facts {
    state: Option<String>,
    environment: Option<String>,
    id: Option<String>,
    name: Option<String>,
    cause: Option<Why>,
}

#[derive(Deserialize)]
struct Why {
    #[serde(default)]
    message: String,
}

impl Facts {
    /// `None` where the state is what it was before.
    fn new(json: &[u8], before: Option<&[u8]>) -> Option<Self> {
        let read = |json| serde_json::from_slice::<Facts>(json).ok();
        let before = before.and_then(read);
        read(json).filter(|facts| before.is_none_or(|before| before.state != facts.state))
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
    fn of(event: &str, facts: &'a Facts) -> Option<Self> {
        let (kind, state) = event.split_once('.')?;
        let name = facts.name.as_deref();
        let (environment, host) = match kind {
            "deployment" => (facts.environment.as_deref(), None),
            "host" => (None, facts.id.as_deref()),
            _ => (None, None),
        };
        let whom = match kind {
            "run" => "the run".to_owned(),
            "stage" => format!("stage {}", name.unwrap_or_default()),
            "deployment" => format!("the deployment to {}", environment.unwrap_or_default()),
            _ => format!("{kind} {}", name.or(host).unwrap_or_default()),
        };
        let cause = facts.cause.as_ref().and_then(|cause| cause.message.lines().next());
        let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
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
    use super::*;

    #[test]
    fn a_change_of_state_is_told_once_and_bad_ones_with_their_cause() {
        let failed =
            br#"{"id":"i-1","name":"web1","state":"failed","cause":{"code":"x","message":"exit 1\nmore"},"waves":[]}"#;
        assert!(Facts::new(failed, Some(failed)).is_none());
        let facts = Facts::new(failed, Some(br#"{"state":"running","cause":null}"#)).unwrap();
        let told = Milestone::of("host.failed", &facts).unwrap();
        assert_eq!(
            (told.text.as_str(), told.host, told.weight),
            ("host web1: failed: exit 1", Some("i-1"), Weight::Bad)
        );
        let facts = Facts::new(br#"{"environment":"pro\u0064uction","state":"rolling"}"#, None).unwrap();
        let told = Milestone::of("deployment.rolling", &facts).unwrap();
        assert_eq!(
            (told.text.as_str(), told.environment),
            ("the deployment to production: rolling", Some("production"))
        );
    }
}
