//! Who may do what over TCP, and how a refusal looks.

use serde_json::{Value, json};

use crate::fixture::{Api, Daemon, Project, World};

/// A token with these scopes, made over the socket.
fn token(daemon: &Daemon, body: &Value) -> String {
    let made = daemon.api.post("/v1/tokens", body);
    assert!((200..300).contains(&made.status), "{}", made.text());
    made.json()["text"].as_str().unwrap_or_else(|| panic!("{}", made.text())).to_owned()
}

fn world() -> (World, Daemon) {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    world.project(&Project::new("till").hosts(&["h2"]));
    let daemon = world.start();
    (world, daemon)
}

fn problem(api: &Api, method: &str, path: &str) -> (u16, String) {
    api.ask(method, path, b"").problem()
}

#[test]
fn over_tcp_nothing_but_the_public_is_answered_without_a_token() {
    let (_world, daemon) = world();
    let tcp = daemon.tcp();
    for (method, path) in [
        ("GET", "/v1/status"),
        ("GET", "/v1/projects"),
        ("GET", "/v1/runs"),
        ("GET", "/v1/events"),
        ("GET", "/v1/tokens"),
        ("POST", "/v1/projects/shop/start"),
        ("POST", "/v1/projects/shop/stop"),
        ("POST", "/v1/reload"),
        ("GET", "/v1/anything"),
        ("GET", "/anything"),
    ] {
        assert_eq!(problem(&tcp, method, path), (401, "token_missing".to_owned()), "{method} {path}");
    }
    for wrong in ["phd_wrong", "", "x y", "phd_1_2"] {
        let (status, _) = problem(&tcp.bearer(wrong), "GET", "/v1/status");
        assert_eq!(status, 401, "{wrong}");
    }
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        tcp.get(path).is(200);
    }
}

#[test]
fn a_token_may_do_what_its_scopes_say() {
    let (world, daemon) = world();
    world.repo.push("x");
    let api = |scope: &str| daemon.tcp().bearer(&token(&daemon, &json!({ "name": scope, "scopes": [scope] })));
    let (read, deploy, admin) = (api("read"), api("deploy"), api("admin"));
    read.get("/v1/status").is(200);
    assert_eq!(problem(&read, "POST", "/v1/projects/shop/start"), (403, "insufficient_scope".to_owned()));
    assert_eq!(problem(&deploy, "POST", "/v1/reload"), (403, "insufficient_scope".to_owned()));
    let run = deploy.post("/v1/projects/shop/start", &json!({})).is(202).json();
    assert!(run["by"].as_str().unwrap().contains("deploy"), "{run}");
    admin.post("/v1/reload", &json!({})).is(200);
    daemon.run(run["id"].as_str().unwrap()).wait().is("succeeded");
}

#[test]
fn a_token_for_some_projects_sees_no_others() {
    let (_world, daemon) = world();
    let made = token(&daemon, &json!({ "name": "till", "scopes": ["deploy"], "projects": ["till"] }));
    let till = daemon.tcp().bearer(&made);
    till.get("/v1/projects/till/status").is(200);
    assert_eq!(problem(&till, "GET", "/v1/projects/shop/status").0, 403);
    assert_eq!(problem(&till, "POST", "/v1/projects/shop/start").0, 403);
    let names = till.get("/v1/projects").is(200).json();
    assert_eq!(names["items"].as_array().unwrap().len(), 1, "{names}");
}

#[test]
fn a_revoked_token_is_none_and_tokens_survive_a_restart() {
    let (world, daemon) = world();
    let made = token(&daemon, &json!({ "name": "ci", "scopes": ["read"] }));
    daemon.kill();
    let daemon = world.start();
    daemon.tcp().bearer(&made).get("/v1/status").is(200);
    let list = daemon.api.get("/v1/tokens").is(200).json();
    assert!(!list.to_string().contains(&made), "{list}");
    let id = list["items"][0]["id"].as_str().unwrap();
    let gone = daemon.api.ask("DELETE", &format!("/v1/tokens/{id}"), b"");
    assert!((200..300).contains(&gone.status), "{}", gone.text());
    assert_eq!(problem(&daemon.tcp().bearer(&made), "GET", "/v1/status"), (401, "token_invalid".to_owned()));
}

#[test]
fn the_command_line_makes_and_uses_tokens() {
    let (_world, daemon) = world();
    let made = daemon.cli(&["token", "create", "--name", "laptop", "--scope", "read"]);
    assert_eq!(made.code, 0, "{made:?}");
    let token =
        made.stdout.split_whitespace().find(|w| w.starts_with("phd_")).unwrap_or_else(|| panic!("{made:?}")).to_owned();
    let mut status = std::process::Command::new(env!("CARGO_BIN_EXE_phased"));
    status.args(["--addr", &format!("http://{}", daemon.addr), "status"]).env("PHASED_TOKEN", &token);
    let status = crate::fixture::output(&mut status);
    assert!(status.code == 0 && status.stdout.contains("till"), "{status:?}");
    let mut start = std::process::Command::new(env!("CARGO_BIN_EXE_phased"));
    start.args(["--addr", &format!("http://{}", daemon.addr), "start", "shop"]).env("PHASED_TOKEN", &token);
    assert_eq!(crate::fixture::output(&mut start).code, 7);
}

