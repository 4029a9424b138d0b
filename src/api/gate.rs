//! The root of the router: what every request goes through before anything looks at its path's meaning, and every answer after.

use std::{
    net::IpAddr,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header},
    response::IntoResponse,
};
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::OwnedSemaphorePermit;
use tower::ServiceExt as _;

use super::{
    Certificates, Server,
    auth::{Caller, Peer, needed},
    clients::{Client, Share},
    listen::Place,
    problem::{self, Problem, rate_limited},
};
use crate::{
    engine::handle::{Claim, KeptAnswer},
    model::{ids::Digest, signal::MOST_BYTES},
    time::within,
};

/// In an answer's extensions: what is kept under an `Idempotency-Key` in place of the body, because the body holds a secret.
#[derive(Debug, Clone)]
pub(super) struct KeepInstead(pub(super) String);

/// Bodies slower than this, on the whole, are cut off.
const SLOWEST_BYTES_PER_MS: u64 = 64;

/// The largest answer kept under an `Idempotency-Key`.
const LONGEST_KEPT: usize = 1 << 20;

/// Answers nobody has to ask for permission: exactly these.
fn is_public(method: &Method, path: &str) -> bool {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    (reads && matches!(path, "/healthz" | "/readyz" | "/openapi.json")) || is_signed(method, path)
}

/// What must get through when all places are taken: to see what is going on, and to end it. All of these are answered at once; who asks to
/// `wait` for something is not among them.
fn is_urgent(method: &Method, uri: &Uri) -> bool {
    let waits = uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("wait")));
    if waits {
        return false;
    }
    let parts: Vec<&str> = uri.path().split('/').skip(1).collect();
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match parts.as_slice() {
        ["healthz" | "readyz"] | ["v1", "status"] | ["v1", "projects", _, "status"] => reads,
        ["v1", "projects" | "runs", _, "stop"] => *method == Method::POST,
        ["v1", "projects", _, "environments", _, "pause" | "rollback"] => *method == Method::POST,
        ["v1", "maintenance"] => reads || *method == Method::POST,
        _ => false,
    }
}

/// What a signature of its own lets in.
fn is_signed(method: &Method, path: &str) -> bool {
    path.starts_with("/hooks/") || is_signal(method, path)
}

/// Whether somebody was not let in: counted by client. A delivery to a project that is none is a guess as well.
fn is_refusal(status: StatusCode, path: &str) -> bool {
    matches!(status.as_u16(), 401 | 403) || (status == StatusCode::NOT_FOUND && path.starts_with("/hooks/"))
}

/// As much of a path as the log shows: strangers choose how long it is.
fn clipped(path: &str) -> &str {
    path.char_indices().nth(200).map_or(path, |(at, _)| path.get(..at).unwrap_or(path))
}

/// What another daemon asks for.
fn is_signal(method: &Method, path: &str) -> bool {
    *method == Method::POST && matches!(path, "/v1/signals" | "/v1/signals/pieces")
}

