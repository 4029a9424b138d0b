//! Rollouts on real hosts: canary, waves, bakes, rollback by itself and by hand, quarantine.

use serde_json::{Value, json};

use crate::fixture::{Daemon, Project, Run, Sink, World};

mod adoption;
mod alarms;
mod cuts;
mod mixtures;
mod people;
mod phases;
mod rules;

/// Healthy unless the test says that this commit is not, everywhere or on one host.
const HEALTH: &str = r#"
  command = 'r=$(cat "@ROOT@/$PHASED_HOST_ID/revision") && test ! -e "@ROOT@/bad-$r" && test ! -e "@ROOT@/bad-$r-$PHASED_HOST_ID"',
  min_healthy_time = "200ms", healthy_deadline = "1s", interval = "100ms""#;

/// A host at a time, a canary, and two waves.
const PHASES: &str = r#"canary = 1, waves = { "50%", "100%" }, max_parallel = 2, bake_time = "1s""#;

pub fn hosts(n: usize) -> Vec<String> {
    (1..=n).map(|n| format!("h{n}")).collect()
}

pub fn project(n: usize, phases: &str) -> Project {
    let hosts = hosts(n);
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    Project::new("shop").hosts(&hosts).phases(phases).health(HEALTH)
}

/// Makes a commit unhealthy, everywhere or on one host.
pub fn spoil(world: &World, commit: &str, host: &str) {
    let host = if host.is_empty() { String::new() } else { format!("-{host}") };
    std::fs::write(world.path("hosts").join(format!("bad-{commit}{host}")), "").unwrap();
}

/// Every host has `commit`.
#[track_caller]
pub fn all_have(world: &World, n: usize, commit: &str) {
    for host in hosts(n) {
        assert_eq!(world.revision(&host).as_deref(), Some(commit), "{host}");
    }
}

pub fn nth(run: &Value, n: usize) -> &Value {
    &run["deployments"][n]
}

fn states(deployment: &Value) -> Vec<String> {
    let hosts = deployment["hosts"].as_array().unwrap().iter();
    hosts.map(|h| format!("{}:{}", h["id"].as_str().unwrap(), h["state"].as_str().unwrap())).collect()
}

/// A world whose hosts have a good commit, and that commit.
pub fn good(project: &Project, n: usize) -> (World, Daemon, String) {
    let world = World::new();
    world.project(project);
    let (daemon, commit) = first(&world, n);
    (world, daemon, commit)
}

/// The same in a world that is made already.
pub fn first(world: &World, n: usize) -> (Daemon, String) {
    let daemon = world.start();
    let commit = world.repo.push("good");
    daemon.deploy().is("succeeded");
    all_have(world, n, &commit);
    daemon.idle();
    (daemon, commit)
}

#[test]
fn an_unhealthy_commit_is_taken_back_from_the_canary_and_nothing_starts_it_again() {
    let sink = Sink::start();
    let (world, daemon, good) = good(&project(4, PHASES).tells(&sink), 4);
    let bad = world.repo.push("unhealthy");
    spoil(&world, &bad, "");
    let run = daemon.press().wait().is("rolled_back");
    all_have(&world, 4, &good);
    assert_eq!(world.touched("h2").len(), 2, "no other host ever saw it");
    assert_eq!(run.code(), "max_failures", "{}", run.view);
    let (forward, back) = (nth(&run.view, 0), nth(&run.view, 1));
    assert_eq!((&forward["state"], &back["state"]), (&json!("rolled_back"), &json!("succeeded")));
    assert_eq!(back["rollback_of"], forward["id"]);
    assert_eq!(back["release"], &good[..12]);
    assert_eq!(states(forward), ["h1:rolled_back", "h2:skipped", "h3:skipped", "h4:skipped"]);
    assert_eq!(states(back), ["h1:healthy"]);
    assert_eq!(sink.message_of(&run.id)["event"], "rolled_back");
    assert_eq!(sink.count_of(&run.id), 1);

    // It is bad from now on, and another commit with the very same files as well.
    daemon.idle();
    let again = daemon.press().wait().is("failed");
    assert_eq!(again.code(), "bad_release", "{}", again.view);
    assert!(again.message().contains(&run.id) && again.message().contains("retry_bad"), "{}", again.message());
    // A person may insist; once it is healthy it is as good as any.
    std::fs::remove_file(world.path("hosts").join(format!("bad-{bad}"))).unwrap();
    daemon.idle();
    daemon.press_with(&json!({ "retry_bad": true })).wait().is("succeeded");
    all_have(&world, 4, &bad);
}

