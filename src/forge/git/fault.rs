//! What git says when it fails, as causes.

use std::time::Duration;

use super::{access::Access, command::Ended};
use crate::{
    model::{cause::Cause, ids::Sha, pipeline::Source},
    time::Span,
};

/// The output of a command that ended well.
pub(super) fn output(what: &str, access: Option<&Access>, limit: Duration, ended: Ended) -> Result<Vec<u8>, Cause> {
    let of = access.map_or_else(|| format!("git {what}"), |access| format!("git {what} of {}", access.url.text));
    match ended {
        Ended::Exit { code: 0, out, .. } => Ok(out),
        Ended::Exit { code, err, .. } => {
            let err = access.map_or_else(|| err.clone(), |access| access.redact(&err));
            let said = last_lines(&err);
            let (kind, help) = kind(&err, access.is_some());
            let help = help.map(|help| format!("; {help}")).unwrap_or_default();
            Err(Cause::new(kind, format!("{of} failed: {said}{help}")).with("exit", code))
        }
        Ended::TimedOut => Err(Cause::new(
            "git_timeout",
            format!(
                "{of} took longer than {} and was ended; is the remote slow or the repository very large?",
                Span(limit)
            ),
        )),
        Ended::Broken(error) if error.kind() == std::io::ErrorKind::NotFound => Err(missing()),
        Ended::Broken(error) => Err(Cause::new("git_failed", format!("{of} could not be run: {error}"))),
    }
}

fn missing() -> Cause {
    Cause::new("git_missing", format!("there is no `git` in the daemon's PATH: install git {OLDEST_GIT} or newer"))
}

/// `git version 2.47.3` is new enough.
pub(super) fn version(ended: Ended) -> Result<(), Cause> {
    let out = output("--version", None, Duration::from_secs(60), ended)?;
    let text = String::from_utf8_lossy(&out).trim().to_owned();
    if git_is_new_enough(&text) {
        return Ok(());
    }
    let shown: String = text.chars().take(80).collect();
    Err(Cause::new("git_missing", format!("git is too old ({shown:?}): install {OLDEST_GIT} or newer")))
}

/// The oldest git that does. 2.31 brought configuration by environment, without which a token would have to stand in an argument; 2.32
/// repacks geometrically.
pub const OLDEST_GIT: &str = "2.32";

/// Whether `git --version` said at least [`OLDEST_GIT`].
pub fn git_is_new_enough(said: &str) -> bool {
    let numbers = |text: &str| {
        let mut parts = text.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    numbers(said.strip_prefix("git version ").unwrap_or("")) >= numbers(OLDEST_GIT)
}

fn last_lines(err: &str) -> String {
    let lines: Vec<&str> = err.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(6);
    let said = lines.get(from..).unwrap_or_default().join(" | ");
    // What a remote says may move a terminal's cursor.
    let said: String = said.chars().filter(|c| !c.is_control()).take(1500).collect();
    if said.is_empty() { "it said nothing".to_owned() } else { said }
}

fn kind(err: &str, remote: bool) -> (&'static str, Option<&'static str>) {
    let says = |words: &[&str]| words.iter().any(|word| err.contains(word));
    if !remote {
        if says(&["Not a valid commit name", "bad object", "Could not get object"]) {
            return ("ref_unknown", Some("the mirror has no such commit"));
        }
        return ("git_failed", None);
    }
    if says(&["couldn't find remote ref"]) {
        ("ref_unknown", Some("does the branch exist there?"))
    } else if says(&["Host key verification failed"]) {
        ("git_auth", Some("put the server's key into source.known_hosts"))
    } else if says(&[
        "Permission denied (",
        "Authentication failed",
        "could not read Username",
        "could not read Password",
        "terminal prompts disabled",
        "returned error: 401",
        "returned error: 403",
        "Too many authentication failures",
    ]) {
        ("git_auth", Some("check source.token, source.user or source.key"))
    } else if says(&["Load key", "invalid format", "error in libcrypto"]) {
        ("git_auth", Some("source.key is no private key ssh can read"))
    } else if says(&[
        "not found",
        "does not appear to be a git repository",
        "does not exist",
        "returned error: 404",
        "not a git repository",
    ]) {
        ("git_unreachable", Some("no repository is there, or these credentials may not see it"))
    } else if says(&["dubious ownership"]) {
        ("git_auth", Some("the repository belongs to another user"))
    } else if says(&["redirect"]) {
        ("git_unreachable", Some("the repository has moved: write its new URL"))
    } else if says(&["Could not resolve"]) {
        ("git_unreachable", Some("is the server's name spelt right, and does DNS work on this machine?"))
    } else if says(&["SSL certificate problem", "server certificate verification failed"]) {
        (
            "git_unreachable",
            Some(
                "this machine does not trust the server's certificate: is ca-certificates installed, and its clock right?",
            ),
        )
    } else if says(&[
        "unable to access",
        "Connection",
        "timed out",
        "No route to host",
        "Network is unreachable",
        "hung up",
        "early EOF",
        "Could not read from remote repository",
        "RPC failed",
    ]) {
        ("git_unreachable", None)
    } else {
        ("git_failed", None)
    }
}

fn shown(text: &str) -> String {
    text.chars().take(120).collect()
}

/// Whether the remote did not answer: what is known here is all that can be known just now.
pub(super) fn is_away(cause: &Cause) -> bool {
    matches!(cause.code.as_str(), "git_unreachable" | "git_timeout")
}

pub(super) fn unknown(text: &str, place: &str) -> Cause {
    Cause::new("ref_unknown", format!("{:?} is no branch, tag or commit of {place}", shown(text)))
}

pub(super) fn no_branch(branch: &str, place: &str) -> Cause {
    Cause::new("ref_unknown", format!("{place} has no branch {:?}: check source.branch", shown(branch)))
}

pub(super) fn not_on_branch(sha: &Sha, branch: &str) -> Cause {
    let message =
        format!("commit {sha} is not on branch {:?} (any more): it was pushed elsewhere or pushed over", shown(branch));
    Cause::new("ref_unknown", message)
}

pub(super) fn not_allowed(text: &str, sha: &Sha, source: &Source) -> Cause {
    let tags = match source.tags.is_empty() {
        true => String::new(),
        false => format!(", or push a tag that matches {}", shown(&source.tags.join(", "))),
    };
    let branch = shown(&source.branch);
    let message = format!("{:?} ({sha}) is not part of branch {branch:?}: merge it first{tags}", shown(text));
    Cause::new("ref_not_allowed", message).with("sha", sha.as_str())
}
