//! What a run takes: the commit that was asked for, or a release that was known-good.

use super::Context;
use crate::{
    engine::{
        adoption::{self, Adopted},
        hosts,
        ledger::{self, Good},
        world::World,
    },
    model::{
        cause::Cause,
        event::{Event, Purpose, Wanted},
        ids::{Digest, EnvironmentName, ProjectName, ReleaseId, RunId, Sha},
        pipeline::Queue,
        plan::Target,
        release::{Artifact, Commit, Release},
        run::{Run, Trigger},
    },
    ports::{control::Control, forge},
};

/// Finds and fetches the commit; a push that is not the head any more ends as superseded.
pub(super) async fn resolve(context: &Context, run: &Run) -> Event {
    let world = &context.world;
    let (header, pipeline) = (&run.header, &run.header.pipeline);
    let project = &header.project;
    if !header.request.purpose.is_deploy() {
        let target = match &header.request.purpose {
            Purpose::Adopt => adopted(world, run).await.map(|adopted| adopted.target),
            _ => target(world, run),
        };
        return match target {
            Ok(target) => Event::Resolved {
                release: Box::new(target.release.clone()),
                passed: None,
                live: Vec::new(),
                target: Some(Box::new(target)),
            },
            Err(cause) => Event::Unresolved { cause },
        };
    }
    let head = ledger::head_revision(&*world.control, project);
    let found = match world.forge.resolve(project, &pipeline.source, &header.request.wanted).await {
        Ok(found) => found,
        Err(cause) if cause.code == "ref_unknown" && matches!(header.request.wanted, Wanted::Pushed(_)) => {
            let message = format!(
                "the pushed commit is not on {} any more; its successor is deployed instead",
                pipeline.source.branch
            );
            return Event::Unresolved { cause: Cause::new("superseded", message) };
        }
        Err(cause) => return Event::Unresolved { cause },
    };
    if let (Wanted::Pushed(_), false) = (&header.request.wanted, found.is_head) {
        let seen_before = match (&header.request.after, pipeline.queue) {
            (_, Queue::Latest) => true,
            (None, Queue::All) => false,
            (Some(after), Queue::All) => {
                world.forge.is_ancestor(project, &found.commit.sha, after).await.unwrap_or(true)
            }
        };
        if seen_before {
            let message = format!("{} has a newer head than the pushed commit", pipeline.source.branch);
            return Event::Unresolved { cause: Cause::new("superseded", message) };
        }
    }
    if found.is_head {
        ledger::saw_head(world, run, &found.commit.sha, head);
    }
    self::found(world, run, found)
}

/// What a commit that was found is for a run: the release that it ships, or why it is not deployed.
pub(in crate::engine) fn found(world: &World, run: &Run, found: forge::Resolved) -> Event {
    match known_bad(world, run, &found.commit) {
        Some(cause) => Event::Unresolved { cause },
        None => resolved(world, run, found.commit, found.tag),
    }
}

/// What a commit that was found is before anything was built of it.
pub(in crate::engine) fn first_build(run: &Run, found: &forge::Resolved) -> Release {
    Release {
        id: ReleaseId::first_build(&found.commit.sha),
        commit: found.commit.clone(),
        branch: Some(run.header.pipeline.source.branch.clone()),
        tag: found.tag.clone(),
        artifacts: Vec::new(),
    }
}

/// What a run puts back, by what is known now.
///
/// # Errors
/// `no_target` or `target_unknown`, or that its code cannot be opened.
pub(super) fn target(world: &World, run: &Run) -> Result<Target, Cause> {
    let (project, control, request) = (&run.header.project, &*world.control, &run.header.request);
    let Some(environment) = &request.environment else {
        return Err(Cause::new("internal", "a rollback names no environment"));
    };
    let target = match (&request.purpose, &request.signal) {
        // Its sender means this very build.
        (Purpose::Rollback { to: Some(_) }, Some(signal)) => {
            let ways = Ways::of(control, project, environment)?;
            let this = |target: &&Target| target.release.id == signal.release.id;
            ways.targets().find(this).ok_or_else(|| ways.unknown(signal.release.id.as_str()))?.clone()
        }
        (Purpose::Rollback { to }, _) => going_back(control, project, environment, to.as_deref())?,
        (Purpose::Deploy | Purpose::Converge { .. } | Purpose::Adopt, _) => {
            let ways = Ways::of(control, project, environment)?;
            ways.targets().nth(ways.at.unwrap_or(0)).ok_or_else(|| ways.nothing_before())?.clone()
        }
    };
    opens(world, project, &target).map(|()| target)
}

