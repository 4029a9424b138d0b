//! Many clients, slow clients, and no files left. How fast all of it is: scripts/bench/idle.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::Value;

use super::{connect, first_status, status_of, token};
use crate::fixture::{Daemon, Project, World, eventually, times};

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn limited(limits: &str) -> World {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    std::fs::write(world.path("limits.toml"), limits).unwrap();
    world
}

fn files(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
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

#[test]
fn hundreds_of_idle_connections_disturb_nobody_and_leave_nothing() {
    let world = limited("connections = 500\nclient_connections = 500\nhead_timeout = \"10m\"\n");
    let daemon = world.start();
    let token = token(&daemon, "read", None);
    let baseline = files(&daemon);
    let mut idle: Vec<TcpStream> = (0..500).map(|_| connect(daemon.addr)).collect();
    for stream in &mut idle {
        assert!(healthy(stream));
    }
    // Beyond the cap: closed at once, which is no answer at all, and the socket is free.
    for _ in 0..50 {
        assert_eq!(status_of(daemon.addr, HEALTH), 0);
    }
    for _ in 0..200 {
        daemon.api.get("/v1/status").is(200);
    }
    // Those inside are all still there, and a place that is left is taken again.
    for stream in &mut idle {
        assert!(healthy(stream));
    }
    drop(idle.split_off(450));
    let mut served = 0;
    eventually("places are free again", || {
        served +=
            usize::from(daemon.tcp().bearer(&token).try_ask("GET", "/v1/status", b"").is_ok_and(|a| a.status == 200));
        (served >= 200).then_some(())
    });
    drop(idle);
    eventually("every file is closed", || (files(&daemon) <= baseline + 5).then_some(()));
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
    let world = limited(
        "first_byte_timeout = \"1s\"\nhead_timeout = \"1s\"\nbody_timeout = \"1s\"\nclient_connections = 1000\n",
    );
    let daemon = world.start();
    let addr = daemon.addr;
    let mut slow: Vec<(Slow, TcpStream)> = (0..times(200, 900))
        .map(|n| {
            let kind = [Slow::Nothing, Slow::Head, Slow::Body][n % 3];
            let mut stream = connect(addr);
            let start: &[u8] = match kind {
                Slow::Nothing => b"",
                Slow::Head => b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ",
                Slow::Body => b"POST /hooks/github/shop HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n",
            };
            // The first ones may be closed by now.
            let _closed = stream.write_all(start);
            stream.set_nonblocking(true).unwrap();
            (kind, stream)
        })
        .collect();
    let done = AtomicBool::new(false);
    let honest = std::thread::scope(|scope| {
        let honest = scope.spawn(|| {
            let mut served = 0;
            while !done.load(Ordering::Relaxed) || served < 20 {
                assert_eq!(status_of(addr, HEALTH), 200);
                served += 1;
            }
            served
        });
        eventually("every slow client is cut off", || {
            slow.retain_mut(|(kind, stream)| {
                // A byte now and then, for as long as they are let.
                if *kind != Slow::Nothing {
                    let _closed = stream.write(b"x");
                }
                !is_closed(stream)
            });
            slow.is_empty().then_some(())
        });
        done.store(true, Ordering::Relaxed);
        honest.join().unwrap()
    });
    assert!(honest >= 20);
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
    // All that there are, and more: half of them are let in.
    let mut clients: Vec<TcpStream> = (0..300).map(|_| connect(daemon.addr)).collect();
    let inside = clients.iter_mut().filter_map(|stream| healthy(stream).then_some(())).count();
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

    allow(&daemon, files(&daemon));
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
    for mut stream in outside {
        stream.write_all(HEALTH).unwrap();
        assert_eq!(first_status(&mut stream), 200, "it waited at the door");
    }
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
