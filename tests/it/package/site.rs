//! Two machines: `integration`, where phased is installed, and `web`, which stands for twenty hosts and has a real unit to restart.

use std::path::Path;

use serde_json::{Value, json};

use crate::fixture::{Api, Booted, Forge, Network, Repo, Run, eventually, mask, package};

/// How many hosts there are, all of them on one machine.
pub const HOSTS: usize = 20;

/// The machines, and what a test does with them.
pub struct Site {
    pub integration: Booted,
    pub web: Booted,
    pub network: Network,
    /// Served as http://127.0.0.3:8000/shop.git.
    pub repo: Repo,
    _forge: Forge,
    _dir: tempfile::TempDir,
}

/// What a host does: it leaves a mark, waits until it may go on, leaves another one, and restarts a unit.
const SHOP: &str = r#"
local hosts = {}
for n = 1, 20 do
  local id = ("w%02d"):format(n)
  hosts[n] = { id = id, address = "127.0.0.2", base = "/home/deploy/base-" .. id }
end
return phased.project {
  source = { git = "http://127.0.0.3:8000/shop.git", branch = "main" },
  test = { { "unit", run = function(run) run:sh "true" end } },
  environments = { { "production",
    hosts = hosts,
    ssh = { user = "deploy", key = phased.secret "deploy_key", known_hosts = "/etc/phased/known_hosts" },
    rollout = { canary = 0, max_parallel = 20, bake_time = "0s", on_failure = "halt" },
    deploy = function(host)
      host:sh { [[
        echo begin >>"/srv/marks/$PHASED_HOST_ID"
        while [ ! -e /srv/go ]; do sleep 0.2; done
        echo end >>"/srv/marks/$PHASED_HOST_ID"
      ]], timeout = "10m" }
      host:service("shop"):restart()
    end,
    health = { service = "shop", min_healthy_time = "1s", healthy_deadline = "90s" } } },
  notify = require "alerts.log" {},
}
"#;

/// Five commands at once on the integration server itself, and then a look whether each of them ran once and to its end.
const BUILD: &str = r#"
  { "unit", run = function(run)
    local side_by_side = {}
    for n = 1, 5 do
      side_by_side["c" .. n] = function()
        run:sh { [[
          echo begin >>"mark-$N"
          while [ ! -e /srv/go ]; do sleep 0.2; done
          echo end >>"mark-$N"
        ]], env = { N = tostring(n) }, timeout = "10m" }
      end
    end
    run:parallel(side_by_side)
    run:sh [[
      for n in 1 2 3 4 5; do
        printf 'begin\nend\n' | cmp - "mark-$n"
      done
    ]]
  end },
"#;

/// A project with these stages, which are what is of interest in it.
fn testing(stages: &str) -> String {
    format!(
        r#"
return phased.project {{
  source = {{ git = "http://127.0.0.3:8000/shop.git", branch = "main" }},
  test = {{ {stages} }},
  environments = {{ {{ "production", hosts = {{ "127.0.0.2" }},
    ssh = {{ user = "deploy", key = phased.secret "deploy_key", known_hosts = "/etc/phased/known_hosts" }},
    rollout = {{ canary = 0, bake_time = "0s" }}, deploy = function(host) host:sh "true" end, health = "none" }} }},
  notify = require "alerts.log" {{}},
}}
"#
    )
}

