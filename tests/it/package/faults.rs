//! What befalls a service: it comes back, and runs go on.

use std::{io::Write as _, os::unix::net::UnixStream, time::Duration};

use serde_json::json;

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
        let answer = site.api().post("/v1/projects/build/start", &json!({ "redeploy": true }));
        site.integration.run("dd if=/dev/zero of=/var/lib/phased/more bs=4k status=none");
        (answer.status == 507).then_some(())
    });
    site.integration.ok("systemctl is-active phased.service");
    // Where the index finds no room either it is made anew in memory: what is told stays, and stays true.
    eventually("what there is is read on a full disk", || {
        (site.integration.run("phased status").code == 0).then_some(())
    });
    assert_eq!((site.integration.run("phased status").code, &run.now()["state"]), (0, &json!("deploying")));
    site.integration.ok("rm /var/lib/phased/filler /var/lib/phased/more");
    site.go();
    run.wait().is("succeeded");
    site.ran_once();
}

/// Leaves processes behind that nothing but their unit gives away, and some that want to be killed.
const LEAVES: &str = r#"
    { "one", run = function(run) run:sh [[
        env -i /usr/bin/setsid /bin/sh -c "trap '' TERM; while :; do sleep 98761; done" </dev/null >/dev/null 2>&1 &
        sleep 98762 &
        env -i /bin/sleep 98763 </dev/null >/dev/null 2>&1 9>&- & ]] end },
    { "two", run = function(run) run:sh [[
        if grep -lsa 'sleep.9876[123]' /proc/[0-9]*/cmdline; then exit 4; fi
        env -i /usr/bin/setsid /bin/sleep 98764 >/dev/null 2>&1 &
        exit 3 ]] end },
"#;

#[test]
fn what_a_stage_leaves_in_its_unit_ends_with_it_and_gives_its_place_back() {
    let site = Site::new();
    site.install("0.1.0");
    site.projects();
    site.testing("leaves", LEAVES);
    let run = site.first("leaves").wait().is("failed");
    assert_eq!(run.view["cause"]["stage"], "two", "{:#}", run.view);
    assert_eq!(run.view["cause"]["exit_code"], 3, "{:#}", run.view);
    site.integration.ok("if grep -lsa 'sleep.9876[1-4]' /proc/[0-9]*/cmdline; then exit 1; fi");
    let log = run.log();
    assert!(log.contains("processes running, which were ended: ") && log.contains("sleep"), "{log}");
    eventually("no unit is left", || {
        site.integration.ok("systemctl list-units --no-legend --plain 'phased-job@*'").is_empty().then_some(())
    });
}

#[test]
fn a_job_gets_no_more_than_its_unit_may_have_and_its_cause_says_so() {
    let site = Site::new();
    let machine = &site.integration;
    machine.limits();
    site.install("0.1.0");
    site.projects();
    // As docs/jobs.md says: by a drop-in.
    machine.ok("mkdir -p /etc/systemd/system/phased-job@.service.d
         printf '[Service]\nMemoryMax=128M\nTasksMax=24\n' >/etc/systemd/system/phased-job@.service.d/test.conf
         systemctl daemon-reload");
    machine.ok(r#"echo 'perl -e "\$all = q(x) x (1 << 30)"' >/srv/greedy"#);
    site.testing("greedy", r#"{ "unit", run = function(run) run:sh ". /srv/greedy" end }"#);
    let cause = site.first("greedy").wait().is("failed").view["cause"].clone();
    assert_eq!((&cause["code"], &cause["exit_code"]), (&json!("out_of_memory"), &json!(137)), "{cause}");
    let message = cause["message"].as_str().unwrap();
    assert!(message.contains("killed 1 processes of its unit") && message.contains("128 MiB"), "{message}");

    machine.ok("echo 'for n in $(seq 30); do sleep 60 & done; wait' >/srv/greedy");
    let cause = site.press("greedy").wait().is("failed").view["cause"].clone();
    assert!(cause["code"] == "exit" && cause["too_many_tasks"].as_u64() > Some(0), "{cause}");
    assert!(cause["message"].as_str().unwrap().contains("it may have 24"), "{cause}");

    // What keeps to its limits is none the worse for it.
    machine.ok("echo true >/srv/greedy");
    site.press("greedy").wait().is("succeeded");
    assert_eq!(machine.unit("phased.service", "NRestarts"), "0");
}

#[test]
fn want_of_memory_takes_jobs_first_and_the_service_comes_back() {
    let site = Site::new();
    site.install("0.1.0");
    site.projects();
    let runs = [site.press("shop"), site.press("build")];
    site.all_begun();
    let machine = &site.integration;
    // The kernel's choice: what is killed in a unit is not the end of the unit, and the daemon is the last to be chosen.
    let job = machine.ok("systemctl list-units --no-legend --plain 'phased-job@*' | head -1 | cut -d' ' -f1");
    for unit in ["phased.service", job.trim()] {
        assert_eq!(machine.unit(unit, "OOMPolicy"), "continue", "{unit}");
    }
    // In here systemd may not lower what it was given itself, so the daemon's may be 0.
    assert_eq!(machine.unit("phased.service", "OOMScoreAdjust"), "-500");
    let (_, pid) = site.service();
    let score =
        |pid: &str| machine.ok(&format!("cat /proc/{}/oom_score_adj", pid.trim())).trim().parse::<i32>().unwrap();
    let jobs = machine.ok("for p in /proc/[0-9]*; do case $(stat -c %u $p 2>/dev/null) in 6100[01]) echo ${p#/proc/} ;; esac; done | head -5");
    for job in jobs.lines() {
        assert!(score(&pid) < score(job), "daemon {}, job {}", score(&pid), score(job));
    }
    assert!(!jobs.trim().is_empty());
    // Whomever the kernel would choose: there is no more memory to be had for the daemon.
    machine.ok(&format!(
        "runuser -u phased -- prlimit --pid {pid} --as=$(($(awk '/^VmSize/ {{ print $2 }}' /proc/{pid}/status) * 1024 + 4194304))"
    ));
    // Bodies that are held until they are whole: more than what it has put by.
    let socket = machine.path("/run/phased/phased.sock");
    let body = vec![b'x'; 24 << 20];
    let hold = || {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"POST /hooks/github/shop HTTP/1.1\r\nHost: localhost\r\nContent-Length: 26000000\r\n\r\n")?;
        stream.write_all(&body)?;
        std::io::Result::Ok(stream)
    };
    let held: Vec<UnixStream> = (0..16).map_while(|_| hold().ok()).collect();
    eventually("the service is back", || {
        let (state, now) = site.service();
        (state == "active" && now != pid && now != "0").then_some(())
    });
    drop(held);
    let said = machine.ok("journalctl --no-pager -u phased.service");
    assert!(said.contains("memory allocation of") && said.contains("Main process exited"), "{said}");
    site.all_begun();
    site.go();
    for run in &runs {
        site.again(run).wait().is("succeeded");
    }
    site.ran_once();
}
