//! `phased demo --signals`: an integration daemon that has no shell anywhere, and five daemons of production that listen to its signals. Each
//! is a process of its own, with its own directory, keys and project file.

use std::{net::TcpListener, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;

use super::{
    ask::{Place, ask},
    process::Process,
    repository,
    site::{self, Site, private},
    story::{Differences, LOOK, Story},
    terminal::{Terminal, Tone},
};
use crate::{
    api::text::one_line,
    engine::view::{HostView, Page, RunView, signals::SignalsView},
    model::{deployment::HostState, run::RunState},
    signal,
    time::{Clock, within},
};

const INTEGRATION: &str = include_str!("signals/integration.lua");
const PRODUCTION: &str = include_str!("signals/production.lua");

/// How many servers production has.
const SERVERS: usize = 5;
/// The longest until a server that is back has what is live.
const CONVERGE_LIMIT: Duration = Duration::from_secs(40);

/// A server of production.
pub(super) struct Server {
    name: String,
    root: PathBuf,
    addr: String,
    process: Option<Process>,
}

/// All that the story stands on.
pub(super) struct Town {
    integration: PathBuf,
    /// The integration daemon; `None` until it runs.
    daemon: Option<Process>,
    servers: Vec<Server>,
}

impl Town {
    /// Makes keys and files in `site`, and starts everybody.
    ///
    /// # Errors
    /// What could not be made, or who does not start.
    pub(super) async fn build(site: &Site, clock: &Arc<dyn Clock>) -> anyhow::Result<Town> {
        let repository = site.repository.dir().display().to_string();
        let key = |dir: &std::path::Path, name: &str| -> anyhow::Result<String> {
            let (text, public) = signal::generate(name).map_err(|cause| anyhow::anyhow!(cause.message))?;
            private(&dir.join("secrets/signals"), &text)?;
            Ok(public.to_string())
        };
        let integration = site.root().join("integration");
        let sender = key(&integration, "integration")?;
        let (mut servers, mut receivers, mut hosts) = (Vec::new(), String::new(), Vec::new());
        for n in 1..=SERVERS {
            let name = format!("prod-{n}");
            let root = site.root().join(&name);
            let addr = free_address()?;
            receivers.push_str(&format!("{name} {}\n", key(&root, &name)?));
            let port = addr.rsplit_once(':').map_or("", |(_, port)| port);
            hosts.push(format!(r#"        {{ id = "{name}", address = "127.0.0.1", port = {port} }},"#));
            let listens = format!(
                "\n[signals]\nkey = \"signals\" # signs its answers\nhost = \"{name}\" # what is for another is refused\n\
                 accept = [{{ key = \"{sender}\", projects = [\"shop\"] }}]\n"
            );
            private(&root.join("phased.toml"), &(site::configuration(&root, site.path(), &addr) + &listens))?;
            let project = PRODUCTION
                .replace("@ROOT@", &root.display().to_string())
                .replace("@NAME@", &name)
                .replace("@REPOSITORY@", &repository);
            private(&root.join("plugins/projects/shop.lua"), &project)?;
            private(&root.join("serves/deployed"), "")?;
            servers.push(Server { name, root, addr, process: None });
        }
        private(&integration.join("receivers"), &receivers)?;
        let often = "\n[limits]\nconverge = \"2s\" # how soon a server that is back gets what is live\n";
        let config = site::configuration(&integration, site.path(), "127.0.0.1:0") + often;
        private(&integration.join("phased.toml"), &config)?;
        let project = INTEGRATION
            .replace("@ROOT@", &integration.display().to_string())
            .replace("@HOSTS@", &hosts.join("\n"))
            .replace("@REPOSITORY@", &repository);
        private(&integration.join("plugins/projects/shop.lua"), &project)?;
        let mut town = Town { integration, daemon: None, servers };
        for server in &mut town.servers {
            server.process = Some(Process::start(&server.root, clock).await?);
        }
        town.daemon = Some(Process::start(&town.integration, clock).await?);
        Ok(town)
    }

    /// Where the integration daemon is asked.
    pub(super) fn socket(&self) -> Place {
        Place::Socket(self.integration.join("phased.sock"))
    }

    /// Ends every daemon.
    pub(super) async fn end(&mut self) {
        let servers = self.servers.iter_mut().filter_map(|server| server.process.as_mut());
        for process in servers.chain(self.daemon.as_mut()) {
            if let Err(error) = process.kill().await {
                tracing::warn!(%error, "a daemon is left behind");
            }
        }
    }
}

/// An address that nobody listens on just now: others have to know it before its daemon starts, and find it again after.
fn free_address() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free on 127.0.0.1")?;
    Ok(listener.local_addr()?.to_string())
}

/// What there is.
pub(super) fn introduce(terminal: &mut Terminal, site: &Site) {
    terminal.line(Tone::Heading, "phased: production listens to signals, on this machine only");
    let root = site.root().display();
    for (label, text) in [
        ("repository", site.repository.dir().display().to_string()),
        ("integration", format!("{root}/integration: a daemon that tests and signs; it has no shell anywhere")),
        ("production", format!("{root}/prod-1 to prod-{SERVERS}: each a daemon with keys and rules of its own")),
    ] {
        terminal.line(Tone::Plain, &format!("   {label:<13}{text}"));
    }
}

/// The story of signals.
pub(super) struct Signals<'a> {
    pub(super) story: Story<'a>,
    pub(super) town: &'a mut Town,
}

impl Signals<'_> {
    /// Tells it.
    ///
    /// # Errors
    /// Something stood in the way: no answer, an answer that cannot be read, git, a daemon that does not start.
    pub(super) async fn tell(&mut self) -> anyhow::Result<Differences> {
        let mut differences = Differences::default();
        self.story.daemon_has_looked().await?;
        let good = self.good(&mut differences).await?;
        ask(&*self.story.clock, &self.story.daemon, "/v1/reload", None, Some("")).await?;
        self.unhealthy(&good, &mut differences).await?;
        let newest = self.away(&mut differences).await?;
        self.forged(&newest, &mut differences).await?;
        Ok(differences)
    }

    async fn good(&mut self, differences: &mut Differences) -> anyhow::Result<String> {
        let before = differences.0.len();
        self.story.heading("1. A good commit: tested once, then a signed signal to each server, the canary first");
        let (revision, run) = self.deploy(&repository::GOOD).await?;
        differences.unless(run.state == RunState::Succeeded, || format!("the run ended {:?}", run.state));
        self.everywhere(&revision, differences);
        let first = self.runs_of(0).await?;
        if let Some(run) = first.first() {
            self.story.row(
                "prod-1",
                &format!("its own run {}, asked for by {}", one_line(&run.id, 40), one_line(&run.by, 90)),
            );
        }
        self.story.verdict(differences.0.len() == before, "every server deployed it by its own project file");
        Ok(revision)
    }

    async fn unhealthy(&mut self, good: &str, differences: &mut Differences) -> anyhow::Result<()> {
        let before = differences.0.len();
        self.story.heading("2. A commit that does not come up: the canary says so, and nobody else gets it");
        let (_, run) = self.deploy(&repository::UNHEALTHY).await?;
        differences.unless(run.state == RunState::RolledBack, || format!("the run ended {:?}", run.state));
        self.everywhere(good, differences);
        if let Some(cause) = &run.cause {
            self.story.row("why", &one_line(&cause.message, 220));
        }
        let asked = self.town.servers.iter().filter(|server| server.deployed().iter().any(|sha| *sha != good)).count();
        differences.unless(asked == 1, || format!("{asked} servers had the bad one, not only the canary"));
        self.story
            .verdict(differences.0.len() == before, "back on the canary by its own rules; the others were never asked");
        Ok(())
    }

    async fn away(&mut self, differences: &mut Differences) -> anyhow::Result<String> {
        let before = differences.0.len();
        self.story.heading("3. A server that is down takes the newest release when it is back");
        let clock = Arc::clone(&self.story.clock);
        if let Some(process) = &mut self.town.servers[2].process {
            process.kill().await?;
        }
        self.story.row("prod-3", "kill -9: its daemon is gone");
        let (revision, run) = self.deploy(&repository::AGAIN).await?;
        differences.unless(run.state == RunState::Succeeded, || format!("the run ended {:?}", run.state));
        let lost = |host: &&HostView| host.state == HostState::Unreachable;
        let lost = run.deployments.iter().flat_map(|d| &d.hosts).filter(lost).count();
        differences.unless(lost == 1, || format!("{lost} servers are unreachable, not one"));
        if let Some(process) = &mut self.town.servers[2].process {
            process.start_again().await?;
        }
        self.story.row("prod-3", "its daemon is back");
        let town = &self.town;
        let back = async {
            while town.servers[2].revision().as_deref() != Some(&*revision) {
                clock.sleep(LOOK).await;
            }
        };
        let came = within(&*clock, CONVERGE_LIMIT, back).await.is_some();
        differences.unless(came, || "prod-3 did not get what is live".to_owned());
        if came {
            self.story.row(
                "prod-3",
                &format!("has {} now, without anybody doing anything", revision.get(..12).unwrap_or_default()),
            );
        }
        self.everywhere(&revision, differences);
        self.story.verdict(differences.0.len() == before, "unreachable within the budget, then converged");
        Ok(revision)
    }

    async fn forged(&mut self, newest: &str, differences: &mut Differences) -> anyhow::Result<()> {
        let before = differences.0.len();
        self.story.heading("4. What is not signed by a key that a server knows does nothing");
        let addr = self.town.servers[0].addr.parse().context("an address")?;
        let answer = ask(&*self.story.clock, &Place::Tcp(addr), "/v1/signals", None, Some("deploy=everything")).await?;
        self.story.row("forged", &format!("POST http://{addr}/v1/signals → {}", answer.status));
        differences
            .unless(answer.status == hyper::StatusCode::UNAUTHORIZED, || format!("it was answered {}", answer.status));
        let place = Place::Socket(self.town.servers[0].root.join("phased.sock"));
        let seen: SignalsView = ask(&*self.story.clock, &place, "/v1/signals", None, None).await?.json()?;
        let refused = seen.refused.get("signal_signature").copied().unwrap_or(0);
        differences.unless(refused == 1, || format!("{refused} refusals were counted, not one"));
        let counts = |counts: &std::collections::BTreeMap<String, u64>| {
            counts.iter().map(|(word, n)| format!("{n} {word}")).collect::<Vec<_>>().join(", ")
        };
        self.story.row("prod-1", &format!("taken: {}; refused: {}", counts(&seen.taken), counts(&seen.refused)));
        self.everywhere(newest, differences);
        self.story.verdict(differences.0.len() == before, "refused, counted, and shown by `phased signals`");
        Ok(())
    }

    async fn deploy(&mut self, change: &repository::Change) -> anyhow::Result<(String, RunView)> {
        let (revision, run) = self.story.press(change).await?;
        Ok((revision, self.story.follow(&run.id).await?))
    }

    /// Every server serves `revision`, and none has deployed anything twice in a row.
    fn everywhere(&mut self, revision: &str, differences: &mut Differences) {
        for server in &self.town.servers {
            let serves = server.revision();
            differences.unless(serves.as_deref() == Some(revision), || {
                let serves = serves.clone().unwrap_or_else(|| "nothing".to_owned());
                format!("{} serves {serves}, and the story is about {revision}", server.name)
            });
        }
        let count = self.town.servers.len();
        self.story.row("asked", &format!("all {count} servers serve {}", revision.get(..12).unwrap_or_default()));
    }

    async fn runs_of(&self, server: usize) -> anyhow::Result<Vec<RunView>> {
        let place = Place::Socket(self.town.servers[server].root.join("phased.sock"));
        let page: Page<RunView> = ask(&*self.story.clock, &place, "/v1/runs?project=shop", None, None).await?.json()?;
        Ok(page.items)
    }
}

impl Server {
    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.root.join("serves").join(name)).unwrap_or_default()
    }

    fn revision(&self) -> Option<String> {
        self.read("revision").lines().next().map(str::to_owned)
    }

    fn deployed(&self) -> Vec<String> {
        self.read("deployed").lines().map(str::to_owned).collect()
    }
}
