//! Single rules, each in a small rollout that is played by hand.

use super::*;

mod budgets;
mod hooks;
mod keys;

/// A run of one environment whose calls end at once, as a test says.
struct Tale {
    run: Run,
    now: Stamp,
}

fn environment(rollout: Rollout) -> Environment {
    Environment {
        name: "e0".parse().unwrap(),
        hosts: vec![HostSource::Static(Vec::new())],
        ssh: Ssh::default(),
        signal: None,
        rollout,
        health: None,
        verify: false,
        hooks: Hooks::default(),
        alarms: Vec::new(),
        timeout_ms: 60_000,
        freeze: Vec::new(),
        group: None,
        when: When::Push,
    }
}

impl Tale {
    /// Planned over `fleet`: the way forward with something to go back to, or straight for another purpose.
    fn planned(rollout: &Rollout, purpose: Purpose, fleet: Fleet) -> Tale {
        Tale::planned_in(environment(rollout.clone()), purpose, fleet)
    }

    fn planned_in(environment: Environment, purpose: Purpose, fleet: Fleet) -> Tale {
        let Sim { mut run, now, .. } = Sim::new(1);
        let rollout = &environment.rollout.clone();
        let header = Header {
            pipeline: Pipeline { stages: Vec::new(), environments: vec![environment.clone()], ..run.header.pipeline },
            request: Request { purpose: purpose.clone(), environment: None, redeploy: true, ..run.header.request },
            ..run.header
        };
        let first = Record { at: now.clone(), by: "c".into(), event: Event::Started(Box::new(header)) };
        run = Run::begin(&first).unwrap();
        let mut tale = Tale { run, now };
        let target = Target { release: release(), code: Digest::of(b"old"), environment, run: RunId::new(1, 1) };
        let target = Box::new(target);
        let (count, straight) = (fleet.hosts.len(), !purpose.is_deploy());
        let (hosts, phases) = if straight {
            plan::straight(rollout, fleet, |_| true)
        } else {
            let (hosts, phases) = plan::phases(rollout, fleet).unwrap();
            (hosts, plan::Phases { target: Some(target.clone()), ..phases })
        };
        tale.append(Event::Resolved {
            release: Box::new(release()),
            passed: None,
            live: Vec::new(),
            target: straight.then_some(target),
        });
        tale.append(Event::CheckedOut { dir: "/x".to_owned() });
        tale.append(Event::DeploymentCreated { deployment: 1, environment: "e0".parse().unwrap(), back: None });
        tale.append(Event::LeaseGranted { deployment: 1, epoch: Epoch(2) });
        tale.append(Event::Planned {
            deployment: 1,
            max_failures: rollout.max_failures.of(count),
            max_unreachable: rollout.max_unreachable.of(count),
            hosts,
            previous: None,
            changed_paths: None,
            phases: Box::new(phases),
        });
        tale
    }

    fn append(&mut self, event: Event) {
        self.run.next(&Record { at: self.now.clone(), by: "c".into(), event }).unwrap();
    }

    /// The calls that begin now; what follows by itself is put down.
    fn begins(&mut self) -> Vec<CallKey> {
        for _ in 0..50 {
            let decision = decide(&self.run, &self.now);
            let facts: Vec<Event> = decision
                .actions
                .iter()
                .filter_map(|action| match action {
                    Action::Append(event) => Some(event.clone()),
                    _ => None,
                })
                .collect();
            if facts.is_empty() {
                let call = |action| match action {
                    Action::Call { key, .. } => Some(key),
                    _ => None,
                };
                return decision.actions.into_iter().filter_map(call).collect();
            }
            if self.run.end.is_some() {
                return Vec::new();
            }
            facts.into_iter().for_each(|event| self.append(event));
        }
        panic!("it goes on for ever: {:#?}", self.run);
    }

    /// The hosts whose turn comes now.
    fn takes(&mut self) -> Vec<String> {
        let host = |key: CallKey| match key.place() {
            Some(Place::Host { host, .. }) => Some(host.to_string()),
            _ => None,
        };
        self.begins().into_iter().filter_map(host).collect()
    }

