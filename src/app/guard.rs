//! A daemon that can only run local commands as itself must not hold secrets that code under test could read.

use serde_json::Value;

use nix::unistd::Uid;

use crate::{
    config::Exec,
    lua::loader::Loader,
    model::{
        cause::Cause,
        ids::{Digest, ProjectName},
    },
    ports::program::{Diagnostic, Loaded, Plugin, Program, Programs, Sink},
};

/// The loader, refusing what could not be kept secret here.
pub(super) struct Guarded {
    loader: Loader,
    /// Local commands run as the daemon itself, and nobody has said that this is fine.
    exposed: bool,
}

impl Guarded {
    pub(super) fn new(loader: Loader, exec: &Exec) -> Self {
        let exposed = !Uid::effective().is_root() && !exec.same_user;
        Guarded { loader, exposed }
    }

    /// What `loaded` names besides its webhook secrets.
    fn exposed(loaded: &Loaded) -> Vec<&str> {
        let webhook = &loaded.pipeline.source.webhook;
        loaded.secrets.iter().filter(|name| webhook.iter().all(|w| w.name != **name)).map(String::as_str).collect()
    }
}

impl Programs for Guarded {
    fn load(&self) -> Result<Vec<Loaded>, Vec<Diagnostic>> {
        let loaded = self.loader.load()?;
        if !self.exposed {
            return Ok(loaded);
        }
        let refused: Vec<Diagnostic> = loaded
            .iter()
            .filter(|one| !Guarded::exposed(one).is_empty())
            .map(|one| Diagnostic {
                file: format!("projects/{}.lua", one.name).into(),
                line: 0,
                column: 0,
                length: 1,
                code: "secrets_exposed",
                message: format!(
                    "the tests of this project would run as the daemon's own user and could read its secrets ({})",
                    Guarded::exposed(one).join(", ")
                ),
                help: Some("run phased as root, which gives every project a user of its own, or set `same_user = true` in [exec] if you trust the code under test".to_owned()),
            })
            .collect();
        if refused.is_empty() { Ok(loaded) } else { Err(refused) }
    }

    fn pin(&self, loaded: &Loaded) -> std::io::Result<()> {
        self.loader.pin(loaded)
    }

    fn open(&self, code: &Digest, project: &ProjectName, seed: u64, sink: Sink) -> Result<Box<dyn Program>, Cause> {
        self.loader.open(code, project, seed, sink)
    }

    fn plugin(
        &self,
        code: &Digest,
        project: &ProjectName,
        function: &str,
        input: Value,
    ) -> Result<Box<dyn Plugin>, Cause> {
        self.loader.plugin(code, project, function, input)
    }
}
