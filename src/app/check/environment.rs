//! An environment as `phased check` shows it: what its file comes to, defaults included.

use std::{fmt::Write as _, time::Duration};

use crate::{
    model::{
        pipeline::{Environment, Health, HostSource, When},
        plan::{self, Fleet, Phases},
        rollout::{Budget, Canary, OnFailure, OnInconclusive, Rollout, Waves},
    },
    ports::signals::Signer as _,
    signal::Ed25519,
    time::Span,
};

fn span(ms: u64) -> Span {
    Span(Duration::from_millis(ms))
}

/// Its block, a label and a text a line.
pub(super) fn lines(environment: &Environment) -> Vec<(&'static str, String)> {
    let hosts: Vec<String> = environment
        .hosts
        .iter()
        .map(|source| match source {
            HostSource::Static(hosts) => format!("{} listed", hosts.len()),
            HostSource::Plugin { name, .. } => format!("discovery {name}"),
        })
        .collect();
    let mut lines = vec![("hosts", hosts.join(" and "))];
    lines.extend(environment.signal.as_ref().map(|signal| {
        let receivers = signal.receivers.as_ref().map_or_else(String::new, |file| known_by(file, environment));
        ("reached", format!("by signals to daemons of their own, signed by the secret {}{receivers}", signal.key.name))
    }));
    lines.extend(rollout(environment));
    lines.push(("health", environment.health.as_ref().map_or("not checked, on purpose".to_owned(), health)));
    lines.push(("calls", environment.functions().join(", ")));
    lines.push(("failure", failure(environment)));
    lines.extend(environment.alarms.iter().map(|alarm| {
        let sees = alarm.analysis.sees(Duration::from_millis(environment.rollout.bake_time_ms));
        let text =
            format!("{}: {}, tells {}, action {}; {sees}", alarm.name, alarm.cause, alarm.alert, alarm.action.as_str());
        ("alarm", text)
    }));
    lines.extend(doors(environment));
    lines
}

/// How many of the hosts that are listed have their key in the file of receivers, and what is wrong with the first that has none.
fn known_by(file: &str, environment: &Environment) -> String {
    let listed = environment.hosts.iter().filter_map(|source| match source {
        HostSource::Static(hosts) => Some(hosts),
        HostSource::Plugin { .. } => None,
    });
    let without: Vec<_> = listed.flatten().filter(|host| host.receiver_key.is_none()).collect();
    let keys = without.iter().map(|host| Ed25519.receiver(file, &host.id));
    let wrong: Vec<_> = keys.filter_map(Result::err).collect();
    match wrong.first() {
        None => format!(", known by {file}"),
        Some(first) => {
            format!(", known by {file}, but {} of {} are not: {}", wrong.len(), without.len(), first.message)
        }
    }
}

/// The hosts that the file itself lists, where it lists all of them, and the plan over them.
fn listed(environment: &Environment) -> Option<(usize, Result<Phases, String>)> {
    let mut hosts = Vec::new();
    for source in &environment.hosts {
        let HostSource::Static(listed) = source else { return None };
        hosts.extend(listed.iter().cloned());
    }
    let count = hosts.len();
    let planned = plan::phases(&environment.rollout, Fleet { hosts, ..Fleet::default() });
    Some((count, planned.map(|(_, phases)| phases).map_err(|cause| cause.message)))
}

/// Waves and budgets: as numbers where the hosts are known, else as they are written.
fn rollout(environment: &Environment) -> Vec<(&'static str, String)> {
    let rollout = &environment.rollout;
    let listed = listed(environment);
    let count = listed.as_ref().map(|(count, _)| *count);
    let mut waves = match &listed {
        Some((_, Ok(phases))) => sizes(phases),
        Some((_, Err(why))) => format!("NONE: {why}"),
        None => written(rollout),
    };
    let _infallible = write!(waves, "; {} at a time", rollout.max_parallel);
    if rollout.stagger_ms > 0 {
        let _infallible = write!(waves, ", {} apart", span(rollout.stagger_ms));
    }
    if rollout.zones {
        waves.push_str(", never two zones at once");
    }
    match rollout.bake_time_ms {
        0 => waves.push_str("; not watched after a wave"),
        ms => {
            let _infallible = write!(waves, "; watched for {} after each", span(ms));
        }
    }
    let per_wave = rollout.max_failures_per_wave.map(|most| format!(" ({} in one wave)", budget(most, count)));
    let floor = match (rollout.min_healthy, &listed) {
        (_, Some((count, Ok(phases)))) => format!("{} of {count}", phases.min_healthy),
        (Some(floor), _) => budget(floor, None),
        (None, _) => format!("those healthy before, less {} and what may fail,", rollout.max_parallel),
    };
    let stops = format!(
        "when more than {}{} failed or more than {} are unreachable, or before fewer than {floor} would serve",
        budget(rollout.max_failures, count),
        per_wave.unwrap_or_default(),
        budget(rollout.max_unreachable, count)
    );
    vec![("waves", waves), ("stops", stops)]
}

