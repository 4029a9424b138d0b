//! Signals: an integration daemon without a shell anywhere, and receivers that deploy by rules of their own.

pub mod fleet;
mod forged;
mod looks;
mod proxy;
mod tls;

use serde_json::{Value, json};

use self::fleet::{Fleet, Wants};
use crate::fixture::{Daemon, eventually};

/// The newest run of a receiver.
fn newest(daemon: &Daemon) -> Value {
    let runs = daemon.runs();
    let id = runs.first().expect("it has a run")["id"].as_str().unwrap().to_owned();
    daemon.run(&id).now()
}

#[test]
fn a_release_goes_to_every_receiver_by_its_own_project_file_and_nobody_logs_in_anywhere() {
    let fleet = Fleet::new(3, &Wants::default());
    let first = fleet.sender.repo.push("one");
    let ended = fleet.daemon().deploy().is("succeeded");
    assert!(fleet.everywhere(&first));
    assert_eq!(ended.hosts(), ["r1:healthy", "r2:healthy", "r3:healthy"]);
    assert!(fleet.sender.untouched(), "nobody has a shell");
    for receiver in &fleet.receivers {
        assert_eq!(receiver.deployed(), std::slice::from_ref(&first), "once");
        let run = newest(receiver.daemon());
        assert_eq!((&run["trigger"], &run["state"]), (&json!("signal"), &json!("succeeded")), "{run}");
        assert!(run["by"].as_str().unwrap().contains(&format!("signal of integration, run {}", ended.id)), "{run}");
        assert_eq!(run["release"]["id"], json!(&first[..12]));
        let signals = receiver.signals();
        assert_eq!((&signals["taken"]["deploy"], &signals["refused"]), (&json!(1), &json!({})), "{signals}");
        // Where to look is in the sender's log.
        assert!(
            ended.log().contains(&format!("run {} deploys it there", run["id"].as_str().unwrap())),
            "{}",
            ended.log()
        );
    }
    // What is live is not sent again by itself; another commit is.
    let second = fleet.sender.repo.push("two");
    fleet.daemon().deploy().is("succeeded");
    assert!(fleet.everywhere(&second));
    assert_eq!(fleet.receivers[1].deployed(), [first, second]);
    // What a receiver's commands see of themselves, and what people see of the receiver.
    let receiver = &fleet.receivers[0];
    let said = receiver.daemon().cli(&["signals"]);
    assert!(said.code == 0 && said.stdout.contains("listens as r1") && said.stdout.contains("2 deploy"), "{said:?}");
    let status = receiver.daemon().status();
    assert_eq!(status["projects"][0]["environments"][0]["when"], "signal", "{status}");
}

#[test]
fn a_receiver_whose_health_fails_takes_the_release_back_everywhere() {
    let fleet = Fleet::new(3, &Wants::default());
    let good = fleet.sender.repo.push("good");
    fleet.daemon().deploy().is("succeeded");
    let bad = fleet.sender.repo.push("bad");
    std::fs::write(fleet.receivers[1].file("sick"), &bad).unwrap();
    let ended = fleet.daemon().deploy().is("rolled_back");
    assert!(fleet.everywhere(&good), "every receiver has the good one again");
    // Why, and where to look: the run of that receiver.
    let run = newest_bad(fleet.receivers[1].daemon());
    let words = ended.message();
    assert!(words.contains("r2") && words.contains(run["id"].as_str().unwrap()), "{words}");
    assert_eq!(run["state"], "rolled_back", "it went back by its own rules first");
    // The release is bad: nothing automatic starts it again, and a button needs to say so.
    let again = fleet.daemon().deploy().is("failed");
    assert_eq!(again.code(), "bad_release", "{}", again.message());
    assert_eq!(fleet.receivers[2].deployed(), std::slice::from_ref(&good), "r3 was never asked for the bad one");
    assert_eq!(fleet.receivers[0].deployed().last(), Some(&good));
}

/// The newest run that did not succeed.
fn newest_bad(daemon: &Daemon) -> Value {
    let runs = daemon.runs();
    runs.into_iter().find(|run| run["state"] != "succeeded").expect("one did not succeed")
}

