//! A run as it goes: a block that is redrawn on a terminal, lines everywhere else.

use std::io::IsTerminal as _;

use super::output::say;
use crate::{
    api::{
        render,
        text::{age, one_line, padded, width, word},
    },
    engine::view::{DeploymentView, HostView, RunView, StageState},
    model::deployment::{DeploymentState, HostState},
    model::run::RunState,
};

const MOONS: [&str; 5] = ["🌑", "🌒", "🌓", "🌔", "🌕"];

/// Hosts named one by one in the block; a terminal has few lines and cannot redraw what scrolled away.
const MOST_HOSTS: usize = 8;

/// Shows one run until it has ended.
pub(super) struct Progress {
    seen: Option<RunView>,
    /// Lines of the block on the screen; `None` = plain lines.
    block: Option<usize>,
    colours: bool,
}

impl Progress {
    /// For stderr as it is.
    pub(super) fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        let terminal = std::io::stderr().is_terminal() && !dumb;
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Progress { seen: None, block: terminal.then_some(0), colours }
    }

    /// How often a block's clocks are worth redrawing.
    pub(super) fn is_live(&self) -> bool {
        self.block.is_some()
    }

    /// Shows the run as it is now.
    pub(super) fn show(&mut self, run: &RunView, now_ms: i64) {
        match self.block {
            Some(height) => {
                let lines = block(run, now_ms, self.colours);
                self.block = Some(lines.len());
                say(&redrawn(height, &lines));
            }
            None => {
                for line in changes(self.seen.as_ref(), run) {
                    say(&format!("{line}\n"));
                }
            }
        }
        self.seen = Some(run.clone());
    }

    /// Says something between; the block is drawn anew below it.
    pub(super) fn remark(&mut self, text: &str) {
        say(&format!("{text}\n"));
        if let Some(height) = &mut self.block {
            *height = 0;
        }
    }
}

/// Takes the old block off the screen and draws the new one; lines are cut at the edge instead of wrapping, so that their number is known.
fn redrawn(height: usize, lines: &[String]) -> String {
    let up = if height > 0 { format!("\x1b[{height}A\x1b[J") } else { String::new() };
    format!("{up}\x1b[?7l{}\n\x1b[?7h", lines.join("\n"))
}

/// How much of the moon is lit: dark = nobody done, full = everybody.
pub(super) fn moon(deployment: &DeploymentView) -> &'static str {
    let all = deployment.hosts.len();
    let waiting = |host: &&HostView| matches!(host.state, HostState::Pending | HostState::Running | HostState::Unknown);
    let done = all - deployment.hosts.iter().filter(waiting).count();
    let phase = match (done, all) {
        (_, 0) if deployment.state == DeploymentState::Succeeded => 4,
        (0, _) => 0,
        (done, all) if done == all => 4,
        (done, all) => 1 + done * 3 / all,
    };
    MOONS.get(phase).copied().unwrap_or("🌕")
}

