//! The wiring: configuration in, a running daemon out. The only place that knows every adapter.
//!
//! [`App::start`] reads as the start script, [`App::shut_down`] as the stop script.

pub mod check;
pub mod doctor;
mod guard;
pub mod init;
pub mod rebuild;
pub mod restore;
pub mod signals;
mod uids;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;
use tokio::net::{TcpListener, UnixListener};

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
    lifecycle::{Tasks, watch},
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
    signal::Ed25519,
    ssh::{SshLimits, SshLinks},
    store::SledIndex,
    time::{Clock, SystemClock},
};

/// How long shutting down may take before those still working are named and left.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// What is no matter of the configuration file.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A bearer token with every right that no file holds; for the demo.
    pub fixed_token: Option<String>,
    /// `$CREDENTIALS_DIRECTORY`.
    pub credentials: Option<std::path::PathBuf>,
}

/// A running daemon.
pub struct App {
    tasks: Tasks,
    conductor: Conductor,
    addr: Option<SocketAddr>,
    socket: std::path::PathBuf,
    _lock: DataLock,
}

impl App {
    /// Starts the daemon: everything is checked before anything works, and it answers when this returns.
    ///
    /// # Errors
    /// In words for the terminal: what is wrong, where, and what to do.
    pub async fn start(config: Config, options: Options) -> anyhow::Result<App> {
        let tasks = Tasks::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let kills = Kills::named(std::env::var("PHASED_KILL").ok().as_deref()).map_err(anyhow::Error::msg)?;
        let layout = Layout::create(&config.data_dir)?;
        let lock = DataLock::take(&layout.root, &clock.now())?;
        restore::whole(&layout.root)?;
        // Before anything else is written: where there is hardly any room, the reserve is what there is to start with.
        let storage = Arc::new(DataDisk::open(&layout.root).context("failed to make the reserve in data_dir")?);
        // Spooled files of an earlier life; nothing names them.
        let _none_there = std::fs::remove_dir_all(layout.root.join("tmp"));

        let secrets: Arc<dyn Secrets> = Arc::new(FileSecrets::new(config.secret_dirs(options.credentials.as_deref())));
        // The daemon's own, and no project's: code under test is kept from it as from all secrets.
        let own_key = signals::own_key(&config.signals, &*secrets)?;
        let guard = guard::Guard::new(&config.exec);
        if let Some(name) = config.signals.key.as_ref().filter(|_| own_key.is_some()) {
            guard.own_key(name)?;
        }
        let programs: Arc<dyn Programs> = Arc::new(guard.programs(projects(&config, &secrets)));
        // Loading only asks which secrets exist; whatever uses them gets those that may be used here.
        let secrets = guard.secrets(secrets);
        let loaded = {
            let programs = Arc::clone(&programs);
            tokio::task::spawn_blocking(move || programs.load()).await?
        };
        let loaded = loaded.map_err(|found| anyhow::anyhow!("{}", diagnostics::render(&found, false)))?;

        let (index, set_aside) = SledIndex::open(&layout.state, &clock)?;
        let index = Arc::new(index);
        let start = format!("{:x}", clock.now().wall_ms);
        let views = Views::start(index.clone(), Arc::clone(&clock), start)?;
        let blobs = Arc::new(FileBlobs::open(layout.blobs.clone())?);
        let feed = Arc::new(views.clone());
        let journals = RunJournals::open(layout.runs.clone(), blobs.clone(), feed, storage.clone(), kills.runs)?;
        let control = ControlLog::open(&layout.journal, Arc::clone(&clock), storage.clone(), kills.control)?;
        let control: Arc<dyn Control> = Arc::new(control);

        let users = uids::job_users(&config.exec, &control)?;
        let local = Local::new(layout.jobs.clone(), users.clone());
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
            links: Arc::new(Ways { local, ssh }),
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
            job_user: uids::owner(users),
            random: Arc::new(random),
            data_dir: layout.root.clone(),
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
        // Bound before work begins: a second daemon on the same addresses must not have started anything.
        let (listeners, addr) = listeners(&config).await?;
        conductor.start(loaded).await.context("failed to take up what an earlier start left")?;
        conductor.tell_set_aside(&SledIndex::set_aside(&layout.state));
        let auth = api::AuthConfig {
            job_uids: uids::range(&config.exec),
            fixed_token: options.fixed_token,
            host_names: config.api.host_names.clone(),
        };
        api::serve(Arc::new(conductor.clone()), listeners, auth, &tasks, clock);
        tracing::info!(socket = %config.api.socket.display(), listen = ?addr, data_dir = %layout.root.display(), "phased is ready");
        Ok(App { tasks, conductor, addr, socket: config.api.socket, _lock: lock })
    }