    /// A call begins, and does something.
    fn opens(&mut self, key: &CallKey) {
        let step = StepKey::new(key, &Branch::top(), "sh", 1);
        self.append(Event::Call { key: key.clone(), function: "f".to_owned(), input: Value::Null });
        let token = step.token(&self.run.header.run, 1);
        let args = json!({ "command": "x" });
        self.append(Event::Begin { key: step, attempt: 1, token, args, host: None, line: String::new() });
    }

    /// It ends, by a `cause` if it fails.
    fn closes(&mut self, key: &CallKey, cause: Option<Cause>) {
        let step = StepKey::new(key, &Branch::top(), "sh", 1);
        let outcome = cause.clone().map_or(Outcome::Ok(Value::Null), Outcome::failed);
        self.append(Event::Done { key: step, attempt: 1, outcome, last: true });
        let result = cause.map_or(CallResult::Returned(Value::Null), CallResult::Raised);
        self.append(Event::Return { key: key.clone(), result, undos: 0 });
    }

    /// A call begins and ends.
    fn call(&mut self, key: &CallKey, fails: bool) {
        self.opens(key);
        self.closes(key, fails.then(|| Cause::new("exit", format!("{key} ended with 1"))));
    }

    fn passes(&mut self, ms: u64) {
        self.now = self.now.plus(Duration::from_millis(ms));
    }

    /// How it ended, and the code of why.
    fn end(&self) -> Option<(RunState, &str)> {
        let (state, cause, _) = self.run.end.as_ref()?;
        Some((*state, cause.as_ref().map_or("", |cause| cause.code.as_str())))
    }

    /// To the end, where the calls that `fails` says fail; all that were made.
    fn plays(&mut self, fails: impl Fn(&str) -> bool) -> Vec<String> {
        let mut made = Vec::new();
        while self.run.end.is_none() {
            let Some(key) = self.begins().into_iter().next() else { break };
            self.call(&key, fails(&key.to_string()));
            made.push(key.to_string());
        }
        made
    }
}

fn fleet(hosts: u64, ill: &[u64]) -> Fleet {
    let ill = ill.iter().map(|n| (host(*n).id, "down".to_owned())).collect();
    Fleet { hosts: (0..hosts).map(host).collect(), ill, ..Fleet::default() }
}

#[test]
fn hosts_of_two_zones_are_not_put_back_or_converged_at_the_same_moment() {
    // h0 and h2 are in one zone, h1 and h3 in another.
    let zoned = |zones| Rollout { zones, max_parallel: 4, ..Rollout::default() };
    for purpose in [Purpose::Rollback { to: None }, Purpose::Converge { hosts: Vec::new() }] {
        let takes = |zones, ill: &[u64]| Tale::planned(&zoned(zones), purpose.clone(), fleet(4, ill)).takes();
        assert_eq!(takes(false, &[]), ["h0", "h1", "h2", "h3"]);
        assert_eq!(takes(true, &[]), ["h0", "h2"]);
        assert_eq!(takes(true, &[3]), ["h3", "h0", "h2"], "one that does not serve is taken from no zone");
    }
    let mut tale = Tale::planned(&zoned(true), Purpose::Rollback { to: None }, fleet(4, &[]));
    tale.plays(|_| false);
    assert_eq!(tale.run.end.as_ref().unwrap().0, RunState::Succeeded);
}

#[test]
fn a_way_back_by_itself_keeps_to_one_zone_of_those_that_serve() {
    let rollout = Rollout { zones: true, max_parallel: 4, on_failure: OnFailure::Rollback, ..Rollout::default() };
    let mut tale = Tale::planned(&rollout, Purpose::Deploy, fleet(5, &[]));
    let mut back = Vec::new();
    while let Some(key) = tale.begins().into_iter().next() {
        if key.to_string().starts_with("e0#2/") {
            back = tale.takes();
            break;
        }
        // The fourth fails: it goes back first, and h1 of its zone after the others.
        let fails = key.to_string().contains("/h3/");
        tale.call(&key, fails);
    }
    assert_eq!(back, ["h3", "h0", "h2"], "{:#?}", tale.run.deployments);
}

