//! The protocol against real shells: each test runs under dash, bash and busybox ash, the last also with busybox's own tools.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    ports::link::{Channel, Duplex, Exit},
    time::{Clock, SystemClock, within},
};

/// A shell on this machine as a link; it can be cut.
struct ShellLink {
    argv: Vec<String>,
    path: String,
    base: PathBuf,
    cut: CancellationToken,
    env: Vec<(String, String)>,
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
        let cut = self.cut.clone();
        Ok(Channel {
            stdin: Box::new(stdin),
            stdout: Box::new(Cuttable { inner: stdout, cut: Box::pin(cut.clone().cancelled_owned()) }),
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
}

/// A reader that ends when the link is cut, wherever it stands.
struct Cuttable<R> {
    inner: R,
    cut: std::pin::Pin<Box<tokio_util::sync::WaitForCancellationFutureOwned>>,
}

impl<R: tokio::io::AsyncRead + Unpin> tokio::io::AsyncRead for Cuttable<R> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        std::pin::Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

/// A daemon that was told of the machine in its earlier life.
struct Known(Option<String>);

#[async_trait]
impl Acquaintance for Known {
    fn known(&self) -> Option<String> {
        self.0.clone()
    }
    async fn met(&self, _: &str) -> Result<(), Cause> {
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
        let shells = Arc::new(Shells {
            argv,
            path,
            base: dir.path().join("base"),
            env,
            made: AtomicUsize::new(0),
            current: std::sync::Mutex::default(),
        });
        let session = Arc::new(Session::new(shells.clone(), Arc::new(SystemClock::new()), Arc::new(Fleeting)));
        Host { name, dir, shells, session }
    }

    /// A file of the `n`th step in the base.
    fn file(&self, n: u32, name: &str) -> PathBuf {
        self.shells.base.join(format!("{}.{name}", token(n)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn again(&self, host_id: Option<&str>) -> Session {
        let known = Arc::new(Known(host_id.map(str::to_owned)));
        Session::new(self.shells.clone(), Arc::new(SystemClock::new()), known)
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

fn process_exists(marker: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(marker) && !line.is_empty())
    })
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

in_every_shell! {
    async fn a_command_runs_once_and_its_end_is_kept(host: Host) {
        let file = host.path("count");
        let cmd = sh(1, &format!("echo out; echo err >&2; echo x >>{}; exit 3", file.display()));
        for _ in 0..3 {
            let (verdict, out, err) = host.run(&cmd).await;
            assert!(matches!(verdict, Verdict::Exited { code: 3, .. }), "{verdict:?}");
            assert_eq!((out.as_slice(), err.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), "x\n");
        assert!(host.session.host_id().await.is_some());
    }

    async fn forty_starts_of_one_token_are_one_execution(host: Host) {
        let host = Arc::new(host);
        let file = host.path("count");
        let text = format!("echo begun >>{}; sleep 0.3; echo done", file.display());
        let mut starts = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let (host, text) = (host.clone(), text.clone());
            starts.spawn(async move { host.run(&sh(1, &text)).await });
        }
        while let Some(end) = starts.join_next().await {
            let (verdict, out, _) = end.unwrap();
            assert!(matches!(verdict, Verdict::Exited { code: 0, .. }), "{verdict:?}");
            assert_eq!(out, b"done\n");
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), "begun\n");
    }

    async fn the_environment_is_exact(host: Host) {
        let mut cmd = sh(1, "env");
        cmd.env = vec![("PHASED_RUN".into(), b"r1".to_vec()), ("A".into(), b"1".to_vec()), ("A".into(), b"two\nlines".to_vec())];
        let (_, out, _) = host.run(&cmd).await;
        let mut lines: Vec<&str> = std::str::from_utf8(&out).unwrap().lines().filter(|l| !l.starts_with("PWD=")).collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            ["A=two", "CI=true", "HOME=/tmp", "LANG=C.UTF-8", "LOGNAME=tester", &format!("PATH={DEFAULT_PATH}"), "PHASED_RUN=r1",
             "SHELL=/bin/odd", "USER=tester", "lines"]
        );
        let mut cmd = exec(2, &[b"env"]);
        cmd.cwd = Some("/usr".into());
        cmd.path = Some("/bin:/usr/bin".into());
        let (_, out, _) = host.run(&cmd).await;
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("PATH=/bin:/usr/bin\n") && text.contains("PWD=/usr\n") && text.lines().count() == 8, "{text}");
    }

    async fn hostile_values_arrive_byte_by_byte(host: Host) {
        let mut every: Vec<u8> = (1..=255).collect();
        every.extend_from_slice(b"'\\''$(touch /tmp/phased-canary)`touch /tmp/phased-canary`\"; -rf \n\nPHASED-END-1\n$'x'\r\n%s%n\\0\n");
        let mut cmd = exec(1, &[b"printf", b"%s|", &every, b"-rf", b"--", b"$(touch /tmp/phased-canary)", b"", b"a b\n"]);
        cmd.env = vec![("V".into(), every.clone())];
        let (verdict, out, err) = host.run(&cmd).await;
        assert!(matches!(verdict, Verdict::Exited { code: 0, .. }), "{verdict:?} {}", String::from_utf8_lossy(&err));
        let mut want = every.clone();
        want.extend_from_slice(b"|-rf|--|$(touch /tmp/phased-canary)||a b\n|");
        assert_eq!(out, want);
        let mut cmd = sh(2, "printf %s \"$V\"");
        cmd.env = vec![("V".into(), every.clone())];
        assert_eq!(host.run(&cmd).await.1, every);
        // The text itself, as a literal within quotes of its own.
        let mut text = b"printf '%s' '".to_vec();
        let plain: Vec<u8> = every.iter().copied().filter(|b| *b != b'\'').collect();
        text.extend_from_slice(&plain);
        text.extend_from_slice(b"'");
        let cmd = CommandSpec::new(token(3), What::Sh { text, shell: Shell::Bash }, Duration::from_secs(9));
        assert_eq!(host.run(&cmd).await.1, plain);
        assert!(!Path::new("/tmp/phased-canary").exists());
    }

    async fn standard_input_is_any_bytes_and_otherwise_empty(host: Host) {
        let mut cmd = exec(1, &[b"cat"]);
        let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        cmd.stdin = Some(bytes.clone());
        assert!(host.run(&cmd).await.1 == bytes);
        assert_eq!(host.run(&exec(2, &[b"cat"])).await.1, b"");
        // A command that does not read it ends all the same.
        let mut cmd = exec(3, &[b"true"]);
        cmd.stdin = Some(bytes);
        assert!(matches!(host.run(&cmd).await.0, Verdict::Exited { code: 0, .. }));
    }

    async fn the_first_failing_line_ends_it(host: Host) {
        let (verdict, out, _) = host.run(&sh(1, "echo a\nfalse\necho b")).await;
        assert!(matches!(verdict, Verdict::Exited { code: 1, .. }));
        assert_eq!(out, b"a\n");
        let (verdict, _, err) = host.run(&sh(2, "\n\necho $unset")).await;
        assert!(matches!(verdict, Verdict::Exited { code: 2, .. }));
        assert_eq!(String::from_utf8(err).unwrap(), "sh: 3: /dev/fd/4: unset: parameter not set\n");
        let cmd = CommandSpec::new(token(3), What::Sh { text: b"false | cat; echo no".to_vec(), shell: Shell::Bash }, Duration::from_secs(9));
        assert!(matches!(host.run(&cmd).await.0, Verdict::Exited { code: 1, .. }));
        let (verdict, _, err) = host.run(&exec(4, &[b"no-such-program"])).await;
        assert!(matches!(verdict, Verdict::Exited { code: 127, .. }), "{verdict:?} {}", String::from_utf8_lossy(&err));
        let mut cmd = sh(5, "pwd");
        cmd.cwd = Some("/no/such/directory".into());
        let (verdict, out, err) = host.run(&cmd).await;
        assert!(matches!(verdict, Verdict::Exited { code: 1 | 2, .. }) && out.is_empty() && !err.is_empty(), "{verdict:?}");
    }

    async fn umask_signals_and_descriptors_are_the_commands_own(host: Host) {
        let text = "umask; grep -E 'SigIgn|SigBlk' /proc/self/status; readlink /proc/self/fd/0";
        let said = host.sh(1, text).await;
        let lines: Vec<&str> = said.lines().collect();
        // As the launcher of the tests has them: what it ignores, a shell cannot undo. SIGPIPE is the exception, children get it back.
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let of = |name: &str| own.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(lines[0], of("Umask:"));
        assert!(lines[1].ends_with("0000000000000000"), "{said}");
        assert_eq!(lines.last(), Some(&"/dev/null"));
        let mask = |text: &str| u64::from_str_radix(text.trim(), 16).unwrap();
        let pipe = 1 << 12;
        // Above 31 are the C library's own.
        let ignored = mask(lines[2].rsplit('\t').next().unwrap()) & 0x7fff_ffff;
        assert_eq!(ignored & !(mask(&of("SigIgn:")) & !pipe), 0, "{said}");
    }

    async fn a_timeout_kills_what_ignores_term(host: Host) {
        let clock = SystemClock::new();
        let mut cmd = sh(1, "trap '' TERM; echo on; while :; do sleep 987.1; done");
        cmd.timeout = Duration::from_millis(500);
        cmd.grace = Duration::from_secs(1);
        let began = clock.now();
        let (verdict, out, _) = host.run(&cmd).await;
        let took = clock.now().since(&began);
        assert!(matches!(verdict, Verdict::TimedOut { .. }), "{verdict:?}");
        assert_eq!(out, b"on\n");
        assert!(took > Duration::from_millis(1400) && took < Duration::from_secs(6), "{took:?}");
        assert!(matches!(host.run(&cmd).await.0, Verdict::TimedOut { .. }), "and it stays so");
    }

    async fn a_short_timeout_of_a_polite_command(host: Host) {
        let mut cmd = sh(1, "sleep 986.2");
        cmd.timeout = Duration::from_millis(100);
        let clock = SystemClock::new();
        let began = clock.now();
        assert!(matches!(host.run(&cmd).await.0, Verdict::TimedOut { .. }));
        assert!(clock.now().since(&began) < Duration::from_secs(2));
    }

    async fn stop_ends_it_whole(host: Host) {
        let stop = CancellationToken::new();
        let marker = host.marker();
        let cmd = sh(1, &format!("echo on; sleep {marker} & sleep {marker}"));
        let mut sink = Collect::default();
        let ending = async {
            until("the command", || process_exists(&marker)).await;
            stop.cancel();
        };
        let (verdict, ()) = tokio::join!(host.session.run(&cmd, &mut sink, &stop), ending);
        assert!(matches!(verdict, Verdict::Stopped { .. }), "{verdict:?}");
        assert_eq!(sink.out, b"on\n");
        until("the end of all of it", || !process_exists(&marker)).await;
    }

    async fn what_outlives_a_stopped_leader_is_killed(host: Host) {
        let marker = host.marker();
        let mut cmd = sh(1, &format!("(trap '' TERM; while :; do sleep {marker}; done) & sleep {marker}"));
        cmd.timeout = Duration::from_millis(300);
        cmd.grace = Duration::from_secs(1);
        assert!(matches!(host.run(&cmd).await.0, Verdict::TimedOut { .. }));
        until("the end of all of it", || !process_exists(&marker)).await;
    }

    async fn given_up_is_never_begun(host: Host) {
        let file = host.path("ran");
        assert_eq!(host.session.resolve(&token(1), None, Duration::from_secs(20)).await, Verdict::Void);
        let (verdict, _, _) = host.run(&sh(1, &format!("touch {}", file.display()))).await;
        assert_eq!(verdict, Verdict::Void);
        assert!(!file.exists());
        // What had ended by itself has.
        host.sh(2, "true").await;
        assert!(matches!(host.session.resolve(&token(2), None, Duration::from_secs(20)).await, Verdict::Exited { code: 0, .. }));
    }

    async fn resolve_ends_what_runs(host: Host) {
        let marker = host.marker();
        let cmd = sh(1, &format!("sleep {marker}"));
        let (never, mut sink) = (CancellationToken::new(), Discard);
        let resolving = async {
            until("the command", || process_exists(&marker)).await;
            host.again(None).resolve(&token(1), None, Duration::from_secs(20)).await
        };
        let (verdict, resolved) = tokio::join!(host.session.run(&cmd, &mut sink, &never), resolving);
        assert!(matches!(verdict, Verdict::Stopped { .. }), "{verdict:?}");
        assert!(matches!(resolved, Verdict::Stopped { .. }), "{resolved:?}");
    }

    async fn a_daemon_left_behind_delays_nothing(host: Host) {
        let clock = SystemClock::new();
        host.sh(1, "true").await;
        let began = clock.now();
        let out = host.sh(2, "setsid sleep 3 & echo done").await;
        assert_eq!(out, "done\n");
        assert!(clock.now().since(&began) < Duration::from_secs(1));
    }

    async fn a_cut_program_runs_nothing(host: Host) {
        let file = host.path("ran");
        let cmd = sh(1, &format!("touch {}", file.display()));
        let frame = program::Frame { mark: "m", base: host.shells.base.to_str(), host_id: None, from: [0; 2] };
        let whole = [program::program(), program::start(&frame, &cmd).unwrap()].concat();
        let last = whole.len() - b") || exit\n".len();
        for cut in [10, 300, whole.len() / 3, whole.len() / 2, last - 40, last - 1, last, last + 3] {
            let link = host.shells.connect().await.unwrap();
            let mut channel = link.open("sh").await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut channel.stdin, &whole[..cut]).await.unwrap();
            drop(channel.stdin);
            let mut said = String::new();
            tokio::io::AsyncReadExt::read_to_string(&mut channel.stdout, &mut said).await.unwrap();
            assert_eq!(said, "", "cut at {cut}");
        }
        assert!(!host.shells.base.exists() && !file.exists());
    }

    async fn large_output_is_byte_exact_across_cuts(host: Host) {
        // 30 MB of numbers on one stream, 3 MB on the other, the link cut three times on the way.
        let cmd = sh(1, "seq 1 400000 >&2 & seq 1 4000000; wait");
        struct Cutting<'a>(Collect, &'a Host, usize);
        #[async_trait]
        impl OutputSink for Cutting<'_> {
            async fn output(&mut self, stream: Stream, offset: u64, bytes: &[u8]) {
                self.0.output(stream, offset, bytes).await;
                if self.0.out.len() > (self.2 + 1) * 7_000_000 && self.2 < 3 {
                    self.2 += 1;
                    self.1.cut();
                }
            }
        }
        let mut sink = Cutting(Collect::default(), &host, 0);
        let verdict = host.session.run(&cmd, &mut sink, &CancellationToken::new()).await;
        assert!(matches!(verdict, Verdict::Exited { code: 0, .. }), "{verdict:?}");
        let expect = |n: u32| (1..=n).fold(String::new(), |s, i| s + &i.to_string() + "\n");
        assert!(sink.0.err == expect(400_000).as_bytes() && sink.0.out == expect(4_000_000).as_bytes());
        assert_eq!(host.shells.made.load(Ordering::SeqCst), 4);
    }

    async fn output_comes_while_it_runs(host: Host) {
        let go = host.path("go");
        let cmd = sh(1, &format!("echo first; while [ ! -e {} ]; do sleep 0.05; done; echo last", go.display()));
        struct Opening(Collect, PathBuf);
        #[async_trait]
        impl OutputSink for Opening {
            async fn output(&mut self, stream: Stream, offset: u64, bytes: &[u8]) {
                self.0.output(stream, offset, bytes).await;
                std::fs::write(&self.1, "").unwrap();
            }
        }
        let mut sink = Opening(Collect::default(), go);
        let verdict = host.session.run(&cmd, &mut sink, &CancellationToken::new()).await;
        assert!(matches!(verdict, Verdict::Exited { code: 0, .. }), "{verdict:?}");
        assert_eq!(sink.0.out, b"first\nlast\n");
    }

    async fn output_that_nobody_reads_ends_it(host: Host) {
        let marker = host.marker();
        let mut cmd = sh(1, &format!("yes | head -c 30000000; sleep {marker}"));
        cmd.max_output = 5_000_000;
        let mark = program::mark(&cmd.token);
        let id = host.session.identify().await.unwrap();
        let frame = program::Frame { mark: &mark, base: host.shells.base.to_str(), host_id: Some(&id), from: [0; 2] };
        let link = host.shells.connect().await.unwrap();
        let mut channel = link.open("sh").await.unwrap();
        let whole = [program::program(), program::start(&frame, &cmd).unwrap()].concat();
        tokio::io::AsyncWriteExt::write_all(&mut channel.stdin, &whole).await.unwrap();
        until("the command", || process_exists(&marker)).await;
        drop(channel);
        let go = host.file(1, "go");
        until("its end", || std::fs::read_to_string(&go).unwrap().starts_with("end ")).await;
        let (verdict, out, _) = host.run(&cmd).await;
        assert_eq!(verdict, Verdict::OutputUnread);
        assert_eq!(out.len(), 30_000_000, "and what there is can still be read");
    }

    async fn large_output_that_is_read_never_ends_it(host: Host) {
        let mut cmd = sh(1, "head -c 40000000 /dev/zero; sleep 1.5; echo end >&2");
        cmd.max_output = 1_000_000;
        let (verdict, out, err) = host.run(&cmd).await;
        assert!(matches!(verdict, Verdict::Exited { code: 0, .. }), "{verdict:?}");
        assert_eq!((out.len(), err.as_slice()), (40_000_000, &b"end\n"[..]));
    }

    async fn another_machine_is_never_taken_for_the_same(host: Host) {
        host.sh(1, "true").await;
        let id = host.session.host_id().await.unwrap();
        assert_eq!(host.again(Some(&id)).identify().await.unwrap(), id);
        let other = host.again(Some("another"));
        let verdict = other.run(&sh(2, "true"), &mut Discard, &CancellationToken::new()).await;
        assert!(matches!(verdict, Verdict::Replaced { .. }), "{verdict:?}");
        assert!(!host.file(2, "lock").exists());
        assert!(matches!(other.resolve(&token(1), None, Duration::from_secs(5)).await, Verdict::Replaced { .. }));
        assert_eq!(host.again(None).identify().await.unwrap(), id);
    }

    async fn a_killed_wrapper_is_an_orphan_then_lost(host: Host) {
        let marker = host.marker();
        let mut cmd = sh(1, &format!("sleep {marker}"));
        cmd.timeout = Duration::from_secs(2);
        let mut sink = Discard;
        let killing = async {
            until("the command", || process_exists(&marker)).await;
            let go = std::fs::read_to_string(host.file(1, "go")).unwrap();
            let leader: i32 = go.lines().rev().find_map(|line| line.strip_prefix("pg ")).unwrap().parse().unwrap();
            let stat = std::fs::read_to_string(format!("/proc/{leader}/stat")).unwrap();
            let wrapper: i32 = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(wrapper), nix::sys::signal::Signal::SIGKILL).unwrap();
        };
        let stop = CancellationToken::new();
        let (verdict, ()) = tokio::join!(host.session.run(&cmd, &mut sink, &stop), killing);
        // The time-out ended the command; its own end was never written.
        assert_eq!(verdict, Verdict::Lost);
        assert!(!process_exists(&marker));
        assert_eq!(host.run(&cmd).await.0, Verdict::Lost, "and it is not begun again");
    }

    async fn an_end_that_found_no_room_is_read_from_the_name(host: Host) {
        let cmd = sh(1, "echo out; exit 5");
        host.run(&cmd).await;
        let go = std::fs::read_to_string(host.file(1, "go")).unwrap();
        std::fs::write(host.file(1, "go"), go.replacen("end", "begun", 1)).unwrap();
        std::fs::rename(host.file(1, "go"), host.file(1, "exit.5")).unwrap();
        let (verdict, out, _) = host.run(&cmd).await;
        assert!(matches!(verdict, Verdict::Exited { code: 5, .. }), "{verdict:?}");
        assert_eq!(out, b"out\n");
    }

    async fn a_reboot_is_told_from_a_loss(host: Host) {
        host.sh(1, "true").await;
        for file in ["out", "err", "lock"] {
            std::fs::write(host.file(2, file), "").unwrap();
        }
        std::fs::write(host.file(2, "go"), "begun\nanother-boot\n1\n2\n").unwrap();
        assert_eq!(host.run(&sh(2, "true")).await.0, Verdict::Rebooted);
    }

    async fn a_younger_deployment_keeps_older_ones_out(host: Host) {
        let with = |n: u32, epoch: u64| {
            let mut cmd = sh(n, "true");
            cmd.epoch = Some(EpochCheck { project: "shop".parse().unwrap(), environment: "production".parse().unwrap(), epoch: Epoch(epoch) });
            cmd
        };
        for (n, epoch, good) in [(1, 5, true), (2, 5, true), (3, 7, true), (4, 6, false), (5, 7, true)] {
            match host.run(&with(n, epoch)).await.0 {
                Verdict::Exited { code: 0, .. } => assert!(good, "{n}"),
                Verdict::Refused(cause) => assert!(!good && cause.code == "stale_epoch", "{n}: {cause}"),
                other => panic!("{n}: {other:?}"),
            }
        }
        // Only the beginning is checked.
        assert!(matches!(host.run(&with(1, 5)).await.0, Verdict::Exited { code: 0, .. }));
    }

    async fn nothing_shows_in_any_argv(host: Host) {
        let secret = format!("s3cret-{}-{}", std::process::id(), host.name.len());
        let mut cmd = sh(1, "read -r line; printenv TOKEN >/dev/null; echo \"$line\" >/dev/null; sleep 0.6; echo end");
        cmd.env = vec![("TOKEN".into(), secret.clone().into_bytes())];
        cmd.stdin = Some(format!("{secret}\n").into_bytes());
        let clock = SystemClock::new();
        let (stop, mut sink) = (CancellationToken::new(), Collect::default());
        let watching = async {
            for _ in 0..300 {
                assert!(!process_exists(&secret));
                clock.sleep(Duration::from_millis(1)).await;
            }
        };
        let (verdict, ()) = tokio::join!(host.session.run(&cmd, &mut sink, &stop), watching);
        assert!(matches!(verdict, Verdict::Exited { code: 0, .. }), "{verdict:?}");
        // Nor in any file that is left.
        for entry in std::fs::read_dir(&host.shells.base).unwrap().flatten() {
            assert!(!String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).contains(&secret), "{:?}", entry.path());
        }
    }

    async fn a_full_disk_is_a_refusal(host: Host) {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        host.sh(1, "true").await;
        let mount = |args: &[&str]| std::process::Command::new("mount").args(args).status().is_ok_and(|s| s.success());
        let base = host.shells.base.display().to_string();
        let id = std::fs::read(host.shells.base.join("id")).unwrap();
        if !mount(&["-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", &base]) {
            eprintln!("SKIPPED: no tmpfs can be mounted here");
            return;
        }
        std::fs::write(host.shells.base.join("id"), id).unwrap();
        std::fs::write(host.shells.base.join("fill"), vec![0; 1 << 20]).unwrap_err();
        let file = host.path("ran");
        let (verdict, _, _) = host.run(&sh(2, &format!("touch {}", file.display()))).await;
        until("the host's processes to leave", || std::process::Command::new("umount").arg("-q").arg(&base).status().unwrap().success()).await;
        let Verdict::Refused(cause) = verdict else { panic!("{verdict:?}") };
        assert_eq!(cause.code, "host_disk_full", "{cause}");
        assert!(!file.exists());
    }

    async fn a_base_of_others_is_refused(host: Host) {
        std::os::unix::fs::symlink("/tmp", &host.shells.base).unwrap();
        let Verdict::Refused(cause) = host.run(&sh(1, "true")).await.0 else { panic!() };
        assert_eq!(cause.code, "host_unwritable", "{cause}");
        std::fs::remove_file(&host.shells.base).unwrap();
        std::fs::create_dir(&host.shells.base).unwrap();
        std::fs::set_permissions(&host.shells.base, PermissionsExt::from_mode(0o755)).unwrap();
        let Verdict::Refused(cause) = host.run(&sh(1, "true")).await.0 else { panic!() };
        assert!(cause.message.contains("mode 755"), "{cause}");
    }

    async fn upload_checks_resumes_and_skips(host: Host) {
        let file = host.path("artifact");
        let bytes: Vec<u8> = (0u32..600_000).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&file, &bytes).unwrap();
        let to = host.path("installed");
        let mut upload = Upload {
            token: token(1),
            file,
            sha256: Digest::of(&bytes),
            size: bytes.len() as u64,
            to: to.display().to_string(),
            unpack: false,
            mode: Some(0o640),
            owner: None,
            timeout: Duration::from_secs(30),
            epoch: None,
        };
        let never = CancellationToken::new();
        host.session.identify().await.unwrap();
        // An earlier attempt was cut after 1 MB.
        std::fs::create_dir_all(host.shells.base.join("blobs")).unwrap();
        std::fs::write(host.shells.base.join(format!("blobs/{}.part", upload.sha256)), &bytes[..1_000_000]).unwrap();
        let done = host.session.upload(&upload, &never).await;
        assert_eq!(done, UploadVerdict::Done { changed: true, sent: 1_400_000 });
        assert!(std::fs::read(&to).unwrap() == bytes);
        assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o7777, 0o640);
        // The same step again: its end is kept. Another step: nothing is sent, nothing is changed.
        assert_eq!(host.session.upload(&upload, &never).await, UploadVerdict::Done { changed: true, sent: 0 });
        upload.token = token(2);
        assert_eq!(host.session.upload(&upload, &never).await, UploadVerdict::Done { changed: false, sent: 0 });
        // To another place: the host has the bytes.
        upload.token = token(3);
        upload.to = host.path("'second $(place)\n").display().to_string();
        assert_eq!(host.session.upload(&upload, &never).await, UploadVerdict::Done { changed: true, sent: 0 });
        assert!(std::fs::read(&upload.to).unwrap() == bytes);
        // Bytes that are not what they should be never arrive.
        upload.token = token(4);
        upload.sha256 = Digest::of(b"other");
        upload.to = host.path("third").display().to_string();
        let UploadVerdict::Failed(cause) = host.session.upload(&upload, &never).await else { panic!() };
        assert_eq!(cause.code, "upload_failed");
        assert!(!host.path("third").exists());
        upload.to = host.path("no/such/dir/x").display().to_string();
        upload.sha256 = Digest::of(&bytes);
        upload.token = token(5);
        assert!(matches!(host.session.upload(&upload, &never).await, UploadVerdict::Failed(_)));
        // Given up before it began.
        assert_eq!(host.session.resolve(&token(6), None, Duration::from_secs(9)).await, Verdict::Void);
        upload.token = token(6);
        assert!(matches!(host.session.upload(&upload, &never).await, UploadVerdict::Unfinished(Verdict::Void)));
    }

    async fn an_archive_replaces_a_directory(host: Host) {
        let tree = host.path("tree");
        std::fs::create_dir_all(tree.join("bin")).unwrap();
        std::fs::write(tree.join("bin/app"), "new").unwrap();
        let tar = host.path("tree.tar");
        assert!(std::process::Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&tree).arg(".").status().unwrap().success());
        let bytes = std::fs::read(&tar).unwrap();
        let to = host.path("current");
        std::fs::create_dir(&to).unwrap();
        std::fs::write(to.join("old"), "").unwrap();
        let upload = Upload {
            token: token(1), file: tar, sha256: Digest::of(&bytes), size: bytes.len() as u64, to: to.display().to_string(),
            unpack: true, mode: None, owner: None, timeout: Duration::from_secs(30), epoch: None,
        };
        let done = host.session.upload(&upload, &CancellationToken::new()).await;
        assert!(matches!(done, UploadVerdict::Done { changed: true, .. }), "{done:?}");
        assert_eq!(std::fs::read_to_string(to.join("bin/app")).unwrap(), "new");
        assert!(!to.join("old").exists());
    }

    async fn download_is_byte_exact_across_a_cut(host: Host) {
        let file = host.path("- a 'file'\n");
        let bytes: Vec<u8> = (0u32..2_000_000).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&file, &bytes).unwrap();
        struct Cutting<'a>(Collect, &'a Host, bool);
        #[async_trait]
        impl OutputSink for Cutting<'_> {
            async fn output(&mut self, stream: Stream, offset: u64, bytes: &[u8]) {
                self.0.output(stream, offset, bytes).await;
                if self.0.out.len() > 3_000_000 && !std::mem::replace(&mut self.2, true) {
                    self.1.cut();
                }
            }
        }
        let mut sink = Cutting(Collect::default(), &host, false);
        let download = Download { from: file.display().to_string(), timeout: Duration::from_secs(30) };
        let verdict = host.session.download(&download, &mut sink, &CancellationToken::new()).await;
        assert!(matches!(verdict, Verdict::Exited { code: 0, .. }), "{verdict:?}");
        assert!(sink.0.out == bytes);
        let missing = Download { from: "/no/such/file".into(), timeout: Duration::from_secs(5) };
        let Verdict::Refused(cause) = host.session.download(&missing, &mut Discard, &CancellationToken::new()).await else { panic!() };
        assert_eq!(cause.code, "download_failed");
    }

    async fn write_says_whether_it_changed_anything(host: Host) {
        let to = host.path("conf 'ig");
        let mut write = Write { to: to.display().to_string(), content: b"a=1\n\0\n".to_vec(), mode: Some(0o600), owner: None };
        for (n, said) in [(1, "changed\n"), (2, "same\n")] {
            let (verdict, out, err) = host.run(&write.command(token(n), Duration::from_secs(9)).unwrap()).await;
            assert!(matches!(verdict, Verdict::Exited { code: 0, .. }), "{verdict:?} {}", String::from_utf8_lossy(&err));
            assert_eq!(String::from_utf8(out).unwrap(), said);
        }
        assert_eq!(std::fs::read(&to).unwrap(), b"a=1\n\0\n");
        assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o7777, 0o600);
        write.mode = Some(0o644);
        assert_eq!(host.run(&write.command(token(3), Duration::from_secs(9)).unwrap()).await.1, b"changed\n");
        write.content = b"b\n".to_vec();
        write.mode = None;
        assert_eq!(host.run(&write.command(token(4), Duration::from_secs(9)).unwrap()).await.1, b"changed\n");
        assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o7777, 0o644);
        let left = std::fs::read_dir(host.dir.path()).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().starts_with(".phased")).count();
        assert_eq!(left, 0);
    }
}

