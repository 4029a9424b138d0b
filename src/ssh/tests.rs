//! Against a real OpenSSH server on loopback, and against servers that are not quite one.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{SshLimits, SshLinks, known_hosts};
use crate::{
    lifecycle::Tasks,
    model::{
        cause::Cause,
        host::{Host, SecretRef, Ssh},
        host_key::{Learnt, Realm},
    },
    ports::{
        host_keys::HostKeys,
        link::{Exit, Link, LinkError},
        secrets::{Secret, SecretError, Secrets},
    },
    time::{Clock, SystemClock},
};

mod trust;
mod ways;

/// Keys learnt so far, by environment and id.
#[derive(Default)]
pub(crate) struct Learning(std::sync::Mutex<BTreeMap<String, Learnt>>);

impl Learning {
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

#[async_trait::async_trait]
impl HostKeys for Learning {
    async fn known(&self, realm: &Realm, id: &str) -> Result<Option<Learnt>, Cause> {
        Ok(self.0.lock().unwrap().get(&realm.host_key(id)).cloned())
    }
    async fn learn(&self, realm: &Realm, id: &str, key: Learnt) -> Result<Learnt, Cause> {
        Ok(self.0.lock().unwrap().entry(realm.host_key(id)).or_insert(key).clone())
    }
}

pub(crate) fn realm() -> Realm {
    Realm { project: "shop".parse().unwrap(), environment: "production".parse().unwrap() }
}

pub(crate) struct Keys(BTreeMap<String, Vec<u8>>);

impl Secrets for Keys {
    fn get(&self, name: &str) -> Result<Secret, SecretError> {
        match self.0.get(name) {
            Some(bytes) => Ok(Secret::new(bytes)),
            None => Err(SecretError::Missing { name: name.to_owned(), looked: "the test".to_owned() }),
        }
    }
}

/// An sshd of our own on a free port; ends with the test.
pub(crate) struct Sshd {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    child: Option<Child>,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.end();
    }
}

fn keygen(path: &Path, args: &[&str]) {
    let done = Command::new("ssh-keygen").args(["-q", "-N", "", "-f"]).arg(path).args(args).status().unwrap();
    assert!(done.success());
}

