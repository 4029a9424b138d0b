//! What an earlier life of the daemon left: views are folded, half-written ends completed, unfinished runs taken up where they stood.

use std::collections::BTreeSet;

use super::{
    conductor::{Conductor, Requested},
    end, history, ledger,
    owner::{Left, Taken},
    view::RunView,
    views::{self, Views},
    world::World,
};
use crate::{
    model::{
        cause::Cause,
        doors,
        event::{Event, Header, Record},
        ids::{Epoch, RunId, Seq},
        run::{CallEnd, Progress, Run},
        step::CallKey,
    },
    ports::{control::Commit, journal::Found, program::Loaded},
};

/// Takes up every journal there is, and tells `looked_at` how many of how many are done. Returns when every unfinished run has its owner
/// again.
///
/// # Errors
/// The disk's, when the journals cannot be listed.
pub(super) async fn recover(conductor: &Conductor, looked_at: &(dyn Fn(usize, usize) + Sync)) -> std::io::Result<()> {
    let world = &conductor.inner.world;
    let journals = std::sync::Arc::clone(&world.journals);
    let runs = world.tasks.blocking(move || journals.runs()).await.map_err(std::io::Error::other)??;
    runs.iter().chain(&ledger::runs(&*world.control)).for_each(|run| conductor.met(run));
    let all = runs.len();
    for (id, n) in runs.iter().zip(1..) {
        match take_up(conductor, id).await {
            Ok(()) => {}
            Err(Why::Damage(damage)) => damaged(conductor, id, damage),
            Err(Why::Disk(error)) => unreadable(conductor, id, &error),
        }
        looked_at(n, all);
    }
    // An index made anew has nothing yet of what has no journal yet.
    for (id, view) in conductor.waiting() {
        if !matches!(conductor.inner.views.head(&id), Ok(Some(_))) {
            conductor.inner.views.known(view);
        }
    }
    let (views, control) = (conductor.inner.views.clone(), std::sync::Arc::clone(&world.control));
    let forgotten = world.tasks.blocking(move || {
        let named = ledger::runs(&*control);
        forget_removed(&views, &runs.into_iter().chain(named).collect());
        views.barrier();
    });
    forgotten.await.map_err(std::io::Error::other)
}

/// The index may know runs that were removed, of which neither a journal is `there` nor control knows: it is from before that, because there
/// was no room to write it since, or the daemon was killed before it was written.
fn forget_removed(views: &Views, there: &BTreeSet<RunId>) {
    match views.forget(|run| !there.contains(run)) {
        Ok(0) => {}
        Ok(runs) => tracing::info!(runs, "runs whose journals were removed are not shown any more"),
        Err(error) => tracing::warn!(%error, "runs that were removed may still be shown"),
    }
}

/// Why a run is not taken up.
enum Why {
    /// Its journal cannot be trusted: nobody will ever continue it.
    Damage(Damage),
    /// The disk refused just now: the next start tries again.
    Disk(std::io::Error),
}

/// What is wrong with a journal, and what it still tells of its run.
pub(super) struct Damage {
    why: String,
    header: Option<Box<Header>>,
}

impl Damage {
    fn new(found: &Found, why: String) -> Self {
        let header = found.records.first().and_then(|(_, _, record)| match &record.event {
            Event::Started(header) => Some(header.clone()),
            _ => None,
        });
        Damage { why, header }
    }

    /// Of what was read.
    pub(super) fn of(found: &Found) -> Option<Self> {
        found.damage.clone().map(|why| Damage::new(found, why))
    }

    fn cause(&self, world: &World, id: &RunId) -> Cause {
        let message = format!(
            "the journal of run {id} is damaged ({}); it is not continued. Look at {}/journal/runs/{id} and at its hosts",
            self.why,
            world.data_dir.display()
        );
        Cause::new("damaged", message)
    }

    /// What people see of the run where nobody knows more of it; `None`: not even whose it was.
    pub(super) fn view(&self, world: &World, id: &RunId) -> Option<RunView> {
        let header = self.header.as_ref()?;
        Some(views::damaged(id, &header.project, &header.request, &self.cause(world, id)))
    }
}

impl From<std::io::Error> for Why {
    fn from(error: std::io::Error) -> Self {
        Why::Disk(error)
    }
}

