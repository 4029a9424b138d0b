//! The wiring: configuration in, a running daemon out. The only place that knows every adapter.
//!
//! [`App::start`] reads as the start script, [`App::shut_down`] as the stop script.

pub mod check;
pub mod doctor;
mod front;
mod guard;
pub mod init;
pub mod rebuild;
pub mod restore;
pub mod signals;
mod uids;

use std::{
    collections::BTreeMap, net::SocketAddr, os::unix::fs::DirBuilderExt as _, path::Path, sync::Arc, time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;

use crate::{
    alert::Smtp,
    api,
    blobs::FileBlobs,
    config::{Config, FileSecrets},
    discovery::Lookups,
    engine::{
        Conductor, Fleets, Views,
        world::{Limits, Retention, World},
    },
    exec::Local,
    forge::{Git, GitHub},
    http::Client,
    journal::{
        ControlHostKeys, ControlLeases, ControlLog, DataArchive, DataDisk, DataLock, FileOutputs, Kills, Layout,
        RunJournals,
    },
    lifecycle::{Tasks, stall::Stalls, watch},
    lua::{diagnostics, loader, sandbox},
    model::{cause::Cause, host::Host, host_key::Realm, ids::ProjectName},
    ports::{
        control::Control,
        forge::Hooks,
        link::{Link, LinkError, Links},
        program::Programs,
        secrets::Secrets,
    },
    probe::Probes,
    service::{notify::Manager, sockets::Passed, watchdog},
    signal::Ed25519,
    ssh::{SshLimits, SshLinks},
    store::StateIndex,
    telemetry::file::LogFile,
    time::{Clock, SystemClock},
};

/// How long requests under way may take to be answered before the engine goes down.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long shutting down may take before those still working are named and left.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// What is no matter of the configuration file.
#[derive(Debug, Default)]
pub struct Options {
    /// A bearer token with every right that no file holds; for the demo.
    pub fixed_token: Option<String>,
    /// `$CREDENTIALS_DIRECTORY`.
    pub credentials: Option<std::path::PathBuf>,
    /// Sockets that are bound already.
    pub passed: Passed,
    /// Who wants to hear how the daemon is.
    pub manager: Manager,
    /// Where the log goes, if it has to be opened anew after a rotation.
    pub log: Option<LogFile>,
}

/// A running daemon.
pub struct App {
    tasks: Tasks,
    /// The API's own: it ends first.
    doors: Tasks,
    conductor: Conductor,
    manager: Manager,
    log: Option<LogFile>,
    certificates: Option<Arc<api::Certificates>>,
    addr: Option<SocketAddr>,
    /// Removed in the end.
    socket: Option<std::path::PathBuf>,
    _lock: DataLock,
}

impl App {
    /// Starts the daemon: everything is checked before anything works, and it answers when this returns.
    ///
    /// # Errors
    /// In words for the terminal: what is wrong, where, and what to do.
    pub async fn start(config: Config, options: Options) -> anyhow::Result<App> {
        let (tasks, doors) = (Tasks::new(), Tasks::new());
        options.manager.starting("starting: loading projects, taking up unfinished runs");
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let kills = Kills::named(std::env::var("PHASED_KILL").ok().as_deref()).map_err(anyhow::Error::msg)?;
        let stalls = Stalls::named(std::env::var("PHASED_STALL").ok().as_deref()).map_err(anyhow::Error::msg)?;
        let kills = kills.with(&stalls);
        let (layout, lock) = own(&config.data_dir, &*clock)?;
        // Before anything else is written: where there is hardly any room, the reserve is what there is to start with.
        let storage = Arc::new(DataDisk::open(&layout.root).context("failed to make the reserve in data_dir")?);
        // Spooled files of an earlier life; nothing names them.
        let _none_there = std::fs::remove_dir_all(layout.root.join("tmp"));

        let secrets: Arc<dyn Secrets> = Arc::new(FileSecrets::new(config.secret_dirs(options.credentials.as_deref())));
        // The daemon's own, and no project's: code under test is kept from it as from all secrets.
        let own_key = signals::own_key(&config.signals, &*secrets)?;
        let way = uids::way(&config.exec);
        let guard = guard::Guard::new(&config.exec, &way);
        if let Some(name) = config.signals.key.as_ref().filter(|_| own_key.is_some()) {
            guard.own_key(name)?;
        }
        let programs: Arc<dyn Programs> =
            Arc::new(guard.programs(projects(&config, &secrets).stalling(stalls.at("lua"))));
        // Loading only asks which secrets exist; whatever uses them gets those that may be used here.
        let secrets = guard.secrets(secrets);
        let loaded = {
            let programs = Arc::clone(&programs);
            tokio::task::spawn_blocking(move || programs.load()).await?
        };
        let loaded = loaded.map_err(|found| anyhow::anyhow!("{}", diagnostics::render(&found, false)))?;

        // Before the index, which takes what room there is.
        let control = ControlLog::open(&layout.journal, Arc::clone(&clock), storage.clone(), kills.control)
            .context("failed to open the control journal, which every start writes anew")?;
        let control: Arc<dyn Control> = Arc::new(control);
        let (index, set_aside) = StateIndex::open(&layout.state, &clock)?;
        let index = Arc::new(index);
        let start = format!("{:x}", clock.now().wall_ms);
        let views = Views::start(index.clone(), Arc::clone(&clock), start, stalls.at("views"))?;
        let blobs = Arc::new(FileBlobs::open(layout.blobs.clone())?);
        let feed = Arc::new(views.clone());
        let journals = RunJournals::open(layout.runs.clone(), blobs.clone(), feed, storage.clone(), kills.runs)?;

        uids::say(&config.exec, &way);
        let users = uids::job_users(&config.exec, &control)?;
        let local = Local::new(layout.jobs.clone(), users, &way, Arc::clone(&clock));
        let ssh = SshLinks::new(
            Arc::clone(&secrets),
            Arc::new(ControlHostKeys::new(Arc::clone(&control))),
            Arc::clone(&clock),
            tasks.clone(),
            SshLimits { sessions: config.limits.sessions, handshakes: config.limits.handshakes },
        );
        let http = Arc::new(Client::new(Arc::clone(&clock)));
        let mut hooks: BTreeMap<String, Arc<dyn Hooks>> = BTreeMap::new();
        hooks.insert("github".to_owned(), Arc::new(GitHub));

        let world = Arc::new(World {
            clock: Arc::clone(&clock),
            tasks: tasks.clone(),
            journals: Arc::new(journals),
            leases: Arc::new(ControlLeases::new(Arc::clone(&control), Arc::clone(&clock))),
            control,
            blobs,
            index,
            storage,
            archive: Arc::new(DataArchive::new(layout.clone(), config.secrets.dir.clone())),
            outputs: Arc::new(FileOutputs::open(layout.runs.clone())?),
            hands: Arc::new(local.clone()),
            links: Arc::new(Ways { local, looking: ssh.looking(), ssh }),
            programs,
            forge: Arc::new(Git::new(layout.work.clone(), Arc::clone(&secrets), Arc::clone(&clock))),
            hooks,
            probe: Arc::new(Probes::new(http.clone(), Arc::clone(&clock))),
            http,
            mail: Arc::new(Smtp::new(Arc::clone(&clock))),
            signer: Arc::new(Ed25519),
            listening: signals::listening(&config.signals, own_key.as_ref())?,
            discovery: Arc::new(Lookups::new(Arc::clone(&clock))),
            fleets: Fleets::default(),
            secrets,
            limits: Limits {
                max_output: config.limits.max_output.0,
                max_queued: config.limits.max_queued,
                converge: config.limits.converge.0,
                max_artifact: config.limits.max_artifact.0,
                reconnect: config.limits.reconnect.0,
                path: config.exec.path.clone(),
                retention: Retention {
                    runs: config.retention.runs,
                    age: config.retention.age.0,
                    failed: config.retention.failed.0,
                    quota: config.retention.quota.0,
                },
            },
            controller: controller(),
            random: Arc::new(random),
            data_dir: layout.root.clone(),
            stalls,
            // As it is called now: an upgrade puts another file there, whose `pack` is as good.
            binary: std::env::current_exe().context("failed to find the program that is running")?,
            version: env!("CARGO_PKG_VERSION"),
        });

        let conductor = Conductor::new(world, views);
        if let Some(aside) = set_aside {
            conductor.warn(
                "index",
                Cause::new(
                    "index_set_aside",
                    format!(
                        "the state index could not be used ({}) and was made anew from the journals; the old one is {}",
                        aside.why,
                        aside.path.display()
                    ),
                ),
            );
        }
        let front = front::front(&config, options.fixed_token)?;
        let certificates = front.tls.clone();
        // Bound before work begins: a second daemon on the same addresses must not have started anything.
        let bound = options.passed.listen(&config.api).await?;
        let manager = options.manager.clone();
        let started = conductor.start(loaded, &|n, all| manager.starts_on(n, all, &*clock)).await;
        started.context("failed to take up what an earlier start left")?;
        conductor.tell_set_aside(&StateIndex::set_aside(&layout.state));
        front::warn(&config, bound.addr);
        api::serve(Arc::new(conductor.clone()), bound.listeners, front, &doors, Arc::clone(&clock))?;
        options.manager.follow(&conductor, &tasks, Arc::clone(&clock));
        watchdog::feed(options.manager.clone(), conductor.clone(), &tasks, clock);
        let addr = bound.addr;
        tracing::info!(socket = %config.api.socket.display(), listen = addr.map_or_else(|| "none".to_owned(), |addr| addr.to_string()), data_dir = %layout.root.display(), "phased is ready");
        let (manager, log) = (options.manager, options.log);
        manager.ready(conductor.summary());
        Ok(App { tasks, doors, conductor, manager, log, certificates, addr, socket: bound.ours, _lock: lock })
    }

    /// Where TCP is served.
    #[must_use]
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    /// Reloads the projects and the certificate, as `phased reload` does; what is wrong is logged and the old ones stay. The log file is
    /// opened anew. Returns at once: a load that takes its time holds no signal up.
    pub fn reload(&self) {
        use crate::engine::handle::Engine as _;
        if let Some(log) = &self.log {
            match log.begin() {
                Ok(()) => tracing::info!(log = %log.path().display(), "the log was opened anew"),
                Err(error) => tracing::error!(%error, "the log goes on into the file that was put aside"),
            }
        }
        let (conductor, certificates) = (self.conductor.clone(), self.certificates.clone());
        self.tasks.spawn("reload", async move {
            if let Some(certificates) = certificates {
                let _it_has_said_so_itself = certificates.reload(&conductor, &SystemClock::new()).await;
            }
            let _it_has_said_so_itself = conductor.reload().await;
        });
    }

    /// Stops: nothing new is begun, runs are left as they are for the next start, those still working after 5 s are named. Who has asked
    /// something already is answered before.
    pub async fn shut_down(self) {
        self.manager.stopping();
        // Waiting requests may wait for longer: they end with the engine.
        let _still_asking = self.doors.shut_down(LAST_WORDS).await;
        let mut late = self.tasks.shut_down(SHUTDOWN).await;
        late.extend(self.doors.shut_down(Duration::ZERO).await);
        if !late.is_empty() {
            tracing::warn!(tasks = ?late, "still working at shutdown");
        }
        if let Some(socket) = self.socket {
            let _gone_already = std::fs::remove_file(socket);
        }
    }
}

/// The data directory, ours and whole before anything is made in it: a restore that has it finds nothing of ours among its own.
pub(crate) fn own(data: &Path, clock: &dyn Clock) -> anyhow::Result<(Layout, DataLock)> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .with_context(|| format!("failed to make the directory `{}`", data.display()))?;
    let lock = DataLock::take(data, &clock.now())?;
    restore::whole(data)?;
    Ok((Layout::create(data)?, lock))
}

