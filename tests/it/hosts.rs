//! Hosts that refuse, hang, die, or are not who they were: each ends in its own clear error, the others finish.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Daemon, Project, Sshd, World, listening_silent, refused_port};

/// Three good hosts and a bad one in the middle of them, described by `bad`; one host of each kind of trouble may fail.
fn with_bad(bad: impl FnOnce(&World) -> String) -> (World, Daemon) {
    with_bad_and(bad, Project::new("shop").rollout("max_parallel = 4, max_failures = 1, max_unreachable = 1"))
}

fn with_bad_and(bad: impl FnOnce(&World) -> String, project: Project) -> (World, Daemon) {
    let world = World::new();
    let bad = bad(&world);
    world.project(&project.hosts(&["h1", &bad, "h3", "h4"]));
    let daemon = world.start();
    world.repo.push("for most of them");
    (world, daemon)
}

/// The bad host's cause, after a run in which all others got the commit within a reasonable time.
#[track_caller]
fn others_finish((world, daemon): &(World, Daemon), state: &str) -> Value {
    let began = Instant::now();
    let run = daemon.deploy().is("succeeded");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(world.hosts_have(&["h1", "h3", "h4"], &world.repo.head()));
    assert_eq!(run.hosts(), ["h1:healthy", &format!("h2:{state}"), "h3:healthy", "h4:healthy"]);
    let cause = run.host("h2")["cause"].clone();
    assert!(cause["message"].as_str().is_some_and(|m| m.contains("h2") || m.contains("127.")), "{cause}");
    cause
}

#[test]
fn a_host_that_refuses_is_unreachable_and_the_others_finish() {
    let (_guard, port) = refused_port();
    let world = with_bad(|w| w.host_table_with("h2", &format!(", port = {port}")));
    assert_eq!(others_finish(&world, "unreachable")["code"], "unreachable");
}

#[test]
fn a_host_that_never_answers_is_unreachable_within_its_time_out() {
    let (_guard, port) = listening_silent();
    let world = with_bad(|w| w.host_table_with("h2", &format!(", port = {port}, connect_timeout = \"2s\"")));
    let cause = others_finish(&world, "unreachable");
    assert!(cause["message"].as_str().unwrap().contains("2s"), "{cause}");
}

