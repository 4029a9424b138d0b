//! Which hooks are called on which way.

use super::*;

/// An environment that has every hook but `rollback_safe`, whose answer matters.
fn hooked(rollout: Rollout) -> Environment {
    let hooks = Hooks {
        prepare: true,
        before: true,
        before_wave: true,
        drain: true,
        undrain: true,
        after_wave: true,
        after: true,
        rollback_safe: false,
    };
    Environment { hooks, verify: true, ..environment(rollout) }
}

const WAY: [&str; 4] = ["prepare", "drain", "deploy", "undrain"];

/// Of the calls that were made, those of a deployment, or of one host of it.
fn of(made: &[String], place: &str) -> Vec<String> {
    made.iter().filter_map(|key| key.strip_prefix(place)).map(str::to_owned).collect()
}

#[test]
fn on_the_way_back_hosts_have_their_hooks_and_the_deployment_has_none() {
    let rollout = Rollout { on_failure: OnFailure::Rollback, ..Rollout::default() };
    let mut tale = Tale::planned_in(hooked(rollout), Purpose::Deploy, fleet(3, &[]));
    let made = tale.plays(|key| key.starts_with("e0#1/h1/deploy"));
    assert_eq!(tale.end().unwrap().0, RunState::RolledBack, "{made:#?}");
    // The one that failed comes first.
    let wanted: Vec<String> = ["h1", "h0"].iter().flat_map(|host| WAY.map(|hook| format!("{host}/{hook}"))).collect();
    assert_eq!(of(&made, "e0#2/"), wanted, "{made:#?}");
    // A way back by hand, and what converges, are as bare.
    for purpose in [Purpose::Rollback { to: None }, Purpose::Converge { hosts: Vec::new() }] {
        let mut tale = Tale::planned_in(hooked(Rollout::default()), purpose, fleet(1, &[]));
        let made = tale.plays(|_| false);
        assert_eq!(of(&made, "e0#1/"), WAY.map(|hook| format!("h0/{hook}")));
    }
}

#[test]
fn a_host_that_comes_late_is_prepared_before_its_deploy() {
    let waves = Waves::Each(Budget::Count(1));
    let mut tale = Tale::planned_in(hooked(Rollout { waves, ..Rollout::default() }), Purpose::Deploy, fleet(2, &[]));
    // Until the first of the two is being switched.
    while !tale.begins()[0].to_string().ends_with("h0/deploy") {
        let key = tale.begins().remove(0);
        tale.call(&key, false);
    }
    let why = BTreeMap::new();
    tale.append(Event::FleetSeen { deployment: 1, gone: Vec::new(), joined: vec![host(9)], wave: 1, why });
    let made = tale.plays(|_| false);
    assert_eq!(tale.end(), Some((RunState::Succeeded, "")));
    assert_eq!(of(&made, "e0#1/h9/"), WAY);
    assert!(!made.contains(&"e0#1/before".to_owned()), "that was once, and is over: {made:#?}");
}

#[test]
fn that_there_is_nothing_to_go_back_to_is_said_before_what_rollback_safe_says() {
    let mut tale = Tale::planned_in(hooked(Rollout::default()), Purpose::Deploy, fleet(1, &[]));
    let of = &mut tale.run.deployments[0];
    of.unsafe_because = Some("the schema changed".to_owned());
    assert_eq!(of.no_way_back().unwrap().code, "rollback_unsafe");
    of.phases.target = None;
    assert_eq!(of.no_way_back().unwrap().code, "no_target");
}

#[test]
fn a_host_that_is_quarantined_stays_drained() {
    let rollout = Rollout { max_failures: Budget::Count(1), ..Rollout::default() };
    let mut tale = Tale::planned_in(hooked(rollout), Purpose::Deploy, fleet(3, &[]));
    let made = tale.plays(|key| key.starts_with("e0#1/h1/deploy"));
    assert_eq!(tale.end(), Some((RunState::Succeeded, "")), "{made:#?}");
    assert_eq!(tale.run.deployments[0].host(&host(1).id).unwrap().state(true), HostState::Quarantined);
    let own: Vec<&String> = made.iter().filter(|key| key.contains("/h1/")).collect();
    let last = own.last().unwrap();
    assert!(last.ends_with("/deploy") && last.starts_with("e0#2/"), "{own:#?}");
    assert!(!own.iter().any(|key| key.ends_with("/undrain")), "{own:#?}");
}
