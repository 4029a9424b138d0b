//! A release is built once; every host, environment and re-run gets the same bytes.

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::fixture::{Daemon, Project, World, eventually, run::Ended};

/// What the build makes is another thing each time: only what was stored can be twice the same.
const BUILD: &str = r#"run:sh [[mkdir -p out/bin; date +%s%N >out/built; printf '#!/bin/sh\n' >out/bin/app; chmod 755 out/bin/app
      ln -s bin/app out/link; ln -s /etc/passwd out/outside; echo "$PHASED_REVISION" >single; mkdir out/skip; touch out/skip/x]]
    run:artifact { "app", path = "out", exclude = { "skip" } }
    run:artifact { "single", path = "single" }
    run:artifact { "image", value = "sha256:0123" }"#;

const DEPLOY: &str = r#"local a = release.artifacts
      host:upload { a.app, to = "@ROOT@/" .. host.id .. "/app", unpack = true }
      host:upload { a.single, to = "@ROOT@/" .. host.id .. "/single" }
      host:write { "@ROOT@/" .. host.id .. "/image", content = a.image.value }"#;

fn building() -> Project {
    Project::new("shop").stage("build", BUILD).hosts(&["h1", "h2"]).deploy(DEPLOY)
}

fn read(world: &World, host: &str, name: &str) -> String {
    std::fs::read_to_string(world.host(host).join(name)).unwrap_or_else(|e| panic!("{host} {name}: {e}"))
}

fn artifacts(run: &Ended) -> Value {
    run.view["release"]["artifacts"].clone()
}

