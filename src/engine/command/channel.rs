//! Requests and answers over channels: one is opened when none is idle, and stays for the next request.

use std::{pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    OutputSink, Session,
    frames::{Frame, FrameError, Frames},
    program,
};
use crate::{
    model::cause::{self, Cause},
    ports::{
        link::{Channel, Exit, Link, LinkError},
        outputs::Stream,
    },
    time::within,
};

/// How much of what the program complains about is kept for messages.
const COMPLAINTS: usize = 4096;
/// How long to listen for complaints after the end.
const LISTEN: Duration = Duration::from_secs(1);
/// How long an answer may still come after the shell's end, and the word of that end after the answer's.
const SILENCE: Duration = Duration::from_secs(5);

type Stdin = Box<dyn AsyncWrite + Send + Unpin>;
type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A channel whose shell knows the program and waits for the next request. Dropping it ends the shell, never a command.
pub(super) struct Resident {
    stdin: Stdin,
    frames: Frames<Output>,
    stderr: Output,
    exit: Ending,
    /// It has been sent the program.
    taught: bool,
}

/// How the shell ended, once it has.
enum Ending {
    Awaited(BoxFuture<'static, Result<Exit, LinkError>>),
    Known(Result<Exit, LinkError>),
}

impl Ending {
    /// Waits for it; cancel safe.
    async fn known(&mut self) -> Result<Exit, LinkError> {
        let known = match self {
            Ending::Awaited(exit) => exit.await,
            Ending::Known(known) => return known.clone(),
        };
        *self = Ending::Known(known.clone());
        known
    }
}

impl Resident {
    fn new(channel: Channel) -> Self {
        let Channel { stdin, stdout, stderr, exit } = channel;
        Resident { stdin, frames: Frames::new(stdout), stderr, exit: Ending::Awaited(exit), taught: false }
    }
}

/// What is asked.
pub(super) struct Request<'a> {
    /// Makes its text.
    pub build: &'a (dyn Fn(&program::Frame<'_>) -> Result<Vec<u8>, Cause> + Sync),
    /// What its answer begins with.
    pub mark: &'a str,
    /// Where output goes on, by stream.
    pub from: [u64; 2],
    /// A command begun by this is followed as it runs when there is no answer for so long.
    pub follow: Option<Duration>,
}

/// Where an answer goes.
pub(super) struct Reply<'a> {
    /// Output.
    pub sink: &'a mut dyn OutputSink,
    /// What the program wants of us.
    pub feed: &'a mut dyn Feed,
    /// Where each stream has got to.
    pub at: &'a mut [u64; 2],
    /// Whether what was asked for may have begun.
    pub sent: &'a mut bool,
}

/// What came of one request on one channel.
pub(super) enum Answer {
    /// The verdict's words.
    Words(Vec<String>),
    /// It was not sent, or the channel is gone: ask again.
    Cut { error: LinkError, broken: bool },
    /// There is more of it: ask at once.
    More,
    /// It cannot be answered on this machine.
    Refused(Cause),
}

/// How a request goes on after its program was sent.
#[async_trait]
pub(super) trait Feed: Send {
    /// The program waits for bytes from `offset` on.
    async fn feed(&mut self, offset: u64, stdin: &mut (dyn AsyncWrite + Send + Unpin)) -> Result<(), Cause>;
    /// The size and time of the file that follows; an error ends the request.
    fn size(&mut self, size: u64, mtime: i64) -> Result<(), Cause>;
}

/// Nothing to feed.
pub(super) struct Nothing;

#[async_trait]
impl Feed for Nothing {
    async fn feed(&mut self, _: u64, _: &mut (dyn AsyncWrite + Send + Unpin)) -> Result<(), Cause> {
        Err(Cause::new("internal", "the host asked for a file that nobody sends"))
    }
    fn size(&mut self, _: u64, _: i64) -> Result<(), Cause> {
        Ok(())
    }
}

/// How an answer ended other than by its last frame.
enum Broken {
    Frames(FrameError),
    /// For this reason of ours.
    Cause(Cause),
}

impl From<FrameError> for Broken {
    fn from(error: FrameError) -> Self {
        Broken::Frames(error)
    }
}

impl From<Cause> for Broken {
    fn from(cause: Cause) -> Self {
        Broken::Cause(cause)
    }
}

