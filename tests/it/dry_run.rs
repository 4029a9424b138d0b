//! `phased start --dry-run`: every command that a start would run, and nothing is done.

use serde_json::{Value, json};

use crate::fixture::{Project, World};

/// Stages, artifacts, hooks, secrets, waves: something of everything.
fn careful() -> Project {
    let keys = r#"
      prepare = function(host, release) host:upload { release.artifacts.app, to = "/srv/shop/next", unpack = true } end,
      before = function(deployment)
        deployment.hosts[1]:sh { "bin/migrate up", env = { DATABASE_URL = phased.secret "shop/database" } }
      end,
      drain = function(host) host:exec { "lb", "drain", host.name, user = "root" } end,
      undrain = function(host) host:service("shop"):restart() end"#;
    Project::new("shop")
        .hosts(&["h1", "h2", "h3"])
        .phases(r#"canary = 1, waves = { "100%" }, max_parallel = 2, bake_time = "5m""#)
        .health(r#"http = ":8080/healthz", min_healthy_time = "10s", healthy_deadline = "2m""#)
        .stage("build", r#"run:sh "npm ci && npm run build" run:artifact { "app", path = "." }"#)
        .stage_of(
            "unit",
            r#"setup = function(run) run:sh "populate" end, cleanup = function(run) run:sh "destroy" end,
               run = function(run)
                 run:parallel { lint = function() run:sh "lint" end, test = function() run:sh { "npm test", reports = "r/*.xml" } end }
               end"#,
        )
        .deploy(r#"host:sh { 'ln -sfn "releases/$PHASED_RELEASE" current', cwd = "/srv/shop" }"#)
        .verify(r#"run:sh "npm run smoke""#)
        .keys(keys)
}

/// Starts it dry through the command line; what it printed, without what differs from test to test.
fn dry(world: &World, daemon: &crate::fixture::Daemon, args: &[&str]) -> (i32, String) {
    let output = daemon.cli(&[&["start", "shop", "--dry-run"], args].concat());
    assert!(output.stderr.is_empty(), "{output:?}");
    (output.code, output.stdout.replace(world.root().to_str().unwrap(), "@"))
}

#[test]
fn every_command_is_printed_by_environment_wave_and_host_and_nothing_is_done() {
    let world = World::new();
    std::fs::create_dir(world.path("secrets/shop")).unwrap();
    world.secret("shop/database", "postgres://very-secret");
    world.project(&careful());
    let daemon = world.start();
    let commit = world.repo.push("dry");
    let before = daemon.runs().len();
    let (code, text) = dry(&world, &daemon, &[]);
    let wanted = format!(
        r#"dry run of shop: {} "dry" by Ada Lovelace; nothing was done
note: answers are assumed: every step succeeds and prints nothing, every host becomes healthy, no alarm fires. Where the code looks at an answer, another one may lead another way

test build
  run
    npm ci && npm run build
        at projects/shop.lua:5
    artifact app of .
        at projects/shop.lua:5

test unit
  setup
    populate
        at projects/shop.lua:6
  run
    [lint] lint
        at projects/shop.lua:8
    [test] npm test
        reports r/*.xml, at projects/shop.lua:8
  cleanup
    destroy
        at projects/shop.lua:6

production: plan, 3 hosts: canary 1, then 2, 2 at a time; a failure cannot go back: production has no other known-good release: this is the first, and nothing could be adopted: its health has no `version`, so nobody can tell what its hosts run

production: prepare, h1 h2 h3 (3 hosts)
  prepare
    upload artifact app to /srv/shop/next, unpacked
        at projects/shop.lua:14

production: before
  before
    on h1: bin/migrate up
        env DATABASE_URL=(secret shop/database), at projects/shop.lua:16

production: wave 1, h1
  drain
    lb drain h1
        as root, at projects/shop.lua:18
  deploy
    ln -sfn "releases/$PHASED_RELEASE" current
        in /srv/shop, at projects/shop.lua:20
  health
    look http :8080/healthz
        good for 10s within 2m
  undrain
    sudo -n systemctl restart shop.service
        at projects/shop.lua:19

production: bake (wave 1), watched for 5m

production: verify (wave 1)
  verify
    on the integration server: npm run smoke
        at projects/shop.lua:13
"#,
        &commit[..12]
    );
    assert_eq!(code, 0, "{text}");
    let (head, rest) = text.split_at(wanted.len().min(text.len()));
    assert_eq!(head, wanted, "\n{text}");
    for part in ["production: wave 2, h2\n", "production: wave 2, h3\n", "lb drain h3", "production: verify\n"] {
        assert!(rest.contains(part), "{part}: {rest}");
    }
    assert!(rest.ends_with("\nit would end succeeded\n") && !text.contains("very-secret"), "{rest}");

    // Nothing is anywhere: no run, no journal, nothing on a host, nothing is live.
    assert_eq!(daemon.runs().len(), before);
    assert_eq!(std::fs::read_dir(world.path("data/journal/runs")).unwrap().count(), before);
    for host in ["h1", "h2", "h3"] {
        assert!(std::fs::read_dir(world.host(host)).unwrap().next().is_none(), "{host} was touched");
    }
    assert_eq!(daemon.status()["projects"][0]["environments"][0]["release"], Value::Null);

    // The same as JSON, and as text for whoever asks for text.
    let answer = daemon.api.post("/v1/projects/shop/start", &json!({ "dry_run": true, "ref": commit })).is(200).json();
    assert_eq!((&answer["state"], &answer["errors"]), (&json!("succeeded"), &json!(0)));
    let waves = answer["parts"].as_array().unwrap().iter().filter(|part| part["phase"] == "wave");
    let hosts: Vec<String> = waves.map(|part| part["hosts"].to_string()).collect();
    assert_eq!(hosts, [r#"["h1"]"#, r#"["h2"]"#, r#"["h3"]"#]);
    let text = daemon.api.with("accept", "text/plain").post("/v1/projects/shop/start", &json!({ "dry_run": true }));
    assert!(text.is(200).text().starts_with("dry run of shop: "));
    assert_eq!(daemon.runs().len(), before);
}

#[test]
fn an_error_of_the_code_is_shown_where_it_is_and_what_follows_as_well() {
    let deploy = "local version = host:sh('cat version').stdout:match('%d+')\nhost:sh('echo ' .. version)";
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).deploy(deploy).verify(r#"run:sh "smoke""#));
    world.repo.push("dry");
    let (code, text) = dry(&world, &daemon, &[]);
    assert_eq!(code, 1, "{text}");
    let error = text.lines().find(|line| line.contains("ERROR")).unwrap_or_default();
    assert!(error.contains("ERROR projects/shop.lua:11") && error.contains("version"), "{text}");
    assert!(text.contains("    cat version\n") && text.contains("smoke"), "{text}");
    assert!(text.ends_with("it would end succeeded; 1 error of the Lua code, see above\n"), "{text}");
}

#[test]
fn what_a_start_would_not_do_or_wait_for_is_said() {
    let unsafe_ = r#"rollback_safe = function() return false, "the schema changed" end"#;
    let project = Project::new("shop").hosts(&["h1"]).environment("staging").keys(unsafe_).environment("production");
    let (world, daemon) = World::with(&project.hosts(&["h2"]).keys(r#"when = "manual""#));
    world.repo.push("dry");
    let path = "/v1/projects/shop/environments/staging/freeze";
    daemon.api.put(path, &json!({ "reason": "Christmas", "holder": "ann" })).is(200);
    let (code, text) = dry(&world, &daemon, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("note: staging is frozen by ann (Christmas): a start waits"), "{text}");
    assert!(
        text.contains("note: staging: a failure cannot go back: rollback_safe says no: the schema changed"),
        "{text}"
    );
    assert!(text.contains("note: production is not entered by itself: phased start shop production"), "{text}");
    assert!(!text.contains("production: wave"), "{text}");
    let (_, further) = dry(&world, &daemon, &["production"]);
    assert!(further.contains("staging: wave 1, h1") && further.contains("production: wave 1, h2"), "{further}");
    // A wrong reference is refused as for a start, and there is no dry wait.
    let wrong = daemon.api.post("/v1/projects/shop/start", &json!({ "dry_run": true, "ref": "nowhere" }));
    assert_eq!(wrong.problem(), (422, "ref_unknown".to_owned()));
    assert_eq!(daemon.cli(&["start", "shop", "--dry-run", "--wait"]).code, 2);
}

#[test]
fn a_fleet_is_told_once_and_code_without_an_end_is_cut() {
    let hosts: Vec<String> = (1..=40).map(|n| format!("h{n:02}")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let project = Project::new("shop").hosts(&hosts).rollout("max_parallel = 10");
    let (world, daemon) = World::with(&project);
    world.repo.push("dry");
    let (_, text) = dry(&world, &daemon, &[]);
    assert!(text.contains("production: wave 1, h01 h02 h03 h04 h05 h06 h07 h08 and 32 more (40 hosts)\n"), "{text}");
    world.project(&project.stage("unit", "while true do run:sh 'true' end"));
    daemon.api.post("/v1/reload", &json!({})).is(200);
    let (code, text) = dry(&world, &daemon, &[]);
    assert_eq!(code, 1);
    assert!(
        text.ends_with("CUT: this is only the beginning: it takes more than 20000 steps (dry_run_cut)\n"),
        "{}",
        &text[text.len() - 300..]
    );
}
