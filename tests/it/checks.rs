//! `phased check`: what a good set is, and that the README shows it as it is.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use crate::fixture::{BINARY, Daemon, Project, World, output};

/// A fresh `phased init` with these examples as projects, their secrets and host keys; what `phased check` prints.
fn checked(dir: &Path, examples: &[&str]) -> String {
    let phased = || Command::new(env!("CARGO_BIN_EXE_phased"));
    assert_eq!(output(phased().args(["init", "--config"]).arg(dir.join("phased.toml"))).code, 0);
    for example in examples {
        let text = std::fs::read_to_string(Path::new("packaging/examples").join(format!("{example}.lua"))).unwrap();
        let text = text.replace("/etc/phased/", &format!("{}/", dir.display()));
        std::fs::write(dir.join(format!("plugins/projects/{example}.lua")), text).unwrap();
    }
    std::fs::write(dir.join("known_hosts"), "").unwrap();
    std::fs::create_dir_all(dir.join("secrets")).unwrap();
    for secret in ["deploy_key", "shop_webhook", "slack_url"] {
        let file = dir.join("secrets").join(secret);
        std::fs::write(&file, "at least 8 bytes").unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let checked = output(phased().args(["check", "--config"]).arg(dir.join("phased.toml")));
    assert_eq!(checked.code, 0, "{checked:?}");
    checked.stdout
}

#[test]
fn the_readme_shows_what_check_says_of_the_example() {
    let dir = tempfile::tempdir().unwrap();
    let said = checked(dir.path(), &["shop"]);
    let readme = std::fs::read_to_string("README.md").unwrap();
    assert!(readme.contains(&format!("```\n{said}```")), "README.md does not have:\n{said}");
}

#[test]
fn check_shows_waves_budgets_alarms_and_freezes_as_they_come_out() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("plugins/projects")).unwrap();
    // Of hosts that are found out later nobody knows the numbers yet.
    let found = r#"return phased.project {
      source = { git = "https://example.com/x.git", branch = "main" },
      test = { { "unit", run = function(run) run:sh "true" end } },
      environments = { { "fleet",
        hosts = require "discovery.file" { path = "/etc/fleet.json" }, health = "none", deploy = function(host) end, group = "db",
        rollout = { canary = { labels = { role = "canary" } }, waves = "25%", max_parallel = 4, stagger = "10s", zones = true, bake_time = "0s",
                    max_failures = "10%", max_failures_per_wave = 1, min_healthy = "75%", on_failure = "pause", pause_timeout = "1h" },
      } },
      notify = require "alerts.log" {} }"#;
    std::fs::write(dir.path().join("plugins/projects/zoo.lua"), found).unwrap();
    let said = checked(dir.path(), &["careful"]);
    for block in [
        "  environment  production
    hosts      4 listed
    waves      canary 1, then 1, then 2; 2 at a time; watched for 5m after each
    stops      when more than 0 failed or more than 0 are unreachable, or before fewer than 2 of 4 would serve
    health     http :8080/healthz, service shop.service, version :8080/version: good for 10s within 2m
    calls      rollback_safe, prepare, before, drain, deploy, undrain, verify
    failure    back to the known-good release, if rollback_safe does not forbid it; without data the same as bad
    alarm      error rate: prometheus, tells slack, action rollback; 10 measurements in a bake of 5m; it notices 5 measurements above 0.01
    entered    by every push that gets so far
    frozen     fri 16:00 to mon 08:00 Europe/Berlin (weekend)
",
        "  environment  fleet
    hosts      discovery file
    waves      canary those with role = canary, then 25% in each wave; 4 at a time, 10s apart, never two zones at once; not watched after a wave
    stops      when more than 10% (1 in one wave) failed or more than 0 are unreachable, or before fewer than 75% would serve
    health     not checked, on purpose
    calls      deploy
    failure    it waits for a person, up to 1h
    entered    by every push that gets so far
    group      db: one of its environments at a time
",
    ] {
        assert!(said.contains(block), "{said}");
    }
}

#[test]
fn a_known_hosts_file_that_cannot_be_used_is_named_with_its_place_and_the_remedy() {
    let world = World::new();
    let config = Daemon::configure(&world);
    let bastion = world.path("bastion_hosts").display().to_string();
    world.project(
        &Project::new("shop").ssh(&format!(r#"jump = {{ address = "127.0.0.1", known_hosts = "{bastion}" }}"#)),
    );
    let check = || output(Command::new(BINARY).args(["check", "--format", "short", "--config"]).arg(&config));
    let known = world.path("known_hosts");
    let missing = |file: &str| format!("the known_hosts file {file} cannot be used: No such file");
    let said = check();
    assert!(said.code == 1 && said.stdout.lines().count() == 1, "{said:?}");
    assert!(said.stdout.contains(&missing(&bastion)) && said.stdout.contains("ssh-keyscan"), "{said:?}");
    let text = std::fs::read_to_string(world.path("plugins/projects/shop.lua")).unwrap();
    let line = 1 + text.lines().position(|line| line.contains(&bastion)).unwrap();
    assert!(said.stdout.contains(&format!("projects/shop.lua:{line}:")), "{said:?}");
    std::fs::write(&bastion, "").unwrap();
    assert_eq!(check().code, 0);
    // One that is there and is none.
    let keys = std::fs::read(&known).unwrap();
    std::fs::write(&known, "ssh-ed25519\n").unwrap();
    let said = check();
    assert!(said.code == 1 && said.stdout.contains("line 1: it is not"), "{said:?}");
    std::fs::remove_file(&known).unwrap();
    let said = check();
    assert!(said.code == 1 && said.stdout.contains(&missing(known.to_str().unwrap())), "{said:?}");
    std::fs::write(&known, keys).unwrap();
    assert_eq!(check().code, 0);
}
