//! `phased maintenance`: what is under way is brought to its end, then every run is parked; nothing is lost and nothing runs twice.

use serde_json::{Value, json};

use crate::fixture::{Daemon, Project, Run, World, eventually};

/// On `h1` and in the second push's stage something waits to be let go, and writes down that it ran.
fn waiting() -> Project {
    let wait = |name: &str, file: &str| {
        format!(
            r#"[[
              echo "begun {name}"; echo "begun {name}" >>"{file}"
              until [ -e "$T/go-{name}" ]; do sleep 0.05; done
              echo "ended {name}"; echo "ended {name}" >>"{file}"
            ]], env = {{ T = "@TESTED@", ROOT = "@ROOT@" }}"#
        )
    };
    let stage = format!(
        r#"run = function(run) run:sh {{ {} }} end,
           cleanup = function(run) run:sh {{ 'echo cleaned >>"$T/trace"', env = {{ T = "@TESTED@" }} }} end"#,
        wait("stage", "$T/trace")
    );
    let deploy = format!(r#"host:sh {{ {} }}"#, wait("$PHASED_HOST_ID", "$ROOT/$PHASED_HOST_ID/trace"));
    let health = r#"command = "true", min_healthy_time = "100ms", healthy_deadline = "30s""#;
    Project::new("shop").queue_all().stage_of("unit", &stage).deploy_after(&deploy).health(health)
}

/// Lets what waits under these names go.
fn go(world: &World, names: &[&str]) {
    for name in names {
        std::fs::write(world.path(&format!("tested/go-{name}")), "").unwrap();
    }
}

fn trace(world: &World, place: &str) -> String {
    std::fs::read_to_string(world.path(place).join("trace")).unwrap_or_default()
}

/// What the daemon says of `run` while maintenance is on.
fn doing(daemon: &Daemon, run: &Run) -> Vec<String> {
    let view = daemon.api.get("/v1/maintenance").is(200).json();
    let runs = view["runs"].as_array().unwrap();
    let found = runs.iter().find(|r| r["run"] == *run.id).unwrap_or_else(|| panic!("{view}"));
    serde_json::from_value(found["doing"].clone()).unwrap()
}

fn on(daemon: &Daemon) -> Value {
    daemon.api.post("/v1/maintenance", &json!({ "on": true, "reason": "upgrade" })).is(200).json()
}

fn off(daemon: &Daemon) {
    let now = daemon.api.post("/v1/maintenance", &json!({ "on": false })).is(200).json();
    assert_eq!(now, json!({ "on": false, "by": null, "reason": null, "since": null, "runs": [] }));
}

