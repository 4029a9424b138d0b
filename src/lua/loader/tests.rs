use super::*;
use crate::{
    lua::{definitions, diagnostics},
    model::{
        pipeline::{Check, HostSource},
        rollout::Budget,
    },
    ports::secrets::{Secret, SecretError},
};

mod bad;
mod plugins;

/// Secrets whose names begin with `good`.
struct Fake;

impl Secrets for Fake {
    fn get(&self, name: &str) -> Result<Secret, SecretError> {
        if name.starts_with("good") {
            return Ok(Secret::new(b"0123456789"));
        }
        Err(SecretError::Missing { name: name.to_owned(), looked: "/etc/phased/secrets".to_owned() })
    }
}

/// A project that is as short as it can be.
const BASE: &str = r#"local log = require "alerts.log" {}
return phased.project {
  source = { git = "https://example.com/shop.git", branch = "main" },
  test = { { "unit", run = function(run) run:sh "npm test" end } },
  environments = {
    { "production",
      hosts = { "web1", "web2" },
      deploy = function(host) host:sh "true" end,
      health = { http = ":8080/healthz" } },
  },
  notify = log,
}
"#;

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new(files: &[(&str, &str)]) -> Self {
        let fixture = Fixture { folder: tempfile::tempdir().unwrap() };
        for (name, text) in files {
            fixture.write(name, text);
        }
        fixture
    }

    fn project(text: &str) -> Self {
        Fixture::new(&[("projects/shop.lua", text)])
    }

    fn plugins(&self) -> PathBuf {
        self.folder.path().join("plugins")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.plugins().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn loader(&self) -> Loader {
        Loader::new(vec![self.plugins()], SHIPPED, &self.folder.path().join("data"), Arc::new(Fake), Limits::default())
    }

    /// `shop.lua:3:5+4 code: message; help`, one a line.
    fn findings(&self) -> String {
        let found = self.loader().load().err().unwrap_or_default();
        let line = |one: &Diagnostic| {
            let file = one.file.strip_prefix(self.plugins()).unwrap_or(&one.file).display();
            let help = one.help.as_ref().map_or(String::new(), |help| format!("; {help}"));
            format!("{file}:{}:{}+{} {}: {}{help}", one.line, one.column, one.length, one.code, one.message)
        };
        found
            .iter()
            .map(line)
            .collect::<Vec<_>>()
            .join("\n")
            .replace(&self.plugins().display().to_string(), "DIR")
            .replace("projects/shop.lua", "shop")
    }
}

fn load(text: &str) -> Loaded {
    let fixture = Fixture::project(text);
    match fixture.loader().load() {
        Ok(mut loaded) => loaded.remove(0),
        Err(found) => panic!("{}", diagnostics::render(&found, false)),
    }
}

#[test]
fn doors_are_read() {
    let text = BASE
        .replace("branch = \"main\"", "branch = \"main\", tags = { \"v*\", \"r*\" }")
        .replace(
            "      hosts =",
            "      when = { tag = \"v*\" }, group = \"database\", freeze = {\n        { from = \"fri 16:00\", to = \"mon 08:00\", zone = \"Europe/Berlin\", reason = \"weekend\" },\n        { days = \"mon-thu\", from = \"22:00\", to = \"06:00\", zone = \"UTC\" } },\n      hosts =",
        );
    let pipeline = load(&text).pipeline;
    assert_eq!(pipeline.source.tags, ["v*", "r*"]);
    let environment = serde_json::to_value(&pipeline.environments[0]).unwrap();
    assert_eq!(
        (&environment["when"], &environment["group"]),
        (&serde_json::json!({"tag": ["v*"]}), &"database".into())
    );
    assert_eq!(
        environment["freeze"],
        serde_json::json!([
            {"from": "fri 16:00", "to": "mon 08:00", "zone": "Europe/Berlin", "reason": "weekend"},
            {"days": "mon-thu", "from": "22:00", "to": "06:00", "zone": "UTC"},
        ])
    );
}

