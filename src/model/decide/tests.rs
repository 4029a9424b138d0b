//! A tiny world around `decide` and the fold: random pipelines, outcomes, stops and crashes, the same for the same seed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::model::{
    analysis::{Analysis, Compare, Condition, Found, Level, Measurement, Worse},
    deployment::{Back, Bake, Deployment, DeploymentState, HostRun, HostState},
    doors,
    event::{CallResult, Header, Purpose, Record, Request, Wanted},
    host::{Host, Ssh},
    ids::{Digest, Epoch, RunId, Seq, Sha},
    pipeline::{
        Alarm, AlarmAction, Check, Environment, Health, Hooks, HostSource, Notify, Pipeline, Queue, Source, Stage, When,
    },
    plan::{self, Fleet, Target},
    release::{Commit, Release},
    rollout::{Budget, Canary, OnFailure, Rollout, Waves},
    run::{CallEnd, Progress, Trigger, Waiting},
    step::{Branch, Outcome, Place, StepKey},
};
use crate::sim::Random;

mod altered;
mod rules;

fn host(n: u64) -> Host {
    let id = format!("h{n}");
    let (name, address) = (id.clone(), id.clone());
    let zone = Some(format!("z{}", n % 2));
    Host { name, zone, ..Host::at(id.parse().unwrap(), address) }
}

fn release() -> Release {
    let sha: Sha = "a1".repeat(20).parse().unwrap();
    let commit = Commit {
        tree: sha.clone(),
        author: "Ann <ann@example.com>".to_owned(),
        message: "it ships".to_owned(),
        committed_at_ms: 0,
        sha: sha.clone(),
    };
    Release {
        id: crate::model::ids::ReleaseId::first_build(&sha),
        commit,
        branch: Some("main".to_owned()),
        tag: None,
        artifacts: Vec::new(),
    }
}

fn budget(random: &mut Random) -> Budget {
    if random.one_in(3) {
        Budget::Percent(u32::try_from(random.below(60)).unwrap())
    } else {
        Budget::Count(u32::try_from(random.below(3)).unwrap())
    }
}

fn rollout(random: &mut Random) -> Rollout {
    let percent = Budget::Percent;
    Rollout {
        canary: Canary::Count(Budget::Count(u32::try_from(random.below(3)).unwrap())),
        waves: match random.below(3) {
            0 => Waves::Targets(vec![percent(100)]),
            1 => Waves::Targets(vec![percent(30), percent(60), percent(100)]),
            _ => Waves::Each(Budget::Count(1 + u32::try_from(random.below(3)).unwrap())),
        },
        max_parallel: 1 + u32::try_from(random.below(3)).unwrap(),
        stagger_ms: random.below(2) * 100,
        bake_time_ms: random.below(3) * 1_000,
        max_failures: budget(random),
        max_failures_per_wave: random.one_in(4).then(|| budget(random)),
        max_unreachable: budget(random),
        min_healthy: random.one_in(4).then(|| budget(random)),
        progress_deadline_ms: random.below(2) * 30_000,
        pause_timeout_ms: 10_000,
        rollback_parallel: random.one_in(2).then_some(3),
        zones: random.one_in(4),
        on_failure: match random.below(4) {
            0 => OnFailure::Halt,
            1 => OnFailure::Pause,
            _ => OnFailure::Rollback,
        },
        ..Rollout::default()
    }
}

fn alarm(random: &mut Random) -> Alarm {
    let above = Condition { above: Some(Level(0.5)), ..Condition::default() };
    let action = match random.below(4) {
        0 => AlarmAction::Halt,
        1 => AlarmAction::Pause,
        2 => AlarmAction::None,
        _ => AlarmAction::Rollback,
    };
    let analysis = Analysis {
        failure: Some(above),
        interval_ms: 300,
        compare: random.one_in(3).then_some(Compare { worse: Worse::Higher, tolerance: 10 }),
        ..Analysis::default()
    };
    Alarm { name: "errors".to_owned(), cause: "probe".to_owned(), alert: "log".to_owned(), action, analysis }
}

fn hooks(random: &mut Random) -> Hooks {
    let mut some = || random.one_in(3);
    Hooks {
        prepare: some(),
        before: some(),
        before_wave: some(),
        drain: some(),
        undrain: some(),
        after_wave: some(),
        after: some(),
        rollback_safe: some(),
    }
}

