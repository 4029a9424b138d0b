//! How long what has happened is kept: finished runs by count and age, the whole by a quota, blobs and code by who names them.
//!
//! A run goes in three steps: its directory is renamed to the trash, what people see of it is deleted, the trash is emptied. The first
//! is one rename; what a crash leaves of the others is done at the next start.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    conductor::Conductor,
    ledger,
    view::{ArtifactView, RunView},
    world::Retention,
};
use crate::{
    lifecycle::locks::locked,
    model::{
        ids::{Digest, RunId},
        run::RunState,
    },
    ports::{
        blobs,
        control::{Commit, Control},
    },
};

const HOURLY: Duration = Duration::from_secs(3600);

/// As many runs that have ended since the last round are a reason for the next one: who deploys all day keeps hardly more than who does not.
const MANY: u64 = 100;
/// After which what has ended is closed, and others that end at the same time are of the same round.
const SOON: Duration = Duration::from_secs(5);

/// A finished run, as far as keeping it is concerned.
#[derive(Debug, Clone, PartialEq)]
struct Finished {
    run: RunId,
    project: String,
    succeeded: bool,
    /// It is live somewhere, or its release is.
    needed: bool,
    /// What its release has stored.
    blobs: Vec<Digest>,
}

/// Keeps to the rules at start, every hour, and whenever [`MANY`] runs have ended, until the daemon goes down.
pub(super) async fn keep(conductor: Conductor) {
    let world = Arc::clone(&conductor.inner.world);
    let stopping = world.tasks.stopping();
    let mut ended = conductor.inner.ended.subscribe();
    let mut first = true;
    loop {
        let seen = *ended.borrow();
        let passing = conductor.clone();
        let passed = world.tasks.blocking(move || pass(&passing, first)).await;
        match passed.map_err(std::io::Error::other).flatten() {
            Ok(()) => first = false,
            Err(error) => {
                tracing::warn!(%error, "what is not to be kept any more is not all removed; tried again later")
            }
        }
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = tidy(&conductor) => {}
        }
        let enough = async {
            let _conductor_lives = ended.wait_for(|ended| *ended >= seen + MANY).await.is_ok();
            world.clock.sleep(SOON).await;
        };
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = world.clock.sleep(HOURLY) => {}
            () = enough => {}
        }
    }
}

/// Puts together what fetches have left.
async fn tidy(conductor: &Conductor) {
    for loaded in conductor.all() {
        if let Err(cause) = conductor.inner.world.forge.tidy(&loaded.name).await {
            tracing::warn!(project = %loaded.name, %cause, "its mirror is as it was; tried again later");
        }
    }
}

/// One round. Blocks on the disk. Blobs and code are only swept when something went, and at the start.
fn pass(conductor: &Conductor, sweep_anyway: bool) -> std::io::Result<()> {
    let world = &conductor.inner.world;
    let journals = &world.journals;
    let left: BTreeSet<RunId> = journals.retired()?.into_iter().collect();
    forget(conductor, &left)?;

    let finished = finished(conductor)?;
    let now = world.clock.now().wall_ms;
    let mut going = outdated(&finished, &world.limits.retention, now);
    let mut used = world.storage.used()?;
    let mut stored = Stored::by(&finished);
    let size = |blob: &Digest| std::fs::metadata(world.blobs.path(blob)).map_or(0, |meta| meta.len());
    for run in &going {
        used = used.saturating_sub(journals.size(run)? + stored.without(run, size));
    }
    for run in spare(&finished, &going) {
        if used <= world.limits.retention.quota {
            break;
        }
        used = used.saturating_sub(journals.size(&run)? + stored.without(&run, size));
        going.insert(run);
    }
    for run in going.clone() {
        match journals.retire(&run) {
            // Its end is on disk, and its file is closed in a moment: the next round has it.
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => drop(going.remove(&run)),
            retired => retired?,
        }
    }
    forget(conductor, &going)?;
    if !going.is_empty() {
        tracing::info!(runs = going.len(), "finished runs were removed, as [retention] says");
    }
    if sweep_anyway || !going.is_empty() || !left.is_empty() {
        sweep(conductor)?;
    }
    // What of a signal's artifacts did not come whole within an hour or two comes anew.
    let cut = world.blobs.forget_parts()?;
    if cut > 0 {
        tracing::info!(blobs = cut, "parts of artifacts that their sender has given up were removed");
    }
    super::hosts::keys::forget_gone(conductor);
    Ok(())
}

