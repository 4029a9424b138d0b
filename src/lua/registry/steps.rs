//! The steps: methods of `run` and `host`, with all their options.

use std::{borrow::Cow, sync::Arc};

use super::Step;
use crate::lua::{
    rules,
    shape::{Kind, Receiver, Shape, Text},
};

const BOTH: &[Receiver] = &[Receiver::Run, Receiver::Host];
const HOST: &[Receiver] = &[Receiver::Host];

const RUN: &[Receiver] = &[Receiver::Run];

pub(super) const LATER: &[(Receiver, &str)] = &[];

fn text(what: &'static str, rule: crate::lua::shape::Rule) -> Kind {
    Kind::Text(Text::new(what, rule))
}

pub(super) fn env() -> Kind {
    let value = Text::new("a text", rules::value).or_secret().or_bytes().or_number();
    Kind::Map(Text::new("a variable's name", rules::variable), Arc::new(Kind::Text(value)))
}

pub(super) fn headers() -> Kind {
    let value = Text::new("one line of text", rules::line).or_secret().or_number();
    Kind::Map(Text::new("a header's name", rules::header), Arc::new(Kind::Text(value)))
}

pub(super) fn body() -> Kind {
    Kind::Text(Text::new("a text", rules::free).or_secret().or_bytes())
}

