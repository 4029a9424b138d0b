//! Files.

use super::*;

in_every_shell! {
    async fn upload_checks_resumes_and_skips(host: Host) {
        let file = host.path("artifact");
        let bytes: Vec<u8> = (0u32..600_000).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&file, &bytes).unwrap();
        let to = host.path("installed");
        let mut upload = Upload {
            token: token(1),
            from: Source::File(file),
            sha256: Digest::of(&bytes),
            size: bytes.len() as u64,
            to: to.display().to_string(),
            unpack: false,
            mode: Some(0o640),
            owner: None,
            timeout: Duration::from_secs(30),
            epoch: None, resumed: false,
        };
        let never = CancellationToken::new();
        host.machine().await;
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
        assert_eq!(host.given_up(6).await, Verdict::Void);
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
        let mut upload = Upload {
            token: token(1), from: Source::File(tar), sha256: Digest::of(&bytes), size: bytes.len() as u64, to: to.display().to_string(),
            unpack: true, mode: None, owner: None, timeout: Duration::from_secs(30), epoch: None, resumed: false,
        };
        let done = host.session.upload(&upload, &CancellationToken::new()).await;
        assert!(matches!(done, UploadVerdict::Done { changed: true, .. }), "{done:?}");
        assert_eq!(std::fs::read_to_string(to.join("bin/app")).unwrap(), "new");
        assert!(!to.join("old").exists());
        // Another step: it is there, also with what has come to it since.
        std::fs::write(to.join("log"), "").unwrap();
        let never = CancellationToken::new();
        upload.token = token(2);
        assert_eq!(host.session.upload(&upload, &never).await, UploadVerdict::Done { changed: false, sent: 0 });
        // A file of it that is another one, or gone, and it is unpacked anew.
        for (n, spoil) in [(3, Some("neW")), (4, None)] {
            let app = to.join("bin/app");
            match spoil {
                Some(text) => std::fs::write(&app, text).unwrap(),
                None => std::fs::remove_file(&app).unwrap(),
            }
            upload.token = token(n);
            assert_eq!(host.session.upload(&upload, &never).await, UploadVerdict::Done { changed: true, sent: 0 });
            assert_eq!(std::fs::read_to_string(&app).unwrap(), "new");
        }
        // An archive that cannot be unpacked changes nothing.
        let bad = host.path("bad.tar");
        std::fs::write(&bad, [7; 2000]).unwrap();
        let bytes = std::fs::read(&bad).unwrap();
        (upload.token, upload.from) = (token(5), Source::File(bad));
        (upload.sha256, upload.size) = (Digest::of(&bytes), bytes.len() as u64);
        let UploadVerdict::Failed(cause) = host.session.upload(&upload, &never).await else { panic!() };
        assert_eq!(cause.code, "upload_failed");
        assert_eq!(std::fs::read_to_string(to.join("bin/app")).unwrap(), "new");
        let names = std::fs::read_dir(host.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let left: Vec<String> = names.filter(|name| name.starts_with(".phased-")).collect();
        assert_eq!(left, [".phased-tree-current"]);
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