fn pipeline(random: &mut Random) -> Pipeline {
    let stage = |n: u64, random: &mut Random| Stage {
        name: format!("s{n}").parse().unwrap(),
        setup: random.one_in(2),
        cleanup: random.one_in(2),
        timeout_ms: 60_000,
    };
    let environment = |n: u64, random: &mut Random| Environment {
        name: format!("e{n}").parse().unwrap(),
        hosts: vec![if random.one_in(3) {
            HostSource::Plugin {
                name: "file".to_owned(),
                function: "discovery/e/1".to_owned(),
                limits: Default::default(),
                options: None,
            }
        } else {
            HostSource::Static(Vec::new())
        }],
        ssh: Ssh::default(),
        signal: None,
        rollout: rollout(random),
        health: random.one_in(2).then(|| Health {
            checks: vec![Check::Tcp(":1".to_owned())],
            min_healthy_time_ms: 1,
            healthy_deadline_ms: 1,
            interval_ms: 1,
            timeout_ms: 1,
        }),
        verify: random.one_in(2),
        hooks: hooks(random),
        alarms: if random.one_in(3) { vec![alarm(random)] } else { Vec::new() },
        timeout_ms: 60_000,
        freeze: Vec::new(),
        group: None,
        when: if random.one_in(6) { When::Manual } else { When::Push },
    };
    Pipeline {
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
        stages: (0..random.below(4)).map(|n| stage(n, random)).collect(),
        environments: (0..random.below(4)).map(|n| environment(n, random)).collect(),
        notify: Notify::default(),
    }
}

/// A call's program: steps still to ask for, and those that run.
#[derive(Default)]
struct Program {
    left: u64,
    asked: u32,
    running: BTreeSet<StepKey>,
}

