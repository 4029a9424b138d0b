//! Git repositories and the webhooks of forges.

mod git;
mod github;

pub use git::{Git, Looked, OLDEST_GIT, git_is_new_enough};
pub use github::GitHub;
