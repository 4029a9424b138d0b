//! A failure in each phase of a rollout, one by one: its exact end, what each host has then, and the alert; and the same end when the daemon
//! is killed in the middle of that very phase.

use serde_json::json;

use super::{all_have, hosts, nth, states};
use crate::fixture::{Daemon, Ended, Project, Run, Sink, World, eventually};

/// Every function of the project comes by here: it writes down that it ran, waits while it is to be held, and fails where it is told to.
/// A place is `deploy-h2`; what is in `hold-deploy-h2` and `fail-deploy-h2` are the commits that they are for.
const AT: &str = r#"
local function at(host)
  host:sh { [[
    place="$PHASED_PHASE-$PHASED_HOST_ID"
    echo "$place $PHASED_REVISION" >>"$TESTED/trace"
    if [ "$(cat "$ROOT/hold-$place" 2>/dev/null)" = "$PHASED_REVISION" ]; then
      : >"$TESTED/held-$place"
      while [ -e "$ROOT/hold-$place" ]; do sleep 0.05; done
    fi
    if grep -qx "$PHASED_REVISION" "$ROOT/fail-$place" 2>/dev/null; then echo "told to fail" >&2; exit 3; fi
  ]], env = { ROOT = "@ROOT@", TESTED = "@TESTED@" } }
end
local function switch(host)
  host:sh { 'echo "$PHASED_REVISION" >"$ROOT/$PHASED_HOST_ID/revision"', env = { ROOT = "@ROOT@" } }
  at(host)
end
local gauge = phased.probe {
  name = "gauge", options = {},
  measure = function() return tonumber(phased.read "@ROOT@/gauge") end,
}
"#;

/// Four hosts: a canary, then one, then two, one at a time.
fn project(sink: &Sink, bake: &str) -> Project {
    let phases = format!(r#"canary = 1, waves = {{ "50%", "100%" }}, max_parallel = 1, bake_time = "{bake}""#);
    let project = super::project(4, &phases)
        .head(AT)
        .deploy("switch(host)")
        .verify("at(deployment.hosts[1])")
        .keys("prepare = at, before = function(deployment) at(deployment.hosts[1]) end")
        .tells(sink);
    let alarm = r#"{ "error rate", cause = gauge {}, alert = require "alerts.log" {}, failure = { above = 0.01 }, interval = "200ms",
      action = "rollback" }"#;
    if bake == "0s" { project } else { project.alarms(alarm) }
}

