use super::*;
use crate::{
    dice::Dice,
    model::signal::{Order, Rules, Signal, check, read, written},
};

fn key(comment: &str) -> (Secret, PublicKey) {
    let (text, public) = generate(comment).unwrap();
    (Secret::new(text.as_bytes()), public)
}

#[test]
fn a_key_signs_and_its_public_half_verifies() {
    let (private, public) = key("integration");
    assert_eq!(public_half(&private).unwrap(), public);
    assert_eq!(public.comment(), "integration");
    let (by, signature) = Ed25519.sign(&private, Domain::Signal, b"hello").unwrap();
    assert_eq!(by, public);
    assert!(Ed25519.verify(&public, Domain::Signal, b"hello", &signature));
    // Another text, another purpose, another key, another spelling.
    assert!(!Ed25519.verify(&public, Domain::Signal, b"hellO", &signature));
    assert!(!Ed25519.verify(&public, Domain::Answer, b"hello", &signature));
    assert!(!Ed25519.verify(&key("").1, Domain::Signal, b"hello", &signature));
    for other in
        ["", "x", &signature[1..], &format!("{signature}="), &format!(" {signature}"), &format!("{signature}\n")]
    {
        assert!(!Ed25519.verify(&public, Domain::Signal, b"hello", other), "{other:?}");
    }
}

#[test]
fn openssl_and_openssh_read_what_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let (private, public) = key("");
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program).args(args).output().ok()?;
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let path = dir.path().join("key.pub");
    std::fs::write(&path, format!("{public}\n")).unwrap();
    if let Some(said) = run("ssh-keygen", &["-l", "-f", path.to_str().unwrap()]) {
        assert!(said.contains(&public.fingerprint()), "{said}");
    }
    let path = dir.path().join("key");
    std::fs::write(&path, private.expose()).unwrap();
    if let Some(said) = run("openssl", &["pkey", "-in", path.to_str().unwrap(), "-noout", "-text"]) {
        assert!(said.to_ascii_lowercase().contains("ed25519"), "{said}");
    }
    if run("openssl", &["genpkey", "-algorithm", "ed25519", "-out", path.to_str().unwrap()]).is_some() {
        assert!(public_half(&Secret::new(&std::fs::read(&path).unwrap())).is_ok());
    }
}

/// What ssh-keygen and openssl write, as a secret; `None` where they are not there.
fn made(program: &str, args: &[&str]) -> Option<Secret> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let output = std::process::Command::new(program).args(args).arg(&path).output().ok()?;
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Some(Secret::new(&std::fs::read(path).unwrap()))
}

#[test]
fn a_key_that_openssh_made_signs_as_well() {
    let Some(private) = made("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "me@work", "-f"]) else { return };
    let public = public_half(&private).unwrap();
    assert_eq!(public.comment(), "me@work");
    let (by, signature) = Ed25519.sign(&private, Domain::Signal, b"hello").unwrap();
    assert!(by == public && Ed25519.verify(&public, Domain::Signal, b"hello", &signature));
    // Nowhere it is cut is it taken for another key.
    let text = String::from_utf8(private.expose().to_vec()).unwrap();
    let inner: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    for length in 0..STANDARD.decode(&inner).unwrap().len() - 16 {
        let cut = STANDARD.encode(&STANDARD.decode(&inner).unwrap()[..length]);
        let cut = format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{cut}\n-----END OPENSSH PRIVATE KEY-----\n");
        assert!(public_half(&Secret::new(cut.as_bytes())).is_err(), "{length}");
    }
}

#[test]
fn what_is_no_key_says_what_it_is_and_what_makes_one() {
    let refused = |private: &Secret, why: &str| {
        let cause = public_half(private).unwrap_err();
        assert_eq!(cause.code, "signal_key");
        assert!(cause.message.contains(why) && cause.message.contains("phased keys make"), "{why}: {cause}");
    };
    for (text, why) in [
        ("hello, world", "no -----BEGIN"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "end is missing"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----", "OpenSSH, and damaged"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA", "end is missing"),
        ("-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----", "no base64"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "no Ed25519"),
        ("PuTTY-User-Key-File-3: ssh-ed25519\n", "puttygen"),
        ("ssh-ed25519 AAAA me@work", "public key of OpenSSH"),
    ] {
        refused(&Secret::new(text.as_bytes()), why);
    }
    refused(&Secret::new(&[0x30, 0xff]), "openssl pkey -inform DER");
    for (program, args, why) in [
        ("ssh-keygen", &["-q", "-t", "ed25519", "-N", "secret", "-f"][..], "ssh-keygen -p"),
        ("ssh-keygen", &["-q", "-t", "ecdsa", "-N", "", "-f"], "of type ecdsa-sha2-nistp256"),
        ("ssh-keygen", &["-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-f"], "ECDSA key (SEC1)"),
        ("ssh-keygen", &["-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f"], "RSA key (PKCS#1)"),
        ("openssl", &["genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret", "-out"], "openssl pkey"),
        ("openssl", &["genpkey", "-algorithm", "x25519", "-out"], "no Ed25519"),
    ] {
        if let Some(private) = made(program, args) {
            refused(&private, why);
        }
    }
}

#[test]
fn a_file_of_receivers_has_one_key_for_each() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("receivers");
    let [one, two] = ["web1", "web2"].map(|name| key(name).1);
    let look = |text: &str, host: &str| {
        std::fs::write(&path, text).unwrap();
        Ed25519.receiver(path.to_str().unwrap(), &host.parse().unwrap())
    };
    let text = format!("# production\n\nweb1 {one}\ni 0 {two}\nweb1 {one}\n");
    assert_eq!(look(&text, "web1").unwrap(), one);
    assert_eq!(look(&text, "i 0").unwrap(), two, "an id may hold a space");
    // Another's line may be as wrong as it likes; tabs are as good as spaces.
    let text = format!("web\nweb11 {two}\nweb2 ssh-rsa AAAA\n?\nweb1\t{one}\n{text}");
    assert_eq!(look(&text, "web1").unwrap(), one);
    assert!(look(&text, "i").unwrap_err().message.contains("no public key of i "));
    for (text, host, why) in [
        (text.as_str(), "web3", "no public key of web3"),
        (&format!("web1 {one}\nweb1 {two}"), "web1", "another key"),
        ("web1", "web1", "no receiver"),
        ("web1 ssh-rsa AAAA", "web1", "ssh-ed25519 only"),
    ] {
        let cause = look(text, host).unwrap_err();
        assert!(cause.code == "host_key_unknown" && cause.message.contains(why), "{cause}");
    }
    assert!(Ed25519.receiver("/nonexistent", &"web1".parse().unwrap()).is_err());
}

