//! One command of the server: a process session of its own, its three streams, its end.

use std::{collections::VecDeque, io, os::unix::process::ExitStatusExt as _, process::ExitStatus, process::Stdio};

use nix::{sys::signal::Signal, unistd::Pid};
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig,
    server::{Handle, Msg},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin, Command},
};

use super::{Account, Groups, MOST_HELD};

/// Bytes read from a command at once: what fits into one packet.
const PIECE: usize = 32 << 10;
/// The number by which SSH calls standard error.
const STDERR: u32 = 1;

/// A command that runs.
pub(super) struct Running {
    child: Child,
    channel: ChannelId,
    groups: Groups,
}

/// Starts `command` under `sh` in the account's home, in a process session of its own.
pub(super) fn start(command: &str, account: &Account, channel: ChannelId, groups: Groups) -> io::Result<Running> {
    // setsid(1) becomes the command itself (it forks only for a leader of a group, which a new child is not), so that the child's
    // number is also its session's and its group's.
    let child = Command::new("setsid")
        .args(["sh", "-c", command])
        .env_clear()
        .env("PATH", &account.path)
        .env("HOME", &account.home)
        .envs([("USER", &account.user), ("LOGNAME", &account.user)])
        .env("SHELL", "/bin/sh")
        .current_dir(&account.home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) {
        groups.lock().insert(channel, Pid::from_raw(pid));
    }
    Ok(Running { child, channel, groups })
}

impl Running {
    /// Moves its streams until it has ended and its output has been sent, or the client has closed the channel: then the command
    /// goes on by itself.
    pub(super) async fn attend(mut self, channel: Channel<Msg>, handle: Handle) {
        let id = self.channel;
        let (stdin, stdout, stderr) = (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let (mut read, write) = channel.split();
        let streams = async {
            tokio::join!(send(stdout, None, &write), send(stderr, Some(STDERR), &write), self.end(&handle));
            let _client_is_gone = write.eof().await;
            let _client_is_gone = write.close().await;
        };
        tokio::select! {
            () = streams => {}
            () = feed(&mut read, stdin) => {}
        }
        tracing::trace!(channel = %id, "a command was attended to");
    }

    async fn end(&mut self, handle: &Handle) {
        let status = self.child.wait().await;
        self.groups.lock().remove(&self.channel);
        let _client_is_gone = match status.map(how) {
            Ok(Ok(code)) => handle.exit_status_request(self.channel, code).await,
            Ok(Err((signal, core))) => {
                handle.exit_signal_request(self.channel, signal, core, String::new(), String::new()).await
            }
            // Nobody else waits for our child, so this does not happen; a client sees a channel without a status.
            Err(error) => {
                tracing::warn!(%error, "a command's end is not known");
                Ok(())
            }
        };
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // From here on somebody else reaps the child, and its number may be given away.
        self.groups.lock().remove(&self.channel);
    }
}

/// An exit code, or the signal and whether there was a core dump.
fn how(status: ExitStatus) -> Result<u32, (Sig, bool)> {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(u32::try_from(code).unwrap_or(255)),
        (None, number) => {
            let name = number.and_then(|n| Signal::try_from(n).ok()).map_or("KILL", Signal::as_str);
            Err((sig(name.trim_start_matches("SIG")), status.core_dumped()))
        }
    }
}

fn sig(name: &str) -> Sig {
    match name {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        other => Sig::Custom(other.to_owned()),
    }
}

/// The signal a client asks for; unknown ones are ignored.
pub(super) fn signal(asked: &Sig) -> Option<Signal> {
    Some(match asked {
        Sig::ABRT => Signal::SIGABRT,
        Sig::ALRM => Signal::SIGALRM,
        Sig::HUP => Signal::SIGHUP,
        Sig::INT => Signal::SIGINT,
        Sig::KILL => Signal::SIGKILL,
        Sig::PIPE => Signal::SIGPIPE,
        Sig::QUIT => Signal::SIGQUIT,
        Sig::TERM => Signal::SIGTERM,
        Sig::USR1 => Signal::SIGUSR1,
        _ => return None,
    })
}

/// Sends a stream to its end, as fast as the client's window opens.
async fn send(from: Option<impl AsyncRead + Unpin>, extended: Option<u32>, to: &ChannelWriteHalf<Msg>) {
    let Some(mut from) = from else { return };
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        match from.read_buf(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let sent = match extended {
            None => to.data_bytes(piece).await,
            Some(kind) => to.extended_data_bytes(kind, piece).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Gives the command what the client sends; returns when the channel is gone. What a command does not read is held, so that a
/// command that waits to be read itself does not make the session deaf.
async fn feed(from: &mut ChannelReadHalf, stdin: Option<ChildStdin>) {
    let mut stdin = stdin;
    let mut held: VecDeque<u8> = VecDeque::new();
    let mut ended = false;
    loop {
        if ended && held.is_empty() {
            stdin = None;
        }
        let write = async {
            match &mut stdin {
                Some(stdin) if !held.is_empty() => stdin.write(held.as_slices().0).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            written = write => match written {
                Ok(n) => drop(held.drain(..n)),
                // It reads no more; the client may go on for a while.
                Err(_) => {
                    stdin = None;
                    held.clear();
                }
            },
            message = from.wait(), if held.len() < MOST_HELD => match message {
                Some(ChannelMsg::Data { data }) => {
                    if stdin.is_some() {
                        held.extend(&data[..]);
                    }
                }
                Some(ChannelMsg::Eof) => ended = true,
                Some(ChannelMsg::Close) | None => return,
                Some(_) => {}
            },
        }
    }
}
