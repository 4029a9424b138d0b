//! `write`, `upload` and `download`. Files of the checkout belong to code under test: they are read and written as the job user,
//! through the same protocol, never by the daemon itself (a link in the checkout must not lead it anywhere).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use serde_json::json;
use sha2::Digest as _;
use tokio::io::AsyncWriteExt;

use super::{Job, sink::LogSink, values::Resolved};
use crate::{
    engine::command::{
        CommandSpec, Download, OutputSink, Session, Source, Upload, UploadVerdict, Verdict, What, Write,
    },
    model::{
        cause::Cause,
        ids::Digest,
        release::{Artifact, Content},
        step::Outcome,
    },
    ports::{blobs::Form, outputs::Stream},
};

const LIMIT: Duration = Duration::from_secs(600);

fn mode(args: &Resolved) -> Option<u32> {
    args.text("mode").and_then(|mode| u32::from_str_radix(mode.trim_start_matches("0o"), 8).ok())
}

/// `NAME=value` lines that systemd's `EnvironmentFile=` and sh both read: the value in double quotes.
fn env_file(env: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in env {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"=\"");
        for byte in value {
            if matches!(byte, b'"' | b'\\' | b'$' | b'`') {
                out.push(b'\\');
            }
            out.push(*byte);
        }
        out.extend_from_slice(b"\"\n");
    }
    out
}

pub(super) async fn write(job: &Job, args: &Resolved) -> Outcome {
    let timeout = job.timeout(args, LIMIT);
    let to = args.text("path").unwrap_or_default();
    let content = args.bytes("content").unwrap_or_else(|| env_file(&args.map("env")));
    let write = Write { to: to.clone(), content, mode: mode(args), owner: args.text("owner") };
    let mut spec = match write.command(job.token.clone(), timeout) {
        Ok(spec) => spec,
        Err(cause) => return Outcome::failed(job.placed(cause)),
    };
    spec.user = args.text("user");
    spec.epoch = job.place.epoch.clone();
    spec.reconnect = job.world.limits.reconnect;
    let mut sink = LogSink::new(job);
    spec.from = sink.from();
    spec.resumed = job.may_have_begun();
    let verdict = job.session().run(&spec, &mut sink, &job.stop).await;
    let (stdout, stderr, _) = sink.finish().await;
    let value = json!({ "changed": stdout.starts_with(b"changed") });
    match verdict {
        Verdict::Exited { code: 0, .. } => Outcome::Ok(value),
        Verdict::Exited { code, .. } => {
            let said = String::from_utf8_lossy(&stderr);
            let message = format!("{to} on {} was not written (exit code {code}): {}", job.place.name(), said.trim());
            Outcome::failed(job.placed(Cause::new("write_failed", message)))
        }
        verdict => job.outcome(&verdict, timeout, value),
    }
}

/// Takes a file's bytes into a temporary file and their digest.
struct Spool {
    file: tokio::fs::File,
    hash: sha2::Sha256,
    size: u64,
    error: Option<std::io::Error>,
}

#[async_trait]
impl OutputSink for Spool {
    async fn output(&mut self, stream: Stream, _offset: u64, bytes: &[u8]) {
        if stream == Stream::Out && self.error.is_none() {
            self.hash.update(bytes);
            self.size += bytes.len() as u64;
            self.error = self.file.write_all(bytes).await.err();
        }
    }
}

/// A file of ours that goes when it is dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.0);
    }
}

/// Brings a file from `session`'s machine here, into a file of ours.
async fn fetch(
    job: &Job,
    session: &crate::engine::command::Session,
    from: String,
    timeout: Duration,
) -> Result<(Temporary, Digest, u64), Box<Result<Verdict, Cause>>> {
    let here =
        |error: std::io::Error| Box::new(Err(Cause::new("disk", format!("a file cannot be spooled here: {error}"))));
    let dir = job.world.data_dir.join("tmp");
    tokio::fs::create_dir_all(&dir).await.map_err(here)?;
    let path = dir.join(job.token.as_str());
    let file = tokio::fs::File::create(&path).await.map_err(here)?;
    let temporary = Temporary(path);
    let mut spool = Spool { file, hash: sha2::Sha256::new(), size: 0, error: None };
    let download = Download { from, timeout };
    let verdict = session.download(&download, &mut spool, &job.stop).await;
    if let Some(error) = spool.error {
        return Err(here(error));
    }
    spool.file.flush().await.map_err(here)?;
    match verdict {
        Verdict::Exited { code: 0, .. } => Ok((temporary, Digest::from_bytes(&spool.hash.finalize()), spool.size)),
        verdict => Err(Box::new(Ok(verdict))),
    }
}

