//! An upgrade in the middle of a rollout.

use super::site::{Site, nobody_refused};

/// What the issue allows from the last answer of the old daemon to the first of the new one.
const GAP_MS: u64 = 3000;

#[test]
fn an_upgrade_and_a_downgrade_in_the_middle_of_a_rollout_hurt_nothing() {
    let site = Site::new();
    site.install("0.1.0");
    site.projects();
    for (version, what) in [("0.1.1", "upgrade"), ("0.1.0", "downgrade")] {
        // Made before the clock runs.
        site.deb(version);
        in_the_middle(&site, version, what, || site.install(version));
        let installed = site.integration.ok("dpkg-query -W -f '${Version}' phased");
        assert_eq!(installed, format!("{version}-1"));
    }
}

#[test]
fn nor_do_those_of_an_rpm() {
    let site = Site::new();
    site.integration.ok(&format!("rpm -i --nodeps {}", site.rpm("0.1.0")));
    site.integration.ok("systemctl enable -q --now phased.socket phased-job.socket phased.service");
    site.projects();
    for (version, what) in [("0.1.1", "upgrade of the rpm"), ("0.1.0", "downgrade of the rpm")] {
        let rpm = site.rpm(version);
        in_the_middle(&site, version, what, || {
            site.integration.ok(&format!("rpm -U --nodeps --oldpackage {rpm}"));
        });
        assert_eq!(site.integration.ok("rpm -q --qf '%{VERSION}' phased"), version);
    }
}

/// `install` puts this version in the other's place while 20 commands run on hosts and 5 here.
#[track_caller]
fn in_the_middle(site: &Site, version: &str, what: &str, install: impl Fn()) {
    site.hold();
    let runs = [site.press("shop"), site.press("build")];
    site.all_begun();
    let (_, before) = site.service();
    let poller =
        site.network.poll("127.0.0.1:7427", site.integration.path("/run/phased/phased.sock").to_str().unwrap());
    install();
    site.integration.ok("phased status");
    nobody_refused(what, &poller.stop(), GAP_MS);
    let (state, after) = site.service();
    assert_eq!(state, "active");
    assert_ne!(before, after, "another process serves");
    // It is really another one that answers.
    assert!(site.integration.ok("phased --version").trim_end().ends_with(version));
    assert_eq!(site.api().get("/v1/status").is(200).json()["version"], version);
    // Twenty and five still run, none of them anew.
    site.all_begun();
    site.go();
    for run in &runs {
        site.again(run).wait().is("succeeded");
    }
    site.ran_once();
}
