//! The index: the queryable state folded from the journals. Nobody waits for it, and it can be lost.

use crate::model::ids::{RunId, Seq};

/// Documents written together with the position of the journal they describe.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Whose journal; `None` for what comes from control.
    pub run: Option<(RunId, Seq, u32)>,
    /// Documents, each at most 4 KiB; `None` deletes.
    pub puts: Vec<(String, Option<Vec<u8>>)>,
}

/// Why the index cannot answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the state index cannot be used: {0}")]
pub struct IndexError(pub String);

/// Where an index is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Where it belongs.
    Disk,
    /// In memory, as long as the disk has no room for it.
    Memory,
}

/// Keys and small documents in key order.
pub trait Index: Send + Sync {
    /// Writes a batch atomically. Survives a killed process; after a power loss the journal is folded anew.
    ///
    /// # Errors
    /// [`IndexError`]; a document over 4 KiB is one.
    fn apply(&self, batch: Batch) -> Result<(), IndexError>;

    /// One document.
    ///
    /// # Errors
    /// [`IndexError`].
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError>;

    /// Up to `limit` documents whose keys start with `prefix`, after `after` if given, by key (`reverse`: from the last).
    ///
    /// # Errors
    /// [`IndexError`].
    fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(String, Vec<u8>)>, IndexError>;

    /// The journal position the documents of `run` describe.
    ///
    /// # Errors
    /// [`IndexError`].
    fn position(&self, run: &RunId) -> Result<Option<(Seq, u32)>, IndexError>;

    /// Forgets which journal position the documents of `run` describe; they are deleted by [`Index::apply`].
    ///
    /// # Errors
    /// [`IndexError`].
    fn forget(&self, run: &RunId) -> Result<(), IndexError>;

    /// Forgets everything.
    ///
    /// # Errors
    /// [`IndexError`].
    fn clear(&self) -> Result<(), IndexError>;

    /// Whether it found no room on the disk: nothing can be written any more, whatever room there is, until it is made anew.
    fn full(&self) -> bool {
        false
    }

    /// Whether it is in memory, because there was no room on the disk.
    fn in_memory(&self) -> bool {
        false
    }

    /// Begins to make it anew on `medium`: what is written goes to an empty index, what is read comes from the one before until
    /// [`Index::renewed`]; positions come from the new one. Blocks on the disk.
    ///
    /// # Errors
    /// [`IndexError`]; it stays as it was.
    fn renew(&self, _medium: Medium) -> Result<(), IndexError> {
        Ok(())
    }

    /// The new index has everything: it is read from now on.
    fn renewed(&self) {}
}
