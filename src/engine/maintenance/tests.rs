use serde_json::Value;

use super::*;
use crate::model::{
    event::{CallResult, Event, Record},
    run::RunState,
};

fn event(event: Event) -> Record {
    Record { at: stamp(), by: "c".into(), event }
}

fn stamp() -> crate::time::Stamp {
    crate::time::Stamp { wall_ms: 0, boot_ms: 0, boot: "b".into() }
}

/// A run of two hosts that are to be watched, planned.
pub(in crate::engine) fn planned() -> Run {
    use crate::model::{event::*, host::*, ids::*, pipeline::*, release::*, run::Trigger};
    let host = |id: &str, name: &str| Host { name: name.to_owned(), ..Host::at(id.parse().unwrap(), id.to_owned()) };
    let health = Health {
        checks: vec![Check::Tcp(":1".to_owned())],
        min_healthy_time_ms: 1,
        healthy_deadline_ms: 1,
        interval_ms: 1,
        timeout_ms: 1,
    };
    let pipeline = Pipeline {
        source: Source {
            git: "file:///x".to_owned(),
            branch: "main".to_owned(),
            tags: Vec::new(),
            poll_ms: None,
            webhook: Vec::new(),
            user: None,
            token: None,
            key: None,
            known_hosts: None,
        },
        queue: Queue::Latest,
        stages: vec![Stage { name: "unit".parse().unwrap(), setup: true, cleanup: true, timeout_ms: 60_000 }],
        environments: vec![Environment {
            name: "production".parse().unwrap(),
            hosts: vec![HostSource::Static(Vec::new())],
            ssh: Ssh::default(),
            signal: None,
            rollout: crate::model::rollout::Rollout::default(),
            hooks: crate::model::pipeline::Hooks::default(),
            health: Some(health),
            verify: true,
            alarms: Vec::new(),
            timeout_ms: 60_000,
            freeze: Vec::new(),
            group: None,
            when: When::Push,
        }],
        notify: Notify::default(),
    };
    let header = Header {
        format: 1,
        version: "1".to_owned(),
        run: RunId::new(1, 1),
        project: "shop".parse().unwrap(),
        code: Digest::of(b""),
        pipeline,
        seed: 1,
        epoch: Epoch(1),
        request: Request {
            purpose: crate::model::event::Purpose::Deploy,
            retry_bad: false,
            trigger: Trigger::Api,
            by: "uid 0".to_owned(),
            reason: None,
            wanted: Wanted::Head,
            environment: None,
            tag: None,
            redeploy: false,
            retest: false,
            signal: None,
            after: None,
            requested_at_ms: 0,
        },
    };
    let sha: Sha = "a1".repeat(20).parse().unwrap();
    let commit = Commit {
        tree: sha.clone(),
        author: "Ann <ann@example.com>".to_owned(),
        message: "it ships".to_owned(),
        committed_at_ms: 0,
        sha: sha.clone(),
    };
    let release = Release {
        id: ReleaseId::first_build(&sha),
        commit,
        branch: Some("main".to_owned()),
        tag: None,
        artifacts: Vec::new(),
    };
    let mut run = Run::begin(&event(Event::Started(Box::new(header)))).unwrap();
    for next in [
        Event::Resolved { release: Box::new(release), passed: Some(RunId::new(0, 0)), live: Vec::new(), target: None },
        Event::CheckedOut { dir: "/x".to_owned() },
        Event::DeploymentCreated { deployment: 1, environment: "production".parse().unwrap(), back: None },
        Event::LeaseGranted { deployment: 1, epoch: Epoch(1) },
        Event::Planned {
            phases: Box::default(),
            deployment: 1,
            hosts: vec![host("i-1", "web1"), host("i-2", "web2")],
            previous: None,
            changed_paths: None,
            max_failures: 0,
            max_unreachable: 0,
        },
    ] {
        run.next(&event(next)).unwrap();
    }
    run
}

fn called(key: &CallKey) -> Action {
    Action::Call { key: key.clone(), function: "f".to_owned(), input: Value::Null }
}

fn shut(maintenance: &Maintenance, revision: u64) {
    let by = Shut { by: "uid 0".to_owned(), reason: None, since_ms: 0 };
    maintenance.now.send_replace(Some((Revision(revision), by)));
}