impl Site {
    /// Both machines booted, nothing installed.
    pub fn new() -> Site {
        let dir = tempfile::Builder::new().prefix("phased-pkg-").tempdir().unwrap();
        let network = Network::new();
        let write = |upper: &Path, name: &str, text: &str| {
            let path = upper.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let integration = Booted::boot(dir.path(), "integration", &network, |upper| mask(upper, "ssh.service"));
        let web = Booted::boot(dir.path(), "web", &network, |upper| {
            let sshd = "ListenAddress 127.0.0.2\nPasswordAuthentication no\nUsePAM yes\nUseDNS no\nMaxStartups 200\nMaxSessions 200\n";
            write(upper, "etc/ssh/sshd_config", sshd);
            let unit = "[Unit]\nStartLimitIntervalSec=0\n[Service]\n\
                        ExecStart=/bin/sh -c 'echo started >>/srv/started; exec sleep infinity'\n[Install]\nWantedBy=multi-user.target\n";
            write(upper, "etc/systemd/system/shop.service", unit);
            write(
                upper,
                "etc/sudoers.d/phased",
                "Defaults logfile=/srv/sudo.log, loglinelen=0\ndeploy ALL=(root) NOPASSWD: /usr/bin/systemctl restart shop.service\n",
            );
        });
        web.ok("useradd -m -s /bin/sh deploy; mkdir -m 1777 /srv/marks; systemctl start shop");
        let repo = Repo::create(dir.path());
        std::os::unix::fs::symlink("repo.git", dir.path().join("shop.git")).unwrap();
        let forge = network.git(dir.path(), "127.0.0.3:8000");
        Site { integration, web, network, repo, _forge: forge, _dir: dir }
    }

    /// Puts the deb of this version where `integration` finds it, and returns its name there.
    pub fn deb(&self, version: &str) -> String {
        self.bring(&package(version).deb)
    }

    /// The same of the rpm.
    pub fn rpm(&self, version: &str) -> String {
        self.bring(&package(version).rpm)
    }

    fn bring(&self, package: &Path) -> String {
        let name = package.file_name().unwrap();
        std::fs::copy(package, self.integration.share().join(name)).unwrap();
        format!("/share/{}", name.to_str().unwrap())
    }

    /// Installs that deb as a user does.
    #[track_caller]
    pub fn install(&self, version: &str) {
        let deb = self.deb(version);
        self.integration.ok(&format!("apt-get install -y --allow-downgrades {deb}"));
    }

    /// Two projects, a repository with a commit, a key that `web` lets in; the daemon has loaded it, and the first runs are over.
    pub fn projects(&self) {
        self.repo.push("A commit");
        self.integration.ok(r#"
            ssh-keygen -q -t ed25519 -N '' -f /etc/phased/secrets/deploy_key
            chown phased /etc/phased/secrets/deploy_key
            chmod 600 /etc/phased/secrets/deploy_key
            touch /srv/go
        "#);
        let key = self.integration.ok("cat /etc/phased/secrets/deploy_key.pub");
        self.web.ok(&format!(
            "install -d -m 700 -o deploy ~deploy/.ssh; echo '{}' >~deploy/.ssh/authorized_keys; touch /srv/go",
            key.trim()
        ));
        let host_key = self.web.ok("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub");
        std::fs::write(self.integration.path("/etc/phased/known_hosts"), format!("* {host_key}")).unwrap();
        self.write("shop", SHOP);
        self.testing("build", BUILD);
        for project in ["shop", "build"] {
            let run = self.first(project);
            run.wait().is("succeeded");
        }
        self.hold();
    }

    fn write(&self, project: &str, lua: &str) {
        std::fs::write(self.integration.path(&format!("/etc/phased/plugins/projects/{project}.lua")), lua).unwrap();
    }

    /// A further project, which has these stages; the daemon has loaded it.
    pub fn testing(&self, project: &str, stages: &str) {
        self.write(project, &testing(stages));
        self.integration.ok("phased check && phased reload");
    }

    /// From now on commands wait, and there are no marks.
    pub fn hold(&self) {
        self.integration.ok("rm -f /srv/go");
        self.web.ok("rm -f /srv/go /srv/marks/* /srv/started /srv/sudo.log");
    }

    /// Commands go on.
    pub fn go(&self) {
        self.integration.ok("touch /srv/go");
        self.web.ok("touch /srv/go");
    }

    /// The daemon, over its socket.
    pub fn api(&self) -> Api {
        Api::socket(self.integration.path("/run/phased/phased.sock"))
    }

    /// The run that comes of a project's being there.
    pub fn first(&self, project: &str) -> Run {
        let api = self.api();
        let found = eventually("the first run begins", || {
            let runs = api.get(&format!("/v1/runs?project={project}")).json();
            runs["items"][0]["id"].as_str().map(str::to_owned)
        });
        Run { api, id: found }
    }

    /// Presses the button.
    #[track_caller]
    pub fn press(&self, project: &str) -> Run {
        let body = json!({ "redeploy": true, "retest": project == "build" });
        let answer = self.api().post(&format!("/v1/projects/{project}/start"), &body).is(202);
        Run { api: self.api(), id: answer.json()["id"].as_str().unwrap().to_owned() }
    }

    /// Asks the daemon that runs now for this run.
    pub fn again(&self, run: &Run) -> Run {
        Run { api: self.api(), id: run.id.clone() }
    }

    /// All commands of both runs have begun.
    pub fn all_begun(&self) {
        eventually("twenty commands run on hosts", || (self.marks("begin") == HOSTS).then_some(()));
        eventually("five commands run here", || (self.local_marks() == 5).then_some(()));
    }

    /// How many such marks hosts have left; with one more than there are hosts, a command ran twice.
    pub fn marks(&self, word: &str) -> usize {
        self.web.ok(&format!("cat /srv/marks/* 2>/dev/null | grep -cx {word} || true")).trim().parse().unwrap()
    }

    /// How many commands here have begun.
    fn local_marks(&self) -> usize {
        let count = "find /var/lib/phased/work -name 'mark-*' -exec cat {} + | grep -cx begin || true";
        self.integration.ok(count).trim().parse().unwrap()
    }

    /// Every command ran once, to its end, and each host had the unit restarted once (systemd makes one restart of several at a time).
    #[track_caller]
    pub fn ran_once(&self) {
        assert_eq!((self.marks("begin"), self.marks("end")), (HOSTS, HOSTS));
        let restarts = self
            .web
            .ok("grep -c 'COMMAND=/usr/bin/systemctl restart shop.service' /srv/sudo.log; test -s /srv/started");
        assert_eq!(restarts.trim(), HOSTS.to_string());
    }

    /// The state of the service, and the id of its process.
    pub fn service(&self) -> (String, String) {
        let unit = |property: &str| self.integration.unit("phased.service", property);
        (unit("ActiveState"), unit("MainPID"))
    }
}

/// Says what a poller saw, and that nobody was refused and nobody waited longer than this.
#[track_caller]
pub fn nobody_refused(what: &str, seen: &Value, longest_ms: u64) {
    eprintln!("{what}: {seen}");
    for way in ["tcp", "socket"] {
        let counts = seen[way]["counts"].as_object().unwrap();
        assert!(counts.len() == 1 && counts.contains_key("ok"), "{what}, {way}: {counts:?}");
        let longest = seen[way]["longest_ms"].as_u64().unwrap();
        assert!(longest <= longest_ms, "{what}, {way}: somebody waited {longest} ms");
    }
}
