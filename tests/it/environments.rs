//! Environments: in order, each only if the one before is good.

use serde_json::json;

use crate::fixture::{Project, World};

/// Staging with one host, production with two.
fn two() -> Project {
    Project::new("shop").environment("staging").hosts(&["s1"]).environment("production").hosts(&["p1", "p2"])
}

#[test]
fn environments_are_deployed_to_in_order() {
    let (world, daemon) = World::with(&two());
    let commit = world.repo.push("through both");
    let run = daemon.deploy().is("succeeded");
    assert!(world.hosts_have(&["s1", "p1", "p2"], &commit));
    assert!(world.touched("s1")[1].1 <= world.touched("p1")[0].1);
    assert_eq!(run.deployment("staging")["id"], format!("{}.1", run.id));
    assert_eq!(run.deployment("production")["id"], format!("{}.2", run.id));
}

#[test]
fn the_second_environment_is_not_touched_when_the_first_fails() {
    let project = Project::new("shop")
        .environment("staging")
        .hosts(&["s1"])
        .deploy(r#"host:sh "exit 9""#)
        .environment("production")
        .hosts(&["p1"]);
    let (world, daemon) = World::with(&project);
    world.repo.push("bad in staging");
    let run = daemon.deploy().is("halted");
    assert_eq!(run.view["cause"]["environment"], "staging");
    assert!(world.touched("p1").is_empty());
    assert!(!world.host("p1").join("base").exists());
}

#[test]
fn a_run_goes_no_further_than_it_is_asked_to() {
    let (world, daemon) = World::with(&two());
    let commit = world.repo.push("only staging");
    daemon.press_with(&json!({ "environment": "staging" })).wait().is("succeeded");
    assert!(world.hosts_have(&["s1"], &commit));
    assert!(world.touched("p1").is_empty());
    daemon.idle();
    daemon.deploy().is("succeeded");
    assert!(world.hosts_have(&["p1", "p2"], &commit));
    assert_eq!(world.touched("s1").len(), 2, "staging has it already");
}

#[test]
fn an_unknown_environment_is_refused_with_those_there_are() {
    let (world, daemon) = World::with(&two());
    world.repo.push("x");
    let answer = daemon.api.post("/v1/projects/shop/start", &json!({ "environment": "prod" }));
    assert_eq!(answer.problem(), (404, "environment_unknown".to_owned()));
    assert!(answer.text().contains("staging, production"), "{}", answer.text());
}

#[test]
fn failed_verification_halts_and_says_so() {
    let project = Project::new("shop").hosts(&["h1"]).verify(r#"run:sh "echo 500 from the shop; exit 1""#);
    let (world, daemon) = World::with(&project);
    let commit = world.repo.push("does not verify");
    let run = daemon.deploy().is("halted");
    assert_eq!(run.code(), "verify_failed");
    assert!(run.message().contains("500 from the shop"), "{}", run.message());
    assert!(world.hosts_have(&["h1"], &commit));
}

#[test]
fn verification_sees_the_final_phase_and_the_environment() {
    let verify = r#"run:sh 'echo "$PHASED_PHASE in $PHASED_ENVIRONMENT of $PHASED_DEPLOYMENT"'"#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).verify(verify));
    world.repo.push("x");
    let run = daemon.deploy().is("succeeded");
    assert!(run.log().contains(&format!("final in production of {}.1", run.id)), "{}", run.log());
}

#[test]
fn hosts_come_from_a_file() {
    let project = Project::new("shop").hosts(&[r#"{ address = "127.0.0.9" }"#]);
    let world = World::new();
    world.project(&project);
    let lua = std::fs::read_to_string(world.path("plugins/projects/shop.lua")).unwrap();
    world.host_table("web1");
    let base = world.host("web1").join("base");
    let csv = format!("id,address,base,labels.role\nweb1,127.0.0.8,{},web\n", base.display());
    std::fs::write(world.path("hosts.csv"), csv).unwrap();
    let discovery = format!(r#"require "discovery.file" {{ "{}" }}"#, world.path("hosts.csv").display());
    let lua = lua.replace(r#"{ { address = "127.0.0.9" } }"#, &discovery);
    assert!(lua.contains("discovery.file"), "{lua}");
    std::fs::write(world.path("plugins/projects/shop.lua"), lua).unwrap();
    let daemon = world.start();
    let commit = world.repo.push("discovered");
    daemon.deploy().is("succeeded");
    assert!(world.hosts_have(&["web1"], &commit));
}