#[test]
fn a_stage_and_a_host_in_flight_are_finished_and_the_rest_waits_until_it_is_over() {
    let (world, daemon) = World::with(&waiting());
    let commit = world.repo.push("one");
    let first = daemon.press();
    first.prints("begun stage");
    let shown = daemon.cli(&["maintenance", "on", "--reason", "upgrade to 0.2"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.stdout.contains("upgrade to 0.2\n  works   shop run"), "{}", shown.stdout);
    assert_eq!(doing(&daemon, &first), ["runs stage unit"]);
    let waits = daemon.cli(&["maintenance", "on", "--wait", "--timeout", "50ms"]);
    assert_eq!(waits.code, 6, "{waits:?}");
    assert!(waits.stderr.contains(&format!("waiting for shop run {} runs stage unit", first.id)), "{}", waits.stderr);

    // The stage goes on to its end and is cleaned up after; then the run is parked before its first host.
    go(&world, &["stage"]);
    let waits = daemon.cli(&["maintenance", "on", "--wait"]);
    assert_eq!(waits.code, 0, "{waits:?}");
    assert!(
        waits.stdout.contains("nothing is at work, 1 run is parked; `phased maintenance off` goes on"),
        "{waits:?}"
    );
    assert_eq!(trace(&world, "tested"), "begun stage\nended stage\ncleaned\n");
    let by = |reason: &str| json!({ "code": "maintenance", "holder": "uid 0", "until": null, "reason": reason });
    let upgrade = by("upgrade to 0.2");
    assert_eq!(first.now()["waiting"], upgrade);
    // What is asked for meanwhile is queued.
    world.repo.push("two");
    let second = daemon.press();
    assert_eq!((&second.now()["state"], &second.now()["waiting"]), (&json!("queued"), &upgrade));
    let status = daemon.cli(&["status"]);
    assert!(status.stdout.starts_with("MAINTENANCE since "), "{}", status.stdout);
    assert!(
        status.stdout.contains("waits until maintenance is over, which uid 0 turned on (upgrade to 0.2)"),
        "{}",
        status.stdout
    );

    // It holds over a crash, and nothing begins after it.
    daemon.kill();
    let daemon = world.start();
    let (first, second) = (daemon.run(&first.id), daemon.run(&second.id));
    assert_eq!(daemon.cli(&["maintenance", "on", "--wait"]).code, 0);
    assert_eq!((&first.now()["waiting"], &second.now()["waiting"]), (&upgrade, &upgrade));
    assert!(world.untouched(), "nobody has been logged in to");

    // On again in the middle of the rollout: the host in flight is deployed to and watched, the next one is not touched.
    off(&daemon);
    first.prints("begun h1");
    on(&daemon);
    assert_eq!(doing(&daemon, &first), ["deploys to h1 (production)"]);
    go(&world, &["h1"]);
    assert_eq!(daemon.cli(&["maintenance", "on", "--wait"]).code, 0);
    let now = first.now();
    let hosts = now["deployments"][0]["hosts"].as_array().unwrap();
    let states: Vec<&str> = hosts.iter().map(|h| h["state"].as_str().unwrap()).collect();
    assert_eq!((now["waiting"].clone(), states), (by("upgrade"), vec!["healthy", "pending", "pending"]));
    go(&world, &["h2", "h3"]);
    off(&daemon);
    first.wait().is("succeeded");
    second.wait().is("succeeded");
    assert!(["h1", "h2", "h3"].iter().all(|host| world.touched(host).len() == 4));
    assert_eq!(world.touched("h3")[0].3, commit);
    assert!(!daemon.cli(&["status"]).stdout.contains("MAINTENANCE"));
}

#[test]
fn a_parked_run_can_be_stopped_and_gives_its_environment_back() {
    let (world, daemon) = World::with(&waiting());
    world.repo.push("one");
    go(&world, &["stage"]);
    let run = daemon.press();
    run.prints("begun h1");
    on(&daemon);
    go(&world, &["h1", "h2", "h3"]);
    assert_eq!(daemon.cli(&["maintenance", "on", "--wait"]).code, 0);
    daemon.api.post(&format!("/v1/runs/{}/stop", run.id), &json!({ "reason": "not today" })).is(202);
    let ended = run.wait().is("stopped");
    assert_eq!(ended.hosts(), ["h1:healthy", "h2:skipped", "h3:skipped"]);
    let queued = daemon.press();
    daemon.api.post(&format!("/v1/runs/{}/stop", queued.id), &json!({})).is(202);
    queued.wait().is("stopped");
    eventually("the environment is free", || {
        daemon.status()["projects"][0]["environments"][0]["lease"].is_null().then_some(())
    });
    off(&daemon);
    daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded");
}

#[test]
fn turning_it_on_twice_is_turning_it_on_once() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    let first = on(&daemon);
    let second = daemon.api.post("/v1/maintenance", &json!({ "on": true, "reason": "another" })).is(200).json();
    assert_eq!((&first, &first["reason"]), (&second, &json!("upgrade")));
    let commit = world.repo.push("one");
    let run = daemon.press();
    daemon.kill();
    let daemon = world.start();
    assert_eq!(daemon.api.get("/v1/maintenance").is(200).json(), first);
    assert_eq!(daemon.run(&run.id).now()["state"], "queued");
    off(&daemon);
    off(&daemon);
    daemon.run(&run.id).wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    assert_eq!(daemon.cli(&["maintenance"]).stdout, "maintenance is off\n");
}

#[test]
fn an_upgrade_in_the_middle_of_a_rollout_and_of_a_stage_hurts_neither() {
    let (world, daemon) = World::with(&waiting().rollout("max_parallel = 3"));
    let one = world.repo.push("one");
    go(&world, &["stage"]);
    let first = daemon.press();
    let hosts = ["h1", "h2", "h3"];
    hosts.iter().for_each(|host| first.prints(&format!("begun {host}")));
    std::fs::remove_file(world.path("tested/go-stage")).unwrap();
    let two = world.repo.push("two");
    let second = daemon.press();
    second.prints("begun stage");
    let (status, _) = daemon.terminate();
    assert!(status.success(), "{status}");
    // Some end while nobody is there, others after it.
    go(&world, &["h2", "stage"]);
    eventually("those have ended", || {
        (trace(&world, "hosts/h2").contains("ended") && trace(&world, "tested").matches("ended").count() == 2)
            .then_some(())
    });
    let daemon = world.start();
    go(&world, &["h1", "h3"]);
    let ended = daemon.run(&first.id).wait().is("succeeded");
    assert_eq!(ended.hosts(), ["h1:healthy", "h2:healthy", "h3:healthy"]);
    daemon.run(&second.id).wait().is("succeeded");
    assert_eq!(trace(&world, "tested"), "begun stage\nended stage\ncleaned\n".repeat(2));
    for host in hosts {
        assert_eq!(trace(&world, &format!("hosts/{host}")), format!("begun {host}\nended {host}\n").repeat(2));
        let commits: Vec<String> = world.touched(host).into_iter().map(|touched| touched.3).collect();
        assert_eq!(commits.iter().collect::<Vec<_>>(), [&one, &one, &two, &two]);
        let log = ended.log_of(&format!("?host={host}"));
        for said in [format!("begun {host}"), format!("ended {host}")] {
            assert_eq!(log.lines().filter(|line| **line == said).count(), 1, "{log}");
        }
    }
}
