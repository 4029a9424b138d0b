//! Files: upload (resumed by offset, checked, renamed), download, and writing a small file as a command.

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{
    CommandSpec, Discard, EpochCheck, OutputSink, Session, Shell, Verdict, What,
    channel::{Answer, Feed, Nothing, Reply, Request},
    program,
};
use crate::{
    model::{cause::Cause, ids::Digest},
    ports::{
        blobs::{Blobs, Form},
        link::{LinkError, REFUSED},
    },
    time::within,
};

/// Where bytes to send lie here.
#[derive(Clone)]
pub enum Source {
    /// In a file of ours.
    File(PathBuf),
    /// In a blob.
    Blob {
        /// All of them.
        blobs: Arc<dyn Blobs>,
        /// Which.
        blob: Digest,
        /// How they lie in it.
        form: Form,
    },
}

impl Source {
    /// From `offset` on. Blocks.
    fn open(&self, offset: u64) -> io::Result<Box<dyn io::Read + std::marker::Send>> {
        use io::Seek as _;
        match self {
            Source::File(path) => {
                let mut file = std::fs::File::open(path)?;
                file.seek(io::SeekFrom::Start(offset))?;
                Ok(Box::new(file))
            }
            Source::Blob { blobs, blob, form } => blobs.read(blob, *form, offset),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Blob { blob, .. } => write!(f, "blob {blob}"),
        }
    }
}

/// A file or a tar archive to bring to a host.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Its idempotency id.
    pub token: Digest,
    /// The bytes here.
    pub from: Source,
    /// Their digest; the host checks it.
    pub sha256: Digest,
    /// How many they are.
    pub size: u64,
    /// Where they go: an absolute path in a directory that exists.
    pub to: String,
    /// The bytes are a tar archive, and `to` becomes a directory with its content, at once. (One that was there before is moved away
    /// first: for that moment there is none.)
    pub unpack: bool,
    /// At most `0o7777`.
    pub mode: Option<u32>,
    /// `user`, `user:group` or `:group`; needs the right to do that.
    pub owner: Option<String>,
    /// The whole of it, reconnections included.
    pub timeout: Duration,
    /// Checked before anything else.
    pub epoch: Option<EpochCheck>,
    /// An earlier life of ours may have asked for it: a host that cannot be reached says nothing about whether it is in place.
    pub resumed: bool,
}

/// How an upload ended.
#[derive(Debug, Clone, PartialEq)]
pub enum UploadVerdict {
    /// It is in place. `changed` is false when the host had exactly these bytes there before; `sent` is what went over the link.
    Done {
        /// Whether the file is another one now.
        changed: bool,
        /// Bytes sent, all attempts together.
        sent: u64,
    },
    /// It is not; nothing was put in place.
    Failed(Cause),
    /// The time or the patience with the link ended first: the old file or the new one is there, never a part.
    Unfinished(Verdict),
}

impl Upload {
    /// The command that puts what was sent to `staged` in place, as whoever runs it; without `staged` it only looks whether it is there.
    /// It prints `changed`, `same` or `missing`.
    ///
    /// # Errors
    /// `bad_argument`.
    pub fn command(&self, token: Digest, staged: Option<&str>) -> Result<CommandSpec, Cause> {
        let text = program::place(self, staged)?;
        let mut cmd = CommandSpec::new(token, What::Sh { text, shell: Shell::Sh }, self.timeout);
        cmd.epoch.clone_from(&self.epoch);
        cmd.resumed = self.resumed;
        Ok(cmd)
    }
}

/// A small file to write on a host, as a command of the protocol (so `user` works).
#[derive(Debug, Clone)]
pub struct Write {
    /// An absolute path in a directory that exists.
    pub to: String,
    /// The whole content; any bytes.
    pub content: Vec<u8>,
    /// The file's mode; an existing file keeps its own, a new one gets the umask's, when absent.
    pub mode: Option<u32>,
    /// `user`, `user:group` or `:group`.
    pub owner: Option<String>,
}

impl Write {
    /// The command that does it. It prints `changed` or `same`; give it the token, user and limits of the step.
    ///
    /// # Errors
    /// `bad_argument`.
    pub fn command(&self, token: Digest, timeout: Duration) -> Result<CommandSpec, Cause> {
        let text = program::write_text(&self.to, self.mode, self.owner.as_deref())?;
        let mut cmd = CommandSpec::new(token, What::Sh { text, shell: Shell::Sh }, timeout);
        cmd.stdin = Some(self.content.clone());
        Ok(cmd)
    }
}

/// A file to bring from a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// An absolute path there.
    pub from: String,
    /// The whole of it, reconnections included.
    pub timeout: Duration,
}

/// What is read and sent at once.
const CHUNK: usize = 256 * 1024;

async fn blocking<T: std::marker::Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + std::marker::Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

struct Send<'a> {
    upload: &'a Upload,
    sent: &'a mut u64,
}

