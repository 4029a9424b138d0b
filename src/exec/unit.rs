//! The job unit, seen from the daemon: whatever needs another user is asked of `phased job`, which systemd starts for each connection.

use std::{
    io::{self, BufRead as _, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, BufReader, Interest},
    net::{UnixStream, unix::pipe},
};

use super::{
    job::{self, ANSWER, Give, Reply, Request, Run, Who},
    tree, wire,
};
use crate::{
    config::START_JOB_SOCKET,
    model::cause::one_line,
    ports::link::{Channel, Exit, LinkError, REFUSED},
    time::{Clock, within},
};

/// How long systemd may take to start the unit and the unit to answer.
const START: Duration = Duration::from_secs(30);
/// The longest pause between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// Of what the unit says, in characters.
const LONGEST: usize = 1000;

/// Where the job unit is asked.
#[derive(Clone)]
pub(super) struct Unit {
    socket: PathBuf,
    clock: Arc<dyn Clock>,
    /// How long a socket that is not there, or has as many jobs as it may, is asked again: it is started anew with each upgrade, and jobs
    /// end. Whoever asks for a channel waits no longer than this himself.
    patience: Duration,
}

impl Unit {
    pub(super) fn new(socket: PathBuf, clock: Arc<dyn Clock>) -> Self {
        Unit { socket, clock, patience: REFUSED }
    }

    /// Asks again while it helps.
    async fn patiently<T, F: Future<Output = Result<T, LinkError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, LinkError> {
        let began = self.clock.now();
        let mut pause = PAUSE / 10;
        loop {
            match ask().await {
                Err(error)
                    if error.cause.code == "channel_refused" && self.clock.now().since(&began) < self.patience =>
                {
                    tracing::debug!(%error, "the job unit is asked again");
                }
                asked => return asked,
            }
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(PAUSE);
        }
    }

    /// Starts `run` in a unit of its own.
    ///
    /// # Errors
    /// `channel_refused` where asking again later may help, `job_unit` where it does not.
    pub(super) async fn start(&self, run: Run) -> Result<Channel, LinkError> {
        let request = Request::Run(run);
        self.patiently(|| self.try_start(&request)).await
    }

    /// Gives `tree` and all in it to `who`.
    ///
    /// # Errors
    /// As [`Unit::start`]; `job_user` for what cannot be read here.
    pub(super) async fn give(&self, who: &Who, tree: &Path) -> Result<(), LinkError> {
        self.patiently(|| {
            let (unit, who, tree) = (self.clone(), who.clone(), tree.to_owned());
            async move {
                let given = tokio::task::spawn_blocking(move || unit.try_give(&who, &tree)).await;
                given.unwrap_or_else(|error| Err(LinkError::new("internal", error.to_string())))
            }
        })
        .await
    }