#[test]
fn both_sides_of_signals_are_read() {
    let receiver = load(
        r#"return phased.project {
          source = { git = "https://example.com/shop.git", branch = "main" },
          environments = { { "production", when = "signal", hosts = { phased.localhost }, deploy = function(host) end, health = "none" } },
          notify = require "alerts.log" {},
        }"#,
    );
    assert!(receiver.pipeline.only_listens());
    let environment = serde_json::to_value(&receiver.pipeline.environments[0]).unwrap();
    let hosts = serde_json::json!([{"static": [{
        "id": "localhost", "name": "localhost", "address": "localhost", "ssh": {}, "transport": "local",
    }]}]);
    assert_eq!((&environment["hosts"], &environment["when"]), (&hosts, &"signal".into()));
    assert_eq!(environment["rollout"]["bake_time_ms"], 0, "the sender bakes");
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1GqVbPJnXxvLkkmNxwLOQ0DwA0nDxG3P7k1d3v2u1H web2";
    let sender = load(&format!(
        r#"return phased.project {{
          source = {{ git = "https://example.com/shop.git", branch = "main" }},
          test = {{ {{ "unit", run = function(run) end }} }},
          environments = {{ {{ "production", transport = "signal", signal = {{ key = phased.secret "good", receivers = "/r", tls = true }},
            hosts = {{ "web1", {{ id = "web2", address = "10.0.0.2", port = 7000, receiver_key = "{key}" }} }} }} }},
          notify = require "alerts.log" {{}},
        }}"#
    ));
    let environment = &sender.pipeline.environments[0];
    let crate::model::pipeline::HostSource::Static(hosts) = &environment.hosts[0] else { panic!("{environment:?}") };
    let reached = serde_json::to_value(environment.reaching(hosts[1].clone())).unwrap();
    assert_eq!(
        reached["transport"],
        serde_json::json!({"signal": {"key": {"$secret": "good"}, "receivers": "/r", "port": 7427, "tls": true}})
    );
    assert_eq!((&reached["receiver_key"], &reached["ssh"]["port"]), (&key.into(), &7000.into()));
    assert_eq!(environment.health.as_ref().unwrap().checks[0].name(), "its own daemon");
    assert_eq!(sender.secrets, ["good"]);
}

#[test]
fn the_shortest_project_has_its_defaults() {
    let loaded = load(BASE);
    assert_eq!(loaded.name.as_str(), "shop");
    let pipeline = serde_json::to_value(&loaded.pipeline).unwrap();
    assert_eq!(
        pipeline,
        serde_json::json!({
            "source": {"git": "https://example.com/shop.git", "branch": "main"},
            "queue": "latest",
            "stages": [{"name": "unit", "setup": false, "cleanup": false, "timeout_ms": 3_600_000}],
            "environments": [{
                "name": "production",
                "hosts": [{"static": [
                    {"id": "web1", "name": "web1", "address": "web1", "ssh": {}},
                    {"id": "web2", "name": "web2", "address": "web2", "ssh": {}},
                ]}],
                "ssh": {},
                "rollout": {
                    "canary": {"count": {"count": 1}}, "waves": {"targets": [{"percent": 100}]}, "max_parallel": 1,
                    "stagger_ms": 0, "bake_time_ms": 120_000, "max_bake_ms": 360_000, "max_failures": {"count": 0},
                    "max_unreachable": {"count": 0}, "max_shrink": {"percent": 30}, "progress_deadline_ms": 0,
                    "pause_timeout_ms": 86_400_000, "zones": false, "on_failure": "rollback", "on_inconclusive": "rollback",
                },
                "health": {
                    "checks": [{"http": ":8080/healthz"}], "min_healthy_time_ms": 10_000, "healthy_deadline_ms": 120_000,
                    "interval_ms": 1_000, "timeout_ms": 5_000,
                },
                "verify": false,
                "timeout_ms": 3_600_000,
            }],
            "notify": {"bad": ["log"], "good": []},
        })
    );
}

