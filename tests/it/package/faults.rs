//! What befalls a service: it comes back, and runs go on.

use super::site::{HOSTS, Site};
use crate::fixture::eventually;

#[test]
fn killed_hung_or_rebooted_the_service_comes_back_and_runs_go_on() {
    let mut site = Site::new();
    site.install("0.1.0");
    site.projects();
    // As it is installed, but quicker to lose patience.
    site.integration.ok("mkdir -p /etc/systemd/system/phased.service.d
         printf '[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\n' >/etc/systemd/system/phased.service.d/test.conf
         systemctl daemon-reload && systemctl restart phased");
    let run = site.press("shop");
    let local = site.press("build");
    site.all_begun();

    for (signal, result) in [("KILL", "signal"), ("STOP", "watchdog")] {
        let (_, pid) = site.service();
        site.integration.ok(&format!("kill -{signal} {pid}"));
        eventually("the service is back", || {
            let (state, now) = site.service();
            (state == "active" && now != pid && now != "0").then_some(())
        });
        let said = site.integration.ok("journalctl --no-pager -u phased.service");
        assert!(said.contains(&format!("Failed with result '{result}'")), "{said}");
        site.again(&run).until("the run goes on", |view| view["state"] == "deploying");
        assert_eq!(site.marks("begin"), HOSTS);
    }
    // The commands here do not survive the machine they run on; what runs on hosts does.
    site.integration.ok("touch /srv/go");
    site.again(&local).wait().is("succeeded");
    site.integration.ok("rm /srv/go");

    site.integration.reboot();
    eventually("the service is back", || (site.service().0 == "active").then_some(()));
    site.again(&run).until("the run goes on", |view| view["state"] == "deploying");
    site.go();
    site.again(&run).wait().is("succeeded");
    site.ran_once();
}
