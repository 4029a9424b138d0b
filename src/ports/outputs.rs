//! The output of commands: framed logs beside the journal, redacted before they get here.

use crate::model::{
    ids::RunId,
    step::{CallKey, StepKey},
};

/// Which stream a frame is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
    /// A line of the pipeline (`run:log`) or of phased itself (gap markers, why something ended).
    Note,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Whose.
    pub step: StepKey,
    /// Which attempt of it.
    pub attempt: u32,
    /// Which stream.
    pub stream: Stream,
    /// Where the raw bytes began in the command's stream.
    pub offset: u64,
    /// How many raw bytes it stands for (more or fewer than `bytes` where a secret was redacted).
    pub raw_len: u64,
    /// Wall time it was received, ms.
    pub wall_ms: i64,
    /// Redacted bytes.
    pub bytes: Vec<u8>,
}

/// What is stored of one stream of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// The raw offset after the last stored byte: where to go on asking the host.
    pub end: u64,
    /// How many redacted bytes there were, the gap between head and tail included as far as it is known.
    pub total: u64,
    /// The last of them.
    pub last: Vec<u8>,
}

/// Where to go on reading a run's output: the position after the last frame read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position(pub u64);

/// The output logs of all runs, in `out/` of each run's directory.
pub trait Outputs: Send + Sync {
    /// Appends a frame; per attempt and stream the first and last 5 MiB are kept with a visible gap between. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn append(&self, run: &RunId, frame: Frame) -> std::io::Result<()>;

    /// The attempt is over: what was held back of its tail is written. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn finish(&self, run: &RunId, step: &StepKey, attempt: u32) -> std::io::Result<()>;

    /// What an earlier life stored of an attempt, stdout and stderr: where each ends, and its last `keep` bytes. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn stored(&self, run: &RunId, step: &StepKey, attempt: u32, keep: usize) -> std::io::Result<[Stored; 2]>;

    /// The calls of `run` that have output, in the order they began to print.
    ///
    /// # Errors
    /// The disk's.
    fn calls(&self, run: &RunId) -> std::io::Result<Vec<CallKey>>;

    /// Up to about `limit` bytes of frames of one call from `from`, and where to go on. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn read(
        &self,
        run: &RunId,
        call: &CallKey,
        from: Position,
        limit: usize,
    ) -> std::io::Result<(Vec<Frame>, Position)>;

    /// Changes whenever a frame of any run was appended: followers look again.
    fn changed(&self) -> crate::lifecycle::watch::Receiver<u64>;
}
