//! One machine's session: knows the machine, keeps its link and channels, asks until there is a verdict.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::sync::{Mutex, Notify, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::{
    Acquaintance, CommandSpec, Connect, Discard, Fleeting, OutputSink, Verdict,
    channel::{Answer, Nothing, Reply, Request, Resident, one_line},
    program,
};
use crate::{
    model::{cause::Cause, ids::RunId},
    ports::link::{Link, LinkError, REFUSED},
    time::{Clock, Stamp},
};

/// Answers that end without a verdict though the link is up: after so many it is not going to get better.
const BROKEN: u32 = 5;
/// The longest pause between two attempts to reconnect.
const PAUSE: Duration = Duration::from_secs(5);
/// How much longer than its time-out, grace and `reconnect` a command's answer is waited for at all.
const SLACK: Duration = Duration::from_secs(60);
/// Of one host at once: sshd's `MaxSessions` is 10, and a probe and a stop want theirs too.
const CHANNELS: usize = 7;
/// Channels that wait for a further request; a run's steps on a host come mostly one by one.
const IDLE: usize = 4;
/// Of a machine where each channel takes one of a number of places from everybody else.
const IDLE_COUNTED: usize = 1;
/// A command that takes longer is followed as it runs, which costs the host some processes and people half a second.
const SHORT: Duration = Duration::from_millis(500);
/// For an answer that needs no command to end: stop of what is not ours to wait for.
const ANSWER: Duration = Duration::from_secs(30);

/// What is known of the machine, and the link to it.
#[derive(Default)]
struct State {
    link: Option<Arc<dyn Link>>,
    /// Of that link, and since when each waits.
    idle: Vec<(Resident, Stamp)>,
    /// The machine this session is with, once that is known and kept.
    host_id: Option<String>,
    user: Option<String>,
    /// When the link was asked for last.
    used: Option<Stamp>,
}

/// One machine, for as long as a run needs it: any number of commands side by side over one link.
pub struct Session {
    connect: Arc<dyn Connect>,
    clock: Arc<dyn Clock>,
    acquaintance: Arc<dyn Acquaintance>,
    /// See [`Session::of_run`].
    run: Option<RunId>,
    /// Held while the machine's id gets to the disk: it is met once.
    meeting: Mutex<()>,
    state: Mutex<State>,
    /// A channel waits that is not to wait for long.
    waits: Notify,
    /// Commands and transfers at the same moment; stops and questions need no turn.
    turns: Semaphore,
}

impl Session {
    /// A session that connects when it is first used.
    #[must_use]
    pub fn new(connect: Arc<dyn Connect>, clock: Arc<dyn Clock>, acquaintance: Arc<dyn Acquaintance>) -> Self {
        let (meeting, state) = (Mutex::default(), Mutex::default());
        let (waits, turns) = (Notify::new(), Semaphore::new(CHANNELS));
        Session { connect, clock, acquaintance, run: None, meeting, state, waits, turns }
    }

    /// A session for the commands of `run` on this machine: what they leave running, and what they were, is not to outlive the run; see
    /// [`Session::end_left`].
    #[must_use]
    pub fn of_run(connect: Arc<dyn Connect>, clock: Arc<dyn Clock>, run: RunId) -> Self {
        Session { run: Some(run), ..Session::new(connect, clock, Arc::new(Fleeting)) }
    }

    pub(super) fn run_of(&self) -> Option<&RunId> {
        self.run.as_ref()
    }

