//! A TCP connection that acknowledges at once what comes early.
//!
//! Until the first command, OpenSSH's server sends with Nagle's algorithm (packet.c sets `TCP_NODELAY` with a session's first
//! request): the second of two small packets in a row waits for our acknowledgement of the first, and that waits up to 40 ms for
//! something of ours to go along with. Each login would wait so once.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use rustix::net::sockopt::set_tcp_quickack;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// More reads than a key exchange, a login and the opening of a channel take.
const EARLY: u8 = 32;

/// See the module.
pub(super) struct Prompt {
    inner: TcpStream,
    /// How many reads are still acknowledged at once: the kernel forgets it each time that something is sent.
    early: u8,
}

impl Prompt {
    pub(super) fn new(inner: TcpStream) -> Self {
        Prompt { inner, early: EARLY }
    }
}

impl AsyncRead for Prompt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.early > 0 && read.is_ready() {
            self.early -= 1;
            let _only_slower = set_tcp_quickack(&self.inner, true);
        }
        read
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
