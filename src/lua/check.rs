//! Holds a Lua value against a shape: plain JSON data when it fits, else every finding with its path.
//!
//! In the data positional values are under their names, secrets are `{"$secret": name}`, text that is not UTF-8 is
//! `{"$b64": ...}`. Functions are left out, or `true` where the caller wants to know that they are there.

mod walk;
mod words;

use mlua::{MultiValue, Table, Value as Lua};
use serde_json::Value as Json;

use walk::{Check, Entries};
pub use words::{dotted, quote, show};

use super::{
    definitions::{Artifact, Secret},
    registry,
    shape::{Field, Kind, Receiver, Shape, join, nearest},
};
use crate::model::step::Verb;

/// One step down into a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A value without key, from 1.
    Index(usize),
    /// A key.
    Key(String),
}

/// Which part of an entry a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// Its key.
    Key,
    /// Its value.
    Value,
}

/// Something wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where, from the checked value.
    pub path: Vec<Part>,
    /// Key or value.
    pub on: On,
    /// `unknown_key`, `wrong_type`, `missing_key`, `bad_value`, `not_supported`.
    pub code: &'static str,
    /// What is wrong, with the value.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// How functions appear in the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Functions {
    /// Not at all.
    Omitted,
    /// As `true`.
    Marked,
}

/// What a check brought.
#[derive(Debug)]
pub struct Checked {
    /// The data; incomplete when there are findings.
    pub data: Json,
    /// In the order of the keys.
    pub findings: Vec<Finding>,
    /// Every secret that the value names, and where.
    pub secrets: Vec<(Vec<Part>, String)>,
}

/// Holds `value` against `shape`. `what` is how messages call it: `phased.project`.
#[must_use]
pub fn table(what: &str, shape: &Shape, value: &Table, functions: Functions) -> Checked {
    let mut check = Check::new(what, functions, None);
    let entries = Entries::of(value);
    let data = check.shape(shape, &entries);
    Checked { data, findings: check.findings, secrets: check.secrets }
}

/// Holds the arguments of a call against `shape`: one table, or only values without a key.
#[must_use]
pub fn arguments(
    what: &str,
    shape: &Shape,
    args: &MultiValue,
    functions: Functions,
    receiver: Option<Receiver>,
) -> Checked {
    let mut check = Check::new(what, functions, receiver);
    // `run:parallel{...}` and `phased.json.encode{...}`: the table is the value itself.
    let bare = shape.keys.is_empty()
        && matches!(shape.positional.as_slice(), [Field { kind: Kind::Map(..) | Kind::Data | Kind::List(..), .. }]);
    let entries = match args.iter().collect::<Vec<_>>().as_slice() {
        [Lua::Table(table)] if !bare => Entries::of(table),
        values => {
            if !bare && values.iter().any(|value| matches!(value, Lua::Table(_))) {
                check.add(
                    On::Value,
                    "wrong_type",
                    format!("{what} takes one table: put the options into it, beside the first value"),
                    Some(format!("{what} {{ {}, ... }}", values.first().map_or("...".to_owned(), |first| show(first)))),
                );
                return Checked { data: Json::Null, findings: check.findings, secrets: check.secrets };
            }
            Entries::positional(values.iter().map(|value| (*value).clone()).collect())
        }
    };
    let data = check.shape(shape, &entries);
    Checked { data, findings: check.findings, secrets: check.secrets }
}

/// The arguments of a step as the engine gets them, or what is wrong with the first wrong one. `receiver` is `run` or `host`.
///
/// # Errors
/// One sentence for the author of the pipeline.
pub fn step_args(verb: Verb, receiver: &str, args: &MultiValue) -> Result<Json, String> {
    named_step_args(verb.as_str(), receiver, args)
}

