//! One look at one host's health. Windows and verdicts are the model's; a probe only looks.

use async_trait::async_trait;
use std::time::Duration;

use super::link::Link;
use crate::model::pipeline::Check;

/// What one look saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Whether it was as it should be.
    pub good: bool,
    /// What was seen, one line: `200 in 12 ms`, `connection refused`, `exit 1: ...`.
    pub seen: String,
}

/// Looks.
#[async_trait]
pub trait Probe: Send + Sync {
    /// One look through `link` (a plain exec or a dialled connection; no token, nothing journaled), within `limit`. A look that
    /// cannot be taken is a bad one and says why.
    async fn look(&self, link: &dyn Link, check: &Check, limit: Duration) -> Sight;
}
