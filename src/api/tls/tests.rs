use std::path::PathBuf;

use super::*;

fn at(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

#[test]
fn every_usual_form_of_key_is_read() {
    for (cert, key) in [
        ("rsa.pem", "rsa.pkcs8.pem"),
        ("rsa.pem", "rsa.pkcs1.pem"),
        ("ec.pem", "ec.pkcs8.pem"),
        ("ec.pem", "ec.sec1.pem"),
        ("signed.pem", "signed.key.pem"),
    ] {
        let loaded = Certificates::load(&at(cert), &at(key)).unwrap_or_else(|e| panic!("{cert} {key}: {e}"));
        assert!(loaded.is_for("phased.test") && loaded.is_for("LOCALHOST") && !loaded.is_for("other.test"), "{cert}");
        loaded.server().unwrap();
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_the_file_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &[u8]| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let good = std::fs::read(at("ec.pem")).unwrap();
    let damaged = String::from_utf8(good.clone()).unwrap().replacen("MII", "!!!", 1);
    let cut = &good[..good.len() / 2];
    for (cert, key, file, says) in [
        (at("ec.pem"), at("rsa.pkcs8.pem"), "rsa.pkcs8.pem", "does not fit the certificate"),
        (at("other.pem"), at("ec.sec1.pem"), "other.pem", "of the same renewal"),
        (at("none.pem"), at("ec.sec1.pem"), "none.pem", "the daemon's user must be able to read it"),
        (at("ec.pem"), at("none.pem"), "none.pem", "cannot read the key"),
        (at("ec.sec1.pem"), at("ec.sec1.pem"), "ec.sec1.pem", "holds no certificate"),
        (at("ec.pem"), at("ec.pem"), "ec.pem", "are the two files swapped?"),
        (at("ec.pem"), at("ec.encrypted.pem"), "ec.encrypted.pem", "is encrypted"),
        (at("ec.pem"), put("empty.pem", b""), "empty.pem", "BEGIN EC PRIVATE KEY"),
        (put("damaged.pem", damaged.as_bytes()), at("ec.sec1.pem"), "damaged.pem", "damaged PEM"),
        (put("cut.pem", cut), at("ec.sec1.pem"), "cut.pem", "the certificate"),
        (put("large.pem", &vec![b'x'; (1 << 20) + 1]), at("ec.sec1.pem"), "large.pem", "is it the right file?"),
        (
            put("junk.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            at("ec.sec1.pem"),
            "junk.pem",
            "no X.509 certificate",
        ),
    ] {
        let error = Certificates::load(&cert, &key).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(says), "{error}");
    }
}

#[test]
fn a_bad_new_pair_leaves_the_old_one_in_use_and_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let put = |cert_name: &str, key_name: &str| {
        std::fs::copy(at(cert_name), &cert).unwrap();
        std::fs::copy(at(key_name), &key).unwrap();
    };
    put("signed.pem", "signed.key.pem");
    let loaded = Certificates::load(&cert, &key).unwrap();
    let now = super::super::text::wall_ms("2026-01-01T00:00:00Z").unwrap();
    assert!(loaded.due(now).is_none() && loaded.wrong().is_none());
    let shown = || loaded.read(|state| state.pair.shown.cert.clone());
    let first = shown();

    put("other.pem", "ec.sec1.pem");
    loaded.read_again().unwrap_err();
    assert_eq!(shown(), first);
    let wrong = loaded.wrong().unwrap();
    assert!(wrong.code == "tls_not_reloaded" && wrong.message.contains("stays in use"), "{wrong:?}");

    put("other.pem", "signed.key.pem");
    loaded.read_again().unwrap();
    assert_ne!(shown(), first);
    assert!(loaded.wrong().is_none() && loaded.is_for("other.test"));
}

#[test]
fn the_end_of_a_certificate_is_told_before_it_comes() {
    let moment = |text: &str| super::super::text::wall_ms(text).unwrap();
    // From 2020-01-01 to 2020-01-31.
    let loaded = Certificates::load(&at("expired.pem"), &at("signed.key.pem")).unwrap();
    for (now, code) in [
        ("2019-12-31T00:00:00Z", Some("tls_not_yet_valid")),
        ("2020-01-01T00:00:00Z", None),
        ("2020-01-23T00:00:00Z", None),
        ("2020-01-25T00:00:00Z", Some("tls_expires")),
        ("2020-01-31T00:00:00Z", Some("tls_expired")),
        ("2026-01-31T00:00:00Z", Some("tls_expired")),
    ] {
        assert_eq!(loaded.due(moment(now)).map(|cause| cause.code).as_deref(), code, "{now}");
    }
}

#[tokio::test]
async fn new_files_are_taken_up_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::copy(at("signed.pem"), &cert).unwrap();
    std::fs::copy(at("signed.key.pem"), &key).unwrap();
    let loaded = Certificates::load(&cert, &key).unwrap();
    // A clock on which every look is due at once.
    struct Hasty;
    #[async_trait::async_trait]
    impl Clock for Hasty {
        fn now(&self) -> crate::time::Stamp {
            crate::time::SystemClock::new().now()
        }
        async fn sleep(&self, _: Duration) {
            tokio::task::yield_now().await;
        }
    }
    let stopping = CancellationToken::new();
    let tasks = crate::lifecycle::Tasks::new();
    let watching = tasks
        .spawn("watch", loaded.clone().watch(super::super::tests::Script::new(), Arc::new(Hasty), stopping.clone()));
    // As certbot does it: another file under the same name.
    std::fs::copy(at("other.pem"), dir.path().join("new.pem")).unwrap();
    std::fs::rename(dir.path().join("new.pem"), &cert).unwrap();
    let taken_up = async {
        while !loaded.is_for("other.test") {
            tokio::task::yield_now().await;
        }
    };
    crate::time::within(&crate::time::SystemClock::new(), Duration::from_secs(60), taken_up)
        .await
        .expect("it is taken up");
    stopping.cancel();
    watching.await.unwrap();
}
