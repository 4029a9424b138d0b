//! One look at an alarm, and telling people of it. When alarms are looked at, and what follows from it, is the rollout's to decide.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::{
    hosts::{self, Need},
    message, plugin,
    view::{AlarmView, MeasuredView},
    world::World,
};
use crate::{
    model::{
        analysis::{Assessment, Found, Measurement, Phase},
        cause::{Cause, one_line},
        host::Host,
        ids::{Digest, EnvironmentName, ProjectName},
        pipeline::{Alarm, AlarmAction, Environment},
        run::Run,
    },
    ports::{
        control::{Commit, CommitError},
        program::Loaded,
    },
    time::Stamp,
};

/// Measurements at the same moment for one answer; each has a Lua VM.
const SIDE_BY_SIDE: usize = 8;
/// The longest message of a probe, in characters.
const LONGEST: usize = 240;

/// An alarm and where it is.
pub(super) struct Place<'a> {
    pub(super) project: &'a ProjectName,
    /// The code that has its functions.
    pub(super) code: &'a Digest,
    pub(super) environment: &'a EnvironmentName,
    /// Its place in the environment's list, from 1.
    pub(super) number: usize,
    pub(super) alarm: &'a Alarm,
}

/// Whom a measurement is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Groups<'a> {
    /// The hosts with the new release.
    pub(super) canary: &'a [Host],
    /// As many with the old one, for an alarm that compares.
    pub(super) baseline: &'a [Host],
}

impl Place<'_> {
    /// The function of its `cause` or `alert`.
    fn function(&self, part: &str) -> String {
        format!("alarms/{}/{}/{part}", self.environment, self.number)
    }

    /// Measures once, within the alarm's own time-out; both groups at the same moment. Never fails: what goes wrong is what was found.
    pub(super) async fn measure(&self, world: &World, groups: Groups<'_>, began: &Stamp) -> Measurement {
        let baseline = async {
            match self.alarm.analysis.compare {
                Some(_) if groups.baseline.is_empty() => {
                    Some(Found::NoData(Some("no host runs what was live before".to_owned())))
                }
                Some(_) => Some(self.found(world, "baseline", groups.baseline).await),
                None => None,
            }
        };
        let (found, baseline) = tokio::join!(self.found(world, "canary", groups.canary), baseline);
        Measurement { at: world.clock.now().since(began), found, baseline }
    }

    async fn found(&self, world: &World, group: &str, hosts: &[Host]) -> Found {
        let hosts: Vec<Value> = hosts
            .iter()
            .map(|host| json!({ "id": host.id, "name": host.name, "address": host.address, "labels": host.labels, "zone": host.zone }))
            .collect();
        let about = json!({
            "project": self.project, "environment": self.environment, "alarm": self.alarm.name, "group": group, "hosts": hosts,
        });
        let limit = Duration::from_millis(self.alarm.analysis.timeout_ms);
        let returned = plugin::run_within(world, self.project, self.code, &self.function("cause"), about, limit).await;
        match returned {
            Ok(value) => found(&self.alarm.cause, &value),
            Err(cause) => Found::Error(Cause {
                message: format!("the probe {} failed: {}", self.alarm.cause, cause.message),
                ..cause
            }),
        }
    }

    /// Tells people what the alarm found, through its own channel: on disk in the outbox when this returns, and delivered from there
    /// however often it takes. Once for each alarm of a deployment: again while it is under way it replaces itself.
    ///
    /// # Errors
    /// Control cannot be written.
    pub(super) async fn tell(
        &self,
        world: &World,
        run: &Run,
        deployment: u32,
        found: &Assessment,
    ) -> Result<(), CommitError> {
        let letter = message::of_alarm(world.clock.now().wall_ms, run, deployment, self, found);
        let ticket = world.control.commit(Commit::Outbox, &[], vec![letter])?;
        ticket.synced().await.map_err(|error| CommitError::Broken(error.to_string()))
    }
}

