//! The rollout of a release: prepare, before, the canary, the waves, their bakes, verification. Every part is done only if nothing before
//! it was found wrong.

use std::time::Duration;

use super::{
    Action, Decision, back,
    calls::{call, undo},
    environments::{cut, enter},
    host::{self, of_one_zone, whose_turn},
    judge,
};
use crate::{
    model::{
        analysis::{Assessment, Verdict},
        cause::Cause,
        deployment::{Bake, Deployment, DeploymentState, HostRun, HostState, Judged, WaveRun},
        event::{BakeVerdict, Event},
        pipeline::{Alarm, AlarmAction, Environment, HostSource},
        rollout::{OnFailure, OnInconclusive},
        run::{CallEnd, Progress, Run},
        step::CallKey,
    },
    time::{Span, Stamp},
};

/// So often something is written while a wave bakes.
const OBSERVED: Duration = Duration::from_secs(30);

/// A deployment of the run's own release, as it is decided on.
pub(super) struct Scene<'a> {
    pub(super) run: &'a Run,
    pub(super) deployment: &'a Deployment,
    pub(super) spec: &'a Environment,
    pub(super) now: &'a Stamp,
}

/// How far a part of a rollout is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// It is not over.
    Open,
    /// It is over, and well.
    Done,
}

/// One deployment: its lease, its plan, its phases, its end.
pub(super) fn rollout(run: &Run, deployment: &Deployment, now: &Stamp, decision: &mut Decision) {
    let ended = |state: DeploymentState, cause: Option<Cause>| {
        Action::Append(Event::DeploymentEnded { deployment: deployment.n, state, cause })
    };
    let Some(spec) = run.environment(&deployment.environment) else {
        let cause = Cause::new("internal", format!("environment {} is not described", deployment.environment));
        return decision.act(ended(DeploymentState::Failed, Some(cause)));
    };
    let scene = Scene { run, deployment, spec, now };
    if deployment.budgets.is_none() {
        return decision.act(enter(run, deployment));
    }
    let in_flight = host::go_on(run, deployment, spec, decision);
    scene.undo_hooks(decision);
    if deployment.judged.is_none() && run.diverged.is_none() {
        if let Some(event) = judge::found(&scene, decision) {
            return decision.act(Action::Append(event));
        }
        if scene.set_aside(decision) {
            return;
        }
    }
    // Hosts in flight finish, and so do those on their way back.
    let back = is_going_back(run, deployment);
    if let Some(ending) = scene.ending() {
        if in_flight == 0 && !back && !scene.is_open() {
            scene.end(ending, decision);
        }
        return;
    }
    scene.measure(decision);
    if let Some(paused) = &deployment.paused {
        let limit = Duration::from_millis(spec.rollout.pause_timeout_ms);
        let held = now.since(&paused.since);
        if held < limit {
            // What bakes is watched meanwhile.
            scene.guard(decision);
            return decision.wake(limit - held);
        }
        let message = format!("nobody went on from the pause by {} within pause_timeout, {}", paused.by, Span(limit));
        let cause = paused.failed.clone().unwrap_or_else(|| Cause::new("pause_timeout", message));
        let then = OnFailure::Halt;
        let bad = paused.bad;
        return decision.act(Action::Append(Event::Judged { deployment: deployment.n, cause, bad, then }));
    }
    if scene.phases(in_flight, decision) == Part::Done && !back {
        decision.act(ended(DeploymentState::Succeeded, None));
    }
}

/// Whether hosts of a deployment are on their way back.
fn is_going_back(run: &Run, deployment: &Deployment) -> bool {
    run.deployments.iter().any(|d| d.rollback_of == Some(deployment.n) && d.end.is_none())
}

/// Why and how a deployment ends.
struct Ending {
    cause: Cause,
    /// What follows once a host was touched, and what if none was.
    state: DeploymentState,
    go_back: bool,
}

