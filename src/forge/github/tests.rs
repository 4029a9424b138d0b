use super::*;
use crate::tests::{below, chance, mutated};

const SECRET: &str = "It's a Secret to Everybody";

fn sign(secret: &[u8], body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    mac.update(body);
    let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={hex}")
}

type Read = Result<(Delivery, Option<String>, String), HookError>;

fn read(headers: &[(&str, &str)], body: &[u8], secrets: &[&str]) -> Read {
    let secrets: Vec<Secret> = secrets.iter().map(|s| Secret::new(s.as_bytes())).collect();
    let get = |name: &str| {
        headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| (*value).to_owned()).collect()
    };
    GitHub.read(&get, body, &secrets)
}

fn genuine(event: &str, kind: &str, body: &[u8]) -> Read {
    let signature = sign(SECRET.as_bytes(), body);
    let headers = [
        ("X-Hub-Signature-256", signature.as_str()),
        ("X-GitHub-Event", event),
        ("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        ("Content-Type", kind),
    ];
    read(&headers, body, &[SECRET])
}

fn push_body(reference: &str, after: &str, more: &str) -> String {
    format!(
        r#"{{"ref":"{reference}","before":"{}","after":"{after}","pusher":{{"name":"ann","email":null}}{more}}}"#,
        "1".repeat(40)
    )
}

#[test]
fn the_published_vector() {
    let hex = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let secrets = [Secret::new(SECRET.as_bytes())];
    assert_eq!(check(&[format!("sha256={hex}")], b"Hello, World!", &secrets).unwrap(), hex);
    let known = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"; // RFC 4231 #2
    assert!(check(&[known.to_owned()], b"what do ya want for nothing?", &[Secret::new(b"Jefe")]).is_ok());
}

#[test]
fn pushes_of_every_kind() {
    let sha = "a".repeat(40);
    let after: Sha = sha.parse().unwrap();
    for (reference, more, forced) in [
        ("refs/heads/main", r#","created":false,"deleted":false,"forced":false"#, false),
        ("refs/heads/main", r#","forced":true"#, true),
        ("refs/heads/new", r#","created":true"#, false),
        ("refs/tags/v1", "", false),
    ] {
        let (delivery, id, signature) =
            genuine("push", "application/json", push_body(reference, &sha, more).as_bytes()).unwrap();
        let pusher = Some("ann".to_owned());
        assert_eq!(delivery, Delivery::Push { reference: reference.to_owned(), after: after.clone(), forced, pusher });
        assert_eq!(id.as_deref(), Some("72d3162e-cc78-11e3-81ab-4c9367dc0958"));
        assert_eq!(signature.len(), 64);
    }
    let gone = push_body("refs/heads/old", &"0".repeat(40), r#","deleted":true"#);
    let (delivery, ..) = genuine("push", "application/json", gone.as_bytes()).unwrap();
    assert_eq!(delivery, Delivery::Delete { reference: "refs/heads/old".to_owned() });
}

#[test]
fn forms_are_signed_as_they_are() {
    let json = push_body("refs/heads/a+b é&c=", &"a".repeat(40), "");
    let form = format!("payload={}", percent_encoding::utf8_percent_encode(&json, percent_encoding::NON_ALPHANUMERIC));
    for (body, kind) in [
        (form.clone(), "application/x-www-form-urlencoded"),
        (form.replace("%20", "+"), "application/x-www-form-urlencoded; charset=utf-8"),
    ] {
        let (delivery, ..) = genuine("push", kind, body.as_bytes()).unwrap();
        assert!(matches!(delivery, Delivery::Push { reference, .. } if reference == "refs/heads/a+b é&c="));
    }
    for bad in ["", "payload", "payload=%7B%7D&payload=%7B%7D", "x=1"] {
        assert!(
            matches!(genuine("push", "application/x-www-form-urlencoded", bad.as_bytes()), Err(HookError::Body(..))),
            "{bad}"
        );
    }
}

#[test]
fn header_and_body_must_agree() {
    let ping = br#"{"zen":"Keep it logically awesome.","hook_id":1,"hook":{}}"#;
    let push = push_body("refs/heads/main", &"a".repeat(40), "").into_bytes();
    assert_eq!(genuine("ping", "application/json", ping).unwrap().0, Delivery::Ping);
    assert_eq!(
        genuine("issues", "application/json", br#"{"action":"opened"}"#).unwrap().0,
        Delivery::Other("issues".into())
    );
    for (event, body) in
        [("push", &ping[..]), ("ping", &push), ("issues", &push), ("push", br#"{"action":"opened"}"#), ("create", ping)]
    {
        assert!(matches!(genuine(event, "application/json", body), Err(HookError::Body(..))), "{event}");
    }
}

#[test]
fn signed_nonsense_is_refused_with_the_reason() {
    let (a, zero) = ("a".repeat(40), "0".repeat(40));
    for body in [
        String::new(),
        "[]".into(),
        "{".into(),
        push_body("main", &a, ""),
        push_body("refs/", &a, ""),
        push_body("refs/heads/a\\u0000b", &a, ""),
        push_body("refs/heads/main", "HEAD", ""),
        push_body("refs/heads/main", &a.to_uppercase(), ""),
        push_body("refs/heads/main", &zero, ""),
        push_body("refs/heads/main", &a, r#","deleted":true"#),
        push_body(&format!("refs/heads/{}", "x".repeat(400)), &a, ""),
        r#"{"ref":5,"before":1,"after":{}}"#.into(),
    ] {
        assert!(matches!(genuine("push", "application/json", body.as_bytes()), Err(HookError::Body(..))), "{body}");
    }
    assert!(genuine("push", "text/plain", push_body("refs/heads/main", &a, "").as_bytes()).is_err());
}

#[test]
fn no_forgery_passes() {
    let body = push_body("refs/heads/main", &"a".repeat(40), "");
    let body = body.as_bytes();
    let good = sign(SECRET.as_bytes(), body);
    let with = |signatures: &[&str], body: &[u8], secrets: &[&str]| {
        let mut headers: Vec<(&str, &str)> = signatures.iter().map(|s| ("X-Hub-Signature-256", *s)).collect();
        headers.extend([("X-GitHub-Event", "push"), ("Content-Type", "application/json")]);
        read(&headers, body, secrets)
    };
    assert!(with(&[&good], body, &[SECRET]).is_ok());
    assert!(with(&[&good], body, &["another one", SECRET]).is_ok(), "two during a rotation");
    let hex = &good[7..];
    let (upper, sha1, short) =
        (format!("sha256={}", hex.to_uppercase()), format!("sha1={}", &hex[..40]), &good[..good.len() - 1]);
    let (long, spaced, two) = (format!("{good}0"), format!(" {good}"), format!("{good},{good}"));
    for signatures in [
        &[][..],
        &[""],
        &["sha256="],
        &[hex],
        &[&upper],
        &[&sha1],
        &[short],
        &[&long],
        &[&spaced],
        &[&two],
        &[&good, &good],
        &["sha256=é"],
        &["SHA256=00"],
    ] {
        assert_eq!(with(signatures, body, &[SECRET]).unwrap_err(), HookError::Signature, "{signatures:?}");
    }
    assert!(with(&[&good], body, &[]).is_err(), "no secret, no entry");
    assert!(with(&[&sign(b"", body)], body, &[""]).is_err(), "an empty secret is everybody's");
    assert!(with(&[&sign(b"", body)], body, &["", SECRET]).is_err());

    let mut random = [0u8; 32];
    for _ in 0..10_000 {
        getrandom::fill(&mut random).unwrap();
        let hex: String = random.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(with(&[&format!("sha256={hex}")], body, &[SECRET]).unwrap_err(), HookError::Signature);
    }
    for bit in 0..1_000.min(body.len() * 8) {
        let mut other = body.to_vec();
        other[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(with(&[&good], &other, &[SECRET]).unwrap_err(), HookError::Signature, "bit {bit}");
    }
    let long = vec![b'x'; 200];
    let good = sign(SECRET.as_bytes(), &long);
    for bit in 0..1_000 {
        let mut other = long.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(with(&[&good], &other, &[SECRET]).unwrap_err(), HookError::Signature, "bit {bit}");
    }
}

/// Whatever somebody with the secret says: it is refused with the reason, or it names one whole commit and one whole ref.
#[test]
fn random_deliveries_are_refused_or_name_a_commit() {
    const WORDS: [&str; 20] = [
        "null",
        "true",
        "1e400",
        "{",
        "}",
        "[",
        "]",
        "\"",
        ",",
        ":",
        "\"deleted\":true,",
        "\"ref\":",
        "\"after\":",
        "0000000000",
        "refs/",
        "\\u0000",
        "\\ud800",
        "%22",
        "payload=",
        "\u{ff}",
    ];
    let push = push_body("refs/heads/main", &"a".repeat(40), r#","forced":false,"commits":[{"id":"b"}]"#);
    let whole = [
        ("push", "application/json", push.clone()),
        ("push", "application/x-www-form-urlencoded", format!("payload={}", push.replace('"', "%22"))),
        ("push", "application/json", push_body("refs/heads/old", &"0".repeat(40), r#","deleted":true"#)),
        ("ping", "application/json", r#"{"zen":"Keep it logically awesome.","hook_id":1}"#.to_owned()),
    ];
    let (mut random, cases) = chance("webhooks", 10_000, 200_000);
    let mut seen = [0; 5];
    for case in cases {
        let (event, kind, body) = &whole[below(&mut random, whole.len())];
        let body = mutated(&mut random, body, &WORDS);
        let shown = || body.escape_ascii().to_string();
        let n = match genuine(event, kind, &body) {
            Ok((Delivery::Push { reference, after, .. }, ..)) => {
                let hex = after.as_str().bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                let some = after.as_str().len() == 40 && !after.as_str().bytes().all(|b| b == b'0');
                let plain = reference.starts_with("refs/") && !reference.chars().any(char::is_control);
                assert!(hex && some && plain, "case {case}: {}", shown());
                0
            }
            Ok((Delivery::Delete { reference }, ..)) => {
                assert!(
                    reference.starts_with("refs/") && !reference.chars().any(char::is_control),
                    "case {case}: {}",
                    shown()
                );
                1
            }
            Ok((Delivery::Ping, ..)) => 2,
            Ok((Delivery::Other(_), ..)) => panic!("case {case}: another event of {event}: {}", shown()),
            Err(HookError::Body(_, why)) => {
                assert!(!why.is_empty(), "case {case}: {}", shown());
                3
            }
            Err(error) => panic!("case {case}: {error}: {}", shown()),
        };
        seen[n] += 1;
        // What was signed before it was altered is nobody's.
        let signed = sign(SECRET.as_bytes(), whole[0].2.as_bytes());
        let headers = [
            ("X-Hub-Signature-256", signed.as_str()),
            ("X-GitHub-Event", "push"),
            ("Content-Type", "application/json"),
        ];
        let forged = body != whole[0].2.as_bytes();
        assert_eq!(
            matches!(read(&headers, &body, &[SECRET]), Err(HookError::Signature)),
            forged,
            "case {case}: {}",
            shown()
        );
        seen[4] += usize::from(forged);
    }
    assert!(seen.iter().all(|n| *n > 20), "all of it is met: {seen:?}");
}
