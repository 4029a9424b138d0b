//! Which machine it is, and whether it can do it.

use super::*;

in_every_shell! {
    async fn a_cut_program_runs_nothing(host: Host) {
        let file = host.path("ran");
        let cmd = sh(1, &format!("touch {}", file.display()));
        let frame = program::Frame { mark: "m", base: host.shells.base.to_str(), host_id: None, from: [0; 2], counted: false, run: None };
        let whole = [program::program(), &program::start(&frame, &cmd).unwrap()].concat();
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

    async fn another_machine_is_never_taken_for_the_same(host: Host) {
        host.sh(1, "true").await;
        let id = host.session.host_id().await.unwrap();
        let other = host.again(Some("another"));
        let verdict = other.run(&sh(2, "true"), &mut Discard, &CancellationToken::new()).await;
        assert!(matches!(verdict, Verdict::Replaced { .. }), "{verdict:?}");
        assert!(!host.file(2, "lock").exists());
        assert!(matches!(give_up(&other, 1).await, Verdict::Replaced { .. }));
        let same = host.again(Some(&id)).run(&sh(3, "true"), &mut Discard, &CancellationToken::new()).await;
        assert!(matches!(same, Verdict::Exited { code: 0, .. }), "{same:?}");
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
}

#[tokio::test]
async fn a_missing_tool_is_named() {
    let host = Host::new("dash");
    let bin = host.path("few");
    std::fs::create_dir(&bin).unwrap();
    for tool in ["env", "stat", "dd", "mkdir", "mv", "rm", "head", "sleep", "id"] {
        std::os::unix::fs::symlink(format!("/usr/bin/{tool}"), bin.join(tool)).unwrap();
    }
    let shells = Shells::new(vec!["/bin/dash".into()], bin.display().to_string(), host.path("base"), Vec::new());
    let session = Session::new(shells, Arc::new(SystemClock::new()), Arc::new(Fleeting));
    let verdict = session.run(&sh(1, "true"), &mut Discard, &CancellationToken::new()).await;
    let Verdict::Refused(cause) = verdict else { panic!("{verdict:?}") };
    assert!(cause.code == "host_unsupported" && cause.message.ends_with("missing: flock setsid"), "{cause}");
}

#[tokio::test]
async fn a_shell_that_only_talks_is_unsupported() {
    let dir = tempfile::tempdir().unwrap();
    let argv = vec!["/bin/echo".into(), "This account is currently not available.".into()];
    let shells = Shells::new(argv, PATH.into(), dir.path().join("base"), Vec::new());
    let session = Session::new(shells, Arc::new(SystemClock::new()), Arc::new(Fleeting));
    let clock = SystemClock::new();
    let (cmd, mut sink, never) = (sh(1, "true"), Discard, CancellationToken::new());
    let verdict = within(&clock, Duration::from_secs(20), session.run(&cmd, &mut sink, &never)).await.unwrap();
    let Verdict::Refused(cause) = verdict else { panic!("{verdict:?}") };
    assert!(cause.code == "host_unsupported" && cause.message.contains("not available"), "{cause}");
}
