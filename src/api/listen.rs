//! Our own accept loop: `axum::serve` sets no time-out on request heads.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
};

use super::{Server, auth::Peer, strict::Strict};
use crate::time::within;

/// A listener of either kind.
pub(super) trait Listener: Send + 'static {
    type Stream: Stream;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn peer(&self) -> io::Result<Peer>;
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;
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
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        UnixStream::readable(self)
    }
}

impl Stream for TcpStream {
    fn peer(&self) -> io::Result<Peer> {
        // Small answers and stream lines go out at once; failing to say so costs 40 ms, not the answer.
        let _only_slower = self.set_nodelay(true);
        Ok(Peer::Tcp { local: self.local_addr()? })
    }
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        TcpStream::readable(self)
    }
}

/// How long a connection that has asked nothing yet is kept once the daemon goes down.
const LAST_CALL: Duration = Duration::from_millis(500);

/// Accepts until the daemon goes down.
pub(super) async fn accept<L: Listener>(server: Arc<Server>, listener: L) {
    let stopping = server.tasks.stopping();
    let free = Arc::new(Semaphore::new(server.limits.connections));
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
        failures = 0;
        let Ok(permit) = free.clone().try_acquire_owned() else {
            // Beyond the cap: closed at once, so that those inside are served.
            drop(stream);
            continue;
        };
        let server = server.clone();
        server.tasks.clone().spawn("api/connection", async move {
            connection(server, stream).await;
            drop(permit);
        });
    }
}

async fn connection<S: Stream>(server: Arc<Server>, stream: S) {
    let stopping = server.tasks.stopping();
    let Ok(peer) = stream.peer() else { return };
    let first_byte = within(&*server.clock, server.limits.first_byte, stream.readable());
    let ready = tokio::select! {
        biased;
        ready = first_byte => ready,
        // One that was let in just before the end is answered, if it asks at once.
        () = async { stopping.cancelled().await; server.clock.sleep(LAST_CALL).await } => return,
    };
    if !matches!(ready, Some(Ok(()))) {
        return;
    }
    let limits = &server.limits;
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(64 << 10).max_headers(100);
    let service = hyper::service::service_fn({
        let server = server.clone();
        move |request| {
            let (server, peer) = (server.clone(), peer.clone());
            async move { Ok::<_, std::convert::Infallible>(server.answer(request, peer).await) }
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
