//! Health of a host after its deploy.

use crate::fixture::{Project, World, free_port};

/// Serves its directory over HTTP on a port of its own; `/healthz` is there or not. Runs on until its world ends.
fn serving(healthz: &str) -> String {
    format!(
        r#"host:sh {{ [[
          cd "$ROOT/$PHASED_HOST_ID"; mkdir -p www; {healthz}
          cd www
          setsid -f python3 -u -c '
import http.server, os
s = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
open("../port.new", "w").write(str(s.server_port)); os.rename("../port.new", "../port")
s.serve_forever()' >/dev/null 2>&1 </dev/null
          until [ -e ../port ]; do sleep 0.05; done
          echo "$PHASED_REVISION" >../revision
        ]], env = {{ ROOT = "@ROOT@" }} }}"#
    )
}

const QUICK: &str = r#"min_healthy_time = "300ms", interval = "100ms", healthy_deadline = "3s", timeout = "1s""#;

#[test]
fn http_is_asked_through_the_session_on_the_hosts_own_loopback() {
    // The port is not known beforehand, so it is the step's: the same way through the session.
    let deploy = format!(
        r#"{}
        local port = host:sh {{ 'cat "$ROOT/$PHASED_HOST_ID/port"', env = {{ ROOT = "@ROOT@" }} }}.stdout
        host:wait {{ ":" .. port .. "/healthz", timeout = "20s", interval = "100ms" }}
        local answer = host:http {{ ":" .. port .. "/healthz" }}
        assert(answer.status == 200 and answer.body == "fine\n", answer.body)
        local missing = host:http {{ ":" .. port .. "/nothing", check = false }}
        assert(missing.status == 404)"#,
        serving("echo fine >www/healthz")
    );
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).deploy(&deploy));
    let commit = world.repo.push("x");
    daemon.deploy().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
}

#[test]
fn a_host_is_healthy_when_its_page_answers() {
    let port = free_port();
    let serve = serving("echo fine >www/healthz").replace("(\"127.0.0.1\", 0)", &format!("(\"127.0.0.1\", {port})"));
    let project = Project::new("shop").hosts(&["h1"]).deploy(&serve);
    let health = format!(
        r#"http = ":{port}/healthz", tcp = ":{port}", min_healthy_time = "300ms", interval = "100ms", healthy_deadline = "20s""#
    );
    let (world, daemon) = World::with(&project.health(&health));
    world.repo.push("healthy");
    assert_eq!(daemon.deploy().is("succeeded").hosts(), ["h1:healthy"]);
}

#[test]
fn a_page_that_answers_badly_stops_the_rollout_at_the_first_host() {
    let port = free_port();
    let serve = serving("true").replace("(\"127.0.0.1\", 0)", &format!("(\"127.0.0.1\", {port})"));
    let (world, daemon) =
        World::with(&Project::new("shop").deploy(&serve).health(&format!(r#"http = ":{port}/healthz", {QUICK}"#)));
    world.repo.push("unhealthy");
    let run = daemon.deploy().is("halted");
    assert_eq!(run.hosts(), ["h1:failed", "h2:skipped", "h3:skipped"]);
    assert!(run.message().contains("404"), "{}", run.message());
    assert_eq!(world.revision("h2"), None);
}

#[test]
fn a_port_nobody_listens_on_is_unhealthy() {
    let port = free_port();
    let (world, daemon) = World::with(&Project::new("shop").health(&format!(r#"tcp = ":{port}", {QUICK}"#)));
    world.repo.push("x");
    let run = daemon.deploy().is("halted");
    assert_eq!(run.host("h1")["cause"]["code"], "unhealthy", "{:#}", run.view);
}

#[test]
fn a_command_decides_about_health() {
    let project = |check: &str| Project::new("shop").health(&format!(r#"command = [[{check}]], {QUICK}"#));
    let (world, daemon) = World::with(&project("true"));
    world.repo.push("x");
    daemon.deploy().is("succeeded");
    world.project(&project("echo replication is behind; false"));
    daemon.api.post("/v1/reload", &serde_json::json!({})).is(200);
    world.repo.push("y");
    daemon.idle();
    let run = daemon.deploy().is("halted");
    assert!(run.message().contains("replication is behind"), "{}", run.message());
}

#[test]
fn health_must_hold_without_a_break() {
    // Good and bad in turns, so that it is never good for long enough.
    let check = r#"command = [[f=@ROOT@/h1/turn; n=$(cat $f 2>/dev/null || echo 0); echo $((n + 1)) >$f; [ $((n % 3)) -ne 2 ] ]],
      min_healthy_time = "2s", interval = "100ms", healthy_deadline = "4s""#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).health(check));
    world.repo.push("flapping");
    daemon.deploy().is("halted");
}

#[test]
fn stop_now_does_not_wait_for_a_hosts_health() {
    let health = r#"command = "false", min_healthy_time = "1s", healthy_deadline = "5m""#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1", "h2"]).health(health));
    world.repo.push("never well");
    let run = daemon.press();
    run.until("it is watched", |_| world.touched("h1").iter().any(|t| t.0 == "end"));
    daemon.api.post(&format!("/v1/runs/{}/stop", run.id), &serde_json::json!({ "now": true })).is(202);
    assert_eq!(run.wait().is("stopped").hosts(), ["h1:unknown", "h2:skipped"]);
}
