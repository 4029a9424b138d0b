//! README's quick start, as a new user goes through it: not root, on a bare Debian; and the way without a package.

use std::{collections::BTreeMap, process::Command};

use super::site::Site;
use crate::fixture::{BINARY, Booted, run, shown};

/// The commands of README's quick start: what comes after `$ ` in its first transcript.
fn commands() -> Vec<String> {
    let transcript = shown("README.md", "Quick start").swap_remove(0);
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

/// Makes ada: she may use `sudo`, as whoever set a Debian machine up may, and her key lets her into the host as root.
fn has_a_user(site: &Site) {
    let machine = &site.integration;
    machine.ok("
        useradd -m -s /bin/bash -G sudo ada
        # Debian's own rule, without a password: there is nobody to type it.
        echo '%sudo ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/nobody-types
        echo '127.0.0.2 web1.example.com' >>/etc/hosts
        install -d -m 700 -o ada -g ada /home/ada/.ssh
    ");
    let key = site.web.ok("
        install -d -m 700 /root/.ssh
        ssh-keygen -q -t ed25519 -N '' -f /root/ada
        cp /root/ada.pub /root/.ssh/authorized_keys
        cat /root/ada
    ");
    let host = site.web.ok("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub");
    for (name, text) in [("id_ed25519", key), ("known_hosts", format!("web1.example.com {host}"))] {
        std::fs::write(machine.path("/home/ada/.ssh").join(name), text).unwrap();
    }
    machine.ok("chmod 600 /home/ada/.ssh/*; chown ada:ada /home/ada/.ssh/*");
}

#[test]
fn the_quick_start_leads_from_the_package_to_a_deployed_commit() {
    let site = Site::new();
    let machine = &site.integration;
    has_a_service(&site.web);
    let make = "build:\n\techo built >built\n\ntest:\n\ttest -f built\n";
    site.repo.commit(&[("serve", "exec sleep infinity\n"), ("Makefile", make)], "A shop");
    site.repo.push_as("main");
    // What phased needs the package brings. What the shop is built with is not its business.
    machine.bare();
    machine.ok("apt-get install -y make");
    has_a_user(&site);
    machine.ok(&format!("cp {} /home/ada/", site.deb("0.1.0")));

    let commands = commands();
    assert!((1..=6).contains(&commands.len()), "{commands:#?}");
    // Where this machine is not the reader's.
    let here = BTreeMap::from([
        ("https://github.com/acme/shop.git", "http://127.0.0.3:8000/shop.git"),
        ("apt install", "apt-get install -y"),
    ]);
    let mut said = String::new();
    for command in &commands {
        let command = here.iter().fold(command.clone(), |command, (there, here)| command.replace(there, here));
        let one = machine.run(&format!("command=$(cat <<'END'\n{command}\nEND\n)\nrunuser -l ada -c \"$command\""));
        said.push_str(&format!("$ {command}\n{}{}", one.stdout, one.stderr));
        assert_eq!(one.code, 0, "{said}");
    }
    eprintln!("{said}");
    assert!(said.contains("succeeded"), "{said}");
    let deployed = site.web.ok("cat /srv/shop/current/built; systemctl is-active shop");
    assert_eq!(deployed, "built\nactive\n");
    machine.ok("command -v git && command -v ssh");
    // What it says that it wrote is what README shows; and the doctor is content with what came of it.
    let told = |text: &str| -> Vec<String> {
        let first = text.split("\n$ ").find(|part| part.contains("phased init")).unwrap();
        first
            .lines()
            .filter(|line| line.starts_with("wrote ") || line.starts_with("kept "))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(told(&said), told(&shown("README.md", "Quick start")[0]));
    eprintln!("{}", machine.ok("runuser -l ada -c 'sudo phased doctor'"));
}

#[test]
fn without_a_package_the_units_of_the_source_run_it_until_a_package_comes() {
    let site = Site::new();
    let machine = &site.integration;
    let source = machine.share().join("source");
    std::fs::create_dir_all(source.join("target/release")).unwrap();
    std::fs::copy(BINARY, source.join("target/release/phased")).unwrap();
    let packaging = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");
    run(Command::new("cp").args(["-R", packaging]).arg(&source));
    let [install, remove] = shown("docs/service.md", "Without a package").try_into().expect("two blocks");
    let follow =
        |commands: &str| machine.ok(&format!("cd /share/source && bash -euxc \"$(cat <<'END'\n{commands}\nEND\n)\""));
    follow(&install);
    let programs = "systemctl show -P ExecStart phased.service phased-job@1.service | grep -o 'path=[^ ;]*'";
    assert_eq!(machine.ok(programs), "path=/usr/local/bin/phased\npath=/usr/local/bin/phased\n");
    // A stage goes through the job unit, a deployment to hosts.
    site.projects();
    follow(&remove);
    let left = "find /etc/systemd /usr/local/bin /etc/sysusers.d /etc/tmpfiles.d -name '*phased*'";
    assert_eq!(machine.ok(left), "");
    site.install("0.1.0");
    assert_eq!(site.service().0, "active");
    assert_eq!(machine.ok(programs), "path=/usr/bin/phased\npath=/usr/bin/phased\n");
    machine.ok("phased runs | grep succeeded");
}
