//! Four commits: one that is good, one whose tests fail, one that does not come up, and one that falls ill later. Each is pressed through
//! the HTTP API, and what became of it is asked of the hosts themselves.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use serde_json::Value;

use super::{
    ask::{Place, ask},
    host::Host,
    repository::{self, AUTHOR, Change},
    site::Site,
    terminal::{Terminal, Tone},
};
use crate::{
    api::text::{one_line, printable, word},
    engine::view::{HostView, ProjectStatus, RunView, StageState},
    model::deployment::HostState,
    model::run::RunState,
    time::{Clock, Stamp, within},
};

/// The longest a run of the demo may take; all of them together take about 40 s.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// The longest the daemon may take to look for the branch.
const START_LIMIT: Duration = Duration::from_secs(10);
/// The longest an announcement may take.
const ALERT_LIMIT: Duration = Duration::from_secs(10);
/// Columns of what an announcement quotes, and the most lines of it.
const WIDTH: usize = 100;
const MOST_LINES: usize = 4;
/// How often the daemon is asked how far it is.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// The button's end of the daemon, and who watches.
pub(super) struct Story<'a> {
    pub(super) site: &'a Site,
    pub(super) daemon: Place,
    /// What its TCP listener asks for; the socket needs none.
    pub(super) token: Option<&'a str>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) terminal: &'a mut Terminal,
    /// What the rows above are about.
    pub(super) label: String,
    /// The run as it was shown last, and since when it is shown.
    seen: Option<RunView>,
    began: Stamp,
}

/// What went otherwise than described.
#[derive(Debug, Default)]
pub(super) struct Differences(pub(super) Vec<String>);

impl Differences {
    pub(super) fn unless(&mut self, as_described: bool, otherwise: impl FnOnce() -> String) {
        if !as_described {
            self.0.push(otherwise());
        }
    }
}

/// What a host serves right now.
struct Serves {
    revision: Option<String>,
    healthy: bool,
    /// What its front page says, or what it complains of.
    says: String,
}

impl<'a> Story<'a> {
    /// One that begins.
    pub(super) fn new(
        site: &'a Site,
        daemon: Place,
        token: Option<&'a str>,
        clock: &Arc<dyn Clock>,
        terminal: &'a mut Terminal,
    ) -> Self {
        let (clock, began) = (clock.clone(), clock.now());
        Story { site, daemon, token, clock, terminal, label: String::new(), seen: None, began }
    }

    /// Tells all four.
    ///
    /// # Errors
    /// Something stood in the way: no answer, an answer that cannot be read, git.
    pub(super) async fn tell(&mut self) -> anyhow::Result<Differences> {
        let mut differences = Differences::default();
        self.daemon_has_looked().await?;
        let good = self.good(&mut differences).await?;
        // The daemon began before there was a branch, and says so until it looks again.
        ask(&*self.clock, &self.daemon, "/v1/reload", self.token, Some("")).await?;
        self.fails_tests(&good, &mut differences).await?;
        self.unhealthy(&good, &mut differences).await?;
        self.ill(&good, &mut differences).await?;
        Ok(differences)
    }

    /// Waits until the daemon has looked for the branch, as it does once at its start, and found none: else that look might see the
    /// first commit and start a run of its own beside the button's.
    pub(super) async fn daemon_has_looked(&self) -> anyhow::Result<()> {
        let looked = async {
            while self.status().await?.trouble.is_none() {
                self.clock.sleep(LOOK).await;
            }
            anyhow::Ok(())
        };
        within(&*self.clock, START_LIMIT, looked).await.context("the daemon does not ask for the branch")?
    }

    async fn good(&mut self, differences: &mut Differences) -> anyhow::Result<String> {
        let before = differences.0.len();
        self.heading("1. A good commit goes out to every host");
        let (revision, run) = self.deploy(&repository::GOOD).await?;
        self.is_everywhere(&run, &revision, differences).await?;
        self.verdict(differences.0.len() == before, "tested, rolled out host by host, each healthy before the next");
        Ok(revision)
    }