async fn take_up(conductor: &Conductor, id: &RunId) -> Result<(), Why> {
    let world = &conductor.inner.world;
    let views = &conductor.inner.views;
    let open = world.control.get(&ledger::run_key(id)).is_some();
    let known = views.head(id).ok().flatten().is_some_and(|view| view.state.is_end());
    if !open && known {
        // Its end is in control and the index describes it: nothing to read. A document that lies is found by `rebuild`.
        return Ok(());
    }
    let (journals, run_id) = (std::sync::Arc::clone(&world.journals), id.clone());
    let found = world.tasks.blocking(move || journals.read(&run_id)).await;
    let found = found.map_err(std::io::Error::other)??;
    if let Some(damage) = Damage::of(&found) {
        return Err(Why::Damage(damage));
    }
    if found.records.is_empty() {
        // Killed between making the file and its first record: the request is still queued, and is to find the file open.
        if open {
            let (journals, run_id) = (std::sync::Arc::clone(&world.journals), id.clone());
            let reopened = world.tasks.blocking(move || journals.reopen(&run_id, Epoch(0))).await;
            reopened.map_err(std::io::Error::other)??;
        }
        return Ok(());
    }
    let run = fold(&found)?;
    if run.end.is_some() {
        if open {
            // A daemon that was killed may have left the end in the page cache only: on disk first, then control may forget the run.
            let (journals, run_id, epoch) = (std::sync::Arc::clone(&world.journals), id.clone(), run.header.epoch);
            let reopened = world.tasks.blocking(move || journals.reopen(&run_id, epoch)).await;
            reopened.map_err(std::io::Error::other)??;
            world.journals.close(id);
        }
        views.recover(id, found.records, true);
        if open {
            tracing::info!(project = %run.header.project, run = %id, "its end is completed");
            if let Err(why) = end::finish(world, &run, None).await {
                conductor.degraded(&format!("the end of run {id} is not in control: {why}"));
            }
        }
        return Ok(());
    }
    let epoch = Epoch(run.header.epoch.0.max(u64::try_from(world.clock.now().wall_ms).unwrap_or(0)) + 1);
    let (journals, run_id) = (std::sync::Arc::clone(&world.journals), id.clone());
    let found = world.tasks.blocking(move || journals.reopen(&run_id, epoch)).await;
    let found = found.map_err(std::io::Error::other)??;
    let run = fold(&found)?;
    let last = found.records.last().map_or(Seq(0), |(seq, ..)| *seq);
    let taken = taken(world, &run, &found).await;
    views.recover(id, found.records, false);
    tracing::warn!(run = %id, project = %run.header.project, calls = run.calls.len(), "the daemon was gone in the middle of it; it goes on");
    conductor.resume(run, last, epoch, taken);
    Ok(())
}

/// What its owner needs besides the fold.
async fn taken(world: &World, run: &Run, found: &Found) -> Taken {
    let records = || found.records.iter().map(|(_, _, record)| record);
    let openings = history::openings(records(), run.calls.keys());
    let secrets = history::secrets(records(), &*world.secrets);
    let (outputs, id) = (std::sync::Arc::clone(&world.outputs), run.header.run.clone());
    // Also of hosts that are watched: what becomes of their health is said where they were deployed to.
    let watched = run.deployments.iter().filter(|deployment| deployment.end.is_none()).flat_map(|deployment| {
        let watched = deployment.hosts.iter().filter(|host| host.deploy == Progress::Ended(CallEnd::Returned));
        watched
            .map(|host| CallKey::host(deployment.environment.as_str(), deployment.n, host.host.id.as_str(), "deploy"))
    });
    let calls: Vec<CallKey> = run.calls.keys().cloned().chain(watched).collect();
    let lines = world.tasks.blocking(move || history::lines(&*outputs, &id, calls.iter())).await;
    Taken { openings, secrets, lines: lines.unwrap_or_default() }
}

fn fold(found: &Found) -> Result<Run, Why> {
    let records = found.records.iter().map(|(seq, _, record): &(Seq, u32, Record)| (*seq, record));
    Run::fold(records).map_err(|illegal| Why::Damage(Damage::new(found, illegal.to_string())))
}

