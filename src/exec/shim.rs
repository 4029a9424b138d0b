//! `phased job`: what systemd starts as root for each connection to `phased-job.socket`, the connection as standard input.
//!
//! It does one thing for the daemon that the daemon has no right to do, and is as hard to talk into something else as it can be: who asks
//! is the kernel's word (`SO_PEERCRED`), who may be switched to is the configuration's, which nobody but root may write; paths are never
//! opened here (pipes and files come as open descriptors); and once the job runs, what is left here has no capability.

use std::{
    io::{self, Write as _},
    ops::RangeInclusive,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use nix::unistd::{Gid, Uid, User};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};

use super::{
    child,
    job::{Ended, LINE, Reply, Request, Run, Who},
    wire,
};
use crate::{
    config::{Config, Exec, JOB_UIDS},
    ports::link::Exit,
};

/// How long who has connected may take to say what is wanted, and to take an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why something is not done, in words.
type Refusal = String;

/// Who may ask, and for whom.
#[derive(Debug)]
struct Rules {
    /// The daemon's user.
    daemon: u32,
    /// Uids that may be switched to.
    uids: RangeInclusive<u32>,
    /// Their gid; `None` = the same number.
    gid: Option<u32>,
}

/// Serves the connection on standard input. `config` is read as it is now, `daemon` is the user who may ask, besides root.
#[must_use]
pub fn run(config: &Path, daemon: &str) -> ExitCode {
    let connection = io::stdin();
    match serve(connection.as_fd(), config, daemon) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // To the unit's log and to who asked.
            let _nobody_reads = writeln!(io::stderr(), "phased job: refused: {why}");
            let _gone = say(connection.as_fd(), &Reply::Refused(why));
            ExitCode::FAILURE
        }
    }
}

fn serve(connection: BorrowedFd<'_>, config: &Path, daemon: &str) -> Result<(), Refusal> {
    let peer = socket_peercred(connection).map_err(|error| {
        format!("standard input is no connection ({error}): phased-job.socket starts this, not a person")
    })?;
    for which in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(connection, which, Some(PATIENCE))
            .map_err(|e| format!("the connection cannot be used: {e}"))?;
    }
    let rules = Rules::load(config, daemon)?;
    let peer = peer.uid.as_raw();
    rules.may_ask(peer)?;
    let (line, fds) = request(connection)?;
    let request = Request::parse(&line)?;
    rules.may_be(request.who(), peer)?;
    match request {
        Request::Run(run) => start(connection, &run, fds),
        Request::Give(give) if fds.is_empty() => take(connection, &give.who, peer),
        Request::Give(_) => Err("files came with the request, not after it".to_owned()),
    }
}

impl Rules {
    fn load(config: &Path, daemon: &str) -> Result<Rules, Refusal> {
        let config = Config::load(&only_roots(config)?).map_err(|error| error.to_string())?;
        let daemon = match daemon.parse::<u32>() {
            Ok(uid) => uid,
            Err(_) => user(daemon)?.uid.as_raw(),
        };
        Rules::of(&config.exec, daemon)
    }

    fn of(exec: &Exec, daemon: u32) -> Result<Rules, Refusal> {
        if exec.same_user {
            return Err(
                "[exec] same_user = true: local commands are the daemon's own, and none of the job unit's".to_owned()
            );
        }
        Ok(match &exec.user {
            Some(name) => {
                let user = user(name)?;
                Rules { daemon, uids: user.uid.as_raw()..=user.uid.as_raw(), gid: Some(user.gid.as_raw()) }
            }
            None => {
                let uids = exec.uids.unwrap_or(JOB_UIDS);
                Rules { daemon, uids: uids.first..=uids.last, gid: None }
            }
        })
    }

    fn may_ask(&self, peer: u32) -> Result<(), Refusal> {
        // A job user is none of the two, even where somebody has set the daemon's user to be one.
        if peer != 0 && (peer != self.daemon || self.uids.contains(&peer)) {
            return Err(format!("uid {peer} asked, and only the daemon (uid {}) and root may", self.daemon));
        }
        Ok(())
    }

