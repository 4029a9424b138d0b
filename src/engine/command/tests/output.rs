//! Output: exact, as it comes, bounded.

use super::*;

in_every_shell! {
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
        let id = host.machine().await;
        let frame = program::Frame { mark: &mark, base: host.shells.base.to_str(), host_id: Some(&id), from: [0; 2], counted: false, run: None };
        let link = host.shells.connect().await.unwrap();
        let mut channel = link.open("sh").await.unwrap();
        let whole = [program::program(), &program::start(&frame, &cmd).unwrap()].concat();
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
}
