//! Where a repository is and how to get in: URLs read strictly, credentials handed over without touching an argument vector.

use std::{
    fmt::Write as _,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::command::Command;
use crate::{
    model::{cause::Cause, host::SecretRef, pipeline::Source},
    ports::secrets::Secrets,
};

/// How git gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Https,
    /// Only to this machine itself.
    Http,
    Ssh,
    File,
}

/// A repository's URL without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub kind: Kind,
    /// As given to git and shown to people.
    pub text: String,
    /// `https://host:port/`, for the header that goes there only.
    base: String,
    /// The user named in an `https` URL.
    user: Option<String>,
}

fn refuse(url: &str, why: &str) -> Cause {
    // What stands before an @ may be a password.
    let shown: String = match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => url.to_owned(),
    };
    let shown: String = shown.chars().take(200).collect();
    Cause::new("git_url", format!("source.git = {shown:?} {why}"))
}

fn plain(text: &str, more: &str) -> bool {
    !text.is_empty() && !text.starts_with('-') && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

/// `host`, `host:port`, `[::1]:port`.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, rest.strip_prefix(':').or(Some("-"))),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_host = if text.starts_with('[') { plain(host, ":.") || host == "::1" } else { plain(host, "._-") };
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|n| n > 0) && plain(port, ""))
}

impl Url {
    pub(super) fn parse(text: &str) -> Result<Self, Cause> {
        if text.is_empty() || text.len() > 2000 || text.starts_with('-') || text.chars().any(char::is_control) {
            return Err(refuse(
                text,
                "is no URL: it is empty, too long, begins with a dash or holds control characters",
            ));
        }
        let url = |kind, text: String, base: &str, user: Option<&str>| {
            Ok(Url { kind, text, base: base.to_owned(), user: user.map(str::to_owned) })
        };
        if text.starts_with('/') {
            return url(Kind::File, text.to_owned(), "", None);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            // user@host:path; "ext::…" and other helpers have a colon too, but no user and a second colon.
            let (user, place) = text.split_once('@').unwrap_or(("", text));
            let (host, path) = place.split_once(':').unwrap_or((place, ""));
            let sound = (user.is_empty() || plain(user, "._-"))
                && (plain(host, "._-") || text.split_once('@').is_some() && is_authority(host))
                && !path.is_empty()
                && !path.starts_with(['-', ':']);
            if sound {
                return url(Kind::Ssh, text.to_owned(), "", None);
            }
            return Err(refuse(
                text,
                "is no URL phased fetches from: write https://…, ssh://…, user@host:path, file:///… or an absolute path",
            ));
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        match scheme {
            "file" if authority.is_empty() => url(Kind::File, text.to_owned(), "", None),
            "https" | "http" => {
                if user.is_some_and(|user| user.contains(':')) {
                    return Err(refuse(text, "holds a password: put it into a secret and name it as source.token"));
                }
                if !is_authority(host) || user.is_some_and(|user| !plain(user, "._-%+")) {
                    return Err(refuse(text, "names no host that could be asked"));
                }
                let name = host.strip_prefix('[').map_or_else(
                    || host.split(':').next().unwrap_or(""),
                    |_| host.rsplit_once(']').map_or("", |(name, _)| name),
                );
                if scheme == "http"
                    && !matches!(name, "localhost" | "127.0.0.1" | "[::1" | "[")
                    && !name.starts_with("127.")
                {
                    return Err(refuse(
                        text,
                        "is not encrypted, so anybody on the way could put in code: use https:// or ssh://",
                    ));
                }
                let kind = if scheme == "https" { Kind::Https } else { Kind::Http };
                url(kind, format!("{scheme}://{host}/{path}"), &format!("{scheme}://{host}/"), user)
            }
            "ssh" => {
                if !is_authority(host)
                    || user.is_some_and(|user| !plain(user, "._-"))
                    || path.is_empty()
                    || path.starts_with('-')
                {
                    return Err(refuse(text, "is no ssh URL: write ssh://user@host/path"));
                }
                url(Kind::Ssh, text.to_owned(), "", None)
            }
            _ => Err(refuse(text, "is of a kind phased does not fetch from: use https://, ssh:// or file://")),
        }
    }

    fn protocol(&self) -> &'static str {
        match self.kind {
            Kind::Https => "https",
            Kind::Http => "http",
            Kind::Ssh => "ssh",
            Kind::File => "file",
        }
    }
}

