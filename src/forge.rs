//! Git repositories and the webhooks of forges.

mod git;
mod github;

pub use git::{Git, Looked};
pub use github::GitHub;
