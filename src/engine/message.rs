//! What people are told of a run: composed once, when it ends or one of its alarms fires, and kept in the outbox until it has arrived.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{alarms, ledger, world::World};
use crate::{
    model::{
        analysis::Assessment,
        cause::Cause,
        deployment::Deployment,
        ids::{Digest, ProjectName, RunId},
        run::{Run, RunState},
        step::{CallKey, Place},
    },
    ports::{
        outputs::{Position, Stream},
        program::Loaded,
    },
};

/// A message on its way through one channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Letter {
    pub(super) project: ProjectName,
    /// What it is about, unless that is the daemon itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) run: Option<RunId>,
    /// The pinned code that has the channel.
    pub(super) code: Digest,
    /// `notify/bad/1`.
    pub(super) function: String,
    /// The plugin's name, for logs.
    pub(super) channel: String,
    /// What the plugin gets.
    pub(super) message: Value,
    /// Deliveries tried.
    pub(super) attempts: u32,
    /// When to try next, wall ms.
    pub(super) next_ms: i64,
}

/// Lines of output a message quotes.
const QUOTED_LINES: usize = 20;
/// The longest quote, bytes: chats cut longer ones anyway.
const QUOTED_BYTES: usize = 4000;

/// The longest name or line a message has, in characters: a letter fits a control record whatever people wrote.
const NAME: usize = 256;

/// The outbox entries of a run's end.
pub(super) fn outbox(world: &World, run: &Run, state: RunState, recovered: bool) -> Vec<(String, Option<Value>)> {
    let notify = &run.header.pipeline.notify;
    let event = if recovered { "recovered" } else { state_word(state) };
    let bad = state.is_bad() || recovered;
    let good = state == RunState::Succeeded;
    let channels = [("bad", bad, &notify.bad), ("good", good, &notify.good)];
    let mut puts = Vec::new();
    let mut message = None;
    for (kind, wanted, names) in channels {
        for (i, channel) in names.iter().enumerate().filter(|_| wanted) {
            let message = message.get_or_insert_with(|| compose(world, run, state, event)).clone();
            let letter = Letter {
                project: run.header.project.clone(),
                run: Some(run.header.run.clone()),
                code: run.header.code.clone(),
                function: format!("notify/{kind}/{}", i + 1),
                channel: channel.clone(),
                message,
                attempts: 0,
                next_ms: world.clock.now().wall_ms,
            };
            puts.push((format!("outbox/{}.{kind}.{}", run.header.run, i + 1), Some(json!(letter))));
        }
    }
    puts
}

/// The outbox entries for a run whose journal cannot be trusted: all that is known is that.
pub(super) fn damaged(world: &World, loaded: &Loaded, run: &RunId, cause: &Cause) -> Vec<(String, Option<Value>)> {
    let message = json!({
        "event": "damaged", "project": loaded.name, "run": run, "state": "damaged",
        "title": format!("{} damaged: run {run} is not continued", loaded.name), "text": cause.message,
        "cause": { "code": cause.code, "message": cause.message }, "output": "",
        "command": format!("phased status {}", loaded.name),
    });
    to_bad_channels(world, loaded, run.as_str(), Some(run), &message)
}

/// `message` to every `bad` channel of a project as it is loaded now; `name` tells its letters from others.
fn to_bad_channels(
    world: &World,
    loaded: &Loaded,
    name: &str,
    run: Option<&RunId>,
    message: &Value,
) -> Vec<(String, Option<Value>)> {
    let letter = |(i, channel): (usize, &String)| {
        let letter = Letter {
            project: loaded.name.clone(),
            run: run.cloned(),
            code: loaded.code.clone(),
            function: format!("notify/bad/{}", i + 1),
            channel: channel.clone(),
            message: message.clone(),
            attempts: 0,
            next_ms: world.clock.now().wall_ms,
        };
        (format!("outbox/{name}.bad.{}", i + 1), Some(json!(letter)))
    };
    loaded.pipeline.notify.bad.iter().enumerate().map(letter).collect()
}

/// The outbox entries for something that befell the daemon itself, called `name`: to the `bad` channels of a project.
pub(super) fn of_daemon(
    world: &World,
    loaded: &Loaded,
    name: &str,
    title: &str,
    cause: &Cause,
) -> Vec<(String, Option<Value>)> {
    let message = json!({
        "event": cause.code, "project": loaded.name, "run": "", "state": "", "title": title, "text": cause.message,
        "cause": { "code": cause.code, "message": cause.message }, "output": "", "command": "phased status",
    });
    to_bad_channels(world, loaded, &format!("{name}.{}", loaded.name), None, &message)
}

/// The outbox entry of an alarm that fired during a deployment, to its own channel.
pub(super) fn of_alarm(
    now_ms: i64,
    run: &Run,
    deployment: u32,
    place: &alarms::Place<'_>,
    found: &Assessment,
) -> (String, Option<Value>) {
    let header = &run.header;
    let (alarm, environment) = (&place.alarm, place.environment);
    let release = run.release.as_ref();
    let words = ledger::cut(&found.message, ledger::LONGEST);
    let action = alarm.action.as_str();
    let message = json!({
        "event": "alarm", "project": header.project, "run": header.run, "state": state_word(run.state()),
        "title": format!("{} alarm in {environment}: {}", header.project, ledger::cut(&alarm.name, NAME)),
        "text": format!("{words}. Its action is {action}."),
        "release": release.map(|r| &r.id), "revision": release.map(|r| &r.commit.sha),
        "author": release.map(|r| ledger::cut(&r.commit.author, NAME)),
        "environment": environment, "alarm": ledger::cut(&alarm.name, NAME), "action": action,
        "cause": json!({ "code": "alarm", "message": words }), "output": "",
        "command": format!("phased status {}", header.project),
    });
    let letter = Letter {
        project: header.project.clone(),
        run: Some(header.run.clone()),
        code: place.code.clone(),
        function: format!("alarms/{environment}/{}/alert", place.number),
        channel: alarm.alert.clone(),
        message,
        attempts: 0,
        next_ms: now_ms,
    };
    (format!("outbox/{}.{deployment}.alarm.{}", header.run, place.number), Some(json!(letter)))
}

