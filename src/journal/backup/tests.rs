use super::*;

const RUN: &str = "01arz3ndektsv4rrffq69g5fav";

/// A data directory with one of everything.
fn data(dir: &Path) -> DataArchive {
    let layout = Layout::create(&dir.join("data")).unwrap();
    let secrets = dir.join("secrets");
    fs::create_dir_all(secrets.join("shop")).unwrap();
    fs::write(secrets.join("shop/url"), "a secret value").unwrap();
    fs::write(layout.journal.join("control"), b"one\ntwo\ntorn").unwrap();
    let run = layout.runs.join(RUN);
    fs::create_dir_all(run.join("out")).unwrap();
    fs::write(run.join("journal"), b"begun\n").unwrap();
    fs::write(run.join("out").join(format!("{}.log", "long%20name".repeat(18))), b"output").unwrap();
    let code = layout.code.join(Digest::of(b"code").as_str());
    fs::create_dir_all(code.join("files")).unwrap();
    fs::write(code.join("files/x.lua"), b"return 1").unwrap();
    let blob = vec![7; 300_000];
    fs::write(layout.blobs.join(Digest::of(&blob).as_str()), &blob).unwrap();
    // What is no part of it.
    fs::write(layout.blobs.join(".new-1"), b"half").unwrap();
    fs::write(layout.root.join("reserve"), b"nothing").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", run.join("out/link")).unwrap();
    DataArchive::new(layout, secrets)
}

fn manifest(secrets: bool) -> Manifest {
    Manifest { format: 1, version: "1".into(), controller: "m:1".into(), at: "then".into(), at_ms: 1, secrets }
}

fn written(archive: &DataArchive, secrets: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    archive.write(&manifest(secrets), &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_written_is_read_and_secrets_only_if_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let archive = data(dir.path());
    for secrets in [false, true] {
        let mut found = std::collections::BTreeMap::new();
        let bytes = written(&archive, secrets);
        let unpacked = read(&mut &bytes[..], &mut |path, bytes| {
            let mut text = Vec::new();
            bytes.read_to_end(&mut text)?;
            found.insert(path.to_str().unwrap().to_owned(), text);
            Ok(())
        })
        .unwrap();
        assert_eq!((unpacked.manifest, unpacked.runs, unpacked.blobs), (manifest(secrets), 1, 1));
        assert_eq!(
            (unpacked.files, found.len()),
            (5 + u64::from(secrets), 5 + usize::from(secrets)),
            "{:?}",
            found.keys()
        );
        assert_eq!(found["journal/control"], b"one\ntwo\n");
        assert_eq!(found.contains_key("secrets/shop/url"), secrets);
        assert!(
            found
                .keys()
                .any(|name| name.len() > 200 && name.starts_with(&format!("journal/runs/{RUN}/out/long%20name")))
        );
    }
}

#[test]
fn a_backup_that_is_cut_or_altered_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = written(&data(dir.path()), false);
    assert!(check(&mut &bytes[..]).is_ok());
    for cut in [0, 1, 10, bytes.len() / 2, bytes.len() - 5, bytes.len() - 1] {
        let error = check(&mut &bytes[..cut]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "cut at {cut}: {error}");
    }
    for at in (0..bytes.len()).step_by(7) {
        let mut altered = bytes.clone();
        altered[at] ^= 0x20;
        assert!(check(&mut &altered[..]).is_err(), "byte {at}");
    }
    let error = check(&mut &b"something else entirely"[..]).unwrap_err().to_string();
    assert!(error.contains("no backup of phased"), "{error}");
}

/// An archive of these files with a right end.
fn forged(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut to: &mut dyn Write = &mut bytes;
    let mut pack = Pack {
        tar: tar::Builder::new(zstd::stream::write::Encoder::new(&mut to as &mut dyn Write, 1).unwrap()),
        sum: Sum::default(),
    };
    for (name, text) in files {
        // tar itself refuses some names.
        pack.sum.begin(name, text.len() as u64);
        pack.sum.hasher.update(text);
        let mut header = header(text.len() as u64);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        pack.tar.append(&header, *text).unwrap();
    }
    pack.finish().unwrap();
    bytes
}

#[test]
fn nothing_in_it_gets_anywhere_else() {
    let first = serde_json::to_vec(&manifest(false)).unwrap();
    assert!(check(&mut &forged(&[("backup.json", &first), ("journal/control", b"")])[..]).is_ok());
    for name in [
        "../x",
        "/etc/passwd",
        "journal/../../x",
        "LOCK",
        "state/db",
        "work/x",
        "blobs/x",
        "journal/runs/x",
        "code/x",
        "secrets",
        "journal/control/x",
    ] {
        let error = check(&mut &forged(&[("backup.json", &first), (name, b"x")])[..]).unwrap_err().to_string();
        assert!(error.contains("no file of a backup"), "{name}: {error}");
    }
    let blob = format!("blobs/{}", Digest::of(b"x"));
    let error = check(&mut &forged(&[("backup.json", &first), (&blob, b"y")])[..]).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    let later = br#"{"format":2,"new":true}"#;
    let error = check(&mut &forged(&[("backup.json", later)])[..]).unwrap_err().to_string();
    assert!(error.contains("later form"), "{error}");
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_as_long_as_it_was() {
    let mut hasher = Sha256::new();
    let mut bytes = Vec::new();
    Counted { inner: &b"abc"[..], left: 5, hasher: &mut hasher }.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"abc\0\0");
    let mut bytes = Vec::new();
    Counted { inner: &b"abcdefg"[..], left: 5, hasher: &mut hasher }.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"abcde");
}

#[test]
fn secrets_that_are_links_come_along_and_circles_end() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = dir.path().join("secrets");
    let archive = data(dir.path());
    std::fs::write(dir.path().join("elsewhere"), "a linked value").unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), secrets.join("linked")).unwrap();
    std::os::unix::fs::symlink(&secrets, secrets.join("circle")).unwrap();
    let mut found = std::collections::BTreeMap::new();
    read(&mut &written(&archive, true)[..], &mut |path, bytes| {
        let mut text = Vec::new();
        bytes.read_to_end(&mut text)?;
        found.insert(path.display().to_string(), text);
        Ok(())
    })
    .unwrap();
    assert_eq!(found["secrets/linked"], b"a linked value");
    assert_eq!(found["secrets/shop/url"], b"a secret value");
}

#[test]
fn what_extends_an_entry_is_not_read_into_memory() {
    let first = serde_json::to_vec(&manifest(false)).unwrap();
    let with = |kind: tar::EntryType, size: usize| {
        let mut bytes = Vec::new();
        let encoder = zstd::stream::write::Encoder::new(&mut bytes, 1).unwrap();
        let mut tar = tar::Builder::new(encoder);
        tar.append_data(&mut header(first.len() as u64), FIRST, &first[..]).unwrap();
        let mut extension = header(size as u64);
        extension.set_entry_type(kind);
        extension.set_cksum();
        tar.append(&extension, &vec![b'a'; size][..]).unwrap();
        tar.append_data(&mut header(1), "journal/control", &b"x"[..]).unwrap();
        tar.into_inner().unwrap().finish().unwrap();
        check(&mut &bytes[..]).unwrap_err().to_string()
    };
    assert!(with(tar::EntryType::GNULongName, 1 << 20).contains("too long"));
    assert!(with(tar::EntryType::GNULongName, 10).contains("no file of a backup"));
    assert!(with(tar::EntryType::XHeader, 1 << 20).contains("is no file"));
}
