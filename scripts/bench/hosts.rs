//! A large fleet in one process: an SSH server for every host, commands really run, some of the hosts broken on purpose.
//!
//! `cargo run --release --example hosts -- DIR N PORT [BROKEN]`: the `i`th of N hosts listens on 127.16.(i / 250).(i % 250 + 1), port PORT,
//! and has `DIR/homes/ADDRESS`. BROKEN % of them refuse connections, as many accept them and say nothing, as many die in the middle of
//! a session. DIR gets `id`, `known_hosts`, and `hosts`: a line `ADDRESS how` each. It ends when its standard input does.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use phased::{
    lifecycle::Tasks,
    ssh::server::{self, Account, Key},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
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
    let (mut list, mut silent) = (String::new(), Vec::new());
    for i in 0..n {
        let (address, manner) = (format!("127.16.{}.{}", i / 250, i % 250 + 1), Manner::of(i, broken));
        writeln!(list, "{address} {}", manner.name())?;
        if manner == Manner::Refuses {
            continue;
        }
        let listener = TcpListener::bind((address.as_str(), port)).await?;
        match manner {
            // The kernel completes the connection; nobody ever takes it.
            Manner::Hangs => silent.push(listener),
            Manner::Dies => {
                let inner = TcpListener::bind((address.as_str(), 0)).await?;
                let to = inner.local_addr()?;
                server::serve(&address, inner, host_key.clone(), account(&dir, &address, &login)?, &tasks);
                // Behind the key exchange, somewhere in its commands.
                let after = 6_000 + (i * 7_919) as u64 % 12_000;
                tasks.spawn(format!("{address} dies"), async move { dies(listener, to, after).await });
            }
            _ => server::serve(&address, listener, host_key.clone(), account(&dir, &address, &login)?, &tasks),
        }
    }
    std::fs::write(dir.join("hosts"), list)?;
    println!("{n} hosts");
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
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

/// Passes on the first connection until so many bytes have come; then the host is gone for good.
async fn dies(listener: TcpListener, to: std::net::SocketAddr, after: u64) -> std::io::Result<()> {
    let (mut here, _) = listener.accept().await?;
    drop(listener);
    let mut there = TcpStream::connect(to).await?;
    let (from_client, mut to_client) = here.split();
    let (mut from_host, mut to_host) = there.split();
    let mut from_client = from_client.take(after);
    tokio::select! {
        passed = tokio::io::copy(&mut from_client, &mut to_host) => { passed?; }
        passed = tokio::io::copy(&mut from_host, &mut to_client) => { passed?; }
    }
    to_client.shutdown().await
}