#[test]
fn hosts_that_have_ended_are_not_missed_unless_a_number_was_asked_for() {
    let floor = |min_healthy, gone: &[u64]| {
        let rollout = Rollout { min_healthy, ..Rollout::default() };
        let mut tale = Tale::planned(&rollout, Purpose::Deploy, fleet(4, &[3]));
        let gone = gone.iter().map(|n| host(*n).id).collect();
        let why = BTreeMap::new();
        tale.append(Event::FleetSeen { deployment: 1, gone, joined: vec![host(9)], wave: 0, why });
        (tale.run.deployments[0].phases.min_healthy, tale.takes().len())
    };
    assert_eq!(floor(None, &[]), (2, 1));
    assert_eq!(floor(None, &[1]), (1, 1), "two of two that are left serve, and one may be taken");
    assert_eq!(floor(None, &[1, 3]), (1, 1), "the other one did not serve");
    assert_eq!(floor(Some(Budget::Count(2)), &[1]), (2, 1), "one that does not serve costs nothing");
    assert_eq!(floor(Some(Budget::Count(2)), &[1, 3]).0, 2);
}

#[test]
fn a_host_whose_turn_to_go_back_never_came_says_why() {
    let rollout = Rollout { on_failure: OnFailure::Rollback, ..Rollout::default() };
    let mut tale = Tale::planned(&rollout, Purpose::Deploy, fleet(4, &[]));
    // The new release fails on the third host, and the old one cannot be put back on it.
    tale.plays(|key| key.contains("/h2/"));
    let run = &tale.run;
    assert_eq!(run.end.as_ref().unwrap().0, RunState::RollbackFailed, "{:#?}", run.end);
    let of = |n: u64| run.deployments[0].host(&host(n).id).unwrap();
    let told = |n: u64| (of(n).state(true), of(n).why().map(|why| why.code.as_str()));
    assert_eq!([told(2), told(3)], [(HostState::Failed, Some("exit")), (HostState::Skipped, None)]);
    assert_eq!([told(0), told(1)], [(HostState::Failed, Some("not_taken_back")); 2]);
    let why = &of(0).why().unwrap().message;
    assert!(why.starts_with("its turn to go back did not come: 1 of 3 hosts could not be brought"), "{why}");
}

#[test]
fn the_last_look_of_a_bake_is_one_after_its_end() {
    let baked = |health: bool| {
        let checks = vec![Check::Service("shop.service".to_owned())];
        let (min_healthy_time_ms, healthy_deadline_ms, interval_ms, timeout_ms) = (1_000, 10_000, 1_000, 1_000);
        let health =
            health.then_some(Health { checks, min_healthy_time_ms, healthy_deadline_ms, interval_ms, timeout_ms });
        let rollout = Rollout { bake_time_ms: 5_000, on_failure: OnFailure::Rollback, ..Rollout::default() };
        let environment = Environment { health, ..environment(rollout) };
        let mut tale = Tale::planned_in(environment, Purpose::Deploy, fleet(1, &[]));
        let key = tale.begins().remove(0);
        tale.call(&key, false);
        assert!(tale.begins().is_empty());
        tale
    };
    let verdict = |unhealthy| Event::HealthVerdict { deployment: 1, host: host(0).id, unhealthy, evidence: Vec::new() };
    // It bakes, watched, until its time is over; then it is looked at once more, and by nobody else meanwhile.
    let at_its_end = || {
        let mut tale = baked(true);
        tale.append(verdict(None));
        assert!(tale.begins().is_empty());
        assert_eq!(decide(&tale.run, &tale.now).actions, [Action::Guard { deployment: 1 }]);
        tale.now = tale.now.plus(Duration::from_millis(5_000));
        assert_eq!(decide(&tale.run, &tale.now).actions, [Action::LookOver { deployment: 1 }]);
        tale
    };
    let mut well = at_its_end();
    well.append(Event::LookedOver { deployment: 1 });
    well.begins();
    assert_eq!(well.run.end.as_ref().unwrap().0, RunState::Succeeded);
    // What has broken since the last look does not get through.
    let mut ill = at_its_end();
    ill.append(verdict(Some(Cause::new("unhealthy", "it was healthy, and is not any more"))));
    assert!(ill.takes().contains(&"h0".to_owned()), "it goes back: {:#?}", ill.run.deployments);
    // Where there is no health there is nothing to look at.
    let mut none = baked(false);
    none.now = none.now.plus(Duration::from_millis(5_000));
    none.begins();
    assert_eq!(none.run.end.as_ref().unwrap().0, RunState::Succeeded);
}
