//! A small HTTP/1 client: one connection a request, to the socket or to TCP.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::http::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use tokio_rustls::{client::TlsStream, rustls::ClientConfig};

use super::{exit::Failure, tls};
use crate::{
    api::{problem::Problem, text::printable},
    lifecycle::Tasks,
    time::{Clock, within},
};

/// Where the daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp { host: String, port: u16, tls: bool },
}

impl std::str::FromStr for Address {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            Failure::Usage(format!(
                "{text:?} is no address of a daemon ({why}): write unix:///run/phased/phased.sock, https://host or http://host:port"
            ))
        };
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
            return if path.starts_with('/') {
                Ok(Address::Unix(path.into()))
            } else {
                Err(wrong("a path starts with /"))
            };
        }
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(wrong("it starts with none of unix://, https:// and http://")),
        };
        let uri: hyper::http::Uri = text.parse().map_err(|_| wrong("it is not a URL"))?;
        let authority = uri.authority().ok_or_else(|| wrong("there is no host"))?;
        if authority.as_str().contains('@') || !matches!(rest.strip_prefix(authority.as_str()), Some("" | "/")) {
            return Err(wrong("there may be nothing but a host and a port"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong("there is no host"));
        }
        // A port that is none is left out by the parser, which must not mean 80.
        let after_host = authority.as_str().rsplit_once(']').map_or(authority.as_str(), |(_, rest)| rest);
        match (authority.port_u16(), after_host.contains(':')) {
            (Some(port), _) => Ok(Address::Tcp { host, port, tls }),
            (None, false) => Ok(Address::Tcp { host, port: if tls { 443 } else { 80 }, tls }),
            (None, true) => Err(wrong("the port is none")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp { host, port, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                match host.contains(':') {
                    true => write!(f, "{scheme}://[{host}]:{port}"),
                    false => write!(f, "{scheme}://{host}:{port}"),
                }
            }
        }
    }
}

const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `text` as one segment of a path, or a value in a query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, IN_PATH).to_string()
}

/// A path with the pairs that have a value as its query.
pub(super) fn with_query(path: &str, pairs: &[(&str, Option<String>)]) -> String {
    let mut out = path.to_owned();
    let given = pairs.iter().filter_map(|(name, value)| value.as_ref().map(|value| (name, value)));
    for (i, (name, value)) in given.enumerate() {
        out.push(if i == 0 { '?' } else { '&' });
        out.push_str(&format!("{name}={}", encoded(value)));
    }
    out
}

const CONNECT: Duration = Duration::from_secs(10);
/// Discovery may take its time; a daemon that is silent for longer is stuck.
const ANSWER: Duration = Duration::from_secs(180);
/// The largest answer that is held in memory.
const LONGEST_ANSWER: usize = 256 << 20;

/// How often a POST whose answer got lost is sent again, under the same key.
const REPEATS: u32 = 3;

/// Asks one daemon.
#[derive(Clone)]
pub(super) struct Client {
    address: Address,
    token: Option<String>,
    /// Whom to believe over TLS, instead of those whom this machine trusts.
    ca_file: Option<PathBuf>,
    pub(super) tasks: Tasks,
    pub(super) clock: Arc<dyn Clock>,
}

impl Client {
    /// `token` is sent over TCP only; the socket knows who asks.
    pub(super) fn new(address: Address, token: Option<String>, clock: Arc<dyn Clock>) -> Self {
        Client { address, token: token.filter(|t| !t.is_empty()), ca_file: None, tasks: Tasks::new(), clock }
    }

    /// The same, which over TLS believes the authorities in this file and nobody else.
    pub(super) fn trusting(self, ca_file: Option<PathBuf>) -> Self {
        Client { ca_file, ..self }
    }

    /// The body of an answer as text.
    pub(super) async fn get(&self, path: &str, accept: &str) -> Result<String, Failure> {
        let response = self.open(path, accept).await?;
        self.whole(response).await
    }

