//! The daemon's projects, queue and running runs: what the API calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    doors::Doors,
    handle::{Claim, Refusal},
    ledger,
    maintenance::Maintenance,
    owner::{self, Begin, Left, Message, Owner, Progress},
    reload::Reload,
    signals::{Inbox, Taken},
    view::RunView,
    views::{self, Views},
    world::World,
};
use crate::{
    lifecycle::{locks::locked, pulse::Beat, watch},
    model::{
        cause::Cause,
        deployment::DeploymentState,
        event::{Event, Header, Purpose, Record, Request, Wanted},
        ids::{Epoch, ProjectName, RunId, Seq, Sha},
        next,
        pipeline::Queue,
        run::{Run, RunState, Trigger},
    },
    ports::{
        control::{Commit, CommitError, Revision},
        journal::Ticket,
        program::Loaded,
        storage::Condition,
    },
    time::Stamp,
};

/// How long a request waits for room that even the reserve has not.
const STUCK: Duration = Duration::from_secs(10);

/// A request as control keeps it from the 202 until the run's end is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Requested {
    pub(super) project: ProjectName,
    pub(super) request: Request,
}

/// A run with an owner.
pub(super) struct Running {
    pub(super) project: ProjectName,
    pub(super) sender: mpsc::Sender<Message>,
    pub(super) progress: watch::Receiver<Progress>,
}

/// The engine. Cheap to clone.
#[derive(Clone)]
pub struct Conductor {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) world: Arc<World>,
    pub(super) views: Views,
    pub(super) projects: RwLock<BTreeMap<ProjectName, Arc<Loaded>>>,
    pub(super) runs: Mutex<BTreeMap<RunId, Running>>,
    /// Queued runs that end without an owner: superseded or stopped before they began. Locked after `runs`.
    leaving: Mutex<BTreeSet<RunId>>,
    doors: Arc<Doors>,
    pub(super) maintenance: Arc<Maintenance>,
    /// What came as signals of other daemons.
    pub(super) inbox: Inbox,
    /// The queue has something to look at.
    pub(super) nudge: Notify,
    /// What is wrong, by where: `journal`, `index`, `project <name>`.
    pub(super) trouble: Mutex<BTreeMap<String, Cause>>,
    pub(super) since: Stamp,
    /// Ends the polls of the set of projects that is loaded.
    pub(super) polls: Mutex<CancellationToken>,
    /// Idempotency keys whose first request is not answered yet.
    pub(super) claims: Mutex<BTreeSet<String>>,
    /// The time in the newest run's id: the next one's is later, whatever the clock says. A run that is requested later is the younger one.
    newest: Mutex<i64>,
    /// Held by the dry run that is under way.
    pub(super) rehearsal: tokio::sync::Mutex<()>,
    /// Held by the backup that is being made.
    pub(super) backup: Arc<tokio::sync::Mutex<()>>,
    /// Unfinished runs have been taken up: the queue may start others.
    pub(super) recovered: watch::Sender<bool>,
    /// How many runs have ended in this life.
    pub(super) ended: watch::Sender<u64>,
    /// Who asks whether the queue works.
    pub(super) beats: Mutex<Vec<Beat>>,
    /// How the last reload went.
    pub(super) reload: watch::Sender<Reload>,
    /// Held by the reload that is under way.
    pub(super) reloading: tokio::sync::Mutex<()>,
}

