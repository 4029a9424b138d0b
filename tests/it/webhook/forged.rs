//! Deliveries that nobody with the secret has signed: none is taken, and nothing tells them how the right signature looks.

use super::*;
use crate::fixture::{Dice, times};

/// Nothing that a delivery is answered, and nothing in the log, has the right signature of this body in it.
#[track_caller]
fn keeps_quiet(answer: &Answer, mac: &str) {
    let head: String = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    assert!(!head.contains(mac) && !answer.text().contains(mac), "{head}{}", answer.text());
}

fn unlimited() -> (World, Daemon) {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).webhook());
    std::fs::write(world.path("limits.toml"), "hook_rate = \"none\"\nrefusal_rate = \"none\"\n").unwrap();
    let daemon = world.start();
    (world, daemon)
}

#[test]
fn no_forgery_is_taken_and_none_learns_the_signature() {
    let (world, daemon) = unlimited();
    let commit = world.repo.push("pushed");
    let genuine = Hook::push(MAIN, &commit);
    let right = genuine.signature.clone().unwrap();
    let mac = right.strip_prefix("sha256=").unwrap().to_owned();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();

    let mut forged: Vec<Option<String>> = vec![
        None,
        Some(String::new()),
        Some("sha256=".into()),
        Some(mac.clone()),
        Some(format!("sha1={mac}")),
        Some(format!("SHA256={mac}")),
        Some(format!("sha256={mac} ")).map(|s| s + "x"),
        Some(format!("sha256={mac}00")),
        Some(format!("sha256= {mac}")),
        Some(format!("sha256={}", &mac[..63])),
        Some(format!("sha256={}", &mac[..2])),
        Some(format!("sha256={mac},sha256={mac}")),
        Some(format!("sha256={}", "0".repeat(64))),
        Some(format!("sha256={}", "g".repeat(64))),
        Some(sign(&genuine.body, "")),
        Some(sign(&genuine.body, "wrong")),
        Some(sign(b"", HOOK_SECRET)),
    ];
    // One digit of the right one is another.
    forged.extend((0..64).map(|at| {
        let mut digits = mac.clone().into_bytes();
        digits[at] = if digits[at] == b'0' { b'1' } else { b'0' };
        Some(format!("sha256={}", String::from_utf8(digits).unwrap()))
    }));
    let mut dice = Dice::new("forged");
    let mut byte = || u8::try_from(dice.below(256)).unwrap();
    forged.extend((0..times(500, 10_000)).map(|_| Some(format!("sha256={}", hex(&[(); 32].map(|()| byte()))))));
    for signature in &forged {
        let answer = Hook::push(MAIN, &commit).signed(signature.as_deref()).send(&daemon);
        assert_eq!(answer.problem(), (401, "hook_signature".to_owned()), "{signature:?}");
        keeps_quiet(&answer, &mac);
    }
    // Twice the header: nobody says which of them was checked elsewhere.
    for other in [right.as_str(), "sha256=00"] {
        let twice = daemon.tcp().with("x-hub-signature-256", other);
        let answer = genuine.send_to(&twice, "/hooks/github/shop");
        assert_eq!(answer.problem(), (401, "hook_signature".to_owned()), "{other}");
        keeps_quiet(&answer, &mac);
    }

    // The right signature, over a body in which one bit is another.
    let bits = genuine.body.len() * 8;
    for n in 0..times(200, 1000) {
        let mut hook = Hook::push(MAIN, &commit);
        let bit = if n < 64 { n } else { usize::try_from(dice.below(bits as u64)).unwrap() };
        hook.body[bit / 8] ^= 1 << (bit % 8);
        let answer = hook.send(&daemon);
        assert_eq!(answer.problem(), (401, "hook_signature".to_owned()), "bit {bit}");
        keeps_quiet(&answer, &mac);
    }
    assert!(daemon.runs().is_empty());

    // The genuine one is taken after all of that; again with other ids it is the same run.
    let run = genuine.send(&daemon).is(202).json()["run"].clone();
    for n in 0..20 {
        let replayed = Hook::push(MAIN, &commit).id(&format!("replay-{n}")).send(&daemon).is(200);
        assert_eq!((&replayed.json()["code"], &replayed.json()["run"]), (&json!("duplicate"), &run));
        keeps_quiet(&replayed, &mac);
    }
    daemon.run(run.as_str().unwrap()).wait().is("succeeded");
    assert_eq!(daemon.runs().len(), 1);
    assert!(!daemon.said().contains(&mac) && !daemon.said().contains(HOOK_SECRET));
}

#[test]
fn an_empty_secret_signs_nothing() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).webhook());
    world.secret("hook", "");
    let output = crate::fixture::output(&mut Daemon::command(&Daemon::configure(&world)));
    assert!(output.code != 0 && output.stderr.contains("hook"), "{output:?}");
}

#[test]
fn forgeries_are_told_to_wait_and_genuine_deliveries_are_not() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).webhook());
    std::fs::write(world.path("limits.toml"), "refusal_rate = \"5/h\"\n").unwrap();
    let daemon = world.start();
    let commit = world.repo.push("pushed");
    for n in 0..20 {
        let answer = Hook::push(MAIN, &commit).signed(Some("sha256=00")).send(&daemon);
        let (status, code) = answer.problem();
        assert_eq!((status, code.as_str()), if n < 5 { (401, "hook_signature") } else { (429, "rate_limited") }, "{n}");
        assert!(n < 5 || answer.header("retry-after").is_some());
    }
    let run = tell(&daemon, &commit);
    run.wait().is("succeeded");
    // Who was refused is in the log, with an address; not more often than that.
    let refused =
        daemon.said().lines().filter(|l| l.contains("a request was refused") && l.contains("127.0.0.1")).count();
    assert_eq!(refused, 5);
}