    /// The run has succeeded, and every host serves `revision`.
    pub(super) async fn is_everywhere(
        &mut self,
        run: &RunView,
        revision: &str,
        differences: &mut Differences,
    ) -> anyhow::Result<()> {
        differences.unless(run.state == RunState::Succeeded, || ended(run, "succeed"));
        let serving = self.all_serve().await?;
        for (host, serves) in self.site.hosts.iter().zip(&serving) {
            let well = serves.healthy && serves.revision.as_deref() == Some(revision);
            differences.unless(well, || otherwise(host, serves, revision));
        }
        differences.unless(self.live().await?.as_deref() == Some(revision), || {
            "the daemon says something else is live".to_owned()
        });
        if let Some(first) = serving.first() {
            self.row("asked", &format!("all {} hosts serve {}: \"{}\"", serving.len(), short(revision), first.says));
        }
        Ok(())
    }

    async fn fails_tests(&mut self, good: &str, differences: &mut Differences) -> anyhow::Result<()> {
        let before = differences.0.len();
        self.heading("2. A commit whose tests fail goes nowhere");
        let (_, run) = self.deploy(&repository::FAILS_TESTS).await?;
        differences.unless(run.state == RunState::Failed, || ended(&run, "fail"));
        differences.unless(run.deployments.is_empty(), || "it was deployed though its tests failed".to_owned());
        let announced = self.announced(&run, differences).await;
        let serving = self.all_serve().await?;
        for (host, serves) in self.site.hosts.iter().zip(&serving) {
            let untouched = serves.healthy && serves.revision.as_deref() == Some(good);
            differences.unless(untouched, || otherwise(host, serves, good));
        }
        self.told(announced.as_ref());
        self.row("asked", &format!("all {} hosts still serve {}: none was touched", serving.len(), short(good)));
        self.verdict(differences.0.len() == before, "refused, and people were told why");
        Ok(())
    }

    async fn unhealthy(&mut self, good: &str, differences: &mut Differences) -> anyhow::Result<()> {
        let before = differences.0.len();
        self.heading("3. A commit that passes its tests and does not come up is taken back from the first host");
        let run = self.taken_back(&repository::UNHEALTHY, good, differences).await?;
        let hosts = run.deployments.first().map(|deployment| deployment.hosts.as_slice()).unwrap_or_default();
        let skipped = hosts.iter().skip(1).filter(|host| host.state == HostState::Skipped).count();
        differences.unless(skipped + 1 == hosts.len(), || "it did not stop at the first host".to_owned());
        self.verdict(differences.0.len() == before, "the canary failed and went back by itself; no other host saw it");
        Ok(())
    }

    async fn ill(&mut self, good: &str, differences: &mut Differences) -> anyhow::Result<()> {
        let before = differences.0.len();
        self.heading(
            "4. A commit that is healthy at first and falls ill when more hosts have it is taken back from all",
        );
        let run = self.taken_back(&repository::ILL, good, differences).await?;
        let hosts = run.deployments.first().map(|deployment| deployment.hosts.as_slice()).unwrap_or_default();
        let back = hosts.iter().filter(|host| host.state == HostState::RolledBack).count();
        differences.unless(back > 1, || "it did not come to a second host".to_owned());
        self.verdict(differences.0.len() == before, "caught while it was watched, after the canary had passed");
        Ok(())
    }

    /// Presses the button for a bad commit: it goes back by itself, people are told, and every host serves `good`.
    async fn taken_back(
        &mut self,
        change: &Change,
        good: &str,
        differences: &mut Differences,
    ) -> anyhow::Result<RunView> {
        let (_, run) = self.deploy(change).await?;
        differences.unless(run.state == RunState::RolledBack, || ended(&run, "be rolled back"));
        let announced = self.announced(&run, differences).await;
        let serving = self.all_serve().await?;
        for (host, serves) in self.site.hosts.iter().zip(&serving) {
            let well = serves.healthy && serves.revision.as_deref() == Some(good);
            differences.unless(well, || otherwise(host, serves, good));
        }
        differences.unless(self.live().await?.as_deref() == Some(good), || {
            "the daemon says something else is live".to_owned()
        });
        self.told(announced.as_ref());
        self.row("asked", &format!("all {} hosts serve {} again", serving.len(), short(good)));
        Ok(run)
    }

    /// Commits, presses the button and shows the run until it has ended.
    async fn deploy(&mut self, change: &Change) -> anyhow::Result<(String, RunView)> {
        let (revision, run) = self.press(change).await?;
        Ok((revision, self.follow(&run.id).await?))
    }

