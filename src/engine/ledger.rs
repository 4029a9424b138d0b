//! What control knows of projects: what is live, what passed, what the head was, how the last deployment ended.
//!
//! Outcomes cross to control only after the run's journal is synced, and every put can be made again from the journal.

pub(super) mod freezes;
mod known;

use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned};
use serde_json::{Value, json};

pub(super) use self::known::{
    Good, all_bad, bad, bad_in_a_row, bad_release, forget_hosts, hosts, is_good, known_good, some_good,
};
use super::world::World;
use crate::{
    model::{
        cause::Cause,
        decide,
        deployment::{Deployment, DeploymentState, HostState},
        doors,
        event::{Header, Purpose},
        ids::{Digest, EnvironmentName, ProjectName, ReleaseId, RunId, Sha},
        release::{Artifact, Release},
        run::{Run, RunState},
    },
    ports::{
        control::{Commit, CommitError, Control, Revision},
        journal::Ticket,
    },
};

/// What is live in an environment: every host that must have it has it, healthy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Live {
    #[serde(serialize_with = "brief_release")]
    pub(super) release: Release,
    pub(super) run: RunId,
    /// Which deployment of that run put it there; earlier versions did not write it down.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) deployment: Option<u32>,
    /// The run that made it good, where another one put it back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) made: Option<RunId>,
    /// The code that put it there.
    pub(super) code: Digest,
    /// Wall time, ms.
    pub(super) since_ms: i64,
}

impl Live {
    /// The run that brought this release forth: by it an older release is told from a newer one.
    pub(super) fn made_by(&self) -> &RunId {
        self.made.as_ref().unwrap_or(&self.run)
    }
}

/// How the last deployment to an environment ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Last {
    pub(super) run: RunId,
    pub(super) state: DeploymentState,
    #[serde(skip_serializing_if = "Option::is_none", default, serialize_with = "brief_cause")]
    pub(super) cause: Option<Cause>,
    /// It touched no host, in an environment that was not a mixture before.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub(super) untouched: bool,
    /// It touched no host, in an environment that was a mixture before and is one still, however this one ended.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub(super) still_mixed: bool,
}

impl Last {
    /// Whether the environment was left with different releases on purpose: nothing is done about that by itself.
    pub(super) fn is_mixture(&self) -> bool {
        self.still_mixed || (self.state.is_mixture() && !self.untouched)
    }
}

/// How the project's last run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LastRun {
    pub(super) run: RunId,
    pub(super) state: RunState,
}

fn read<T: DeserializeOwned>(control: &dyn Control, key: &str) -> Option<T> {
    control.get(key).and_then(|entry| serde_json::from_value(entry.value).ok())
}

fn live_key(project: &ProjectName, environment: &EnvironmentName) -> String {
    format!("live/{project}/{environment}")
}

pub(super) fn live(control: &dyn Control, project: &ProjectName, environment: &EnvironmentName) -> Option<Live> {
    read(control, &live_key(project, environment))
}

pub(super) fn last(control: &dyn Control, project: &ProjectName, environment: &EnvironmentName) -> Option<Last> {
    read(control, &format!("last/{project}/{environment}"))
}

pub(super) fn last_run(control: &dyn Control, project: &ProjectName) -> Option<LastRun> {
    read(control, &format!("last/{project}"))
}

/// The commit that was requested last, and by which run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) sha: Sha,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) run: Option<RunId>,
}

/// The commit that was requested last.
pub(super) fn head(control: &dyn Control, project: &ProjectName) -> Option<Head> {
    read(control, &head_key(project))
}

pub(super) fn head_key(project: &ProjectName) -> String {
    format!("head/{project}")
}

/// Where a tag pointed that was seen last, and the run that was asked for because of it.
pub(super) fn tag_key(project: &ProjectName, tag: &str) -> String {
    format!("tag/{project}/{tag}")
}

