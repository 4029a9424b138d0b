//! A disk in memory that loses power: it keeps what was synced, and of everything else any part.
//!
//! Of a file's unsynced bytes each sector of 512 is there or not, or torn, up to any length; of a directory's unsynced names each is
//! there or not, whatever became of the others.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Disk, DiskFile, parent};
use crate::dice::Dice;

const SECTOR: usize = 512;

/// The disk. Clones are the same one.
#[derive(Clone)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

struct State {
    dice: Dice,
    /// Calls until the power fails.
    left: u64,
    files: Vec<Content>,
    /// What a name stands for: a file, or `None` for a directory.
    names: Names,
    on_disk: Names,
    /// Changes of names that no sync has put on disk.
    unsynced: Vec<Change>,
}

type Names = BTreeMap<PathBuf, Option<usize>>;

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    on_disk: Vec<u8>,
    /// So many bytes at the beginning are the same in both.
    same: usize,
}

impl Content {
    fn of(bytes: Vec<u8>) -> Self {
        Content { same: bytes.len(), on_disk: bytes.clone(), now: bytes }
    }

    fn sync(&mut self) {
        self.on_disk.truncate(self.same);
        self.on_disk.extend_from_slice(self.now.get(self.same..).unwrap_or_default());
        self.same = self.now.len();
    }
}

#[derive(Clone)]
enum Change {
    Made(PathBuf, Option<usize>),
    Gone(PathBuf),
    Moved { from: PathBuf, to: PathBuf, what: Option<usize> },
}

impl Change {
    fn path(&self) -> &Path {
        match self {
            Change::Made(path, _) | Change::Gone(path) | Change::Moved { to: path, .. } => path,
        }
    }

    fn apply(self, names: &mut Names) {
        match self {
            Change::Made(path, what) => drop(names.insert(path, what)),
            Change::Gone(path) => drop(names.remove(&path)),
            Change::Moved { from, to, what } => {
                names.remove(&from);
                names.insert(to, what);
            }
        }
    }
}

impl State {
    /// Counts a call; an error when there is no power for it.
    fn call(&mut self) -> io::Result<()> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 { Err(io::Error::other("there is no power")) } else { Ok(()) }
    }

    fn change(&mut self, change: Change) {
        change.clone().apply(&mut self.names);
        self.unsynced.push(change);
    }

    fn make_dirs(&mut self, dir: &Path) {
        let missing: Vec<PathBuf> =
            dir.ancestors().take_while(|dir| !self.names.contains_key(*dir)).map(Path::to_owned).collect();
        for dir in missing.into_iter().rev() {
            self.change(Change::Made(dir, None));
        }
    }
}

