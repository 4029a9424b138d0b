//! Bytes that are no HTTP, nearly HTTP, and HTTP with bodies that are nothing.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{connect, token};
use crate::fixture::{Dice, Project, World, times};

/// What was said, to the end of it.
fn exchanged(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(addr);
    // It may be refused before all of it was sent.
    let _refused = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut part = [0; 16 << 10];
    // Some answers never end.
    while answer.len() < 256 << 10 {
        match stream.read(&mut part) {
            Ok(n) if n > 0 => answer.extend_from_slice(&part[..n]),
            _ => break,
        }
    }
    answer
}

/// No answer, or one that there is for it.
fn checked(addr: SocketAddr, bytes: &[u8], answered: &AtomicUsize) {
    let said = exchanged(addr, bytes);
    if said.is_empty() {
        return;
    }
    let shown = String::from_utf8_lossy(&said[..said.len().min(300)]).into_owned();
    let status = shown.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
    // 503 is said, with a time, where there is no room.
    let documented = status.is_some_and(|status| (200..500).contains(&status) || status == 503);
    assert!(documented, "{:?}: {shown}", String::from_utf8_lossy(bytes));
    answered.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn random_requests_get_an_answer_or_none_and_the_daemon_goes_on() {
    let world = World::new();
    world.secret("hook", "0123456789abcdef");
    // What is not whole is not waited for.
    let limits = "first_byte_timeout = \"1s\"\nhead_timeout = \"1s\"\nbody_timeout = \"1s\"\n";
    std::fs::write(world.path("limits.toml"), limits).unwrap();
    world.project(&Project::new("shop").hosts(&["h1"]).webhook());
    let daemon = world.start();
    let token = token(&daemon, "deploy", None);
    let head = |line: &str, more: &str| {
        format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n{more}\r\n"
        )
    };
    let body = r#"{"ref": "main", "reason": "x", "retest": true}"#;
    let sized = |kind: &str, body: &str| format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
    let hook = r#"{"ref":"refs/heads/main","after":"0123456789abcdef0123456789abcdef01234567","deleted":false}"#;
    let signed = "X-GitHub-Event: push\r\nX-GitHub-Delivery: a-b-c\r\nX-Hub-Signature-256: sha256=00\r\n";
    let whole = [
        head("GET /v1/status", ""),
        head("GET /v1/runs?project=shop&limit=5&cursor=a%20b&state=failed", "Accept: text/plain\r\n"),
        head("POST /v1/projects/shop/start", &sized("application/json", body)) + body,
        head("POST /v1/projects/shop/stop", &sized("application/x-www-form-urlencoded", "now=true&a=%41"))
            + "now=true&a=%41",
        head("POST /v1/projects/shop/start", "Transfer-Encoding: chunked\r\n") + "5\r\nref=x\r\n0\r\n\r\n",
        head("POST /hooks/github/shop", &(signed.to_owned() + &sized("application/json", hook))) + hook,
        head("PUT /v1/projects/shop/environments/production/freeze", &sized("application/json", "{}")) + "{}",
    ];
    for request in &whole {
        assert!(exchanged(daemon.addr, request.as_bytes()).starts_with(b"HTTP/1.1 "), "{request}");
    }
    let mut dice = Dice::new("random requests");
    let mut below = |n: usize| usize::try_from(dice.below(n as u64)).unwrap();
    let made = |case: usize| {
        let mut bytes = whole[below(whole.len())].clone().into_bytes();
        if case.is_multiple_of(8) {
            bytes = (0..below(3000)).map(|_| u8::try_from(below(256)).unwrap()).collect();
        }
        for _ in 0..1 + below(4) {
            let at = below(bytes.len().max(1));
            match below(5) {
                _ if bytes.is_empty() => {}
                0 | 1 => bytes[at] ^= 1 << below(8),
                2 => bytes.truncate(at),
                3 => bytes.insert(at, b"\0\r\n :;,%\"{}[]\\\xff0"[below(16)]),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    };
    let requests: Vec<Vec<u8>> = (0..times(400, 20_000)).map(made).collect();
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for some in requests.chunks(requests.len() / 16) {
            let (addr, answered) = (daemon.addr, &answered);
            scope.spawn(move || some.iter().for_each(|bytes| checked(addr, bytes, answered)));
        }
    });
    let answered = answered.into_inner();
    assert!(answered > requests.len() / 3, "{answered} of {} were answered at all", requests.len());
    daemon.api.get("/v1/status").is(200);
    let said = daemon.said();
    assert!(!said.contains("panicked"), "{said}");
}
