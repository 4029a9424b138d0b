//! Every route of the daemon's own document, asked by everybody who must not: in thirty ways each.

use std::{collections::BTreeMap, sync::Mutex};

use serde_json::Value;

use super::{status_of, token};
use crate::fixture::{Project, World, eventually};

/// Ways of writing a request so that a gate, a proxy and a router might see three different ones: `METHOD TARGET` and further headers.
fn mutations(method: &str, path: &str) -> Vec<(String, String, &'static str)> {
    let as_is = |target: String| (method.to_owned(), target, "");
    let targets = [
        path.to_owned(),
        format!("/{path}"),
        format!("{path}/"),
        format!("{path};.css"),
        format!("/healthz/..{path}"),
        format!("/hooks/..{path}"),
        format!("/hooks/%2e%2e{path}"),
        format!("/healthz;{path}"),
        format!("/./{path}"),
        path.replace("/v1", "/%76%31"),
        path.replace("/v1/", "/v1%2f"),
        path.replace("/v1/", "/v1//"),
        path.replace("/v1/", "/V1/"),
        path.to_uppercase(),
        format!("{path}%00"),
        format!("{path}%20"),
        format!("{path}\\..\\healthz"),
        format!("{path}?x=/healthz"),
        format!("{path}%3f/healthz"),
        format!("http://localhost{path}"),
        format!("http://localhost/healthz?{path}"),
    ];
    let mut all: Vec<_> = targets.into_iter().map(as_is).collect();
    all.extend(
        ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"]
            .map(|other| (other.to_owned(), path.to_owned(), "")),
    );
    let headers = [
        "X-HTTP-Method-Override: GET\r\n",
        "X-Original-URL: /healthz\r\nX-Rewrite-URL: /healthz\r\n",
        "X-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\n",
        "Cookie: token=admin; Authorization=Bearer admin\r\n",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    ];
    all.extend(headers.map(|headers| (method.to_owned(), path.to_owned(), headers)));
    all
}

/// What cannot be read without the scope `admin`.
const ADMIN: [&str; 2] = ["/tokens", "/backup"];

/// What everybody may see.
fn is_public(method: &str, target: &str) -> bool {
    let path = target.strip_prefix("http://localhost").unwrap_or(target).split('?').next().unwrap();
    ["GET", "HEAD"].contains(&method) && ["/healthz", "/readyz", "/openapi.json"].contains(&path)
}

#[test]
fn only_public_routes_answer_those_without_a_right_token_however_they_ask() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).webhook());
    std::fs::write(
        world.path("limits.toml"),
        "refusal_rate = \"none\"\nhook_rate = \"none\"\nclient_connections = 1000\n",
    )
    .unwrap();
    let daemon = world.start();
    let addr = daemon.addr;
    world.repo.push("never asked for");
    let (read, expired) = (token(&daemon, "read", None), token(&daemon, "admin", Some("1s")));
    eventually("the token has expired", || {
        (daemon.tcp().bearer(&expired).get("/v1/status").status == 401).then_some(())
    });
    let before = state(&daemon);

    let document = daemon.tcp().get("/openapi.json").is(200).json();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let names = [
            ("{project}", "shop"),
            ("{provider}", "github"),
            ("{environment}", "production"),
            ("{id}", "01kc0000000000000000000000"),
        ];
        let path = names.iter().fold(path.clone(), |path, (name, value)| path.replace(name, value));
        let words = ["pause", "resume", "promote", "rollback", "converge", "adopt", "accept", "forget_key"];
        let paths: Vec<String> = match path.contains('{') {
            true => words.iter().map(|word| format!("{}{word}", &path[..path.find('{').unwrap()])).collect(),
            false => vec![path],
        };
        for method in
            item.as_object().unwrap().keys().filter(|k| ["get", "put", "post", "delete"].contains(&k.as_str()))
        {
            routes.extend(paths.iter().map(|path| (method.to_uppercase(), path.clone())));
        }
    }
    assert!(routes.len() >= 30, "{routes:?}");

    let credentials = [
        ("none", String::new()),
        ("bad", "Authorization: Bearer phd_AAAAAAAA_0000000000000000000000000000000000000000000\r\n".to_owned()),
        ("expired", format!("Authorization: Bearer {expired}\r\n")),
        ("read", format!("Authorization: Bearer {read}\r\n")),
    ];
    let next = Mutex::new(routes.iter());
    let counted: Mutex<BTreeMap<(&str, u16), usize>> = Mutex::default();
    let take = || next.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((method, path)) = take() {
                    for (whose, credential) in &credentials {
                        for (method, target, headers) in mutations(method, path) {
                            let request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{credential}{headers}\r\n");
                            let status = status_of(addr, request.as_bytes());
                            *counted.lock().unwrap().entry((whose, status)).or_default() += 1;
                            let reads = ["GET", "HEAD"].contains(&method.as_str());
                            let may = is_public(&method, &target) || (*whose == "read" && reads && !ADMIN.iter().any(|path| target.contains(path)));
                            assert!(status >= 400 || (may && status == 200), "{whose}: {request} was answered {status}");
                            assert!(status < 500 || status == 501 || may, "{whose}: {request} was answered {status}");
                        }
                    }
                }
            });
        }
    });
    let counted = counted.into_inner().unwrap();
    assert!(counted.values().sum::<usize>() > 4_000 && counted.contains_key(&("read", 200)), "{counted:?}");
    assert_eq!(state(&daemon), before, "nothing has changed");
}

/// All that a request could have changed.
fn state(daemon: &crate::fixture::Daemon) -> Value {
    let get = |path: &str| daemon.api.get(path).is(200).json();
    let mut maintenance = get("/v1/maintenance");
    maintenance["since"] = Value::Null;
    let freeze = get("/v1/projects/shop/environments/production/freeze");
    let lease = get("/v1/projects/shop/environments/production/lease");
    Value::Array(vec![get("/v1/runs"), get("/v1/tokens"), maintenance, freeze, lease, get("/v1/projects")])
}
