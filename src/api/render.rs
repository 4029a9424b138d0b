//! Views as text for people: `Accept: text/plain` and the CLI show the same.
//!
//! Everything that came from outside (commit messages, authors, host names, causes) goes through [`one_line`].

mod dry_run;
pub mod hosts;
mod signals;

use std::{collections::BTreeSet, fmt::Write as _};

pub use self::{dry_run::dry_run, signals::signals};

use super::{
    routes::projects::ProjectView,
    text::{age, one_line, padded, printable, table, wall_ms, width, word},
};
use crate::{
    engine::view::{
        CauseView, ClosedView, DeploymentView, EnvironmentPlan, FreezeView, HostView, LeaseView, LiveView,
        MaintenanceView, Plan, ProjectStatus, ReleaseView, RunAtWork, RunView, StageState, Status, TokenView,
        WaitingView,
    },
    model::{
        deployment::{DeploymentState, HostState, unsafe_to_go_back},
        rollout::OnFailure,
        run::RunState,
    },
};

/// Columns of the words at the left of a project's block.
const LABEL: usize = 8;

fn line(out: &mut String, text: &str) {
    let _infallible = writeln!(out, "{}", text.trim_end());
}

fn labelled(out: &mut String, label: &str, text: &str) {
    line(out, &format!("  {}{text}", padded(label, LABEL)));
}

/// `a1b2c3d4e5f6 "Fix the cart" by Ann`.
#[must_use]
pub fn release(release: &ReleaseView) -> String {
    let author = one_line(&release.author, 60);
    let author = author.split(" <").next().unwrap_or_default();
    let by = if author.is_empty() { String::new() } else { format!(" by {author}") };
    format!("{} \"{}\"{by}", one_line(&release.id, 20), one_line(&release.message, 60))
}

/// `the unit is not active (unhealthy)`, on one line.
#[must_use]
pub fn cause(cause: &CauseView) -> String {
    format!("{} ({})", one_line(&cause.message, 300), one_line(&cause.code, 60))
}

#[must_use]
pub fn waiting(waiting: &WaitingView) -> String {
    if waiting.code == "maintenance" {
        let holder = one_line(&waiting.holder, 120);
        return format!("waits until maintenance is over, which {holder} turned on{}", why(waiting));
    }
    if waiting.code == "freeze" {
        return format!("waits, {}", frozen(waiting));
    }
    let until =
        waiting.until.as_ref().map_or_else(String::new, |until| format!(", at the latest until {}", moment(until)));
    format!("waits for {}: {}{}{until}", one_line(&waiting.code, 30), one_line(&waiting.holder, 120), why(waiting))
}

/// ` (deployment of a1b2c3d4e5f6)`.
fn why(waiting: &WaitingView) -> String {
    waiting.reason.as_ref().map_or_else(String::new, |reason| format!(" ({})", one_line(reason, 200)))
}

/// `frozen until 2026-01-02 03:04:05 UTC by ann (Christmas)`.
#[must_use]
pub fn frozen(waiting: &WaitingView) -> String {
    let until = waiting
        .until
        .as_ref()
        .map_or_else(|| "until it is lifted".to_owned(), |until| format!("until {}", moment(until)));
    format!("frozen {until} by {}{}", one_line(&waiting.holder, 120), why(waiting))
}

/// Where a run did not go on, and how it does.
#[must_use]
pub fn closed(closed: &ClosedView) -> String {
    let environment = one_line(&closed.environment, 64);
    let opens = match closed.when.as_str() {
        "manual" => format!("{environment} is entered only when somebody says so"),
        when => format!("{environment} is entered by {} or when somebody says so", one_line(when, 120)),
    };
    format!("{opens}: {}", one_line(&closed.command, 200))
}

/// An environment's freeze.
#[must_use]
pub fn freeze(view: &FreezeView) -> String {
    let mut out = String::new();
    let name = format!("{} of {}", one_line(&view.environment, 64), one_line(&view.project, 64));
    let waiting = view.holder.as_ref().map(|holder| WaitingView {
        code: "freeze".to_owned(),
        holder: holder.clone(),
        until: view.until.clone(),
        reason: view.reason.clone(),
    });
    match waiting {
        Some(waiting) => line(&mut out, &format!("{name} is {}", frozen(&waiting))),
        None => line(&mut out, &format!("{name} is not frozen")),
    }
    if let Some(lifted) = &view.lifted {
        let until = lifted.until.as_ref().map_or_else(String::new, |until| format!(" until {}", moment(until)));
        let reason = lifted.reason.as_ref().map_or_else(String::new, |reason| format!(" ({})", one_line(reason, 200)));
        labelled(
            &mut out,
            "lifted",
            &format!("by {}{reason}: the windows below do not count{until}", one_line(&lifted.by, 120)),
        );
    }
    for (i, window) in view.windows.iter().enumerate() {
        labelled(&mut out, if i == 0 { "windows" } else { "" }, &one_line(window, 120));
    }
    out
}

