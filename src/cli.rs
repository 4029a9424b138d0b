//! The command line: `phased VERB [PROJECT [ENVIRONMENT]]`.
//!
//! Verbs that work offline (`serve check init demo rebuild restore keys`) only have their arguments here; `main.rs` hands them on. All others speak
//! the HTTP API and nothing else. stdout is data, stderr is progress and hints.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::time::Span;

mod client;
pub(crate) mod doctor;
mod exit;
pub mod generate;
mod keep;
mod log;
mod output;
mod progress;
pub mod tls;
mod verbs;
mod wait;

#[cfg(test)]
mod tests;

/// Continuous deployment for a fleet of plain Linux servers: tested, in phases, watched, rolled back by itself.
#[derive(Debug, Parser)]
#[command(name = "phased", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Where the daemon is and how its answers are shown.
    #[command(flatten)]
    pub client: ClientArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 error, 2 usage, 3 run failed (also halted, stopped, damaged, rollback failed), 4 rolled back, \
5 paused or inconclusive, 6 timed out waiting, 7 not authorised, 8 not found, 9 conflict or superseded, 10 daemon unreachable, \
130 interrupted while waiting (the run goes on).\n\nEnvironment: PHASED_ADDR, PHASED_TOKEN, PHASED_CA_FILE, NO_COLOR.";

/// Where the daemon is unless somebody says otherwise.
pub const DEFAULT_ADDR: &str = "unix:///run/phased/phased.sock";

/// Beneath a verb's own options: what all of them take.
const EVERYWHERE: &str = "Options of every command";

/// What every verb that asks the daemon takes.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// The daemon: unix:///path/of/socket, https://host:port or http://host:port (with PHASED_TOKEN)
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        env = "PHASED_ADDR",
        default_value = DEFAULT_ADDR,
        value_name = "ADDRESS"
    )]
    pub addr: String,
    /// Over https, believe the authorities in this file (PEM) instead of those that this machine trusts
    #[arg(long, global = true, help_heading = EVERYWHERE, env = "PHASED_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Print JSON, as the HTTP API answers it
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    Serve(ServeArgs),
    /// Check the configuration and all projects, offline, and show every error at once
    Check(CheckArgs),
    /// Write a configuration, and a first project from a repository's URL: nothing that exists is overwritten
    Init(InitArgs),
    /// Show all of it on this machine: a repository, a daemon, a handful of hosts, four commits
    Demo(DemoArgs),
    /// Rebuild the index from the journals, offline
    Rebuild(RebuildArgs),
    /// Find what is wrong with this installation: files, machine, projects, and, where the daemon answers, what it knows
    Doctor(DoctorArgs),
    /// Put a backup back, offline, where there is nothing yet: runs that were under way are ended, and the daemon begins in maintenance
    Restore(RestoreArgs),
    /// Keys for signals between daemons: make one, list them, show the public half
    #[command(subcommand)]
    Keys(KeysCommand),
    /// What the daemon has job users do: reads a request on standard input and packs what it names
    #[command(hide = true)]
    Pack,
    /// What packages ship: man pages, completions, types for editors; written from the binary itself, so that none is stale
    #[command(hide = true)]
    Generate(GenerateArgs),
    /// What phased-job@.service runs, the daemon's connection as standard input: starts a program as a project's job user
    #[command(hide = true)]
    Job(JobArgs),
    /// A verb that asks the daemon.
    #[command(flatten)]
    Client(ClientCommand),
}

/// Of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, default_value = "/etc/phased/phased.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// Go into the background, for classic init systems
    #[arg(long)]
    pub daemonize: bool,
    /// Where the background process writes its id
    #[arg(long, requires = "daemonize", value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Become this user before anything else
    #[arg(long, requires = "daemonize", value_name = "NAME")]
    pub user: Option<String>,
    /// Log into this file instead of standard error; SIGHUP opens it anew, for logrotate [default with --daemonize: DATA_DIR/daemon.log]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

/// How `check` shows errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum CheckFormat {
    /// As a compiler does, with the line in question
    #[default]
    Long,
    /// One `file:line:column: text` a line, for editors
    Short,
    /// One JSON object a line
    Json,
}

/// Of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The configuration file
    #[arg(long, default_value = "/etc/phased/phased.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// How errors are shown; --json is `json`
    #[arg(long, value_enum, default_value_t)]
    pub format: CheckFormat,
}