/// What a rollback by hand goes back to, by what is known now: the release that is named by its id or the beginning of its commit; else from
/// what is live to what was live before it, and where the last deployment left a mixture, to what is live.
///
/// # Errors
/// `no_target`: there is nothing to go back to. `target_unknown`: what is named was never good there, or is not remembered. Both say what is.
pub(in crate::engine) fn going_back(
    control: &dyn Control,
    project: &ProjectName,
    environment: &EnvironmentName,
    to: Option<&str>,
) -> Result<Target, Cause> {
    let ways = Ways::of(control, project, environment)?;
    let mixed = ledger::last(control, project, environment).is_some_and(|last| last.is_mixture());
    let named = |target: &&Target, to: &str| {
        target.release.id.as_str() == to || target.release.commit.sha.as_str().starts_with(to)
    };
    let target = match (to, ways.at) {
        (Some(to), _) => ways.targets().find(|target| named(target, to)).ok_or_else(|| ways.unknown(to)),
        (None, Some(at)) if !mixed => ways.targets().nth(at + 1).ok_or_else(|| ways.nothing_before()),
        (None, at) => ways.targets().nth(at.unwrap_or(0)).ok_or_else(|| ways.nothing_before()),
    };
    target.cloned()
}

/// What can be gone back to in an environment.
struct Ways<'a> {
    environment: &'a EnvironmentName,
    /// At least one, the last one first.
    known_good: Vec<Good>,
    /// Which of them is live.
    at: Option<usize>,
}

impl<'a> Ways<'a> {
    fn of(control: &dyn Control, project: &ProjectName, environment: &'a EnvironmentName) -> Result<Self, Cause> {
        let known_good = ledger::some_good(control, project, environment)?;
        let live = ledger::live(control, project, environment).map(|live| live.release.id);
        let at = known_good.iter().position(|good| Some(&good.target.release.id) == live.as_ref());
        Ok(Ways { environment, known_good, at })
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.known_good.iter().map(|good| &good.target)
    }

    fn unknown(&self, to: &str) -> Cause {
        let message = format!("{to:?} is not known-good in {}; known-good there: {}", self.environment, self.names());
        Cause::new("target_unknown", message)
    }

    fn nothing_before(&self) -> Cause {
        let message = format!(
            "{} has no known-good release from before the live one; known-good there: {}",
            self.environment,
            self.names()
        );
        Cause::new("no_target", message)
    }

    /// Each, and which of them is live: for a person who has to choose.
    fn names(&self) -> String {
        let live = |at| if Some(at) == self.at { " (live)" } else { "" };
        let names = self.targets().enumerate().map(|(at, target)| format!("{}{}", target.release.id, live(at)));
        names.collect::<Vec<_>>().join(", ")
    }
}

/// What the hosts of the run's environment report, for a run that adopts it.
///
/// # Errors
/// Those of [`adoption::adopted`], and that the hosts cannot be found out.
async fn adopted(world: &World, run: &Run) -> Result<Adopted, Cause> {
    let header = &run.header;
    let named = header.request.environment.as_ref().and_then(|name| run.environment(name));
    let environment = named.ok_or_else(|| Cause::new("internal", "an adoption names no environment"))?;
    let hosts = hosts::of(world, &header.project, &header.code, environment, hosts::Need::New).await?;
    adoption::adopted(world, &adoption::Asking::of(header, environment), &hosts, None).await
}

/// Whether the code that goes with a target is there.
///
/// # Errors
/// Why it cannot be opened.
pub(super) fn opens(world: &World, project: &ProjectName, target: &Target) -> Result<(), Cause> {
    world.programs.open(&target.code, project, 0, Box::new(|_, _| {})).map(drop).map_err(|cause| {
        let message = format!("the code that deployed {} cannot be opened: {}", target.release.id, cause.message);
        Cause { message, ..cause }
    })
}

/// So many bad releases in a row, and nothing starts by itself until a person has.
const RESTS_AFTER: u32 = 3;