#[test]
fn after_three_bad_releases_nothing_starts_by_itself_until_one_by_hand_is_good() {
    let (world, mut daemon, good) = good(&project(1, PHASES), 1);
    for n in 1..=3 {
        let bad = world.repo.push(&format!("bad, the {n}. time"));
        spoil(&world, &bad, "");
        daemon.press().wait().is("rolled_back");
        daemon.idle();
    }
    // The head of the branch is looked at when the daemon starts.
    let mended = world.repo.push("mended");
    daemon.kill();
    daemon = world.start();
    let run = daemon.nth_run(5).wait().is("failed");
    assert_eq!((&run.view["trigger"], run.code()), (&json!("poll"), "resting"), "{}", run.view);
    assert!(run.message().contains("phased start shop"), "{}", run.message());
    all_have(&world, 1, &good);
    daemon.idle();
    daemon.press().wait().is("succeeded");
    all_have(&world, 1, &mended);
    daemon.idle();
    let next = world.repo.push("the next");
    daemon.kill();
    daemon = world.start();
    daemon.nth_run(7).wait().is("succeeded");
    all_have(&world, 1, &next);
}

#[test]
fn what_falls_ill_while_the_second_wave_bakes_goes_back_everywhere() {
    let (world, daemon, good) = good(&project(4, PHASES), 4);
    let bad = world.repo.push("ill after a while");
    let run = daemon.press();
    run.until("the second wave bakes", |run| nth(run, 0)["waves"][1]["baking_since"].is_string());
    spoil(&world, &bad, "h1");
    let run = run.wait().is("rolled_back");
    all_have(&world, 4, &good);
    assert!(run.message().contains("was healthy, and is not any more"), "{}", run.message());
    let forward = nth(&run.view, 0);
    assert_eq!(states(forward), ["h1:rolled_back", "h2:rolled_back", "h3:skipped", "h4:skipped"]);
    assert!(forward["waves"][0]["canary"] == true && forward["waves"][0]["baked"] == true, "{forward}");
    // Unhealthy hosts first.
    assert_eq!(states(nth(&run.view, 1))[0], "h1:healthy");
}

