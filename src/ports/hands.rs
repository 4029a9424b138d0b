//! Files that change hands: what the daemon makes for a project's job user, and what that user leaves behind.

use std::path::Path;

use async_trait::async_trait;

use crate::model::{cause::Cause, ids::ProjectName};

/// Between the daemon and the job users. Causes: `job_user` (there is none, or it cannot be used), `job_unit` and `channel_refused` (the
/// job unit did not do it), `disk`.
#[async_trait]
pub trait Hands: Send + Sync {
    /// Gives `tree` and all in it to `project`'s job user. It must be the daemon's own and closed to everybody else, so that nothing in
    /// it can be exchanged on the way; the directory itself comes last. Where commands run as the daemon, nothing is to be done.
    ///
    /// # Errors
    /// See [`Hands`]. Doing it again completes it.
    async fn give(&self, project: &ProjectName, tree: &Path) -> Result<(), Cause>;

    /// Removes `tree`, whichever of the two it belongs to. No link is followed. Where nothing is, all is well.
    ///
    /// # Errors
    /// See [`Hands`]; a part may be gone.
    async fn remove(&self, project: &ProjectName, tree: &Path) -> Result<(), Cause>;
}
