//! The daemon as a service: what it tells systemd, played by the test, and what systemd may hand over; and the classic way.

mod classic;
mod journal;
mod notify;
mod sockets;
mod units;
mod watchdog;

use std::{
    fs::File,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex},
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::fixture::{Api, Daemon, Project, World, eventually};

/// systemd's end of `NOTIFY_SOCKET`.
struct Manager {
    path: PathBuf,
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Manager {
    fn listen(world: &World, name: &str) -> Manager {
        let path = world.path(name);
        let socket = UnixDatagram::bind(&path).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut bytes = [0; 8192];
            while let Ok(length) = socket.recv(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                hears.lock().unwrap().push((Instant::now(), text));
            }
        });
        Manager { path, heard }
    }

    /// Every message so far, each as its lines.
    fn heard(&self) -> Vec<Vec<String>> {
        let heard = self.heard.lock().unwrap();
        heard.iter().map(|(_, text)| text.lines().map(str::to_owned).collect()).collect()
    }

    /// When messages with this line came.
    fn times(&self, line: &str) -> Vec<Instant> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|(_, text)| text.lines().any(|l| l == line)).map(|(at, _)| *at).collect()
    }

    /// The status as it is now.
    fn status(&self) -> String {
        let heard = self.heard();
        let status = heard.iter().rev().find_map(|lines| lines.iter().find_map(|line| line.strip_prefix("STATUS=")));
        status.unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn status_is(&self, what: &str, wanted: impl Fn(&str) -> bool) {
        eventually(&format!("the status is {what}"), || wanted(&self.status()).then_some(()));
    }
}

/// A daemon that a service manager started.
struct Served {
    child: Child,
    api: Api,
    log: PathBuf,
}

impl Served {
    /// Starts `command`, and waits until `manager` has been told once more that it is ready.
    fn start(world: &World, manager: &Manager, mut command: Command) -> Served {
        let log = world.path("daemon.log");
        let before = manager.times("READY=1").len();
        let file = std::fs::OpenOptions::new().append(true).create(true).open(&log).unwrap();
        let child = command.env("NOTIFY_SOCKET", &manager.path).stderr(file).spawn().unwrap();
        let mut served = Served { child, api: Api::socket(world.path("phased.sock")), log };
        eventually("the daemon is ready", || {
            if let Some(status) = served.child.try_wait().unwrap() {
                panic!("the daemon ended ({status}): {}", served.said());
            }
            (manager.times("READY=1").len() > before).then_some(())
        });
        served
    }

    fn of(world: &World, manager: &Manager) -> Served {
        Served::start(world, manager, Daemon::command(&Daemon::configure(world)))
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Ends it by `signal`; how it ended.
    fn end(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        eventually("the daemon ends", || self.child.try_wait().unwrap())
    }

    /// Presses the button of the shop; the run's id.
    fn press(&self) -> String {
        let answer = self.api.post("/v1/projects/shop/start", &serde_json::json!({})).is(202);
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    fn wait(&self, run: &str) -> serde_json::Value {
        self.api.get(&format!("/v1/runs/{run}?wait=finished&timeout=80s")).is(200).json()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            let said = self.said();
            let lines: Vec<&str> = said.lines().collect();
            eprintln!("the daemon said last:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
        }
    }
}

/// A shop whose stage waits until it is let go.
fn waiting() -> Project {
    let run = r#"run:sh { 'until [ -e "$T/go" ]; do sleep 0.05; done', env = { T = "@TESTED@" } }"#;
    Project::new("shop").hosts(&["h1", "h2"]).stage("unit", run)
}

fn go(world: &World) {
    File::create(world.path("tested/go")).unwrap();
}
