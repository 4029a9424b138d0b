//! What texts must look like. Each rule answers with the end of a sentence that begins with the text: `"a b" holds white space`.
//!
//! Whatever ends in a command line, a header or a file name is checked here, where line and column are still known.

/// Any text that a program can be given: no NUL, not empty.
pub fn text(text: &str) -> Result<(), String> {
    match text {
        "" => Err("is empty".to_owned()),
        _ if text.contains('\0') => Err("holds a NUL character, which no command can be given".to_owned()),
        _ => Ok(()),
    }
}

/// Any text, also none, without NUL.
pub fn value(text: &str) -> Result<(), String> {
    if text.contains('\0') { Err("holds a NUL character, which no command can be given".to_owned()) } else { Ok(()) }
}

/// Anything at all.
pub fn free(_: &str) -> Result<(), String> {
    Ok(())
}

/// One line without control characters.
pub fn line(text: &str) -> Result<(), String> {
    match text {
        "" => Err("is empty".to_owned()),
        _ if text.chars().any(char::is_control) => {
            Err("holds a control character; it must be one plain line".to_owned())
        }
        _ => Ok(()),
    }
}

/// The name of a stage, an environment, a branch of `parallel`.
pub fn name(text: &str) -> Result<(), String> {
    let fits = (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if fits { Ok(()) } else { Err("must be 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit".to_owned()) }
}

/// A host's id.
pub fn host_id(text: &str) -> Result<(), String> {
    text.parse::<crate::model::ids::HostId>()
        .map(drop)
        .map_err(|_| "must be 1 to 255 characters, no control characters".to_owned())
}

/// `/etc/phased/known_hosts`.
pub fn absolute_path(text: &str) -> Result<(), String> {
    line(text)?;
    if !text.starts_with('/') {
        return Err("is not absolute: begin it with /".to_owned());
    }
    if text.split('/').any(|part| part == "..") { Err("must not hold ..".to_owned()) } else { Ok(()) }
}

/// `reports/unit.xml`, below the run's directory.
pub fn relative_path(text: &str) -> Result<(), String> {
    line(text)?;
    if text.starts_with('/') {
        return Err("must be relative to the run's directory".to_owned());
    }
    if text.split('/').any(|part| part == "..") {
        Err("must not hold ..: it would leave the run's directory".to_owned())
    } else {
        Ok(())
    }
}

/// `app`: an artifact.
pub fn artifact_name(text: &str) -> Result<(), String> {
    let valid = text.parse::<crate::model::ids::ArtifactName>();
    valid
        .map(drop)
        .map_err(|_| "is not an artifact's name: 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit".to_owned())
}

/// What an artifact that is a value may be: it goes wherever the release is named.
pub fn artifact_value(text: &str) -> Result<(), String> {
    line(text)?;
    if text.len() > 256 { Err("is longer than 256 bytes: store it as a file".to_owned()) } else { Ok(()) }
}

/// A directory to run a command in: any path.
pub fn path(text: &str) -> Result<(), String> {
    line(text)
}

/// A name or an address without port.
pub fn address(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    if text.contains('@') {
        return Err("holds a user: give it as ssh.user or user".to_owned());
    }
    if text.contains(':') {
        return Err("holds a colon: give the port as port".to_owned());
    }
    if text.contains('/') {
        return Err("holds a /: give only the name or address".to_owned());
    }
    let fits = text.len() <= 253
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'%'));
    if fits { Ok(()) } else { Err("is not a host name or address".to_owned()) }
}

