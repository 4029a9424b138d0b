//! The index of a simulated daemon: on a disk that may find no room for it, and in memory then.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{outside::Outside, random::Random};
use crate::{
    lifecycle::locks::locked,
    model::ids::{RunId, Seq},
    ports::index::{Batch, Index, IndexError, Medium},
    store::MemoryIndex,
};

/// What is on the disk under the index's name. Survives a killed process and is lost with the machine's power.
pub(super) type OnDisk = Arc<Mutex<MemoryIndex>>;

/// Documents, and where they are.
#[derive(Clone)]
struct Place {
    documents: MemoryIndex,
    /// How many writes find room on the disk before one finds none, and no later one either; `None` = in memory.
    room: Option<Arc<AtomicU64>>,
}

/// The index for one life of the daemon.
pub(super) struct ScarceIndex {
    disk: OnDisk,
    outside: Outside,
    random: Mutex<Random>,
    places: Mutex<(Place, Option<Place>)>,
}

impl ScarceIndex {
    pub(super) fn of(disk: OnDisk, outside: Outside) -> Self {
        let mut random = {
            let state = outside.state();
            Random::of(state.scenario.seed, &format!("index {}", state.deaths))
        };
        // Sometimes there is no room even to open what is there.
        let place = if random.one_in(8) {
            Place { documents: MemoryIndex::default(), room: None }
        } else {
            Place { documents: locked(&disk).clone(), room: Some(room(&mut random)) }
        };
        ScarceIndex { disk, outside, random: Mutex::new(random), places: Mutex::new((place, None)) }
    }

    fn written(&self) -> Place {
        locked(&self.places).0.clone()
    }

    fn read(&self) -> MemoryIndex {
        let places = locked(&self.places);
        places.1.as_ref().unwrap_or(&places.0).documents.clone()
    }

    fn write(&self, write: impl FnOnce(&MemoryIndex) -> Result<(), IndexError>) -> Result<(), IndexError> {
        let Place { documents, room } = self.written();
        if let Some(room) = room {
            let left = if self.outside.full().is_some() { 0 } else { room.load(Relaxed) };
            if left == 0 {
                room.store(0, Relaxed);
                return Err(IndexError("no room".to_owned()));
            }
            room.store(left - 1, Relaxed);
        }
        write(&documents)
    }
}

/// Mostly there is enough. Else it ends soon, half-way through a new index too.
fn room(random: &mut Random) -> Arc<AtomicU64> {
    let writes = if random.one_in(3) { random.below(20) } else { u64::MAX };
    Arc::new(AtomicU64::new(writes))
}

impl Index for ScarceIndex {
    fn apply(&self, batch: Batch) -> Result<(), IndexError> {
        self.write(|documents| documents.apply(batch))
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.read().get(key)
    }

    fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(String, Vec<u8>)>, IndexError> {
        self.read().scan(prefix, after, limit, reverse)
    }

    fn position(&self, run: &RunId) -> Result<Option<(Seq, u32)>, IndexError> {
        self.written().documents.position(run)
    }

    fn forget(&self, run: &RunId) -> Result<(), IndexError> {
        self.write(|documents| documents.forget(run))
    }

    fn clear(&self) -> Result<(), IndexError> {
        self.write(Index::clear)
    }

    fn full(&self) -> bool {
        self.written().room.is_some_and(|room| room.load(Relaxed) == 0)
    }

    fn in_memory(&self) -> bool {
        self.written().room.is_none()
    }

    fn renew(&self, medium: Medium) -> Result<(), IndexError> {
        let documents = MemoryIndex::default();
        let room = (medium == Medium::Disk).then(|| {
            *locked(&self.disk) = documents.clone();
            room(&mut locked(&self.random))
        });
        let mut places = locked(&self.places);
        let written = std::mem::replace(&mut places.0, Place { documents, room });
        places.1.get_or_insert(written);
        Ok(())
    }

    fn renewed(&self) {
        if self.full() {
            let now = self.outside.clock().elapsed();
            self.outside.state().breaks(now, "an index that found no room half-way is read as if it were whole");
        }
        locked(&self.places).1 = None;
    }
}
