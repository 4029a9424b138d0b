//! Looks at what runs: a systemd unit, a container. Both tell how often it was restarted, which the watch holds against its begin.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Probes, quoted, sight};
use crate::{
    model::{
        cause::Cause,
        health::{Fact, Incarnation, Sight},
    },
    ports::link::{Exit, Link},
};

/// A container's state may hold the output of its own health check.
const MAX_STATE: usize = 256 * 1024;

impl Probes {
    /// Needs no rights: everybody may ask systemd for a unit's properties.
    pub(super) async fn service(&self, link: &dyn Link, unit: &str) -> Result<Sight, Cause> {
        let text = format!(
            "command -v systemctl >/dev/null 2>&1 || {{ echo 'this host has no systemctl: use health.command' >&2; exit 1; }}\n\
             systemctl show -p LoadState,ActiveState,SubState,Result,NRestarts,InvocationID -- {}",
            quoted(unit)
        );
        let ended = self.run(link, &text, MAX_STATE).await?;
        if ended.exit != Exit::Code(0) {
            return Ok(sight(false, format!("it cannot be asked for: {}", ended.words())));
        }
        Ok(unit_sight(unit, &String::from_utf8_lossy(&ended.out)))
    }

    /// Docker's, or where there is none (or none by this name) podman's.
    pub(super) async fn container(&self, link: &dyn Link, name: &str) -> Result<Sight, Cause> {
        let text = format!(
            "there=\n\
             for tool in docker podman; do\n\
               command -v $tool >/dev/null 2>&1 || continue\n\
               there=yes\n\
               $tool inspect --type container --format '{{{{.RestartCount}}}} {{{{.Id}}}} {{{{json .State}}}}' {} && exit 0\n\
             done\n\
             [ -n \"$there\" ] || echo 'this host has neither docker nor podman' >&2\n\
             exit 1",
            quoted(name)
        );
        let ended = self.run(link, &text, MAX_STATE).await?;
        if ended.exit == Exit::Code(0) {
            return Ok(container_sight(&String::from_utf8_lossy(&ended.out)));
        }
        let words = ended.words();
        let help = if words.contains("permission denied") {
            "; let the user of ssh.user ask docker (group docker), or use health.command"
        } else {
            ""
        };
        Ok(sight(false, format!("it cannot be asked for: {words}{help}")))
    }
}

/// From `systemctl show`.
fn unit_sight(unit: &str, shown: &str) -> Sight {
    let of: BTreeMap<&str, &str> = shown.lines().filter_map(|line| line.split_once('=')).collect();
    let get = |name: &str| of.get(name).copied().unwrap_or_default().trim();
    match get("LoadState") {
        "loaded" => {}
        "not-found" => return sight(false, format!("this host has no unit {unit}")),
        "" => return sight(false, "systemctl show answered without a LoadState".to_owned()),
        other => return sight(false, format!("the unit is {other}")),
    }
    let restarts = match of.get("NRestarts").map(|text| text.trim().parse::<u64>()) {
        Some(Ok(restarts)) => restarts,
        // Only services are restarted.
        None if !unit.ends_with(".service") => 0,
        _ => return sight(false, "systemd of this host does not count restarts (it needs 235 or newer)".to_owned()),
    };
    let mut seen = format!("{} ({})", get("ActiveState"), get("SubState"));
    if restarts > 0 {
        seen.push_str(&format!(", NRestarts {restarts}"));
    }
    if !matches!(get("Result"), "" | "success") {
        seen.push_str(&format!(", result {}", get("Result")));
    }
    let now = Incarnation { restarts, id: get("InvocationID").to_owned() };
    Sight { good: get("ActiveState") == "active", seen, fact: Some(Fact::Process(now)) }
}

