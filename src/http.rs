//! HTTP requests: from here by reqwest, over a host's session by hyper alone.
//!
//! Nothing is followed, retried or kept open: one request is one connection, so that a POST happens at most once.

use std::{error::Error as _, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};
use tokio::sync::OnceCell;

use crate::{
    lifecycle::names::{self, Names},
    model::cause::Cause,
    ports::{
        http::{Http, Request, Response},
        link::Duplex,
    },
    time::{Clock, Span, within},
};

pub mod tls;

/// The client. The TLS part, with the system's root certificates, is made at the first request that leaves this machine's process:
/// a daemon that asks nobody pays nothing for it.
pub struct Client {
    clock: Arc<dyn Clock>,
    asking: OnceCell<reqwest::Client>,
}

/// Nobody who is there takes longer to take a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// By a few threads of all: see [`Names`].
struct Resolver(Names);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.0.clone();
        Box::pin(async move {
            // The port is the URL's.
            let addresses = names.lookup(name.as_str(), 0).await;
            addresses
                .map(|addresses| Box::new(addresses.into_iter()) as Addrs)
                .map_err(|error| -> Box<dyn std::error::Error + Send + Sync> { error.into() })
        })
    }
}

impl Client {
    /// A client whose time-outs run on `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Client { clock, asking: OnceCell::new() }
    }

    async fn asking(&self) -> Result<&reqwest::Client, Cause> {
        self.asking
            .get_or_try_init(|| async {
                reqwest::Client::builder()
                    .redirect(reqwest::redirect::Policy::none())
                    .retry(reqwest::retry::never())
                    .pool_max_idle_per_host(0)
                    .connect_timeout(CONNECT)
                    .dns_resolver(Arc::new(Resolver(Names::new(names::SERVERS))))
                    .user_agent(concat!("phased/", env!("CARGO_PKG_VERSION")))
                    .build()
            })
            .await
            .map_err(|error| Cause::new("http_tls", format!("TLS cannot be set up on this machine: {}", chain(&error))))
    }

    fn bounded(
        &self,
        shown: &str,
        limit: Duration,
        work: impl Future<Output = Result<Response, Cause>>,
    ) -> impl Future<Output = Result<Response, Cause>> {
        within(&*self.clock, limit, work).map(move |done| {
            done.unwrap_or_else(|| {
                Err(Cause::new("timeout", format!("{shown} did not answer completely within {}", Span(limit))))
            })
        })
    }
}

/// `url` for people: without what may be secret in it.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _cannot_have_one = url.set_username("");
    let _cannot_have_one = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

fn parse(text: &str) -> Result<Url, Cause> {
    let url = Url::parse(text).map_err(|error| {
        // Not printed: what could not be parsed cannot be stripped of secrets either.
        Cause::new("http_url", format!("the URL cannot be read ({error}): write http://host/path or https://host/path"))
    })?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        let message = format!("{} is no http URL: write http://host/path or https://host/path", shown(&url));
        return Err(Cause::new("http_url", message));
    }
    Ok(url)
}

fn headers(request: &Request, shown: &str) -> Result<hyper::HeaderMap, Cause> {
    let mut headers = hyper::HeaderMap::new();
    for (name, value) in &request.headers {
        let bad = |what: &str| {
            Cause::new(
                "http_url",
                format!("{shown}: header {name:?} cannot be sent, its {what} holds characters HTTP does not allow"),
            )
        };
        let key = hyper::header::HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("name"))?;
        headers.append(key, hyper::header::HeaderValue::from_bytes(value.as_bytes()).map_err(|_| bad("value"))?);
    }
    Ok(headers)
}

fn method(request: &Request, shown: &str) -> Result<hyper::Method, Cause> {
    hyper::Method::from_bytes(request.method.as_bytes())
        .map_err(|_| Cause::new("http_url", format!("{shown}: {:?} is no HTTP method", request.method)))
}

/// An error with its causes, without the URL the outermost one would print.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = vec![error.to_string()];
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if words.last() != Some(&text) {
            words.push(text);
        }
        source = inner.source();
    }
    words.join(": ")
}

