//! One look at a host's health: an HTTP answer, an open port, a command's exit code, a unit or container, the version it reports.
//!
//! What is written `":8080/path"` or `":5432"` is the host's own loopback, asked through its session: it works behind bastions and
//! firewalls, and sees what the host serves rather than what a balancer would. Nothing here is journaled and nothing is retried.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

mod process;
mod version;

use crate::{
    model::{
        cause::{Cause, one_line},
        health::Sight,
        pipeline::Check,
    },
    ports::{
        http::{Http, Request, Response},
        link::{Exit, Link, LinkError},
        probe::Probe,
    },
    time::{Clock, Span, within},
};

/// A health page is some bytes; more is read and dropped by nobody.
const MAX_BODY: usize = 4 * 1024;
/// Of a command's output the end is kept, for the one line that is shown.
const MAX_OUTPUT: usize = 2 * 1024;
/// How long output may still come once the command has ended: a daemon it left behind may hold its streams open for ever.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Characters of the line that is shown.
const MAX_SEEN: usize = 240;

/// The looks there are.
pub struct Probes {
    http: Arc<dyn Http>,
    clock: Arc<dyn Clock>,
}

impl Probes {
    /// Full URLs are asked by `http`; times are `clock`'s.
    #[must_use]
    pub fn new(http: Arc<dyn Http>, clock: Arc<dyn Clock>) -> Self {
        Probes { http, clock }
    }

    async fn http(&self, link: &dyn Link, target: &str, limit: Duration) -> Result<Sight, Cause> {
        let began = self.clock.now();
        let answer = self.get(link, target, MAX_BODY, limit).await?;
        let took = self.clock.now().since(&began).as_millis();
        Ok(sight(is_good(&answer), format!("{} in {took} ms{}", answer.status, why(&answer))))
    }

    /// What `target` answers, asked as [`Check::Http`] says.
    async fn get(&self, link: &dyn Link, target: &str, most: usize, limit: Duration) -> Result<Response, Cause> {
        let request = |url: String| Request {
            method: "GET".to_owned(),
            url,
            headers: Vec::new(),
            body: Vec::new(),
            timeout: limit,
            max_body: most,
        };
        match target.strip_prefix(':') {
            Some(own) => {
                let (port, path) = own.split_once('/').unwrap_or((own, ""));
                let port = self::port(target, port)?;
                let stream = self.dial(link, "127.0.0.1", port).await?;
                self.http.request_over(stream, request(format!("http://127.0.0.1:{port}/{path}"))).await
            }
            None => self.http.request(request(target.to_owned())).await,
        }
    }

    async fn tcp(&self, link: &dyn Link, target: &str) -> Result<Sight, Cause> {
        let bad = || Cause::new("bad_value", format!("{target:?} is no port: write \":5432\" or \"host:5432\""));
        let (host, port) = target.rsplit_once(':').ok_or_else(bad)?;
        let port = self::port(target, port)?;
        let host = if host.is_empty() { "127.0.0.1" } else { host.trim_matches(['[', ']']) };
        let began = self.clock.now();
        let stream = self.dial(link, host, port).await?;
        drop(stream);
        Ok(sight(true, format!("connected in {} ms", self.clock.now().since(&began).as_millis())))
    }

    async fn dial(&self, link: &dyn Link, host: &str, port: u16) -> Result<Box<dyn crate::ports::link::Duplex>, Cause> {
        link.dial(host, port).await.map_err(|LinkError { cause }| {
            if cause.code == "forwarding_refused" && !cause.message.contains("health") {
                let message = format!("{}; allow it (AllowTcpForwarding) or use health.command", cause.message);
                return Cause { message, ..cause };
            }
            cause
        })
    }

    async fn command(&self, link: &dyn Link, text: &str) -> Result<Sight, Cause> {
        let ended = self.run(link, text, MAX_OUTPUT).await?;
        Ok(sight(ended.exit == Exit::Code(0), ended.words()))
    }

