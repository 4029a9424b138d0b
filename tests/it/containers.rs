//! Health of a container that a real podman runs, and starts again whenever it ends.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::json;

use crate::fixture::{Output, Project, World, output};

/// A podman whose containers and files are the test's own; they go with it.
struct Podman {
    /// Where the program lies that hosts find first.
    tools: PathBuf,
}

impl Podman {
    fn new(dir: &Path) -> Podman {
        let there = Command::new("podman").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(there.is_ok_and(|status| status.success()), "podman is missing: apt-get install podman");
        let tools = dir.join("tools");
        std::fs::create_dir_all(dir.join("rootfs/bin")).unwrap();
        std::fs::create_dir(&tools).unwrap();
        std::fs::copy("/bin/busybox", dir.join("rootfs/bin/busybox")).unwrap();
        for name in ["sh", "sleep"] {
            std::os::unix::fs::symlink("busybox", dir.join("rootfs/bin").join(name)).unwrap();
        }
        // Where this machine is a container itself its control groups are of both versions, with which crun does nothing: it sees one.
        let d = dir.display();
        let text = format!(
            "#!/bin/sh\nexec unshare -m sh -c 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"' sh /usr/bin/podman \
             --root {d}/root --runroot {d}/run --tmpdir {d}/tmp --storage-driver vfs --cgroup-manager cgroupfs --events-backend none \"$@\"\n"
        );
        let program = tools.join("podman");
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Podman { tools }
    }

    /// A `PATH` by which it is found.
    fn path(&self) -> String {
        format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.tools.display())
    }

    fn run(&self, args: &[&str]) -> Output {
        output(Command::new(self.tools.join("podman")).args(args))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.run(&["rm", "--force", "--all", "--time", "0"]);
    }
}

#[test]
fn a_container_that_is_started_again_and_again_is_not_healthy() {
    let world = World::new();
    let podman = Podman::new(&world.path("podman"));
    let root = world.root_login(&format!("SetEnv PATH={}", podman.path()));
    let host = world.host_table_with("h1", &format!("{}, path = \"{}\"", root.keys, podman.path()));
    let runs = |command: &str| {
        let deploy = format!(
            r#"host:sh {{ [[
              podman rm --force --ignore --time 0 web
              podman run --detach --name web --cgroups disabled --network none --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 \
                --restart always --rootfs "$ROOTFS" /bin/sh -c "$RUNS"
            ]], env = {{ ROOTFS = "{}", RUNS = "{command}" }} }}"#,
            world.path("podman/rootfs").display()
        );
        let health = r#"container = "web", min_healthy_time = "4s", interval = "200ms", healthy_deadline = "30s", timeout = "5s""#;
        world.project(&Project::new("shop").hosts(&[&host]).deploy(&deploy).health(health));
    };
    runs("sleep 1000");
    let daemon = world.start();
    world.repo.push("stays");
    assert_eq!(daemon.deploy().is("succeeded").hosts(), ["h1:healthy"]);
    daemon.idle();

    // It runs at nearly every look, and still it never works.
    runs("sleep 1; exit 3");
    daemon.api.post("/v1/reload", &json!({})).is(200);
    world.repo.push("ends");
    let run = daemon.deploy().is("halted");
    assert_eq!(run.host("h1")["cause"]["code"], "unhealthy", "{}", run.view);
    assert!(run.message().contains("it ended and was restarted"), "{}", run.message());
    let restarts = podman.run(&["inspect", "--type", "container", "--format", "{{.RestartCount}}", "web"]);
    assert!(restarts.stdout.trim().parse::<u32>().unwrap() > 0, "{restarts:?}");
}
