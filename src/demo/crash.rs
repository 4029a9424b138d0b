//! `phased demo --crash`: one good commit, and on its way the daemon is killed ten times. Hosts and commands know nothing of it, and what
//! they wrote down proves that the run went as one that nobody disturbed.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;

use super::{
    ask::ask,
    process::Process,
    repository,
    story::{Differences, LOOK, Story},
};
use crate::engine::view::{LogLine, Page, RunView};

/// The longest until a moment comes.
const MOMENT_LIMIT: Duration = Duration::from_secs(60);
/// The lines that each command prints, as the project file has it.
const LINES: usize = 10;

/// When the daemon is killed. A host is called by its place in the rollout.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// The tests have printed half of what they print.
    Tests,
    /// The command that switches a host has printed half of what it prints.
    Switch(usize),
    /// A host was asked for its health, and has not been well for long enough.
    Health(usize),
}

/// What goes on while no daemon is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    /// The command waits, and ends when there is a daemon again.
    Runs,
    /// The command ends.
    Ends,
}

const MOMENTS: [(Moment, Meanwhile); 10] = [
    (Moment::Tests, Meanwhile::Ends),
    (Moment::Switch(0), Meanwhile::Runs),
    (Moment::Health(0), Meanwhile::Runs),
    (Moment::Switch(1), Meanwhile::Ends),
    (Moment::Health(1), Meanwhile::Runs),
    (Moment::Switch(2), Meanwhile::Runs),
    (Moment::Health(2), Meanwhile::Runs),
    (Moment::Switch(3), Meanwhile::Ends),
    (Moment::Health(3), Meanwhile::Runs),
    (Moment::Switch(4), Meanwhile::Runs),
];

/// A list of the commands that ran on a machine, and what they are to be.
struct List {
    /// `None`: this machine, where the tests run.
    host: Option<String>,
    path: PathBuf,
    commands: &'static [&'static str],
}

impl List {
    fn place(&self) -> &str {
        self.host.as_deref().unwrap_or("this machine")
    }
}

/// A story whose daemon is killed on the way.
pub(super) struct Crash<'a> {
    pub(super) story: Story<'a>,
    pub(super) process: &'a mut Process,
}