/// The loader over the configured plugin directories; one that does not exist is none.
pub(crate) fn projects(config: &Config, secrets: &Arc<dyn Secrets>) -> loader::Loader {
    let dirs = config.plugins.iter().filter(|dir| dir.is_dir()).cloned().collect();
    let limits = sandbox::Limits {
        memory: usize::try_from(config.limits.memory.0).unwrap_or(usize::MAX),
        instructions: config.limits.instructions,
        ..sandbox::Limits::default()
    };
    loader::Loader::new(dirs, loader::SHIPPED, &config.data_dir, Arc::clone(secrets), limits)
}

/// Who writes: this machine's name and this process.
fn controller() -> Arc<str> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Arc::from(format!("{}:{}", host.trim(), std::process::id()))
}

fn random(bytes: &mut [u8]) {
    if getrandom::fill(bytes).is_err() {
        // Without randomness there are no safe tokens and ids; nothing sensible can go on.
        tracing::error!("the system has no randomness");
        std::process::abort();
    }
}

/// Local links and SSH links behind one port.
struct Ways {
    local: Local,
    ssh: SshLinks,
    /// The same, which learns no keys.
    looking: SshLinks,
}

#[async_trait]
impl Links for Ways {
    async fn local(&self, project: &ProjectName) -> Result<Arc<dyn Link>, LinkError> {
        self.local.link(project).await
    }

