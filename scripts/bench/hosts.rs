//! A large fleet in one process: an SSH server for every host, commands really run, some of the hosts broken on purpose.
//!
//! `cargo run --release --example hosts -- DIR N PORT [BROKEN]`: the `i`th of N hosts listens on 127.16.(i / 250).(i % 250 + 1), port PORT,
//! and has `DIR/homes/ADDRESS`. BROKEN % of them refuse connections, as many accept them and say nothing, as many die in the middle of
//! a session. DIR gets `id`, `known_hosts`, and `hosts`: a line `ADDRESS how` each. It ends when its standard input does. To each line of
//! that it says `most M`: so many connections there were at the same moment, at most, since the line before.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use phased::{
    lifecycle::Tasks,
    ssh::server::{Account, Host, Key},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

type Failure = Box<dyn Error + Send + Sync>;

/// What a host does when somebody comes.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Well,
    Refuses,
    Hangs,
    Dies,
}

impl Manner {
    /// Spread over the whole list, so that every wave has its share.
    fn of(i: usize, broken: usize) -> Self {
        match (i * 37) % 100 {
            place if place < broken => Manner::Refuses,
            place if place < 2 * broken => Manner::Hangs,
            place if place < 3 * broken => Manner::Dies,
            _ => Manner::Well,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Manner::Well => "well",
            Manner::Refuses => "refuses",
            Manner::Hangs => "hangs",
            Manner::Dies => "dies",
        }
    }
}

/// The connections to all hosts.
struct Connections {
    port: u16,
    open: AtomicUsize,
    most: AtomicUsize,
}

impl Connections {
    /// Counts one until the answer is dropped.
    fn accepted(self: &Arc<Self>) -> Accepted {
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        if open > self.most.load(Ordering::SeqCst) {
            // Some may have been closed by the other side, of which we have not heard yet; the kernel has. Whoever is in two of its tables was
            // there between them.
            let both = self.established().intersection(&self.established()).count();
            self.most.fetch_max(open.min(both), Ordering::SeqCst);
        }
        Accepted(Arc::clone(self))
    }

    /// The other ends of connections that nobody has closed.
    fn established(&self) -> BTreeSet<String> {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
        let port = format!(":{:04X}", self.port);
        let other_end = |line: &str| {
            let mut words = line.split_whitespace().skip(1);
            let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
            (local.ends_with(&port) && state == "01").then(|| remote.to_owned())
        };
        table.lines().filter_map(other_end).collect()
    }

    /// The most since this was asked last.
    fn most(&self) -> usize {
        self.most.swap(self.open.load(Ordering::SeqCst), Ordering::SeqCst)
    }
}

struct Accepted(Arc<Connections>);

impl Drop for Accepted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, n, port, rest @ ..] = &arguments[..] else { return Err("hosts DIR N PORT [BROKEN]".into()) };
    let broken = rest.first().map_or(Ok(0), |broken| broken.parse())?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    tokio::runtime::Runtime::new()?.block_on(fleet(PathBuf::from(dir), n.parse()?, port.parse()?, broken))
}

async fn fleet(dir: PathBuf, n: usize, port: u16, broken: usize) -> Result<(), Failure> {
    std::fs::create_dir_all(dir.join("homes"))?;
    let (login, host_key) = (Key::generate()?, Key::generate()?);
    std::fs::write(dir.join("id"), login.private_file()?)?;
    std::fs::set_permissions(dir.join("id"), std::fs::Permissions::from_mode(0o600))?;
    std::fs::write(dir.join("known_hosts"), format!("* {}\n", host_key.public_line()?))?;
    let tasks = Tasks::new();
    let connections = Arc::new(Connections { port, open: AtomicUsize::new(0), most: AtomicUsize::new(0) });
    let mut list = String::new();
    for i in 0..n {
        let (address, manner) = (format!("127.16.{}.{}", i / 250, i % 250 + 1), Manner::of(i, broken));
        writeln!(list, "{address} {}", manner.name())?;
        if manner == Manner::Refuses {
            continue;
        }
        let listener = TcpListener::bind((address.as_str(), port)).await?;
        let host = Host::new(host_key.clone(), account(&dir, &address, &login)?, &tasks);
        // Behind the key exchange, somewhere in its commands.
        let after = 6_000 + (i * 7_919) as u64 % 12_000;
        let (tasks, connections) = (tasks.clone(), Arc::clone(&connections));
        tasks.clone().spawn(format!("ssh-server/{address}"), async move {
            loop {
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => return eprintln!("{address} accepts nobody any more: {error}"),
                };
                let (host, accepted) = (host.clone(), connections.accepted());
                let session = async move {
                    let _counted = accepted;
                    match manner {
                        Manner::Hangs => drop(silent(stream).await),
                        Manner::Dies => drop(dies(stream, host, after).await),
                        Manner::Well | Manner::Refuses => host.session(stream).await,
                    }
                };
                tasks.spawn(format!("ssh-server/{address}/session"), session);
                if manner == Manner::Dies {
                    return;
                }
            }
        });
    }
    std::fs::write(dir.join("hosts"), list)?;
    println!("{n} hosts");
    let mut asked = BufReader::new(tokio::io::stdin()).lines();
    while asked.next_line().await?.is_some() {
        println!("most {}", connections.most());
    }
    Ok(())
}

fn account(dir: &Path, address: &str, login: &Key) -> Result<Account, Failure> {
    let home = dir.join("homes").join(address);
    std::fs::create_dir_all(&home)?;
    Ok(Account {
        user: "fleet".to_owned(),
        key: login.clone(),
        home,
        path: "/usr/bin:/bin".to_owned(),
        forwards: BTreeMap::new(),
    })
}

/// Says nothing for as long as the other side has patience.
async fn silent(mut stream: TcpStream) -> std::io::Result<()> {
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(|_| ())
}

/// Passes a connection on until so many bytes have come; then the host is gone for good.
async fn dies(mut here: TcpStream, host: Host, after: u64) -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut there = TcpStream::connect(listener.local_addr()?).await?;
    let (inner, _) = listener.accept().await?;
    let serving = host.session(inner);
    tokio::pin!(serving);
    let (from_client, mut to_client) = here.split();
    let (mut from_host, mut to_host) = there.split();
    let mut from_client = from_client.take(after);
    tokio::select! {
        passed = tokio::io::copy(&mut from_client, &mut to_host) => { passed?; }
        passed = tokio::io::copy(&mut from_host, &mut to_client) => { passed?; }
        () = &mut serving => {}
    }
    to_client.shutdown().await
}