impl Crash<'_> {
    /// Tells it.
    ///
    /// # Errors
    /// Something stood in the way: no answer, an answer that cannot be read, git, a daemon that does not start again.
    pub(super) async fn tell(&mut self) -> anyhow::Result<Differences> {
        let mut differences = Differences::default();
        self.story.daemon_has_looked().await?;
        self.story
            .heading("A good commit goes out to every host, and the daemon is killed ten times on the way (kill -9)");
        let (revision, run) = self.story.press(&repository::GOOD).await?;
        for (n, (moment, meanwhile)) in MOMENTS.into_iter().enumerate() {
            self.comes(&run.id, moment).await?;
            self.process.kill().await?;
            let label = format!("kill {}", n + 1);
            self.story.row(&label, &format!("killed the daemon while {}", self.doing(moment)));
            if meanwhile == Meanwhile::Ends {
                self.let_go(moment)?;
                self.ends(moment).await?;
            }
            self.process.start_again().await?;
            if meanwhile == Meanwhile::Runs {
                self.let_go(moment)?;
            }
            self.story.row(&label, after(moment, meanwhile));
            // The next row tells what came of it.
            self.story.look(&run.id).await?;
        }
        let run = self.story.follow(&run.id).await?;
        self.prove(&run, &revision, &mut differences).await?;
        Ok(differences)
    }

    fn doing(&self, moment: Moment) -> String {
        match moment {
            Moment::Tests => "the tests were running".to_owned(),
            Moment::Switch(host) => format!("{} was being switched", self.host(host)),
            Moment::Health(host) => format!("the health of {} was being watched", self.host(host)),
        }
    }

    fn host(&self, index: usize) -> &str {
        self.story.site.hosts.get(index).map_or("a host", |host| &host.name)
    }

    /// Waits for a moment, and shows what happens until then.
    async fn comes(&mut self, run: &str, moment: Moment) -> anyhow::Result<()> {
        let began = self.story.clock.now();
        loop {
            let view = self.story.look(run).await?;
            let there = match moment {
                Moment::Tests => self.prints(run, "step=test", "tests").await?,
                Moment::Switch(host) => {
                    let query = format!("host={}", self.host(host));
                    self.prints(run, &query, "switch").await?
                }
                Moment::Health(host) => self.story.site.hosts.get(host).is_some_and(|host| host.looks() > 0),
            };
            if there {
                return Ok(());
            }
            anyhow::ensure!(!view.state.is_end(), "the run ended before {} (seen: {moment:?})", self.doing(moment));
            let waited = self.story.clock.now().since(&began);
            anyhow::ensure!(waited < MOMENT_LIMIT, "it did not come about that {}", self.doing(moment));
            self.story.clock.sleep(LOOK).await;
        }
    }

    /// Whether the first half of what `command` prints is in the log.
    async fn prints(&self, run: &str, query: &str, command: &str) -> anyhow::Result<bool> {
        let half = format!("{command}: line {} of {LINES}", LINES / 2);
        Ok(self.log(run, query).await?.iter().any(|line| line.text == half))
    }

    async fn log(&self, run: &str, query: &str) -> anyhow::Result<Vec<LogLine>> {
        let path = format!("/v1/runs/{run}/log?{query}");
        let story = &self.story;
        let answer = ask(&*story.clock, &story.daemon, &path, story.token, None).await?;
        anyhow::ensure!(answer.status.is_success(), "{}: {}", answer.status, answer.body.trim());
        let lines = answer.body.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        lines.context("this log cannot be read")
    }

    /// Where the commands of a moment's machine put themselves down.
    fn list(&self, moment: Moment) -> Option<PathBuf> {
        match moment {
            Moment::Tests => Some(self.story.site.root().join("commands")),
            Moment::Switch(host) => self.story.site.hosts.get(host).map(|host| host.home.join("commands")),
            Moment::Health(_) => None,
        }
    }

    /// Lets the command of a moment go on.
    fn let_go(&self, moment: Moment) -> anyhow::Result<()> {
        match self.list(moment) {
            Some(list) => Ok(std::fs::write(list.with_extension("go"), "")?),
            None => Ok(()),
        }
    }

    /// Waits until the command of a moment has ended.
    async fn ends(&self, moment: Moment) -> anyhow::Result<()> {
        let (Some(list), clock) = (self.list(moment), &self.story.clock) else { return Ok(()) };
        let began = clock.now();
        // What comes before it on the list has ended earlier.
        while !std::fs::read_to_string(&list).unwrap_or_default().ends_with(match moment {
            Moment::Tests => "tests ends\n",
            Moment::Switch(_) | Moment::Health(_) => "switch ends\n",
        }) {
            anyhow::ensure!(clock.now().since(&began) < MOMENT_LIMIT, "a command does not end without the daemon");
            clock.sleep(LOOK).await;
        }
        Ok(())
    }

    /// Asks the hosts, their lists and the log whether all is as if nobody had been killed.
    async fn prove(&mut self, run: &RunView, revision: &str, differences: &mut Differences) -> anyhow::Result<()> {
        let before = differences.0.len();
        self.story.is_everywhere(run, revision, differences).await?;
        let lists = self.lists();
        self.ran_once(&lists, differences);
        self.printed_once(run, &lists, differences).await?;
        let runs = ask(&*self.story.clock, &self.story.daemon, "/v1/runs", self.story.token, None).await?;
        let runs: Page<RunView> = runs.json()?;
        differences.unless(runs.items.len() == 1, || format!("there are {} runs instead of one", runs.items.len()));
        let text = format!("killed {} times, and the same end as without", MOMENTS.len());
        self.story.verdict(differences.0.len() == before, &text);
        Ok(())
    }

    fn lists(&self) -> Vec<List> {
        let site = self.story.site;
        let here = List { host: None, path: site.root().join("commands"), commands: &["tests"] };
        let hosts = site.hosts.iter().map(|host| List {
            host: Some(host.name.clone()),
            path: host.home.join("commands"),
            commands: &["fetch", "switch"],
        });
        std::iter::once(here).chain(hosts).collect()
    }

    fn ran_once(&mut self, lists: &[List], differences: &mut Differences) {
        let before = differences.0.len();
        for list in lists {
            let wanted: Vec<String> =
                list.commands.iter().flat_map(|name| ["begins", "ends"].map(|what| format!("{name} {what}"))).collect();
            let found = std::fs::read_to_string(&list.path).unwrap_or_default();
            let found: Vec<&str> = found.lines().collect();
            differences.unless(found == wanted, || {
                format!("on {} these commands ran: {}; not: {}", list.place(), found.join(", "), wanted.join(", "))
            });
        }
        if differences.0.len() == before {
            let count: usize = lists.iter().map(|list| list.commands.len()).sum();
            let text = format!("each of the {count} commands ran exactly once: every machine keeps a list of them");
            self.story.row("proof", &text);
        }
    }

    async fn printed_once(
        &mut self,
        run: &RunView,
        lists: &[List],
        differences: &mut Differences,
    ) -> anyhow::Result<()> {
        let before = differences.0.len();
        let log = self.log(&run.id, "").await?;
        let mut count = 0;
        for list in lists {
            let of = log.iter().filter(|line| line.host == list.host);
            let found: Vec<&str> = of.map(|line| line.text.as_str()).collect();
            let mut wanted = Vec::new();
            for name in list.commands {
                wanted.extend((1..=LINES).map(|n| format!("{name}: line {n} of {LINES}")));
            }
            if list.host.is_none() {
                // What the tests themselves have to say.
                wanted.insert(LINES / 2, "ok    the price".to_owned());
            }
            count += wanted.len();
            differences.unless(found == wanted, || {
                format!("the log of {} is: {}; not: {}", list.place(), found.join(", "), wanted.join(", "))
            });
        }
        if differences.0.len() == before {
            let text =
                format!("each of the {count} lines they printed is in the log once, in order: none lost, none doubled");
            self.story.row("proof", &text);
        }
        Ok(())
    }
}

fn after(moment: Moment, meanwhile: Meanwhile) -> &'static str {
    match (moment, meanwhile) {
        (Moment::Health(_), _) => "started again: it watches anew",
        (_, Meanwhile::Ends) => {
            "the command ended with nobody there; started again: it reads what was printed, and goes on"
        }
        (_, Meanwhile::Runs) => "started again: the command still runs, and it goes on listening",
    }
}
