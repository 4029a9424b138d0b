//! What may go wrong beside a command: connections, daemons, machines, clocks.

use super::*;
use crate::dice::Dice;

/// Keeps what has come, at once, as a journal would; the other end of a daemon's life asks it where to go on.
struct Kept(Arc<std::sync::Mutex<[Vec<u8>; 2]>>);

#[async_trait]
impl OutputSink for Kept {
    async fn output(&mut self, stream: Stream, offset: u64, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap();
        let to = &mut kept[usize::from(stream != Stream::Out)];
        assert_eq!(offset, to.len() as u64, "no byte is lost, none doubled");
        to.extend_from_slice(bytes);
    }
}

/// Runs `cmd`; if `dies`, the daemon does not outlive the first cut and a new one goes on.
async fn to_its_end(host: &Host, mut cmd: CommandSpec, id: &str, dies: bool) -> (Verdict, [Vec<u8>; 2]) {
    let kept = Arc::new(std::sync::Mutex::new([Vec::new(), Vec::new()]));
    let never = CancellationToken::new();
    let cut = host.shells.current.lock().unwrap().clone();
    let mut sink = Kept(kept.clone());
    let verdict = tokio::select! {
        biased;
        () = cut.cancelled(), if dies && !cut.is_cancelled() => None,
        verdict = host.session.run(&cmd, &mut sink, &never) => Some(verdict),
    };
    let verdict = match verdict {
        Some(verdict) => verdict,
        None => {
            let lengths = kept.lock().unwrap().each_ref().map(|bytes| bytes.len() as u64);
            cmd.from = lengths;
            host.again(Some(id)).run(&cmd, &mut sink, &never).await
        }
    };
    let kept = kept.lock().unwrap().clone();
    (verdict, kept)
}

/// Kills a command's wrapper and the whole of its group, as an out-of-memory killer might.
fn kill_all_of(host: &Host, n: u32) {
    use nix::{sys::signal, unistd::Pid};
    let leader = host.leader(n);
    signal::kill(Pid::from_raw(parent_of(leader)), signal::Signal::SIGKILL).unwrap();
    signal::killpg(Pid::from_raw(leader), signal::Signal::SIGKILL).unwrap();
}

/// Where the library is, that `faketime` loads.
fn faketime() -> String {
    for _ in 0..100 {
        let found = std::process::Command::new("faketime").args(["-f", "+0s", "printenv", "LD_PRELOAD"]).output();
        let found = found.unwrap_or_else(|e| panic!("faketime is missing ({e}): apt-get install faketime"));
        if found.status.success() {
            return String::from_utf8(found.stdout).unwrap().trim().to_owned();
        }
        // A killed process left its semaphore or its memory, and this one had the same number; the next one has another.
        let said = String::from_utf8_lossy(&found.stderr);
        assert!(said.contains("_open: File exists"), "faketime failed: {said}");
    }
    panic!("a hundred semaphores of killed processes are in the way: rm /dev/shm/*faketime*");
}

