use super::*;
use crate::model::{
    ids::{Digest, ReleaseId},
    signal::{Deploy, LIFETIME, Shipped, read, written},
};

const SHA: &str = "a1b2c3d4e5f60718293a4b5c6d7e8f9012345678";
const NOW: i64 = 1_800_000_000_000;

pub(in crate::model) fn signal() -> Signal {
    Signal {
        version: VERSION,
        project: "shop".parse().unwrap(),
        environment: "production".parse().unwrap(),
        audience: "web1".parse().unwrap(),
        nonce: "00112233445566778899aabbccddeeff".to_owned(),
        issued_at_ms: NOW,
        not_after_ms: NOW + i64::try_from(LIFETIME.as_millis()).unwrap(),
        order: Order::Deploy(Box::new(Deploy {
            token: Digest::of(b"token"),
            epoch: Epoch(7),
            deployment: 2,
            step: "step".to_owned(),
            attempt: 2,
            run: crate::model::ids::RunId::new(NOW, 1),
            release: Shipped {
                id: ReleaseId::first_build(&SHA.parse().unwrap()),
                revision: SHA.parse().unwrap(),
                tag: None,
                artifacts: Vec::new(),
            },
            back: false,
            retry_bad: false,
            reason: Some("a push".to_owned()),
        })),
    }
}

fn code(signal: &Signal, projects: &[&str], now_ms: i64) -> Result<(), String> {
    let projects: Vec<String> = projects.iter().map(|p| (*p).to_owned()).collect();
    let host = "web1".parse().unwrap();
    let rules = Rules { host: &host, projects: &projects, max_age: Duration::from_secs(90), now_ms };
    check(signal, &rules).map_err(|cause| cause.code)
}

#[test]
fn a_signal_is_golden() {
    let text = r#"{"audience":"web1","environment":"production","issued_at_ms":1800000000000,"nonce":"00112233445566778899aabbccddeeff","not_after_ms":1800000120000,"order":{"attempt":2,"back":false,"deployment":2,"epoch":7,"kind":"deploy","reason":"a push","release":{"artifacts":[],"id":"a1b2c3d4e5f6","revision":"a1b2c3d4e5f60718293a4b5c6d7e8f9012345678"},"retry_bad":false,"run":"01mcc5rm000000000000000001","step":"step","token":"3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0"},"project":"shop","version":1}"#;
    assert_eq!(String::from_utf8(written(&signal())).unwrap(), text);
    assert_eq!(read::<Signal>(text.as_bytes()).unwrap(), signal());
    // The same data otherwise written, with something more, or something twice, is another document, and none that is read.
    for other in [
        text.replace(":1}", ": 1}"),
        text.replace("{\"audience\"", "{\"all\":1,\"audience\""),
        text.replace("\"version\":1", "\"version\":1,\"version\":1"),
        text.replace("\"epoch\":7", "\"epoch\":7.0"),
        text.replace("a push", "a \\u0070ush"),
        format!("{text}\n"),
        format!(" {text}"),
        text[..text.len() - 1].to_owned(),
        String::new(),
    ] {
        assert!(read::<Signal>(other.as_bytes()).is_err(), "{other}");
    }
}

