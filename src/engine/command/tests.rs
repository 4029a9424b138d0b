//! The protocol against real shells: each test runs under dash, bash and busybox ash, the last also with busybox's own tools.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::*;
use crate::{
    model::ids::RunId,
    ports::link::{Channel, Duplex, Exit},
    sim::Random,
    tests::{below, chance, times},
    time::{Clock, SystemClock, within},
};

/// A shell on this machine as a link; it can be cut.
struct ShellLink {
    argv: Vec<String>,
    path: String,
    base: PathBuf,
    cut: CancellationToken,
    env: Vec<(String, String)>,
    counters: Arc<Counters>,
}

/// What all links to one host share.
struct Counters {
    /// Bytes, either way, after which the link in use is cut.
    budget: AtomicI64,
    /// The shells that were started.
    shells: std::sync::Mutex<Vec<u32>>,
}

impl Counters {
    fn new() -> Arc<Self> {
        Arc::new(Counters { budget: AtomicI64::new(i64::MAX), shells: std::sync::Mutex::default() })
    }

    /// How many of `n` bytes go through; the link is cut with the last of them.
    fn spend(&self, n: usize, cut: &CancellationToken) -> usize {
        let wanted = i64::try_from(n).unwrap();
        let left = self.budget.fetch_sub(wanted, Ordering::SeqCst);
        if left > wanted {
            return n;
        }
        // The next link is whole again.
        self.budget.store(i64::MAX, Ordering::SeqCst);
        cut.cancel();
        usize::try_from(left.max(0)).unwrap()
    }
}

#[async_trait]
impl Link for ShellLink {
    async fn open(&self, command: &str) -> Result<Channel, LinkError> {
        assert_eq!(command, "sh");
        let mut process = tokio::process::Command::new(&self.argv[0]);
        process
            .args(&self.argv[1..])
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", "/tmp")
            .env("USER", "tester")
            .env("SHELL", "/bin/odd")
            .env("SSH_CLIENT", "leftover of the launcher")
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = process.spawn().unwrap();
        let (stdin, stdout, stderr) =
            (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
        self.counters.shells.lock().unwrap().push(child.id().unwrap());
        let cut = self.cut.clone();
        Ok(Channel {
            stdin: Box::new(Cuttable::new(stdin, &cut, &self.counters)),
            stdout: Box::new(Cuttable::new(stdout, &cut, &self.counters)),
            stderr: Box::new(stderr),
            exit: Box::pin(async move {
                tokio::select! {
                    biased;
                    () = cut.cancelled() => Err(LinkError::new("connection_lost", "cut by the test")),
                    status = child.wait() => Ok(Exit::Code(status.unwrap().code().unwrap_or(255).unsigned_abs())),
                }
            }),
        })
    }
    async fn dial(&self, _: &str, _: u16) -> Result<Box<dyn Duplex>, LinkError> {
        Err(LinkError::new("forwarding_refused", "not here"))
    }
    fn is_closed(&self) -> bool {
        self.cut.is_cancelled()
    }
    async fn close(&self) {}
    fn base(&self) -> Option<String> {
        Some(self.base.display().to_string())
    }
    fn counted(&self) -> bool {
        self.env.iter().any(|(name, _)| name == "COUNTED")
    }
}

/// One direction of a channel, which ends when the link is cut, wherever it stands.
struct Cuttable<T> {
    inner: T,
    cut: CancellationToken,
    cutting: Pin<Box<WaitForCancellationFutureOwned>>,
    counters: Arc<Counters>,
}

impl<T> Cuttable<T> {
    fn new(inner: T, cut: &CancellationToken, counters: &Arc<Counters>) -> Self {
        let cutting = Box::pin(cut.clone().cancelled_owned());
        Cuttable { inner, cut: cut.clone(), cutting, counters: counters.clone() }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Cuttable<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.cutting.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let n = buf.filled().len() - before;
        if n > 0 {
            buf.set_filled(before + self.counters.spend(n, &self.cut));
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Cuttable<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.cut.is_cancelled() {
            return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        }
        let n = self.counters.spend(bytes.len(), &self.cut);
        match n {
            0 => Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into())),
            n => Pin::new(&mut self.inner).poll_write(cx, &bytes[..n]),
        }
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A daemon that was told of the machine in its earlier life.
struct Known(Option<String>);

#[async_trait]
impl Acquaintance for Known {
    fn known(&self) -> Option<String> {
        self.0.clone()
    }
    async fn met(&self, _: &str, _: Option<String>) -> Result<(), Cause> {
        Ok(())
    }
}

/// Connects anew after each cut.
struct Shells {
    argv: Vec<String>,
    path: String,
    base: PathBuf,
    env: Vec<(String, String)>,
    made: AtomicUsize,
    current: std::sync::Mutex<CancellationToken>,
    counters: Arc<Counters>,
}

impl Shells {
    fn new(argv: Vec<String>, path: String, base: PathBuf, env: Vec<(String, String)>) -> Arc<Self> {
        let (made, current, counters) = (AtomicUsize::new(0), std::sync::Mutex::default(), Counters::new());
        Arc::new(Shells { argv, path, base, env, made, current, counters })
    }

