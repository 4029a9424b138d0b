//! Processes of this machine as links.

use std::{
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use nix::unistd::{Uid, User};
use tokio::{io::AsyncWrite, net::TcpStream, process::ChildStdin};

use crate::{
    model::ids::ProjectName,
    ports::link::{Channel, Duplex, Exit, Link, LinkError},
};

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

/// Opens links to this machine.
#[derive(Clone)]
pub struct Local {
    jobs: PathBuf,
    users: JobUsers,
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

fn refuse(message: String) -> LinkError {
    LinkError::new("job_user", message)
}

impl Local {
    /// `jobs` (`data_dir/jobs`) gets a directory per project, its job user's, mode 0700.
    #[must_use]
    pub fn new(jobs: PathBuf, users: JobUsers) -> Self {
        Local { jobs, users }
    }

    /// A link for `project`'s commands; makes its directory. Blocks on the disk, shortly.
    ///
    /// # Errors
    /// `job_user` where commands could only run as the daemon itself, or the directory cannot be made the job user's.
    pub fn link(&self, project: &ProjectName) -> Result<Arc<dyn Link>, LinkError> {
        let base = self.jobs.join(project.as_str());
        let job = self.job(project, &base, Uid::effective())?;
        own(&base, job.ids)?;
        if let (JobUsers::Each(_), Some(_)) = (&self.users, job.ids) {
            own(&base.join("home"), job.ids)?;
        }
        let base = base.to_str().ok_or_else(|| refuse(format!("{} is not UTF-8", base.display())))?.to_owned();
        Ok(Arc::new(LocalLink { job, base }))
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
            Some((uid, _)) if uid == me.as_raw() && !me.is_root() => Ok(Job { ids: None, ..entry }),
            Some((uid, _)) if !me.is_root() => Err(refuse(format!(
                "the commands of {project} must run as uid {uid}, and the daemon (uid {me}) may not switch to it: run it as root or \
                 with the job unit of the package. [exec] same_user = true runs them as the daemon itself, who can read every secret"
            ))),
            _ => Ok(entry),
        }
    }
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

/// Makes `base` a directory of the job user's, closed to all others; one that somebody else put there is refused.
fn own(base: &Path, ids: Option<(u32, u32)>) -> Result<(), LinkError> {
    let failed = |e: std::io::Error| refuse(format!("{} cannot be made the job user's directory: {e}", base.display()));
    if let Some(parent) = base.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(base) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    let found = std::fs::symlink_metadata(base).map_err(failed)?;
    if !found.is_dir() {
        return Err(refuse(format!("{} is not a directory: remove it", base.display())));
    }
    if let Some((uid, gid)) = ids
        && (found.uid(), found.gid()) != (uid, gid)
    {
        // Only what is still ours is given away: what belongs to another project's user stays that user's.
        if found.uid() != Uid::effective().as_raw() {
            let owner = found.uid();
            return Err(refuse(format!("{} belongs to uid {owner}, not to {uid}: move it away", base.display())));
        }
        std::os::unix::fs::lchown(base, Some(uid), Some(gid)).map_err(failed)?;
    }
    if found.mode() & 0o7777 != 0o700 {
        std::fs::set_permissions(base, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

struct LocalLink {
    job: Job,
    base: String,
}

#[async_trait]
impl Link for LocalLink {
    async fn open(&self, command: &str) -> Result<Channel, LinkError> {
        // `sh` runs `sh`; a probe's text is for `sh -c`. setsid is the session of its own without unsafe code here.
        let mut program = std::process::Command::new("setsid");
        if command == "sh" {
            program.arg("sh");
        } else {
            program.args(["sh", "-c", command]);
        }
        program
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &self.job.home)
            .env("USER", &self.job.name)
            .env("LOGNAME", &self.job.name)
            .env("SHELL", &self.job.shell)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some((uid, gid)) = self.job.ids {
            use std::os::unix::process::CommandExt;
            // std drops every supplementary group itself where it switches the uid as root.
            program.uid(uid).gid(gid);
        }
        let mut command = tokio::process::Command::from(program);
        command.kill_on_drop(false);
        let mut child = command.spawn().map_err(|e| {
            let Job { ids, name, .. } = &self.job;
            let who = ids.map_or(name.clone(), |(uid, _)| format!("{name} (uid {uid})"));
            refuse(format!("sh cannot be started as {who}: {e}"))
        })?;
        let streams = child.stdin.take().zip(child.stdout.take()).zip(child.stderr.take());
        let Some(((stdin, stdout), stderr)) = streams else {
            return Err(LinkError::new("channel_refused", "a process was started without its streams"));
        };
        let exit = Box::pin(async move {
            use std::os::unix::process::ExitStatusExt;
            let status = child
                .wait()
                .await
                .map_err(|e| LinkError::new("connection_lost", format!("sh cannot be waited for: {e}")))?;
            Ok(match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(u32::try_from(code).unwrap_or(255)),
                (None, Some(signal)) => Exit::Signal(
                    nix::sys::signal::Signal::try_from(signal)
                        .map_or_else(|_| signal.to_string(), |s| s.as_str().trim_start_matches("SIG").to_owned()),
                ),
                (None, None) => Exit::Unsaid,
            })
        });
        let stdin = Stdin(Some(stdin));
        Ok(Channel { stdin: Box::new(stdin), stdout: Box::new(stdout), stderr: Box::new(stderr), exit })
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
}

/// A process's standard input that is closed by shutting it down, which is what ends the file for its reader.
struct Stdin(Option<ChildStdin>);

impl AsyncWrite for Stdin {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(stdin) => Pin::new(stdin).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Some(stdin) => Pin::new(stdin).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Fixed(u32);
    impl Uids for Fixed {
        fn uid(&self, _: &ProjectName) -> Result<u32, String> {
            Ok(self.0)
        }
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
        let local = Local::new(dir.path().join("jobs"), JobUsers::Each(Arc::new(Fixed(61_234))));
        let link = local.link(&shop()).unwrap();
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
        let other = Local::new(dir.path().join("jobs"), JobUsers::Each(Arc::new(Fixed(61_235))));
        let (out, _) =
            run(&*other.link(&"web".parse().unwrap()).unwrap(), &format!("ls {} 2>&1", base.display())).await;
        assert!(out.contains("Permission denied"), "{out}");
        assert_eq!(other.link(&shop()).err().unwrap().cause.code, "job_user");
    }

    #[tokio::test]
    async fn the_same_user_is_only_on_purpose() {
        let dir = jobs();
        let local = Local::new(dir.path().join("jobs"), JobUsers::Same);
        let link = local.link(&shop()).unwrap();
        assert_eq!(run(&*link, "id -u; exit 3").await, (format!("{}\n", Uid::effective()), Exit::Code(3)));
        assert_eq!(run(&*link, "kill -KILL $$").await.1, Exit::Signal("KILL".into()));
        let mut probe = link.open("echo probe").await.unwrap();
        let mut out = String::new();
        probe.stdout.read_to_string(&mut out).await.unwrap();
        assert_eq!(out, "probe\n");
    }

    #[test]
    fn who_may_be_switched_to() {
        let local = |users| Local::new(PathBuf::from("/jobs"), users);
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

    #[test]
    fn a_directory_that_is_not_ours_is_refused() {
        let dir = jobs();
        let jobs = dir.path().join("jobs");
        std::fs::create_dir(&jobs).unwrap();
        std::os::unix::fs::symlink("/tmp", jobs.join("shop")).unwrap();
        let error = Local::new(jobs.clone(), JobUsers::Same).link(&shop()).err().unwrap();
        assert!(error.cause.message.contains("not a directory"), "{error}");
    }

    #[tokio::test]
    async fn dial_connects_from_here() {
        let dir = jobs();
        let link = Local::new(dir.path().join("jobs"), JobUsers::Same).link(&shop()).unwrap();
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
