//! Commands that outlive the daemon and the connection: one protocol, local and remote, over the port [`Link`].
//!
//! # How it works
//! A channel runs the bare word `sh`, which is sent the program (`command/program.sh`) on its standard input and stays: the
//! *resident*. A request is a subshell in its foreground, quoted literals and one call, closed on its last line: cut anywhere
//! before, it runs nothing. The host does everything else: it claims the token by a file that only one can make, starts the command
//! in a session of its own under a wrapper, and answers in frames: each stream's bytes with their offset, then the verdict. Then
//! the channel is idle and takes the next request; requests at the same moment have channels of their own. The command does not
//! notice when the channel or this process goes.
//!
//! ```text
//! sshd - sh (resident) - sh (request; the command's wrapper) - setsid, sh: the command
//!                                                            - sh (deputy): waits for a word of ours
//! ```
//! Most commands are over at once, and their wrapper answers. After half a second without an answer we say a word (as does a channel's end):
//! the deputy takes over, starts the watchdog and follows the output. Which of the two answers is decided by who reads one
//! line from a pipe. The word is said before each further request, too, and makes a deputy that waits in vain go away.
//!
//! * **The machine is known before anything begins.** On first contact the program says the machine's id and waits until
//!   [`Acquaintance::met`] has it on disk. Later the id goes with the request, and another one is `replaced`.
//! * **At most once.** Who makes `<base>/<token>.lock` (`set -C`: `O_EXCL`) begins the command, and nobody else ever does. Sending the same
//!   start again resolves it: it attaches to a running command, or answers with the end it had. [`Session::resolve`] ends a running
//!   command or forbids one that has not begun.
//! * **Who lives is known.** The file is locked, and the lock inherited by the command, as soon as somebody waits for it in earnest: after half a
//!   second, or when the channel ends. For the moment before, `go` names the wrapper and who leads the command by number and time of
//!   beginning, which no two processes of a boot have alike. So a short command pays for no lock.
//! * **Nobody else is signalled.** A time-out or stop signals the group of a pid: only while the command lives, and only if whoever has
//!   that pid now began when the command did.
//! * **Nothing in an argv.** Environment, text, standard input go in as literals and here-documents; nothing of them is ever in a
//!   file but what a command makes itself.
//! * **Never a guess.** `lost`, `rebooted`, `orphaned` and `replaced` mean that nobody can tell whether it happened.
//!
//! ```text
//! <base>/id                               made once; another id = another machine
//!        epoch.<project>.<environment>    the highest epoch that began anything here
//!        blobs/<sha256>[.part]            files on their way
//!        run.<run>[.<boot id>]            of a run's commands on this machine: which there were [and the control groups they were in], until what
//!                                         they left is ended
//!        swept seen.<n>                   what lay here at each day's look: after ten it goes, unless it runs
//!        <token>.lock                     made by whoever begins the command; locked by every process of it that takes longer
//!                out                      its output; locked (ENGINE's `wait`) by its wrapper, too, which so wakes followers
//!                err                      its other output
//!                go                       it was begun: "begun <wrapper> <when that began>", "end <when> <code>" once it ended; boot id; start;
//!                                         deadline; then "pg <process group> <when its leader began>" and why it was ended from
//!                                         outside. Times are boot time in centiseconds
//!                exit.<code>              `go` renamed, where the disk could not even take the end in place of other bytes
//!                void                     it may never begin; beside `go`: this came too late
//!                stop read reader watch   only where a command takes longer
//! ```

mod channel;
mod frames;
mod left;
mod program;
mod session;
#[cfg(test)]
mod tests;
mod transfer;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

pub use left::Left;
#[cfg(test)]
use program::DEFAULT_PATH;
pub use session::Session;
pub use transfer::{Download, Source, Upload, UploadVerdict, Write};

use crate::{
    model::{
        cause::{CUT_OFF, Cause},
        host::{Host, Transport},
        host_key::Realm,
        ids::{Digest, EnvironmentName, Epoch, ProjectName},
    },
    ports::{
        link::{Link, LinkError, Links},
        outputs::Stream,
    },
};

/// Between TERM and KILL.
pub const GRACE: Duration = Duration::from_secs(2);
/// How long past a command's own time-out a cut connection is made again and again.
pub const RECONNECT: Duration = Duration::from_secs(5 * 60);
/// Output nobody has read yet, beyond which a command is ended.
pub const MAX_OUTPUT: u64 = 256 << 20;
/// A start older than this is never to be sent again: what the host knew of it may be gone. The host keeps it for ten days at least.
pub const FORGOTTEN: Duration = Duration::from_secs(9 * 86_400);