#[test]
fn a_receiver_whose_deploy_fails_says_why_and_says_nothing_bad_of_the_release() {
    let wants =
        Wants { deploy: r#"host:sh "if [ -e @DIR@/broken ]; then echo no room >&2; exit 3; fi""#, ..Wants::default() };
    let fleet = Fleet::new(2, &wants);
    fleet.sender.repo.push("one");
    fleet.daemon().deploy().is("succeeded");
    let second = fleet.sender.repo.push("two");
    std::fs::write(fleet.receivers[0].file("broken"), "").unwrap();
    let ended = fleet.daemon().press().wait();
    assert!(ended.message().contains("no room") && ended.message().contains("r1"), "{}", ended.message());
    std::fs::remove_file(fleet.receivers[0].file("broken")).unwrap();
    // Not bad: it may be started again.
    fleet.daemon().deploy().is("succeeded");
    assert!(fleet.everywhere(&second));
}

#[test]
fn a_receiver_that_is_down_is_unreachable_and_gets_what_is_live_when_it_is_back() {
    let wants = Wants { rollout: r#"canary = 0, bake_time = "0s", max_unreachable = 1"#, ..Wants::default() };
    let mut fleet = Fleet::new(3, &wants);
    let first = fleet.sender.repo.push("one");
    fleet.daemon().deploy().is("succeeded");
    fleet.receivers[1].kill();
    let second = fleet.sender.repo.push("two");
    let ended = fleet.daemon().deploy().is("succeeded");
    assert_eq!(ended.hosts(), ["r1:healthy", "r2:unreachable", "r3:healthy"]);
    assert_eq!(ended.host("r2")["cause"]["code"], "unreachable", "{}", ended.view);
    assert_eq!(fleet.receivers[1].revision().as_deref(), Some(&*first));
    fleet.receivers[1].start();
    eventually("it converges", || fleet.everywhere(&second).then_some(()));
    let run = eventually("a run converges", || {
        fleet.daemon().runs().into_iter().find(|run| run["trigger"] == "converge" && run["state"] == "succeeded")
    });
    assert_eq!(run["release"]["id"], json!(&second[..12]));
    assert_eq!(fleet.receivers[1].deployed(), [first, second], "once each");
}

#[test]
fn the_sender_is_killed_in_the_middle_and_nothing_is_deployed_twice() {
    let mut fleet = Fleet::new(3, &Wants::default());
    let revision = fleet.sender.repo.push("one");
    fleet.receivers.iter().for_each(|receiver| receiver.hold(true));
    let run = fleet.daemon().press();
    for n in 0..3 {
        fleet.receivers[n].begun(1);
        fleet.kill_sender();
        if n == 0 {
            // Also between two lives: what has ended meanwhile is found.
            fleet.receivers[n].hold(false);
            eventually("its run is over", || {
                (newest(fleet.receivers[0].daemon())["state"] == "succeeded").then_some(())
            });
            fleet.kill_sender();
        } else {
            fleet.receivers[n].hold(false);
        }
    }
    fleet.daemon().run(&run.id).wait().is("succeeded");
    assert!(fleet.everywhere(&revision));
    for receiver in &fleet.receivers {
        assert_eq!(receiver.deployed(), std::slice::from_ref(&revision), "{} once", receiver.id);
        assert_eq!(receiver.daemon().runs().len(), 1, "one run of one token");
    }
}

#[test]
fn a_receiver_is_killed_in_the_middle_and_its_run_goes_on() {
    let mut fleet = Fleet::new(2, &Wants::default());
    let revision = fleet.sender.repo.push("one");
    fleet.receivers[0].hold(true);
    let run = fleet.daemon().press();
    fleet.receivers[0].begun(1);
    // Twice: the sender asks in vain meanwhile.
    for _ in 0..2 {
        fleet.receivers[0].kill();
        fleet.receivers[0].start();
    }
    assert!(!run.now()["state"].as_str().unwrap().contains("ed"), "it waits: {}", run.now()["state"]);
    fleet.receivers[0].hold(false);
    fleet.daemon().run(&run.id).wait().is("succeeded");
    assert!(fleet.everywhere(&revision));
    assert_eq!(fleet.receivers[0].deployed(), [revision], "the command went on, and was not begun again");
}

#[test]
fn artifacts_are_built_once_and_are_the_same_bytes_everywhere() {
    let wants = Wants {
        stages: r#"{ "build", run = function(run)
            run:sh "mkdir -p out && date +%s%N >out/stamp && head -c 2000000 /dev/urandom >out/noise && date +%s%N >file"
            run:artifact { "app", path = "out" }
            run:artifact { "file", path = "file" }
            run:artifact { "image", value = "sha256:abc" }
          end }"#,
        deploy: r#"host:upload { release.artifacts.app, to = "@DIR@/app", unpack = true }
            host:upload { release.artifacts.file, to = "@DIR@/file" }
            host:sh { 'echo "$IMAGE" >"@DIR@/image"', env = { IMAGE = release.artifacts.image.value } }"#,
        ..Wants::default()
    };
    let fleet = Fleet::new(2, &wants);
    fleet.sender.repo.push("one");
    let ended = fleet.daemon().deploy().is("succeeded");
    let read = |n: usize, name: &str| std::fs::read(fleet.receivers[n].file(name)).unwrap();
    for name in ["app/stamp", "app/noise", "file", "image"] {
        assert_eq!(read(0, name), read(1, name), "{name}");
    }
    assert_eq!(read(0, "image"), b"sha256:abc\n");
    let theirs = newest(fleet.receivers[0].daemon());
    assert_eq!(theirs["release"]["artifacts"], ended.view["release"]["artifacts"]);
    assert!(fleet.receivers[0].signals()["taken"]["piece"].as_u64().unwrap() >= 3, "{}", fleet.receivers[0].signals());
    // The same release again brings nothing that is there.
    let pieces = fleet.receivers[0].signals()["taken"]["piece"].clone();
    fleet.daemon().press_with(&json!({ "redeploy": true })).wait().is("succeeded");
    assert_eq!(fleet.receivers[0].signals()["taken"]["piece"], pieces);
}

#[test]
fn artifacts_come_to_a_receiver_whatever_bodies_it_takes_otherwise() {
    let wants = Wants {
        stages: r#"{ "build", run = function(run)
            run:sh "head -c 2000000 /dev/urandom >noise"
            run:artifact { "noise", path = "noise" }
          end }"#,
        deploy: r#"host:upload { release.artifacts.noise, to = "@DIR@/noise" }"#,
        limits: "body_size = \"64KiB\"\nhook_body_size = \"64KiB\"\nall_bodies_size = \"64KiB\"\n",
        ..Wants::default()
    };
    let fleet = Fleet::new(1, &wants);
    fleet.sender.repo.push("one");
    fleet.daemon().deploy().is("succeeded");
    assert_eq!(fleet.receivers[0].file("noise").metadata().unwrap().len(), 2_000_000);
    let taken = fleet.receivers[0].signals()["taken"]["piece"].clone();
    assert_eq!(taken, 3, "2 MB that cannot be compressed, in pieces of 768 KiB");
    // What is no piece is held to them.
    let long = "x".repeat(65 << 10);
    let refused = fleet.receivers[0].daemon().api.post("/v1/projects/shop/start", &json!({ "reason": long }));
    assert_eq!(refused.problem(), (413, "body_too_large".to_owned()));
}

