//! Alarms: probes against a real Prometheus that scrapes a real exporter, and the channels of alarms.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::fixture::{Daemon, Project, Sink, World, eventually};

/// What a page shows when it is asked for.
type Body = Box<dyn Fn() -> String + Send>;

fn fixed(body: &str) -> Body {
    let body = body.to_owned();
    Box::new(move || body.clone())
}

/// A page that shows what the test wants, and keeps the headers of what asked for it last.
struct Page {
    port: u16,
    body: Arc<Mutex<Body>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Page {
    fn start(body: &str) -> Page {
        Page::showing(fixed(body))
    }

    fn showing(body: Body) -> Page {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let page = Page {
            port: listener.local_addr().unwrap().port(),
            body: Arc::new(Mutex::new(body)),
            asked: Arc::default(),
        };
        let (body, asked) = (page.body.clone(), page.asked.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                *asked.lock().unwrap() = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                let body = (body.lock().unwrap())();
                let _client_gone = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        page
    }

    fn shows(&self, body: &str) {
        *self.body.lock().unwrap() = fixed(body);
    }
}

/// A Prometheus of the test's own; dies with it.
struct Prometheus {
    child: Child,
    port: u16,
}

impl Prometheus {
    /// Scrapes `exporter` five times a second.
    fn start(dir: &Path, exporter: u16) -> Prometheus {
        let there = Command::new("prometheus").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(there.is_ok_and(|status| status.success()), "prometheus is missing: apt-get install prometheus");
        std::fs::create_dir(dir).unwrap();
        let config = format!(
            "global:\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\nscrape_configs:\n- job_name: shop\n  static_configs:\n  \
             - targets: ['127.0.0.1:{exporter}']\n"
        );
        std::fs::write(dir.join("prometheus.yml"), config).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        // Somebody else may take the free port first: then another one.
        eventually("prometheus is ready", || {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            let mut command = Command::new("prometheus");
            command
                .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
                .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
                .arg(format!("--web.listen-address=127.0.0.1:{port}"));
            let mut child = command.stdout(Stdio::null()).stderr(log.try_clone().unwrap()).spawn().unwrap();
            let answers = eventually("prometheus answers", || match child.try_wait().unwrap() {
                Some(_) => Some(false),
                None => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok().then_some(true),
            });
            answers.then_some(Prometheus { child, port })
        })
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The alarms as they are when each has been measured now, by name.
fn measured(daemon: &Daemon, name: &str) -> Value {
    let all = daemon.api.get("/v1/alarms?measure=true").is(200).json();
    all["items"].as_array().unwrap().iter().find(|alarm| alarm["name"] == name).unwrap().clone()
}

#[test]
fn a_probe_asks_a_real_prometheus() {
    let world = World::new();
    let exporter = Page::start("shop_errors{instance_name=\"h1\"} 0.25\nshop_errors{instance_name=\"h2\"} 0.75\n");
    let prometheus = Prometheus::start(&world.path("prometheus"), exporter.port);
    let alarm = |name: &str, query: &str, keys: &str| {
        format!(
            "{{ \"{name}\", cause = prometheus {{ url = \"http://127.0.0.1:{}\", query = [[{query}]], above = 0.5 }},\n\
             alert = require \"alerts.log\" {{}}, action = \"rollback\", {keys} }}",
            prometheus.port
        )
    };
    let alarms = [
        alarm("mean", "avg(shop_errors)", "lasting = \"2m\""),
        alarm("one host", r#"shop_errors{instance_name=~"$hosts"}"#, ""),
        alarm("several", "shop_errors", ""),
        alarm("absent", "shop_nothing", ""),
        alarm("no rate", "sum(shop_errors * 0) / 0", ""),
        alarm("wrong", "sum(shop_errors", ""),
    ];
    let project = Project::new("shop").hosts(&["h2"]).head("local prometheus = require \"probes.prometheus\"");
    world.project(&project.alarms(&alarms.join(", ")));
    let daemon = world.start();
    let mean = eventually("prometheus has scraped", || {
        Some(measured(&daemon, "mean")).filter(|alarm| alarm["now"]["state"] != "no_data")
    });
    assert_eq!(mean["now"], json!({"value": 0.5, "state": "good", "message": null}));
    assert_eq!(
        (&mean["fires"], &mean["action"], &mean["cause"]),
        (&json!("above 0.5 for 2m"), &json!("rollback"), &json!("prometheus"))
    );
    // Only the environment's own host.
    assert_eq!(measured(&daemon, "one host")["now"], json!({"value": 0.75, "state": "bad", "message": null}));
    assert_eq!(
        measured(&daemon, "absent")["now"],
        json!({"value": null, "state": "no_data", "message": "the query gives no series"})
    );
    assert_eq!(
        measured(&daemon, "no rate")["now"],
        json!({"value": null, "state": "no_data", "message": "the query gives NaN"})
    );
    let several = measured(&daemon, "several")["now"].clone();
    assert_eq!(several["state"], "error");
    assert!(several["message"].as_str().unwrap().contains("the query gives 2 series"), "{several}");
    let wrong = measured(&daemon, "wrong")["now"]["message"].to_string();
    assert!(wrong.contains("Prometheus refused the query") && wrong.contains("(bad_data)"), "{wrong}");
    // It gets worse, and then nobody measures any more.
    exporter.shows("shop_errors{instance_name=\"h1\"} 3\n");
    eventually("the mean is bad", || (measured(&daemon, "mean")["now"]["value"] == 3.0).then_some(()));
    exporter.shows("");
    eventually("there is no data", || (measured(&daemon, "mean")["now"]["state"] == "no_data").then_some(()));
    drop(prometheus);
    let gone = measured(&daemon, "mean")["now"].clone();
    assert_eq!(gone["state"], "error", "{gone}");
    // Unless somebody asks for it nothing is measured.
    let listed = daemon.api.get("/v1/alarms?project=shop").is(200).json();
    assert_eq!((listed["items"].as_array().unwrap().len(), &listed["items"][0]["now"]), (6, &Value::Null));
    daemon.api.get("/v1/alarms?project=nobody").is(404);
}

/// The errors that hosts make, by what each has now: as many as the test says of that commit, and a little that changes with time.
fn errors(hosts: PathBuf, of: Arc<Mutex<BTreeMap<String, u32>>>) -> Body {
    Box::new(move || {
        let wobble = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_millis() % 10;
        let line = |host: &str| {
            let commit = std::fs::read_to_string(hosts.join(host).join("revision")).unwrap_or_default();
            // Nobody is to be compared with this one: there are others, and each new host is held against one old one.
            let errors = if host == "h5" { 1000 } else { of.lock().unwrap().get(commit.trim()).copied().unwrap_or(20) };
            format!("shop_errors{{instance_name=\"{host}\"}} {errors}.{wobble}\n")
        };
        ["h1", "h2", "h3", "h4", "h5"].map(line).concat()
    })
}

#[test]
fn a_release_is_held_against_a_baseline_of_equal_size_that_is_measured_at_the_same_moment() {
    let world = World::new();
    let bad: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let exporter = Page::showing(errors(world.path("hosts"), bad.clone()));
    let prometheus = Prometheus::start(&world.path("prometheus"), exporter.port);
    let alarm = format!(
        r#"{{ "errors", cause = require "probes.prometheus" {{ url = "http://127.0.0.1:{}", query = [[avg(shop_errors{{instance_name=~"$hosts"}})]] }},
              alert = require "alerts.log" {{}}, action = "rollback", compare = "baseline", tolerance = "20%", interval = "200ms" }}"#,
        prometheus.port
    );
    let project = Project::new("shop")
        .hosts(&["h1", "h2", "h3", "h4", "h5"])
        .phases(r#"canary = 2, max_parallel = 3, bake_time = "5s""#)
        .alarms(&alarm);
    world.project(&project);
    let daemon = world.start();
    let all = ["h1", "h2", "h3", "h4", "h5"];
    // The first is as good as nothing at all.
    let old = world.repo.push("as good as any");
    daemon.deploy().is("succeeded");
    daemon.idle();

    // Two hosts have it, and two of the three others are the baseline.
    let worse = world.repo.push("worse than what is live");
    bad.lock().unwrap().insert(worse.clone(), 90);
    let run = daemon.deploy().is("rolled_back");
    assert_eq!(run.code(), "alarm", "{}", run.view);
    assert!(run.message().contains(" of the baseline, higher by more than 20 % in "), "{}", run.message());
    assert!(world.hosts_have(&all, &old));
    assert_eq!(["h1", "h2", "h3"].map(|host| world.touched(host).len()), [6, 6, 2], "the canary alone had it");
    daemon.idle();

    // What is live is as bad by now: a limit would not let it pass, and the release is not to blame.
    let alike = world.repo.push("no worse than what is live");
    bad.lock().unwrap().extend([(old, 90), (alike.clone(), 90)]);
    daemon.deploy().is("succeeded");
    assert!(world.hosts_have(&all, &alike));
}

#[test]
fn a_probe_is_limited_in_time_and_its_token_is_sent_and_never_shown() {
    let world = World::new();
    world.secret("token", "only-prometheus-knows");
    let page = Page::start("{\"queue\": {\"depth\": 7}}");
    let (_silent, silent) = crate::fixture::listening_silent();
    let alarms = format!(
        r#"{{ "queue", cause = require "probes.http" {{ "http://127.0.0.1:{}/", json = "queue.depth", above = 5, token = phased.secret "token" }},
              alert = require "alerts.log" {{}}, action = "pause" }},
           {{ "slow", cause = require "probes.http" {{ "http://127.0.0.1:{silent}/", json = "x", above = 5 }},
              alert = require "alerts.log" {{}}, action = "none", timeout = "300ms" }},
           {{ "echo", cause = echo {{ "http://127.0.0.1:{}/", above = 5, token = phased.secret "token" }},
              alert = require "alerts.log" {{}}, action = "none" }}"#,
        page.port, page.port
    );
    let echo = r#"local echo = phased.probe { name = "echo",
        options = { url = { "url", position = 1 }, token = { "secret" }, above = { "number" } },
        measure = function(options)
          return { value = 1, message = "it said " .. phased.http { options.url, bearer = options.token }.body }
        end }"#;
    world.project(&Project::new("shop").head(echo).alarms(&alarms));
    let daemon = world.start();
    assert_eq!(measured(&daemon, "queue")["now"]["value"], 7.0);
    assert!(
        page.asked
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.eq_ignore_ascii_case("authorization: Bearer only-prometheus-knows"))
    );
    let slow = measured(&daemon, "slow")["now"]["message"].to_string();
    assert!(slow.contains("took longer than 300ms"), "{slow}");
    page.shows("only-prometheus-knows");
    assert_eq!(
        measured(&daemon, "echo")["now"],
        json!({"value": 1.0, "state": "good", "message": "it said [secret:token]"})
    );
}

#[test]
fn alarms_are_told_of_through_their_own_channel() {
    let (bad, own) = (Sink::start(), Sink::start());
    let alarms = format!(
        r#"{{ "up", cause = require "probes.http" {{ "{}", below = 1 }}, action = "halt",
              alert = require "alerts.webhook" {{ "{}" }} }}"#,
        own.url(),
        own.url()
    );
    let (_world, daemon) = World::with(&Project::new("shop").tells(&bad).alarms(&alarms));
    let told = daemon.api.post("/v1/alerts/test", &json!({})).is(200).json();
    let channels: Vec<&str> =
        told["items"].as_array().unwrap().iter().map(|c| c["channel"].as_str().unwrap()).collect();
    assert_eq!(channels, ["shop bad: webhook", "shop production alarm \"up\": webhook"]);
    assert_eq!((bad.asked().len(), own.asked().len()), (1, 1));
}
