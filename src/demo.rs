//! `phased demo`: all of it on this machine, live, with nothing to install or configure.
//!
//! A sample repository, five hosts (SSH servers of this process that run real commands in directories of their own and serve the
//! deployed app over HTTP), the real daemon with a real project file, and four commits. Everything listens on loopback and lives
//! in one temporary directory, which goes away in the end.
//!
//! ```text
//! site        the directory: what is made there, and its end
//! host        one host: ssh::server, and the app behind HTTP
//! repository  the shop in plain sh (shop/), its tests, the four commits
//! daemon      the daemon in this process
//! story       presses the button three times and asks the hosts what became of it
//! signals     `--signals`: an integration daemon, and daemons of production that it sends signals
//! crash       `--crash`: the first commit, and the daemon is killed ten times on the way
//! process     the daemon as a process of its own, for that
//! ask         HTTP, over TCP and the socket
//! terminal    lines, colours, the moon
//! ```

use std::{process::ExitCode, sync::Arc, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::DemoArgs,
    lifecycle::Tasks,
    telemetry,
    time::{Clock, SystemClock},
};

mod ask;
mod crash;
mod daemon;
mod host;
mod process;
mod repository;
mod signals;
mod site;
mod story;
mod terminal;
#[cfg(test)]
mod tests;

use ask::Place;
use crash::Crash;
use daemon::Daemon;
use process::Process;
use signals::{Signals, Town};
use site::Site;
use story::{Differences, Story};
use terminal::{Terminal, Tone};

/// How long the hosts may take to end.
const END: Duration = Duration::from_secs(5);

/// Tells the story; with `--once` or `--crash` it ends there, else it stays up until Ctrl-C.
///
/// 0 = all went as described, 1 = they did not, or the demo could not be set up; 130 = interrupted before the end.
pub async fn run(args: &DemoArgs) -> ExitCode {
    // Failures are part of the story, which tells them itself; a repository without a branch is its beginning.
    let _already_installed =
        telemetry::init(telemetry::Format::Text, "warn,phased::engine::poll=error,phased::engine::views=error");
    let mut terminal = Terminal::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let tasks = Tasks::new();
    let mut up = Up::default();
    let code = tokio::select! {
        biased;
        () = interrupted() => {
            terminal.line(Tone::Plain, "");
            None
        }
        code = show(args, &mut terminal, &tasks, &clock, &mut up) => Some(code),
    };
    if let Some(daemon) = up.daemon {
        daemon.shut_down().await;
    }
    if let Some(mut process) = up.process
        && let Err(error) = process.kill().await
    {
        tracing::warn!(%error, "the daemon is left behind");
    }
    if let Some(mut town) = up.town {
        town.end().await;
    }
    for name in tasks.shut_down(END).await {
        tracing::warn!(task = %name, "still works though the demo has ended");
    }
    if let Some(site) = up.site {
        let dir = site.root().display().to_string();
        drop(site);
        terminal.line(Tone::Quiet, &format!("All of it is gone again, {dir} too."));
    }
    // Ctrl-C after the story is how one leaves; before it, an interruption.
    ExitCode::from(code.or(up.told).unwrap_or(130))
}

/// What has to be taken down, however the demo ends.
#[derive(Default)]
struct Up {
    site: Option<Site>,
    daemon: Option<Daemon>,
    process: Option<Process>,
    town: Option<Town>,
    /// What the daemon's TCP listener asks for.
    token: String,
    /// The exit code, once the story has been told.
    told: Option<u8>,
}

async fn show(args: &DemoArgs, terminal: &mut Terminal, tasks: &Tasks, clock: &Arc<dyn Clock>, up: &mut Up) -> u8 {
    const KILLED: &str = "Killed ten times: nothing was lost, and nothing was done twice.";
    let (told, well) = match (args.crash, args.signals) {
        (true, _) => (crash(terminal, tasks, clock, up).await, KILLED),
        (false, true) => (signals(terminal, clock, up).await, "All four went as described."),
        (false, false) => (tell(terminal, tasks, clock, up).await, "All four went as described."),
    };
    let code = match told {
        Ok(Differences(differences)) if differences.is_empty() => {
            terminal.line(Tone::Plain, "");
            terminal.line(Tone::Good, well);
            0
        }
        Ok(Differences(differences)) => {
            terminal.line(Tone::Plain, "");
            terminal.line(Tone::Bad, "Not everything went as described:");
            for difference in differences {
                terminal.line(Tone::Bad, &format!("   {difference}"));
            }
            1
        }
        Err(error) => {
            terminal.line(Tone::Bad, &format!("The demo cannot go on: {error:#}"));
            return 1;
        }
    };
    up.told = Some(code);
    if !args.once
        && let (Some(site), Some(daemon)) = (&up.site, &up.daemon)
    {
        hints(terminal, site, daemon, &up.token);
        std::future::pending::<()>().await;
    }
    code
}

