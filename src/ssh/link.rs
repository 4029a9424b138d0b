//! A session as a link: channels, each with its own bounded queues.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use russh::{ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, Disconnect, client};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, oneshot},
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use super::{ahead, connect::Checker, guard::Valve};
use crate::{
    lifecycle::Tasks,
    ports::link::{Channel, Duplex, Exit, Link, LinkError},
    time::{Clock, within},
};

/// Packets (32 KiB at most) of one stream that wait for their reader.
const QUEUE: usize = 8;

pub(super) type Raw = russh::Channel<client::Msg>;

/// One session to one host.
pub(super) struct SshLink {
    handle: Arc<client::Handle<Checker>>,
    valve: Valve,
    place: Arc<str>,
    base: Option<String>,
    tasks: Tasks,
    /// Ended from here.
    closed: std::sync::atomic::AtomicBool,
    /// The session this one goes through.
    _through: Option<Arc<SshLink>>,
    /// The host's key, where this was the first time it was seen.
    learnt: Option<String>,
}

impl Drop for SshLink {
    fn drop(&mut self) {
        // Whoever still holds a channel of ours loses it now: a link is held for as long as it is used.
        self.valve.cut();
    }
}

impl SshLink {
    pub(super) fn new(
        handle: client::Handle<Checker>,
        valve: Valve,
        place: String,
        base: Option<String>,
        through: Option<Arc<SshLink>>,
        learnt: Option<String>,
        tasks: Tasks,
    ) -> Self {
        SshLink {
            handle: Arc::new(handle),
            valve,
            place: Arc::from(place),
            base,
            tasks,
            closed: std::sync::atomic::AtomicBool::new(false),
            _through: through,
            learnt,
        }
    }

    /// A session channel. Cancel safe: one that is opened for nobody is closed.
    async fn raw(&self) -> Result<Raw, LinkError> {
        if self.is_closed() {
            return Err(self.lost());
        }
        let (reply, opened) = oneshot::channel();
        let (handle, place) = (self.handle.clone(), self.place.clone());
        self.tasks.spawn("ssh channel", async move {
            let opened = handle.channel_open_session().await.map_err(|e| refused(&place, e));
            if let Err(Ok(raw)) = reply.send(opened) {
                let _gone = raw.close().await;
            }
        });
        opened.await.map_err(|_| self.lost())?
    }

    /// A connection made by the machine itself. Cancel safe as `raw` is.
    async fn forward(&self, host: &str, port: u16) -> Result<Raw, LinkError> {
        let place = self.place.clone();
        let (reply, opened) = oneshot::channel();
        let (handle, to) = (self.handle.clone(), host.to_owned());
        self.tasks.spawn("ssh forwarding", async move {
            let opened = handle.channel_open_direct_tcpip(to, u32::from(port), "127.0.0.1", 0).await;
            if let Err(Ok(raw)) = reply.send(opened) {
                let _gone = raw.close().await;
            }
        });
        match opened.await.map_err(|_| self.lost())? {
            Ok(raw) => Ok(raw),
            Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed)) => Err(LinkError::new(
                "unreachable",
                format!("{place} cannot connect to {host} port {port}: nobody listens there"),
            )),
            Err(russh::Error::ChannelOpenFailure(reason)) => Err(LinkError::new(
                "forwarding_refused",
                format!(
                    "{place} refused to connect to {host} port {port} for us ({reason:?}): set AllowTcpForwarding local in its \
                     sshd_config (and no PermitOpen against it), or ask by a command instead (health.command)"
                ),
            )),
            Err(other) => Err(refused(&place, other)),
        }
    }

    /// The same as [`Link::dial`], read ahead: for what shares this session with others.
    pub(super) async fn dial_ahead(&self, host: &str, port: u16) -> Result<Box<dyn Duplex>, LinkError> {
        let raw = self.forward(host, port).await?;
        Ok(ahead::read(raw, self.place.clone(), format!("{host} port {port}"), &self.tasks))
    }

    /// Whether the machine still answers.
    pub(super) async fn answers(&self, clock: &dyn Clock, limit: Duration) -> bool {
        within(clock, limit, self.handle.send_ping()).await.is_some_and(|sent| sent.is_ok()) && !self.is_closed()
    }

    /// Gives up a session whose machine does not answer, with all that goes through it.
    pub(super) fn abandon(&self) {
        self.closed.store(true, std::sync::atomic::Ordering::Relaxed);
        self.valve.cut();
    }

    fn lost(&self) -> LinkError {
        LinkError::new("connection_lost", format!("the connection to {} was lost", self.place))
    }
}

fn refused(place: &str, error: russh::Error) -> LinkError {
    match error {
        russh::Error::ChannelOpenFailure(reason) => LinkError::new(
            "channel_refused",
            format!("{place} refused another channel ({reason:?}): raise MaxSessions in its sshd_config"),
        ),
        other => LinkError::new("connection_lost", format!("the connection to {place} was lost: {other}")),
    }
}

