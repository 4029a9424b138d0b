//! The watch over hosts: after their deploy until there is a verdict, and while a wave bakes.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;

use super::{Context, Known, Since, plan::Roster};
use crate::{
    engine::signals,
    model::{
        cause::Cause,
        event::Event,
        health::{Fact, Incarnation, Sight, Verdict, Watch},
        host::{Host, Transport},
        ids::HostId,
        pipeline::Health,
        step::Place,
    },
    ports::link::{Link, LinkError},
    time::{Span, Stamp, within},
};

/// Looks at a host until there is a verdict.
pub(super) async fn watch(
    context: &Context,
    deployment: u32,
    host: &Host,
    health: &Health,
    since: &Since,
    known: Known,
) -> Event {
    let clock = &context.world.clock;
    let began = &since.began;
    let Known { deployed, mut processes } = known;
    let watch = match since.again {
        false => Watch::new(health, deployed),
        true => Watch::again(health, deployed, clock.now().since(began)),
    };
    let mut watch = watch.over(&processes);
    loop {
        let round = look(context, deployment, host, health, None).await;
        let elapsed = clock.now().since(began);
        let seen = round.as_deref().map_err(|cause| cause.message.clone());
        let verdict = watch.see(elapsed, seen);
        if watch.processes() != processes {
            processes = watch.processes();
            let (host, processes) = (host.id.clone(), processes.clone());
            context.facts(vec![Event::ProcessesSeen { deployment, host, processes }], false).await;
        }
        let unhealthy = match verdict {
            Verdict::Open => {
                clock.sleep(Duration::from_millis(health.interval_ms)).await;
                continue;
            }
            Verdict::Healthy => None,
            // That nobody got there says nothing of the release.
            Verdict::Unhealthy(cause) => Some(match round {
                Err(shut) => on_host(Cause { code: shut.code, ..cause }, host),
                Ok(_) => on_host(cause, host),
            }),
        };
        let evidence = watch.evidence().to_vec();
        return Event::HealthVerdict { deployment, host: host.id.clone(), unhealthy, evidence };
    }
}

fn on_host(cause: Cause, host: &Host) -> Cause {
    let message = format!("{} on {}", cause.message, host.name);
    Cause { message, ..cause }.with("host", host.id.as_str())
}

/// One round over every check: what each saw, or why none could look. A check may print what a step of this run has used. With `room` no
/// longer is waited for a session than that says.
async fn look(
    context: &Context,
    deployment: u32,
    host: &Host,
    health: &Health,
    room: Option<&Room>,
) -> Result<Vec<Sight>, Cause> {
    let limit = Duration::from_millis(health.timeout_ms);
    if let Transport::Signal(_) = &host.transport {
        return signals::send::well(&context.world, host, health, limit).await;
    }
    let link = match room {
        None => context.sessions.link(deployment, host).await,
        Some(room) => room.link(context, deployment, host).await,
    };
    let link = link.map_err(|error| {
        let message = format!("the host cannot be reached: {}", error.cause.message);
        context.sessions.redact_cause(&Cause { message, ..error.cause })
    })?;
    let mut sights = Vec::new();
    for check in &health.checks {
        let sight = context.world.probe.look(&*link, check, limit).await;
        let redactor = context.sessions.redactor();
        let fact = sight.fact.map(|fact| match fact {
            Fact::Version(reported) => Fact::Version(redactor.text(&reported)),
            fact @ (Fact::Process(_) | Fact::Hopeless) => fact,
        });
        sights.push(Sight { good: sight.good, seen: redactor.text(&sight.seen), fact });
    }
    Ok(sights)
}

/// How many hosts are looked at at the same moment while a wave bakes.
const WIDE: usize = 32;
/// So many bad looks in a row are no accident.
const IN_A_ROW: u32 = 3;
/// A host that nobody gets to for so long is lost.
const CUT: Duration = Duration::from_secs(120);
/// The longest wait between two rounds, and for room in one of them.
const ROUND: Duration = Duration::from_secs(10);

/// How long the looks of one round may wait for room, together.
struct Room {
    wait: Duration,
    since: Stamp,
}

impl Room {
    /// A link to `host`, without standing in line for a session for longer than this: others of the round are to be looked at too.
    async fn link(&self, context: &Context, deployment: u32, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        let clock = &context.world.clock;
        let left = self.wait.saturating_sub(clock.now().since(&self.since));
        let mut link = std::pin::pin!(context.sessions.link(deployment, host));
        match within(&**clock, left, &mut link).await {
            Some(link) => link,
            None if is_crowded(context) => {
                let message = format!("nobody looked: there was no room for a session within {}", Span(self.wait));
                Err(LinkError::new("session_limit", message))
            }
            // It stands in no line: the way to the host takes what it takes.
            None => link.await,
        }
    }
}

