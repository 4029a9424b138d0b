//! What a terminal acts on, in everything that people and machines are shown: it is text there, or gone.

use serde_json::{Value, json};

use crate::fixture::{Daemon, Project, World, eventually};

/// Colours, a title, a link, the clipboard, a cleared screen, a bell, backspaces, overwriting, C1, bidirectional marks, DEL, NUL.
const NASTY: &[&str] = &[
    "\u{1b}[31mred\u{1b}[0m",
    "\u{1b}]0;title\u{7}",
    "\u{1b}]8;;http://evil.example\u{1b}\\link\u{1b}]8;;\u{1b}\\",
    "\u{1b}]52;c;cm0gLXJm\u{7}",
    "\u{1b}[2J\u{1b}[1;1H",
    "\u{1b}P+q544e\u{1b}\\",
    "bell\u{7}",
    "hidden\u{8}\u{8}\u{8}\u{8}\u{8}\u{8}",
    "done\rFAILED",
    "\u{9b}31mc1\u{9d}0;c1\u{9c}",
    "\u{202e}gpj.exe\u{2066}",
    "del\u{7f}",
    "nul\u{0}",
    "\u{1b}",
    "\u{2028}separate\u{2029}",
];

/// What is no control character, and acts on a terminal all the same.
const MARKS: &str = "\u{202e}gpj.exe\u{2066}";

/// The first thing in `text` that a terminal would act on.
fn acted_on(text: &str) -> Option<char> {
    let layout =
        |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().find(|c| (c.is_control() && *c != '\n' && *c != '\t') || layout(*c))
}

#[track_caller]
fn harmless(what: &str, text: &str) {
    assert!(!text.is_empty(), "{what} says nothing");
    if let Some(found) = acted_on(text) {
        let at = text.find(found).unwrap();
        let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        panic!("{what} has {found:?} in {:?}", &text[start..].lines().next());
    }
}

/// Every line is one JSON value, and nothing in it is raw.
#[track_caller]
fn one_line_each(what: &str, text: &str) {
    assert!(!text.is_empty(), "{what} says nothing");
    for line in text.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{what}: {e}: {line:?}"));
    }
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{what} has raw control characters");
}