#[test]
fn what_was_built_once_is_deployed_everywhere_and_again_without_its_repository() {
    let project = building().environment("staging").environment("production").hosts(&["h3"]);
    let (world, daemon) = World::with(&project);
    world.repo.push("x");
    let first = daemon.deploy().is("succeeded");
    let built = read(&world, "h1", "app/built");
    for host in ["h1", "h2", "h3"] {
        assert_eq!(read(&world, host, "app/built"), built);
        assert_eq!(read(&world, host, "single").trim(), world.repo.head());
        assert_eq!(read(&world, host, "image"), "sha256:0123");
        let app = world.host(host).join("app");
        assert_eq!(app.join("bin/app").metadata().unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read_link(app.join("link")).unwrap(), Path::new("bin/app"));
        assert_eq!(std::fs::read_link(app.join("outside")).unwrap(), Path::new("/etc/passwd"));
        assert!(!app.join("skip").exists());
    }
    let seen = artifacts(&first);
    let kinds: Vec<&str> = seen.as_array().unwrap().iter().map(|a| a["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["tree", "file", "value"]);
    assert_eq!((&seen[2]["value"], &seen[2]["blob"]), (&json!("sha256:0123"), &Value::Null));
    assert!(seen[0]["size"].as_u64().unwrap() > 2000 && seen[0]["sha256"] != seen[0]["blob"], "{seen}");
    // Neither the forge nor the daemon that built it is needed.
    daemon.idle();
    daemon.kill();
    let daemon = world.start();
    std::fs::rename(world.path("repo.git"), world.path("gone.git")).unwrap();
    for host in ["h1", "h2", "h3"] {
        std::fs::remove_dir_all(world.host(host).join("app")).unwrap();
        std::fs::remove_dir_all(world.host(host).join("base/blobs")).unwrap();
    }
    let again = daemon.press_with(&json!({ "ref": first.view["release"]["revision"], "redeploy": true })).wait();
    let again = again.is("succeeded");
    assert_eq!(again.stage("build")["state"], "skipped");
    assert_eq!((artifacts(&again), &again.view["release"]["id"]), (seen, &first.view["release"]["id"]));
    for host in ["h1", "h2", "h3"] {
        assert_eq!(read(&world, host, "app/built"), built);
    }
}

#[test]
fn a_retest_makes_another_build_and_replaces_none() {
    let (world, daemon) = World::with(&building());
    world.repo.push("x");
    let first = daemon.deploy().is("succeeded");
    let id = first.view["release"]["id"].as_str().unwrap().to_owned();
    let built = read(&world, "h1", "app/built");
    daemon.idle();
    let second = daemon.press_with(&json!({ "retest": true })).wait().is("succeeded");
    assert_eq!(second.view["release"]["id"], format!("{id}.2"));
    assert_ne!(read(&world, "h1", "app/built"), built);
    assert_ne!(artifacts(&second)[0]["sha256"], artifacts(&first)[0]["sha256"]);
    assert_eq!(artifacts(&second)[1]["sha256"], artifacts(&first)[1]["sha256"]);
    // The newest build is what ships from here on; the first one's bytes are still there.
    daemon.idle();
    let third = daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded");
    assert_eq!((&third.view["release"]["id"], artifacts(&third)), (&second.view["release"]["id"], artifacts(&second)));
    for run in [&first, &second] {
        let blob = artifacts(run)[0]["blob"].as_str().unwrap().to_owned();
        assert!(world.path("data/blobs").join(blob).exists());
    }
    // Other code tests again, so it builds again.
    daemon.idle();
    let fourth = {
        world.project(&building().stage("more", "run:sh 'true'"));
        daemon.api.post("/v1/reload", &json!({})).is(200);
        daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded")
    };
    assert_eq!(fourth.view["release"]["id"], format!("{id}.3"));
}

#[test]
fn a_host_that_has_it_is_skipped_and_one_that_was_changed_is_not() {
    let deploy = r#"local to = "@ROOT@/" .. host.id
      local tree = host:upload { release.artifacts.app, to = to .. "/app", unpack = true }.changed
      local file = host:upload { release.artifacts.single, to = to .. "/single", mode = "0600" }.changed
      host:log("changed " .. tostring(tree) .. " " .. tostring(file))"#;
    let (world, daemon) = World::with(&building().hosts(&["h1"]).deploy(deploy));
    world.repo.push("x");
    let redeploy = || {
        daemon.idle();
        daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded").log_of("?step=production")
    };
    assert!(daemon.deploy().is("succeeded").log().contains("changed true true"));
    let host = world.host("h1");
    let inode = host.join("app/built").metadata().unwrap().ino();
    // What the application adds is its own business.
    std::fs::write(host.join("app/cache"), "").unwrap();
    assert!(redeploy().contains("changed false false"));
    assert!(host.join("app/built").metadata().unwrap().ino() == inode && host.join("app/cache").exists());
    assert_eq!(host.join("single").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let (built, single) = (read(&world, "h1", "app/built"), read(&world, "h1", "single"));
    std::fs::write(host.join("app/built"), built.replace(['0', '1'], "9")).unwrap();
    std::fs::write(host.join("single"), "corrupted").unwrap();
    // Also what the host keeps of the transfer.
    for entry in std::fs::read_dir(host.join("base/blobs")).unwrap() {
        std::fs::write(entry.unwrap().path(), "corrupted").unwrap();
    }
    assert!(redeploy().contains("changed true true"));
    assert_eq!((read(&world, "h1", "app/built"), read(&world, "h1", "single")), (built, single));
    assert!(!host.join("app/cache").exists());
}

/// Bytes that no compression makes less of.
const LARGE: &str = r#"run:sh "mkdir out && head -c 60000000 /dev/urandom >out/large"
    run:artifact { "app", path = "out" }
    run:artifact { "large", path = "out/large" }"#;

#[test]
fn a_rollback_brings_back_the_very_bytes_while_the_forge_is_gone() {
    let world = World::new();
    world.project(&building());
    let daemon = world.start();
    let first = world.repo.push("first");
    daemon.deploy().is("succeeded");
    let built = read(&world, "h1", "app/built");
    world.repo.push("second");
    daemon.deploy().is("succeeded");
    assert_ne!(read(&world, "h1", "app/built"), built);
    std::fs::rename(world.path("repo.git"), world.path("gone.git")).unwrap();
    let back = daemon.cli(&["rollback", "shop", "production", "--wait"]);
    assert_eq!(back.code, 0, "{}{}", back.stdout, back.stderr);
    for host in ["h1", "h2"] {
        assert_eq!(read(&world, host, "app/built"), built, "{host}");
        assert_eq!(read(&world, host, "single").trim(), first, "{host}");
    }
}

#[test]
fn a_cut_upload_goes_on_where_it_was_cut() {
    let deploy = r#"host:upload { release.artifacts.app, to = "@ROOT@/h1/app", unpack = true }
      host:sh { 'sha256sum <"$D/app/large" >"$D/sum"', env = { D = "@ROOT@/h1" } }"#;
    let (world, daemon) = World::with(&Project::new("shop").stage("build", LARGE).hosts(&["h1"]).deploy(deploy));
    world.repo.push("x");
    let run = daemon.press();
    let part = || -> Option<PathBuf> {
        let entries = std::fs::read_dir(world.host("h1").join("base/blobs")).ok()?;
        entries.flatten().map(|e| e.path()).find(|path| path.extension().is_some_and(|e| e == "part"))
    };
    let len = |path: &Path| path.metadata().map_or(0, |meta| meta.len());
    let (part, before) = eventually("some of it has arrived", || {
        let path = part()?;
        let there = len(&path);
        (there > 2_000_000).then_some((path, there))
    });
    assert!(before < 60_000_000, "too fast to be cut");
    let inode = part.metadata().unwrap().ino();
    world.sshd.cut();
    // The very same file grows on.
    eventually("it goes on", || match part.metadata() {
        Ok(meta) => (meta.ino() == inode && meta.len() > before).then_some(()),
        Err(_) => Some(()),
    });
    let ended = run.wait().is("succeeded");
    let wanted = artifacts(&ended)[1]["sha256"].as_str().unwrap().to_owned();
    assert_eq!(read(&world, "h1", "sum")[..64], wanted);
}

#[test]
fn memory_does_not_grow_with_an_artifact() {
    let deploy = r#"host:upload { release.artifacts.app, to = "@ROOT@/" .. host.id .. "/app", unpack = true }"#;
    let project = Project::new("shop").stage("build", LARGE).hosts(&["h1", "h2", "h3"]).rollout("max_parallel = 3");
    let (world, daemon) = World::with(&project.deploy(deploy));
    let peak = |daemon: &Daemon| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = peak(&daemon);
    world.repo.push("x");
    daemon.deploy().is("succeeded");
    let grown = peak(&daemon) - before;
    assert!(grown < 55_000, "{grown} KiB for three hosts and 120 MB");
}

/// What a stage with this body ends with: the cause's code and message.
fn refused(body: &str) -> (String, String) {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).stage("build", body));
    world.repo.push("x");
    let run = daemon.deploy().is("failed");
    (run.code().to_owned(), run.message().to_owned())
}

#[test]
fn hostile_trees_are_refused_or_harmless() {
    for (make, code, why) in [
        ("mkdir out; mkfifo out/pipe", "artifact_failed", "pipe: a named pipe"),
        ("ln -s /etc out", "artifact_failed", "a link leads it out of the run's directory"),
        ("mkdir out; truncate -s 1T out/huge", "artifact_failed", "(it is sparse)"),
        ("true", "artifact_failed", "No such file"),
        (
            // It is looked at, then the large one before it is read.
            "mkdir out; head -c 40000000 /dev/urandom >out/a; echo x >out/log; \
             (exec </dev/null >/dev/null 2>&1; while sleep 0.01; do echo more >>out/log || exit; done) &",
            "artifact_failed",
            "log: it was changed while it was read",
        ),
    ] {
        let body = format!("run:sh {{ [==[{make}]==] }} run:artifact {{ 'app', path = 'out' }}");
        let (found, message) = refused(&body);
        assert!(found == code && message.contains(why), "{make}: {found}: {message}");
    }
    for (body, code) in [
        (r#"run:artifact { "a", value = "1" } run:artifact { "a", value = "2" }"#, "artifact_exists"),
        (r#"for i = 1, 17 do run:artifact { "a" .. i, value = "x" } end"#, "too_many_artifacts"),
        (r#"run:artifact_path "app""#, "artifact_unknown"),
    ] {
        assert_eq!(refused(body).0, code, "{body}");
    }
    // What the job user may not read it cannot make an artifact of, whatever the daemon may.
    let (code, message) = refused(r#"run:sh "ln -s /etc/shadow shadow" run:artifact { "app", path = "shadow" }"#);
    assert!(code == "artifact_failed" && message.contains("out of the run's directory"), "{message}");
}

#[test]
fn odd_names_and_links_arrive_as_they_were() {
    let make = r#"run:sh { [==[mkdir out && cd out && touch -- -rf 'a
b' ' c' "$(printf 'x%.0s' $(seq 200))" && ln -s ../../../../etc/passwd up && mkdir -p d/e && ln -s .. d/e/up]==] }
      run:artifact { "app", path = "out" }"#;
    let deploy = r#"host:upload { release.artifacts.app, to = "@ROOT@/h1/app", unpack = true }
      assert(not host:upload { release.artifacts.app, to = "@ROOT@/h1/app", unpack = true }.changed)"#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).stage("build", make).deploy(deploy));
    world.repo.push("x");
    daemon.deploy().is("succeeded");
    let app = world.host("h1").join("app");
    let names: Vec<String> =
        std::fs::read_dir(&app).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 6, "{names:?}");
    assert!(app.join("a\nb").exists() && app.join("-rf").exists());
    assert_eq!(std::fs::read_link(app.join("up")).unwrap(), Path::new("../../../../etc/passwd"));
    assert_eq!(std::fs::read_link(app.join("d/e/up")).unwrap(), Path::new(".."));
}

#[test]
fn a_later_stage_and_a_verify_have_what_was_stored() {
    let second = r#"local path = run:artifact_path "app"
      run:sh { 'test -x "$P/bin/app" && cat "$P/built"', env = { P = path } }
      run:sh { 'cat "$P"', env = { P = run:artifact_path "single" } }
      local ok, e = pcall(function() run:artifact_path "image" end)
      assert(not ok and e.message:find("is a value", 1, true), e.message)"#;
    let verify = r#"run:sh { 'cat "$P/built"', env = { P = run:artifact_path "app" } }
      local ok, e = pcall(function() run:artifact { "late", value = "x" } end)
      assert(not ok and e.code == "not_in_a_stage", e.message)"#;
    let (world, daemon) = World::with(&building().stage("unit", second).verify(verify));
    world.repo.push("x");
    let run = daemon.deploy().is("succeeded");
    let built = read(&world, "h1", "app/built");
    assert!(run.logs["?step=test/unit"].contains(built.trim()), "{}", run.logs["?step=test/unit"]);
    assert!(run.log_of("?step=production%231/verify").contains(built.trim()));
}

#[test]
fn a_kill_while_it_is_packed_packs_it_again() {
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).stage("build", LARGE));
    world.repo.push("x");
    let run = daemon.press();
    let blobs = world.path("data/blobs");
    eventually("it is being stored", || {
        let names = std::fs::read_dir(&blobs).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.into_iter().any(|name| name.starts_with(".new-")).then_some(())
    });
    daemon.kill();
    let daemon = world.start();
    let run = daemon.run(&run.id).wait().is("succeeded");
    assert_eq!(artifacts(&run).as_array().unwrap().len(), 2);
    let temporary = std::fs::read_dir(&blobs)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(temporary.count(), 0);
}

/// The sha256 of a file here.
fn sum(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

#[test]
fn artifacts_stay_while_they_are_live_and_go_with_their_run() {
    let (world, daemon) = World::with(&building().hosts(&["h1"]));
    let mut blobs = Vec::new();
    for n in 0..6 {
        world.repo.push(&format!("{n}"));
        let run = daemon.deploy().is("succeeded");
        let blob = world.path("data/blobs").join(artifacts(&run)[0]["blob"].as_str().unwrap());
        assert_eq!(sum(&blob), blob.file_name().unwrap().to_str().unwrap());
        blobs.push(blob);
        daemon.idle();
    }
    daemon.kill();
    std::fs::write(world.path("more.toml"), "[retention]\nruns = 0\nage = \"0s\"\nfailed = \"0s\"\n").unwrap();
    let daemon = world.start();
    eventually("the oldest is gone", || (!blobs[0].exists()).then_some(()));
    // What can be gone back to stays.
    assert!(blobs[1..].iter().all(|blob| blob.exists()));
    // What is live can be deployed again as it is.
    let again = daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded");
    assert_eq!(again.stage("build")["state"], "skipped");
}

/// What lies in a directory of a host, links as `name -> target`.
fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            std::fs::read_link(&path).map_or(name.clone(), |to| format!("{name} -> {}", to.display()))
        })
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

fn press(world: &World, daemon: &Daemon, message: &str) {
    world.repo.push(message);
    daemon.deploy().is("succeeded");
    daemon.idle();
}

#[test]
fn deploy_releases_keeps_them_side_by_side_and_switches_at_once() {
    let build = r#"run:sh [[mkdir -p out/log; date +%s%N >out/built; echo kept >out/log/.keep]]
      run:artifact { "app", path = "out" }"#;
    let project = Project::new("shop")
        .stage("build", build)
        .hosts(&["h1"])
        .head(r#"local app = require "deploy.releases" { dir = "@ROOT@/h1/srv", artifact = "app", shared = { "log", "tmp/pids" }, keep = 3 }"#)
        .deploy("app.prepare(host, release); app.activate(host, release)");
    let (world, daemon) = World::with(&project);
    let srv = world.host("h1").join("srv");
    let (mut ids, mut commits) = (Vec::new(), Vec::new());
    for n in 0..5 {
        press(&world, &daemon, &format!("{n}"));
        commits.push(world.repo.head());
        let current = std::fs::read_link(srv.join("current")).unwrap();
        let id = current.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(id, world.repo.head()[..12]);
        ids.push(id);
        let release = srv.join("current");
        assert_eq!(std::fs::read_link(release.join("log")).unwrap(), srv.join("shared/log"));
        assert_eq!(std::fs::read_link(release.join("tmp/pids")).unwrap(), srv.join("shared/tmp/pids"));
        std::fs::write(release.join("log/app.log"), format!("{n}")).unwrap();
    }
    let mut kept = ids[2..].to_vec();
    kept.sort();
    assert_eq!(listing(&srv.join("releases")), kept);
    assert_eq!(std::fs::read_to_string(srv.join("shared/log/app.log")).unwrap(), "4");
    // Once more: what serves is not touched.
    let built = srv.join("current/built").metadata().unwrap();
    daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded");
    daemon.idle();
    let now = srv.join("current/built").metadata().unwrap();
    assert_eq!((now.ino(), now.ctime_nsec()), (built.ino(), built.ctime_nsec()));
    // Back to an older one: it is there, but somebody has changed it.
    std::fs::write(srv.join("releases").join(&ids[2]).join("built"), "changed by hand").unwrap();
    daemon.press_with(&json!({ "ref": commits[2], "redeploy": true })).wait().is("succeeded");
    assert_eq!(std::fs::read_link(srv.join("current")).unwrap(), Path::new("releases").join(&ids[2]));
    assert_ne!(std::fs::read_to_string(srv.join("current/built")).unwrap(), "changed by hand");
    assert_eq!(std::fs::read_link(srv.join("current/log")).unwrap(), srv.join("shared/log"));
    assert_eq!(listing(&srv.join("releases")), kept, "the newest is the one before");
}

#[test]
fn deploy_releases_says_what_is_in_its_way() {
    let project = Project::new("shop")
        .stage(
            "build",
            r#"run:sh "mkdir out" run:artifact { "app", path = "out" } run:artifact { "one", value = "x" }"#,
        )
        .hosts(&["h1"])
        .head(
            r#"local releases = require "deploy.releases"
               local app = releases { dir = "@ROOT@/h1/srv", artifact = "app" }
               local value = releases { dir = "@ROOT@/h1/srv", artifact = "one" }
               local none = releases { dir = "@ROOT@/h1/srv", artifact = "nothing" }"#,
        )
        .deploy(
            r#"local function fails(f, why)
                 local ok, e = pcall(f, host, release)
                 assert(not ok and tostring(e):find(why, 1, true), tostring(e))
               end
               fails(value.prepare, "is a value; it must be a directory")
               fails(none.prepare, "the release has no artifact nothing: it has app, one")
               fails(app.activate, "the release was not prepared on this host")
               host:sh 'mkdir -p "@ROOT@/h1/srv/current"'
               fails(app.prepare, "is a directory and no link")"#,
        );
    let (world, daemon) = World::with(&project);
    world.repo.push("x");
    daemon.deploy().is("succeeded");
}

#[test]
fn another_users_files_are_put_in_place_by_that_user() {
    // The login's own user, so no sudo is needed: all else is done as for any other.
    let deploy = r#"local a = release.artifacts
      local function both()
        local tree = host:upload { a.app, to = "@ROOT@/h1/app", unpack = true, user = "fleet", mode = "0750" }
        local file = host:upload { a.single, to = "@ROOT@/h1/single", user = "fleet", mode = "0640" }
        return tostring(tree.changed) .. tostring(file.changed)
      end
      assert(both() == "truetrue")
      local sum = host:sh { 'ls /var/tmp | grep -c phased-upload || true' }.stdout
      assert(both() == "falsefalse")
      host:write { "@ROOT@/h1/app/built", content = "other" }
      assert(both() == "truefalse")
      local ok, e = pcall(function() host:upload { a.app, to = "@ROOT@/h1/no/such/app", unpack = true, user = "fleet" } end)
      assert(not ok and e.message:find("is not a directory", 1, true), e.message)
"#;
    let project = building().hosts(&["h1"]).deploy(deploy);
    let (world, daemon) = World::with(&project);
    world.repo.push("x");
    daemon.deploy().is("succeeded");
    let mode = |name: &str| world.host("h1").join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("app"), mode("single")), (0o750, 0o640));
    assert_eq!(read(&world, "h1", "single").trim(), world.repo.head());
    assert!(read(&world, "h1", "app/built").trim().parse::<u64>().is_ok());
}