/// Whether anybody waits for room for a session.
fn is_crowded(context: &Context) -> bool {
    context.world.links.waiting().is_some_and(|waiting| *waiting.borrow() > 0)
}

/// A host that is watched while a wave bakes.
pub(in crate::engine) struct Guarded {
    host: Host,
    /// Its checks as they are for it.
    health: Health,
    watch: Watch,
    /// Bad looks since the last good one.
    bad: u32,
    /// Since when nobody gets there.
    cut: Option<Stamp>,
}

impl Guarded {
    pub(super) fn new(host: Host, health: Health, watch: Watch) -> Self {
        Guarded { host, health, watch, bad: 0, cut: None }
    }

    /// Whether it is well for certain.
    fn is_well(&self) -> bool {
        self.bad == 0 && self.cut.is_none()
    }
}

/// The hosts of a deployment that are watched while a wave bakes.
pub(in crate::engine) struct Watched {
    pub(super) deployment: u32,
    pub(super) guarded: Vec<Guarded>,
    pub(super) roster: Option<Roster>,
}

/// Watches hosts that were healthy until nobody wants to know any more; tells each that is not healthy any more, once. Time in which we did
/// not look, as there was no room for sessions, is told too: it is no part of the bake.
pub(super) async fn guard(context: &Context, mut watched: Watched, bake: Duration) {
    let deployment = watched.deployment;
    let Some(first) = watched.guarded.first() else { return std::future::pending().await };
    let between = Duration::from_millis(first.health.interval_ms);
    let usual = (bake / 10).clamp(between, ROUND.max(between));
    let clock = &context.world.clock;
    let (mut told, mut unwatched) = (clock.now(), Duration::ZERO);
    loop {
        let looked = round(context, &mut watched, ROUND.min(bake / 4), unwatched).await;
        let now = clock.now();
        if !looked {
            let span = now.since(&told);
            unwatched += span;
            let unwatched_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            context.facts(vec![Event::Observed { deployment, unwatched_ms }], false).await;
        }
        told = now;
        // One that seems ill is looked at again soon.
        let soon = watched.guarded.iter().any(|guarded| guarded.bad > 0);
        clock.sleep(if soon { between } else { usual }).await;
    }
}

/// Looks at hosts that were healthy until each is known to be so still, or not to be any more, which is told.
pub(super) async fn look_over(context: &Context, mut watched: Watched) {
    let clock = &context.world.clock;
    let between = watched.guarded.first().map_or(0, |first| first.health.interval_ms);
    let began = clock.now();
    loop {
        let unlooked = clock.now().since(&began);
        round(context, &mut watched, ROUND, unlooked).await;
        watched.guarded.retain(|guarded| !guarded.is_well());
        if watched.guarded.is_empty() {
            return context.last(Event::LookedOver { deployment: watched.deployment }).await;
        }
        clock.sleep(Duration::from_millis(between)).await;
    }
}

/// One look at each host, which does not wait longer than `wait` for room; whether all were looked at. Those of which something bad is
/// certain are told and not looked at again, and what is new of units and containers is told. One that was looked at by nobody, as there was
/// no room, is lost after so long all the same: `unwatched` says how long that has been so.
async fn round(context: &Context, watched: &mut Watched, wait: Duration, unwatched: Duration) -> bool {
    let clock = &context.world.clock;
    let deployment = watched.deployment;
    let guarded = std::mem::take(&mut watched.guarded);
    let most = guarded.iter().filter_map(|guarded| guarded.host.ssh.max_sessions).min();
    let most = most.map_or(WIDE, |most| WIDE.min(most.max(1) as usize));
    let wide = guarded.len() > most;
    let room = &Room { wait, since: clock.now() };
    let looks = guarded.into_iter().map(|mut guarded| async move {
        let round = look(context, deployment, &guarded.host, &guarded.health, Some(room)).await;
        if wide || is_crowded(context) {
            // A wide fleet's connections are not kept for it, nor any that others wait for.
            context.sessions.forget(&guarded.host.id).await;
        }
        if let Err(cause) = round {
            // A cut says nothing of the release: it is waited for, and then it is the host that is lost.
            let since = guarded.cut.get_or_insert_with(|| clock.now());
            let is_ours = cause.code == "session_limit";
            let lost = clock.now().since(since) >= CUT || (is_ours && unwatched >= CUT);
            return Looked { guarded, looked: !is_ours, bad: lost.then_some((cause.message, cause.code)), news: None };
        }
        guarded.cut = None;
        let before = guarded.watch.processes();
        let bad = guarded.watch.round(round.as_deref().map_err(|cause| cause.message.clone()));
        guarded.bad = if bad.is_some() { guarded.bad + 1 } else { 0 };
        let bad = bad.filter(|(_, hopeless)| *hopeless || guarded.bad >= IN_A_ROW);
        let news = Some(guarded.watch.processes()).filter(|now| *now != before);
        Looked { guarded, looked: true, bad: bad.map(|(why, _)| (why, "unhealthy".to_owned())), news }
    });
    let seen: Vec<_> = futures_util::stream::iter(looks).buffer_unordered(most).collect().await;
    let looked = seen.iter().all(|seen| seen.looked);
    // Who is lost is asked after, which may take: what is known of the others is told before.
    let (lost, others): (Vec<_>, Vec<_>) = seen.into_iter().partition(Looked::is_lost);
    for seen in [others, lost] {
        tell(context, watched, seen).await;
    }
    looked
}