/// Every signal that was changed on the way, signed by somebody else, or meant for somebody or some time else: none is taken.
#[test]
fn of_ten_thousand_that_are_not_right_none_is_taken() {
    let ((private, public), (other, _)) = (key("integration"), key("somebody"));
    let host = "web1".parse().unwrap();
    let projects = ["shop".to_owned()];
    let now_ms = 1_800_000_000_000;
    let rules = Rules { host: &host, projects: &projects, max_age: std::time::Duration::from_secs(300), now_ms };
    let signal = || Signal {
        version: 1,
        project: "shop".parse().unwrap(),
        environment: "production".parse().unwrap(),
        audience: "web1".parse().unwrap(),
        nonce: "0123456789abcdef0123456789abcdef".to_owned(),
        issued_at_ms: now_ms,
        not_after_ms: now_ms + 120_000,
        order: Order::Look {
            release: "a1b2c3d4e5f6".parse().unwrap(),
            revision: "a1b2c3d4e5f60718293a4b5c6d7e8f9012345678".parse().unwrap(),
        },
    };
    // As a receiver does it: signature, form, rules.
    let taken = |document: &[u8], signature: &str| -> Result<(), String> {
        if !Ed25519.verify(&public, Domain::Signal, document, signature) {
            return Err("signal_signature".to_owned());
        }
        let signal: Signal = read(document).map_err(|_| "signal_form".to_owned())?;
        check(&signal, &rules).map_err(|cause| cause.code)
    };
    let sign = |key: &Secret, document: &[u8]| Ed25519.sign(key, Domain::Signal, document).unwrap().1;
    let (whole, mut dice) = (written(&signal()), Dice::at(0x5eed));
    let genuine = sign(&private, &whole);
    assert_eq!(taken(&whole, &genuine), Ok(()));
    let mut refused = std::collections::BTreeMap::<String, u32>::new();
    for case in 0..10_000 {
        let (mut document, mut signature) = (whole.clone(), genuine.clone());
        match case % 6 {
            0 => {
                let at = dice.below(document.len());
                document[at] ^= 1 << dice.below(8);
            }
            1 => {
                // A bit of the signature itself.
                let mut bytes = STANDARD.decode(&genuine).unwrap();
                let at = dice.below(bytes.len());
                bytes[at] ^= 1 << dice.below(8);
                signature = STANDARD.encode(bytes);
            }
            2 => signature = sign(&other, &document),
            3 => {
                document =
                    written(&Signal { audience: format!("web{}", dice.below(1000) + 2).parse().unwrap(), ..signal() });
                signature = sign(&private, &document);
            }
            4 => {
                let age = i64::try_from(dice.below(1_000_000)).unwrap() + 120_001;
                let (issued_at_ms, not_after_ms) = (now_ms - age, now_ms - age + 120_000);
                document = written(&Signal { issued_at_ms, not_after_ms, ..signal() });
                signature = sign(&private, &document);
            }
            _ => {
                // Cut, or with something behind it.
                match dice.below(2) {
                    0 => document.truncate(dice.below(whole.len())),
                    _ => document.push(u8::try_from(dice.below(256)).unwrap()),
                }
            }
        }
        let code = taken(&document, &signature).expect_err("it was taken");
        *refused.entry(code).or_default() += 1;
    }
    assert_eq!(refused.values().sum::<u32>(), 10_000);
    assert_eq!(refused.len(), 3, "{refused:?}");
}
