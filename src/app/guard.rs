//! A daemon that could only run local commands as itself runs none, and takes no project that names secrets.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use serde_json::Value;

use super::uids;
use crate::{
    config::{Exec, START_JOB_SOCKET},
    exec::Way,
    lifecycle::locks::locked,
    lua::loader::Loader,
    model::{
        cause::Cause,
        ids::{Digest, ProjectName},
    },
    ports::{
        program::{Diagnostic, Loaded, Plugin, Program, Programs, Sink},
        secrets::{Secret, SecretError, Secrets},
    },
};

/// Whether local commands could only run as the daemon itself and nobody has said that this is fine; and then, which secrets may be used.
#[derive(Clone)]
pub(super) struct Guard {
    exposed: bool,
    /// Names of webhook secrets of the loaded projects: code under test cannot press the button with them that it could not press
    /// by a push.
    webhooks: Arc<Mutex<BTreeSet<String>>>,
}

impl Guard {
    pub(super) fn new(exec: &Exec, way: &Way) -> Self {
        Guard { exposed: uids::exposed(exec, way), webhooks: Arc::default() }
    }

    /// `secrets`, without those that must not be used here.
    pub(super) fn secrets(&self, secrets: Arc<dyn Secrets>) -> Arc<dyn Secrets> {
        if self.exposed { Arc::new(Guarded { guard: self.clone(), inner: secrets }) } else { secrets }
    }

    /// Whether the daemon may have a key of its own for signals.
    ///
    /// # Errors
    /// Code under test could read it.
    pub(super) fn own_key(&self, name: &str) -> anyhow::Result<()> {
        anyhow::ensure!(!self.exposed, "the key {name:?} of [signals] cannot be used: {WHY}; {}", help());
        Ok(())
    }

    /// The loader, refusing projects that name such secrets.
    pub(super) fn programs(&self, loader: Loader) -> Guarded<Loader> {
        Guarded { guard: self.clone(), inner: loader }
    }
}

/// Something behind the guard.
pub(super) struct Guarded<T> {
    guard: Guard,
    inner: T,
}

const WHY: &str = "tests would run as the daemon's own user and could read it";

fn help() -> String {
    format!(
        "start the package's job unit (`{START_JOB_SOCKET}`) and phased again, or run phased as root: either gives every project a user of \
         its own. Or set `same_user = true` in [exec] if you trust the code under test"
    )
}

impl Secrets for Guarded<Arc<dyn Secrets>> {
    fn get(&self, name: &str) -> Result<Secret, SecretError> {
        if locked(&self.guard.webhooks).contains(name) {
            return self.inner.get(name);
        }
        Err(SecretError::Unusable { name: name.to_owned(), why: format!("{WHY}: {}", help()) })
    }
}

/// What `loaded` names besides its webhook secrets.
fn exposed(loaded: &Loaded) -> Vec<&str> {
    let webhook = &loaded.pipeline.source.webhook;
    loaded.secrets.iter().filter(|name| webhook.iter().all(|w| w.name != **name)).map(String::as_str).collect()
}

impl Programs for Guarded<Loader> {
    fn load(&self) -> Result<Vec<Loaded>, Vec<Diagnostic>> {
        let loaded = self.inner.load()?;
        if !self.guard.exposed {
            return Ok(loaded);
        }
        let mut webhooks = locked(&self.guard.webhooks);
        webhooks.extend(loaded.iter().flat_map(|one| one.pipeline.source.webhook.iter().map(|w| w.name.clone())));
        let refused: Vec<Diagnostic> = loaded
            .iter()
            .filter(|one| !exposed(one).is_empty())
            .map(|one| Diagnostic {
                file: format!("projects/{}.lua", one.name).into(),
                line: 0,
                column: 0,
                length: 1,
                code: "secrets_exposed",
                message: format!("this project names secrets ({}), and its {WHY}", exposed(one).join(", ")),
                help: Some(help()),
            })
            .collect();
        if refused.is_empty() { Ok(loaded) } else { Err(refused) }
    }

    fn pin(&self, loaded: &Loaded) -> std::io::Result<()> {
        self.inner.pin(loaded)
    }

    fn sweep(&self, keep: &BTreeSet<Digest>) -> std::io::Result<usize> {
        self.inner.sweep(keep)
    }

    fn open(&self, code: &Digest, project: &ProjectName, seed: u64, sink: Sink) -> Result<Box<dyn Program>, Cause> {
        self.inner.open(code, project, seed, sink)
    }

    fn plugin(
        &self,
        code: &Digest,
        project: &ProjectName,
        function: &str,
        input: Value,
    ) -> Result<Box<dyn Plugin>, Cause> {
        self.inner.plugin(code, project, function, input)
    }
}
