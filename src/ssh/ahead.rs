//! A connection through a bastion, read ahead of whoever it is for.
//!
//! All channels of a session wait for the one whose reader is slow, and with them its keepalives. Hosts behind a bastion share its session:
//! what one of them says is taken off it at once, up to a bound, and beyond that it loses its own connection and nobody else's.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::FutureExt as _;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::link::{Raw, Stdin};
use crate::{lifecycle::Tasks, ports::link::Duplex};

/// So much of a host may wait for us. An sshd that keeps to the windows of its session never gets there: 256 KiB for each of its channels,
/// of which it has ten (`MaxSessions`).
pub(super) const AHEAD: usize = 4 << 20;

/// Reads `raw` ahead, by a task that ends with it. `place` is the bastion, `to` the host, for the log.
pub(super) fn read(raw: Raw, place: Arc<str>, to: String, tasks: &Tasks) -> Box<dyn Duplex> {
    let (read, write) = raw.split();
    let (ours, theirs) = tokio::io::duplex(AHEAD);
    let (dropped, ended) = (CancellationToken::new(), CancellationToken::new());
    let writer = Stdin::new(write.make_writer(), ended.clone(), Arc::new(dropped.clone().drop_guard()));
    tasks.spawn("ssh forwarding", async move {
        let _ended = ended.drop_guard();
        pump(read, write, theirs, &dropped, &place, &to).await;
    });
    Box::new(Ahead { ours, writer })
}

async fn pump(
    mut read: ChannelReadHalf,
    write: ChannelWriteHalf<client::Msg>,
    mut theirs: DuplexStream,
    dropped: &CancellationToken,
    place: &str,
    to: &str,
) {
    loop {
        let message = tokio::select! {
            biased;
            () = dropped.cancelled() => break,
            message = read.wait() => message,
        };
        match message {
            // There is room for it, or there is not: nothing is waited for.
            Some(ChannelMsg::Data { data }) => {
                match tokio::task::unconstrained(theirs.write_all(&data)).now_or_never() {
                    Some(Ok(())) => {}
                    Some(Err(_)) => break,
                    None => {
                        tracing::warn!(
                            bastion = place,
                            host = to,
                            bytes = AHEAD,
                            "a host says more than anybody reads: its connection through the bastion is cut"
                        );
                        break;
                    }
                }
            }
            Some(ChannelMsg::Eof | ChannelMsg::Close) | None => break,
            Some(_) => {}
        }
    }
    // Whatever still comes for it is for nobody, and holds up nothing.
    drop((read, theirs));
    let _gone = write.close().await;
}

struct Ahead<W> {
    ours: DuplexStream,
    writer: Stdin<W>,
}

impl<W: AsyncWrite + Unpin> AsyncRead for Ahead<W> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ours).poll_read(cx, buf)
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Ahead<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