/// The first alarm that fires now on `hosts` and keeps a deployment waiting, what it measures, and when to look again. A comparison is for a
/// deployment that is under way.
pub(super) async fn firing(
    world: &World,
    (project, code): (&ProjectName, &Digest),
    environment: &Environment,
    hosts: &[Host],
    began: &Stamp,
) -> Option<(String, f64, Duration)> {
    let stops = |alarm: &Alarm| alarm.analysis.compare.is_none() && alarm.action != AlarmAction::None;
    for (alarm, number) in environment.alarms.iter().zip(1..).filter(|(alarm, _)| stops(alarm)) {
        let place = Place { project, code, environment: &environment.name, number, alarm };
        let measured = place.measure(world, Groups { canary: hosts, baseline: &[] }, began).await;
        if let Found::Value(value, _) = measured.found
            && alarm.analysis.phase(value) == Phase::Failed
        {
            return Some((alarm.name.clone(), value, Duration::from_millis(alarm.analysis.interval_ms)));
        }
    }
    None
}

/// The alarms of an environment as people see them; with `measure` each is measured now, on the hosts that are there now.
pub(super) async fn views(world: &World, loaded: &Loaded, environment: &Environment, measure: bool) -> Vec<AlarmView> {
    let hosts = match measure && !environment.alarms.is_empty() {
        true => Some(hosts::of(world, &loaded.name, &loaded.code, environment, Need::Back).await),
        false => None,
    };
    let mut looks = Vec::new();
    for (i, alarm) in environment.alarms.iter().enumerate() {
        let (number, hosts) = (i + 1, &hosts);
        looks.push(async move {
            let place =
                Place { project: &loaded.name, code: &loaded.code, environment: &environment.name, number, alarm };
            let now = match hosts {
                None => None,
                Some(Err(cause)) => Some(Found::Error(cause.clone())),
                // A comparison is for a deployment: here are no two groups.
                Some(Ok(canary)) => {
                    let groups = Groups { canary, baseline: &[] };
                    Some(place.measure(world, groups, &world.clock.now()).await.found)
                }
            };
            AlarmView {
                project: loaded.name.to_string(),
                environment: environment.name.to_string(),
                name: alarm.name.clone(),
                cause: alarm.cause.clone(),
                fires: alarm.analysis.fires(),
                alert: alarm.alert.clone(),
                action: alarm.action.as_str().to_owned(),
                interval_ms: alarm.analysis.interval_ms,
                now: now.map(|found| measured(alarm, found)),
            }
        });
    }
    futures_util::stream::iter(looks).buffered(SIDE_BY_SIDE).collect().await
}

fn measured(alarm: &Alarm, found: Found) -> MeasuredView {
    let (value, state, message) = match found {
        Found::Error(cause) => (None, "error", Some(cause.message)),
        Found::NoData(said) => (None, "no_data", said),
        Found::Value(value, said) => match alarm.analysis.phase(value) {
            Phase::Nothing => (None, "no_data", said),
            Phase::Successful => (Some(value), "good", said),
            Phase::Failed | Phase::Pending => (Some(value), "bad", said),
            Phase::Inconclusive => (Some(value), "neither", said),
        },
    };
    MeasuredView { value, state: state.to_owned(), message }
}