    fn may_be(&self, who: &Who, peer: u32) -> Result<(), Refusal> {
        let Who { uid, gid, .. } = *who;
        if uid == 0 || gid == 0 || uid == self.daemon || uid == peer {
            return Err(format!(
                "commands of {} as uid {uid}, gid {gid}: never as root or the daemon itself",
                who.project
            ));
        }
        if !self.uids.contains(&uid) || gid != self.gid.unwrap_or(uid) {
            return Err(format!(
                "commands of {} as uid {uid}, gid {gid}: [exec] of the configuration allows uids {} to {}, gid {}",
                who.project,
                self.uids.start(),
                self.uids.end(),
                self.gid.map_or_else(|| "the same".to_owned(), |gid| gid.to_string()),
            ));
        }
        Ok(())
    }
}

fn user(name: &str) -> Result<User, Refusal> {
    let found = User::from_name(name).map_err(|error| format!("the user {name:?} cannot be looked up: {error}"))?;
    found.ok_or_else(|| format!("there is no user {name:?}"))
}

/// What says who may be switched to must be root's word: nobody else may write the file, or put another in its place. Its path without
/// links, which somebody else might turn to elsewhere.
fn only_roots(config: &Path) -> Result<PathBuf, Refusal> {
    let unread = |error: io::Error| format!("the configuration {} cannot be read: {error}", config.display());
    let real = std::fs::canonicalize(config).map_err(unread)?;
    for (level, path) in real.ancestors().enumerate() {
        let meta = std::fs::metadata(path).map_err(unread)?;
        let sticky = level > 0 && meta.mode() & 0o1000 != 0;
        if meta.uid() != 0 || (meta.mode() & 0o022 != 0 && !sticky) {
            return Err(format!(
                "{} can be written by others than root (owner {}, mode {:04o}), and it says whom the job unit may switch to: \
                 `chown root` and `chmod go-w` it",
                path.display(),
                meta.uid(),
                meta.mode() & 0o7777
            ));
        }
    }
    Ok(real)
}

/// One line and the descriptors that came with it.
fn request(connection: BorrowedFd<'_>) -> Result<(Vec<u8>, Vec<OwnedFd>), Refusal> {
    let (mut line, mut fds) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (n, more) = wire::receive(connection, &mut buffer).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => "nothing was asked in time".to_owned(),
            _ => format!("the request cannot be read: {error}"),
        })?;
        fds.extend(more);
        line.extend_from_slice(&buffer[..n]);
        match line.iter().position(|byte| *byte == b'\n') {
            _ if line.len() > LINE => return Err(format!("the request is longer than {LINE} bytes")),
            _ if fds.len() > 3 => return Err("it came with more than three file descriptors".to_owned()),
            Some(end) if end + 1 == line.len() => {
                line.truncate(end);
                return Ok((line, fds));
            }
            Some(_) => return Err("something came after the request".to_owned()),
            None if n == 0 => return Err("the request was cut".to_owned()),
            None => {}
        }
    }
}

fn say(connection: BorrowedFd<'_>, reply: &Reply) -> io::Result<()> {
    wire::send_all(connection, &reply.line()?, &[])
}

/// Starts the program and stays until it has ended.
fn start(connection: BorrowedFd<'_>, run: &Run, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
    let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(fds)
        .map_err(|fds| format!("it came with {} file descriptors, not three", fds.len()))?;
    // A job could be given nothing by these that the daemon does not have, and not this connection in any case.
    for fd in [&stdin, &stdout, &stderr] {
        let meta = nix::sys::stat::fstat(fd).map_err(|error| format!("a file descriptor cannot be used: {error}"))?;
        if meta.st_mode & nix::libc::S_IFMT != nix::libc::S_IFIFO {
            return Err("a job's streams must be pipes".to_owned());
        }
    }
    let mut command = child::command(run, true);
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    let mut child = command
        .spawn()
        .map_err(|error| format!("{} cannot be started as uid {}: {error}", run.argv[0], run.who.uid))?;
    // Its pipes' ends with it: they end when the job's do.
    drop(command);
    powerless().map_err(|error| format!("the capabilities cannot be given up: {error}"))?;
    let _the_daemon_may_be_gone = say(connection, &Reply::Started);
    let status = child.wait().map_err(|error| format!("the job cannot be waited for: {error}"))?;
    let ended = match child::exit(status) {
        Exit::Code(code) => Ended::Code(code),
        Exit::Signal(name) => Ended::Signal(name),
        Exit::Unsaid => return Ok(()),
    };
    let _the_daemon_may_be_gone = say(connection, &Reply::Ended(ended));
    Ok(())
}

