//! The front door: TLS, proxies, and how much one client may have.

use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, crypto,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::*;
use crate::{config::Rate, time::within};

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// As a client that believes our test authority.
pub(super) async fn handshake(stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(include_bytes!("../../../tests/tls/ca.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()));
    let mut config =
        builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("phased.test").unwrap(), stream).await
}

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

/// Under a deadline that nothing here comes near to.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    within(&SystemClock::new(), Duration::from_secs(60), future).await.unwrap_or_else(|| panic!("never: {what}"))
}

async fn over_tls(limits: Limits) -> World {
    let tls = Some(certificates("signed.pem", "signed.key.pem"));
    world_behind(Front { tls, limits, ..Front::default() }).await
}

#[tokio::test]
async fn tls_speaks_http_1_1_and_answers_to_the_names_in_its_certificate() {
    let world = over_tls(Limits::default()).await;
    let stream = handshake(TcpStream::connect(world.address).await.unwrap()).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    for (host, status) in [("phased.test", 200), ("PHASED.test:443", 200), ("localhost", 200), ("other.test", 400)] {
        let answer = world.tcp(&format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(answer.status, status, "{host}");
    }
    assert_eq!(world.ask("GET /v1/status", "", "", "").await.code(), "token_missing");
    assert_eq!(world.ask("GET /v1/status", "read", "", "").await.status, 200);
    assert!(world.tasks.shut_down(Duration::from_secs(5)).await.is_empty());
}

#[tokio::test]
async fn http_on_a_port_that_speaks_tls_is_told_so() {
    let world = over_tls(Limits::default()).await;
    let said = raw(&mut TcpStream::connect(world.address).await.unwrap(), HEALTH).await;
    assert!(said.starts_with("HTTP/1.1 400 ") && said.contains("ask for https://"), "{said}");
    assert!(world.engine.asked().is_empty());
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut_off() {
    let world = over_tls(Limits { first_byte: Duration::from_millis(200), ..Limits::default() }).await;
    for start in [&b"\x16\x03\x01"[..], b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03", b""] {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let said = soon("it is closed", raw(&mut stream, start)).await;
        assert!(!said.contains("HTTP"), "{said}");
    }
    let status = soon("others are served", world.ask("GET /v1/status", "read", "", "")).await.status;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn who_ends_the_handshake_and_asks_nothing_is_cut_off() {
    let world = over_tls(Limits { head: Duration::from_millis(200), ..Limits::default() }).await;
    for start in ["", "GET / HT"] {
        let mut stream = handshake(TcpStream::connect(world.address).await.unwrap()).await.unwrap();
        let said = within(&SystemClock::new(), Duration::from_secs(5), raw(&mut stream, start.as_bytes())).await;
        assert_eq!(said.as_deref(), Some(""), "{start:?}");
    }
}

#[tokio::test]
async fn what_is_quiet_on_purpose_outlives_every_time_out() {
    let second = Duration::from_secs(1);
    let limits = || Limits {
        first_byte: second,
        head: second,
        body: second,
        write: second,
        stranger_write: second,
        heartbeat: Duration::from_secs(60),
        ..Limits::default()
    };
    for world in [world_with(limits(), vec![]).await, over_tls(limits()).await] {
        let open = async |path: &str, accept: &str| {
            let mut stream = world.connect().await;
            let ask = format!(
                "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer read\r\nAccept: {accept}\r\n\r\n"
            );
            stream.write_all(ask.as_bytes()).await.unwrap();
            stream
        };
        let (mut log, mut events) = (
            open(&format!("/v1/runs/{RUN}/log?follow"), "text/plain").await,
            open("/v1/events", "text/event-stream").await,
        );
        let (mut read, mut told, mut waited) = (String::new(), String::new(), String::new());
        until(&mut log, &mut read, "three").await;
        until(&mut events, &mut told, "retry: 2000").await;
        let mut wait = open(&format!("/v1/runs/{RUN}?wait=finished&timeout=3s"), "application/json").await;
        soon("the wait is over", until(&mut wait, &mut waited, RUN)).await;
        assert!(waited.starts_with("HTTP/1.1 200"), "{waited}");

        let event = json!({"id": "7-1", "event": "host.healthy", "at": "2026-01-02T03:00:00Z", "project": "shop", "run": RUN, "data": {}});
        world.engine.events.send(Arc::new(serde_json::from_value(event).unwrap())).unwrap();
        soon("the event comes", until(&mut events, &mut told, "id: 7-1")).await;
        let more = within(&SystemClock::new(), Duration::from_millis(100), log.read_u8()).await;
        assert!(more.is_none(), "{more:?}");
    }
}

#[tokio::test]
async fn the_certificates_trouble_is_in_the_status_and_a_reload_says_it() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let at = pem_file;
    std::fs::copy(at("signed.pem"), &cert).unwrap();
    std::fs::copy(at("signed.key.pem"), &key).unwrap();
    let tls = Some(Certificates::load(&cert, &key).unwrap());
    let world = world_behind(Front { tls, ..Front::default() }).await;
    let status = async || world.ask("GET /v1/status", "read", "", "").await.json();
    assert_eq!(status().await["trouble"], json!([]));
    assert_eq!(world.ask("POST /v1/reload", "admin", "", "").await.status, 200);

    std::fs::write(&cert, "not a certificate").unwrap();
    let refused = world.ask("POST /v1/reload", "admin", "", "").await;
    assert_eq!((refused.status, refused.code().as_str()), (422, "certificate_invalid"));
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("the projects were loaded") && detail.contains("cert.pem"), "{detail}");
    assert_eq!(status().await["trouble"][0]["code"], "tls_not_reloaded");
    let text = world.ask("GET /v1/status", "read", "Accept: text/plain\r\n", "").await.body;
    assert!(text.contains("WRONG:") && text.contains("cert.pem"), "{text}");

    std::fs::copy(at("expired.pem"), &cert).unwrap();
    assert_eq!(world.ask("POST /v1/reload", "admin", "", "").await.status, 200);
    // Clients refuse it, people on the machine see why.
    let mut socket = UnixStream::connect(&world.socket).await.unwrap();
    let seen = raw(&mut socket, b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer(&seen).json()["trouble"][0]["code"], "tls_expired");
    let refused = handshake(TcpStream::connect(world.address).await.unwrap()).await.unwrap_err().to_string();
    assert!(refused.to_lowercase().contains("expired"), "{refused}");
}

const HOOK: &str = "POST /hooks/github/shop";
const SIGNED: &str = "X-Hub-Signature-256: x\r\n";

#[tokio::test]
async fn forged_deliveries_of_one_client_have_a_rate_and_genuine_ones_are_not_asked_to_wait() {
    let world = world_with(Limits { hooks: rate("3/h"), ..Limits::default() }, vec![]).await;
    for (n, line) in [HOOK, "POST /hooks/gitlab/shop", "POST /hooks/nowhere"].into_iter().enumerate() {
        let status = world.ask(line, "", "", "x").await.status;
        assert_eq!(status, if n == 0 { 401 } else { 404 }, "{line}");
    }
    // Whatever it says of itself.
    for more in
        ["", "X-Forwarded-For: 198.51.100.1\r\n", "Forwarded: for=198.51.100.1\r\n", "Authorization: Bearer admin\r\n"]
    {
        let answer = world.ask(HOOK, "", more, "x").await;
        assert_eq!((answer.status, answer.code().as_str()), (429, "rate_limited"), "{more}");
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=1200).contains(&wait) && answer.header("connection") == Some("close"), "{answer:?}");
        assert_eq!(world.ask(HOOK, "", &format!("{SIGNED}{more}"), "x").await.status, 202, "{more}");
    }
    // Another client, other routes, and the socket.
    let request = format!("{HOOK} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let other = raw(&mut world.connect_from("127.0.0.9").await, request.as_bytes()).await;
    assert_eq!(answer(&other).status, 401);
    assert_eq!(world.ask("GET /v1/status", "read", "", "").await.status, 200);
    for _ in 0..5 {
        let socket = raw(&mut UnixStream::connect(&world.socket).await.unwrap(), request.as_bytes()).await;
        assert_eq!(answer(&socket).status, 401);
    }
}

