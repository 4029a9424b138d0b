//! `run:artifact`: something of the checkout, or a value, becomes part of the release. What it is was made by code under test, so the
//! job user reads it: `phased pack` does, and what it says is checked as it comes.

use std::{io, sync::Arc};

use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::{Job, transfer, values::Resolved};
use crate::{
    model::{
        cause::Cause,
        ids::ArtifactName,
        release::{Artifact, Content, MOST_ARTIFACTS},
        step::Outcome,
    },
    ports::{
        blobs::{Form, Stored},
        link::{Channel, Exit},
    },
    time::within,
};

/// Between the packer and the disk: so many pieces, of so many bytes.
const PIECES: usize = 4;
const PIECE: usize = 256 * 1024;
/// Of what the packer complains about.
const COMPLAINT: u64 = 4096;

/// What comes from the packer, for whoever stores it: an end that was not said is none.
struct Received {
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
    over: bool,
}

impl io::Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.over && self.piece.position() == self.piece.get_ref().len() as u64 {
            let next = self.pieces.blocking_recv();
            let piece = next.unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was cut")))?;
            self.over = piece.is_empty();
            self.piece = io::Cursor::new(piece);
        }
        if self.over { Ok(0) } else { io::Read::read(&mut self.piece, buffer) }
    }
}

pub(super) async fn store(job: &Job, args: &Resolved) -> Outcome {
    let timeout = job.command_timeout(args);
    let work = async {
        match content(job, args).await {
            Ok(artifact) => Outcome::Ok(json!(artifact)),
            Err(cause) => Outcome::failed(job.placed(cause)),
        }
    };
    let late = || {
        let message =
            format!("it was not packed within {}; raise `timeout` or exclude more", crate::time::Span(timeout));
        Outcome::failed(job.placed(Cause::new("timeout", message)))
    };
    within(&*job.world.clock, timeout, work).await.unwrap_or_else(late)
}

async fn content(job: &Job, args: &Resolved) -> Result<Artifact, Cause> {
    let name: ArtifactName =
        args.text("name").unwrap_or_default().parse().map_err(|e| Cause::new("bad_argument", format!("{e}")))?;
    if !job.place.in_stage {
        let message =
            "run:artifact is for test stages: what ships is made before the first environment has anything of it";
        return Err(Cause::new("not_in_a_stage", message));
    }
    let taken = &job.place.taken;
    if taken.contains(&name) {
        let message = format!("the run has an artifact {name} already: each needs a name of its own");
        return Err(Cause::new("artifact_exists", message));
    }
    if taken.len() >= MOST_ARTIFACTS {
        let message = format!("a release has at most {MOST_ARTIFACTS} artifacts: put several files into one tree");
        return Err(Cause::new("too_many_artifacts", message));
    }
    let content = match args.text("value") {
        Some(value) => Content::Value { value },
        None => pack(job, args).await?,
    };
    Ok(Artifact { name, content })
}

/// Has the job user pack it, and stores what comes.
async fn pack(job: &Job, args: &Resolved) -> Result<Content, Cause> {
    let dir = job.place.dir.clone().ok_or_else(|| Cause::new("internal", "the run has no directory"))?;
    let most = job.world.limits.max_artifact;
    let path = args.text("path").unwrap_or_default();
    let request = json!({ "dir": dir, "path": path, "exclude": args.texts("exclude"), "most": most }).to_string();
    let link = job.sessions.local().link().await.map_err(|error| error.cause)?;
    let binary = job.world.binary.to_string_lossy().replace('\'', r"'\''");
    let Channel { mut stdin, mut stdout, stderr, exit } =
        link.open(&format!("exec '{binary}' pack")).await.map_err(|error| error.cause)?;
    // One that ends before it has read all of it says why.
    let _closed = stdin.write_all(request.as_bytes()).await;
    let _closed = stdin.shutdown().await;
    let mut first = [0; 5];
    let form = match stdout.read_exact(&mut first).await {
        Ok(_) if first == *b"tree\n" => Some(Form::Archive),
        Ok(_) if first == *b"file\n" => Some(Form::Plain),
        _ => None,
    };
    let Some(form) = form else {
        let exit = exit.await.map_err(|error| error.cause)?;
        return Err(refused(job, &path, &exit, stderr).await);
    };
    let (sender, pieces) = mpsc::channel(PIECES);
    let blobs = Arc::clone(&job.world.blobs);
    let storing = tokio::task::spawn_blocking(move || {
        let mut from = Received { pieces, piece: io::Cursor::default(), over: false };
        blobs.store(form, &mut from, most)
    });
    let mut failed = None;
    let whole = loop {
        let mut piece = vec![0; PIECE];
        let n = stdout.read(&mut piece).await.unwrap_or(0);
        piece.truncate(n);
        if n == 0 {
            break true;
        }
        // Whoever stores it has given up, and says why.
        if sender.send(Ok(piece)).await.is_err() {
            break false;
        }
    };
    if whole {
        match exit.await.map_err(|error| error.cause)? {
            // An empty piece is the end.
            Exit::Code(0) => drop(sender.send(Ok(Vec::new())).await),
            exit => failed = Some(refused(job, &path, &exit, stderr).await),
        }
    }
    drop(sender);
    let stored = storing.await.map_err(|error| Cause::new("internal", error.to_string()))?;
    if let Some(cause) = failed {
        return Err(cause);
    }
    let Stored { blob, sha256, size } = stored.map_err(|error| unstored(&path, &error))?;
    Ok(match form {
        Form::Archive => Content::Tree { sha256, size, blob },
        Form::Plain => Content::File { sha256, size },
    })
}

/// Why the packer gave nothing, in its own words.
async fn refused(job: &Job, path: &str, exit: &Exit, stderr: impl AsyncRead + Unpin) -> Cause {
    let mut said = Vec::new();
    let _cut = stderr.take(COMPLAINT).read_to_end(&mut said).await;
    let said = String::from_utf8_lossy(&said);
    let said = said.trim().trim_start_matches("phased: ");
    if matches!(exit, Exit::Code(126 | 127)) {
        let message = format!(
            "the job user cannot run {}, which packs artifacts for the daemon: let everybody read and execute it ({said})",
            job.world.binary.display()
        );
        return Cause::new("job_user", message);
    }
    let why = if said.is_empty() { format!("the packer ended with {exit:?}") } else { said.to_owned() };
    Cause::new("artifact_failed", format!("{path} cannot be made an artifact: {why}"))
}

fn unstored(path: &str, error: &io::Error) -> Cause {
    let (code, what) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ("disk_full", "there is no room for it in data_dir")
        }
        io::ErrorKind::FileTooLarge => ("artifact_failed", "see [limits] max_artifact"),
        io::ErrorKind::InvalidData => ("artifact_failed", "it is no tree that a host should unpack"),
        _ => ("disk", "it cannot be stored"),
    };
    Cause::new(code, format!("{path} cannot be made an artifact: {what}: {error}"))
}

/// `run:artifact_path`: a stored artifact, as file or directory below the run's directory.
pub(super) async fn path(job: &Job, args: &Resolved) -> Outcome {
    let wanted = args.text("name").unwrap_or_default();
    let found = job.place.artifacts.iter().find(|artifact| artifact.name.as_str() == wanted);
    let Some(artifact) = found else {
        let names: Vec<&str> = job.place.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
        let there = if names.is_empty() { "none yet".to_owned() } else { names.join(", ") };
        let message = format!("the release has no artifact {wanted:?}; it has {there}");
        return Outcome::failed(job.placed(Cause::new("artifact_unknown", message)));
    };
    transfer::bring(job, artifact, job.command_timeout(args)).await
}
