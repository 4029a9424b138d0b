//! The real daemon as a process of its own, which can be killed.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::process::{Child, Command};

use super::ask::{Place, ask};
use crate::time::Clock;

/// The longest it may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How often it is asked whether it does.
const LOOK: Duration = Duration::from_millis(50);

/// `phased serve`, or between two lives.
pub(super) struct Process {
    child: Option<Child>,
    config: PathBuf,
    log: PathBuf,
    /// A directory below the site's: by it what is left over is found in the end.
    home: PathBuf,
    socket: Place,
    clock: Arc<dyn Clock>,
}

impl Process {
    /// Starts it on what is in `root`: `phased.toml`, which says that its socket is there, too.
    ///
    /// # Errors
    /// Why it does not answer.
    pub(super) async fn start(root: &Path, clock: &Arc<dyn Clock>) -> anyhow::Result<Self> {
        let mut process = Process {
            child: None,
            config: root.join("phased.toml"),
            log: root.join("daemon.log"),
            home: root.join("daemon"),
            socket: Place::Socket(root.join("phased.sock")),
            clock: clock.clone(),
        };
        process.start_again().await?;
        Ok(process)
    }

    /// Starts it once more; returns when it answers.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) async fn start_again(&mut self) -> anyhow::Result<()> {
        let binary = std::env::current_exe().context("the path of this program is not known")?;
        let log = File::options().append(true).create(true).open(&self.log)?;
        let child = Command::new(binary)
            .arg("serve")
            .arg("--config")
            .arg(&self.config)
            .env_clear()
            .envs([("PATH", std::env::var_os("PATH").unwrap_or_default()), ("HOME", self.home.clone().into())])
            // Ctrl-C is for the demo, which then ends it.
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("the daemon cannot be started")?;
        let child = self.child.insert(child);
        let began = self.clock.now();
        loop {
            if let Some(status) = child.try_wait()? {
                bail!("the daemon ended ({status}): {}", said(&self.log));
            }
            let answer = ask(&*self.clock, &self.socket, "/readyz", None, None).await;
            if answer.is_ok_and(|answer| answer.status.is_success()) {
                return Ok(());
            }
            if self.clock.now().since(&began) > START_LIMIT {
                bail!("the daemon does not answer within {} s: {}", START_LIMIT.as_secs(), said(&self.log));
            }
            self.clock.sleep(LOOK).await;
        }
    }

    /// `kill -9`; returns when it is gone.
    ///
    /// # Errors
    /// It cannot be killed.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await.context("the daemon cannot be killed")?;
        }
        Ok(())
    }
}

/// The last lines it has logged.
fn said(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("\n")
}