/// Of `init`.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// The repository to deploy: https://..., ssh://..., user@host:path, file:///... Without it only the configuration is written
    #[arg(value_name = "URL")]
    pub url: Option<String>,
    /// The configuration file: written when it is not there, else read; known_hosts and the rest lie beside it
    #[arg(long, default_value = "/etc/phased/phased.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// A host to deploy to, more than once for several: web1.example.com, deploy@10.0.0.3:2222
    #[arg(long = "host", value_name = "[USER@]ADDRESS[:PORT]", requires = "url")]
    pub hosts: Vec<String>,
    /// What the project is called [default: the repository's name]
    #[arg(long, requires = "url")]
    pub name: Option<String>,
    /// The branch that is deployed [default: the repository's own]
    #[arg(long, requires = "url")]
    pub branch: Option<String>,
    /// The user to log in as on hosts [default: deploy]
    #[arg(long, requires = "url")]
    pub user: Option<String>,
    /// Where releases lie on hosts [default: /srv/NAME]
    #[arg(long, value_name = "DIRECTORY", requires = "url")]
    pub dir: Option<String>,
    /// The systemd unit that is restarted on hosts; "none" restarts nothing [default: the project's name]
    #[arg(long, value_name = "UNIT", requires = "url")]
    pub service: Option<String>,
    /// What a healthy host answers: ":8080/healthz" or a URL [default: its unit is active]
    #[arg(long, value_name = "URL", requires = "url")]
    pub health: Option<String>,
    /// Keep the SSH host keys that hosts and the repository's server show now, without being asked whether they are right
    #[arg(long)]
    pub accept_host_keys: bool,
    /// Ask nothing, also on a terminal: what is not said is the default
    #[arg(short, long)]
    pub yes: bool,
}

/// Of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// End after the four commits; exit code 0 only if all went as described
    #[arg(long)]
    pub once: bool,
    /// One good commit, and the daemon is killed ten times on the way; exit code 0 only if nothing was lost or done twice
    #[arg(long)]
    pub crash: bool,
    /// Production listens to signals: an integration daemon without a shell anywhere, and five daemons of production
    #[arg(long, conflicts_with = "crash")]
    pub signals: bool,
}

/// Of `generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// The directory to write `man/`, `completions/` and `lua/` into
    #[arg(value_name = "DIRECTORY")]
    pub directory: PathBuf,
}

/// Of `keys`.
#[derive(Debug, Clone, Subcommand)]
pub enum KeysCommand {
    /// Make a key: its private half is a secret of this machine, its public half is printed
    Make {
        /// What the secret is called: `signal = { key = phased.secret "NAME" }` in a project, or key = "NAME" in [signals]
        #[arg(default_value = "signals")]
        name: String,
        /// Whose it is, for people; it goes with the public half [default: this machine's name]
        #[arg(long)]
        comment: Option<String>,
        /// The configuration file: it says where secrets are
        #[arg(long, default_value = "/etc/phased/phased.toml", value_name = "FILE")]
        config: PathBuf,
    },
    /// Print the public half of a key: what the other side is given
    Show {
        /// What the secret is called
        #[arg(default_value = "signals")]
        name: String,
        /// The configuration file: it says where secrets are
        #[arg(long, default_value = "/etc/phased/phased.toml", value_name = "FILE")]
        config: PathBuf,
    },
    /// Every key among the secrets of this machine, with its public half
    List {
        /// The configuration file: it says where secrets are
        #[arg(long, default_value = "/etc/phased/phased.toml", value_name = "FILE")]
        config: PathBuf,
    },
}

/// Of `job`.
#[derive(Debug, Clone, Args)]
pub struct JobArgs {
    /// The configuration file: it says which users a job may be; only root may be able to write it
    #[arg(long, default_value = "/etc/phased/phased.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// The daemon's user, by name or uid: nobody else may ask, but root
    #[arg(long, default_value = "phased", value_name = "USER")]
    pub daemon: String,
}

/// Of `rebuild`.
#[derive(Debug, Clone, Args)]
pub struct RebuildArgs {
    /// The configuration file
    #[arg(long, default_value = "/etc/phased/phased.toml", value_name = "FILE")]
    pub config: PathBuf,
}

/// Of `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// The configuration file
    #[arg(long, default_value = "/etc/phased/phased.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// Do not ask the daemon, and so no host
    #[arg(long)]
    pub offline: bool,
}

/// Of `restore`.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// The backup, as `phased backup` wrote it
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The configuration file: it says which data_dir is filled
    #[arg(long, default_value = "/etc/phased/phased.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// Also where there is something already; that is kept beside it
    #[arg(long)]
    pub force: bool,
    /// With the secrets in it, where it has any: files that are there already stay as they are
    #[arg(long)]
    pub secrets: bool,
}