    /// Commits and presses the button.
    pub(super) async fn press(&mut self, change: &Change) -> anyhow::Result<(String, RunView)> {
        let revision = self.site.repository.commit(change)?;
        self.row("commit", &format!("{} \"{}\" by {}", short(&revision), change.message, AUTHOR.0));
        let form = "reason=the+demo";
        let answer = ask(&*self.clock, &self.daemon, "/v1/projects/shop/start", self.token, Some(form)).await?;
        let run: RunView = answer.json().context("the button was pressed, and no run began")?;
        self.row("button", &format!("POST /v1/projects/shop/start → run {}", one_line(&run.id, 40)));
        (self.seen, self.began) = (None, self.clock.now());
        Ok((revision, run))
    }

    /// Shows a run until it has ended.
    pub(super) async fn follow(&mut self, run: &str) -> anyhow::Result<RunView> {
        let began = self.clock.now();
        loop {
            let view = self.look(run).await?;
            if view.state.is_end() {
                return Ok(view);
            }
            if self.clock.now().since(&began) > RUN_LIMIT {
                anyhow::bail!("the run did not end within {} s", RUN_LIMIT.as_secs());
            }
            self.clock.sleep(LOOK).await;
        }
    }

    /// Looks at a run and shows what has changed.
    pub(super) async fn look(&mut self, run: &str) -> anyhow::Result<RunView> {
        let path = format!("/v1/runs/{run}");
        let view: RunView = ask(&*self.clock, &self.daemon, &path, self.token, None).await?.json()?;
        let (seen, began) = (self.seen.replace(view.clone()), self.began.clone());
        self.progress(seen.as_ref(), &view, &began);
        Ok(view)
    }

    /// Says what changed since the last look.
    fn progress(&mut self, seen: Option<&RunView>, run: &RunView, began: &Stamp) {
        for (i, stage) in run.stages.iter().enumerate() {
            let new = seen.and_then(|seen| seen.stages.get(i)).is_none_or(|before| before.state != stage.state);
            match stage.state {
                StageState::Succeeded if new => {
                    self.marked(Tone::Good, "test", &format!("✓ {} passed", one_line(&stage.name, 40)));
                }
                StageState::Failed if new => {
                    self.marked(Tone::Bad, "test", &format!("✗ {} failed", one_line(&stage.name, 40)));
                }
                _ => {}
            }
        }
        let Some(deployment) = run.deployments.last() else {
            return self.terminal.moon(0, 1, "testing");
        };
        for of in &run.deployments {
            let before = seen.and_then(|seen| seen.deployments.iter().find(|before| before.id == of.id));
            let before = before.map(|before| before.hosts.as_slice()).unwrap_or_default();
            if before.is_empty() && of.rollback_of.is_some() {
                self.marked(Tone::Bad, "back", &format!("↩ back to {}", one_line(&of.release, 12)));
            }
            for host in &of.hosts {
                let was = before.iter().find(|other| other.id == host.id).map(|other| other.state);
                if was != Some(host.state) {
                    self.host(host, of.rollback_of.is_some());
                }
            }
        }
        if !run.state.is_end() {
            let all = deployment.hosts.len();
            let done = deployment.hosts.iter().filter(|host| host.state == HostState::Healthy).count();
            let seconds = self.clock.now().since(began).as_millis() as f64 / 1000.0;
            self.terminal.moon(done, all, &format!("{done} of {all} hosts are healthy after {seconds:.1} s"));
        }
    }

    fn host(&mut self, host: &HostView, back: bool) {
        let name = one_line(&host.name, 40);
        let label = if back { "back" } else { "deploy" };
        match host.state {
            HostState::Pending
            | HostState::Running
            | HostState::Unknown
            | HostState::Skipped
            | HostState::RolledBack => {}
            HostState::Healthy => self.marked(Tone::Good, label, &format!("✓ {name} is healthy")),
            state => self.marked(Tone::Bad, label, &format!("✗ {name} {}", word(&state))),
        }
    }

