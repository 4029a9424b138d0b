//! Where a deployment has left its hosts with different releases for people to look at, nothing is brought anywhere by itself until the next one.

use serde_json::json;

use super::{PHASES, all_have, first, project, spoil};
use crate::fixture::{Daemon, Project, Run, World, eventually};

/// Hosts of `shop`, each held in its deploy while the test wants that.
fn shop(n: usize, phases: &str) -> Project {
    project(n, phases).deploy_after(r#"host:sh 'while [ -e "@TESTED@/hold" ]; do sleep 0.05; done'"#)
}

/// Another project with a branch of its own: convergence looks at it after `shop`.
fn zoo(hosts: &[&str]) -> Project {
    Project::new("zoo").branch("zoo").hosts(hosts)
}

struct Scene {
    world: World,
    daemon: Daemon,
    phases: String,
    /// What `shop` has on both of its hosts.
    good: String,
    /// What `zoo` has.
    others: String,
}

impl Scene {
    fn of(phases: &str) -> Scene {
        let world = World::new();
        std::fs::write(world.path("limits.toml"), "converge = \"300ms\"\n").unwrap();
        world.project(&shop(2, phases));
        world.project(&zoo(&["z1"]));
        let (daemon, good) = first(&world, 2);
        let others = world.repo.push_as("zoo");
        let started = daemon.api.post("/v1/projects/zoo/start", &json!({})).is(202).json();
        daemon.run(started["id"].as_str().unwrap()).wait().is("succeeded");
        Scene { world, daemon, phases: phases.to_owned(), good, others }
    }

    fn reload(&self) {
        self.daemon.api.post("/v1/reload", &json!({})).is(200);
    }

    fn converged(&self) -> bool {
        self.daemon.runs().iter().any(|run| run["trigger"] == "converge")
    }

    /// The run has left a mixture: a host that comes is left alone, until a deployment has gone well.
    fn rests_after(&self, run: &Run, end: &str) {
        let Scene { world, daemon, phases, .. } = self;
        let run = run.wait().is(end);
        daemon.idle();
        // A host comes to either. Both are looked at in the same pass, `shop` first: once the other one's host has what is live there,
        // this one's was seen and left alone.
        world.project(&shop(3, phases));
        world.project(&zoo(&["z1", "z2"]));
        self.reload();
        eventually("the other project's host has what is live there", || {
            world.hosts_have(&["z2"], &self.others).then_some(())
        });
        assert!(!self.converged(), "{}: {:?}", run.view, daemon.runs());
        assert_eq!(world.revision("h3"), None);

        let next = world.repo.push("the next");
        daemon.press().wait().is("succeeded");
        all_have(world, 3, &next);
        assert!(!self.converged());
        world.project(&shop(4, phases));
        self.reload();
        eventually("a host that comes then gets it by itself", || world.hosts_have(&["h4"], &next).then_some(()));
        assert!(self.converged());
    }
}

#[test]
fn convergence_rests_after_halted() {
    let scene = Scene::of(&format!("{PHASES}, on_failure = \"halt\""));
    let bad = scene.world.repo.push("unhealthy");
    spoil(&scene.world, &bad, "");
    scene.rests_after(&scene.daemon.press(), "halted");
}

#[test]
fn convergence_rests_after_stopped() {
    let scene = Scene::of(PHASES);
    let hold = scene.world.path("tested/hold");
    std::fs::write(&hold, "").unwrap();
    let commit = scene.world.repo.push("only on the first");
    let run = scene.daemon.press();
    run.until("the first host is under way", |run| run["deployments"][0]["hosts"][0]["state"] == "running");
    // A newer one only waits: it ends before the other does, and says nothing of what that leaves.
    scene.world.repo.push("it waits");
    let waits = scene.daemon.press();
    waits.until("it waits for the other", |run| run["waiting"]["code"] == "lease");
    scene.daemon.api.post("/v1/projects/shop/stop", &json!({})).is(202);
    waits.wait().is("stopped");
    std::fs::remove_file(hold).unwrap();
    run.wait().is("stopped");
    assert!(scene.world.hosts_have(&["h1"], &commit) && scene.world.hosts_have(&["h2"], &scene.good));
    scene.rests_after(&run, "stopped");
}

#[test]
fn convergence_rests_after_a_rollback_that_failed() {
    let scene = Scene::of(PHASES);
    let bad = scene.world.repo.push("unhealthy");
    spoil(&scene.world, &bad, "");
    spoil(&scene.world, &scene.good, "h1");
    scene.rests_after(&scene.daemon.press(), "rollback_failed");
}
