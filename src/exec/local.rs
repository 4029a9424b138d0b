//! Processes of this machine as links.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use nix::unistd::{Uid, User};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    child,
    job::{Run, Who, refuse},
    tree,
    unit::Unit,
};
use crate::{
    config::START_JOB_SOCKET,
    lifecycle::locks::locked,
    model::{cause::Cause, ids::ProjectName},
    ports::{
        hands::Hands,
        link::{Channel, Duplex, Exit, Link, LinkError},
    },
    time::{Clock, within},
};

/// Of emptying a checkout by its job user.
const EMPTYING: Duration = Duration::from_secs(600);

/// Gives every project a uid of its own: once, and the same ever after (it is kept in control).
pub trait Uids: Send + Sync {
    /// The uid of `project`; its gid is the same number.
    ///
    /// # Errors
    /// In words: the range is used up, or it cannot be kept.
    fn uid(&self, project: &ProjectName) -> Result<u32, String>;
}

/// Whose processes local commands are.
#[derive(Clone)]
pub enum JobUsers {
    /// `[exec] uids`: each project's own.
    Each(Arc<dyn Uids>),
    /// `[exec] user`: one for all projects.
    One(String),
    /// `[exec] same_user = true`: the daemon's own. They can read whatever it can.
    Same,
}

/// Who starts local commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// The daemon itself: as root it can switch users, else they can only be its own.
    Daemon,
    /// The job unit, which listens on this socket.
    Unit(PathBuf),
}

/// Opens links to this machine.
#[derive(Clone)]
pub struct Local {
    jobs: PathBuf,
    users: JobUsers,
    unit: Option<Unit>,
    clock: Arc<dyn Clock>,
    /// Held, by project, while its directory is made and given to its job user.
    making: Arc<Mutex<BTreeMap<ProjectName, Arc<tokio::sync::Mutex<()>>>>>,
}

/// Who a command runs as, and what its login would say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Job {
    /// `None` = the daemon's own user, nothing to switch.
    ids: Option<(u32, u32)>,
    name: String,
    home: String,
    shell: String,
}

impl Local {
    /// `jobs` (`data_dir/jobs`) gets a directory per project, its job user's, mode 0700.
    #[must_use]
    pub fn new(jobs: PathBuf, users: JobUsers, way: &Way, clock: Arc<dyn Clock>) -> Self {
        let unit = match way {
            Way::Daemon => None,
            Way::Unit(socket) => Some(Unit::new(socket.clone(), Arc::clone(&clock))),
        };
        Local { jobs, users, unit, clock, making: Arc::default() }
    }

    /// A link for `project`'s commands; makes its directory.
    ///
    /// # Errors
    /// `job_user` where commands could only run as the daemon itself, or the directory cannot be made the job user's; `job_unit` and
    /// `channel_refused` where the job unit does not do it.
    pub async fn link(&self, project: &ProjectName) -> Result<Arc<dyn Link>, LinkError> {
        Ok(Arc::new(self.made(project).await?))
    }

    async fn made(&self, project: &ProjectName) -> Result<LocalLink, LinkError> {
        let one = Arc::clone(locked(&self.making).entry(project.clone()).or_default());
        // A directory that another has made and not given away yet is not to be given twice.
        let _one_at_a_time = one.lock().await;
        let (local, of) = (self.clone(), project.clone());
        let made = tokio::task::spawn_blocking(move || local.make(&of)).await;
        let (job, base, new) = made.unwrap_or_else(|error| Err(refuse(error.to_string())))?;
        let unit = self.unit.clone().filter(|_| job.ids.is_some());
        if let (Some(unit), Some((uid, gid)), true) = (&unit, job.ids, new) {
            unit.give(&Who { project: project.clone(), uid, gid }, &base).await?;
        }
        let base = base.to_str().ok_or_else(|| refuse(format!("{} is not UTF-8", base.display())))?.to_owned();
        Ok(LocalLink { project: project.clone(), job, base, unit })
    }