/// A way in, for as long as it lives: dropping it removes the key's file.
#[derive(Debug)]
pub(super) struct Access {
    pub url: Url,
    header: Option<String>,
    ssh: Option<String>,
    hidden: Vec<String>,
    file: Option<PrivateFile>,
}

impl Access {
    /// Reads the credentials `source` names. `keys` is a directory only the daemon can enter.
    pub(super) fn new(source: &Source, secrets: &dyn Secrets, keys: &Path) -> Result<Self, Cause> {
        let url = Url::parse(&source.git)?;
        let get = |what: &str, secret: &SecretRef| {
            secrets.get(&secret.name).map_err(|error| Cause::new("git_auth", format!("source.{what}: {error}")))
        };
        let mut access = Access { url, header: None, ssh: None, hidden: Vec::new(), file: None };
        match access.url.kind {
            Kind::Https | Kind::Http => {
                if let Some(token) = &source.token {
                    let token = get("token", token)?;
                    let user = source.user.as_deref().or(access.url.user.as_deref()).unwrap_or("x-access-token");
                    let plain = [user.as_bytes(), b":", token.expose()].concat();
                    if plain.iter().any(u8::is_ascii_control) {
                        let why = "source.token holds a line break or control character: it must be one line";
                        return Err(Cause::new("git_auth", why));
                    }
                    let code = STANDARD.encode(plain);
                    access.header = Some(format!("Authorization: Basic {code}"));
                    access.hidden = vec![code, String::from_utf8_lossy(token.expose()).into_owned()];
                }
            }
            Kind::Ssh => {
                let key = match &source.key {
                    Some(key) => Some(PrivateFile::write(keys, get("key", key)?.expose()).map_err(|error| {
                        Cause::new("git_failed", format!("cannot keep the ssh key in {}: {error}", keys.display()))
                    })?),
                    None => None,
                };
                access.ssh = Some(ssh_command(key.as_ref(), source.known_hosts.as_deref())?);
                access.file = key;
            }
            Kind::File => {
                // A repository of another user on this machine: whoever wrote its path into the project trusts it. Git hands its
                // upload-pack no configuration from the environment, so this takes a file.
                let text = trusting(Path::new(access.url.text.strip_prefix("file://").unwrap_or(&access.url.text)));
                access.file = Some(PrivateFile::write(keys, text.as_bytes()).map_err(|error| {
                    Cause::new("git_failed", format!("cannot write to {}: {error}", keys.display()))
                })?);
            }
        }
        Ok(access)
    }

    /// `command` with what it takes to get there, and nowhere else.
    pub(super) fn equip(&self, command: Command) -> Command {
        let protocol = self.url.protocol();
        let mut command =
            command.env("GIT_ALLOW_PROTOCOL", protocol).config(format!("protocol.{protocol}.allow"), "always");
        if let Some(header) = &self.header {
            // A redirect would take the header along to wherever it points.
            command = command
                .config(format!("http.{}.extraHeader", self.url.base), header.as_str())
                .config("http.followRedirects", "false");
        }
        if let (Kind::File, Some(file)) = (self.url.kind, &self.file) {
            command = command.env("GIT_CONFIG_GLOBAL", &file.path);
        }
        if let Some(ssh) = &self.ssh {
            command = command.env("GIT_SSH_COMMAND", ssh).env("GIT_SSH_VARIANT", "ssh");
        }
        command
    }

    /// `text` without the credentials.
    pub(super) fn redact(&self, text: &str) -> String {
        self.hidden
            .iter()
            .filter(|hidden| !hidden.is_empty())
            .fold(text.to_owned(), |text, hidden| text.replace(hidden, "[secret]"))
    }
}

/// Configuration that lets git read the repository at `path` whoever owns it.
fn trusting(path: &Path) -> String {
    let mut places = vec![path.to_owned()];
    places.extend(path.canonicalize().ok());
    let mut text = "[safe]\n".to_owned();
    for place in places.iter().flat_map(|place| [place.clone(), place.join(".git")]) {
        let value = place.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
        let _infallible = writeln!(text, "\tdirectory = \"{value}\"");
    }
    text
}