    async fn try_start(&self, request: &Request) -> Result<Channel, LinkError> {
        let open = || -> io::Result<_> { Ok([io::pipe()?, io::pipe()?, io::pipe()?]) };
        let [(stdin, our_in), (our_out, stdout), (our_err, stderr)] = open().map_err(|e| self.broken(&e))?;
        let line = request.line().map_err(|e| self.broken(&e))?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.absent(&e))?;
        let (stdin, stdout, stderr) = (OwnedFd::from(stdin), OwnedFd::from(stdout), OwnedFd::from(stderr));
        let asking = async {
            let (mut sent, mut fds) = (0, &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()][..]);
            while sent < line.len() {
                sent += stream.async_io(Interest::WRITABLE, || wire::send(&stream, &line[sent..], fds)).await?;
                fds = &[];
            }
            io::Result::Ok(())
        };
        let asked = within(&*self.clock, START, asking).await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()));
        // Only the job has them now, so that their ends are the job's.
        drop((stdin, stdout, stderr));
        let mut answers = BufReader::new(stream);
        let said = match asked {
            // One that was refused before it had read all of it says why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(self.broken(&error)),
            _ => within(&*self.clock, START, reply(&mut answers)).await,
        };
        match said {
            Some(Ok(Some(Reply::Started))) => {}
            Some(Ok(Some(Reply::Refused(why)))) => return Err(self.refused(&why)),
            Some(Ok(Some(Reply::Later(why)))) => return Err(self.later(&why)),
            Some(Ok(Some(other))) => return Err(self.refused(&format!("it answered {other:?}"))),
            Some(Ok(None)) => return Err(self.closed()),
            Some(Err(error)) => return Err(self.broken(&error)),
            None => return Err(self.broken(&io::ErrorKind::TimedOut.into())),
        }
        let our_in = pipe::Sender::from_owned_fd(our_in.into()).map_err(|e| self.broken(&e))?;
        let ours = |end: io::PipeReader| pipe::Receiver::from_owned_fd(end.into()).map_err(|e| self.broken(&e));
        let (our_out, our_err) = (ours(our_out)?, ours(our_err)?);
        let exit = Box::pin(async move {
            // A unit that was stopped or killed says nothing any more.
            Ok(match reply(&mut answers).await {
                Ok(Some(Reply::Ended(ended))) => ended.exit(),
                _ => Exit::Unsaid,
            })
        });
        let stdin = Box::new(Closing(Some(our_in)));
        Ok(Channel { stdin, stdout: Box::new(our_out), stderr: Box::new(our_err), exit })
    }

    /// Blocks.
    fn try_give(&self, who: &Who, tree: &Path) -> Result<(), LinkError> {
        let me = nix::unistd::geteuid().as_raw();
        let here = |path: &Path, error: &io::Error| job::refuse(format!("{}: {error}", path.display()));
        let all = tree::inside_out(tree, me).map_err(|e| here(tree, &e))?;
        let stream = std::os::unix::net::UnixStream::connect(&self.socket).map_err(|e| self.absent(&e))?;
        let prepared = stream.set_read_timeout(Some(START)).and_then(|()| stream.set_write_timeout(Some(START)));
        prepared.map_err(|e| self.broken(&e))?;
        let mut answers = io::BufReader::new(&stream);
        let line = Request::Give(Give { who: who.clone() }).line().map_err(|e| self.broken(&e))?;
        let mut ask = |bytes: &[u8], fds: &[OwnedFd], wanted: &Reply| {
            let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            match wire::send_all(&stream, bytes, &fds) {
                // It says why.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(self.broken(&error)),
                _ => {}
            }
            let mut line = Vec::new();
            (&mut answers).take(ANSWER as u64).read_until(b'\n', &mut line).map_err(|e| self.broken(&e))?;
            match Reply::parse(&line) {
                _ if line.is_empty() => Err(self.closed()),
                Ok(reply) if reply == *wanted => Ok(()),
                Ok(Reply::Refused(why)) => Err(self.refused(&why)),
                Ok(Reply::Later(why)) => Err(self.later(&why)),
                Ok(other) => Err(self.refused(&format!("it answered {other:?}"))),
                Err(why) => Err(self.refused(&why)),
            }
        };
        ask(&line, &[], &Reply::Ready)?;
        for some in all.chunks(wire::MOST_FDS) {
            let open = |path: &PathBuf| {
                // The thing itself, whatever it is; not opened, and no link followed.
                let flags = nix::libc::O_PATH | nix::libc::O_NOFOLLOW;
                let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
                file.map(OwnedFd::from).map_err(|e| here(path, &e))
            };
            let files = some.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            ask(b".", &files, &Reply::Taken(files.len()))?;
        }
        Ok(())
    }

    fn absent(&self, error: &io::Error) -> LinkError {
        let socket = self.socket.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => LinkError::new(
                "job_unit",
                format!(
                    "local commands are started by the job unit, and the daemon may not use its socket {socket} ({error}): set \
                     SocketUser= in phased-job.socket to the daemon's user"
                ),
            ),
            _ => LinkError::new(
                "channel_refused",
                format!(
                    "local commands are started by the job unit, and nobody listens on its socket {socket} ({error}): \
                     `{START_JOB_SOCKET}`, and see `systemctl status phased-job.socket`"
                ),
            ),
        }
    }

    fn closed(&self) -> LinkError {
        LinkError::new(
            "channel_refused",
            "the job unit closed the connection without a word: there are as many jobs as phased-job.socket allows (MaxConnections=), \
             or phased-job@.service cannot be started; `systemctl status phased-job.socket` and `journalctl -u 'phased-job@*'` tell",
        )
    }

    fn refused(&self, why: &str) -> LinkError {
        let why = one_line(why, LONGEST);
        LinkError::new("job_unit", format!("the job unit refused: {why} (see `journalctl -u 'phased-job@*'`)"))
    }

    fn later(&self, why: &str) -> LinkError {
        let why = one_line(why, LONGEST);
        LinkError::new(
            "channel_refused",
            format!("the job unit cannot do it now: {why} (see `journalctl -u 'phased-job@*'`)"),
        )
    }

    fn broken(&self, error: &io::Error) -> LinkError {
        let what = match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                format!("has not answered within {}", crate::time::Span(START))
            }
            _ => format!("cannot be asked: {error}"),
        };
        LinkError::new(
            "channel_refused",
            format!(
                "phased-job@.service, which starts local commands, {what}; `systemctl status phased-job.socket` and `journalctl -u \
                 'phased-job@*'` tell more"
            ),
        )
    }
}