#[test]
fn a_receivers_own_rules_refuse_a_signal_and_everybody_can_see_why() {
    let wants = Wants { rollout: r#"canary = 0, bake_time = "0s", max_unreachable = 1"#, ..Wants::default() };
    let fleet = Fleet::new(2, &wants);
    let first = fleet.sender.repo.push("one");
    fleet.daemon().deploy().is("succeeded");
    let frozen = fleet.receivers[0].daemon().cli(&["freeze", "shop", "production", "--reason", "audit"]);
    assert_eq!(frozen.code, 0, "{frozen:?}");
    let second = fleet.sender.repo.push("two");
    let ended = fleet.daemon().deploy().is("succeeded");
    assert_eq!(ended.hosts(), ["r1:unreachable", "r2:healthy"]);
    let cause = &ended.host("r1")["cause"];
    assert_eq!(cause["code"], "signal_frozen");
    assert!(cause["message"].as_str().unwrap().contains("audit"), "{cause}");
    assert_eq!(fleet.receivers[0].deployed(), std::slice::from_ref(&first));
    let signals = fleet.receivers[0].signals();
    assert_eq!(signals["refused"]["signal_frozen"], 1, "{signals}");
    assert_eq!(signals["recent"][0]["code"], "signal_frozen");
    let status = fleet.receivers[0].daemon().status();
    assert_eq!(status["trouble"][0]["code"], "signals_refused", "{status}");
    // Once it may again, it converges; a freeze lets a rollback in.
    assert_eq!(fleet.receivers[0].daemon().cli(&["unfreeze", "shop", "production"]).code, 0);
    eventually("it converges", || fleet.everywhere(&second).then_some(()));
    fleet.daemon().idle();
    assert_eq!(fleet.receivers[0].daemon().cli(&["freeze", "shop", "production"]).code, 0);
    let back = fleet.daemon().cli(&["rollback", "shop", "production", "--wait"]);
    assert_eq!(back.code, 0, "{back:?}");
    assert!(fleet.everywhere(&first));
}

#[test]
fn a_receivers_own_tests_gate_what_is_new_and_keep_nobody_from_going_back() {
    let wants = Wants {
        rollout: r#"canary = 0, bake_time = "0s""#,
        tests: r#"test = { { "smoke", run = function(run) run:sh "test ! -e @DIR@/broken" end } },"#,
        ..Wants::default()
    };
    let fleet = Fleet::new(1, &wants);
    let first = fleet.sender.repo.push("one");
    fleet.daemon().deploy().is("succeeded");
    fleet.sender.repo.push("two");
    fleet.daemon().deploy().is("succeeded");
    std::fs::write(fleet.receivers[0].file("broken"), "").unwrap();
    let back = fleet.daemon().cli(&["rollback", "shop", "production", "--wait"]);
    assert_eq!(back.code, 0, "{back:?}");
    assert!(fleet.everywhere(&first));
    let third = fleet.sender.repo.push("three");
    let ended = fleet.daemon().press().wait().is("rolled_back");
    assert_eq!(ended.view["cause"]["host_code"], "receiver_failed", "{}", ended.view);
    assert!(ended.message().contains("exit code 1"), "{}", ended.message());
    assert!(!fleet.receivers[0].deployed().contains(&third), "{:?}", fleet.receivers[0].deployed());
}

#[test]
fn a_receiver_goes_back_as_everybody_does_and_takes_what_it_never_had_as_new() {
    let wants = Wants {
        rollout: r#"canary = 0, bake_time = "0s", max_unreachable = 1"#,
        receiver: r#"before = function(deployment) deployment.hosts[1]:sh 'echo "$PHASED_REVISION" >>"@DIR@/before"' end"#,
        ..Wants::default()
    };
    let mut fleet = Fleet::new(2, &wants);
    let before = |fleet: &Fleet| {
        let text = std::fs::read_to_string(fleet.receivers[0].file("before")).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let one = fleet.sender.repo.push("one");
    fleet.daemon().deploy().is("succeeded");
    let two = fleet.sender.repo.push("two");
    fleet.daemon().deploy().is("succeeded");
    assert_eq!(before(&fleet), [&*one, &*two]);
    let back = fleet.daemon().cli(&["rollback", "shop", "production", "--wait"]);
    assert_eq!(back.code, 0, "{back:?}");
    assert!(fleet.everywhere(&one));
    // What is done once before a release is deployed is not done on the way back.
    assert_eq!(before(&fleet), [&*one, &*two]);
    let status = fleet.receivers[0].daemon().status();
    assert_eq!(status["projects"][0]["environments"][0]["release"]["id"], one[..12], "{status}");
    // One that was away gets what it never had, and that is new there.
    fleet.receivers[0].kill();
    let three = fleet.sender.repo.push("three");
    assert_eq!(fleet.daemon().deploy().is("succeeded").hosts(), ["r1:unreachable", "r2:healthy"]);
    fleet.receivers[0].start();
    eventually("it converges", || fleet.everywhere(&three).then_some(()));
    assert_eq!(before(&fleet), [one, two, three]);
}

#[test]
fn a_receiver_that_is_not_the_one_we_know_is_not_believed() {
    let mut fleet = Fleet::new(1, &Wants::default());
    fleet.sender.repo.push("one");
    // Somebody listens at its place, with a key of their own.
    fleet.receivers[0].kill();
    let world = &fleet.receivers[0].world;
    std::fs::remove_file(world.path("secrets/signals")).unwrap();
    let config = Daemon::configure(world);
    let mut command = std::process::Command::new(crate::fixture::BINARY);
    crate::fixture::output(command.args(["keys", "make", "--config"]).arg(config));
    fleet.receivers[0].start();
    let ended = fleet.daemon().press().wait().is("failed");
    assert_eq!(ended.host("r1")["cause"]["code"], "host_key_changed", "{}", ended.view);
    assert_eq!(ended.hosts(), ["r1:unreachable"]);
    assert!(ended.message().contains("put its new key where the old one is"), "{}", ended.message());
}

#[test]
fn a_step_that_needs_a_shell_says_that_there_is_none() {
    let wants =
        Wants { sender: r#"before = function(deployment) deployment.hosts[1]:sh "true" end"#, ..Wants::default() };
    let fleet = Fleet::new(1, &wants);
    fleet.sender.repo.push("one");
    let ended = fleet.daemon().press().wait().is("failed");
    assert!(
        ended.message().contains("reached by signals") && ended.message().contains("project file"),
        "{}",
        ended.message()
    );
    assert_eq!(fleet.receivers[0].deployed(), Vec::<String>::new());
}

#[test]
fn a_look_while_it_bakes_sees_what_is_wrong_at_a_receiver() {
    let wants = Wants { rollout: r#"canary = 1, bake_time = "60s""#, ..Wants::default() };
    let fleet = Fleet::new(2, &wants);
    let first = fleet.sender.repo.push("one");
    let run = fleet.daemon().press();
    for _ in 0..2 {
        let bakes = |view: &Value| {
            view["deployments"][0]["waves"]
                .as_array()
                .is_some_and(|waves| waves.iter().any(|w| !w["baking_since"].is_null()))
        };
        run.until("it bakes", bakes);
        assert_eq!(fleet.daemon().cli(&["promote", "shop", "production"]).code, 0);
        run.until("that bake is over", |view| !bakes(view));
    }
    run.wait().is("succeeded");
    let second = fleet.sender.repo.push("two");
    let run = fleet.daemon().press();
    run.until("it bakes", |view| view["deployments"][0]["state"] == "baking");
    // Well when it was deployed, and not any more: no alarm, no restart, only its health.
    std::fs::write(fleet.receivers[0].file("sick"), &second).unwrap();
    let ended = run.wait().is("rolled_back");
    assert!(ended.message().contains("was healthy, and is not any more"), "{}", ended.message());
    assert!(fleet.everywhere(&first));
}

#[test]
fn keys_are_made_listed_and_shown_and_none_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let (config, secrets) = (dir.path().join("phased.toml"), dir.path().join("secrets"));
    std::fs::create_dir(&secrets).unwrap();
    std::fs::write(&config, format!("[secrets]\ndir = \"{}\"\n", secrets.display())).unwrap();
    let keys = |args: &[&str]| {
        let mut command = std::process::Command::new(crate::fixture::BINARY);
        crate::fixture::output(command.arg("keys").args(args).arg("--config").arg(&config))
    };
    let made = keys(&["make", "shop", "--comment", "ci"]);
    assert!(made.code == 0 && made.stdout.starts_with("ssh-ed25519 ") && made.stdout.ends_with(" ci\n"), "{made:?}");
    let private = std::fs::read_to_string(secrets.join("shop")).unwrap();
    let again = keys(&["make", "shop"]);
    assert!(again.code == 1 && again.stderr.contains("is there already and is not written over"), "{again:?}");
    assert_eq!(std::fs::read_to_string(secrets.join("shop")).unwrap(), private);
    assert_eq!(keys(&["show", "shop"]).stdout, made.stdout);
    std::fs::write(secrets.join("token"), "no key of any kind").unwrap();
    let listed = keys(&["list"]).stdout;
    assert!(
        listed.lines().count() == 1 && listed.starts_with("shop  SHA256:") && listed.ends_with(&made.stdout),
        "{listed}"
    );
    let none = keys(&["show", "other"]);
    assert!(none.code == 1 && none.stderr.contains("\"other\" does not exist: put it into"), "{none:?}");
}
