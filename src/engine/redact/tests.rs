use super::*;
use base64::{Engine as _, engine::general_purpose};
use serde_json::json;

const SECRET: &[u8] = b"p@ss/w\"rd \xc3\xa9&<+>=9";

fn redactor() -> Redactor {
    let mut redactor = Redactor::default();
    redactor.add("db", SECRET);
    redactor
}

fn joined(pieces: &[Piece]) -> Vec<u8> {
    let mut next = 0;
    pieces.iter().for_each(|piece| {
        assert_eq!(piece.offset, next, "pieces follow each other");
        next += piece.raw_len;
    });
    pieces.iter().flat_map(|piece| piece.bytes.clone()).collect()
}

#[test]
fn every_form_is_found() {
    let redactor = redactor();
    let text = std::str::from_utf8(SECRET).unwrap();
    let percent = |upper: bool| -> String {
        SECRET
            .iter()
            .map(|b| match b {
                b if b.is_ascii_alphanumeric() || b"-._~".contains(b) => char::from(*b).to_string(),
                b if upper => format!("%{b:02X}"),
                b => format!("%{b:02x}"),
            })
            .collect()
    };
    let forms = [
        text.to_owned(),
        percent(true),
        percent(false),
        SECRET.iter().map(|b| format!("{b:02x}")).collect(),
        SECRET.iter().map(|b| format!("{b:02X}")).collect(),
        general_purpose::STANDARD.encode(SECRET),
        general_purpose::URL_SAFE_NO_PAD.encode(SECRET),
        serde_json::to_string(text).unwrap().trim_matches('"').to_owned(),
        "p@ss\\/w\\\"rd \\u00e9&<+>=9".to_owned(),
    ];
    for form in forms {
        assert_eq!(redactor.text(&format!("a {form} z")), "a [secret:db] z", "{form}");
    }
}

#[test]
fn base64_of_a_text_around_it_is_found_in_every_alignment() {
    let redactor = redactor();
    for before in ["", "u", "us", "use", "user:"] {
        for after in ["", ";", "\n", "; x"] {
            let text = [before.as_bytes(), SECRET, after.as_bytes()].concat();
            for code in [general_purpose::STANDARD.encode(&text), general_purpose::URL_SAFE.encode(&text)] {
                let shown = redactor.text(&code);
                assert!(shown.contains("[secret:db]"), "{before:?} {after:?}: {shown}");
                // At most two characters of it stay at each side of other text.
                let rest = shown.replace("[secret:db]", "").len();
                let around = general_purpose::STANDARD.encode([before, after].concat()).len();
                assert!(rest <= around + 6, "{shown}");
            }
        }
    }
}

#[test]
fn lines_of_a_key_are_found_one_by_one_and_wrapped_base64_too() {
    let key = "-----BEGIN KEY-----\r\nAAAABBBBCCCCDDDD0123\nshort\nEEEEFFFFGGGG4567\n-----END KEY-----";
    let mut redactor = Redactor::default();
    redactor.add("key", key.as_bytes());
    assert_eq!(redactor.text("x AAAABBBBCCCCDDDD0123 y short"), "x [secret:key] y short");
    assert_eq!(redactor.text(key), "[secret:key]");
    let code = general_purpose::STANDARD.encode(key);
    let wrapped: String =
        code.as_bytes().chunks(76).map(|l| format!("{}\n", std::str::from_utf8(l).unwrap())).collect();
    assert_eq!(redactor.text(&wrapped), "[secret:key]\n[secret:key]\n");
}

/// Texts that are awkward to cut: secrets side by side, overlapping, begun and not finished.
fn awkward() -> (Redactor, Vec<Vec<u8>>) {
    let mut redactor = Redactor::default();
    redactor.add("a", b"abcdefgh");
    redactor.add("long", b"abcdefghijkl");
    redactor.add("tail", b"ghijMNOP");
    redactor.add("rep", b"zzzzzzzz");
    let texts = [
        "abcdefghijkl",
        "abcdefghijk",
        "abcdefghabcdefgh",
        "abcdefghijMNOP!",
        "abcdefghijMNO!",
        "xabcdefgabcdefghx",
        "zzzzzzzzzzzzzzzzzzzzzzz",
        "zzzzzzz",
        "no secret at all",
        "",
    ];
    (redactor, texts.iter().map(|t| t.as_bytes().to_vec()).collect())
}

#[test]
fn overlapping_secrets_leave_no_tail() {
    let (redactor, _) = awkward();
    for (text, shown) in [
        ("abcdefghijMNOP!", "[secret:a]!"),
        ("abcdefghijkl", "[secret:long]"),
        ("abcdefghabcdefgh", "[secret:a][secret:a]"),
        ("zzzzzzzzzzzz-", "[secret:rep]-"),
    ] {
        assert_eq!(redactor.text(text), shown);
    }
}

