//! Our own accept loop: `axum::serve` sets no time-out on request heads.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Server,
    auth::Peer,
    clients::{Client, Share, Shares},
    patient::{Patience, Patient},
    strict::Strict,
};
use crate::{model::cause::Cause, time::within};

/// A listener of either kind.
pub(super) trait Listener: Send + 'static {
    type Stream: Stream;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn peer(&self) -> io::Result<Peer>;
    /// The first byte once it is there, which is left where it is; nothing where it cannot be looked at.
    fn first_byte(&self) -> impl Future<Output = io::Result<Option<u8>>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    async fn accept(&self) -> io::Result<UnixStream> {
        UnixListener::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    async fn accept(&self) -> io::Result<TcpStream> {
        TcpListener::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Stream for UnixStream {
    fn peer(&self) -> io::Result<Peer> {
        Ok(Peer::Socket { uid: self.peer_cred().ok().map(|c| c.uid()) })
    }
    async fn first_byte(&self) -> io::Result<Option<u8>> {
        self.readable().await.map(|()| None)
    }
}

impl Stream for TcpStream {
    fn peer(&self) -> io::Result<Peer> {
        // Small answers and stream lines go out at once; failing to say so costs 40 ms, not the answer.
        let _only_slower = self.set_nodelay(true);
        let (local, remote) = (self.local_addr()?, self.peer_addr()?.ip().to_canonical());
        Ok(Peer::Tcp { local, remote, known: Arc::default() })
    }
    async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        match self.peek(&mut byte).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(Some(byte[0])),
        }
    }
}

/// What is asked of those who connect to a listener.
pub(super) struct Door {
    /// Connections at the same moment.
    connections: usize,
    /// Of one client.
    shares: Option<Arc<Shares>>,
    /// TLS first.
    tls: Option<TlsAcceptor>,
    /// What it is called where somebody is told that it is full.
    name: &'static str,
}

impl Door {
    /// The socket's.
    pub(super) fn socket(server: &Server) -> Self {
        Door { connections: server.limits.socket_connections, shares: None, tls: None, name: "the socket" }
    }

    /// TCP's.
    pub(super) fn tcp(server: &Server, tls: Option<TlsAcceptor>) -> Self {
        let limits = &server.limits;
        let shares = Some(Shares::new(limits.client_connections));
        Door { connections: limits.connections, shares, tls, name: "the TCP listener" }
    }
}

/// One client may have a quarter of the reserved places: enough for people and probes behind one address.
const RESERVED_PART: usize = 4;

/// What a connection may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Anything, as often as it likes.
    Usual,
    /// All usual places are taken: one request that must get through all the same.
    Reserved,
}

/// Connections beyond a cap, which were closed at once or had a reserved place: nobody but us can know of them.
#[derive(Default)]
struct TurnedAway {
    /// Since the log was told last.
    count: u64,
    told: Option<Duration>,
    last: Option<Duration>,
}

impl TurnedAway {
    /// How often the log is told, and for how long the status says it after the last one.
    const MINUTE: Duration = Duration::from_secs(60);

    fn one_more(&mut self, server: &Server, name: &'static str, why: &str) {
        let now = server.boot_time();
        self.count += 1;
        self.last = Some(now);
        if self.told.is_some_and(|told| now < told + Self::MINUTE) {
            return;
        }
        let message = format!("{name} lets in nobody further but for status, stop and maintenance: {why}");
        let cause = Cause::new("connections_closed", message);
        tracing::warn!(beyond = self.count, %cause, "there are more connections than a cap allows");
        server.engine.remark(name, Some(cause));
        (self.told, self.count) = (Some(now), 0);
    }

    /// Returns once none has been turned away for a while.
    async fn quiet(&self, server: &Server) {
        let Some(last) = self.last else { return std::future::pending().await };
        server.clock.sleep((last + Self::MINUTE).saturating_sub(server.boot_time())).await;
    }
}

/// How long a connection that has asked nothing yet is kept once the daemon goes down.
const LAST_CALL: Duration = Duration::from_millis(500);

/// Accepts until the daemon goes down.
pub(super) async fn accept<L: Listener>(server: Arc<Server>, listener: L, door: Door) {
    let stopping = server.tasks.stopping();
    let free = Arc::new(Semaphore::new(door.connections));
    let reserved = Arc::new(Semaphore::new(server.limits.reserved));
    // Whoever floods from one address has the others' places left to them.
    let part = Shares::new(server.limits.reserved.div_ceil(RESERVED_PART));
    let door = Arc::new(door);
    let mut failures = 0u32;
    let mut turned = TurnedAway::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
            () = turned.quiet(&server) => {
                tracing::info!(beyond = turned.count, listener = door.name, "no connection has been beyond a cap for a minute");
                turned = TurnedAway::default();
                server.engine.remark(door.name, None);
                continue;
            }
        };
        let stream = match accepted {
            Ok(stream) => stream,
            // The client went away between its connect and our accept.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => {
                // No file descriptors, mostly. The connection stays in the backlog, so asking at once would spin.
                if failures == 0 {
                    tracing::warn!(%error, "cannot accept connections; trying again until it works");
                }
                failures += 1;
                let pause = Duration::from_millis(100 << failures.min(3));
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = server.clock.sleep(pause) => continue,
                }
            }
        };
        if failures > 0 {
            tracing::info!(failures, "connections are accepted again");
            failures = 0;
        }
        let Ok(peer) = stream.peer() else { continue };
        let (permit, share, place) = match usual(&server, &door, &free, &peer) {
            Ok((permit, share)) => (permit, share, Place::Usual),
            Err(why) => {
                turned.one_more(&server, door.name, &why);
                // Closed at once, so that those inside are served: who has more than a share, and whoever comes when these are taken, too.
                if free.available_permits() > 0 {
                    continue;
                }
                let Ok(permit) = reserved.clone().try_acquire_owned() else { continue };
                let Ok(share) = share(&server, door.shares.as_ref().map(|_| &part), &peer) else { continue };
                (permit, share, Place::Reserved)
            }
        };
        let (server, door) = (server.clone(), door.clone());
        server.tasks.clone().spawn("api/connection", async move {
            connection(server, &door, stream, peer, place).await;
            drop((permit, share));
        });
    }
}

