//! Programs: the user's pipeline code, driven step by step.
//!
//! A VM's inputs are its call and the answers resumed into it, in journal order; nothing else. Calls share nothing.

use serde_json::Value;
use std::path::PathBuf;

use crate::{
    lifecycle::pulse::Beat,
    model::{
        cause::Cause,
        ids::{Digest, ProjectName},
        pipeline::Pipeline,
        step::{Branch, CallKey, Outcome, Request, StepKey, Target},
    },
};

/// What a call did with its turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// It waits for the answers to these (more of them may already be open); all requests of a turn were made before it waited. A
    /// [`Verb::Log`](crate::model::step::Verb::Log) among them has been answered already. After a replay they are all that are still
    /// open, also those that the journal has as begun, and every line of the log again.
    Requests(Vec<Request>),
    /// It returned this.
    Return(Value),
    /// It raised an error: the author's (`run:fail`), a step's, or a mistake in the code, with `facts.at = "file:line"` and
    /// `facts.traceback` where known.
    Raised {
        /// What.
        cause: Cause,
        /// The undos it has left.
        undos: u32,
    },
    /// It was ended: by [`Program::end`], by a limit (`limit_memory`, `limit_instructions`, `limit_time`), because the VM itself failed
    /// (`lua_internal`), or because its replay `diverged` from the journal.
    Ended {
        /// Why.
        cause: Cause,
        /// The undos it has left.
        undos: u32,
    },
}

/// Told each turn, in order, possibly from another thread and possibly before `call` or `resume` returns.
pub type Sink = Box<dyn Fn(&CallKey, Turn) + Send>;

/// What a journal holds of a call after its `Call`, in its order.
#[derive(Debug, Clone, PartialEq)]
pub enum Past {
    /// A step was begun; further attempts of it are none of the program's business.
    Begun {
        /// Which.
        key: StepKey,
        /// Where it acts.
        target: Target,
        /// What the author wrote, canonical.
        args: Value,
    },
    /// A step ended: what the program was or is to be told.
    Done {
        /// Which.
        key: StepKey,
        /// How its last attempt ended.
        outcome: Outcome,
    },
}

/// How a call begins.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Opening {
    /// `test/unit/run`, `environments/production/deploy`.
    pub function: String,
    /// Plain data: `run`, and as the purpose needs `host`, `release`, `deployment`, `wave`.
    pub input: Value,
    /// What its journal holds since its `Call`: replayed, without any effect, before it goes on. Nothing for a new call.
    pub past: Vec<Past>,
    /// For a call that undoes another (its key ends in `.undo`): what the journal holds of that one.
    pub undoes: Vec<Past>,
}

/// One run's calls, each in a VM of its own.
pub trait Program: Send {
    /// Starts a call, or takes one up again where its journal ends.
    fn call(&mut self, key: &CallKey, opening: Opening);

    /// Answers one open request of a call (`Ok`, `Failed` or `Unknown`; one with a `Cut` step is ended instead).
    fn resume(&mut self, key: &CallKey, branch: &Branch, outcome: &Outcome);

    /// Ends a call from outside, after everything it was told so far: its last turn is [`Turn::Ended`] with `cause`, unless it ended by
    /// itself before.
    fn end(&mut self, key: &CallKey, cause: Cause);

    /// Lets go of `beat` once the code gets on: it has done a turn, or has nothing to do.
    fn beat(&mut self, beat: Beat);
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