#[async_trait]
impl Link for SshLink {
    async fn open(&self, command: &str) -> Result<Channel, LinkError> {
        let raw = self.raw().await?;
        // The answer to this is not waited for: a refusal comes as the channel's end.
        raw.exec(true, command).await.map_err(|e| refused(&self.place, e))?;
        let (read, write) = raw.split();
        let (out, stdout) = mpsc::channel(QUEUE);
        let (err, stderr) = mpsc::channel(QUEUE);
        let (say, said) = oneshot::channel();
        let (dropped, ended) = (CancellationToken::new(), CancellationToken::new());
        // Lives as long as anything of the channel is in somebody's hands.
        let held = Arc::new(dropped.clone().drop_guard());
        let stdin = Stdin::new(write.make_writer(), ended.clone(), held.clone());
        let pump = Pump { read, write, say: Some(say), place: self.place.clone(), dropped, _ended: ended.drop_guard() };
        self.tasks.spawn("ssh channel", pump.run(out, err));
        let lost = self.lost();
        let waiting = held.clone();
        Ok(Channel {
            stdin: Box::new(stdin),
            stdout: Box::new(Reader { packets: stdout, current: None, _held: held.clone() }),
            stderr: Box::new(Reader { packets: stderr, current: None, _held: held }),
            exit: Box::pin(async move {
                let _held = waiting;
                said.await.unwrap_or(Err(lost))
            }),
        })
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Duplex>, LinkError> {
        Ok(Box::new(self.forward(host, port).await?.into_stream()))
    }

    fn is_closed(&self) -> bool {
        self.closed.load(std::sync::atomic::Ordering::Relaxed) || self.handle.is_closed()
    }

    async fn close(&self) {
        self.closed.store(true, std::sync::atomic::Ordering::Relaxed);
        let _gone = self.handle.disconnect(Disconnect::ByApplication, "", "").await;
    }

    fn base(&self) -> Option<String> {
        self.base.clone()
    }

    fn learnt(&self) -> Option<String> {
        self.learnt.clone()
    }
}

/// Hands a channel's messages to its streams.
struct Pump {
    read: ChannelReadHalf,
    write: ChannelWriteHalf<client::Msg>,
    say: Option<oneshot::Sender<Result<Exit, LinkError>>>,
    place: Arc<str>,
    /// Everything of the channel was dropped.
    dropped: CancellationToken,
    _ended: DropGuard,
}

impl Pump {
    async fn run(mut self, out: mpsc::Sender<ChannelMsg>, err: mpsc::Sender<ChannelMsg>) {
        let (mut out, mut err) = (Some(out), Some(err));
        loop {
            let message = tokio::select! {
                biased;
                () = self.dropped.cancelled() => break,
                message = self.read.wait() => message,
            };
            let Some(message) = message else {
                let lost = LinkError::new("connection_lost", format!("the connection to {} was lost", self.place));
                self.exit(Err(lost));
                return;
            };
            let to = match &message {
                ChannelMsg::Data { .. } => &out,
                ChannelMsg::ExtendedData { ext: 1, .. } => &err,
                _ => &None,
            };
            if let Some(to) = to {
                tokio::select! {
                    biased;
                    () = self.dropped.cancelled() => break,
                    // A reader that was dropped has seen enough; the other stream and the exit still count.
                    _ = to.send(message) => {}
                }
                continue;
            }
            match message {
                ChannelMsg::Eof => (out, err) = (None, None),
                ChannelMsg::ExitStatus { exit_status } => self.exit(Ok(Exit::Code(exit_status))),
                ChannelMsg::ExitSignal { signal_name, .. } => {
                    let name = format!("{signal_name:?}");
                    self.exit(Ok(Exit::Signal(name)));
                }
                ChannelMsg::Failure => {
                    let message = format!("{} does not run commands on its channels", self.place);
                    self.exit(Err(LinkError::new("host_unsupported", message)));
                    break;
                }
                ChannelMsg::Close => {
                    self.exit(Ok(Exit::Unsaid));
                    break;
                }
                _ => {}
            }
        }
        let _gone = self.write.close().await;
    }

    fn exit(&mut self, exit: Result<Exit, LinkError>) {
        if let Some(say) = self.say.take() {
            let _nobody_waits = say.send(exit);
        }
    }
}

fn bytes(message: &ChannelMsg) -> &[u8] {
    match message {
        ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => data,
        _ => &[],
    }
}

/// A stream of packets as bytes.
struct Reader {
    packets: mpsc::Receiver<ChannelMsg>,
    current: Option<(ChannelMsg, usize)>,
    _held: Arc<DropGuard>,
}

impl AsyncRead for Reader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some((packet, read)) = &mut self.current {
                let rest = bytes(packet).get(*read..).unwrap_or_default();
                if !rest.is_empty() {
                    let n = rest.len().min(buf.remaining());
                    buf.put_slice(&rest[..n]);
                    *read += n;
                    return Poll::Ready(Ok(()));
                }
            }
            self.current = match ready!(self.packets.poll_recv(cx)) {
                Some(packet) => Some((packet, 0)),
                None => return Poll::Ready(Ok(())),
            };
        }
    }
}

/// A channel's standard input; writing fails once the channel has ended, instead of waiting for a window that never opens.
pub(super) struct Stdin<W> {
    writer: W,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    _held: Arc<DropGuard>,
}

impl<W> Stdin<W> {
    pub(super) fn new(writer: W, ended: CancellationToken, held: Arc<DropGuard>) -> Self {
        Stdin { writer, ended: Box::pin(ended.cancelled_owned()), _held: held }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Stdin<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