fn failed(job: &Job, what: &str, why: Result<Verdict, Cause>, timeout: Duration) -> Outcome {
    match why {
        Ok(verdict) => job.outcome(&verdict, timeout, serde_json::Value::Null),
        Err(cause) => Outcome::failed(job.placed(Cause { message: format!("{what}: {}", cause.message), ..cause })),
    }
}

/// A path of the run's directory; the step's own user decides what it may be.
fn in_checkout(job: &Job, path: &str) -> Result<String, Cause> {
    let dir = job.place.dir.as_deref().ok_or_else(|| Cause::new("internal", "the run has no directory"))?;
    Ok(Path::new(dir).join(path).to_string_lossy().into_owned())
}

/// What is to be sent.
struct Bytes {
    from: Source,
    sha256: Digest,
    size: u64,
    _spooled: Option<Temporary>,
}

/// An artifact as bytes to send.
fn stored(job: &Job, artifact: &Artifact) -> Result<Bytes, Cause> {
    let blob = |blob: &Digest, form| Source::Blob { blobs: Arc::clone(&job.world.blobs), blob: blob.clone(), form };
    let (from, sha256, size) = match &artifact.content {
        Content::Tree { sha256, size, blob: packed } => (blob(packed, Form::Archive), sha256, *size),
        Content::File { sha256, size } => (blob(sha256, Form::Plain), sha256, *size),
        Content::Value { .. } => {
            let name = &artifact.name;
            let message = format!("{name} is a value and no file: use release.artifacts[\"{name}\"].value");
            return Err(Cause::new("bad_argument", message));
        }
    };
    Ok(Bytes { from, sha256: sha256.clone(), size, _spooled: None })
}

/// The artifact or file of the checkout that the step is to send.
async fn bytes(job: &Job, args: &Resolved, timeout: Duration) -> Result<Bytes, Outcome> {
    let failing = |cause| Outcome::failed(job.placed(cause));
    if let Some(artifact) = args.raw("from").and_then(|from| from.get("$artifact")) {
        let artifact: Artifact = serde_json::from_value(artifact.clone())
            .map_err(|error| failing(Cause::new("bad_argument", format!("that is no artifact: {error}"))))?;
        return stored(job, &artifact).map_err(failing);
    }
    let from = args.text("from").unwrap_or_default();
    let path = in_checkout(job, &from).map_err(failing)?;
    match fetch(job, &job.sessions.local(), path, timeout).await {
        Ok((file, sha256, size)) => {
            Ok(Bytes { from: Source::File(file.0.clone()), sha256, size, _spooled: Some(file) })
        }
        Err(why) => Err(failed(job, &format!("{from} of the checkout cannot be read"), *why, timeout)),
    }
}

pub(super) async fn upload(job: &Job, args: &Resolved) -> Outcome {
    let timeout = job.timeout(args, LIMIT);
    let bytes = match bytes(job, args, timeout).await {
        Ok(bytes) => bytes,
        Err(outcome) => return outcome,
    };
    let upload = Upload {
        token: job.token.clone(),
        from: bytes.from.clone(),
        sha256: bytes.sha256.clone(),
        size: bytes.size,
        to: args.text("to").unwrap_or_default(),
        unpack: args.flag("unpack").unwrap_or(false),
        mode: mode(args),
        owner: args.text("owner"),
        timeout,
        epoch: job.place.epoch.clone(),
        resumed: job.may_have_begun(),
    };
    match args.text("user") {
        None => send(job, &job.session(), &upload).await,
        Some(user) => install(job, &upload, &user).await,
    }
}

