//! `phased init`: a configuration, and a first project from a repository's URL. Nothing that exists is overwritten, so that it may be run
//! again: then it says what is still missing.
//!
//! ```text
//! files    writes once, with the modes and owners that the daemon needs        ask     the person at the terminal, if there is one
//! detect   what the repository is written in                                   project the Lua file, and the script for hosts
//! there    the project's file of before, if there is one                       hosts   host keys, and whether hosts let us in
//! report   what all of it says in the end
//! ```

mod ask;
mod detect;
pub(super) mod files;
mod hosts;
mod project;
mod report;
mod there;

use std::{
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};

use self::{
    ask::Asker,
    files::Files,
    hosts::{Key, State},
    project::{Address, Draft},
    report::{Report, Webhook},
    there::There,
};
use super::projects;
use crate::{
    cli::InitArgs,
    config::{Config, FileSecrets, is_secret_name},
    forge::{Git, Looked},
    lifecycle::Tasks,
    lua::diagnostics,
    model::{cause::Cause, host::SecretRef, host_key::Realm, ids::ProjectName, pipeline::Source},
    ports::{program::Programs as _, secrets::Secrets},
    ssh::server,
    time::{Clock, SystemClock},
};

const CONFIG: &str = include_str!("../../packaging/phased.toml");
const EXAMPLE: &str = include_str!("../../packaging/examples/shop.lua");
/// Where the packages put the types of the Lua API, and examples.
const SHARED_TYPES: &str = "/usr/share/phased/lua";
const SHARED_EXAMPLES: &str = "/usr/share/phased/examples";
/// The key that phased logs in with on hosts; of all projects, unless somebody makes others.
const DEPLOY_KEY: &str = "deploy_key";

/// Does it, and says what it did.
///
/// # Errors
/// In words for the terminal: what cannot be written, which part of the way to the repository is barred, and what to do.
pub fn run(args: &InitArgs, json: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::default();
    let mut files = Files::new();
    let done = runtime
        .block_on(Init { args, files: &mut files, report: &mut report, asker: Asker::new(args.yes || json) }.run());
    // Whatever came of the rest: what lies on the disk now is said.
    report.files(&files);
    match json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print!("{}", report.text()),
    }
    done
}

struct Init<'a> {
    args: &'a InitArgs,
    files: &'a mut Files,
    report: &'a mut Report,
    asker: Asker,
}