impl Conductor {
    /// An engine over `world` whose `views` are fed by its journals. Nothing runs before [`Conductor::start`].
    #[must_use]
    pub fn new(world: Arc<World>, views: Views) -> Self {
        let since = world.clock.now();
        let maintenance = Arc::new(Maintenance::of(&*world.control));
        Conductor {
            inner: Arc::new(Inner {
                world,
                views,
                projects: RwLock::default(),
                runs: Mutex::default(),
                leaving: Mutex::default(),
                doors: Arc::default(),
                maintenance,
                inbox: Inbox::default(),
                nudge: Notify::new(),
                trouble: Mutex::default(),
                since,
                polls: Mutex::default(),
                claims: Mutex::default(),
                newest: Mutex::default(),
                rehearsal: tokio::sync::Mutex::default(),
                backup: Arc::default(),
                recovered: watch::channel(false).0,
                ended: watch::channel(0).0,
                beats: Mutex::default(),
                reload: watch::channel(Reload::default()).0,
                reloading: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Makes `projects` the ones that new runs use; their code is pinned first.
    pub(super) async fn install(&self, projects: Vec<Loaded>) -> std::io::Result<()> {
        let programs = Arc::clone(&self.inner.world.programs);
        let projects = self
            .inner
            .world
            .tasks
            .blocking(move || {
                projects.iter().try_for_each(|loaded| programs.pin(loaded))?;
                std::io::Result::Ok(projects)
            })
            .await
            .map_err(std::io::Error::other)??;
        self.inner.doors.install(projects.iter());
        let projects = projects.into_iter().map(|loaded| (loaded.name.clone(), Arc::new(loaded))).collect();
        *self.inner.projects.write().unwrap_or_else(PoisonError::into_inner) = projects;
        Ok(())
    }

    pub(super) fn all(&self) -> Vec<Arc<Loaded>> {
        self.inner.projects.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn project(&self, name: &str) -> Result<Arc<Loaded>, Refusal> {
        let projects = self.inner.projects.read().unwrap_or_else(PoisonError::into_inner);
        projects.get(name).cloned().ok_or_else(|| Refusal::ProjectUnknown(name.to_owned()))
    }

    /// Shows `cause` as what is wrong with the daemon itself, until it is restarted.
    pub fn warn(&self, place: &str, cause: Cause) {
        tracing::warn!(%cause, "something is wrong");
        self.trouble(place, Some(cause));
    }

    /// Tells people, through every project's `bad` channels, of each index that was set aside and that they were not told of; `names` are
    /// those that still lie in the data directory. That they are told is on disk together with what they are told.
    pub fn tell_set_aside(&self, names: &[String]) {
        let control = &*self.inner.world.control;
        let key = |name: &str| format!("aside/{name}");
        let gone = control.scan("aside/").into_iter().map(|entry| entry.key);
        let mut puts: Vec<_> =
            gone.filter(|told| names.iter().all(|name| key(name) != *told)).map(|told| (told, None)).collect();
        for name in names.iter().filter(|name| control.get(&key(name)).is_none()) {
            let cause = Cause::new(
                "index_set_aside",
                format!(
                    "the state index could not be used and was made anew from the journals, so nothing is lost; the old one is {}. \
                     Look at the disk if this happens again",
                    self.inner.world.data_dir.join(name).display()
                ),
            );
            let title = "phased has made its state index anew";
            let letters: Vec<_> = self
                .all()
                .iter()
                .flat_map(|loaded| super::message::of_daemon(&self.inner.world, loaded, name, title, &cause))
                .collect();
            // Without projects there is nobody to tell yet.
            if !letters.is_empty() {
                puts.extend(letters);
                puts.push((key(name), Some(json!({ "at_ms": self.inner.world.clock.now().wall_ms }))));
            }
        }
        if !puts.is_empty()
            && let Err(error) = ledger::commit(control, Commit::Outbox, puts)
        {
            tracing::error!(%error, "people are not told of the state index that was set aside");
        }
    }

    pub(super) fn trouble(&self, place: &str, cause: Option<Cause>) {
        let mut trouble = locked(&self.inner.trouble);
        match cause {
            Some(cause) => trouble.insert(place.to_owned(), cause),
            None => trouble.remove(place),
        };
    }

    /// Nothing that changes anything is taken while the daemon goes down or cannot write.
    pub(super) fn writable(&self) -> Result<(), Refusal> {
        if self.inner.world.tasks.stopping().is_cancelled() {
            return Err(Refusal::Stopping);
        }
        let world = &self.inner.world;
        let storage = world.storage.condition().borrow().clone();
        if let Some(cause) = storage.cause(&world.data_dir) {
            return Err(if storage == Condition::Full { self.full() } else { Refusal::Degraded(cause.message) });
        }
        match locked(&self.inner.trouble).get("journal") {
            Some(cause) => Err(Refusal::Degraded(cause.message.clone())),
            None => Ok(()),
        }
    }

    fn full(&self) -> Refusal {
        Refusal::DiskFull(self.inner.world.data_dir.clone())
    }

    /// The disk failed somewhere: nothing that changes anything is taken any more.
    pub(super) fn degraded(&self, why: &str) {
        self.trouble("journal", Some(Cause::new("degraded", why)));
    }

    /// What control refused, as an answer.
    pub(super) fn refused(&self, error: &CommitError) -> Refusal {
        if let CommitError::Broken(_) = error {
            self.degraded(&error.to_string());
        }
        Refusal::Degraded(error.to_string())
    }

    /// Waits for a ticket; a journal that cannot be written degrades the daemon.
    /// One that waits for room is not waited for for ever: it may still be done, and who asks again is told what is.
    pub(super) async fn synced(&self, ticket: &Ticket) -> Result<(), Refusal> {
        let stuck = async {
            let mut condition = self.inner.world.storage.condition();
            let _storage_lives_as_long_as_we =
                condition.wait_for(|condition| *condition == Condition::Full).await.is_ok();
            self.inner.world.clock.sleep(STUCK).await;
        };
        tokio::select! {
            biased;
            synced = ticket.synced() => synced.map_err(|error| {
                self.degraded(&error.to_string());
                Refusal::Degraded(error.to_string())
            }),
            () = stuck => Err(self.full()),
        }
    }

    /// An id above that of every run there was.
    fn next_id(&self, wall_ms: i64) -> RunId {
        let mut newest = locked(&self.inner.newest);
        *newest = wall_ms.max(newest.saturating_add(1));
        RunId::new(*newest, self.inner.world.random_u128())
    }

    /// Remembers that there was this run.
    pub(super) fn met(&self, run: &RunId) {
        let mut newest = locked(&self.inner.newest);
        *newest = run.wall_ms().max(*newest);
    }

    /// Puts a run into the queue: one record, with what else must be true together with it. Returns once it is on disk; `None`: a key
    /// of `only_if` was written meanwhile, so what was asked for is stale.
    pub(super) async fn request(
        &self,
        project: &ProjectName,
        trigger: Trigger,
        by: String,
        ask: Ask,
        only_if: &[(String, Revision)],
        also: Vec<String>,
    ) -> Result<Option<RunView>, Refusal> {
        self.writable()?;
        let world = &self.inner.world;
        let waiting = self.queued(project).len();
        if waiting >= world.limits.max_queued {
            return Err(Refusal::QueueFull(format!("project {project} has {waiting} queued runs; ask again later")));
        }
        let now = world.clock.now();
        let id = self.next_id(now.wall_ms);
        let requested = self.asked_for(project, trigger, &by, &ask);
        let mut puts = vec![(ledger::run_key(&id), Some(json!(requested)))];
        if let Some(sha) = ask.head {
            puts.push((ledger::head_key(project), Some(json!(ledger::Head { sha, run: Some(id.clone()) }))));
        }
        puts.extend(ask.seen.map(|(key, sha)| (key, Some(json!(ledger::Head { sha, run: Some(id.clone()) })))));
        puts.extend(ask.signal.iter().flat_map(|taken| taken.puts(&id, now.wall_ms)));
        // Keys that name this run get its id.
        puts.extend(ask.once.map(|once| once.began(&id, now.wall_ms)));
        puts.extend(also.into_iter().map(|key| (key, Some(json!(id)))));
        let ticket = match world.control.commit(Commit::RunRequested, only_if, puts) {
            Err(CommitError::Conflict { .. }) => return Ok(None),
            committed => committed.map_err(|e| self.refused(&e))?,
        };
        self.synced(&ticket).await?;
        let view = views::queued(&id, project, &requested.request, self.testing(project).as_ref());
        self.inner.views.queued(view.clone());
        self.inner.nudge.notify_one();
        tracing::info!(%project, run = %id, by = requested.request.by, "a run was requested");
        Ok(Some(self.shown(view)))
    }

    /// What is asked for, as control keeps it.
    pub(super) fn asked_for(&self, project: &ProjectName, trigger: Trigger, by: &str, ask: &Ask) -> Requested {
        let world = &self.inner.world;
        let request = Request {
            trigger,
            by: ledger::cut(by, 256),
            reason: ask.reason.as_ref().map(|reason| ledger::cut(reason, 4 * ledger::LONGEST)),
            wanted: ask.wanted.clone(),
            environment: ask.environment.clone(),
            tag: ask.tag.clone(),
            purpose: ask.purpose.clone(),
            redeploy: ask.redeploy,
            retry_bad: ask.retry_bad,
            retest: ask.retest,
            signal: ask.signal.as_ref().map(|taken| Box::new(taken.received.clone())),
            after: ledger::head(&*world.control, project).map(|head| head.sha),
            requested_at_ms: world.clock.now().wall_ms,
        };
        Requested { project: project.clone(), request }
    }

    /// The run that holds the project's testing slot.
    pub(super) fn testing(&self, project: &ProjectName) -> Option<RunId> {
        let runs = locked(&self.inner.runs);
        runs.iter()
            .find(|(_, r)| r.project == *project && *r.progress.borrow() == Progress::Testing)
            .map(|(id, _)| id.clone())
    }

    /// Requests of a project that have no owner, oldest first.
    pub(super) fn queued(&self, project: &ProjectName) -> Vec<(RunId, Requested)> {
        self.requests().into_iter().filter(|(_, requested)| requested.project == *project).collect()
    }

    /// Requests that have no owner, of all projects.
    pub(super) fn requests(&self) -> Vec<(RunId, Requested)> {
        let runs = locked(&self.inner.runs);
        let leaving = locked(&self.inner.leaving);
        let entries = self.inner.world.control.scan("run/");
        let parsed = entries.into_iter().filter_map(|entry| {
            let id: RunId = entry.key.strip_prefix("run/")?.parse().ok()?;
            Some((id, serde_json::from_value::<Requested>(entry.value).ok()?))
        });
        parsed.filter(|(id, _)| !runs.contains_key(id) && !leaving.contains(id)).collect()
    }

    /// What people see of requests that have no owner.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (RunId, RunView)> {
        self.requests().into_iter().map(|(id, requested)| {
            let testing = self.testing(&requested.project);
            let view = views::queued(&id, &requested.project, &requested.request, testing.as_ref());
            (id, view)
        })
    }

    /// Takes a queued run out of the queue, to end it; false when somebody else has begun or ended it.
    fn take(&self, id: &RunId) -> bool {
        let runs = locked(&self.inner.runs);
        let mut leaving = locked(&self.inner.leaving);
        !runs.contains_key(id)
            && self.inner.world.control.get(&ledger::run_key(id)).is_some()
            && leaving.insert(id.clone())
    }

    /// Writes the whole journal of a run that never began, then tells control.
    async fn end_queued(&self, id: &RunId, epoch: Epoch, records: Vec<Record>) -> Result<(), Refusal> {
        let world = &self.inner.world;
        let ticket = world.journals.append(id, epoch, Seq(0), records).map_err(|error| {
            self.degraded(&error.to_string());
            Refusal::Degraded(error.to_string())
        })?;
        // Run first, then control, as for every end.
        self.synced(&ticket).await?;
        let puts = vec![(ledger::run_key(id), None)];
        let ticket = world.control.commit(Commit::RunEnded, &[], puts).map_err(|e| self.refused(&e))?;
        locked(&self.inner.leaving).remove(id);
        self.synced(&ticket).await?;
        self.closed(id);
        Ok(())
    }

    /// A run has ended, and control knows it.
    fn closed(&self, id: &RunId) {
        self.inner.world.journals.close(id);
        self.inner.ended.send_modify(|ended| *ended += 1);
    }

    /// The queue: one commit of a project is tested at a time; under `latest` the newest request supersedes the others.
    pub(super) async fn work(&self) {
        let stopping = self.inner.world.tasks.stopping();
        let stall = self.inner.world.stalls.at("queue");
        loop {
            stall.here();
            let beats = std::mem::take(&mut *locked(&self.inner.beats));
            // On a full disk what runs gets the reserve; what is queued waits. On one that failed nothing is begun at all.
            let none = self.writable().is_err();
            let mut by_project: BTreeMap<ProjectName, Vec<(RunId, Requested)>> = BTreeMap::new();
            for (id, requested) in self.requests().into_iter().filter(|_| !none) {
                by_project.entry(requested.project.clone()).or_default().push((id, requested));
            }
            for (project, queued) in by_project {
                let Ok(loaded) = self.project(project.as_str()) else {
                    if self.testing(&project).is_none() {
                        self.drop_requests(&project, &queued);
                    }
                    continue;
                };
                // What puts back something known tests nothing: it waits for nobody's tests and takes nobody's place.
                let deploys = |(_, requested): &(RunId, Requested)| requested.request.purpose.is_deploy();
                let (mut queued, straight): (Vec<_>, Vec<_>) = queued.into_iter().partition(deploys);
                for (id, requested) in straight.into_iter().filter(|_| !self.inner.maintenance.is_on()) {
                    self.begin(&loaded, id, requested);
                }
                if self.testing(&project).is_some() {
                    continue;
                }
                if loaded.pipeline.queue == Queue::Latest {
                    queued = self.newest(&loaded, queued);
                }
                // During maintenance they wait here; newer ones still take their places.
                if let Some((id, requested)) = queued.into_iter().next().filter(|_| !self.inner.maintenance.is_on()) {
                    self.begin(&loaded, id, requested);
                }
            }
            drop(beats);
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                () = self.inner.nudge.notified() => {}
            }
        }
    }

    /// Those whose place no newer one takes: one that goes at least as far as they do. The others are ended.
    fn newest(&self, loaded: &Loaded, queued: Vec<(RunId, Requested)>) -> Vec<(RunId, Requested)> {
        let mut kept: Vec<(RunId, Requested)> = Vec::new();
        for (id, requested) in queued.into_iter().rev() {
            let reach = reach(loaded, &requested.request);
            // A signal is for its environment and no other: none on the way there has it.
            let there = |newer: &Request| {
                (newer.signal.is_none() && requested.request.signal.is_none())
                    || newer.environment == requested.request.environment
            };
            let takes = |newer: &Request| there(newer) && self::reach(loaded, newer) >= reach;
            match kept.iter().find(|(_, newer)| takes(&newer.request)) {
                Some((newer, _)) => self.supersede(loaded, &id, requested, newer),
                None => kept.push((id, requested)),
            }
        }
        kept.reverse();
        kept
    }

    /// How many environments a run that is not over goes through by itself.
    pub(super) fn reach_of(&self, loaded: &Loaded, run: &RunId) -> Option<usize> {
        let entry = self.inner.world.control.get(&ledger::run_key(run))?;
        let requested: Requested = serde_json::from_value(entry.value).ok()?;
        Some(reach(loaded, &requested.request))
    }

    /// Requests of a project that is not there any more.
    fn drop_requests(&self, project: &ProjectName, queued: &[(RunId, Requested)]) {
        tracing::error!(%project, "requests of a project that is not loaded any more are dropped");
        let cause = Cause::new(
            "project_unknown",
            format!("project {project} is not loaded any more; nothing was done. Put its file back and start it again"),
        );
        for (id, requested) in queued {
            // Without its code it can have no journal; this is what people see of it.
            let mut view = views::queued(id, project, &requested.request, None);
            (view.state, view.cause) = (RunState::Failed, Some((&cause).into()));
            view.finished_at = Some(self.inner.world.clock.now().rfc3339());
            self.inner.views.replace(view);
        }
        let puts = queued.iter().map(|(id, _)| (ledger::run_key(id), None)).collect();
        if let Err(error) = ledger::commit(&*self.inner.world.control, Commit::RunEnded, puts) {
            tracing::error!(%error, "control cannot be written");
        }
    }

    pub(super) fn header(&self, loaded: &Loaded, id: &RunId, requested: Requested) -> Header {
        let world = &self.inner.world;
        let epoch = u64::try_from(world.clock.now().wall_ms).unwrap_or(1);
        Header {
            format: next::FORMAT,
            version: world.version.to_owned(),
            run: id.clone(),
            project: requested.project,
            code: loaded.code.clone(),
            pipeline: loaded.pipeline.clone(),
            // JSON numbers are exact up to 2^53 everywhere.
            seed: u64::try_from(world.random_u128() & ((1 << 53) - 1)).unwrap_or(0),
            epoch: Epoch(epoch),
            request: requested.request,
        }
    }

    fn record(&self, event: Event) -> Record {
        let world = &self.inner.world;
        Record { at: world.clock.now(), by: Arc::clone(&world.controller), event }
    }

    /// Ends a queued run whose place a newer one took; it has a journal as every run has.
    fn supersede(&self, loaded: &Loaded, id: &RunId, requested: Requested, by: &RunId) {
        let header = self.header(loaded, id, requested);
        let epoch = header.epoch;
        let cause = Cause::new("superseded", format!("run {by} took its place in the queue")).with("by", by.as_str());
        let records = vec![
            self.record(Event::Started(Box::new(header))),
            self.record(Event::End { state: RunState::Superseded, cause: Some(cause) }),
        ];
        if !self.take(id) {
            return;
        }
        let (conductor, id, project) = (self.clone(), id.clone(), loaded.name.clone());
        self.inner.world.tasks.spawn(format!("run {id} superseded"), async move {
            if let Err(error) = conductor.end_queued(&id, epoch, records).await {
                tracing::error!(%project, run = %id, %error, "a superseded run is not ended");
            }
        });
    }

    /// Begins a run: its journal, its program, its owner.
    fn begin(&self, loaded: &Loaded, id: RunId, requested: Requested) {
        let header = self.header(loaded, &id, requested);
        let epoch = header.epoch;
        let first = self.record(Event::Started(Box::new(header)));
        let run = match Run::begin(&first) {
            Ok(run) => run,
            Err(error) => return tracing::error!(project = %loaded.name, run = %id, %error, "a run cannot begin"),
        };
        let tests = run.header.request.purpose.is_deploy();
        let Some(seat) = self.seat(&id, &run.header.project, tests, true) else { return };
        match self.inner.world.journals.append(&id, epoch, Seq(0), vec![first]) {
            Ok(ticket) => self.sit(seat, run, ticket.seq(), epoch, Some(ticket), None),
            // It stays on the list: nothing begins over it.
            Err(error) => self.degraded(&error.to_string()),
        }
    }

    /// Puts a run on the list of those with an owner, before there is one; `None` when it is there, or left the queue meanwhile.
    fn seat(&self, id: &RunId, project: &ProjectName, tests: bool, queued: bool) -> Option<Seat> {
        let mut runs = locked(&self.inner.runs);
        let gone = locked(&self.inner.leaving).contains(id)
            || (queued && self.inner.world.control.get(&ledger::run_key(id)).is_none());
        if gone || runs.contains_key(id) {
            return None;
        }
        let channel = mpsc::channel(1024);
        let progress = watch::channel(if tests { Progress::Testing } else { Progress::Deploying });
        let running = Running { project: project.clone(), sender: channel.0.clone(), progress: progress.1 };
        runs.insert(id.clone(), running);
        Some(Seat { channel, progress: progress.0 })
    }

    /// Puts a run that nobody can go on with just now on the list of those with an owner, so that nothing begins over it.
    pub(super) fn stand_still(&self, id: &RunId, project: &ProjectName) {
        // Nobody sits there, so it never gets further than testing.
        drop(self.seat(id, project, true, false));
    }

    /// Takes up a run that an earlier life left unfinished.
    pub(super) fn resume(&self, run: Run, seq: Seq, epoch: Epoch, taken: owner::Taken) {
        let tests = run.header.request.purpose.is_deploy();
        if let Some(seat) = self.seat(&run.header.run, &run.header.project, tests, false) {
            self.sit(seat, run, seq, epoch, None, Some(taken));
        }
    }

    /// Gives a run an owner; `taken` = it was cut off by the end of an earlier life.
    fn sit(&self, seat: Seat, run: Run, seq: Seq, epoch: Epoch, ticket: Option<Ticket>, taken: Option<owner::Taken>) {
        let world = Arc::clone(&self.inner.world);
        let id = run.header.run.clone();
        let Seat { channel, progress } = seat;
        let sink = super::owner::turns(channel.0.clone());
        let program = match world.programs.open(&run.header.code, &run.header.project, run.header.seed, sink) {
            Ok(program) => program,
            Err(cause) if cause.code.starts_with("code_") => {
                tracing::error!(project = %run.header.project, run = %id, %cause, "the pinned code of a run cannot be opened");
                self.bury(run, seq, epoch, cause);
                return;
            }
            // The machine's trouble and not the run's: the next start tries again.
            Err(cause) => return self.left(&id, Left::Broken(cause.message)),
        };
        let mut watched = progress.subscribe();
        let doors = Arc::clone(&self.inner.doors);
        let gate = self.inner.maintenance.gate(&run);
        let begin =
            Begin { world: Arc::clone(&world), doors, gate, run, seq, epoch, program, channel, progress, ticket };
        let mut owner = Owner::new(begin);
        if let Some(taken) = taken {
            owner.take_up(taken);
        }
        let conductor = self.clone();
        world.tasks.spawn(format!("run {id}"), async move {
            let mut owned = std::pin::pin!(AssertUnwindSafe(owner.run()).catch_unwind());
            let left = loop {
                tokio::select! {
                    biased;
                    // A panic has no journal entry: the run stands still, and says so.
                    left = &mut owned => break left.unwrap_or_else(|_| Left::Broken("its owner panicked".to_owned())),
                    // The testing slot is free: the next commit's verdict does not wait for this one's rollout.
                    changed = watched.changed() => if changed.is_ok() { conductor.inner.nudge.notify_one() },
                }
            };
            conductor.left(&id, left);
        });
    }

    /// A run whose code is gone: its end is all that can still be written.
    fn bury(&self, mut run: Run, seq: Seq, epoch: Epoch, cause: Cause) {
        let world = Arc::clone(&self.inner.world);
        let message =
            format!("{}, so nobody can continue the run. Look at what it has done, then start it again", cause.message);
        let cause = Cause { message, ..cause };
        let open = run.deployments.iter().find(|deployment| deployment.end.is_none());
        let ended = open.map(|deployment| {
            let state = if deployment.may_have_touched() { DeploymentState::Halted } else { DeploymentState::Failed };
            Event::DeploymentEnded { deployment: deployment.n, state, cause: Some(cause.clone()) }
        });
        let end = Event::End { state: RunState::Damaged, cause: Some(cause) };
        let records: Vec<Record> = ended.into_iter().chain([end]).map(|event| self.record(event)).collect();
        if let Err(error) = records.iter().try_for_each(|record| run.next(record)) {
            return self.left(&run.header.run, Left::Broken(error.to_string()));
        }
        let id = run.header.run.clone();
        match world.journals.append(&id, epoch, seq, records) {
            Ok(ticket) => {
                let conductor = self.clone();
                world.tasks.clone().spawn(format!("run {id} damaged"), async move {
                    // How its commands ended is forgotten with what they left running.
                    if let Err(error) = ticket.synced().await {
                        return conductor.left(&id, Left::Broken(error.to_string()));
                    }
                    super::end::end_left(&world, &run.header.project, &id).await;
                    let left = match super::end::finish(&world, &run, Some(&ticket)).await {
                        Ok(()) => Left::Finished,
                        Err(why) => Left::Broken(why),
                    };
                    conductor.left(&id, left);
                });
            }
            Err(error) => self.left(&id, Left::Broken(error.to_string())),
        }
    }

    /// The run has no owner any more.
    pub(super) fn left(&self, id: &RunId, left: Left) {
        match left {
            Left::Finished => {
                // First: who is on no list is retention's.
                self.closed(id);
                locked(&self.inner.runs).remove(id);
            }
            Left::Broken(why) => {
                // It stays on the list: its project must not start another run over it.
                self.degraded(&format!("run {id} stands still: {why}; restart the daemon once the disk is well"));
            }
            Left::Stopping => {}
        }
        self.inner.nudge.notify_one();
    }

    /// Asks a run's owner to end it; `Ok(false)` = it has ended already.
    pub(super) async fn stop(&self, id: &RunId, now: bool, reason: Option<String>, by: &str) -> Result<bool, Refusal> {
        self.writable()?;
        let sender = locked(&self.inner.runs).get(id).map(|running| running.sender.clone());
        if let Some(sender) = sender {
            let (reply, answer) = oneshot::channel();
            let message = Message::Stop { by: by.to_owned(), now, reason, reply };
            if sender.send(message).await.is_err() {
                return Ok(false);
            }
            return match answer.await {
                Ok(Ok(())) => Ok(true),
                Ok(Err(_)) | Err(_) => Ok(false),
            };
        }
        // Still in the queue: it never begins.
        let queued = self.requests().into_iter().find(|(queued, _)| queued == id);
        let Some((_, requested)) = queued else { return Ok(false) };
        let loaded = self.project(requested.project.as_str())?;
        let header = self.header(&loaded, id, requested);
        let epoch = header.epoch;
        let why = reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        let cause = Cause::new("stopped", format!("stopped in the queue by {by}{why}")).with("by", by);
        let records = vec![
            self.record(Event::Started(Box::new(header))),
            self.record(Event::StopRequested { by: by.to_owned(), now, reason: reason.clone() }),
            self.record(Event::End { state: RunState::Stopped, cause: Some(cause) }),
        ];
        if !self.take(id) {
            // It began just now, or somebody else ended it.
            return Box::pin(self.stop(id, now, reason, by)).await;
        }
        self.end_queued(id, epoch, records).await?;
        Ok(true)
    }

    /// Runs of a project that are not over, oldest first.
    pub(super) fn active(&self, project: &ProjectName) -> Vec<RunId> {
        let mut ids: Vec<RunId> = {
            let runs = locked(&self.inner.runs);
            let over = |r: &Running| *r.progress.borrow() == Progress::Over;
            runs.iter().filter(|(_, r)| r.project == *project && !over(r)).map(|(id, _)| id.clone()).collect()
        };
        ids.extend(self.queued(project).into_iter().map(|(id, _)| id));
        ids.sort();
        ids
    }

    /// Whether anything is done, or about to be, for a project. What a freeze keeps out may have to wait for days.
    pub(super) fn at_work(&self, project: &ProjectName) -> bool {
        self.active(project).iter().any(|run| !self.inner.doors.is_frozen_out(run))
    }

    /// Waits at most `limit` for the views to change.
    pub(super) async fn changed(&self, version: &mut watch::Receiver<u64>, limit: Duration) -> bool {
        let changed = async {
            let _board_lives_as_long_as_we = version.changed().await;
        };
        crate::time::within(&*self.inner.world.clock, limit, changed).await.is_some()
    }
}

fn reach(loaded: &Loaded, request: &Request) -> usize {
    crate::model::doors::reach(&loaded.pipeline, request.environment.as_ref(), request.tag.as_deref())
}

/// A place on the list of runs, for an owner.
struct Seat {
    channel: (mpsc::Sender<Message>, mpsc::Receiver<Message>),
    progress: watch::Sender<Progress>,
}

impl Ask {
    /// For a tag that was pushed; `sha` is what it points at itself.
    pub(super) fn of_tag(project: &ProjectName, tag: String, sha: Sha) -> Self {
        Ask {
            wanted: Wanted::Named(format!("refs/tags/{tag}")),
            seen: Some((ledger::tag_key(project, &tag), sha)),
            tag: Some(tag),
            ..Ask::default()
        }
    }
}

/// What a run is asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Ask {
    pub(super) wanted: Wanted,
    /// The tag that `wanted` names.
    pub(super) tag: Option<String>,
    pub(super) environment: Option<crate::model::ids::EnvironmentName>,
    pub(super) reason: Option<String>,
    pub(super) purpose: Purpose,
    pub(super) redeploy: bool,
    pub(super) retest: bool,
    pub(super) retry_bad: bool,
    /// The head this request is for, if it is known: no poll asks for it again.
    pub(super) head: Option<Sha>,
    /// The `Idempotency-Key` it came with.
    pub(super) once: Option<Claim>,
    /// The key of a tag that is taken care of by this request, and where the tag points.
    pub(super) seen: Option<(String, Sha)>,
    /// The signal that asks for it.
    pub(super) signal: Option<Box<Taken>>,
}