/// Which shell reads the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shell {
    /// `/bin/sh -eu`.
    #[default]
    Sh,
    /// `bash -euo pipefail`.
    Bash,
}

/// What to run.
#[derive(Clone, PartialEq, Eq)]
pub enum What {
    /// Text under a shell; the first failing line ends it.
    Sh {
        /// The author's text; no NUL.
        text: Vec<u8>,
        /// Which shell.
        shell: Shell,
    },
    /// An argument vector; the first is looked up in the command's `PATH`.
    Exec {
        /// At least the program.
        argv: Vec<Vec<u8>>,
    },
}

/// Refuse to begin when a younger deployment has been on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochCheck {
    /// Whose lease.
    pub project: ProjectName,
    /// Of what.
    pub environment: EnvironmentName,
    /// The lease's number.
    pub epoch: Epoch,
}

/// One attempt of one command. Holds resolved secrets: not printable, never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandSpec {
    /// Its idempotency id.
    pub token: Digest,
    /// What to run.
    pub what: What,
    /// After `PATH HOME USER LOGNAME SHELL LANG CI`, in order, the last of a name wins: `PHASED_*`, then the author's.
    pub env: Vec<(String, Vec<u8>)>,
    /// `PATH`; [`DEFAULT_PATH`] when absent.
    pub path: Option<String>,
    /// Where; the login directory (locally `/`) when absent.
    pub cwd: Option<String>,
    /// Its standard input; `/dev/null` when absent. Any bytes.
    pub stdin: Option<Vec<u8>>,
    /// As this user by `sudo -n`; as the session's own when absent or the same.
    pub user: Option<String>,
    /// Counted on the host from the start of the command.
    pub timeout: Duration,
    /// Between TERM and KILL; whole seconds, at least one.
    pub grace: Duration,
    /// Unread bytes that end it.
    pub max_output: u64,
    /// How long past `timeout` to go on reconnecting.
    pub reconnect: Duration,
    /// Checked before it begins, never after.
    pub epoch: Option<EpochCheck>,
    /// Where to go on with `[stdout, stderr]`: 0 for a new command, what was stored when attaching to an old one.
    pub from: [u64; 2],
    /// Nobody asks about it again once it was answered: nothing but its claim is to stay of it on the host.
    pub passing: bool,
    /// An earlier life of ours may have begun it: a host that cannot be reached says nothing about whether it ran.
    pub resumed: bool,
}

impl CommandSpec {
    /// A command with the defaults of everything but what is given.
    #[must_use]
    pub fn new(token: Digest, what: What, timeout: Duration) -> Self {
        CommandSpec {
            token,
            what,
            env: Vec::new(),
            path: None,
            cwd: None,
            stdin: None,
            user: None,
            timeout,
            grace: GRACE,
            max_output: MAX_OUTPUT,
            reconnect: RECONNECT,
            epoch: None,
            from: [0; 2],
            passing: false,
            resumed: false,
        }
    }

    /// One that is in no journal, so that nobody sends it again or asks about it: its token is made of a `random` number.
    #[must_use]
    pub fn passing(random: u128, what: What, timeout: Duration) -> Self {
        CommandSpec { passing: true, ..CommandSpec::new(Digest::of(&random.to_le_bytes()), what, timeout) }
    }
}

impl std::fmt::Debug for CommandSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandSpec")
            .field("token", &self.token)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Takes output as it comes: raw, in order, each byte of each stream once. The command waits while it is busy.
#[async_trait]
pub trait OutputSink: Send {
    /// `bytes` of `stream` (`Out` or `Err`), the first of them at `offset`.
    async fn output(&mut self, stream: Stream, offset: u64, bytes: &[u8]);
}

/// Throws output away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

#[async_trait]
impl OutputSink for Discard {
    async fn output(&mut self, _stream: Stream, _offset: u64, _bytes: &[u8]) {}
}

/// What the kernel did to a command that failed, because of a limit of its control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    /// Which limit.
    pub limit: Limit,
    /// How often, while the command ran.
    pub times: u64,
    /// The group's own limit, in bytes or processes; `None` = it has none, and the machine or a group above it ran out.
    pub most: Option<u64>,
}

/// Of a control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Processes were killed for want of memory.
    Memory,
    /// Further processes or threads were refused.
    Tasks,
}

