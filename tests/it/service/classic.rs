//! Without systemd: the init script, the pid file, the log and its rotation.

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use nix::unistd::{Group, User};
use serde_json::{Value, json};

use crate::fixture::{Api, BINARY, World, eventually, output};

/// A machine with the init script and what it needs; the daemon runs as [`USER`].
struct Classic {
    world: World,
    script: PathBuf,
}

const USER: &str = "phased-it";
/// A group that every Linux has, and that user is in besides their own.
const GROUP: &str = "users";

/// Makes the user, once.
fn user() -> User {
    static MADE: OnceLock<User> = OnceLock::new();
    let make = || {
        // Another test run may do the same now.
        let made = output(Command::new("useradd").args(["--system", "--user-group", "--groups", GROUP, USER]));
        User::from_name(USER).unwrap().unwrap_or_else(|| panic!("there is no user {USER}: {made:?}"))
    };
    MADE.get_or_init(|| User::from_name(USER).unwrap().unwrap_or_else(make)).clone()
}

impl Classic {
    fn new() -> Classic {
        user();
        let world = World::new();
        let root = world.root().display().to_string();
        let config = format!(
            "data_dir = \"{root}/classic/data\"\nplugins = [\"{root}/plugins\"]\n[api]\nsocket = \"{root}/run/phased.sock\"\nlisten = \"none\"\n\
             [log]\nformat = \"json\"\n"
        );
        std::fs::write(world.path("classic.toml"), config).unwrap();
        let defaults = format!(
            "DAEMON={BINARY}\nCONFIG={root}/classic.toml\nPIDFILE={root}/phased.pid\nRUNAS={USER}\nLOGFILE={root}/log/phased.log\n"
        );
        std::fs::write(world.path("defaults"), defaults).unwrap();
        let script = std::fs::read_to_string("packaging/init/phased").unwrap();
        let script = script.replace("DEFAULTS=/etc/default/phased", &format!("DEFAULTS={root}/defaults"));
        let path = world.path("init");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Classic { world, script: path }
    }

    /// Calls the script; its exit code and what it said.
    fn call(&self, verb: &str) -> (i32, String) {
        let mut command = Command::new("/bin/sh");
        let output = output(command.arg(&self.script).arg(verb).env_clear());
        (output.code, output.stdout + &output.stderr)
    }

    #[track_caller]
    fn is(&self, verb: &str, code: i32, word: &str) {
        let (was, said) = self.call(verb);
        assert!(was == code && said.contains(word), "{verb}: {was} {said}\n{}", self.log());
    }

    fn pid(&self) -> String {
        std::fs::read_to_string(self.world.path("phased.pid")).unwrap_or_default().trim().to_owned()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.world.path("log/phased.log")).unwrap_or_default()
    }

    fn api(&self) -> Api {
        Api::socket(self.world.path("run/phased.sock"))
    }
}

impl Drop for Classic {
    fn drop(&mut self) {
        let _ended_already = self.call("stop");
    }
}

/// A process that is none of phased's.
struct Foreign(Child);

