//! Many clients, slow clients, and no files left. How fast all of it is: scripts/bench/idle.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{connect, first_status, status_of, token};
use crate::fixture::{Daemon, Project, World, clients, eventually, measured, p99, times};

/// Connections beyond a cap, for a request each.
const RESERVED: usize = 16;
const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn limited(limits: &str) -> World {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    std::fs::write(world.path("limits.toml"), limits).unwrap();
    world
}

/// Asks on a connection that stays open; the body is `ok`.
fn healthy(stream: &mut TcpStream) -> bool {
    if stream.write_all(HEALTH).is_err() {
        return false;
    }
    let mut answer = Vec::new();
    let mut bytes = [0; 1024];
    while !answer.ends_with(b"ok\n") {
        match stream.read(&mut bytes) {
            Ok(n) if n > 0 => answer.extend_from_slice(&bytes[..n]),
            _ => return false,
        }
    }
    answer.starts_with(b"HTTP/1.1 200")
}

/// Has this process, and the daemon as its child, keep `clients` connections: of the daemon's files they may be half.
fn many_files(clients: usize) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert!(hard >= 2 * clients as u64, "{hard} open files are too few for {clients} connections: ulimit -Hn");
}

/// A door at which nobody can be let in is not asked all the time: less than a fifth of a processor.
#[track_caller]
fn does_not_spin(daemon: &Daemon, door: &str) {
    let percent = daemon.processor(Duration::from_secs(3));
    eprintln!("measured: percent of a processor {door}: {percent:.1}, below 20");
    assert!(percent < 20.0, "{door}: {percent} % of a processor");
}