in_every_shell! {
    async fn a_connection_cut_anywhere_repeats_and_loses_nothing(host: Host) {
        let points = u32::try_from(times(12, 100)).unwrap();
        let id = host.machine().await;
        let file = host.path("ran");
        let three = |first: u32| {
            let ran = |n: u32| format!("echo {n} >>{}", file.display());
            [
                sh(first, &format!("{}; echo short; echo other >&2", ran(first))),
                sh(first + 1, &format!("{}; seq 1 3000; sleep 0.15; seq 1 2000 >&2", ran(first + 1))),
                sh(first + 2, &format!("{}; printf 'odd\\0bytes'; exit 3", ran(first + 2))),
            ]
        };
        let seq = |n: u32| (1..=n).fold(String::new(), |s, i| s + &i.to_string() + "\n").into_bytes();
        let want: [(u32, [Vec<u8>; 2]); 3] = [
            (0, [b"short\n".to_vec(), b"other\n".to_vec()]),
            (0, [seq(3000), seq(2000)]),
            (3, [b"odd\0bytes".to_vec(), Vec::new()]),
        ];
        // One sequence that nobody cuts says how many bytes go over the link.
        host.session.close().await;
        let counters = host.shells.counters.clone();
        counters.budget.store(1 << 40, Ordering::SeqCst);
        for (cmd, (code, output)) in three(0).into_iter().zip(&want) {
            let (verdict, kept) = to_its_end(&host, cmd, &id, false).await;
            assert!(matches!(&verdict, Verdict::Exited { code: c, .. } if c == code), "{verdict:?}");
            assert!(kept == *output);
        }
        let whole = usize::try_from((1 << 40) - counters.budget.load(Ordering::SeqCst)).unwrap();
        let mut dice = Dice::at(host.name.len() as u64);
        for point in 1..=points {
            // A link of its own for each sequence: the program is cut, too.
            host.session.close().await;
            let at = dice.below(whole);
            let dies = dice.below(2) == 0;
            counters.budget.store(i64::try_from(at).unwrap() + 1, Ordering::SeqCst);
            for (cmd, (code, output)) in three(point * 10).into_iter().zip(&want) {
                let (verdict, kept) = to_its_end(&host, cmd, &id, dies).await;
                assert!(matches!(&verdict, Verdict::Exited { code: c, .. } if c == code), "cut at {at}: {verdict:?}");
                assert!(kept == *output, "cut at {at}");
            }
        }
        let ran = std::fs::read_to_string(&file).unwrap();
        let mut lines: Vec<&str> = ran.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), ran.lines().count(), "none ran twice");
        assert_eq!(lines.len() as u32, 3 * (points + 1), "each ran");
    }

    /// Its claim is there, and whoever made it has not come any further.
    async fn a_claim_that_nobody_follows_up_is_given_up_and_stays_so(host: Host) {
        host.machine().await;
        let (file, mut cmd) = (host.path("ran"), sh(1, "true"));
        cmd.what = What::Sh { text: format!("touch {}", file.display()).into_bytes(), shell: Shell::Sh };
        std::fs::write(host.file(1, "lock"), "").unwrap();
        assert_eq!(host.run(&cmd).await.0, Verdict::Void);
        assert_eq!(host.run(&cmd).await.0, Verdict::Void);
        std::fs::write(host.file(2, "lock"), "").unwrap();
        assert_eq!(host.given_up(2).await, Verdict::Void);
        // Whoever comes late with a claim of their own sees that it was forbidden.
        std::fs::remove_file(host.file(1, "lock")).unwrap();
        assert_eq!(host.run(&cmd).await.0, Verdict::Void);
        assert!(host.file(1, "lock").exists() && host.go(1).starts_with("end "), "it was claimed: {}", host.go(1));
        assert_eq!(host.run(&cmd).await.0, Verdict::Void);
        assert!(!file.exists());
    }

    /// Before it is locked, which the word of its asker brings about half a second later.
    async fn a_command_that_was_just_begun_is_told_from_one_that_is_gone(host: Host) {
        let (id, marker, never) = (host.machine().await, host.marker(), CancellationToken::new());
        let second = host.again(Some(&id));
        let mut early = false;
        for n in (1..20).step_by(2) {
            let goes = host.path(&format!("goes.{n}"));
            let cmd = sh(n, &format!("until [ -e {} ]; do sleep 0.01; done; echo end", goes.display()));
            let (mut one, mut other) = (Collect::default(), Collect::default());
            let asking = async {
                until("the command", || host.go(n).contains("pg ")).await;
                early = !is_locked(&host.file(n, "lock"));
                let going = async {
                    until("a watchdog", || host.file(n, "watch").exists()).await;
                    std::fs::write(&goes, "").unwrap();
                };
                tokio::join!(second.run(&cmd, &mut other, &never), going).0
            };
            let (verdict, again) = tokio::join!(host.session.run(&cmd, &mut one, &never), asking);
            for (verdict, out) in [(verdict, one.out), (again, other.out)] {
                assert!(matches!(verdict, Verdict::Exited { code: 0, .. }) && out == b"end\n", "{verdict:?}");
            }
            // And one of which nothing is left.
            let (cmd, mut sink) = (sh(n + 1, &format!("sleep {marker}")), Discard);
            let killing = async {
                until("the command", || host.go(n + 1).contains("pg ")).await;
                kill_all_of(&host, n + 1);
                second.run(&cmd, &mut Discard, &never).await
            };
            let (_, again) = tokio::join!(host.session.run(&cmd, &mut sink, &never), killing);
            assert_eq!(again, Verdict::Lost);
            if early {
                return;
            }
        }
        panic!("always too late to see anything");
    }

    async fn a_reboot_in_the_middle_is_told_as_one(host: Host) {
        let marker = host.marker();
        let cmd = sh(1, &format!("sleep {marker}"));
        let rebooting = async {
            until("the command", || process_exists(&marker)).await;
            let go = host.go(1);
            let boot = go.lines().nth(1).unwrap().to_owned();
            let other = "0".repeat(boot.len());
            std::fs::write(host.file(1, "go"), go.replace(&boot, &other)).unwrap();
            assert!(host.leader(1) > 1);
            kill_all_of(&host, 1);
            host.cut();
        };
        let ((verdict, _, _), ()) = tokio::join!(host.run(&cmd), rebooting);
        assert_eq!(verdict, Verdict::Rebooted);
        assert_eq!(host.run(&cmd).await.0, Verdict::Rebooted, "and it is not begun again");
    }

    async fn a_machine_replaced_in_the_middle_is_told_as_one(host: Host) {
        let marker = host.marker();
        let mut cmd = sh(1, &format!("sleep {marker}"));
        cmd.timeout = Duration::from_secs(3);
        let replacing = async {
            until("the command", || process_exists(&marker)).await;
            // The same address, another machine.
            std::fs::write(host.shells.base.join("id"), "another\n").unwrap();
            host.cut();
        };
        let ((verdict, _, _), ()) = tokio::join!(host.run(&cmd), replacing);
        assert_eq!(verdict, Verdict::Replaced { found: "another".into() });
        assert!(matches!(host.run(&sh(2, "true")).await.0, Verdict::Replaced { .. }));
        assert!(!host.file(2, "lock").exists(), "nothing begins on it");
        until("the end of what was left", || !process_exists(&marker)).await;
    }

    async fn a_stale_epoch_begins_nothing_and_may_still_ask(host: Host) {
        let with = |n: u32, epoch: u64, text: &str| {
            let mut cmd = sh(n, text);
            let (project, environment) = ("shop".parse().unwrap(), "production".parse().unwrap());
            cmd.epoch = Some(EpochCheck { project, environment, epoch: Epoch(epoch) });
            cmd
        };
        let file = host.path("ran");
        let touch = format!("echo x >>{}", file.display());
        host.run(&with(1, 5, &touch)).await;
        // Both at once, often: whoever is older never begins after the younger one has.
        for n in 0..10u32 {
            let (older, younger) = (with(10 + n * 2, 10 + u64::from(n), "true"), with(11 + n * 2, 11 + u64::from(n), "true"));
            let (a, b) = tokio::join!(host.run(&older), host.run(&younger));
            assert!(matches!(b.0, Verdict::Exited { code: 0, .. }), "{:?}", b.0);
            let older = matches!(&a.0, Verdict::Exited { code: 0, .. })
                || matches!(&a.0, Verdict::Refused(cause) if cause.code == "stale_epoch");
            assert!(older, "{:?}", a.0);
        }
        let Verdict::Refused(cause) = host.run(&with(50, 5, &touch)).await.0 else { panic!() };
        assert_eq!(cause.code, "stale_epoch");
        assert!(matches!(host.run(&with(1, 5, &touch)).await.0, Verdict::Exited { code: 0, .. }), "what it began it may hear of");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "x\n");
    }

    async fn the_wall_clock_may_be_anywhere(host: Host) {
        // With a `$LIB` in it, which is the loader's to fill in, no shell's.
        let library = faketime();
        for (n, shift) in [(1u32, "-3650d"), (4, "+3650d")] {
            // The shell and every tool it runs believe in another year.
            let bin = host.path(&format!("bin{n}"));
            std::fs::create_dir(&bin).unwrap();
            let tools = ["flock", "setsid", "env", "stat", "dd", "head", "mkdir", "mv", "rm", "sleep", "id", "date", "cp", "find"];
            for tool in tools {
                let real = host.shells.path.split(':').map(|dir| Path::new(dir).join(tool)).find(|path| path.exists());
                let real = real.unwrap_or_else(|| Path::new("/bin").join(tool));
                let text = format!("#!/bin/sh\nLD_PRELOAD='{library}' FAKETIME={shift} exec {} \"$@\"\n", real.display());
                std::fs::write(bin.join(tool), text).unwrap();
                std::fs::set_permissions(bin.join(tool), PermissionsExt::from_mode(0o755)).unwrap();
            }
            let env = vec![("LD_PRELOAD".to_owned(), library.clone()), ("FAKETIME".to_owned(), shift.to_owned())];
            let mut argv = host.shells.argv.clone();
            if !argv[0].starts_with('/') {
                argv[0] = format!("/usr/bin/{}", argv[0]);
            }
            let shells = Shells::new(argv, bin.display().to_string(), host.shells.base.clone(), env);
            let session = Session::new(shells, Arc::new(SystemClock::new()), Arc::new(Fleeting));
            let never = CancellationToken::new();
            let now = SystemClock::new().now().wall_ms / 31_556_952_000 + 1970;
            let mut sink = Collect::default();
            let mut year = sh(n, "date +%Y");
            year.path = Some(bin.display().to_string());
            session.run(&year, &mut sink, &never).await;
            let year: i64 = String::from_utf8(sink.out).unwrap().trim().parse().unwrap();
            assert!((year - now).abs() >= 9, "{year} is not another year than {now}: apt-get install --reinstall libfaketime");
            // Right within a second, and five where the machine is busy.
            let verdict = session.run(&sh(n + 1, "sleep 0.4; echo done"), &mut Discard, &never).await;
            assert!(matches!(verdict, Verdict::Exited { code: 0, duration_ms: 300..5400, .. }), "{verdict:?}");
            let mut late = sh(n + 2, "sleep 985.3");
            late.timeout = Duration::from_secs(1);
            let verdict = session.run(&late, &mut Discard, &never).await;
            assert!(matches!(verdict, Verdict::TimedOut { duration_ms: 1000..6000 }), "{verdict:?}");
        }
    }
}