#[test]
fn refusals_are_problems_with_a_stable_code() {
    let (world, daemon) = world();
    world.repo.push("x");
    let api = &daemon.api;
    let json = |body: &Value| api.post("/v1/projects/shop/start", body).problem();
    assert_eq!(problem(api, "GET", "/v1/nothing"), (404, "route_unknown".to_owned()));
    assert_eq!(problem(api, "POST", "/v1/projects/none/start"), (404, "project_unknown".to_owned()));
    assert_eq!(problem(api, "GET", "/v1/runs/none"), (404, "run_unknown".to_owned()));
    assert_eq!(problem(api, "GET", "/v1/runs/01m83c1n1rgt0ry05jxtgmgk59"), (404, "run_unknown".to_owned()));
    assert_eq!(problem(api, "DELETE", "/v1/status").0, 405);
    assert_eq!(problem(api, "GET", "/v1/projects/shop/start").0, 405);
    assert_eq!(problem(api, "POST", "/v1/projects/shop/stop"), (409, "nothing_to_stop".to_owned()));
    assert_eq!(json(&json!({ "refs": "main" })), (422, "unknown_field".to_owned()));
    assert_eq!(json(&json!({ "redeploy": "perhaps" })), (422, "bad_value".to_owned()));
    assert_eq!(json(&json!({ "ref": "nowhere" })), (422, "ref_unknown".to_owned()));
    let large =
        api.with("content-type", "application/json").ask("POST", "/v1/projects/shop/start", &vec![b' '; (1 << 20) + 1]);
    assert_eq!(large.problem(), (413, "body_too_large".to_owned()));
    let broken = api.with("content-type", "application/json").ask("POST", "/v1/projects/shop/start", b"{");
    assert_eq!(broken.problem().0, 400);
}

#[test]
fn an_idempotency_key_is_one_run() {
    let (world, daemon) = world();
    world.repo.push("x");
    let keyed = daemon.api.with("idempotency-key", "deploy-of-monday");
    let first = keyed.post("/v1/projects/shop/start", &json!({ "redeploy": true })).is(202);
    let again = keyed.post("/v1/projects/shop/start", &json!({ "redeploy": true })).is(202);
    assert_eq!(first.json()["id"], again.json()["id"]);
    let other = keyed.post("/v1/projects/shop/start", &json!({ "retest": true }));
    assert_eq!(other.problem(), (422, "idempotency_mismatch".to_owned()));
    daemon.run(first.json()["id"].as_str().unwrap()).wait().is("succeeded");
    daemon.kill();
    let daemon = world.start();
    let keyed = daemon.api.with("idempotency-key", "deploy-of-monday");
    let later = keyed.post("/v1/projects/shop/start", &json!({ "redeploy": true })).is(202);
    assert_eq!(first.json()["id"], later.json()["id"]);
}

#[test]
fn forms_queries_and_empty_bodies_start_runs_too() {
    let (world, daemon) = world();
    let commit = world.repo.push("x");
    let form = daemon.api.with("content-type", "application/x-www-form-urlencoded");
    let body = format!("ref={commit}&reason=by+form");
    let run = form.ask("POST", "/v1/projects/shop/start", body.as_bytes()).is(202);
    assert_eq!(run.json()["reason"], "by form");
    assert_eq!(run.header("location").unwrap(), format!("/v1/runs/{}", run.json()["id"].as_str().unwrap()));
    let run = daemon.api.ask("POST", "/v1/projects/till/start?reason=by%20query", b"").is(202).json();
    assert_eq!(run["reason"], "by query");
}

#[test]
fn a_run_can_be_waited_for_as_a_gate() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", r#"run:sh "exit 1""#));
    let daemon = world.start();
    world.repo.push("bad");
    let run = daemon.press();
    let answer = daemon.api.get(&format!("/v1/runs/{}?wait=finished&fail&timeout=60s", run.id));
    assert_eq!(answer.problem(), (424, "run_not_succeeded".to_owned()));
    assert_eq!(answer.json()["run"]["state"], "failed");
}

#[test]
fn a_broken_project_is_refused_at_reload_and_the_old_one_stays() {
    let (world, daemon) = world();
    let path = world.path("plugins/projects/shop.lua");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("queue =", "queu =")).unwrap();
    let answer = daemon.api.post("/v1/reload", &json!({}));
    assert_eq!(answer.problem(), (422, "projects_invalid".to_owned()));
    assert!(answer.text().contains("shop.lua:") && answer.text().contains("queue"), "{}", answer.text());
    daemon.api.get("/v1/projects/shop/status").is(200);
    assert_eq!(daemon.cli(&["reload"]).code, 1);
    std::fs::write(&path, good).unwrap();
    assert_eq!(daemon.cli(&["reload"]).code, 0);
}
