//! Host keys that an instance has printed on its console, where nobody but its own boot writes and only the cloud reads.
//!
//! cloud-init prints them once, at the first boot of an instance (its modules `ssh` and `keys_to_console`), each line perhaps behind a mark of
//! the system's log:
//!
//! ```text
//! ec2: -----BEGIN SSH HOST KEY FINGERPRINTS-----
//! ec2: 256 SHA256:2ymZ... root@ip-10-0-0-1 (ED25519)
//! ec2: -----END SSH HOST KEY FINGERPRINTS-----
//! -----BEGIN SSH HOST KEY KEYS-----
//! ssh-ed25519 AAAA... root@ip-10-0-0-1
//! -----END SSH HOST KEY KEYS-----
//! ```

use base64::Engine as _;

/// A machine has a handful of them.
const MOST: usize = 16;

/// The keys of a console's output, as `host_keys` takes them: public keys where it has them, else SHA-256 fingerprints, of the last whole block.
pub(super) fn host_keys(output: &str) -> Vec<String> {
    let keys = block(output, "KEYS").into_iter().filter_map(key);
    let keys: Vec<String> = keys.take(MOST).collect();
    if !keys.is_empty() {
        return keys;
    }
    block(output, "FINGERPRINTS").into_iter().filter_map(fingerprint).take(MOST).collect()
}

/// The lines of the last block that is there from its beginning to its end.
fn block<'a>(output: &'a str, what: &str) -> Vec<&'a str> {
    let (begin, end) = (format!("-----BEGIN SSH HOST KEY {what}-----"), format!("-----END SSH HOST KEY {what}-----"));
    let (mut last, mut open) = (Vec::new(), None::<Vec<&str>>);
    for line in output.lines() {
        if line.contains(&begin) {
            open = Some(Vec::new());
        } else if line.contains(&end) {
            last = open.take().unwrap_or(last);
        } else if let Some(lines) = &mut open {
            lines.push(line);
        }
    }
    last
}

/// `ssh-ed25519 AAAA...` of a line, wherever in it that begins.
fn key(line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    let algorithm =
        words.find(|word| matches!(*word, "ssh-ed25519" | "ssh-rsa") || word.starts_with("ecdsa-sha2-nistp"))?;
    let blob = words.next()?;
    // The blob begins with the name of its algorithm: a line that was cut or mixed with another one is no key.
    let bytes = base64::engine::general_purpose::STANDARD.decode(blob).ok()?;
    let name = bytes.get(4..4 + algorithm.len())?;
    (name == algorithm.as_bytes()).then(|| format!("{algorithm} {blob}"))
}

/// `SHA256:...` of a line.
fn fingerprint(line: &str) -> Option<String> {
    let word = line.split_ascii_whitespace().find(|word| word.starts_with("SHA256:"))?;
    let hash = base64::engine::general_purpose::STANDARD_NO_PAD.decode(word.strip_prefix("SHA256:")?).ok()?;
    (hash.len() == 32).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X";
    const HASH: &str = "SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ";

    fn printed(what: &str, lines: &[&str]) -> String {
        let mark = "<14>Nov 26 07:00:00 ec2: ";
        let lines: String = lines.iter().map(|line| format!("{mark}{line}\r\n")).collect();
        format!(
            "[   12.3] boots\n{mark}-----BEGIN SSH HOST KEY {what}-----\r\n{lines}{mark}-----END SSH HOST KEY {what}-----\r\nlogin: "
        )
    }

    #[test]
    fn keys_are_taken_before_fingerprints_and_of_the_last_whole_block() {
        let hashes =
            printed("FINGERPRINTS", &[&format!("256 {HASH} root@ip-10-0-0-1 (ED25519)"), "1024 MD5:aa:bb no (DSA)"]);
        assert_eq!(host_keys(&hashes), [HASH]);
        let keys = printed("KEYS", &[&format!("{A} root@ip-10-0-0-1")]);
        assert_eq!(host_keys(&format!("{hashes}{keys}")), [A]);
        // Made anew at a later boot; the block of a boot after that has not been printed to its end.
        let again = printed("KEYS", &[B]);
        let cut = printed("KEYS", &[A]);
        let cut = &cut[..cut.find("-----END").unwrap()];
        assert_eq!(host_keys(&format!("{keys}{again}{cut}")), [B]);
    }

    #[test]
    fn what_is_no_key_is_none() {
        assert!(host_keys("").is_empty());
        assert!(host_keys(A).is_empty(), "it stands in no block");
        let half = &A[..A.len() - 9];
        let keys = printed("KEYS", &["ssh-ed25519", half, "ssh-rsa AAAAC3NzaC1lZDI1NTE5", "ssh-dss AAAA", "words"]);
        assert!(host_keys(&keys).iter().all(|key| key.starts_with("ssh-ed25519 AAAAC3Nza")), "{:?}", host_keys(&keys));
        assert!(host_keys(&printed("FINGERPRINTS", &["256 SHA256:short root (RSA)", "256 SHA256:"])).is_empty());
        let many: Vec<String> = vec![A.to_owned(); 100];
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(host_keys(&printed("KEYS", &many)).len(), MOST);
    }
}