fn sizes(phases: &Phases) -> String {
    let one = |(n, size): (usize, &u32)| match n == 0 && phases.canary {
        true => format!("canary {size}"),
        false => size.to_string(),
    };
    phases.waves.iter().enumerate().map(one).collect::<Vec<_>>().join(", then ")
}

/// Before anybody knows how many hosts there are.
fn written(rollout: &Rollout) -> String {
    let canary = match &rollout.canary {
        Canary::Count(Budget::Count(0)) => None,
        Canary::Count(size) => Some(format!("canary {}", budget(*size, None))),
        Canary::Labels(labels) => {
            let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            Some(format!("canary those with {}", labels.join(", ")))
        }
    };
    let rest = match &rollout.waves {
        Waves::Targets(targets) => {
            let targets: Vec<String> = targets.iter().map(|target| budget(*target, None)).collect();
            format!("until {} have it", targets.join(", then "))
        }
        Waves::Each(size) => format!("{} in each wave", budget(*size, None)),
    };
    canary.into_iter().chain([rest]).collect::<Vec<_>>().join(", then ")
}

/// `10% of 25 = 2`.
fn budget(budget: Budget, hosts: Option<usize>) -> String {
    match (budget, hosts) {
        (Budget::Count(n), _) => n.to_string(),
        (Budget::Percent(p), None) => format!("{p}%"),
        (Budget::Percent(p), Some(hosts)) => format!("{p}% of {hosts} = {}", budget.of(hosts)),
    }
}

fn health(health: &Health) -> String {
    let checks: Vec<String> = health.checks.iter().map(|check| check.name()).collect();
    format!(
        "{}: good for {} within {}",
        checks.join(", "),
        span(health.min_healthy_time_ms),
        span(health.healthy_deadline_ms)
    )
}

/// What follows when it fails after a host was touched.
fn failure(environment: &Environment) -> String {
    let mut text = match environment.rollout.on_failure {
        OnFailure::Rollback => "back to the known-good release".to_owned(),
        OnFailure::Halt => "it halts as it is".to_owned(),
        OnFailure::Pause => format!("it waits for a person, up to {}", span(environment.rollout.pause_timeout_ms)),
    };
    if environment.rollout.on_failure == OnFailure::Rollback && environment.hooks.rollback_safe {
        text.push_str(", if rollback_safe does not forbid it");
    }
    if !environment.alarms.is_empty() {
        text.push_str(match environment.rollout.on_inconclusive {
            OnInconclusive::Rollback => "; without data the same as bad",
            OnInconclusive::Halt => "; without data it halts",
            OnInconclusive::Promote => "; without data it goes on",
        });
    }
    text
}

/// Who is let in when, where that is not everybody at any time.
fn doors(environment: &Environment) -> Vec<(&'static str, String)> {
    let mut doors = vec![match &environment.when {
        When::Push => ("entered", "by every push that gets so far".to_owned()),
        When::Manual => ("entered", "only when somebody says so".to_owned()),
        When::Signal => ("entered", "by signals of another daemon, and when somebody says so".to_owned()),
        When::Tag(tags) => ("entered", format!("by runs of tags {}", tags.join(", "))),
    }];
    doors.extend(
        environment.group.as_ref().map(|group| ("group", format!("{group}: one of its environments at a time"))),
    );
    doors.extend(environment.freeze.iter().map(|window| {
        let why = window.reason().map(|why| format!(" ({why})")).unwrap_or_default();
        ("frozen", format!("{window}{why}"))
    }));
    doors
}
