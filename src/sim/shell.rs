//! The other end of a link: a shell that speaks the command protocol's frames.
//!
//! What the engine sends is the program's text and then requests: literals, and the command. Here the literals are read and the program
//! is not run: what it would do on a host (claim a token, tell the end it had, refuse a stale epoch, say that the machine is another
//! one) is what [`super::fleet`] does. The text itself is tested against real shells elsewhere.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use super::{
    fleet::Reach,
    outside::{Life, Outside},
};
use crate::{
    lifecycle::locks::locked,
    model::{health::Sight, host::Host, host_key::Realm, ids::ProjectName, pipeline::Check},
    ports::{
        link::{Channel, Duplex, Exit, Link, LinkError, Links},
        probe::Probe,
    },
    time::{Clock as _, within},
};

/// A session to a machine.
pub(super) struct Wire {
    outside: Outside,
    life: Life,
    /// `None` = the daemon's own.
    pub(super) machine: Option<String>,
    state: Mutex<WireState>,
    changed: Notify,
}

#[derive(Default)]
struct WireState {
    cut: bool,
    shells: Vec<Weak<Shell>>,
}

impl Wire {
    /// The connection is gone, and whoever uses it hears so.
    pub(super) fn cut(&self) {
        let shells = {
            let mut state = locked(&self.state);
            state.cut = true;
            std::mem::take(&mut state.shells)
        };
        shells.iter().filter_map(Weak::upgrade).for_each(|shell| shell.close(true));
        self.changed.notify_waiters();
    }

    /// Bytes get through again.
    pub(super) fn heal(&self) {
        self.changed.notify_waiters();
    }

    fn is_cut(&self) -> bool {
        locked(&self.state).cut
    }

    /// Waits until bytes get through.
    async fn through(&self) -> Result<(), LinkError> {
        loop {
            let changed = self.changed.notified();
            if self.is_cut() {
                return Err(LinkError::new("connection_lost", "the connection was cut"));
            }
            if !self.life.is_over() && self.outside.reach(self.machine.as_deref()) == Reach::Well {
                return Ok(());
            }
            changed.await;
        }
    }
}

fn lost() -> LinkError {
    LinkError::new("connection_lost", "the connection was cut")
}

/// One channel.
pub(super) struct Shell {
    wire: Arc<Wire>,
    state: Mutex<ShellState>,
}

#[derive(Default)]
struct ShellState {
    /// What has arrived and was not understood yet.
    heard: Vec<u8>,
    /// So much of it was looked through for the end of a request.
    looked: usize,
    /// The request that waits for the machine's id to be on the daemon's disk.
    stranger: Option<Request>,
    /// What is on its way back.
    says: Vec<u8>,
    complains: Vec<u8>,
    out: VecDeque<u8>,
    err: VecDeque<u8>,
    /// How it ended: cut, or by itself.
    ended: Option<bool>,
    wakers: Vec<Waker>,
    flushing: bool,
}

impl ShellState {
    fn wake(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakers)
    }
}

impl Shell {
    fn new(wire: &Arc<Wire>) -> Arc<Shell> {
        let shell = Arc::new(Shell { wire: Arc::clone(wire), state: Mutex::default() });
        let mut state = locked(&wire.state);
        state.shells.retain(|shell| shell.strong_count() > 0);
        state.shells.push(Arc::downgrade(&shell));
        shell
    }

