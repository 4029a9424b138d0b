//! Alerts, discoveries and probes, from pinned code to what they ask for and return.

use std::collections::BTreeSet;

use super::*;
use crate::{
    lua::{
        loader::{Loader, SHIPPED},
        sandbox::Limits,
    },
    ports::{
        program::{Loaded, Plugin, PluginTurn, Programs},
        secrets::{Secret, SecretError, Secrets},
    },
};

struct Any;

impl Secrets for Any {
    fn get(&self, _: &str) -> Result<Secret, SecretError> {
        Ok(Secret::new(b"0123456789"))
    }
}

struct Project {
    _folder: tempfile::TempDir,
    loader: Loader,
    loaded: Loaded,
}

impl Project {
    fn new(notify: &str, hosts: &str, further: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("plugins");
        std::fs::create_dir_all(plugins.join("projects")).unwrap();
        let text = format!(
            "{further}\nreturn phased.project {{ source = {{ git = 'https://x/y.git', branch = 'main' }},
            test = {{ {{ 'unit', run = error }} }}, notify = {notify},
            environments = {{ {{ 'p', hosts = {hosts}, deploy = error, health = 'none' }} }} }}"
        );
        std::fs::write(plugins.join("projects/shop.lua"), text).unwrap();
        let loader = Loader::new(vec![plugins], SHIPPED, folder.path(), Arc::new(Any), Limits::default());
        let loaded = loader.load().unwrap().remove(0);
        loader.pin(&loaded).unwrap();
        Project { _folder: folder, loader, loaded }
    }

    fn plugin(&self, function: &str) -> Box<dyn Plugin> {
        let message = json!({"event": "failed", "project": "shop", "title": "it failed", "text": "see", "cause": {"code": "exit", "message": "no"}});
        self.loader.plugin(&self.loaded.code, &self.loaded.name, function, json!({ "message": message })).unwrap()
    }
}