/// Builds everything and tells the story.
async fn tell(
    terminal: &mut Terminal,
    tasks: &Tasks,
    clock: &Arc<dyn Clock>,
    up: &mut Up,
) -> anyhow::Result<Differences> {
    up.token = site::random_hex::<16>()?;
    let site = up.site.insert(Site::build(site::SHOP, tasks, clock).await?);
    introduce(terminal, site);
    let daemon = up.daemon.insert(daemon::start(&site.config(), &up.token).await?);
    terminal.line(Tone::Plain, &format!("   {:<12}http://{}", "daemon", daemon.addr()));
    Story::new(site, Place::Tcp(daemon.addr()), Some(&up.token), clock, terminal).tell().await
}

/// Builds everything and tells the story in which the daemon is killed.
async fn crash(
    terminal: &mut Terminal,
    tasks: &Tasks,
    clock: &Arc<dyn Clock>,
    up: &mut Up,
) -> anyhow::Result<Differences> {
    let site = up.site.insert(Site::build(site::SHOP_CRASH, tasks, clock).await?);
    introduce(terminal, site);
    let process = up.process.insert(Process::start(site.root(), clock).await?);
    let told = format!("   {:<12}{}, a process of its own (`phased serve`)", "daemon", site.socket());
    terminal.line(Tone::Plain, &told);
    let story = Story::new(site, site.socket(), None, clock, terminal);
    Crash { story, process }.tell().await
}

/// Builds everything and tells the story of signals.
async fn signals(terminal: &mut Terminal, clock: &Arc<dyn Clock>, up: &mut Up) -> anyhow::Result<Differences> {
    let site = up.site.insert(Site::bare()?);
    signals::introduce(terminal, site);
    let town = up.town.insert(Town::build(site, clock).await?);
    let story = Story::new(site, town.socket(), None, clock, terminal);
    Signals { story, town }.tell().await
}

/// What there is.
fn introduce(terminal: &mut Terminal, site: &Site) {
    terminal.line(Tone::Heading, "phased: one button, end to end, on this machine only");
    let rows = [
        ("repository", site.repository.dir().display().to_string()),
        ("project", format!("{}/plugins/projects/shop.lua", site.root().display())),
        (
            "hosts",
            "web-1 to web-5: SSH servers on 127.0.0.1, each with a directory and a web server of its own".to_owned(),
        ),
    ];
    for (label, text) in rows {
        terminal.line(Tone::Plain, &format!("   {label:<12}{text}"));
    }
}

/// Lines to paste, for whoever wants to play.
fn hints(terminal: &mut Terminal, site: &Site, daemon: &Daemon, token: &str) {
    let web = site.hosts.first().map(|host| host.http.to_string()).unwrap_or_default();
    let repository = site.repository.dir().display();
    let lines = [
        (Tone::Plain, String::new()),
        (Tone::Heading, "It stays up until Ctrl-C. To play with, in another terminal:".to_owned()),
        (Tone::Plain, format!("   api=http://{}/v1 auth='Authorization: Bearer {token}' text='Accept: text/plain'", daemon.addr())),
        (Tone::Plain, r#"   curl -sH "$auth" -H "$text" $api/projects/shop/status"#.to_owned()),
        (Tone::Plain, r#"   curl -sH "$auth" -H "$text" $api/projects/shop/plan"#.to_owned()),
        (Tone::Plain, r#"   curl -sH "$auth" -H "$text" $api/runs"#.to_owned()),
        (Tone::Plain, r#"   curl -sNH "$auth" $api/events    # what happens, as it happens"#.to_owned()),
        (Tone::Plain, format!("   curl -s http://{web}/    # web-1, which serves the first commit again")),
        (Tone::Quiet, "Mend what is broken, press the button, and follow the run's log:".to_owned()),
        (Tone::Plain, format!("   cd {repository} && {}", repository::MEND)),
        (Tone::Plain, r#"   run=$(curl -sH "$auth" -d reason=mended $api/projects/shop/start | sed 's/.*"id":"\([^"]*\)","project.*/\1/')"#.to_owned()),
        (Tone::Plain, r#"   curl -sNH "$auth" "$api/runs/$run/log?follow=true""#.to_owned()),
        (Tone::Quiet, "The same with the CLI:".to_owned()),
        (Tone::Plain, format!("   export PHASED_ADDR=http://{} PHASED_TOKEN={token}", daemon.addr())),
        (Tone::Plain, "   phased status; phased start shop --wait; phased log shop".to_owned()),
    ];
    for (tone, text) in lines {
        terminal.line(tone, &text);
    }
}

/// Ctrl-C, or a SIGTERM.
async fn interrupted() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        // Without a handler Ctrl-C ends the process by itself.
        caught = tokio::signal::ctrl_c() => if caught.is_err() { std::future::pending().await },
        () = terminated => {}
    }
}