#[test]
fn a_stream_cut_anywhere_gives_the_same_bytes() {
    let (redactor, mut texts) = awkward();
    texts.push([b"x".as_slice(), SECRET, b"y"].concat());
    texts.push(general_purpose::STANDARD.encode([b"hi", SECRET].concat()).into_bytes());
    let mut both = redactor;
    both.merge(&self::redactor());
    for text in texts {
        let whole = both.bytes(&text);
        for cut in 0..=text.len() {
            let mut stream = both.stream();
            let mut pieces = stream.push(&text[..cut]);
            pieces.extend(stream.push(&text[cut..]));
            pieces.extend(stream.flush());
            assert_eq!(stream.held(), 0);
            assert_eq!(joined(&pieces), whole, "cut at {cut} of {:?}", String::from_utf8_lossy(&text));
        }
        let mut stream = both.stream();
        let mut pieces: Vec<Piece> = text.iter().flat_map(|byte| stream.push(&[*byte])).collect();
        pieces.extend(stream.flush());
        assert_eq!(joined(&pieces), whole, "byte by byte of {:?}", String::from_utf8_lossy(&text));
        assert_eq!(pieces.iter().map(|p| p.raw_len).sum::<u64>(), text.len() as u64);
    }
}

#[test]
fn a_stream_taken_up_again_after_any_piece_shows_no_part_of_a_secret() {
    let (redactor, texts) = awkward();
    for text in texts {
        for cut in 0..=text.len() {
            let mut stream = redactor.stream();
            let mut out = joined(&stream.push(&text[..cut]));
            // The daemon died here: what was held back comes again, to a new stream.
            let resume = cut - stream.held();
            let mut stream = redactor.stream_at(resume as u64);
            for piece in stream.push(&text[resume..]).into_iter().chain(stream.flush()) {
                out.extend(piece.bytes);
            }
            assert_eq!(out, redactor.bytes(&text), "resumed at {resume} of {:?}", String::from_utf8_lossy(&text));
        }
    }
}

#[test]
fn only_what_may_begin_a_secret_is_held_back_and_never_without_bound() {
    let mut redactor = Redactor::default();
    redactor.add("a", b"abcdefgh");
    let mut stream = redactor.stream();
    assert_eq!(stream.push(b"hello")[0].bytes, b"hello");
    assert_eq!(stream.held(), 0);
    assert_eq!(stream.push(b"xabc")[0].bytes, b"x");
    assert_eq!(stream.held(), 3);
    assert_eq!(stream.push(b"!")[0].bytes, b"abc!");

    let mut redactor = Redactor::default();
    redactor.add("z", b"zzzzzzzz");
    let mut stream = redactor.stream();
    let mut shown = Vec::new();
    for _ in 0..10_000 {
        stream.push(b"zzz").into_iter().for_each(|piece| shown.extend(piece.bytes));
        assert!(stream.held() < 400, "{}", stream.held());
    }
    stream.flush().into_iter().for_each(|piece| shown.extend(piece.bytes));
    assert_eq!(shown, b"[secret:z]");
}

#[test]
fn an_empty_one_changes_nothing_and_an_empty_secret_is_none() {
    let mut redactor = Redactor::default();
    redactor.add("none", b"");
    assert!(redactor.is_empty());
    assert_eq!(redactor.bytes(b"\xff\x00x"), b"\xff\x00x");
    let mut stream = redactor.stream();
    assert_eq!(stream.push(b"abc"), vec![Piece { offset: 0, raw_len: 3, bytes: b"abc".to_vec() }]);
    assert!(stream.flush().is_empty());
}

#[test]
fn causes_are_redacted_through_and_through() {
    let secret = std::str::from_utf8(SECRET).unwrap();
    let cause = Cause::new("exit", format!("it said {secret}"))
        .with("deep", json!({"list": [secret, 1, {"k": format!("<{secret}>")}], secret: null}));
    let shown = redactor().cause(&cause);
    assert_eq!(shown.message, "it said [secret:db]");
    assert_eq!(shown.facts["deep"], json!({"list": ["[secret:db]", 1, {"k": "<[secret:db]>"}], "[secret:db]": null}));
    assert!(!format!("{:?}", redactor()).contains("p@ss"), "not even a debug print shows it");
}

#[test]
fn binary_secrets_and_texts_are_fine() {
    let mut redactor = Redactor::default();
    redactor.add("bin", &[0xA9, 0xFF, 0, 1, 2, 3, 4, 5]);
    assert_eq!(redactor.bytes(&[1, 0xA9, 0xFF, 0, 1, 2, 3, 4, 5, 9]), b"\x01[secret:bin]\x09");
    let mut redactor = Redactor::default();
    redactor.add("half", b"\xa9 and more");
    assert_eq!(redactor.text("\u{e9} and more"), "\u{fffd}[secret:half]");
}