/// `SHA256:...` as ssh-keygen -l prints it, or `ssh-ed25519 AAAA...` as in a .pub file.
pub fn host_key(text: &str) -> Result<(), String> {
    use base64::Engine as _;
    line(text)?;
    if let Some(hash) = text.strip_prefix("SHA256:") {
        let read = base64::engine::general_purpose::STANDARD_NO_PAD.decode(hash.trim_end_matches('='));
        return match read {
            Ok(bytes) if bytes.len() == 32 => Ok(()),
            _ => Err("is no fingerprint as ssh-keygen -l prints it".to_owned()),
        };
    }
    let mut words = text.split_ascii_whitespace();
    let (algorithm, blob) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if !matches!(algorithm, "ssh-ed25519" | "ssh-rsa") && !algorithm.starts_with("ecdsa-sha2-nistp") {
        return Err(
            "is neither a fingerprint (SHA256:...) nor a public key (ssh-ed25519 AAAA..., ecdsa-sha2-..., ssh-rsa)"
                .to_owned(),
        );
    }
    // The blob begins with the name of its algorithm, as a length and its letters.
    let bytes = base64::engine::general_purpose::STANDARD.decode(blob).unwrap_or_default();
    let named = bytes.get(4..4 + algorithm.len()).is_some_and(|name| name == algorithm.as_bytes());
    if named && bytes[..3] == [0; 3] { Ok(()) } else { Err("is no whole public key".to_owned()) }
}

/// `[user@]host[:port]`, or `none`.
pub fn jump(text: &str) -> Result<(), String> {
    let (login, rest) = text.split_once('@').map_or((None, text), |(login, rest)| (Some(login), rest));
    if let Some(login) = login {
        user(login)?;
    }
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, after)) => (host, after.strip_prefix(':')),
        None => rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
        return Err("has no valid port".to_owned());
    }
    address(host).map_err(|_| "is not [user@]host[:port]".to_owned())
}

/// A login name.
pub fn user(text: &str) -> Result<(), String> {
    let fits = (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'$' | b'@' | b'\\'));
    if fits { Ok(()) } else { Err("is not a user name".to_owned()) }
}

/// `user` or `user:group`.
pub fn owner(text: &str) -> Result<(), String> {
    let (login, group) = text.split_once(':').map_or((text, None), |(login, group)| (login, Some(group)));
    user(login).and_then(|()| group.map_or(Ok(()), user)).map_err(|_| "is not user or user:group".to_owned())
}

/// `0644`.
pub fn mode(text: &str) -> Result<(), String> {
    let fits = matches!(text.len(), 3 | 4) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    if fits { Ok(()) } else { Err("is not a mode: write it in octal, as in \"0644\"".to_owned()) }
}

/// A variable's name.
pub fn variable(text: &str) -> Result<(), String> {
    let fits = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !fits {
        return Err("is not a variable name: A-Z a-z 0-9 _, the first no digit".to_owned());
    }
    if text.starts_with("PHASED_") { Err("is set by phased itself; choose another name".to_owned()) } else { Ok(()) }
}

/// A header's name.
pub fn header(text: &str) -> Result<(), String> {
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    if fits { Ok(()) } else { Err("is not a header name".to_owned()) }
}

/// A label's name.
pub fn label(text: &str) -> Result<(), String> {
    line(text)
}