#[tokio::test]
async fn a_flood_of_forgeries_locks_out_no_forge_behind_the_same_address() {
    let world = world_with(Limits::default(), vec![]).await;
    for _ in 0..601 {
        assert!(matches!(world.ask(HOOK, "", "", "x").await.status, 401 | 429));
    }
    for n in 0..601 {
        assert_eq!(world.ask(HOOK, "", SIGNED, "x").await.status, 202, "{n}");
    }
}

#[tokio::test]
async fn refusals_of_one_client_have_a_rate_and_right_tokens_are_not_asked_to_wait() {
    let world = world_with(Limits { refusals: rate("3/h"), ..Limits::default() }, vec![]).await;
    for (line, token) in [("GET /v1/status", "wrong"), ("GET /v1/status", ""), ("POST /v1/signals", "")] {
        assert_eq!(world.ask(line, token, "", "x").await.status, 401, "{line}");
    }
    for (line, token) in [("GET /v1/status", "wrong"), ("GET /v1/status", ""), ("POST /v1/signals", "")] {
        let answer = world.ask(line, token, "", "").await;
        assert_eq!((answer.status, answer.code().as_str()), (429, "rate_limited"), "{line}");
        assert!(answer.header("retry-after").is_some() && answer.header("connection") == Some("close"), "{answer:?}");
    }
    assert_eq!(world.ask("GET /v1/status", "read", "", "").await.status, 200);
    assert_eq!(world.ask(HOOK, "", SIGNED, "x").await.status, 202);
    // Who is known is told why, however often.
    assert_eq!(world.form("POST /v1/projects/shop/start", "read", "").await.code(), "insufficient_scope");
}

