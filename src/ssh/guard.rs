//! The bytes between us and a server: can be cut at any moment, and bounded until the server has let us in.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::room::Held;
use crate::ports::link::Duplex;

/// A server that says more than this before it lets us in wants something else.
const BEFORE_LOGIN: u64 = 1 << 20;

/// Cuts the connection, and takes the bound off it.
#[derive(Debug, Clone)]
pub(super) struct Valve {
    cut: CancellationToken,
    left: Arc<AtomicU64>,
    /// Turns that end with the login, or with the connection: not before the server knows that it is over.
    turns: Arc<Mutex<Vec<OwnedSemaphorePermit>>>,
}

impl Valve {
    pub(super) fn new(turns: Vec<OwnedSemaphorePermit>) -> Self {
        let left = Arc::new(AtomicU64::new(BEFORE_LOGIN));
        Valve { cut: CancellationToken::new(), left, turns: Arc::new(Mutex::new(turns)) }
    }

    /// Ends the connection for whoever reads or writes it: russh's own task is not to be stopped in any other way while it waits for
    /// a server that says nothing.
    pub(super) fn cut(&self) {
        self.cut.cancel();
    }

    /// The server has let us in.
    pub(super) fn unbounded(&self) {
        self.left.store(u64::MAX, Ordering::Relaxed);
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A connection behind a valve.
pub(super) struct Guarded {
    inner: Box<dyn Duplex>,
    valve: Valve,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Its place among those there may be, given back once `inner` is closed: whoever comes next is not one too many.
    _held: Option<Held>,
}

impl Guarded {
    pub(super) fn new(inner: Box<dyn Duplex>, valve: &Valve, held: Option<Held>) -> Self {
        Guarded { inner, valve: valve.clone(), cut: Box::pin(valve.cut.clone().cancelled_owned()), _held: held }
    }

    fn is_cut(&mut self, cx: &mut Context<'_>) -> bool {
        self.cut.as_mut().poll(cx).is_ready()
    }
}

fn aborted() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "cut from here")
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_cut(cx) {
            return Poll::Ready(Err(aborted()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let n = (buf.filled().len() - before) as u64;
        let left = &self.valve.left;
        if left.load(Ordering::Relaxed) != u64::MAX {
            let had = left.fetch_sub(n.min(left.load(Ordering::Relaxed)), Ordering::Relaxed);
            if had <= n {
                return Poll::Ready(Err(io::Error::other("the server says too much before it lets us in")));
            }
        }
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_cut(cx) {
            return Poll::Ready(Err(aborted()));
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_cut(cx) {
            return Poll::Ready(Err(aborted()));
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_cut(cx) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