/// An environment's lease.
#[must_use]
pub fn lease(view: &LeaseView) -> String {
    let group = view.group.as_ref().map_or_else(String::new, |group| format!(" (group {})", one_line(group, 64)));
    let name = format!("{} of {}{group}", one_line(&view.environment, 64), one_line(&view.project, 64));
    let Some(holder) = &view.holder else { return format!("{name} is held by nobody\n") };
    let reason = view.reason.as_ref().map_or_else(String::new, |reason| format!(" ({})", one_line(reason, 200)));
    let since = view.since.as_deref().map(moment).unwrap_or_default();
    let until =
        view.until.as_ref().map_or_else(String::new, |until| format!(", until {} at the latest", moment(until)));
    format!("{name} is held by {}{reason} since {since}{until}\n", one_line(holder, 120))
}

/// `2026-01-02 03:04:05 UTC`.
fn moment(rfc3339: &str) -> String {
    match wall_ms(rfc3339).and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) {
        Some(moment) => moment.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        None => one_line(rfc3339, 40),
    }
}

fn ago(when: Option<&String>, now_ms: i64) -> String {
    when.map_or_else(String::new, |when| format!("{} ago", age(when, now_ms)))
}

/// Maintenance: how it is, then what each run does.
#[must_use]
pub fn maintenance(maintenance: &MaintenanceView) -> String {
    let mut out = String::new();
    if !maintenance.on {
        line(&mut out, "maintenance is off");
        return out;
    }
    line(&mut out, &format!("maintenance is on {}", switched(maintenance)));
    for run in maintenance.runs.iter().filter(|run| !run.doing.is_empty()) {
        labelled(&mut out, "works", &working(run));
    }
    for run in maintenance.runs.iter().filter(|run| run.doing.is_empty()) {
        labelled(&mut out, "parked", &named(run));
    }
    line(&mut out, &format!("{}; {GOES_ON}", counted(maintenance)));
    out
}

const GOES_ON: &str = "`phased maintenance off` goes on";

fn switched(maintenance: &MaintenanceView) -> String {
    let since = maintenance.since.as_deref().map(moment).unwrap_or_default();
    let by = one_line(maintenance.by.as_deref().unwrap_or("somebody"), 120);
    let why = maintenance.reason.as_deref().map(|why| format!(": {}", one_line(why, 200))).unwrap_or_default();
    format!("since {since} by {by}{why}")
}

/// `2 runs are parked, 1 still works`.
#[must_use]
pub fn counted(maintenance: &MaintenanceView) -> String {
    let parked = maintenance.runs.iter().filter(|run| run.doing.is_empty()).count();
    let works = maintenance.runs.len() - parked;
    let are = if parked == 1 { "is" } else { "are" };
    match (parked, works) {
        (0, 0) => "nothing is at work, nothing is parked".to_owned(),
        (parked, 0) => format!("nothing is at work, {} {are} parked", count(parked, "run")),
        (parked, 1) => format!("{} {are} parked, 1 still works", count(parked, "run")),
        (parked, works) => format!("{} {are} parked, {works} still work", count(parked, "run")),
    }
}

fn named(run: &RunAtWork) -> String {
    format!("{} run {}", one_line(&run.project, 64), one_line(&run.run, 40))
}

/// `shop run 01k... deploys to web2 (production), watches the health of web1 (production)`.
#[must_use]
pub fn working(run: &RunAtWork) -> String {
    const MOST: usize = 5;
    let shown: Vec<String> = run.doing.iter().take(MOST).map(|doing| one_line(doing, 200)).collect();
    let more = run.doing.len().saturating_sub(MOST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} {}{more}", named(run), shown.join(", "))
}

/// The daemon and all its projects.
#[must_use]
pub fn status(status: &Status, now_ms: i64) -> String {
    let mut out = String::new();
    if status.maintenance.on {
        let (switched, counted) = (switched(&status.maintenance), counted(&status.maintenance));
        line(&mut out, &format!("MAINTENANCE {switched}; {counted}; {GOES_ON}"));
    }
    line(&mut out, &format!("phased {}, up for {}", one_line(&status.version, 40), age(&status.since, now_ms)));
    for trouble in &status.trouble {
        line(&mut out, &format!("WRONG: {}", cause(trouble)));
    }
    if status.projects.is_empty() {
        line(
            &mut out,
            "\nThere are no projects yet. `phased init URL` writes one from a repository; then `phased reload`.",
        );
    }
    for one in &status.projects {
        line(&mut out, "");
        out.push_str(&project(one, now_ms));
    }
    out
}

