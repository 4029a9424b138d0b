//! Every way a command can end.

use super::*;

in_every_shell! {
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

    async fn what_is_left_running_is_ended_and_what_is_on_a_host_is_not(host: Host) {
        let (marker, stays) = (host.marker(), host.marker());
        let run: RunId = format!("01k{:0>23}", marker.replace('.', "")).parse().unwrap();
        let session = host.of_run(&run);
        let begun = async |n: u32, text: String, more: &[(&str, &str)]| {
            let mut cmd = sh(n, &text);
            cmd.env = [("PHASED_RUN", run.as_str())].iter().chain(more).map(|(k, v)| ((*k).into(), v.as_bytes().to_vec())).collect();
            cmd.path = Some("/usr/bin:/bin".into());
            let mut sink = Collect::default();
            session.run(&cmd, &mut sink, &CancellationToken::new()).await;
            sink.out
        };
        let text = format!("sleep {marker} & (trap '' TERM; while :; do sleep {marker}; done) & setsid sleep {marker} & echo on");
        assert_eq!(begun(1, text, &[]).await, b"on\n");
        begun(2, format!("sleep {stays} &"), &[("PHASED_HOST_ID", "here")]).await;
        // Each has become the program that it is to be, and has its environment.
        until("what is left running", || processes(&marker) >= 3 && processes(&stays) == 1).await;
        let left = session.end_left().await.unwrap();
        assert!(left.found >= 4 && left.remain == 0 && left.names.contains("sleep") && !left.names.contains(&marker), "{left:?}");
        assert!(!process_exists(&marker) && process_exists(&stays));
        assert_eq!(session.end_left().await, Ok(Left::default()));
        begun(3, format!("pkill -f 'sleep {stays}'"), &[]).await;
    }

    async fn of_a_run_that_is_over_only_the_claims_of_its_commands_stay(host: Host) {
        let run: RunId = format!("01k{:0>23}", host.marker().replace('.', "")).parse().unwrap();
        let session = host.of_run(&run);
        let run_it = async |cmd: &CommandSpec| session.run(cmd, &mut Discard, &CancellationToken::new()).await;
        let begins = sh(1, &format!("echo begun >>{}; echo out; echo err >&2", host.path("begun").display()));
        run_it(&begins).await;
        let mut late = sh(2, "sleep 985.3");
        (late.timeout, late.grace) = (Duration::from_millis(300), Duration::from_secs(1));
        assert!(matches!(run_it(&late).await, Verdict::TimedOut { .. }));
        until("the watchdog's end", || !is_locked(&host.file(2, "watch"))).await;
        let from = Source::File(host.path("from"));
        std::fs::write(host.path("from"), "x").unwrap();
        let (to, sha256) = (host.path("to").display().to_string(), Digest::of(b"x"));
        let upload = Upload { token: token(3), from, sha256, size: 1, to, unpack: false, mode: None, owner: None, timeout: begins.timeout, epoch: None, resumed: false };
        let uploaded = session.upload(&upload, &CancellationToken::new()).await;
        assert!(matches!(uploaded, UploadVerdict::Done { changed: true, .. }), "{uploaded:?}");
        host.sh(4, "echo of no run").await;
        // Begun, and nobody knows how it ended.
        std::fs::write(host.file(5, "lock"), "mark").unwrap();
        std::fs::write(host.file(5, "go"), "begun 1 1\n-\n0\n0\n").unwrap();
        let list = host.shells.base.join(format!("run.{run}"));
        std::fs::write(&list, std::fs::read_to_string(&list).unwrap() + token(5).as_str() + "\n").unwrap();

        assert_eq!(session.end_left().await, Ok(Left::default()));
        host.assert_forgotten(&[1, 2, 3]);
        assert!(host.file(4, "out").exists() && host.file(5, "go").exists() && !list.exists());
        // A start that was under way all the while arrives.
        let opened = host.shells.opened();
        let again = async {
            until("the start", || host.shells.opened() > opened).await;
            host.given_up(1).await
        };
        let (late, mut sink, never) = (host.again(None), Discard, CancellationToken::new());
        let (begun, resolved) = tokio::join!(late.run(&begins, &mut sink, &never), again);
        assert_eq!((begun, resolved), (Verdict::Void, Verdict::Void));
        assert_eq!(std::fs::read_to_string(host.path("begun")).unwrap(), "begun\n");
    }

    async fn what_nobody_asks_about_again_leaves_only_its_claim(host: Host) {
        // The second takes so long that it is followed.
        for (n, text) in [(1, "echo out; exit 3".to_owned()), (2, format!("sleep 1; : {}; echo out; exit 3", host.marker()))] {
            let cmd = CommandSpec { passing: true, ..sh(n, &text) };
            let (verdict, out, _) = host.run(&cmd).await;
            assert!(matches!(verdict, Verdict::Exited { code: 3, .. }) && out == b"out\n", "{verdict:?} {out:?}");
            until("its end", || !host.file(n, "go").exists()).await;
        }
        // More than is told at once of one that is to be asked about again.
        let much = CommandSpec { passing: true, ..sh(4, "head -c 17000000 /dev/zero") };
        let (verdict, out, _) = host.run(&much).await;
        assert!(matches!(verdict, Verdict::Exited { code: 0, .. }) && out.len() == 17_000_000, "{verdict:?} {}", out.len());
        // Whatever was answered before is done once the next request is answered.
        host.sh(3, "true").await;
        host.assert_forgotten(&[1, 2, 4]);
    }

    async fn given_up_is_never_begun(host: Host) {
        let file = host.path("ran");
        assert_eq!(host.given_up(1).await, Verdict::Void);
        let (verdict, _, _) = host.run(&sh(1, &format!("touch {}", file.display()))).await;
        assert_eq!(verdict, Verdict::Void);
        assert!(!file.exists());
        // What had ended by itself has.
        host.sh(2, "true").await;
        assert!(matches!(host.given_up(2).await, Verdict::Exited { code: 0, .. }));
    }

    async fn giving_up_ends_what_runs(host: Host) {
        let marker = host.marker();
        let cmd = sh(1, &format!("sleep {marker}"));
        let (never, mut sink) = (CancellationToken::new(), Discard);
        let resolving = async {
            until("the command", || process_exists(&marker)).await;
            give_up(&host.again(None), 1).await
        };
        let (verdict, resolved) = tokio::join!(host.session.run(&cmd, &mut sink, &never), resolving);
        assert!(matches!(verdict, Verdict::Stopped { .. }), "{verdict:?}");
        assert!(matches!(resolved, Verdict::Stopped { .. }), "{resolved:?}");
    }

    async fn a_killed_wrapper_is_an_orphan_then_lost(host: Host) {
        let marker = host.marker();
        let mut cmd = sh(1, &format!("sleep {marker}"));
        cmd.timeout = Duration::from_secs(2);
        let mut sink = Discard;
        let killing = async {
            until("the command", || process_exists(&marker)).await;
            let wrapper = nix::unistd::Pid::from_raw(parent_of(host.leader(1)));
            nix::sys::signal::kill(wrapper, nix::sys::signal::Signal::SIGKILL).unwrap();
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
        // Power was lost before the claim's content was on the disk.
        std::fs::write(host.file(1, "lock"), "").unwrap();
        let verdict = host.given_up(1).await;
        assert!(matches!(verdict, Verdict::Exited { code: 5, .. }), "{verdict:?}");
    }

    async fn a_reboot_is_told_from_a_loss(host: Host) {
        host.sh(1, "true").await;
        for file in ["out", "err", "lock"] {
            std::fs::write(host.file(2, file), "").unwrap();
        }
        std::fs::write(host.file(2, "go"), "begun\nanother-boot\n1\n2\n").unwrap();
        assert_eq!(host.run(&sh(2, "true")).await.0, Verdict::Rebooted);
        // As a daemon before this one has noted it: without who began it.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        std::fs::write(host.file(2, "go"), format!("begun\n{boot}1\n2\n")).unwrap();
        assert_eq!(host.run(&sh(2, "true")).await.0, Verdict::Lost);
        // Power was lost before any of it was on the disk.
        std::fs::write(host.file(2, "go"), "").unwrap();
        let (clock, began) = (SystemClock::new(), SystemClock::new().now());
        assert_eq!(host.given_up(2).await, Verdict::Lost);
        assert!(clock.now().since(&began) < Duration::from_secs(15));
    }

    async fn a_command_that_removes_what_is_noted_of_it_is_not_begun_again(host: Host) {
        let (ran, base) = (host.path("ran"), host.shells.base.display().to_string());
        for (n, what) in [(1, "lock"), (2, "*")] {
            let text = format!("echo {n} >>{}; rm -f {base}/{}.{what}; sleep 0.8", ran.display(), token(n));
            let verdict = host.run(&sh(n, &text)).await.0;
            assert!(matches!(verdict, Verdict::Exited { code: 0, .. } | Verdict::Lost), "{verdict:?}");
        }
        assert_eq!(std::fs::read_to_string(ran).unwrap(), "1\n2\n");
    }
}
