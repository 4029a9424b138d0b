//! Steps as people read them, and the answers that a dry run assumes.

use serde_json::{Value, json};

use crate::{
    model::{
        cause::Cause,
        ids::Digest,
        pipeline::{Check, Health, Version, VersionFrom},
        release::{Artifact, Content},
        run::Run,
        step::{Outcome, Request, Verb},
    },
    time::{Span, Stamp},
};

/// The longest command that is shown whole, in characters.
const LONGEST: usize = 4000;
/// The same of a value beside it.
const LONGEST_VALUE: usize = 200;

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A value as the author wrote it; a secret is its name.
fn shown(value: &Value) -> String {
    let special = |key: &str| value.get(key).filter(|_| value.as_object().is_some_and(|map| map.len() == 1));
    if let Some(name) = special("$secret").and_then(Value::as_str) {
        return format!("(secret {name})");
    }
    if special("$b64").is_some() {
        return "(bytes)".to_owned();
    }
    if let Some(artifact) = special("$artifact") {
        return format!("artifact {}", artifact.get("name").and_then(Value::as_str).unwrap_or("?"));
    }
    match value {
        Value::String(text) => cut(text, LONGEST_VALUE),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(" "),
        other => cut(&other.to_string(), LONGEST_VALUE),
    }
}

/// One word of a shell, in quotes where it needs them.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,()$".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// What a step does, in one line where its command has only one.
pub(super) fn text(verb: Verb, args: &Value) -> String {
    let of = |key: &str| args.get(key).map(shown).unwrap_or_default();
    let whole = |key: &str| match args.get(key) {
        Some(Value::String(text)) => cut(text, LONGEST),
        Some(other) => shown(other),
        None => String::new(),
    };
    match verb {
        Verb::Sh => whole("command"),
        Verb::Exec => match args.get("argv") {
            Some(Value::Array(argv)) => argv.iter().map(|arg| word(&shown(arg))).collect::<Vec<_>>().join(" "),
            _ => String::new(),
        },
        Verb::Upload => {
            let unpacked = if args.get("unpack") == Some(&Value::Bool(true)) { ", unpacked" } else { "" };
            format!("{} to {}{unpacked}", of("from"), of("to"))
        }
        Verb::Download => format!("{} to {} of the checkout", of("from"), of("to")),
        Verb::Artifact if args.get("value").is_some() => format!("{} = {}", of("name"), of("value")),
        Verb::Artifact => format!("{} of {}", of("name"), of("path")),
        Verb::ArtifactPath => of("name"),
        Verb::Write => match args.get("content") {
            Some(content) => format!("{} with {}", of("path"), contents(content)),
            None => of("path"),
        },
        Verb::Http => {
            format!("{} {}", if args.get("method").is_some() { of("method") } else { "GET".to_owned() }, of("url"))
        }
        Verb::Wait => ["http", "tcp", "command"]
            .into_iter()
            .find(|key| args.get(*key).is_some())
            .map_or_else(String::new, |key| format!("for {key} {}", whole(key))),
        Verb::Sleep => of("duration"),
        Verb::Now => String::new(),
        Verb::Signal => "to its own daemon, and follow the run that it begins".to_owned(),
        Verb::Service => format!("sudo -n systemctl {} {}", of("action"), unit(&of("unit"))),
        Verb::Log => whole("text"),
    }
}

fn unit(name: &str) -> String {
    crate::model::health::full_unit(name)
}

/// What is in a file or on an input: a secret by name, of anything else how much.
fn contents(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{} bytes", text.len()),
        other => shown(other),
    }
}

/// What was written beside the command and changes how it runs.
pub(super) fn options(verb: Verb, args: &Value) -> Vec<String> {
    let mut options = Vec::new();
    let mut say = |key: &str, words: &dyn Fn(String) -> String| {
        options.extend(args.get(key).map(|value| words(shown(value))));
    };
    say("user", &|user| format!("as {user}"));
    say("cwd", &|dir| format!("in {dir}"));
    say("shell", &|shell| format!("by {shell}"));
    say("mode", &|mode| format!("mode {mode}"));
    say("owner", &|owner| format!("owner {owner}"));
    say("exclude", &|patterns| format!("without {patterns}"));
    say("reports", &|patterns| format!("reports {patterns}"));
    say("timeout", &|span| format!("at most {span}"));
    say("retries", &|n| format!("up to {n} more times"));
    if let Some(Value::Object(env)) = args.get("env") {
        options.extend(env.iter().map(|(name, value)| format!("env {name}={}", shown(value))));
    }
    if let Some(Value::Object(headers)) = args.get("headers") {
        options.extend(headers.iter().map(|(name, value)| format!("{name}: {}", shown(value))));
    }
    options.extend(args.get("stdin").map(|input| format!("stdin {}", contents(input))));
    options.extend(args.get("body").map(|body| format!("body {}", contents(body))));
    options.extend(args.get("json").map(|body| format!("body {}", cut(&body.to_string(), LONGEST_VALUE))));
    let command = matches!(verb, Verb::Sh | Verb::Exec | Verb::Service | Verb::Http);
    if command && args.get("check") == Some(&Value::Bool(false)) {
        options.push("a failure is returned".to_owned());
    }
    options
}