/// One project.
#[must_use]
pub fn project(status: &ProjectStatus, now_ms: i64) -> String {
    let mut out = String::new();
    let source = one_line(&status.source, 200);
    line(&mut out, &format!("{}  branch {} of {source}", one_line(&status.project, 64), one_line(&status.branch, 100)));
    if let Some(trouble) = &status.trouble {
        labelled(&mut out, "WRONG", &cause(trouble));
    }
    if status.running.is_empty() {
        labelled(&mut out, "now", "nothing runs");
    }
    for (i, run) in status.running.iter().enumerate() {
        labelled(&mut out, if i == 0 { "now" } else { "" }, &headline(run, now_ms));
        for detail in details(run) {
            labelled(&mut out, "", &format!("  {detail}"));
        }
    }
    let names = status.environments.iter().map(|e| width(&e.environment)).max().unwrap_or(0);
    for (i, environment) in status.environments.iter().enumerate() {
        let text = format!("{}  {}", padded(&one_line(&environment.environment, 64), names), live(environment, now_ms));
        labelled(&mut out, if i == 0 { "live" } else { "" }, &text);
        if let Some(lease) = &environment.lease {
            labelled(&mut out, "", &format!("{}  {}", " ".repeat(names), held(lease)));
        }
        if let Some(freeze) = &environment.freeze {
            labelled(&mut out, "", &format!("{}  {}", " ".repeat(names), frozen(freeze)));
        }
        if let Some(trouble) = &environment.trouble {
            labelled(&mut out, "", &format!("{}  WRONG: {}", " ".repeat(names), cause(trouble)));
        }
    }
    if let Some(last) = &status.last {
        labelled(&mut out, "last", &headline(last, now_ms));
        if let Some(why) = &last.cause {
            labelled(&mut out, "", &format!("  {}", cause(why)));
        }
        if let Some(further) = &last.closed {
            labelled(&mut out, "", &format!("  {}", closed(further)));
        }
        if last.state.is_bad() {
            labelled(&mut out, "", &format!("  look further: phased log {}", one_line(&last.id, 40)));
        }
    }
    out
}

fn held(lease: &WaitingView) -> String {
    let until =
        lease.until.as_ref().map_or_else(String::new, |until| format!(", until {} at the latest", moment(until)));
    format!("held by {}{}{until}", one_line(&lease.holder, 120), why(lease))
}

fn live(environment: &LiveView, now_ms: i64) -> String {
    match &environment.release {
        None => "nothing yet".to_owned(),
        Some(live) => {
            let since = environment.since.as_ref().map_or_else(String::new, |s| format!(", for {}", age(s, now_ms)));
            format!("{}{since}", release(live))
        }
    }
}

/// `run 01k... is testing a1b2c3d4e5f6 "Fix the cart" by Ann, for 12s (hook)`.
fn headline(run: &RunView, now_ms: i64) -> String {
    let ships = run.release.as_ref().map_or_else(String::new, |r| format!(" {}", release(r)));
    let id = one_line(&run.id, 40);
    let by = one_line(&run.by, 60);
    let by = if by.is_empty() { word(&run.trigger) } else { format!("{} by {by}", word(&run.trigger)) };
    if run.state.is_end() {
        let when = match run.finished_at.as_ref().map(|at| age(at, now_ms)).as_deref() {
            None => String::new(),
            Some("0s") => " just now".to_owned(),
            Some(age) => format!(" {age} ago"),
        };
        return format!("run {id} {}{when}:{ships} ({by})", ended(run.state));
    }
    let since = run.started_at.as_ref().unwrap_or(&run.created_at);
    let doing = match run.state {
        RunState::Queued => "queued",
        _ if run.waiting.is_some() => "waiting with",
        RunState::Testing => "testing",
        _ => "deploying",
    };
    format!("run {id} is {doing}{ships}, for {} ({by})", age(since, now_ms))
}

/// An end as a verb: `was stopped`, `rolled back`.
#[must_use]
pub fn ended(state: RunState) -> String {
    match state {
        RunState::Stopped | RunState::Superseded | RunState::Halted => format!("was {}", word(&state)),
        RunState::RollbackFailed => "could not be rolled back".to_owned(),
        RunState::Damaged => "ended damaged".to_owned(),
        _ => word(&state),
    }
}

/// What a run that goes on is at: its tests, its deployments, what it waits for.
fn details(run: &RunView) -> Vec<String> {
    let mut lines = Vec::new();
    if !run.stages.is_empty() {
        let stages: Vec<String> =
            run.stages.iter().map(|s| format!("{} {}", one_line(&s.name, 64), stage_word(s.state))).collect();
        lines.push(format!("tests: {}", stages.join(", ")));
    }
    for one in &run.deployments {
        lines.push(format!("{}: {}", one_line(&one.environment, 64), deployment(one)));
        lines.extend(one.hosts.iter().filter(|h| h.cause.is_some()).take(10).map(|h| format!("  {}", host(h))));
    }
    lines.extend(run.waiting.as_ref().map(waiting));
    lines
}

/// A stage's state as people say it.
#[must_use]
pub fn stage_word(state: StageState) -> &'static str {
    match state {
        StageState::Pending => "to come",
        StageState::Running => "running",
        StageState::Succeeded => "passed",
        StageState::Failed => "FAILED",
        StageState::Stopped => "stopped",
        StageState::Skipped => "skipped",
    }
}

