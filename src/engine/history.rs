//! What a journal holds of calls: how a call is taken up again, or undone.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::redact::Redactor;
use crate::{
    model::{
        event::{Event, Record},
        ids::{HostId, RunId},
        step::{CallKey, Place, StepKey, Target},
    },
    ports::{
        outputs::{Outputs, Position, Stream},
        program::{Opening, Past},
        secrets::Secrets,
    },
};

/// Where a step acts: on `host`, else where its call belongs.
pub(super) fn target(key: &StepKey, host: Option<&HostId>) -> Target {
    match (host, key.call().place()) {
        (Some(host), _) => Target::Host(host.clone()),
        (None, Some(Place::Host { host, .. })) => Target::Host(host),
        (None, _) => Target::Local,
    }
}

/// The host that a record of a step must name, because its key does not.
pub(super) fn unsaid(key: &StepKey, of: &Target) -> Option<HostId> {
    match of {
        Target::Host(host) if target(key, None) != *of => Some(host.clone()),
        Target::Host(_) | Target::Local => None,
    }
}

/// How each of `calls` began and what has become of it so far; of one that undoes another also what that one did.
pub(super) fn openings<'a>(
    records: impl Iterator<Item = &'a Record>,
    calls: impl Iterator<Item = &'a CallKey>,
) -> BTreeMap<CallKey, Opening> {
    let mut found: BTreeMap<CallKey, Opening> = BTreeMap::new();
    for call in calls {
        found.insert(call.clone(), Opening::default());
        if let Some(undone) = call.undone() {
            found.insert(undone, Opening::default());
        }
    }
    for record in records {
        let (call, past) = match &record.event {
            Event::Call { key, function, input } => {
                if let Some(opening) = found.get_mut(key) {
                    (opening.function, opening.input) = (function.clone(), input.clone());
                }
                continue;
            }
            Event::Begin { key, attempt: 1, args, host, .. } => {
                (key.call(), Past::Begun { key: key.clone(), target: target(key, host.as_ref()), args: args.clone() })
            }
            Event::Done { key, outcome, last: true, .. } => {
                (key.call(), Past::Done { key: key.clone(), outcome: outcome.clone() })
            }
            _ => continue,
        };
        if let Some(opening) = found.get_mut(&call) {
            opening.past.push(past);
        }
    }
    let undone: Vec<(CallKey, Vec<Past>)> =
        found.keys().filter_map(|call| Some((call.clone(), found.get(&call.undone()?)?.past.clone()))).collect();
    for (call, past) in undone {
        if let Some(opening) = found.get_mut(&call) {
            opening.undoes = past;
        }
    }
    found
}

/// Every secret that a step of `records` has used: what is printed from here on may hold it.
pub(super) fn secrets<'a>(records: impl Iterator<Item = &'a Record>, secrets: &dyn Secrets) -> Redactor {
    let mut names = BTreeSet::new();
    for record in records {
        if let Event::Begin { args, .. } = &record.event {
            named(args, &mut names);
        }
    }
    let mut redactor = Redactor::default();
    for name in names {
        // The value that was used, unless it was rotated since.
        if let Ok(secret) = secrets.get(name) {
            redactor.add(name, secret.expose());
        }
    }
    redactor
}

/// Every secret that `args` name.
fn named<'a>(args: &'a Value, names: &mut BTreeSet<&'a str>) {
    match args {
        Value::Object(map) => match map.get("$secret").and_then(Value::as_str) {
            Some(name) => drop(names.insert(name)),
            None => map.values().for_each(|value| named(value, names)),
        },
        Value::Array(items) => items.iter().for_each(|value| named(value, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The lines of the pipeline and of phased itself that the logs of `calls` have: a replay comes by them again. What cannot be read, as
/// a power loss leaves the end of a log, was not written. Blocks on the disk.
pub(super) fn lines<'a>(
    outputs: &dyn Outputs,
    run: &RunId,
    calls: impl Iterator<Item = &'a CallKey>,
) -> BTreeSet<StepKey> {
    const AT_ONCE: usize = 1024 * 1024;
    let mut lines = BTreeSet::new();
    for call in calls {
        let mut at = Position::default();
        while let Ok((frames, next)) = outputs.read(run, call, at, AT_ONCE)
            && next != at
        {
            lines.extend(frames.into_iter().filter(|frame| frame.stream == Stream::Note).map(|frame| frame.step));
            at = next;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        model::step::{Branch, Outcome},
        time::Stamp,
    };

    #[test]
    fn a_call_is_taken_up_with_its_own_records_and_an_undo_with_those_of_both() {
        let deploy = CallKey::host("production", 1, "web1", "deploy");
        let verify = CallKey::deployment("production", 1, "verify");
        let step = |call: &CallKey, n| StepKey::new(call, &Branch::top(), "sh", n);
        let begin = |call: &CallKey, n, attempt, host: Option<&str>| Event::Begin {
            key: step(call, n),
            attempt,
            token: crate::model::ids::Digest::of(b""),
            args: json!({ "command": n }),
            host: host.map(|host| host.parse().unwrap()),
            line: String::new(),
        };
        let done = |call: &CallKey, n, attempt, last| Event::Done {
            key: step(call, n),
            attempt,
            outcome: Outcome::Ok(json!(n)),
            last,
        };
        let call = |key: &CallKey| Event::Call { key: key.clone(), function: "f".into(), input: json!({ "of": key }) };
        let events = [
            call(&deploy),
            call(&verify),
            begin(&deploy, 1, 1, None),
            begin(&verify, 1, 1, Some("web1")),
            done(&deploy, 1, 1, false),
            begin(&deploy, 1, 2, None),
            done(&deploy, 1, 2, true),
            call(&deploy.undo()),
            begin(&deploy.undo(), 1, 1, None),
        ];
        let at = Stamp { wall_ms: 0, boot_ms: 0, boot: "b".into() };
        let records: Vec<Record> =
            events.into_iter().map(|event| Record { at: at.clone(), by: "c".into(), event }).collect();
        let found = openings(records.iter(), [verify.clone(), deploy.undo()].iter());
        let web1 = Target::Host("web1".parse().unwrap());
        let begun = |call: &CallKey, target: &Target| Past::Begun {
            key: step(call, 1),
            target: target.clone(),
            args: json!({ "command": 1 }),
        };
        assert_eq!(found[&verify].past, [begun(&verify, &web1)]);
        let undo = &found[&deploy.undo()];
        let past = Past::Done { key: step(&deploy, 1), outcome: Outcome::Ok(json!(1)) };
        assert_eq!(
            (&undo.past, &undo.undoes),
            (&vec![begun(&deploy.undo(), &web1)], &vec![begun(&deploy, &web1), past])
        );
        assert_eq!(undo.input, json!({ "of": deploy.undo() }));
        assert_eq!(unsaid(&step(&deploy, 1), &web1), None);
        assert_eq!(unsaid(&step(&verify, 1), &web1), Some("web1".parse().unwrap()));
    }
}