/// A world behind a proxy at 127.0.0.9.
async fn proxied(limits: Limits) -> World {
    let proxies = Proxies { trusted: vec!["127.0.0.9".parse().unwrap()], ..Proxies::default() };
    world_behind(Front { limits, proxies, ..Front::default() }).await
}

#[tokio::test]
async fn behind_a_trusted_proxy_every_client_is_one_of_its_own() {
    let world = proxied(Limits { hooks: rate("2/h"), ..Limits::default() }).await;
    let deliver = async |from: &str, header: &str| {
        let request =
            format!("{HOOK} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\nContent-Length: 0\r\n\r\n");
        answer(&raw(&mut world.connect_from(from).await, request.as_bytes()).await).status
    };
    for (from, header, status) in [
        ("127.0.0.9", "X-Forwarded-For: 198.51.100.1", 401),
        ("127.0.0.9", "X-Forwarded-For: 192.0.2.66, 198.51.100.1", 401),
        // A client that makes up addresses is still itself.
        ("127.0.0.9", "X-Forwarded-For: 192.0.2.67, 198.51.100.1", 429),
        ("127.0.0.9", "X-Forwarded-For: 192.0.2.68\r\nX-Forwarded-For: 198.51.100.1", 429),
        ("127.0.0.9", "X-Forwarded-For: 198.51.100.2", 401),
        // Somebody else says the same, and is not believed.
        ("127.0.0.8", "X-Forwarded-For: 198.51.100.2", 401),
        ("127.0.0.8", "X-Forwarded-For: 198.51.100.3", 401),
        ("127.0.0.8", "X-Forwarded-For: 198.51.100.4", 429),
        ("127.0.0.9", "X-Forwarded-For: 198.51.100.4", 401),
        // The header that nobody configured.
        ("127.0.0.9", "Forwarded: for=198.51.100.9", 401),
        ("127.0.0.9", "Forwarded: for=198.51.100.10", 401),
        ("127.0.0.9", "Forwarded: for=198.51.100.11", 429),
    ] {
        assert_eq!(deliver(from, header).await, status, "{from} {header}");
    }
}

#[tokio::test]
async fn one_client_has_its_share_of_the_connections_and_a_proxy_has_all() {
    let world = proxied(Limits { client_connections: 2, reserved: 0, ..Limits::default() }).await;
    let mut held = Vec::new();
    for from in ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.9", "127.0.0.9", "127.0.0.9"] {
        let mut stream = world.connect_from(from).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert_eq!(soon("it is answered", stream.read_u8()).await.unwrap(), b'H', "{from}");
        held.push(stream);
    }
    assert_eq!(soon("it is closed", raw(&mut world.connect_from("127.0.0.1").await, b"")).await, "");
    held.remove(0);
    let free = async {
        while !raw(&mut world.connect_from("127.0.0.1").await, HEALTH).await.contains("200 OK") {
            tokio::task::yield_now().await;
        }
    };
    soon("a place is free again", free).await;
}