/// A project that prints, names and fails with all of it.
fn nasty() -> (World, Daemon, String) {
    let all = NASTY.join(" ");
    let lua: String = all.bytes().map(|byte| format!("\\{byte:03}")).collect();
    let octal: String = all.bytes().map(|byte| format!("\\{byte:03o}")).collect();
    let world = World::new();
    let host = world.host_table_with("h1", &format!(", name = \"web {MARKS}\", labels = {{ role = \"{MARKS}\" }}"));
    let project = Project::new("shop")
        .hosts(&[&host])
        .stage("unit", &format!(r#"run:log("{lua}"); run:sh [[printf '{octal}\n{octal}'; printf '{octal}' >&2]]"#))
        .deploy(&format!(r#"host:sh [[printf '{octal}\n']]; error("it broke: {lua}")"#));
    world.project(&project);
    let daemon = world.start();
    world.repo.commit_by(
        &NASTY[..3].join(" ").replace(['\u{7}', '<', '>'], ""),
        &[("file", "x")],
        &all.replace('\u{0}', ""),
    );
    world.repo.push_as("main");
    (world, daemon, all)
}

#[test]
fn nothing_that_is_shown_moves_a_terminal_and_every_record_is_one_line() {
    let (world, daemon, all) = nasty();
    let follower = daemon.follow(&["events", "shop"], "events");
    let lines = daemon.follow(&["--json", "events", "shop"], "events.json");
    let freeze = "/v1/projects/shop/environments/production/freeze";
    // What people give as a reason is refused with control characters in it; line ends and marks are kept.
    let refused = daemon.api.post("/v1/projects/shop/start", &json!({ "reason": all }));
    assert_eq!(refused.status, 422);
    harmless("the refusal", &refused.text());
    let reason = format!("{MARKS}\nERROR all is lost");
    daemon.api.put(freeze, &json!({ "for": "1h", "reason": reason, "holder": format!("ann{MARKS}") })).is(200);
    harmless("a freeze", &daemon.api.with("accept", "text/plain").get(freeze).text());
    daemon.api.delete(freeze).is(200);
    let ended = daemon.press_with(&json!({ "reason": reason })).wait();
    assert!(["failed", "halted"].contains(&ended.state()), "{}", ended.state());
    let run = ended.view["id"].as_str().unwrap().to_owned();

    // The command line, as a person uses it.
    for args in [
        &["log", &run][..],
        &["log", "shop"],
        &["log", "shop", "--tail", "3"],
        &["runs"],
        &["runs", "shop"],
        &["status"],
        &["status", "shop"],
        &["plan", "shop"],
        &["hosts", "shop"],
        &["token", "list"],
        &["start", "shop", "--dry-run", "--reason", "\u{1b}[31m"],
        &["start", "shop", "--wait", "--redeploy", "--reason", MARKS],
    ] {
        let said = daemon.cli(args);
        harmless(&args.join(" "), &format!("{}{}", said.stdout, said.stderr));
        let said = daemon.cli(&[&["--json"], args].concat());
        assert!(!said.stdout.chars().any(|c| c.is_control() && c != '\n'), "{args:?} --json");
    }
    // What is refused repeats what was asked.
    for odd in ["\u{1b}[31mshop", "sh\rop", "\u{202e}shop", "a\u{7}"] {
        for verb in ["status", "log", "plan", "stop", "start", "hosts"] {
            let said = daemon.cli(&[verb, odd]);
            assert_ne!(said.code, 0, "{verb} {odd:?}");
            harmless(&format!("{verb} {odd:?}"), &format!("{}{}", said.stdout, said.stderr));
        }
    }
    // The API, as text.
    let text = daemon.api.with("accept", "text/plain");
    for path in [
        "/v1/status",
        "/v1/projects",
        "/v1/projects/shop/status",
        "/v1/projects/shop/plan",
        "/v1/runs",
        &format!("/v1/runs/{run}"),
        &format!("/v1/runs/{run}/log"),
        "/v1/hosts?project=shop",
        "/v1/alarms",
        "/v1/maintenance",
        freeze,
    ] {
        harmless(path, &text.get(path).is(200).text());
    }
    // And as lines and events: the bytes are there, written as JSON writes them.
    let log = format!("/v1/runs/{run}/log");
    let ndjson = daemon.api.with("accept", "application/x-ndjson").get(&log).is(200).text();
    one_line_each("the log as NDJSON", &ndjson);
    assert!(ndjson.contains("\\u001b[31mred"), "what was printed is kept: {ndjson}");
    let events = daemon.api.with("accept", "text/event-stream").get(&log).is(200).text();
    assert!(!events.chars().any(|c| c.is_control() && c != '\n'), "the log as events");
    let shown = eventually("the end is told", || {
        Some(std::fs::read_to_string(&follower.path).unwrap())
            .filter(|told| told.contains("halted") || told.contains("failed"))
    });
    harmless("events", &shown);
    let told = eventually("the end is told", || {
        Some(std::fs::read_to_string(&lines.path).unwrap()).filter(|told| told.ends_with('\n') && told.contains("unit"))
    });
    one_line_each("events --json", &told);

    // The daemon's own log, in both forms.
    let said = daemon.said();
    assert!(said.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{said}");
    harmless("the daemon's log as JSON", &said);
    drop((follower, lines));
    drop(daemon);
    let config = Daemon::configure(&world);
    let text = std::fs::read_to_string(&config).unwrap().replace("format = \"json\"", "format = \"text\"");
    std::fs::write(&config, text).unwrap();
    let log = world.path("text.log");
    let mut command = Daemon::command(&config);
    let mut child = command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    let said = || std::fs::read_to_string(&log).unwrap();
    eventually("it is ready", || said().contains("phased is ready").then_some(()));
    let api = crate::fixture::Api::socket(world.path("phased.sock"));
    api.put(freeze, &json!({ "for": "1h", "reason": reason, "holder": format!("ann{MARKS}") })).is(200);
    api.post("/v1/projects/shop/start", &json!({ "reason": reason, "retest": true })).is(202);
    api.with("x-forwarded-for", "\u{1b}").with("idempotency-key", "\u{1b}[31m").post("/v1/reload", &json!({}));
    eventually("it has something to tell of it", || {
        said().contains("a request to change something was answered").then_some(())
    });
    let ended = child.kill();
    child.wait().unwrap();
    ended.unwrap();
    harmless("the daemon's log as text", &said());
    assert!(!said().lines().any(|line| line.starts_with("ERROR all is lost")), "{}", said());
}