fn fake_sudo(host: &Host, body: &str) -> String {
    let bin = host.path("fake");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("sudo"), body).unwrap();
    std::fs::set_permissions(bin.join("sudo"), PermissionsExt::from_mode(0o755)).unwrap();
    format!("{}:{PATH}", bin.display())
}

#[tokio::test]
async fn another_user_gets_the_program_by_standard_input() {
    let probe = Host::new("dash");
    // Like sudo: its own environment, no descriptor from 3 on.
    let path = fake_sudo(
        &probe,
        "#!/bin/bash\n[ \"$*\" = '-n -u app -- /bin/sh' ] || exit 9\nfor fd in /proc/self/fd/*; do n=${fd##*/}; [ \"$n\" -lt 3 ] || eval \"exec $n>&-\"; done 2>/dev/null\nexec env -i PATH=/usr/bin HOME=/home/app USER=app LOGNAME=app SHELL=/bin/zsh SUDO_USER=x /bin/sh\n",
    );
    let host = Host::with("dash", &[("PATH", &path)]);
    let mut cmd = sh(1, "env | sort; cat; echo \"$SECRET\" | wc -c");
    cmd.user = Some("app".into());
    cmd.env = vec![("SECRET".into(), b"it's".to_vec())];
    cmd.stdin = Some(b"in\0put\n".to_vec());
    let (verdict, out, err) = host.run(&cmd).await;
    assert!(matches!(verdict, Verdict::Exited { code: 0, .. }), "{verdict:?} {}", String::from_utf8_lossy(&err));
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("HOME=/home/app\n") && text.contains("SHELL=/bin/zsh\n") && !text.contains("SUDO"), "{text}");
    assert!(text.ends_with("in\0put\n5\n"), "{text}");
    // The session's own user needs no sudo.
    let host = Host::new("dash");
    let mut cmd = sh(2, "cat; echo ok");
    cmd.user = Some("tester".into());
    assert_eq!(host.run(&cmd).await.1, b"ok\n");
}