    /// Runs shell text on the host; of what it prints the last `most` bytes are kept.
    async fn run(&self, link: &dyn Link, text: &str, most: usize) -> Result<Ended, Cause> {
        let mut channel = link.open("sh").await.map_err(|error| error.cause)?;
        let program = program(text);
        let mut stdin = channel.stdin;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = {
            let feed = async move {
                // A shell that ends early says so by its exit code.
                let _closed = stdin.write_all(program.as_bytes()).await;
                let _closed = stdin.shutdown().await;
            };
            let read = async {
                let (out, err) =
                    (tail(&mut channel.stdout, &mut out, most), tail(&mut channel.stderr, &mut err, MAX_OUTPUT));
                tokio::join!(feed, out, err);
            };
            let mut read = std::pin::pin!(read);
            tokio::select! {
                biased;
                () = &mut read => channel.exit.await,
                exit = &mut channel.exit => {
                    let _still_open = within(&*self.clock, LAST_WORDS, &mut read).await;
                    exit
                }
            }
        };
        Ok(Ended { exit: exit.map_err(|error| error.cause)?, out, err })
    }
}

/// How shell text ended, and the end of what it printed.
struct Ended {
    exit: Exit,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Ended {
    /// `exit 1: connection refused`.
    fn words(&self) -> String {
        let said = last_line(&self.err).or_else(|| last_line(&self.out));
        let said = said.map(|line| format!(": {line}")).unwrap_or_default();
        match &self.exit {
            Exit::Code(code) => format!("exit {code}{said}"),
            Exit::Signal(name) => format!("ended by signal {name}{said}"),
            Exit::Unsaid => format!("ended without an exit code{said}"),
        }
    }
}

/// What one look tells by itself.
fn sight(good: bool, seen: String) -> Sight {
    Sight { good, seen, fact: None }
}

fn is_good(answer: &Response) -> bool {
    matches!(answer.status, 200..=299)
}

/// One word of a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The whole program as `sh` reads it from its standard input: the text as one literal, run under `-eu` with an input of its own, and
/// only once its last line has arrived.
fn program(text: &str) -> String {
    let text = quoted(&format!("{text}\n"));
    format!("look() {{\nset -eu\neval {text} </dev/null\n}}\nlook\nexit $?\n")
}

fn port(target: &str, text: &str) -> Result<u16, Cause> {
    let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten().filter(|port| *port > 0);
    number.ok_or_else(|| Cause::new("bad_value", format!("{target:?} has no port from 1 to 65535")))
}

/// A bad answer's own words, or where it wanted to send us.
fn why(answer: &Response) -> String {
    if is_good(answer) {
        return String::new();
    }
    let location =
        answer.headers.iter().find(|(name, _)| name == "location").filter(|_| matches!(answer.status, 300..=399));
    match location {
        Some((_, to)) => format!(", redirected to {}", to.split(['?', '#']).next().unwrap_or("")),
        None => last_line(&answer.body).map(|line| format!(": {line}")).unwrap_or_default(),
    }
}

async fn tail(stream: &mut (dyn AsyncRead + Send + Unpin), kept: &mut Vec<u8>, most: usize) {
    let mut buffer = [0; 1024];
    while let Ok(n) = stream.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        kept.extend_from_slice(buffer.get(..n).unwrap_or_default());
        if kept.len() > 2 * most {
            kept.drain(..kept.len() - most);
        }
    }
}

fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

#[async_trait]
impl Probe for Probes {
    async fn look(&self, link: &dyn Link, check: &Check, limit: Duration) -> Sight {
        let look = async {
            match check {
                Check::Http(target) => self.http(link, target, limit).await,
                Check::Tcp(target) => self.tcp(link, target).await,
                Check::Command(text) => self.command(link, text).await,
                Check::Service(unit) => self.service(link, unit).await,
                Check::Container(name) => self.container(link, name).await,
                Check::Version(version) => self.version(link, version, limit).await,
                Check::Signal(_) => Ok(sight(false, "a daemon is asked by signals, not through a session".to_owned())),
            }
        };
        let found = match within(&*self.clock, limit, look).await {
            Some(Ok(found)) => found,
            Some(Err(cause)) => sight(false, cause.message),
            None => sight(false, format!("no answer within {}", Span(limit))),
        };
        Sight { seen: one_line(&found.seen, MAX_SEEN), ..found }
    }
}

#[cfg(test)]
mod tests;