#[test]
fn a_rollout_is_taken_as_it_is_written() {
    let hooks = "prepare = error, before = error, before_wave = error, drain = error, undrain = error, after_wave = error, after = error,
      rollback_safe = error,";
    let rollout = r#"rollout = { canary = { labels = { tier = "canary" } }, waves = "25%", max_parallel = 4, stagger = "2s",
      bake_time = "10m", max_bake = "20m", max_failures_per_wave = 1, min_healthy = "75%", progress_deadline = "15m",
      pause_timeout = "2h", rollback_parallel = 10, max_shrink = "50%", zones = true, on_failure = "pause",
      on_inconclusive = "promote" },"#;
    let text = BASE.replacen(r#"    { "production","#, &format!(r#"    {{ "production", {hooks} {rollout}"#), 1);
    let environment = &load(&text).pipeline.environments[0];
    assert_eq!(
        serde_json::to_value(&environment.rollout).unwrap(),
        serde_json::json!({
            "canary": {"labels": {"tier": "canary"}}, "waves": {"each": {"percent": 25}}, "max_parallel": 4,
            "stagger_ms": 2_000, "bake_time_ms": 600_000, "max_bake_ms": 1_200_000, "max_failures": {"count": 0},
            "max_failures_per_wave": {"count": 1}, "max_unreachable": {"count": 0}, "min_healthy": {"percent": 75},
            "progress_deadline_ms": 900_000, "pause_timeout_ms": 7_200_000, "rollback_parallel": 10,
            "max_shrink": {"percent": 50}, "zones": true, "on_failure": "pause", "on_inconclusive": "promote",
        })
    );
    let hooks = environment.hooks;
    assert!(hooks.prepare && hooks.before && hooks.before_wave && hooks.drain && hooks.undrain);
    assert!(hooks.after_wave && hooks.after && hooks.rollback_safe);
}

const FULL: &str = r#"
local slack = require "alerts.slack" { url = phased.secret "good/slack" }
local log = require "alerts.log"()
local rollout = { max_parallel = 3, max_failures = "10%", max_unreachable = 2 }
return phased.project {
  source = { git = "git@example.com:acme/shop.git", branch = "release/1.x", poll = "5m", key = phased.secret "good_key",
             known_hosts = "/etc/phased/known_hosts", webhook = { phased.secret "good_new", phased.secret "good_old" } },
  queue = "all",
  test = {
    { "unit", setup = error, run = error, cleanup = error, timeout = "1h30m" },
    { "slow", run = error },
  },
  environments = {
    { "staging", hosts = require "discovery.file" "/etc/phased/hosts.csv", deploy = error, health = "none" },
    { "production",
      hosts = { "10.0.0.1", { id = "i-1", name = "web", address = "web1", port = 2222, user = "root", zone = "a",
                labels = { role = "web", rank = 2 }, key = phased.secret "good_host", connect_timeout = "3s" },
                require "discovery.file" { "/etc/phased/hosts.json" }, "::1" },
      ssh = { user = "deploy", key = phased.secret "good_deploy", known_hosts = "/etc/phased/known_hosts", jump = "ops@bastion:2222",
              base = "/var/lib/phased-host", path = "/usr/bin:/bin" },
      rollout = rollout, timeout = "20m", deploy = error, verify = error,
      alarms = {
        { "error rate", cause = require "probes.prometheus" { query = "errors", above = 0.01, lasting = "2m", token = phased.secret "good_prometheus" },
          alert = slack, action = "rollback" },
        { "latency", cause = require "probes.prometheus" { query = "latency" }, alert = log, action = "pause",
          success = { below = 0.5 }, failure = { above = 2 }, interval = "10s", timeout = "3s", count = 10, failure_limit = 1,
          inconclusive_limit = 2, consecutive_error_limit = 0, consecutive_success_limit = 5, min_samples = 3, lasting = "20s" },
        { "load", cause = require "probes.http" { "https://x/load", json = "load", above = 9, below = 1 }, alert = log, action = "none" },
        { "requests", cause = require "probes.prometheus" { query = "x{instance=~'($hosts)'}" }, alert = log, action = "halt",
          compare = "baseline", worse = "lower", tolerance = "5%" },
      },
      health = { http = { ":1/a", "https://x/b" }, tcp = ":5432", command = "systemctl is-active shop",
                 service = { "shop", "shop.socket" }, container = "web", version = { http = ":1/version", json = "build.revision" },
                 min_healthy_time = "0s", healthy_deadline = "30s", interval = "500ms", timeout = "2s" } },
  },
  notify = { bad = { log, slack }, good = slack },
}
"#;