/// A port that is taken and on which nobody listens.
fn refused_port() -> (tokio::net::TcpSocket, u16) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Sshd {
    /// `None`, loudly, where there is no sshd.
    pub(crate) async fn start(extra: &str) -> Option<Sshd> {
        Sshd::start_prepared(extra, |_| {}).await
    }

    /// The same, when `prepare` has made further files beside its keys; `@DIR` in `extra` is their directory.
    async fn start_prepared(extra: &str, prepare: impl Fn(&Sshd)) -> Option<Sshd> {
        if !Path::new("/usr/sbin/sshd").exists() || !nix::unistd::Uid::effective().is_root() {
            eprintln!("SKIPPED: this test needs root and OpenSSH's sshd (Debian: openssh-server)");
            return None;
        }
        std::fs::create_dir_all("/run/sshd").unwrap();
        let dir = tempfile::Builder::new().prefix("phased-ssh-").tempdir_in("/tmp").unwrap();
        let at = |name: &str| dir.path().join(name);
        keygen(&at("hostkey"), &["-t", "ed25519"]);
        keygen(&at("id"), &["-t", "ed25519"]);
        let port = free_port();
        std::fs::copy(at("id.pub"), at("authorized_keys")).unwrap();
        let here = dir.path().display().to_string();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {here}/hostkey\nPidFile none\nAuthorizedKeysFile {here}/authorized_keys\n\
             StrictModes no\nPasswordAuthentication no\nUsePAM no\nPermitRootLogin yes\nMaxStartups 2000\nUseDNS no\nPrintMotd no\n{}\n",
            extra.replace("@DIR", &here)
        );
        std::fs::write(at("config"), config).unwrap();
        let mut sshd = Sshd { dir, port, child: None };
        prepare(&sshd);
        sshd.known("127.0.0.1", &sshd.text("hostkey.pub"));
        sshd.restart().await;
        Some(sshd)
    }

    /// Ends it and everything it serves, and starts it with a new log; on the first time it only starts.
    async fn restart(&mut self) {
        self.end();
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(self.dir.path().join("config"));
        self.child = Some(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        let clock = SystemClock::new();
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                return;
            }
            clock.sleep(Duration::from_millis(20)).await;
        }
        panic!("sshd does not listen: {}", self.text("log"));
    }

    /// Its sessions die with it.
    fn end(&mut self) {
        let sessions = self.sessions();
        let Some(mut child) = self.child.take() else { return };
        let _gone = child.kill();
        let _status = child.wait();
        for pid in sessions {
            let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// The processes that serve its sessions.
    fn sessions(&self) -> Vec<nix::unistd::Pid> {
        let children = |of: i32| -> Vec<i32> {
            let text = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
        };
        let listener = self.child.iter().map(|child| i32::try_from(child.id()).unwrap());
        let of_it = listener.flat_map(children).flat_map(|pid| [vec![pid], children(pid)].concat());
        of_it.map(nix::unistd::Pid::from_raw).collect()
    }

    /// Sends a signal to those.
    fn signal(&self, signal: nix::sys::signal::Signal) {
        for pid in self.sessions() {
            nix::sys::signal::kill(pid, signal).unwrap();
        }
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    /// Writes known_hosts: `key` as in a .pub file.
    fn known(&self, address: &str, key: &str) {
        let line = format!("{} {key}", known_hosts::name(address, self.port));
        std::fs::write(self.dir.path().join("known_hosts"), line).unwrap();
    }

    /// Another client key, allowed in.
    fn allow(&self, name: &str, args: &[&str]) {
        keygen(&self.dir.path().join(name), args);
        let all = self.text("authorized_keys") + &self.text(&format!("{name}.pub"));
        std::fs::write(self.dir.path().join("authorized_keys"), all).unwrap();
    }

    pub(crate) fn host(&self) -> Host {
        Host {
            ssh: Ssh {
                user: Some("root".into()),
                port: Some(self.port),
                key: Some(SecretRef { name: "id".into() }),
                known_hosts: Some(self.dir.path().join("known_hosts").display().to_string()),
                base: Some(self.dir.path().join("base").display().to_string()),
                ..Ssh::default()
            },
            ..Host::at("h1".parse().unwrap(), "127.0.0.1".into())
        }
    }

    pub(crate) fn links(&self) -> SshLinks {
        self.links_with(Arc::new(Learning::default()), SshLimits::default())
    }

    fn links_with(&self, learning: Arc<dyn HostKeys>, limits: SshLimits) -> SshLinks {
        let mut keys = BTreeMap::new();
        for entry in std::fs::read_dir(self.dir.path()).unwrap().flatten() {
            if entry.path().is_file() {
                keys.insert(entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
            }
        }
        SshLinks::new(Arc::new(Keys(keys)), learning, Arc::new(SystemClock::new()), Tasks::new(), limits)
    }

    async fn connect(&self) -> Result<Arc<dyn Link>, LinkError> {
        self.links().connect(&realm(), &self.host()).await
    }

    async fn refused(&self) -> LinkError {
        match self.connect().await {
            Ok(_) => panic!("it let us in"),
            Err(error) => error,
        }
    }
}

async fn exec(link: &dyn Link, command: &str, input: &[u8]) -> (Vec<u8>, Vec<u8>, Result<Exit, LinkError>) {
    let mut channel = link.open(command).await.unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let feed = async {
        let _closed = channel.stdin.write_all(input).await;
        let _closed = channel.stdin.shutdown().await;
    };
    let ((), read, listened) =
        tokio::join!(feed, channel.stdout.read_to_end(&mut out), channel.stderr.read_to_end(&mut err));
    read.unwrap();
    listened.unwrap();
    (out, err, channel.exit.await)
}

#[tokio::test]
async fn streams_are_apart_and_ends_are_told() {
    let Some(sshd) = Sshd::start("").await else { return };
    let link = sshd.connect().await.unwrap();
    let (out, err, exit) = exec(&*link, "cat; echo oops >&2; exit 7", b"in\0put").await;
    assert_eq!((out.as_slice(), err.as_slice(), exit.unwrap()), (&b"in\0put"[..], &b"oops\n"[..], Exit::Code(7)));
    let (_, _, exit) = exec(&*link, "kill -KILL $$", b"").await;
    assert_eq!(exit.unwrap(), Exit::Signal("KILL".into()));
    for n in 0..20 {
        assert_eq!(exec(&*link, &format!("echo {n}"), b"").await.0, format!("{n}\n").into_bytes());
    }
    // Many side by side, some of them dropped half way.
    let mut many = tokio::task::JoinSet::new();
    for n in 0..8 {
        let link = link.clone();
        many.spawn(async move {
            if n % 2 == 0 {
                drop(link.open("yes").await.unwrap());
            } else {
                let input = vec![b'x'; 3_000_000];
                assert!(exec(&*link, "cat", &input).await.0 == input);
            }
        });
    }
    while let Some(done) = many.join_next().await {
        done.unwrap();
    }
    assert!(!link.is_closed());
    link.close().await;
    assert!(link.open("true").await.is_err());
}

#[tokio::test]
async fn every_kind_of_key_opens() {
    let Some(sshd) = Sshd::start("").await else { return };
    let kinds: [(&str, &[&str]); 7] = [
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("rsa_pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
        ("rsa_pkcs8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"]),
        ("ecdsa", &["-t", "ecdsa", "-b", "256"]),
        ("ecdsa384", &["-t", "ecdsa", "-b", "384"]),
        ("ecdsa_pem", &["-t", "ecdsa", "-m", "PEM"]),
        ("ecdsa_pkcs8", &["-t", "ecdsa", "-m", "PKCS8"]),
    ];
    for (name, args) in kinds {
        sshd.allow(name, args);
        let mut host = sshd.host();
        host.ssh.key = Some(SecretRef { name: name.into() });
        let mut connected = sshd.links().connect(&realm(), &host).await;
        // One in 512 is as short as that; what the error says to do helps.
        if connected.as_ref().is_err_and(|e| name == "ecdsa" && e.to_string().contains("ssh-keygen -p -m PEM")) {
            let again = Command::new("ssh-keygen")
                .args(["-q", "-p", "-m", "PEM", "-N", "", "-f"])
                .arg(sshd.dir.path().join(name))
                .status();
            assert!(again.unwrap().success());
            connected = sshd.links().connect(&realm(), &host).await;
        }
        let link = connected.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(exec(&*link, "echo in", b"").await.0, b"in\n", "{name}");
    }
}

#[tokio::test]
async fn keys_that_are_none_say_so() {
    let Some(sshd) = Sshd::start("").await else { return };
    std::fs::write(sshd.dir.path().join("junk"), "not a key at all").unwrap();
    keygen(&sshd.dir.path().join("other"), &["-t", "ed25519"]);
    let locked = sshd.dir.path().join("locked");
    assert!(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "secret", "-f"])
            .arg(&locked)
            .status()
            .unwrap()
            .success()
    );
    for (name, said) in [
        ("junk", "not a private key"),
        ("locked", "passphrase"),
        ("absent", "does not exist"),
        ("other", "refused our key"),
    ] {
        let mut host = sshd.host();
        host.ssh.key = Some(SecretRef { name: name.into() });
        let Err(error) = sshd.links().connect(&realm(), &host).await else { panic!("{name}") };
        assert_eq!(error.cause.code, "auth_failed", "{name}: {error}");
        assert!(error.cause.message.contains(said), "{name}: {error}");
    }
    let mut host = sshd.host();
    host.ssh.key = None;
    assert!(sshd.links().connect(&realm(), &host).await.is_err());
}

#[tokio::test]
async fn a_host_is_only_what_its_key_says() {
    let Some(sshd) = Sshd::start("").await else { return };
    let own = sshd.text("hostkey.pub");
    keygen(&sshd.dir.path().join("ed"), &["-t", "ed25519"]);
    keygen(&sshd.dir.path().join("ec"), &["-t", "ecdsa"]);
    sshd.known("127.0.0.1", &sshd.text("ed.pub"));
    assert_eq!(sshd.refused().await.cause.code, "host_key_changed");
    // Only a key of another kind is known: the server has none of it, and that is a change too.
    sshd.known("127.0.0.1", &sshd.text("ec.pub"));
    assert_eq!(sshd.refused().await.cause.code, "host_key_changed");
    sshd.known("127.0.0.2", &own);
    let unknown = sshd.refused().await;
    assert_eq!(unknown.cause.code, "host_key_unknown");
    let line = own.split(' ').take(2).collect::<Vec<_>>().join(" ");
    assert!(unknown.cause.message.ends_with(&format!("[127.0.0.1]:{} {line}", sshd.port)), "{unknown}");
    std::fs::write(sshd.dir.path().join("known_hosts"), format!("* {own}@revoked * {own}")).unwrap();
    assert_eq!(sshd.refused().await.cause.code, "host_key_revoked");
    std::fs::remove_file(sshd.dir.path().join("known_hosts")).unwrap();
    assert_eq!(sshd.refused().await.cause.code, "host_key_unknown");
    // Refused before anybody tried to log in, and nothing was learnt.
    assert!(!sshd.dir.path().join("known_hosts").exists());
    assert!(
        !sshd.text("log").contains("Accepted") && !sshd.text("log").contains("Failed publickey"),
        "{}",
        sshd.text("log")
    );
    // A hashed entry, as ssh-keygen -H writes it.
    sshd.known("127.0.0.1", &own);
    assert!(
        Command::new("ssh-keygen")
            .arg("-H")
            .arg("-f")
            .arg(sshd.dir.path().join("known_hosts"))
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    assert!(sshd.text("known_hosts").starts_with("|1|"));
    sshd.connect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_are_none_end_in_their_own_error_in_time() {
    let clock = SystemClock::new();
    let tasks = Tasks::new();
    let dir = tempfile::tempdir().unwrap();
    keygen(&dir.path().join("id"), &["-t", "ed25519"]);
    let key = std::fs::read(dir.path().join("id")).unwrap();
    let known = dir.path().join("known_hosts");
    std::fs::write(&known, format!("* {}", std::fs::read_to_string(dir.path().join("id.pub")).unwrap())).unwrap();
    let links = SshLinks::new(
        Arc::new(Keys(BTreeMap::from([("id".to_owned(), key)]))),
        Arc::new(Learning::default()),
        Arc::new(SystemClock::new()),
        tasks.clone(),
        SshLimits::default(),
    );
    let servers: [(&str, &'static [u8], bool, &str); 6] = [
        ("says nothing", b"", true, "connect_timeout"),
        ("closes at once", b"", false, "connection_lost"),
        ("says only its name", b"SSH-2.0-broken\r\n", true, "connect_timeout"),
        ("speaks HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n", false, "connection_lost"),
        (
            "sends a packet of 4 GiB",
            b"SSH-2.0-broken\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            true,
            "connection_lost",
        ),
        (
            "sends zeros",
            b"SSH-2.0-broken\r\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            true,
            "connection_lost",
        ),
    ];
    for (name, said, stays, code) in servers {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tasks.spawn("server", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _gone = stream.write_all(said).await;
            if stays {
                let _gone = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        });
        let error = links.connect(&realm(), &bare(port, &known, 700)).await.err().unwrap_or_else(|| panic!("{name}"));
        assert_eq!(error.cause.code, code, "{name}: {error}");
    }
    // Endless chatter before the login ends by its bound and not by our memory.
    for flood in [b"chatter\r\n".as_slice(), b"SSH-2.0-x\r\n".as_slice()] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tasks.spawn("server", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(flood).await.is_ok() {}
        });
        let began = clock.now();
        assert!(links.connect(&realm(), &bare(port, &known, 2000)).await.is_err());
        assert!(clock.now().since(&began) < Duration::from_secs(3));
    }
    let (_taken, port) = refused_port();
    let nobody = links.connect(&realm(), &bare(port, &known, 700)).await.err().unwrap();
    assert_eq!(nobody.cause.code, "unreachable");
    // Nothing of all this is still at work.
    assert_eq!(tasks.shut_down(Duration::from_secs(5)).await, Vec::<Arc<str>>::new());
}

fn bare(port: u16, known: &Path, timeout: u64) -> Host {
    Host {
        ssh: Ssh {
            user: Some("x".into()),
            port: Some(port),
            key: Some(SecretRef { name: "id".into() }),
            known_hosts: Some(known.display().to_string()),
            connect_timeout_ms: Some(timeout),
            ..Ssh::default()
        },
        ..Host::at("x".parse().unwrap(), "127.0.0.1".into())
    }
}

#[tokio::test]
async fn ports_of_the_host_are_dialled_through_the_session() {
    let Some(sshd) = Sshd::start("").await else { return };
    let link = sshd.connect().await.unwrap();
    let mut through = link.dial("127.0.0.1", sshd.port).await.unwrap();
    let mut greeting = [0; 8];
    through.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"SSH-2.0-");
    let (_taken, port) = refused_port();
    assert_eq!(link.dial("127.0.0.1", port).await.err().unwrap().cause.code, "unreachable");
    let Some(closed) = Sshd::start("AllowTcpForwarding no").await else { return };
    let error = closed.connect().await.unwrap().dial("127.0.0.1", closed.port).await.err().unwrap();
    assert_eq!(error.cause.code, "forwarding_refused");
    assert!(error.cause.message.contains("AllowTcpForwarding"), "{error}");
}

#[tokio::test]
async fn a_connection_that_dies_ends_every_channel() {
    let Some(sshd) = Sshd::start("").await else { return };
    let link = sshd.connect().await.unwrap();
    let mut channel = link.open("echo $PPID; sleep 100").await.unwrap();
    let mut line = [0; 16];
    let n = channel.stdout.read(&mut line).await.unwrap();
    let server: i32 = String::from_utf8_lossy(&line[..n]).trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), nix::sys::signal::Signal::SIGKILL).unwrap();
    let error = channel.exit.await.unwrap_err();
    assert_eq!(error.cause.code, "connection_lost");
    assert!(link.is_closed());
    assert_eq!(link.open("true").await.err().unwrap().cause.code, "connection_lost");
}