/// A unit of systemd, with or without `.service`.
pub fn unit(text: &str) -> Result<(), String> {
    let fits = (1..=255).contains(&text.len())
        && !text.starts_with(['-', '.'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@' | b':' | b'\\'));
    if fits { Ok(()) } else { Err("is not the name of a unit".to_owned()) }
}

/// A container of docker or podman.
pub fn container(text: &str) -> Result<(), String> {
    let fits = text.len() <= 255
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if fits { Ok(()) } else { Err("is not the name of a container".to_owned()) }
}

/// A path of keys in JSON, `build.revision`.
pub fn json_path(text: &str) -> Result<(), String> {
    line(text)?;
    let fits = !text.is_empty() && text.split('.').all(|key| !key.is_empty());
    if fits { Ok(()) } else { Err("is no path of keys such as \"build.revision\"".to_owned()) }
}

/// `https://...` or `http://...`.
pub fn url(text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.starts_with('/') => {
            if text.bytes().any(|b| b <= b' ' || b == 0x7f) {
                Err("holds white space or a control character".to_owned())
            } else {
                Ok(())
            }
        }
        _ => Err("is not a URL: begin it with https:// or http://".to_owned()),
    }
}

/// A URL or `":8080/path"`.
pub fn http_target(text: &str) -> Result<(), String> {
    let Some(rest) = text.strip_prefix(':') else {
        return url(text).map_err(|why| {
            if why.starts_with("is not") { "is neither \":8080/path\" nor a full URL".to_owned() } else { why }
        });
    };
    let (port, path) = rest.split_once('/').map_or((rest, None), |(port, path)| (port, Some(path)));
    valid_port(port)?;
    if path.is_none() {
        return Err("has no path: write \":8080/\" for the root".to_owned());
    }
    if text.bytes().any(|b| b <= b' ' || b == 0x7f) {
        Err("holds white space or a control character".to_owned())
    } else {
        Ok(())
    }
}

/// `":5432"` or `"host:port"`.
pub fn tcp_target(text: &str) -> Result<(), String> {
    let wrong = || "is neither \":5432\" nor \"host:port\"".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    valid_port(port)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() { Ok(()) } else { address(host).map_err(|_| wrong()) }
}

fn valid_port(port: &str) -> Result<(), String> {
    match port.parse::<u16>() {
        Ok(1..) if port.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => Err(format!("has no valid port ({port:?} is not 1 to 65535)")),
    }
}

/// `ssh-ed25519 AAAA... web1`.
pub fn public_key(text: &str) -> Result<(), String> {
    text.parse::<crate::model::signal::PublicKey>()
        .map(drop)
        .map_err(|error| format!("is no public key: {}", error.why()))
}

/// What git clones from, and what it must not be made to run: `ext::` and options are refused.
pub fn git_url(text: &str) -> Result<(), String> {
    line(text)?;
    if text.starts_with('-') {
        return Err("begins with -, which git would read as an option".to_owned());
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return match scheme {
            "https" | "http" | "ssh" => {
                let authority = rest.split('/').next().unwrap_or("");
                let (login, host) = authority.rsplit_once('@').map_or(("", authority), |(login, host)| (login, host));
                if host.is_empty() || host.starts_with('-') || login.starts_with('-') {
                    Err("names no host".to_owned())
                } else if login.contains(':') {
                    Err("holds a password: give it as token = phased.secret \"name\"".to_owned())
                } else if text.contains(' ') {
                    Err("holds a space".to_owned())
                } else {
                    Ok(())
                }
            }
            "file" if rest.starts_with('/') => Ok(()),
            "file" => Err("must be file:/// and an absolute path".to_owned()),
            _ => Err(format!("has a scheme that is not allowed ({scheme}): use https, ssh or file")),
        };
    }
    if text.contains("::") {
        return Err("names a remote helper, which could run anything: use https, ssh or file".to_owned());
    }
    match text.split_once(':') {
        Some((host, path)) if !host.is_empty() && !host.contains('/') && !path.is_empty() && !path.starts_with('-') => {
            Ok(())
        }
        _ => {
            Err("is not a git URL: https://host/path.git, ssh://user@host/path, user@host:path or file:///path"
                .to_owned())
        }
    }
}

/// The name of a branch, by the rules of git-check-ref-format.
pub fn branch(text: &str) -> Result<(), String> {
    let wrong = text.is_empty()
        || text.starts_with(['-', '/'])
        || text.ends_with(['/', '.'])
        || text == "@"
        || text.contains("..")
        || text.contains("//")
        || text.contains("@{")
        || text.split('/').any(|part| part.starts_with('.') || part.ends_with(".lock"))
        || text.chars().any(|c| c.is_control() || " ~^:?*[\\".contains(c));
    if text.starts_with("refs/") {
        return Err("must be the short name, as in \"main\"".to_owned());
    }
    if wrong { Err("is not a valid branch name".to_owned()) } else { Ok(()) }
}

/// A pattern of tags' names.
pub fn tag_pattern(text: &str) -> Result<(), String> {
    line(text)?;
    if text.starts_with("refs/") {
        return Err("must be short, as in \"v*\"".to_owned());
    }
    globset::Glob::new(text).map(|_| ()).map_err(|error| format!("is no pattern: {}", error.kind()))
}

/// The IANA name of a time zone.
pub fn zone(text: &str) -> Result<(), String> {
    match crate::time::zone(text) {
        Some(_) => Ok(()),
        None => Err("is no time zone: write it as in \"Europe/Berlin\", or \"UTC\"".to_owned()),
    }
}

/// The name of a secret, as its file is called.
pub fn secret_name(text: &str) -> Result<(), String> {
    let fits = text.len() <= 255
        && text.split('/').all(|part| {
            !matches!(part, "" | "." | "..")
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        });
    if fits { Ok(()) } else { Err("must be parts of A-Z a-z 0-9 . _ - joined by /, none of them . or ..".to_owned()) }
}

/// The name of a module, as `require` takes it.
pub fn module(text: &str) -> Result<(), String> {
    let fits = text.len() <= 200
        && text.split('.').all(|part| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        });
    if fits {
        Ok(())
    } else {
        Err("is not a module name: parts of A-Z a-z 0-9 _ - joined by dots, as in \"alerts.slack\"".to_owned())
    }
}

