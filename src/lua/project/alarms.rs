//! Alarms of an environment: what their keys mean together.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;

use super::{finding, items, ms};
use crate::{
    lua::{
        check::{Finding, On, Part, quote},
        definitions::key,
        shape::join,
    },
    model::{
        analysis::{Analysis, Compare, Condition, Level, Worse},
        pipeline::{Alarm, AlarmAction},
    },
    time::Span,
};

/// The keys that only a comparison has.
const COMPARING: [&str; 2] = ["worse", "tolerance"];
/// What is tolerated when nothing else is said: no two groups of hosts are quite alike.
const TOLERANCE: u32 = 10;

#[derive(Deserialize)]
pub(super) struct RawAlarm {
    name: String,
    cause: RawProbe,
    alert: RawAlert,
    action: AlarmAction,
    success: Option<RawCondition>,
    failure: Option<RawCondition>,
    lasting: Option<Span>,
    interval: Option<Span>,
    timeout: Option<Span>,
    count: Option<u32>,
    failure_limit: Option<u32>,
    inconclusive_limit: Option<u32>,
    consecutive_error_limit: Option<u32>,
    consecutive_success_limit: Option<u32>,
    min_samples: Option<u32>,
    compare: Option<String>,
    worse: Option<Worse>,
    tolerance: Option<String>,
}

#[derive(Deserialize)]
struct RawProbe {
    #[serde(rename = "$probe")]
    name: String,
    above: Option<f64>,
    below: Option<f64>,
    lasting: Option<Span>,
}

impl RawProbe {
    /// What is bad by its own options: above the one, below the other.
    fn conditions(&self) -> (Option<Condition>, Option<Condition>) {
        let (above, below) = (self.above.map(Level), self.below.map(Level));
        match (above, below) {
            (None, None) => (None, None),
            (Some(above), Some(below)) => {
                (Some(Condition { between: Some((below, above)), ..Condition::default() }), None)
            }
            (above, below) => (None, Some(Condition { above, below, between: None })),
        }
    }
}

#[derive(Deserialize)]
struct RawAlert {
    #[serde(rename = "$alert")]
    name: String,
}

#[derive(Deserialize)]
struct RawCondition {
    above: Option<f64>,
    below: Option<f64>,
    between: Option<(f64, f64)>,
}

impl From<RawCondition> for Condition {
    fn from(raw: RawCondition) -> Self {
        Condition {
            above: raw.above.map(Level),
            below: raw.below.map(Level),
            between: raw.between.map(|(least, most)| (Level(least), Level(most))),
        }
    }
}

impl From<RawAlarm> for Alarm {
    fn from(raw: RawAlarm) -> Self {
        let usual = Analysis::default();
        let (success, failure) = match (raw.success, raw.failure) {
            (None, None) => raw.cause.conditions(),
            (success, failure) => (success.map(Into::into), failure.map(Into::into)),
        };
        let tolerance = raw.tolerance.and_then(|text| text.trim_end_matches('%').parse().ok()).unwrap_or(TOLERANCE);
        let analysis = Analysis {
            success,
            failure,
            lasting_ms: raw.lasting.or(raw.cause.lasting).map_or(usual.lasting_ms, ms),
            interval_ms: raw.interval.map_or(usual.interval_ms, ms),
            timeout_ms: raw.timeout.map_or(usual.timeout_ms, ms),
            count: raw.count,
            failure_limit: raw.failure_limit.unwrap_or(usual.failure_limit),
            inconclusive_limit: raw.inconclusive_limit.unwrap_or(usual.inconclusive_limit),
            consecutive_error_limit: raw.consecutive_error_limit.unwrap_or(usual.consecutive_error_limit),
            consecutive_success_limit: raw.consecutive_success_limit,
            min_samples: raw.min_samples.unwrap_or(usual.min_samples),
            compare: raw.compare.map(|_| Compare { worse: raw.worse.unwrap_or_default(), tolerance }),
        };
        Alarm { name: raw.name, cause: raw.cause.name, alert: raw.alert.name, action: raw.action, analysis }
    }
}