/// `rolling, 3 of 10 hosts healthy, 1 failed`.
#[must_use]
pub fn deployment(deployment: &DeploymentView) -> String {
    let mut text = match deployment.state {
        DeploymentState::Succeeded => "done".to_owned(),
        state => word(&state),
    };
    if deployment.rollback_of.is_some() {
        text = format!("rollback to {}, {text}", one_line(&deployment.release, 20));
    }
    if !deployment.hosts.is_empty() {
        let count = |state: HostState| deployment.hosts.iter().filter(|h| h.state == state).count();
        let _infallible = write!(text, ", {} of {} hosts healthy", count(HostState::Healthy), deployment.hosts.len());
        for state in [
            HostState::Running,
            HostState::Failed,
            HostState::Unreachable,
            HostState::Unknown,
            HostState::Quarantined,
            HostState::RolledBack,
            HostState::Skipped,
            HostState::Gone,
        ] {
            if count(state) > 0 {
                let _infallible = write!(text, ", {} {}", count(state), word(&state));
            }
        }
    }
    if let Some(adopted) = &deployment.adopted {
        let _infallible = write!(text, ", adopted {}, which every host reported", one_line(adopted, 20));
    }
    if let Some(why) = deployment.rollback_unsafe.as_ref().filter(|_| deployment.finished_at.is_none()) {
        let _infallible = write!(text, ", cannot go back: {}", one_line(why, 200));
    }
    if let Some(wait) = &deployment.waiting {
        let _infallible = write!(text, ", {}", waiting(wait));
    }
    if let Some(why) = &deployment.cause {
        let _infallible = write!(text, ": {}", cause(why));
    }
    text
}

/// `web-2 failed: the unit is not active (unhealthy)`.
#[must_use]
pub fn host(host: &HostView) -> String {
    let name = one_line(if host.name.is_empty() { &host.id } else { &host.name }, 80);
    let why = host.cause.as_ref().map_or_else(String::new, |why| format!(": {}", cause(why)));
    format!("{name} {}{why}", word(&host.state))
}

/// One run, whole.
#[must_use]
pub fn run(run: &RunView, now_ms: i64) -> String {
    let mut out = String::new();
    line(&mut out, &format!("{}: {}", one_line(&run.project, 64), headline(run, now_ms)));
    if let Some(reason) = &run.reason {
        labelled(&mut out, "reason", &one_line(reason, 200));
    }
    if let Some(why) = &run.cause {
        // The one text that may need its lines: the tail of what a failed step printed.
        let text = printable(&why.message);
        for (i, part) in text.lines().take(40).enumerate() {
            labelled(&mut out, if i == 0 { "cause" } else { "" }, part);
        }
        labelled(&mut out, "", &format!("({})", one_line(&why.code, 60)));
    }
    if let Some(further) = &run.closed {
        labelled(&mut out, "further", &closed(further));
    }
    if let Some(wait) = &run.waiting {
        labelled(&mut out, "waiting", &waiting(wait));
    }
    for (i, stage) in run.stages.iter().enumerate() {
        let took = match (stage.started_at.as_ref(), stage.finished_at.as_deref().and_then(wall_ms)) {
            (Some(start), Some(end)) => format!(" in {}", age(start, end)),
            (Some(start), None) => format!(" for {}", age(start, now_ms)),
            _ => String::new(),
        };
        let why = stage.cause.as_ref().map_or_else(String::new, |c| format!(": {}", cause(c)));
        let text = format!("{} {}{took}{why}", one_line(&stage.name, 64), stage_word(stage.state));
        labelled(&mut out, if i == 0 { "tests" } else { "" }, &text);
    }
    for (i, one) in run.deployments.iter().enumerate() {
        let text = format!("{}: {}", one_line(&one.environment, 64), deployment(one));
        labelled(&mut out, if i == 0 { "deploy" } else { "" }, &text);
        for each in &one.hosts {
            labelled(&mut out, "", &format!("  {}", host(each)));
        }
    }
    out
}

/// Runs as a table.
#[must_use]
pub fn runs(runs: &[RunView], now_ms: i64) -> String {
    if runs.is_empty() {
        return "There are no such runs.\n".to_owned();
    }
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            let commit =
                run.release.as_ref().map_or_else(String::new, |r| format!("{} {}", r.id, one_line(&r.message, 40)));
            vec![
                run.id.clone(),
                run.project.clone(),
                word(&run.state),
                ago(Some(&run.created_at), now_ms),
                word(&run.trigger),
                commit,
                run.cause.as_ref().map(|c| c.code.clone()).unwrap_or_default(),
            ]
        })
        .collect();
    table(&["RUN", "PROJECT", "STATE", "CREATED", "TRIGGER", "COMMIT", "CAUSE"], &rows)
}