    fn close(&self, cut: bool) {
        let wakers = {
            let mut state = locked(&self.state);
            state.ended.get_or_insert(cut);
            state.wake()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether anybody would hear what it says.
    pub(super) fn is_open(&self) -> bool {
        locked(&self.state).ended.is_none() && !self.wire.life.is_over()
    }

    /// Says something, once it gets through.
    pub(super) fn say(self: &Arc<Self>, words: &[u8], complaint: &[u8]) {
        let flush = {
            let mut state = locked(&self.state);
            state.says.extend_from_slice(words);
            state.complains.extend_from_slice(complaint);
            !std::mem::replace(&mut state.flushing, true)
        };
        if flush {
            self.flush();
        }
    }

    fn flush(self: &Arc<Self>) {
        if self.wire.outside.reach(self.wire.machine.as_deref()) != Reach::Well {
            if self.is_open() {
                let shell = Arc::clone(self);
                self.wire.outside.clock().after(Duration::from_millis(300), move || shell.flush());
            }
            return;
        }
        let wakers = {
            let mut state = locked(&self.state);
            state.flushing = false;
            let (says, complains) = (std::mem::take(&mut state.says), std::mem::take(&mut state.complains));
            state.out.extend(says);
            state.err.extend(complains);
            state.wake()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Bytes from the daemon have arrived.
    fn hear(self: &Arc<Self>, bytes: &[u8]) {
        if !self.is_open() {
            return;
        }
        if self.wire.outside.reach(self.wire.machine.as_deref()) != Reach::Well {
            let (shell, bytes) = (Arc::clone(self), bytes.to_vec());
            self.wire.outside.clock().after(Duration::from_millis(300), move || shell.hear(&bytes));
            return;
        }
        locked(&self.state).heard.extend_from_slice(bytes);
        while let Some(heard) = self.next() {
            match heard {
                Heard::Met => {
                    let request = locked(&self.state).stranger.take();
                    if let Some(request) = request {
                        self.wire.outside.asked(self, self.wire.machine.as_deref(), request);
                    }
                }
                Heard::Request(request) => {
                    let (id, user) = self.wire.outside.identity(self.wire.machine.as_deref());
                    self.say(
                        format!("{} {}\nI {id} {user} /var/tmp/phased\n", request.mark, request.number).as_bytes(),
                        b"",
                    );
                    if request.known.is_empty() {
                        locked(&self.state).stranger = Some(*request);
                    } else if request.known == id {
                        self.wire.outside.asked(self, self.wire.machine.as_deref(), *request);
                    } else {
                        self.say(format!("X replaced {id}\n").as_bytes(), b"");
                    }
                }
            }
        }
    }

    /// The next whole thing that was heard.
    fn next(&self) -> Option<Heard> {
        const END: &[u8] = b"main; exit 0\n) || exit\n";
        let mut state = locked(&self.state);
        loop {
            if state.heard.starts_with(b"follow\n") {
                state.heard.drain(..7);
            } else if state.heard.starts_with(b"met\n") {
                state.heard.drain(..4);
                return Some(Heard::Met);
            } else {
                let from = state.looked.saturating_sub(END.len());
                state.looked = state.heard.len();
                let end = from + find(state.heard.get(from..)?, END)? + END.len();
                let text: Vec<u8> = state.heard.drain(..end).collect();
                state.looked = 0;
                if let Some(request) = Request::read(&text) {
                    return Some(Heard::Request(Box::new(request)));
                }
            }
        }
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    // From its end: the program comes first and is long.
    text.windows(what.len()).rposition(|window| window == what)
}

enum Heard {
    Met,
    Request(Box<Request>),
}

/// A request, as far as a machine in a simulation needs it.
#[derive(Debug, Clone, Default)]
pub(super) struct Request {
    pub(super) mark: String,
    number: u64,
    pub(super) verb: String,
    pub(super) token: String,
    /// The machine it is meant for.
    known: String,
    /// Where output goes on.
    pub(super) from: u64,
    pub(super) limit: Duration,
    pub(super) epoch: u64,
    pub(super) epoch_of: String,
    /// `PHASED_*`.
    pub(super) variables: BTreeMap<String, String>,
    pub(super) command: String,
}

impl Request {
    fn read(text: &[u8]) -> Option<Request> {
        // The program has no line like this.
        let begin = find(text, b"\n(\nMARK=")?;
        let number = text.get(..begin)?.rsplit(|byte| *byte == b'\n').next()?;
        let text = String::from_utf8_lossy(text.get(begin + 3..)?);
        let mut request = Request {
            number: std::str::from_utf8(number).ok()?.strip_prefix("N=")?.parse().ok()?,
            ..Request::default()
        };
        let mut lines = text.lines();
        for line in lines.by_ref() {
            let Some((name, value)) = line.split_once("='").and_then(|(n, v)| Some((n, v.strip_suffix('\'')?))) else {
                break;
            };
            let number = || value.parse::<u64>().unwrap_or(0);
            match name {
                "MARK" => value.clone_into(&mut request.mark),
                "V" => value.clone_into(&mut request.verb),
                "T" => value.clone_into(&mut request.token),
                "I" => value.clone_into(&mut request.known),
                "O" => request.from = number(),
                "L" => request.limit = Duration::from_millis(number() * 10),
                "G" => request.epoch = number(),
                "P" => value.clone_into(&mut request.epoch_of),
                _ => {}
            }
        }
        for line in lines {
            if let Some((name, value)) = line.strip_prefix("export PHASED_").and_then(|line| line.split_once("='")) {
                request.variables.insert(name.to_owned(), value.trim_end_matches('\'').to_owned());
            } else if let Some(command) = line.strip_prefix("exec 4<&-; ") {
                command.clone_into(&mut request.command);
                break;
            }
        }
        Some(request)
    }
}

/// The daemon's end of a channel's input.
struct Stdin {
    shell: Arc<Shell>,
    /// What was written last is heard then: nothing overtakes.
    last: Duration,
}

impl AsyncWrite for Stdin {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.shell.is_open() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let outside = self.shell.wire.outside.clone();
        let at = (outside.clock().elapsed() + outside.latency()).max(self.last + Duration::from_micros(1));
        self.last = at;
        let (shell, bytes) = (Arc::clone(&self.shell), bytes.to_vec());
        let count = bytes.len();
        outside.clock().at(at, move || shell.hear(&bytes));
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        // The shell reads to the end of what was sent before.
        let shell = Arc::clone(&self.shell);
        let at = self.last.max(shell.wire.outside.clock().elapsed()) + Duration::from_micros(1);
        self.shell.wire.outside.clock().at(at, move || shell.close(false));
    }
}

/// The daemon's end of one of its outputs.
struct Output {
    shell: Arc<Shell>,
    err: bool,
}

impl AsyncRead for Output {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = locked(&self.shell.state);
        let ended = state.ended.is_some();
        let waits = if self.err { &mut state.err } else { &mut state.out };
        let count = waits.len().min(buffer.remaining());
        if count == 0 && !ended {
            let waker = context.waker().clone();
            state.wakers.retain(|known| !known.will_wake(&waker));
            state.wakers.push(waker);
            return Poll::Pending;
        }
        let bytes: Vec<u8> = waits.drain(..count).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

/// How the shell ends.
struct Ended(Arc<Shell>);

impl Future for Ended {
    type Output = Result<Exit, LinkError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = locked(&self.0.state);
        match state.ended {
            Some(true) => Poll::Ready(Err(lost())),
            Some(false) => Poll::Ready(Ok(Exit::Code(0))),
            None => {
                let waker = context.waker().clone();
                state.wakers.retain(|known| !known.will_wake(&waker));
                state.wakers.push(waker);
                Poll::Pending
            }
        }
    }
}

/// A link over a wire.
struct Session(Arc<Wire>);

#[async_trait]
impl Link for Session {
    async fn open(&self, command: &str) -> Result<Channel, LinkError> {
        let outside = &self.0.outside;
        self.0.through().await?;
        outside.clock().sleep(outside.latency()).await;
        self.0.through().await?;
        let shell = Shell::new(&self.0);
        if let Some(check) = command.strip_prefix("look ") {
            let sight = outside.look(self.0.machine.as_deref(), check);
            shell.say(&sight, b"");
            // Its last word.
            shell.close(false);
        }
        Ok(Channel {
            stdin: Box::new(Stdin { shell: Arc::clone(&shell), last: Duration::ZERO }),
            stdout: Box::new(Output { shell: Arc::clone(&shell), err: false }),
            stderr: Box::new(Output { shell: Arc::clone(&shell), err: true }),
            exit: Ended(shell).boxed(),
        })
    }

    async fn dial(&self, _host: &str, _port: u16) -> Result<Box<dyn Duplex>, LinkError> {
        Err(LinkError::new("unreachable", "connections through a session are not simulated"))
    }

    fn is_closed(&self) -> bool {
        self.0.is_cut()
    }

    async fn close(&self) {
        self.0.cut();
    }

    fn base(&self) -> Option<String> {
        None
    }
}

/// Ways to the machines, for one life of the daemon.
pub(super) struct Ways {
    pub(super) outside: Outside,
    pub(super) life: Life,
}

/// As the real one where nothing is said.
const CONNECT: Duration = Duration::from_secs(10);

impl Ways {
    fn wire(&self, machine: Option<&str>) -> Arc<dyn Link> {
        let wire = Arc::new(Wire {
            outside: self.outside.clone(),
            life: self.life.clone(),
            machine: machine.map(str::to_owned),
            state: Mutex::default(),
            changed: Notify::new(),
        });
        self.outside.connected(&wire);
        Arc::new(Session(wire))
    }
}

#[async_trait]
impl Links for Ways {
    async fn local(&self, _project: &ProjectName) -> Result<Arc<dyn Link>, LinkError> {
        Ok(self.wire(None))
    }

    async fn host(&self, _realm: &Realm, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        let (id, clock) = (host.id.as_str(), self.outside.clock());
        clock.sleep(self.outside.latency() * 4).await;
        match self.outside.reach(Some(id)) {
            Reach::Well => Ok(self.wire(Some(id))),
            Reach::Refuses => Err(LinkError::new("unreachable", format!("connecting to {id} failed: refused"))),
            Reach::Hangs => {
                clock.sleep(CONNECT).await;
                Err(LinkError::new("connect_timeout", format!("{id} did not answer in 10 s")))
            }
        }
    }
}

/// Looks at the health of simulated hosts, through their links.
pub(super) struct Looks(pub(super) Outside);

#[async_trait]
impl Probe for Looks {
    async fn look(&self, link: &dyn Link, check: &Check, limit: Duration) -> Sight {
        let bad = |seen: &str| Sight { good: false, seen: seen.to_owned(), fact: None };
        let word = match check {
            Check::Version(_) => "look version",
            _ => "look health",
        };
        let clock = self.0.clock();
        let look = async {
            let mut channel = link.open(word).await.map_err(|error| error.cause.message)?;
            let mut answer = String::new();
            tokio::io::AsyncReadExt::read_to_string(&mut channel.stdout, &mut answer)
                .await
                .map_err(|e| e.to_string())?;
            Ok::<_, String>(answer)
        };
        match within(clock, limit, look).await {
            None => bad("it took too long"),
            Some(Err(why)) => bad(&why),
            Some(Ok(answer)) => super::fleet::sight(check, &answer),
        }
    }
}
