//! Sockets that systemd holds, played by the test.

use std::{
    net::{SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use nix::sys::signal::Signal;

use super::{Manager, Served};
use crate::fixture::{Api, BINARY, Daemon, Project, World, eventually};

/// `phased serve` with `third` and `fourth` as file descriptors 3 and 4, as systemd hands them over.
fn handed(config: &Path, third: OwnedFd, fourth: OwnedFd) -> Command {
    let script = r#"exec 3<&0 4<&1 </dev/null >/dev/null
        LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=api:http exec "$0" serve --config "$1""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, BINARY]).arg(config);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.stdin(Stdio::from(third)).stdout(Stdio::from(fourth));
    command
}

struct Sockets {
    unix: UnixListener,
    tcp: TcpListener,
    addr: SocketAddr,
}

impl Sockets {
    fn bind(world: &World) -> Sockets {
        let unix = UnixListener::bind(world.path("phased.sock")).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = tcp.local_addr().unwrap();
        std::fs::write(world.path("port"), addr.port().to_string()).unwrap();
        Sockets { unix, tcp, addr }
    }

    fn command(&self, world: &World) -> Command {
        let (unix, tcp) = (self.unix.try_clone().unwrap(), self.tcp.try_clone().unwrap());
        handed(&Daemon::configure(world), unix.into(), tcp.into())
    }
}

#[test]
fn restarts_refuse_nobody_and_leave_nobody_without_an_answer() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let sockets = Sockets::bind(&world);
    let manager = Manager::listen(&world, "notify");
    let mut served = Served::start(&world, &manager, sockets.command(&world));
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let ask = |api: Api| {
        let mut failed = Vec::new();
        while !over.load(Ordering::SeqCst) {
            match api.try_ask("GET", "/healthz", b"") {
                Ok(answer) if answer.status == 200 => {}
                Ok(answer) => failed.push(format!("{} {}", answer.status, answer.text())),
                Err(error) => failed.push(error.to_string()),
            }
            asked.fetch_add(1, Ordering::SeqCst);
        }
        failed
    };
    let failed: Vec<String> = std::thread::scope(|scope| {
        let askers: Vec<_> = [Api::socket(world.path("phased.sock")), Api::tcp(sockets.addr)]
            .into_iter()
            .flat_map(|api| [api.clone(), api])
            .map(|api| scope.spawn(|| ask(api)))
            .collect();
        for _ in 0..5 {
            let before = asked.load(Ordering::SeqCst);
            eventually("people ask", || (asked.load(Ordering::SeqCst) > before + 20).then_some(()));
            assert!(served.end(Signal::SIGTERM).success());
            assert!(world.path("phased.sock").exists(), "the socket is systemd's");
            served = Served::start(&world, &manager, sockets.command(&world));
        }
        let before = asked.load(Ordering::SeqCst);
        eventually("people ask", || (asked.load(Ordering::SeqCst) > before + 20).then_some(()));
        over.store(true, Ordering::SeqCst);
        askers.into_iter().flat_map(|asker| asker.join().unwrap()).collect()
    });
    assert!(
        failed.is_empty(),
        "{} of {}: {:?}",
        failed.len(),
        asked.load(Ordering::SeqCst),
        &failed[..failed.len().min(5)]
    );
}

#[test]
fn who_comes_while_no_daemon_runs_waits() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let sockets = Sockets::bind(&world);
    let manager = Manager::listen(&world, "notify");
    let served = Served::start(&world, &manager, sockets.command(&world));
    served.end(Signal::SIGKILL);
    // A hook and a command line, while nobody is there: let in by the kernel, and answered by the next life.
    let waiting = [Api::tcp(sockets.addr), Api::socket(world.path("phased.sock"))]
        .map(|api| std::thread::spawn(move || api.try_ask("GET", "/healthz", b"").map(|answer| answer.status).ok()));
    UnixStream::connect(world.path("phased.sock")).unwrap();
    let served = Served::start(&world, &manager, sockets.command(&world));
    assert_eq!(waiting.map(|asker| asker.join().unwrap()), [Some(200); 2]);
    // What it serves is what it was handed.
    assert!(served.said().contains(&sockets.addr.to_string()), "{}", served.said());
    served.end(Signal::SIGTERM);
    assert!(world.path("phased.sock").exists());
}

#[test]
fn what_cannot_be_listened_on_is_refused_by_name() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let config = Daemon::configure(&world);
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let unix = |name: &str| UnixListener::bind(world.path(name)).unwrap();
    let datagram = std::os::unix::net::UnixDatagram::bind(world.path("datagram")).unwrap();
    let connected = UnixStream::pair().unwrap().0;
    let cases: [(OwnedFd, OwnedFd, &[&str]); 4] = [
        (unix("a").into(), null(), &["file descriptor 4 (http)", "neither a Unix nor a TCP stream socket"]),
        (datagram.into(), null(), &["file descriptor 3 (api)", "neither a Unix nor a TCP stream socket"]),
        (connected.into(), null(), &["file descriptor 3 (api)", "it does not listen"]),
        (unix("b").into(), unix("c").into(), &["file descriptor 4 (http)", "a second Unix socket"]),
    ];
    for (third, fourth, words) in cases {
        let output = handed(&config, third, fourth).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
    }
    // Meant for another process: it binds by itself.
    let mut command = Daemon::command(&config);
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    let manager = Manager::listen(&world, "notify");
    let served = Served::start(&world, &manager, command);
    served.api.get("/healthz").is(200);
    assert!(served.end(Signal::SIGTERM).success());
    assert!(!world.path("phased.sock").exists(), "its own it removes");
}
