//! The rpm. There is no Fedora here: Debian's rpm runs the same scripts in the same order, and only names of dependencies differ.

use super::site::Site;

#[test]
fn an_rpm_is_installed_upgraded_and_erased() {
    let site = Site::new();
    let machine = &site.integration;
    let (old, new) = (site.rpm("0.1.0"), site.rpm("0.1.1"));
    machine.ok(&format!("rpm -i --nodeps {old}"));
    machine.ok("rpm -V --nodeps phased");
    assert_eq!(machine.unit("phased.service", "ActiveState"), "inactive", "rpm starts nothing by itself");
    machine.ok("systemctl enable -q --now phased.socket phased-job.socket phased.service; phased status");
    let (_, before) = site.service();
    machine.ok("sed -i 's/^#data_dir/data_dir/' /etc/phased/phased.toml");

    machine.ok(&format!("rpm -U --nodeps {new}"));
    let (state, after) = site.service();
    assert_eq!(state, "active");
    assert_ne!(before, after);
    machine.ok("grep -q '^data_dir' /etc/phased/phased.toml && phased status");
    machine.ok(&format!("rpm -U --nodeps --oldpackage {old} && phased status"));
    assert_eq!(machine.ok("rpm -q --qf '%{VERSION}' phased"), "0.1.0");

    machine.ok("rpm -e phased");
    assert_eq!(machine.unit("phased.service", "ActiveState"), "inactive");
    machine.ok("! command -v phased && test -d /var/lib/phased/journal");
    // What was changed is kept beside, as rpm does.
    machine.ok("grep -q '^data_dir' /etc/phased/phased.toml.rpmsave");
}
