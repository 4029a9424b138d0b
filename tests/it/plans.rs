//! `phased plan` of the example with everything in it, as it ships: the documentation shows what it says.

use crate::fixture::{Daemon, Project, Sink, Web, World};

const WEBS: [&str; 4] = ["web1.example.com", "web2.example.com", "web3.example.com", "web4.example.com"];

/// The example with this world's repository and Prometheus in the place of its own. Its hosts are only planned for, and so they stay.
fn careful(world: &World, metrics: &Web) -> String {
    let text = std::fs::read_to_string("packaging/examples/careful.lua").unwrap();
    let places = [
        ("https://github.com/acme/shop.git", world.repo.url()),
        ("http://prometheus.example.com:9090", metrics.url("")),
    ];
    places.into_iter().fold(text, |text, (theirs, ours)| {
        assert!(text.contains(theirs), "{theirs}: {text}");
        text.replace(theirs, &ours)
    })
}

/// The plan without what differs from test to test: commits, how long the last one took, and whether it is a weekend.
fn planned(daemon: &Daemon, commits: &[(&str, &str)]) -> String {
    let plan = daemon.cli(&["plan", "shop"]);
    assert!(plan.code == 0 && plan.stderr.is_empty(), "{plan:?}");
    let text = commits.iter().fold(plan.stdout, |text, (commit, shown)| text.replace(&commit[..12], shown));
    let (before, rest) = text.split_once("; it took ").unwrap_or_else(|| panic!("{text}"));
    let (_, after) = rest.split_once(" the last time").unwrap();
    let text = format!("{before}; it took 24m the last time{after}");
    let weekend =
        |line: &&str| line.starts_with("  waits   it is frozen until ") && line.ends_with("Europe/Berlin (weekend)");
    text.lines().filter(|line| !weekend(line)).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_documentation_shows_what_the_plan_of_the_careful_example_says() {
    let (sink, metrics) = (Sink::start(), Web::start());
    let calm =
        r#"{"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "0.001"]}]}}"#;
    metrics.gives("/api/v1/query", 200, calm);
    let world = World::new();
    world.secret("slack_url", &sink.url());
    for secret in ["shop_webhook", "deploy_key"] {
        world.secret(secret, "at least 8 bytes");
    }
    // What is live came by plainer means to hosts of the same names: what is planned now is as it ships.
    let build = r#"run:sh "mkdir out" run:artifact { "app", path = "out" }"#;
    world.project(&Project::new("shop").hosts(&WEBS).stage("build", build));
    let daemon = world.start();
    let old = world.repo.push("Fix the cart");
    daemon.deploy().is("succeeded");
    daemon.idle();
    std::fs::write(world.path("plugins/projects/shop.lua"), careful(&world, &metrics)).unwrap();
    let reload = daemon.cli(&["reload"]);
    assert_eq!(reload.code, 0, "{reload:?}");

    let new = world.repo.push("Search is faster");
    let docs = std::fs::read_to_string("docs/rollouts.md").unwrap();
    let said = planned(&daemon, &[(&old, "a1b2c3d4e5f6"), (&new, "b2c3d4e5f6a7")]);
    assert!(docs.contains(&format!("```\n$ phased plan shop\n{said}```\n")), "docs/rollouts.md does not have:\n{said}");

    world.repo.commit(&[("db/migrate/0001_owners.sql", "alter table carts add owner text")], "Carts have owners");
    world.repo.push("And say so");
    let said = planned(&daemon, &[]);
    let then = said.lines().find_map(|line| line.strip_prefix("  then ")).unwrap_or_else(|| panic!("{said}"));
    assert_eq!(then.trim(), "it halts: rollback_safe says no: the schema changed (rollback_unsafe)");
    assert!(docs.contains(&format!("`then {then}`")), "docs/rollouts.md does not have: then {then}");
}