/// Where the ref of `key` pointed when it was seen last, and by which record.
pub(super) fn seen(control: &dyn Control, key: &str) -> (Revision, Option<Head>) {
    match control.get(key) {
        Some(entry) => (entry.revision, serde_json::from_value(entry.value).ok()),
        None => (Revision::default(), None),
    }
}

/// Which record wrote the head last.
pub(super) fn head_revision(control: &dyn Control, project: &ProjectName) -> Revision {
    control.get(&head_key(project)).map_or(Revision::default(), |entry| entry.revision)
}

/// Remembers a head that a run found by itself, so that a poll does not request it again; unless somebody has seen another one
/// since `before`, which is then the newer.
pub(super) fn saw_head(world: &World, run: &Run, sha: &Sha, before: Revision) {
    let project = &run.header.project;
    if head(&*world.control, project).is_none_or(|head| head.sha != *sha) {
        let head = Head { sha: sha.clone(), run: Some(run.header.run.clone()) };
        let puts = vec![(head_key(project), Some(json!(head)))];
        match world.control.commit(Commit::Setting, &[(head_key(project), before)], puts) {
            Ok(_) | Err(CommitError::Conflict { .. }) => {}
            Err(error) => tracing::warn!(%project, %error, "the head is not remembered"),
        }
    }
}

/// A build that passed all stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Passed {
    /// The code that tested it.
    pub(super) code: Digest,
    pub(super) run: RunId,
    /// What it stored.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(super) artifacts: Vec<Artifact>,
}

/// Every build of a commit that passed, the newest last.
pub(super) fn builds(control: &dyn Control, project: &ProjectName, sha: &Sha) -> Vec<(ReleaseId, Passed)> {
    let first = ReleaseId::first_build(sha);
    let prefix = format!("passed/{project}/");
    let mut builds: Vec<(ReleaseId, Passed)> = control
        .scan(&format!("{prefix}{first}"))
        .into_iter()
        .filter_map(|entry| {
            Some((entry.key.strip_prefix(&prefix)?.parse().ok()?, serde_json::from_value(entry.value).ok()?))
        })
        .collect();
    builds.sort_by_key(|(id, _)| id.build());
    builds
}

/// What the build that passed last has stored, whatever its commit.
pub(super) fn last_passed(control: &dyn Control, project: &ProjectName) -> Vec<Artifact> {
    let entries = control.scan(&format!("passed/{project}/")).into_iter();
    let builds = entries.filter_map(|entry| serde_json::from_value::<Passed>(entry.value).ok());
    builds.max_by(|a, b| a.run.cmp(&b.run)).map(|passed| passed.artifacts).unwrap_or_default()
}

/// That the tests of `run` are passed, and by what.
fn passed(run: &Run, release: &Release) -> (String, Option<Value>) {
    let Header { project, code, run, .. } = &run.header;
    let passed = Passed { code: code.clone(), run: run.clone(), artifacts: release.artifacts.clone() };
    (format!("passed/{project}/{}", release.id), Some(json!(passed)))
}