fn asked(turn: PluginTurn) -> (String, Json) {
    match turn {
        PluginTurn::Request(request) => (request.what, request.args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_shipped_alert_asks_for_what_it_needs() {
    for (notify, what, key) in [
        ("require 'alerts.log' {}", "log", "text"),
        ("require 'alerts.slack' { url = phased.secret 'u' }", "http", "json"),
        ("require 'alerts.webhook' { 'https://x/h' }", "http", "json"),
        ("require 'alerts.command' { argv = { '/bin/page' } }", "exec", "stdin"),
        ("require 'alerts.email' { host = 'mail', from = 'a@x', to = { 'b@x' } }", "smtp", "body"),
    ] {
        let project = Project::new(notify, "{ 'a' }", "");
        let mut plugin = project.plugin("notify/bad/1");
        let (asked_for, args) = asked(plugin.start());
        assert_eq!(asked_for, what, "{notify}");
        assert!(args[key].to_string().contains("it failed"), "{notify}: {args}");
        assert_eq!(
            plugin.resume(&Outcome::Ok(json!({"status": 200, "code": 0}))),
            PluginTurn::Return(Json::Null),
            "{notify}"
        );
        let mut plugin = project.plugin("notify/bad/1");
        plugin.start();
        let PluginTurn::Raised(cause) = plugin.resume(&Outcome::failed(Cause::new("http_status", "500"))) else {
            panic!()
        };
        assert_eq!((cause.code.as_str(), cause.message.as_str()), ("http_status", "500"), "{notify}");
    }
}

#[test]
fn hosts_of_a_file_are_read_checked_and_named() {
    let project =
        |file: &str| Project::new("require 'alerts.log' {}", &format!("require 'discovery.file' {{ {file:?} }}"), "");
    let ids = |turn: PluginTurn| match turn {
        PluginTurn::Return(hosts) => {
            Ok(hosts.as_array().unwrap().iter().map(|h| h["id"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>())
        }
        PluginTurn::Raised(cause) => Err(cause),
        other => panic!("{other:?}"),
    };
    for (file, text, expected) in [
        (
            "/h.json",
            r#"["web1", {"id": "i-2", "address": "10.0.0.2", "labels": {"role": "web"}}]"#,
            Ok(vec!["web1", "i-2"]),
        ),
        ("/h.json", "[]", Ok(vec![])),
        ("/h.csv", "id,address,labels.role\ni-1,10.0.0.1,web\n,web2,\n", Ok(vec!["i-1", "web2"])),
        ("/h.json", "{", Err("no JSON")),
        ("/h.json", r#"{"a": 1}"#, Err("must hold a list of hosts")),
        ("/h.json", r#"[{"addres": "x"}]"#, Err("has no address")),
        ("/h.json", r#"[{"address": "x", "prot": 1}]"#, Err("did you mean \"port\"")),
        ("/h.csv", "id,adress\n1,2\n", Err("unknown column")),
    ] {
        let project = project(file);
        let mut plugin = project.plugin("discovery/p/1");
        let (what, args) = asked(plugin.start());
        assert_eq!((what.as_str(), &args), ("read", &json!({"path": file})));
        match (ids(plugin.resume(&Outcome::Ok(json!(text)))), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected.into_iter().map(str::to_owned).collect()),
            (Err(cause), Err(expected)) => assert!(cause.message.contains(expected), "{cause:?}"),
            (found, expected) => panic!("{text}: {found:?} for {expected:?}"),
        }
        let mut plugin = project.plugin("discovery/p/1");
        plugin.start();
        let PluginTurn::Raised(cause) = plugin.resume(&Outcome::failed(Cause::new("read", "no such file"))) else {
            panic!()
        };
        assert_eq!(cause.code, "read");
    }
}

#[test]
fn a_plugin_is_given_its_options_and_what_it_is_about() {
    let further =
        "local found = phased.discovery { name = 'd', hosts = function(...) return { 'n' .. select('#', ...) } end }
    local said = phased.alert { name = 's', send = function(...) return select('#', ...) end }";
    let project = Project::new("said {}", "found {}", further);
    let PluginTurn::Return(hosts) = project.plugin("discovery/p/1").start() else { panic!("hosts") };
    assert_eq!(hosts[0]["address"], "n2");
    assert_eq!(project.plugin("notify/bad/1").start(), PluginTurn::Return(json!(2)));
    assert!(matches!(project.plugin("notify/good/1").start(), PluginTurn::Raised(_)));
}

#[test]
fn what_a_plugin_does_wrong_is_said() {
    for (body, said) in [
        ("phased.http { 'https://x', methd = 'GET' }", "unknown key \"methd\" in phased.http"),
        ("error 'no luck'", "no luck"),
        ("while true do end", "more than"),
        ("return error", "the plugin returned no plain data"),
        ("return options.x.y", "attempt to index a nil value"),
        ("pcall(phased.read, 5) error(select(2, pcall(phased.read, 5)), 0)", "phased.read"),
        ("return setmetatable({}, { __index = function() end }), phased.jsn.x", "attempt to index a nil value"),
    ] {
        let further =
            format!("local said = phased.alert {{ name = 's', send = function(options, message)\n{body}\nend }}");
        let project = Project::new("said {}", "{ 'a' }", &further);
        let PluginTurn::Raised(cause) = project.plugin("notify/bad/1").start() else { panic!("{body}") };
        assert!(cause.message.contains(said), "{body}: {cause:?}");
        if cause.code == "lua_error" && !body.starts_with("return error") {
            assert_eq!(cause.facts["at"], "projects/shop.lua:2", "{body}: {cause:?}");
        }
    }
}

/// One measurement of the probe `cause`, whose single request is answered with this; what it asked for, and what it made of it.
fn measured(cause: &str, about: &Json, answer: &Outcome) -> (Json, PluginTurn) {
    let hosts = format!(
        "{{ 'a' }}, alarms = {{ {{ 'x', cause = {cause}, alert = require 'alerts.log' {{}}, action = 'none', compare = 'baseline' }} }}"
    );
    let project = Project::new("require 'alerts.log' {}", &hosts, "");
    let mut probe =
        project.loader.plugin(&project.loaded.code, &project.loaded.name, "alarms/p/1/cause", about.clone()).unwrap();
    match probe.start() {
        PluginTurn::Request(request) => {
            assert_eq!(request.what, "http");
            (request.args, probe.resume(answer))
        }
        turn => (Json::Null, turn),
    }
}

fn about(group: &str, hosts: &[(&str, &str)]) -> Json {
    let hosts: Vec<Json> =
        hosts.iter().map(|(name, address)| json!({"id": name, "name": name, "address": address})).collect();
    json!({"project": "shop", "environment": "p", "alarm": "x", "group": group, "hosts": hosts})
}

fn answered(status: u16, body: &Json) -> Outcome {
    let body = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
    Outcome::Ok(json!({"status": status, "body": body, "headers": {}}))
}

const PROMETHEUS: &str = "require 'probes.prometheus' { query = 'up == 1', url = 'http://prom:9090/x/', token = phased.secret 't', timeout = '3s' }";

#[test]
fn prometheus_is_asked_by_an_instant_query() {
    let one = json!({"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "0.031"]}]}});
    let (asked, turn) = measured(PROMETHEUS, &about("canary", &[]), &answered(200, &one));
    assert_eq!(
        asked,
        json!({
            "url": "http://prom:9090/x/api/v1/query", "method": "POST", "body": "query=up%20%3D%3D%201", "timeout": "3s", "check": false,
            "headers": {"content-type": "application/x-www-form-urlencoded"}, "bearer": {"$secret": "t"},
        })
    );
    assert_eq!(turn, PluginTurn::Return(json!({"value": 0.031})));
}

#[test]
fn every_answer_of_prometheus_is_a_number_no_data_or_an_error() {
    let success =
        |kind: &str, result: Json| json!({"status": "success", "data": {"resultType": kind, "result": result}});
    let sample = |text: &str| json!({"metric": {}, "value": [1.5, text]});
    for (answer, expected) in [
        (success("scalar", json!([1, "5"])), json!({"value": 5})),
        (success("vector", json!([sample("1e-05")])), json!({"value": 1e-5})),
        (success("vector", json!([])), json!({"message": "the query gives no series"})),
        (success("vector", json!([sample("NaN")])), json!({"message": "the query gives NaN"})),
        (success("scalar", json!([1, "+Inf"])), json!({"message": "the query gives +Inf"})),
        (
            json!({"status": "success", "warnings": ["a store is away"], "data": {"resultType": "scalar", "result": [1, "2"]}}),
            json!({"value": 2, "message": "a store is away"}),
        ),
    ] {
        assert_eq!(
            measured(PROMETHEUS, &about("canary", &[]), &answered(200, &answer)).1,
            PluginTurn::Return(expected),
            "{answer}"
        );
    }
    for (status, answer, why) in [
        (200, success("vector", json!([sample("1"), sample("2")])), "the query gives 2 series; make them one"),
        (200, success("vector", json!([{"metric": {}, "histogram": [1, {}]}])), "the query gives a histogram"),
        (200, success("matrix", json!([])), "the query gives a matrix; it must give one number"),
        (200, success("string", json!([1, "x"])), "the query gives a string"),
        (200, success("scalar", json!([1, "x"])), "\"x\", which is no number"),
        (
            400,
            json!({"status": "error", "errorType": "bad_data", "error": "parse error"}),
            "Prometheus refused the query: parse error (bad_data)",
        ),
        (401, json!("Unauthorized"), "http://prom:9090/x/ answered 401, and not as Prometheus does: Unauthorized"),
        (200, json!("[]"), "not as Prometheus does"),
    ] {
        let (_, turn) = measured(PROMETHEUS, &about("canary", &[]), &answered(status, &answer));
        let PluginTurn::Raised(cause) = turn else { panic!("{answer}: {turn:?}") };
        assert!(cause.message.contains(why), "{}", cause.message);
    }
    let refused = Outcome::failed(Cause::new("http_connect", "connection refused"));
    let (_, turn) = measured(PROMETHEUS, &about("canary", &[]), &refused);
    assert!(matches!(&turn, PluginTurn::Raised(cause) if cause.code == "http_connect"), "{turn:?}");
}

#[test]
fn a_query_names_the_hosts_that_are_measured() {
    let cause =
        r#"require 'probes.prometheus' { query = 'x{instance=~"($addresses):9100",name=~"$hosts",other="$1$other"}' }"#;
    let hosts = [("web-1", "10.0.0.1"), ("we\"b$2", "web2")];
    let no_data = json!({"status": "success", "data": {"resultType": "vector", "result": []}});
    let (asked, _) = measured(cause, &about("baseline", &hosts), &answered(200, &no_data));
    let query = asked["body"].as_str().unwrap().strip_prefix("query=").unwrap();
    let query = percent_encoding::percent_decode_str(query).decode_utf8().unwrap();
    assert_eq!(query, r#"x{instance=~"(10\\.0\\.0\\.1|web2):9100",name=~"web-1|we\"b\\$2",other="$1$other"}"#);
    let (_, none) = measured(cause, &about("canary", &[]), &answered(200, &no_data));
    assert_eq!(none, PluginTurn::Return(json!({"message": "there are no such hosts"})));
    let (_, turn) = measured(PROMETHEUS, &about("baseline", &hosts), &answered(200, &no_data));
    assert!(matches!(&turn, PluginTurn::Raised(cause) if cause.message.contains("put $hosts or $addresses into it")));
}

#[test]
fn a_page_is_measured_by_its_status_or_a_number_in_it() {
    let page = "require 'probes.http' { 'https://x/', below = 1 }";
    for (answer, expected) in [
        (answered(204, &json!("")), json!({"value": 1, "message": "status 204"})),
        (answered(503, &json!("down")), json!({"value": 0, "message": "status 503"})),
        (Outcome::failed(Cause::new("http_connect", "refused")), json!({"value": 0, "message": "refused"})),
    ] {
        assert_eq!(measured(page, &about("canary", &[]), &answer).1, PluginTurn::Return(expected));
    }
    let stats = "require 'probes.http' { 'https://x/', json = 'queue.1.depth', above = 5 }";
    for (body, expected) in [
        (json!({"queue": [{"depth": 7}]}), Ok(json!(7))),
        (json!({"queue": []}), Ok(json!({"message": "the answer has no queue.1.depth"}))),
        (json!({"queue": [{"depth": null}]}), Ok(json!({"message": "the answer has no queue.1.depth"}))),
        (json!({"queue": [{"depth": "7"}]}), Err("is a string, not a number")),
        (json!("<html>"), Err("the answer is no JSON")),
    ] {
        match (measured(stats, &about("canary", &[]), &answered(200, &body)).1, expected) {
            (PluginTurn::Return(found), Ok(expected)) => assert_eq!(found, expected, "{body}"),
            (PluginTurn::Raised(cause), Err(why)) => assert!(cause.message.contains(why), "{}", cause.message),
            (found, expected) => panic!("{body}: {found:?}, not {expected:?}"),
        }
    }
}

#[test]
fn a_probe_of_a_users_own_gets_its_options_and_what_it_is_about() {
    let of = |body: &str| {
        let further = format!(
            "local asked = phased.probe {{ name = 'own', options = {{ by = {{ 'integer', position = 1 }}, above = {{ 'number' }} }},
              measure = function(options, about) {body} end }}"
        );
        let hosts = "{ 'a' }, alarms = { { 'x', cause = asked { 2, above = 1 }, alert = require 'alerts.log' {}, action = 'none' } }";
        let project = Project::new("require 'alerts.log' {}", hosts, &further);
        let about = about("canary", &[("a", "a"), ("b", "b")]);
        project.loader.plugin(&project.loaded.code, &project.loaded.name, "alarms/p/1/cause", about).unwrap().start()
    };
    assert_eq!(of("return options.by * #about.hosts"), PluginTurn::Return(json!(4)));
    assert_eq!(
        of("return { value = 1, message = about.alarm }"),
        PluginTurn::Return(json!({"value": 1, "message": "x"}))
    );
    for none in ["return nil", "", "return 0/0"] {
        assert_eq!(of(none), PluginTurn::Return(Json::Null), "{none}");
    }
    assert!(matches!(of("error 'no luck'"), PluginTurn::Raised(cause) if cause.message.contains("no luck")));
}

#[test]
fn a_list_in_the_last_place_takes_all_values_from_there_on() {
    let options =
        "q = { 'text', position = 1 }, names = { 'list', position = 2, default = { 'x' } }, above = { 'number' }";
    let body = "return { value = 1, message = options.q .. ': ' .. table.concat(options.names, ' ') }";
    let further = format!(
        "local asked = phased.probe {{ name = 'own', options = {{ {options} }}, measure = function(options) {body} end }}"
    );
    for (given, expected) in [("'q', 'b', 'c'", "q: b c"), ("'q', names = { 'd' }", "q: d"), ("'q'", "q: x")] {
        let hosts = format!(
            "{{ 'a' }}, alarms = {{ {{ 'x', cause = asked {{ {given}, above = 1 }}, alert = require 'alerts.log' {{}}, action = 'none' }} }}"
        );
        let project = Project::new("require 'alerts.log' {}", &hosts, &further);
        let (loaded, about) = (&project.loaded, about("canary", &[]));
        let mut plugin = project.loader.plugin(&loaded.code, &loaded.name, "alarms/p/1/cause", about).unwrap();
        assert_eq!(plugin.start(), PluginTurn::Return(json!({"value": 1, "message": expected})), "{given}");
    }
}
