//! One machine's session: sends requests, reads answers, reconnects.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    sync::{Mutex, Semaphore, SemaphorePermit},
};
use tokio_util::sync::CancellationToken;

use super::{
    CommandSpec, Connect, Discard, OutputSink, Verdict,
    frames::{Frame, FrameError, Frames},
    program,
};
use crate::{
    model::{cause::Cause, ids::Digest},
    ports::link::{Channel, Exit, Link, LinkError},
    time::{Clock, Stamp, within},
};

/// How much of what the program complains about is kept for messages.
const COMPLAINTS: usize = 4096;
/// Answers that end without a verdict though the link is up: after so many it is not going to get better.
const BROKEN: u32 = 5;
/// The longest pause between two attempts to reconnect.
const PAUSE: Duration = Duration::from_secs(5);
/// How much longer than its time-out, grace and `reconnect` a command's answer is waited for at all.
const SLACK: Duration = Duration::from_secs(60);
/// Of one host at once: sshd's `MaxSessions` is 10, and the channel opened ahead, a probe and a stop want theirs too.
const CHANNELS: usize = 7;
/// How long a host that refuses another channel is asked again: somebody else's sessions may end. At most so long also one whose
/// connection was cut before anything was sent.
pub(super) const REFUSED: Duration = Duration::from_secs(30);
/// How long to listen for complaints after the end.
const LISTEN: Duration = Duration::from_secs(1);
/// For an answer that needs no command to end: identify, stop of what is not ours to wait for.
const ANSWER: Duration = Duration::from_secs(30);

/// What is known of the machine, and the link to it.
#[derive(Default)]
struct State {
    link: Option<Arc<dyn Link>>,
    host_id: Option<String>,
    user: Option<String>,
}

/// One machine, for as long as a run needs it: any number of commands side by side over one link.
pub struct Session {
    connect: Arc<dyn Connect>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Commands and transfers at the same moment; stops and questions need no turn.
    turns: Semaphore,
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
#[async_trait::async_trait]
pub(super) trait Feed: Send {
    /// The program waits for bytes from `offset` on; `stdin` is to be shut down after them.
    async fn feed(&mut self, offset: u64, stdin: &mut (dyn tokio::io::AsyncWrite + Send + Unpin)) -> Result<(), Cause>;
    /// The size and time of the file that follows; an error ends the request.
    fn size(&mut self, size: u64, mtime: i64) -> Result<(), Cause>;
}

/// Nothing to feed.
pub(super) struct Nothing;

#[async_trait::async_trait]
impl Feed for Nothing {
    async fn feed(&mut self, _: u64, _: &mut (dyn tokio::io::AsyncWrite + Send + Unpin)) -> Result<(), Cause> {
        Err(Cause::new("internal", "the host asked for a file that nobody sends"))
    }
    fn size(&mut self, _: u64, _: i64) -> Result<(), Cause> {
        Ok(())
    }
}

impl Session {
    /// A session that connects when it is first used. `host_id` is what was journaled for this host earlier, if anything.
    #[must_use]
    pub fn new(connect: Arc<dyn Connect>, clock: Arc<dyn Clock>, host_id: Option<String>) -> Self {
        let state = Mutex::new(State { host_id, ..State::default() });
        Session { connect, clock, state, turns: Semaphore::new(CHANNELS) }
    }

