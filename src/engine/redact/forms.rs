//! The forms a secret takes on in output.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};

/// Shorter lines and encoded parts would redact innocent words.
const SHORTEST: usize = 8;

/// Every form of `secret`, unordered, perhaps with doubles.
pub(super) fn all(secret: &[u8]) -> Vec<Vec<u8>> {
    if secret.is_empty() {
        return Vec::new();
    }
    let mut forms = Vec::new();
    encoded(secret, &mut forms);
    let lines: Vec<&[u8]> =
        secret.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    if lines.len() > 1 {
        for line in lines.into_iter().filter(|line| line.len() >= SHORTEST) {
            encoded(line, &mut forms);
        }
    }
    forms
}

fn encoded(secret: &[u8], forms: &mut Vec<Vec<u8>>) {
    forms.push(secret.to_vec());
    if secret.len() < SHORTEST {
        return;
    }
    base64(secret, forms);
    url(secret, forms);
    hex(secret, forms);
    json(secret, forms);
}

fn base64(secret: &[u8], forms: &mut Vec<Vec<u8>>) {
    for (padded, plain) in [(STANDARD, STANDARD_NO_PAD), (URL_SAFE, URL_SAFE_NO_PAD)] {
        let whole = padded.encode(secret).into_bytes();
        // `base64`, `openssl` and PEM wrap their lines; a wrapped secret is found line by line.
        for width in [64, 76] {
            if whole.len() > width {
                forms.extend(whole.chunks(width).filter(|line| line.len() >= SHORTEST).map(<[u8]>::to_vec));
            }
        }
        forms.push(whole);
        // Behind one or two bytes of other text each character holds other bits. The characters at both ends that are not the
        // secret's alone are left out: they differ with the text around it.
        for before in 0..3usize {
            let mut text = vec![0; before];
            text.extend_from_slice(secret);
            let code = plain.encode(&text).into_bytes();
            let (from, to) = ((before * 8).div_ceil(6), text.len() * 8 / 6);
            forms.extend(code.get(from..to).map(<[u8]>::to_vec));
        }
    }
}

fn url(secret: &[u8], forms: &mut Vec<Vec<u8>>) {
    // RFC 3986 unreserved; what encodeURIComponent leaves besides; form encoding, where a space is a plus; paths and queries as
    // lax programs write them.
    for (left, space) in [(&b"-._~"[..], "%20"), (b"-._~!'()*", "%20"), (b"-._*", "+"), (b"-._~!$&'()*+,;=:@/?", "%20")]
    {
        for upper in [true, false] {
            let mut form = Vec::with_capacity(secret.len() * 3);
            for byte in secret {
                match *byte {
                    b' ' => form.extend_from_slice(space.as_bytes()),
                    byte if byte.is_ascii_alphanumeric() || left.contains(&byte) => form.push(byte),
                    byte if upper => form.extend_from_slice(format!("%{byte:02X}").as_bytes()),
                    byte => form.extend_from_slice(format!("%{byte:02x}").as_bytes()),
                }
            }
            forms.push(form);
        }
    }
}

fn hex(secret: &[u8], forms: &mut Vec<Vec<u8>>) {
    forms.push(secret.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect());
    forms.push(secret.iter().flat_map(|byte| format!("{byte:02X}").into_bytes()).collect());
}

fn json(secret: &[u8], forms: &mut Vec<Vec<u8>>) {
    let Ok(text) = std::str::from_utf8(secret) else { return };
    let Ok(quoted) = serde_json::to_string(text) else { return };
    let inner = quoted.get(1..quoted.len() - 1).unwrap_or_default();
    // Python escapes everything beyond ASCII, PHP the slash, Go and Rails what HTML would read.
    let ascii: String = inner
        .chars()
        .map(|c| {
            if c.is_ascii() {
                c.to_string()
            } else {
                c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
            }
        })
        .collect();
    let html = |text: &str| text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    forms.push(html(inner).into_bytes());
    forms.push(ascii.replace('/', "\\/").into_bytes());
    forms.push(inner.replace('/', "\\/").into_bytes());
    forms.push(ascii.into_bytes());
    // JSON within JSON, as in a logged request body.
    if let Ok(twice) = serde_json::to_string(inner) {
        forms.push(twice.as_bytes().get(1..twice.len() - 1).unwrap_or_default().to_vec());
    }
    forms.push(inner.as_bytes().to_vec());
}