/// The tests of `run` are over and it goes on: once control knows, no other run makes the same build again.
pub(super) async fn tested(world: &World, run: &Run, ticket: &Ticket) {
    // What is put back was tested by other code than today's.
    let Some(release) = run.release.as_ref().filter(|_| run.target.is_none()) else { return };
    if ticket.synced().await.is_err() {
        return;
    }
    let told = match commit(&*world.control, Commit::Setting, vec![passed(run, release)]) {
        Ok(ticket) => ticket.synced().await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = told {
        // Told again with the end of its deployment, or by the next start.
        tracing::error!(project = %run.header.project, run = %run.header.run, %error, "control does not know yet that a release passed");
    }
}

/// The longest text of people's that control keeps, in characters: records are small.
pub(super) const LONGEST: usize = 1000;

/// `text`, cut after `most` characters.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A cause without its longer facts: those are in the run's journal.
pub(super) fn brief(cause: &Cause) -> Cause {
    let facts = cause.facts.iter().filter(|(_, value)| value.to_string().len() <= LONGEST).take(8);
    let facts = facts.map(|(name, value)| (name.clone(), value.clone())).collect();
    Cause { code: cut(&cause.code, 100), message: cut(&cause.message, LONGEST), facts }
}

#[allow(clippy::ref_option)] // serde's signature
fn brief_cause<S: Serializer>(cause: &Option<Cause>, serializer: S) -> Result<S::Ok, S::Error> {
    cause.as_ref().map(brief).serialize(serializer)
}

/// A release with no more of its message than people look at.
fn brief_release<S: Serializer>(release: &Release, serializer: S) -> Result<S::Ok, S::Error> {
    let mut release = release.clone();
    release.commit.message = cut(&release.commit.message, LONGEST);
    release.commit.author = cut(&release.commit.author, 200);
    release.serialize(serializer)
}

/// Everything a run's journal says to control so far. Idempotent: the same puts whenever it is made.
/// That a run whose journal is lost has left an environment as it is.
pub(super) fn left(
    project: &ProjectName,
    environment: &EnvironmentName,
    run: &RunId,
    cause: &Cause,
) -> (String, Option<Value>) {
    let last = Last {
        run: run.clone(),
        state: DeploymentState::Halted,
        cause: Some(cause.clone()),
        untouched: false,
        still_mixed: false,
    };
    (format!("last/{project}/{environment}"), Some(json!(last)))
}

pub(super) fn puts(control: &dyn Control, run: &Run) -> Vec<(String, Option<Value>)> {
    let (header, project) = (&run.header, &run.header.project);
    let mut puts = Vec::new();
    let Some(release) = &run.release else { return puts };
    let succeeded = matches!(&run.end, Some((RunState::Succeeded, ..)));
    if run.passed.is_none() && run.target.is_none() && (succeeded || !run.deployments.is_empty()) {
        puts.push(passed(run, release));
    }
    for deployment in &run.deployments {
        let Some((state, cause, at)) = &deployment.end else { continue };
        let environment = &deployment.environment;
        let newer = |run: &RunId| *run > header.run;
        let converges = matches!(header.request.purpose, Purpose::Converge { .. });
        let before = last(control, project, environment);
        // What takes back is told by what is taken back; what converges says nothing of the release. Who never had the environment says
        // nothing of it, and hides nothing that another one leaves there: it only waited.
        let speaks = deployment.rollback_of.is_none() && deployment.lease.is_some() && !converges;
        if speaks && before.as_ref().is_none_or(|last| !newer(&last.run)) {
            let cause = cause.clone().or_else(|| left_out(deployment));
            let mixed = before.is_some_and(|before| before.is_mixture());
            let nothing = !deployment.may_have_touched();
            let untouched = state.is_mixture() && nothing && !mixed;
            let still_mixed = *state != DeploymentState::Succeeded && nothing && mixed;
            let last = Last { run: header.run.clone(), state: *state, cause, untouched, still_mixed };
            puts.push((format!("last/{project}/{environment}"), Some(json!(last))));
        }
        if *state == DeploymentState::Succeeded
            && !deployment.alone
            && !converges
            && live(control, project, environment).is_none_or(|live| !newer(&live.run))
            && let Some(release) = deployment.release(run)
        {
            let live = Live {
                release: release.clone(),
                run: header.run.clone(),
                deployment: Some(deployment.n),
                // What a signal puts back is what its sender wants now: older orders are older than that.
                made: deployment
                    .target
                    .as_ref()
                    .filter(|_| header.request.signal.is_none())
                    .map(|target| target.run.clone()),
                code: deployment.code(run).clone(),
                since_ms: at.wall_ms,
            };
            puts.push((live_key(project, environment), Some(json!(live))));
        }
        if let Some((target, _)) = deployment.adopts().filter(|_| *state != DeploymentState::Succeeded)
            && live(control, project, environment).is_none()
        {
            // What was there before is there again, or was never gone.
            let live = Live {
                release: target.release.clone(),
                run: header.run.clone(),
                deployment: Some(deployment.n),
                made: None,
                code: target.code.clone(),
                since_ms: at.wall_ms,
            };
            puts.push((live_key(project, environment), Some(json!(live))));
        }
        known::puts(control, run, deployment, &mut puts);
    }
    known::release_puts(control, run, release, &mut puts);
    puts
}

/// The hosts within the budgets that do not have what is live: a success that names them. One that is no more lacks nothing.
fn left_out(deployment: &Deployment) -> Option<Cause> {
    let there = || deployment.hosts.iter().filter(|host| !host.gone);
    let hosts: Vec<_> = there().filter(|h| h.state(true) != HostState::Healthy).collect();
    let first = hosts.first()?;
    let why = first.cause().map_or("it was skipped", |cause| cause.message.as_str());
    let message = format!(
        "{} of {} hosts do not have it, which the budgets allow; first {}: {why}",
        hosts.len(),
        there().count(),
        first.host.name
    );
    let ids: Vec<&str> = hosts.iter().take(20).map(|h| h.host.id.as_str()).collect();
    Some(Cause::new("hosts_left_out", message).with("hosts", ids))
}

/// A deployment has ended: its outcome, then its lease, for whoever waits.
pub(super) async fn deployment_ended(world: &World, run: &Run, ticket: &Ticket) {
    if ticket.synced().await.is_err() {
        return;
    }
    let puts = puts(&*world.control, run);
    if let Err(error) = commit(&*world.control, Commit::DeploymentEnded, puts) {
        // The next start makes the same puts from the journal.
        tracing::error!(project = %run.header.project, run = %run.header.run, %error, "the end of a deployment is not in control yet");
        return;
    }
    release_leases(world, run);
}

/// Gives back the leases of every deployment of `run` that has ended, and of all of them if the run has. Also where the journal knows of
/// none: control grants first, so the run may have been cut off in between.
pub(super) fn release_leases(world: &World, run: &Run) {
    for deployment in run.deployments.iter().filter(|d| d.end.is_some() || run.end.is_some()) {
        for name in doors::leases_of(run, deployment.n) {
            if let Err(error) = world.leases.release(&name, &decide::holder(run, deployment.n)) {
                tracing::error!(lease = name, %error, "a lease is not given back yet");
            }
        }
    }
}

/// Every run that control names, also one whose journal is gone.
pub(super) fn runs(control: &dyn Control) -> Vec<RunId> {
    let queued = control.scan("run/").into_iter().filter_map(|entry| entry.key.strip_prefix("run/")?.parse().ok());
    let named = ["live/", "last/", "head/"].into_iter().flat_map(|prefix| control.scan(prefix));
    queued.chain(named.filter_map(|entry| entry.value.get("run")?.as_str()?.parse().ok())).collect()
}

/// Whether `run` still holds the lease of any of its deployments.
pub(super) fn holds_leases(world: &World, run: &Run) -> bool {
    run.deployments.iter().any(|deployment| {
        let held = doors::leases_of(run, deployment.n).into_iter().filter_map(|name| world.leases.holder(&name));
        held.into_iter().any(|held| held.holder == decide::holder(run, deployment.n))
    })
}

/// Commits `puts` in order: as one record where they fit, else in several. What must be last comes last.
///
/// # Errors
/// The control log's; a value that fits no record by itself is left out and said, because nothing else may fail with it.
pub(super) fn commit(
    control: &dyn Control,
    what: Commit,
    mut puts: Vec<(String, Option<Value>)>,
) -> Result<Ticket, CommitError> {
    match control.commit(what, &[], puts.clone()) {
        Err(CommitError::TooLarge { bytes, .. }) => {
            if let [(key, _)] = puts.as_slice() {
                tracing::error!(key, bytes, "a value is too large for control and is left out");
                return control.commit(what, &[], Vec::new());
            }
            let rest = puts.split_off(puts.len() / 2);
            commit(control, what, puts)?;
            commit(control, what, rest)
        }
        other => other,
    }
}

/// The key of a request or run that control still has to do with.
pub(super) fn run_key(run: &RunId) -> String {
    format!("run/{run}")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use crate::lifecycle::watch;

    use super::*;
    use crate::{
        model::{event::Record, ids::Seq},
        ports::{control::Entry, journal::Synced},
    };

    /// Takes records of at most 300 bytes.
    #[derive(Default)]
    struct Small(Mutex<Vec<Vec<String>>>);

    impl Control for Small {
        fn get(&self, _: &str) -> Option<Entry> {
            None
        }
        fn scan(&self, _: &str) -> Vec<Entry> {
            Vec::new()
        }
        fn commit(
            &self,
            _: Commit,
            _: &[(String, Revision)],
            puts: Vec<(String, Option<Value>)>,
        ) -> Result<Ticket, CommitError> {
            let bytes = json!(puts).to_string().len();
            if bytes > 300 {
                return Err(CommitError::TooLarge { bytes, limit: 300 });
            }
            let mut records = self.0.lock().unwrap();
            records.push(puts.into_iter().map(|(key, _)| key).collect());
            Ok(Ticket::new(Seq(records.len() as u64), watch::channel(Synced::UpTo(Seq(9))).1))
        }
        fn changed(&self) -> watch::Receiver<u64> {
            watch::channel(0).1
        }
        fn beat(&self, _: crate::lifecycle::pulse::Beat) {}
    }

    #[test]
    fn what_is_too_large_for_one_record_is_several_and_the_last_stays_last() {
        let control = Small::default();
        let mut puts: Vec<_> = (0..7).map(|n| (format!("letter/{n}"), Some(json!("x".repeat(80))))).collect();
        puts.insert(3, ("letter/huge".to_owned(), Some(json!("x".repeat(1000)))));
        puts.push(("run/1".to_owned(), None));
        let ticket = commit(&control, Commit::RunEnded, puts).unwrap();
        let records = control.0.into_inner().unwrap();
        assert_eq!(ticket.seq().0, records.len() as u64);
        let keys: Vec<String> = records.into_iter().flatten().collect();
        let wanted = ["letter/0", "letter/1", "letter/2", "letter/3", "letter/4", "letter/5", "letter/6", "run/1"];
        assert_eq!(keys, wanted, "all but the one that fits nowhere");
    }

    /// A run that has watched a unit, as a daemon wrote it down.
    fn baked() -> Run {
        let text = include_str!("../../tests/golden/baked/journal");
        let json = |line: &'static str| &line[line.find('{').unwrap()..];
        let mut records = text.lines().map(|line| serde_json::from_str::<Record>(json(line)).unwrap());
        let mut run = Run::begin(&records.next().unwrap()).unwrap();
        records.for_each(|record| run.next(&record).unwrap());
        run
    }

    #[test]
    fn what_a_run_saw_of_a_hosts_units_is_kept_with_what_the_host_has() {
        let puts = puts(&Small::default(), &baked());
        let put = |key: &str| puts.iter().find(|(of, _)| of == key).unwrap().1.as_ref().unwrap();
        let processes = &put("host/shop/production/machine")["processes"];
        assert!(processes[0][0] == 0 && processes[0][1]["restarts"] == 0, "{processes}");
        assert_eq!(put("live/shop/production")["deployment"], 1);
    }

    #[test]
    fn what_people_wrote_is_kept_short() {
        let long = "é".repeat(100_000);
        let cause = brief(&Cause::new("exit", long.clone()).with("traceback", long.clone()).with("host", "web1"));
        assert!(cause.message.chars().count() == LONGEST + 1 && cause.message.ends_with('…'));
        assert_eq!(cause.facts.keys().collect::<Vec<_>>(), ["host"]);
        assert_eq!(cut("short", 5), "short");
    }
}