    /// The next free turn; `None` = stopped while waiting for it.
    pub(super) async fn turn(&self, stop: &CancellationToken) -> Option<SemaphorePermit<'_>> {
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            turn = self.turns.acquire() => turn.ok(),
        }
    }

    /// The id the machine must have, once it is known.
    pub async fn host_id(&self) -> Option<String> {
        let mut state = self.state.lock().await;
        if state.host_id.is_none() {
            state.host_id = self.acquaintance.known();
        }
        state.host_id.clone()
    }

    /// The machine answers as `id`: returns once that is kept, with the id if it is not the machine it must be.
    pub(super) async fn meet(&self, id: String, user: String) -> Result<Option<String>, Cause> {
        let _once = self.meeting.lock().await;
        let known = self.host_id().await;
        if known.as_ref().is_some_and(|known| *known != id) {
            return Ok(Some(id));
        }
        if known.is_none() {
            let learnt = self.state.lock().await.link.as_ref().and_then(|link| link.learnt());
            self.acquaintance.met(&id, learnt).await?;
        }
        let mut state = self.state.lock().await;
        state.host_id = Some(id);
        state.user = Some(user);
        Ok(None)
    }

    /// A channel of `link` that waits for a request.
    pub(super) async fn idle(&self, link: &Arc<dyn Link>) -> Option<Resident> {
        let mut state = self.state.lock().await;
        let current = state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link));
        if current { state.idle.pop().map(|(resident, _)| resident) } else { None }
    }

    /// For the next request.
    pub(super) async fn keep(&self, link: &Arc<dyn Link>, resident: Resident) {
        let mut state = self.state.lock().await;
        let most = if link.counted() { IDLE_COUNTED } else { IDLE };
        if state.idle.len() < most && state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            state.idle.push((resident, self.clock.now()));
            if link.counted() {
                self.waits.notify_one();
            }
        }
    }

    /// Closes channels that nobody has wanted for `span`, where each takes a place from others; for ever.
    pub async fn tire(&self, span: Duration) {
        loop {
            self.waits.notified().await;
            self.clock.sleep(span).await;
            let now = self.clock.now();
            self.state.lock().await.idle.retain(|(_, since)| now.since(since) < span);
        }
    }

    /// The link, for probes and `dial`; connects if it must. Nothing is retried.
    ///
    /// # Errors
    /// The link's.
    pub async fn link(&self) -> Result<Arc<dyn Link>, LinkError> {
        // Held while connecting: whoever else needs the link waits for this one.
        let mut state = self.state.lock().await;
        state.used = Some(self.clock.now());
        if let Some(link) = state.link.as_ref().filter(|link| !link.is_closed()) {
            return Ok(link.clone());
        }
        state.idle.clear();
        let link = self.connect.connect().await?;
        state.link = Some(link.clone());
        Ok(link)
    }

    /// Ends the link. The session can be used again and then connects again.
    pub async fn close(&self) {
        let link = {
            let mut state = self.state.lock().await;
            state.idle.clear();
            state.link.take()
        };
        if let Some(link) = link {
            link.close().await;
        }
    }

    /// Gives the link back if nobody uses it, nor has asked for it within `span`: somebody else waits for its place.
    pub async fn give_back(&self, span: Duration) {
        let idle = {
            // Whoever holds this is about to use it.
            let Ok(mut state) = self.state.try_lock() else { return };
            let recent = state.used.as_ref().is_some_and(|used| self.clock.now().since(used) < span);
            if recent || state.link.as_ref().is_none_or(|link| Arc::strong_count(link) > 1) {
                return;
            }
            state.idle.clear();
            state.link.take()
        };
        if let Some(link) = idle {
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
            state.idle.clear();
        }
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
            let linked = tokio::select! {
                biased;
                // There may be a line of others before it.
                () = waits.cancelled(), if !sent => return Verdict::Stopped { duration_ms: 0 },
                linked = self.link() => linked,
            };
            let error = match linked {
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
            // At most so long also one whose connection was cut before anything was sent.
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
        // A time limit shorter than that is to be watched all the same.
        let follow = (!stopping).then(|| SHORT.min(cmd.timeout / 2));
        let request = Request { build: &build, mark: &mark, from, follow };
        let mut reply = Reply { sink, feed: &mut nothing, at, sent };
        let mut asked = pin!(self.ask(link, &request, &mut reply));
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
            let request = Request { build: &build, mark: &mark, from: [0; 2], follow: None };
            let mut reply = Reply { sink: &mut discard, feed: &mut nobody, at: &mut none, sent: &mut also };
            let mut ending = pin!(self.ask(link, &request, &mut reply));
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
                let limited = super::Limited::of(words.get(3..).unwrap_or_default());
                Verdict::Exited { code, duration_ms, limited }
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
        if said.contains("no new privileges") {
            return Some(Cause::new(
                "sudo_refused",
                format!(
                    "sudo cannot become anybody where this runs ({}). Nothing was run. In the job unit it may once a drop-in says so \
                     (`systemctl edit phased-job@.service`: NoNewPrivileges=no, CapabilityBoundingSet=~) and sudoers has a line for it: \
                     see docs/jobs.md",
                    one_line(said.as_bytes())
                ),
            ));
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
