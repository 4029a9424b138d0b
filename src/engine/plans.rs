//! What a start would do: the plan that people see beforehand. Nothing is changed by it, and no host is asked but for what it reports where
//! nothing is known of it.

use std::time::Duration;

use super::{
    actions, adoption, alarms,
    conductor::Conductor,
    hosts::{self, Need},
    ledger,
    view::{CauseView, EnvironmentPlan, Plan, PlannedHost, PlannedWave},
};
use crate::{
    model::{
        analysis,
        cause::Cause,
        doors,
        event::{Purpose, Wanted},
        ids::{EnvironmentName, ReleaseId},
        pipeline::Environment,
        plan::{self, Phases},
        release::Release,
        rollout::Budget,
    },
    ports::program::Loaded,
    time::Span,
};

/// The plan of the branch's head, for `only` or all environments.
pub(super) async fn plan(conductor: &Conductor, loaded: &Loaded, only: Option<&EnvironmentName>) -> Plan {
    let next = next(conductor, loaded).await;
    let (next, cause) = match next {
        Ok((release, cause)) => (Some(release), cause),
        Err(cause) => (None, Some(cause)),
    };
    let mut environments = Vec::new();
    for environment in loaded.pipeline.environments.iter().filter(|e| only.is_none_or(|only| e.name == *only)) {
        environments.push(of(conductor, loaded, environment, next.as_ref()).await);
    }
    Plan {
        project: loaded.name.to_string(),
        next: next.as_ref().map(Into::into),
        cause: cause.as_ref().map(CauseView::from),
        stages: loaded.pipeline.stages.iter().map(|stage| stage.name.to_string()).collect(),
        environments,
    }
}

/// What the branch's head is as a release, and why it would not be deployed.
///
/// # Errors
/// The forge's: there is no head, or it cannot be asked.
async fn next(conductor: &Conductor, loaded: &Loaded) -> Result<(Release, Option<Cause>), Cause> {
    let world = &conductor.inner.world;
    let found = world.forge.resolve(&loaded.name, &loaded.pipeline.source, &Wanted::Head).await?;
    let commit = found.commit;
    let bad = ledger::bad(&*world.control, &loaded.name, &commit).map(|(release, bad)| {
        let message = format!("{release} was found bad by run {}: {}", bad.run, bad.cause.message);
        Cause::new("bad_release", message)
    });
    // The newest build of it, if there is one: a test that is not done again makes no further one.
    let built = ledger::builds(&*world.control, &loaded.name, &commit.sha).pop().map(|(id, _)| id);
    let id = built.unwrap_or_else(|| ReleaseId::first_build(&commit.sha));
    let branch = Some(loaded.pipeline.source.branch.clone());
    Ok((Release { id, commit, branch, tag: found.tag, artifacts: Vec::new() }, bad))
}

async fn of(
    conductor: &Conductor,
    loaded: &Loaded,
    environment: &Environment,
    next: Option<&Release>,
) -> EnvironmentPlan {
    let world = &conductor.inner.world;
    let found = hosts::of(world, &loaded.name, &loaded.code, environment, Need::New).await;
    let asked =
        actions::Asked { project: &loaded.name, environment, ships: None, target: None, purpose: &Purpose::Deploy };
    let asking = adoption::Asking::now(world, loaded, environment);
    // While something is being deployed they would report what nobody has found to be good yet.
    let quiet = doors::leases(&loaded.name, environment).iter().all(|lease| world.leases.holder(lease).is_none());
    let adopted = match &found {
        Ok(hosts) if quiet => adoption::first(world, &asking, hosts, None).await,
        Ok(_) | Err(_) => None,
    };
    let found = found.and_then(|hosts| actions::phases(world, &asked, hosts, adopted));
    let (hosts, phases, cause) = match found {
        Ok((hosts, phases)) => (hosts, phases, None),
        Err(cause) => (Vec::new(), Phases::default(), Some(CauseView::from(&cause))),
    };
    let count = hosts.len();
    let code = (&loaded.name, &loaded.code);
    let firing = alarms::firing(world, code, environment, &hosts, &world.clock.now()).await;
    let target = phases.target.as_ref().map(|target| &target.release.id);
    let waves = (1u32..).zip(&phases.waves);
    let wave_of: Vec<u32> = waves.clone().flat_map(|(n, size)| (0..*size).map(move |_| n)).collect();
    let rollout = &environment.rollout;
    let time = |ms: u64| Span(Duration::from_millis(ms)).to_string();
    let budget = |budget: Budget| match budget {
        Budget::Count(n) => n.to_string(),
        Budget::Percent(p) => format!("{p}% of {count} hosts = {}", budget.of(count)),
    };
    EnvironmentPlan {
        environment: environment.name.to_string(),
        current: ledger::live(&*world.control, &loaded.name, &environment.name)
            .map(|live| live.release)
            .or_else(|| phases.target.as_ref().filter(|_| phases.adopted.is_some()).map(|t| t.release.clone()))
            .map(|release| (&release).into()),
        adopted: phases.adopted.is_some(),
        waves: waves.map(|(n, hosts)| PlannedWave { n, canary: n == 1 && phases.canary, hosts: *hosts }).collect(),
        hosts: hosts
            .into_iter()
            .zip(wave_of)
            .map(|(h, wave)| PlannedHost {
                wave,
                current: phases.current.get(&h.id).map(ToString::to_string),
                next: next.map(|next| next.id.to_string()),
                ill: phases.ill.get(&h.id).cloned(),
                id: h.id.to_string(),
                name: h.name,
                address: h.address,
                zone: h.zone,
            })
            .collect(),
        cause,
        min_healthy: match rollout.min_healthy {
            Some(Budget::Percent(p)) => format!("{p}% of {count} hosts = {}", phases.min_healthy),
            Some(Budget::Count(n)) => n.to_string(),
            None => {
                let missing = plan::missing(rollout, count).into_iter().filter(|(_, hosts)| *hosts > 0);
                let less: String = missing.map(|(key, hosts)| format!(" less {key} {hosts}")).collect();
                format!("{} healthy now{less} = {}", count - phases.ill.len(), phases.min_healthy)
            }
        },
        bake_time: time(rollout.bake_time_ms),
        rollback: phases.target.as_ref().map(|target| (&target.release).into()),
        rollback_on: target.map(|target| phases.current.values().filter(|current| *current == target).count() as u32),
        no_rollback: phases.no_target.as_ref().map(CauseView::from),
        rollback_safe: environment.hooks.rollback_safe,
        on_failure: rollout.on_failure,
        expected: phases.expected_ms.map(time),
        alarms: environment
            .alarms
            .iter()
            .map(|alarm| {
                let sees = alarm.analysis.sees(Duration::from_millis(rollout.bake_time_ms));
                format!("{}: {sees}", alarm.name)
            })
            .collect(),
        firing: firing.map(|(name, value, _)| format!("{name}: it measures {}", analysis::number(value))),
        skipped: hosts::show::skipped(world, &loaded.name, environment).await,
        freeze: conductor.frozen(&loaded.name, environment),
        max_parallel: environment.rollout.max_parallel,
        max_failures: budget(environment.rollout.max_failures),
        max_unreachable: budget(environment.rollout.max_unreachable),
        lease: conductor.held(&loaded.name, environment),
    }
}