impl Init<'_> {
    async fn run(mut self) -> anyhow::Result<()> {
        let here = self.place()?;
        self.refuse_directory()?;
        let config = self.config(&here)?;
        let plugins = config.plugins.first().cloned().unwrap_or_else(|| here.join("plugins"));
        self.editor(&plugins)?;
        let secrets: Arc<dyn Secrets> = Arc::new(FileSecrets::new(vec![config.secrets.dir.clone()]));
        let Some(url) = &self.args.url else {
            if !Path::new(SHARED_EXAMPLES).is_dir() {
                // Beside, not in, projects/: it names repositories and hosts that are not yours.
                self.files.public(&plugins.join("projects/shop.lua.example"), EXAMPLE)?;
            }
            self.report.next = without_url(&config, &secrets);
            return Ok(());
        };
        // Its name as a URL: the only one that a project's file may have.
        let url = if url.starts_with('/') { &format!("file://{url}") } else { url };
        let url =
            Git::url(url).map_err(|cause| anyhow::anyhow!("{}", cause.message.replacen("source.git = ", "", 1)))?;
        let name = self.name(&url)?;
        let file = plugins.join(format!("projects/{name}.lua"));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let known_hosts = here.join("known_hosts");
        let (source, looked) = self.repository(&url, &name, &config, &known_hosts, &secrets, &clock).await?;
        let mut draft = self.draft(&name, &source, looked, &known_hosts, &file)?;

        let dir = &config.secrets.dir;
        let webhook = self.files.secret(dir, &draft.webhook, || Ok(format!("{}\n", random_hex(32)?)))?;
        let key = self.files.secret(dir, &draft.key, || Ok(server::Key::generate()?.private_file()?))?;
        let public = public_line(&key).with_context(|| format!("the secret {} in {}", draft.key, dir.display()))?;
        let mut there = match self.args.hosts[..] {
            [] => There::read(&file, &name, &projects(&config, &secrets)),
            [_, ..] => None,
        };
        if let Some(same) = there.as_ref().and_then(|there| there.drafted(&draft, self.args.user.is_none())) {
            (draft, there) = (same, None);
        }
        let told = there.as_ref().is_none_or(|there| self.tells_other(there, &draft));
        let script = here.join(format!("{name}.host.sh"));
        for (path, text) in [(&file, project::lua(&draft)), (&script, project::host_script(&draft, &public))] {
            if !self.files.agrees(path, &text)? && told {
                self.report.differs.push(path.display().to_string());
            }
        }
        self.check(&config, &secrets, &file)?;

        self.report.own = there.is_some();
        self.report.project = Some(name.to_string());
        self.report.branch = Some(there.as_ref().map_or(&draft.branch, |there| &there.source.branch).clone());
        self.report.found = draft.found.iter().map(|found| found.what.clone()).collect();
        self.report.public_key = Some(public);
        // Of a file that is somebody's own by now nobody knows what it restarts.
        self.report.sudoers = project::sudoers(&draft).filter(|_| self.report.differs.is_empty() && !self.report.own);
        self.report.webhook = Some(Webhook::new(&config, &name, webhook.trim_end(), &draft.git));
        let needs: Vec<&str> = draft.found.iter().flat_map(|found| &found.needs).copied().collect();
        self.report.lacking = lacking(&needs, &config.exec.path);
        self.hosts(&draft, there, &name, &known_hosts, &secrets, &clock).await?;
        let answers = std::os::unix::net::UnixStream::connect(&config.api.socket).is_ok();
        self.report.decide_next(&draft, &script, answers);
        Ok(())
    }

    /// The directory of the configuration, made if it is not there.
    fn place(&self) -> anyhow::Result<PathBuf> {
        let dir = match self.args.config.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        let failed = || {
            format!(
                "failed to make the directory `{}`: run this as root (sudo), or say another place with --config",
                dir.display()
            )
        };
        self.files.directory(&dir).map_err(|error| anyhow::anyhow!("{}: {}", failed(), error.root_cause()))?;
        std::fs::canonicalize(&dir).with_context(failed)
    }

    /// A directory that is no repository was meant as the place to write to.
    fn refuse_directory(&self) -> anyhow::Result<()> {
        let Some(url) = &self.args.url else { return Ok(()) };
        let path = Path::new(url);
        let repository = ["HEAD", ".git"].iter().any(|name| path.join(name).exists());
        if path.is_dir() && !repository {
            bail!(
                "`{url}` is a directory and no repository; to write a configuration there: phased init --config {}",
                path.join("phased.toml").display()
            );
        }
        if path.is_dir() && !path.is_absolute() {
            bail!("`{url}` is on this machine: say it as an absolute path, {}", std::fs::canonicalize(path)?.display());
        }
        Ok(())
    }

    fn config(&mut self, here: &Path) -> anyhow::Result<Config> {
        let file = here.join(self.args.config.file_name().context("--config names no file")?);
        self.files.public(&file, &CONFIG.replace("/etc/phased/", &format!("{}/", here.display())))?;
        self.report.config = file.display().to_string();
        Config::load(&file)
            .context("the configuration that is there cannot be used: mend it, or move it away and run this again")
    }

    /// Completion and types for editors.
    fn editor(&mut self, plugins: &Path) -> anyhow::Result<()> {
        let packaged = Path::new(SHARED_TYPES).join("phased.d.lua").exists();
        let library = if packaged { SHARED_TYPES } else { "types" };
        if !packaged {
            self.files.public(&plugins.join("types/phased.d.lua"), &crate::lua::types::meta())?;
        }
        let settings = serde_json::json!({
            "runtime.version": "Lua 5.4",
            "workspace.library": [library],
            "diagnostics.globals": ["phased"],
            "workspace.checkThirdParty": false,
        });
        self.files.public(&plugins.join(".luarc.json"), &format!("{settings:#}\n"))
    }

    fn name(&self, url: &str) -> anyhow::Result<ProjectName> {
        if let Some(name) = &self.args.name {
            return name.parse().context("--name");
        }
        let last = url.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or_default();
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
        let name: String = last.strip_suffix(".git").unwrap_or(last).chars().map(plain).collect();
        let name = name.trim_matches(['.', '-', '_']);
        name.parse()
            .with_context(|| format!("the project cannot be called after {url}: say what it is called with --name"))
    }

    /// Asks the repository, with what there is to get in with.
    async fn repository(
        &mut self,
        url: &str,
        name: &ProjectName,
        config: &Config,
        known_hosts: &Path,
        secrets: &Arc<dyn Secrets>,
        clock: &Arc<dyn Clock>,
    ) -> anyhow::Result<(Source, Looked)> {
        let dir = &config.secrets.dir;
        let (token, key) = (format!("{name}_git_token"), format!("{name}_git_key"));
        let server = Git::ssh_server(url);
        let mut source = Source {
            git: url.to_owned(),
            branch: self.args.branch.clone().unwrap_or_default(),
            tags: Vec::new(),
            poll_ms: None,
            webhook: Vec::new(),
            user: None,
            token: Some(token.clone()).filter(|name| dir.join(name).exists()).map(|name| SecretRef { name }),
            key: None,
            known_hosts: None,
        };
        let mut public = None;
        if let Some((host, port)) = &server {
            let text = self.files.secret(dir, &key, || Ok(server::Key::generate()?.private_file()?))?;
            public = Some(public_line(&text).with_context(|| format!("the secret {key} in {}", dir.display()))?);
            source.key = Some(SecretRef { name: key.clone() });
            source.known_hosts = Some(known_hosts.display().to_string());
            let met =
                hosts::key(host, *port, known_hosts, self.args.accept_host_keys, self.asker, self.files, &**clock)
                    .await?;
            match met.with_context(|| format!("the server of {url}"))? {
                Key::Known => {}
                Key::Kept(key) => {
                    self.report.notes.push(format!("{host} is known by its key {key}, in {}", known_hosts.display()))
                }
                Key::NotAccepted(key) => bail!(
                    "{host} shows the key {key}, and nobody has said that it is right: compare it with what the server's owner publishes, then run this again \
                     with --accept-host-keys (or on a terminal, which asks)"
                ),
            }
        }
        let place = Aside::new()?;
        let git = Git::new(place.0.clone(), Arc::clone(secrets), Arc::clone(clock));
        let looked = git.look(&source, detect::READ).await;
        let looked = looked.map_err(|cause| {
            anyhow::anyhow!("{}{}", cause.message, remedy(&cause, url, dir, &token, public.as_deref()))
        })?;
        source.branch.clone_from(&looked.branch);
        Ok((source, looked))
    }

    /// Whether something was said that a project's file which is there does not say.
    fn tells_other(&self, there: &There, draft: &Draft) -> bool {
        let args = self.args;
        [&args.user, &args.service, &args.dir, &args.health].into_iter().any(Option::is_some)
            || there.source.git != draft.git
            || args.branch.as_ref().is_some_and(|branch| *branch != there.source.branch)
    }

    /// What was said, asked and found.
    fn draft(
        &self,
        name: &ProjectName,
        source: &Source,
        looked: Looked,
        known_hosts: &Path,
        file: &Path,
    ) -> anyhow::Result<Draft> {
        let mut said: Vec<String> = self.args.hosts.clone();
        // One that is there says them itself.
        if said.is_empty()
            && !file.exists()
            && let Some(answer) =
                self.asker.line("Hosts to deploy to, as in web1.example.com web2.example.com (none yet: Enter):")
        {
            said = answer.split([' ', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
        }
        let read = said
            .iter()
            .map(|text| host(text).with_context(|| format!("--host {text:?}")))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let (users, hosts): (Vec<Option<String>>, Vec<Address>) = read.into_iter().unzip();
        let mut named: Vec<&String> = users.iter().flatten().chain(&self.args.user).collect();
        named.dedup();
        let user = match named[..] {
            [] if hosts.is_empty() => "deploy".to_owned(),
            [] => self.asker.or("User to log in as on them", "deploy"),
            [user] => user.clone(),
            [first, second, ..] => bail!(
                "hosts have one user to log in as, and here are {first:?} and {second:?}: name one, and mend the project's file"
            ),
        };
        let service = match self.args.service.as_deref() {
            Some("none") => None,
            Some(unit) => Some(unit.to_owned()),
            None if hosts.is_empty() => Some(name.to_string()),
            None => Some(self.asker.or("The systemd unit that is restarted on them (none: nothing is)", name.as_str()))
                .filter(|unit| unit != "none"),
        };
        let service = service.map(|unit| unit.strip_suffix(".service").map(str::to_owned).unwrap_or(unit));
        // Both stand in a line of sudoers that root writes on each host. ALL is no name there.
        anyhow::ensure!(plain(&user, "._-") && user != "ALL", "--user {user:?} is no user's name");
        if let Some(unit) = &service {
            anyhow::ensure!(plain(unit, "._-@"), "--service {unit:?} is no name of a unit");
        }
        let dir = self.args.dir.clone().unwrap_or_else(|| format!("/srv/{name}"));
        if !dir.starts_with('/') || dir.chars().any(char::is_control) {
            bail!("--dir {dir:?} is no absolute directory");
        }
        let texts = &looked.texts;
        let found = detect::detect(&detect::Files { names: &looked.files, texts });
        let draft = Draft {
            name: name.to_string(),
            git: source.git.clone(),
            branch: source.branch.clone(),
            token: source.token.as_ref().map(|secret| secret.name.clone()),
            git_key: source.key.as_ref().map(|secret| secret.name.clone()),
            webhook: format!("{name}_webhook"),
            found,
            hosts,
            user,
            key: DEPLOY_KEY.to_owned(),
            known_hosts: known_hosts.display().to_string(),
            dir,
            service,
            health: self.args.health.clone(),
            file: file.display().to_string(),
        };
        anyhow::ensure!(is_secret_name(&draft.webhook), "the project's name is too long");
        Ok(draft)
    }

    /// What `phased check` says of the file: what it has written must be right.
    fn check(&self, config: &Config, secrets: &Arc<dyn Secrets>, file: &Path) -> anyhow::Result<()> {
        if let Err(found) = projects(config, secrets).load() {
            let ours: Vec<_> = found.iter().filter(|one| file.ends_with(&one.file)).cloned().collect();
            let (which, all) = if ours.is_empty() { ("another project", &found) } else { ("the project", &ours) };
            bail!("{which} is not as it must be; mend it, then run this again:\n{}", diagnostics::render(all, false));
        }
        Ok(())
    }

    /// Looks at the hosts of the draft, or of the project's file where that is somebody's own.
    async fn hosts(
        &mut self,
        draft: &Draft,
        there: Option<There>,
        name: &ProjectName,
        known_hosts: &Path,
        secrets: &Arc<dyn Secrets>,
        clock: &Arc<dyn Clock>,
    ) -> anyhow::Result<()> {
        let tasks = Tasks::new();
        let needs = there.is_none().then_some(draft);
        let hosts = match there {
            Some(there) => {
                self.report.notes.extend(there.notes);
                there.hosts
            }
            None => {
                let realm = Realm { project: name.clone(), environment: "production".parse()? };
                let host = |address: &Address| -> anyhow::Result<_> { Ok((realm.clone(), draft.host(address)?)) };
                draft.hosts.iter().map(host).collect::<anyhow::Result<Vec<_>>>()?
            }
        };
        for (realm, host) in hosts {
            let mut state = State::of(&host);
            let met = match hosts::is_pinned(&host, known_hosts) {
                false => Ok(Key::Known),
                true => {
                    let (port, accept) = (host.ssh.port.unwrap_or(22), self.args.accept_host_keys);
                    hosts::key(&host.address, port, known_hosts, accept, self.asker, self.files, &**clock).await?
                }
            };
            match met {
                Err(error) => state.missing.push(error.cause),
                Ok(Key::NotAccepted(key)) => state.missing.push(Cause::new(
                    "host_key_unknown",
                    format!("it shows the key {key}, which nobody has said is right: compare it on the host (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then run this again with --accept-host-keys"),
                )),
                Ok(known) => {
                    if let Key::Kept(key) = known {
                        state.host_key = Some(key);
                    }
                    state.missing = hosts::look(&host, needs, &realm, secrets, clock, &tasks).await;
                }
            }
            self.report.hosts.push(state);
        }
        Ok(())
    }
}

/// What comes next where no repository was said.
fn without_url(config: &Config, secrets: &Arc<dyn Secrets>) -> String {
    match projects(config, secrets).load().as_deref() {
        Ok([]) => "phased init URL --host HOST, with the URL of your repository, writes the first project".to_owned(),
        Ok([first, ..]) => format!(
            "no host was looked at: phased init {} does so for {}; phased doctor looks at all that there is",
            first.pipeline.source.git, first.name
        ),
        Err(_) => {
            "no host was looked at, because a project is not as it must be: phased check says what is wrong".to_owned()
        }
    }
}

/// Letters, digits and `more`, and no option of a program that is given it.
fn plain(text: &str, more: &str) -> bool {
    !text.is_empty() && !text.starts_with('-') && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

/// `[USER@]ADDRESS[:PORT]`.
fn host(text: &str) -> anyhow::Result<(Option<String>, Address)> {
    let (user, place) = text.rsplit_once('@').map_or((None, text), |(user, place)| (Some(user.to_owned()), place));
    let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => {
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').context("after ] comes :PORT")?) })
        }
        // More than one colon and no brackets: an address of IPv6.
        None if place.matches(':').count() > 1 => (place, None),
        None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None => None,
        Some(port) => {
            Some(port.parse::<u16>().ok().filter(|port| *port > 0).with_context(|| format!("{port:?} is no port"))?)
        }
    };
    anyhow::ensure!(plain(host, ".-:_"), "{host:?} is no address: write [USER@]ADDRESS[:PORT]");
    anyhow::ensure!(
        user.as_ref().is_none_or(|user| plain(user, "._-")),
        "{user:?} is no user: write [USER@]ADDRESS[:PORT]"
    );
    Ok((user, Address { host: host.to_owned(), port: port.filter(|port| *port != 22) }))
}

/// What to do about a repository that does not let us in.
fn remedy(cause: &Cause, url: &str, secrets: &Path, token: &str, public: Option<&str>) -> String {
    let again = "then run this again";
    match (cause.code.as_str(), public) {
        ("git_auth" | "git_unreachable", Some(public))
            if cause.code == "git_auth" || cause.message.contains("no repository is there") =>
        {
            format!(
                "\nIf the repository is there, it does not know this machine's key yet. Add it as a deploy key, read-only (GitHub: Settings, Deploy keys; GitLab: Settings, \
             Repository, Deploy keys; Gitea: Settings, Deploy Keys), {again}:\n  {public}"
            )
        }
        ("git_auth", None) => format!(
            "\nIs {url} right? Where the repository is private, phased needs a token that may read it (GitHub: a fine-grained token with Contents: read-only; GitLab and Gitea: an \
             access token with read_repository). Put it into {file}, as in\n  sudo sh -c 'umask 077; cat >{file}'\n{again}; or give the URL for ssh, for which a key is made",
            file = secrets.join(token).display()
        ),
        _ => String::new(),
    }
}

fn public_line(private: &str) -> anyhow::Result<String> {
    Ok(format!("{} phased", server::Key::read(private)?.public_line()?.trim()))
}

fn random_hex(bytes: usize) -> anyhow::Result<String> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("the system gave no randomness: {error}"))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Programs that are not in `path`, and without which no test can run here.
fn lacking(needs: &[&str], path: &str) -> Vec<String> {
    let there = |program: &&&str| path.split(':').any(|dir| Path::new(dir).join(program).exists());
    needs.iter().filter(|program| !there(program)).map(|program| (*program).to_owned()).collect()
}

/// A directory that is gone afterwards.
struct Aside(PathBuf);

impl Aside {
    fn new() -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("phased-init-{}", random_hex(8)?));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("failed to make `{}`", dir.display()))?;
        Ok(Aside(dir))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _left_for_others_to_sweep = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