/// Projects as a table.
#[must_use]
pub(crate) fn projects(projects: &[ProjectView]) -> String {
    if projects.is_empty() {
        return "There are no projects.\n".to_owned();
    }
    let rows: Vec<Vec<String>> = projects
        .iter()
        .map(|p| {
            let trouble = p.trouble.as_ref().map_or_else(String::new, cause);
            vec![
                p.project.clone(),
                p.branch.clone(),
                p.environments.join(", "),
                p.running.len().to_string(),
                p.source.clone(),
                trouble,
            ]
        })
        .collect();
    table(&["PROJECT", "BRANCH", "ENVIRONMENTS", "RUNS NOW", "SOURCE", "WRONG"], &rows)
}

/// Tokens as a table.
#[must_use]
pub fn tokens(tokens: &[TokenView]) -> String {
    if tokens.is_empty() {
        return "There are no tokens. `phased token create --name NAME --scope deploy` makes one.\n".to_owned();
    }
    let all_or = |projects: &[String]| if projects.is_empty() { "all".to_owned() } else { projects.join(",") };
    let rows: Vec<Vec<String>> = tokens
        .iter()
        .map(|t| {
            let expires = t.expires_at.as_deref().map_or_else(|| "never".to_owned(), moment);
            vec![t.id.clone(), t.name.clone(), t.scopes.join(","), all_or(&t.projects), moment(&t.created_at), expires]
        })
        .collect();
    table(&["ID", "NAME", "SCOPES", "PROJECTS", "CREATED", "EXPIRES"], &rows)
}

/// Who would get what, in which order.
#[must_use]
pub fn plan(plan: &Plan) -> String {
    let mut out = String::new();
    let stages: Vec<String> = plan.stages.iter().map(|s| one_line(s, 64)).collect();
    let tests = if stages.is_empty() { "no tests".to_owned() } else { format!("tests {}", stages.join(", ")) };
    line(
        &mut out,
        &format!("{}: {tests}; then {}", one_line(&plan.project, 64), count(plan.environments.len(), "environment")),
    );
    if let Some(next) = &plan.next {
        line(&mut out, &format!("ships {}", release(next)));
    }
    if let Some(why) = &plan.cause {
        let but = if plan.next.is_some() { "but" } else { "ships nothing:" };
        line(&mut out, &format!("{but} {}", cause(why)));
    }
    for environment in &plan.environments {
        line(&mut out, "");
        out.push_str(&planned(&plan.project, environment));
    }
    out
}

/// What follows when it fails after a host was touched.
fn consequence(environment: &EnvironmentPlan) -> String {
    let adopted = if environment.adopted { ", adopted: every host reports it" } else { "" };
    let answer = environment.rollback_answer.as_ref().filter(|_| environment.rollback_safe);
    let reason = answer.and_then(|answer| answer.reason.as_deref()).map(|reason| one_line(reason, 300));
    let reason = reason.unwrap_or_else(|| "it gave no reason".to_owned());
    let says = answer.and_then(|answer| answer.safe);
    let safe = match says {
        _ if !environment.rollback_safe => String::new(),
        Some(_) => "; rollback_safe allows it".to_owned(),
        None if answer.is_none() => ", if rollback_safe does not forbid it".to_owned(),
        None => {
            format!(", if rollback_safe does not forbid it, which is asked when the deployment begins; now: {reason}")
        }
    };
    match (environment.on_failure, &environment.rollback, &environment.no_rollback) {
        (OnFailure::Rollback, Some(_), _) if says == Some(false) => {
            format!("it halts: {}", cause(&(&unsafe_to_go_back(&reason)).into()))
        }
        (OnFailure::Rollback, Some(target), _) => {
            let on = environment.rollback_on.filter(|_| !environment.adopted);
            let on = on.map_or_else(String::new, |on| {
                format!(", which {on} of them {} now", if on == 1 { "has" } else { "have" })
            });
            format!("back to {}{on}{adopted}{safe}", release(target))
        }
        (OnFailure::Rollback, None, Some(why)) => {
            format!("it halts: {} ({})", one_line(&why.message, 1000), one_line(&why.code, 60))
        }
        (OnFailure::Rollback, None, None) | (OnFailure::Halt, ..) => "it halts as it is".to_owned(),
        (OnFailure::Pause, ..) => "it waits for a person".to_owned(),
    }
}

/// What opens an environment that a push does not enter by itself.
fn door(project: &str, environment: &EnvironmentPlan) -> Option<String> {
    // An older daemon says nothing of it.
    let when = Some(&environment.when).filter(|when| !matches!(when.as_str(), "push" | ""))?;
    let command = format!("phased start {project} {}", environment.environment);
    Some(closed(&ClosedView { environment: environment.environment.clone(), when: when.clone(), command }))
}

/// Whose hosts are never under way at the same moment.
fn zones(environment: &EnvironmentPlan) -> String {
    let zones: BTreeSet<&str> = environment.hosts.iter().filter_map(|host| host.zone.as_deref()).collect();
    let zones: Vec<String> = zones.into_iter().map(|zone| one_line(zone, 64)).collect();
    match zones.as_slice() {
        [] => "never two at once, but no host says which it is in".to_owned(),
        zones => format!("never two at once: {}", zones.join(", ")),
    }
}

