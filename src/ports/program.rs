//! Programs: the user's pipeline code, driven step by step.
//!
//! A VM's inputs are its call and the answers resumed into it, in journal order; nothing else. Calls share nothing.

use serde_json::Value;
use std::path::PathBuf;

use crate::model::{
    cause::Cause,
    ids::{Digest, ProjectName},
    pipeline::Pipeline,
    step::{Branch, CallKey, Outcome, Request},
};

/// What a call did with its turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// It waits for the answers to these (more of them may already be open); all requests of a turn were made before it waited.
    Requests(Vec<Request>),
    /// It returned this.
    Return(Value),
    /// It raised an error: the author's (`run:fail`), a step's, or a mistake in the code, with `facts.at = "file:line"` and
    /// `facts.traceback` where known.
    Raised(Cause),
    /// It broke a limit (`limit_memory`, `limit_instructions`, `limit_time`), or the VM itself failed (`lua_internal`).
    Ended(Cause),
}

/// Told each turn, in order, possibly from another thread and possibly before `call` or `resume` returns.
pub type Sink = Box<dyn Fn(&CallKey, Turn) + Send>;

/// One run's calls, each in a VM of its own.
pub trait Program: Send {
    /// Starts the function at `function` (`test/unit/run`, `environments/production/deploy`, `notify/bad/1`, `discovery/production/1`)
    /// with plain data. `input` has `run`, and as the purpose needs `host`, `release`, `deployment`, `wave`, `message`, `options`.
    fn call(&mut self, key: &CallKey, function: &str, input: Value);

    /// Answers one open request of a call (`Ok`, `Failed` or `Unknown`; a `Cut` call is abandoned instead).
    fn resume(&mut self, key: &CallKey, branch: &Branch, outcome: &Outcome);

    /// Ends a call from outside: nothing of it runs any further and no turn of it follows.
    fn abandon(&mut self, key: &CallKey);
}

/// A request of a plugin call: `http`, `read`, `exec`, `smtp`, `log`, with arguments as for a step.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginRequest {
    /// The function of `phased` that was called.
    pub what: String,
    /// Its validated arguments.
    pub args: Value,
}

/// A plugin call's turn.
#[derive(Debug, Clone, PartialEq)]
pub enum PluginTurn {
    /// It waits for the answer to this.
    Request(PluginRequest),
    /// It returned this.
    Return(Value),
    /// It raised, or broke a limit.
    Raised(Cause),
}

/// A plugin call, driven by its owner on a blocking thread.
pub trait Plugin: Send {
    /// The first turn.
    fn start(&mut self) -> PluginTurn;
    /// The turn after the answer.
    fn resume(&mut self, outcome: &Outcome) -> PluginTurn;
}

/// A finding of the loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file, as found.
    pub file: PathBuf,
    /// From 1; 0 when unknown.
    pub line: usize,
    /// From 1, in characters; 0 when unknown.
    pub column: usize,
    /// How many characters are meant, at least 1.
    pub length: usize,
    /// `unknown_key`, `wrong_type`, `missing_key`, `syntax`, `runtime`, `secret_missing`, `bad_value`, ...
    pub code: &'static str,
    /// What is wrong, with the value.
    pub message: String,
    /// What to do: `did you mean "branch"?`
    pub help: Option<String>,
}

/// A project loaded and valid: its pinned code and what the engine needs to know of it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its name.
    pub name: ProjectName,
    /// The pinned bundle of every Lua file it required, stored under `code/<sha256>/`.
    pub code: Digest,
    /// The description.
    pub pipeline: Pipeline,
    /// Every secret named while loading.
    pub secrets: Vec<String>,
}

/// Loads projects and opens programs.
pub trait Programs: Send + Sync {
    /// Loads every file in `projects/` of the plugin directories; all errors at once. Does not store code. Blocks.
    ///
    /// # Errors
    /// Every finding, ordered by file and line.
    fn load(&self) -> Result<Vec<Loaded>, Vec<Diagnostic>>;

    /// Stores the bundle of a loaded project, fsynced, so that runs can name it. Blocks.
    ///
    /// # Errors
    /// The disk's.
    fn pin(&self, loaded: &Loaded) -> std::io::Result<()>;

    /// Removes pinned code that is neither in `keep` nor was loaded by this process. Blocks.
    ///
    /// # Errors
    /// The disk's; some of it is removed then.
    fn sweep(&self, keep: &std::collections::BTreeSet<Digest>) -> std::io::Result<usize>;

    /// Opens pinned code for a run; `seed` makes `math.random` the same on replay. VMs live on a thread of their own.
    ///
    /// # Errors
    /// A cause `code_missing` or `code_damaged`.
    fn open(&self, code: &Digest, project: &ProjectName, seed: u64, sink: Sink) -> Result<Box<dyn Program>, Cause>;

    /// Opens one plugin call of pinned code. A `discovery/...` function returns a list of [`crate::model::host::Host`], checked, with
    /// the hosts' own `ssh` values only.
    ///
    /// # Errors
    /// As [`Programs::open`].
    fn plugin(
        &self,
        code: &Digest,
        project: &ProjectName,
        function: &str,
        input: Value,
    ) -> Result<Box<dyn Plugin>, Cause>;
}
