//! A disk that is full and one that fails: what runs goes on, nothing unacknowledged is reported done, and the daemon says what is wrong.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde_json::json;

use crate::fixture::{Daemon, Project, Run, World, eventually};

/// A file system of 64 MiB as a world's data directory; unmounted at the end.
pub struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    pub fn of(world: &World) -> SmallDisk {
        let dir = world.path("data");
        std::fs::create_dir(&dir).unwrap();
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=64m,mode=711", "phased-it"]).arg(&dir).status().unwrap();
        assert!(mounted.success(), "mounting needs root");
        SmallDisk { dir }
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(self.dir.join("filler")).unwrap();
        for size in [1 << 20, 4096, 1] {
            let bytes = vec![0; size];
            while file.write(&bytes).is_ok_and(|n| n > 0) {}
        }
    }

    /// Fills it but for a little, in which records have room and an index has none.
    fn fill_but_little(&self) {
        self.fill();
        let filler = std::fs::OpenOptions::new().write(true).open(self.dir.join("filler")).unwrap();
        filler.set_len(filler.metadata().unwrap().len() - 256 * 1024).unwrap();
    }

    pub fn empty(&self) {
        std::fs::remove_file(self.dir.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}

/// A project whose host waits for a file before it deploys, and prints on either side of the wait.
fn waiting(world: &World) -> Project {
    let gate = world.path("tested/gate");
    let wait = format!(
        "host:sh [[ echo begun; while ! test -e {}; do sleep 0.05; done; seq 1 200000; echo ended ]]",
        gate.display()
    );
    Project::new("shop").hosts(&["h1"]).webhook().deploy_after(&wait)
}

fn code(daemon: &Daemon, path: &str) -> (u16, String) {
    daemon.api.post(path, &json!({})).problem()
}

#[test]
fn on_a_full_disk_what_runs_goes_on_and_what_is_new_waits_for_room() {
    let world = World::new();
    let disk = SmallDisk::of(&world);
    world.project(&waiting(&world));
    let daemon = world.start();
    let commit = world.repo.push("x");
    let run = daemon.press();
    run.prints("begun");
    disk.fill();
    // The next record finds no room, and then the reserve's. A token that is not made on a full disk was not promised either.
    eventually("the daemon says that its disk is full", || {
        let _made_or_not = daemon.api.post("/v1/tokens", &json!({ "name": "x", "scopes": ["read"] }));
        (daemon.api.post("/v1/projects/shop/start", &json!({})).status == 507).then_some(())
    });
    assert_eq!(code(&daemon, "/v1/projects/shop/start").1, "disk_full");
    let hook = crate::webhook::push(&daemon, &world.repo.push("y"));
    assert_eq!((hook.status, hook.problem().1), (503, "disk_full".to_owned()));
    for path in ["/v1/status", "/v1/runs", &format!("/v1/runs/{}", run.id), &format!("/v1/runs/{}/log", run.id)] {
        daemon.api.get(path).is(200);
    }
    assert!(daemon.status()["trouble"].to_string().contains("Make room there"), "{}", daemon.status());
    let ready = daemon.api.get("/readyz").is(503);
    assert!(ready.text().contains("disk") && ready.text().contains("Make room there"), "{}", ready.text());

    // The command ends, more output than there is room for waits, nothing is lost.
    disk.fill();
    std::fs::write(world.path("tested/gate"), "").unwrap();
    disk.empty();
    let ended = run.wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    let log = &ended.logs["?step=production"];
    let numbers: Vec<&str> = log.lines().filter_map(|line| line.split_whitespace().last()).collect();
    assert!(log.contains("ended"));
    assert_eq!(numbers.iter().filter(|n| n.parse::<u32>().is_ok()).count(), 200_000);

    eventually("requests are taken again", || {
        (daemon.api.post("/v1/projects/shop/start", &json!({})).status < 300).then_some(())
    });
    daemon.api.get("/readyz").is(200);
    eventually("nothing is wrong any more", || (daemon.status()["trouble"] == json!([])).then_some(()));
    assert!(world.path("data/reserve").exists());
    daemon.kill();
    world.start().run(&run.id).wait().is("succeeded");
}

#[test]
fn what_people_see_is_made_anew_when_the_index_found_no_room() {
    let world = World::new();
    world.project(&waiting(&world));
    let gate = world.path("tested/gate");
    let daemon = world.start();
    world.repo.push("x");
    let first = daemon.press();
    first.prints("begun");
    std::fs::write(&gate, "").unwrap();
    first.wait().is("succeeded");
    std::fs::remove_file(&gate).unwrap();
    world.repo.push("y");
    let run = daemon.press();
    run.prints("begun");

    // The journals have room, the index has none: it writes what it keeps in memory every 10 s, or when the next write does not fit.
    let tampering = Tampering::with(&world, &daemon, "data/state/db", "pwrite64:error=ENOSPC");
    std::fs::write(&gate, "").unwrap();
    eventually("the index finds no room", || daemon.said().contains("No space left on device").then_some(()));
    // Whoever of sled found it first, something is to be shown now that has no room.
    let commit = world.repo.push("z");
    let later = daemon.press();
    eventually("the index is in memory", || {
        daemon.said().contains("it is kept in memory until there is some").then_some(())
    });
    first.wait().is("succeeded");
    // What happens is told, to its end.
    let ended = run.wait().is("succeeded");
    drop(tampering);
    assert_eq!(ended.hosts(), ["h1:healthy"]);
    later.wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    daemon.idle();
    eventually("the index is anew", || daemon.said().contains("the state index was made anew").then_some(()));
    eventually("nothing is wrong any more", || (daemon.status()["trouble"] == json!([])).then_some(()));
    let seen = |daemon: &Daemon| {
        let first = daemon.run(&first.id).wait().is("succeeded");
        assert_eq!(first.hosts(), ["h1:healthy"]);
        daemon.runs()
    };
    let all = seen(&daemon);
    assert!(all.len() >= 3 && all.iter().all(|run| run["state"] != "deploying"), "{all:?}");
    daemon.kill();
    let daemon = world.start();
    assert_eq!(seen(&daemon), all);
    let kept = std::fs::read_dir(world.path("data")).unwrap();
    assert!(!kept.into_iter().any(|entry| entry.unwrap().file_name().to_string_lossy().contains(".bad-")));
}

/// A daemon that is gone, on a disk of its own, and the run that it has seen to its end.
fn one_run() -> (World, SmallDisk, Run) {
    let world = World::new();
    let disk = SmallDisk::of(&world);
    world.project(&Project::new("shop").hosts(&["h1"]));
    let daemon = world.start();
    world.repo.push("x");
    let run = Run::clone(&daemon.deploy().is("succeeded"));
    daemon.kill();
    (world, disk, run)
}

#[test]
fn a_daemon_starts_on_a_full_disk_and_answers() {
    let (world, disk, run) = one_run();
    disk.fill();
    let daemon = world.start();
    daemon.api.get(&format!("/v1/runs/{}", run.id)).is(200);
    assert_eq!(code(&daemon, "/v1/projects/shop/start"), (507, "disk_full".to_owned()));
    disk.empty();
    eventually("requests are taken again", || {
        (daemon.api.post("/v1/projects/shop/start", &json!({})).status < 300).then_some(())
    });
}

#[test]
fn a_daemon_starts_without_room_for_its_index_and_has_one_again_once_there_is_some() {
    let (world, disk, run) = one_run();
    // The reserve went before.
    std::fs::remove_file(world.path("data/reserve")).unwrap();
    disk.fill_but_little();
    let daemon = world.start();
    assert!(daemon.said().contains("it is kept in memory until there is some"), "{}", daemon.said());
    assert_eq!(daemon.run(&run.id).wait().is("succeeded").hosts(), ["h1:healthy"]);
    assert_eq!(code(&daemon, "/v1/projects/shop/start"), (507, "disk_full".to_owned()));
    disk.empty();
    eventually("the index is anew", || daemon.said().contains("the state index was made anew").then_some(()));
    daemon.kill();
    let daemon = world.start();
    assert_eq!(daemon.run(&run.id).wait().is("succeeded").hosts(), ["h1:healthy"]);
    let kept = std::fs::read_dir(world.path("data")).unwrap();
    assert!(!kept.into_iter().any(|entry| entry.unwrap().file_name().to_string_lossy().contains(".bad-")));
}

/// `strace` that makes calls of the daemon on one file fail; it lets go when it is dropped.
struct Tampering(Child);

impl Tampering {
    fn with(world: &World, daemon: &Daemon, file: &str, inject: &str) -> Tampering {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={}", inject.split(':').next().unwrap())]);
        strace.args(["-e", &format!("inject={inject}"), "-P"]).arg(world.path(file));
        strace.args(["-p", &daemon.pid().to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
        let tampering = Tampering(strace.spawn().expect("strace is needed: install strace"));
        let status = format!("/proc/{}/status", daemon.pid());
        eventually("strace is attached", || {
            let status = std::fs::read_to_string(&status).unwrap();
            status.lines().any(|l| l.starts_with("TracerPid:") && !l.ends_with("\t0")).then_some(())
        });
        tampering
    }
}

impl Drop for Tampering {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn after_a_failed_write_or_sync_nothing_is_changed_until_a_restart() {
    for inject in ["fdatasync:error=EIO", "write:error=EIO"] {
        let world = World::new();
        world.project(&waiting(&world));
        let daemon = world.start();
        let commit = world.repo.push("x");
        let run = daemon.press();
        run.prints("begun");
        let tampering = Tampering::with(&world, &daemon, "data/journal/control", inject);
        let made = daemon.api.post("/v1/tokens", &json!({ "name": "never", "scopes": ["read"] }));
        assert_eq!(made.problem(), (503, "degraded".to_owned()), "{inject}");
        // The disk is well again, what it said is not forgotten.
        drop(tampering);
        for path in ["/v1/projects/shop/start", "/v1/projects/shop/stop", &format!("/v1/runs/{}/stop", run.id)] {
            assert_eq!(code(&daemon, path), (503, "degraded".to_owned()), "{inject} {path}");
        }
        for path in ["/v1/status", "/v1/runs", &format!("/v1/runs/{}", run.id)] {
            daemon.api.get(path).is(200);
        }
        eventually("the status says what to do", || {
            daemon.status()["trouble"].to_string().contains("restart phased").then_some(())
        });
        assert!(daemon.api.get("/readyz").is(503).text().contains("restart phased"));
        // What runs on a host does not notice.
        std::fs::write(world.path("tested/gate"), "").unwrap();
        eventually("the host is deployed to", || world.hosts_have(&["h1"], &commit).then_some(()));
        daemon.kill();
        let daemon = world.start();
        daemon.api.get("/readyz").is(200);
        let tokens = daemon.api.get("/v1/tokens").is(200).text();
        assert!(inject.starts_with("fdatasync") || !tokens.contains("never"), "{tokens}");
        daemon.run(&run.id).wait();
        daemon.idle();
        daemon.press_with(&json!({ "redeploy": true }));
    }
}