    /// The next free turn; `None` = stopped while waiting for it.
    pub(super) async fn turn(&self, stop: &CancellationToken) -> Option<SemaphorePermit<'_>> {
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            turn = self.turns.acquire() => turn.ok(),
        }
    }

    /// The machine's own id, once it has answered anything; to be journaled for the host and given to the next session.
    pub async fn host_id(&self) -> Option<String> {
        self.state.lock().await.host_id.clone()
    }

    /// The link, for probes and `dial`; connects if it must. Nothing is retried.
    ///
    /// # Errors
    /// The link's.
    pub async fn link(&self) -> Result<Arc<dyn Link>, LinkError> {
        // Held while connecting: whoever else needs the link waits for this one.
        let mut state = self.state.lock().await;
        if let Some(link) = state.link.as_ref().filter(|link| !link.is_closed()) {
            return Ok(link.clone());
        }
        let link = self.connect.connect().await?;
        state.link = Some(link.clone());
        Ok(link)
    }

    /// Ends the link. The session can be used again and then connects again.
    pub async fn close(&self) {
        let link = self.state.lock().await.link.take();
        if let Some(link) = link {
            link.close().await;
        }
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub(super) async fn pause(&self, span: Duration) {
        self.clock.sleep(span).await;
    }

    /// After a cut: a link that broke is made anew, one that only refused is kept.
    pub(super) async fn forget(&self, link: &Arc<dyn Link>, keep: bool) {
        if !keep {
            self.drop_link(link).await;
        }
    }

    async fn drop_link(&self, link: &Arc<dyn Link>) {
        let mut state = self.state.lock().await;
        if state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            state.link = None;
        }
    }

    /// Asks which machine this is, making its id if it is new to us: for hosts without a journaled id.
    ///
    /// # Errors
    /// Why it cannot be used, or reached.
    pub async fn identify(&self) -> Result<String, Cause> {
        let link = self.link().await.map_err(|e| e.cause)?;
        let build = |frame: &program::Frame<'_>| program::identify(frame);
        let mark = "phased-identify".to_owned();
        let (mut at, mut discard, mut nothing, mut sent) = ([0; 2], Discard, Nothing, false);
        let asked = self.ask(&link, &build, &mark, [0; 2], &mut discard, &mut nothing, &mut at, &mut sent);
        let answer = within(&*self.clock, ANSWER, asked).await;
        match answer {
            Some(Answer::More) => {}
            // The program says who it is and has nothing to add: the channel's end is the end.
            Some(Answer::Refused(cause)) => return Err(cause),
            Some(Answer::Words(words)) => {
                if let Some(verdict) = self.verdict(&words, &[], None).await {
                    return match verdict {
                        Verdict::Refused(cause) => Err(cause),
                        other => Err(other
                            .cause("the host", Duration::ZERO)
                            .unwrap_or_else(|| Cause::new("internal", "no id"))),
                    };
                }
            }
            Some(Answer::Cut { error, .. }) if link.is_closed() => return Err(error.cause),
            Some(Answer::Cut { .. }) | None => {}
        }
        self.host_id().await.ok_or_else(|| Cause::new("host_unsupported", "the host did not say who it is"))
    }

    /// Runs `cmd` to its end, or attaches to it. Cancelling `stop` ends it on the host: TERM, then KILL after its grace.
    ///
    /// Not cancel safe in the sense that dropping the future leaves the command running on the host; nothing else is lost, and
    /// the same call again attaches.
    pub async fn run(&self, cmd: &CommandSpec, sink: &mut dyn OutputSink, stop: &CancellationToken) -> Verdict {
        // What may run already is stopped on its host, not here.
        let waits = if cmd.resumed { &CancellationToken::new() } else { stop };
        let Some(_turn) = self.turn(waits).await else { return Verdict::Stopped { duration_ms: 0 } };
        let began = self.clock.now();
        let limit = cmd.timeout + cmd.grace + cmd.reconnect;
        let (mut at, mut sent, mut broken) = (cmd.from, cmd.resumed, 0);
        let mut stderr = Head::default();
        let mut pause = Duration::from_millis(100);
        loop {
            if stop.is_cancelled() && !sent {
                return Verdict::Stopped { duration_ms: 0 };
            }
            let error = match self.link().await {
                Err(error) => error,
                Ok(link) => {
                    let mut tee = Tee { sink: &mut *sink, head: &mut stderr };
                    match self.attempt(&link, cmd, &mut tee, stop, &mut at, &mut sent, &began).await {
                        Answer::Words(words) => {
                            if let Some(verdict) = self.verdict(&words, &stderr.0, Some(cmd)).await {
                                return verdict;
                            }
                            LinkError::new("host_unsupported", "the host's answer is not understood")
                        }
                        Answer::More => continue,
                        Answer::Refused(cause) => return Verdict::Refused(cause),
                        Answer::Cut { error, broken: is_broken } => {
                            broken += u32::from(is_broken && error.cause.code != "channel_refused");
                            self.forget(&link, is_broken).await;
                            error
                        }
                    }
                }
            };
            let waited = self.clock.now().since(&began);
            let refused = error.cause.code == "channel_refused";
            // A key that changed or a login that is refused does not get better by asking again.
            let hopeless = !error.cause.is_unreachable() && !refused && broken == 0;
            // Before anything was sent, a host that cannot be reached is just that: whether to try again is the caller's. One that was
            // reached and lost, in the login or since the last command, is another matter.
            let cut = error.cause.code == "connection_lost";
            let patience = if refused { REFUSED } else { REFUSED.min(cmd.reconnect) };
            let unsent = !sent && (!(refused || cut) || waited >= patience);
            if hopeless || unsent || broken >= BROKEN || waited >= limit {
                return Verdict::LinkLost { error, sent };
            }
            tracing::debug!(code = error.cause.code, "asking again after a cut");
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(PAUSE);
        }
    }

    /// One attempt of [`Session::run`].
    #[allow(clippy::too_many_arguments)] // one attempt's whole state, owned by its caller across attempts
    async fn attempt(
        &self,
        link: &Arc<dyn Link>,
        cmd: &CommandSpec,
        sink: &mut dyn OutputSink,
        stop: &CancellationToken,
        at: &mut [u64; 2],
        sent: &mut bool,
        began: &Stamp,
    ) -> Answer {
        let stopping = stop.is_cancelled();
        let build = |frame: &program::Frame<'_>| {
            if stopping {
                program::stop(frame, &cmd.token, cmd.user.as_deref(), true)
            } else {
                program::start(frame, cmd)
            }
        };
        let (from, mark) = (*at, program::mark(&cmd.token));
        let mut nothing = Nothing;
        let mut asked = pin!(self.ask(link, &build, &mark, from, sink, &mut nothing, at, sent));
        let span = self.clock.now().since(began);
        let mut limit = self.clock.sleep((cmd.timeout + cmd.grace + cmd.reconnect + SLACK).saturating_sub(span));
        if !stopping {
            tokio::select! {
                biased;
                answer = &mut asked => return answer,
                () = &mut limit => return silent(),
                () = stop.cancelled() => {}
            }
            // The command's own channel goes on and brings its last output and its verdict; this one only ends it.
            let build = |frame: &program::Frame<'_>| program::stop(frame, &cmd.token, cmd.user.as_deref(), false);
            let (mut none, mut discard, mut nobody, mut also) = ([0; 2], Discard, Nothing, false);
            let mut ending =
                pin!(self.ask(link, &build, &mark, [0; 2], &mut discard, &mut nobody, &mut none, &mut also));
            limit = self.clock.sleep(cmd.grace + ANSWER);
            tokio::select! {
                biased;
                answer = &mut asked => return answer,
                () = &mut limit => return silent(),
                ended = &mut ending => if let Answer::Words(words) = ended
                    && words.first().is_some_and(|word| word == "orphaned")
                {
                    return Answer::Words(words);
                }
            }
        } else {
            limit = self.clock.sleep(cmd.grace + ANSWER);
        }
        tokio::select! {
            biased;
            answer = &mut asked => answer,
            () = &mut limit => silent(),
        }
    }

    /// Ends the command of `token` if it runs, forbids it if it has not begun, and says what became of it: [`Verdict::Void`] = it
    /// never ran and never will; `Exited` = it had ended by itself. For steps left open by an interrupted run. Its output is thrown away.
    pub async fn resolve(&self, token: &Digest, user: Option<&str>, limit: Duration) -> Verdict {
        let began = self.clock.now();
        let build = |frame: &program::Frame<'_>| program::stop(frame, token, user, false);
        let mark = program::mark(token);
        let mut pause = Duration::from_millis(100);
        let mut broken = 0;
        loop {
            let error = match self.link().await {
                Err(error) => error,
                Ok(link) => {
                    let left = limit.saturating_sub(self.clock.now().since(&began)).max(Duration::from_secs(1));
                    let (mut at, mut discard, mut nothing, mut sent) = ([0; 2], Discard, Nothing, false);
                    let asked = self.ask(&link, &build, &mark, [0; 2], &mut discard, &mut nothing, &mut at, &mut sent);
                    match within(&*self.clock, left, asked).await.unwrap_or_else(silent) {
                        Answer::More => continue,
                        Answer::Refused(cause) => return Verdict::Refused(cause),
                        Answer::Words(words) => match self.verdict(&words, &[], None).await {
                            Some(verdict) => return verdict,
                            None => LinkError::new("host_unsupported", "the host's answer is not understood"),
                        },
                        Answer::Cut { error, broken: is_broken } => {
                            if is_broken {
                                broken += 1;
                            } else {
                                self.drop_link(&link).await;
                            }
                            error
                        }
                    }
                }
            };
            let hopeless = !error.cause.is_unreachable() && error.cause.code != "channel_refused" && broken == 0;
            if hopeless || broken >= BROKEN || self.clock.now().since(&began) >= limit {
                return Verdict::LinkLost { error, sent: true };
            }
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(PAUSE);
        }
    }

    /// Sends one request on a channel of its own and reads its answer. `at` is where each stream has got to.
    #[allow(clippy::too_many_arguments)] // as above
    pub(super) async fn ask(
        &self,
        link: &Arc<dyn Link>,
        build: &(dyn Fn(&program::Frame<'_>) -> Result<Vec<u8>, Cause> + Sync),
        mark: &str,
        from: [u64; 2],
        sink: &mut dyn OutputSink,
        feed: &mut dyn Feed,
        at: &mut [u64; 2],
        sent: &mut bool,
    ) -> Answer {
        let host_id = self.state.lock().await.host_id.clone();
        let base = link.base();
        let frame = program::Frame { mark, base: base.as_deref(), host_id: host_id.as_deref(), from };
        let text = match build(&frame) {
            Ok(text) => text,
            Err(cause) => return Answer::Refused(cause),
        };
        let channel = match link.open("sh").await {
            Ok(channel) => channel,
            Err(error) => {
                let broken = error.cause.code == "channel_refused";
                return Answer::Cut { error, broken };
            }
        };
        *sent = true;
        self.converse(channel, mark, &text, sink, feed, at).await
    }

    async fn converse(
        &self,
        channel: Channel,
        mark: &str,
        text: &[u8],
        sink: &mut dyn OutputSink,
        feed: &mut dyn Feed,
        at: &mut [u64; 2],
    ) -> Answer {
        let Channel { mut stdin, stdout, stderr, exit } = channel;
        let mut complaints = Vec::new();
        let ended = {
            let talk = async {
                // A write that fails says less than what the other side printed before it closed: read that.
                let _closed = async {
                    stdin.write_all(text).await?;
                    stdin.flush().await
                }
                .await;
                let mut frames = Frames::new(stdout, mark);
                loop {
                    match frames.next().await {
                        Err(error) => return Ok(Err(error)),
                        Ok(Frame::Verdict(words)) => return Ok(Ok(words)),
                        Ok(Frame::Alive) => {}
                        Ok(Frame::Host { id, user, base: _ }) => self.learn(id, user).await,
                        Ok(Frame::Go { offset }) => {
                            feed.feed(offset, &mut *stdin).await?;
                            let _closed = stdin.shutdown().await;
                        }
                        Ok(Frame::Size { size, mtime }) => feed.size(size, mtime)?,
                        Ok(Frame::Output { stream, offset, bytes }) => {
                            let slot = match stream {
                                crate::ports::outputs::Stream::Out => &mut at[0],
                                _ => &mut at[1],
                            };
                            // The host begins where it was asked to; anything else would lose or double bytes.
                            if offset != *slot {
                                return Ok(Err(FrameError::Garbled(format!("offset {offset} after {slot}"))));
                            }
                            sink.output(stream, offset, &bytes).await;
                            *slot = offset + bytes.len() as u64;
                        }
                    }
                }
            };
            let mut talk = pin!(talk);
            let mut listen = pin!(listen(stderr, &mut complaints));
            let mut listening = true;
            let ended = loop {
                tokio::select! {
                    biased;
                    ended = &mut talk => break ended,
                    () = &mut listen, if listening => listening = false,
                }
            };
            // Why it was refused was said on the other stream, which may come later.
            if listening && !matches!(&ended, Ok(Ok(words)) if words.first().is_none_or(|word| word != "refused")) {
                within(&*self.clock, LISTEN, listen).await;
            }
            ended
        };
        match ended {
            Ok(Ok(words)) => {
                // What a tool complained about is the reason of a refusal.
                let mut words = words;
                if words.first().is_some_and(|word| word == "refused") && !complaints.is_empty() {
                    words.push(format!("({})", one_line(&complaints)));
                }
                Answer::Words(words)
            }
            Err(cause) => Answer::Refused(cause),
            Ok(Err(FrameError::More)) => Answer::More,
            Ok(Err(error)) => self.without_verdict(error, exit, &complaints).await,
        }
    }

    /// The channel ended before the verdict: was the link cut, or can this machine not do it?
    async fn without_verdict(
        &self,
        error: FrameError,
        exit: futures_util::future::BoxFuture<'static, Result<Exit, LinkError>>,
        complaints: &[u8],
    ) -> Answer {
        let ended = within(&*self.clock, Duration::from_secs(5), exit).await;
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

    async fn learn(&self, id: String, user: String) {
        let mut state = self.state.lock().await;
        state.user = Some(user);
        // The first answer decides which machine this session is with; a later one with another id says `replaced` itself.
        if state.host_id.is_none() {
            state.host_id = Some(id);
        }
    }

    /// The verdict that `words` say; `None` = nothing we know.
    pub(super) async fn verdict(&self, words: &[String], stderr: &[u8], cmd: Option<&CommandSpec>) -> Option<Verdict> {
        let number = |i: usize| words.get(i).and_then(|word| word.parse::<u64>().ok());
        let duration_ms = number(2).unwrap_or(0).saturating_mul(10);
        Some(match words.first()?.as_str() {
            "exit" => {
                let code = u32::try_from(number(1)?).ok()?;
                if code == 1
                    && let Some(cause) = self.sudo_refused(stderr, cmd).await
                {
                    return Some(Verdict::Refused(cause));
                }
                Verdict::Exited { code, duration_ms }
            }
            "timeout" => Verdict::TimedOut { duration_ms },
            "stop" => Verdict::Stopped { duration_ms },
            "output" => Verdict::OutputUnread,
            "void" => Verdict::Void,
            "lost" => Verdict::Lost,
            "rebooted" => Verdict::Rebooted,
            "orphaned" => Verdict::Orphaned,
            "replaced" => Verdict::Replaced { found: words.get(1).cloned().unwrap_or_default() },
            "refused" => Verdict::Refused(refusal(words.get(1)?, &words.get(2..).unwrap_or_default().join(" "))),
            _ => return None,
        })
    }

    /// Exit 1 and nothing but sudo's own complaint: it did not let us, and nothing was run.
    async fn sudo_refused(&self, stderr: &[u8], cmd: Option<&CommandSpec>) -> Option<Cause> {
        let cmd = cmd?;
        let wanted = match (&cmd.user, &cmd.what) {
            (Some(user), _) => (user.clone(), "/bin/sh".to_owned()),
            (None, super::What::Exec { argv }) => {
                match argv.iter().map(|a| String::from_utf8_lossy(a)).collect::<Vec<_>>().as_slice() {
                    [sudo, n, program, rest @ ..] if sudo == "sudo" && n == "-n" => {
                        let mut line = format!("/usr/bin/{program}");
                        for word in rest {
                            line.push(' ');
                            line.push_str(word);
                        }
                        ("root".to_owned(), line)
                    }
                    _ => return None,
                }
            }
            _ => return None,
        };
        let said = String::from_utf8_lossy(stderr);
        let said = said.trim();
        let refused = said.starts_with("sudo: ") || (said.starts_with("Sorry, user ") && said.contains("not allowed"));
        if !refused {
            return None;
        }
        let login = self.state.lock().await.user.clone().unwrap_or_else(|| "<user>".to_owned());
        let (user, line) = wanted;
        let as_user = if user == "root" { "root".to_owned() } else { user };
        Some(Cause::new(
            "sudo_refused",
            format!(
                "sudo refused ({}). Nothing was run. Add this line to the host's sudoers (visudo -f /etc/sudoers.d/phased): \
                 {login} ALL=({as_user}) NOPASSWD: {line}",
                one_line(said.as_bytes())
            ),
        ))
    }
}

fn silent() -> Answer {
    Answer::Cut { error: LinkError::new("connection_lost", "the host did not answer in time"), broken: false }
}

/// The cause of `X refused <code> <text>`.
fn refusal(code: &str, text: &str) -> Cause {
    match code {
        "unwritable" => {
            let full = ["No space left", "Disk quota exceeded", "nospace"].iter().any(|sign| text.contains(sign));
            let (code, what) =
                if full { ("host_disk_full", "is full") } else { ("host_unwritable", "cannot be written") };
            Cause::new(code, format!("nothing was run: the place for phased's files on the host {what} {text}"))
        }
        "base" => Cause::new(
            "host_unwritable",
            format!(
                "nothing was run: the place for phased's files on the host {text}. Remove it, or set ssh.base to another"
            ),
        ),
        "stale_epoch" => Cause::new(
            "stale_epoch",
            format!(
                "nothing was run: a younger deployment (epoch {text}) has been on this host; this one has lost its lease"
            ),
        ),
        "host_unsupported" => Cause::new(code, format!("the host cannot run commands for phased: {text}")),
        "damaged" => Cause::new("upload_failed", format!("the file was damaged on its way and thrown away {text}")),
        "upload" => Cause::new("upload_failed", format!("the file could not be put in place: {text}")),
        "download" => Cause::new("download_failed", format!("the file cannot be read: {text}")),
        other => Cause::new("host_unsupported", format!("the host refused: {other} {text}")),
    }
}

fn one_line(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.trim().chars().take(400).collect()
}

/// Keeps the first complaints and drains the rest.
async fn listen(mut stderr: Box<dyn AsyncRead + Send + Unpin>, complaints: &mut Vec<u8>) {
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
        let room = COMPLAINTS.saturating_sub(complaints.len()).min(n);
        complaints.extend_from_slice(&buffer[..room]);
    }
}

/// The first bytes of standard error: enough to know sudo's voice.
#[derive(Default)]
struct Head(Vec<u8>);

struct Tee<'a> {
    sink: &'a mut dyn OutputSink,
    head: &'a mut Head,
}

#[async_trait::async_trait]
impl OutputSink for Tee<'_> {
    async fn output(&mut self, stream: crate::ports::outputs::Stream, offset: u64, bytes: &[u8]) {
        if stream == crate::ports::outputs::Stream::Err {
            let room = 1024usize.saturating_sub(self.head.0.len()).min(bytes.len());
            self.head.0.extend_from_slice(&bytes[..room]);
        }
        self.sink.output(stream, offset, bytes).await;
    }
}