    /// The job user of `project` and its directory, which the job unit is still to give it if the last is true. Blocks on the disk, shortly.
    fn make(&self, project: &ProjectName) -> Result<(Job, PathBuf, bool), LinkError> {
        let base = self.jobs.join(project.as_str());
        let job = self.job(project, &base, Uid::effective())?;
        let home = matches!((&self.users, job.ids), (JobUsers::Each(_), Some(_))).then(|| base.join("home"));
        let new = if self.unit.is_some() && job.ids.is_some() {
            let new = private(&base, job.ids)?;
            // Once `base` is given away nothing can be made in it any more.
            if let Some(home) = home.filter(|_| new) {
                private(&home, job.ids)?;
            }
            new
        } else {
            own(&base, job.ids)?;
            if let Some(home) = home {
                own(&home, job.ids)?;
            }
            false
        };
        Ok((job, base, new))
    }

    fn job(&self, project: &ProjectName, base: &Path, me: Uid) -> Result<Job, LinkError> {
        let entry = match &self.users {
            JobUsers::Same => {
                let user = known(User::from_uid(me), &format!("uid {me}"))?;
                return Ok(Job { ids: None, ..job_of(user, me.as_raw(), base) });
            }
            JobUsers::One(name) => {
                let user = known(User::from_name(name), &format!("user {name:?}"))?.ok_or_else(|| {
                    refuse(format!("[exec] user = {name:?} does not exist: create it, or name another"))
                })?;
                job_of(Some(user.clone()), user.uid.as_raw(), base)
            }
            JobUsers::Each(uids) => {
                let uid =
                    uids.uid(project).map_err(|why| refuse(format!("no uid for the commands of {project}: {why}")))?;
                let user = known(User::from_uid(Uid::from_raw(uid)), &format!("uid {uid}"))?;
                Job { ids: Some((uid, uid)), home: base.join("home").display().to_string(), ..job_of(user, uid, base) }
            }
        };
        match entry.ids {
            Some((0, _) | (_, 0)) => {
                Err(refuse(format!("the commands of {project} would run as root: name another user")))
            }
            Some((uid, _)) if uid == me.as_raw() && self.unit.is_some() => Err(refuse(format!(
                "the commands of {project} would run as the daemon itself (uid {uid}): name other `uids` or another `user` in [exec]"
            ))),
            Some((uid, _)) if uid == me.as_raw() && !me.is_root() => Ok(Job { ids: None, ..entry }),
            Some((uid, _)) if !me.is_root() && self.unit.is_none() => Err(refuse(format!(
                "the commands of {project} must run as uid {uid}, and the daemon (uid {me}) may not switch to it: start the package's \
                 job unit (`{START_JOB_SOCKET}`) and the daemon again, or run the daemon as root. [exec] same_user = \
                 true runs them as the daemon itself, who can read every secret"
            ))),
            _ => Ok(entry),
        }
    }

    /// To whom `tree` is still to be given; blocks.
    fn whose(&self, project: &ProjectName, tree: &Path) -> Result<Option<Who>, Cause> {
        let job =
            self.job(project, &self.jobs.join(project.as_str()), Uid::effective()).map_err(|error| error.cause)?;
        let Some((uid, gid)) = job.ids else { return Ok(None) };
        let found = std::fs::symlink_metadata(tree).map_err(|error| disk("give", tree, &error))?;
        // The directory itself comes last.
        let theirs = (found.uid(), found.gid()) == (uid, gid);
        Ok((!theirs).then(|| Who { project: project.clone(), uid, gid }))
    }