impl Session {
    /// Has a channel wait for the first request, its shell knowing the program already. What goes wrong is that request's to tell.
    pub async fn ready(&self) {
        let opening = async {
            let Ok(link) = self.link().await else { return };
            let Ok(channel) = link.open("sh").await else { return };
            let mut resident = Resident::new(channel);
            resident.taught = send(&mut resident.stdin, program::program()).await.is_ok();
            if resident.taught {
                self.keep(&link, resident).await;
            }
        };
        within(self.clock(), SILENCE, opening).await;
    }

    /// Sends one request and reads its answer. Dropping the future closes its channel: a command goes on.
    pub(super) async fn ask(&self, link: &Arc<dyn Link>, request: &Request<'_>, reply: &mut Reply<'_>) -> Answer {
        let known = self.host_id().await;
        let base = link.base();
        let frame = program::Frame {
            mark: request.mark,
            base: base.as_deref(),
            host_id: known.as_deref(),
            from: request.from,
            counted: link.counted(),
            run: self.run_of(),
        };
        let text = match (request.build)(&frame) {
            Ok(text) => text,
            Err(cause) => return Answer::Refused(cause),
        };
        loop {
            let mut resident = match self.idle(link).await {
                Some(resident) => resident,
                None => match link.open("sh").await {
                    Ok(channel) => Resident::new(channel),
                    Err(error) => {
                        let broken = error.cause.code == "channel_refused";
                        return Answer::Cut { error, broken };
                    }
                },
            };
            let number = resident.frames.expect(request.mark);
            // Whoever still stands by on an old channel goes out of the way; a new one learns the program.
            let idle = std::mem::replace(&mut resident.taught, true);
            let mut whole = if idle { program::FOLLOW } else { program::program() }.to_vec();
            whole.extend_from_slice(format!("N={number}\n").as_bytes());
            whole.extend_from_slice(&text);
            *reply.sent |= known.is_some();
            let mut complaints = Vec::new();
            match self.converse(&mut resident, &whole, request, known.is_none(), &mut complaints, reply).await {
                Ok(mut words) => {
                    if words.first().is_some_and(|word| word == "refused") {
                        // What a tool complained about is the reason.
                        let complaint = one_line(&complaints);
                        if !complaint.is_empty() {
                            words.push(format!("({complaint})"));
                        }
                    } else {
                        self.keep(link, resident).await;
                    }
                    return Answer::Words(words);
                }
                Err(Broken::Cause(cause)) => return Answer::Refused(cause),
                Err(Broken::Frames(FrameError::More)) => {
                    self.keep(link, resident).await;
                    return Answer::More;
                }
                // It ended while it was idle; what it was sent last nobody has read.
                Err(Broken::Frames(FrameError::Ended { started: false, .. })) if idle && !link.is_closed() => {}
                Err(Broken::Frames(error)) => return self.without_verdict(error, &mut resident, &complaints).await,
            }
        }
    }