impl Limited {
    /// Of the words `limit memory 1 8589934592`.
    fn of(words: &[String]) -> Option<Limited> {
        let [limit, which, times, most @ ..] = words else { return None };
        let which = match which.as_str() {
            "memory" => Limit::Memory,
            "pids" => Limit::Tasks,
            _ => return None,
        };
        // A limit beyond any machine is how version 1 of control groups says that there is none.
        let most = most.first().and_then(|most| most.parse().ok()).filter(|most: &u64| *most < 1 << 60);
        (limit == "limit").then_some(Limited { limit: which, times: times.parse().ok()?, most })
    }

    /// What the kernel counts is of the whole unit, and what an earlier command has left there is in it too: only a command that was killed
    /// itself is said to have ended by it.
    fn cause(&self, host: &str, code: u32) -> Cause {
        let Limited { limit, times, most } = *self;
        let ended = format!("the command on {host} ended with exit code {code}, and meanwhile the kernel");
        let (name, message, count) = match limit {
            Limit::Memory => (
                if code == 137 { "out_of_memory" } else { "exit" },
                format!(
                    "{ended} killed {times} processes of its unit for want of memory: {}",
                    match most {
                        Some(most) =>
                            format!("the unit may use {} MiB (MemoryMax= of phased-job@.service)", most >> 20),
                        None => "the unit has no limit of its own, the machine or a slice above it ran out".to_owned(),
                    }
                ),
                "out_of_memory",
            ),
            Limit::Tasks => (
                "exit",
                format!(
                    "{ended} refused its unit {times} times a further process or thread: {}",
                    match most {
                        Some(most) => format!("it may have {most} (TasksMax= of phased-job@.service)"),
                        None => "a slice above it may not have more".to_owned(),
                    }
                ),
                "too_many_tasks",
            ),
        };
        Cause::new(name, message).with("exit_code", code).with(count, times)
    }
}

/// How a command ended. Every output byte was given to the sink before.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// By itself.
    Exited {
        /// As the shell says it: above 128 it is presumably 128 and a signal.
        code: u32,
        /// From its start to its end on the host.
        duration_ms: u64,
        /// What the kernel did to it meanwhile.
        limited: Option<Limited>,
    },
    /// By its time-out.
    TimedOut {
        /// From its start to its end on the host.
        duration_ms: u64,
    },
    /// By us.
    Stopped {
        /// Zero when it never began.
        duration_ms: u64,
    },
    /// It never began, and never will; or how it ended is forgotten: it was [passing](CommandSpec::passing), or its run is over.
    Void,
    /// Because nobody read its output.
    OutputUnread,
    /// It was begun; neither it nor its end is there any more.
    Lost,
    /// It was begun, then the host rebooted.
    Rebooted,
    /// Its wrapper is gone and its processes did not end by signals.
    Orphaned,
    /// The host is not the machine it was.
    Replaced {
        /// What its id is now.
        found: String,
    },
    /// The host did not begin it, for this reason; nothing happened.
    Refused(Cause),
    /// The host cannot be reached (any more).
    LinkLost {
        /// Why not.
        error: LinkError,
        /// Whether it may have begun: then nobody can tell. Otherwise nothing happened.
        sent: bool,
    },
}

