//! Alarms of a deployment: measured while it goes on, told when they fire, and asked before it begins.

use std::time::Duration;

use super::Context;
use crate::{
    engine::{
        alarms::{self, Groups, Place},
        world::World,
    },
    model::{
        analysis::{self, Assessment},
        cause::Cause,
        deployment::Deployment,
        event::Event,
        host::Host,
        pipeline::Environment,
        run::{Run, Waiting},
    },
};

/// An alarm of a deployment of a run's own release, by its place in the list, from 1.
fn place<'a>(run: &'a Run, of: &'a Deployment, environment: &'a Environment, alarm: u32) -> Option<Place<'a>> {
    let number = alarm as usize;
    let alarm = environment.alarms.get(number.checked_sub(1)?)?;
    let (project, code) = (&run.header.project, of.code(run));
    Some(Place { project, code, environment: &environment.name, number, alarm })
}

/// Measures once.
pub(super) async fn measure(context: &Context, run: &Run, deployment: u32, alarm: u32) -> Option<Event> {
    let of = run.deployment(deployment)?;
    let place = place(run, of, of.spec(run)?, alarm)?;
    let new: Vec<&Host> = of.hosts.iter().filter(|h| h.begun.is_some() && h.back.is_none()).map(|h| &h.host).collect();
    let old: Vec<&Host> = of.hosts.iter().filter(|h| h.begun.is_none() && !h.gone).map(|h| &h.host).collect();
    let baseline: Vec<Host> = analysis::baseline(&new, &old).into_iter().cloned().collect();
    let canary: Vec<Host> = new.into_iter().cloned().collect();
    let groups = Groups { canary: &canary, baseline: &baseline };
    let measurement = place.measure(&context.world, groups, &of.created_at).await;
    Some(Event::Measured { deployment, alarm, measurement })
}

/// Tells people of an alarm that has fired.
pub(in crate::engine) async fn tell_of_alarm(
    world: &World,
    run: &Run,
    deployment: u32,
    alarm: u32,
    found: &Assessment,
) {
    let Some(of) = run.deployment(deployment) else { return };
    let Some(place) = of.spec(run).and_then(|environment| place(run, of, environment, alarm)) else { return };
    if let Err(error) = place.tell(world, run, deployment, found).await {
        tracing::error!(project = %run.header.project, run = %run.header.run, alarm, %error, "people are not told that an alarm fired");
    }
}

/// Waits while an alarm of the environment is firing already: what a rollout did could not be told from it. Says which, each time that
/// changes; whether it had to wait.
///
/// # Errors
/// `alarm`: it still fires after `pause_timeout`.
pub(super) async fn quiet(
    context: &Context,
    run: &Run,
    of: &Deployment,
    environment: &Environment,
    hosts: &[Host],
) -> Result<bool, Cause> {
    let clock = &context.world.clock;
    let began = clock.now();
    let limit = Duration::from_millis(environment.rollout.pause_timeout_ms);
    let code = (&run.header.project, of.code(run));
    let mut told = None;
    loop {
        let Some((name, value, again)) = alarms::firing(&context.world, code, environment, hosts, &of.created_at).await
        else {
            return Ok(told.is_some());
        };
        let waited = clock.now().since(&began);
        if waited >= limit {
            let message = format!(
                "the alarm {name:?} has been firing for {} before anything was deployed",
                crate::time::Span(limit)
            );
            return Err(Cause::new("alarm", message).with("alarm", name));
        }
        if told.as_ref() != Some(&name) {
            let reason = Some(format!("the alarm fires already: it measures {}", analysis::number(value)));
            let until_ms = i64::try_from(limit.saturating_sub(waited).as_millis()).ok();
            let until_ms = until_ms.map(|left| clock.now().wall_ms.saturating_add(left));
            let waiting = Waiting { code: "alarm".to_owned(), holder: name.clone(), until_ms, reason };
            context.facts(vec![Event::Blocked { deployment: of.n, waiting: Some(waiting) }], false).await;
            told = Some(name);
        }
        clock.sleep(again).await;
    }
}