/// What is left of runs that were taken away: what people see, what control knows, what is in the trash.
fn forget(conductor: &Conductor, retired: &BTreeSet<RunId>) -> std::io::Result<()> {
    if retired.is_empty() {
        return Ok(());
    }
    let (world, views) = (&conductor.inner.world, &conductor.inner.views);
    retired.iter().for_each(|run| views.remove(run));
    views.barrier();
    forget_passed(&*world.control, retired);
    retired.iter().try_for_each(|run| world.journals.shred(run))
}

/// Every run that is over and has a journal, newest first.
fn finished(conductor: &Conductor) -> std::io::Result<Vec<Finished>> {
    let world = &conductor.inner.world;
    let control = &*world.control;
    let there: BTreeSet<RunId> = world.journals.runs()?.into_iter().collect();
    let owned: BTreeSet<RunId> = locked(&conductor.inner.runs).keys().cloned().collect();
    let text = |value: &Value, at: &str| value.pointer(at).and_then(Value::as_str).map(str::to_owned);
    let live = control.scan("live/");
    let runs: BTreeSet<String> =
        live.iter().chain(&control.scan("last/")).filter_map(|entry| text(&entry.value, "/run")).collect();
    // Whatever control says of an environment, such as what is live there. What it can go back to is whole in control.
    let releases: BTreeSet<(String, String)> = control
        .scan("")
        .iter()
        .filter_map(|entry| {
            let project = entry.key.split('/').nth(1)?;
            Some((project.to_owned(), text(&entry.value, "/release/id")?))
        })
        .collect();
    let needed = |view: &RunView| {
        let release = view.release.as_ref().map(|release| (view.project.clone(), release.id.clone()));
        runs.contains(&view.id) || release.is_some_and(|release| releases.contains(&release))
    };
    let mut found = Vec::new();
    let seen = conductor.inner.views.each_run(|view| {
        let Ok(run) = view.id.parse::<RunId>() else { return };
        // Control knows of its end, so nobody writes it any more.
        let over = view.state.is_end() && !owned.contains(&run) && control.get(&ledger::run_key(&run)).is_none();
        if over && there.contains(&run) {
            let succeeded = matches!(view.state, RunState::Succeeded | RunState::Superseded);
            let needed = needed(&view);
            let artifacts = view.release.iter().flat_map(|release| &release.artifacts);
            let blobs = artifacts.filter_map(ArtifactView::stored).collect();
            found.push(Finished { run, project: view.project, succeeded, needed, blobs });
        }
    });
    seen.map_err(std::io::Error::other)?;
    Ok(found)
}

/// Which runs keep which artifacts: one that no other run keeps goes with its run.
struct Stored<'a> {
    keepers: BTreeMap<&'a Digest, BTreeSet<&'a RunId>>,
}

impl<'a> Stored<'a> {
    fn by(finished: &'a [Finished]) -> Self {
        let mut keepers: BTreeMap<&Digest, BTreeSet<&RunId>> = BTreeMap::new();
        for run in finished {
            for blob in &run.blobs {
                keepers.entry(blob).or_default().insert(&run.run);
            }
        }
        Stored { keepers }
    }

    /// What goes with `run`, bytes.
    fn without(&mut self, run: &RunId, size: impl Fn(&Digest) -> u64) -> u64 {
        let mut freed = 0;
        self.keepers.retain(|blob, keepers| {
            let gone = keepers.remove(run) && keepers.is_empty();
            freed += if gone { size(blob) } else { 0 };
            !gone
        });
        freed
    }
}