fn planned(project: &str, environment: &EnvironmentPlan) -> String {
    let mut out = String::new();
    let hosts = environment.hosts.len();
    line(
        &mut out,
        &format!(
            "{}: {}, {} at a time{}",
            one_line(&environment.environment, 64),
            count(hosts, "host"),
            environment.max_parallel,
            environment.expected.as_ref().map_or_else(String::new, |took| format!("; it took {took} the last time")),
        ),
    );
    if !environment.waves.is_empty() {
        let sizes: Vec<String> = environment
            .waves
            .iter()
            .map(|wave| if wave.canary { format!("canary {}", wave.hosts) } else { wave.hosts.to_string() })
            .collect();
        labelled(
            &mut out,
            "waves",
            &format!("{}; watched for {} after each", sizes.join(", then "), environment.bake_time),
        );
    }
    if environment.zones {
        labelled(&mut out, "zones", &zones(environment));
    }
    if let Some(door) = door(project, environment) {
        labelled(&mut out, "when", &door);
    }
    if !environment.calls.is_empty() {
        let calls: Vec<String> = environment.calls.iter().map(|function| one_line(function, 64)).collect();
        labelled(&mut out, "calls", &calls.join(", "));
    }
    labelled(&mut out, "live", &environment.current.as_ref().map_or_else(|| "nothing yet".to_owned(), release));
    labelled(
        &mut out,
        "stops",
        &format!(
            "when more than {} failed or more than {} are unreachable",
            one_line(&environment.max_failures, 100),
            one_line(&environment.max_unreachable, 100)
        ),
    );
    if let Some(most) = &environment.max_failures_per_wave {
        labelled(&mut out, "", &format!("or when more than {} of one wave failed", one_line(most, 100)));
    }
    labelled(&mut out, "", &format!("or when fewer than {} would serve", one_line(&environment.min_healthy, 100)));
    labelled(&mut out, "then", &consequence(environment));
    for alarm in &environment.alarms {
        labelled(&mut out, "alarm", &one_line(alarm, 200));
    }
    if let Some(firing) = &environment.firing {
        labelled(&mut out, "FIRES", &format!("{}; nothing is deployed before it is silent", one_line(firing, 200)));
    }
    if let Some(freeze) = &environment.freeze {
        labelled(&mut out, "waits", &format!("it is {}", frozen(freeze)));
    }
    if let Some(lease) = &environment.lease {
        labelled(&mut out, "waits", &format!("it is {}", held(lease)));
    }
    if let Some(why) = &environment.cause {
        labelled(&mut out, "WRONG", &cause(why));
    }
    let zoned = environment.hosts.iter().any(|h| h.zone.is_some());
    let headings: &[&str] = if zoned {
        &["WAVE", "HOST", "ADDRESS", "ID", "HAS", "ZONE"]
    } else {
        &["WAVE", "HOST", "ADDRESS", "ID", "HAS"]
    };
    let rows: Vec<Vec<String>> = environment
        .hosts
        .iter()
        .map(|h| {
            let has = h.current.clone().unwrap_or_else(|| "?".to_owned());
            vec![
                h.wave.to_string(),
                h.name.clone(),
                h.address.clone(),
                h.id.clone(),
                h.ill.as_ref().map_or(has.clone(), |why| format!("{has}, not healthy: {}", one_line(why, 200))),
                h.zone.clone().unwrap_or_default(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        for row in table(headings, &rows).lines() {
            line(&mut out, &format!("  {row}"));
        }
    }
    for host in &environment.skipped {
        let (name, why) = (one_line(&host.name, 100), one_line(&host.message, 200));
        labelled(
            &mut out,
            "skips",
            &format!("{name} ({}): {why} ({})", one_line(&host.id, 100), one_line(&host.code, 60)),
        );
    }
    out
}

/// `1 host`, `2 hosts`.
#[must_use]
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-01-02T03:00:00Z";

    fn now() -> i64 {
        wall_ms(NOW).unwrap()
    }

    /// A run in the middle of everything, with hostile texts.
    pub(crate) fn a_run(state: &str) -> RunView {
        serde_json::from_value(json!({
            "id": "01kc0000000000000000000000", "project": "shop", "state": state, "trigger": "hook", "by": "github",
            "release": {"id": "a1b2c3d4e5f6", "revision": "a1b2c3d4e5f6a1b2c3d4e5f6a1b2c3d4e5f6a1b2", "branch": "main", "tag": null,
                        "author": "Ann <ann@example.com>", "message": "Fix the \u{1b}[31mcart\u{1b}[0m\n\nLong story"},
            "created_at": "2026-01-02T02:59:00Z", "started_at": "2026-01-02T02:59:48Z",
            "stages": [
                {"name": "build", "state": "succeeded", "started_at": "2026-01-02T02:59:48Z", "finished_at": "2026-01-02T02:59:50Z"},
                {"name": "unit", "state": "running", "started_at": "2026-01-02T02:59:50Z"},
                {"name": "integration", "state": "pending"}],
            "deployments": [{"id": "01kc0000000000000000000000.1", "environment": "production", "state": "rolling", "release": "a1b2c3d4e5f6",
                "hosts": [
                    {"id": "i-1", "name": "web-1", "address": "10.0.0.1:22", "state": "healthy"},
                    {"id": "i-2", "name": "web-2", "address": "10.0.0.2:22", "state": "failed",
                     "cause": {"code": "unhealthy", "message": "GET :8080/healthz answered 500"}},
                    {"id": "i-3", "name": "", "address": "10.0.0.3:22", "state": "pending"}]}]
        }))
        .unwrap()
    }

    pub(crate) fn a_project() -> ProjectStatus {
        let mut last = a_run("failed");
        last.cause = Some(
            serde_json::from_value(
                json!({"code": "exit", "message": "stage unit: `npm test` exited with 1\nFAIL cart"}),
            )
            .unwrap(),
        );
        last.finished_at = Some("2026-01-02T01:00:00Z".into());
        serde_json::from_value::<ProjectStatus>(json!({
            "project": "shop", "source": "https://github.com/acme/shop.git", "branch": "main", "running": [], "last": null,
            "environments": [
                {"environment": "staging", "release": last.release, "since": "2026-01-01T20:00:00Z", "run": null},
                {"environment": "production", "trouble": {"code": "max_failures", "message": "1 of 3 hosts failed, 0 may"}}]
        }))
        .map(|status| ProjectStatus { running: vec![a_run("testing")], last: Some(last), ..status })
        .unwrap()
    }

    #[test]
    fn a_project_reads_well() {
        assert_eq!(
            project(&a_project(), now()),
            r#"shop  branch main of https://github.com/acme/shop.git
  now     run 01kc0000000000000000000000 is testing a1b2c3d4e5f6 "Fix the cart" by Ann, for 12s (hook by github)
            tests: build passed, unit running, integration to come
            production: rolling, 1 of 3 hosts healthy, 1 failed
              web-2 failed: GET :8080/healthz answered 500 (unhealthy)
  live    staging     a1b2c3d4e5f6 "Fix the cart" by Ann, for 7h
          production  nothing yet
                      WRONG: 1 of 3 hosts failed, 0 may (max_failures)
  last    run 01kc0000000000000000000000 failed 2h ago: a1b2c3d4e5f6 "Fix the cart" by Ann (hook by github)
            stage unit: `npm test` exited with 1 (exit)
            look further: phased log 01kc0000000000000000000000
"#
        );
    }

    #[test]
    fn a_run_reads_well() {
        assert_eq!(
            run(&a_run("deploying"), now()),
            r#"shop: run 01kc0000000000000000000000 is deploying a1b2c3d4e5f6 "Fix the cart" by Ann, for 12s (hook by github)
  tests   build passed in 2s
          unit running for 10s
          integration to come
  deploy  production: rolling, 1 of 3 hosts healthy, 1 failed
            web-1 healthy
            web-2 failed: GET :8080/healthz answered 500 (unhealthy)
            i-3 pending
"#
        );
    }

    #[test]
    fn a_plan_reads_well() {
        let mut view: Plan = serde_json::from_value(json!({
            "project": "shop", "stages": ["build", "unit"],
            "next": {"id": "b2c3d4e5f6a7", "revision": "b2c3d4e5f6a7", "author": "Bo <b@c>", "message": "Faster\n\nMuch"},
            "environments": [{"environment": "production", "max_parallel": 2, "max_failures": "10% of 25 hosts = 2", "max_unreachable": "0",
                "waves": [{"n": 1, "canary": true, "hosts": 1}, {"n": 2, "canary": false, "hosts": 1}],
                "min_healthy": "2 healthy now less max_parallel 2 = 0", "bake_time": "2m", "rollback_safe": true, "on_failure": "rollback",
                "when": "manual", "zones": true, "max_failures_per_wave": "1", "calls": ["prepare", "deploy"],
                "freeze": {"code": "freeze", "holder": "ann", "until": NOW, "reason": "Christmas"},
                "lease": {"code": "lease", "holder": "bob", "until": null, "reason": "debugging"},
                "expected": "6m", "alarms": ["error rate: fires above 0.01"], "firing": "error rate: it measures 0.5",
                "skipped": [{"id": "i-3", "name": "web-3", "address": "10.0.0.3", "source": "ec2", "code": "stopped", "message": "it is stopped"}],
                "no_rollback": {"code": "no_target", "message": "this is the first"},
                "hosts": [{"id": "i-1", "name": "web-1", "address": "10.0.0.1:22", "zone": "a", "wave": 1, "current": "a1b2c3d4e5f6"},
                          {"id": "i-2", "name": "web-\u{202e}2", "address": "10.0.0.2:22", "zone": "b", "wave": 2, "ill": "it failed"}]}]
        }))
        .unwrap();
        assert_eq!(
            plan(&view),
            "shop: tests build, unit; then 1 environment
ships b2c3d4e5f6a7 \"Faster\" by Bo

production: 2 hosts, 2 at a time; it took 6m the last time
  waves   canary 1, then 1; watched for 2m after each
  zones   never two at once: a, b
  when    production is entered only when somebody says so: phased start shop production
  calls   prepare, deploy
  live    nothing yet
  stops   when more than 10% of 25 hosts = 2 failed or more than 0 are unreachable
          or when more than 1 of one wave failed
          or when fewer than 2 healthy now less max_parallel 2 = 0 would serve
  then    it halts: this is the first (no_target)
  alarm   error rate: fires above 0.01
  FIRES   error rate: it measures 0.5; nothing is deployed before it is silent
  waits   it is frozen until 2026-01-02 03:00:00 UTC by ann (Christmas)
  waits   it is held by bob (debugging)
  WAVE  HOST   ADDRESS      ID   HAS                        ZONE
  1     web-1  10.0.0.1:22  i-1  a1b2c3d4e5f6               a
  2     web-2  10.0.0.2:22  i-2  ?, not healthy: it failed  b
  skips   web-3 (i-3): it is stopped (stopped)
"
        );
        view.cause = view.environments[0].no_rollback.take();
        assert!(plan(&view).contains("\nbut this is the first (no_target)\n"), "{}", plan(&view));
    }

    #[test]
    fn a_plan_says_whether_a_failure_can_go_back() {
        let mut view: EnvironmentPlan = serde_json::from_value(json!({
            "environment": "production", "max_parallel": 1, "max_failures": "0", "max_unreachable": "0", "min_healthy": "1", "bake_time": "2m",
            "rollback_safe": false, "on_failure": "rollback", "alarms": [], "waves": [], "hosts": [],
            "rollback": {"id": "a1b2c3d4e5f6", "revision": "a1b2c3d4e5f6", "author": "Ann <a@b>", "message": "Fix the cart"}, "rollback_on": 1,
        }))
        .unwrap();
        let back = |then: &str| format!("back to a1b2c3d4e5f6 \"Fix the cart\" by Ann, which 1 of them has now{then}");
        assert_eq!(consequence(&view), back(""));
        view.rollback_safe = true;
        assert_eq!(consequence(&view), back(", if rollback_safe does not forbid it"));
        let answers = [
            (json!({"safe": true, "reason": null}), back("; rollback_safe allows it")),
            (
                json!({"safe": false, "reason": "the schema\nchanged"}),
                "it halts: rollback_safe says no: the schema (rollback_unsafe)".to_owned(),
            ),
            (
                json!({"safe": null, "reason": "shop.lua:3: it has no artifact app"}),
                back(
                    ", if rollback_safe does not forbid it, which is asked when the deployment begins; now: shop.lua:3: it has no artifact app",
                ),
            ),
        ];
        for (answer, wanted) in answers {
            view.rollback_answer = serde_json::from_value(answer).unwrap();
            assert_eq!(consequence(&view), wanted);
        }
        // Where there is nothing to go back to, that is why.
        view.rollback = None;
        view.no_rollback =
            serde_json::from_value(json!({"code": "no_target", "message": "this is the first"})).unwrap();
        assert_eq!(consequence(&view), "it halts: this is the first (no_target)");
    }

    #[test]
    fn maintenance_reads_well() {
        let mut on: MaintenanceView = serde_json::from_value(json!({
            "on": true, "by": "uid 0", "reason": "upgrade\nto 0.2", "since": NOW,
            "runs": [{"run": "01a", "project": "blog", "doing": []},
                     {"run": "01b", "project": "shop", "doing": ["deploys to web2 (production)", "deploys to web3 (production)"]}]
        }))
        .unwrap();
        assert_eq!(
            maintenance(&on),
            "maintenance is on since 2026-01-02 03:00:00 UTC by uid 0: upgrade
  works   shop run 01b deploys to web2 (production), deploys to web3 (production)
  parked  blog run 01a
1 run is parked, 1 still works; `phased maintenance off` goes on
"
        );
        let trouble = Status {
            version: "1".into(),
            since: NOW.into(),
            maintenance: on.clone(),
            trouble: vec![],
            projects: vec![],
        };
        assert!(status(&trouble, now()).starts_with(
            "MAINTENANCE since 2026-01-02 03:00:00 UTC by uid 0: upgrade; 1 run is parked, 1 still works; `phased maintenance off` goes on\nphased 1,"
        ));
        on.runs.clear();
        assert_eq!(counted(&on), "nothing is at work, nothing is parked");
        assert_eq!(maintenance(&MaintenanceView::default()), "maintenance is off\n");
    }

    #[test]
    fn empty_lists_say_so() {
        assert!(runs(&[], 0).contains("no such runs"));
        assert!(tokens(&[]).contains("token create"));
        assert!(projects(&[]).contains("no projects"));
        let none = Status {
            version: "1".into(),
            since: NOW.into(),
            maintenance: MaintenanceView::default(),
            trouble: vec![],
            projects: vec![],
        };
        assert!(status(&none, now()).contains("phased init"));
    }
}