#[tokio::test]
async fn one_client_has_its_part_of_the_reserved_places_and_a_proxy_has_all() {
    let world = proxied(Limits { connections: 1, reserved: 8, ..Limits::default() }).await;
    let mut usual = world.connect_from("127.0.0.1").await;
    usual.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    soon("it is answered", usual.read_u8()).await.unwrap();
    // A flood that asks nothing has the places for as long as may be.
    let (_held, _also) = (world.connect_from("127.0.0.1").await, world.connect_from("127.0.0.1").await);
    assert_eq!(soon("it is closed", raw(&mut world.connect_from("127.0.0.1").await, b"")).await, "");
    let other = soon("another is answered", raw(&mut world.connect_from("127.0.0.2").await, HEALTH)).await;
    assert_eq!(answer(&other).status, 200);
    let mut proxy = Vec::new();
    for _ in 0..4 {
        proxy.push(world.connect_from("127.0.0.9").await);
    }
    let behind =
        soon("who is behind a proxy is answered", raw(&mut world.connect_from("127.0.0.9").await, HEALTH)).await;
    assert_eq!(answer(&behind).status, 200);
    let full = async {
        while !raw(&mut world.connect_from("127.0.0.2").await, HEALTH).await.is_empty() {
            proxy.push(world.connect_from("127.0.0.9").await);
        }
    };
    soon("all of them are taken", full).await;
}

#[tokio::test]
async fn one_client_has_its_share_of_the_room_for_bodies() {
    let limits = Limits {
        all_bodies_kib: 40,
        hook_body: 16 << 10,
        piece_body: 1 << 10,
        other_body: 1 << 10,
        ..Limits::default()
    };
    let world = world_with(limits, vec![]).await;
    let head = format!("{HOOK} HTTP/1.1\r\nHost: x\r\n{SIGNED}Content-Length: 16384\r\n\r\n");
    // Most of a body, and nothing further for now.
    let mut half = world.connect_from("127.0.0.1").await;
    half.write_all(format!("{head}{}", "x".repeat(15 << 10)).as_bytes()).await.unwrap();
    let whole = format!("{head}{}", "x".repeat(16 << 10));
    let refused = async {
        loop {
            let said = raw(&mut world.connect_from("127.0.0.1").await, whole.as_bytes()).await;
            if said.contains("503 Service Unavailable") {
                return answer(&said);
            }
        }
    };
    let refused = soon("a second one is too much", refused).await;
    assert_eq!((refused.code().as_str(), refused.header("retry-after")), ("busy", Some("2")));
    assert!(refused.json()["detail"].as_str().unwrap().contains("of this client"), "{refused:?}");
    let other = raw(&mut world.connect_from("127.0.0.2").await, whole.as_bytes()).await;
    assert_eq!(answer(&other).status, 202, "another client has room");
    half.write_all(&[b'x'; 1024]).await.unwrap();
    assert_eq!(answer(&soon("the first is served", raw(&mut half, b"")).await).status, 202);
}

#[tokio::test]
async fn bodies_of_strangers_lock_out_neither_tokens_nor_the_socket() {
    let limits = Limits { all_bodies_kib: 16, hook_body: 16 << 10, other_body: 16 << 10, ..Limits::default() };
    let world = world_with(limits, vec![]).await;
    // All the room but a byte, by one who sends nothing further for now.
    let head = format!("{HOOK} HTTP/1.1\r\nHost: x\r\n{SIGNED}Content-Length: 16384\r\n\r\n");
    let mut half = world.connect_from("127.0.0.1").await;
    half.write_all(format!("{head}{}", "x".repeat((16 << 10) - 1)).as_bytes()).await.unwrap();
    let full = async { while world.ask(HOOK, "", SIGNED, "x").await.status != 503 {} };
    soon("there is no room", full).await;

    // A token makes no larger room for what needs none.
    assert_eq!(world.ask(HOOK, "admin", SIGNED, "x").await.status, 503);
    let long = format!("reason={}", "x".repeat(100));
    assert_eq!(world.form("POST /v1/projects/shop/start", "deploy", &long).await.status, 202);
    let stop = "POST /v1/projects/shop/stop HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 8\r\n\r\nreason=x";
    let said = raw(&mut UnixStream::connect(&world.socket).await.unwrap(), stop.as_bytes()).await;
    assert_eq!(answer(&said).code(), "nothing_to_stop");
    half.write_all(b"x").await.unwrap();
    assert_eq!(answer(&soon("the first is served", raw(&mut half, b"")).await).status, 202);
}

