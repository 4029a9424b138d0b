//! Our own accept loop: `axum::serve` sets no time-out on request heads.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Server,
    auth::Peer,
    clients::{Client, Shares},
    patient::Patient,
    strict::Strict,
};
use crate::time::within;

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
        Ok(Peer::Tcp { local: self.local_addr()?, remote: self.peer_addr()?.ip().to_canonical() })
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
    /// How long a client may take nothing of an answer.
    patience: Option<Duration>,
}

impl Door {
    /// The socket's: whoever its mode lets in may take their time.
    pub(super) fn socket(server: &Server) -> Self {
        Door { connections: server.limits.socket_connections, shares: None, tls: None, patience: None }
    }

    /// TCP's.
    pub(super) fn tcp(server: &Server, tls: Option<TlsAcceptor>) -> Self {
        let limits = &server.limits;
        let shares = Some(Shares::new(limits.client_connections));
        Door { connections: limits.connections, shares, tls, patience: Some(limits.write) }
    }
}

/// How long a connection that has asked nothing yet is kept once the daemon goes down.
const LAST_CALL: Duration = Duration::from_millis(500);

/// Accepts until the daemon goes down.
pub(super) async fn accept<L: Listener>(server: Arc<Server>, listener: L, door: Door) {
    let stopping = server.tasks.stopping();
    let free = Arc::new(Semaphore::new(door.connections));
    let door = Arc::new(door);
    let mut failures = 0u32;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
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
        // Beyond a cap: closed at once, so that those inside are served.
        let Ok(permit) = free.clone().try_acquire_owned() else { continue };
        let Ok(peer) = stream.peer() else { continue };
        let share = match (&door.shares, &peer) {
            (Some(shares), Peer::Tcp { remote, .. }) if !server.proxies.trust(*remote) => {
                match shares.take(Client::of(*remote), 1) {
                    Some(share) => Some(share),
                    None => {
                        tracing::debug!(client = %remote, "a client has all the connections it may have");
                        continue;
                    }
                }
            }
            _ => None,
        };
        let (server, door) = (server.clone(), door.clone());
        server.tasks.clone().spawn("api/connection", async move {
            connection(server, &door, stream, peer).await;
            drop((permit, share));
        });
    }
}

async fn connection<S: Stream>(server: Arc<Server>, door: &Door, stream: S, peer: Peer) {
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
    let Some(patience) = door.patience else { return Box::pin(requests(server, stream, peer)).await };
    let stream = Patient::new(stream, server.clock.clone(), patience);
    let Some(tls) = &door.tls else { return Box::pin(requests(server, stream, peer)).await };
    let shaking = async {
        match first {
            Some(HANDSHAKE) | None => tls.accept(stream).await,
            Some(_) => Err(speaks_tls(stream).await),
        }
    };
    let shaken = tokio::select! {
        biased;
        () = stopping.cancelled() => return,
        shaken = within(&*server.clock, server.limits.first_byte, shaking) => shaken,
    };
    match shaken {
        Some(Ok(stream)) => Box::pin(requests(server, stream, peer)).await,
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

async fn requests<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(server: Arc<Server>, stream: S, peer: Peer) {
    let stopping = server.tasks.stopping();
    let limits = &server.limits;
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head);
    http.max_buf_size(limits.head_size).max_headers(limits.headers);
    let service = hyper::service::service_fn({
        let server = server.clone();
        move |request| {
            let (server, peer) = (server.clone(), peer.clone());
            // Boxed: hyper keeps room for one answer under way as long as the connection lives.
            async move { Ok::<_, std::convert::Infallible>(Box::pin(server.answer(request, peer)).await) }
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
