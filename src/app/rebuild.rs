//! `phased rebuild`: the index made anew from the journals, offline.

use std::sync::{Arc, mpsc};

use crate::{
    blobs::FileBlobs,
    config::Config,
    engine::Views,
    journal::{DataDisk, Kill, RunJournals},
    lifecycle::stall::Stall,
    model::ids::{RunId, Seq},
    ports::{
        index::Index as _,
        journal::{Feed, Journals as _},
    },
    store::StateIndex,
    time::{Clock, SystemClock},
};

/// Hears nothing: a rebuild writes no journals.
struct Nobody;

impl Feed for Nobody {
    fn synced(&self, _: &RunId, _: Vec<(Seq, u32, crate::model::event::Record)>) {}
}

/// Folds every journal into an empty index; returns how many runs there are, and what could not be folded.
///
/// # Errors
/// The data directory is in use, or the disk's.
pub fn run(config: &Config) -> anyhow::Result<(usize, Vec<String>)> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (layout, _lock) = super::own(&config.data_dir, &*clock)?;
    let (index, _) = StateIndex::open(&layout.state, &clock)?;
    anyhow::ensure!(
        !index.in_memory(),
        "there is no room for the index: make room on the disk that holds {}",
        layout.root.display()
    );
    index.clear()?;
    let index = Arc::new(index);
    let views = Views::start(index.clone(), Arc::clone(&clock), "rebuild".to_owned(), Stall::default())?;
    let blobs = Arc::new(FileBlobs::open(layout.blobs.clone())?);
    let data = Arc::new(DataDisk::open(&layout.root)?);
    let journals = RunJournals::open(layout.runs, blobs, Arc::new(Nobody), data, Kill::default())?;
    let (mut count, mut bad) = (0, Vec::new());
    for run in journals.runs()? {
        let found = journals.read(&run)?;
        if let Some(damage) = found.damage {
            bad.push(format!("run {run}: {damage}"));
        } else if !found.records.is_empty() {
            views.refold(&run, found.records);
            count += 1;
        }
    }
    views.settled();
    // The thread of the views holds the index too; what it has written is in sled by now.
    let (done, wait) = mpsc::channel();
    drop(views);
    std::thread::spawn(move || {
        if let Some(index) = Arc::into_inner(index) {
            let _best_effort = index.close();
        }
        let _waiting = done.send(());
    });
    let _closed = wait.recv_timeout(std::time::Duration::from_secs(10));
    Ok((count, bad))
}
