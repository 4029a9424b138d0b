//! JSON Web Tokens with RS256 (RFC 7515, RFC 7519), as Google's service accounts sign them.

use aws_lc_rs::{rand::SystemRandom, rsa::KeyPair, signature::RSA_PKCS1_SHA256};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Map, Value, json};

use crate::{model::cause::Cause, ports::discovery::JwtAsk};

/// The token of `ask` as of `now_ms`.
pub(super) fn signed(ask: &JwtAsk, now_ms: i64) -> Result<String, Cause> {
    let file: Option<Map<String, Value>> = serde_json::from_slice(ask.key.expose()).ok();
    let field = |name: &str| file.as_ref().and_then(|file| file.get(name)).and_then(Value::as_str);
    let pem = match &file {
        None => std::str::from_utf8(ask.key.expose()).map_err(|_| wrong("it is neither PEM nor JSON"))?,
        Some(_) => field("private_key").ok_or_else(|| wrong("its JSON has no private_key"))?,
    };
    let key = pair(pem)?;
    let now = now_ms / 1000;
    let lifetime = i64::try_from(ask.lifetime.as_secs()).unwrap_or(3600);
    let mut claims =
        Map::from_iter([("iat".to_owned(), json!(now)), ("exp".to_owned(), json!(now.saturating_add(lifetime)))]);
    for (claim, name) in &ask.from_key {
        let value = field(name).ok_or_else(|| wrong(&format!("its JSON has no {name}")))?;
        claims.insert(claim.clone(), json!(value));
    }
    claims.extend(ask.claims.clone());
    let mut header = Map::from_iter([("alg".to_owned(), json!("RS256")), ("typ".to_owned(), json!("JWT"))]);
    if let Some(id) = field("private_key_id") {
        header.insert("kid".to_owned(), json!(id));
    }
    header.extend(ask.header.clone());
    let part = |part: Map<String, Value>| URL_SAFE_NO_PAD.encode(Value::Object(part).to_string());
    let mut token = format!("{}.{}", part(header), part(claims));
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), token.as_bytes(), &mut signature)
        .map_err(|_| wrong("it cannot sign"))?;
    token.push('.');
    token.push_str(&URL_SAFE_NO_PAD.encode(signature));
    Ok(token)
}

fn wrong(why: &str) -> Cause {
    let message = format!(
        "the key of phased.jwt cannot be used: {why}; it must be an RSA private key in PEM, or the JSON key file of a service account"
    );
    Cause::new("jwt_key", message)
}

/// The key of `-----BEGIN PRIVATE KEY-----` (PKCS#8) or `-----BEGIN RSA PRIVATE KEY-----` (PKCS#1).
fn pair(pem: &str) -> Result<KeyPair, Cause> {
    let (kind, rest) = pem
        .split_once("-----BEGIN ")
        .and_then(|(_, rest)| rest.split_once("-----"))
        .ok_or_else(|| wrong("it has no -----BEGIN ... PRIVATE KEY-----"))?;
    let (body, _) = rest.split_once("-----END").ok_or_else(|| wrong("its end is missing"))?;
    let body: String = body.split_whitespace().collect();
    let der = STANDARD.decode(body).map_err(|_| wrong("it is no base64"))?;
    match kind {
        "PRIVATE KEY" => KeyPair::from_pkcs8(&der),
        "RSA PRIVATE KEY" => KeyPair::from_der(&der),
        "ENCRYPTED PRIVATE KEY" => return Err(wrong("it is encrypted with a passphrase")),
        other => return Err(wrong(&format!("it is a {other}"))),
    }
    .map_err(|error| wrong(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_lc_rs::{
        encoding::AsDer as _,
        rsa::KeySize,
        signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey},
    };

    use super::*;
    use crate::ports::secrets::Secret;

    fn ask(key: &str) -> JwtAsk {
        JwtAsk {
            key: Secret::new(key.as_bytes()),
            claims: Map::from_iter([("scope".to_owned(), json!("compute"))]),
            from_key: vec![("iss".to_owned(), "client_email".to_owned())],
            header: Map::new(),
            lifetime: Duration::from_secs(600),
        }
    }

    fn pem(der: &[u8]) -> String {
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der))
    }

    #[test]
    fn a_token_is_what_its_public_key_verifies() {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = pair.as_der().unwrap();
        let file = json!({"private_key": pem(der.as_ref()), "private_key_id": "k1", "client_email": "a@b"});
        let token = signed(&ask(&file.to_string()), 1_700_000_000_999).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let read = |part: &str| -> Value { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap() };
        assert_eq!(read(parts[0]), json!({"alg": "RS256", "typ": "JWT", "kid": "k1"}));
        assert_eq!(
            read(parts[1]),
            json!({"iat": 1_700_000_000, "exp": 1_700_000_600, "iss": "a@b", "scope": "compute"})
        );
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key().as_ref());
        let signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        let text = format!("{}.{}", parts[0], parts[1]);
        public.verify(text.as_bytes(), &signature).unwrap();
        assert!(public.verify(&text.as_bytes()[1..], &signature).is_err());
    }

    #[test]
    fn a_key_that_is_none_is_said_to_be() {
        for (key, why) in [
            ("not a key at all", "no -----BEGIN"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA", "its end is missing"),
            ("-----BEGIN PRIVATE KEY-----\n%%\n-----END PRIVATE KEY-----", "no base64"),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----", "passphrase"),
            ("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----", "it is a EC PRIVATE KEY"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "cannot be used"),
            ("{\"type\": \"service_account\"}", "no private_key"),
        ] {
            let cause = signed(&ask(key), 0).unwrap_err();
            assert!(cause.code == "jwt_key" && cause.message.contains(why), "{cause}");
        }
    }
}
