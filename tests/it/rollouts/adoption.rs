//! The first deployment to hosts that serve something already: what all of them report is what a failure goes back to.

use serde_json::{Value, json};

use super::{all_have, hosts, nth, spoil};
use crate::fixture::{Daemon, Project, Sink, World};

/// Healthy unless the test says otherwise, and each host says what it runs.
const HEALTH: &str = r#"
  command = 'r=$(cat "@ROOT@/$PHASED_HOST_ID/revision") && test ! -e "@ROOT@/bad-$r"',
  version = { command = 'cat "@ROOT@/$PHASED_HOST_ID/revision"' },
  min_healthy_time = "200ms", healthy_deadline = "1s", interval = "100ms""#;

fn project(n: usize) -> Project {
    super::project(n, r#"canary = 1, max_parallel = 2, bake_time = "0s""#).health(HEALTH)
}

/// Hosts that serve a commit which phased never deployed, and a newer one that is bad, not started yet.
fn before(project: &Project, n: usize, kill: Option<&str>) -> (World, Daemon, String, String) {
    let world = World::new();
    world.project(project);
    let kill: Vec<(&str, &str)> = kill.map(|kill| ("PHASED_KILL", kill)).into_iter().collect();
    let daemon = world.start_with(&kill);
    let old = world.repo.push("by hand");
    hosts(n).iter().for_each(|host| world.serves(host, &old));
    let bad = world.repo.push("bad");
    spoil(&world, &bad, "");
    (world, daemon, old, bad)
}

/// The plan of production as text.
fn plan(daemon: &Daemon) -> String {
    let plan = daemon.cli(&["plan", "shop", "production"]);
    assert_eq!(plan.code, 0, "{plan:?}");
    plan.stdout
}

#[test]
fn a_bad_first_deployment_goes_back_to_what_every_host_reported() {
    let sink = Sink::start();
    let (world, daemon, old, bad) = before(&project(3).tells(&sink), 3, None);
    let run = daemon.press().wait().is("rolled_back");
    all_have(&world, 3, &old);
    assert_eq!(nth(&run.view, 0)["adopted"], &old[..12]);
    assert_eq!((&nth(&run.view, 1)["release"], &nth(&run.view, 1)["state"]), (&json!(old[..12]), &json!("succeeded")));
    assert_eq!(sink.message_of(&run.id)["event"], "rolled_back");
    // It is what is live, and known-good: from now on by the ledger, whatever hosts say.
    let status = daemon.status();
    let production = &status["projects"][0]["environments"][0];
    assert_eq!(production["release"]["revision"], old, "{production}");
    assert!(production["trouble"]["message"].as_str().unwrap().contains("max_failures"), "{production}");
    let text = plan(&daemon);
    assert!(text.contains(&format!("live    {}", &old[..12])), "{text}");
    assert!(text.contains(&format!("then    back to {}", &old[..12])) && !text.contains("adopted"), "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with(&old[..12])).count(), 3, "every host has it: {text}");
    // A good one follows, and going back from that leads to the adopted one.
    let good = world.repo.push("good");
    daemon.deploy().is("succeeded");
    all_have(&world, 3, &good);
    daemon.idle();
    let back = daemon.cli(&["rollback", "shop", "production", "--wait"]);
    assert_eq!(back.code, 0, "{back:?}");
    all_have(&world, 3, &old);
    assert_ne!(bad, old);
}

#[test]
fn the_plan_says_what_would_be_adopted_or_why_nothing() {
    let (world, daemon, old, _) = before(&project(3), 3, None);
    let text = plan(&daemon);
    assert!(
        text.contains(&format!(
            "then    back to {} \"by hand\" by Ada Lovelace, adopted: every host reports it",
            &old[..12]
        )),
        "{text}"
    );
    let other = world.repo.push("somebody was here");
    world.serves("h2", &other);
    let text = plan(&daemon);
    let why = "production has no other known-good release: this is the first, and nothing could be adopted: its hosts do not all report one commit: ";
    assert!(text.contains(&format!("{why}h1, h3: {}; h2: {} (no_target)", &old[..12], &other[..12])), "{text}");
    std::fs::remove_file(world.host("h2").join("revision")).unwrap();
    assert!(plan(&daemon).contains(&format!("{why}h1, h3: {}; h2: exit 1: cat: ", &old[..12])), "{}", plan(&daemon));
    for host in hosts(3) {
        world.serves(&host, "0123456789abcdef");
    }
    assert!(
        plan(&daemon).contains("all its hosts report 0123456789abcdef, and that cannot be had"),
        "{}",
        plan(&daemon)
    );
    // By hand it is refused in the same words.
    let refused = daemon.api.post("/v1/projects/shop/environments/production/adopt", &json!({}));
    assert_eq!(refused.problem(), (409, "ref_unknown".to_owned()));
    world.project(&super::project(3, "bake_time = \"0s\""));
    daemon.api.post("/v1/reload", &json!({})).is(200);
    assert!(plan(&daemon).contains("its health has no `version`, so nobody can tell"), "{}", plan(&daemon));
}

#[test]
fn where_releases_have_artifacts_nothing_is_adopted_and_a_failure_halts() {
    let project = project(2).stage("build", r#"run:artifact { "image", value = "sha256:ab" }"#);
    let (world, daemon, old, bad) = before(&project, 2, None);
    let run = daemon.press().wait().is("halted");
    assert!(run.message().contains("its releases have artifacts (image)"), "{}", run.message());
    assert!(world.hosts_have(&["h1"], &bad) && world.hosts_have(&["h2"], &old));
    // What was left standing is not adopted by itself either, not even where all hosts have it.
    world.serves("h2", &bad);
    let text = plan(&daemon);
    assert!(text.contains("once that is good, `phased adopt shop production` makes known-good"), "{text}");
}

#[test]
fn what_every_host_reports_is_adopted_by_hand() {
    let (world, daemon, old, bad) = before(&project(3), 3, None);
    let adopted = daemon.cli(&["adopt", "shop", "production", "--reason", "it has served for years", "--wait"]);
    assert_eq!(adopted.code, 0, "{adopted:?}");
    assert!(hosts(3).iter().all(|host| world.touched(host).is_empty()), "no host is touched");
    let run: Value = daemon.runs()[0].clone();
    assert_eq!((&run["state"], &run["reason"]), (&json!("succeeded"), &json!("it has served for years")));
    assert_eq!(nth(&daemon.run(run["id"].as_str().unwrap()).now(), 0)["adopted"], &old[..12]);
    assert_eq!(daemon.status()["projects"][0]["environments"][0]["release"]["revision"], old);
    // A restart knows it as well, and the index can be made anew.
    daemon.kill();
    let daemon = world.start();
    let run = daemon.press().wait().is("rolled_back");
    assert!(nth(&run.view, 0)["adopted"].is_null(), "it was known already: {}", run.view);
    all_have(&world, 3, &old);
    assert_eq!(world.touched("h2").len(), 0, "{bad} went no further than the canary");
}

#[test]
fn killed_at_any_record_the_first_deployment_goes_back_to_what_it_adopted() {
    // Around the plan, on the way forward and back, at the end, and before and after what control is told of it.
    for kill in
        ["after:12", "after:16", "before:20", "after:26", "control-after:3", "control-before:4", "control-after:4"]
    {
        let (world, daemon, old, _) = before(&project(1), 1, Some(kill));
        let run = daemon.press();
        daemon.dies();
        let daemon = world.start();
        let run = daemon.run(&run.id).wait().is("rolled_back");
        assert_eq!(nth(&run.view, 0)["adopted"], &old[..12], "{kill}");
        all_have(&world, 1, &old);
        daemon.idle();
        assert_eq!(daemon.status()["projects"][0]["environments"][0]["release"]["revision"], old, "{kill}");
        let good = world.repo.push("good");
        daemon.deploy().is("succeeded");
        assert!(world.hosts_have(&["h1"], &good));
        daemon.idle();
        assert_eq!(daemon.cli(&["rollback", "shop", "production", "--wait"]).code, 0, "{kill}");
        all_have(&world, 1, &old);
    }
}

#[test]
fn what_a_run_has_left_whose_journal_is_damaged_is_not_adopted() {
    let project = super::project(1, r#"canary = 1, max_parallel = 1, bake_time = "1h""#).health(HEALTH);
    let (world, daemon) = World::with(&project);
    world.repo.push("never found good");
    let run = daemon.press();
    run.until("its bake", |run| run["deployments"][0]["state"] == "baking");
    daemon.kill();
    world.damage(&run.id);
    let daemon = world.start();
    daemon.run(&run.id).wait().is("damaged");
    // All hosts report it, and nobody can tell whether it is good.
    let text = plan(&daemon);
    assert!(text.contains(&format!("run {} has left it as it is", run.id)), "{text}");
}
