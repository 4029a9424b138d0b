//! An integration daemon and receivers, each a daemon of its own with its own directory and project file.

use std::{path::PathBuf, process::Command};

use crate::fixture::{Daemon, World, eventually, free_port, output, pem};

/// A receiver: a world of its own, whose host is the machine it runs on.
pub struct Receiver {
    pub id: String,
    pub world: World,
    pub port: u16,
    pub daemon: Option<Daemon>,
}

/// What a test wants otherwise of everybody's files.
#[derive(Clone)]
pub struct Wants {
    /// Keys of the sender's `rollout`.
    pub rollout: &'static str,
    /// Further keys of the sender's environment.
    pub sender: &'static str,
    /// Its stages.
    pub stages: &'static str,
    /// The receivers deploy to a host of theirs over SSH, and not to themselves.
    pub elsewhere: bool,
    /// Further keys of the receivers' environment.
    pub receiver: &'static str,
    /// Further environments of the receivers' project.
    pub environments: &'static str,
    /// Further keys of the receivers' project: their own `test`.
    pub tests: &'static str,
    /// What is deployed beside the revision: Lua of `deploy(host, release)`.
    pub deploy: &'static str,
    /// The port at which the sender asks instead of the receiver's own.
    pub through: Option<u16>,
    /// Further keys of the receivers' `[limits]`.
    pub limits: &'static str,
    /// It asks by https.
    pub tls: Option<Tls>,
}

/// Files of `tests/tls`.
#[derive(Clone, Copy)]
pub struct Tls {
    /// The receivers' certificate, whose key is `signed.key.pem`; `None`: they speak no TLS.
    pub certificate: Option<&'static str>,
    /// The authority that the sender's machine trusts.
    pub ca: &'static str,
}

impl Default for Wants {
    fn default() -> Self {
        Wants {
            rollout: r#"canary = 1, bake_time = "0s""#,
            sender: "",
            stages: r#"{ "unit", run = function(run) run:sh "true" end }"#,
            elsewhere: false,
            receiver: "",
            environments: "",
            tests: "",
            deploy: "",
            through: None,
            limits: "",
            tls: None,
        }
    }
}

/// All of them.
pub struct Fleet {
    pub sender: World,
    pub daemon: Option<Daemon>,
    pub receivers: Vec<Receiver>,
    ca: Option<&'static str>,
}

/// `phased keys make signals` in a world; the public half.
fn key(world: &World, comment: &str) -> String {
    let config = Daemon::configure(world);
    let mut command = Command::new(crate::fixture::BINARY);
    command.args(["keys", "make", "--comment", comment, "--config"]).arg(config);
    let made = output(&mut command);
    assert_eq!(made.code, 0, "{made:?}");
    made.stdout.trim().to_owned()
}

impl Fleet {
    /// Everybody is up, and nothing is deployed. Receivers `r1`, `r2`, ...
    pub fn new(count: usize, wants: &Wants) -> Fleet {
        let sender = World::new();
        let public = key(&sender, "integration");
        let mut receivers: Vec<Receiver> = (1..=count).map(|n| Receiver::new(n, &public, &sender, wants)).collect();
        let mut lines = String::new();
        let mut hosts = String::new();
        for receiver in &receivers {
            let (id, port) = (&receiver.id, wants.through.unwrap_or(receiver.port));
            lines.push_str(&format!("{id} {}\n", key(&receiver.world, id)));
            hosts.push_str(&format!("{{ id = \"{id}\", address = \"127.0.0.1\", port = {port} }}, "));
        }
        std::fs::write(sender.path("receivers"), lines).unwrap();
        std::fs::write(sender.path("limits.toml"), "converge = \"1s\"\n").unwrap();
        let lua = format!(
            "return phased.project {{\n  source = {{ git = \"{}\", branch = \"main\" }},\n  test = {{ {} }},\n  environments = {{ {{ \
             \"production\", transport = \"signal\", hosts = {{ {hosts} }},\n    signal = {{ key = phased.secret \"signals\", receivers = \
             \"{}\", tls = {} }},\n    rollout = {{ {} }}, {} }} }},\n  notify = require \"alerts.log\" {{}},\n}}\n",
            sender.repo.url(),
            wants.stages,
            sender.path("receivers").display(),
            wants.tls.is_some(),
            wants.rollout,
            wants.sender,
        );
        project(&sender, &lua);
        for receiver in &mut receivers {
            receiver.start();
        }
        let mut fleet = Fleet { sender, daemon: None, receivers, ca: wants.tls.map(|tls| tls.ca) };
        fleet.start_sender();
        fleet
    }