    /// Has the job user empty a directory of its own, whatever it has left there.
    async fn empty(&self, project: &ProjectName, tree: &Path) -> Result<(), Cause> {
        let link = self.made(project).await.map_err(|error| error.cause)?;
        let quoted = tree.to_string_lossy().replace('\'', r"'\''");
        // Nobody else can be harmed by what lies there: it is done with the right of who left it.
        // Also when it has closed the directory to itself.
        let text = format!(
            "chmod u+rwx -- '{quoted}' && cd -- '{quoted}' && {{ chmod -R u+rwX . 2>/dev/null; find . -mindepth 1 -delete; }}"
        );
        let emptying = async {
            let Channel { mut stdin, stdout, mut stderr, exit } = link.open(&text).await?;
            let _closed = stdin.shutdown().await;
            drop(stdout);
            let mut said = Vec::new();
            // Read to its end, so that it is never waited for; little of it is kept.
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut piece).await {
                let room = 1000_usize.saturating_sub(said.len()).min(n);
                said.extend_from_slice(&piece[..room]);
            }
            Ok::<_, LinkError>((exit.await?, said))
        };
        let failed =
            |why: &str| Cause::new("disk", format!("{} cannot be emptied by its job user: {why}", tree.display()));
        match within(&*self.clock, EMPTYING, emptying).await {
            None => Err(failed("it took too long")),
            Some(Err(error)) => Err(error.cause),
            Some(Ok((Exit::Code(0), _))) => Ok(()),
            Some(Ok((_, said))) => Err(failed(String::from_utf8_lossy(&said).trim())),
        }
    }
}

fn disk(what: &str, path: &Path, error: &io::Error) -> Cause {
    Cause::new("disk", format!("cannot {what} {}: {error}", path.display()))
}

#[async_trait]
impl Hands for Local {
    async fn give(&self, project: &ProjectName, tree: &Path) -> Result<(), Cause> {
        let (local, of, path) = (self.clone(), project.clone(), tree.to_owned());
        let Some(who) = blocking(move || local.whose(&of, &path)).await? else { return Ok(()) };
        if let Some(unit) = &self.unit {
            return unit.give(&who, tree).await.map_err(|error| error.cause);
        }
        let path = tree.to_owned();
        blocking(move || {
            let all = tree::inside_out(&path, Uid::effective().as_raw());
            let give = |one: &PathBuf| std::os::unix::fs::lchown(one, Some(who.uid), Some(who.gid));
            all.and_then(|all| all.iter().try_for_each(give)).map_err(|error| disk("give", &path, &error))
        })
        .await
    }

    async fn remove(&self, project: &ProjectName, tree: &Path) -> Result<(), Cause> {
        match remove(tree).await {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && self.unit.is_some() => {}
            removed => return removed.map_err(|error| disk("remove", tree, &error)),
        }
        // Some of it is the job user's. Killed while it was given away, the outermost directory is still ours.
        self.give(project, tree).await?;
        self.empty(project, tree).await?;
        remove(tree).await.map_err(|error| disk("remove", tree, &error))
    }
}

async fn remove(tree: &Path) -> io::Result<()> {
    let path = tree.to_owned();
    tokio::task::spawn_blocking(move || tree::remove(&path)).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Cause> + Send + 'static) -> Result<T, Cause> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Cause::new("internal", error.to_string())))
}

fn known(found: nix::Result<Option<User>>, who: &str) -> Result<Option<User>, LinkError> {
    found.map_err(|e| refuse(format!("{who} cannot be looked up: {e}")))
}

fn job_of(user: Option<User>, uid: u32, base: &Path) -> Job {
    match user {
        Some(user) => Job {
            ids: Some((user.uid.as_raw(), user.gid.as_raw())),
            name: user.name,
            home: user.dir.display().to_string(),
            shell: user.shell.display().to_string(),
        },
        None => Job {
            ids: Some((uid, uid)),
            name: format!("job-{uid}"),
            home: base.display().to_string(),
            shell: "/bin/sh".to_owned(),
        },
    }
}

