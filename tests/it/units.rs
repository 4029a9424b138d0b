//! Health of a real systemd's units, on a machine that was booted for it.

use crate::fixture::{Daemon, Machine, Project, World, eventually};

const QUICK: &str = r#"min_healthy_time = "2s", interval = "200ms", healthy_deadline = "4s", timeout = "4s""#;

/// Installs the unit with this text and starts it, as a deploy does.
fn unit(service: &str) -> String {
    format!(
        r#"host:sh {{ [[
          echo "$PHASED_REVISION" >/srv/revision
          cat >/etc/systemd/system/shop.service
          systemctl daemon-reload; systemctl restart --no-block shop
        ]], stdin = [[
[Unit]
StartLimitIntervalSec=0
[Service]
{service}
]] }}"#
    )
}

struct Shop {
    world: World,
    machine: Machine,
}

impl Shop {
    fn project(&self, service: &str, health: &str) -> Project {
        let host = self.machine.host_table();
        Project::new("shop").hosts(&[&host]).deploy(&unit(service)).health(&format!("{health}, {QUICK}"))
    }

    /// Deploys a unit of this text as the next commit; what became of it, in words.
    fn deploy(&self, daemon: &Daemon, service: &str, health: &str) -> (String, String) {
        self.world.project(&self.project(service, health));
        daemon.api.post("/v1/reload", &serde_json::json!({})).is(200);
        self.world.repo.push(service);
        daemon.idle();
        // The very same files may have been found bad under another health.
        let run = daemon.press_with(&serde_json::json!({ "retry_bad": true, "redeploy": true })).wait();
        (run.view["state"].as_str().unwrap().to_owned(), run.host("machine")["cause"]["message"].to_string())
    }
}

#[test]
fn a_unit_is_healthy_when_it_stays_active_and_runs_what_was_deployed() {
    let world = World::new();
    let key = std::fs::read_to_string(world.path("id.pub")).unwrap();
    let machine = Machine::boot(&world.path("machine"), &key);
    let shop = Shop { world, machine };
    let service = r#"service = "shop""#;
    let version = r#"service = "shop", version = { command = "cat /srv/revision" }"#;
    shop.world.project(&shop.project("ExecStart=/bin/sleep infinity", version));
    let daemon = shop.world.start();
    shop.world.repo.push("good");
    daemon.deploy().is("succeeded");

    // Active at nearly every look, and still it never works.
    let (state, why) =
        shop.deploy(&daemon, "ExecStart=/bin/sh -c 'sleep 1; exit 1'\nRestart=always\nRestartSec=50ms", service);
    assert_eq!(state, "halted");
    assert!(why.contains("service shop.service: it ended and was restarted"), "{why}");

    let (state, why) = shop.deploy(&daemon, "ExecStart=/bin/false", service);
    assert_eq!(state, "halted");
    assert!(why.contains("failed (failed), result exit-code"), "{why}");

    let good = "ExecStart=/bin/sleep infinity";
    let (state, why) = shop.deploy(&daemon, good, r#"service = "shpo""#);
    assert_eq!(state, "halted");
    assert!(why.contains("this host has no unit shpo.service"), "{why}");

    let old = r#"service = "shop", version = { command = "echo 0123456" }"#;
    let (state, why) = shop.deploy(&daemon, good, old);
    assert_eq!(state, "halted");
    assert!(why.contains("reports 0123456, deployed is "), "{why}");

    let (state, why) = shop.deploy(&daemon, good, version);
    assert_eq!(state, "succeeded", "{why}");
}

/// The processes here, on whatever machine, that have this argument.
fn with_argument(argument: &str) -> Vec<i32> {
    let has = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(has).collect()
}

#[test]
fn a_unit_that_ends_and_is_restarted_while_no_daemon_looks_is_seen_by_the_next_one() {
    let world = World::new();
    let key = std::fs::read_to_string(world.path("id.pub")).unwrap();
    let machine = Machine::boot(&world.path("machine"), &key);
    let argument = (3_000_000_000 + u64::from(std::process::id())).to_string();
    let service = format!("ExecStart=/bin/sleep {argument}\nRestart=always\nRestartSec=50ms");
    let health = r#"service = "shop", min_healthy_time = "8s", interval = "200ms", healthy_deadline = "60s""#;
    world.project(&Project::new("shop").hosts(&[&machine.host_table()]).deploy(&unit(&service)).health(health));
    let daemon = world.start();
    world.repo.push("calm at every look");
    let run = daemon.press();
    eventually("it was looked at", || (!world.events(&run.id, "processes_seen").is_empty()).then_some(()));
    daemon.kill();
    let before = with_argument(&argument);
    for pid in &before {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    eventually("systemd starts it again", || {
        let now = with_argument(&argument);
        (!now.is_empty() && now.iter().all(|pid| !before.contains(pid))).then_some(())
    });
    let daemon = world.start();
    let ended = daemon.run(&run.id).wait().is("halted");
    assert!(ended.message().contains("it ended and was restarted once since it was watched"), "{}", ended.message());
}

#[test]
fn a_restart_by_hand_while_it_bakes_is_in_the_journal_so_that_a_later_daemon_counts_from_there() {
    let world = World::new();
    let key = std::fs::read_to_string(world.path("id.pub")).unwrap();
    let machine = Machine::boot(&world.path("machine"), &key);
    // Somebody restarts it at a look of the bake.
    let health = r#"service = "shop", min_healthy_time = "500ms", interval = "200ms", healthy_deadline = "60s",
      command = "[ ! -e /srv/baking ] || { rm /srv/baking; systemctl restart shop; }""#;
    let project = Project::new("shop").hosts(&[&machine.host_table()]).deploy(&unit("ExecStart=/bin/sleep infinity"));
    let bakes = r#"after_wave = function(wave) wave.hosts[1]:sh "touch /srv/baking" end"#;
    world.project(&project.health(health).keys(bakes).phases(r#"bake_time = "10s""#));
    let daemon = world.start();
    world.repo.push("restarted by hand");
    let run = daemon.press();
    let seen = eventually("the restart is told", || {
        let records = world.journal(&run.id);
        let bake = records.iter().position(|record| record["event"] == "bake_began")?;
        records[bake..].iter().rev().find(|record| record["event"] == "processes_seen").cloned()
    });
    let before = world.events(&run.id, "processes_seen").remove(0);
    assert_ne!(seen["processes"], before["processes"]);
    run.wait().is("succeeded");
}