impl Verdict {
    /// Whether nobody can tell what happened: not a failure, and never to be repeated without asking.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(
            self,
            Verdict::Lost
                | Verdict::Rebooted
                | Verdict::Orphaned
                | Verdict::Replaced { .. }
                | Verdict::LinkLost { sent: true, .. }
        )
    }

    /// Why it is not the end of a command that exited 0. `host` is what people call the machine, `spec` what was asked.
    #[must_use]
    pub fn cause(&self, host: &str, timeout: Duration) -> Option<Cause> {
        let ms = |duration: &u64| serde_json::Value::from(*duration);
        Some(match self {
            Verdict::Exited { code: 0, .. } => return None,
            Verdict::Exited { code, limited: Some(limited), .. } => limited.cause(host, *code),
            Verdict::Exited { code, .. } => {
                let presumed =
                    signal_name(*code).map_or(String::new(), |name| format!(", presumably killed by {name}"));
                Cause::new("exit", format!("the command on {host} ended with exit code {code}{presumed}"))
                    .with("exit_code", *code)
            }
            Verdict::TimedOut { duration_ms } => Cause::new(
                "timeout",
                format!("the command on {host} was still running after {} and was ended", crate::time::Span(timeout)),
            )
            .with("duration_ms", ms(duration_ms)),
            Verdict::Stopped { .. } => Cause::new("stopped", format!("the command on {host} was stopped")),
            Verdict::Void => Cause::new("stopped", format!("the command on {host} was given up before it began")),
            Verdict::OutputUnread => Cause::new(
                "output_unread",
                format!(
                    "the command on {host} printed more than could be taken and was ended: let it print less or into a file"
                ),
            ),
            Verdict::Lost => Cause::new(
                "lost",
                format!(
                    "the command on {host} was begun, and neither it nor its result is there any more: something killed it and \
                     its wrapper. Where logind has KillUserProcesses=yes, or sshd runs as sshd@.service, that happens at every \
                     disconnect; what became of a local command's unit is in `journalctl -u 'phased-job@*'`. See what it did and start the run again"
                ),
            ),
            Verdict::Rebooted => Cause::new(
                "rebooted",
                format!("{host} rebooted while the command ran: see what it did and start the run again"),
            ),
            Verdict::Orphaned => Cause::new(
                "orphaned",
                format!(
                    "the command on {host} does not end and cannot be ended from here: look for its processes there"
                ),
            ),
            Verdict::Replaced { found } => Cause::new(
                "replaced",
                format!("{host} is another machine than the one the command was begun on (its id is now {found})"),
            ),
            Verdict::Refused(cause) => cause.clone(),
            Verdict::LinkLost { error, sent: false } => error.cause.clone(),
            Verdict::LinkLost { error, sent: true } => Cause::new(
                "lost",
                format!(
                    "the connection to {host} was cut while the command ran and could not be made again: {}",
                    error.cause.message
                ),
            )
            .with(CUT_OFF, error.cause.code.as_str()),
        })
    }
}

fn signal_name(code: u32) -> Option<&'static str> {
    Some(match code.checked_sub(128)? {
        1 => "HUP",
        2 => "INT",
        3 => "QUIT",
        6 => "ABRT",
        9 => "KILL",
        11 => "SEGV",
        13 => "PIPE",
        15 => "TERM",
        _ => return None,
    })
}

/// Makes the link of a session anew when it was cut: an address from the newest discovery, a key as it is now.
#[async_trait]
pub trait Connect: Send + Sync {
    /// A connected link.
    ///
    /// # Errors
    /// The link's.
    async fn connect(&self) -> Result<Arc<dyn Link>, LinkError>;
}

/// Which machine a session is with, kept where a crash of ours does not reach.
#[async_trait]
pub trait Acquaintance: Send + Sync {
    /// The id the machine must have; `None` = nothing was ever begun on it, for it has not been met.
    fn known(&self) -> Option<String>;

    /// The machine answers as `id`. Nothing begins on it before this returns. `key`: its host key, where it was learnt just now.
    ///
    /// # Errors
    /// Why it cannot be kept; nothing begins then.
    async fn met(&self, id: &str, key: Option<String>) -> Result<(), Cause>;
}

/// Keeps nothing beyond the session: for this machine, and for commands nobody asks about again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fleeting;

#[async_trait]
impl Acquaintance for Fleeting {
    fn known(&self) -> Option<String> {
        None
    }

    async fn met(&self, _id: &str, _key: Option<String>) -> Result<(), Cause> {
        Ok(())
    }
}

/// To one host by SSH.
pub struct ToHost {
    /// Makes links.
    pub links: Arc<dyn Links>,
    /// Which environment it is of; `None` where that is not known, and then nobody is connected to.
    pub realm: Option<Realm>,
    /// To what.
    pub host: Host,
}

#[async_trait]
impl Connect for ToHost {
    async fn connect(&self) -> Result<Arc<dyn Link>, LinkError> {
        if let Transport::Signal(_) = &self.host.transport {
            let message = format!(
                "{} is reached by signals, so there is no shell on it for this: what is to be done there belongs into the project file of \
                 its own daemon",
                self.host.name
            );
            return Err(LinkError::new("no_shell", message));
        }
        match &self.realm {
            Some(realm) => self.links.host(realm, &self.host).await,
            None => {
                let message = format!("the environment of {} is not known; this is a bug of phased", self.host.name);
                Err(LinkError::new("internal", message))
            }
        }
    }
}

/// To this machine, as a project's job user.
pub struct ToLocal {
    /// Makes links.
    pub links: Arc<dyn Links>,
    /// Whose.
    pub project: ProjectName,
}

#[async_trait]
impl Connect for ToLocal {
    async fn connect(&self) -> Result<Arc<dyn Link>, LinkError> {
        self.links.local(&self.project).await
    }
}