impl SimulatedDisk {
    /// An empty disk with the directory `dir`, which loses power at its `calls`-th call.
    #[must_use]
    pub fn new(seed: u64, dir: &Path, calls: u64) -> Self {
        let names: Names = dir.ancestors().map(|dir| (dir.to_owned(), None)).collect();
        SimulatedDisk(Arc::new(Mutex::new(State {
            dice: Dice::of(seed),
            left: calls,
            files: Vec::new(),
            on_disk: names.clone(),
            names,
            unsynced: Vec::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has power.
    #[must_use]
    pub fn has_power(&self) -> bool {
        self.state().left > 0
    }

    /// The same disk for another `calls`: whoever used it was killed, and everything it wrote is in the page cache still.
    #[must_use]
    pub fn again(&self, calls: u64) -> SimulatedDisk {
        let state = self.state();
        SimulatedDisk(Arc::new(Mutex::new(State {
            dice: state.dice.clone(),
            left: calls,
            files: state.files.clone(),
            names: state.names.clone(),
            on_disk: state.on_disk.clone(),
            unsynced: state.unsynced.clone(),
        })))
    }

    /// What of the file `path` is on disk for certain: what was synced, under a name that was.
    #[must_use]
    pub fn durable(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        let named = is_reachable(&state.on_disk, path).then(|| state.on_disk.get(path).copied().flatten()).flatten();
        named.and_then(|file| state.files.get(file)).map(|file| file.on_disk.clone()).unwrap_or_default()
    }

    /// What the file `path` holds now. It counts as no call.
    #[must_use]
    pub fn peek(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        let file = state.names.get(path).copied().flatten();
        file.and_then(|file| state.files.get(file)).map(|file| file.now.clone()).unwrap_or_default()
    }

    /// Every file and what it holds, by name.
    #[must_use]
    pub fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        let files = state.names.iter().filter_map(|(path, file)| Some((path.clone(), (*file)?)));
        files.filter_map(|(path, file)| Some((path, state.files.get(file)?.now.clone()))).collect()
    }

    /// What is there when the power is back, for another `calls`.
    #[must_use]
    pub fn back(&self, calls: u64) -> SimulatedDisk {
        let mut state = self.state();
        let State { dice, files, on_disk, unsynced, .. } = &mut *state;
        let mut names = on_disk.clone();
        for change in unsynced.iter() {
            if dice.below(2) == 0 {
                change.clone().apply(&mut names);
            }
        }
        let names = reachable(&names);
        let files = files.iter().map(|file| Content::of(lose(file, dice))).collect();
        SimulatedDisk(Arc::new(Mutex::new(State {
            dice: dice.clone(),
            left: calls,
            files,
            on_disk: names.clone(),
            names,
            unsynced: Vec::new(),
        })))
    }
}

/// A name in a directory whose own name was lost is lost with it.
fn reachable(names: &Names) -> Names {
    names.iter().filter(|(path, _)| is_reachable(names, path)).map(|(path, what)| (path.clone(), *what)).collect()
}

fn is_reachable(names: &Names, path: &Path) -> bool {
    path.ancestors().skip(1).all(|dir| names.get(dir) == Some(&None))
}

/// The bytes of a file after a power loss.
fn lose(file: &Content, dice: &mut Dice) -> Vec<u8> {
    let (old, new) = (&file.on_disk, &file.now);
    let (short, long) = (old.len().min(new.len()), old.len().max(new.len()));
    let length = short + dice.below(long - short + 1);
    let mut left = vec![0; length];
    for (n, sector) in left.chunks_mut(SECTOR).enumerate() {
        let at = n * SECTOR;
        let torn = match dice.below(3) {
            0 => 0,
            1 => SECTOR,
            _ => dice.below(SECTOR),
        };
        for (i, byte) in sector.iter_mut().enumerate() {
            let (old, new) = (old.get(at + i).copied(), new.get(at + i).copied());
            *byte = if i < torn { new.or(old) } else { old }.unwrap_or(0);
        }
    }
    left
}

struct SimulatedFile {
    disk: SimulatedDisk,
    file: usize,
}

impl DiskFile for SimulatedFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.left == 0 {
            return state.call();
        }
        let done = state.call();
        // The power may fail in the middle.
        let count = if done.is_ok() { bytes.len() } else { state.dice.below(bytes.len() + 1) };
        if let Some(file) = state.files.get_mut(self.file) {
            file.now.extend_from_slice(bytes.get(..count).unwrap_or_default());
        }
        done
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.call()?;
        if let Some(file) = state.files.get_mut(self.file) {
            file.now.truncate(usize::try_from(length).unwrap_or(usize::MAX));
            file.same = file.same.min(file.now.len());
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.left == 0 {
            return state.call();
        }
        let done = state.call();
        // The power may fail when it is done and nobody has heard of it.
        if (done.is_ok() || state.dice.below(2) == 0)
            && let Some(file) = state.files.get_mut(self.file)
        {
            file.sync();
        }
        done
    }
}

impl Disk for SimulatedDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut state = self.state();
        state.call()?;
        match state.names.get(path) {
            Some(Some(file)) => Ok(state.files.get(*file).map(|file| file.now.clone()).unwrap_or_default()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn exists(&self, path: &Path) -> bool {
        self.state().names.contains_key(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let names = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.call()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.make_dirs(parent(path)?);
        let file = state.files.len();
        state.files.push(Content::default());
        state.change(Change::Made(path.to_owned(), Some(file)));
        Ok(Box::new(SimulatedFile { disk: self.clone(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        let what = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change(Change::Moved { from: from.to_owned(), to: to.to_owned(), what });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        if state.names.contains_key(path) {
            state.change(Change::Gone(path.to_owned()));
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        let (synced, rest): (Vec<_>, Vec<_>) =
            state.unsynced.drain(..).partition(|change| change.path().parent() == Some(dir));
        state.unsynced = rest;
        synced.into_iter().for_each(|change| change.apply(&mut state.on_disk));
        Ok(())
    }
}

/// All states where that is quick or asked for, a part of them in a debug build.
#[cfg(test)]
pub fn states() -> u64 {
    if cfg!(debug_assertions) && std::env::var_os("PHASED_CRASH_FULL").is_none() { 500 } else { 10_000 }
}