#[tokio::test]
async fn who_takes_nothing_of_an_answer_loses_the_connection() {
    let world = world_with(Limits { write: Duration::from_millis(300), ..Limits::default() }, vec![]).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    // Far more than all buffers on the way hold.
    let closed = async {
        loop {
            if let Err(error) = stream.write_all(ask).await {
                return error;
            }
        }
    };
    soon("it is closed", closed).await;
    assert_eq!(world.ask("GET /v1/status", "read", "", "").await.status, 200);
}

#[tokio::test]
async fn a_connection_that_has_brought_a_right_token_may_take_its_time() {
    let limits = Limits { stranger_write: Duration::from_millis(300), ..Limits::default() };
    let world = world_with(limits, vec![]).await;
    // Asks far more than all buffers on the way hold, reads nothing, and returns when the connection is closed.
    let flood = async |token: &str| {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let ask = format!("GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n{token}\r\n");
        while stream.write_all(ask.as_bytes()).await.is_ok() {}
    };
    let start = SystemClock::new().now();
    for token in ["", "Authorization: Bearer wrong\r\n"] {
        soon("it is closed", flood(token)).await;
    }
    let twice = SystemClock::new().now().since(&start);
    let closed =
        within(&SystemClock::new(), twice + Duration::from_secs(1), flood("Authorization: Bearer read\r\n")).await;
    assert!(closed.is_none());
}

#[tokio::test]
async fn connections_beyond_a_cap_are_told_of_in_the_status() {
    let usual = || Limits { reserved: 0, ..Limits::default() };
    for limits in [Limits { client_connections: 1, ..usual() }, Limits { connections: 1, ..usual() }] {
        let world = world_with(limits, vec![]).await;
        let mut held = TcpStream::connect(world.address).await.unwrap();
        held.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert_eq!(soon("it is answered", held.read_u8()).await.unwrap(), b'H');
        assert_eq!(soon("it is closed", raw(&mut world.connect_from("127.0.0.1").await, b"")).await, "");
        let trouble = world.engine.trouble.lock().unwrap().values().cloned().collect::<Vec<_>>();
        assert!(trouble.len() == 1 && trouble[0].code == "connections_closed", "{trouble:?}");
        assert!(trouble[0].message.contains("connections"), "{trouble:?}");
    }
}

#[tokio::test]
async fn heads_have_limits() {
    let world = world().await;
    let many = (0..110).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let large = format!("X: {}\r\n", "y".repeat(300 << 10));
    for headers in [&many, &large] {
        let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        let said =
            soon("it is answered", raw(&mut TcpStream::connect(world.address).await.unwrap(), request.as_bytes()))
                .await;
        assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
        assert_eq!(said.matches("HTTP/1.1").count(), 1, "{said}");
    }
    let fits = (0..80).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    assert_eq!(world.ask("GET /healthz", "", &fits, "").await.status, 200);
}

#[tokio::test]
async fn across_a_network_nobody_sends_a_token_in_the_clear() {
    let server = |front: Front| Server::new(Script::new(), front, &Tasks::new(), Arc::new(SystemClock::new()));
    let trusted = || Proxies { trusted: vec!["10.0.0.5".parse().unwrap()], ..Proxies::default() };
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let (here, there, other) = (ip("127.0.0.1"), ip("10.0.0.1"), ip("10.0.0.9"));
    let bare = server(Front { proxies: trusted(), ..Front::default() });
    assert!(bare.check_clear(here, other).is_ok());
    assert!(bare.check_clear(there, ip("10.0.0.5")).is_ok(), "the proxy's own");
    assert_eq!(bare.check_clear(there, other).unwrap_err().code, "plaintext_refused");
    assert!(server(Front { plaintext: true, ..Front::default() }).check_clear(there, other).is_ok());
    let tls = Some(certificates("signed.pem", "signed.key.pem"));
    assert!(server(Front { tls, ..Front::default() }).check_clear(there, other).is_ok());
}