/// From `inspect`: `<restarts> <id> <state as JSON>`.
fn container_sight(shown: &str) -> Sight {
    let odd = || sight(false, "inspect answered something else than a container's state".to_owned());
    let mut words = shown.trim().splitn(3, ' ');
    let (Some(restarts), Some(id), Some(state)) = (words.next(), words.next(), words.next()) else { return odd() };
    let (Ok(restarts), Ok(state)) = (restarts.parse::<u64>(), serde_json::from_str::<Value>(state)) else {
        return odd();
    };
    let Some(status) = state["Status"].as_str() else { return odd() };
    // Docker says Health, podman said Healthcheck once.
    let health = [&state["Health"], &state["Healthcheck"]].into_iter().find_map(|health| health["Status"].as_str());
    let health = health.filter(|health| !matches!(*health, "" | "none"));
    let mut seen = status.to_owned();
    if restarts > 0 {
        seen.push_str(&format!(", restarted {restarts} times"));
    }
    if let (false, Some(code)) = (status == "running", state["ExitCode"].as_i64()) {
        seen.push_str(&format!(", exit {code}"));
    }
    if let Some(health) = health {
        seen.push_str(&format!(", its own health check says {health}"));
    }
    let good = status == "running" && health.is_none_or(|health| health == "healthy");
    let id = format!("{id} {}", state["StartedAt"].as_str().unwrap_or_default());
    Sight { good, seen, fact: Some(Fact::Process(Incarnation { restarts, id })) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(sight: &Sight) -> (u64, &str) {
        match &sight.fact {
            Some(Fact::Process(now)) => (now.restarts, &now.id),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn units_are_read_as_systemctl_shows_them() {
        let shown = |active: &str, restarts: &str, result: &str| {
            format!(
                "Result={result}\n{restarts}LoadState=loaded\nActiveState={active}\nSubState=sub\nInvocationID=4f\n"
            )
        };
        let good = unit_sight("shop.service", &shown("active", "NRestarts=0\n", "success"));
        assert_eq!((good.good, good.seen.as_str(), fact(&good)), (true, "active (sub)", (0, "4f")));
        let looping = unit_sight("shop.service", &shown("activating", "NRestarts=7\n", "exit-code"));
        assert!(!looping.good);
        assert_eq!((looping.seen.as_str(), fact(&looping).0), ("activating (sub), NRestarts 7, result exit-code", 7));
        assert!(unit_sight("shop.timer", &shown("active", "", "success")).good);
        for (text, why) in [
            (shown("active", "", "success"), "235"),
            ("LoadState=not-found\nActiveState=inactive\n".to_owned(), "no unit shop.service"),
            ("LoadState=masked\n".to_owned(), "masked"),
            ("".to_owned(), "LoadState"),
        ] {
            let sight = unit_sight("shop.service", &text);
            assert!(!sight.good && sight.fact.is_none() && sight.seen.contains(why), "{sight:?}");
        }
    }

    #[test]
    fn containers_are_read_as_docker_and_podman_inspect_them() {
        for (text, good, seen, restarts) in [
            (r#"0 ab12 {"Status":"running","Running":true,"StartedAt":"2026-01-01T00:00:00Z"}"#, true, "running", 0),
            (
                r#"0 ab12 {"Status":"running","Health":{"Status":"healthy","Log":[]}}"#,
                true,
                "running, its own health check says healthy",
                0,
            ),
            (
                r#"0 ab12 {"Status":"running","Health":{"Status":"starting"}}"#,
                false,
                "running, its own health check says starting",
                0,
            ),
            (r#"0 ab12 {"Status":"running","Healthcheck":{"Status":""}}"#, true, "running", 0),
            (r#"3 ab12 {"Status":"restarting","ExitCode":1}"#, false, "restarting, restarted 3 times, exit 1", 3),
        ] {
            let sight = container_sight(text);
            assert_eq!((sight.good, sight.seen.as_str(), fact(&sight).0), (good, seen, restarts), "{text}");
        }
        let started = |at: &str| container_sight(&format!(r#"0 ab {{"Status":"running","StartedAt":"{at}"}}"#)).fact;
        assert_ne!(started("1"), started("2"));
        for odd in ["", "0 ab12", "x ab {}", "0 ab {}", "0 ab {", "<no value> ab {}"] {
            assert!(!container_sight(odd).good && container_sight(odd).fact.is_none(), "{odd}");
        }
    }
}