/// The word of a state in JSON, logs and messages.
pub(super) fn state_word(state: RunState) -> &'static str {
    match state {
        RunState::Queued => "queued",
        RunState::Testing => "testing",
        RunState::Deploying => "deploying",
        RunState::Succeeded => "succeeded",
        RunState::Failed => "failed",
        RunState::RolledBack => "rolled_back",
        RunState::RollbackFailed => "rollback_failed",
        RunState::Halted => "halted",
        RunState::Stopped => "stopped",
        RunState::Superseded => "superseded",
        RunState::Damaged => "damaged",
    }
}

fn compose(world: &World, run: &Run, state: RunState, event: &str) -> Value {
    let header = &run.header;
    let cause = run.end.as_ref().and_then(|(_, cause, _)| cause.as_ref());
    let fact =
        |name: &str| cause.and_then(|c| c.facts.get(name)).and_then(Value::as_str).map(|text| ledger::cut(text, NAME));
    let release = run.release.as_ref();
    let subject = release.map(|r| ledger::cut(r.commit.message.lines().next().unwrap_or_default(), NAME));
    let environment = fact("environment").or_else(|| run.deployments.last().map(|d| d.environment.to_string()));
    let (stage, host) = (fact("stage"), fact("host"));
    let what = match release {
        Some(release) => format!("{} ({})", release.id, subject.as_deref().unwrap_or("no commit message")),
        None => "the commit could not be had".to_owned(),
    };
    let place = match (&stage, &environment, &host) {
        (Some(stage), ..) => format!(" in stage {stage}"),
        (None, Some(environment), Some(host)) => format!(" in {environment} on {host}"),
        (None, Some(environment), None) => format!(" in {environment}"),
        (None, None, _) => String::new(),
    };
    let title = match event {
        // All of it was tests: nothing opened the first environment.
        "recovered" | "succeeded" if environment.is_none() => format!("{} {event}: {what} has passed", header.project),
        "recovered" | "succeeded" => format!("{} {event}: {what} is live{place}", header.project),
        _ => format!("{} {}{place}: {what}", header.project, event.replace('_', " ")),
    };
    let command = format!("phased log {}", header.run);
    let words = cause.map(|c| ledger::cut(&c.message, ledger::LONGEST)).unwrap_or_default();
    let mut text = words.clone();
    if let Some(at) = fact("at") {
        text.push_str(&format!(" [{at}]"));
    }
    if let Some(closed) = super::views::closed(run) {
        text.push_str(&format!("{} is not entered by itself: {}", closed.environment, closed.command));
    }
    let touched = run.deployments.iter().any(Deployment::may_have_touched);
    if state.is_bad() && state != RunState::Damaged && !touched {
        text.push_str(" No host was touched.");
    }
    json!({
        "event": event, "project": header.project, "run": header.run, "state": state_word(state),
        "title": title, "text": text.trim(),
        "release": release.map(|r| &r.id), "revision": release.map(|r| &r.commit.sha),
        "author": release.map(|r| ledger::cut(&r.commit.author, NAME)), "subject": subject,
        "environment": environment, "stage": stage, "host": host,
        "cause": cause.map(|c| json!({ "code": c.code, "message": words })),
        "output": if state.is_bad() { output(world, run, stage.as_deref(), host.as_deref()) } else { String::new() },
        "command": command, "trigger": header.request.trigger, "by": ledger::cut(&header.request.by, NAME),
        "live": environment.as_ref().and_then(|e| e.parse().ok())
            .and_then(|e| ledger::live(&*world.control, &header.project, &e)).map(|live| live.release.id),
    })
}

/// The last lines of what failed: of its stage, or of its host, or of whatever printed last.
fn output(world: &World, run: &Run, stage: Option<&str>, host: Option<&str>) -> String {
    let calls = world.outputs.calls(&run.header.run).unwrap_or_default();
    let concerns = |call: &&CallKey| match (call.place(), stage, host) {
        // What failed is what is quoted, not the cleanup after it.
        (Some(Place::Stage { stage: of, function }), Some(stage), _) => of == stage && function != "cleanup",
        (Some(Place::Host { host: of, .. }), None, Some(host)) => of.as_str() == host,
        (_, None, None) => true,
        _ => false,
    };
    let Some(call) = calls.iter().rev().find(concerns) else { return String::new() };
    tail(world, &run.header.run, call)
}

/// The last lines a call printed, standard output and error as they came.
fn tail(world: &World, run: &RunId, call: &CallKey) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let mut position = Position::default();
    while let Ok((frames, next)) = world.outputs.read(run, call, position, 1 << 20) {
        for frame in frames.into_iter().filter(|f| f.stream != Stream::Note) {
            kept.extend_from_slice(&frame.bytes);
        }
        let excess = kept.len().saturating_sub(QUOTED_BYTES);
        kept.drain(..excess);
        if next == position {
            break;
        }
        position = next;
    }
    let text = String::from_utf8_lossy(&kept);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n")
}