/// Those of `finished`, newest first, that may go at all: the newest of a project stays, and what is needed.
fn removable(finished: &[Finished]) -> impl Iterator<Item = (usize, &Finished)> {
    let mut ranks: BTreeMap<&str, usize> = BTreeMap::new();
    let ranked = finished.iter().map(move |run| {
        let rank = ranks.entry(&run.project).or_default();
        *rank += 1;
        (*rank, run)
    });
    ranked.filter(|(rank, run)| *rank > 1 && !run.needed)
}

/// Those that neither count nor age keeps.
fn outdated(finished: &[Finished], rules: &Retention, now_ms: i64) -> BTreeSet<RunId> {
    let old = |run: &Finished| {
        let age = u64::try_from(now_ms - run.run.wall_ms()).unwrap_or(0);
        let limit = if run.succeeded { rules.age } else { rules.age.max(rules.failed) };
        u128::from(age) >= limit.as_millis()
    };
    removable(finished).filter(|(rank, run)| *rank > rules.runs && old(run)).map(|(_, run)| run.run.clone()).collect()
}

/// Those that may go for want of room, oldest first.
fn spare(finished: &[Finished], going: &BTreeSet<RunId>) -> Vec<RunId> {
    let mut spare: Vec<RunId> =
        removable(finished).map(|(_, run)| run.run.clone()).filter(|run| !going.contains(run)).collect();
    spare.sort();
    spare
}

/// A release is not known to have passed its tests, or an environment, when the run in which it did is gone: nobody could look it up.
fn forget_passed(control: &dyn Control, gone: &BTreeSet<RunId>) {
    let of_gone = |value: &Value| {
        let run = value.get("run").and_then(Value::as_str).and_then(|run| run.parse::<RunId>().ok());
        run.is_some_and(|run| gone.contains(&run))
    };
    let puts: Vec<_> = ["passed/", "good/"]
        .into_iter()
        .flat_map(|prefix| control.scan(prefix))
        .filter(|entry| of_gone(&entry.value))
        .map(|entry| (entry.key, None))
        .collect();
    if !puts.is_empty()
        && let Err(error) = ledger::commit(control, Commit::Setting, puts)
    {
        tracing::warn!(%error, "control remembers releases of removed runs");
    }
}

/// Removes blobs and pinned code that nothing names any more.
fn sweep(conductor: &Conductor) -> std::io::Result<()> {
    let world = &conductor.inner.world;
    // Somebody is between a blob and its record; the next round comes.
    if !world.blobs.begin_sweep() {
        return Ok(());
    }
    // Control first: what crosses from a run's journal to control is in one of them at any time.
    let mut names: BTreeSet<Digest> = BTreeSet::new();
    for entry in world.control.scan("") {
        names.extend(blobs::named(entry.value.to_string().as_bytes()));
    }
    names.extend(world.journals.named()?);
    // A blob may name others.
    let mut unread: Vec<Digest> = names.iter().cloned().collect();
    while let Some(digest) = unread.pop() {
        for name in named_by(&world.blobs.path(&digest)) {
            if names.insert(name.clone()) {
                unread.push(name);
            }
        }
    }
    let blobs = world.blobs.end_sweep(&names)?;
    let code = world.programs.sweep(&names)?;
    if blobs + code > 0 {
        tracing::info!(blobs, code, "what nothing names any more was removed");
    }
    Ok(())
}

/// The most that phased itself ever puts into a blob: what is larger is an artifact and names nothing.
const LARGEST_RECORD: u64 = 64 << 20;

