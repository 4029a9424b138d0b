//! Bytes that are no HTTP, nearly HTTP, and HTTP with bodies that are nothing.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{connect, token};
use crate::{
    fixture::{Dice, HOOK_SECRET, Project, World, times},
    webhook::sign,
};

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

/// A commit that nobody has.
const AFTER: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request, and whether its signature is right, whatever its body has become.
struct Asked {
    bytes: Vec<u8>,
    signed: bool,
}

/// No answer, or one that there is for it; its status, 0 for none.
fn checked(addr: SocketAddr, asked: &Asked) -> u16 {
    let said = exchanged(addr, &asked.bytes);
    if said.is_empty() {
        return 0;
    }
    let shown = String::from_utf8_lossy(&said[..said.len().min(300)]).into_owned();
    // Who asks as HTTP/1.0 (a flipped bit makes that of 1.1) is answered so.
    let rest = ["HTTP/1.1 ", "HTTP/1.0 "].iter().find_map(|version| shown.strip_prefix(version));
    let status = rest.and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
    // 503 is said, with a time, where there is no room.
    let documented = status.filter(|status| (200..500).contains(status) || *status == 503);
    documented.unwrap_or_else(|| panic!("{:?}: {shown}", String::from_utf8_lossy(&asked.bytes)))
}

/// Changes a few bits, bytes and pieces.
fn mutate(bytes: &mut Vec<u8>, below: &mut impl FnMut(usize) -> usize) {
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
}

#[test]
fn random_requests_get_an_answer_or_none_and_the_daemon_goes_on() {
    let world = World::new();
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
    let sized = |kind: &str, body: &[u8]| format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
    let hook = |body: &[u8]| {
        let signature = sign(body, HOOK_SECRET);
        let of_github =
            format!("X-GitHub-Event: push\r\nX-GitHub-Delivery: a-b-c\r\nX-Hub-Signature-256: {signature}\r\n");
        let head = head("POST /hooks/github/shop", &(of_github + &sized("application/json", body)));
        [head.as_bytes(), body].concat()
    };
    let zero = "0".repeat(40);
    let push = format!(
        r#"{{"ref":"refs/heads/main","before":"{zero}","after":"{AFTER}","deleted":false,"pusher":{{"name":"ada"}}}}"#
    );
    let whole = [
        head("GET /v1/status", "").into_bytes(),
        head("GET /v1/runs?project=shop&limit=5&cursor=a%20b&state=failed", "Accept: text/plain\r\n").into_bytes(),
        (head("POST /v1/projects/shop/start", &sized("application/json", body.as_bytes())) + body).into_bytes(),
        (head("POST /v1/projects/shop/stop", &sized("application/x-www-form-urlencoded", b"now=true&a=%41"))
            + "now=true&a=%41")
            .into_bytes(),
        (head("POST /v1/projects/shop/start", "Transfer-Encoding: chunked\r\n") + "5\r\nref=x\r\n0\r\n\r\n")
            .into_bytes(),
        hook(push.as_bytes()),
        (head("PUT /v1/projects/shop/environments/production/freeze", &sized("application/json", b"{}")) + "{}")
            .into_bytes(),
    ];
    for request in &whole {
        assert!(exchanged(daemon.addr, request).starts_with(b"HTTP/1.1 "), "{}", String::from_utf8_lossy(request));
    }
    let mut dice = Dice::new("random requests");
    let mut below = |n: usize| usize::try_from(dice.below(n as u64)).unwrap();
    let made = |case: usize| match case % 8 {
        // Somebody who has the secret, and something else to say.
        1 => {
            let after: String = (0..40).map(|_| char::from(b"0123456789abcdef"[below(16)])).collect();
            let mut body = push.replace(AFTER, &after).into_bytes();
            if below(2) == 0 {
                mutate(&mut body, &mut below);
            }
            Asked { bytes: hook(&body), signed: true }
        }
        kind => {
            let mut bytes = whole[below(whole.len())].clone();
            if kind == 0 {
                bytes = (0..below(3000)).map(|_| u8::try_from(below(256)).unwrap()).collect();
            }
            mutate(&mut bytes, &mut below);
            Asked { bytes, signed: false }
        }
    };
    let requests: Vec<Asked> = (0..times(400, 20_000)).map(made).collect();
    let answered = AtomicUsize::new(0);
    // What those who have the secret were answered.
    let signed: Mutex<BTreeMap<u16, usize>> = Mutex::default();
    std::thread::scope(|scope| {
        for some in requests.chunks(requests.len() / 16) {
            let (addr, answered, signed) = (daemon.addr, &answered, &signed);
            scope.spawn(move || {
                for asked in some {
                    let status = checked(addr, asked);
                    answered.fetch_add(usize::from(status > 0), Ordering::Relaxed);
                    if asked.signed {
                        *signed.lock().unwrap().entry(status).or_default() += 1;
                    }
                }
            });
        }
    });
    let (answered, signed) = (answered.into_inner(), signed.into_inner().unwrap());
    assert!(answered > requests.len() / 3, "{answered} of {} were answered at all", requests.len());
    // Their bodies are read: some are no push, some are one, and to us or not.
    let (ours, broken) = (signed.get(&200).into_iter().chain(signed.get(&202)).sum::<usize>(), signed.get(&400));
    assert!(ours > 0 && broken > Some(&0), "{signed:?}");
    // 0 is no answer: on a busy machine one may not have sent its first byte in time.
    assert!(signed.keys().all(|status| [0, 200, 202, 400, 503].contains(status)), "{signed:?}");
    daemon.api.get("/v1/status").is(200);
    let said = daemon.said();
    assert!(!said.contains("panicked"), "{said}");
}
