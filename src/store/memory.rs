//! An index in memory: while the disk has no room for one, and in simulated worlds.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Included, Unbounded},
    sync::{Arc, Mutex},
};

use super::checked;
use crate::{
    lifecycle::locks::locked,
    model::ids::{RunId, Seq},
    ports::index::{Batch, Index, IndexError},
};

/// Documents in memory; clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemoryIndex(Arc<Mutex<Documents>>);

#[derive(Debug, Default)]
struct Documents {
    by_key: BTreeMap<String, Vec<u8>>,
    positions: BTreeMap<RunId, (Seq, u32)>,
}

impl Index for MemoryIndex {
    fn apply(&self, batch: Batch) -> Result<(), IndexError> {
        checked(&batch)?;
        let mut documents = locked(&self.0);
        for (key, document) in batch.puts {
            match document {
                Some(document) => drop(documents.by_key.insert(key, document)),
                None => drop(documents.by_key.remove(&key)),
            }
        }
        if let Some((run, seq, crc)) = batch.run {
            documents.positions.insert(run, (seq, crc));
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(locked(&self.0).by_key.get(key).cloned())
    }

    fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(String, Vec<u8>)>, IndexError> {
        let documents = locked(&self.0);
        let within = |(key, _): &(&String, &Vec<u8>)| key.starts_with(prefix);
        let own = |(key, document): (&String, &Vec<u8>)| (key.clone(), document.clone());
        if reverse {
            // No key has that character.
            let end = format!("{prefix}\u{10ffff}");
            let end = after.filter(|after| *after < end.as_str()).unwrap_or(&end);
            if end <= prefix {
                return Ok(Vec::new());
            }
            let range = documents.by_key.range::<str, _>((Included(prefix), Excluded(end)));
            return Ok(range.rev().take(limit).map(own).collect());
        }
        let from = after.filter(|after| *after >= prefix).map_or(Included(prefix), Excluded);
        let range = documents.by_key.range::<str, _>((from, Unbounded));
        Ok(range.take_while(within).take(limit).map(own).collect())
    }

    fn position(&self, run: &RunId) -> Result<Option<(Seq, u32)>, IndexError> {
        Ok(locked(&self.0).positions.get(run).copied())
    }

    fn forget(&self, run: &RunId) -> Result<(), IndexError> {
        locked(&self.0).positions.remove(run);
        Ok(())
    }

    fn clear(&self) -> Result<(), IndexError> {
        *locked(&self.0) = Documents::default();
        Ok(())
    }
}