#[test]
fn everything_that_can_be_said_is_understood() {
    let loaded = load(FULL);
    assert_eq!(
        loaded.secrets,
        ["good/slack", "good_deploy", "good_host", "good_key", "good_new", "good_old", "good_prometheus"]
    );
    let pipeline = loaded.pipeline;
    assert_eq!(pipeline.source.poll_ms, Some(300_000));
    assert_eq!(
        pipeline.source.webhook.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>(),
        ["good_new", "good_old"]
    );
    assert!(pipeline.stages[0].setup && pipeline.stages[0].cleanup && !pipeline.stages[1].cleanup);
    assert_eq!(pipeline.stages[0].timeout_ms, 5_400_000);
    let [staging, production] = pipeline.environments.as_slice() else { panic!("two environments") };
    let [HostSource::Plugin { name, function, limits, options: Some(_) }] = staging.hosts.as_slice() else {
        panic!("{:?}", staging.hosts)
    };
    assert_eq!((name.as_str(), function.as_str(), limits), ("file", "discovery/staging/1", &Default::default()));
    assert_eq!(staging.health, None);
    let [HostSource::Static(first), HostSource::Plugin { function, .. }, HostSource::Static(last)] =
        production.hosts.as_slice()
    else {
        panic!("{:?}", production.hosts)
    };
    assert_eq!(function, "discovery/production/3");
    assert_eq!(last[0].address, "::1");
    assert_eq!((first[1].id.as_str(), first[1].name.as_str(), first[1].labels["rank"].as_str()), ("i-1", "web", "2"));
    assert_eq!((first[1].ssh.port, first[1].ssh.connect_timeout_ms), (Some(2222), Some(3_000)));
    assert_eq!(production.rollout.max_failures, Budget::Percent(10));
    assert_eq!(production.rollout.max_unreachable, Budget::Count(2));
    assert!(production.verify);
    let health = production.health.as_ref().unwrap();
    let names: Vec<String> = health.checks[3..].iter().map(Check::name).collect();
    assert_eq!(
        names,
        ["command", "service shop.service", "service shop.socket", "container web", "version :1/version"]
    );
    assert_eq!(health.checks[2], Check::Tcp(":5432".to_owned()));
    assert_eq!((health.min_healthy_time_ms, health.interval_ms), (0, 500));
    assert_eq!(
        serde_json::to_value(&production.alarms).unwrap(),
        serde_json::json!([
            {"name": "error rate", "cause": "prometheus", "alert": "slack", "action": "rollback", "analysis": {
                "failure": {"above": 0.01}, "lasting_ms": 120_000, "interval_ms": 30_000, "failure_limit": 0, "inconclusive_limit": 0,
                "consecutive_error_limit": 4, "min_samples": 1, "timeout_ms": 10_000}},
            {"name": "latency", "cause": "prometheus", "alert": "log", "action": "pause", "analysis": {
                "success": {"below": 0.5}, "failure": {"above": 2.0}, "lasting_ms": 20_000, "interval_ms": 10_000, "count": 10,
                "failure_limit": 1, "inconclusive_limit": 2, "consecutive_error_limit": 0, "consecutive_success_limit": 5,
                "min_samples": 3, "timeout_ms": 3_000}},
            {"name": "load", "cause": "http", "alert": "log", "action": "none", "analysis": {
                "success": {"between": [1.0, 9.0]}, "lasting_ms": 0, "interval_ms": 30_000, "failure_limit": 0,
                "inconclusive_limit": 0, "consecutive_error_limit": 4, "min_samples": 1, "timeout_ms": 10_000}},
            {"name": "requests", "cause": "prometheus", "alert": "log", "action": "halt", "analysis": {
                "lasting_ms": 0, "interval_ms": 30_000, "failure_limit": 0, "inconclusive_limit": 0, "consecutive_error_limit": 4,
                "min_samples": 1, "compare": {"worse": "lower", "tolerance": 5}, "timeout_ms": 10_000}},
        ])
    );
    let again: Vec<crate::model::pipeline::Alarm> =
        serde_json::from_value(serde_json::to_value(&production.alarms).unwrap()).unwrap();
    assert_eq!(again, production.alarms);
    assert!(staging.alarms.is_empty());
    assert_eq!(
        (pipeline.notify.bad, pipeline.notify.good),
        (vec!["log".to_owned(), "slack".to_owned()], vec!["slack".to_owned()])
    );
}