/// Every name in a directory, hidden ones as well, sorted.
fn names(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn what_is_uploaded_has_the_owner_and_the_mode_it_is_to_have_and_a_wrong_owner_leaves_nothing() {
    let world = World::new();
    // Only root gives files away.
    let root = world.root_login("");
    let host = world.host_table_with("h1", &root.keys);
    // Put in place as part of the transfer, and by a command of its own.
    let deploy = r#"local a = release.artifacts
      for way, user in pairs { plain = false, command = "root" } do
        local dir = "@ROOT@/h1/" .. way
        host:sh { 'mkdir "$DIR"', env = { DIR = dir } }
        local function put(artifact, keys)
          local options = { artifact, to = dir .. "/" .. keys.to, unpack = keys.unpack, mode = keys.mode, owner = keys.owner }
          if user then options.user = user end
          return host:upload(options).changed
        end
        local function both(owner)
          local tree = put(a.app, { to = "app", unpack = true, mode = "0750", owner = owner })
          return tostring(tree) .. tostring(put(a.single, { to = "single", mode = "0640", owner = owner }))
        end
        local function refused(keys)
          local ok, e = pcall(put, keys.unpack and a.app or a.single, keys)
          assert(not ok and e.code == "upload_failed", tostring(e))
          assert(e.message:find("invalid user: ", 1, true) and e.message:find("nosuchuser", 1, true), e.message)
        end
        assert(both("nobody:nogroup") == "truetrue", way)
        assert(both("nobody:nogroup") == "falsefalse", way)
        -- A tree of another owner is another one; a file only changes hands.
        assert(both("fleet") == "truefalse", way)
        assert(both("nobody:nogroup") == "truefalse", way)
        refused { to = "new-tree", unpack = true, owner = "nosuchuser" }
        refused { to = "new-file", owner = "nosuchuser" }
        refused { to = "app", unpack = true, mode = "0700", owner = "nosuchuser:nogroup" }
        host:write { dir .. "/single", content = "older" }
        refused { to = "single", mode = "0600", owner = "nosuchuser" }
      end"#;
    world.project(&building().hosts(&[&host]).deploy(deploy));
    let daemon = world.start();
    world.repo.push("x");
    daemon.deploy().is("succeeded");
    for way in ["plain", "command"] {
        let dir = world.host("h1").join(way);
        let is = |name: &str| {
            let meta = dir.join(name).symlink_metadata().unwrap();
            (meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777)
        };
        let nobody = |mode| (65534, 65534, mode);
        assert_eq!((is("app"), is("app/built").0, is("app/bin").0), (nobody(0o750), 65534, 65534), "{way}");
        // Links are given away themselves, and not what they lead to.
        assert_eq!((is("app/bin/app"), is("app/outside").0), (nobody(0o755), 65534), "{way}");
        assert_eq!(Path::new("/etc/passwd").metadata().unwrap().uid(), 0, "{way}");
        // What was refused has changed nothing, and nothing is left of it.
        assert_eq!((is("single"), read(&world, "h1", &format!("{way}/single"))), ((0, 0, 0o640), "older".to_owned()));
        assert_eq!(names(&dir), [".phased-tree-app", "app", "single"], "{way}");
    }
}

#[test]
fn killed_at_any_record_the_hosts_have_what_was_stored() {
    let deploy = r#"host:upload { release.artifacts.app, to = "@ROOT@/h1/app", unpack = true }
      host:upload { release.artifacts.single, to = "@ROOT@/h1/single" }"#;
    let (world, daemon) = World::with(&building().hosts(&["h1"]).deploy(deploy));
    world.repo.push("x");
    let whole = daemon.deploy().is("succeeded");
    let count = world.journal(&whole.id).len();
    daemon.idle();
    daemon.kill();
    for (n, place) in (3..=count).step_by(4).flat_map(|n| [(n, "before"), (n, "after")]) {
        let daemon = world.start_with(&[("PHASED_KILL", &format!("{place}:{n}"))]);
        let answer = daemon.api.with("content-type", "application/json").try_ask(
            "POST",
            "/v1/projects/shop/start",
            b"{\"retest\":true}",
        );
        drop(answer);
        daemon.dies();
        let daemon = world.start();
        let newest = eventually("there is a run", || Some(daemon.runs()[0]["id"].as_str()?.to_owned()));
        let run = daemon.run(&newest).wait().is("succeeded");
        let seen = artifacts(&run);
        assert_eq!(seen.as_array().map(Vec::len), Some(3), "{place}:{n}: {:#}", run.view);
        assert_eq!(sum(&world.host("h1").join("single")), seen[1]["sha256"].as_str().unwrap());
        let blob = world.path("data/blobs").join(seen[0]["blob"].as_str().unwrap());
        let built = std::process::Command::new("sh")
            .args(["-c", r#"zstd -dc "$1" | tar -xOf - built"#, "sh"])
            .arg(blob)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(built.stdout).unwrap(), read(&world, "h1", "app/built"), "{place}:{n}");
        daemon.idle();
        daemon.kill();
    }
}
