//! How hosts are reached: through bastions, at ports that labels say, as another user, and not too many at once.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::fixture::{Daemon, HOOK_SECRET, Project, Sshd, World, eventually, fleet, refused_port};

fn bastion(world: &World, extra: &str) -> Sshd {
    let authorized = std::fs::read_to_string(world.path("id.pub")).unwrap();
    let bastion = Sshd::start(&world.path("bastion"), &authorized, extra);
    std::fs::write(world.path("known_bastion"), bastion.known_hosts()).unwrap();
    bastion
}

fn jump(world: &World, bastion: &Sshd) -> String {
    let known = world.path("known_bastion");
    format!("jump = {{ address = \"127.0.0.1\", port = {}, known_hosts = \"{}\" }}", bastion.port, known.display())
}

fn logins(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap().matches("Accepted publickey").count()
}

#[test]
fn a_fleet_behind_a_bastion_shares_one_session_and_survives_its_restart() {
    let world = World::new();
    let mut bastion = bastion(&world, "MaxSessions 1\nMaxStartups 1:100:1");
    let project = Project::new("shop").hosts(&["h1", "h2", "h3", "h4"]).rollout("max_parallel = 4").deploy(
        r#"host:sh { [[ echo begun; echo once >>"$ROOT/$PHASED_HOST_ID/count"; sleep 3; echo "$PHASED_REVISION" >"$ROOT/$PHASED_HOST_ID/revision" ]],
             env = { ROOT = "@ROOT@" } }"#,
    );
    world.project(&project.ssh(&jump(&world, &bastion)));
    let daemon = world.start();
    let commit = world.repo.push("through it");
    let run = daemon.press();
    for id in ["h1", "h2", "h3", "h4"] {
        eventually("it has begun", || world.host(id).join("count").exists().then_some(()));
    }
    assert_eq!(logins(&world.path("bastion/sshd.log")), 1);
    bastion.reboot(&[]);
    let run = run.wait().is("succeeded");
    assert!(world.hosts_have(&["h1", "h2", "h3", "h4"], &commit));
    for id in ["h1", "h2", "h3", "h4"] {
        assert_eq!(std::fs::read_to_string(world.host(id).join("count")).unwrap(), "once\n", "{id}: {}", run.log());
    }
    assert_eq!(logins(&world.path("bastion/sshd.log")), 2);
}

#[test]
fn a_dead_bastion_is_named_and_the_hosts_beside_it_finish() {
    let world = World::new();
    let (_taken, port) = refused_port();
    let far = |id: &str| world.host_table_with(id, &format!(", jump = \"127.0.0.1:{port}\""));
    let near = |id: &str| world.host_table_with(id, ", jump = \"none\"");
    let hosts = [far("h1"), near("h2"), far("h3"), near("h4")];
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let project = Project::new("shop").hosts(&hosts).rollout("max_parallel = 4, max_unreachable = 2");
    world.project(&project.ssh("jump = \"nowhere.invalid\""));
    let daemon = world.start();
    let commit = world.repo.push("for two of them");
    let run = daemon.deploy().is("succeeded");
    assert_eq!(run.hosts(), ["h1:unreachable", "h2:healthy", "h3:unreachable", "h4:healthy"]);
    assert!(world.hosts_have(&["h2", "h4"], &commit));
    let message = run.host("h3")["cause"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("the bastion 127.0.0.1:{port}: ")), "{message}");
}

#[test]
fn ports_and_users_come_from_labels_where_the_source_does_not_say_them() {
    let world = World::new();
    let table = world.host_table("h1");
    let field = |name: &str| table.split(&format!("{name} = \"")).nth(1).unwrap().split('"').next().unwrap().to_owned();
    let file = world.path("hosts.json");
    let write = |labels: Value| {
        let host = json!({ "id": "h1", "address": field("address"), "base": field("base"), "labels": labels });
        std::fs::write(&file, json!([host]).to_string()).unwrap();
    };
    let (port, source) = (world.sshd.port, file.display());
    write(json!({ "ssh-port": port.to_string(), "login": "fleet" }));
    let source =
        format!("require \"discovery.file\" {{ \"{source}\", port_label = \"ssh-port\", user_label = \"login\" }}");
    // What the environment says is for those without the label.
    world.project(&Project::new("shop").hosts(&[&source]).ssh("port = 1, user = \"nobody\""));
    let daemon = world.start();
    let commit = world.repo.push("found");
    daemon.deploy().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    write(json!({ "ssh-port": "ssh" }));
    let found = fleet(&daemon, true);
    let error = &found["sources"][0]["error"];
    assert_eq!(error["code"], "discovery_failed", "{found}");
    assert!(
        error["message"].as_str().unwrap().contains("the label ssh-port of host h1 is \"ssh\", which is no port"),
        "{error}"
    );
}