fn painted(text: &str, code: &str, colours: bool) -> String {
    if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// The block on a terminal.
pub(super) fn block(run: &RunView, now_ms: i64, colours: bool) -> Vec<String> {
    let ships = run.release.as_ref().map_or_else(|| "finding the commit".to_owned(), render::release);
    let state = match run.state {
        RunState::Succeeded => painted("succeeded", "32", colours),
        state if state.is_end() => painted(&word(&state), "31", colours),
        state => word(&state),
    };
    let time = match &run.finished_at {
        Some(_) => String::new(),
        None => format!(" {}", age(run.started_at.as_ref().unwrap_or(&run.created_at), now_ms)),
    };
    let title = format!("{}  {state}{time}  {ships}", painted(&one_line(&run.project, 64), "1", colours));
    let mut lines = vec![title];
    if let Some(waiting) = &run.waiting {
        lines.push(format!("  {}", render::waiting(waiting)));
    }
    if !run.stages.is_empty() {
        let stages: Vec<String> = run
            .stages
            .iter()
            .map(|stage| {
                let (mark, code) = match stage.state {
                    StageState::Pending => ("·", "2"),
                    StageState::Running => ("▸", "1"),
                    StageState::Succeeded => ("✓", "32"),
                    StageState::Failed => ("✗", "31"),
                    StageState::Stopped => ("■", "31"),
                    StageState::Skipped => ("-", "2"),
                };
                painted(&format!("{mark} {}", one_line(&stage.name, 64)), code, colours)
            })
            .collect();
        lines.push(format!("  tests  {}", stages.join("  ")));
    }
    let names = run.deployments.iter().map(|d| width(&one_line(&d.environment, 64))).max().unwrap_or(0);
    for deployment in &run.deployments {
        let name = padded(&one_line(&deployment.environment, 64), names);
        lines.push(format!("  {} {name}  {}", moon(deployment), render::deployment(deployment)));
        let notable = |host: &&HostView| host.cause.is_some() || host.state == HostState::Running;
        let shown: Vec<&HostView> = deployment.hosts.iter().filter(notable).collect();
        for host in shown.iter().take(MOST_HOSTS) {
            let text = format!("       {}", render::host(host));
            lines.push(if host.cause.is_some() { painted(&text, "31", colours) } else { text });
        }
        if shown.len() > MOST_HOSTS {
            lines.push(format!("       and {} more", shown.len() - MOST_HOSTS));
        }
    }
    lines
}

/// What has changed, one line each, for logs and pipes.
pub(super) fn changes(old: Option<&RunView>, new: &RunView) -> Vec<String> {
    let mut lines = Vec::new();
    let project = one_line(&new.project, 64);
    if let (None | Some(None), Some(release)) = (old.map(|o| o.release.as_ref()), &new.release) {
        lines.push(format!("{project}: {}", render::release(release)));
    }
    let state_changed = old.is_none_or(|o| o.state != new.state);
    if state_changed && !new.state.is_end() {
        lines.push(format!("{project}: {}", word(&new.state)));
    }
    if let Some(waiting) = new.waiting.as_ref().filter(|w| old.and_then(|o| o.waiting.as_ref()) != Some(w)) {
        lines.push(format!("{project}: {}", render::waiting(waiting)));
    }
    for stage in &new.stages {
        let before = old.and_then(|o| o.stages.iter().find(|s| s.name == stage.name)).map(|s| s.state);
        if stage.state != StageState::Pending && before != Some(stage.state) {
            let why = stage.cause.as_ref().map_or_else(String::new, |c| format!(": {}", render::cause(c)));
            lines.push(format!("test {}: {}{why}", one_line(&stage.name, 64), render::stage_word(stage.state)));
        }
    }
    for deployment in &new.deployments {
        let environment = one_line(&deployment.environment, 64);
        let before = old.and_then(|o| o.deployments.iter().find(|d| d.id == deployment.id));
        for host in &deployment.hosts {
            let was = before.and_then(|d| d.hosts.iter().find(|h| h.id == host.id)).map(|h| h.state);
            if host.state != HostState::Pending && was != Some(host.state) {
                lines.push(format!("{environment}: {}", render::host(host)));
            }
        }
        if before.is_none_or(|d| d.state != deployment.state || d.waiting != deployment.waiting) {
            lines.push(format!("{environment}: {}", render::deployment(deployment)));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{render::tests::a_run, text::wall_ms};

    fn now() -> i64 {
        wall_ms("2026-01-02T03:00:00Z").unwrap()
    }

    #[test]
    fn the_moon_waxes_with_the_hosts_that_are_done() {
        let mut deployment = a_run("deploying").deployments.remove(0);
        let host = deployment.hosts[2].clone();
        for (done, all, moon_then) in [
            (0, 0, "🌑"),
            (0, 10, "🌑"),
            (1, 10, "🌒"),
            (3, 10, "🌒"),
            (5, 10, "🌓"),
            (9, 10, "🌔"),
            (10, 10, "🌕"),
            (1, 1, "🌕"),
            (1, 2, "🌓"),
        ] {
            deployment.hosts = (0..all)
                .map(|i| HostView {
                    state: if i < done { HostState::Healthy } else { HostState::Pending },
                    ..host.clone()
                })
                .collect();
            assert_eq!(moon(&deployment), moon_then, "{done}/{all}");
        }
    }

    #[test]
    fn the_block_reads_well() {
        assert_eq!(
            block(&a_run("deploying"), now(), false).join("\n"),
            r#"shop  deploying 12s  a1b2c3d4e5f6 "Fix the cart" by Ann
  tests  ✓ build  ▸ unit  · integration
  🌔 production  rolling, 1 of 3 hosts healthy, 1 failed
       web-2 failed: GET :8080/healthz answered 500 (unhealthy)"#
        );
        let coloured = block(&a_run("failed"), now(), true).join("\n");
        assert!(
            coloured.contains("\x1b[31mfailed\x1b[0m") && coloured.contains("\x1b[32m✓ build\x1b[0m"),
            "{coloured:?}"
        );
        assert_eq!(redrawn(0, &["a".into(), "b".into()]), "\x1b[?7la\nb\n\x1b[?7h");
        assert!(redrawn(2, &["a".into()]).starts_with("\x1b[2A\x1b[J"));
    }

    #[test]
    fn many_hosts_do_not_scroll_the_block_away() {
        let mut run = a_run("deploying");
        let failed = run.deployments[0].hosts[1].clone();
        run.deployments[0].hosts = vec![failed; 500];
        let lines = block(&run, now(), false);
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (12, Some("       and 492 more")));
    }

    #[test]
    fn without_a_terminal_changes_are_told_once() {
        let first = a_run("deploying");
        assert_eq!(
            changes(None, &first),
            [
                r#"shop: a1b2c3d4e5f6 "Fix the cart" by Ann"#,
                "shop: deploying",
                "test build: passed",
                "test unit: running",
                "production: web-1 healthy",
                "production: web-2 failed: GET :8080/healthz answered 500 (unhealthy)",
                "production: rolling, 1 of 3 hosts healthy, 1 failed",
            ]
        );
        assert_eq!(changes(Some(&first), &first), Vec::<String>::new());
        let mut next = first.clone();
        next.deployments[0].hosts[2].state = HostState::Running;
        next.stages[1].state = StageState::Failed;
        assert_eq!(changes(Some(&first), &next), ["test unit: FAILED", "production: i-3 running"]);
    }
}
