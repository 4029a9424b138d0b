//! `write`, `upload` and `download`. Files of the checkout belong to code under test: they are read and written as the job user,
//! through the same protocol, never by the daemon itself (a link in the checkout must not lead it anywhere).

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::json;
use sha2::Digest as _;
use tokio::io::AsyncWriteExt;

use super::{Job, sink::LogSink, values::Resolved};
use crate::{
    engine::command::{CommandSpec, Download, OutputSink, Shell, Upload, UploadVerdict, Verdict, What, Write},
    model::{cause::Cause, ids::Digest, step::Outcome},
    ports::outputs::Stream,
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

pub(super) async fn upload(job: &Job, args: &Resolved) -> Outcome {
    let timeout = job.timeout(args, LIMIT);
    let (from, to) = (args.text("from").unwrap_or_default(), args.text("to").unwrap_or_default());
    let path = match in_checkout(job, &from) {
        Ok(path) => path,
        Err(cause) => return Outcome::failed(job.placed(cause)),
    };
    let (file, sha256, size) = match fetch(job, &job.sessions.local(), path, timeout).await {
        Ok(fetched) => fetched,
        Err(why) => return failed(job, &format!("{from} of the checkout cannot be read"), *why, timeout),
    };
    let user = args.text("user");
    let (mode, owner) = (mode(args), args.text("owner"));
    // As another user the bytes go to a place of ours first, and are installed from there by a command of that user.
    let direct = user.is_none();
    let staged = format!("/var/tmp/phased-upload-{}", job.token);
    let upload = Upload {
        token: job.token.clone(),
        file: file.0.clone(),
        sha256,
        size,
        to: if direct { to.clone() } else { staged.clone() },
        unpack: false,
        mode: if direct { mode } else { Some(0o644) },
        owner: if direct { owner.clone() } else { None },
        timeout,
        epoch: job.place.epoch.clone(),
        resumed: job.may_have_begun(),
    };
    let changed = match job.session().upload(&upload, &job.stop).await {
        UploadVerdict::Done { changed, .. } => changed,
        UploadVerdict::Failed(cause) => return Outcome::failed(job.placed(cause)),
        UploadVerdict::Unfinished(verdict) => return job.outcome(&verdict, timeout, serde_json::Value::Null),
    };
    if direct {
        return Outcome::Ok(json!({ "changed": changed }));
    }
    install(job, &staged, &to, mode, owner.as_deref(), user, timeout).await
}

async fn install(
    job: &Job,
    staged: &str,
    to: &str,
    mode: Option<u32>,
    owner: Option<&str>,
    user: Option<String>,
    timeout: Duration,
) -> Outcome {
    let text = r#"if cmp -s "$FROM" "$TO"; then same=1; else same=; cp "$FROM" "$TO.phased-new"; fi
new=$TO.phased-new; [ -z "$same" ] || new=$TO
[ -z "$OWNER" ] || chown "$OWNER" "$new"
[ -z "$MODE" ] || chmod "$MODE" "$new"
if [ -z "$same" ]; then mv -f "$new" "$TO"; echo changed; else echo same; fi"#;
    let what = What::Sh { text: text.as_bytes().to_vec(), shell: Shell::Sh };
    // A command of its own within the step: another token, made from the step's.
    let token = Digest::of(format!("{}|install", job.token).as_bytes());
    let mut spec = CommandSpec::new(token, what, timeout);
    let mode = mode.map(|m| format!("{m:o}")).unwrap_or_default();
    let values = [("FROM", staged), ("TO", to), ("OWNER", owner.unwrap_or("")), ("MODE", &mode)];
    spec.env = values.into_iter().map(|(k, v)| (k.to_owned(), v.as_bytes().to_vec())).collect();
    spec.user = user;
    spec.epoch = job.place.epoch.clone();
    let mut sink = LogSink::new(job);
    spec.from = sink.from();
    spec.resumed = job.may_have_begun();
    let verdict = job.session().run(&spec, &mut sink, &job.stop).await;
    let (stdout, stderr, _) = sink.finish().await;
    let token = Digest::of(format!("{}|clean", job.token).as_bytes());
    let clean = What::Exec { argv: vec![b"rm".to_vec(), b"-f".to_vec(), staged.as_bytes().to_vec()] };
    let cleaning = CommandSpec::new(token, clean, Duration::from_secs(30));
    job.session().run(&cleaning, &mut crate::engine::command::Discard, &job.stop).await;
    match verdict {
        Verdict::Exited { code: 0, .. } => Outcome::Ok(json!({ "changed": stdout.starts_with(b"changed") })),
        Verdict::Exited { code, .. } => {
            let message = format!(
                "{to} on {} was not installed (exit code {code}): {}",
                job.place.name(),
                String::from_utf8_lossy(&stderr).trim()
            );
            Outcome::failed(job.placed(Cause::new("upload_failed", message)))
        }
        verdict => job.outcome(&verdict, timeout, serde_json::Value::Null),
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
        file: file.0.clone(),
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
