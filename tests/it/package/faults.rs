//! What befalls a service: it comes back, and runs go on.

use super::site::{HOSTS, Site};
use crate::fixture::{Famine, eventually};

#[test]
fn killed_hung_without_memory_or_rebooted_the_service_comes_back_and_runs_go_on() {
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

    let famine = Famine::new();
    for (before, fault) in ["KILL", "STOP", "famine"].into_iter().enumerate() {
        let (_, pid) = site.service();
        if fault == "famine" {
            famine.befalls(site.integration.outside(&pid));
            eventually("the kernel kills it for want of memory", || {
                let _answered_or_not = site.integration.run("phased reload");
                (famine.killed() > 0).then_some(())
            });
        } else {
            site.integration.ok(&format!("kill -{fault} {pid}"));
        }
        eventually("the service is back", || {
            let (state, now) = site.service();
            (state == "active" && now != pid && now != "0").then_some(())
        });
        let said = site.integration.ok("journalctl --no-pager -u phased.service");
        assert_eq!(said.matches("Failed with result").count(), before + 1, "{said}");
        assert_eq!(said.contains("Failed with result 'watchdog'"), before > 0, "{said}");
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

#[test]
fn a_full_disk_refuses_what_is_new_and_hurts_nothing_that_runs() {
    let site = Site::new();
    // Room for the reserve of 16 MiB and little else.
    site.integration.ok("mkdir -p /var/lib/phased && mount -t tmpfs -o size=64m,mode=711 phased /var/lib/phased");
    site.install("0.1.0");
    site.projects();
    let run = site.press("shop");
    eventually("twenty commands run on hosts", || (site.marks("begin") == HOSTS).then_some(()));
    site.integration.run("dd if=/dev/zero of=/var/lib/phased/filler bs=64k status=none");
    eventually("what is new is refused", || {
        let answer = site.api().post("/v1/projects/build/start", &serde_json::json!({ "redeploy": true }));
        site.integration.run("dd if=/dev/zero of=/var/lib/phased/more bs=4k status=none");
        (answer.status == 507).then_some(())
    });
    site.integration.ok("systemctl is-active phased.service && phased status");
    site.integration.ok("rm /var/lib/phased/filler /var/lib/phased/more");
    site.go();
    run.wait().is("succeeded");
    site.ran_once();
}