    /// Asks every host which commit it has and what it says to visitors.
    async fn all_serve(&self) -> anyhow::Result<Vec<Serves>> {
        let mut all = Vec::new();
        for host in &self.site.hosts {
            let version: Value = ask(&*self.clock, &Place::Tcp(host.http), "/version", None, None).await?.json()?;
            let front = ask(&*self.clock, &Place::Tcp(host.http), "/", None, None).await?;
            let health = ask(&*self.clock, &Place::Tcp(host.http), "/healthz", None, None).await?;
            all.push(Serves {
                revision: version.get("revision").and_then(Value::as_str).map(str::to_owned),
                healthy: front.status.is_success() && health.status.is_success(),
                says: one_line(&front.body, 100),
            });
        }
        Ok(all)
    }

    async fn status(&self) -> anyhow::Result<ProjectStatus> {
        ask(&*self.clock, &self.daemon, "/v1/projects/shop/status", self.token, None).await?.json()
    }

    /// The commit that the daemon holds to be live.
    async fn live(&self) -> anyhow::Result<Option<String>> {
        let first = self.status().await?.environments.into_iter().next();
        Ok(first.and_then(|live| live.release).map(|release| release.revision))
    }

    /// The announcement of a run's end.
    async fn announced(&self, run: &RunView, differences: &mut Differences) -> Option<Value> {
        let path = self.site.alerts();
        let arrives = async {
            loop {
                // A line that is still being written is no JSON yet; the next look sees it whole.
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let mut messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                if let Some(message) = messages.find(|message| message["run"] == *run.id) {
                    return message;
                }
                self.clock.sleep(LOOK).await;
            }
        };
        let message = within(&*self.clock, ALERT_LIMIT, arrives).await;
        differences.unless(message.is_some(), || format!("nobody was told within {} s", ALERT_LIMIT.as_secs()));
        message
    }

    fn told(&mut self, message: Option<&Value>) {
        let Some(message) = message else { return };
        let text = |name: &str| message[name].as_str().map(printable).unwrap_or_default();
        self.row("alert", &one_line(&text("title"), 150));
        // What a failed program printed is what helps; where a release went back, why it did.
        let (output, cause) = (text("output"), text("text"));
        let went_back = message["event"] == "rolled_back";
        let said = if went_back || output.trim().is_empty() { &cause } else { &output };
        let lines = said.lines().flat_map(|line| wrapped(&one_line(line, 400), WIDTH));
        for line in lines.filter(|line| !line.is_empty()).take(MOST_LINES) {
            self.terminal.line(Tone::Quiet, &format!("           {line}"));
        }
    }

    pub(super) fn heading(&mut self, text: &str) {
        self.terminal.line(Tone::Plain, "");
        self.terminal.line(Tone::Heading, text);
        self.label.clear();
    }

    pub(super) fn row(&mut self, label: &str, text: &str) {
        self.marked(Tone::Plain, label, text);
    }

    fn marked(&mut self, tone: Tone, label: &str, text: &str) {
        // Said once for all rows that follow each other.
        let shown = if label == self.label { "" } else { label };
        self.terminal.line(tone, &format!("   {shown:<8}{text}"));
        label.clone_into(&mut self.label);
    }

    pub(super) fn verdict(&mut self, as_described: bool, text: &str) {
        match as_described {
            true => self.terminal.line(Tone::Good, &format!("   = {text}")),
            false => self.terminal.line(Tone::Bad, "   = this did not go as described"),
        }
    }
}

/// `text` in lines of at most `columns` characters, broken between words; a longer word gets a line of its own.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn short(revision: &str) -> &str {
    revision.get(..12).unwrap_or(revision)
}

fn ended(run: &RunView, wanted: &str) -> String {
    let why = run.cause.as_ref().map_or_else(String::new, |cause| format!(": {}", one_line(&cause.message, 300)));
    format!("run {} was to {wanted} and ended {}{why}", run.id, word(&run.state))
}

fn otherwise(host: &Host, serves: &Serves, revision: &str) -> String {
    let has = serves.revision.as_deref().map_or("nothing", short);
    let how = if serves.healthy { "healthy" } else { "unhealthy" };
    format!("{} has {has} and is {how} (\"{}\"); the story is about {}", host.name, serves.says, short(revision))
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrapped("a incomprehensible b", 5), ["a", "incomprehensible", "b"]);
        assert!(wrapped("  ", 5).is_empty());
    }
}
