//! A program that the daemon starts itself.

use std::{os::unix::process::CommandExt as _, process::Stdio};

use super::{
    job::{Run, refuse},
    unit::Closing,
};
use crate::ports::link::{Channel, Exit, LinkError};

/// `run` in a session of its own: setsid(1) is that without unsafe code here. std drops every supplementary group itself where it
/// switches the uid as root, and changes the directory only then.
pub(super) fn command(run: &Run, switch: bool) -> std::process::Command {
    let mut program = std::process::Command::new("setsid");
    program
        .args(&run.argv)
        .env_clear()
        .envs(run.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&run.cwd)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if switch {
        program.uid(run.who.uid).gid(run.who.gid);
    }
    program
}

/// How a process ended.
pub(super) fn exit(status: std::process::ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(u32::try_from(code).unwrap_or(255)),
        (None, Some(signal)) => Exit::Signal(
            nix::sys::signal::Signal::try_from(signal)
                .map_or_else(|_| signal.to_string(), |s| s.as_str().trim_start_matches("SIG").to_owned()),
        ),
        (None, None) => Exit::Unsaid,
    }
}

/// Starts `run`, as its job user where `switch`, else as the daemon itself.
pub(super) fn start(run: &Run, switch: bool) -> Result<Channel, LinkError> {
    let mut command = tokio::process::Command::from(command(run, switch));
    command.kill_on_drop(false);
    let mut child = command
        .spawn()
        .map_err(|e| refuse(format!("sh cannot be started as uid {} for {}: {e}", run.who.uid, run.who.project)))?;
    let streams = child.stdin.take().zip(child.stdout.take()).zip(child.stderr.take());
    let Some(((stdin, stdout), stderr)) = streams else {
        return Err(LinkError::new("channel_refused", "a process was started without its streams"));
    };
    let exit = Box::pin(async move {
        let status = child
            .wait()
            .await
            .map_err(|e| LinkError::new("connection_lost", format!("sh cannot be waited for: {e}")))?;
        Ok(exit(status))
    });
    Ok(Channel { stdin: Box::new(Closing(Some(stdin))), stdout: Box::new(stdout), stderr: Box::new(stderr), exit })
}