/// Why this commit is not deployed although it was asked for.
fn known_bad(world: &World, run: &Run, commit: &Commit) -> Option<Cause> {
    let (project, request) = (&run.header.project, &run.header.request);
    if request.retry_bad {
        return None;
    }
    let by_itself = matches!(request.trigger, Trigger::Hook | Trigger::Poll | Trigger::Schedule);
    if let Some((release, bad)) = ledger::bad(&*world.control, project, commit) {
        let message = format!(
            "{release} was found bad by run {}: {}. Push a commit that mends it, or press the button with retry_bad",
            bad.run, bad.cause.message
        );
        return Some(Cause::new("bad_release", message).with("run", bad.run.as_str()));
    }
    let in_a_row = ledger::bad_in_a_row(&*world.control, project);
    (by_itself && in_a_row >= RESTS_AFTER).then(|| {
        let message = format!(
            "the last {in_a_row} releases were bad, so nothing is deployed by itself until one was started by hand and is good: \
             phased start {project}"
        );
        Cause::new("resting", message)
    })
}

/// Which build of a commit ships: the newest that passed under this code, with what it stored and the run it passed in. Else it is tested and
/// built: as the first, or as a further one where there is one already, whose id stands for its bytes.
pub(in crate::engine) fn build(
    world: &World,
    project: &ProjectName,
    code: &Digest,
    sha: &Sha,
    retest: bool,
) -> (ReleaseId, Vec<Artifact>, Option<RunId>) {
    let builds = ledger::builds(&*world.control, project, sha);
    let stored = |artifact: &Artifact| artifact.content.blob().is_none_or(|blob| world.blobs.path(blob).exists());
    let mut same = builds.iter().rev().filter(|_| !retest);
    let same = same.find(|(_, passed)| passed.code == *code && passed.artifacts.iter().all(stored));
    match (same, builds.last()) {
        (Some((id, passed)), _) => (id.clone(), passed.artifacts.clone(), Some(passed.run.clone())),
        (None, Some((last, _))) if retest || builds.iter().any(|(_, p)| !p.artifacts.is_empty()) => {
            (last.further_build(), Vec::new(), None)
        }
        (None, _) => (ReleaseId::first_build(sha), Vec::new(), None),
    }
}

/// What a commit is for a run.
fn resolved(world: &World, run: &Run, commit: Commit, tag: Option<String>) -> Event {
    let header = &run.header;
    if let Some(signal) = &header.request.signal {
        // Its bytes and its name are the sender's, who has tested it; what this project tests besides is tested as well.
        let (id, tag) = (signal.release.id.clone(), tag.or_else(|| signal.release.tag.clone()));
        let branch = Some(header.pipeline.source.branch.clone());
        let release = Release { id, commit, branch, tag, artifacts: signal.release.artifacts.clone() };
        return Event::Resolved { release: Box::new(release), passed: None, live: Vec::new(), target: None };
    }
    let (id, artifacts, passed) = build(world, &header.project, &header.code, &commit.sha, header.request.retest);
    let branch = Some(header.pipeline.source.branch.clone());
    let release = Release { id, commit, branch, tag, artifacts };
    let names = header.pipeline.environments.iter().map(|e| &e.name);
    let live = |name: &EnvironmentName| {
        ledger::live(&*world.control, &header.project, name)
            .is_some_and(|live| live.release.id == release.id && live.code == header.code)
    };
    // On the way to one that was named, what the release has passed is not done again, and a newer one that is live there stays.
    let last = names.clone().position(|name| header.request.environment.as_ref() == Some(name)).unwrap_or(0);
    let passed_by = |at: usize, name: &EnvironmentName| {
        let same = |good: &Good| good.target.release.id == release.id && good.target.code == header.code;
        at < last && ledger::known_good(&*world.control, &header.project, name).iter().any(same)
    };
    let live = names
        .enumerate()
        .filter(|(at, name)| live(name) || passed_by(*at, name))
        .map(|(_, name)| name.clone())
        .collect();
    Event::Resolved { release: Box::new(release), passed, live, target: None }
}

pub(super) async fn checkout(context: &Context, run: &Run) -> Event {
    let world = &context.world;
    let project = &run.header.project;
    let Some(release) = &run.release else {
        return Event::CheckoutFailed { cause: Cause::new("internal", "there is no commit to check out") };
    };
    let dir = world.forge.work_dir(project).join(run.header.run.as_str());
    match world.forge.checkout(project, &release.commit.sha, &dir, &*world.hands).await {
        Ok(()) => Event::CheckedOut { dir: dir.to_string_lossy().into_owned() },
        Err(cause) => Event::CheckoutFailed { cause },
    }
}
