//! Environments that a push does not open.

use serde_json::json;

use super::waits;
use crate::fixture::{Project, World};

fn by_hand() -> Project {
    Project::new("shop")
        .environment("staging")
        .hosts(&["s1"])
        .environment("production")
        .hosts(&["p1"])
        .keys(r#"when = "manual""#)
}

#[test]
fn a_push_stops_at_a_door_that_only_people_open_and_says_so() {
    let (world, daemon) = World::with(&by_hand());
    let commit = world.repo.push("one");
    let pressed = daemon.cli(&["start", "shop", "--wait"]);
    let command = format!("phased start shop production --ref {}", &commit[..12]);
    assert_eq!(pressed.code, 0, "{pressed:?}");
    assert!(
        pressed.stdout.contains(&format!("production is entered only when somebody says so: {command}")),
        "{pressed:?}"
    );
    let run = daemon.nth_run(1).wait().is("succeeded");
    assert_eq!(run.view["closed"], json!({ "environment": "production", "when": "manual", "command": command }));
    assert!(world.hosts_have(&["s1"], &commit) && world.touched("p1").is_empty());
    let status = daemon.cli(&["status", "shop"]).stdout;
    assert!(status.contains(&command), "{status}");
    // Nothing more would come of another press of the plain button.
    daemon.idle();
    assert_eq!(daemon.api.post("/v1/projects/shop/start", &json!({})).is(200).json()["code"], "already_live");

    // What it says is what it takes; what was passed is not done again.
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    let opened = daemon.cli(&[words.as_slice(), &["--wait"]].concat());
    assert_eq!(opened.code, 0, "{opened:?}");
    assert!(world.hosts_have(&["p1"], &commit));
    assert_eq!(world.touched("s1").len(), 2);
}

#[test]
fn a_release_that_staging_has_passed_goes_to_production_though_staging_has_a_newer_one() {
    let (world, daemon) = World::with(&by_hand());
    let older = world.repo.push("one");
    daemon.deploy().is("succeeded");
    let newer = world.repo.push("two");
    daemon.deploy().is("succeeded");
    let ask = json!({ "environment": "production", "ref": older });
    daemon.press_with(&ask).wait().is("succeeded");
    assert!(world.hosts_have(&["p1"], &older) && world.hosts_have(&["s1"], &newer));
    assert_eq!(world.touched("s1").len(), 4, "staging is left as it was");
}

#[test]
fn a_push_does_not_take_the_place_of_one_that_goes_further() {
    let (world, daemon) = World::with(&by_hand());
    let path = "/v1/projects/shop/environments/staging/lease";
    daemon.api.put(path, &json!({ "for": "1h" })).is(200);
    let commit = world.repo.push("for production");
    let far = daemon.press_with(&json!({ "environment": "production" }));
    waits(&far, "lease");
    let newest = world.repo.push("for staging");
    let near = daemon.press();
    waits(&near, "lease");
    daemon.api.delete(path).is(200);
    far.wait().is("succeeded");
    near.wait().is("succeeded");
    assert!(world.hosts_have(&["p1"], &commit) && world.hosts_have(&["s1"], &newest));
}

#[test]
fn a_run_that_was_held_up_does_not_overtake_a_newer_one() {
    let (world, daemon) = World::with(&by_hand());
    for message in ["one", "two"] {
        world.repo.push(message);
        daemon.deploy().is("succeeded");
    }
    let two = world.repo.head();
    let staging = "/v1/projects/shop/environments/staging/lease";
    daemon.api.put(staging, &json!({ "for": "1h" })).is(200);
    let three = world.repo.push("three");
    let held_up = daemon.press_with(&json!({ "environment": "production" }));
    waits(&held_up, "lease");
    let newer = daemon.press_with(&json!({ "environment": "production", "ref": two }));
    newer.wait().is("succeeded");
    daemon.api.delete(staging).is(200);
    let ended = held_up.wait().is("superseded");
    assert!(ended.message().contains(&newer.id), "{}", ended.message());
    assert!(world.hosts_have(&["p1"], &two) && world.hosts_have(&["s1"], &three));
}

#[test]
fn people_are_told_where_a_run_stopped() {
    let sink = crate::fixture::Sink::start();
    let lua =
        format!(r#"{{ bad = require "alerts.log" {{}}, good = require "alerts.webhook" {{ "{}" }} }}"#, sink.url());
    let (world, daemon) = World::with(&by_hand().notify(&lua));
    let commit = world.repo.push("one");
    let run = daemon.deploy().is("succeeded");
    let said = sink.message_of(&run.id).to_string();
    assert!(said.contains("is live in staging"), "{said}");
    assert!(
        said.contains(&format!(
            "production is not entered by itself: phased start shop production --ref {}",
            &commit[..12]
        )),
        "{said}"
    );
}

#[test]
fn check_shows_the_doors() {
    let project = by_hand().keys(r#"group = "database", freeze = { { days = "sat,sun", zone = "UTC" } }"#);
    let world = World::new();
    world.project(&project.source(r#"tags = "v*""#));
    let config = crate::fixture::Daemon::configure(&world);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_phased"));
    let checked = crate::fixture::output(command.arg("check").arg("--config").arg(config));
    assert_eq!(checked.code, 0, "{checked:?}");
    for says in [
        " branch main and tags v*\n",
        "\n    entered    only when somebody says so\n    group      database: one of its environments at a time\n    frozen     sat,sun UTC\n",
    ] {
        assert!(checked.stdout.contains(says), "{}", checked.stdout);
    }
}