/// Verbs that ask the daemon.
#[derive(Debug, Clone, Subcommand)]
pub enum ClientCommand {
    /// The button: test a commit and, only if every test passes, deploy it
    Start(StartArgs),
    /// End what a project runs and has queued, or one run
    Stop(StopArgs),
    /// What runs, what is live where, since when, and what is wrong
    Status {
        /// Only this project
        project: Option<String>,
    },
    /// What a run's steps printed
    Log(LogArgs),
    /// Who would get what, in which order
    Plan {
        /// The project
        project: String,
        /// Only this environment
        environment: Option<String>,
    },
    /// The hosts of a project: what each source said, when, what changed since, and why a host is out
    Hosts {
        /// The project
        project: String,
        /// Only this environment
        environment: Option<String>,
        /// Ask every source anew
        #[arg(long)]
        refresh: bool,
        /// Take what the sources say now as all there is, although hosts are missing: for those that are gone for good
        #[arg(long, requires = "environment", conflicts_with = "refresh")]
        accept: bool,
        /// Forget the learnt key of this host, by its id: the next one it shows is learnt. Compare that with the host's own first
        #[arg(long, requires = "environment", conflicts_with_all = ["refresh", "accept"], value_name = "ID")]
        forget_key: Option<String>,
    },
    /// Runs, newest first
    Runs {
        /// Only this project's
        project: Option<String>,
        /// Only those in this state: queued, testing, deploying, succeeded, failed, rolled_back, ...
        #[arg(long)]
        state: Option<String>,
        /// At most so many, 1 to 500
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=500), value_name = "N")]
        limit: u64,
    },
    /// Take back what is being deployed, or go back to an earlier known-good release
    Rollback {
        #[command(flatten)]
        change: ChangeArgs,
        /// Its id or commit, or the beginning of it [default: the last one]
        #[arg(long, value_name = "RELEASE")]
        to: Option<String>,
    },
    /// Begin nothing new in the deployment under way: hosts in flight finish
    Pause(ChangeArgs),
    /// Go on after a pause
    Resume(ChangeArgs),
    /// Go on from a bake, a pause, or a failure that was paused
    Promote(ChangeArgs),
    /// Give hosts that came late or were replaced what is live
    Converge(ChangeArgs),
    /// Make known-good, and live, the one commit that every host reports by its version; no host is touched
    Adopt(ChangeArgs),
    /// Deploy nothing new to an environment: runs wait at its door, rollbacks go
    Freeze(FreezeArgs),
    /// Lift what freezes an environment now; a window of the project's file only for this once
    Unfreeze {
        /// The project
        project: String,
        /// The environment
        environment: String,
        /// Why, for those who look later
        #[arg(long)]
        reason: Option<String>,
    },
    /// Who may use the HTTP API over TCP
    #[command(subcommand)]
    Token(TokenCommand),
    /// Load the projects anew: all of them, or the old ones stay
    Reload,
    /// Begin nothing new, so that the daemon or its machine can be changed; without a word, how it is
    Maintenance {
        /// On or off
        #[command(subcommand)]
        switch: Option<MaintenanceCommand>,
    },
    /// To which other daemons this one listens, what came of them, and what of it was refused
    Signals,
    /// Write all that the daemon knows into one file, while it works: for `phased restore`, here or on another machine
    ///
    /// Secrets, the configuration and the projects' files are not in it; nor are checkouts and caches.
    Backup(BackupArgs),
    /// Print the state as lines of JSON: projects, environments, hosts, host keys, bad releases, runs and deployments
    Export {
        /// Only this project's
        project: Option<String>,
        /// Only runs that are newer than this one
        #[arg(long, value_name = "RUN")]
        after: Option<String>,
    },
    /// Whether bad news would arrive
    #[command(subcommand)]
    Alert(AlertCommand),
    /// What happens, as it happens
    Events {
        /// Only this project's
        project: Option<String>,
    },
}

/// Of `backup`.
#[derive(Debug, Clone, Args)]
pub struct BackupArgs {
    /// Where to, never over another file; - is standard output [default: phased-<date>.tar.zst here]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// With the files of secrets, by the socket only: whoever has it then has them
    #[arg(long)]
    pub secrets: bool,
}

/// Of `start`.
#[derive(Debug, Clone, Args)]
pub struct StartArgs {
    /// The project
    pub project: String,
    /// No further than this environment
    #[arg(conflicts_with = "no_further")]
    pub environment: Option<String>,
    /// A branch, tag or commit [default: the branch's head]
    #[arg(long = "ref", value_name = "REF")]
    pub reference: Option<String>,
    /// The same as the second argument
    #[arg(long = "environment", id = "no_further", value_name = "ENVIRONMENT")]
    pub no_further: Option<String>,
    /// Why, for those who look later
    #[arg(long)]
    pub reason: Option<String>,
    /// Also when it is live already
    #[arg(long)]
    pub redeploy: bool,
    /// Run tests again though this release passed them
    #[arg(long)]
    pub retest: bool,
    /// Also a release that was found bad
    #[arg(long)]
    pub retry_bad: bool,
    /// Do nothing: print the commands that would be run, per environment, wave and host
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Show progress and end with the run; the exit code says how it went
    #[arg(long)]
    pub wait: bool,
    /// Wait no longer than this: 90s, 10m, 2h
    #[arg(long, requires = "wait", value_name = "DURATION")]
    pub timeout: Option<Span>,
}