/// The looks at a host, and how long they have to be good.
pub(super) fn looks(health: &Health) -> (Vec<String>, String) {
    let look = |check: &Check| match check {
        Check::Command(text) => format!("command {}", cut(text.trim(), LONGEST)),
        Check::Version(Version { from: VersionFrom::Command(text), .. }) => {
            format!("version by {}", cut(text.trim(), LONGEST))
        }
        other => other.name(),
    };
    let span = |ms| Span(std::time::Duration::from_millis(ms));
    let good = format!("good for {} within {}", span(health.min_healthy_time_ms), span(health.healthy_deadline_ms));
    (health.checks.iter().map(look).collect(), good)
}

/// The answer to a step: an empty success, as like the real one as nothing can be.
pub(super) fn answer(run: &Run, request: &Request, now: &Stamp) -> Outcome {
    let args = &request.args;
    let empty = Digest::of(b"");
    let name = args.get("name").and_then(Value::as_str).unwrap_or_default();
    Outcome::Ok(match request.verb {
        Verb::Sh | Verb::Exec | Verb::Service => {
            let mut value = json!({ "stdout": "", "stderr": "", "code": 0, "duration_ms": 0, "truncated": false });
            if args.get("reports").is_some() {
                value["tests"] = json!({ "total": 1, "failed": 0, "skipped": 0 });
            }
            value
        }
        Verb::Upload | Verb::Write => json!({ "changed": true }),
        Verb::Download => json!({ "size": 0, "sha256": empty }),
        Verb::Http => json!({ "status": 200, "headers": {}, "body": "", "truncated": false }),
        Verb::Now => json!({ "ms": now.wall_ms, "text": now.rfc3339() }),
        Verb::ArtifactPath => json!(format!("(artifact {name})")),
        Verb::Signal => json!({ "run": run.header.run, "state": "succeeded" }),
        Verb::Sleep | Verb::Wait | Verb::Log => Value::Null,
        Verb::Artifact => {
            let content = match args.get("value").and_then(Value::as_str) {
                Some(value) => Content::Value { value: value.to_owned() },
                None => Content::Tree { sha256: empty.clone(), size: 0, blob: empty },
            };
            match name.parse() {
                Ok(name) if run.release.as_ref().is_none_or(|release| release.artifact(&name).is_none()) => {
                    json!(Artifact { name, content })
                }
                Ok(name) => {
                    let message = format!("the run has an artifact {name} already: each needs a name of its own");
                    return Outcome::failed(Cause::new("artifact_exists", message));
                }
                Err(error) => return Outcome::failed(Cause::new("bad_argument", format!("{error}"))),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_read_as_they_would_be_typed() {
        for (verb, args, said) in [
            (Verb::Sh, json!({"command": "npm ci && npm test"}), "npm ci && npm test"),
            (
                Verb::Exec,
                json!({"argv": ["bin/migrate", "--to", "it's", 3, {"$secret": "a/b"}]}),
                r"bin/migrate --to 'it'\''s' 3 '(secret a/b)'",
            ),
            (
                Verb::Upload,
                json!({"from": {"$artifact": {"name": "app"}}, "to": "/srv/shop/next", "unpack": true}),
                "artifact app to /srv/shop/next, unpacked",
            ),
            (Verb::Service, json!({"unit": "shop", "action": "restart"}), "sudo -n systemctl restart shop.service"),
            (Verb::Write, json!({"path": "/etc/shop", "content": {"$secret": "key"}}), "/etc/shop with (secret key)"),
            (Verb::Write, json!({"path": "/etc/shop", "content": "four"}), "/etc/shop with 4 bytes"),
            (Verb::Http, json!({"url": ":8080/cache", "method": "DELETE"}), "DELETE :8080/cache"),
            (Verb::Wait, json!({"tcp": ":5432"}), "for tcp :5432"),
        ] {
            assert_eq!(text(verb, &args), said);
        }
    }

    #[test]
    fn what_changes_how_it_runs_is_said_and_secrets_only_by_name() {
        let args = json!({
            "command": "x", "user": "root", "cwd": "/srv", "env": {"URL": {"$secret": "db/url"}, "PORT": 8080},
            "stdin": {"$secret": "input"}, "check": false, "timeout": "2m",
        });
        let said = [
            "as root",
            "in /srv",
            "at most 2m",
            "env URL=(secret db/url)",
            "env PORT=8080",
            "stdin (secret input)",
            "a failure is returned",
        ];
        let mut options = options(Verb::Sh, &args);
        options.sort();
        let mut wanted: Vec<String> = said.map(str::to_owned).to_vec();
        wanted.sort();
        assert_eq!(options, wanted);
    }
}