impl Server {
    /// One request, one answer, whatever happens.
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Peer,
        place: Place,
    ) -> Response<Body> {
        let id = request_id();
        let has_body = !request.body().is_end_stream();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let client = self.client(&peer, request.headers());
        let outcome = AssertUnwindSafe(self.admit(request, peer, place, client, &id)).catch_unwind().await;
        let response = match outcome {
            Ok(Ok(response)) => response,
            Ok(Err(problem)) => problem.into_response(),
            Err(_) => problem::internal().into_response(),
        };
        if let Some(client) = client.filter(|_| path.starts_with("/hooks/")) {
            self.mourn(&response, client, &id, &path);
        }
        let response = match client {
            Some(client) if is_refusal(response.status(), &path) => self.refused(response, client, &id, &method, &path),
            _ => response,
        };
        let mut response = written(response, &path, &id);
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert("x-request-id", id);
        }
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        if has_body {
            // What follows a body is never read as a request: see `strict`.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The address that asks, over TCP: what rates and the log go by.
    fn client(&self, peer: &Peer, headers: &HeaderMap) -> Option<IpAddr> {
        let Peer::Tcp { remote, .. } = peer else { return None };
        let client = self.proxies.client(*remote, headers);
        if client == *remote && self.proxies.trust(client) && !self.unnamed.swap(true, Ordering::Relaxed) {
            let header = self.proxies.header.name();
            tracing::warn!(proxy = %client, header, "a trusted proxy does not say for whom it asks: all its clients count as one");
        }
        Some(client)
    }

    /// Tells the log who was refused; beyond their rate they are told to wait, and the log is spared. A right token or signature is not
    /// asked to wait: guessing one is hopeless, while neighbours behind one address would be locked out together.
    fn refused(
        &self,
        response: Response<Body>,
        client: IpAddr,
        id: &str,
        method: &Method,
        path: &str,
    ) -> Response<Body> {
        let status = response.status().as_u16();
        let (who, now, hook) = (Client::of(client), self.boot_time(), path.starts_with("/hooks/"));
        let path = clipped(path);
        // Those whom a signature lets in have a rate of their own: a forge whose secret is out of date sends a lot. The log has one for all.
        let told = self.refusals.take(who, now);
        let asked = if hook { self.hooks.take(who, now) } else { told };
        if let (true, Err(wait)) = (status != 403, asked) {
            tracing::debug!(request_id = id, %client, %method, path, "a client is refused too often");
            let what = "too many requests of this client had no right token or signature";
            // The next guess costs a connection.
            return rate_limited(what, wait).with_header(header::CONNECTION, "close").into_response();
        }
        if told.is_err() {
            tracing::debug!(request_id = id, %client, %method, path, status, "a request was refused; the log is spared");
            return response;
        }
        let code = response.extensions().get::<Problem>().map(|problem| problem.code.clone());
        tracing::info!(request_id = id, %client, %method, path, status, code, "a request was refused");
        response
    }

    /// Tells the log of a delivery that was not taken for reasons of ours: most forges do not send it again by themselves.
    fn mourn(&self, response: &Response<Body>, client: IpAddr, id: &str, path: &str) {
        let status = response.status();
        let ours =
            status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE);
        if !ours || self.lost.take(Client::of(client), self.boot_time()).is_err() {
            return;
        }
        let (status, path) = (status.as_u16(), clipped(path));
        let code = response.extensions().get::<Problem>().map(|problem| problem.code.clone());
        tracing::warn!(request_id = id, %client, path, status, code, "a delivery was not taken, nor perhaps others of this client; whether they come again is up to their sender");
    }

    /// A time that never goes back.
    pub(super) fn boot_time(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.clock.now().boot_ms)
    }

    /// Without TLS nobody's token is asked for across a network, unless the daemon is told that this is all right.
    pub(super) fn check_clear(&self, local: IpAddr, remote: IpAddr) -> Result<(), Problem> {
        if self.tls.is_some() || self.plaintext || local.to_canonical().is_loopback() || self.proxies.trust(remote) {
            return Ok(());
        }
        let detail = "this port is reached across a network without TLS: ask through the proxy, or give [api] a certificate (`tls`); plaintext = true allows it";
        Err(Problem::new(StatusCode::FORBIDDEN, "plaintext_refused", detail))
    }

    async fn admit(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: Peer,
        place: Place,
        client: Option<IpAddr>,
        id: &str,
    ) -> Result<Response<Body>, Problem> {
        let (parts, incoming) = request.into_parts();
        let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
        check_target(&parts.uri)?;
        if place == Place::Reserved && !is_urgent(&method, &parts.uri) {
            let detail = "as many connections as there may be are in use, and the few further ones are for status, stop and maintenance; ask again in a moment";
            return Err(
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).with_header(header::RETRY_AFTER, "2")
            );
        }
        let (hook, signed) = (path.starts_with("/hooks/"), is_signed(&method, &path));
        if let Peer::Tcp { local, remote, .. } = &peer
            && !signed
        {
            if !is_public(&method, &path) {
                self.check_clear(local.ip(), *remote)?;
            }
            let names = Names { configured: &self.auth.host_names, tls: self.tls.as_deref() };
            check_host(&parts.headers, &parts.uri, parts.version, local.ip(), &names)?;
        }
        let caller = match Caller::identify(&*self.engine, &self.auth, &peer, &parts.headers) {
            Ok(caller) => {
                if let Peer::Tcp { known, .. } = &peer {
                    known.store(true, Ordering::Relaxed);
                }
                if !is_public(&method, &path) {
                    caller.may(needed(&method, &path), &path)?;
                }
                Some(caller)
            }
            // Public routes need nobody, but users of the socket who must not be there get nothing at all.
            Err(problem) if problem.status == 401 && is_public(&method, &path) => None,
            Err(problem) => return Err(problem),
        };
        if matches!(method, Method::GET | Method::HEAD) {
            return Ok(self.route(Request::from_parts(parts, Body::empty()), caller).await);
        }

        let limit = match path.as_str() {
            _ if hook => self.limits.hook_body,
            "/v1/signals" => MOST_BYTES,
            "/v1/signals/pieces" => self.limits.piece_body,
            _ => self.limits.other_body,
        };
        // Hooks and signals are strangers' whatever token they bring: their bodies are larger than the stock for those who have one.
        let room = match client {
            None => Room::Free,
            Some(_) if caller.is_some() && !signed => Room::Known,
            Some(client) => Room::Stranger(Client::of(client)),
        };
        let (body, held) = self.body(incoming, limit, &parts.headers, room).await?;
        let key = match &caller {
            Some(caller) if method == Method::POST && !signed => {
                idempotency_key(&parts.headers)?.map(|key| claim(key, caller, &parts.uri, &body))
            }
            _ => None,
        };
        // A task of its own: a client that hangs up half-way does not leave half of something done, nor a key claimed for ever.
        let (server, id) = (self.clone(), id.to_owned());
        let work = self.tasks.spawn("api/request", async move {
            let actor = caller.as_ref().map_or_else(|| "nobody".to_owned(), Caller::actor);
            let request = Request::from_parts(parts, Body::from(body));
            let answer = match key {
                None => Ok(server.route(request, caller).await),
                Some(key) => server.once(request, caller, key, &path, &id).await,
            };
            let status = answer.as_ref().map_or_else(|p| p.status, |r| r.status().as_u16());
            if is_signal(&method, &path) || (hook && matches!(status, 401 | 404)) {
                // Most signals only ask how a run stands, and what they change is told by what takes them; a delivery that nobody signed is
                // told of, within a rate, where its answer goes out.
                tracing::debug!(request_id = id, %method, path, status, "a signed request was answered");
            } else {
                let client = client.map(tracing::field::display);
                tracing::info!(request_id = id, by = actor, client, %method, path, status, "a request to change something was answered");
            }
            drop(held);
            answer
        });
        work.await.unwrap_or_else(|_| Err(problem::internal()))
    }

    async fn route(&self, mut request: Request<Body>, caller: Option<Caller>) -> Response<Body> {
        if let Some(caller) = &caller {
            request.extensions_mut().insert(caller.clone());
        }
        request.extensions_mut().insert(caller);
        match AssertUnwindSafe(self.router.clone().oneshot(request)).catch_unwind().await {
            Ok(Ok(response)) => response,
            Err(_) => problem::internal().into_response(),
        }
    }

    /// Does what the request asks unless its key says it was done: then the first answer again.
    async fn once(
        &self,
        mut request: Request<Body>,
        caller: Option<Caller>,
        key: Claim,
        path: &str,
        id: &str,
    ) -> Result<Response<Body>, Problem> {
        if let Some(kept) = self.engine.claim(&key)? {
            let status = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
            let mut response = (status, kept.body).into_response();
            let headers = response.headers_mut();
            for (name, text) in [(header::CONTENT_TYPE, Some(kept.content_type)), (header::LOCATION, kept.location)] {
                if let Some(value) = text.and_then(|t| HeaderValue::from_str(&t).ok()) {
                    headers.insert(name, value);
                }
            }
            headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
            return Ok(response);
        }
        // For those who keep it together with what they do.
        request.extensions_mut().insert(key.clone());
        let response = written(self.route(request, caller).await, path, id);
        let (mut parts, body) = response.into_parts();
        let body = match http_body_util::Limited::new(body, LONGEST_KEPT).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => {
                let _the_answer_matters_more = self.engine.keep(&key, None).await;
                return Err(problem::internal());
            }
        };
        let text = |name| parts.headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).map(str::to_owned);
        let (location, content_type) = (text(header::LOCATION), text(header::CONTENT_TYPE).unwrap_or_default());
        let kept = match parts.extensions.remove::<KeepInstead>() {
            Some(KeepInstead(text)) => text,
            None => String::from_utf8_lossy(&body).into_owned(),
        };
        let done = !parts.status.is_server_error();
        let answer = done.then(|| KeptAnswer { status: parts.status.as_u16(), location, body: kept, content_type });
        if let Err(error) = self.engine.keep(&key, answer).await {
            // It was done and the client shall know; only a repetition will not be recognised.
            tracing::warn!(%error, request_id = id, "an answer could not be kept under its Idempotency-Key");
        }
        Ok(Response::from_parts(parts, Body::from(body)))
    }

    /// The whole body, within its limits of size, time and memory.
    async fn body(
        &self,
        mut incoming: Incoming,
        limit: usize,
        headers: &HeaderMap,
        room: Room,
    ) -> Result<(Bytes, Held), Problem> {
        let too_large = || {
            let detail = format!("the body is larger than {} KiB", limit >> 10);
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
        };
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|n| n > limit) && headers.contains_key(header::EXPECT) {
            // It has not sent anything yet and now never will.
            return Err(too_large());
        }
        let started = self.clock.now();
        let (mut body, mut received, mut counted_kib) = (Vec::new(), 0usize, 0usize);
        let busy = |detail| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).with_header(header::RETRY_AFTER, "2")
        };
        let (stock, share) = match room {
            Room::Free => (None, None),
            Room::Known => (Some(&self.known_bodies), None),
            Room::Stranger(client) => (Some(&self.bodies), self.body_shares.take(client, 0)),
        };
        let mut held = Held { permit: None, share };
        while !incoming.is_end_stream() {
            let allowance = std::time::Duration::from_millis(received.min(limit) as u64 / SLOWEST_BYTES_PER_MS);
            let left = (self.limits.body + allowance).saturating_sub(self.clock.now().since(&started));
            let frame = within(&*self.clock, left, incoming.frame()).await.ok_or_else(|| {
                Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not arrive in time")
            })?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|e| Problem::bad_request("bad_body", format!("the body cannot be read: {e}")))?;
            let Ok(data) = frame.into_data() else { continue };
            received = received.saturating_add(data.len());
            if received > limit {
                // Read on a little, so that a client that sends first and listens then gets to read the answer.
                body = Vec::new();
                if received > 2 * limit {
                    break;
                }
                continue;
            }
            let whole = received.div_ceil(1024);
            let kib = whole - counted_kib;
            counted_kib = whole;
            if held.share.as_mut().is_some_and(|share| !share.more(kib)) {
                return Err(busy("too many bodies of this client are being received; ask again in a moment"));
            }
            if let Some(stock) = stock {
                let permit = stock.clone().try_acquire_many_owned(u32::try_from(kib).unwrap_or(u32::MAX));
                let permit = permit.map_err(|_| busy("too many bodies are being received; ask again in a moment"))?;
                match &mut held.permit {
                    Some(held) => held.merge(permit),
                    None => held.permit = Some(permit),
                }
            }
            body.extend_from_slice(&data);
        }
        if received > limit { Err(too_large()) } else { Ok((Bytes::from(body), held)) }
    }
}