fn asking_failed(shown: &str, host: &str, error: reqwest::Error) -> Cause {
    let error = error.without_url();
    let said = error.source().map_or_else(|| error.to_string(), chain);
    if error.is_timeout() && error.is_connect() {
        Cause::new("http_connect", format!("{shown}: cannot connect (nobody answered within {})", Span(CONNECT)))
    } else if error.is_timeout() {
        Cause::new("timeout", format!("{shown} did not answer in time"))
    } else if error.is_builder() {
        Cause::new("http_url", format!("{shown} cannot be asked: {said}"))
    } else if let Some(refusal) = tls::refusal(&error).filter(|_| error.is_connect()) {
        // Only before anything was sent: one that is cut off later may have been heard.
        Cause::new("http_tls", format!("{shown}: no trusted connection: {}", tls::why(refusal, host, &tls::MACHINE)))
    } else if error.is_connect() {
        Cause::new("http_connect", format!("{shown}: cannot connect ({said})"))
    } else {
        Cause::new("http_protocol", format!("{shown}: the answer broke off or is no HTTP ({said})"))
    }
}

fn told(headers: &hyper::HeaderMap) -> Vec<(String, String)> {
    let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

/// Keeps what fits; gives whether it all did.
fn keep(body: &mut Vec<u8>, chunk: &[u8], max: usize) -> bool {
    let room = max.saturating_sub(body.len());
    body.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
    chunk.len() <= room
}

#[async_trait]
impl Http for Client {
    async fn request(&self, request: Request) -> Result<Response, Cause> {
        let url = parse(&request.url)?;
        let shown = shown(&url);
        let (method, headers) = (method(&request, &shown)?, headers(&request, &shown)?);
        let (limit, max) = (request.timeout, request.max_body);
        let client = self.asking().await?;
        let host = url.host_str().unwrap_or_default().to_owned();
        self.bounded(&shown, limit, async {
            let failed = |error| asking_failed(&shown, &host, error);
            let ask = client.request(method, url).headers(headers);
            let ask = if request.body.is_empty() { ask } else { ask.body(request.body) };
            let mut answer = ask.send().await.map_err(failed)?;
            let (status, headers) = (answer.status().as_u16(), told(answer.headers()));
            let (mut body, mut truncated) = (Vec::new(), false);
            while let Some(chunk) = answer.chunk().await.map_err(failed)? {
                if !keep(&mut body, &chunk, max) {
                    truncated = true;
                    break;
                }
            }
            Ok(Response { status, headers, body, truncated })
        })
        .await
    }

    async fn request_over(&self, stream: Box<dyn Duplex>, request: Request) -> Result<Response, Cause> {
        let url = parse(&request.url)?;
        let shown = shown(&url);
        let (method, mut headers) = (method(&request, &shown)?, headers(&request, &shown)?);
        let authority = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let bad = |error: &dyn std::error::Error| Cause::new("http_url", format!("{shown} cannot be asked: {error}"));
        for (name, value) in [
            ("host", authority.as_str()),
            ("user-agent", concat!("phased/", env!("CARGO_PKG_VERSION"))),
            ("connection", "close"),
        ] {
            if !headers.contains_key(name) {
                headers.insert(name, hyper::header::HeaderValue::from_str(value).map_err(|error| bad(&error))?);
            }
        }
        let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        let mut ask = hyper::Request::builder()
            .method(method)
            .uri(target)
            .body(Full::new(Bytes::from(request.body)))
            .map_err(|error| bad(&error))?;
        *ask.headers_mut() = headers;
        let (limit, max) = (request.timeout, request.max_body);
        let failed = |error: hyper::Error| {
            Cause::new("http_protocol", format!("{shown}: the answer broke off or is no HTTP ({})", chain(&error)))
        };
        self.bounded(&shown, limit, async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
            let exchange = async {
                let answer = sender.send_request(ask).await.map_err(failed)?;
                let (parts, mut incoming) = answer.into_parts();
                let (mut body, mut truncated) = (Vec::new(), false);
                while let Some(frame) = incoming.frame().await {
                    if let Some(chunk) = frame.map_err(failed)?.data_ref()
                        && !keep(&mut body, chunk, max)
                    {
                        truncated = true;
                        break;
                    }
                }
                Ok(Response { status: parts.status.as_u16(), headers: told(&parts.headers), body, truncated })
            };
            // The connection is driven here and not by a task of its own: it ends with the request, whatever becomes of it.
            let mut connection = std::pin::pin!(connection);
            let mut exchange = std::pin::pin!(exchange);
            tokio::select! {
                biased;
                done = &mut exchange => done,
                _ended = &mut connection => exchange.await,
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests;
