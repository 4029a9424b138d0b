//! A dry run, as the API shows it: the commands that a start would run.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{CauseView, ReleaseView};
use crate::model::run::RunState;

/// The commands that a start would run. None of them was run, and no run was made; the
/// hosts were found out as for a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DryRun {
    /// Whose.
    pub project: String,
    /// What would ship.
    pub release: ReleaseView,
    /// What was assumed, and what a start would have to wait for.
    pub notes: Vec<String>,
    /// Everything in its order.
    pub parts: Vec<DryPart>,
    /// How the run would end, if every answer was as assumed.
    #[schema(value_type = String, example = "succeeded")]
    pub state: RunState,
    /// Why it would end so, unless it succeeded; or `dry_run_cut`: this is only the beginning, and why.
    pub cause: Option<CauseView>,
    /// Calls that failed in the Lua code itself.
    pub errors: usize,
}

/// A part of a run: a test stage, a hook, or what happens to hosts of a wave to which the very same happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DryPart {
    /// Of a test stage: its name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stage: Option<String>,
    /// Where it is deployed to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub environment: Option<String>,
    /// `test`, `plan`, `prepare`, `before`, `before_wave`, `wave`, `after_wave`, `bake`, `verify`, `after`, `rollback_safe`.
    #[schema(example = "wave")]
    pub phase: String,
    /// Which wave, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wave: Option<u32>,
    /// The hosts it happens to, by name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub hosts: Vec<String>,
    /// What is to be said of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
    /// The functions that are called, in order.
    pub calls: Vec<DryCall>,
}

/// A function that would be called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DryCall {
    /// `run`, `prepare`, `deploy`; `health` for what is looked at after a deploy.
    #[schema(example = "deploy")]
    pub function: String,
    /// What it asks for.
    pub steps: Vec<DryStep>,
    /// It failed in its Lua: what, and with `at` where. What follows is shown as if it had returned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<CauseView>,
}

/// A step that would be taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DryStep {
    /// `sh`, `exec`, `upload`, `http`, ...; `look` for a health check.
    #[schema(example = "sh")]
    pub verb: String,
    /// Where, unless that is its host, or this machine in a stage.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub on: Option<String>,
    /// The branch of `run:parallel` it is in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub branch: Option<String>,
    /// The command, or what else is done, secrets by name.
    #[schema(example = "npm ci && npm run build")]
    pub text: String,
    /// How: `as root`, `env PORT=8080`, secrets by name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub options: Vec<String>,
    /// `file:line` in the project's code.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub at: String,
}
