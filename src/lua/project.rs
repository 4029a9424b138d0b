//! From the validated table of `phased.project` to the pipeline that the engine knows, and from paths to its functions.

mod alarms;

use std::collections::BTreeMap;

use mlua::{Function, Lua, Table, Value};
use serde::Deserialize;
use serde_json::Value as Json;

use super::{
    check::{self, Finding, Functions, On, Part},
    definitions::{self, Bound},
    registry::registry,
    shape::{Kind, Shape, join},
};
use crate::{
    model::{
        freeze::{self, Window, Written},
        health::full_unit,
        host::{Host, Presence, SecretRef, Signalling, Ssh, Transport},
        host_key::HostKeys,
        ids::{Digest, EnvironmentName, HostId, StageName},
        jump::Jump,
        pipeline::{
            Check, Environment, Health, Hooks, HostSource, Notify, Pipeline, Queue, Source, SourceLimits, Stage,
            Version, VersionFrom, When,
        },
        rollout::{Budget, Canary, OnFailure, OnInconclusive, Rollout, Waves},
        signal::PublicKey,
    },
    time::Span,
};

/// The limit of a call whose `timeout` is not given.
const CALL_LIMIT: Span = Span::minutes(60);

/// What is wrong with a project beyond the shapes of its values: names given twice, checks that contradict each other. Looks at
/// whatever of `data` is there, so that it adds to those `known` from the check.
#[must_use]
pub fn findings(data: &Json, known: &[Finding]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (list, noun) in [("test", "stage"), ("environments", "environment")] {
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for (i, name) in items(&data[list]).filter_map(|(i, item)| Some((i, item["name"].as_str()?))) {
            if let Some(first) = seen.insert(name, i) {
                found.push(finding(
                    vec![definitions::key(list), Part::Index(i), Part::Index(1)],
                    format!("the {noun} {} is there twice: {list}[{first}] is called so too", check::quote(name)),
                    None,
                ));
            }
        }
    }
    source(&data["source"], &mut found);
    for (i, environment) in items(&data["environments"]) {
        let at = vec![definitions::key("environments"), Part::Index(i)];
        hosts(&environment["hosts"], &at, &mut found);
        waves(&environment["rollout"]["waves"], &at, &mut found);
        sessions(environment, &at, &mut found);
        windows(&environment["freeze"], &at, known, &mut found);
        if !environment["when"]["tag"].is_null() && data["source"]["tags"].is_null() {
            let mut path = at.clone();
            path.push(definitions::key("when"));
            found.push(finding(
                path,
                format!("{}.when waits for tags, and no pushed tag starts a run", check::dotted(&at)),
                Some("add source.tags, as in source = { ..., tags = \"v*\" }, or write when = \"manual\""),
            ));
        }
        let mut below = at.clone();
        below.push(definitions::key("health"));
        // A check that is there and wrong is no missing check.
        if !known.iter().any(|finding| finding.path.starts_with(&below)) {
            health(&environment["health"], &at, &mut found);
        }
        signals(environment, &at, known, &mut found);
        alarms::findings(&environment["alarms"], &at, known, &mut found);
    }
    found
}

fn items(list: &Json) -> impl Iterator<Item = (usize, &Json)> {
    list.as_array().into_iter().flatten().enumerate().map(|(i, item)| (i + 1, item))
}

fn finding(path: Vec<Part>, message: String, help: Option<&str>) -> Finding {
    Finding { path, on: On::Value, code: "bad_value", message, help: help.map(str::to_owned) }
}

fn source(source: &Json, found: &mut Vec<Finding>) {
    let Some(git) = source["git"].as_str() else { return };
    let at = |name: &str| vec![definitions::key("source"), definitions::key(name)];
    let web = git.starts_with("https://") || git.starts_with("http://");
    let file = git.starts_with("file://");
    for (key, fits, instead) in [
        ("token", web, "for ssh give key = phased.secret \"name\""),
        ("user", web, "for ssh put the user into the URL: ssh://git@host/path"),
        ("key", !web && !file, "for https give token = phased.secret \"name\""),
        ("known_hosts", !web && !file, "only ssh checks host keys"),
    ] {
        if !source[key].is_null() && !fits {
            let message = format!("source.{key} does not go with {}", check::quote(git));
            found.push(Finding { on: On::Key, ..finding(at(key), message, Some(instead)) });
        }
    }
}

