//! Where commits come from: git repositories and the hooks of forges.

use async_trait::async_trait;
use std::path::{Path, PathBuf};

use super::hands::Hands;
use crate::model::{
    cause::Cause,
    event::Wanted,
    ids::{ProjectName, Sha},
    pipeline::Source,
    release::Commit,
};

/// A commit found and fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The commit.
    pub commit: Commit,
    /// The tag it was asked by.
    pub tag: Option<String>,
    /// Whether it is the branch's head at the remote now.
    pub is_head: bool,
}

/// Git, as far as phased needs it. Causes: `git_unreachable`, `git_auth`, `git_missing` (no git binary or too old), `ref_unknown`,
/// `ref_not_allowed`, `ref_invalid`, `git_timeout`, `git_failed` (with git's last lines), and those of [`Hands`]. Every method is bounded in time.
#[async_trait]
pub trait Forge: Send + Sync {
    /// The branch's head at the remote, without fetching.
    ///
    /// # Errors
    /// See [`Forge`].
    async fn head(&self, project: &ProjectName, source: &Source) -> Result<Sha, Cause>;

    /// The tags at the remote that match `source.tags`, without fetching, by version: `v1.9` before `v1.10`. Each with what it points at
    /// itself, which for an annotated tag is no commit.
    ///
    /// # Errors
    /// See [`Forge`].
    async fn tags(&self, project: &ProjectName, source: &Source) -> Result<Vec<(String, Sha)>, Cause>;

    /// Brings the project's mirror up to date and finds `wanted` in it.
    ///
    /// # Errors
    /// See [`Forge`].
    async fn resolve(&self, project: &ProjectName, source: &Source, wanted: &Wanted) -> Result<Resolved, Cause>;

    /// A clean clone of the mirror at `sha` in `dir` (made anew; no hard links, no credentials), given to the project's job user by `hands`.
    ///
    /// # Errors
    /// See [`Forge`].
    async fn checkout(&self, project: &ProjectName, sha: &Sha, dir: &Path, hands: &dyn Hands) -> Result<(), Cause>;

    /// Whether `ancestor` is `descendant` or one of its ancestors, by the mirror.
    ///
    /// # Errors
    /// See [`Forge`].
    async fn is_ancestor(&self, project: &ProjectName, ancestor: &Sha, descendant: &Sha) -> Result<bool, Cause>;

    /// Paths that differ between two commits, by the mirror. Not UTF-8 is replaced.
    ///
    /// # Errors
    /// See [`Forge`].
    async fn changed(&self, project: &ProjectName, from: &Sha, to: &Sha) -> Result<Vec<String>, Cause>;

    /// Puts together what fetches have left in the project's mirror, once that is much and nobody is at work in it; others wait for it
    /// meanwhile. Nothing is lost by it.
    ///
    /// # Errors
    /// See [`Forge`].
    async fn tidy(&self, project: &ProjectName) -> Result<(), Cause>;

    /// The directory of the project's checkouts.
    fn work_dir(&self, project: &ProjectName) -> PathBuf;
}

/// What a genuine delivery says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The forge tries the hook out.
    Ping,
    /// A branch or tag now points at `after`.
    Push {
        /// The full ref, `refs/heads/main`.
        reference: String,
        /// The new commit.
        after: Sha,
        /// It did not descend from the old one.
        forced: bool,
        /// Who pushed, as the forge says.
        pusher: Option<String>,
    },
    /// A ref was deleted.
    Delete {
        /// The full ref.
        reference: String,
    },
    /// Genuine and of no interest; the event's name.
    Other(String),
}

/// Why a delivery is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HookError {
    /// No signature, a wrong one, two, or one of another kind. Answered with one constant text.
    #[error("the signature is missing or wrong")]
    Signature,
    /// Signed and unreadable.
    #[error("the body is not a {0} delivery: {1}")]
    Body(&'static str, String),
}

/// One forge's way of signing and telling. Pure.
pub trait Hooks: Send + Sync {
    /// Checks the signature over the raw `body` with any of `secrets`, in constant time, then reads it. `header(name)` gives every
    /// value of a header. Also returns the delivery id and the signature, for duplicates.
    ///
    /// # Errors
    /// [`HookError`].
    fn read(
        &self,
        header: &dyn Fn(&str) -> Vec<String>,
        body: &[u8],
        secrets: &[super::secrets::Secret],
    ) -> Result<(Delivery, Option<String>, String), HookError>;
}