    /// One request's conversation, to its verdict.
    async fn converse(
        &self,
        resident: &mut Resident,
        text: &[u8],
        request: &Request<'_>,
        stranger: bool,
        complaints: &mut Vec<u8>,
        reply: &mut Reply<'_>,
    ) -> Result<Vec<String>, Broken> {
        let Resident { stdin, frames, stderr, exit, .. } = resident;
        let talk = async {
            // A write that fails says less than what the other side printed before it closed: read that.
            let _closed = send(stdin, text).await;
            let mut late = request.follow.filter(|_| !stranger).map(|span| self.clock().sleep(span));
            let mut silence = None;
            let mut ended = false;
            loop {
                let frame = {
                    let mut next = pin!(frames.next());
                    loop {
                        tokio::select! {
                            biased;
                            frame = &mut next => break frame?,
                            // The shell was killed, and what it has started holds its streams: who was to answer may be gone too.
                            _ = exit.known(), if !ended => {
                                ended = true;
                                silence = Some(self.clock().sleep(SILENCE));
                            }
                            () = due(&mut silence) => {
                                return Err(FrameError::Ended { started: true, noise: String::new() }.into());
                            }
                            () = due(&mut late) => {
                                let _closed = send(stdin, program::FOLLOW).await;
                            }
                        }
                    }
                };
                match frame {
                    Frame::Verdict(words) => return Ok(words),
                    Frame::Alive => {}
                    Frame::Host { id, user, base: _ } => {
                        if let Some(found) = self.meet(id, user).await? {
                            return Ok(vec!["replaced".to_owned(), found]);
                        }
                        if stranger {
                            *reply.sent = true;
                            let _closed = send(stdin, program::MET).await;
                            late = request.follow.map(|span| self.clock().sleep(span));
                        }
                    }
                    Frame::Go { offset } => {
                        reply.feed.feed(offset, &mut **stdin).await?;
                        let _closed = stdin.flush().await;
                    }
                    Frame::Size { size, mtime } => reply.feed.size(size, mtime)?,
                    Frame::Output { stream, offset, bytes } => {
                        let slot = match stream {
                            Stream::Out => &mut reply.at[0],
                            _ => &mut reply.at[1],
                        };
                        // The host begins where it was asked to; anything else would lose or double bytes.
                        if offset != *slot {
                            return Err(FrameError::Garbled(format!("offset {offset} after {slot}")).into());
                        }
                        reply.sink.output(stream, offset, &bytes).await;
                        *slot = offset + bytes.len() as u64;
                        if ended {
                            silence = Some(self.clock().sleep(SILENCE));
                        }
                    }
                }
            }
        };
        let mut talk = pin!(talk);
        let mut listen = pin!(listen(stderr, request.mark, complaints));
        let mut listening = true;
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut talk => break ended,
                () = &mut listen, if listening => listening = false,
            }
        };
        // Why it was refused was said on the other stream, which may come later.
        let refused = ended.as_ref().map_or(true, |words| words.first().is_some_and(|word| word == "refused"));
        if listening && refused {
            within(self.clock(), LISTEN, listen).await;
        }
        ended
    }

    /// The channel ended before the verdict: was the link cut, or can this machine not do it?
    async fn without_verdict(&self, error: FrameError, resident: &mut Resident, complaints: &[u8]) -> Answer {
        let ended = within(self.clock(), SILENCE, resident.exit.known()).await;
        let said = match ended {
            Some(Err(error)) => return Answer::Cut { error, broken: false },
            Some(Ok(Exit::Code(code))) => format!("exit code {code}"),
            Some(Ok(Exit::Signal(ref name))) => format!("signal {name}"),
            Some(Ok(Exit::Unsaid)) | None => "no exit code".to_owned(),
        };
        let complaint = one_line(complaints);
        match error {
            FrameError::Ended { started: false, noise } => {
                let heard = [noise, complaint].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" / ");
                let message = format!(
                    "the host does not run commands: its login shell ended with {said} instead of running sh{}{heard}",
                    if heard.is_empty() { "" } else { ": " }
                );
                match ended {
                    Some(Ok(Exit::Code(_))) => Answer::Refused(Cause::new("host_unsupported", message)),
                    _ => Answer::Cut { error: LinkError::new("connection_lost", message), broken: true },
                }
            }
            other => Answer::Cut {
                error: LinkError::new("connection_lost", format!("{other}; {said} {complaint}")),
                broken: true,
            },
        }
    }
}

async fn send(stdin: &mut Stdin, bytes: &[u8]) -> std::io::Result<()> {
    stdin.write_all(bytes).await?;
    stdin.flush().await
}

/// When `timer` is due, once; never without one.
async fn due(timer: &mut Option<BoxFuture<'_, ()>>) {
    match timer {
        Some(waiting) => {
            waiting.await;
            *timer = None;
        }
        None => std::future::pending().await,
    }
}

pub(super) fn one_line(bytes: &[u8]) -> String {
    cause::one_line(&String::from_utf8_lossy(bytes), 400)
}

/// Keeps the first complaints, up to the line that ends them or the end, and drains the rest.
async fn listen(stderr: &mut Output, mark: &str, complaints: &mut Vec<u8>) {
    let mut buffer = [0; 1024];
    let mut last = Vec::new();
    while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
        let room = COMPLAINTS.saturating_sub(complaints.len()).min(n);
        complaints.extend_from_slice(&buffer[..room]);
        last.extend_from_slice(&buffer[..n]);
        if last.windows(mark.len()).any(|window| window == mark.as_bytes()) {
            break;
        }
        last.drain(..last.len().saturating_sub(mark.len()));
    }
    if let Some(end) = complaints.windows(mark.len()).position(|window| window == mark.as_bytes()) {
        complaints.truncate(end);
    }
}