fn hosts(hosts: &Json, at: &[Part], found: &mut Vec<Finding>) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (i, host) in items(hosts) {
        let id = host.as_str().or_else(|| host["id"].as_str()).or_else(|| host["address"].as_str());
        if let Some(id) = id
            && let Some(first) = seen.insert(id.to_owned(), i)
        {
            let mut path = at.to_vec();
            path.extend([definitions::key("hosts"), Part::Index(i)]);
            found.push(finding(
                path,
                format!("the host {} is there twice: hosts[{first}] has the same id", check::quote(id)),
                Some("a host's id is its address unless it has one of its own"),
            ));
        }
    }
}

/// What goes with `transport = "signal"`, and what does not.
fn signals(environment: &Json, at: &[Part], known: &[Finding], found: &mut Vec<Finding>) {
    let here = check::dotted(at);
    let below = |key: &str| [at, &[definitions::key(key)]].concat();
    let is_wrong = |path: &[Part]| known.iter().any(|finding| finding.path.starts_with(path));
    if is_wrong(&below("transport")) {
        // Nobody can tell which was meant.
        return;
    }
    let is = |key: &str| !environment[key].is_null();
    if environment["transport"].as_str() != Some("signal") {
        if is("signal") {
            let message = format!("{here}.signal is for transport = \"signal\", and its hosts are reached by SSH");
            let help = Some("add transport = \"signal\", or take it out");
            found.push(Finding { on: On::Key, ..finding(below("signal"), message, help) });
        }
        return;
    }
    for (key, help) in [
        ("ssh", "nothing is reached by SSH there: its daemons are sent signals"),
        (
            "health",
            "each receiver looks at what it deploys, by its own project file, and is asked; tests from here belong into verify",
        ),
    ] {
        if is(key) {
            let message = format!("{here}.{key} does not go with transport = \"signal\"");
            found.push(Finding { on: On::Key, ..finding(below(key), message, Some(help)) });
        }
    }
    if !is("signal") {
        let message = format!("{here} has transport = \"signal\" and no \"signal\"");
        let help = Some("as in signal = { key = phased.secret \"signals\", receivers = \"/etc/phased/receivers\" }");
        return found.push(Finding { code: "missing_key", ..finding(at.to_vec(), message, help) });
    }
    for (i, host) in items(&environment["hosts"]) {
        let listed = host.is_string() || host["address"].is_string();
        let path = [&*below("hosts"), &[Part::Index(i)]].concat();
        if host["transport"].as_str() == Some("local") {
            let message = format!("{here}.hosts[{i}] is this server itself, which is sent no signals");
            found.push(finding(path, message, Some("deploy to it in an environment of its own, without transport")));
        } else if listed
            && host["receiver_key"].is_null()
            && environment["signal"]["receivers"].is_null()
            && !is_wrong(&path)
            && !is_wrong(&below("signal"))
        {
            let message = format!(
                "{here}.hosts[{i}] has no receiver_key: nobody could tell the answers of its daemon from somebody else's"
            );
            let help = "give it receiver_key = \"ssh-ed25519 ...\", which phased keys show prints there, or name a file of all by signal.receivers";
            found.push(finding(path, message, Some(help)));
        }
    }
}

/// Each host that is updated has a session of its own.
fn sessions(environment: &Json, at: &[Part], found: &mut Vec<Finding>) {
    let Some(most) = environment["ssh"]["max_sessions"].as_u64() else { return };
    for key in ["max_parallel", "rollback_parallel"] {
        let Some(wide) = environment["rollout"][key].as_u64().filter(|wide| *wide > most) else { continue };
        let mut path = at.to_vec();
        path.extend([definitions::key("rollout"), definitions::key(key)]);
        let message = format!(
            "{}.rollout.{key} is {wide}, and ssh.max_sessions allows {most}: each host that is updated has a session",
            check::dotted(at)
        );
        found.push(finding(path, message, Some("raise ssh.max_sessions, or update fewer hosts at once")));
    }
}

