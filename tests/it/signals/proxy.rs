//! Somebody on the way between a sender and a receiver, who answers in its place.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use super::fleet::{Fleet, Wants};

/// Where it listens, whom it asks, and what it has done.
struct Proxy {
    port: u16,
    upstream: Arc<AtomicU16>,
    /// How many answers are kept back.
    keeps: Arc<AtomicUsize>,
    kept: Arc<AtomicUsize>,
}

/// A whole request or answer: its head, and as many bytes as that says.
fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            if bytes.len() >= at + 4 + length.unwrap_or(0) {
                return Some(bytes);
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}

impl Proxy {
    /// Gives `instead` for the answer to requests that contain `of`.
    fn new(instead: &'static str, of: &'static str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let [keeps, kept] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let proxy = Proxy { port, upstream: Arc::default(), keeps, kept };
        let (upstream, keeps, kept) = (Arc::clone(&proxy.upstream), Arc::clone(&proxy.keeps), Arc::clone(&proxy.kept));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (upstream, keeps, kept) = (Arc::clone(&upstream), Arc::clone(&keeps), Arc::clone(&kept));
                std::thread::spawn(move || {
                    let mut stream = stream;
                    while let Some(request) = message(&mut stream) {
                        let meant = String::from_utf8_lossy(&request).contains(of);
                        let to = ("127.0.0.1", upstream.load(Ordering::SeqCst));
                        let Ok(mut receiver) = TcpStream::connect(to) else { return };
                        receiver.write_all(&request).unwrap();
                        let Some(answer) = message(&mut receiver) else { return };
                        let less = |n: usize| n.checked_sub(1);
                        if meant && keeps.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
                            kept.fetch_add(1, Ordering::SeqCst);
                            let _gone = stream.write_all(instead.as_bytes());
                            return;
                        }
                        if stream.write_all(&answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        proxy
    }
}

const BROKEN: &str = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const UNKNOWN: &str = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

const DEPLOY: &str = r#""kind":"deploy""#;
/// Of every request.
const ANY: &str = "POST ";

fn fleet(proxy: &Proxy, keeps: usize) -> Fleet {
    let fleet = Fleet::new(1, &Wants { through: Some(proxy.port), ..Wants::default() });
    proxy.upstream.store(fleet.receivers[0].port, Ordering::SeqCst);
    proxy.keeps.store(keeps, Ordering::SeqCst);
    fleet
}

#[test]
fn an_order_whose_answer_was_lost_is_not_taken_for_one_that_never_came() {
    for instead in [BROKEN, UNKNOWN] {
        let proxy = Proxy::new(instead, DEPLOY);
        let fleet = fleet(&proxy, 2);
        let revision = fleet.sender.repo.push("one");
        let ended = fleet.daemon().deploy().is("succeeded");
        assert_eq!(ended.hosts(), ["r1:healthy"]);
        assert_eq!(proxy.kept.load(Ordering::SeqCst), 2, "it was in the way");
        assert_eq!(fleet.receivers[0].deployed(), [revision], "once");
        assert_eq!(fleet.receivers[0].daemon().runs().len(), 1);
    }
}

#[test]
fn an_order_of_which_nothing_is_heard_any_more_may_have_been_taken() {
    let proxy = Proxy::new(UNKNOWN, DEPLOY);
    let fleet = fleet(&proxy, usize::MAX);
    let revision = fleet.sender.repo.push("one");
    let run = fleet.daemon().press();
    fleet.receivers[0].begun(1);
    let ended = run.wait();
    assert!(ended.message().contains("nobody can tell"), "{}", ended.view);
    assert_eq!(fleet.receivers[0].deployed(), [revision], "it was taken");
}

#[test]
fn a_receiver_that_has_too_much_to_do_for_a_moment_is_asked_again() {
    let proxy = Proxy::new(BUSY, ANY);
    let fleet = fleet(&proxy, 3);
    let revision = fleet.sender.repo.push("one");
    assert_eq!(fleet.daemon().deploy().is("succeeded").hosts(), ["r1:healthy"]);
    assert_eq!(proxy.kept.load(Ordering::SeqCst), 3, "it was in the way");
    assert_eq!(fleet.receivers[0].deployed(), [revision], "once");
}
