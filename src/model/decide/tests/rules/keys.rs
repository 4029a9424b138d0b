//! What single keys of a rollout mean.

use super::*;
use crate::model::rollout::OnInconclusive;

/// One call under way on each host whose turn comes now.
fn opens_all(tale: &mut Tale) -> Vec<CallKey> {
    let keys = tale.begins();
    keys.iter().for_each(|key| tale.opens(key));
    keys
}

#[test]
fn between_the_beginnings_of_two_hosts_is_the_stagger() {
    let rollout = |stagger_ms| Rollout { stagger_ms, max_parallel: 3, ..Rollout::default() };
    assert_eq!(Tale::planned(&rollout(0), Purpose::Deploy, fleet(4, &[])).takes(), ["h0", "h1", "h2"]);
    let mut tale = Tale::planned(&rollout(1_000), Purpose::Deploy, fleet(4, &[]));
    let first = opens_all(&mut tale);
    assert_eq!(first.len(), 1);
    tale.passes(999);
    assert!(tale.takes().is_empty());
    assert_eq!(decide(&tale.run, &tale.now).wake_in, Some(Duration::from_millis(1)));
    tale.passes(1);
    assert_eq!(tale.takes(), ["h1"], "though h0 is still under way");
    // One that is done already gives the next no reason to hurry.
    opens_all(&mut tale);
    tale.closes(&first[0], None);
    tale.passes(500);
    assert!(tale.takes().is_empty());
}

#[test]
fn failures_of_one_wave_have_a_budget_of_their_own() {
    let ends = |max_failures_per_wave, failing: [&str; 2]| {
        let rollout = Rollout {
            waves: Waves::Each(Budget::Count(2)),
            max_failures: Budget::Count(2),
            max_failures_per_wave,
            ..Rollout::default()
        };
        let mut tale = Tale::planned(&rollout, Purpose::Deploy, fleet(4, &[]));
        tale.plays(|key| failing.iter().any(|host| key.starts_with(&format!("e0#1/{host}/"))));
        let (state, code) = tale.end().unwrap();
        (state, code.to_owned())
    };
    let one = Some(Budget::Count(1));
    assert_eq!(ends(one, ["h0", "h1"]), (RunState::Halted, "max_failures_per_wave".to_owned()));
    assert_eq!(ends(one, ["h1", "h2"]), (RunState::Succeeded, String::new()), "one in each wave");
    assert_eq!(ends(None, ["h0", "h1"]), (RunState::Succeeded, String::new()));
}

#[test]
fn without_a_newly_healthy_host_for_so_long_it_has_failed() {
    let rollout = Rollout { progress_deadline_ms: 30_000, max_parallel: 2, ..Rollout::default() };
    let mut tale = Tale::planned(&rollout, Purpose::Deploy, fleet(4, &[]));
    let keys = opens_all(&mut tale);
    tale.passes(20_000);
    // That one has become healthy, so the other has as long again; a third begins, which is no progress.
    tale.closes(&keys[0], None);
    let third = opens_all(&mut tale);
    tale.passes(29_999);
    tale.begins();
    assert!(tale.run.deployments[0].judged.is_none());
    assert_eq!(decide(&tale.run, &tale.now).wake_in, Some(Duration::from_millis(1)));
    tale.passes(1);
    assert!(tale.begins().is_empty(), "nothing new begins");
    assert_eq!(tale.run.deployments[0].judged.as_ref().unwrap().cause.code, "progress_deadline");
    assert!(tale.run.end.is_none(), "hosts in flight finish");
    tale.closes(&keys[1], None);
    tale.closes(&third[0], None);
    tale.begins();
    assert_eq!(tale.end(), Some((RunState::Halted, "progress_deadline")));
}

#[test]
fn while_nobody_is_under_way_nobody_has_to_become_healthy() {
    let (canary, bake_time_ms) = (Canary::Count(Budget::Count(1)), 60_000);
    let rollout = Rollout { progress_deadline_ms: 30_000, canary, bake_time_ms, ..Rollout::default() };
    let mut tale = Tale::planned(&rollout, Purpose::Deploy, fleet(2, &[]));
    let canary = tale.begins().remove(0);
    tale.call(&canary, false);
    assert!(tale.begins().is_empty());
    tale.passes(60_000);
    assert_eq!(tale.takes(), ["h1"], "{:?}", tale.end());
    opens_all(&mut tale);
    tale.passes(29_000);
    tale.begins();
    assert!(tale.run.deployments[0].judged.is_none(), "its time counts from its own beginning");
}

#[test]
fn a_pause_that_nobody_ends_is_halted_at_its_limit() {
    let paused = |on_failure| {
        let rollout = Rollout { pause_timeout_ms: 25_000, on_failure, ..Rollout::default() };
        let mut tale = Tale::planned(&rollout, Purpose::Deploy, fleet(3, &[]));
        let first = tale.begins().remove(0);
        tale.call(&first, on_failure == OnFailure::Pause);
        tale
    };
    let runs_out = |tale: &mut Tale| {
        tale.passes(24_999);
        assert!(tale.begins().is_empty());
        assert_eq!(tale.run.deployments[0].state(), DeploymentState::Paused);
        assert_eq!(decide(&tale.run, &tale.now).wake_in, Some(Duration::from_millis(1)));
        tale.passes(1);
        assert!(tale.begins().is_empty(), "neither further nor back");
    };
    let mut by_hand = paused(OnFailure::Rollback);
    let by = "Ann".to_owned();
    by_hand.append(Event::Paused { deployment: 1, by, reason: None, failed: None, bad: false });
    runs_out(&mut by_hand);
    assert_eq!(by_hand.end(), Some((RunState::Halted, "pause_timeout")));
    // One that failed keeps its own reason.
    let mut failed = paused(OnFailure::Pause);
    // The host itself goes back meanwhile.
    while let Some(key) = failed.begins().pop() {
        assert!(key.to_string().starts_with("e0#2/h0/"), "{key}");
        failed.call(&key, false);
    }
    runs_out(&mut failed);
    assert_eq!(failed.end(), Some((RunState::Halted, "max_failures")));
}