    /// Where TCP is served.
    #[must_use]
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    /// Reloads the projects, as `phased reload` does; what is wrong is logged and the old ones stay.
    pub async fn reload(&self) {
        use crate::engine::handle::Engine as _;
        match self.conductor.reload().await {
            Ok(names) => tracing::info!(projects = names.len(), "the projects were reloaded"),
            Err(refusal) => tracing::error!("{refusal}"),
        }
    }

    /// Stops: nothing new is begun, runs are left as they are for the next start, those still working after 5 s are named.
    pub async fn shut_down(self) {
        let late = self.tasks.shut_down(SHUTDOWN).await;
        if !late.is_empty() {
            tracing::warn!(tasks = ?late, "still working at shutdown");
        }
        let _gone_already = std::fs::remove_file(&self.socket);
    }
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

async fn listeners(config: &Config) -> anyhow::Result<(api::Listeners, Option<SocketAddr>)> {
    let tcp = match config.api.listen {
        None => None,
        Some(addr) => Some(TcpListener::bind(addr).await.with_context(|| {
            format!("failed to listen on {addr}: set `listen` in [api] to a free address, or to \"none\"")
        })?),
    };
    let addr = tcp.as_ref().map(TcpListener::local_addr).transpose()?;
    let unix = socket(&config.api.socket).with_context(|| {
        format!(
            "failed to listen on the socket `{}`: set `socket` in [api] to a place the daemon may write",
            config.api.socket.display()
        )
    })?;
    Ok((api::Listeners { unix: Some(unix), tcp }, addr))
}

/// The socket, 0660 and of group phased where there is such a group. A stale one is taken away: LOCK says that nobody serves it.
fn socket(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => anyhow::bail!("another daemon answers there"),
        Err(_) => drop(std::fs::remove_file(path)),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name("phased") {
        let _not_root = nix::unistd::chown(path, None, Some(group.gid));
    }
    Ok(listener)
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
}

#[async_trait]
impl Links for Ways {
    async fn local(&self, project: &ProjectName) -> Result<Arc<dyn Link>, LinkError> {
        self.local.link(project)
    }

    async fn host(&self, realm: &Realm, host: &Host) -> Result<Arc<dyn Link>, LinkError> {
        self.ssh.connect(realm, host).await
    }

    fn waiting(&self) -> Option<watch::Receiver<usize>> {
        Some(self.ssh.waiting())
    }

    async fn let_go(&self, id: &str) {
        self.ssh.let_go(id).await;
    }
}

/// Runs the daemon until SIGTERM or SIGINT; SIGHUP reloads. `ready` is called once it answers, or not at all.
///
/// # Errors
/// Why it did not start.
pub fn run(config: Config, options: Options, ready: impl FnOnce()) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // The daemon's own blocking work is short; the default of 512 threads would be memory for nothing.
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(async {
        let app = App::start(config, options).await?;
        let (mut term, mut int, mut hup) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
        ready();
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                _ = hup.recv() => app.reload().await,
            }
        }
        tracing::info!("phased goes down");
        app.shut_down().await;
        anyhow::Ok(())
    })?;
    // Threads that are blocked on a disk or in Lua are not waited for.
    runtime.shutdown_timeout(Duration::from_millis(500));
    Ok(())
}

/// A value several threads build once.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