/// Where it is told to fail, and how that ends.
struct Case {
    /// The places that fail: for the new commit, or on the way back for the one before.
    fails: &'static [(&'static str, Which)],
    /// Where the daemon is killed, in the variant in which it is.
    killed_at: (&'static str, Which),
    state: &'static str,
    code: &'static str,
    hosts: [&'static str; 4],
    /// Which commit each host has in the end.
    have: [Which; 4],
    /// The release is bad from now on.
    bad: bool,
    /// So often `before` ran.
    migrated: usize,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Which {
    Old,
    New,
}
use Which::{New, Old};

const BACK: Case = Case {
    fails: &[],
    killed_at: ("", New),
    state: "rolled_back",
    code: "max_failures",
    hosts: ["h1:rolled_back", "h2:rolled_back", "h3:skipped", "h4:skipped"],
    have: [Old, Old, Old, Old],
    bad: false,
    migrated: 1,
};

/// The world in which it happens.
struct Scene {
    world: World,
    sink: Sink,
    old: String,
    new: String,
}

impl Scene {
    fn of(bake: &str) -> (Scene, Daemon) {
        let sink = Sink::start();
        let world = World::new();
        world.project(&project(&sink, bake));
        std::fs::write(world.path("hosts/gauge"), "0").unwrap();
        let (daemon, old) = super::first(&world, 4);
        let new = world.repo.push("new");
        (Scene { world, sink, old, new }, daemon)
    }

    fn commit(&self, which: Which) -> &str {
        if which == Old { &self.old } else { &self.new }
    }

    /// Tells a place to do something for a commit.
    fn tell(&self, what: &str, (place, which): (&str, Which)) {
        let file = self.world.path("hosts").join(format!("{what}-{place}"));
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(&file, format!("{before}{}\n", self.commit(which))).unwrap();
    }

    /// The daemon is killed while the run is held there, and started again; then the place is let go.
    fn killed_at(&self, daemon: Daemon, run: &Run, (place, _): (&str, Which)) -> Daemon {
        let held = self.world.path("tested").join(format!("held-{place}"));
        eventually(&format!("{place} is held in run {}", run.id), || held.exists().then_some(()));
        daemon.kill();
        let daemon = self.world.start();
        std::fs::remove_file(self.world.path("hosts").join(format!("hold-{place}"))).unwrap();
        daemon
    }

    /// How often a place was come by with a commit.
    fn came_by(&self, place: &str, commit: &str) -> usize {
        let trace = std::fs::read_to_string(self.world.path("tested/trace")).unwrap_or_default();
        trace.lines().filter(|line| *line == format!("{place} {commit}")).count()
    }

    /// The run has ended as it should.
    #[track_caller]
    fn ended(&self, daemon: &Daemon, run: &Ended, case: &Case, how: &str) {
        let view = &run.view;
        assert_eq!((run.state(), run.code()), (case.state, case.code), "{how}: {view}");
        let mut seen = states(nth(view, 0));
        if case.fails.iter().any(|(place, _)| place.starts_with("prepare")) {
            // Whoever is being prepared at that moment is cut off: it was not switched, and what else became of it nobody knows.
            seen.iter_mut().for_each(|host| *host = host.replace("unknown", "skipped"));
        }
        assert_eq!(seen, case.hosts, "{how}: {view}");
        for host in nth(view, 0)["hosts"].as_array().unwrap().iter().filter(|host| host["state"] == "failed") {
            assert!(host["cause"]["message"].is_string(), "{how}: it failed without a cause: {host}");
        }
        let have: Vec<_> = hosts(4).iter().map(|host| self.world.revision(host)).collect();
        let wanted: Vec<_> = case.have.iter().map(|which| Some(self.commit(*which).to_owned())).collect();
        assert_eq!(have, wanted, "{how}: {view}");
        assert_eq!(self.sink.message_of(&run.id)["event"], case.state, "{how}");
        assert_eq!(self.sink.count_of(&run.id), 1, "{how}: people are told once");
        assert_eq!(self.came_by("before-h1", &self.new), case.migrated, "{how}: migrations run once");
        let trace = std::fs::read_to_string(self.world.path("tested/trace")).unwrap();
        for line in trace.lines().filter(|line| line.ends_with(&self.new)) {
            assert_eq!(
                trace.lines().filter(|other| *other == line).count(),
                1,
                "{how}: {line} more than once:\n{trace}"
            );
        }
        daemon.idle();
        let again = daemon.api.post("/v1/projects/shop/start", &json!({ "dry_run": true })).is(200).json();
        assert_eq!(again["cause"]["code"] == "bad_release", case.bad, "{how}: {}", again["cause"]);
    }
}

/// Plays a case to its end, and once more with the daemon killed on the way.
fn plays(case: &Case) {
    for killed in [false, true] {
        let (scene, mut daemon) = Scene::of("0s");
        case.fails.iter().for_each(|place| scene.tell("fail", *place));
        if killed {
            scene.tell("hold", case.killed_at);
        }
        let run = daemon.press();
        if killed {
            daemon = scene.killed_at(daemon, &run, case.killed_at);
        }
        let run = daemon.run(&run.id).wait();
        scene.ended(&daemon, &run, case, if killed { "killed" } else { "straight" });
    }
}

#[test]
fn in_prepare_nothing_is_switched() {
    plays(&Case {
        fails: &[("prepare-h2", New)],
        killed_at: ("prepare-h2", New),
        state: "failed",
        hosts: ["h1:skipped", "h2:failed", "h3:skipped", "h4:skipped"],
        migrated: 0,
        ..BACK
    });
}

#[test]
fn in_before_nothing_is_switched() {
    plays(&Case {
        fails: &[("before-h1", New)],
        killed_at: ("before-h1", New),
        state: "failed",
        code: "exit",
        hosts: ["h1:skipped", "h2:skipped", "h3:skipped", "h4:skipped"],
        ..BACK
    });
}

#[test]
fn in_the_canary_only_that_goes_back() {
    plays(&Case {
        fails: &[("deploy-h1", New)],
        killed_at: ("deploy-h1", New),
        hosts: ["h1:rolled_back", "h2:skipped", "h3:skipped", "h4:skipped"],
        ..BACK
    });
}

#[test]
fn in_the_second_wave_both_go_back() {
    plays(&Case { fails: &[("deploy-h2", New)], killed_at: ("deploy-h2", New), ..BACK });
}

#[test]
fn in_verify_after_the_canary_the_canary_goes_back_and_the_release_is_bad() {
    plays(&Case {
        fails: &[("canary-h1", New)],
        killed_at: ("canary-h1", New),
        code: "verify_failed",
        hosts: ["h1:rolled_back", "h2:skipped", "h3:skipped", "h4:skipped"],
        bad: true,
        ..BACK
    });
}

#[test]
fn in_verify_at_the_end_all_go_back_and_the_release_is_bad() {
    plays(&Case {
        fails: &[("final-h1", New)],
        killed_at: ("final-h1", New),
        code: "verify_failed",
        hosts: ["h1:rolled_back", "h2:rolled_back", "h3:rolled_back", "h4:rolled_back"],
        bad: true,
        ..BACK
    });
}

#[test]
fn killed_on_the_way_back_it_is_gone_to_its_end() {
    plays(&Case { fails: &[("deploy-h2", New)], killed_at: ("deploy-h2", Old), ..BACK });
}

/// The one that failed goes back first, fails again, and everything halts: the canary keeps what it has, and was not brought back either.
#[test]
fn in_the_rollback_itself_all_halts() {
    plays(&Case {
        fails: &[("deploy-h2", New), ("deploy-h2", Old)],
        killed_at: ("deploy-h2", Old),
        state: "rollback_failed",
        hosts: ["h1:failed", "h2:failed", "h3:skipped", "h4:skipped"],
        have: [New, Old, Old, Old],
        ..BACK
    });
}

/// The alarm fires while the canary is watched.
#[test]
fn in_the_bake_what_is_watched_goes_back_and_the_release_is_bad() {
    for killed in [false, true] {
        let (scene, mut daemon) = Scene::of("3s");
        let run = daemon.press();
        super::baking(&run, 0);
        if killed {
            daemon.kill();
            daemon = scene.world.start();
            super::baking(&daemon.run(&run.id), 0);
        }
        std::fs::write(scene.world.path("hosts/gauge"), "9").unwrap();
        let run = daemon.run(&run.id).wait();
        let hosts = ["h1:rolled_back", "h2:skipped", "h3:skipped", "h4:skipped"];
        // It still fires, so that nothing new would begin; what is asked here is whether the release is bad.
        scene.ended(
            &daemon,
            &run,
            &Case { code: "alarm", hosts, bad: true, ..BACK },
            if killed { "killed" } else { "straight" },
        );
    }
}

#[test]
fn migrations_run_once_whatever_becomes_of_the_release() {
    let (scene, daemon) = Scene::of("0s");
    let at = |verb: &str| format!("/v1/projects/shop/environments/production/{verb}");
    scene.tell("hold", ("before-h1", New));
    let run = daemon.press();
    let daemon = scene.killed_at(daemon, &run, ("before-h1", New));
    daemon.run(&run.id).wait().is("succeeded");
    all_have(&scene.world, 4, &scene.new);
    daemon.idle();
    // Back by hand, forward by hand, and a host that is brought up to date: none of them migrates anything.
    for (verb, body) in [("rollback", json!({})), ("rollback", json!({ "to": scene.new })), ("converge", json!({}))] {
        let answer = daemon.api.post(&at(verb), &body).is(202).json();
        daemon.run(answer["id"].as_str().unwrap()).wait().is("succeeded");
        daemon.idle();
    }
    assert_eq!(scene.came_by("before-h1", &scene.new), 1);
    assert_eq!(scene.came_by("before-h1", &scene.old), 1);
    // A deployment that is asked for anew is another one.
    daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded");
    assert_eq!(scene.came_by("before-h1", &scene.new), 2);
}