/// Whose room a body takes.
enum Room {
    /// The socket's: few may use it, and they must get through when TCP is flooded.
    Free,
    /// Of a caller with a right token.
    Known,
    /// Of anybody else.
    Stranger(Client),
}

/// The room that a body takes, for as long as it is worked on.
struct Held {
    permit: Option<OwnedSemaphorePermit>,
    share: Option<Share>,
}

/// An `Idempotency-Key` with what it belongs to.
fn claim(key: String, caller: &Caller, uri: &Uri, body: &[u8]) -> Claim {
    // Fields may come in the query as well, so it is part of what must not differ.
    let mut said = uri.query().unwrap_or_default().as_bytes().to_vec();
    said.push(0);
    said.extend_from_slice(body);
    let scope = format!("{} POST {}", caller.key_scope(), uri.path());
    Claim { scope, key, body: Digest::of(&said).as_str().to_owned() }
}

/// The key, bare or as the draft's quoted string.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
    let fine = (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if !fine || values.next().is_some() {
        let detail = "Idempotency-Key must be there once, 1 to 255 printable ASCII characters; a UUID is a good one";
        return Err(Problem::bad_request("bad_idempotency_key", detail));
    }
    Ok(Some(text.to_owned()))
}

/// Turns what handlers and the router left as a mark into problem+json.
fn written(mut response: Response<Body>, path: &str, id: &str) -> Response<Body> {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        return problem.answer(path, id);
    }
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let allow =
            response.headers().get(header::ALLOW).and_then(|v| v.to_str().ok()).unwrap_or_default().replace(',', ", ");
        let detail = format!("{path} takes {}", allow.replace(", HEAD", "").replace(", ", " or "));
        return Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
            .with_header(header::ALLOW, &allow)
            .answer(path, id);
    }
    response
}

