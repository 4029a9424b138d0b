//! Code under test can read nothing of the daemon's, nor ask it for anything.

use crate::fixture::{Project, World, eventually};

/// Runs `script` in a stage, with the daemon's pid and the world's paths in its environment, and returns what it printed.
fn within(script: &str) -> (World, String) {
    within_a(World::new(), script)
}

pub fn within_a(world: World, script: &str) -> (World, String) {
    let env = r#"env = { ROOT = "@ROOT@/..", DAEMON = run:sh "cat tested.pid 2>/dev/null || cat @ROOT@/../tested/pid".stdout }"#;
    let quoted = format!("run:sh {{ [==[\n{script}\n]==], check = false, {env} }}");
    // Another project with work of its own, to be spied on.
    world.project(&Project::new("other").hosts(&["h2"]).stage("unit", r#"run:sh "echo private >note""#));
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", &quoted).webhook());
    world.repo.push("curious");
    std::fs::write(world.path("tested/pid"), "0").unwrap();
    let daemon = world.start();
    std::fs::write(world.path("tested/pid"), daemon.pid().to_string()).unwrap();
    for project in ["other", "shop"] {
        let runs = || daemon.api.get(&format!("/v1/runs?project={project}")).json();
        let id = eventually("its head is found", || runs()["items"][0]["id"].as_str().map(str::to_owned));
        daemon.run(&id).wait();
    }
    let start = serde_json::json!({ "retest": true });
    let run = daemon.api.post("/v1/projects/shop/start", &start).is(202).json()["id"].as_str().unwrap().to_owned();
    let run = daemon.run(&run).wait();
    let log = run.log_of("?step=test/unit");
    assert!(log.contains("looked"), "the script did not come to its end: {log}\n{:#}", run.view);
    drop(daemon);
    (world, log)
}

/// Prints `READABLE` and `WRITABLE` of what is the daemon's or another project's.
pub const FILES: &str = r#"set +e
        look() { for f in "$@"; do
            if cat "$f" >/dev/null 2>&1 || { [ -d "$f" ] && ls "$f" >/dev/null 2>&1; }; then echo "READABLE $f"; fi
        done; }
        look "$ROOT"/secrets "$ROOT"/secrets/hook "$ROOT"/secrets/key
        for d in journal state blobs code tmp; do look "$ROOT/data/$d"; find "$ROOT/data/$d" -type f -readable 2>/dev/null | sed 's/^/READABLE /'; done
        look "$ROOT"/data/work/other "$ROOT"/data/jobs/other "$ROOT"/data/journal/control "$ROOT"/data/LOCK
        find "$ROOT/data" -name note -readable 2>/dev/null | sed 's/^/READABLE /'
        find "$ROOT/data" -path "$ROOT/data/work/shop" -prune -o -path "$ROOT/data/jobs/shop" -prune -o -type f -writable -print 2>/dev/null | sed 's/^/WRITABLE /'
        echo looked"#;

/// Prints what it can do to the daemon's process.
pub const PROCESS: &str = r#"set +e
        [ "$DAEMON" -gt 1 ] && [ -d "/proc/$DAEMON" ] || echo "NO DAEMON $DAEMON"
        for f in environ mem maps auxv; do
            head -c 1 "/proc/$DAEMON/$f" >/dev/null 2>&1 && echo "READABLE $f"
        done
        ls "/proc/$DAEMON/fd" >/dev/null 2>&1 && echo "READABLE fd"
        kill -0 "$DAEMON" 2>/dev/null && echo "SIGNALS"
        tr '\0' '\n' <"/proc/self/environ" | grep -q DAEMON_ONLY && echo "INHERITED"
        for fd in /proc/self/fd/*; do readlink "$fd"; done | grep -e data/journal -e data/state -e LOCK && echo "INHERITED a file"
        echo looked"#;

/// What [`PROCESS`] must not print.
pub const HARM: [&str; 4] = ["READABLE", "SIGNALS", "INHERITED", "NO DAEMON"];

#[test]
fn it_can_read_no_secret_no_journal_no_code_and_nothing_of_other_projects() {
    let (_world, log) = within(FILES);
    assert!(!log.contains("READABLE") && !log.contains("WRITABLE"), "{log}");
}

#[test]
fn it_can_read_nothing_of_the_daemons_process() {
    let (_world, log) = within(PROCESS);
    for word in HARM {
        assert!(!log.contains(word), "{log}");
    }
}

#[test]
fn it_may_not_use_the_socket() {
    let (_world, log) = within(
        r#"python3 - "$ROOT/phased.sock" <<'P'
import socket, sys
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
    s.sendall(b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    answer = s.recv(4096).decode()
    print("ANSWERED", answer.split()[1])
except OSError as e:
    print("REFUSED", e)
P
        echo looked"#,
    );
    assert!(log.contains("REFUSED") || log.contains("ANSWERED 403"), "{log}");
}

#[test]
fn even_where_the_sockets_mode_would_let_it_in_it_is_refused() {
    let world = World::new();
    let ask = r#"run:sh { [==[
        until [ -e "$ROOT/tested/open" ]; do sleep 0.05; done
        python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"POST /v1/projects/shop/stop HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
print("ANSWERED", s.recv(4096).decode().split()[1])' "$ROOT/phased.sock" ]==], env = { ROOT = "@ROOT@/.." } }"#;
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", ask));
    let daemon = world.start();
    world.repo.push("asks");
    let run = daemon.press();
    std::os::unix::fs::symlink("/dev/null", world.path("tested/none")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&daemon.socket, mode).unwrap();
    std::fs::write(world.path("tested/open"), "").unwrap();
    let run = run.wait().is("succeeded");
    assert!(run.log().contains("ANSWERED 403"), "{}", run.log());
}

#[test]
fn it_runs_as_a_user_of_its_projects_own_in_a_clean_environment() {
    let (world, log) = within("id -u; pwd; touch here && echo looked");
    let uid: u32 = log.split_whitespace().find_map(|w| w.parse().ok()).unwrap();
    assert!((world.uids.0..=world.uids.1).contains(&uid), "{log}");
}

#[test]
fn a_link_in_the_checkout_leads_the_daemon_nowhere() {
    let project = Project::new("shop").hosts(&["h1"]).deploy(
        r#"local ok, e = pcall(function() host:upload { "leak", to = "@ROOT@/h1/leaked" } end)
           assert(not ok, "it was uploaded")
           host:sh "echo kept" "#,
    );
    let (world, daemon) = World::with(&project);
    std::os::unix::fs::symlink(world.path("secrets/hook"), world.path("repo/leak")).unwrap();
    world.repo.push("a link to a secret");
    daemon.deploy().is("succeeded");
    assert!(!world.host("h1").join("leaked").exists());
}