    /// How many channels were opened.
    fn opened(&self) -> usize {
        self.counters.shells.lock().unwrap().len()
    }
}

#[async_trait]
impl Connect for Shells {
    async fn connect(&self) -> Result<Arc<dyn Link>, LinkError> {
        self.made.fetch_add(1, Ordering::SeqCst);
        let cut = CancellationToken::new();
        *self.current.lock().unwrap() = cut.clone();
        Ok(Arc::new(ShellLink {
            argv: self.argv.clone(),
            path: self.path.clone(),
            base: self.base.clone(),
            cut,
            env: self.env.clone(),
            counters: self.counters.clone(),
        }))
    }
}

struct Host {
    name: &'static str,
    dir: tempfile::TempDir,
    shells: Arc<Shells>,
    session: Arc<Session>,
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Host {
    fn new(name: &'static str) -> Host {
        Host::with(name, &[])
    }

    fn with(name: &'static str, env: &[(&str, &str)]) -> Host {
        let dir = tempfile::Builder::new().prefix("phased-cmd-").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut path = PATH.to_owned();
        let argv: Vec<String> = match name {
            "busybox" => vec!["busybox".into(), "sh".into()],
            "busybox tools" => {
                // busybox's own tools for all but flock, which Debian's busybox does not have.
                let bin = dir.path().join("bin");
                std::fs::create_dir(&bin).unwrap();
                for tool in [
                    "setsid",
                    "env",
                    "stat",
                    "dd",
                    "mkdir",
                    "mv",
                    "rm",
                    "ln",
                    "sleep",
                    "cat",
                    "head",
                    "sha256sum",
                    "cp",
                    "chmod",
                    "chown",
                    "tar",
                    "find",
                    "id",
                    "mktemp",
                    "cmp",
                    "grep",
                    "tr",
                ] {
                    std::os::unix::fs::symlink("/usr/bin/busybox", bin.join(tool)).unwrap();
                }
                std::os::unix::fs::symlink("/usr/bin/flock", bin.join("flock")).unwrap();
                path = bin.display().to_string();
                vec!["/usr/bin/busybox".into(), "sh".into()]
            }
            shell => vec![shell.into()],
        };
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let shells = Shells::new(argv, path, dir.path().join("base"), env);
        let session = Arc::new(Session::new(shells.clone(), Arc::new(SystemClock::new()), Arc::new(Fleeting)));
        Host { name, dir, shells, session }
    }

    /// A file of the `n`th step in the base.
    fn file(&self, n: u32, name: &str) -> PathBuf {
        self.shells.base.join(format!("{}.{name}", token(n)))
    }

    /// What is noted of the `n`th step's command.
    fn go(&self, n: u32) -> String {
        std::fs::read_to_string(self.file(n, "go")).unwrap_or_default()
    }

    /// The first process of the `n`th step's command, as its own machine counts.
    fn leader(&self, n: u32) -> i32 {
        let go = self.go(n);
        let noted = go.lines().rev().find_map(|line| line.strip_prefix("pg ")).unwrap();
        noted.split(' ').next().unwrap().parse().unwrap()
    }

    /// The `n`th step's command takes longer: somebody watches it.
    async fn watched(&self, n: u32) {
        until("the watchdog", || self.file(n, "watch").exists() && self.go(n).contains("pg ")).await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn again(&self, host_id: Option<&str>) -> Session {
        let known = Arc::new(Known(host_id.map(str::to_owned)));
        Session::new(self.shells.clone(), Arc::new(SystemClock::new()), known)
    }

    /// For commands of a run, on the machine of the daemon.
    fn of_run(&self, run: &RunId) -> Session {
        Session::of_run(self.shells.clone(), Arc::new(SystemClock::new()), run.clone())
    }

    /// Nothing is left of these steps' commands but their claims, which take no room.
    fn assert_forgotten(&self, steps: &[u32]) {
        let names = || std::fs::read_dir(&self.shells.base).unwrap().map(|entry| entry.unwrap().file_name());
        for n in steps.iter().copied() {
            let left: Vec<_> = names().filter(|name| name.to_string_lossy().starts_with(token(n).as_str())).collect();
            assert_eq!(left, [self.file(n, "lock").file_name().unwrap()]);
            assert_eq!(std::fs::metadata(self.file(n, "lock")).unwrap().len(), 0);
        }
    }

    /// The argument of a `sleep` that only this test's commands run.
    fn marker(&self) -> String {
        static NEXT: AtomicUsize = AtomicUsize::new(1000);
        format!("9{}.{}5", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst))
    }

    fn cut(&self) {
        self.shells.current.lock().unwrap().cancel();
    }

    async fn run(&self, cmd: &CommandSpec) -> (Verdict, Vec<u8>, Vec<u8>) {
        let mut sink = Collect::default();
        let verdict = self.session.run(cmd, &mut sink, &CancellationToken::new()).await;
        (verdict, sink.out, sink.err)
    }

    /// Runs text and returns what it printed; it must succeed.
    /// What becomes of a command that an earlier life may have begun and nobody wants any more.
    async fn given_up(&self, n: u32) -> Verdict {
        give_up(&self.session, n).await
    }

    /// Which machine it is: something was asked of it.
    async fn machine(&self) -> String {
        self.sh(9999, "true").await;
        self.session.host_id().await.unwrap()
    }

    async fn sh(&self, n: u32, text: &str) -> String {
        let (verdict, out, err) = self.run(&sh(n, text)).await;
        assert!(
            matches!(verdict, Verdict::Exited { code: 0, .. }),
            "{}: {verdict:?} {}",
            self.name,
            String::from_utf8_lossy(&err)
        );
        String::from_utf8(out).unwrap()
    }
}

#[derive(Default)]
struct Collect {
    out: Vec<u8>,
    err: Vec<u8>,
}

#[async_trait]
impl OutputSink for Collect {
    async fn output(&mut self, stream: Stream, offset: u64, bytes: &[u8]) {
        let to = if stream == Stream::Out { &mut self.out } else { &mut self.err };
        assert_eq!(offset, to.len() as u64, "no byte is lost, none doubled");
        to.extend_from_slice(bytes);
    }
}

fn token(n: u32) -> Digest {
    Digest::of(format!("step {n}").as_bytes())
}

fn sh(n: u32, text: &str) -> CommandSpec {
    CommandSpec::new(token(n), What::Sh { text: text.into(), shell: Shell::Sh }, Duration::from_secs(30))
}

fn exec(n: u32, argv: &[&[u8]]) -> CommandSpec {
    CommandSpec::new(token(n), What::Exec { argv: argv.iter().map(|a| a.to_vec()).collect() }, Duration::from_secs(30))
}

/// Waits for a condition: never a fixed sleep.
async fn give_up(session: &Session, n: u32) -> Verdict {
    let mut cmd = sh(n, "true");
    cmd.resumed = true;
    let stop = CancellationToken::new();
    stop.cancel();
    session.run(&cmd, &mut Discard, &stop).await
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let clock = SystemClock::new();
    for _ in 0..1000 {
        if condition() {
            return;
        }
        clock.sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come about");
}

/// The process that started this one.
fn parent_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

fn is_locked(path: &Path) -> bool {
    !std::process::Command::new("flock").arg("-n").arg(path).arg("true").status().unwrap().success()
}

fn process_exists(marker: &str) -> bool {
    processes(marker) > 0
}

/// How many processes have `marker` among their arguments.
fn processes(marker: &str) -> usize {
    let has = |entry: &std::fs::DirEntry| {
        std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(marker))
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter(has).count()
}

macro_rules! in_every_shell {
    ($($(#[$attr:meta])* async fn $name:ident($host:ident: Host) $body:block)*) => {
        $(mod $name {
            use super::*;
            async fn test($host: Host) $body
            $(#[$attr])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn dash() { test(Host::new("dash")).await }
            $(#[$attr])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn bash() { test(Host::new("bash")).await }
            $(#[$attr])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn busybox() { test(Host::new("busybox")).await }
            $(#[$attr])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn busybox_tools() { test(Host::new("busybox tools")).await }
        })*
    };
}

mod ends;
mod faults;
mod files;
mod hosts;
mod output;
mod pids;
mod resident;
mod running;