impl Foreign {
    fn start() -> Foreign {
        Foreign(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _dead = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn the_init_script_starts_tells_reloads_and_stops() {
    let classic = Classic::new();
    classic.is("status", 3, "does not run");
    classic.is("stop", 0, "does not run");
    classic.is("reload", 7, "does not run");
    classic.is("frobnicate", 2, "usage: ");
    classic.is("start", 0, "");
    // It answers as soon as the script is back.
    classic.api().get("/healthz").is(200);
    let pid = classic.pid();
    classic.is("status", 0, &format!("runs as process {pid}"));
    classic.is("start", 0, &format!("runs already as process {pid}"));

    // All of the user, and nothing of root's.
    let user = user();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ids = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(|id| id.parse::<u32>().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((ids("Uid:"), ids("Gid:")), (vec![user.uid.as_raw(); 4], vec![user.gid.as_raw(); 4]));
    let further = Group::from_name(GROUP).unwrap().unwrap();
    let groups = BTreeSet::from([user.gid.as_raw(), further.gid.as_raw()]);
    assert_eq!(BTreeSet::from_iter(ids("Groups:")), groups, "all that are the user's, and no other: {status}");
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), PathBuf::from("/"));

    classic.is("reload", 0, "");
    eventually("it is reloaded", || classic.log().contains("the projects were reloaded").then_some(()));
    classic.is("restart", 0, "");
    let next = classic.pid();
    assert_ne!(next, pid);
    classic.is("try-restart", 0, "");
    classic.is("stop", 0, "");
    classic.is("status", 3, "does not run");
    classic.is("try-restart", 0, "");
    assert_eq!(classic.pid(), "");
    assert!(classic.log().contains("phased goes down"));
}

#[test]
fn a_number_in_a_pid_file_is_nobody_without_its_lock() {
    let classic = Classic::new();
    let mut foreign = Foreign::start();
    let file = classic.world.path("phased.pid");
    // As a crash leaves it, its number gone to somebody else since.
    std::fs::write(&file, format!("{}\n", foreign.0.id())).unwrap();
    classic.is("status", 1, "ended without a word");
    classic.is("stop", 0, "does not run");
    classic.is("reload", 7, "");
    assert!(foreign.lives());
    classic.is("start", 0, "");
    let pid = classic.pid();
    assert_ne!(pid, foreign.0.id().to_string());

    // kill -9: the number stays, the lock goes.
    let id = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("it is dead", || (classic.call("status").0 == 1).then_some(()));
    classic.is("start", 0, "");
    classic.is("stop", 0, "");
    assert!(foreign.lives());
}

/// `phased serve --daemonize` by hand.
fn serve(classic: &Classic, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(BINARY);
    command.args(["serve", "--daemonize", "--config"]).arg(classic.world.path("classic.toml"));
    let output = output(command.args(args));
    (output.code, output.stderr)
}

#[test]
fn a_start_that_fails_is_told_on_the_terminal() {
    let classic = Classic::new();
    classic.is("start", 0, "");
    let pid_file = classic.world.path("phased.pid").display().to_string();
    let (code, said) = serve(&classic, &["--pid-file", &pid_file]);
    assert_eq!(code, 1);
    assert!(said.contains(&format!("phased runs already as process {}", classic.pid())), "{said}");
    // Another pid file, the same data: the directory's own lock refuses it, from the background.
    let other = classic.world.path("other.pid").display().to_string();
    let log = classic.world.path("other.log").display().to_string();
    let (code, said) = serve(&classic, &["--pid-file", &other, "--log-file", &log]);
    assert_eq!(code, 1);
    assert!(said.contains("is in use by pid"), "{said}");
    let (code, said) = serve(&classic, &["--user", "nobody-has-this-name"]);
    assert_eq!(code, 1);
    assert!(said.contains("there is no user \"nobody-has-this-name\""), "{said}");
    // The user who writes the log must be able to open it.
    let (code, said) = serve(&classic, &["--user", USER, "--log-file", "/root/phased-it.log"]);
    assert_eq!(code, 1);
    assert!(said.contains("failed to open the log `/root/phased-it.log`"), "{said}");
    assert!(!std::path::Path::new("/root/phased-it.log").exists());
    classic.is("stop", 0, "");

    let config = classic.world.path("classic.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("plugins", "plugin")).unwrap();
    classic.is("start", 1, "did you mean `plugins`?");
}

#[test]
fn a_rotation_loses_no_line() {
    let classic = Classic::new();
    classic.is("start", 0, "");
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let log = classic.world.path("log/phased.log");
    let files = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    classic.api().post("/v1/reload", &json!({})).is(200);
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let mut files = vec![log.clone()];
        for n in 1..=15 {
            let before = asked.load(Ordering::SeqCst);
            eventually("lines are written", || (asked.load(Ordering::SeqCst) > before + 4).then_some(()));
            // As logrotate does it.
            let aside = classic.world.path(&format!("log/phased.log.{n}"));
            std::fs::rename(&log, &aside).unwrap();
            classic.is("reload", 0, "");
            eventually("the log is opened anew", || log.exists().then_some(()));
            files.push(aside);
        }
        over.store(true, Ordering::SeqCst);
        files
    });
    classic.is("stop", 0, "");
    let lines: Vec<Value> = files
        .iter()
        .flat_map(|file| std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("a torn line ({error}): {line}")))
        .collect();
    let count = |message: &str| lines.iter().filter(|line| line["message"] == message).count();
    let (reloads, opened) = (count("the projects were reloaded"), count("the log was opened anew"));
    // Each SIGHUP is one of either.
    assert_eq!(reloads, asked.load(Ordering::SeqCst) + opened);
    assert!(opened >= 15, "{opened}");
}

#[test]
fn logrotate_takes_what_is_shipped() {
    let found = Command::new("logrotate").arg("--version").output();
    assert!(found.is_ok(), "logrotate is missing: apt-get install logrotate");
    let classic = Classic::new();
    classic.is("start", 0, "");
    let root = classic.world.root().display().to_string();
    let shipped = std::fs::read_to_string("packaging/logrotate/phased").unwrap();
    let shipped = shipped
        .replace("/var/log/phased", &format!("{root}/log"))
        .replace("/etc/init.d/phased", &format!("{root}/init"));
    std::fs::write(classic.world.path("rotate"), shipped).unwrap();
    let state = classic.world.path("rotate.state");
    let mut command = Command::new("logrotate");
    let rotated = output(command.arg("--force").arg("--state").arg(&state).arg(classic.world.path("rotate")));
    assert_eq!(rotated.code, 0, "{rotated:?}");
    eventually("the daemon writes the new file", || classic.log().contains("the log was opened anew").then_some(()));
    let old = std::fs::read_to_string(classic.world.path("log/phased.log.1")).unwrap();
    assert!(old.contains("phased is ready"));
}