#[tokio::test]
async fn more_channels_than_the_server_allows_are_refused_not_lost() {
    let Some(sshd) = Sshd::start("MaxSessions 2").await else { return };
    let link = sshd.connect().await.unwrap();
    let mut held = Vec::new();
    let refused = loop {
        match link.open("sleep 100").await {
            Ok(channel) => held.push(channel),
            Err(error) => break error,
        }
        assert!(held.len() < 5);
    };
    assert_eq!(refused.cause.code, "channel_refused");
    assert!(!link.is_closed());
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_the_server_up_and_not_our_memory() {
    let Some(sshd) = Sshd::start("").await else { return };
    let link = sshd.connect().await.unwrap();
    let clock = SystemClock::new();
    let before = resident_kb();
    let mut channel = link.open("head -c 300000000 /dev/zero").await.unwrap();
    clock.sleep(Duration::from_millis(500)).await;
    assert!(resident_kb() < before + 24 * 1024, "unread output stays on the host");
    let (mut buffer, mut total) = (vec![0; 65536], 0);
    loop {
        let n = channel.stdout.read(&mut buffer).await.unwrap();
        if n == 0 {
            break;
        }
        total += n;
    }
    assert_eq!(total, 300_000_000);
    assert!(resident_kb() < before + 32 * 1024);
}
