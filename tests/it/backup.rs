//! `phased backup`, `restore` and `export`: a daemon's past, moved, and never lived twice.

use std::{collections::BTreeMap, process::Command};

use serde_json::{Value, json};

use crate::fixture::{BINARY, Daemon, Project, World, eventually, output};

/// A deploy that waits on h2 until it is let go, and tests that wait as long as they are held up.
fn waiting() -> Project {
    let deploy = r#"host:sh { [[
        echo "$PHASED_HOST_ID" >>"$T/begun"
        until [ "$PHASED_HOST_ID" != h2 ] || [ -e "$T/go" ]; do sleep 0.05; done
      ]], env = { T = "@TESTED@" } }"#;
    let stage = r#"run:sh { 'until [ ! -e "$T/block" ]; do sleep 0.05; done', env = { T = "@TESTED@" } }"#;
    Project::new("shop").queue_all().webhook().stage("unit", stage).deploy_after(deploy)
}

/// `phased restore`, with the world's configuration but `data_dir` in `data`.
fn restore(world: &World, data: &str, args: &[&str]) -> crate::fixture::run::Restored {
    let text = std::fs::read_to_string(Daemon::configure(world)).unwrap();
    let root = world.root().display();
    let config = world.path(&format!("{data}.toml"));
    std::fs::write(&config, text.replace(&format!("{root}/data\""), &format!("{root}/{data}\""))).unwrap();
    let mut command = Command::new(BINARY);
    let done = output(command.args(["--json", "restore", "--config"]).arg(&config).args(args));
    let report = serde_json::from_str(&done.stdout).unwrap_or_default();
    crate::fixture::run::Restored { code: done.code, report, stderr: done.stderr }
}