/// A list of waves that does not come to everybody would leave hosts behind for ever.
fn waves(waves: &Json, at: &[Part], found: &mut Vec<Finding>) {
    let Some((last, value)) = items(waves).last() else { return };
    let mut path = at.to_vec();
    path.extend([definitions::key("rollout"), definitions::key("waves")]);
    if value.as_str() != Some("100%") {
        path.push(Part::Index(last));
        let message = format!("the last of the waves is {value}, so not every host would get the release");
        return found.push(finding(path, message, Some("the list ends in \"100%\"")));
    }
    let percent = |value: &Json| value.as_str().and_then(|text| text.trim_end_matches('%').parse::<u32>().ok());
    let parts: Vec<(usize, u32)> = items(waves).filter_map(|(i, value)| Some((i, percent(value)?))).collect();
    if let Some(pair) = parts.windows(2).find(|pair| pair[1].1 <= pair[0].1) {
        path.push(Part::Index(pair[1].0));
        let message =
            format!("waves are how many hosts have it after each: {}% does not come after {}%", pair[1].1, pair[0].1);
        found.push(finding(path, message, Some("give them in rising order, the canary included")));
    }
}

/// Windows whose times make no sense, and windows that together leave no time at all.
fn windows(windows: &Json, at: &[Part], known: &[Finding], found: &mut Vec<Finding>) {
    let mut path = at.to_vec();
    path.push(definitions::key("freeze"));
    let mut sound: Vec<Window> = Vec::new();
    for (i, window) in items(windows) {
        let mut path = path.clone();
        path.push(Part::Index(i));
        // A key that is of the wrong kind is no missing time.
        if known.iter().any(|finding| finding.path.starts_with(&path)) {
            return;
        }
        let Ok(written) = Written::deserialize(window) else { return };
        match Window::try_from(written) {
            Ok(window) => sound.push(window),
            Err(nonsense) => {
                let message = format!("{}: {}", check::dotted(&path), nonsense.message);
                if !window[nonsense.key].is_null() {
                    path.push(definitions::key(nonsense.key));
                }
                found.push(finding(path, message, None));
            }
        }
    }
    sound.retain(Window::recurs);
    let zones = |name: &str| crate::time::zone(name).unwrap_or(jiff::tz::TimeZone::UTC);
    let nobody = freeze::ByHand::default();
    if freeze::frozen(&sound, &nobody, SOME_DAY_MS, &zones).is_some_and(|frozen| frozen.until_ms.is_none()) {
        let message =
            format!("{}: together they leave no time in which anything could be deployed", check::dotted(&path));
        found.push(finding(path, message, Some("a freeze by hand is `phased freeze PROJECT ENVIRONMENT`")));
    }
}

/// Any day will do: what comes again each week is there or not on all of them.
const SOME_DAY_MS: i64 = 1_767_225_600_000;

fn health(health: &Json, at: &[Part], found: &mut Vec<Finding>) {
    let Some(health) = health.as_object() else { return };
    let mut path = at.to_vec();
    path.push(definitions::key("health"));
    if !CHECKS.iter().any(|check| health.contains_key(*check)) {
        let checks = join(&CHECKS.map(str::to_owned));
        found.push(Finding {
            code: "missing_key",
            ..finding(
                path,
                format!("{}.health has no check: give {checks}", check::dotted(at)),
                Some("as in health = { http = \":8080/healthz\" }, or health = \"none\" on purpose"),
            )
        });
        return;
    }
    let span = |key: &str, default: Span| {
        health.get(key).and_then(Json::as_str).map_or(Some(default), |text| text.parse().ok())
    };
    if let (Some(least), Some(deadline)) =
        (span("min_healthy_time", MIN_HEALTHY_TIME), span("healthy_deadline", HEALTHY_DEADLINE))
        && least >= deadline
    {
        path.push(definitions::key(if health.contains_key("healthy_deadline") {
            "healthy_deadline"
        } else {
            "min_healthy_time"
        }));
        found.push(finding(
            path,
            format!(
                "no host can be healthy: min_healthy_time ({least}) is not shorter than healthy_deadline ({deadline})"
            ),
            None,
        ));
    }
}

/// The keys of `health` that are checks.
const CHECKS: [&str; 6] = ["http", "tcp", "command", "service", "container", "version"];

const MIN_HEALTHY_TIME: Span = Span::secs(10);
const HEALTHY_DEADLINE: Span = Span::minutes(2);
const HEALTH_INTERVAL: Span = Span::secs(1);
const HEALTH_TIMEOUT: Span = Span::secs(5);

