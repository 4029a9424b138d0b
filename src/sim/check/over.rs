//! What must hold when all is over: people were told, and hosts have what is live.

use std::{collections::BTreeMap, time::Duration};

use super::{Letter, Place, State};
use crate::model::{
    deployment::{Deployment, DeploymentState, HostState},
    ids::{HostId, ReleaseId},
    pipeline::HostSource,
    run::{RunState, Trigger},
};

/// What must hold when all is over.
pub(in crate::sim) fn over(state: &mut State, now: Duration) {
    let ended: Vec<(String, RunState)> = state
        .runs
        .values()
        .filter_map(|followed| Some((followed.run.header.run.to_string(), followed.run.end.as_ref()?.0)))
        .collect();
    for (run, end) in ended {
        let told: Vec<&Letter> = state
            .letters
            .iter()
            .filter(|letter| letter.run == run && letter.function.starts_with("notify/bad") && letter.event != "alarm")
            .collect();
        let count = told.len();
        // A crash between a delivery and its record delivers again.
        let most = 1 + state.deaths as usize;
        let recovered = told.iter().all(|letter| letter.event == "recovered");
        let wrong = match end {
            _ if end.is_bad() && count == 0 => Some("and nobody was told".to_owned()),
            _ if end.is_bad() && count > most => Some(format!("and people were told {count} times")),
            _ if !end.is_bad() && count > 0 && !(recovered && end == RunState::Succeeded) => {
                Some(format!("and people were told bad news: {}", told[0].title))
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            state.breaks(now, &format!("run {run} ended {end:?}, {wrong}"));
        }
    }
    let scenario = &state.scenario;
    let all = scenario.projects.iter().enumerate();
    let mut places = all.flat_map(|(at, of)| (0..of.fleets.len()).map(move |environment| (at, environment)));
    if let Some(wrong) = places.find_map(|place| not_converged(state, place)).or_else(|| tried_for_ever(state)) {
        state.breaks(now, &wrong);
    }
}

/// A host that failed is not brought to the same release again by itself.
fn tried_for_ever(state: &State) -> Option<String> {
    let mut tried: BTreeMap<(HostId, ReleaseId), u32> = BTreeMap::new();
    let own = state.runs.values().map(|followed| &followed.run);
    for run in own.filter(|run| run.header.request.trigger == Trigger::Converge) {
        for of in &run.deployments {
            let Some(release) = of.release(run) else { continue };
            for host in of.hosts.iter().filter(|host| host.verdict() == HostState::Failed) {
                *tried.entry((host.host.id.clone(), release.id.clone())).or_default() += 1;
            }
        }
    }
    // Once more where a deployment came between.
    let most = state.scenario.projects.iter().map(|project| project.commits.len()).max();
    let most = most.and_then(|most| u32::try_from(most).ok()).unwrap_or(1);
    let ((host, release), count) = tried.into_iter().find(|(_, count)| *count > most)?;
    Some(format!("{host} failed to be brought to {release} {count} times, and nothing gave up"))
}

/// Where the last deployment went well, every host that can be reached and has not failed serves what is live, and is in service.
fn not_converged(state: &State, place: Place) -> Option<String> {
    let (project, environment) = (&state.scenario.projects.get(place.0)?.name, state.scenario.environment(place)?);
    let runs = || state.runs.values().map(|followed| &followed.run).filter(|run| run.header.project == *project);
    let deployments = || runs().flat_map(|run| run.deployments.iter().map(move |of| (run, of)));
    let discovered = environment.hosts.iter().any(|source| matches!(source, HostSource::Plugin { .. }));
    let here = |of: &Deployment| of.environment == environment.name;
    let own = || deployments().filter(|(_, of)| here(of) && of.rollback_of.is_none() && of.budgets.is_some());
    let (run, last) = own().max_by_key(|(_, of)| of.created_at.wall_ms)?;
    let (DeploymentState::Succeeded, ..) = last.end.as_ref()? else { return None };
    let release = last.release(run)?;
    // What was found bad since, elsewhere, is put on no host by itself.
    if state.verdicts.get(project).is_some_and(|known| known.bad.contains_key(&release.commit.tree)) {
        return None;
    }
    let live = release.id.to_string();
    for host in state.hosts_of(place) {
        let id = host.id.as_str();
        // A list in a file knows of no newcomers.
        let listed = discovered || own().any(|(_, of)| of.host(&host.id).is_some());
        let Some(machine) = state.machines.get(id).filter(|_| listed && state.is_well(id)) else { continue };
        // The last that is known of it.
        let known = own().filter_map(|(_, of)| Some((of.created_at.wall_ms, of.host(&host.id)?)));
        let was = known.max_by_key(|(at, _)| *at).map(|(_, host)| host.state(true));
        if matches!(was, Some(HostState::Healthy | HostState::Unreachable) | None) {
            if machine.serves.as_ref() != Some(&live) && !state.disturbed.contains(id) {
                return Some(format!(
                    "{live} is live, and {id} serves {:?} though nothing is wrong with it",
                    machine.serves
                ));
            }
            let drains = last.spec(run).is_some_and(|spec| spec.hooks.drain && spec.hooks.undrain);
            if drains && machine.drained && was == Some(HostState::Healthy) {
                return Some(format!("{id} is healthy and was left out of service"));
            }
        }
    }
    None
}