/// One word for the shell git hands the command to.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn ssh_command(key: Option<&PrivateFile>, known_hosts: Option<&str>) -> Result<String, Cause> {
    // ssh expands % and ~ in file names, reads a list where one name is meant, and has quotes of its own: escape for ssh first, then
    // for the shell.
    let file = |path: &str| {
        let sound = path.starts_with('/')
            && !path.chars().any(|c| c.is_control() || c == '"' || c == '\\')
            && !path.contains("${");
        sound.then(|| format!("\"{}\"", path.replace('%', "%%"))).ok_or_else(|| {
            Cause::new(
                "git_failed",
                format!("{path:?} cannot be given to ssh: use an absolute path without quotes and backslashes"),
            )
        })
    };
    let mut options: Vec<String> = [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        "ForwardAgent=no",
        "ClearAllForwardings=yes",
        "ConnectTimeout=30",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=3",
    ]
    .map(str::to_owned)
    .to_vec();
    match known_hosts {
        Some(path) => {
            options.push(format!("UserKnownHostsFile={}", file(path)?));
            options.push("GlobalKnownHostsFile=/dev/null".to_owned());
        }
        None => options.push("UserKnownHostsFile=/etc/phased/known_hosts".to_owned()),
    }
    options.push(match key {
        Some(key) => format!("IdentityFile={}", file(&key.path.to_string_lossy())?),
        None => "IdentityFile=none".to_owned(),
    });
    let mut command = "ssh -F none".to_owned();
    for option in options {
        let _infallible = write!(command, " -o {}", shell_word(&option));
    }
    Ok(command)
}

/// A private key, or git's configuration, in a file of its own, 0600, gone when dropped.
#[derive(Debug)]
struct PrivateFile {
    path: PathBuf,
}

impl PrivateFile {
    fn write(dir: &Path, bytes: &[u8]) -> std::io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| std::io::Error::other(error.to_string()))?;
        let name = random.iter().fold(String::new(), |mut name, byte| {
            let _infallible = write!(name, "{byte:02x}");
            name
        });
        let file = PrivateFile { path: dir.join(name) };
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file.path)?;
        out.write_all(bytes)?;
        // OpenSSH refuses a key without the line break that the secret's file had.
        out.write_all(b"\n")?;
        Ok(file)
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a private temporary file could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_git_may_be_given() {
        for (text, kind, shown) in [
            ("https://github.com/acme/shop.git", Kind::Https, "https://github.com/acme/shop.git"),
            ("https://bot@example.com:8443/x.git", Kind::Https, "https://example.com:8443/x.git"),
            ("http://127.0.0.1:8080/x.git", Kind::Http, "http://127.0.0.1:8080/x.git"),
            ("http://[::1]:80/x", Kind::Http, "http://[::1]:80/x"),
            ("ssh://git@example.com:2222/srv/x.git", Kind::Ssh, "ssh://git@example.com:2222/srv/x.git"),
            ("git@github.com:acme/shop.git", Kind::Ssh, "git@github.com:acme/shop.git"),
            ("file:///srv/x y.git", Kind::File, "file:///srv/x y.git"),
            ("/srv/x.git", Kind::File, "/srv/x.git"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.kind, url.text.as_str()), (kind, shown), "{text}");
        }
    }

    #[test]
    fn urls_git_must_never_see() {
        for text in [
            "",
            "-x",
            "--upload-pack=touch /tmp/x",
            "ext::sh -c id",
            "ext::sh@x:y",
            "fd::17",
            "transport::address",
            "git://example.com/x",
            "http://example.com/x",
            "http://127.evil.com@example.com/x",
            "https://user:pass@example.com/x",
            "https://-x/y",
            "https:///x",
            "https://a b/x",
            "ssh://-oProxyCommand=id/x",
            "ssh://-oProxyCommand=id@host/x",
            "ssh://host/-x",
            "ssh://host",
            "ssh://a@b@c/x",
            "-oProxyCommand=id:x",
            "git@-oProxyCommand=id:x",
            "git@host:-x",
            "$(id)@host:x",
            "host",
            "host:",
            "relative/path",
            "a\nb:c",
            "https://host:99999/x",
            "https://host:+1/x",
            "https://[::1/x",
            "FILE:///x",
            "file://host/x",
            "ssh://ho;st/x",
            "https://ex%61/x",
        ] {
            let cause = Url::parse(text).unwrap_err();
            assert_eq!(cause.code, "git_url", "{text:?}");
            assert!(!cause.message.contains("user:pass"), "{}", cause.message);
        }
    }

    #[test]
    fn names_are_quoted_for_ssh_and_for_the_shell() {
        let command = ssh_command(None, Some("/a b/$(id)'%h;`x`")).unwrap();
        assert!(command.contains(r#"'UserKnownHostsFile="/a b/$(id)'\''%%h;`x`"'"#), "{command}");
        for bad in ["relative", "/a\"b", "/a\\b", "/a\nb", "/${HOME}/x"] {
            assert!(ssh_command(None, Some(bad)).is_err(), "{bad:?}");
        }
    }
}
