//! `sh`, `exec` and `service`.

use serde_json::json;

use super::{
    Job, reports,
    sink::LogSink,
    values::{self, Resolved},
};
use crate::{
    engine::command::{CommandSpec, Limited, Shell, Verdict, What},
    model::{
        cause::Cause,
        host::Transport,
        step::{Outcome, Verb},
    },
};

pub(super) async fn perform(job: &Job, args: &Resolved) -> Outcome {
    let timeout = job.command_timeout(args);
    let what = match job.request.verb {
        Verb::Exec => What::Exec { argv: args.list("argv") },
        Verb::Service => What::Exec { argv: service(args) },
        _ => What::Sh {
            text: args.bytes("command").unwrap_or_default(),
            shell: if args.text("shell").as_deref() == Some("bash") { Shell::Bash } else { Shell::Sh },
        },
    };
    let mut spec = CommandSpec::new(job.token.clone(), what, timeout);
    spec.env = job.place.variables.iter().map(|(k, v)| (k.clone(), v.clone().into_bytes())).collect();
    spec.env.extend(args.map("env"));
    spec.path = match &job.place.host {
        Some((_, host)) if host.transport != Transport::Local => host.ssh.path.clone(),
        _ => Some(job.world.limits.path.clone()),
    };
    spec.cwd = match (args.text("cwd"), &job.place.host, &job.place.dir) {
        (Some(cwd), Some(_), _) => Some(cwd),
        (Some(cwd), None, Some(dir)) => Some(std::path::Path::new(dir).join(cwd).to_string_lossy().into_owned()),
        (cwd, None, dir) => cwd.or_else(|| dir.clone()),
        (None, Some(_), _) => None,
    };
    spec.stdin = args.bytes("stdin");
    spec.user = args.text("user");
    spec.max_output = job.world.limits.max_output;
    spec.reconnect = job.world.limits.reconnect;
    spec.epoch = job.place.epoch.clone();

    let mut sink = LogSink::new(job);
    spec.from = sink.from();
    spec.resumed = job.may_have_begun();
    let verdict = job.session().run(&spec, &mut sink, &job.stop).await;
    let (stdout, stderr, truncated) = sink.finish().await;
    let (code, duration_ms) = match verdict {
        Verdict::Exited { code, duration_ms, .. } => (Some(code), duration_ms),
        Verdict::TimedOut { duration_ms } | Verdict::Stopped { duration_ms } => (None, duration_ms),
        _ => (None, 0),
    };
    let mut value = json!({
        "stdout": values::lua_bytes(&stdout), "stderr": values::lua_bytes(&stderr), "code": code,
        "duration_ms": duration_ms, "truncated": truncated,
    });
    let tests = match (&job.place.host, &job.place.dir, args.texts("reports")) {
        (None, Some(dir), patterns) if !patterns.is_empty() && code.is_some() => {
            match reports::read(job, dir, &patterns).await {
                Ok(tests) => Some(tests),
                Err(cause) => return Outcome::Failed { cause: job.placed(cause), value },
            }
        }
        _ => None,
    };
    if let Some(tests) = &tests {
        // Read from files: nobody has redacted them yet.
        value["tests"] = job.sessions.redactor().value(&json!(tests));
    }
    match verdict {
        Verdict::Exited { code: 0, .. } => match tests.as_ref().and_then(red) {
            None => Outcome::Ok(value),
            Some(cause) => Outcome::Failed { cause: job.placed(cause), value },
        },
        Verdict::Exited { code, limited, .. } => {
            let mut cause = exit(job, args, (code, limited), &stdout, &stderr);
            if let Some(tests) = tests.filter(|tests| tests.failed > 0) {
                cause.message = format!("{}\n{}: {}", cause.message, tests.summary(), tests.failures.join("; "));
                cause = cause
                    .with("tests", json!({ "total": tests.total, "failed": tests.failed, "skipped": tests.skipped }));
            }
            Outcome::Failed { cause, value }
        }
        verdict => job.outcome(&verdict, timeout, value),
    }
}

/// Green is never a lie: an exit code 0 over reports that say otherwise, or say nothing, is a failure.
fn red(tests: &reports::Tests) -> Option<Cause> {
    if tests.failed > 0 {
        let message =
            format!("the command ended with exit code 0, and {}: {}", tests.summary(), tests.failures.join("; "));
        return Some(Cause::new("tests_failed", message));
    }
    if let Some(first) = tests.unreadable.first() {
        return Some(Cause::new("reports", format!("a test report cannot be read: {first}")));
    }
    (tests.files == 0).then(|| {
        Cause::new("reports", "the command ended with exit code 0, and no file matches `reports`: did the tests run?")
    })
}

/// Exactly what one line of sudoers allows.
fn service(args: &Resolved) -> Vec<Vec<u8>> {
    let (unit, action) = (args.text("unit").unwrap_or_default(), args.text("action").unwrap_or_default());
    let unit = crate::model::health::full_unit(&unit);
    ["sudo", "-n", "systemctl", &action, &unit].map(|word| word.as_bytes().to_vec()).to_vec()
}

/// The line of output that most likely says why: the last one that speaks of an error, else the last one.
fn telling(text: &str) -> &str {
    const WORDS: [&str; 8] = ["error", "fail", "fatal", "denied", "not found", "cannot", "no such", "panic"];
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let speaks = |line: &&str| {
        let line = line.to_ascii_lowercase();
        WORDS.iter().any(|word| line.contains(word)) && !line.contains("fail 0") && !line.contains(" 0 fail")
    };
    lines().rfind(speaks).or_else(|| lines().next_back()).unwrap_or_default()
}

/// A command that failed: where, how, and what it said last.
fn exit(job: &Job, args: &Resolved, (code, limited): (u32, Option<Limited>), stdout: &[u8], stderr: &[u8]) -> Cause {
    let said = if stderr.iter().any(|b| !b.is_ascii_whitespace()) { stderr } else { stdout };
    let text = String::from_utf8_lossy(said);
    let last: String = telling(&text).chars().take(400).collect();
    let verdict = Verdict::Exited { code, duration_ms: 0, limited };
    let cause = verdict.cause(job.place.name(), std::time::Duration::ZERO);
    let mut cause = cause.unwrap_or_else(|| Cause::new("exit", "it failed"));
    if !last.is_empty() {
        cause.message = format!("{}: {last}", cause.message);
    }
    if job.request.verb == Verb::Service && text.contains("sudo: not found") {
        cause.code = "sudo_missing".to_owned();
        cause.message = format!("sudo is not installed on {}: install it, or log in as root", job.place.name());
    } else if job.request.verb == Verb::Service && text.contains("sudo:") {
        let command =
            service(args).iter().skip(2).map(|w| String::from_utf8_lossy(w).into_owned()).collect::<Vec<_>>().join(" ");
        let user =
            job.place.host.as_ref().and_then(|(_, host)| host.ssh.user.clone()).unwrap_or_else(|| "USER".to_owned());
        cause.code = "sudo_refused".to_owned();
        cause.message = format!(
            "{}\nAllow it on {} with this line in /etc/sudoers.d/phased: {user} ALL=(root) NOPASSWD: /usr/bin/{command}",
            cause.message,
            job.place.name(),
        );
    }
    job.placed(cause)
}
