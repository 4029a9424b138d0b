//! Alerts and discoveries, from pinned code to what they ask for and return.

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
fn a_discovery_is_given_its_options_and_an_alert_also_the_message() {
    let further =
        "local found = phased.discovery { name = 'd', hosts = function(...) return { 'n' .. select('#', ...) } end }
    local said = phased.alert { name = 's', send = function(...) return select('#', ...) end }";
    let project = Project::new("said {}", "found {}", further);
    let PluginTurn::Return(hosts) = project.plugin("discovery/p/1").start() else { panic!("hosts") };
    assert_eq!(hosts[0]["address"], "n1");
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
