//! TLS on the TCP listener, with the command line as its client.

use std::{os::unix::fs::PermissionsExt as _, process::Command};

use super::token;
use crate::fixture::{BINARY, Daemon, Output, Project, World, eventually, free_port, output, pem};

/// A daemon that speaks TLS with this pair, which lies where it can be changed.
fn secured(cert: &str, key: &str) -> World {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", r#"run:sh "echo it is tested""#));
    world.certificate(cert, key);
    world
}

/// `phased ARGS`, asking `https://NAME:port` and believing `ca`.
fn asks(daemon: &Daemon, name: &str, ca: Option<&str>, token: &str, args: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.env("PHASED_ADDR", format!("https://{name}:{}", daemon.addr.port())).env("PHASED_TOKEN", token);
    if let Some(ca) = ca {
        command.env("PHASED_CA_FILE", pem(ca));
    }
    output(&mut command)
}

#[test]
fn the_command_line_asks_over_tls_and_explains_what_it_does_not_believe() {
    let world = secured("signed.pem", "signed.key.pem");
    let daemon = world.start();
    let token = token(&daemon, "admin", None);
    let ask = |name: &str, ca: Option<&str>, args: &[&str]| asks(&daemon, name, ca, &token, args);
    for name in ["localhost", "127.0.0.1"] {
        let said = ask(name, Some("ca.pem"), &["status"]);
        assert!(said.code == 0 && said.stdout.contains("shop"), "{name}: {said:?}");
    }
    // The whole way of a run, streams and all.
    world.repo.push("over tls");
    let said = ask("localhost", Some("ca.pem"), &["start", "shop", "--wait"]);
    assert_eq!(said.code, 0, "{said:?}");
    let said = ask("localhost", Some("ca.pem"), &["log", "shop"]);
    assert!(said.code == 0 && said.stdout.contains("it is tested"), "{said:?}");
    // The very certificate in the file is believed, too; another one is not.
    assert_eq!(ask("localhost", Some("signed.pem"), &["status"]).code, 0);
    for (ca, code, says) in [
        (None, 10, "--ca-file or PHASED_CA_FILE"),
        (Some("ec.pem"), 10, "--ca-file or PHASED_CA_FILE"),
        (Some("ec.sec1.pem"), 2, "holds no certificate"),
        (Some("none.pem"), 2, "cannot read the CA file"),
    ] {
        let said = ask("localhost", ca, &["status"]);
        assert!(said.code == code && said.stderr.contains(says), "{ca:?}: {said:?}");
    }
    // By http to this port, and by https to one that speaks none.
    let mut plain = Command::new(BINARY);
    plain.arg("status").env("PHASED_ADDR", format!("http://{}", daemon.addr)).env("PHASED_TOKEN", &token);
    let said = output(&mut plain);
    assert!(said.code == 1 && said.stderr.contains("ask for https://"), "{said:?}");
    drop(daemon);
    std::fs::remove_file(world.path("api.toml")).unwrap();
    let daemon = world.start();
    let said = asks(&daemon, "localhost", Some("ca.pem"), &token, &["status"]);
    assert!(
        said.code == 10 && said.stderr.contains("(`tls` in its [api]), or is it meant to be asked by http://?"),
        "{said:?}"
    );
}

#[test]
fn certificates_that_are_expired_or_for_another_name_are_named_as_such() {
    for (cert, says) in [("expired.pem", "has expired"), ("other.pem", "is not for \"localhost\"")] {
        let world = secured(cert, "signed.key.pem");
        let daemon = world.start();
        let said = asks(&daemon, "localhost", Some("ca.pem"), "phd_x_y", &["status"]);
        assert!(said.code == 10 && said.stderr.contains(says), "{cert}: {said:?}");
        let wrong = || daemon.cli(&["status"]).stdout.contains("WRONG: the certificate");
        match cert {
            "expired.pem" => {
                eventually("the status says it", || wrong().then_some(()));
                assert!(daemon.said().contains("the certificate needs attention"));
            }
            _ => assert!(!wrong()),
        }
    }
}

#[test]
fn a_renewed_certificate_is_taken_up_and_a_bad_one_is_not() {
    let world = secured("ec.pem", "ec.sec1.pem");
    let daemon = world.start();
    let token = token(&daemon, "admin", None);
    let shows = |ca: &str| asks(&daemon, "localhost", Some(ca), &token, &["status"]).code == 0;
    assert!(shows("ec.pem") && !shows("rsa.pem"));

    // By `phased reload`.
    world.certificate("rsa.pem", "rsa.pkcs1.pem");
    assert_eq!(daemon.cli(&["reload"]).code, 0);
    assert!(shows("rsa.pem") && !shows("ec.pem"));

    // By SIGHUP.
    world.certificate("signed.pem", "signed.key.pem");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    eventually("the new one is shown", || shows("signed.pem").then_some(()));

    // One half of a renewal: refused, said, and nobody is cut off.
    world.certificate("ec.pem", "signed.key.pem");
    let said = daemon.cli(&["reload"]);
    assert!(said.code != 0 && said.stderr.contains("does not fit") && said.stderr.contains("cert.pem"), "{said:?}");
    assert!(shows("signed.pem"));
    let status = daemon.cli(&["status"]);
    assert!(status.stdout.contains("WRONG") && status.stdout.contains("stays in use"), "{status:?}");
    assert!(daemon.said().contains("the new certificate cannot be used"));

    // The other half comes, and nobody has to tell.
    world.certificate("ec.pem", "ec.pkcs8.pem");
    eventually("it is taken up by itself", || shows("ec.pem").then_some(()));
    eventually("nothing is wrong any more", || {
        (!daemon.cli(&["status"]).stdout.contains("stays in use")).then_some(())
    });
}