impl Scene<'_> {
    /// The key and the path of a hook of the whole deployment; `of` tells calls of one hook apart.
    fn hook(&self, hook: &str, of: &str) -> Action {
        call(self.run, self.key(hook, of), format!("environments/{}/{hook}", self.spec.name))
    }

    fn key(&self, hook: &str, of: &str) -> CallKey {
        let function = if of.is_empty() { hook.to_owned() } else { format!("{hook}.{of}") };
        CallKey::deployment(self.spec.name.as_str(), self.deployment.n, &function)
    }

    /// Every hook that is called for the deployment or a wave: its name, what tells it apart, and how far it is.
    pub(super) fn hooks(&self) -> Vec<(&'static str, String, &Progress)> {
        let d = self.deployment;
        let waves = d.waves.iter().zip(1..).flat_map(|(wave, n): (&WaveRun, u32)| {
            [("before_wave", n.to_string(), &wave.before), ("after_wave", n.to_string(), &wave.after)]
        });
        let none = String::new;
        [("rollback_safe", none(), &d.rollback_safe), ("before", none(), &d.before)]
            .into_iter()
            .chain(waves)
            .chain([
                ("verify", "canary".to_owned(), &d.verify_canary),
                ("verify", none(), &d.verify),
                ("after", none(), &d.after),
            ])
            .collect()
    }

    fn undo_hooks(&self, decision: &mut Decision) {
        for (hook, of, progress) in self.hooks() {
            if matches!(progress, Progress::Undoing(_)) {
                undo(self.run, &self.key(hook, &of), progress, decision);
            }
        }
    }

    /// Whether a call that is none of a host in flight is under way.
    fn is_open(&self) -> bool {
        self.hooks().iter().any(|(.., progress)| progress.is_open())
            || self.deployment.hosts.iter().any(|host| host.prepare.is_open())
    }

    pub(super) fn cut_short(&self) -> Option<(DeploymentState, Cause)> {
        cut(self.run, self.deployment)
    }

    /// A verdict on the release outranks a wish: what failed is told as a failure. A divergence outranks both: what it cut looks like a
    /// failure and is none.
    fn ending(&self) -> Option<Ending> {
        let cut = self.cut_short();
        match &self.deployment.judged {
            Some(Judged { cause, then, .. }) if self.run.diverged.is_none() => {
                let touched = self.deployment.touched();
                Some(Ending {
                    cause: cause.clone(),
                    state: if touched { DeploymentState::Halted } else { DeploymentState::Failed },
                    // Somebody who stops a run wants it left as it is; without the lease the hosts are somebody else's.
                    go_back: touched && *then == OnFailure::Rollback && cut.is_none(),
                })
            }
            _ => cut.map(|(state, cause)| Ending { cause, state, go_back: false }),
        }
    }

    /// Everything has come to rest: back, or the end.
    fn end(&self, ending: Ending, decision: &mut Decision) {
        let (run, d) = (self.run, self.deployment);
        let Ending { cause, state, go_back } = ending;
        let ended =
            |state, cause| Action::Append(Event::DeploymentEnded { deployment: d.n, state, cause: Some(cause) });
        let rollback = run.deployments.iter().find(|r| r.rollback_of == Some(d.n) && !r.alone);
        if let Some((end, why, _)) = rollback.and_then(|rollback| rollback.end.as_ref()) {
            let state = match end {
                DeploymentState::Succeeded => DeploymentState::RolledBack,
                other => *other,
            };
            return decision.act(ended(state, with_rollback(cause, why.as_ref())));
        }
        if !go_back {
            return decision.act(ended(state, cause));
        }
        let hosts = back::to_take_back(d);
        if hosts.is_empty() {
            // Each has been taken back by itself.
            return decision.act(ended(DeploymentState::RolledBack, cause));
        }
        if let Some(no_way) = d.no_way_back() {
            let message = format!("{}. It was not rolled back: {}", cause.message, no_way.message);
            let cause = Cause { message, ..cause }.with("no_rollback", no_way.code.as_str());
            return decision.act(ended(DeploymentState::Halted, cause));
        }
        decision.act(back::create(run, d, &hosts, false));
    }

    /// Hosts that failed within the budgets are taken back at once, beside the rollout; true when such a thing is begun.
    fn set_aside(&self, decision: &mut Decision) -> bool {
        let d = self.deployment;
        if d.no_way_back().is_some() || self.cut_short().is_some() {
            return false;
        }
        let apart = |host: &&HostRun| host.touched && host.back.is_none() && host.is_settled();
        let hosts: Vec<&HostRun> = d.hosts.of_verdict(&[HostState::Failed]).into_iter().filter(apart).collect();
        if hosts.is_empty() {
            return false;
        }
        decision.act(back::create(self.run, d, &hosts, true));
        true
    }

    /// Calls a hook that is due; `Open` while it is not over.
    fn done(&self, there: bool, hook: &str, of: &str, progress: &Progress, decision: &mut Decision) -> Part {
        match progress {
            Progress::Due if there => {
                // It may do something on any host, also on one that goes back alone just now.
                if !is_going_back(self.run, self.deployment) {
                    decision.act(self.hook(hook, of));
                }
                Part::Open
            }
            Progress::Due | Progress::Ended(CallEnd::Returned) => Part::Done,
            // One that failed is judged.
            Progress::Open | Progress::Undoing(_) | Progress::Ended(_) => Part::Open,
        }
    }

    fn phases(&self, in_flight: usize, decision: &mut Decision) -> Part {
        let (d, hooks) = (self.deployment, self.spec.hooks);
        if self.done(hooks.rollback_safe, "rollback_safe", "", &d.rollback_safe, decision) == Part::Open {
            return Part::Open;
        }
        let unprepared = hooks.prepare && host::prepare(self.run, d, self.spec, decision);
        if unprepared || self.done(hooks.before, "before", "", &d.before, decision) == Part::Open {
            return Part::Open;
        }
        for (n, wave) in (0u32..).zip(&d.waves) {
            if self.wave(n, wave, in_flight, decision) == Part::Open {
                return Part::Open;
            }
        }
        if self.done(self.spec.verify, "verify", "", &d.verify, decision) == Part::Open {
            return Part::Open;
        }
        self.done(hooks.after, "after", "", &d.after, decision)
    }

    fn wave(&self, n: u32, wave: &WaveRun, in_flight: usize, decision: &mut Decision) -> Part {
        let (d, hooks) = (self.deployment, self.spec.hooks);
        let of = (n + 1).to_string();
        let begun = || d.hosts.of_wave(n).iter().any(|host| !host.gone && host.begun.is_some());
        let begun = wave.before != Progress::Due || begun();
        let dynamic = self.spec.hosts.iter().any(|source| matches!(source, HostSource::Plugin { .. }));
        if n > 0 && dynamic && !wave.seen && !begun {
            decision.act(Action::Look { deployment: d.n, wave: n });
            return Part::Open;
        }
        if d.hosts.is_wave_unsettled(n) {
            if self.done(hooks.before_wave, "before_wave", &of, &wave.before, decision) == Part::Open {
                return Part::Open;
            }
            self.start(n, in_flight, decision);
            return Part::Open;
        }
        if in_flight > 0 || self.done(hooks.after_wave && begun, "after_wave", &of, &wave.after, decision) == Part::Open
        {
            return Part::Open;
        }
        // Also one whose hosts have gone since: that says nothing, and nothing is no pass.
        let was_begun = d.hosts.of_wave(n).iter().any(|host| host.begun.is_some());
        if was_begun && self.bake(n, wave, decision) == Part::Open {
            return Part::Open;
        }
        let canary = self.spec.verify && d.phases.canary && n == 0 && d.waves.len() > 1;
        self.done(canary, "verify", "canary", &d.verify_canary, decision)
    }

    /// No host runs what was live before.
    fn nobody_else(&self) -> bool {
        !self.deployment.hosts.iter().any(|host| host.begun.is_none() && !host.gone && host.ill.is_none())
    }

    /// Measures alarms whose time has come, from the first host touched on.
    fn measure(&self, decision: &mut Decision) {
        let d = self.deployment;
        if d.alarms.is_empty() {
            return;
        }
        let Some(since) = d.hosts.iter().filter_map(|host| host.begun.as_ref()).min_by_key(|at| at.wall_ms) else {
            return;
        };
        for ((watched, alarm), n) in d.alarms.iter().zip(&self.spec.alarms).zip(1..) {
            if alarm.analysis.compare.is_some() && self.nobody_else() {
                // What was found while there was somebody to compare with stays.
                continue;
            }
            let between = Duration::from_millis(alarm.analysis.interval_ms);
            // The first measurement says nothing of the release yet.
            let waited = self.now.since(watched.at.as_ref().unwrap_or(since));
            if waited >= between {
                decision.act(Action::Measure { deployment: d.n, alarm: n });
            } else {
                decision.wake(between - waited);
            }
        }
    }

    /// Begins hosts of a wave, as many as may be.
    fn start(&self, wave: u32, in_flight: usize, decision: &mut Decision) {
        let (d, rollout) = (self.deployment, &self.spec.rollout);
        let ready = |host: &&HostRun| {
            host.begun.is_none() && host.cause().is_none() && host.prepare == Progress::Ended(CallEnd::Returned)
        };
        let mut parallel = rollout.max_parallel.max(1) as usize;
        if in_flight >= parallel {
            return;
        }
        let stagger = Duration::from_millis(rollout.stagger_ms);
        if !stagger.is_zero() {
            let last = d.hosts.iter().filter_map(|host| host.begun.as_ref()).max_by_key(|at| at.wall_ms);
            let waited = last.map_or(stagger, |last| self.now.since(last));
            if waited < stagger {
                return decision.wake(stagger - waited);
            }
            // One at a time, the first of all not excepted.
            parallel = parallel.min(in_flight + 1);
        }
        let floor = d.phases.min_healthy as usize;
        let ready: Vec<&HostRun> = d.hosts.unsettled_of_wave(wave).into_iter().filter(ready).collect();
        let hosts = if rollout.zones { of_one_zone(d, ready, |_| true) } else { ready };
        let turn = whose_turn(hosts.iter().copied(), in_flight, parallel, d.healthy(), floor);
        if turn.is_empty() && in_flight == 0 {
            decision.actions.extend(judge::stuck(self, &hosts).map(Action::Append));
        }
        for host in turn {
            let function = if host.drain == Progress::Due { "drain" } else { "deploy" };
            decision.act(host::calls(self.run, d, host, function));
        }
    }

    /// Watches the hosts that have it while a wave bakes.
    fn guard(&self, decision: &mut Decision) {
        let bakes = self.deployment.waves.iter().any(|wave| matches!(wave.bake, Bake::Baking { .. }));
        if bakes && self.spec.health.is_some() {
            decision.act(Action::Guard { deployment: self.deployment.n });
        }
    }

    /// How a bake ends that has been watched for so long, if it does.
    fn bake_over(&self, wave: u32, watched: Duration, decision: &mut Decision) -> Option<Event> {
        let (deployment, rollout) = (self.deployment.n, &self.spec.rollout);
        let time = Duration::from_millis(rollout.bake_time_ms);
        if watched < time {
            decision.wake(time - watched);
            return None;
        }
        if let Some(event) = judge::fired_at_the_end(self) {
            return Some(event);
        }
        let (open, evidence) = self.inconclusive();
        let gone = || "every host that had the release is gone".to_owned();
        let open = open.or_else(|| self.nobody_has_it().then(gone));
        let ended = |verdict, evidence| Some(Event::BakeEnded { deployment, wave, verdict, evidence });
        let Some(why) = open else { return ended(BakeVerdict::Passed, evidence) };
        let nobody = self.nobody_has_it();
        let max = Duration::from_millis(rollout.max_bake_ms).max(time);
        if watched < max && !nobody {
            // No data is no pass: it is watched on.
            decision.wake(max - watched);
            return None;
        }
        let then = match rollout.on_inconclusive {
            OnInconclusive::Promote => return ended(BakeVerdict::Inconclusive, evidence),
            OnInconclusive::Rollback => OnFailure::Rollback,
            OnInconclusive::Halt => OnFailure::Halt,
        };
        let after = if nobody { String::new() } else { format!(" after max_bake, {}", Span(max)) };
        let message = format!("nothing can be concluded{after}: {why}");
        let cause = Cause::new("inconclusive", message).with("evidence", evidence);
        Some(Event::Judged { deployment, cause, bad: false, then })
    }

    /// Of those that got the release none is there any more: whoever ends machines that are ill may have ended them.
    fn nobody_has_it(&self) -> bool {
        let begun = || self.deployment.hosts.iter().filter(|host| host.begun.is_some());
        let has_it = |host: &HostRun| !host.gone && host.verdict() == HostState::Healthy;
        begun().any(|host| host.gone) && !begun().any(has_it)
    }

    /// What the first alarm says from which nothing can be concluded, and what all of them say. One that has no consequence is not asked.
    fn inconclusive(&self) -> (Option<String>, Vec<String>) {
        let asked = self.deployment.alarms.iter().zip(&self.spec.alarms);
        // A comparison that found nobody to compare with says nothing.
        let compares = |alarm: &Alarm| alarm.analysis.compare.is_some();
        let asked = asked.filter(|(watched, alarm)| {
            let alone = compares(alarm) && watched.series.samples() == 0 && self.nobody_else();
            alarm.action != AlarmAction::None && !watched.forgiven && !alone
        });
        let found: Vec<Assessment> = asked.map(|(watched, _)| watched.series.assess(true)).collect();
        let open = found.iter().find(|found| matches!(found.verdict, Verdict::Inconclusive | Verdict::Open));
        (open.map(|open| open.message.clone()), found.iter().map(|found| found.message.clone()).collect())
    }

    /// The watch after a wave: only watched time counts.
    fn bake(&self, n: u32, wave: &WaveRun, decision: &mut Decision) -> Part {
        let d = self.deployment;
        let time = Duration::from_millis(self.spec.rollout.bake_time_ms);
        match &wave.bake {
            Bake::Over => return Part::Done,
            Bake::Due if time.is_zero() && !self.nobody_has_it() => return Part::Done,
            Bake::Due => decision.act(Action::Append(Event::BakeBegan { deployment: d.n, wave: n })),
            Bake::Baking { since, away, looked } => {
                let watched = self.now.since(since).saturating_sub(*away);
                let over = self.bake_over(n, watched, decision);
                if matches!(over, Some(Event::BakeEnded { .. })) && !looked && self.spec.health.is_some() {
                    // What broke after the last round of looks is found now, and not by nobody.
                    decision.act(Action::LookOver { deployment: d.n });
                } else if let Some(event) = over {
                    decision.act(Action::Append(event));
                } else {
                    match OBSERVED.checked_sub(self.now.since(&self.run.last_at)).filter(|left| !left.is_zero()) {
                        Some(left) => decision.wake(left),
                        // A restart would lose what was watched since the last record.
                        None => decision.act(Action::Append(Event::Observed { deployment: d.n, unwatched_ms: 0 })),
                    }
                    self.guard(decision);
                }
            }
        }
        Part::Open
    }
}

/// A failure with what became of its rollback.
fn with_rollback(cause: Cause, why: Option<&Cause>) -> Cause {
    match why {
        None => cause,
        Some(why) => {
            let message = format!("{}; and the rollback: {}", cause.message, why.message);
            let code = why.code.clone();
            Cause { message, ..cause }.with("rollback", code)
        }
    }
}
