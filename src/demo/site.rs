//! The demo's own corner of the file system: everything it makes, and its end.

use std::{
    fs,
    os::unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use nix::{sys::signal::Signal, unistd::Pid};

use super::{
    ask::Place,
    host::{self, Host},
    repository::Repository,
};
use crate::{lifecycle::Tasks, ssh::server::Key, time::Clock};

/// The user of the hosts.
const USER: &str = "demo";
/// How many hosts there are.
const HOSTS: usize = 5;
/// A socket's path has at most 107 bytes.
const LONGEST_DIR: usize = 80;
/// Where commands are looked for when PATH does not say.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The project file of the story, and that of the one with crashes.
pub(super) const SHOP: &str = include_str!("shop.lua");
pub(super) const SHOP_CRASH: &str = include_str!("shop_crash.lua");

/// A directory that goes away with its value, and with it every command that was started on its hosts.
pub(super) struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let temp = std::env::temp_dir();
        let fits = temp.is_absolute() && temp.as_os_str().len() <= LONGEST_DIR && plain(&temp);
        let temp = if fits { temp } else { PathBuf::from("/tmp") };
        let dir = temp.join(format!("phased-demo-{}", random_hex::<4>()?));
        fs::DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // What commands see as their directory must begin like what they were told.
        Ok(Folder(dir.canonicalize()?))
    }

    /// Ends what was left running on the hosts: whoever has its `HOME` here was started by the demo.
    fn end_commands(&self) {
        let home = [b"HOME=", self.0.as_os_str().as_bytes(), b"/"].concat();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
            if environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(&home)) {
                let _gone_already = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.end_commands();
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(dir = %self.0.display(), %error, "the demo's directory could not be removed");
        }
    }
}

/// Whether a path can stand in Lua, TOML and known_hosts as it is.
fn plain(path: &Path) -> bool {
    path.as_os_str().as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@".contains(byte))
}

/// `N` random bytes as hex digits.
pub(super) fn random_hex<const N: usize>() -> anyhow::Result<String> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// All that the demo stands on.
pub(super) struct Site {
    pub(super) hosts: Vec<Host>,
    pub(super) repository: Repository,
    folder: Folder,
    path: String,
}

impl Site {
    /// Makes it: the hosts are up, the repository is empty, the daemon's files are written, among them `project`.
    ///
    /// # Errors
    /// What could not be made.
    pub(super) async fn build(project: &str, tasks: &Tasks, clock: &Arc<dyn Clock>) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let root = folder.0.clone();
        let path = search_path(std::env::var("PATH").ok());
        let key = Key::generate()?;
        let mut hosts = Vec::new();
        for n in 1..=HOSTS {
            let name = format!("web-{n}");
            let home = root.join("hosts").join(&name);
            hosts.push(host::start(&name, home, USER, &key, &path, tasks, clock).await?);
        }
        let repository = Repository::init(root.join("shop"), &path)?;
        let site = Site { hosts, repository, folder, path: path.clone() };
        let known: String = site.hosts.iter().map(|host| format!("{}\n", host.known_hosts)).collect();
        private(&root.join("known_hosts"), &known)?;
        private(&root.join("secrets/deploy_key"), &key.private_file()?)?;
        private(&root.join("announce.sh"), &announcer(&site.alerts()))?;
        private(&root.join("plugins/projects/shop.lua"), &site.project(project))?;
        private(&site.config(), &configuration(&root, &path, "127.0.0.1:0"))?;
        Ok(site)
    }

    /// Only a directory with the repository.
    ///
    /// # Errors
    /// What could not be made.
    pub(super) fn bare() -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let path = search_path(std::env::var("PATH").ok());
        let repository = Repository::init(folder.0.join("shop"), &path)?;
        Ok(Site { hosts: Vec::new(), repository, folder, path })
    }

    /// Where commands are looked for.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Where everything is.
    pub(super) fn root(&self) -> &Path {
        &self.folder.0
    }

    /// The daemon's configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.root().join("phased.toml")
    }

    /// The daemon's socket.
    pub(super) fn socket(&self) -> Place {
        Place::Socket(self.root().join("phased.sock"))
    }

    /// Where announcements arrive, one JSON object a line.
    pub(super) fn alerts(&self) -> PathBuf {
        self.root().join("alerts")
    }

    /// The project file's text.
    fn project(&self, template: &str) -> String {
        let host = |host: &Host| {
            let (name, port, base) = (&host.name, host.ssh.port(), host.home.join(".phased"));
            format!(
                r#"        {{ id = "{name}", address = "127.0.0.1", port = {port}, base = "{}" }},"#,
                base.display()
            )
        };
        let hosts: Vec<String> = self.hosts.iter().map(host).collect();
        let show = |path: PathBuf| path.display().to_string();
        template
            .replace("@ROOT@", &show(self.root().to_owned()))
            .replace("@ANNOUNCE@", &show(self.root().join("announce.sh")))
            .replace("@REPOSITORY@", &self.repository.dir().display().to_string())
            .replace("@HOSTS@", &hosts.join("\n"))
            .replace("@USER@", USER)
            .replace("@KNOWN_HOSTS@", &show(self.root().join("known_hosts")))
    }
}

/// The absolute directories of `PATH`: git may be anywhere.
fn search_path(path: Option<String>) -> String {
    let path = path.unwrap_or_default();
    let dirs: Vec<&str> = path.split(':').filter(|dir| dir.starts_with('/') && plain(Path::new(dir))).collect();
    if dirs.is_empty() { USUAL_PATH.to_owned() } else { dirs.join(":") }
}

fn announcer(to: &Path) -> String {
    format!("# phased gives the message as JSON on standard input.\n{{ cat; echo; }} >>'{}'\n", to.display())
}

/// A daemon's configuration, of which all is below `root`.
pub(super) fn configuration(root: &Path, path: &str, listen: &str) -> String {
    let root = root.display();
    format!(
        r#"# The demo's daemon. Everything has a default; a real one needs hardly more than its plugins.
data_dir = "{root}/data"
plugins = ["{root}/plugins"]

[api]
socket = "{root}/phased.sock"
listen = "{listen}"

[secrets]
dir = "{root}/secrets"

[exec]
same_user = true # for demos and trusted code only: tests run as the daemon itself
path = "{path}"

[log]
filter = "warn"
"#
    )
}

/// Writes a file that is for its owner only, and the directories above it.
pub(super) fn private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let write = || {
        if let Some(above) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(above)?;
        }
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