struct Sim {
    random: Random,
    seed: u64,
    now: Stamp,
    run: Run,
    journal: Vec<Record>,
    /// What the owner holds in memory.
    busy: BTreeMap<String, Action>,
    programs: BTreeMap<CallKey, Program>,
    /// How many steps each call takes: the same after a crash.
    plans: BTreeMap<CallKey, u64>,
    ending: BTreeMap<CallKey, (Cause, bool)>,
    /// Hosts on which something really happened.
    touched: BTreeSet<(u32, HostId)>,
    called: BTreeMap<CallKey, u32>,
    /// How often the daemon may still crash.
    crashes: u64,
    finished: bool,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut random = Random::of(seed, "");
        let now = Stamp { wall_ms: 1_700_000_000_000, boot_ms: 0, boot: "b".into() };
        let pipeline = pipeline(&mut random);
        let environment = pipeline.environments.first().map(|e| e.name.clone()).filter(|_| random.one_in(5));
        let header = Header {
            format: crate::model::next::FORMAT,
            version: "0".to_owned(),
            run: RunId::new(now.wall_ms, u128::from(seed)),
            project: "shop".parse().unwrap(),
            code: Digest::of(b"code"),
            pipeline,
            seed,
            epoch: Epoch(1),
            request: Request {
                trigger: Trigger::Api,
                by: "uid 0".to_owned(),
                reason: None,
                wanted: Wanted::Head,
                environment,
                tag: None,
                purpose: if random.one_in(8) { Purpose::Rollback { to: None } } else { Purpose::Deploy },
                retry_bad: false,
                redeploy: random.one_in(4),
                retest: random.one_in(4),
                signal: None,
                after: None,
                requested_at_ms: now.wall_ms,
            },
        };
        let first = Record { at: now.clone(), by: "c".into(), event: Event::Started(Box::new(header)) };
        let run = Run::begin(&first).unwrap();
        let crashes = if random.one_in(3) { 1 + random.below(2) } else { 0 };
        Sim {
            random,
            seed,
            now,
            run,
            journal: vec![first],
            busy: BTreeMap::new(),
            programs: BTreeMap::new(),
            plans: BTreeMap::new(),
            ending: BTreeMap::new(),
            touched: BTreeSet::new(),
            called: BTreeMap::new(),
            crashes,
            finished: false,
        }
    }

    fn append(&mut self, event: Event) {
        let record = Record { at: self.now.clone(), by: "c".into(), event };
        if let Err(illegal) = self.run.next(&record) {
            panic!("seed {}: {illegal}: {:?}", self.seed, record.event);
        }
        let sorted = self.run.deployments.iter().all(|deployment| deployment.hosts.are_sorted());
        assert!(sorted, "seed {}: the sets of hosts are not those of {:?}", self.seed, record.event);
        self.journal.push(record);
    }

    /// Until the run is over: settle, then one thing of the world happens.
    fn play(mut self) -> Self {
        for _ in 0..5_000 {
            let wake = self.settle();
            if self.finished {
                self.ended();
                return self;
            }
            self.happen(wake);
        }
        panic!("seed {}: it does not end: {:#?}", self.seed, self.run);
    }

    fn settle(&mut self) -> Option<Duration> {
        for _ in 0..500 {
            let decision = decide(&self.run, &self.now);
            let wanted: BTreeSet<String> = decision.actions.iter().filter_map(Action::name).collect();
            let watches = |action: &Action| {
                matches!(action, Action::Guard { .. } | Action::LookOver { .. } | Action::Measure { .. })
            };
            self.busy.retain(|name, action| !watches(action) || wanted.contains(name));
            let mut changed = false;
            for action in decision.actions {
                changed |= self.act(action);
            }
            if !changed {
                return decision.wake_in;
            }
        }
        panic!("seed {}: decisions without end: {:?}", self.seed, decide(&self.run, &self.now));
    }

    /// As the owner does it.
    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Append(event) => {
                let early = match &event {
                    Event::End { .. } => !self.busy.is_empty(),
                    Event::DeploymentEnded { .. } => !self.busy.is_empty(),
                    _ => false,
                };
                if !early {
                    self.append(event);
                }
                !early
            }
            Action::Call { key, function, input } => {
                self.calls(&key);
                self.append(Event::Call { key: key.clone(), function, input });
                self.open(key);
                true
            }
            Action::Retry(key) => {
                let attempt = self.run.calls[&key.call()].steps[&key].attempt + 1;
                self.begin(key, attempt);
                true
            }
            Action::EndCall { key, cause, kill } => {
                if self.ending.get(&key).is_some_and(|(_, killing)| *killing || !kill) {
                    return false;
                }
                self.ending.insert(key.clone(), (cause, kill));
                self.finish_ending(&key)
            }
            action => {
                let name = action.name().unwrap();
                if self.busy.contains_key(&name) {
                    return false;
                }
                if action == Action::Finish {
                    self.finished = true;
                }
                self.busy.insert(name, action);
                false
            }
        }
    }

    fn open(&mut self, key: CallKey) {
        let left = self.random.below(4);
        self.plans.insert(key.clone(), left);
        self.programs.insert(key, Program { left, ..Program::default() });
    }

    fn begin(&mut self, key: StepKey, attempt: u32) {
        let args = json!({ "command": "x", "retries": self.seed % 3, "on_unknown": "retry" });
        let token = key.token(&self.run.header.run, attempt);
        self.append(Event::Begin { key: key.clone(), attempt, token, args, host: None, line: String::new() });
        self.programs.get_mut(&key.call()).unwrap().running.insert(key);
    }

    fn finish_ending(&mut self, key: &CallKey) -> bool {
        if !self.programs[key].running.is_empty() {
            return false;
        }
        let Some((cause, _)) = self.ending.remove(key) else { return false };
        let between: Vec<_> = self.run.calls[key].steps.iter().map(|(k, s)| (k.clone(), s.attempt)).collect();
        for (step, attempt) in between {
            let outcome = Outcome::Cut { cause: cause.clone() };
            self.append(Event::Done { key: step, attempt, outcome, last: true });
        }
        self.returned(key, CallResult::Ended(cause));
        true
    }

    fn returned(&mut self, key: &CallKey, result: CallResult) {
        self.ending.remove(key);
        self.programs.remove(key);
        let undos = u32::try_from(self.random.below(2)).unwrap();
        self.append(Event::Return { key: key.clone(), result, undos });
    }

    /// What must hold when a call is about to begin.
    fn calls(&mut self, key: &CallKey) {
        let seed = self.seed;
        *self.called.entry(key.clone()).or_default() += 1;
        if let Some(undone) = key.undone() {
            assert!(!self.run.calls.contains_key(&undone), "seed {seed}: {key} begins before {undone} has ended");
            return;
        }
        let cleaning = matches!(key.place(), Some(Place::Stage { function, .. }) if function == "cleanup");
        let ending = self.run.stop.is_some() || self.run.diverged.is_some();
        let finishes = match key.place() {
            Some(Place::Host { deployment, host, .. }) => {
                let host = self.run.deployment(deployment).and_then(|d| d.host(&host));
                !is_sharp(&self.run) && host.is_some_and(|host| host.begun.is_some())
            }
            _ => false,
        };
        assert!(cleaning || finishes || !ending, "seed {seed}: {key} begins though the run is to end");
        if let Some(Place::Deployment { deployment, .. }) = key.place() {
            let back = self.run.deployments.iter().find(|d| d.rollback_of == Some(deployment) && d.end.is_none());
            assert!(back.is_none(), "seed {seed}: {key} begins while hosts go back");
        }
        let Some(Place::Host { deployment, host, function }) = key.place() else { return };
        if self.run.target.is_none() {
            self.no_stage_failed();
        }
        let of = self.run.deployment(deployment).unwrap();
        let spec = of.spec(&self.run).unwrap();
        let same = |open: &CallKey| matches!(open.place(), Some(Place::Host { host: h, .. }) if h == host);
        assert!(!self.run.calls.keys().any(same), "seed {seed}: {key} begins on a host on which another call is open");
        let before = self.run.deployments.iter().filter(|d| d.rollback_of.is_none() && d.n < deployment);
        let good =
            |d: &Deployment| matches!(d.end, Some((DeploymentState::Succeeded, ..))) || of.rollback_of == Some(d.n);
        assert!(before.into_iter().all(good), "seed {seed}");
        if function == "prepare" && of.target.is_none() {
            assert!(!of.touched(), "seed {seed}: {key} begins after something was switched");
            return;
        }
        let me = of.host(&host).unwrap();
        if me.begun.is_some() {
            return;
        }
        // Its turn has come: no more at a time than are allowed, nobody beyond the budgets, and enough are left that serve.
        let running = of.hosts.iter().filter(|host| host.in_flight()).count();
        let parallel = match &of.target {
            Some(_) => spec.rollout.rollback_parallel.unwrap_or(spec.rollout.max_parallel),
            None => spec.rollout.max_parallel,
        };
        assert!(running < parallel as usize, "seed {seed}: {key} is one host too many");
        let serving: usize = self
            .run
            .deployments
            .iter()
            .filter(|d| d.end.is_none() && (d.n == deployment || of.rollback_of == Some(d.n)))
            .map(|d| d.hosts.iter().filter(|h| h.is_healthy() && !(d.n != deployment && h.back.is_some())).count())
            .sum();
        // What was lost on the way back does not keep the others from it.
        let lost = of.hosts.iter().filter(|h| of.target.is_some() && h.verdict() == HostState::Unreachable).count();
        let floor = (of.phases.min_healthy as usize).saturating_sub(lost);
        assert!(!me.is_healthy() || serving > floor, "seed {seed}: {key} is taken, {serving} serve and {floor} must");
        if self.run.environment(&of.environment).is_some_and(|e| e.rollout.zones) {
            let counts = |h: &&HostRun| of.target.is_none() || h.ill.is_none();
            let others = of.hosts.iter().filter(|h| h.in_flight()).filter(counts).filter(|_| counts(&me));
            let same = others.map(|h| &h.host.zone).all(|zone| *zone == me.host.zone);
            assert!(same, "seed {seed}: {key}: two zones at once");
        }
        if of.target.is_some() {
            return;
        }
        assert!(of.judged.is_none() && of.paused.is_none(), "seed {seed}: {key} begins though it was judged or paused");
        let budgets = of.budgets.unwrap();
        // Also one whose failure is being undone counts.
        let count = |state: HostState| of.hosts.iter().filter(|host| host.verdict() == state).count();
        assert!(count(HostState::Failed) <= budgets.max_failures + of.forgiven.failed, "seed {seed}: {key}: budget");
        assert!(
            count(HostState::Unreachable) <= budgets.max_unreachable + of.forgiven.unreachable,
            "seed {seed}: {key}"
        );
        let earlier = |h: &&HostRun| h.wave < me.wave;
        assert!(
            of.hosts.iter().filter(earlier).all(|h| h.gone || h.is_settled()),
            "seed {seed}: {key}: an earlier wave"
        );
        for (n, wave) in (0u32..).zip(of.waves.iter().take(me.wave as usize)) {
            let nobody = of.hosts.iter().filter(|h| h.wave == n).all(|h| h.begun.is_none());
            let baked = spec.rollout.bake_time_ms == 0 || wave.bake == Bake::Over || nobody;
            assert!(baked, "seed {seed}: {key} begins before wave {n} has baked");
        }
    }

    fn no_stage_failed(&self) {
        let skipped = self.run.passed.is_some() && !self.run.header.request.retest;
        for stage in &self.run.stages {
            assert!(
                skipped || stage.run == Progress::Ended(CallEnd::Returned),
                "seed {}: a stage did not pass",
                self.seed
            );
            let fine = |p: &Progress| matches!(p, Progress::Due | Progress::Ended(CallEnd::Returned));
            assert!(fine(&stage.setup) && fine(&stage.cleanup), "seed {}: a stage failed", self.seed);
        }
    }

    fn happen(&mut self, wake: Option<Duration>) {
        self.now = self.now.plus(Duration::from_millis(self.random.below(50)));
        if self.run.end.is_none() && self.random.one_in(150) {
            return self.stop();
        }
        if self.run.end.is_none() && self.random.one_in(400) {
            return self.take_lease();
        }
        if self.run.end.is_none() && self.random.one_in(60) {
            self.change();
        }
        if self.crashes > 0 && self.random.one_in(40) {
            return self.crash();
        }
        let running: Vec<StepKey> = self.programs.values().flat_map(|p| p.running.iter().cloned()).collect();
        let idle: Vec<CallKey> = self.programs.keys().filter(|key| self.is_idle(key)).cloned().collect();
        let busy: Vec<String> = self.busy.keys().cloned().collect();
        let all = (running.len() + idle.len() + busy.len()) as u64;
        if all == 0 || self.random.one_in(60) {
            let Some(wake) = wake else {
                assert!(all > 0, "seed {}: it waits for nothing: {:#?}", self.seed, self.run);
                return;
            };
            self.now = self.now.plus(wake);
            return;
        }
        let n = usize::try_from(self.random.below(all)).unwrap();
        if let Some(step) = running.get(n) {
            self.step_done(step);
        } else if let Some(call) = idle.get(n - running.len()) {
            self.turn(call);
        } else {
            self.action_done(&busy[n - running.len() - idle.len()]);
        }
    }

    /// A person pauses, lets go of, promotes or takes back a deployment, as the owner lets them.
    fn change(&mut self) {
        let open =
            |d: &&Deployment| d.end.is_none() && d.rollback_of.is_none() && d.judged.is_none() && d.budgets.is_some();
        let Some(of) = self.run.deployments.iter().find(open) else { return };
        let (deployment, by) = (of.n, "uid 0".to_owned());
        let event = match (self.random.below(4), &of.paused) {
            (0, None) => Event::Paused { deployment, by, reason: None, failed: None, bad: false },
            (1, Some(paused)) if paused.failed.is_none() => Event::Unpaused { deployment, by },
            (2, _) => Event::Promoted { deployment, by },
            (3, _) if of.no_way_back().is_none() => {
                let cause = Cause::new("rollback_requested", "a person asked for it");
                Event::Judged { deployment, cause, bad: false, then: OnFailure::Rollback }
            }
            _ => return,
        };
        self.append(event);
    }

    /// The program has its answers and is about to do something.
    fn is_idle(&self, key: &CallKey) -> bool {
        self.run.calls[key].steps.is_empty()
    }

    fn turn(&mut self, key: &CallKey) {
        let program = self.programs.get_mut(key).unwrap();
        if program.left > 0 {
            // Sometimes two at once, as `parallel` does.
            let count = (1 + self.random.below(2)).min(program.left);
            program.left -= count;
            let from = program.asked;
            program.asked += u32::try_from(count).unwrap();
            for n in from..self.programs[key].asked {
                self.begin(StepKey::new(key, &Branch::top(), "sh", n + 1), 1);
            }
            return;
        }
        let result = match self.random.below(12) {
            0 => CallResult::Raised(Cause::new("exit", "it failed")),
            1 => CallResult::Raised(Cause::new("unreachable", "nobody there")),
            2 => CallResult::Ended(Cause::new("limit_memory", "too much")),
            n => CallResult::Returned(json!({ "safe": n > 5, "reason": "the schema changed" })),
        };
        self.returned(key, result);
    }

    fn step_done(&mut self, key: &StepKey) {
        let call = key.call();
        let attempt = self.run.calls[&call].steps[key].attempt;
        let args = self.run.calls[&call].steps[key].args.clone();
        let ending = self.ending.get(&call).cloned();
        let outcome = match self.random.below(8) {
            _ if ending.as_ref().is_some_and(|(_, kill)| *kill) => {
                Outcome::Cut { cause: Cause::new("stopped", "ended") }
            }
            0 => Outcome::failed(Cause::new("exit", "exit 1")),
            1 => Outcome::failed(Cause::new("unreachable", "nobody there")),
            2 => Outcome::Unknown { cause: Cause::new("connection_lost", "gone in the middle") },
            _ => Outcome::Ok(Value::Null),
        };
        let real = !matches!(&outcome, Outcome::Failed { cause, .. } if cause.is_shut());
        if let (true, Some(Place::Host { deployment, host, function })) = (real, call.place())
            && function != "prepare"
        {
            self.touched.insert((deployment, host));
        }
        let last = is_last(&args, attempt, &outcome) || ending.is_some();
        self.programs.get_mut(&call).unwrap().running.remove(key);
        self.append(Event::Done { key: key.clone(), attempt, outcome, last });
        if ending.is_some() {
            self.finish_ending(&call);
        }
    }

    /// Somebody takes an environment away.
    fn take_lease(&mut self) {
        let open = |d: &&Deployment| d.end.is_none() && d.lease.is_some() && !d.lease_lost;
        if let Some(deployment) = self.run.deployments.iter().find(open).map(|d| d.n) {
            self.append(Event::LeaseLost { deployment });
        }
    }

    fn action_done(&mut self, name: &str) {
        let Some(action) = self.busy.remove(name) else { return };
        let cause = || Cause::new("git_failed", "no");
        let event = match &action {
            Action::Resolve if self.random.one_in(10) => Event::Unresolved { cause: cause() },
            Action::Resolve if !self.run.header.request.purpose.is_deploy() => {
                let Some(environment) = self.run.header.pipeline.environments.first().cloned() else {
                    return self.append(Event::Unresolved { cause: cause() });
                };
                let target =
                    Target { release: release(), code: Digest::of(b"old"), environment, run: RunId::new(1, 1) };
                let target = Some(Box::new(target));
                Event::Resolved { release: Box::new(release()), passed: None, live: Vec::new(), target }
            }
            Action::Resolve => {
                let live = self.run.header.pipeline.environments.iter().map(|e| e.name.clone());
                let live = live.filter(|_| self.random.one_in(6)).collect();
                let passed = self.random.one_in(4).then(|| RunId::new(1, 1));
                Event::Resolved { release: Box::new(release()), passed, live, target: None }
            }
            Action::Checkout if self.random.one_in(10) => Event::CheckoutFailed { cause: cause() },
            Action::Checkout => Event::CheckedOut { dir: "/x".to_owned() },
            Action::Lease { deployment } if self.random.one_in(4) => {
                let waiting =
                    Waiting { code: "lease".to_owned(), holder: "other".to_owned(), until_ms: None, reason: None };
                let event = Event::Blocked { deployment: *deployment, waiting: Some(waiting) };
                self.busy.insert(name.to_owned(), action);
                event
            }
            Action::Lease { deployment } => Event::LeaseGranted { deployment: *deployment, epoch: Epoch(2) },
            Action::Plan { deployment } if self.random.one_in(10) => {
                Event::PlanFailed { deployment: *deployment, cause: cause() }
            }
            Action::Plan { deployment } => {
                let hosts: Vec<Host> = (0..self.random.below(7)).map(host).collect();
                let environment = &self.run.deployment(*deployment).unwrap().environment;
                let environment = self.run.environment(environment).unwrap().clone();
                let ill = hosts.iter().filter(|_| self.random.one_in(9)).map(|h| (h.id.clone(), "down".to_owned()));
                let fleet = Fleet { ill: ill.collect(), hosts, ..Fleet::default() };
                match plan::phases(&environment.rollout, fleet) {
                    Err(cause) => Event::PlanFailed { deployment: *deployment, cause },
                    Ok((hosts, mut phases)) => {
                        let (release, run) = (release(), RunId::new(1, 1));
                        let target =
                            Target { release, code: Digest::of(b"old"), environment: environment.clone(), run };
                        phases.target = self.random.one_in(2).then(|| Box::new(target));
                        Event::Planned {
                            deployment: *deployment,
                            max_failures: environment.rollout.max_failures.of(hosts.len()),
                            max_unreachable: environment.rollout.max_unreachable.of(hosts.len()),
                            hosts,
                            previous: self.random.one_in(2).then(|| Box::new(self::release())),
                            changed_paths: None,
                            phases: Box::new(phases),
                        }
                    }
                }
            }
            Action::Look { deployment, wave } => {
                let of = self.run.deployment(*deployment).unwrap();
                let gone = of.hosts.iter().filter(|h| h.begun.is_none() && !h.gone && self.random.one_in(9));
                let gone = gone.map(|h| h.host.id.clone()).collect();
                let joined = if self.random.one_in(4) { vec![host(100 + u64::from(*wave))] } else { Vec::new() };
                Event::FleetSeen { deployment: *deployment, gone, joined, wave: *wave, why: BTreeMap::new() }
            }
            Action::Measure { deployment, alarm } => {
                let one = |random: &mut Random| match random.below(6) {
                    0 => Found::Value(1.0, None),
                    1 => Found::NoData(None),
                    2 => Found::Error(Cause::new("timeout", "no answer")),
                    _ => Found::Value(0.0, None),
                };
                let found = one(&mut self.random);
                let baseline = self.random.one_in(2).then(|| one(&mut self.random));
                let of = self.run.deployment(*deployment).unwrap();
                let measurement = Measurement { at: self.now.since(&of.created_at), found, baseline };
                Event::Measured { deployment: *deployment, alarm: *alarm, measurement }
            }
            Action::Guard { deployment } | Action::LookOver { deployment } => {
                let of = self.run.deployment(*deployment).unwrap();
                let healthy = of.hosts.iter().find(|h| h.verdict() == HostState::Healthy && h.back.is_none());
                let Some(ill) = healthy.filter(|_| self.random.one_in(6)).map(|h| h.host.id.clone()) else {
                    if matches!(action, Action::LookOver { .. }) {
                        return self.append(Event::LookedOver { deployment: *deployment });
                    }
                    self.busy.insert(name.to_owned(), action);
                    self.now = self.now.plus(Duration::from_millis(300));
                    return;
                };
                let bakes = of.waves.iter().position(|wave| matches!(wave.bake, Bake::Baking { .. }));
                if let Some(bakes) = bakes.filter(|_| self.random.one_in(4)) {
                    // Its provider has ended it, and it is looked at no more.
                    let (wave, gone) = (u32::try_from(bakes).unwrap(), vec![ill]);
                    let (deployment, joined, why) = (*deployment, Vec::new(), BTreeMap::new());
                    self.busy.insert(name.to_owned(), action);
                    return self.append(Event::FleetSeen { deployment, gone, joined, wave, why });
                }
                let event = Event::HealthVerdict {
                    deployment: *deployment,
                    host: ill,
                    unhealthy: Some(Cause::new(
                        if self.random.one_in(3) { "unreachable" } else { "unhealthy" },
                        "not any more",
                    )),
                    evidence: Vec::new(),
                };
                self.busy.insert(name.to_owned(), action);
                event
            }
            Action::Watch { deployment, host } => Event::HealthVerdict {
                deployment: *deployment,
                host: host.clone(),
                unhealthy: self.random.one_in(6).then(|| Cause::new("unhealthy", "500")),
                evidence: vec!["http: 500".to_owned()],
            },
            Action::Undo(key) => {
                let undo = key.undo();
                self.calls(&undo);
                self.open(undo.clone());
                Event::Call { key: undo, function: "f".to_owned(), input: Value::Null }
            }
            other => panic!("seed {}: {other:?} was never under way", self.seed),
        };
        self.append(event);
    }

    fn stop(&mut self) {
        let now = self.random.one_in(2);
        self.append(Event::StopRequested { by: "uid 0".to_owned(), now, reason: None });
        let now = self.run.stop.as_ref().unwrap().now;
        for (name, action) in std::mem::take(&mut self.busy) {
            match action {
                Action::Watch { deployment, host } if now => {
                    let unhealthy = Some(Cause::new("stopped", "not watched to the end"));
                    self.append(Event::HealthVerdict { deployment, host, unhealthy, evidence: Vec::new() });
                }
                // Its fact was on the way already.
                other if self.random.one_in(3) || matches!(other, Action::Watch { .. } | Action::Undo(_)) => {
                    self.busy.insert(name, other);
                }
                _ => {}
            }
        }
    }

    /// The daemon dies, perhaps before its last records were on disk, and starts again.
    fn crash(&mut self) {
        self.crashes -= 1;
        // What is about to happen waits for its record to be synced, so what is cut off has had no effect; calls may be made again.
        let keep = match self.journal.last().map(|record| &record.event) {
            Some(Event::Begin { .. } | Event::Call { .. }) if self.random.one_in(2) => self.journal.len() - 1,
            _ => self.journal.len(),
        };
        if let Some(Event::Call { key, .. }) = self.journal.get(keep).map(|record| &record.event) {
            self.called.remove(key);
        }
        self.journal.truncate(keep);
        self.run = self.folded();
        self.busy.clear();
        self.ending.clear();
        self.programs.clear();
        // What a replay brings back: every step that the journal has as begun was asked for.
        for (key, call) in &self.run.calls {
            let running = call.steps.iter().filter(|(_, s)| s.failed.is_none()).map(|(k, _)| k.clone()).collect();
            let begun = self.journal.iter().filter(
                |record| matches!(&record.event, Event::Begin { key: step, attempt: 1, .. } if step.call() == *key),
            );
            let asked = begun.count() as u64;
            let left = self.plans[key].saturating_sub(asked);
            self.programs.insert(key.clone(), Program { left, asked: u32::try_from(asked).unwrap(), running });
        }
        if self.run.end.is_none() {
            self.append(Event::Resumed { epoch: Epoch(9), version: "0".to_owned() });
            let open: Vec<CallKey> = self.run.calls.keys().cloned().collect();
            let cleanup =
                |key: &CallKey| matches!(key.place(), Some(Place::Stage { function, .. }) if function == "cleanup");
            if self.random.one_in(12)
                && let Some(key) = open.into_iter().find(|key| !cleanup(key))
            {
                self.append(Event::Diverged { key, cause: Cause::new("diverged", "both sides") });
            }
        }
    }

    fn folded(&self) -> Run {
        Run::fold((1..).map(Seq).zip(&self.journal)).unwrap_or_else(|e| panic!("seed {}: {e}", self.seed))
    }

    /// What must hold when all is over.
    fn ended(&self) {
        let (seed, run) = (self.seed, &self.run);
        assert_eq!(self.folded(), *run, "seed {seed}: the journal folds into something else");
        assert!(run.calls.is_empty(), "seed {seed}: calls are open at the end");
        for (key, count) in &self.called {
            assert_eq!(*count, 1, "seed {seed}: {key}");
        }
        for (stage, spec) in run.stages.iter().zip(&run.header.pipeline.stages) {
            let called = |function| self.called.contains_key(&CallKey::stage(spec.name.as_str(), function));
            let begun = called("setup") || called("run");
            assert_eq!(called("cleanup"), begun && spec.cleanup, "seed {seed}: cleanup of {}", spec.name);
            assert!(matches!(stage.cleanup, Progress::Due | Progress::Ended(_)), "seed {seed}");
            let cut = stage.cleanup.cause().is_some_and(|cause| cause.code == "diverged");
            assert!(!cut, "seed {seed}: the cleanup of {} was ended by a divergence elsewhere", spec.name);
        }
        for deployment in &run.deployments {
            assert!(deployment.end.is_some(), "seed {seed}: deployment {} has not ended", deployment.n);
            let unexplained =
                |h: &&HostRun| h.state(true) == HostState::Failed && h.why().is_none_or(|why| why.message.is_empty());
            let unexplained = deployment.hosts.iter().find(unexplained);
            assert!(unexplained.is_none(), "seed {seed}: it failed without a cause: {unexplained:#?}");
            let failed = matches!(deployment.end, Some((DeploymentState::Failed, ..)));
            let touched = self.touched.iter().any(|(n, _)| *n == deployment.n);
            let rolled_back = matches!(deployment.end, Some((DeploymentState::RolledBack, ..)));
            for host in deployment.hosts.iter().filter(|host| rolled_back && host.touched && !host.gone) {
                let back = self.run.deployments.iter().filter(|d| d.rollback_of == Some(deployment.n));
                let shut = back
                    .into_iter()
                    .filter_map(|d| d.host(&host.host.id))
                    .any(|h| h.verdict() == HostState::Unreachable);
                let there = matches!(host.back, Some(Back::There | Back::Aside));
                assert!(there || shut, "seed {seed}: {} was not taken back: {host:#?}", host.host.id);
            }
            assert!(!(failed && touched), "seed {seed}: deployment {} failed and a host was touched", deployment.n);
        }
        let (state, cause, _) = run.end.as_ref().unwrap();
        match state {
            RunState::Succeeded => {
                if run.target.is_none() {
                    self.no_stage_failed();
                }
                assert_eq!(*cause, None);
                let reach = if run.target.is_some() { usize::MAX } else { doors::reach_of(run) };
                let asked_for = || super::environments::asked_for(run).into_iter();
                for (at, environment) in asked_for().enumerate() {
                    let live = !run.header.request.redeploy && run.live.contains(environment);
                    let of = run.deployments.iter().find(|d| d.environment == *environment && d.rollback_of.is_none());
                    if at >= reach && !live {
                        // Not opened for this run, and so none behind it either.
                        let entered = asked_for().skip(at).any(|e| run.deployments.iter().any(|d| d.environment == *e));
                        assert!(!entered, "seed {seed}: {environment} or one behind it was entered");
                        break;
                    }
                    assert!(live || of.is_some(), "seed {seed}: {environment} has not got it");
                    let Some(of) = of else { continue };
                    let budgets = of.budgets.unwrap();
                    let count = |state| of.hosts.iter().filter(|host| host.verdict() == state).count();
                    let (failed, shut) = (count(HostState::Failed), count(HostState::Unreachable));
                    assert!(failed <= budgets.max_failures + of.forgiven.failed, "seed {seed}");
                    assert!(shut <= budgets.max_unreachable + of.forgiven.unreachable, "seed {seed}");
                    let healthy = count(HostState::Healthy);
                    assert_eq!(
                        healthy + failed + shut + count(HostState::Gone),
                        of.hosts.len(),
                        "seed {seed}: {of:#?}"
                    );
                    assert!(
                        healthy > 0 || of.hosts.iter().all(|h| h.gone),
                        "seed {seed}: a success without a healthy host"
                    );
                }
            }
            RunState::Failed => assert!(self.touched.is_empty(), "seed {seed}: failed, and a host was touched"),
            RunState::Halted | RunState::Stopped | RunState::RolledBack | RunState::RollbackFailed => {}
            RunState::Damaged => assert!(run.diverged.is_some(), "seed {seed}"),
            other => panic!("seed {seed}: it ended {other:?}"),
        }
        assert!(*state == RunState::Succeeded || cause.is_some(), "seed {seed}: {state:?} without a cause");
        assert!(*state != RunState::Stopped || run.stop.is_some(), "seed {seed}: nobody stopped it");
        assert!(run.diverged.is_none() || *state == RunState::Damaged, "seed {seed}: it diverged and ended {state:?}");
    }
}

#[test]
fn whatever_happens_a_run_ends_and_its_end_is_true() {
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    for seed in 0..6_000 {
        let sim = Sim::new(seed).play();
        *ends.entry(format!("{:?}", sim.run.state())).or_default() += 1;
        // Records are a format; a part of the journals is enough to see each kind many times.
        if seed % 8 == 0 {
            for record in &sim.journal {
                let json = serde_json::to_string(record).unwrap();
                assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), *record, "seed {seed}: {json}");
            }
        }
    }
    for state in ["Succeeded", "Failed", "Halted", "Stopped", "Damaged", "RolledBack", "RollbackFailed"] {
        assert!(ends.get(state).is_some_and(|count| *count > 20), "{ends:?}");
    }
}