/// Sends it to its place. `changed` is whether that is another one now.
async fn send(job: &Job, session: &Session, upload: &Upload) -> Outcome {
    match session.upload(upload, &job.stop).await {
        UploadVerdict::Done { changed, .. } => Outcome::Ok(json!({ "changed": changed })),
        UploadVerdict::Failed(cause) => Outcome::failed(job.placed(here(upload, cause).await)),
        UploadVerdict::Unfinished(verdict) => job.outcome(&verdict, upload.timeout, serde_json::Value::Null),
    }
}

/// A transfer that failed for what lies here is no host's fault, and says so.
async fn here(upload: &Upload, cause: Cause) -> Cause {
    let Source::Blob { blobs, blob, .. } = &upload.from else { return cause };
    let (blobs, blob) = (Arc::clone(blobs), blob.clone());
    let checked = tokio::task::spawn_blocking(move || blobs.check(&blob)).await;
    match checked {
        Ok(Err(error)) => {
            let message = format!(
                "the stored artifact cannot be used: {error}. Start the run again with --retest, which makes another build"
            );
            Cause::new("artifact_lost", message)
        }
        _ => cause,
    }
}

/// Another user's file: the bytes go to a place of ours first, unless they are there, and are put in place by a command of that user.
async fn install(job: &Job, upload: &Upload, user: &str) -> Outcome {
    // Commands of their own within the step: other tokens, made from the step's.
    let token = |what: &str| Digest::of(format!("{}|{what}", job.token).as_bytes());
    let command = |what: &str, staged: Option<&str>| {
        let mut spec = upload.command(token(what), staged)?;
        spec.user = Some(user.to_owned());
        spec.reconnect = job.world.limits.reconnect;
        Ok(spec)
    };
    let staged = format!("/var/tmp/phased-upload-{}", job.token);
    let (look, put) = match (command("look", None), command("install", Some(&staged))) {
        (Ok(look), Ok(put)) => (look, put),
        (Err(cause), _) | (_, Err(cause)) => return Outcome::failed(job.placed(cause)),
    };
    let session = job.session();
    let mut seen = Said::default();
    let verdict = session.run(&look, &mut seen, &job.stop).await;
    match said(job, upload, &verdict, &seen.out, &seen.err) {
        Some(outcome) => return outcome,
        None if seen.out.starts_with(b"same") => return Outcome::Ok(json!({ "changed": false })),
        None => {}
    }
    let staging = Upload {
        to: staged.clone(),
        unpack: false,
        // Theirs to read.
        mode: Some(0o644),
        owner: None,
        ..upload.clone()
    };
    match send(job, &session, &staging).await {
        Outcome::Ok(_) => {}
        other => return other,
    }
    let mut spec = put;
    let mut sink = LogSink::new(job);
    spec.from = sink.from();
    let verdict = session.run(&spec, &mut sink, &job.stop).await;
    let (stdout, stderr, _) = sink.finish().await;
    let clean = What::Exec { argv: vec![b"rm".to_vec(), b"-f".to_vec(), staged.into_bytes()] };
    let cleaning = CommandSpec::new(token("clean"), clean, Duration::from_secs(30));
    session.run(&cleaning, &mut crate::engine::command::Discard, &job.stop).await;
    said(job, upload, &verdict, &stdout, &stderr)
        .unwrap_or_else(|| Outcome::Ok(json!({ "changed": stdout.starts_with(b"changed") })))
}

/// How a command that is part of an upload failed; `None` = it did not.
fn said(job: &Job, upload: &Upload, verdict: &Verdict, out: &[u8], err: &[u8]) -> Option<Outcome> {
    match verdict {
        Verdict::Exited { code: 0, .. } => None,
        Verdict::Exited { code, .. } => {
            let said = String::from_utf8_lossy(if err.is_empty() { out } else { err });
            let (to, host) = (&upload.to, job.place.name());
            let message = format!("{to} on {host} was not installed (exit code {code}): {}", said.trim());
            Some(Outcome::failed(job.placed(Cause::new("upload_failed", message))))
        }
        verdict => Some(job.outcome(verdict, upload.timeout, serde_json::Value::Null)),
    }
}