#[test]
fn each_rule_has_its_code() {
    let with = |change: fn(&mut Signal)| {
        let mut signal = signal();
        change(&mut signal);
        signal
    };
    let refused = |signal: &Signal, now| code(signal, &["shop"], now).unwrap_err();
    assert_eq!(code(&signal(), &["shop"], NOW), Ok(()));
    assert_eq!(refused(&with(|s| s.version = 2), NOW), "signal_form");
    assert_eq!(refused(&with(|s| s.nonce = "x".repeat(32)), NOW), "signal_form");
    assert_eq!(refused(&with(|s| s.nonce.truncate(31)), NOW), "signal_form");
    assert_eq!(refused(&with(|s| s.not_after_ms = NOW - 1), NOW), "signal_form");
    assert_eq!(refused(&with(|s| s.audience = "web2".parse().unwrap()), NOW), "signal_audience");
    // Its commit is not that of its release.
    let other = with(|s| {
        if let Order::Deploy(deploy) = &mut s.order {
            deploy.release.id = "ffffffffffff".parse().unwrap();
        }
    });
    assert_eq!(refused(&other, NOW), "signal_form");
    // Clocks: a minute ahead is no matter, more is; older than max_age or past its own end is too old.
    assert_eq!(code(&signal(), &["shop"], NOW - 60_000), Ok(()));
    assert_eq!(refused(&signal(), NOW - 60_001), "signal_early");
    assert_eq!(code(&signal(), &["shop"], NOW + 90_000), Ok(()));
    assert_eq!(refused(&signal(), NOW + 90_001), "signal_expired");
    assert_eq!(refused(&with(|s| s.not_after_ms = NOW + 5), NOW + 5), "signal_expired");
    // Rights.
    for projects in [&["shop"][..], &["*"], &["billing", "shop/production"]] {
        assert_eq!(code(&signal(), projects, NOW), Ok(()), "{projects:?}");
    }
    for projects in [&[][..], &["sho"], &["shop/staging"], &["shop/"], &["Shop"], &["*/production"]] {
        assert_eq!(code(&signal(), projects, NOW).unwrap_err(), "signal_not_allowed", "{projects:?}");
    }
}

#[test]
fn what_came_once_is_not_taken_again_as_long_as_it_could_be() {
    let host = "web1".parse().unwrap();
    let projects = ["*".to_owned()];
    let rules = |now_ms| Rules { host: &host, projects: &projects, max_age: Duration::from_secs(90), now_ms };
    let mut nonces = Nonces::default();
    nonces.see(&signal(), &rules(NOW)).unwrap();
    for later in [0, 1, 20_000, 60_000, 90_000] {
        assert!(check(&signal(), &rules(NOW + later)).is_ok());
        assert_eq!(nonces.see(&signal(), &rules(NOW + later)).unwrap_err().code, "signal_replayed");
    }
    // Then its age refuses it, and its nonce is forgotten.
    assert!(check(&signal(), &rules(NOW + 90_001)).is_err());
    let other = Signal { nonce: "f".repeat(32), ..signal() };
    nonces.see(&other, &rules(NOW + 110_000)).unwrap();
    assert_eq!(nonces.seen.len(), 1);
}

#[test]
fn what_was_made_before_a_start_is_not_taken_after_it() {
    assert!(remembered(&signal(), NOW - 1).is_ok() && remembered(&signal(), NOW + 60_000).is_ok());
    assert_eq!(remembered(&signal(), NOW + 60_001).unwrap_err().code, "signal_expired");
}

#[test]
fn an_older_deployment_comes_too_late() {
    let newest = |epoch, deployment, step: &str, attempt| Newest {
        epoch: Epoch(epoch),
        deployment,
        step: step.to_owned(),
        attempt,
    };
    let code = |newest: &Newest| in_order(&signal(), Some(newest)).map_err(|cause| cause.code);
    assert!(in_order(&signal(), None).is_ok());
    // Its own, an earlier one, an earlier attempt, and a later attempt of another step of the same deployment.
    for newest in [
        newest(7, 2, "step", 2),
        newest(6, 9, "step", 9),
        newest(7, 1, "step", 9),
        newest(7, 2, "step", 1),
        newest(7, 2, "other", 3),
    ] {
        assert_eq!(code(&newest), Ok(()), "{newest:?}");
    }
    // A later lease, the rollback of the same lease, and a later attempt of the same step.
    for newest in [newest(8, 1, "step", 1), newest(7, 3, "back", 1), newest(7, 2, "step", 3)] {
        assert_eq!(code(&newest), Err("signal_epoch".to_owned()), "{newest:?}");
    }
    // What was kept before deployments had numbers here.
    let old: Newest = serde_json::from_value(serde_json::json!({ "epoch": 7, "run": "x" })).unwrap();
    assert_eq!(code(&old), Ok(()));
    let stop = Order::Stop { token: Digest::of(b"token"), reason: String::new() };
    assert!(in_order(&Signal { order: stop, ..signal() }, Some(&newest(8, 1, "step", 1))).is_ok());
}