/// Of what is done to an environment.
#[derive(Debug, Clone, Args)]
pub struct ChangeArgs {
    /// The project
    pub project: String,
    /// The environment
    pub environment: String,
    /// Why, for those who look later
    #[arg(long)]
    pub reason: Option<String>,
    /// Show progress and end with the run; the exit code says how it went
    #[arg(long)]
    pub wait: bool,
    /// Wait no longer than this: 90s, 10m, 2h
    #[arg(long, requires = "wait", value_name = "DURATION")]
    pub timeout: Option<Span>,
}

/// Of `freeze`.
#[derive(Debug, Clone, Args)]
pub struct FreezeArgs {
    /// The project
    pub project: String,
    /// The environment
    pub environment: String,
    /// How long: 90s, 30m, 2h, 3d [default: until `phased unfreeze`]
    #[arg(long = "for", value_name = "DURATION", conflicts_with = "until")]
    pub span: Option<Span>,
    /// Until when: 2026-12-24T18:00:00+01:00
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Why, for those who wait
    #[arg(long)]
    pub reason: Option<String>,
}

/// Of `stop`.
#[derive(Debug, Clone, Args)]
pub struct StopArgs {
    /// A project, or a run's id
    #[arg(value_name = "PROJECT|RUN")]
    pub target: String,
    /// End hosts in flight after their running step instead of letting them finish
    #[arg(long)]
    pub now: bool,
    /// Why, for those who look later
    #[arg(long)]
    pub reason: Option<String>,
}

/// Of `log`.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// A project (its newest run), or a run's id
    #[arg(value_name = "PROJECT|RUN")]
    pub target: String,
    /// Go on until the run has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Only steps whose key starts with this: test/unit, production#1
    #[arg(long)]
    pub step: Option<String>,
    /// Only this host, by id
    #[arg(long)]
    pub host: Option<String>,
    /// Only the last so many lines of what is there
    #[arg(long, value_name = "N")]
    pub tail: Option<u64>,
}

/// Of `token`.
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Make a token; its text is shown this once
    Create {
        /// Who or what it is for
        #[arg(long)]
        name: String,
        /// read, deploy (also start and stop), admin (everything); more than once for several
        #[arg(long, default_value = "read", value_delimiter = ',', value_parser = ["read", "deploy", "admin"])]
        scope: Vec<String>,
        /// Only for this project; more than once for several [default: all]
        #[arg(long, value_delimiter = ',')]
        project: Vec<String>,
        /// How long it works: 90d [default: for ever]
        #[arg(long, value_name = "DURATION")]
        ttl: Option<Span>,
    },
    /// All tokens
    List,
    /// Make a token useless
    Revoke {
        /// Its id, as `phased token list` shows it; the token's whole text will do
        id: String,
    },
}

/// Of `maintenance`.
#[derive(Debug, Clone, Subcommand)]
pub enum MaintenanceCommand {
    /// What is under way is brought to its end, then every run is parked; what is asked for meanwhile waits in the queue
    ///
    /// A host in flight gets its whole deploy and its health watch, a test stage runs to its end and is cleaned up after; the next host, stage
    /// or run does not begin. It holds over restarts, until `phased maintenance off`.
    On {
        /// Why, for those who wonder
        #[arg(long)]
        reason: Option<String>,
        /// Return once nothing is at work any more
        #[arg(long)]
        wait: bool,
        /// Wait no longer than this (then exit code 6, and maintenance stays on): 90s, 10m, 2h
        #[arg(long, requires = "wait", value_name = "DURATION")]
        timeout: Option<Span>,
    },
    /// Parked runs go on where they stood, queued ones get their turn
    Off,
}

/// Of `alert`.
#[derive(Debug, Clone, Subcommand)]
pub enum AlertCommand {
    /// Send a test message through every channel
    Test {
        /// Only this project's channels
        project: Option<String>,
    },
}

/// Reads the command line; on a wrong one says what is wrong and ends the process with 2.
#[must_use]
pub fn parse() -> Cli {
    Cli::parse()
}

/// Does a verb that asks the daemon; everything it has to say is said when it returns.
#[must_use]
pub fn run(command: &ClientCommand, args: &ClientArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::complain(&format!("cannot start: {error}"));
            return exit::Code::Error.into();
        }
    };
    runtime.block_on(verbs::run(command, args)).into()
}