/// What a blob names, if it is one of ours: records are JSON, and artifacts may be as large as the disk.
fn named_by(path: &std::path::Path) -> Vec<Digest> {
    let read = || {
        let mut file = std::fs::File::open(path)?;
        if file.metadata()?.len() > LARGEST_RECORD {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0];
        file.read_exact(&mut bytes)?;
        if matches!(bytes[0], b'{' | b'[' | b'"') {
            file.read_to_end(&mut bytes)?;
        }
        std::io::Result::Ok(bytes)
    };
    read().map(|bytes| blobs::named(&bytes).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;
    const NOW: i64 = 1_800_000_000_000;

    fn run(days_ago: i64, project: &str, succeeded: bool, needed: bool) -> Finished {
        let run = RunId::new(NOW - days_ago * DAY - 1, 0);
        Finished { run, project: project.to_owned(), succeeded, needed, blobs: Vec::new() }
    }

    fn rules(runs: usize) -> Retention {
        let days = |n: u64| Duration::from_secs(n * 86_400);
        Retention { runs, age: days(30), failed: days(90), quota: 0 }
    }

    fn days(finished: &[Finished], gone: impl IntoIterator<Item = RunId>) -> Vec<i64> {
        let gone: Vec<RunId> = gone.into_iter().collect();
        assert!(gone.iter().all(|run| finished.iter().any(|f| f.run == *run)));
        gone.iter().map(|run| (NOW - run.wall_ms()) / DAY).collect()
    }

    #[test]
    fn whatever_keeps_more_keeps() {
        let shop = |days_ago, succeeded| run(days_ago, "shop", succeeded, false);
        let finished =
            [shop(1, true), shop(31, true), shop(40, false), shop(50, true), shop(91, false), shop(400, true)];
        assert_eq!(days(&finished, outdated(&finished, &rules(1), NOW)), [400, 91, 50, 31]);
        assert_eq!(days(&finished, outdated(&finished, &rules(4), NOW)), [400, 91]);
        assert!(outdated(&finished, &rules(9), NOW).is_empty());
    }

    #[test]
    fn what_is_live_and_the_last_of_a_project_stay() {
        let finished = [
            run(400, "shop", true, false),
            run(401, "till", true, false),
            run(402, "till", true, true),
            run(403, "till", true, false),
        ];
        assert_eq!(days(&finished, outdated(&finished, &rules(0), NOW)), [403]);
        assert_eq!(days(&finished, spare(&finished, &BTreeSet::new())), [403]);
    }

    #[test]
    fn for_want_of_room_the_oldest_go_first() {
        let finished = [
            run(1, "shop", true, false),
            run(2, "till", true, false),
            run(3, "shop", true, false),
            run(4, "till", false, false),
        ];
        assert_eq!(days(&finished, spare(&finished, &BTreeSet::new())), [4, 3]);
    }

    #[test]
    fn an_artifact_goes_with_the_last_run_that_has_it() {
        let [shared, own] = [&b"shared"[..], b"own"].map(Digest::of);
        let with = |days, blobs: &[&Digest]| {
            let blobs = blobs.iter().map(|blob| (*blob).clone()).collect();
            Finished { blobs, ..run(days, "shop", true, false) }
        };
        let finished = [with(1, &[&shared]), with(2, &[&shared, &own]), with(3, &[])];
        let mut stored = Stored::by(&finished);
        let size = |blob: &Digest| if *blob == own { 1 } else { 10 };
        let freed: Vec<u64> = [2, 1, 0, 0].map(|i: usize| stored.without(&finished[i].run, size)).to_vec();
        assert_eq!(freed, [0, 1, 10, 0]);
    }

    #[test]
    fn only_records_are_asked_what_they_name() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"x");
        let named = |bytes: &[u8]| {
            std::fs::write(dir.path().join("blob"), bytes).unwrap();
            named_by(&dir.path().join("blob"))
        };
        assert_eq!(named(format!(r#"{{"plan":"{digest}"}}"#).as_bytes()), std::slice::from_ref(&digest));
        assert!(named(format!("\x28\u{b5}/ {digest}").as_bytes()).is_empty() && named(b"").is_empty());
        let huge = std::fs::File::create(dir.path().join("huge")).unwrap();
        huge.set_len(1 << 40).unwrap();
        assert!(named_by(&dir.path().join("huge")).is_empty());
    }
}