#[test]
fn every_function_of_the_project_is_found_by_its_path() {
    let lua = mlua::Lua::new();
    let phased = lua.create_table().unwrap();
    definitions::install(&lua, &phased, false).unwrap();
    lua.globals().set("phased", phased).unwrap();
    let returned: mlua::Value = lua
        .load(
            r#"
            local said = phased.alert { name = "x", options = { to = { "text", position = 1 } },
                                        send = function(o, message) return o.to .. message end }
            local asked = phased.probe { name = "p", options = { q = { "text", position = 1 } },
                                         measure = function(o, about) return o.q .. about end }
            local found = phased.discovery { name = "d", hosts = function(o) return "hosts" end }
            local function f(word) return function() return word end end
            return phased.project {
              test = { { "unit", setup = f "setup", run = f "run" }, { name = "b", run = f "b" } },
              environments = { { "p", hosts = found {}, deploy = f "deploy", verify = f "verify",
                                 alarms = { { "a", cause = asked "4", alert = said "5" }, { "b", cause = asked "6", alert = said "7" } } },
                               { "q", hosts = { "a", found {} }, deploy = f "q" },
                               { "s", hosts = { "a" }, transport = "signal" },
                               { "t", hosts = { "a" }, transport = "signal", deploy = f "t" } },
              notify = { bad = { said "1", said "2" }, good = said "3" },
            }"#,
        )
        .eval()
        .unwrap();
    let project = definitions::project(&returned).unwrap().table;
    let call = |path: &str| {
        super::super::project::function(&lua, &project, path).and_then(|function| function.call::<String>("!"))
    };
    for (path, answer) in [
        ("test/unit/setup", "setup"),
        ("test/unit/run", "run"),
        ("test/b/run", "b"),
        ("environments/p/deploy", "deploy"),
        ("environments/p/verify", "verify"),
        ("environments/q/deploy", "q"),
        ("environments/t/deploy", "t"),
        ("discovery/p/1", "hosts"),
        ("discovery/q/2", "hosts"),
        ("notify/bad/1", "1!"),
        ("notify/bad/2", "2!"),
        ("notify/good/1", "3!"),
        ("alarms/p/1/cause", "4!"),
        ("alarms/p/1/alert", "5!"),
        ("alarms/p/2/cause", "6!"),
        ("alarms/p/2/alert", "7!"),
    ] {
        assert_eq!(call(path).unwrap(), answer, "{path}");
    }
    for path in [
        "",
        "test",
        "test/unit/cleanup",
        "test/none/run",
        "environments/p",
        "discovery/q/1",
        "discovery/p/2",
        "notify/good/2",
        "notify/bad/0",
        "notify/x/1",
        "alarms/p/3/cause",
        "alarms/p/0/cause",
        "alarms/p/1/action",
        "alarms/q/1/cause",
    ] {
        assert!(call(path).is_err(), "{path}");
    }
    lua.globals().set("p", returned).unwrap();
    let single: mlua::Table = lua.load("return { notify = p }").eval().unwrap();
    assert!(super::super::project::function(&lua, &single, "notify/bad/1").is_err(), "what is no alert is no channel");
}

#[test]
fn the_example_loads() {
    let text = include_str!("../../../packaging/examples/shop.lua");
    let text = ["shop_webhook", "deploy_key"]
        .into_iter()
        .fold(text.to_owned(), |text, name| text.replace(name, &format!("good_{name}")));
    let pipeline = load(&text).pipeline;
    assert_eq!(pipeline.stages.len(), 2);
    assert_eq!(pipeline.environments[0].rollout.max_parallel, 1);
    assert!(pipeline.environments[0].verify);
}