#[test]
fn what_begins_something_is_held_and_what_ends_something_is_not() {
    let maintenance = Arc::new(Maintenance { now: watch::Sender::new(None), work: watch::Sender::default() });
    let run = planned();
    let mut gate = maintenance.gate(&run);
    let deploy = CallKey::host("production", 1, "i-1", "deploy");
    let host: HostId = "i-1".parse().unwrap();
    let held = [
        Action::Resolve,
        Action::Checkout,
        Action::Plan { deployment: 1 },
        called(&CallKey::stage("unit", "setup")),
        called(&CallKey::stage("unit", "run")),
        called(&deploy),
        called(&CallKey::deployment("production", 1, "verify")),
    ];
    let free = [
        called(&CallKey::stage("unit", "cleanup")),
        called(&deploy.undo()),
        Action::Undo(deploy.clone()),
        Action::Retry(crate::model::step::StepKey::new(&deploy, &crate::model::step::Branch::top(), "sh", 1)),
        Action::Watch { deployment: 1, host: host.clone() },
        Action::Append(Event::HealthBegan { deployment: 1, host }),
        Action::Lease { deployment: 1 },
        Action::Finish,
    ];
    assert!(held.iter().chain(&free).all(|action| !gate.holds(&run, action)), "it is open");
    shut(&maintenance, 1);
    assert!(held.iter().all(|action| !gate.holds(&run, action)), "one round of decisions is made under one answer");
    gate.look();
    assert!(held.iter().all(|action| gate.holds(&run, action)));
    assert!(free.iter().all(|action| !gate.holds(&run, action)));
    maintenance.now.send_replace(None);
    gate.look();
    assert!(held.iter().all(|action| !gate.holds(&run, action)));
}

#[tokio::test]
async fn nothing_works_once_every_owner_has_looked_and_ended_what_it_did() {
    let maintenance = Arc::new(Maintenance { now: watch::Sender::new(None), work: watch::Sender::default() });
    let mut run = planned();
    let id = run.header.run.clone();
    let mut gate = maintenance.gate(&run);
    let deploy = CallKey::host("production", 1, "i-2", "deploy");
    run.next(&event(Event::Call { key: deploy.clone(), function: "f".into(), input: Value::Null })).unwrap();
    gate.report(&run, std::iter::empty(), None);
    assert!(maintenance.is_quiet(), "nobody waits while it is off");
    shut(&maintenance, 1);
    assert!(!maintenance.is_quiet());
    assert_eq!(maintenance.view().runs[0].doing, ["has not looked up from its work yet"]);
    assert_eq!(maintenance.holder(&id, RunState::Deploying), None);

    gate.changed().await;
    gate.look();
    gate.report(&run, std::iter::empty(), None);
    assert_eq!(maintenance.view().runs[0].doing, ["deploys to web2 (production)"]);
    let quiet = maintenance.until(Maintenance::is_quiet);
    let work = async {
        run.next(&event(Event::Return { key: deploy, result: CallResult::Returned(Value::Null), undos: 0 })).unwrap();
        run.next(&event(Event::HealthBegan { deployment: 1, host: "i-2".parse().unwrap() })).unwrap();
        gate.report(&run, ["lease 1".to_owned(), "watch 1 i-2".to_owned(), "plan 1".to_owned()].iter(), None);
        let now = maintenance.view().runs[0].doing.clone();
        assert_eq!(now, ["watches the health of web2 (production)", "plans production"]);
        let host = "i-2".parse().unwrap();
        let healthy = Event::HealthVerdict { deployment: 1, host, unhealthy: None, evidence: Vec::new() };
        run.next(&event(healthy)).unwrap();
        gate.report(&run, ["lease 1".to_owned()].iter(), None);
    };
    tokio::join!(quiet, work);
    assert_eq!(maintenance.holder(&id, RunState::Deploying).unwrap().holder, "uid 0");
    assert_eq!(maintenance.holder(&id, RunState::Succeeded), None);
    // Turned off and on again by others: what an owner said under the first is not believed under the second.
    shut(&maintenance, 3);
    assert!(!maintenance.is_quiet());
    drop(gate);
    assert!(maintenance.is_quiet() && maintenance.view().runs.is_empty());
}

#[test]
fn what_a_run_does_is_said_in_words() {
    let run = planned();
    for (key, said) in [
        (CallKey::stage("unit", "setup"), "sets up stage unit"),
        (CallKey::stage("unit", "run"), "runs stage unit"),
        (CallKey::stage("unit", "cleanup"), "cleans up after stage unit"),
        (CallKey::stage("unit", "run").undo(), "undoes what test/unit/run did"),
        (CallKey::host("production", 1, "i-1", "deploy"), "deploys to web1 (production)"),
        (CallKey::deployment("production", 1, "verify"), "verifies production"),
    ] {
        assert_eq!(call(&run, &key), said);
    }
    assert_eq!(action(&run, "resolve").as_deref(), Some("looks for its commit"));
    assert_eq!(action(&run, "plan 1").as_deref(), Some("plans production"));
    assert_eq!(action(&run, "finish").as_deref(), Some("ends"));
}