/// What control knows of a run that is not over.
fn requested(conductor: &Conductor, id: &RunId) -> Option<Requested> {
    let entry = conductor.inner.world.control.get(&ledger::run_key(id))?;
    serde_json::from_value(entry.value).ok()
}

/// The disk would not give a run's journal: it stands still and keeps what it holds, and nothing begins over it.
fn unreadable(conductor: &Conductor, id: &RunId, error: &std::io::Error) {
    if let Some(requested) = requested(conductor, id) {
        conductor.stand_still(id, &requested.project);
    }
    conductor.degraded(&format!(
        "run {id} cannot be taken up: its journal cannot be read or rewritten: {error}; restart the daemon once the disk is well"
    ));
}

/// A journal that cannot be trusted: nobody continues the run, an operator decides. What it has left running is ended meanwhile: a machine
/// that does not answer holds up no other run, and nobody who asks the daemon.
fn damaged(conductor: &Conductor, id: &RunId, damage: Damage) {
    let (world, views) = (&conductor.inner.world, &conductor.inner.views);
    let requested = requested(conductor, id);
    let cause = damage.cause(world, id);
    let project = requested.as_ref().map(|requested| tracing::field::display(&requested.project));
    tracing::error!(project, run = %id, %cause, "a run is damaged");
    conductor.trouble(&format!("run {id}"), Some(cause.clone()));
    let Some(requested) = requested else {
        // It is over: given up in an earlier life, or damaged since. An index made anew has nothing of it.
        if !matches!(views.head(id), Ok(Some(_)))
            && let Some(view) = damage.view(world, id)
        {
            views.known(view);
        }
        return;
    };
    views.replace(views::damaged(id, &requested.project, &requested.request, &cause));
    // What follows in its project is to find the machine free.
    conductor.stand_still(id, &requested.project);
    let (conductor, id) = (conductor.clone(), id.clone());
    world.tasks.spawn(format!("run {id} damaged"), async move {
        let world = &conductor.inner.world;
        let stopping = world.tasks.stopping();
        tokio::select! {
            biased;
            // The next start finds the run as this one did.
            () = stopping.cancelled() => return,
            () = end::end_left(world, &requested.project, &id) => {}
        }
        let left = match give_up(&conductor, &id, &requested, &cause).await {
            Ok(()) => Left::Finished,
            Err(error) => Left::Broken(error),
        };
        conductor.left(&id, left);
    });
}

/// Ends a damaged run in control, where its leases, the queue and people hear of it.
async fn give_up(conductor: &Conductor, id: &RunId, requested: &Requested, cause: &Cause) -> Result<(), String> {
    let world = &conductor.inner.world;
    let mut puts = Vec::new();
    if let Ok(loaded) = conductor.project(requested.project.as_str()) {
        give_back(world, &loaded, id, cause)?;
        puts.extend(super::message::damaged(world, &loaded, id, cause));
    }
    // The last put: until it is written the next start does it all again.
    puts.push((ledger::run_key(id), None));
    let ended = ledger::commit(&*world.control, Commit::RunEnded, puts).map_err(|error| error.to_string())?;
    ended.synced().await.map_err(|error| error.to_string())?;
    Ok(())
}

/// Gives the environments back that a damaged run holds: nobody continues it, so nobody else ever would.
fn give_back(world: &World, loaded: &Loaded, id: &RunId, cause: &Cause) -> Result<(), String> {
    let holder = |lease: &String| {
        let held = world.leases.holder(lease).map(|held| held.holder);
        held.filter(|holder| holder.split('.').next() == Some(id.as_str()))
    };
    for environment in &loaded.pipeline.environments {
        let leases = doors::leases(&loaded.name, environment);
        // The last is the environment's own: a group's says nothing of the others in it. What the run has left on the hosts nobody has found to
        // be good; the next holder looks at that.
        if leases.last().is_some_and(|own| holder(own).is_some()) {
            let left = vec![ledger::left(&loaded.name, &environment.name, id, cause)];
            ledger::commit(&*world.control, Commit::DeploymentEnded, left).map_err(|error| error.to_string())?;
        }
        for lease in leases {
            let Some(holder) = holder(&lease) else { continue };
            if let Err(error) = world.leases.release(&lease, &holder) {
                tracing::error!(lease, %error, "the lease of a damaged run is not given back");
            }
        }
    }
    Ok(())
}
