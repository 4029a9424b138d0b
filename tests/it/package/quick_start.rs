//! README's quick start, as a new user goes through it.

use std::collections::BTreeMap;

use super::site::Site;
use crate::fixture::Booted;

/// The commands that README shows under this heading: what comes after `$ ` in its first transcript.
fn commands(heading: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, section) = readme.split_once(&format!("\n## {heading}\n")).expect("README has a quick start");
    let transcript = section.split("```").nth(1).expect("the quick start has a transcript");
    transcript.lines().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned).collect()
}

/// A unit `shop.service` that serves what lies in /srv/shop/current, as a host has it before there is phased.
fn has_a_service(web: &Booted) {
    web.ok(r#"
        printf '%s\n' '[Unit]' 'StartLimitIntervalSec=0' '[Service]' 'WorkingDirectory=/srv/shop/current' 'ExecStart=/bin/sh ./serve' \
          >/etc/systemd/system/shop.service
        rm -f /etc/sudoers.d/phased; userdel -r deploy 2>/dev/null || userdel deploy
        systemctl daemon-reload
    "#);
}

#[test]
fn the_quick_start_leads_from_the_package_to_a_deployed_commit() {
    let site = Site::new();
    let machine = &site.integration;
    has_a_service(&site.web);
    let make = "build:\n\techo built >built\n\ntest:\n\ttest -f built\n";
    site.repo.commit(&[("serve", "exec sleep infinity\n"), ("Makefile", make)], "A shop");
    site.repo.push_as("main");
    // What a user has: a repository somewhere, a host of that name, and root's key to it.
    machine.ok(r#"
        useradd -m ada
        echo '127.0.0.2 web1.example.com' >>/etc/hosts
        install -d -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
        ssh-keyscan -t ed25519 web1.example.com >/root/.ssh/known_hosts 2>/dev/null
    "#);
    let key = machine.ok("cat /root/.ssh/id_ed25519.pub");
    site.web.ok(&format!("install -d -m 700 /root/.ssh; echo '{}' >/root/.ssh/authorized_keys", key.trim()));

    let commands = commands("Quick start");
    assert!((1..=6).contains(&commands.len()), "{commands:#?}");
    let deb = site.deb("0.1.0");
    // Where this machine is not the reader's.
    let here = BTreeMap::from([
        ("https://github.com/acme/shop.git", "http://127.0.0.3:8000/shop.git"),
        ("./phased_0.1.0-1_amd64.deb", deb.as_str()),
        ("apt install", "apt-get install -y"),
        ("sudo ", ""),
    ]);
    let mut said = String::new();
    for command in &commands {
        let command = here.iter().fold(command.clone(), |command, (there, here)| command.replace(there, here));
        let one = machine.run(&command);
        said.push_str(&format!("$ {command}\n{}{}", one.stdout, one.stderr));
        assert_eq!(one.code, 0, "{said}");
    }
    eprintln!("{said}");
    assert!(said.contains("succeeded"), "{said}");
    let deployed = site.web.ok("cat /srv/shop/current/built; systemctl is-active shop");
    assert_eq!(deployed, "built\nactive\n");
}
