//! Secrets never show: planted plain, encoded and split, looked for everywhere.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::fixture::{Project, Sink, World};

const SECRET: &str = "hunter2/+&Geheim%Zugang=7";

/// The forms in which a secret might be recognised.
fn forms() -> Vec<String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let url: String = SECRET
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect();
    vec![SECRET.to_owned(), STANDARD.encode(SECRET), url]
}

/// Prints the secret in every way a program may, on standard output and error, in two halves, and fails with it.
const SPILL: &str = r#"{ [==[
    printf 'plain %s\n' "$TOKEN"
    printf 'plain %s\n' "$TOKEN" >&2
    printf 'base64 '; printf %s "$TOKEN" | base64 -w0; echo
    printf 'header '; printf 'user:%s' "$TOKEN" | base64 -w0; echo
    python3 -c 'import os, urllib.parse; print("url", urllib.parse.quote(os.environ["TOKEN"], safe=""))'
    half=${TOKEN%"${TOKEN#?????????}"}
    printf 'split %s' "$half"; sleep 0.1; printf '%s\n' "${TOKEN#"$half"}"
    cat >&2
    sleep 0.3
    echo "in the end $TOKEN" >&2; exit 3
  ]==], env = { TOKEN = phased.secret "token" }, stdin = phased.secret "token" }"#;

fn contains(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle.as_bytes())
}

/// Files below `dir` that have one of the forms in them.
fn files_with_secret(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            files_with_secret(&path, found);
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.extend(forms().iter().filter(|f| contains(&bytes, f)).map(|f| format!("{f} in {}", path.display())));
        }
    }
}

/// Looks at every command line of the machine until it is told to end.
struct Watcher(Arc<AtomicBool>, Arc<Mutex<Vec<String>>>, Option<std::thread::JoinHandle<()>>);

impl Watcher {
    fn start() -> Watcher {
        let (over, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stop, found) = (Arc::clone(&over), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
                    // The python in the step gets it by its environment; nobody gets it as an argument.
                    if forms().iter().any(|form| contains(&line, form)) {
                        found.lock().unwrap().push(String::from_utf8_lossy(&line).replace('\0', " "));
                    }
                }
                std::thread::yield_now();
            }
        });
        Watcher(over, seen, Some(thread))
    }

    fn end(mut self) -> Vec<String> {
        self.0.store(true, Ordering::Relaxed);
        self.2.take().unwrap().join().unwrap();
        self.1.lock().unwrap().clone()
    }
}

#[track_caller]
fn nowhere(project: Project) {
    let sink = Sink::start();
    let world = World::new();
    world.secret("token", SECRET);
    world.project(&project.tells(&sink));
    let daemon = world.start();
    world.repo.push("spills");
    let watcher = Watcher::start();
    let run = daemon.deploy();
    let lines = watcher.end();
    sink.message_of(&run.id);
    assert!(run.log().contains("plain") && run.log().contains("split"), "{}", run.log());
    let mut shown =
        vec![run.log(), run.view.to_string(), daemon.said(), String::from_utf8_lossy(&sink.raw()).into_owned()];
    shown.push(run.api.with("accept", "application/x-ndjson").get(&format!("/v1/runs/{}/log", run.id)).text());
    shown.push(daemon.status().to_string());
    shown.push(daemon.cli(&["log", "shop"]).stdout);
    for text in &shown {
        for form in forms() {
            assert!(!text.contains(&form), "{form} is shown: {text}");
        }
        // Its two halves on one line would be the same.
        assert!(!text.contains("hunter2/+"), "half of it is shown: {text}");
    }
    assert_eq!(lines, Vec::<String>::new());
    drop(daemon);
    let mut found = Vec::new();
    files_with_secret(&world.path("data"), &mut found);
    files_with_secret(&world.path("hosts"), &mut found);
    // What a command printed lies on its own machine, in its own user's directory, until the host's files go.
    found.retain(|f| !f.contains("/hosts/") && !f.contains("/data/jobs/"));
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn a_secret_of_a_stage_shows_nowhere() {
    nowhere(Project::new("shop").stage("unit", &format!("run:sh {SPILL}")));
}

#[test]
fn a_secret_of_a_deploy_shows_nowhere() {
    nowhere(Project::new("shop").hosts(&["h1"]).deploy(&format!("host:sh {SPILL}")));
}

#[test]
fn a_secret_that_lua_gets_back_is_redacted_there_too() {
    let test = r#"local r = run:sh { 'printf "x%sx" "$TOKEN"', env = { TOKEN = phased.secret "token" } }
      run:log("got " .. r.stdout)
      run:fail("failed with " .. r.stdout)"#;
    let world = World::new();
    world.secret("token", SECRET);
    world.project(&Project::new("shop").stage("unit", test));
    let daemon = world.start();
    world.repo.push("x");
    let run = daemon.deploy().is("failed");
    assert!(run.log().contains("got x") && !run.log().contains(SECRET), "{}", run.log());
    assert!(run.message().contains("failed with x") && !run.message().contains(SECRET), "{}", run.message());
}

#[test]
fn a_secret_cannot_be_joined_to_text_and_the_error_says_what_to_do() {
    let world = World::new();
    world.secret("token", SECRET);
    let test = r#"run:sh("curl -H 'token: " .. phased.secret "token" .. "'")"#;
    world.project(&Project::new("shop").stage("unit", test));
    let daemon = world.start();
    world.repo.push("x");
    let run = daemon.deploy().is("failed");
    assert!(run.message().contains("env ="), "{}", run.message());
}

#[test]
fn a_secret_that_does_not_exist_is_an_error_before_anything_runs() {
    let world = World::new();
    world.project(&Project::new("shop").head(r#"local s = phased.secret "missing""#));
    let config = crate::fixture::Daemon::configure(&world);
    let checked = crate::fixture::output(
        std::process::Command::new(env!("CARGO_BIN_EXE_phased")).args(["check", "--config"]).arg(config),
    );
    assert!(checked.code == 1, "{checked:?}");
    assert!(format!("{}{}", checked.stdout, checked.stderr).contains("missing"), "{checked:?}");
}