    /// The body of an answer, read from JSON.
    pub(super) async fn get_json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        read(&self.get(path, "application/json").await?)
    }

    /// An answer whose body goes on and on.
    pub(super) async fn open(&self, path: &str, accept: &str) -> Result<Response<Incoming>, Failure> {
        self.ask(&Method::GET, path, accept, None, None).await
    }

    /// Sends a JSON object, at most once done: an answer that got lost is asked for again under the same `Idempotency-Key`.
    pub(super) async fn post(&self, path: &str, body: &serde_json::Value) -> Result<String, Failure> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|e| Failure::Broken(format!("no random numbers: {e}")))?;
        let key = random.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let mut repeats = 0;
        loop {
            let asked = self.ask(&Method::POST, path, "application/json", Some(body), Some(&key)).await;
            let answer = match asked {
                Ok(response) => self.whole(response).await,
                Err(failure) => Err(failure),
            };
            let again = match &answer {
                Err(Failure::Broken(_)) => true,
                Err(Failure::Problem(problem)) => problem.code == "idempotency_in_flight",
                _ => false,
            };
            if !again || repeats == REPEATS {
                return answer;
            }
            repeats += 1;
            self.clock.sleep(Duration::from_millis(500)).await;
        }
    }

    /// Sends a JSON object and takes no for an answer: what only looks is not worth a second look.
    pub(super) async fn post_once(&self, path: &str, body: &serde_json::Value) -> Result<String, Failure> {
        let response = self.ask(&Method::POST, path, "application/json", Some(body), None).await?;
        self.whole(response).await
    }

    /// Sends a JSON object to be as it says, however often that is done.
    pub(super) async fn put(&self, path: &str, body: &serde_json::Value) -> Result<String, Failure> {
        let response = self.ask(&Method::PUT, path, "application/json", Some(body), None).await?;
        self.whole(response).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<String, Failure> {
        let response = self.ask(&Method::DELETE, path, "application/json", None, None).await?;
        self.whole(response).await
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<String, Failure> {
        let lost = |e: String| Failure::Broken(format!("the answer of {} broke off: {e}", self.address));
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect();
        let body = within(&*self.clock, ANSWER, body).await.ok_or_else(|| lost("it does not end".to_owned()))?;
        let bytes = body.map_err(|e| lost(e.to_string()))?.to_bytes();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn ask(
        &self,
        method: &Method,
        path: &str,
        accept: &str,
        body: Option<&serde_json::Value>,
        key: Option<&str>,
    ) -> Result<Response<Incoming>, Failure> {
        let (host, token) = match &self.address {
            Address::Unix(_) => ("localhost".to_owned(), None),
            Address::Tcp { host, port, .. } if host.contains(':') => (format!("[{host}]:{port}"), self.token.as_ref()),
            Address::Tcp { host, port, .. } => (format!("{host}:{port}"), self.token.as_ref()),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host)
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, concat!("phased/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(bytes)).map_err(|e| {
            Failure::Usage(format!("this cannot be sent ({e}); is PHASED_TOKEN complete and on one line?"))
        })?;
        let response = match &self.address {
            Address::Unix(path) => self.send(self.connected(UnixStream::connect(path)).await?, request).await,
            Address::Tcp { host, port, tls } => {
                let trust = if *tls { Some(tls::config(self.ca_file.as_deref())?) } else { None };
                let stream = self.connected(TcpStream::connect((host.as_str(), *port))).await?;
                match trust {
                    Some(trust) => self.send(self.secured(trust, host, stream).await?, request).await,
                    None => self.send(stream, request).await,
                }
            }
        }?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.whole(response).await?;
        Err(match serde_json::from_str::<Problem>(&body) {
            Ok(problem) => Failure::Problem(problem),
            Err(_) => {
                let start: String = printable(&body).chars().take(200).collect();
                Failure::Broken(format!("{} answered {status}, which no phased does: {start}", self.address))
            }
        })
    }

    async fn connected<S>(&self, connecting: impl Future<Output = std::io::Result<S>>) -> Result<S, Failure> {
        let unreachable = |why: &str| Failure::Unreachable(unreachable(&self.address, why));
        match within(&*self.clock, CONNECT, connecting).await {
            Some(Ok(stream)) => Ok(stream),
            // The daemon is there and this user is not let in.
            Some(Err(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let detail = format!(
                    "this user may not use {}: root and members of the group phased may (sudo; or sudo usermod -aG phased $USER, then log in anew)",
                    self.address
                );
                Err(Failure::Problem(Problem::new(hyper::http::StatusCode::FORBIDDEN, "socket_not_allowed", detail)))
            }
            Some(Err(error)) => Err(unreachable(&error.to_string())),
            None => Err(unreachable("no connection within 10 s")),
        }
    }

    async fn secured(
        &self,
        trust: Arc<ClientConfig>,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        match within(&*self.clock, CONNECT, tls::connect(trust, host, stream)).await {
            Some(Ok(stream)) => Ok(stream),
            Some(Err(error)) => {
                Err(Failure::Unreachable(format!("{} is not asked: {}", self.address, tls::why(&error, host))))
            }
            None => Err(Failure::Unreachable(unreachable(&self.address, "no TLS within 10 s"))),
        }
    }

    async fn send<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        let lost = |why: String| Failure::Broken(format!("{} gave no answer: {why}", self.address));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| lost(e.to_string()))?;
        self.tasks.spawn("connection", connection);
        let answer = within(&*self.clock, ANSWER, sender.send_request(request)).await;
        answer.ok_or_else(|| lost("nothing for 3 minutes".to_owned()))?.map_err(|e| lost(e.to_string()))
    }
}