    fn start_sender(&mut self) {
        let ca = self.ca.map(|ca| pem(ca).display().to_string());
        let env: Vec<(&str, &str)> = ca.iter().map(|ca| ("SSL_CERT_FILE", ca.as_str())).collect();
        self.daemon = Some(self.sender.start_with(&env));
    }

    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// Kills the integration daemon as `kill -9` does, and starts it again.
    pub fn kill_sender(&mut self) {
        self.daemon.take().unwrap().kill();
        self.start_sender();
    }

    pub fn everywhere(&self, revision: &str) -> bool {
        self.receivers.iter().all(|receiver| receiver.revision().as_deref() == Some(revision))
    }
}

fn project(world: &World, lua: &str) {
    std::fs::write(world.path("plugins/projects/shop.lua"), lua).unwrap();
    world.projects.lock().unwrap().insert("shop".to_owned());
}

impl Receiver {
    fn new(n: usize, senders: &str, sender: &World, wants: &Wants) -> Receiver {
        let (id, world, port) = (format!("r{n}"), World::new(), free_port());
        // Its own repository is nobody's; one with a branch is not waited for.
        world.repo.push("nothing");
        std::fs::write(world.path("port"), port.to_string()).unwrap();
        if let Some(certificate) = wants.tls.and_then(|tls| tls.certificate) {
            world.certificate(certificate, "signed.key.pem");
        }
        // Forgers are many and quick here: each is to be told why.
        std::fs::write(world.path("limits.toml"), format!("refusal_rate = \"none\"\n{}", wants.limits)).unwrap();
        let dir = world.path("tested");
        let hosts = match wants.elsewhere {
            false => "phased.localhost".to_owned(),
            true => world.host_table("h1"),
        };
        let ssh = format!(
            "ssh = {{ user = \"fleet\", port = {}, key = phased.secret \"key\", known_hosts = {:?} }},",
            world.sshd.port,
            world.path("known_hosts")
        );
        let lua = format!(
            r#"return phased.project {{
  source = {{ git = "{}", branch = "main" }},
  {}
  environments = {{ {{ "production", when = "signal", hosts = {{ {hosts} }},
    deploy = function(host, release)
      host:sh {{ [[
        cd "$DIR"
        echo "$PHASED_REVISION" >>deployed
        while [ -e hold ]; do sleep 0.1; done
        echo "$PHASED_REVISION" >revision
      ]], env = {{ DIR = "{dir}" }} }}
      {}
    end,
    health = {{ command = 'cd "{dir}"; {{ env | grep ^PHASED_ | sort; echo; }} >>looked; [ "$(cat revision)" = "$PHASED_REVISION" ]; ! grep -qs "$PHASED_REVISION" sick',
                min_healthy_time = "100ms", healthy_deadline = "2s", interval = "100ms" }}, {} }}, {} }},
  notify = require "alerts.log" {{}},
}}
"#,
            sender.repo.url(),
            wants.tests.replace("@DIR@", dir.to_str().unwrap()),
            wants.deploy.replace("@DIR@", dir.to_str().unwrap()),
            if wants.elsewhere { ssh } else { String::new() } + &wants.receiver.replace("@DIR@", dir.to_str().unwrap()),
            wants.environments.replace("@DIR@", dir.to_str().unwrap()),
            dir = dir.display(),
        );
        project(&world, &lua);
        std::fs::write(
            world.path("more.toml"),
            format!(
                "[signals]\nkey = \"signals\"\nhost = \"{id}\"\naccept = [{{ key = \"{senders}\", projects = [\"shop\"] }}]\n"
            ),
        )
        .unwrap();
        Receiver { id, world, port, daemon: None }
    }

    pub fn start(&mut self) {
        self.daemon = Some(self.world.start());
    }

    pub fn kill(&mut self) {
        self.daemon.take().unwrap().kill();
    }

    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.world.path("tested").join(name)
    }

    /// The commit it serves.
    pub fn revision(&self) -> Option<String> {
        Some(std::fs::read_to_string(self.file("revision")).ok()?.trim().to_owned())
    }

    /// The commits that were deployed there, in order: once for each time.
    pub fn deployed(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file("deployed")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Its deploys wait from now on, or go on.
    pub fn hold(&self, hold: bool) {
        match hold {
            true => std::fs::write(self.file("hold"), "").unwrap(),
            false => std::fs::remove_file(self.file("hold")).unwrap(),
        }
    }

    /// Waits until so many deploys have begun there.
    #[track_caller]
    pub fn begun(&self, count: usize) {
        eventually(&format!("{} deploys", self.id), || (self.deployed().len() >= count).then_some(()));
    }

    /// `GET /v1/signals` there.
    #[track_caller]
    pub fn signals(&self) -> serde_json::Value {
        self.daemon().api.get("/v1/signals").is(200).json()
    }
}