/// [`step_args`] for any method of the registry, also `fail`, `parallel` and `undo`, which are no verbs.
///
/// # Errors
/// One sentence for the author of the pipeline.
pub fn named_step_args(name: &str, receiver: &str, args: &MultiValue) -> Result<Json, String> {
    let what = format!("{receiver}:{name}");
    let on = Receiver::of(receiver).ok_or_else(|| format!("{receiver:?} has no steps"))?;
    match registry::step(name) {
        Some(step) if step.on.contains(&on) => {
            first(&what, arguments(&what, &step.shape, args, Functions::Omitted, Some(on)))
        }
        Some(step) => Err(format!(
            "{what} does not exist: {name} is a step of {}",
            join(&step.on.iter().map(|on| on.word().to_owned()).collect::<Vec<_>>())
        )),
        None => Err(unknown_step(on, name)),
    }
}

/// The sentence about a method that `run` or `host` does not have.
#[must_use]
pub fn unknown_step(receiver: Receiver, name: &str) -> String {
    let all = registry::registry();
    if all.later_steps.contains(&(receiver, name)) {
        return format!("{}:{name} is not supported by this version of phased", receiver.word());
    }
    let steps = all.steps.iter().filter(|step| step.on.contains(&receiver)).map(|step| step.name);
    let hint = nearest(name, steps).map_or(String::new(), |near| format!(": did you mean {near:?}?"));
    format!("{} has no step {name:?}{hint}", receiver.word())
}

/// The arguments of a plugin function (`http`, `json.decode`), or what is wrong with the first wrong one.
///
/// # Errors
/// One sentence for the author of the plugin.
pub fn plugin_args(what: &str, args: &MultiValue) -> Result<Json, String> {
    let function = registry::function(what).ok_or_else(|| format!("phased has no function {what:?}"))?;
    let what = format!("phased.{what}");
    first(&what, arguments(&what, &function.shape, args, Functions::Omitted, None))
}

fn first(what: &str, checked: Checked) -> Result<Json, String> {
    match checked.findings.into_iter().next() {
        None => Ok(checked.data),
        Some(finding) => {
            let help = finding.help.as_ref().map_or(String::new(), |help| format!(" ({help})"));
            Err(format!("{}{help}", finding.said_of(what)))
        }
    }
}

impl Finding {
    /// The message, beginning with what was called unless it names it anyway.
    #[must_use]
    pub fn said_of(&self, what: &str) -> String {
        if self.message.contains(what) { self.message.clone() } else { format!("{what}: {}", self.message) }
    }
}

/// The name behind a secret handle.
#[must_use]
pub fn secret(value: &Lua) -> Option<String> {
    match value {
        Lua::UserData(data) => data.borrow::<Secret>().ok().map(|secret| secret.name.clone()),
        _ => None,
    }
}