#[test]
fn a_name_server_that_says_nothing_stops_nobody_else() {
    // Of this test run alone, on port 53: `resolv.conf` knows no other.
    let [.., high, low] = std::process::id().to_be_bytes();
    let address = std::net::Ipv4Addr::new(127, 53, high, low);
    let silent = std::net::UdpSocket::bind((address, 53)).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let world = World::new();
    std::fs::write(world.path("resolv.conf"), format!("nameserver {address}\n")).unwrap();
    let tables: Vec<String> =
        (0..200).map(|n| format!("{{ id = \"n{n}\", address = \"n{n}.test\", base = \"/var/tmp/never\" }}")).collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let rollout = "canary = 0, bake_time = \"0s\", max_parallel = 200, max_unreachable = 200, on_failure = \"halt\"";
    world.project(&Project::new("far").hosts(&tables).stage("unit", r#"run:sh "true""#).phases(rollout));
    world.project(&Project::new("near").hosts(&["h1"]).stage("unit", r#"run:sh "true""#));
    let daemon = world.start();
    world.repo.push("x");
    let press = |project: &str| {
        let answer = daemon.api.post(&format!("/v1/projects/{project}/start"), &json!({})).is(202);
        daemon.run(answer.json()["id"].as_str().unwrap())
    };
    let far = press("far");
    let mut asked = std::collections::BTreeSet::new();
    // As many as are looked up at the same moment; each of them takes 10 s to be given up.
    while asked.len() < 16 {
        let mut query = [0; 512];
        let n = silent.recv(&mut query).expect("names are looked up");
        asked.insert(query[12..n.min(20)].to_vec());
    }
    let began = Instant::now();
    press("near").wait().is("succeeded");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(far.now()["state"], "deploying");
}

#[test]
fn a_host_with_another_key_than_before_is_refused() {
    let world = with_bad(|w| {
        let other = Sshd::start(&w.path("other"), "", "");
        std::fs::write(w.path("changed"), other.known_hosts()).unwrap();
        w.host_table_with("h2", &format!(", known_hosts = \"{}\"", w.path("changed").display()))
    });
    let cause = others_finish(&world, "unreachable");
    assert_eq!(cause["code"], "host_key_changed", "{cause}");
    assert!(cause["message"].as_str().unwrap().contains("SHA256:"), "{cause}");
}

#[test]
fn a_host_that_nobody_knows_is_refused() {
    let world = with_bad(|w| {
        std::fs::write(w.path("empty"), "").unwrap();
        w.host_table_with("h2", &format!(", known_hosts = \"{}\"", w.path("empty").display()))
    });
    assert_eq!(others_finish(&world, "unreachable")["code"], "host_key_unknown");
}

#[test]
fn a_host_that_does_not_take_our_key_says_so() {
    let world = with_bad(|w| {
        let other = w.path("other-key");
        let keygen =
            std::process::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&other).status();
        assert!(keygen.unwrap().success());
        w.secret("other", &std::fs::read_to_string(other).unwrap());
        w.host_table_with("h2", ", key = phased.secret \"other\"")
    });
    let cause = others_finish(&world, "unreachable");
    assert_eq!(cause["code"], "auth_failed", "{cause}");
    assert!(cause["message"].as_str().unwrap().contains("fleet"), "{cause}");
}

#[test]
fn a_host_whose_command_kills_itself_has_failed() {
    let project = Project::new("shop")
        .rollout("max_parallel = 4, max_failures = 1")
        .deploy_after(r#"if host.id == "h2" then host:sh "echo dying; kill -9 $$" end"#);
    let world = with_bad_and(|w| w.host_table("h2"), project);
    let cause = others_finish(&world, "failed");
    assert!(cause["message"].as_str().unwrap().contains("137"), "{cause}");
}

#[test]
fn a_host_that_is_no_shell_is_its_own_error() {
    let world = with_bad(|w| {
        let authorized = std::fs::read_to_string(w.path("id.pub")).unwrap();
        let shell = Sshd::start(&w.path("noshell"), &authorized, "ForceCommand /bin/echo This account is closed.");
        std::fs::write(w.path("known_noshell"), shell.known_hosts()).unwrap();
        let port = shell.port;
        // It lives as long as the test's process; its world's end takes it away.
        std::mem::forget(shell);
        let known = w.path("known_noshell");
        w.host_table_with("h2", &format!(", port = {port}, known_hosts = \"{}\"", known.display()))
    });
    let run = world.1.deploy().is("succeeded");
    assert_eq!(run.hosts().iter().filter(|h| h.ends_with(":healthy")).count(), 3, "{:?}", run.hosts());
    let cause = &run.host("h2")["cause"];
    assert!(cause["message"].as_str().unwrap().contains("This account is closed"), "{cause}");
}

#[test]
fn a_full_budget_halts_and_skips_the_rest() {
    let project =
        Project::new("shop").deploy_after(r#"if host.id == "h2" then host:sh "echo no room >&2; exit 28" end"#);
    let (world, daemon) = with_bad_and(|w| w.host_table("h2"), project);
    let run = daemon.deploy().is("halted");
    assert_eq!(run.hosts(), ["h1:healthy", "h2:failed", "h3:skipped", "h4:skipped"]);
    assert_eq!(run.code(), "max_failures");
    assert!(run.message().contains("no room"), "{}", run.message());
    assert!(world.touched("h3").is_empty());
}

#[test]
fn a_deployment_that_reached_nobody_has_failed_not_halted() {
    let (_guard, port) = refused_port();
    let bad = |w: &World| w.host_table_with("h2", &format!(", port = {port}")).replace("id = \"h2\"", "id = \"a2\"");
    let (world, daemon) = with_bad_and(bad, Project::new("shop"));
    let run = daemon.deploy().is("failed");
    assert_eq!(run.code(), "max_unreachable");
    assert_eq!(run.hosts(), ["a2:unreachable", "h1:skipped", "h3:skipped", "h4:skipped"]);
    assert!(world.touched("h1").is_empty());
}

#[test]
fn a_cut_connection_is_taken_up_and_the_command_runs_once() {
    let deploy = r#"host:sh { [[ echo begun; echo once >>"$ROOT/h1/count"; sleep 2; echo "$PHASED_REVISION" >"$ROOT/h1/revision"; echo over ]],
        env = { ROOT = "@ROOT@" } }"#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).deploy(deploy));
    let commit = world.repo.push("over a bad line");
    let run = daemon.press();
    run.prints("begun");
    world.sshd.cut();
    let run = run.wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    assert_eq!(std::fs::read_to_string(world.host("h1").join("count")).unwrap(), "once\n");
    assert_eq!(run.log().matches("begun").count(), 1, "{}", run.log());
    assert!(run.log().contains("over"));
}

/// A world whose host `h2` has an sshd of its own and a command that runs for long when the others have none.
fn with_one_apart() -> (World, Daemon, Sshd) {
    let world = World::new();
    let authorized = std::fs::read_to_string(world.path("id.pub")).unwrap();
    let apart = Sshd::start(&world.path("apart"), &authorized, "");
    std::fs::write(world.path("known_apart"), apart.known_hosts()).unwrap();
    let keys = format!(", port = {}, known_hosts = \"{}\"", apart.port, world.path("known_apart").display());
    let bad = world.host_table_with("h2", &keys);
    let long = r#"if host.id == "h2" then host:sh { "echo begun; sleep 300", timeout = "3s" } end"#;
    let project = Project::new("shop").hosts(&["h1", &bad, "h3"]).rollout("max_parallel = 3, max_failures = 1");
    world.project(&project.deploy_after(long));
    let daemon = world.start();
    world.repo.push("for most of them");
    (world, daemon, apart)
}

#[test]
fn a_host_that_dies_in_the_middle_of_a_command_ends_in_its_time_out_and_the_others_finish() {
    let (world, daemon, dying) = with_one_apart();
    let run = daemon.press();
    run.prints("begun");
    drop(dying);
    let run = run.wait().is("succeeded");
    assert!(world.hosts_have(&["h1", "h3"], &world.repo.head()));
    let cause = &run.host("h2")["cause"];
    assert!(cause["message"].as_str().unwrap().contains("was cut while the command ran"), "{cause}");
}

#[test]
fn a_host_that_hangs_in_the_middle_of_a_command_ends_and_the_others_finish() {
    let (world, daemon, hanging) = with_one_apart();
    let run = daemon.press();
    run.prints("begun");
    hanging.freeze();
    let run = run.wait().is("succeeded");
    assert!(world.hosts_have(&["h1", "h3"], &world.repo.head()));
    // Silence is no error until three keepalives were not answered; by then there is no time left to ask again.
    assert_eq!(run.host("h2")["cause"]["code"], "lost", "{:#}", run.view);
}

#[test]
fn stop_now_ends_a_host_after_its_running_step() {
    let slow = r#"host:sh "echo begun; sleep 2; echo over""#;
    let project = Project::new("shop").hosts(&["h1", "h2"]).deploy_after(slow);
    let (world, daemon) = World::with(&project);
    world.repo.push("stopped in the middle");
    let run = daemon.press();
    run.prints("begun");
    daemon.api.post("/v1/projects/shop/stop", &json!({ "now": true })).is(202);
    let run = run.wait().is("stopped");
    assert!(run.log().contains("over"), "{}", run.log());
    assert_eq!(run.hosts(), ["h1:unknown", "h2:skipped"]);
    assert!(world.touched("h1").is_empty());
}

#[test]
fn stop_lets_hosts_in_flight_finish() {
    let slow = r#"host:sh "echo begun; sleep 1""#;
    let project = Project::new("shop").hosts(&["h1", "h2"]).deploy_after(slow);
    let (world, daemon) = World::with(&project);
    let commit = world.repo.push("stopped between two");
    let run = daemon.press();
    run.prints("begun");
    daemon.api.post("/v1/projects/shop/stop", &json!({})).is(202);
    let run = run.wait().is("stopped");
    assert_eq!(run.hosts(), ["h1:healthy", "h2:skipped"]);
    assert!(world.hosts_have(&["h1"], &commit));
    assert!(world.touched("h2").is_empty());
}

#[test]
fn a_deployment_of_a_later_run_wins_over_one_that_comes_back() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]));
    world.repo.push("first");
    daemon.deploy().is("succeeded");
    let path = world.host("h1").join("base/epoch.shop.production");
    let epoch: u64 = std::fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    std::fs::write(&path, format!("{}\n", epoch + 1_000_000_000)).unwrap();
    world.repo.push("second");
    let run = daemon.deploy();
    assert_eq!(run.host("h1")["cause"]["code"], "stale_epoch", "{:#}", run.view);
}
