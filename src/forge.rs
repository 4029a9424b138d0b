//! Git repositories and the webhooks of forges.

mod git;
mod github;

pub use git::Git;
pub use github::GitHub;