/// Refuses paths that a proxy, a check and a router could read differently.
fn check_target(uri: &Uri) -> Result<(), Problem> {
    let path = uri.path();
    let lower = path.to_ascii_lowercase();
    let odd = !path.starts_with('/')
        || path.len() > 2048
        || path.contains("//")
        || path.contains([';', '\\'])
        || path.split('/').any(|segment| matches!(segment, "." | ".."))
        || ["%2e", "%2f", "%5c", "%25", "%3b"].iter().any(|code| lower.contains(code));
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8();
    if odd || !decoded.is_ok_and(|text| !text.chars().any(char::is_control)) {
        return Err(Problem::bad_request("bad_path", "the path is written in a way that is not accepted here"));
    }
    Ok(())
}

/// Refuses names that are not ours: a page that had its own name resolve to 127.0.0.1 (DNS rebinding) still sends its own name.
fn check_host(
    headers: &HeaderMap,
    uri: &Uri,
    version: Version,
    local: IpAddr,
    names: &Names<'_>,
) -> Result<(), Problem> {
    let mut hosts: Vec<&str> = Vec::new();
    for value in headers.get_all(header::HOST) {
        hosts.push(value.to_str().map_err(|_| bad_host("the Host header is not ASCII"))?);
    }
    if hosts.len() > 1 {
        return Err(bad_host("there are two Host headers"));
    }
    if hosts.is_empty() && version > Version::HTTP_10 {
        return Err(bad_host("there is no Host header"));
    }
    // `GET http://name/path` names a host, too.
    hosts.extend(uri.authority().map(axum::http::uri::Authority::as_str));
    for host in hosts {
        if !is_ours(host, local, names) {
            let shown: String = host.chars().take(80).collect();
            return Err(bad_host(&format!(
                "this is not {shown:?}; ask for localhost or the listen address, or add the name to the daemon's configuration"
            )));
        }
    }
    Ok(())
}