/// The next answer; `None` = there is none any more. Not cancel safe.
async fn reply(answers: &mut BufReader<UnixStream>) -> io::Result<Option<Reply>> {
    let mut line = Vec::new();
    answers.take(ANSWER as u64).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    Reply::parse(&line).map(Some).map_err(io::Error::other)
}

/// A program's standard input that is closed by shutting it down, which is what ends the file for its reader.
pub(super) struct Closing<W>(pub(super) Option<W>);

impl<W: AsyncWrite + Unpin> AsyncWrite for Closing<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(stdin) => Pin::new(stdin).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Some(stdin) => Pin::new(stdin).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        os::unix::{fs::PermissionsExt as _, net::UnixListener},
        thread::JoinHandle,
    };

    use super::*;
    use crate::time::SystemClock;

    fn unit(socket: &Path) -> Unit {
        let unit = Unit::new(socket.to_owned(), Arc::new(SystemClock::new()));
        Unit { patience: Duration::from_millis(1), ..unit }
    }

    fn who() -> Who {
        Who { project: "shop".parse().unwrap(), uid: 61_000, gid: 61_000 }
    }

    fn sh() -> Run {
        Run { who: who(), argv: vec!["sh".into()], env: Vec::new(), cwd: "/".into() }
    }

    /// A job unit that answers every connection with these bytes and closes it.
    fn says(socket: &Path, answer: &'static [u8], times: usize) -> JoinHandle<()> {
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            for _ in 0..times {
                let (mut connection, _) = listener.accept().unwrap();
                let mut line = Vec::new();
                // What comes is read first: a close with something unread would be a reset.
                io::BufReader::new(&connection).read_until(b'\n', &mut line).unwrap();
                assert!(Request::parse(line.strip_suffix(b"\n").unwrap()).is_ok());
                connection.write_all(answer).unwrap();
            }
        })
    }

    #[tokio::test]
    async fn what_is_wrong_is_named_and_what_to_do() {
        for (answer, code, text) in [
            (&b""[..], "channel_refused", "MaxConnections="),
            (b"\"started", "channel_refused", "cannot be asked"),
            (b"garbage\n", "channel_refused", "not understood"),
            (b"{\"taken\":7}\n", "job_unit", "it answered Taken(7)"),
            (
                b"{\"later\":\"other versions\"}\n",
                "channel_refused",
                "cannot do it now: other versions (see `journalctl",
            ),
            (b"{\"refused\":\"uid 1\\u001b[2Jno\"}\n", "job_unit", "refused: uid 1 [2Jno (see `journalctl"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("sock");
            let server = says(&socket, answer, 1);
            // Not even once more: it may come too late for the one that was asked.
            let error = unit(&socket).try_start(&Request::Run(sh())).await.err().unwrap();
            assert_eq!(error.cause.code, code, "{error}");
            assert!(error.cause.message.contains(text), "{error}");
            server.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_or_not_ours_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sock");
        let error = unit(&socket).start(sh()).await.err().unwrap();
        assert_eq!(error.cause.code, "channel_refused");
        assert!(error.cause.message.contains(START_JOB_SOCKET), "{error}");
        let error = unit(&socket).give(&who(), dir.path()).await.err().unwrap();
        assert!(error.cause.message.contains(START_JOB_SOCKET), "{error}");
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = unit(&socket).absent(&denied);
        assert!(error.cause.code == "job_unit" && error.cause.message.contains("SocketUser="), "{error}");
    }

    #[tokio::test]
    async fn a_place_that_comes_free_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sock");
        let patient = Unit { patience: Duration::from_secs(60), ..unit(&socket) };
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            // Twice there is none.
            for _ in 0..2 {
                drop(listener.accept().unwrap());
            }
            let (connection, _) = listener.accept().unwrap();
            let (mut line, mut buffer) = (Vec::new(), [0; 4096]);
            let (n, fds) = wire::receive(&connection, &mut buffer).unwrap();
            line.extend_from_slice(&buffer[..n]);
            assert!(line.ends_with(b"\n") && fds.len() == 3);
            let mut fds = fds.into_iter().map(std::fs::File::from);
            let (stdin, mut stdout) = (fds.next().unwrap(), fds.next().unwrap());
            drop(fds);
            wire::send_all(&connection, b"\"started\"\n", &[]).unwrap();
            let mut text = String::new();
            io::BufReader::new(stdin).read_to_string(&mut text).unwrap();
            stdout.write_all(text.to_uppercase().as_bytes()).unwrap();
            drop(stdout);
            wire::send_all(&connection, b"{\"ended\":{\"signal\":\"KILL\"}}\n", &[]).unwrap();
        });
        let mut channel = patient.start(sh()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut channel.stdin, b"hello").await.unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut channel.stdin).await.unwrap();
        let mut text = String::new();
        channel.stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "HELLO");
        assert_eq!(channel.exit.await, Ok(Exit::Signal("KILL".into())));
        server.join().unwrap();
    }

    #[tokio::test]
    async fn a_tree_goes_file_by_file_and_itself_last() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, tree) = (dir.path().join("sock"), dir.path().join("tree"));
        std::fs::create_dir(&tree).unwrap();
        for n in 0..250 {
            std::fs::write(tree.join(n.to_string()), "").unwrap();
        }
        std::fs::set_permissions(tree.join("0"), std::fs::Permissions::from_mode(0o0)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (connection, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            let (n, fds) = wire::receive(&connection, &mut buffer).unwrap();
            assert!(matches!(Request::parse(&buffer[..n - 1]).unwrap(), Request::Give(_)) && fds.is_empty());
            wire::send_all(&connection, b"\"ready\"\n", &[]).unwrap();
            let mut kinds = Vec::new();
            loop {
                let (n, fds) = wire::receive(&connection, &mut buffer[..1]).unwrap();
                if n == 0 {
                    return kinds;
                }
                kinds.extend(fds.iter().map(|fd| nix::sys::stat::fstat(fd).unwrap().st_mode & nix::libc::S_IFMT));
                wire::send_all(&connection, &Reply::Taken(fds.len()).line().unwrap(), &[]).unwrap();
            }
        });
        unit(&socket).give(&who(), &tree).await.unwrap();
        let kinds = server.join().unwrap();
        assert_eq!((kinds.len(), kinds.last()), (252, Some(&nix::libc::S_IFDIR)));
        assert_eq!(kinds.iter().filter(|kind| **kind == nix::libc::S_IFLNK).count(), 1);
    }
}