/// Makes `base` a directory closed to all but its owner; whether it is still to be given to `ids`. One that somebody else put there is
/// refused.
fn private(base: &Path, ids: Option<(u32, u32)>) -> Result<bool, LinkError> {
    let failed = |e: io::Error| refuse(format!("{} cannot be made the job user's directory: {e}", base.display()));
    if let Some(parent) = base.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(base) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    let found = std::fs::symlink_metadata(base).map_err(failed)?;
    if !found.is_dir() {
        return Err(refuse(format!("{} is not a directory: remove it", base.display())));
    }
    let me = Uid::effective();
    let theirs = ids.is_some_and(|ids| (found.uid(), found.gid()) == ids);
    // Only what is still ours is given away: what belongs to another project's user stays that user's.
    if let (Some((uid, _)), false) = (ids, theirs || found.uid() == me.as_raw()) {
        let owner = found.uid();
        return Err(refuse(format!("{} belongs to uid {owner}, not to {uid}: move it away", base.display())));
    }
    // One that is the job user's is its own to open or close where we are not root.
    if found.mode() & 0o7777 != 0o700 && (found.uid() == me.as_raw() || me.is_root()) {
        std::fs::set_permissions(base, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(ids.is_some() && !theirs)
}

/// Makes `base` a directory of the job user's, closed to all others, as root can.
fn own(base: &Path, ids: Option<(u32, u32)>) -> Result<(), LinkError> {
    if private(base, ids)?
        && let Some((uid, gid)) = ids
    {
        let given = std::os::unix::fs::lchown(base, Some(uid), Some(gid));
        given.map_err(|e| refuse(format!("{} cannot be made the job user's directory: {e}", base.display())))?;
    }
    Ok(())
}

struct LocalLink {
    project: ProjectName,
    job: Job,
    base: String,
    unit: Option<Unit>,
}

#[async_trait]
impl Link for LocalLink {
    async fn open(&self, command: &str) -> Result<Channel, LinkError> {
        // `sh` runs `sh`; a probe's text is for `sh -c`.
        let argv: &[&str] = if command == "sh" { &["sh"] } else { &["sh", "-c", command] };
        let env = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", &self.job.home),
            ("USER", &self.job.name),
            ("LOGNAME", &self.job.name),
            ("SHELL", &self.job.shell),
        ];
        let me = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let (uid, gid) = self.job.ids.unwrap_or(me);
        let run = Run {
            who: Who { project: self.project.clone(), uid, gid },
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            cwd: "/".to_owned(),
        };
        match &self.unit {
            Some(unit) => unit.start(run).await,
            None => child::start(&run, self.job.ids.is_some()),
        }
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Duplex>, LinkError> {
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(|e| LinkError::new("unreachable", format!("{host} port {port} cannot be connected: {e}")))?;
        let _slower = stream.set_nodelay(true);
        Ok(Box::new(stream))
    }

    fn is_closed(&self) -> bool {
        false
    }

    async fn close(&self) {}

    fn base(&self) -> Option<String> {
        Some(self.base.clone())
    }

    fn counted(&self) -> bool {
        self.unit.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::SystemClock;

    struct Fixed(u32);
    impl Uids for Fixed {
        fn uid(&self, _: &ProjectName) -> Result<u32, String> {
            Ok(self.0)
        }
    }

    fn local_at(jobs: PathBuf, users: JobUsers) -> Local {
        Local::new(jobs, users, &Way::Daemon, Arc::new(SystemClock::new()))
    }

    fn shop() -> ProjectName {
        "shop".parse().unwrap()
    }

    fn jobs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        dir
    }

    async fn run(link: &dyn Link, text: &str) -> (String, Exit) {
        let mut channel = link.open("sh").await.unwrap();
        channel.stdin.write_all(text.as_bytes()).await.unwrap();
        channel.stdin.shutdown().await.unwrap();
        let mut out = String::new();
        channel.stdout.read_to_string(&mut out).await.unwrap();
        (out, channel.exit.await.unwrap())
    }

    #[tokio::test]
    async fn commands_run_as_the_projects_own_uid_and_as_nobody_else() {
        if !Uid::effective().is_root() {
            eprintln!("SKIPPED: only root can switch users");
            return;
        }
        let dir = jobs();
        let local = local_at(dir.path().join("jobs"), JobUsers::Each(Arc::new(Fixed(61_234))));
        let link = local.link(&shop()).await.unwrap();
        let _open = std::fs::File::create(dir.path().join("opened-by-the-daemon")).unwrap();
        let text = "id -u; id -g; grep '^Groups:' /proc/self/status; pwd; ps -o sid= -p $$ | tr -d ' '; echo $$; ls -l /proc/self/fd; env | sort";
        let (out, exit) = run(&*link, text).await;
        assert_eq!(exit, Exit::Code(0));
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[..4], ["61234", "61234", "Groups:\t ", "/"], "{out}");
        assert_eq!(lines[4], lines[5], "a session of its own");
        assert!(!out.contains("opened-by-the-daemon"), "{out}");
        let base = dir.path().join("jobs/shop");
        let home = format!("HOME={}/home", base.display());
        assert!(lines.contains(&home.as_str()) && lines.contains(&"USER=job-61234"), "{out}");
        assert!(!out.contains("CARGO"), "nothing of the daemon's environment: {out}");
        let made = std::fs::metadata(&base).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (61_234, 61_234, 0o700));
        assert_eq!(link.base().as_deref(), base.to_str());
        // Another project's user gets nowhere near it.
        let other = local_at(dir.path().join("jobs"), JobUsers::Each(Arc::new(Fixed(61_235))));
        let (out, _) =
            run(&*other.link(&"web".parse().unwrap()).await.unwrap(), &format!("ls {} 2>&1", base.display())).await;
        assert!(out.contains("Permission denied"), "{out}");
        assert_eq!(other.link(&shop()).await.err().unwrap().cause.code, "job_user");
    }

    #[tokio::test]
    async fn the_same_user_is_only_on_purpose() {
        let dir = jobs();
        let local = local_at(dir.path().join("jobs"), JobUsers::Same);
        let link = local.link(&shop()).await.unwrap();
        assert_eq!(run(&*link, "id -u; exit 3").await, (format!("{}\n", Uid::effective()), Exit::Code(3)));
        assert_eq!(run(&*link, "kill -KILL $$").await.1, Exit::Signal("KILL".into()));
        let mut probe = link.open("echo probe").await.unwrap();
        let mut out = String::new();
        probe.stdout.read_to_string(&mut out).await.unwrap();
        assert_eq!(out, "probe\n");
    }

    #[test]
    fn who_may_be_switched_to() {
        let local = |users| local_at(PathBuf::from("/jobs"), users);
        let job = |users, me| local(users).job(&shop(), Path::new("/jobs/shop"), Uid::from_raw(me));
        let each = |uid| JobUsers::Each(Arc::new(Fixed(uid)));
        assert_eq!(job(each(61_000), 0).unwrap().ids, Some((61_000, 61_000)));
        assert_eq!(job(each(61_000), 61_000).unwrap().ids, None, "already is");
        for (users, me) in [
            (each(61_000), 1000),
            (each(0), 0),
            (JobUsers::One("root".into()), 0),
            (JobUsers::One("no-such-user".into()), 0),
        ] {
            assert_eq!(job(users, me).unwrap_err().cause.code, "job_user");
        }
        assert_eq!(job(JobUsers::Same, 1000).unwrap().ids, None);
    }

    #[tokio::test]
    async fn a_directory_that_is_not_ours_is_refused() {
        let dir = jobs();
        let jobs = dir.path().join("jobs");
        std::fs::create_dir(&jobs).unwrap();
        std::os::unix::fs::symlink("/tmp", jobs.join("shop")).unwrap();
        let error = local_at(jobs.clone(), JobUsers::Same).link(&shop()).await.err().unwrap();
        assert!(error.cause.message.contains("not a directory"), "{error}");
    }

    #[tokio::test]
    async fn dial_connects_from_here() {
        let dir = jobs();
        let link = local_at(dir.path().join("jobs"), JobUsers::Same).link(&shop()).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(link.dial("127.0.0.1", port).await.is_ok());
        // Bound and not listening: nobody else takes it meanwhile.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = silent.local_addr().unwrap().port();
        assert_eq!(link.dial("127.0.0.1", port).await.err().unwrap().cause.code, "unreachable");
    }
}
