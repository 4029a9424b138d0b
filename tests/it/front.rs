//! The front door as those outside meet it: TLS, a proxy, floods, attacks.

mod escapes;
mod load;
mod proxies;
mod random;
mod sweep;
mod tls;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::json;

use crate::fixture::Daemon;

/// A token with this scope, made over the socket.
fn token(daemon: &Daemon, scope: &str, ttl: Option<&str>) -> String {
    let made = daemon.api.post("/v1/tokens", &json!({ "name": scope, "scopes": [scope], "ttl": ttl })).is(201).json();
    made["text"].as_str().unwrap().to_owned()
}

/// A connection that waits for no answer longer than a test may.
fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// What the first line of the answer has as its status; 0 when the connection ends without an answer. The rest is not waited for: some
/// answers never end.
fn status_of(addr: SocketAddr, request: &[u8]) -> u16 {
    let mut stream = connect(addr);
    // It may be refused before all of it was sent.
    let _refused = stream.write_all(request);
    first_status(&mut stream)
}

fn first_status(stream: &mut TcpStream) -> u16 {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 12 && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}
