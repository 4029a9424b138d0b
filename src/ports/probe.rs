//! One look at one host's health. Windows and verdicts are the model's; a probe only looks.

use async_trait::async_trait;
use std::time::Duration;

use super::link::Link;
use crate::model::{health::Sight, pipeline::Check};

/// Looks.
#[async_trait]
pub trait Probe: Send + Sync {
    /// One look through `link` (a plain exec or a dialled connection; no token, nothing journaled), within `limit`. A look that
    /// cannot be taken is a bad one and says why.
    async fn look(&self, link: &dyn Link, check: &Check, limit: Duration) -> Sight;
}