/// Where a daemon listens unless it is told otherwise.
const PORT: u16 = 7427;
/// Between looks at what a receiver says of itself, and of one such look.
const RECEIVER_INTERVAL: Span = Span::secs(2);
const RECEIVER_TIMEOUT: Span = Span::secs(15);

const BAKE_TIME: Span = Span::minutes(2);
const PAUSE_TIMEOUT: Span = Span::minutes(24 * 60);

#[derive(Deserialize)]
struct RawProject {
    source: RawSource,
    #[serde(default)]
    queue: Queue,
    #[serde(default)]
    test: Vec<RawStage>,
    environments: Vec<RawEnvironment>,
    notify: RawNotify,
}

#[derive(Deserialize)]
struct RawSource {
    git: String,
    branch: String,
    tags: Option<OneOrMany<String>>,
    poll: Option<Span>,
    webhook: Option<OneOrMany<SecretRef>>,
    user: Option<String>,
    token: Option<SecretRef>,
    key: Option<SecretRef>,
    known_hosts: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    Many(Vec<T>),
    One(T),
}

impl<T> OneOrMany<T> {
    fn all(this: Option<Self>) -> Vec<T> {
        match this {
            None => Vec::new(),
            Some(OneOrMany::One(one)) => vec![one],
            Some(OneOrMany::Many(many)) => many,
        }
    }
}

#[derive(Deserialize)]
struct RawStage {
    name: StageName,
    #[serde(default)]
    setup: bool,
    #[serde(default)]
    cleanup: bool,
    timeout: Option<Span>,
}