/// From here on this is a process of root's that may do nothing root may: it waits.
fn powerless() -> io::Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}

/// Gives the files that come to `who`. Each is the daemon's own; whose path it has does not matter here.
fn take(connection: BorrowedFd<'_>, who: &Who, peer: u32) -> Result<(), Refusal> {
    let gone = |error: io::Error| format!("the files cannot be taken: {error}");
    say(connection, &Reply::Ready).map_err(gone)?;
    let mut byte = [0; 1];
    loop {
        let (n, files) = wire::receive(connection, &mut byte).map_err(gone)?;
        if n == 0 {
            return Ok(());
        }
        for file in &files {
            give(file, who, peer)?;
        }
        say(connection, &Reply::Taken(files.len())).map_err(gone)?;
    }
}

fn give(file: &OwnedFd, who: &Who, peer: u32) -> Result<(), Refusal> {
    let failed = |error: nix::Error| format!("a file cannot be given to uid {}: {error}", who.uid);
    let meta = nix::sys::stat::fstat(file).map_err(failed)?;
    if (meta.st_uid, meta.st_gid) == (who.uid, who.gid) {
        return Ok(());
    }
    let kind = meta.st_mode & nix::libc::S_IFMT;
    // Another name of a file may lie where it is not to be another's.
    let alone = kind == nix::libc::S_IFDIR || meta.st_nlink == 1;
    if meta.st_uid != peer || !alone || ![nix::libc::S_IFDIR, nix::libc::S_IFREG, nix::libc::S_IFLNK].contains(&kind) {
        return Err(format!(
            "a file of uid {} (mode {:o}, {} links) is not given to uid {}: only directories, links and files with one name that are \
             the daemon's own",
            meta.st_uid, meta.st_mode, meta.st_nlink, who.uid
        ));
    }
    let (uid, gid) = (Some(Uid::from_raw(who.uid)), Some(Gid::from_raw(who.gid)));
    nix::unistd::fchownat(file, "", uid, gid, nix::fcntl::AtFlags::AT_EMPTY_PATH).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixStream};

    use super::*;

    fn who(uid: u32, gid: u32) -> Who {
        Who { project: "shop".parse().unwrap(), uid, gid }
    }

    #[test]
    fn only_the_daemon_and_root_may_ask_and_only_for_job_users() {
        let rules = Rules::of(&Exec::default(), 990).unwrap();
        for (peer, may) in [(0, true), (990, true), (1000, false), (61_000, false), (u32::MAX, false)] {
            assert_eq!(rules.may_ask(peer).is_ok(), may, "{peer}");
        }
        for (uid, gid, may) in [
            (61_000, 61_000, true),
            (61_999, 61_999, true),
            (60_999, 60_999, false),
            (62_000, 62_000, false),
            (61_000, 61_001, false),
            (61_000, 0, false),
            (0, 0, false),
            (990, 990, false),
            (1000, 1000, false),
        ] {
            assert_eq!(rules.may_be(&who(uid, gid), 990).is_ok(), may, "{uid}:{gid}");
        }
        // Wrongly set up: the daemon's user is one of the job users. Its own commands are then nobody's.
        let rules = Rules::of(&Exec::default(), 61_005).unwrap();
        assert!(rules.may_ask(61_005).is_err() && rules.may_be(&who(61_005, 61_005), 0).is_err());
        let one = Exec { user: Some("nobody".into()), ..Exec::default() };
        let rules = Rules::of(&one, 990).unwrap();
        let nobody = user("nobody").unwrap();
        assert!(rules.may_be(&who(nobody.uid.as_raw(), nobody.gid.as_raw()), 990).is_ok());
        assert!(rules.may_be(&who(61_000, 61_000), 990).is_err());
        let root = Exec { user: Some("root".into()), ..Exec::default() };
        assert!(Rules::of(&root, 990).unwrap().may_be(&who(0, 0), 990).is_err());
        let same = Exec { same_user: true, ..Exec::default() };
        assert!(Rules::of(&same, 990).unwrap_err().contains("same_user"));
    }

    #[test]
    fn the_configuration_must_be_roots_word() {
        if !Uid::effective().is_root() {
            eprintln!("SKIPPED: only root has files of root's");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("phased.toml");
        std::fs::write(&file, "[exec]\nuids = \"5000-5009\"\n").unwrap();
        let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        set(&file, 0o640);
        assert_eq!(Rules::load(&file, "990").unwrap().uids, 5000..=5009);
        let refused = || Rules::load(&file, "990").unwrap_err();
        set(&file, 0o660);
        assert!(refused().contains("can be written by others"));
        set(&file, 0o640);
        set(dir.path(), 0o770);
        assert!(refused().contains("can be written by others"));
        set(dir.path(), 0o755);
        std::os::unix::fs::chown(&file, Some(990), None).unwrap();
        assert!(refused().contains("owner 990"));
        std::os::unix::fs::chown(&file, Some(0), None).unwrap();
        assert!(Rules::load(&file, "990").is_ok());
        assert!(Rules::load(&file, "no-such-user").unwrap_err().contains("no user \"no-such-user\""));
        std::fs::write(&file, "[exec]\nuid = 3\n").unwrap();
        assert!(refused().contains("unknown field"));
        assert!(Rules::load(&dir.path().join("none"), "990").unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn a_request_is_one_whole_line_with_at_most_three_descriptors() {
        let asked = |bytes: &[u8], fds: usize| {
            let (a, b) = UnixStream::pair().unwrap();
            let null = std::fs::File::open("/dev/null").unwrap();
            let sending = bytes.to_vec();
            let writer = std::thread::spawn(move || drop(wire::send_all(&a, &sending, &vec![null.as_fd(); fds])));
            let got = request(b.as_fd()).map(|(line, fds)| (line.len(), fds.len()));
            drop(b);
            writer.join().unwrap();
            got
        };
        assert_eq!(asked(b"{}\n", 3), Ok((2, 3)));
        for (bytes, fds, why) in [
            (&b"{}\n"[..], 4, "more than three"),
            (b"{}", 0, "cut"),
            (b"", 0, "cut"),
            (b"{}\n{}\n", 0, "after the request"),
            (&vec![b'x'; LINE + 2], 0, "longer than"),
        ] {
            let error = asked(bytes, fds).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_is_not_the_daemons_own_is_not_given_away() {
        if !Uid::effective().is_root() {
            eprintln!("SKIPPED: only root can give files away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let handle = |name: &str| {
            use std::os::unix::fs::OpenOptionsExt as _;
            let flags = nix::libc::O_PATH | nix::libc::O_NOFOLLOW;
            OwnedFd::from(std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path(name)).unwrap())
        };
        for name in ["own", "foreign", "linked"] {
            std::fs::write(path(name), "").unwrap();
        }
        std::fs::create_dir(path("dir")).unwrap();
        std::os::unix::fs::symlink("foreign", path("link")).unwrap();
        std::fs::hard_link(path("linked"), path("other")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in ["own", "dir", "link", "linked", "fifo"] {
            std::os::unix::fs::lchown(path(name), Some(990), Some(990)).unwrap();
        }
        for name in ["own", "dir", "link", "own"] {
            give(&handle(name), &who(61_000, 61_001), 990).unwrap();
            let meta = std::fs::symlink_metadata(path(name)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (61_000, 61_001), "{name}");
        }
        for name in ["foreign", "linked", "fifo"] {
            let error = give(&handle(name), &who(61_000, 61_001), 990).unwrap_err();
            assert!(error.contains("is not given"), "{name}: {error}");
            assert_ne!(std::fs::symlink_metadata(path(name)).unwrap().uid(), 61_000, "{name}");
        }
    }
}