/// What a probe returned: a number, nothing, or `{ value = ..., message = ... }`.
fn found(probe: &str, returned: &Value) -> Found {
    let wrong = |what: &str| {
        let message = format!(
            "the probe {probe} returned {what}; it must return a number, nil, or {{ value = ..., message = ... }}"
        );
        Found::Error(Cause::new("probe_invalid", message))
    };
    match returned {
        Value::Null => Found::NoData(None),
        Value::Number(number) => Found::Value(number.as_f64().unwrap_or(f64::NAN), None),
        // Lua's empty table.
        Value::Array(items) if items.is_empty() => Found::NoData(None),
        Value::Object(fields) => {
            if let Some(other) = fields.keys().find(|key| !matches!(key.as_str(), "value" | "message")) {
                return wrong(&format!("a table with the key {other:?}"));
            }
            let message = match fields.get("message") {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) => Some(one_line(text, LONGEST)),
                Some(_) => return wrong("a message that is no text"),
            };
            match fields.get("value") {
                None | Some(Value::Null) => Found::NoData(message),
                Some(Value::Number(number)) => Found::Value(number.as_f64().unwrap_or(f64::NAN), message),
                Some(_) => wrong("a value that is no number"),
            }
        }
        Value::Bool(_) => wrong("true or false"),
        Value::String(_) => wrong("a text"),
        Value::Array(_) => wrong("a list"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::{maintenance::tests::planned, message::Letter, outbox},
        model::{
            analysis::{Analysis, Verdict},
            pipeline::AlarmAction,
        },
    };

    #[test]
    fn people_are_told_by_the_alarms_own_channel_and_by_another_when_it_is_gone() {
        let mut run = planned();
        let alarm = |name: &str| Alarm {
            name: name.to_owned(),
            cause: "prometheus".to_owned(),
            alert: "slack".to_owned(),
            action: AlarmAction::Rollback,
            analysis: Analysis::default(),
        };
        let (environment, alarms) = ("production".parse().unwrap(), [alarm("load"), alarm("error rate")]);
        let place = Place {
            project: &run.header.project,
            code: &run.header.code,
            environment: &environment,
            number: 2,
            alarm: &alarms[1],
        };
        let message = "error rate 0.031 in 3 of 5 measurements, limit 0.01".to_owned();
        let found = Assessment { verdict: Verdict::Fail, message };
        let (key, value) = message::of_alarm(7, &run, 1, &place, &found);
        assert_eq!(key, format!("outbox/{}.1.alarm.2", run.header.run));
        let letter: Letter = serde_json::from_value(value.unwrap()).unwrap();
        assert_eq!((letter.function.as_str(), letter.channel.as_str()), ("alarms/production/2/alert", "slack"));
        let text = |key: &str| letter.message[key].as_str().unwrap();
        assert_eq!(text("title"), "shop alarm in production: error rate");
        assert_eq!(text("text"), "error rate 0.031 in 3 of 5 measurements, limit 0.01. Its action is rollback.");
        assert_eq!((text("event"), text("release")), ("alarm", "a1a1a1a1a1a1"));

        // Its code is gone: the same alarm of the present code, or else the channel for bad ends.
        run.header.pipeline.notify.bad = vec!["log".to_owned()];
        let of = |function: &str, channel: &str| Some((function.to_owned(), channel.to_owned()));
        let mut pipeline = run.header.pipeline.clone();
        assert_eq!(outbox::present(&pipeline, &letter), of("notify/bad/1", "log"));
        pipeline.environments[0].alarms = vec![alarm("error rate")];
        assert_eq!(outbox::present(&pipeline, &letter), of("alarms/production/1/alert", "slack"));
        pipeline.environments[0].alarms = vec![alarm("load")];
        assert_eq!(outbox::present(&pipeline, &letter), of("notify/bad/1", "log"));
    }

    #[test]
    fn a_probe_returns_a_number_nothing_or_both_with_words() {
        for (returned, expected) in [
            (json!(null), Found::NoData(None)),
            (json!(0.031), Found::Value(0.031, None)),
            (json!(3), Found::Value(3.0, None)),
            (json!([]), Found::NoData(None)),
            (json!({"value": 1, "message": " slow\nhost "}), Found::Value(1.0, Some("slow host".to_owned()))),
            (json!({"message": "no series"}), Found::NoData(Some("no series".to_owned()))),
            (json!({"value": null}), Found::NoData(None)),
        ] {
            assert_eq!(found("p", &returned), expected, "{returned}");
        }
        for (returned, why) in [
            (json!(true), "returned true or false; it must return a number, nil"),
            (json!("5"), "a text"),
            (json!([1]), "a list"),
            (json!({"vlaue": 1}), "the key \"vlaue\""),
            (json!({"value": "5"}), "a value that is no number"),
            (json!({"value": 5, "message": 5}), "a message that is no text"),
        ] {
            let Found::Error(cause) = found("p", &returned) else { panic!("{returned}") };
            assert!(cause.code == "probe_invalid" && cause.message.contains(why), "{cause}");
        }
    }
}