/// The canary of a release is there and bakes, with an alarm.
fn bakes(rollout: Rollout, action: AlarmAction) -> Tale {
    let failure = Some(Condition { above: Some(Level(0.5)), ..Condition::default() });
    let analysis = Analysis { failure, interval_ms: 1_000, ..Analysis::default() };
    let (name, cause, alert) = ("errors".to_owned(), "probe".to_owned(), "log".to_owned());
    let alarms = vec![Alarm { name, cause, alert, action, analysis }];
    let rollout = Rollout { canary: Canary::Count(Budget::Count(1)), bake_time_ms: 5_000, ..rollout };
    let environment = Environment { alarms, ..environment(rollout) };
    let mut tale = Tale::planned_in(environment, Purpose::Deploy, fleet(2, &[]));
    let canary = tale.begins().remove(0);
    tale.call(&canary, false);
    assert!(tale.begins().is_empty());
    assert_eq!(tale.run.deployments[0].state(), DeploymentState::Baking);
    tale
}

/// After so long a measurement finds this.
fn finds(tale: &mut Tale, after_ms: u64, found: Found) {
    tale.passes(after_ms);
    let at = tale.now.since(&tale.run.deployments[0].created_at);
    tale.append(Event::Measured { deployment: 1, alarm: 1, measurement: Measurement { at, found, baseline: None } });
}

#[test]
fn a_bake_without_data_is_watched_on_to_max_bake_and_then_is_as_the_project_says() {
    let silent = |on_inconclusive| {
        let rollout = Rollout { max_bake_ms: 15_000, on_inconclusive, ..Rollout::default() };
        let mut tale = bakes(rollout, AlarmAction::Rollback);
        finds(&mut tale, 5_000, Found::NoData(None));
        assert!(tale.begins().is_empty(), "its time is over, and nothing is known");
        tale
    };
    let (back, on) = (["h0".to_owned()], ["h1".to_owned()]);
    for (then, takes, of, end) in [
        (OnInconclusive::Rollback, &back[..], 2, None),
        (OnInconclusive::Halt, &[][..], 1, Some((RunState::Halted, "inconclusive"))),
        (OnInconclusive::Promote, &on[..], 1, None),
    ] {
        let mut tale = silent(then);
        tale.passes(9_999);
        assert!(tale.takes().is_empty(), "{then:?}");
        assert_eq!(tale.run.deployments[0].state(), DeploymentState::Baking, "{then:?}");
        tale.passes(1);
        assert_eq!(tale.takes(), takes, "{then:?}");
        assert_eq!((tale.run.deployments.len(), tale.end()), (of, end), "{then:?}");
        let judged = tale.run.deployments[0].judged.as_ref();
        assert!(judged.is_none_or(|judged| !judged.bad), "{then:?}: no data says nothing of the release");
    }
    // It is watched no longer than until something is known.
    let mut heard = silent(OnInconclusive::Halt);
    finds(&mut heard, 1_000, Found::Value(0.0, None));
    assert_eq!(heard.takes(), ["h1"]);
}

#[test]
fn what_follows_an_alarm_is_its_own_action() {
    let fires = |action| {
        // Were it for the environment, it would be the other one.
        let on_failure = if action == AlarmAction::Rollback { OnFailure::Halt } else { OnFailure::Rollback };
        let mut tale = bakes(Rollout { on_failure, ..Rollout::default() }, action);
        finds(&mut tale, 1_000, Found::Value(1.0, None));
        let takes = tale.takes();
        (tale, takes)
    };
    let (tale, takes) = fires(AlarmAction::Halt);
    assert!(takes.is_empty(), "it stands as it is");
    assert_eq!(tale.end(), Some((RunState::Halted, "alarm")));
    assert!(tale.run.deployments[0].judged.as_ref().unwrap().bad);
    let (mut tale, takes) = fires(AlarmAction::Pause);
    tale.passes(60_000);
    assert!(takes.is_empty() && tale.takes().is_empty() && tale.run.end.is_none());
    let paused = tale.run.deployments[0].paused.as_ref().unwrap();
    assert_eq!((paused.by.as_str(), paused.failed.as_ref().unwrap().code.as_str()), ("phased", "alarm"));
    assert!(paused.bad);
    // A person who goes on from it has seen it.
    tale.append(Event::Promoted { deployment: 1, by: "Ann".to_owned() });
    tale.passes(5_000);
    assert_eq!(tale.takes(), ["h1"]);
    let (tale, takes) = fires(AlarmAction::Rollback);
    assert_eq!((takes, tale.run.deployments.len()), (vec!["h0".to_owned()], 2));
    let (tale, takes) = fires(AlarmAction::None);
    assert!(takes.is_empty() && tale.run.deployments[0].judged.is_none());
    assert_eq!(tale.run.deployments[0].state(), DeploymentState::Baking);
}