    async fn host(&self, realm: &Realm, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        self.ssh.connect(realm, host).await
    }

    async fn look(&self, realm: &Realm, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        self.looking.connect(realm, host).await
    }

    fn waiting(&self) -> Option<watch::Receiver<usize>> {
        Some(self.ssh.waiting())
    }

    async fn let_go(&self, id: &str) {
        self.ssh.let_go(id).await;
        self.looking.let_go(id).await;
    }
}

/// Runs the daemon until SIGTERM or SIGINT; SIGHUP reloads. `ready` is called once it answers, or not at all; where it fails the daemon ends.
///
/// # Errors
/// Why it did not start.
pub fn run(config: Config, options: Options, ready: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // The daemon's own blocking work is short; the default of 512 threads would be memory for nothing.
        .max_blocking_threads(128)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(async {
        // Before anything else: a SIGHUP that comes too early is a reload all the same, and no death.
        let (mut term, mut int, mut hup) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
        let app = tokio::select! {
            biased;
            app = App::start(config, options) => app?,
            // Nothing has begun that is not taken up by the next start.
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
        };
        let ready = ready();
        while ready.is_ok() {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                _ = hup.recv() => app.reload(),
            }
        }
        tracing::info!("phased goes down");
        app.shut_down().await;
        ready
    })?;
    // Threads that are blocked on a disk or in Lua are not waited for.
    runtime.shutdown_timeout(Duration::from_millis(500));
    Ok(())
}