#[derive(Deserialize)]
struct RawEnvironment {
    name: EnvironmentName,
    hosts: OneOrMany<RawHost>,
    #[serde(default)]
    ssh: RawSsh,
    #[serde(default)]
    rollout: RawRollout,
    health: Option<RawHealth>,
    transport: Option<TransportWord>,
    signal: Option<RawSignal>,
    #[serde(default)]
    verify: bool,
    #[serde(flatten)]
    hooks: Hooks,
    #[serde(default)]
    alarms: Vec<alarms::RawAlarm>,
    timeout: Option<Span>,
    #[serde(default)]
    freeze: Vec<Window>,
    group: Option<String>,
    when: Option<RawWhen>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawWhen {
    Word(WhenWord),
    Tag { tag: OneOrMany<String> },
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum WhenWord {
    Push,
    Manual,
    Signal,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "snake_case")]
enum TransportWord {
    #[default]
    Ssh,
    Local,
    Signal,
}

#[derive(Deserialize)]
struct RawSignal {
    key: SecretRef,
    receivers: Option<String>,
    port: Option<u16>,
    #[serde(default)]
    tls: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawHost {
    Address(String),
    Discovery {
        #[serde(rename = "$discovery")]
        name: String,
        #[serde(rename = "$options")]
        options: Digest,
        #[serde(flatten)]
        limits: RawSourceLimits,
    },
    Host(Box<RawHostTable>),
}

#[derive(Deserialize)]
struct RawSourceLimits {
    interval: Option<Span>,
    timeout: Option<Span>,
    min_hosts: Option<u32>,
    max_shrink: Option<RawBudget>,
    max_growth: Option<u32>,
    max_age: Option<Span>,
    port_label: Option<String>,
    user_label: Option<String>,
}

impl From<RawSourceLimits> for SourceLimits {
    fn from(raw: RawSourceLimits) -> Self {
        let usual = SourceLimits::default();
        SourceLimits {
            interval_ms: raw.interval.map_or(usual.interval_ms, ms),
            timeout_ms: raw.timeout.map_or(usual.timeout_ms, ms),
            min_hosts: raw.min_hosts.unwrap_or(usual.min_hosts),
            max_shrink: raw.max_shrink.map(Budget::from),
            max_growth: raw.max_growth,
            max_age_ms: raw.max_age.map_or(usual.max_age_ms, ms),
            port_label: raw.port_label,
            user_label: raw.user_label,
        }
    }
}

#[derive(Deserialize)]
struct RawHostTable {
    address: String,
    id: Option<HostId>,
    name: Option<String>,
    zone: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    state: Presence,
    reason: Option<String>,
    #[serde(default)]
    transport: TransportWord,
    receiver_key: Option<PublicKey>,
    #[serde(flatten)]
    ssh: RawSsh,
}

#[derive(Deserialize, Default)]
struct RawSsh {
    user: Option<String>,
    port: Option<u16>,
    key: Option<SecretRef>,
    known_hosts: Option<String>,
    host_keys: Option<HostKeys>,
    jump: Option<Jump>,
    connect_timeout: Option<Span>,
    path: Option<String>,
    base: Option<String>,
    max_sessions: Option<u32>,
}

#[derive(Deserialize, Default)]
struct RawRollout {
    canary: Option<RawCanary>,
    waves: Option<OneOrMany<RawBudget>>,
    max_parallel: Option<u32>,
    stagger: Option<Span>,
    bake_time: Option<Span>,
    max_bake: Option<Span>,
    max_failures: Option<RawBudget>,
    max_failures_per_wave: Option<RawBudget>,
    max_unreachable: Option<RawBudget>,
    min_healthy: Option<RawBudget>,
    progress_deadline: Option<Span>,
    pause_timeout: Option<Span>,
    rollback_parallel: Option<u32>,
    max_shrink: Option<RawBudget>,
    #[serde(default)]
    zones: bool,
    on_failure: Option<OnFailure>,
    on_inconclusive: Option<OnInconclusive>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawCanary {
    Labels { labels: BTreeMap<String, String> },
    Count(RawBudget),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawBudget {
    Count(u32),
    Percent(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawHealth {
    /// `"none"`, the only word the check lets through.
    Word(#[allow(dead_code)] String),
    Checks(Box<RawChecks>),
}

#[derive(Deserialize)]
struct RawChecks {
    http: Option<OneOrMany<String>>,
    tcp: Option<OneOrMany<String>>,
    command: Option<OneOrMany<String>>,
    service: Option<OneOrMany<String>>,
    container: Option<OneOrMany<String>>,
    version: Option<RawVersion>,
    min_healthy_time: Option<Span>,
    healthy_deadline: Option<Span>,
    interval: Option<Span>,
    timeout: Option<Span>,
}

#[derive(Deserialize)]
struct RawVersion {
    http: Option<String>,
    command: Option<String>,
    json: Option<String>,
}

impl RawVersion {
    fn check(self) -> Option<Check> {
        let from = self.http.map(VersionFrom::Http).or(self.command.map(VersionFrom::Command))?;
        Some(Check::Version(Version { from, json: self.json }))
    }
}

#[derive(Deserialize)]
struct RawAlert {
    #[serde(rename = "$alert")]
    name: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawNotify {
    Bad(OneOrMany<RawAlert>),
    Split { bad: OneOrMany<RawAlert>, good: Option<OneOrMany<RawAlert>> },
}

/// The pipeline of checked data without findings.
///
/// # Errors
/// Only when the registry and this file disagree; the text is for the bug report.
pub fn pipeline(data: &Json) -> Result<Pipeline, String> {
    let raw = RawProject::deserialize(data).map_err(|error| error.to_string())?;
    let names =
        |alerts: OneOrMany<RawAlert>| OneOrMany::all(Some(alerts)).into_iter().map(|alert| alert.name).collect();
    Ok(Pipeline {
        source: Source {
            git: raw.source.git,
            branch: raw.source.branch,
            tags: OneOrMany::all(raw.source.tags),
            poll_ms: raw.source.poll.map(ms),
            webhook: OneOrMany::all(raw.source.webhook),
            user: raw.source.user,
            token: raw.source.token,
            key: raw.source.key,
            known_hosts: raw.source.known_hosts,
        },
        queue: raw.queue,
        stages: raw
            .test
            .into_iter()
            .map(|stage| Stage {
                name: stage.name,
                setup: stage.setup,
                cleanup: stage.cleanup,
                timeout_ms: ms(stage.timeout.unwrap_or(CALL_LIMIT)),
            })
            .collect(),
        environments: raw.environments.into_iter().map(environment).collect::<Result<_, _>>()?,
        notify: match raw.notify {
            RawNotify::Bad(bad) => Notify { bad: names(bad), good: Vec::new() },
            RawNotify::Split { bad, good } => Notify { bad: names(bad), good: good.map(names).unwrap_or_default() },
        },
    })
}

fn ms(span: Span) -> u64 {
    u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX)
}

fn environment(raw: RawEnvironment) -> Result<Environment, String> {
    let signalled = raw.transport == Some(TransportWord::Signal);
    let listens = matches!(raw.when, Some(RawWhen::Word(WhenWord::Signal)));
    Ok(Environment {
        hosts: host_sources(&raw.name, raw.hosts)?,
        ssh: raw.ssh.into(),
        signal: raw.signal.filter(|_| signalled).map(|signal| Signalling {
            key: signal.key,
            receivers: signal.receivers,
            port: signal.port.unwrap_or(PORT),
            tls: signal.tls,
        }),
        // Whoever sends the signal bakes it.
        rollout: rollout_of(raw.rollout, if listens { Span::secs(0) } else { BAKE_TIME }),
        health: match raw.health {
            None if signalled => Some(receivers_health()),
            None | Some(RawHealth::Word(_)) => None,
            Some(RawHealth::Checks(checks)) => Some(health_of(*checks)),
        },
        verify: raw.verify,
        hooks: raw.hooks,
        alarms: raw.alarms.into_iter().map(Into::into).collect(),
        timeout_ms: ms(raw.timeout.unwrap_or(CALL_LIMIT)),
        freeze: raw.freeze,
        group: raw.group,
        when: match raw.when {
            None | Some(RawWhen::Word(WhenWord::Push)) => When::Push,
            Some(RawWhen::Word(WhenWord::Manual)) => When::Manual,
            Some(RawWhen::Word(WhenWord::Signal)) => When::Signal,
            Some(RawWhen::Tag { tag }) => When::Tag(OneOrMany::all(Some(tag))),
        },
        name: raw.name,
    })
}

impl From<RawBudget> for Budget {
    fn from(raw: RawBudget) -> Self {
        match raw {
            RawBudget::Count(n) => Budget::Count(n),
            RawBudget::Percent(text) => Budget::Percent(text.trim_end_matches('%').parse().unwrap_or(0)),
        }
    }
}

fn rollout_of(raw: RawRollout, bake: Span) -> Rollout {
    let none = Budget::Count(0);
    let bake_time = ms(raw.bake_time.unwrap_or(bake));
    Rollout {
        canary: match raw.canary {
            None => Canary::Count(Budget::Count(1)),
            Some(RawCanary::Count(count)) => Canary::Count(count.into()),
            Some(RawCanary::Labels { labels }) => Canary::Labels(labels),
        },
        waves: match raw.waves {
            None => Waves::Targets(vec![Budget::Percent(100)]),
            Some(OneOrMany::Many(targets)) => Waves::Targets(targets.into_iter().map(Budget::from).collect()),
            Some(OneOrMany::One(size)) => Waves::Each(size.into()),
        },
        max_parallel: raw.max_parallel.unwrap_or(1),
        stagger_ms: raw.stagger.map_or(0, ms),
        bake_time_ms: bake_time,
        max_bake_ms: raw.max_bake.map_or(bake_time.saturating_mul(3), ms).max(bake_time),
        max_failures: raw.max_failures.map_or(none, Budget::from),
        max_failures_per_wave: raw.max_failures_per_wave.map(Budget::from),
        max_unreachable: raw.max_unreachable.map_or(none, Budget::from),
        min_healthy: raw.min_healthy.map(Budget::from),
        progress_deadline_ms: raw.progress_deadline.map_or(0, ms),
        pause_timeout_ms: ms(raw.pause_timeout.unwrap_or(PAUSE_TIMEOUT)),
        rollback_parallel: raw.rollback_parallel,
        max_shrink: raw.max_shrink.map_or(Budget::Percent(30), Budget::from),
        zones: raw.zones,
        on_failure: raw.on_failure.unwrap_or(OnFailure::Rollback),
        on_inconclusive: raw.on_inconclusive.unwrap_or(OnInconclusive::Rollback),
    }
}

/// What a host with a daemon of its own is asked: the run there has waited until it was healthy.
fn receivers_health() -> Health {
    Health {
        checks: vec![Check::Signal(None)],
        min_healthy_time_ms: 0,
        healthy_deadline_ms: ms(HEALTHY_DEADLINE),
        interval_ms: ms(RECEIVER_INTERVAL),
        timeout_ms: ms(RECEIVER_TIMEOUT),
    }
}

fn health_of(raw: RawChecks) -> Health {
    let all = |texts, check: fn(String) -> Check| OneOrMany::all(texts).into_iter().map(check);
    Health {
        checks: all(raw.http, Check::Http)
            .chain(all(raw.tcp, Check::Tcp))
            .chain(all(raw.command, Check::Command))
            .chain(all(raw.service, |unit| Check::Service(full_unit(&unit))))
            .chain(all(raw.container, Check::Container))
            .chain(raw.version.and_then(RawVersion::check))
            .collect(),
        min_healthy_time_ms: ms(raw.min_healthy_time.unwrap_or(MIN_HEALTHY_TIME)),
        healthy_deadline_ms: ms(raw.healthy_deadline.unwrap_or(HEALTHY_DEADLINE)),
        interval_ms: ms(raw.interval.unwrap_or(HEALTH_INTERVAL)),
        timeout_ms: ms(raw.timeout.unwrap_or(HEALTH_TIMEOUT)),
    }
}

/// In the order written; hosts that stand beside each other are one source.
fn host_sources(environment: &EnvironmentName, raw: OneOrMany<RawHost>) -> Result<Vec<HostSource>, String> {
    let mut sources = Vec::new();
    for (i, host) in OneOrMany::all(Some(raw)).into_iter().enumerate() {
        let host = match host {
            RawHost::Discovery { name, options, limits } => {
                let function = format!("discovery/{environment}/{}", i + 1);
                sources.push(HostSource::Plugin { name, function, limits: limits.into(), options: Some(options) });
                continue;
            }
            RawHost::Address(address) => host_at(address)?,
            RawHost::Host(table) => host_of(*table)?,
        };
        match sources.last_mut() {
            Some(HostSource::Static(hosts)) => hosts.push(host),
            _ => sources.push(HostSource::Static(vec![host])),
        }
    }
    Ok(sources)
}

fn host_at(address: String) -> Result<Host, String> {
    let id: HostId = address.parse().map_err(|error: crate::model::ids::IdError| error.to_string())?;
    Ok(Host::at(id, address))
}

fn host_of(raw: RawHostTable) -> Result<Host, String> {
    let plain = host_at(raw.address)?;
    let id = raw.id.unwrap_or(plain.id);
    Ok(Host {
        name: raw.name.unwrap_or_else(|| id.to_string()),
        id,
        address: plain.address,
        labels: raw.labels,
        zone: raw.zone,
        ssh: raw.ssh.into(),
        transport: match raw.transport {
            TransportWord::Local => Transport::Local,
            TransportWord::Ssh | TransportWord::Signal => Transport::Ssh,
        },
        receiver_key: raw.receiver_key,
        state: raw.state,
        reason: raw.reason,
    })
}

impl From<RawSsh> for Ssh {
    fn from(raw: RawSsh) -> Self {
        Ssh {
            user: raw.user,
            port: raw.port,
            key: raw.key,
            known_hosts: raw.known_hosts,
            host_keys: raw.host_keys,
            jump: raw.jump,
            connect_timeout_ms: raw.connect_timeout.map(ms),
            path: raw.path,
            base: raw.base,
            max_sessions: raw.max_sessions,
        }
    }
}

/// What a discovery returned, as hosts with their own `ssh` values only.
///
/// # Errors
/// What is wrong with the first wrong one: `host 3 ("web3"): port must be ...`.
pub fn discovered(returned: &Json) -> Result<Vec<Host>, String> {
    let lua = Lua::new();
    let list = match definitions::to_lua(&lua, returned).map_err(|error| error.to_string())? {
        Value::Table(list) => list,
        other => return Err(format!("it must return a list of hosts, not {}", check::show(&other))),
    };
    let host = Kind::Union(vec![
        Kind::Text(super::shape::Text::new("an address", super::rules::address)),
        Kind::Table(registry().host.clone()),
    ]);
    let shape =
        Shape { rest: None, ..Shape::new("hosts", "Hosts.") }.first("hosts", Kind::List(host.into(), 0), "Hosts.");
    let wrapper = lua.create_table().map_err(|error| error.to_string())?;
    wrapper.raw_set(1, list).map_err(|error| error.to_string())?;
    let checked = check::table("hosts", &shape, &wrapper, Functions::Omitted);
    if let Some(finding) = checked.findings.first() {
        let help = finding.help.as_ref().map_or(String::new(), |help| format!(" ({help})"));
        let message = finding.message.replacen("hosts[", "host [", 1);
        return Err(format!("{message}{help}"));
    }
    let mut hosts = Vec::new();
    let mut seen = BTreeMap::new();
    for (i, raw) in items(&checked.data["hosts"]) {
        let raw = RawHost::deserialize(raw).map_err(|error| format!("host [{i}]: {error}"))?;
        let host = match raw {
            RawHost::Address(address) => host_at(address)?,
            RawHost::Host(table) => host_of(*table)?,
            RawHost::Discovery { name, .. } => return Err(format!("host [{i}] is the discovery {name}")),
        };
        if let Some(first) = seen.insert(host.id.clone(), i) {
            return Err(format!("host [{i}] has the id {:?} of host [{first}]", host.id));
        }
        hosts.push(host);
    }
    Ok(hosts)
}

/// The function at `path` below the table given to `phased.project`: `test/unit/run`, `environments/production/deploy`,
/// `notify/bad/1`, `discovery/production/1`, `alarms/production/1/cause`. Plugins' functions have their options given already; they take what remains.
///
/// # Errors
/// `path` names nothing, which for a path of the pipeline of the same code is a bug.
pub fn function(lua: &Lua, project: &Table, path: &str) -> mlua::Result<Function> {
    let missing = || mlua::Error::runtime(format!("the project has no function {path:?}"));
    let parts: Vec<&str> = path.split('/').collect();
    let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(missing);
    match parts.as_slice() {
        ["test", stage, function] => named(project, "test", stage)?.raw_get(*function),
        ["environments", environment, function] => {
            let environment = named(project, "environments", environment)?;
            let transport: Value = environment.raw_get("transport")?;
            let signalled = transport.as_string().is_some_and(|word| word.as_bytes() == b"signal".as_slice());
            match environment.raw_get::<Option<Function>>(*function)? {
                None if *function == "deploy" && signalled => signalling(lua),
                None => Err(missing()),
                Some(function) => Ok(function),
            }
        }
        ["discovery", environment, n] => {
            let hosts: Value = named(project, "environments", environment)?.raw_get("hosts")?;
            bound(lua, nth(&hosts, number(n)?)?, path)
        }
        ["alarms", environment, n, part @ ("cause" | "alert")] => {
            let alarms: Value = named(project, "environments", environment)?.raw_get("alarms")?;
            let alarm = alarms.as_table().ok_or_else(missing)?.raw_get::<Option<Table>>(number(n)?)?;
            bound(lua, alarm.ok_or_else(missing)?.raw_get(*part)?, path)
        }
        ["notify", which @ ("bad" | "good"), n] => {
            let notify: Value = project.raw_get("notify")?;
            let channels = match &notify {
                Value::Table(table) if table.raw_len() == 0 => table.raw_get(*which)?,
                _ if *which == "bad" => notify,
                _ => Value::Nil,
            };
            bound(lua, nth(&channels, number(n)?)?, path)
        }
        _ => Err(missing()),
    }
}

/// What `deploy` is where a daemon of the host's own does it.
fn signalling(lua: &Lua) -> mlua::Result<Function> {
    let chunk = lua.load("return function(host) host:signal() end").set_name("=phased");
    chunk.set_mode(mlua::chunk::ChunkMode::Text).call(())
}

/// The table called `name` in the list `key`.
fn named(project: &Table, key: &str, name: &str) -> mlua::Result<Table> {
    let list: Table = project.raw_get(key)?;
    for item in list.sequence_values::<Table>() {
        let item = item?;
        let positional: Value = item.raw_get(1)?;
        let own: Value = if positional.is_nil() { item.raw_get("name")? } else { positional };
        if own.as_string().is_some_and(|own| own.as_bytes() == name.as_bytes()) {
            return Ok(item);
        }
    }
    Err(mlua::Error::runtime(format!("the project has no {name:?} in {key}")))
}

/// The `n`th of a list, or a single value itself.
fn nth(value: &Value, n: usize) -> mlua::Result<Value> {
    match value {
        Value::Table(list) => list.raw_get(n),
        one if n == 1 => Ok(one.clone()),
        _ => Ok(Value::Nil),
    }
}

fn bound(lua: &Lua, value: Value, path: &str) -> mlua::Result<Function> {
    match &value {
        Value::UserData(data) => data.borrow::<Bound>()?.function(lua),
        _ => Err(mlua::Error::runtime(format!("{path}: {} is no plugin with its options", check::show(&value)))),
    }
}