#[tokio::test]
async fn a_refusal_of_sudo_names_the_line_to_add() {
    let probe = Host::new("dash");
    let path = fake_sudo(&probe, "#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n");
    let host = Host::with("dash", &[("PATH", &path)]);
    let mut cmd = sh(1, "true");
    cmd.user = Some("app".into());
    let Verdict::Refused(cause) = host.run(&cmd).await.0 else { panic!() };
    assert_eq!(cause.code, "sudo_refused");
    assert!(cause.message.ends_with("tester ALL=(app) NOPASSWD: /bin/sh"), "{cause}");
    let mut cmd = exec(2, &[b"sudo", b"-n", b"systemctl", b"restart", b"shop.service"]);
    cmd.path = Some(path);
    let Verdict::Refused(cause) = host.run(&cmd).await.0 else { panic!() };
    assert!(cause.message.ends_with("tester ALL=(root) NOPASSWD: /usr/bin/systemctl restart shop.service"), "{cause}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_at_once_than_a_host_has_channels_for() {
    let host = Arc::new(Host::new("dash"));
    let mut all = tokio::task::JoinSet::new();
    let counter = host.path("now");
    std::fs::create_dir(&counter).unwrap();
    for n in 0..20 {
        let (host, counter) = (host.clone(), counter.display().to_string());
        let text = format!("touch {counter}/{n}; ls {counter} | wc -l; sleep 0.1; rm {counter}/{n}");
        all.spawn(async move { host.sh(n, &text).await.trim().parse::<usize>().unwrap() });
    }
    let most = all.join_all().await.into_iter().max().unwrap();
    assert!(most <= 7, "{most} at once");
}

#[tokio::test]
async fn a_missing_tool_is_named() {
    let mut host = Host::new("dash");
    let bin = host.path("few");
    std::fs::create_dir(&bin).unwrap();
    for tool in ["env", "stat", "dd", "mkdir", "mv", "rm", "head", "sleep", "id"] {
        std::os::unix::fs::symlink(format!("/usr/bin/{tool}"), bin.join(tool)).unwrap();
    }
    let shells = Arc::get_mut(&mut host.shells);
    assert!(shells.is_none(), "the session holds it too");
    let shells = Arc::new(Shells {
        argv: vec!["/bin/dash".into()],
        path: bin.display().to_string(),
        base: host.path("base"),
        env: Vec::new(),
        made: AtomicUsize::new(0),
        current: std::sync::Mutex::default(),
    });
    let session = Session::new(shells, Arc::new(SystemClock::new()), Arc::new(Fleeting));
    let verdict = session.run(&sh(1, "true"), &mut Discard, &CancellationToken::new()).await;
    let Verdict::Refused(cause) = verdict else { panic!("{verdict:?}") };
    assert!(cause.code == "host_unsupported" && cause.message.ends_with("missing: flock setsid"), "{cause}");
}

#[tokio::test]
async fn bad_requests_are_refused_before_anything_is_sent() {
    let host = Host::new("dash");
    let mut bad = vec![exec(1, &[]), exec(1, &[b""]), exec(1, &[b"-c", b"x"]), exec(1, &[b"a\0b"]), sh(1, "a\0b")];
    for name in ["", "1A", "A-B", "A=B", "A B", "é"] {
        let mut cmd = sh(1, "true");
        cmd.env = vec![(name.into(), b"x".to_vec())];
        bad.push(cmd);
    }
    let mut cmd = sh(1, "true");
    cmd.env = vec![("A".into(), b"x\0".to_vec())];
    bad.push(cmd);
    for user in ["", "-x", "a b", "$(id)", "a;b"] {
        let mut cmd = sh(1, "true");
        cmd.user = Some(user.into());
        bad.push(cmd);
    }
    for cmd in bad {
        let Verdict::Refused(cause) = host.run(&cmd).await.0 else { panic!() };
        assert_eq!(cause.code, "bad_argument");
    }
    assert!(!host.shells.base.exists());
    for to in ["", "relative", "/", "//"] {
        let write = Write { to: to.into(), content: Vec::new(), mode: None, owner: None };
        assert!(write.command(token(1), Duration::from_secs(1)).is_err(), "{to:?}");
    }
    let write = Write { to: "/x/y".into(), content: Vec::new(), mode: Some(0o10000), owner: None };
    assert!(write.command(token(1), Duration::from_secs(1)).is_err());
}

#[tokio::test]
async fn a_shell_that_only_talks_is_unsupported() {
    let dir = tempfile::tempdir().unwrap();
    let shells = Arc::new(Shells {
        argv: vec!["/bin/echo".into(), "This account is currently not available.".into()],
        path: PATH.into(),
        base: dir.path().join("base"),
        env: Vec::new(),
        made: AtomicUsize::new(0),
        current: std::sync::Mutex::default(),
    });
    let session = Session::new(shells, Arc::new(SystemClock::new()), Arc::new(Fleeting));
    let clock = SystemClock::new();
    let (cmd, mut sink, never) = (sh(1, "true"), Discard, CancellationToken::new());
    let verdict = within(&clock, Duration::from_secs(20), session.run(&cmd, &mut sink, &never)).await.unwrap();
    let Verdict::Refused(cause) = verdict else { panic!("{verdict:?}") };
    assert!(cause.code == "host_unsupported" && cause.message.contains("not available"), "{cause}");
}
