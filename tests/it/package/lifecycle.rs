//! What is there after an installation, and what is left after a removal and a purge.

use super::site::Site;

#[test]
fn remove_keeps_what_is_yours_and_purge_takes_it() {
    let site = Site::new();
    site.install("0.1.0");
    let machine = &site.integration;
    assert_eq!(site.service().0, "active");
    machine.ok("phased --version; phased status; systemctl is-enabled phased.service phased.socket phased-job.socket");
    machine.ok("systemd-analyze verify --man=no phased.service phased.socket phased-job.socket phased-job@1.service phasedjobs.slice");
    // The daemon is nobody's fool: not root, and its data and secrets are not everybody's.
    let (_, pid) = site.service();
    assert_eq!(machine.ok(&format!("stat -c %U /proc/{pid}")).trim(), "phased");
    let modes = machine.ok(
        "stat -c '%a %U %G %n' /var/lib/phased /etc/phased/secrets /etc/phased/phased.toml /run/phased/phased.sock",
    );
    let expected = "711 phased phased /var/lib/phased\n700 phased phased /etc/phased/secrets\n644 root root /etc/phased/phased.toml\n\
                    660 phased phased /run/phased/phased.sock\n";
    assert_eq!(modes, expected);
    machine.ok("test -d /etc/phased/plugins/projects && test -f /usr/share/phased/plugins/alerts/log.lua");
    machine.ok("test -f /usr/share/man/man8/phased-start.8.gz && test -f /usr/share/phased/lua/phased.d.lua");
    machine.ok("test -f /usr/share/bash-completion/completions/phased && test -f /usr/share/phased/examples/shop.lua");

    site.projects();
    is_reloaded_and_found_in_the_journal(&site);
    is_restored_by_root(&site);
    // A line of the user's in the configuration outlives everything but a purge.
    machine.ok("printf '[log]\nformat = \"json\"\n' >/tmp/log; sed -i '/^\\[log\\]/,$d' /etc/phased/phased.toml; cat /tmp/log >>/etc/phased/phased.toml");
    site.install("0.1.1");
    machine.ok("grep -q 'format = \"json\"' /etc/phased/phased.toml");
    let runs = machine.ok("phased runs --json");

    machine.ok("apt-get remove -y phased");
    for unit in ["phased.service", "phased.socket", "phased-job.socket"] {
        assert_eq!(machine.unit(unit, "ActiveState"), "inactive", "{unit}");
    }
    machine.ok("! command -v phased && test -d /var/lib/phased/journal");
    machine.ok("test -f /etc/phased/plugins/projects/shop.lua && grep -q json /etc/phased/phased.toml");
    machine.ok("test ! -e /usr/lib/systemd/system/phased.service");

    // Back again: it works without being asked, and everything is as it was.
    site.install("0.1.1");
    assert_eq!(site.service().0, "active");
    assert_eq!(machine.ok("phased runs --json"), runs);

    // What was stopped on purpose stays so over an upgrade, whoever asks.
    machine.ok("systemctl stop phased.socket phased-job.socket phased.service");
    site.install("0.1.0");
    for unit in ["phased.service", "phased.socket", "phased-job.socket"] {
        assert_eq!(machine.unit(unit, "ActiveState"), "inactive", "{unit}");
    }

    machine.ok("apt-get purge -y phased");
    let left = machine.ok("find / -xdev -path /proc -prune -o -path /share -prune -o -name '*phased*' -print");
    assert_eq!(left, "", "a purge leaves nothing");
    machine.ok("getent passwd phased");
    assert_eq!(machine.ok("systemctl list-units --no-legend --plain 'phased*'"), "");
}

/// As docs/how-to/back-up-and-move.md says: what root brings back is the service's.
fn is_restored_by_root(site: &Site) {
    let machine = &site.integration;
    let runs = machine.ok("phased runs --json");
    machine.ok("phased backup /root/phased.tar.zst
        systemctl stop phased.socket phased.service
        phased restore --force /root/phased.tar.zst
        systemctl start phased.socket phased.service
        phased maintenance off
        rm -r /root/phased.tar.zst /var/lib/phased.before-restore-*");
    assert_eq!(machine.ok("find /var/lib/phased/journal /var/lib/phased/blobs ! -user phased"), "");
    assert_eq!(machine.ok("phased runs --json"), runs);
}

/// As docs/service.md says: by systemd's own commands.
fn is_reloaded_and_found_in_the_journal(site: &Site) {
    let machine = &site.integration;
    let entries = |of: &str| machine.ok(&format!("journalctl --sync && journalctl --no-pager -o cat -u phased {of}"));
    let (_, pid) = site.service();
    let reloads = || entries("").matches("the projects were reloaded").count();
    let before = reloads();
    machine.ok("systemctl reload phased");
    assert_eq!((reloads(), site.service().1), (before + 1, pid.clone()), "once, by the same process");
    machine.ok("echo 'return 1 +' >/etc/phased/plugins/projects/half.lua");
    assert_ne!(machine.run("systemctl reload phased").code, 0, "what is refused is no success");
    assert!(entries("").contains("half.lua:"), "and is said why");
    assert_eq!(site.service(), ("active".to_owned(), pid));
    machine.ok("rm /etc/phased/plugins/projects/half.lua && systemctl reload phased");
    // By fields, of which each entry has those that it is about.
    let (shop, build) = (entries("PHASED_PROJECT=shop"), entries("PHASED_PROJECT=build"));
    assert!(shop.contains("the run: succeeded") && build.contains("the run: succeeded"), "{shop}{build}");
    assert!(shop.contains("host w20: healthy") && !build.contains("host w20: healthy"), "{shop}{build}");
    let host = entries("PHASED_PROJECT=shop PHASED_ENVIRONMENT=production PHASED_HOST=w07");
    assert!(host.contains("host w07: healthy") && !host.contains("w08"), "{host}");
}

#[test]
fn data_of_a_newer_version_is_refused_once_and_for_all() {
    let site = Site::new();
    site.install("0.1.0");
    let machine = &site.integration;
    machine.ok(
        "systemctl stop phased.socket phased.service; echo '99 is the format of this data' >/var/lib/phased/VERSION",
    );
    let refused = machine.run("systemctl start phased.service");
    assert_ne!(refused.code, 0);
    assert_eq!(machine.unit("phased.service", "ExecMainStatus"), "78");
    let said = machine.ok("journalctl --no-pager -u phased.service");
    assert!(said.contains("written in format 99 by a newer phased"), "{said}");
    assert!(said.contains("install the newer version again"), "{said}");
    // To start again does not help, so nobody does.
    assert_eq!(machine.unit("phased.service", "NRestarts"), "0");
    assert_eq!(machine.unit("phased.service", "ActiveState"), "failed");
    machine.ok("echo 1 >/var/lib/phased/VERSION; systemctl start phased.socket phased.service; phased status");
}
