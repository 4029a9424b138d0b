//! Git repositories and the webhooks of forges.

mod git;

pub use git::Git;