#[test]
fn a_backup_in_the_middle_of_a_rollout_gives_the_past_and_starts_nothing_of_it_again() {
    let (world, daemon) = World::with(&waiting());
    std::fs::write(world.path("tested/go"), "").unwrap();
    let one = world.repo.push("one");
    let first = daemon.deploy().is("succeeded");
    std::fs::remove_file(world.path("tested/go")).unwrap();
    world.repo.push("two");
    let second = daemon.press();
    eventually("the second is on h2", || {
        let begun = std::fs::read_to_string(world.path("tested/begun")).unwrap_or_default();
        (begun.lines().filter(|line| *line == "h2").count() == 2).then_some(())
    });
    std::fs::write(world.path("tested/block"), "").unwrap();
    world.repo.push("three");
    let third = daemon.press();
    third.until("the third is tested", |run| run["state"] == "testing");
    world.repo.push("four");
    let fourth = daemon.press();
    let lease = daemon.api.get("/v1/projects/shop/environments/production/lease").is(200).json();

    let file = world.path("backup.tar.zst");
    let said = daemon.cli(&["backup", file.to_str().unwrap()]);
    assert!(said.code == 0 && said.stderr.contains("without secrets"), "{said:?}");
    // Never over another one, and nothing half is left under its name.
    assert_eq!(daemon.cli(&["backup", file.to_str().unwrap()]).code, 2);
    assert!(!world.path("backup.tar.zst.part").exists());

    // The other daemon went on to the end before it was lost.
    std::fs::write(world.path("tested/go"), "").unwrap();
    std::fs::remove_file(world.path("tested/block")).unwrap();
    for run in [&second, &third, &fourth] {
        run.wait().is("succeeded");
    }
    let touched: BTreeMap<&str, usize> = ["h1", "h2", "h3"].map(|id| (id, world.touched(id).len())).into();
    daemon.kill();

    let restored = restore(&world, "other", &[file.to_str().unwrap()]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let report = &restored.report;
    let over = |run: &crate::fixture::Run, state: &str| json!({ "run": run.id, "project": "shop", "state": state });
    assert_eq!(report["ended"], json!([over(&second, "halted"), over(&third, "failed")]), "{report:#}");
    assert_eq!(report["let_go"], json!([over(&fourth, "queued")]), "{report:#}");
    assert!(!world.path("other/secrets").exists() && !world.path("other/restore.new").exists());
    std::fs::rename(world.path("data"), world.path("old")).unwrap();
    std::fs::rename(world.path("other"), world.path("data")).unwrap();

    let daemon = world.start();
    let status = daemon.status();
    assert_eq!(status["maintenance"]["on"], json!(true), "{status:#}");
    assert!(status["maintenance"]["reason"].as_str().unwrap().contains("restored from a backup"));
    // What was over is as it was; what was under way is over, and says why; what waited is gone.
    assert_eq!(daemon.run(&first.id).now(), first.view);
    let ended = daemon.run(&second.id).wait().is("halted");
    assert_eq!(ended.code(), "restored", "{}", ended.view);
    assert!(ended.message().contains("look at its hosts"), "{}", ended.message());
    assert_eq!(daemon.run(&third.id).wait().is("failed").code(), "restored");
    assert_eq!(daemon.api.get(&format!("/v1/runs/{}", fourth.id)).status, 404);
    let live = &status["projects"][0]["environments"][0];
    assert_eq!((&live["release"]["revision"], live["lease"].is_null()), (&json!(one), true), "{live:#}");

    // And nobody touches a host until somebody says so.
    daemon.api.post("/v1/maintenance", &json!({ "on": false })).is(200);
    daemon.idle();
    let now: BTreeMap<&str, usize> = ["h1", "h2", "h3"].map(|id| (id, world.touched(id).len())).into();
    assert_eq!(now, touched);
    let again = daemon.deploy().is("succeeded");
    assert_eq!(again.view["release"]["message"], json!("four\n"));
    let after = daemon.api.get(&format!("/v1/runs/{}", again.id)).is(200).json();
    assert_eq!(after["state"], json!("succeeded"));
    // The numbers that keep old commands off hosts are above those of the other daemon.
    let held =
        daemon.api.put("/v1/projects/shop/environments/production/lease", &json!({ "for": "1m" })).is(200).json();
    assert!(held["epoch"].as_u64() > lease["epoch"].as_u64(), "{held} {lease}");
}

#[test]
fn a_restore_is_for_what_is_empty_and_a_broken_backup_changes_nothing() {
    let (world, daemon) = World::with(&Project::new("shop"));
    world.repo.push("one");
    let run = daemon.deploy().is("succeeded");
    let file = world.path("backup.tar.zst");
    // By the socket secrets may come along; a token gets none.
    let said = daemon.cli(&["backup", "--secrets", file.to_str().unwrap()]);
    assert!(said.code == 0 && said.stderr.contains("with secrets"), "{said:?}");
    let token = daemon.cli(&["token", "create", "--name", "x", "--scope", "admin"]).stdout;
    let tcp = daemon.tcp().bearer(token.trim());
    assert_eq!(tcp.get("/v1/backup?secrets=true").problem(), (403, "secrets_by_socket_only".to_owned()));
    assert_eq!(tcp.get("/v1/backup").status, 200);
    let read = daemon.cli(&["token", "create", "--name", "y"]).stdout;
    assert_eq!(daemon.tcp().bearer(read.trim()).get("/v1/backup").status, 403);

    let path = file.to_str().unwrap();
    let running = restore(&world, "data", &[path]);
    assert!(running.code == 1 && running.stderr.contains("is in use by pid"), "{}", running.stderr);
    daemon.kill();
    let full = restore(&world, "data", &[path]);
    assert!(full.code == 1 && full.stderr.contains("is not empty"), "{}", full.stderr);

    // Cut, altered, and no backup at all: what is there stays.
    let whole = std::fs::read(&file).unwrap();
    let before = std::fs::read(world.path("data/journal/control")).unwrap();
    let mut altered = whole.clone();
    altered[whole.len() / 2] ^= 1;
    for (bytes, why) in [
        (&whole[..whole.len() / 2], "damaged or cut"),
        (&altered[..], "nothing was changed"),
        (b"something", "no backup"),
    ] {
        std::fs::write(world.path("bad"), bytes).unwrap();
        let bad = restore(&world, "data", &["--force", world.path("bad").to_str().unwrap()]);
        assert!(bad.code == 1 && bad.stderr.contains(why), "{why}: {}", bad.stderr);
        assert_eq!(std::fs::read(world.path("data/journal/control")).unwrap(), before);
        assert!(!world.path("data/restore.new").exists());
    }

    // By force, and what was there is kept; secrets that are there stay, those that are not come.
    std::fs::remove_file(world.path("secrets/hook")).unwrap();
    let forced = restore(&world, "data", &["--force", "--secrets", path]);
    assert_eq!(forced.code, 0, "{}", forced.stderr);
    let kept = forced.report["kept"].as_str().unwrap();
    assert_eq!(std::fs::read(format!("{kept}/journal/control")).unwrap(), before);
    assert_eq!(
        (&forced.report["secrets"], &forced.report["secrets_kept"]),
        (&json!(["hook"]), &json!(["key"])),
        "{:#}",
        forced.report
    );
    let daemon = world.start();
    assert_eq!(daemon.run(&run.id).now(), run.view);
}

/// As the package leaves it, which starts the daemon at once.
#[test]
fn a_daemon_of_which_nothing_has_come_yet_gives_way_to_a_backup_without_force() {
    let (world, daemon) = World::with(&Project::new("shop"));
    world.repo.push("one");
    let run = daemon.deploy().is("succeeded");
    let file = world.path("backup.tar.zst");
    assert_eq!(daemon.cli(&["backup", file.to_str().unwrap()]).code, 0);
    daemon.kill();

    let new = World::new();
    new.start().kill();
    assert!(new.path("data/journal/control").exists());
    let restored = restore(&new, "data", &[file.to_str().unwrap()]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let kept = restored.report["kept"].as_str().unwrap();
    assert!(std::path::Path::new(kept).join("journal/control").exists(), "{kept}");
    let daemon = new.start();
    assert_eq!(daemon.api.get(&format!("/v1/runs/{}", run.id)).is(200).json()["state"], json!("succeeded"));
    daemon.kill();

    // Somebody has made a token, and nothing else.
    let used = World::new();
    let daemon = used.start();
    assert_eq!(daemon.cli(&["token", "create", "--name", "ci"]).code, 0);
    daemon.kill();
    let refused = restore(&used, "data", &[file.to_str().unwrap()]);
    assert!(refused.code == 1 && refused.stderr.contains("is not empty"), "{}", refused.stderr);
}

#[test]
fn every_line_of_an_export_is_json_and_the_counts_are_those_of_the_api() {
    let (world, daemon) = World::with(&Project::new("shop"));
    // More than a page of them.
    let mut last = String::new();
    for n in 0..60 {
        world.repo.push(&format!("commit {n}"));
        last = daemon.api.post("/v1/projects/shop/start", &json!({})).is(202).json()["id"].as_str().unwrap().to_owned();
    }
    daemon.run(&last).wait().is("succeeded");
    daemon.idle();
    let said = daemon.cli(&["export"]);
    assert_eq!(said.code, 0, "{said:?}");
    let lines: Vec<Value> = said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    lines.iter().for_each(|line| *counts.entry(line["kind"].as_str().unwrap().to_owned()).or_default() += 1);
    let end = lines.last().unwrap();
    assert_eq!(counts.remove("end"), Some(1));
    assert_eq!(end["counts"], json!(counts));

    let mut runs = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = daemon.api.get(&format!("/v1/runs?limit=20{cursor}")).is(200).json();
        runs.extend(page["items"].as_array().unwrap().iter().map(|run| run["id"].clone()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == *kind).collect::<Vec<_>>();
    assert!(runs.len() > 50, "{}", runs.len());
    assert_eq!(of("run").iter().map(|run| run["id"].clone()).collect::<Vec<_>>(), runs);
    assert_eq!((of("project").len(), of("environment").len(), of("host").len()), (1, 1, 3));
    let deployed = of("deployment").iter().filter(|deployment| deployment["state"] == "succeeded").count();
    let succeeded = of("run").iter().filter(|run| run["state"] == "succeeded").count();
    assert_eq!(deployed, succeeded);
    assert_eq!(of("environment")[0]["live"]["run"], json!(last));
    assert_eq!(of("environment")[0]["known_good"][0]["run"], json!(last));

    // Only what came after a run that is known.
    let middle = runs[5].as_str().unwrap();
    let later = daemon.cli(&["export", "shop", "--after", middle]);
    assert_eq!(later.stdout.lines().filter(|line| line.contains("\"kind\":\"run\"")).count(), 5);
    assert_eq!(daemon.cli(&["export", "nope"]).code, 8);
}

#[test]
fn what_the_doctor_sees_of_a_daemon_that_runs() {
    let (world, daemon) = World::with(&Project::new("shop"));
    world.repo.push("one");
    daemon.deploy().is("succeeded");
    let look = || {
        let done = output(Command::new(BINARY).args(["--json", "doctor", "--config"]).arg(&daemon.config));
        let report: Value = serde_json::from_str(&done.stdout).unwrap();
        (done.code, report)
    };
    let of = |report: &Value, check: &str, state: &str| {
        let all = report["checks"].as_array().unwrap();
        all.iter().filter(|one| one["check"] == *check && one["state"] == *state).cloned().collect::<Vec<Value>>()
    };
    let (code, report) = look();
    assert_eq!(code, 0, "{report:#}");
    assert!(
        of(&report, "lock", "ok")[0]["what"].as_str().unwrap().contains(&format!("pid {}", daemon.pid())),
        "{report:#}"
    );
    assert!(of(&report, "host", "ok")[0]["what"].as_str().unwrap().starts_with("3 of 3 hosts"), "{report:#}");

    // The key is taken off the hosts, a secret is opened to all, and maintenance is forgotten.
    std::fs::write(world.path("sshd/authorized_keys"), "").unwrap();
    world.secret("open", "long enough");
    std::fs::set_permissions(world.path("secrets/open"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    daemon.api.post("/v1/maintenance", &json!({ "on": true })).is(200);
    let (code, report) = look();
    assert_eq!(code, 1);
    assert_eq!(of(&report, "host", "fail").len(), 3, "{report:#}");
    assert!(of(&report, "host", "fail")[0]["todo"].as_str().unwrap().contains("authorized_keys"), "{report:#}");
    assert_eq!((of(&report, "secrets", "fail").len(), of(&report, "maintenance", "warn").len()), (1, 1), "{report:#}");

    // A daemon that hangs is told from one that is not there.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(daemon.pid()).unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    eventually("it is gone", || {
        let (_, report) = look();
        (!of(&report, "daemon", "warn").is_empty()).then_some(())
    });
}

#[test]
fn a_host_in_flight_when_the_backup_was_made_may_have_been_switched() {
    let deploy =
        r#"host:sh { [[ echo x >>"$T/begun"; until [ -e "$T/go" ]; do sleep 0.05; done ]], env = { T = "@TESTED@" } }"#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).deploy(deploy));
    std::fs::write(world.path("tested/go"), "").unwrap();
    let one = world.repo.push("one");
    daemon.deploy().is("succeeded");
    for file in ["tested/go", "tested/begun"] {
        std::fs::remove_file(world.path(file)).unwrap();
    }
    world.repo.push("two");
    let run = daemon.press();
    eventually("the first host is deployed to", || world.path("tested/begun").exists().then_some(()));
    let file = world.path("backup.tar.zst");
    assert_eq!(daemon.cli(&["backup", file.to_str().unwrap()]).code, 0);
    std::fs::write(world.path("tested/go"), "").unwrap();
    run.wait().is("succeeded");
    daemon.kill();
    let restored = restore(&world, "data", &["--force", file.to_str().unwrap()]);
    assert_eq!(restored.report["ended"][0]["state"], json!("halted"), "{:#} {}", restored.report, restored.stderr);
    // One that was cut off is no beginning for a daemon.
    std::fs::write(world.path("data/RESTORING"), "").unwrap();
    let refused = output(&mut Daemon::command(&Daemon::configure(&world)));
    assert!(refused.code == 1 && refused.stderr.contains("was cut off"), "{refused:?}");
    std::fs::remove_file(world.path("data/RESTORING")).unwrap();
    let daemon = world.start();
    assert_eq!(daemon.run(&run.id).wait().is("halted").code(), "restored");
    daemon.api.post("/v1/maintenance", &json!({ "on": false })).is(200);
    // It was left as a mixture: to go back from there is to go to what was live, and nothing is done by itself until then.
    let back = daemon.cli(&["rollback", "shop", "production", "--wait"]);
    assert_eq!(back.code, 0, "{back:?}");
    assert_eq!(daemon.status()["projects"][0]["environments"][0]["release"]["revision"], json!(one));
}