/// An address of mail, with or without a name before it.
pub fn mailbox(text: &str) -> Result<(), String> {
    line(text)?;
    let bare = text.rsplit_once('<').map_or(text, |(_, rest)| rest.trim_end_matches('>'));
    match bare.rsplit_once('@') {
        Some((user, host)) if !user.is_empty() && !host.is_empty() && !bare.contains(char::is_whitespace) => Ok(()),
        _ => Err("is not a mail address".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(rule: fn(&str) -> Result<(), String>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(rule(text), Ok(()), "{text:?}");
        }
        for text in bad {
            assert!(rule(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn git_urls_cannot_run_anything() {
        all(
            git_url,
            &[
                "https://github.com/acme/shop.git",
                "ssh://git@host:22/x",
                "git@github.com:acme/shop.git",
                "file:///srv/x.git",
            ],
            &[
                "",
                "-uupload-pack=x",
                "ext::sh -c id",
                "--upload-pack=id",
                "https://",
                "https://-x/y",
                "ssh://-oProxyCommand=id/x",
                "https://user:pass@host/x",
                "ftp://host/x",
                "file://relative",
                "/srv/x.git",
                "host:-x",
                "https://h/a\nb",
                "https://h/a b",
            ],
        );
    }

    #[test]
    fn branches_hosts_and_targets() {
        all(
            branch,
            &["main", "feature/x-1", "v1.x"],
            &["", "-x", "a..b", "a b", "a.lock", "refs/heads/main", "a~1", "@", "x/", ".x", "a\n"],
        );
        all(
            address,
            &["web1", "10.0.0.1", "::1", "a.b-c.example"],
            &["", "-x", "a b", "u@h", "h:22", "$(id)", "a/b", "a\nb"],
        );
        all(jump, &["bastion", "ops@bastion:2222", "ops@[::1]:22"], &["", "@h", "h:0", "h:x", "-o@h", "u@-h"]);
        all(
            http_target,
            &[":8080/healthz", ":1/", "https://h/x", "http://h"],
            &[":8080", "8080/x", ":0/x", ":x/y", ":70000/", ":8080/a b", "/x", ""],
        );
        all(tcp_target, &[":5432", "db:5432", "[::1]:80"], &["5432", ":", ":0", "a b:1", ""]);
        all(mode, &["644", "0600"], &["", "6", "0o600", "0888", "rw-r--r--"]);
        all(variable, &["A", "_x1"], &["", "1A", "A-B", "A B", "PHASED_RUN", "A=B"]);
        all(module, &["alerts.slack", "a_b"], &["", "..", "a..b", "/etc", "a/b", "alerts.slack.", "a\0"]);
        all(secret_name, &["a", "shop/production/database_url"], &["", "..", "a/../b", "/a", "a b"]);
        all(unit, &["shop", "shop@1.service"], &["", "-x", "a b", "../x", "a;b"]);
        all(container, &["shop", "shop_web-1.x", "1"], &["", "-x", ".x", "a b", "a/b", "a;b", "a'b"]);
        all(json_path, &["revision", "build.0.sha"], &["", ".", "a..b", ".a", "a\nb"]);
    }
}