/// What is wrong with the alarms of the environment `at` beyond the shapes of their values.
pub(super) fn findings(alarms: &Json, at: &[Part], known: &[Finding], found: &mut Vec<Finding>) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, alarm) in items(alarms) {
        let mut path = at.to_vec();
        path.extend([key("alarms"), Part::Index(i)]);
        // One that has something wrong already is not judged as a whole.
        if known.iter().any(|finding| finding.path.starts_with(&path)) {
            continue;
        }
        let Some(name) = alarm["name"].as_str() else { continue };
        if let Some(first) = seen.insert(name, i) {
            let mut path = path.clone();
            path.push(Part::Index(1));
            let message = format!("the alarm {} is there twice: alarms[{first}] is called so too", quote(name));
            found.push(finding(path, message, None));
        }
        One { alarm, name, path, found }.findings();
    }
}

struct One<'a> {
    alarm: &'a Json,
    name: &'a str,
    path: Vec<Part>,
    found: &'a mut Vec<Finding>,
}

impl One<'_> {
    fn add(&mut self, keys: &[&str], on: On, message: String, help: Option<&str>) {
        let mut path = self.path.clone();
        path.extend(keys.iter().map(|name| key(name)));
        self.found.push(Finding { on, ..finding(path, message, help) });
    }

    fn has(&self, name: &str) -> bool {
        !self.alarm[name].is_null()
    }

    fn findings(mut self) {
        let name = quote(self.name);
        let probe = &self.alarm["cause"];
        let limits: Vec<String> =
            ["above", "below"].into_iter().filter(|limit| !probe[*limit].is_null()).map(str::to_owned).collect();
        let own = ["failure", "success"].into_iter().find(|own| self.has(own));
        match own {
            None if limits.is_empty() && !self.has("compare") => self.add(
                &[],
                On::Value,
                format!("the alarm {name} does not say when it fires"),
                Some("give failure = { above = ... } or success = { below = ... }, or compare = \"baseline\""),
            ),
            Some(own) if !limits.is_empty() => self.add(
                &[own],
                On::Key,
                format!("the alarm {name} says twice when it fires: its cause has {}, and it has {own}", join(&limits)),
                Some("give only one of them"),
            ),
            _ => {}
        }
        if let (Some(above), Some(below)) = (probe["above"].as_f64(), probe["below"].as_f64())
            && below > above
        {
            let message =
                format!("no value is good: the cause of the alarm {name} is bad above {above} and below {below}");
            self.add(&["cause"], On::Value, message, None);
        }
        if self.has("lasting") && !probe["lasting"].is_null() {
            let message = format!("the alarm {name} has lasting twice: its cause has it too");
            self.add(&["lasting"], On::Key, message, Some("give only one of them"));
        }
        for side in ["failure", "success"] {
            self.condition(side);
        }
        if let (Some(count), Some(samples)) = (self.alarm["count"].as_u64(), self.alarm["min_samples"].as_u64())
            && samples > count
        {
            let message =
                format!("the alarm {name} can never pass: min_samples ({samples}) is more than count ({count})");
            self.add(&["min_samples"], On::Value, message, None);
        }
        for comparing in COMPARING {
            if self.has(comparing) && !self.has("compare") {
                let message = format!("{comparing} of the alarm {name} does nothing without compare = \"baseline\"");
                self.add(&[comparing], On::Key, message, None);
            }
        }
    }

    fn condition(&mut self, side: &str) {
        let condition = self.alarm[side].clone();
        let Some(given) = condition.as_object() else { return };
        let number = |name: &str| given.get(name).and_then(Json::as_f64);
        let ends = given.get("between").and_then(Json::as_array).map(|ends| ends.iter().map(Json::as_f64).collect());
        let ends: Option<Vec<Option<f64>>> = ends;
        match (given.len(), ends.as_deref()) {
            (0, _) => self.add(&[side], On::Value, format!("{side} is empty: give above, below or between"), None),
            (_, Some([Some(least), Some(most)])) if least <= most => {}
            (_, Some(_)) => self.add(
                &[side, "between"],
                On::Value,
                format!("{side}.between must be two numbers, the smaller one first"),
                Some("as in between = { 0.9, 1.1 }"),
            ),
            _ => {}
        }
        if let (Some(above), Some(below)) = (number("above"), number("below"))
            && above >= below
        {
            let message = format!("no value is above {above} and below {below}: {side} never holds");
            self.add(
                &[side],
                On::Value,
                message,
                Some("both must hold; a range to stay out of is success = { between = ... }"),
            );
        }
    }
}