/// The artifact behind a handle.
#[must_use]
pub fn artifact(value: &Lua) -> Option<Artifact> {
    match value {
        Lua::UserData(data) => data.borrow::<Artifact>().ok().map(|artifact| artifact.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mlua::Lua;

    use super::*;
    use crate::model::canonical;

    /// What `call` (`run:sh { ... }`, `phased.http { ... }`) becomes, as canonical JSON, or what is said about it.
    fn said(call: &str) -> String {
        let lua = Lua::new();
        let phased = lua.create_table().unwrap();
        crate::lua::definitions::install(&lua, &phased, false).unwrap();
        let show = |result: Result<Json, String>| {
            result.map_or_else(|why| format!("! {why}"), |data| canonical::to_string(&data))
        };
        for receiver in ["run", "host"] {
            let object = lua.create_table().unwrap();
            for step in &registry::registry().steps {
                let method = move |_: &Lua, (_, args): (mlua::Value, MultiValue)| {
                    Ok(show(named_step_args(step.name, receiver, &args)))
                };
                object.set(step.name, lua.create_function(method).unwrap()).unwrap();
            }
            lua.globals().set(receiver, object).unwrap();
        }
        for what in ["http", "read", "exec", "smtp", "log"] {
            let function = move |_: &Lua, args: MultiValue| Ok(show(plugin_args(what, &args)));
            phased.set(what, lua.create_function(function).unwrap()).unwrap();
        }
        lua.globals().set("phased", phased).unwrap();
        lua.load(format!("return {call}")).eval().unwrap()
    }

    #[test]
    fn arguments_are_named_and_plain() {
        for (call, expected) in [
            ("run:sh 'npm test'", r#"{"command":"npm test"}"#),
            (
                "run:sh { 'x', timeout = '5m', retries = 2, backoff = '0s', on_unknown = 'retry', name = 'n' }",
                r#"{"backoff":"0s","command":"x","name":"n","on_unknown":"retry","retries":2,"timeout":"5m"}"#,
            ),
            ("run:sh { 'x', on_unknown = function() end }", r#"{"command":"x"}"#),
            (
                "run:sh { 'x', env = { A = 1, B = 'b', C = phased.secret 's/t' }, stdin = phased.secret 'k' }",
                r#"{"command":"x","env":{"A":"1","B":"b","C":{"$secret":"s/t"}},"stdin":{"$secret":"k"}}"#,
            ),
            ("run:sh { 'x', stdin = '\\xff' }", r#"{"command":"x","stdin":{"$b64":"/w=="}}"#),
            (
                "run:sh { 'x', reports = { 'a/*.xml' }, shell = 'bash', check = false, cwd = '/tmp', user = 'root' }",
                r#"{"check":false,"command":"x","cwd":"/tmp","reports":["a/*.xml"],"shell":"bash","user":"root"}"#,
            ),
            ("host:exec { 'ls', '-l', 5, cwd = '/' }", r#"{"argv":["ls","-l","5"],"cwd":"/"}"#),
            ("host:exec('ls', '-l')", r#"{"argv":["ls","-l"]}"#),
            ("host:exec { argv = { 'ls' } }", r#"{"argv":["ls"]}"#),
            (
                "host:upload { 'build/app', to = '/srv/app', mode = '0755', owner = 'a:b', user = 'root' }",
                r#"{"from":"build/app","mode":"0755","owner":"a:b","to":"/srv/app","user":"root"}"#,
            ),
            (
                "host:upload { 'a.tar', to = '/srv/app', unpack = true }",
                r#"{"from":"a.tar","to":"/srv/app","unpack":true}"#,
            ),
            (
                "run:artifact { 'app', path = '.', exclude = { '.git', '**/*.map' } }",
                r#"{"exclude":[".git","**/*.map"],"name":"app","path":"."}"#,
            ),
            ("run:artifact { 'image', value = 'sha256:ab' }", r#"{"name":"image","value":"sha256:ab"}"#),
            ("run:artifact_path 'app'", r#"{"name":"app"}"#),
            ("host:download { '/var/log/x', to = 'x.log' }", r#"{"from":"/var/log/x","to":"x.log"}"#),
            ("host:write { '/etc/x', content = '' }", r#"{"content":"","path":"/etc/x"}"#),
            (
                "host:write { '/etc/x', env = { PORT = 80 }, mode = '600' }",
                r#"{"env":{"PORT":"80"},"mode":"600","path":"/etc/x"}"#,
            ),
            ("host:http ':8080/x'", r#"{"url":":8080/x"}"#),
            (
                "run:http { 'https://x/y', method = 'POST', json = { a = { 1, 2.5, true }, b = {} }, status = { 200, 404 }, idempotent = true }",
                r#"{"idempotent":true,"json":{"a":[1,2.5,true],"b":{}},"method":"POST","status":[200,404],"url":"https://x/y"}"#,
            ),
            ("host:wait { ':8080/healthz', timeout = '1m' }", r#"{"http":":8080/healthz","timeout":"1m"}"#),
            ("host:wait { tcp = ':22' }", r#"{"tcp":":22"}"#),
            ("run:sleep '10s'", r#"{"duration":"10s"}"#),
            ("run:now()", "{}"),
            (
                "host:service { 'shop', action = 'restart', timeout = '1m' }",
                r#"{"action":"restart","timeout":"1m","unit":"shop"}"#,
            ),
            ("run:log(5)", r#"{"text":"5"}"#),
            ("run:fail 'no'", r#"{"text":"no"}"#),
            ("run:parallel { a = print, b = print }", r#"{"branches":{}}"#),
            (
                "phased.http { phased.secret 'url', headers = { authorization = phased.secret 't' } }",
                r#"{"headers":{"authorization":{"$secret":"t"}},"url":{"$secret":"url"}}"#,
            ),
            ("phased.read '/etc/hosts'", r#"{"path":"/etc/hosts"}"#),
            ("phased.log 'x'", r#"{"text":"x"}"#),
        ] {
            assert_eq!(said(call), expected, "{call}");
        }
    }

    #[test]
    fn wrong_arguments_are_said_in_one_sentence() {
        let mut wrong = Vec::new();
        for (call, expected) in [
            (
                "run:sh()",
                "! run:sh has no command (it is the first value without a key: the shell text; values go in through env, never by concatenation)",
            ),
            ("run:sh ''", "! run:sh: command: \"\" is empty"),
            ("run:sh(nil)", "! run:sh: command must be a command, not nil"),
            ("run:sh(5)", "! run:sh: command must be a command, not 5"),
            ("run:sh { 'x', timout = '5m' }", "! unknown key \"timout\" in run:sh (did you mean \"timeout\"?)"),
            (
                "run:sh { 'x', timeout = 5 }",
                "! run:sh: timeout must be a duration such as \"5m\", not 5 (write it as text with a unit: \"5s\" or \"5m\")",
            ),
            ("run:sh { 'x', timeout = '0s' }", "! run:sh: timeout: \"0s\" must be more than nothing"),
            ("run:sh { 'x', retries = -1 }", "! run:sh: retries must be a whole number from 0 to 100, not -1"),
            ("run:sh { 'x', retries = 0/0 }", "! run:sh: retries must be a whole number from 0 to 100, not NaN"),
            (
                "run:sh { 'x', on_unknown = 'maybe' }",
                "! run:sh: on_unknown must be \"fail\", \"retry\" or a function, not \"maybe\"",
            ),
            (
                "run:sh('x', { timeout = '5m' })",
                "! run:sh takes one table: put the options into it, beside the first value (run:sh { \"x\", ... })",
            ),
            ("run:sh('x', 'y')", "! unexpected value \"y\" without a key in run:sh (only the command has no key)"),
            ("run:sh { 'a\\0b' }", "! run:sh: command: \"a\\0b\" holds a NUL character, which no command can be given"),
            ("run:sh '\\xff'", "! run:sh: command: \"\u{fffd}\" is not UTF-8"),
            (
                "run:sh(phased.secret 'k')",
                "! run:sh: command must be a command, not the secret \"k\" (a secret is passed by env or stdin, never as text)",
            ),
            (
                "run:sh { 'x', env = { ['A B'] = 1 } }",
                "! run:sh: env: \"A B\" is not a variable name: A-Z a-z 0-9 _, the first no digit",
            ),
            (
                "run:sh { 'x', env = { PHASED_RUN = 1 } }",
                "! run:sh: env: \"PHASED_RUN\" is set by phased itself; choose another name",
            ),
            ("run:sh { 'x', env = { A = true } }", "! run:sh: env.A must be a text or a phased.secret, not true"),
            (
                "run:sh { 'x', env = { 'A=1' } }",
                "! run:sh: unexpected value \"A=1\" without a key in env (each needs a variable's name)",
            ),
            ("run:sh { 'x', user = '-u root' }", "! run:sh: user: \"-u root\" is not a user name"),
            ("host:sh { 'x', reports = '*.xml' }", "! host:sh: \"reports\" is for steps of run only"),
            (
                "run:sh { 'x', reports = '../x' }",
                "! run:sh: reports: \"../x\" must not hold ..: it would leave the run's directory",
            ),
            ("run:exec {}", "! run:exec has no argv (the program and its arguments)"),
            ("run:exec { 'a', {} }", "! run:exec: argv[2] must be a text, not a table"),
            (
                "host:upload { '/etc/passwd', to = '/x' }",
                "! host:upload: from: \"/etc/passwd\" must be relative to the run's directory",
            ),
            ("host:upload { 'x', to = 'y' }", "! host:upload: to: \"y\" is not absolute: begin it with /"),
            (
                "host:upload { 5, to = '/y' }",
                "! host:upload: from must be an artifact of the release or a path below the checkout, not 5",
            ),
            ("host:upload { nil, to = '/y' }", "! host:upload has no from"),
            ("host:upload { '../x', to = '/y' }", "! host:upload: from: \"../x\" must not hold .."),
            ("run:artifact { 'app' }", "! run:artifact needs one of path or value"),
            ("run:artifact { 'a/b', path = '.' }", "! run:artifact: name: \"a/b\" is not an artifact's name"),
            ("run:artifact { 'app', path = '/etc' }", "! run:artifact: path: \"/etc\" must be relative"),
            ("run:artifact { 'app', path = '..' }", "! run:artifact: path: \"..\" must not hold .."),
            (
                "run:artifact { 'app', path = '.', value = 'x' }",
                "! run:artifact has path and value and must have only one",
            ),
            ("run:artifact { 'app', value = 'a\\nb' }", "! run:artifact: value: "),
            ("run:artifact { 'app', path = '.', exclude = 5 }", "! run:artifact: exclude"),
            ("host:artifact { 'app', path = '.' }", "! host:artifact does not exist: artifact is a step of run"),
            ("run:upload { 'x', to = '/y' }", "! run:upload does not exist: upload is a step of host"),
            ("host:write { '/x' }", "! host:write needs one of content or env"),
            (
                "host:write { '/x', content = 'a', env = {} }",
                "! host:write has content and env and must have only one of them",
            ),
            ("host:write { '/x', content = 5 }", "! host:write: content must be a text or a phased.secret, not 5"),
            ("host:write { '/x', content = '', mode = 644 }", "! host:write: mode must be a mode, not 644"),
            (
                "host:http { 'example.com' }",
                "! host:http: url: \"example.com\" is neither \":8080/path\" nor a full URL",
            ),
            (
                "host:http { ':1/', method = 'get' }",
                "! host:http: method must be \"GET\", \"HEAD\", \"POST\", \"PUT\", \"PATCH\" or \"DELETE\", not \"get\" (did you mean \"GET\"?)",
            ),
            ("host:http { ':1/', headers = { ['a\\n'] = '' } }", "! host:http: headers: \"a\\n\" is not a header name"),
            (
                "host:http { ':1/', headers = { a = 'b\\r\\nc' } }",
                "! host:http: headers.a: \"b\\r\\nc\" holds a control character; it must be one plain line",
            ),
            ("host:http { ':1/', json = { [{}] = 1 } }", "! host:http: json has a key a table that is no name"),
            ("host:http { ':1/', json = { a = print } }", "! host:http: json.a must be plain data, not a function"),
            ("host:http { ':1/', json = (function() local t = {}; t.t = t; return t end)() }", "! host:http: json.t.t"),
            ("host:wait {}", "! host:wait needs one of http, tcp or command"),
            ("host:wait '8080'", "! host:wait: http: \"8080\" is neither"),
            ("host:wait { ':1/', tcp = ':2' }", "! host:wait has http and tcp and must have only one of them"),
            ("run:sleep(5)", "! run:sleep: duration must be a duration such as \"5m\", not 5"),
            ("host:service { 'a b', action = 'restart' }", "! host:service: unit: \"a b\" is not the name of a unit"),
            ("run:parallel { print }", "! run:parallel: unexpected value a function without a key in branches"),
            ("run:parallel { a = 1 }", "! run:parallel: branches.a must be a function, not 1"),
            (
                "phased.http { 'ftp://x' }",
                "! phased.http: url: \"ftp://x\" is not a URL: begin it with https:// or http://",
            ),
            ("phased.read 'hosts'", "! phased.read: path: \"hosts\" is not absolute: begin it with /"),
            (
                "phased.smtp { host = 'h', from = 'a@b', to = 'a', subject = 'x\\ny', body = '' }",
                "! phased.smtp: subject: ",
            ),
        ] {
            let got = said(call);
            if !got.starts_with(expected) {
                wrong.push(format!("{call}\n  {got}\n  {expected}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert_eq!(unknown_step(Receiver::Host, "uplaod"), "host has no step \"uplaod\": did you mean \"upload\"?");
    }
}
