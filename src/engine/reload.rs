//! Loading the projects anew: all of them, or the old ones stay. How that went is there for whoever started the daemon.

use std::sync::Arc;

use super::{Conductor, handle::Refusal};
use crate::{lifecycle::watch, model::ids::ProjectName, ports::program::Diagnostic};

/// The last reload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reload {
    /// Which, from 1; 0 = there was none.
    pub number: u64,
    /// How many projects are loaded since, or why what was loaded stays; `None` = it is under way.
    pub done: Option<Result<usize, String>>,
}

impl Conductor {
    /// Every reload from here on, whoever asked for it.
    #[must_use]
    pub fn reloads(&self) -> watch::Receiver<Reload> {
        self.inner.reload.subscribe()
    }
}

pub(super) async fn reload(conductor: &Conductor) -> Result<Vec<ProjectName>, Refusal> {
    // One after the other: what was read first must not be installed last.
    let _one_at_a_time = conductor.inner.reloading.lock().await;
    let reload = &conductor.inner.reload;
    let mut number = 0;
    reload.send_modify(|reload| {
        number = reload.number + 1;
        *reload = Reload { number, done: None };
    });
    let loaded = load(conductor).await;
    let done = loaded.as_ref().map(Vec::len).map_err(ToString::to_string);
    match &done {
        Ok(projects) => tracing::info!(projects, "the projects were reloaded"),
        Err(why) => tracing::error!("{why}"),
    }
    reload.send_replace(Reload { number, done: Some(done) });
    loaded
}

async fn load(conductor: &Conductor) -> Result<Vec<ProjectName>, Refusal> {
    conductor.writable()?;
    let programs = Arc::clone(&conductor.inner.world.programs);
    let loaded = conductor.inner.world.tasks.blocking(move || programs.load()).await;
    let loaded = loaded.map_err(|e| Refusal::ProjectsInvalid(e.to_string()))?.map_err(|found| {
        let line = |d: &Diagnostic| {
            let help = d.help.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
            format!("{}:{}:{}: error: {}{help}", d.file.display(), d.line, d.column, d.message)
        };
        Refusal::ProjectsInvalid(found.iter().map(line).collect::<Vec<_>>().join("\n"))
    })?;
    let names = loaded.iter().map(|l| l.name.clone()).collect();
    conductor.install(loaded).await.map_err(|e| Refusal::Degraded(e.to_string()))?;
    conductor.poll_all();
    conductor.inner.nudge.notify_one();
    Ok(names)
}