#[test]
fn the_careful_example_loads() {
    let text = include_str!("../../../packaging/examples/careful.lua");
    let secrets = ["slack_url", "shop_webhook", "deploy_key", "shop/production/database_url"];
    let text = secrets.into_iter().fold(text.to_owned(), |text, name| {
        text.replace(&format!("secret \"{name}"), &format!("secret \"good_{name}"))
    });
    let environment = &load(&text).pipeline.environments[0];
    let hooks = environment.hooks;
    assert!(hooks.prepare && hooks.before && hooks.drain && hooks.undrain && hooks.rollback_safe);
    assert_eq!((environment.alarms.len(), environment.freeze.len()), (1, 1));
    assert_eq!(environment.health.as_ref().map(|health| health.checks.len()), Some(3));
}

#[test]
fn pinned_code_is_what_was_loaded() {
    let fixture = Fixture::new(&[
        ("projects/shop.lua", &format!("local extra = require 'deploy.extra'\n{BASE}")),
        ("deploy/extra.lua", "return { dir = '/srv' }\n"),
    ]);
    let loader = fixture.loader();
    let loaded = loader.load().unwrap().remove(0);
    let code = fixture.folder.path().join("data/code");
    assert!(!code.exists(), "loading stores nothing");
    loader.pin(&loaded).unwrap();
    let bundle = Bundle::load(&code, &loaded.code).unwrap();
    assert_eq!(bundle.files.keys().collect::<Vec<_>>(), ["alerts.log", "deploy.extra", "projects/shop"]);
    assert_eq!(bundle.main().unwrap().path, "projects/shop.lua");
    assert_eq!(bundle.module("deploy.extra").unwrap().text, "return { dir = '/srv' }\n");
    assert!(bundle.module("deploy.other").unwrap_err().contains("is not in the pinned code"));
    assert!(bundle.module("projects/shop").is_err());
    // Another process that never loaded it can pin what is there, and nothing else.
    fixture.loader().pin(&loaded).unwrap();
    std::fs::remove_dir_all(&code).unwrap();
    assert!(fixture.loader().pin(&loaded).is_err());
    // A file that it required is part of the code; one that it did not is not.
    fixture.write("deploy/unused.lua", "return 1");
    assert_eq!(loader.load().unwrap()[0].code, loaded.code);
    fixture.write("deploy/extra.lua", "return { dir = '/opt' }\n");
    assert_ne!(loader.load().unwrap()[0].code, loaded.code);
    loader.pin(&loaded).unwrap();
}

#[test]
fn the_same_project_elsewhere_is_the_same_code() {
    assert_eq!(load(BASE).code, load(BASE).code);
}

#[test]
fn the_users_directories_come_first_and_every_file_counts_once() {
    let (own, other) = (Fixture::project(BASE), Fixture::project("return nothing that loads("));
    other.write("projects/blog.lua", BASE);
    other.write("projects/README.md", "no project");
    other.write("projects/sub/deep.lua", "no project");
    own.write("alerts/log.lua", "return phased.alert { name = 'mine', send = error }");
    let loader = Loader::new(
        vec![own.plugins(), other.plugins()],
        SHIPPED,
        &own.folder.path().join("data"),
        Arc::new(Fake),
        Limits::default(),
    );
    let loaded = loader.load().unwrap();
    let names: Vec<_> = loaded.iter().map(|one| (one.name.as_str(), one.pipeline.notify.bad[0].as_str())).collect();
    assert_eq!(names, [("blog", "mine"), ("shop", "mine")]);
}