#[test]
fn what_is_wrong_at_start_is_said_with_file_and_remedy() {
    let starts = |world: &World| output(&mut Daemon::command(&Daemon::configure(world)));
    for (cert, key, says) in [
        ("ec.pem", "rsa.pkcs8.pem", "does not fit the certificate"),
        ("ec.pem", "ec.encrypted.pem", "openssl pkey"),
        ("ec.sec1.pem", "ec.sec1.pem", "holds no certificate"),
    ] {
        let said = starts(&secured(cert, key));
        assert!(said.code == 1 && said.stderr.contains(says) && said.stderr.contains(".pem"), "{cert} {key}: {said:?}");
    }
    let world = secured("ec.pem", "ec.sec1.pem");
    std::fs::remove_file(world.path("key.pem")).unwrap();
    let said = starts(&world);
    assert!(
        said.code == 1 && said.stderr.contains("key.pem") && said.stderr.contains("must be able to read it"),
        "{said:?}"
    );
}

#[test]
fn a_listener_that_others_reach_needs_tls_or_a_word() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let config = Daemon::configure(&world);
    let text = std::fs::read_to_string(&config).unwrap();
    let with = |more: &str| {
        std::fs::write(&config, text.replace("listen = \"127.0.0.1:0\"\n", &format!("listen = \"0.0.0.0:0\"\n{more}")))
            .unwrap();
    };
    let check = || output(Command::new(BINARY).arg("check").arg("--config").arg(&config));
    with("");
    for said in [output(&mut Daemon::command(&config)), check()] {
        assert!(said.code == 1, "{said:?}");
        let all = format!("{}{}", said.stdout, said.stderr);
        for word in ["phased.toml", "0.0.0.0:0", "tls", "plaintext = true", "trusted_proxies"] {
            assert!(all.contains(word), "{word}: {all}");
        }
    }
    world.certificate("ec.pem", "ec.sec1.pem");
    let tls = format!("tls = {{ cert = {:?}, key = {:?} }}\n", world.path("cert.pem"), world.path("key.pem"));
    for more in ["plaintext = true\n", "trusted_proxies = [\"10.0.0.5\"]\n", &tls] {
        with(more);
        let said = check();
        assert_eq!(said.code, 0, "{more}: {said:?}");
    }
    with(&format!("{tls}plaintext = true\n"));
    let said = check();
    assert!(said.code == 1 && format!("{}{}", said.stdout, said.stderr).contains("contradict"), "{said:?}");
}

#[test]
fn check_says_what_is_wrong_with_the_certificate_and_its_key() {
    let world = secured("signed.pem", "signed.key.pem");
    let config = Daemon::configure(&world);
    let check = || output(Command::new(BINARY).args(["check", "--format", "short", "--config"]).arg(&config));
    assert_eq!(check().code, 0);
    let is_wrong = |what: &str, words: &[&str]| {
        let said = check();
        assert_eq!(said.code, 1, "{what}: {said:?}");
        // Each finding on a line, those of projects too.
        assert!(words.iter().all(|word| said.stdout.contains(word)), "{what}: {said:?}");
    };
    for (cert, key, words) in [
        ("expired.pem", "signed.key.pem", &["cert.pem", "has expired"][..]),
        ("signed.pem", "ec.sec1.pem", &["key.pem", "does not fit"]),
        ("signed.key.pem", "signed.key.pem", &["cert.pem", "holds no certificate"]),
        ("signed.pem", "ec.encrypted.pem", &["key.pem", "is encrypted"]),
    ] {
        world.certificate(cert, key);
        is_wrong(cert, words);
    }
    world.certificate("signed.pem", "signed.key.pem");
    std::fs::set_permissions(world.path("key.pem"), std::fs::Permissions::from_mode(0o604)).unwrap();
    is_wrong("open to all", &["key.pem", "is open to everybody"]);
    std::fs::remove_file(world.path("key.pem")).unwrap();
    std::fs::write(world.path("plugins/projects/web.lua"), "return phased.projct {}").unwrap();
    is_wrong("missing", &["cannot read the key", "key.pem", "web.lua"]);
}

#[test]
fn the_doctor_asks_the_port_over_tls() {
    let world = secured("signed.pem", "signed.key.pem");
    std::fs::write(world.path("port"), free_port().to_string()).unwrap();
    let daemon = world.start();
    let port = |config: &std::path::Path| {
        let said = output(Command::new(BINARY).args(["--json", "doctor", "--config"]).arg(config)).stdout;
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let found = said["checks"].as_array().unwrap().iter().find(|check| check["check"] == "port").unwrap().clone();
        (found["state"].as_str().unwrap().to_owned(), found["what"].as_str().unwrap().to_owned())
    };
    let (state, what) = port(&daemon.config);
    assert!(state == "ok" && what.contains("the daemon answers at"), "{state}: {what}");
    // Somebody else's, or one that the daemon has not taken up.
    let other = world.path("other.toml");
    let text = std::fs::read_to_string(&daemon.config).unwrap();
    std::fs::write(&other, text.replace("cert.pem", "other.pem")).unwrap();
    std::fs::copy(pem("ec.pem"), world.path("other.pem")).unwrap();
    let (state, what) = port(&other);
    assert!(state == "fail" && what.contains("another certificate than the one in"), "{state}: {what}");
}
