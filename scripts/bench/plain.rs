//! The three commands of `peers` over plain channels of our own SSH stack: what remains when nothing is journaled, claimed, detached
//! or told apart. One session a host, one exec channel a command, 50 hosts at a time.
//!
//! `cargo run --release --example plain -- DIR HOSTS`: DIR as given to `fleet up`, HOSTS a file of addresses.

use std::{error::Error, path::PathBuf, sync::Arc};

use phased::{
    lifecycle::Tasks,
    model::{
        cause::Cause,
        host::{Host, SecretRef, Ssh},
        host_key::{Learnt, Realm},
    },
    ports::{
        host_keys::HostKeys,
        link::Exit,
        secrets::{Secret, SecretError, Secrets},
    },
    ssh::{SshLimits, SshLinks},
    time::SystemClock,
};
use tokio::{io::AsyncReadExt, sync::Semaphore};

struct Key(PathBuf);

impl Secrets for Key {
    fn get(&self, name: &str) -> Result<Secret, SecretError> {
        let unusable = |e: std::io::Error| SecretError::Unusable { name: name.to_owned(), why: e.to_string() };
        std::fs::read(&self.0).map(|bytes| Secret::new(&bytes)).map_err(unusable)
    }
}

/// Every key is in known_hosts.
struct Nothing;

#[async_trait::async_trait]
impl HostKeys for Nothing {
    async fn known(&self, _: &Realm, _: &str) -> Result<Option<Learnt>, Cause> {
        Ok(None)
    }
    async fn learn(&self, _: &Realm, id: &str, _: Learnt) -> Result<Learnt, Cause> {
        Err(Cause::new("host_key_unknown", format!("{id} is not in known_hosts")))
    }
}

type Failure = Box<dyn Error + Send + Sync>;

async fn commands(links: SshLinks, host: Host, commands: [String; 3], turns: Arc<Semaphore>) -> Result<(), Failure> {
    let _turn = turns.acquire().await?;
    let realm = Realm { project: "bench".parse()?, environment: "plain".parse()? };
    let link = links.connect(&realm, &host).await?;
    for command in &commands {
        let mut channel = link.open(command).await?;
        let mut out = Vec::new();
        channel.stdout.read_to_end(&mut out).await?;
        match channel.exit.await? {
            Exit::Code(0) => {}
            other => return Err(format!("{}: {command}: {other:?}", host.name).into()),
        }
    }
    link.close().await;
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let (Some(dir), Some(hosts)) = (words.next(), words.next()) else { return Err("plain DIR HOSTS".into()) };
    let config = std::fs::read_to_string(format!("{dir}/sshd_config"))?;
    let port = config.lines().find_map(|line| line.strip_prefix("Port ")).ok_or("no Port in sshd_config")?.parse()?;
    let ssh = Ssh {
        user: Some("fleet".to_owned()),
        port: Some(port),
        key: Some(SecretRef { name: "key".to_owned() }),
        known_hosts: Some(format!("{dir}/known_hosts")),
        ..Ssh::default()
    };
    let work = format!("{dir}/work");
    let three = [
        format!("mkdir -p {work}/app && echo fetch"),
        format!("echo rev >{work}/app/rev"),
        "echo restarted".to_owned(),
    ];
    // The same runtime as the daemon's.
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let tasks = Tasks::new();
        let secrets = Arc::new(Key(PathBuf::from(format!("{dir}/id"))));
        let links = SshLinks::new(
            secrets,
            Arc::new(Nothing),
            Arc::new(SystemClock::new()),
            tasks.clone(),
            SshLimits::default(),
        );
        let turns = Arc::new(Semaphore::new(50));
        let mut running = Vec::new();
        for address in std::fs::read_to_string(hosts)?.split_whitespace() {
            let id = address.parse().map_err(|e| format!("{address}: {e:?}"))?;
            let host = Host { ssh: ssh.clone(), ..Host::at(id, address.to_owned()) };
            running.push(tasks.spawn("host", commands(links.clone(), host, three.clone(), turns.clone())));
        }
        for host in running {
            host.await??;
        }
        Ok(())
    })
}