/// A place for whoever has connected, or which cap leaves none.
fn usual(
    server: &Server,
    door: &Door,
    free: &Arc<Semaphore>,
    peer: &Peer,
) -> Result<(OwnedSemaphorePermit, Option<Share>), String> {
    let permit = free.clone().try_acquire_owned().map_err(|_| {
        format!("all its {} connections are in use ([limits] connections, LimitNOFILE=)", door.connections)
    })?;
    let share = share(server, door.shares.as_ref(), peer).map_err(|remote| {
        let most = server.limits.client_connections;
        format!(
            "{remote} has all {most} that one client may have ([limits] client_connections; a proxy belongs in [api] trusted_proxies)"
        )
    })?;
    Ok((permit, share))
}

/// One of `shares` for whoever is there, or who has all of theirs. Of the socket, and of a proxy, nothing is counted.
fn share(server: &Server, shares: Option<&Arc<Shares>>, peer: &Peer) -> Result<Option<Share>, IpAddr> {
    match (shares, peer) {
        (Some(shares), Peer::Tcp { remote, .. }) if !server.proxies.trust(*remote) => {
            shares.take(Client::of(*remote), 1).map(Some).ok_or(*remote)
        }
        _ => Ok(None),
    }
}

async fn connection<S: Stream>(server: Arc<Server>, door: &Door, stream: S, peer: Peer, place: Place) {
    let stopping = server.tasks.stopping();
    let first_byte = within(&*server.clock, server.limits.first_byte, stream.first_byte());
    let ready = tokio::select! {
        biased;
        ready = first_byte => ready,
        // One that was let in just before the end is answered, if it asks at once.
        () = async { stopping.cancelled().await; server.clock.sleep(LAST_CALL).await } => return,
    };
    let Some(Ok(first)) = ready else { return };
    // Boxed: an idle connection takes no more memory than its own kind needs.
    // Whoever the socket's mode lets in may take their time.
    let Peer::Tcp { known, .. } = &peer else { return Box::pin(requests(server, stream, peer, place)).await };
    let patience = Patience { known: known.clone(), long: server.limits.write, short: server.limits.stranger_write };
    let stream = Patient::new(stream, server.clock.clone(), patience);
    let Some(tls) = &door.tls else { return Box::pin(requests(server, stream, peer, place)).await };
    let shaking = async {
        match first {
            // Boxed: the room for one would be in every connection.
            Some(HANDSHAKE) | None => tls.accept(stream).await.map(Box::new),
            Some(_) => Err(speaks_tls(stream).await),
        }
    };
    let shaken = tokio::select! {
        biased;
        () = stopping.cancelled() => return,
        shaken = within(&*server.clock, server.limits.first_byte, shaking) => shaken,
    };
    match shaken {
        Some(Ok(stream)) => Box::pin(requests(server, stream, peer, place)).await,
        Some(Err(error)) => tracing::debug!(%error, "no TLS with a client"),
        None => tracing::debug!("a client did not end its TLS handshake in time"),
    }
}

/// What every TLS connection begins with (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// Tells somebody who speaks HTTP to a port that speaks TLS.
async fn speaks_tls<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Error {
    let body = "this port speaks TLS: ask for https://\n";
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let _gone_already = stream.write_all(answer.as_bytes()).await;
    let _gone_already = stream.shutdown().await;
    // Closing with bytes unread would take the answer back; the caller's limit ends this.
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
    io::Error::other("it does not speak TLS")
}

async fn requests<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    server: Arc<Server>,
    stream: S,
    peer: Peer,
    place: Place,
) {
    let stopping = server.tasks.stopping();
    let limits = &server.limits;
    let mut http = hyper::server::conn::http1::Builder::new();
    // A reserved place is soon another's.
    let head = if place == Place::Usual { limits.head } else { limits.head.min(limits.first_byte) };
    http.timer(TokioTimer::new()).header_read_timeout(head).keep_alive(place == Place::Usual);
    http.max_buf_size(limits.head_size).max_headers(limits.headers);
    let service = hyper::service::service_fn({
        let server = server.clone();
        move |request| {
            let (server, peer) = (server.clone(), peer.clone());
            // Boxed: hyper keeps room for one answer under way as long as the connection lives.
            async move { Ok::<_, std::convert::Infallible>(Box::pin(server.answer(request, peer, place)).await) }
        }
    });
    let serving = http.serve_connection(TokioIo::new(Strict::new(stream)), service);
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        // Asked first: a request that has come is read before hyper is told to end, which lets go of one that has read nothing.
        biased;
        ended = serving.as_mut() => ended,
        () = stopping.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