#[test]
fn every_hook_is_called_when_its_turn_comes() {
    let trace = r#"'echo "$PHASED_PHASE $PHASED_HOST_ID $PHASED_RELEASE" >>"@ROOT@/../tested/trace"'"#;
    let hook = |name: &str, with: &str| format!("{name} = function({with}) {with}:sh {{ {trace} }} end");
    let keys = [
        hook("prepare", "host"),
        hook("drain", "host"),
        hook("undrain", "host"),
        format!("before = function(deployment) deployment.hosts[1]:sh {{ {trace} }} end"),
        format!("after = function(deployment) deployment.hosts[1]:sh {{ {trace} }} end"),
        format!("before_wave = function(wave) wave.hosts[1]:sh {{ {trace} }} end"),
        format!("after_wave = function(wave) wave.hosts[1]:sh {{ {trace} }} end"),
        "rollback_safe = function(release) return release.previous == nil or not release:changed \"db/**\", \"the schema changed\" end".to_owned(),
    ];
    let project = project(3, r#"canary = 1, max_parallel = 1, bake_time = "0s""#).keys(&keys.join(", "));
    let (world, daemon) =
        World::with(&project.verify("deployment.hosts[1]:sh 'echo \"$PHASED_PHASE\" >>\"@ROOT@/../tested/trace\"'"));
    std::fs::write(world.path("tested/trace"), "").unwrap();
    std::fs::set_permissions(world.path("tested/trace"), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let commit = world.repo.push("with hooks");
    daemon.deploy().is("succeeded");
    let trace = std::fs::read_to_string(world.path("tested/trace")).unwrap();
    let words: Vec<String> = trace.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    let (first, rest) = words.split_at(3);
    assert!(first.iter().all(|word| word == "prepare"), "{words:?}");
    let host = ["drain", "undrain"];
    let wanted: Vec<&str> = ["before", "before_wave"]
        .into_iter()
        .chain(host)
        .chain(["after_wave", "canary", "before_wave"])
        .chain(host)
        .chain(host)
        .chain(["after_wave", "final", "after"])
        .collect();
    assert_eq!(rest, wanted, "{trace}");
    assert!(trace.contains(&format!("drain h1 {}", &commit[..12])), "{trace}");
}

#[test]
fn where_going_back_is_not_safe_it_stands_and_says_why() {
    let safe = r#"rollback_safe = function(release) return not release:changed "db/**", "the schema changed" end"#;
    let (world, daemon, _) = good(&project(2, PHASES).keys(safe), 2);
    world.repo.commit(&[("db/1.sql", "create")], "a migration");
    let bad = world.repo.push("with a migration");
    spoil(&world, &bad, "");
    let run = daemon.press().wait().is("halted");
    assert!(run.message().contains("rollback_safe says no: the schema changed"), "{}", run.message());
    assert_eq!(world.revision("h1").as_deref(), Some(bad.as_str()));
}

#[test]
fn the_first_deployment_has_nothing_to_go_back_to() {
    let (world, daemon) = World::with(&project(2, PHASES));
    let bad = world.repo.push("bad from the start");
    spoil(&world, &bad, "");
    let run = daemon.press().wait().is("halted");
    assert!(run.message().contains("no other known-good release"), "{}", run.message());
}

#[test]
fn a_host_that_fails_within_the_budget_goes_back_alone_and_comes_last_the_next_time() {
    let phases = r#"canary = 1, max_parallel = 1, bake_time = "0s", max_failures = 1"#;
    let (world, daemon, good) = good(&project(3, phases), 3);
    let second = world.repo.push("bad on the second host");
    spoil(&world, &second, "h2");
    let run = daemon.press().wait().is("succeeded");
    assert_eq!(states(nth(&run.view, 0)), ["h1:healthy", "h2:quarantined", "h3:healthy"]);
    assert!(world.hosts_have(&["h1", "h3"], &second) && world.hosts_have(&["h2"], &good));
    daemon.idle();
    let third = world.repo.push("good everywhere");
    let run = daemon.press().wait().is("succeeded");
    assert_eq!(states(nth(&run.view, 0)), ["h1:healthy", "h3:healthy", "h2:healthy"]);
    all_have(&world, 3, &third);
}

#[test]
fn a_host_that_cannot_go_back_is_bad_news_of_its_own() {
    let sink = Sink::start();
    let (world, daemon, good) = good(&project(3, PHASES).tells(&sink), 3);
    let bad = world.repo.push("nothing works any more");
    spoil(&world, &bad, "");
    // And the old one does not either, where it is to come back.
    spoil(&world, &good, "h1");
    let run = daemon.press().wait().is("rollback_failed");
    assert_eq!(nth(&run.view, 1)["state"], "rollback_failed");
    assert!(run.message().contains("could not be brought to"), "{}", run.message());
    assert_eq!(sink.message_of(&run.id)["event"], "rollback_failed");
    assert_eq!(sink.count_of(&run.id), 1);
}

/// The run's deployment is where it can be stopped in the middle of.
pub fn baking(run: &Run, wave: usize) -> Value {
    run.until("a wave bakes", |run| nth(run, 0)["waves"][wave]["baking_since"].is_string())
}