#[test]
fn a_step_runs_as_another_user_by_sudo_over_a_real_session() {
    let rule = format!("/etc/sudoers.d/phased-it-{}", std::process::id());
    struct Rule(String);
    impl Drop for Rule {
        fn drop(&mut self) {
            let _gone = std::fs::remove_file(&self.0);
        }
    }
    let allow = |line: &str| {
        std::fs::write(&rule, line).unwrap();
        std::fs::set_permissions(&rule, std::os::unix::fs::PermissionsExt::from_mode(0o440)).unwrap();
    };
    let _rule = Rule(rule.clone());
    allow("fleet ALL=(nobody) NOPASSWD: /bin/sh, /usr/bin/sh\n");
    let deploy = r#"
        local who = host:sh { [[ id -un; printf %s "$SECRET" | wc -c ]], user = "nobody", env = { SECRET = phased.secret "hook" } }
        host:log("as " .. who.stdout:gsub("\n", " "))
        local ok, e = pcall(function() host:sh { "id -un", user = "root" } end)
        host:log("refused " .. tostring(ok) .. " " .. e.message)"#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).deploy(deploy));
    world.repo.push("as nobody");
    let run = daemon.deploy().is("succeeded");
    let log = run.log();
    assert!(log.contains(&format!("as nobody {} ", HOOK_SECRET.len())), "{log}");
    assert!(log.contains("refused false") && log.contains("fleet ALL=(root) NOPASSWD: "), "{log}");
}

/// The most sessions that the world's sshd serves at once, as long as this lives.
struct Peak {
    over: Arc<AtomicBool>,
    counting: Option<std::thread::JoinHandle<usize>>,
}

impl Peak {
    fn of(world: &World) -> Peak {
        let (over, port, most) = (Arc::new(AtomicBool::new(false)), world.sshd.port, Arc::new(AtomicUsize::new(0)));
        let ended = Arc::clone(&over);
        let counting = std::thread::spawn(move || {
            let mut before = BTreeSet::new();
            while !ended.load(Ordering::SeqCst) {
                let now = established(port);
                // One look at the table takes a while; who is in two of them was there between them.
                most.fetch_max(now.intersection(&before).count(), Ordering::SeqCst);
                before = now;
                std::thread::sleep(Duration::from_millis(2));
            }
            most.load(Ordering::SeqCst)
        });
        Peak { over, counting: Some(counting) }
    }

    fn most(mut self) -> usize {
        self.over.store(true, Ordering::SeqCst);
        self.counting.take().unwrap().join().unwrap()
    }
}

/// Connections to a port that its server has and that are not closing, by their other ends.
fn established(port: u16) -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let other_end = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        (local.ends_with(&format!(":{port:04X}")) && state == "01").then(|| remote.to_owned())
    };
    table.lines().filter_map(other_end).collect()
}

#[test]
fn a_rollout_never_has_more_sessions_than_there_may_be_and_ends_all_the_same() {
    let hosts = ["h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8"];
    for (limits, keys) in [("sessions = 2\n", ""), ("", "max_sessions = 2")] {
        let world = World::new();
        std::fs::write(world.path("limits.toml"), limits).unwrap();
        // Hooks before and while they are watched hold sessions that nobody uses.
        let project = Project::new("shop")
            .hosts(&hosts)
            .phases("canary = 0, max_parallel = 2, bake_time = \"3s\", on_failure = \"halt\"")
            .keys("prepare = function(host) host:sh \"sleep 0.1\" end, before = function(deployment) for _, host in ipairs(deployment.hosts) do host:sh \"true\" end end")
            .health("command = \"true\", min_healthy_time = \"500ms\", interval = \"100ms\"");
        world.project(&if keys.is_empty() { project } else { project.ssh(keys) });
        let daemon = world.start();
        let peak = Peak::of(&world);
        let commit = world.repo.push("two at a time");
        daemon.deploy().is("succeeded");
        assert!(world.hosts_have(&hosts, &commit));
        assert_eq!(peak.most(), 2, "{limits}{keys}");
    }
}

#[test]
fn a_fleet_is_reached_by_a_third_as_many_sessions_and_leaves_nothing_open() {
    let hosts: Vec<String> = (1..=60).map(|n| format!("h{n}")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let world = World::new();
    std::fs::write(world.path("limits.toml"), "sessions = 20\n").unwrap();
    world.project(&Project::new("shop").hosts(&hosts).rollout("max_parallel = 50").deploy_takes(0.2));
    let daemon = world.start();
    let peak = Peak::of(&world);
    let round = |what: &str| {
        let commit = world.repo.push(what);
        daemon.deploy().is("succeeded");
        assert!(world.hosts_have(&hosts, &commit));
        eventually("all sessions are closed", || established(world.sshd.port).is_empty().then_some(()));
    };
    round("what is opened once is open");
    daemon.idle();
    let before = daemon.files();
    round("again");
    round("and again");
    eventually(&format!("it has no more than {before} files open"), || (daemon.files() <= before).then_some(()));
    let most = peak.most();
    assert!((15..=20).contains(&most), "{most}");
}

#[test]
fn a_rollout_that_is_wider_than_its_sessions_is_refused_by_the_check() {
    let world = World::new();
    world.project(&Project::new("shop").rollout("max_parallel = 5").ssh("max_sessions = 3"));
    let config = Daemon::configure(&world);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_phased"));
    let said = command.args(["check", "--config"]).arg(config).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
    assert!(said.contains("rollout.max_parallel is 5, and ssh.max_sessions allows 3"), "{said}");
}
