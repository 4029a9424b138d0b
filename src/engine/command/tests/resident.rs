//! A channel's shell takes one request after the other, and nothing of one is left for the next.

use super::*;

/// A disk that takes its time, or is full.
struct Disk {
    free: tokio::sync::Semaphore,
    met: AtomicUsize,
    fails: bool,
}

impl Disk {
    fn new(free: usize, fails: bool) -> Arc<Self> {
        Arc::new(Disk { free: tokio::sync::Semaphore::new(free), met: AtomicUsize::new(0), fails })
    }
}

#[async_trait]
impl Acquaintance for Disk {
    fn known(&self) -> Option<String> {
        None
    }
    async fn met(&self, id: &str, _: Option<String>) -> Result<(), Cause> {
        assert!(!id.is_empty());
        self.met.fetch_add(1, Ordering::SeqCst);
        self.free.acquire().await.unwrap().forget();
        if self.fails { Err(Cause::new("journal_full", "no room for the machine's id")) } else { Ok(()) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_each_takes_a_place_one_channel_waits_and_not_for_long() {
    let host = Host::with("dash", &[("COUNTED", "1")]);
    let alive = || {
        let shells = host.shells.counters.shells.lock().unwrap().clone();
        shells.iter().filter(|pid| std::fs::exists(format!("/proc/{pid}/exe")).unwrap_or(false)).count()
    };
    let together = futures_util::future::join_all((1..5).map(|n| host.sh(n, "sleep 0.3")));
    together.await;
    assert!(host.shells.opened() >= 2);
    until("all but one are closed", || alive() == 1).await;
    let opened = host.shells.opened();
    host.sh(5, "true").await;
    assert_eq!(host.shells.opened(), opened, "the next step uses it");
    let using = async {
        until("it is closed as well", || alive() == 0).await;
        assert_eq!(host.sh(6, "echo on").await, "on\n");
        until("and again", || alive() == 0).await;
    };
    tokio::select! {
        () = host.session.tire(Duration::from_millis(50)) => unreachable!("it never ends"),
        () = using => {}
    }
}

in_every_shell! {
    async fn steps_one_by_one_share_a_channel(host: Host) {
        for n in 0..5 {
            assert_eq!(host.sh(n, "echo said").await, "said\n");
        }
        let (never, mut sink) = (CancellationToken::new(), Discard);
        let download = Download { from: "/etc/hostname".into(), timeout: Duration::from_secs(9) };
        assert!(matches!(host.session.download(&download, &mut sink, &never).await, Verdict::Exited { code: 0, .. }));
        assert_eq!(host.sh(9, "sleep 0.3; echo late").await, "late\n", "and one that was followed");
        assert_eq!(host.sh(10, "echo said").await, "said\n");
        assert_eq!(host.shells.opened(), 1);
    }

    async fn nothing_of_a_step_is_left_for_the_next(host: Host) {
        let look = "env | sort; umask; pwd; trap; set | grep '^[A-Z]' | grep -v '^_\\|^LINENO\\|^PPID\\|^OPTIND'; ls /proc/$$/fd";
        let first = host.sh(1, look).await;
        let mut cmd = sh(2, "umask 000; trap 'echo x' TERM; exec 5</dev/null; cd /usr; LEFT=over; export LEFT; echo some; echo err >&2");
        cmd.env = vec![("SOME".into(), b"value".to_vec())];
        cmd.cwd = Some("/usr".into());
        cmd.stdin = Some(b"read by nobody".to_vec());
        assert!(matches!(host.run(&cmd).await.0, Verdict::Exited { code: 0, .. }));
        let mut cmd = sh(3, "echo $0; sleep 985.3");
        cmd.timeout = Duration::from_millis(100);
        assert!(matches!(host.run(&cmd).await.0, Verdict::TimedOut { .. }));
        assert_eq!(host.sh(4, look).await, first);
        assert_eq!(host.shells.opened(), 1);
        // Nothing of the base, while it waits for the next request.
        let shell = host.shells.counters.shells.lock().unwrap()[0];
        let mut open: Vec<String> = std::fs::read_dir(format!("/proc/{shell}/fd")).unwrap()
            .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap().display().to_string()).collect();
        open.retain(|to| to.starts_with(host.dir.path().to_str().unwrap()));
        assert!(open.is_empty(), "{open:?}");
    }

    async fn a_shell_that_died_while_idle_is_replaced(host: Host) {
        host.sh(1, "true").await;
        let shell = host.shells.counters.shells.lock().unwrap()[0];
        let pid = nix::unistd::Pid::from_raw(i32::try_from(shell).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        assert_eq!(host.sh(2, "echo on").await, "on\n");
        assert_eq!(host.shells.opened(), 2);
    }

    async fn a_shell_killed_under_a_command_harms_nothing(host: Host) {
        let (marker, go) = (host.marker(), host.path("go"));
        let text = format!("echo a >>{0}.ran; : {marker}; while [ ! -e {0} ]; do sleep 0.05; done; echo end", go.display());
        let cmd = sh(1, &text);
        let killing = async {
            until("the command", || host.path("go.ran").exists()).await;
            let shell = host.shells.counters.shells.lock().unwrap()[0];
            let pid = nix::unistd::Pid::from_raw(i32::try_from(shell).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            std::fs::write(&go, "").unwrap();
        };
        let ((verdict, out, _), ()) = tokio::join!(host.run(&cmd), killing);
        assert!(matches!(verdict, Verdict::Exited { code: 0, .. }), "{verdict:?}");
        assert_eq!(out, b"end\n");
        assert_eq!(std::fs::read_to_string(host.path("go.ran")).unwrap(), "a\n");
    }

    async fn the_end_of_the_session_ends_its_shells(host: Host) {
        host.sh(1, "true").await;
        let shell = host.shells.counters.shells.lock().unwrap()[0];
        host.session.close().await;
        until("the shell's end", || {
            std::fs::read_to_string(format!("/proc/{shell}/stat")).map_or(true, |stat| stat.contains(") Z "))
        }).await;
    }

    async fn nothing_begins_before_the_machine_is_noted(host: Host) {
        let disk = Disk::new(0, false);
        let session = Session::new(host.shells.clone(), Arc::new(SystemClock::new()), disk.clone());
        let file = host.path("ran");
        let (cmd, never, mut sink) = (sh(1, &format!("touch {}", file.display())), CancellationToken::new(), Discard);
        let noting = async {
            until("the meeting", || disk.met.load(Ordering::SeqCst) == 1).await;
            assert!(!host.file(1, "lock").exists() && !file.exists());
            disk.free.add_permits(1);
        };
        let (verdict, ()) = tokio::join!(session.run(&cmd, &mut sink, &never), noting);
        assert!(matches!(verdict, Verdict::Exited { code: 0, .. }) && file.exists(), "{verdict:?}");
        assert!(matches!(session.run(&sh(2, "true"), &mut sink, &never).await, Verdict::Exited { code: 0, .. }));
        assert_eq!(disk.met.load(Ordering::SeqCst), 1, "it is met once");
    }

    async fn a_machine_that_cannot_be_noted_runs_nothing(host: Host) {
        let session = Session::new(host.shells.clone(), Arc::new(SystemClock::new()), Disk::new(1, true));
        let file = host.path("ran");
        let (cmd, never) = (sh(1, &format!("touch {}", file.display())), CancellationToken::new());
        let Verdict::Refused(cause) = session.run(&cmd, &mut Discard, &never).await else { panic!() };
        assert_eq!(cause.code, "journal_full");
        // Cut while it is being noted: nothing was sent that could begin anything.
        let disk = Disk::new(0, false);
        let session = Session::new(host.shells.clone(), Arc::new(SystemClock::new()), disk.clone());
        let (mut sink, cmd) = (Discard, sh(1, &format!("touch {}", file.display())));
        let cutting = async {
            until("the meeting", || disk.met.load(Ordering::SeqCst) == 1).await;
            host.cut();
            disk.free.add_permits(1);
        };
        let (_, ()) = tokio::join!(
            async {
                tokio::select! {
                    _ = session.run(&cmd, &mut sink, &never) => {}
                    () = until("the cut", || host.shells.current.lock().unwrap().is_cancelled()) => {}
                }
            },
            cutting
        );
        assert!(!host.file(1, "go").exists() && !file.exists());
    }

    async fn output_is_exact_whatever_it_is(host: Host) {
        let cases: [&[u8]; 12] = [b"", b"\n", b"no newline", b"a\n\nb\n\n", b"tab\there\n", b"nul\0inside\n", b"\0", b"\xc3\xa9\xff\x81\x88\n",
            b"\\n \\t $x `y` %s\n", b"  indented  \n", &[b'x'; 999], &[b'y'; 1001]];
        for (n, bytes) in (1..).zip(cases) {
            let file = host.path("bytes");
            std::fs::write(&file, bytes).unwrap();
            let (verdict, out, err) = host.run(&sh(n, &format!("cat {0}; cat {0} >&2; exit 4", file.display()))).await;
            assert!(matches!(verdict, Verdict::Exited { code: 4, .. }), "{verdict:?}");
            assert!(out == bytes && err == bytes, "{:?}: {out:?} {err:?}", String::from_utf8_lossy(bytes));
        }
        // Written through a descriptor the wrapper does not know.
        assert_eq!(host.sh(50, "echo one; echo two >>/dev/stdout; echo three").await, "one\ntwo\nthree\n");
        assert_eq!(host.sh(51, "printf '%2000d' 1 >>/dev/stdout").await.len(), 2000);
    }

    async fn what_the_host_keeps_goes_after_ten_days(host: Host) {
        let marker = host.marker();
        let go = host.path("go");
        host.sh(1, "echo old").await;
        let run = host.shells.base.join("run.01k.boot");
        std::fs::write(&run, "").unwrap();
        let held = sh(2, &format!("while [ ! -e {} ]; do sleep 0.05; done; : {marker}", go.display()));
        let (never, mut sink) = (CancellationToken::new(), Discard);
        let looking = async {
            until("the long command", || host.file(2, "go").exists()).await;
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
            let swept = host.shells.base.join("swept");
            until("the note of the first look", || swept.exists()).await;
            let look = async |n: u32, passed: u64| {
                let was = format!("{} 0 {passed} {n}\n", boot.trim());
                // The look before this one may not be over when its note is there: the lock says when. Another process takes it, since
                // whatever the tests beside this one fork would hold a lock of ours for a moment longer than we do.
                let noted = std::process::Command::new("flock")
                    .arg(host.shells.base.join("swept.lock"))
                    .args(["sh", "-c", "printf %s \"$1\" >\"$0\""])
                    .args([swept.as_os_str(), was.as_ref()])
                    .status();
                assert!(noted.unwrap().success());
                // The first request of a channel looks.
                let (verdict, mut sink) = (host.again(None), Discard);
                verdict.run(&sh(100 + n, "true"), &mut sink, &CancellationToken::new()).await;
                until("a look", || std::fs::read_to_string(&swept).unwrap() != was).await;
            };
            for n in 0..10 {
                look(n, 8_640_000).await;
                assert!(host.file(1, "out").exists(), "after {n} looks");
            }
            look(10, 8_640_000).await;
            until("the end of the files", || !host.file(1, "lock").exists()).await;
            until("the end of what is of no command", || !run.exists()).await;
            assert!(!host.file(1, "out").exists() && !host.file(1, "go").exists());
            assert!(host.file(2, "go").exists(), "a command that runs is not forgotten");
            assert!(host.file(101, "go").exists() && host.shells.base.join("id.lock").exists());
            std::fs::write(&go, "").unwrap();
        };
        let (verdict, ()) = tokio::join!(host.session.run(&held, &mut sink, &never), looking);
        assert!(matches!(verdict, Verdict::Exited { code: 0, .. }), "{verdict:?}");
    }
}