/// What the listener is called, besides its address.
struct Names<'a> {
    configured: &'a [String],
    /// A browser that came this far has checked that the name it was given is one of the certificate's.
    tls: Option<&'a Certificates>,
}

fn is_ours(host: &str, local: IpAddr, names: &Names<'_>) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    if let Ok(address) = name.parse::<IpAddr>() {
        return address.is_loopback() || address.to_canonical() == local.to_canonical();
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || names.configured.iter().any(|n| n.eq_ignore_ascii_case(name))
        || names.tls.is_some_and(|tls| tls.is_for(name))
}

fn bad_host(detail: &str) -> Problem {
    Problem::bad_request("bad_host", detail)
}

/// 16 hex digits.
fn request_id() -> String {
    let mut bytes = [0; 8];
    // Without random bytes there is an id all the same; it only is no longer unique.
    let _only_an_id = getrandom::fill(&mut bytes);
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_two_readings_are_refused() {
        for path in [
            "/v1//status",
            "//v1/status",
            "/v1/status;.jsp",
            "/v1/./status",
            "/v1/../v1/status",
            "/healthz/..",
            "/v1/%2e%2e/x",
            "/v1/%2E/x",
            "/v1%2fstatus",
            "/v1/x%5cy",
            "/v1/a%00b",
            "/v1/a%0ab",
            "/v1/%ff",
            "/v1/%252e",
            "*",
            "/a%3bb",
            "/..",
        ] {
            let uri = path.parse::<Uri>();
            assert!(uri.is_err() || check_target(&uri.unwrap()).is_err(), "{path}");
        }
        for path in
            ["/", "/v1/projects/shop/start", "/v1/projects/a..b/status", "/v1/projects/a%20b/status", "/v1/x?q=../;"]
        {
            assert!(check_target(&path.parse().unwrap()).is_ok(), "{path}");
        }
    }

    #[test]
    fn the_log_shows_no_more_of_a_path_than_a_person_reads() {
        assert_eq!(clipped("/v1/status"), "/v1/status");
        assert_eq!(clipped(&format!("/{}", "\u{e9}".repeat(2000))), format!("/{}", "\u{e9}".repeat(199)));
    }

    #[test]
    fn only_our_own_names_are_answered_to() {
        let local = "192.0.2.7".parse().unwrap();
        let configured = ["deploy.example.com".to_owned()];
        let names = Names { configured: &configured, tls: None };
        for host in [
            "localhost",
            "LOCALHOST:7427",
            "localhost.",
            "127.0.0.1:80",
            "127.9.9.9",
            "[::1]:7427",
            "192.0.2.7",
            "Deploy.example.com:443",
            "[::ffff:192.0.2.7]",
        ] {
            assert!(is_ours(host, local, &names), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.0.2.8",
            "",
            ":80",
            "[",
            "[::2]",
            "user@localhost",
            "2130706433",
            "0x7f.1",
        ] {
            assert!(!is_ours(host, local, &names), "{host}");
        }
    }
}
