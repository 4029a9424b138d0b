//! What a start would do: the plan that people see beforehand. It deploys nothing: the repository, the sources of hosts and the probes of alarms
//! are asked, and hosts what they report where nothing is known of them.

mod rollback;

use std::time::Duration;

use futures_util::future::join_all;

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
    time::{Span, within},
};

/// For the forge: a plan without its head is better than none.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a press of the button would deploy.
struct Next {
    release: Release,
    /// How many environments, from the first, it gets to by itself.
    reach: usize,
    /// Why it would not be deployed.
    refused: Option<Cause>,
}

/// The plan of the branch's head, for `only` or all environments.
pub(super) async fn plan(conductor: &Conductor, loaded: &Loaded, only: Option<&EnvironmentName>) -> Plan {
    let silent = || Cause::new("timeout", format!("the repository has not answered within {}", Span(PATIENCE)));
    let next = within(&*conductor.inner.world.clock, PATIENCE, next(conductor, loaded)).await;
    let (next, cause) = match next.unwrap_or_else(|| Err(silent())) {
        Ok(next) => (Some((next.release, next.reach)), next.refused),
        Err(cause) => (None, Some(cause)),
    };
    let asked = (0usize..).zip(&loaded.pipeline.environments);
    let asked =
        asked.filter(|(_, environment)| only.is_none_or(|only| environment.name == *only)).map(|(at, environment)| {
            let ships = next.as_ref().map(|(release, _)| release);
            let gets = next.as_ref().filter(|(_, reach)| at < *reach).map(|(release, _)| &release.id);
            of(conductor, loaded, environment, ships, gets)
        });
    let environments = join_all(asked).await;
    Plan {
        project: loaded.name.to_string(),
        next: next.as_ref().map(|(release, _)| release.into()),
        cause: cause.as_ref().map(CauseView::from),
        stages: loaded.pipeline.stages.iter().map(|stage| stage.name.to_string()).collect(),
        environments,
    }
}

/// # Errors
/// The forge's: there is no head, or it cannot be asked.
async fn next(conductor: &Conductor, loaded: &Loaded) -> Result<Next, Cause> {
    let world = &conductor.inner.world;
    let found = world.forge.resolve(&loaded.name, &loaded.pipeline.source, &Wanted::Head).await?;
    let commit = found.commit;
    let reach = doors::reach(&loaded.pipeline, None, found.tag.as_deref());
    let refused = match ledger::bad(&*world.control, &loaded.name, &commit) {
        Some((release, bad)) => {
            let message = format!("{release} was found bad by run {}: {}", bad.run, bad.cause.message);
            Some(Cause::new("bad_release", message))
        }
        None => conductor.already_live(loaded, reach, &commit.sha).then(|| {
            let message = format!("it is live there already: phased start {} --redeploy deploys it again", loaded.name);
            Cause::new("already_live", message)
        }),
    };
    let (id, artifacts, _) = actions::build(world, &loaded.name, &loaded.code, &commit.sha, false);
    let branch = Some(loaded.pipeline.source.branch.clone());
    Ok(Next { release: Release { id, commit, branch, tag: found.tag, artifacts }, reach, refused })
}

async fn of(
    conductor: &Conductor,
    loaded: &Loaded,
    environment: &Environment,
    ships: Option<&Release>,
    next: Option<&ReleaseId>,
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
    let firing = match &cause {
        None => {
            let code = (&loaded.name, &loaded.code);
            alarms::firing(world, code, environment, &hosts, &world.clock.now()).await
        }
        // Nobody is there to measure.
        Some(_) => None,
    };
    let target = phases.target.as_ref().map(|target| &target.release.id);
    let live = ledger::live(&*world.control, &loaded.name, &environment.name)
        .map(|live| live.release)
        .or_else(|| phases.target.as_ref().filter(|_| phases.adopted.is_some()).map(|target| target.release.clone()));
    let rollback_answer = match ships.filter(|_| environment.hooks.rollback_safe) {
        Some(ships) => Some(rollback::ask(world, loaded, environment, ships, live.as_ref()).await),
        None => None,
    };
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
        current: live.as_ref().map(Into::into),
        adopted: phases.adopted.is_some(),
        waves: waves.map(|(n, hosts)| PlannedWave { n, canary: n == 1 && phases.canary, hosts: *hosts }).collect(),
        hosts: hosts
            .into_iter()
            .zip(wave_of)
            .map(|(h, wave)| PlannedHost {
                wave,
                current: phases.current.get(&h.id).map(ToString::to_string),
                next: next.map(ToString::to_string),
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
        rollback_answer,
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
        max_parallel: rollout.max_parallel,
        zones: rollout.zones,
        max_failures: budget(rollout.max_failures),
        max_failures_per_wave: rollout.max_failures_per_wave.map(budget),
        max_unreachable: budget(rollout.max_unreachable),
        lease: conductor.held(&loaded.name, environment),
        when: environment.when.to_string(),
        calls: environment.functions().into_iter().map(str::to_owned).collect(),
    }
}