fn unreachable(address: &Address, why: &str) -> String {
    let next = match address {
        Address::Unix(_) => {
            "is the daemon running (`systemctl status phased`, `phased serve`)? PHASED_ADDR or --addr say where it is"
        }
        Address::Tcp { .. } => "is this where it listens? PHASED_ADDR or --addr say where it is",
    };
    format!("there is no daemon at {address}: {why}\n{next}")
}

/// Reads JSON that the daemon sent.
pub(super) fn read<T: serde::de::DeserializeOwned>(body: &str) -> Result<T, Failure> {
    serde_json::from_str(body).map_err(|e| {
        Failure::Broken(format!("the daemon's answer cannot be read ({e}); are its version and this one's far apart?"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_slips_explained() {
        let tcp = |host: &str, port| Address::Tcp { host: host.into(), port, tls: false };
        let tls = |host: &str, port| Address::Tcp { host: host.into(), port, tls: true };
        for (text, address) in [
            ("unix:///run/x.sock", Address::Unix("/run/x.sock".into())),
            ("unix:/run/x.sock", Address::Unix("/run/x.sock".into())),
            ("http://127.0.0.1:7427", tcp("127.0.0.1", 7427)),
            ("http://localhost:7427/", tcp("localhost", 7427)),
            ("http://[::1]:7427", tcp("::1", 7427)),
            ("http://host", tcp("host", 80)),
            ("https://host", tls("host", 443)),
            ("https://[::1]:7427/", tls("::1", 7427)),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), address, "{text}");
        }
        for text in [
            "",
            "/run/x.sock",
            "unix://x",
            "localhost:7427",
            "https://",
            "https://host/path",
            "ftp://host",
            "http://",
            "http://a@b",
            "http://host/path",
            "http://h:99999",
            "http://host?x",
        ] {
            assert!(matches!(text.parse::<Address>(), Err(Failure::Usage(_))), "{text}");
        }
        assert_eq!(tcp("::1", 1).to_string(), "http://[::1]:1");
        assert_eq!(tls("host", 1).to_string(), "https://host:1");
    }

    #[test]
    fn paths_are_encoded() {
        assert_eq!(encoded("a/b c%;é"), "a%2Fb%20c%25%3B%C3%A9");
        assert_eq!(
            with_query("/x", &[("a", None), ("b", Some("1&2".into())), ("c", Some(String::new()))]),
            "/x?b=1%262&c="
        );
    }
}
