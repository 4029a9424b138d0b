//! The journals of runs: append-only, fenced, the truth.

use crate::lifecycle::watch;
use crate::model::{
    event::Record,
    ids::{Epoch, RunId, Seq},
};

/// How far a journal is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Synced {
    /// Everything up to this number is.
    UpTo(Seq),
    /// A write or sync failed; nothing further ever will be (a failed fsync is never retried).
    Failed(String),
}

/// A claim on a record being on disk.
#[derive(Debug, Clone)]
pub struct Ticket {
    seq: Seq,
    synced: watch::Receiver<Synced>,
}

/// The journal failed before the record was on disk.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the journal cannot be written: {0}")]
pub struct Unsynced(pub String);

impl Ticket {
    /// A ticket for `seq`, fed by the journal's writer.
    #[must_use]
    pub fn new(seq: Seq, synced: watch::Receiver<Synced>) -> Self {
        Ticket { seq, synced }
    }

    /// The number of the last record it stands for.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Waits until the record is on disk. Cancel safe.
    ///
    /// # Errors
    /// [`Unsynced`] when the journal failed first or its writer is gone.
    pub async fn synced(&self) -> Result<(), Unsynced> {
        let mut synced = self.synced.clone();
        let state = synced
            .wait_for(|state| match state {
                Synced::UpTo(seq) => *seq >= self.seq,
                Synced::Failed(_) => true,
            })
            .await
            .map_err(|_| Unsynced("its writer has ended".to_owned()))?;
        match &*state {
            Synced::UpTo(_) => Ok(()),
            Synced::Failed(why) => Err(Unsynced(why.clone())),
        }
    }
}

/// Why records were not taken.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Another controller has taken over.
    #[error("journal of run {run} belongs to a later epoch than {epoch:?}")]
    Fenced {
        /// Whose journal.
        run: RunId,
        /// The epoch that was refused.
        epoch: Epoch,
    },
    /// The journal is not where the writer thought.
    #[error("journal of run {run} stands at {found:?}, not at {expected:?}")]
    Conflict {
        /// Whose journal.
        run: RunId,
        /// The number expected to be the last.
        expected: Seq,
        /// The number that is.
        found: Seq,
    },
    /// The disk refused earlier, or a record cannot be encoded.
    #[error("journal of run {run} cannot be written: {why}")]
    Broken {
        /// Whose journal.
        run: RunId,
        /// The first failure.
        why: String,
    },
}

/// A journal as recovery finds it.
#[derive(Debug)]
pub struct Found {
    /// Every record up to the end or the cut tail, with its number and its line's CRC.
    pub records: Vec<(Seq, u32, Record)>,
    /// `Some`: there is damage before records that were on disk; the run is `damaged` and nobody continues it.
    pub damage: Option<String>,
}

/// All run journals of one daemon.
pub trait Journals: Send + Sync {
    /// Appends `records` after `expected` (`Seq(0)` creates the journal) and returns at once; the ticket says when they are on disk.
    ///
    /// # Errors
    /// [`AppendError`]; then none of `records` was taken.
    fn append(&self, run: &RunId, epoch: Epoch, expected: Seq, records: Vec<Record>) -> Result<Ticket, AppendError>;

    /// Lets go of `beat` once the writer gets on with what was appended.
    fn beat(&self, beat: crate::lifecycle::pulse::Beat);

    /// Reads a journal, cutting an unsynced tail. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn read(&self, run: &RunId) -> std::io::Result<Found>;

    /// Takes up an unfinished run's journal for further appends: rewrites the kept prefix (new file, fsync, rename), because
    /// after a failed fsync the page cache is not the disk. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's; the journal is as it was then.
    fn reopen(&self, run: &RunId, epoch: Epoch) -> std::io::Result<Found>;

    /// Every run that has a journal, oldest first. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn runs(&self) -> std::io::Result<Vec<RunId>>;

    /// Lets go of a finished run's file once all is synced; appending later is an error.
    fn close(&self, run: &RunId);

    /// Takes a finished run away, with its output: from here on it is not in [`Journals::runs`], power loss or not. What it takes on disk
    /// is still there, see [`Journals::shred`]. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's; the run is where it was then.
    fn retire(&self, run: &RunId) -> std::io::Result<()>;

    /// Runs that were taken away and are not shredded yet. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn retired(&self) -> std::io::Result<Vec<RunId>>;

    /// Removes what a retired run takes on disk. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's; some of it may be there still.
    fn shred(&self, run: &RunId) -> std::io::Result<()>;

    /// How many bytes a run takes on disk, output included. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn size(&self, run: &RunId) -> std::io::Result<u64>;

    /// Everything that any journal names by its sha256, and perhaps more. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn named(&self) -> std::io::Result<std::collections::BTreeSet<crate::model::ids::Digest>>;
}

/// Hears of records once they are on disk: every view is fed from here and nowhere else.
pub trait Feed: Send + Sync {
    /// In order, each once; called from the journal's writer, so it hands on and returns.
    fn synced(&self, run: &RunId, records: Vec<(Seq, u32, Record)>);
}