/// What one look at a host has shown.
struct Looked {
    guarded: Guarded,
    /// There was room for it.
    looked: bool,
    /// What is wrong for certain, and its code.
    bad: Option<(String, String)>,
    /// Its units and containers, where they are others than before.
    news: Option<Vec<(usize, Incarnation)>>,
}

impl Looked {
    fn is_lost(&self) -> bool {
        self.bad.as_ref().is_some_and(|(_, code)| code != "unhealthy")
    }
}

/// Tells what looks have shown; who is well, or not ill for certain, is watched on.
async fn tell(context: &Context, watched: &mut Watched, seen: Vec<Looked>) {
    let deployment = watched.deployment;
    let bad = seen.iter().filter(|seen| seen.bad.is_some());
    let bad = bad.map(|seen| (seen.guarded.host.id.clone(), seen.is_lost())).collect();
    let mut facts = Vec::new();
    let gone = gone(context, watched.roster.as_mut(), bad, &mut facts).await;
    for Looked { guarded, bad, news, .. } in seen {
        let host = guarded.host.id.clone();
        if gone.contains(&host) {
            continue;
        }
        facts.extend(news.map(|processes| Event::ProcessesSeen { deployment, host: host.clone(), processes }));
        match bad {
            Some((why, code)) => {
                let message = format!("it was healthy, and is not any more: {why}");
                let unhealthy = Some(on_host(Cause::new(&code, message), &guarded.host));
                let evidence = guarded.watch.evidence().to_vec();
                facts.push(Event::HealthVerdict { deployment, host, unhealthy, evidence });
            }
            None => watched.guarded.push(guarded),
        }
    }
    if !facts.is_empty() {
        context.facts(facts, false).await;
    }
}

/// Which of the hosts that something is wrong with are no more; with each, whether it is lost. The fact that says so goes to `facts`.
async fn gone(
    context: &Context,
    roster: Option<&mut Roster>,
    bad: Vec<(HostId, bool)>,
    facts: &mut Vec<Event>,
) -> Vec<HostId> {
    let Some(roster) = roster.filter(|_| !bad.is_empty()) else { return Vec::new() };
    let of = |lost| bad.iter().filter(|(_, is)| *is == lost).map(|(id, _)| id.clone()).collect::<Vec<_>>();
    let Some((gone, seen)) = roster.gone(&context.world, &of(true), &of(false)).await else { return Vec::new() };
    facts.push(seen);
    gone
}

/// A verdict or the end of a call, and before a bad one that its host is no more, where that is why.
pub(super) async fn unless_gone(context: &Context, fact: Event, roster: Option<Box<Roster>>) -> Vec<Event> {
    let mut facts = Vec::new();
    let bad = match &fact {
        Event::HealthVerdict { host, unhealthy: Some(cause), .. } => Some((host.clone(), cause.is_cut_off())),
        Event::Return { key, result, .. } => match (key.place(), result.cause()) {
            (Some(Place::Host { host, .. }), Some(cause)) => Some((host, cause.is_cut_off())),
            _ => None,
        },
        _ => None,
    };
    if let Some(bad) = bad {
        gone(context, roster.map(|roster| *roster).as_mut(), vec![bad], &mut facts).await;
    }
    facts.push(fact);
    facts
}