/// Asks `ask` 200 times a second for so long, and says how long the answers took from when they were due.
fn steadily(span: Duration, mut ask: impl FnMut()) -> Vec<Duration> {
    let (began, each) = (Instant::now(), Duration::from_millis(5));
    let mut took = Vec::new();
    for n in 0.. {
        let due = began + each * n;
        if due > began + span {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        ask();
        took.push(due.elapsed());
    }
    took
}

#[test]
fn idle_connections_disturb_nobody_and_leave_nothing() {
    let n = clients(500);
    many_files(n);
    let world = limited(&format!("connections = {n}\nclient_connections = {n}\nhead_timeout = \"30m\"\n"));
    let daemon = world.start();
    let token = token(&daemon, "read", None);
    let mut asking = connect(daemon.addr);
    let mut status = || {
        let request = format!("GET /v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
        asking.write_all(request.as_bytes()).unwrap();
        let answer = answered(&mut asking);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    status();
    let (baseline, before) = (daemon.files(), daemon.memory());
    let mut idle: Vec<TcpStream> = Vec::with_capacity(n);
    for _ in 1..n {
        let mut stream = connect(daemon.addr);
        assert!(healthy(&mut stream));
        idle.push(stream);
    }
    let each = daemon.memory().saturating_sub(before) * 1024 / n as u64;
    let took = p99(steadily(Duration::from_secs(times(1, 10) as u64), status));
    measured("a status beside idle connections, p99", took, Duration::from_millis(50));
    measured("bytes of memory for each of them", each, 30_000);
    // Beyond the cap there are a few places for what is urgent, which a client keeps for a moment; and then it is closed at once, which is
    // no answer at all. The socket is free.
    assert_eq!(status_of(daemon.addr, HEALTH), 200);
    assert_eq!(status_of(daemon.addr, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"), 503);
    // The places of those two may be given back a moment later.
    let mut reserved: Vec<TcpStream> = (1..RESERVED).map(|_| connect(daemon.addr)).collect();
    eventually("the places for what is urgent are taken", || {
        reserved.push(connect(daemon.addr));
        (0..5).all(|_| status_of(daemon.addr, HEALTH) == 0).then_some(())
    });
    for _ in 0..50 {
        assert_eq!(status_of(daemon.addr, HEALTH), 0);
    }
    does_not_spin(&daemon, "at the cap of connections");
    drop(reserved);
    for _ in 0..200 {
        daemon.api.get("/v1/status").is(200);
    }
    // Those inside are all still there, and a place that is left is taken again.
    for stream in &mut idle {
        assert!(healthy(stream));
    }
    drop(idle.split_off(n - 50));
    let mut served = 0;
    eventually("places are free again", || {
        served +=
            usize::from(daemon.tcp().bearer(&token).try_ask("GET", "/v1/status", b"").is_ok_and(|a| a.status == 200));
        (served >= 200).then_some(())
    });
    drop(idle);
    let began = Instant::now();
    eventually("every file is closed", || (daemon.files() <= baseline + 5).then_some(()));
    measured("until every file is closed", began.elapsed(), Duration::from_secs(30));
}

/// A whole answer with a length, on a connection that stays open.
fn answered(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if length.is_some_and(|length: usize| body.len() >= length) {
                return text;
            }
        }
        match stream.read(&mut bytes).unwrap() {
            0 => return text,
            n => answer.extend_from_slice(&bytes[..n]),
        }
    }
}

/// What a slow client sends, bit by bit.
#[derive(Clone, Copy, PartialEq)]
enum Slow {
    Nothing,
    Head,
    Body,
}

#[test]
fn slow_clients_are_all_cut_off_while_others_are_served() {
    // With full counts the limits are those that people have.
    let limits = match times(0, 1) {
        0 => "first_byte_timeout = \"1s\"\nhead_timeout = \"1s\"\nbody_timeout = \"1s\"\n",
        _ => "",
    };
    let count = clients(400) / 2;
    many_files(count);
    let world = limited(&format!("{limits}connections = {0}\nclient_connections = {0}\n", count + 100));
    let daemon = world.start();
    let addr = daemon.addr;
    let mut slow: Vec<(Slow, TcpStream, Instant)> = (0..count)
        .map(|n| {
            let kind = [Slow::Nothing, Slow::Head, Slow::Body][n % 3];
            let mut stream = connect(addr);
            let at = Instant::now();
            let start: &[u8] = match kind {
                Slow::Nothing => b"",
                Slow::Head => b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ",
                Slow::Body => b"POST /hooks/github/shop HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n",
            };
            // The first ones may be closed by now.
            let _closed = stream.write_all(start);
            stream.set_nonblocking(true).unwrap();
            (kind, stream, at)
        })
        .collect();
    let done = AtomicBool::new(false);
    let honest = std::thread::scope(|scope| {
        let honest = scope.spawn(|| {
            let mut served = Vec::new();
            while !done.load(Ordering::Relaxed) || served.len() < 20 {
                let asked = Instant::now();
                assert_eq!(status_of(addr, HEALTH), 200);
                served.push(asked.elapsed());
            }
            served
        });
        let mut longest = Duration::ZERO;
        let mut written = Instant::now();
        eventually("every slow client is cut off", || {
            let writes = written.elapsed() > Duration::from_millis(500);
            if writes {
                written = Instant::now();
            }
            slow.retain_mut(|(kind, stream, began)| {
                // A byte now and then, for as long as they are let.
                if writes && *kind != Slow::Nothing {
                    let _closed = stream.write(b"x");
                }
                let closed = is_closed(stream);
                if closed {
                    longest = longest.max(began.elapsed());
                }
                !closed
            });
            slow.is_empty().then_some(())
        });
        done.store(true, Ordering::Relaxed);
        measured("until a slow client is cut off", longest, Duration::from_secs(15));
        honest.join().unwrap()
    });
    measured("an honest answer beside slow clients, p99", p99(honest), Duration::from_millis(100));
}

/// What keeps a place: quietly, by a head that never ends, by a stream that does not either.
fn keeps(n: usize, stream: &mut (impl Read + Write), token: &str) {
    let stream_of = format!(
        "GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nAccept: text/event-stream\r\n\r\n"
    );
    let start = [HEALTH, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ", stream_of.as_bytes()][n % 3];
    stream.write_all(start).unwrap();
    if n % 3 != 1 {
        assert_eq!(stream.read(&mut [0]).unwrap(), 1, "it is inside");
    }
}

#[test]
fn a_run_is_stopped_while_clients_have_all_places() {
    let world = limited("connections = 256\nhead_timeout = \"10m\"\n");
    // An eighth of them may be connections of the socket.
    std::fs::write(world.path("nofile"), "2048").unwrap();
    let wait = r#"run:sh { 'echo on; while [ ! -e "$GO" ]; do sleep 0.1; done', env = { GO = "@ROOT@/../go" } }"#;
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", wait));
    let daemon = world.start();
    let (token, read) = (token(&daemon, "admin", None), token(&daemon, "read", None));
    world.repo.push("endless");
    let run = daemon.press();
    run.prints("on");
    let mut tcp: Vec<TcpStream> = (0..256).map(|_| connect(daemon.addr)).collect();
    tcp.iter_mut().enumerate().for_each(|(n, stream)| keeps(n, stream, &read));
    let mut sockets: Vec<UnixStream> = (0..256).map(|_| UnixStream::connect(&daemon.socket).unwrap()).collect();
    sockets.iter_mut().enumerate().for_each(|(n, stream)| keeps(n, stream, &read));
    for api in [daemon.tcp().bearer(&token), daemon.api.clone()] {
        eventually("there is no place left", || {
            let answer = api.try_ask("GET", "/v1/runs", b"").ok()?;
            (answer.status == 503 && answer.problem().1 == "busy").then_some(())
        });
        for _ in 0..100 {
            api.get("/v1/status").is(200);
        }
        for on in [true, false] {
            api.post("/v1/maintenance", &serde_json::json!({ "on": on })).is(200);
        }
    }
    daemon.tcp().bearer(&token).post("/v1/projects/shop/stop", &serde_json::json!({})).is(202);
    eventually("it is stopped", || {
        (daemon.api.get("/v1/projects/shop/status").is(200).json()["running"].as_array()?.is_empty()).then_some(())
    });
    drop((tcp, sockets));
    eventually("there are places again", || {
        daemon.api.try_ask("GET", "/v1/runs", b"").is_ok_and(|a| a.status == 200).then_some(())
    });
    daemon.run(&run.id).wait().is("stopped");
}

/// Whether the other side has closed; what it said before does not matter.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

#[test]
fn clients_alone_never_take_the_files_that_a_run_needs() {
    let world = limited("head_timeout = \"10m\"\nclient_connections = 1000\n");
    std::fs::write(world.path("nofile"), "256").unwrap();
    let daemon = world.start();
    // All that there are, and more: half of them are let in, and one for a question or two.
    let mut clients: Vec<TcpStream> = (0..300).map(|_| connect(daemon.addr)).collect();
    let twice = |stream: &mut TcpStream| healthy(stream) && healthy(stream);
    let inside = clients.iter_mut().filter_map(|stream| twice(stream).then_some(())).count();
    assert_eq!(inside, 128);
    let sockets: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&daemon.socket).unwrap()).collect();
    // Beyond their cap those on the socket are closed; each place that is left is an answer.
    drop(sockets);
    eventually("the socket answers", || {
        daemon.api.try_ask("GET", "/v1/status", b"").is_ok_and(|a| a.status == 200).then_some(())
    });
    let commit = world.repo.push("in between");
    daemon.deploy().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    assert!(!daemon.said().contains("cannot accept connections"));
}

/// Sets the number of files that the daemon may have open.
fn allow(daemon: &Daemon, files: usize) {
    let status = std::process::Command::new("prlimit")
        .arg(format!("--pid={}", daemon.pid()))
        .arg(format!("--nofile={files}:"))
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_daemon_without_files_lives_waits_and_goes_on() {
    let world = limited("head_timeout = \"10m\"\n");
    let daemon = world.start();
    // Somebody who is inside already.
    let mut inside = UnixStream::connect(&daemon.socket).unwrap();
    inside.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    inside.write_all(HEALTH).unwrap();
    let mut bytes = [0; 1024];
    assert!(inside.read(&mut bytes).unwrap() > 0);

    allow(&daemon, daemon.files());
    let outside: Vec<TcpStream> = (0..20).map(|_| connect(daemon.addr)).collect();
    eventually("nobody is let in", || daemon.said().contains("cannot accept connections").then_some(()));
    // The journal is written all the same: its files are open.
    let body = r#"{"on": true, "reason": "no files"}"#;
    let request = format!(
        "POST /v1/maintenance HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    inside.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    inside.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    allow(&daemon, 1024);
    let room = Instant::now();
    for mut stream in outside {
        stream.write_all(HEALTH).unwrap();
        assert_eq!(first_status(&mut stream), 200, "it waited at the door");
    }
    measured("until all who waited at the door are answered", room.elapsed(), Duration::from_secs(5));
    // It asked now and then, and not all the time: the pauses are 200 ms at least.
    let said = daemon.said();
    let lines = || said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let moment =
        |line: &Value| line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond();
    let began = lines().find(|l| l["message"].as_str().is_some_and(|m| m.starts_with("cannot accept"))).unwrap();
    let ended = lines().find(|l| l["message"] == "connections are accepted again").unwrap();
    let (failures, waited) = (ended["failures"].as_i64().unwrap(), moment(&ended) - moment(&began));
    assert!(failures <= 2 + waited / 200, "{failures} attempts in {waited} ms");

    daemon.kill();
    let daemon = world.start();
    assert_eq!(daemon.api.get("/v1/maintenance").is(200).json()["on"], true, "what was answered is on disk");
}

#[test]
fn a_daemon_whose_256_files_are_all_in_use_waits_for_one() {
    let world = limited("first_byte_timeout = \"10m\"\nhead_timeout = \"10m\"\nclient_connections = 1000\n");
    // Its caps are made for more files than it will have: as if something else had taken them.
    std::fs::write(world.path("nofile"), "4096").unwrap();
    let daemon = world.start();
    allow(&daemon, 256);
    let mut clients: Vec<TcpStream> = (0..300).map(|_| connect(daemon.addr)).collect();
    eventually("no file is left", || {
        (daemon.files() == 256 && daemon.said().contains("cannot accept connections")).then_some(())
    });
    does_not_spin(&daemon, "without a file for who stands at the door");
    assert!(daemon.files() > 250, "nobody has left meanwhile");
    allow(&daemon, 4096);
    let room = Instant::now();
    assert!(clients.iter_mut().all(healthy), "whoever waited at the door is let in");
    measured("until 300 clients are served again", room.elapsed(), Duration::from_secs(5));
}

#[test]
fn what_is_forbidden_again_and_again_does_not_fill_the_log() {
    let world = limited("refusal_rate = \"3/h\"\n");
    let daemon = world.start();
    let read = daemon.tcp().bearer(&token(&daemon, "read", None));
    for _ in 0..10 {
        let answer = read.post("/v1/projects/shop/start", &serde_json::json!({}));
        assert_eq!(answer.problem(), (403, "insufficient_scope".to_owned()));
    }
    let told = daemon.said().lines().filter(|line| line.contains("\"a request was refused\"")).count();
    assert_eq!(told, 3);
}
