//! What a certificate says of itself: for when, and for which names. Its signature is for those who connect to judge.

/// The facts of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Milliseconds since the epoch.
    pub(super) not_before_ms: i64,
    /// Milliseconds since the epoch.
    pub(super) not_after_ms: i64,
    /// Its DNS names, in lower case; the first label may be `*`.
    pub(super) names: Vec<String>,
}

impl Facts {
    /// Whether it is for `name`.
    pub(super) fn is_for(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let of_parent = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        self.names.iter().any(|own| *own == name || of_parent.as_ref() == Some(own))
    }
}

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]` before the version, `[3]` before the extensions (RFC 5280 §4.1).
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const OBJECT_ID: u8 = 0x06;
const OCTETS: u8 = 0x04;
/// subjectAltName, 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// dNSName within it.
const DNS_NAME: u8 = 0x82;

/// Reads a certificate in DER.
pub(super) fn facts(certificate: &[u8]) -> Option<Facts> {
    let (_, certificate, _) = element(certificate).filter(|(tag, ..)| *tag == SEQUENCE)?;
    let (_, mut rest, _) = element(certificate).filter(|(tag, ..)| *tag == SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        rest = element(rest)?.2;
    }
    // serialNumber, signature, issuer.
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, validity, rest) = element(rest).filter(|(tag, ..)| *tag == SEQUENCE)?;
    let (tag, from, after) = element(validity)?;
    let not_before_ms = moment(tag, from)?;
    let (tag, to, _) = element(after)?;
    let not_after_ms = moment(tag, to)?;
    Some(Facts { not_before_ms, not_after_ms, names: names(rest).unwrap_or_default() })
}

/// The DNS names in what follows the validity.
fn names(mut rest: &[u8]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    while let Some((tag, content, after)) = element(rest) {
        rest = after;
        if tag != EXTENSIONS {
            continue;
        }
        let (_, mut extensions, _) = element(content)?;
        while let Some((_, extension, after)) = element(extensions) {
            extensions = after;
            let (_, id, value) = element(extension).filter(|(tag, ..)| *tag == OBJECT_ID)?;
            if id != SUBJECT_ALT_NAME {
                continue;
            }
            // `critical` may stand before the value.
            let (tag, mut value, after) = element(value)?;
            if tag != OCTETS {
                value = element(after)?.1;
            }
            let (_, mut general, _) = element(value)?;
            while let Some((tag, name, after)) = element(general) {
                general = after;
                if tag == DNS_NAME
                    && let Ok(name) = std::str::from_utf8(name)
                {
                    names.push(name.to_ascii_lowercase());
                }
            }
        }
    }
    Some(names)
}

/// Tag, content and what follows of the first element (X.690 §8.1): definite lengths below 4 GiB, one byte of tag.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0usize, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn moment(tag: u8, content: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    let text = match tag {
        // RFC 5280 §4.1.2.5.1.
        UTC_TIME => format!("{}{text}", if text.get(..2)? >= "50" { "19" } else { "20" }),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    if text.len() != 14 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, to: usize| text.get(from..to);
    let rfc3339 = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4)?,
        part(4, 6)?,
        part(6, 8)?,
        part(8, 10)?,
        part(10, 12)?,
        part(12, 14)?
    );
    super::text::wall_ms(&rfc3339)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_both_forms() {
        for (tag, text, is) in [
            (UTC_TIME, "260102030405Z", Some("2026-01-02T03:04:05.000Z")),
            (UTC_TIME, "491231235959Z", Some("2049-12-31T23:59:59.000Z")),
            (UTC_TIME, "500101000000Z", Some("1950-01-01T00:00:00.000Z")),
            (GENERALIZED_TIME, "21260102030405Z", Some("2126-01-02T03:04:05.000Z")),
            (UTC_TIME, "2601020304Z", None),
            (UTC_TIME, "260102030405+0000", None),
            (GENERALIZED_TIME, "20261302030405Z", None),
            (0x13, "260102030405Z", None),
        ] {
            assert_eq!(moment(tag, text.as_bytes()).map(crate::time::rfc3339).as_deref(), is, "{text}");
        }
    }

    #[test]
    fn names_match_as_in_browsers() {
        let names = vec!["deploy.example.com".to_owned(), "*.apps.example.com".to_owned()];
        let facts = Facts { not_before_ms: 0, not_after_ms: 0, names };
        for (name, is) in [
            ("deploy.example.com", true),
            ("DEPLOY.example.com", true),
            ("a.apps.example.com", true),
            ("apps.example.com", false),
            ("a.b.apps.example.com", false),
            ("example.com", false),
            ("", false),
        ] {
            assert_eq!(facts.is_for(name), is, "{name}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let good = super::super::tests::der();
        let facts_of_it = facts(&good).unwrap();
        assert_eq!(facts_of_it.names, ["localhost", "phased.test"]);
        for cut in 0..good.len() {
            assert_eq!(facts(&good[..cut]), None, "{cut}");
        }
        for at in 0..good.len() {
            for bit in [1, 0x40, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                let _any_answer = facts(&bad);
            }
        }
    }
}