/// The little that a look says.
#[derive(Default)]
struct Said {
    out: Vec<u8>,
    err: Vec<u8>,
}

#[async_trait]
impl OutputSink for Said {
    async fn output(&mut self, stream: Stream, _offset: u64, bytes: &[u8]) {
        let kept = if stream == Stream::Out { &mut self.out } else { &mut self.err };
        let room = 4096usize.saturating_sub(kept.len()).min(bytes.len());
        kept.extend_from_slice(&bytes[..room]);
    }
}

/// Where artifacts lie that are brought into the run's directory; `pack` leaves it out of others.
const BROUGHT: &str = ".phased/artifacts";

/// Brings an artifact into the run's directory, as the job user; its path there.
pub(super) async fn bring(job: &Job, artifact: &Artifact, timeout: Duration) -> Outcome {
    let found = in_checkout(job, BROUGHT).and_then(|dir| Ok((dir, stored(job, artifact)?)));
    let (dir, bytes) = match found {
        Ok(found) => found,
        Err(cause) => return Outcome::failed(job.placed(cause)),
    };
    let session = job.sessions.local();
    let make = What::Exec { argv: vec![b"mkdir".to_vec(), b"-p".to_vec(), dir.clone().into_bytes()] };
    let token = Digest::of(format!("{}|mkdir", job.token).as_bytes());
    let mut seen = Said::default();
    let upload = Upload {
        token: job.token.clone(),
        from: bytes.from.clone(),
        sha256: bytes.sha256.clone(),
        size: bytes.size,
        to: format!("{dir}/{}", artifact.name),
        unpack: matches!(artifact.content, Content::Tree { .. }),
        mode: None,
        owner: None,
        timeout,
        epoch: None,
        resumed: job.may_have_begun(),
    };
    let verdict = session.run(&CommandSpec::new(token, make, timeout), &mut seen, &job.stop).await;
    if let Some(outcome) = said(job, &upload, &verdict, &seen.out, &seen.err) {
        return outcome;
    }
    match send(job, &session, &upload).await {
        Outcome::Ok(_) => Outcome::Ok(json!(upload.to)),
        other => other,
    }
}

pub(super) async fn download(job: &Job, args: &Resolved) -> Outcome {
    let timeout = job.timeout(args, LIMIT);
    let (from, to) = (args.text("from").unwrap_or_default(), args.text("to").unwrap_or_default());
    let path = match in_checkout(job, &to) {
        Ok(path) => path,
        Err(cause) => return Outcome::failed(job.placed(cause)),
    };
    let fetched = fetch(job, &job.session(), from.clone(), timeout).await;
    let (file, sha256, size) = match fetched {
        Ok(fetched) => fetched,
        Err(why) => return failed(job, &format!("{from} on {} cannot be read", job.place.name()), *why, timeout),
    };
    let value = json!({ "size": size, "sha256": sha256 });
    let upload = Upload {
        // Of these bytes: after a restart the host's file may be another one.
        token: Digest::of(format!("{}|here|{sha256}", job.token).as_bytes()),
        from: Source::File(file.0.clone()),
        sha256,
        size,
        to: path,
        unpack: false,
        mode: None,
        owner: None,
        timeout,
        epoch: None,
        resumed: job.may_have_begun(),
    };
    match job.sessions.local().upload(&upload, &job.stop).await {
        UploadVerdict::Done { .. } => Outcome::Ok(value),
        UploadVerdict::Failed(cause) => Outcome::failed(job.placed(cause)),
        UploadVerdict::Unfinished(verdict) => job.outcome(&verdict, timeout, serde_json::Value::Null),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_files_hold_hostile_values() {
        let env = vec![("A".to_owned(), b"x y".to_vec()), ("B".to_owned(), b"$(touch /x) `id` \"q\" \\ 'z'".to_vec())];
        assert_eq!(
            String::from_utf8(env_file(&env)).unwrap(),
            "A=\"x y\"\nB=\"\\$(touch /x) \\`id\\` \\\"q\\\" \\\\ 'z'\"\n"
        );
    }
}
