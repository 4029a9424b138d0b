//! A good push: tested, then everywhere, exactly once.

use serde_json::json;

use crate::fixture::{Project, World};

const ALL: &[&str] = &["h1", "h2", "h3"];

#[test]
fn a_good_push_is_tested_and_reaches_every_host() {
    let (world, daemon) = World::with(&Project::new("shop").stage("unit", r#"run:sh "test -f message.txt""#));
    let commit = world.repo.push("a good one");
    let run = daemon.deploy().is("succeeded");
    assert!(world.hosts_have(ALL, &commit));
    assert_eq!(run.stage("unit")["state"], "succeeded");
    assert_eq!(run.hosts(), ["h1:healthy", "h2:healthy", "h3:healthy"]);
    assert_eq!(run.view["release"]["revision"], commit.as_str());
    assert_eq!(run.view["release"]["author"], "Ada Lovelace <ada@example.com>");
}

#[test]
fn hosts_are_deployed_to_one_after_another_by_name() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h3", "h1", "h2"]).deploy_takes(0.2));
    world.repo.push("in order");
    daemon.deploy().is("succeeded");
    assert_eq!(overlap(&world, ALL), 1);
    let begins: Vec<i128> = ALL.iter().map(|h| world.touched(h)[0].1).collect();
    assert!(begins.is_sorted(), "{begins:?}");
}

#[test]
fn max_parallel_hosts_are_deployed_to_at_once_and_no_more() {
    let hosts = ["h1", "h2", "h3", "h4", "h5", "h6"];
    let project = Project::new("shop").hosts(&hosts).rollout("max_parallel = 3").deploy_takes(0.7);
    let (world, daemon) = World::with(&project);
    let commit = world.repo.push("three at once");
    daemon.deploy().is("succeeded");
    assert!(world.hosts_have(&hosts, &commit));
    assert_eq!(overlap(&world, &hosts), 3);
}

/// The most hosts that were being deployed to at one moment.
fn overlap(world: &World, hosts: &[&str]) -> usize {
    let spans: Vec<(i128, i128)> = hosts.iter().map(|h| (world.touched(h)[0].1, world.touched(h)[1].1)).collect();
    spans.iter().map(|(at, _)| spans.iter().filter(|(begin, end)| begin <= at && at < end).count()).max().unwrap()
}

#[test]
fn a_release_that_is_live_is_not_deployed_again() {
    let (world, daemon) = World::with(&Project::new("shop"));
    world.repo.push("once");
    daemon.deploy().is("succeeded");
    let answer = daemon.api.post("/v1/projects/shop/start", &json!({})).is(200).json();
    assert_eq!(answer["code"], "already_live");
    assert_eq!(answer["status"]["environments"][0]["release"]["revision"], world.repo.head());
    assert_eq!(daemon.runs().len(), 1);
}

#[test]
fn redeploy_deploys_again_without_its_tests() {
    let (world, daemon) = World::with(&counting());
    world.repo.push("twice");
    daemon.deploy().is("succeeded");
    let again = daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded");
    assert_eq!(again.stage("unit")["state"], "skipped");
    assert_eq!(tested(&world), 1);
    assert_eq!(world.touched("h1").len(), 4);
}

#[test]
fn retest_runs_the_tests_again() {
    let (world, daemon) = World::with(&counting());
    world.repo.push("tested twice");
    daemon.deploy().is("succeeded");
    let again = daemon.press_with(&json!({ "retest": true })).wait().is("succeeded");
    assert_eq!(again.stage("unit")["state"], "succeeded");
    assert_eq!(tested(&world), 2);
}

/// A project whose tests write down that they ran.
fn counting() -> Project {
    Project::new("shop")
        .stage("unit", r#"run:sh { 'echo tested >>"$COUNT"', env = { COUNT = "@ROOT@/../tested/count" } }"#)
}

fn tested(world: &World) -> usize {
    std::fs::read_to_string(world.path("tested/count")).unwrap_or_default().lines().count()
}

#[test]
fn a_release_that_failed_to_deploy_is_deployed_again_without_its_tests() {
    let flaky = counting().hosts(&["h1"]).deploy_after(r#"host:sh { "test -e /$D/h1/well", env = { D = "@ROOT@" } }"#);
    let (world, daemon) = World::with(&flaky);
    world.repo.push("the host is ill");
    daemon.deploy().is("halted");
    std::fs::write(world.host("h1").join("well"), "").unwrap();
    daemon.idle();
    daemon.deploy().is("succeeded");
    assert_eq!(tested(&world), 1);
}

#[test]
fn the_plainest_project_checks_out_the_tested_commit_on_its_hosts() {
    let deploy = r#"host:sh { [[
        cd "$ROOT/$PHASED_HOST_ID"
        printf '[safe]\ndirectory = *\n' >gitconfig
        export GIT_CONFIG_GLOBAL="$PWD/gitconfig"
        [ -d app ] || git clone -q --no-checkout "$ROOT/../repo.git" app
        cd app && git fetch -q origin && git checkout -q --detach "$PHASED_REVISION" && cp message.txt ../served
        git rev-parse HEAD >../revision
      ]], env = { ROOT = "@ROOT@" } }"#;
    let (world, daemon) = World::with(&Project::new("shop").deploy(deploy).rollout("max_parallel = 3"));
    let commit = world.repo.push("served");
    daemon.deploy().is("succeeded");
    assert!(world.hosts_have(ALL, &commit));
    assert_eq!(std::fs::read_to_string(world.host("h2").join("served")).unwrap(), "served");
}

