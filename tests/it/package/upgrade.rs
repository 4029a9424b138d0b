//! An upgrade in the middle of a rollout; and a removal, after which another installation goes on.

use super::site::{Site, nobody_refused};

/// What the issue allows from the last answer of the old daemon to the first of the new one.
const GAP_MS: u64 = 3000;

#[test]
fn an_upgrade_a_downgrade_and_a_removal_in_the_middle_of_a_rollout_hurt_nothing() {
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
    removed_in_the_middle(&site, "apt-get remove -y phased", || site.install("0.1.0"));
}

#[test]
fn nor_do_those_of_an_rpm() {
    let site = Site::new();
    let rpm = site.rpm("0.1.0");
    let install = || {
        site.integration.ok(&format!("rpm -i --nodeps {rpm}"));
        site.integration.ok("systemctl enable -q --now phased.socket phased-job.socket phased.service");
    };
    install();
    site.projects();
    for (version, what) in [("0.1.1", "upgrade of the rpm"), ("0.1.0", "downgrade of the rpm")] {
        let rpm = site.rpm(version);
        in_the_middle(&site, version, what, || {
            site.integration.ok(&format!("rpm -U --nodeps --oldpackage {rpm}"));
        });
        assert_eq!(site.integration.ok("rpm -q --qf '%{VERSION}' phased"), version);
    }
    removed_in_the_middle(&site, "rpm -e phased", install);
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

/// `remove` ends what runs here, and its run says so; what runs on hosts goes on, and the daemon that is installed next finds it.
#[track_caller]
fn removed_in_the_middle(site: &Site, remove: &str, install: impl Fn()) {
    site.hold();
    let (shop, build) = (site.press("shop"), site.press("build"));
    site.all_begun();
    let machine = &site.integration;
    machine.ok(remove);
    assert_eq!(machine.ok("systemctl list-units --no-legend --plain 'phased*'"), "");
    let of_ours =
        "find /proc -ignore_readdir_race -maxdepth 1 -name '[0-9]*' \\( -user phased -o -uid +60999 -uid -61184 \\)";
    assert_eq!(machine.ok(of_ours), "", "processes of the daemon's and the projects' users");
    install();
    assert_eq!(site.service().0, "active", "it goes on without being asked");
    site.go();
    site.again(&shop).wait().is("succeeded");
    site.ran_once();
    let build = site.again(&build).wait().is("failed");
    let cause = &build.view["cause"];
    // Whether the wrapper of the command that is looked at first still saw it end is chance.
    let killed = cause["code"] == "lost" || cause["exit_code"] == 128 + 15;
    assert!(killed && cause["stage"] == "unit", "{:#}", build.view);
}