#[test]
fn all_errors_of_all_projects_come_at_once() {
    let fixture = Fixture::new(&[
        ("projects/a.lua", &BASE.replace("source =", "sorce =")),
        ("projects/b.lua", "return {"),
        ("projects/bad name.lua", BASE),
        ("projects/c.lua", "local x = require 'broken'\nreturn phased.project {}"),
        ("projects/d.lua", "local x = require 'broken'\nreturn phased.project {}"),
        ("projects/e.lua", "return require 'late'"),
        ("projects/good.lua", BASE),
        ("broken.lua", "local a = 1\nlocal b = = 2\n"),
        ("late.lua", "-- a project may be made elsewhere\nreturn phased.project {\n  surce = 1 }"),
    ]);
    std::fs::write(fixture.plugins().join("projects/f.lua"), b"-- \n--\xff").unwrap();
    std::fs::write(fixture.plugins().join("projects/g.lua"), b"\x1bLua").unwrap();
    let found = fixture.findings();
    assert_eq!(
        found,
        r#"broken.lua:2:11+1 syntax: unexpected symbol near '='
late.lua:2:8+14 missing_key: phased.project has no "environments"; environments in order; each is deployed to only if the one before is good
late.lua:2:8+14 missing_key: phased.project has no "notify"; who is told: one alert or a list of them for every bad end and recovery, or { bad = ..., good = ... }
late.lua:2:8+14 missing_key: phased.project has no "test"; stages of tests on this server, in order; the first failure ends the run and nothing is deployed
late.lua:3:3+5 unknown_key: unknown key "surce" in phased.project; did you mean "source"?
projects/a.lua:3:3+5 unknown_key: unknown key "sorce" in phased.project; did you mean "source"?
projects/b.lua:1:1+8 syntax: unexpected symbol near <eof>
projects/bad name.lua:0:0+1 bad_value: "bad name" is not a valid project name: 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit; rename the file: its name is the project's name
projects/f.lua:2:0+1 not_utf8: it is not UTF-8
projects/g.lua:0:0+1 syntax: it is compiled Lua: only text is loaded"#
    );
}

#[test]
fn a_directory_that_is_not_there_is_said_and_no_projects_are_none() {
    let fixture = Fixture::new(&[("alerts/x.lua", "")]);
    assert!(fixture.loader().load().unwrap().is_empty());
    let gone = Loader::new(
        vec![fixture.plugins().join("none")],
        SHIPPED,
        fixture.folder.path(),
        Arc::new(Fake),
        Limits::default(),
    );
    assert_eq!(gone.load().unwrap_err()[0].code, "unreadable");
}

#[test]
fn errors_in_plugins_are_shown_where_they_are() {
    for (plugin, expected) in [
        ("local x = nil\nreturn x.y", "mine.lua:2:1+10 runtime: attempt to index a nil value (local 'x')"),
        ("error('no luck', 0)", "mine.lua:1:1+19 runtime: no luck"),
        ("local function f()\n  error { code = 1 }\nend\nf()", "mine.lua:2:3+18 runtime:"),
        (
            "return phased.alert { name = 'x', sned = error }",
            "mine.lua:1:35+4 unknown_key: unknown key \"sned\" in phased.alert; did you mean \"send\"?",
        ),
        (
            "return phased.alert { name = 'x y', send = error }",
            "mine.lua:1:30+5 bad_value: phased.alert: name: \"x y\" must be",
        ),
        (
            "return phased.alert { name = 'x', send = error, options = { url = { 'ulr' } } }",
            "mine.lua:1:69+5 bad_value: phased.alert: options.url.kind must be",
        ),
        (
            "return phased.alert { name = 'x', send = error, options = { url = 'url' } }",
            "mine.lua:1:67+5 wrong_type: phased.alert: options.url must be a table",
        ),
        (
            "return phased.alert { name = 'x', send = error, options = { Url = { 'url' } } }",
            "mine.lua:1:61+3 bad_value: phased.alert: options: \"Url\" is not snake_case",
        ),
        ("return phased.secret 'gone'", "mine.lua:1:22+6 secret_missing: secret \"gone\""),
        ("return require 'mine'", ""),
    ] {
        let fixture = Fixture::new(&[
            ("projects/shop.lua", "local x = require 'mine'\nreturn phased.project {}"),
            ("mine.lua", plugin),
        ]);
        let found = fixture.findings();
        assert!(found.starts_with(expected), "{plugin}\n{found}");
    }
}