#[test]
fn an_older_commit_can_be_named_and_is_deployed() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    let old = world.repo.push("old");
    world.repo.push("new");
    daemon.press_with(&json!({ "ref": old, "reason": "the new one is odd" })).wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &old));
}

#[test]
fn what_is_not_on_the_branch_is_refused() {
    let (world, daemon) = World::with(&Project::new("shop"));
    world.repo.push("main");
    world.repo.commit(&[("x", "y")], "elsewhere");
    let other = world.repo.push_as("feature");
    let start = |reference: &str| daemon.api.post("/v1/projects/shop/start", &json!({ "ref": reference })).problem();
    assert_eq!(start("feature"), (422, "ref_not_allowed".to_owned()));
    // Its objects were never fetched, so nobody can tell that it is elsewhere.
    assert_eq!(start(&other), (422, "ref_unknown".to_owned()));
    assert_eq!(start("nowhere"), (422, "ref_unknown".to_owned()));
    assert_eq!(start("--upload-pack=touch"), (422, "ref_invalid".to_owned()));
}

#[test]
fn a_tag_on_the_branch_can_be_named() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    let tagged = world.repo.push("one");
    world.repo.tag("v1.0");
    world.repo.push("two");
    daemon.press_with(&json!({ "ref": "v1.0" })).wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &tagged));
}

#[test]
fn a_repository_is_fetched_over_ssh() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let commit = world.repo.push("over ssh");
    let (repo, lua) = (world.path("repo.git"), world.path("plugins/projects/shop.lua"));
    // git serves a repository to its owner only.
    let chown = std::process::Command::new("chown").args(["-R", "fleet"]).arg(&repo).status();
    assert!(chown.unwrap().success());
    let text = std::fs::read_to_string(&lua).unwrap();
    let url = format!(
        "git = \"ssh://fleet@127.0.0.1:{}{}\", key = phased.secret \"key\", known_hosts = \"{}\"",
        world.sshd.port,
        repo.display(),
        world.path("known_hosts").display()
    );
    let text = text.replace(&format!("git = \"{}\"", world.repo.url()), &url);
    std::fs::write(&lua, text).unwrap();
    let daemon = world.start();
    daemon.nth_run(1).wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
}