#[async_trait]
impl Feed for Send<'_> {
    async fn feed(
        &mut self,
        offset: u64,
        stdin: &mut (dyn AsyncWrite + std::marker::Send + Unpin),
    ) -> Result<(), Cause> {
        let here =
            |e: io::Error| Cause::new("upload_failed", format!("{:?} cannot be read here: {e}", self.upload.from));
        let source = self.upload.from.clone();
        let mut file = blocking(move || source.open(offset)).await.map_err(here)?;
        let mut left = self.upload.size.saturating_sub(offset);
        let mut buffer = vec![0; CHUNK];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            let n;
            // No thread waits for the host: each is borrowed for one piece.
            (file, buffer, n) = blocking(move || {
                let n = file.read(&mut buffer[..want])?;
                Ok((file, buffer, n))
            })
            .await
            .map_err(here)?;
            if n == 0 {
                let message = format!("{:?} became shorter while it was sent", self.upload.from);
                return Err(Cause::new("upload_failed", message));
            }
            // The host has closed: it says why, or the link is gone and will be made again.
            if stdin.write_all(&buffer[..n]).await.is_err() {
                return Ok(());
            }
            *self.sent += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    fn size(&mut self, _: u64, _: i64) -> Result<(), Cause> {
        Ok(())
    }
}

struct Same(Option<(u64, i64)>);

#[async_trait]
impl Feed for Same {
    async fn feed(&mut self, _: u64, _: &mut (dyn AsyncWrite + std::marker::Send + Unpin)) -> Result<(), Cause> {
        Nothing.feed(0, &mut tokio::io::sink()).await
    }

    fn size(&mut self, size: u64, mtime: i64) -> Result<(), Cause> {
        match self.0.replace((size, mtime)) {
            Some(before) if before != (size, mtime) => {
                Err(Cause::new("download_failed", "the file was changed while it was fetched: fetch it again"))
            }
            _ => Ok(()),
        }
    }
}

impl Session {
    /// Brings a file to the host. The same call again goes on where the last one was cut.
    pub async fn upload(&self, upload: &Upload, stop: &CancellationToken) -> UploadVerdict {
        let build = |frame: &program::Frame<'_>| program::upload(frame, upload);
        let mut sent = 0;
        let mut feed = Send { upload, sent: &mut sent };
        let ended = self.transfer(&build, &mut Discard, &mut feed, upload.timeout, upload.resumed, stop).await;
        match ended {
            Ok((Verdict::Exited { .. }, words)) => {
                UploadVerdict::Done { changed: words.get(3).is_none_or(|word| word != "0"), sent }
            }
            Ok((Verdict::Refused(cause), _)) | Err(Verdict::Refused(cause)) => UploadVerdict::Failed(cause),
            Ok((verdict, _)) | Err(verdict) => UploadVerdict::Unfinished(verdict),
        }
    }

    /// Streams a file of the host into `sink` (as `Out`). `Exited` with code 0 = all of it.
    pub async fn download(&self, download: &Download, sink: &mut dyn OutputSink, stop: &CancellationToken) -> Verdict {
        let build = |frame: &program::Frame<'_>| program::download(frame, &download.from);
        match self.transfer(&build, sink, &mut Same(None), download.timeout, false, stop).await {
            Ok((verdict, _)) | Err(verdict) => verdict,
        }
    }

    /// Asks until there is a verdict; `Err` = there is none from the host.
    async fn transfer(
        &self,
        build: &(dyn Fn(&program::Frame<'_>) -> Result<Vec<u8>, Cause> + Sync),
        sink: &mut dyn OutputSink,
        feed: &mut dyn Feed,
        timeout: Duration,
        resumed: bool,
        stop: &CancellationToken,
    ) -> Result<(Verdict, Vec<String>), Verdict> {
        let Some(_turn) = self.turn(stop).await else { return Err(Verdict::Stopped { duration_ms: 0 }) };
        let (mut at, mut sent) = ([0; 2], resumed);
        let began = self.clock().now();
        let work = async {
            let mut pause = Duration::from_millis(100);
            let mut broken = 0;
            loop {
                let answer = match self.link().await {
                    Err(error) => Err(error),
                    Ok(link) => {
                        let request = Request { build, mark: "phased-transfer", from: at, follow: None };
                        let mut reply = Reply { sink: &mut *sink, feed: &mut *feed, at: &mut at, sent: &mut sent };
                        Ok((self.ask(&link, &request, &mut reply).await, link))
                    }
                };
                let error = match answer {
                    Err(error) => error,
                    Ok((answer, link)) => match answer {
                        Answer::More => continue,
                        Answer::Refused(cause) => return Err(Verdict::Refused(cause)),
                        // Another attempt of ours still holds the place, or the bytes were cut: go on from there.
                        Answer::Words(words) if matches!(words.first().map(String::as_str), Some("busy" | "short")) => {
                            LinkError::new("connection_lost", "the file was cut on its way")
                        }
                        Answer::Words(words) => match self.verdict(&words, &[], None).await {
                            Some(verdict) => return Ok((verdict, words)),
                            None => LinkError::new("host_unsupported", "the host's answer is not understood"),
                        },
                        Answer::Cut { error, broken: is_broken } => {
                            broken += u32::from(is_broken);
                            self.forget(&link, is_broken).await;
                            error
                        }
                    },
                };
                let hopeless = !error.cause.is_unreachable() && error.cause.code != "channel_refused";
                // As for commands: one that was reached and lost is asked again.
                let cut = error.cause.code == "connection_lost" && self.clock().now().since(&began) < REFUSED;
                if hopeless || !(sent || cut) || broken > 5 {
                    return Err(Verdict::LinkLost { error, sent });
                }
                self.pause(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        };
        tokio::select! {
            biased;
            ended = within(self.clock(), timeout, work) => {
                ended.unwrap_or(Err(Verdict::TimedOut { duration_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) }))
            }
            () = stop.cancelled() => Err(Verdict::Stopped { duration_ms: 0 }),
        }
    }
}