pub(super) fn methods() -> Kind {
    Kind::words(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
}

/// What every step takes.
fn common(shape: Shape, timeout: &'static str) -> Shape {
    shape
        .optional("name", text("a name", rules::line), "Shown instead of the verb and its number.")
        .with_default("timeout", Kind::Limit, timeout, "The limit of one attempt; reaching it is a failure with the code timeout.")
        .with_default("retries", Kind::Integer(0, 100), "0", "Further attempts after a failure.")
        .with_default("backoff", Kind::Duration, "\"1s\"", "The wait before the next attempt; doubles each time, at most 5m.")
        .with_default("on_unknown", Kind::Union(vec![Kind::words(&["fail", "retry"]), Kind::Function(Cow::Borrowed("fun(on: phased.Run|phased.Host, failure: table): boolean?"))]), "\"fail\"", "When nobody can tell whether it happened: fail, try again, or a function that finds out and returns true (it happened: the step succeeds without output), false (it did not: it is done again) or nothing (it fails).")
}

const COMMAND_LIMIT: &str = "\"10m\" on hosts, \"30m\" in stages";

/// What commands take besides.
fn command(shape: Shape) -> Shape {
    common(shape, COMMAND_LIMIT)
        .optional(
            "cwd",
            text("a path", rules::path),
            "The directory to run in; the checkout, or the user's home on a host.",
        )
        .optional("env", env(), "Further environment variables: the way to pass values and secrets in. Each below 128 KiB, as Linux has it; what is larger goes by stdin or write.")
        .optional("stdin", body(), "Its standard input; empty when absent.")
        .optional("user", text("a user name", rules::user), "Run it as this user, by sudo -n.")
        .with_default("check", Kind::Boolean, "true", "false: a failure is returned, not raised.")
        .only(
            Receiver::Run,
            "reports",
            text("a path pattern", rules::relative_path).or_list(),
            "JUnit reports it writes, as patterns below the checkout.",
        )
}

fn status() -> Kind {
    Kind::Integer(100, 599).or_list()
}

pub(super) fn steps() -> Vec<Step> {
    let step = |name, on, shape: Shape, returns, example| Step { name, on, shape: Arc::new(shape), returns, example };
    vec![
        step(
            "sh",
            BOTH,
            command(Shape::new("sh", "Runs text under /bin/sh -eu: the first failing line fails the step.").first("command", text("a command", rules::text), "The shell text; values go in through env, never by concatenation."))
                .with_default("shell", Kind::words(&["sh", "bash"]), "\"sh\"", "bash: run it under bash -euo pipefail."),
            "phased.Result",
            "host:sh { 'cd /srv/shop && git checkout --detach \"$PHASED_REVISION\"', timeout = \"2m\" }",
        ),
        step(
            "exec",
            BOTH,
            command(Shape::new("exec", "Runs a program with arguments, without a shell.").rest("argv", Kind::List(Arc::new(Kind::Text(Text::new("a text", rules::value).or_number())), 1), "The program and its arguments.")),
            "phased.Result",
            "run:exec { \"npm\", \"test\", timeout = \"10m\" }",
        ),
        step(
            "upload",
            HOST,
            common(Shape::new("upload", "Copies an artifact, or a file of the run's checkout, to the host; skipped when the host has these very bytes, and resumed where a cut connection left it.").first("from", Kind::Union(vec![Kind::Artifact, text("a path below the checkout", rules::relative_path)]), "The artifact, as in release.artifacts.app, or the file, relative to the run's checkout."), "\"10m\"")
                .required("to", text("an absolute path", rules::absolute_path), "Where to on the host; its directory must exist.")
                .with_default("unpack", Kind::Boolean, "false", "The artifact is a tree (or the file a tar archive): to becomes a directory with its content, in place of what was there. Without it a tree arrives as its tar archive.")
                .optional("mode", text("a mode", rules::mode), "Its mode, in octal; of an unpacked tree that of its top.")
                .optional("owner", text("user or user:group", rules::owner), "Its owner, of an unpacked tree that of all in it; needs user = \"root\".")
                .optional("user", text("a user name", rules::user), "Install it as this user, by sudo -n."),
            "{changed: boolean}",
            "host:upload { release.artifacts.app, to = \"/srv/shop/next\", unpack = true }",
        ),
        step(
            "artifact",
            RUN,
            Shape::new("artifact", "Stores a directory tree, a file or a value with the release, under a name; in test stages only. Every environment, re-run and rollback uses what the first green run has stored.")
                .first("name", text("an artifact's name", rules::artifact_name), "How it is called: release.artifacts.app.")
                .optional("path", text("a path below the checkout", rules::relative_path), "The directory or file, relative to the run's checkout. Of a tree modes and links are kept, times and owners are not; setuid is dropped, links are never followed.")
                .optional("exclude", text("a path pattern", rules::relative_path).some(), "What of the directory is left out, as patterns relative to it: \".git\", \"**/*.map\".")
                .optional("value", text("one line of text", rules::artifact_value), "The value, such as an image's digest.")
                .with_default("timeout", Kind::Limit, "\"30m\"", "The limit of one attempt; reaching it is a failure with the code timeout.")
                .with_default("retries", Kind::Integer(0, 100), "0", "Further attempts after a failure.")
                .with_default("backoff", Kind::Duration, "\"1s\"", "The wait before the next attempt; doubles each time, at most 5m.")
                .one_of(&["path", "value"]),
            "{name: string, kind: string, sha256: string?, size: integer?, value: string?}",
            "run:artifact { \"app\", path = \".\", exclude = { \".git\", \"reports\" } }",
        ),
        step(
            "artifact_path",
            RUN,
            Shape::new("artifact_path", "Brings a stored artifact into the run's checkout and returns its path: a tree is a directory there.")
                .first("name", text("an artifact's name", rules::artifact_name), "Which.")
                .with_default("timeout", Kind::Limit, COMMAND_LIMIT, "The limit of one attempt; reaching it is a failure with the code timeout."),
            "string",
            "run:exec { run:artifact_path \"app.deb\" }",
        ),
        step(
            "download",
            HOST,
            common(Shape::new("download", "Copies a file of the host into the run's checkout.").first("from", text("an absolute path", rules::absolute_path), "The file on the host."), "\"10m\"")
                .required("to", text("a path below the checkout", rules::relative_path), "Where to, relative to the run's checkout.")
                .optional("user", text("a user name", rules::user), "Read it as this user, by sudo -n."),
            "{size: integer, sha256: string}",
            "host:download { \"/var/log/shop.log\", to = \"shop.log\" }",
        ),
        step(
            "write",
            BOTH,
            common(Shape::new("write", "Writes a file by temporary file and rename.").first("path", text("an absolute path", rules::absolute_path), "The file."), "\"10m\"")
                .optional("content", body(), "What is to be in it.")
                .optional("env", env(), "What is to be in it, as lines of NAME=value that systemd and sh can read.")
                .optional("mode", text("a mode", rules::mode), "Its mode, in octal; a new file has 0644 less the umask.")
                .optional("owner", text("user or user:group", rules::owner), "Its owner; needs user = \"root\".")
                .optional("user", text("a user name", rules::user), "Write it as this user, by sudo -n.")
                .one_of(&["content", "env"]),
            "{changed: boolean}",
            "host:write { \"/etc/shop/env\", mode = \"0600\", owner = \"shop\", user = \"root\", env = { PORT = 8080 } }",
        ),
        step(
            "http",
            BOTH,
            common(Shape::new("http", "Makes one HTTP request; redirects are not followed.").first("url", text("\":8080/path\" or a URL", rules::http_target), "\":8080/path\" is the host's own loopback, asked through its SSH session; a full URL is asked from here."), "\"30s\"")
                .with_default("method", methods(), "\"GET\"", "The method.")
                .optional("headers", headers(), "Further headers.")
                .optional("body", body(), "The body as it is.")
                .optional("json", Kind::Data, "The body as data, sent as JSON.")
                .with_default("status", status(), "200 to 299", "The statuses that are no failure.")
                .with_default("check", Kind::Boolean, "true", "false: another status is returned, not raised.")
                .with_default("idempotent", Kind::Boolean, "true but for POST and PATCH", "Whether it may be sent again when nobody can tell whether it arrived."),
            "phased.Answer",
            "host:http { \":8080/cache\", method = \"DELETE\" }",
        ),
        step(
            "wait",
            BOTH,
            common(Shape::new("wait", "Asks until the answer is good or the time is up.").first_optional("http", text("\":8080/path\" or a URL", rules::http_target), "Until this answers with a good status."), "\"5m\"")
                .optional("tcp", text("\":5432\" or \"host:port\"", rules::tcp_target), "Until something listens there.")
                .optional("command", text("a command", rules::text), "Until this shell text ends with 0.")
                .with_default("status", status(), "200 to 299", "The good statuses.")
                .with_default("interval", Kind::Limit, "\"1s\"", "Between looks.")
                .one_of(&["http", "tcp", "command"]),
            "",
            "host:wait { \":8080/healthz\", timeout = \"1m\" }",
        ),
        step(
            "sleep",
            BOTH,
            Shape::new("sleep", "Waits a while; the wait survives a restart of the daemon.").first("duration", Kind::Duration, "How long.").optional("name", text("a name", rules::line), "Shown instead of the verb and its number."),
            "",
            "run:sleep \"10s\"",
        ),
        step(
            "now",
            BOTH,
            Shape::new("now", "The time, recorded: the same on replay.").optional("name", text("a name", rules::line), "Shown instead of the verb and its number."),
            "{ms: integer, text: string}",
            "local started = run:now()",
        ),
        step(
            "service",
            HOST,
            common(Shape::new("service", "Acts on a systemd unit by exactly sudo -n systemctl ACTION UNIT.service, so that one line of sudoers is enough.").first("unit", text("a unit's name", rules::unit), "The unit, without .service."), "\"10m\"")
                .required("action", Kind::words(&["restart", "start", "stop", "status"]), "What to do; given as a method: host:service(\"shop\"):restart().")
                .with_default("check", Kind::Boolean, "true", "false: a failure is returned, not raised."),
            "phased.Service",
            "host:service(\"shop\"):restart { timeout = \"1m\" }",
        ),
        step(
            "signal",
            HOST,
            common(Shape::new("signal", "Sends the release to the host's own daemon by a signed signal and follows the run that this one makes of it, until it has ended; it fails if that did not succeed. What deploy is with transport = \"signal\" when it is absent."), "\"30m\""),
            "{run: string, state: string}",
            "host:signal { timeout = \"1h\" }",
        ),
        step(
            "log",
            BOTH,
            Shape::new("log", "Adds a line to the run's log.").first("text", Kind::Text(Text::new("a text", rules::free).or_bytes().or_number()), "The line."),
            "",
            "run:log \"assets are built\"",
        ),
        step(
            "fail",
            BOTH,
            Shape::new("fail", "Ends the call as failed, with these words as its cause.").first("text", Kind::Text(Text::new("a text", rules::text).or_number()), "Why the call fails."),
            "",
            "run:fail \"the schema is not the one we expect\"",
        ),
        step(
            "parallel",
            BOTH,
            Shape::new("parallel", "Runs functions side by side, waits for all of them, then raises the first error by name.").first("branches", Kind::Map(Text::new("a name", rules::name), Arc::new(Kind::Function(Cow::Borrowed("fun()")))), "The functions by name."),
            "table<string, any>",
            "run:parallel { lint = function() run:sh \"npm run lint\" end, unit = function() run:sh \"npm test\" end }",
        ),
        step(
            "undo",
            BOTH,
            Shape::new("undo", "Leaves a function that is called should this call fail or be stopped; the newest first, and all of them, also when one fails.")
                .first("name", text("a name", rules::line), "What it undoes, for messages.")
                .first("run", Kind::Function(Cow::Borrowed("fun()")), "The function; it may take steps."),
            "",
            "host:undo(\"traffic\", function() host:sh \"lb enable\" end)",
        ),
    ]
}
