//! Every step with its options, here and on a real host.

use crate::fixture::{Project, World, run::Ended};

/// Runs `lua` in a deploy on one host, after a stage that runs `stage`.
#[track_caller]
fn on_host(lua: &str) -> (World, Ended) {
    on_host_with(Project::new("shop"), lua)
}

#[track_caller]
fn on_host_with(project: Project, lua: &str) -> (World, Ended) {
    let world = World::new();
    world.secret("token", "s3cr3t-value");
    world.project(&project.hosts(&["h1"]).deploy(&lua.replace("@DIR@", "@ROOT@/h1")));
    let daemon = world.start();
    world.repo.commit(&[("build/app.txt", "the app\n"), ("run.sh", "echo from the checkout")], "steps");
    world.repo.push_as("main");
    let run = daemon.deploy().is("succeeded");
    drop(daemon);
    (world, run)
}

fn read(world: &World, name: &str) -> String {
    std::fs::read_to_string(world.host("h1").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn a_variable_that_no_program_can_be_given_is_refused_here_and_on_hosts() {
    let step = |on: &str| {
        format!(
            r#"local ok, why = pcall(function() {on}:sh {{ "true", env = {{ BIG = ("x"):rep(128 * 1024) }} }} end)
               assert(not ok and why.code == "bad_argument", tostring(why))
               assert(why.message:find("variable BIG has 131072 bytes", 1, true) and why.message:find("run:write", 1, true), why.message)"#
        )
    };
    let (world, daemon) =
        World::with(&Project::new("shop").hosts(&["h1"]).stage("unit", &step("run")).deploy(&step("host")));
    world.repo.push("big");
    daemon.deploy().is("succeeded");
}

#[test]
fn commands_have_exactly_the_environment_they_are_promised() {
    let print = |on: &str| format!(r#"{on}:sh {{ "env", env = {{ EXTRA = "e x=tra" }} }}"#);
    let project = Project::new("shop").stage("unit", &print("run"));
    let (_world, run) = on_host_with(project, &print("host"));
    for (query, expected) in [
        (
            "?step=test/unit",
            "CI EXTRA HOME LANG LOGNAME PATH PHASED_BRANCH PHASED_PHASE PHASED_PROJECT PHASED_RELEASE PHASED_REVISION PHASED_RUN PHASED_STEP PWD SHELL USER",
        ),
        (
            "?step=production",
            "CI EXTRA HOME LANG LOGNAME PATH PHASED_BRANCH PHASED_DEPLOYMENT PHASED_ENVIRONMENT PHASED_HOST_ID PHASED_HOST_NAME PHASED_PHASE \
             PHASED_PROJECT PHASED_RELEASE PHASED_REVISION PHASED_RUN PHASED_STEP PWD SHELL USER",
        ),
    ] {
        let log = run.logs[query].clone();
        let mut names: Vec<&str> =
            log.lines().filter_map(|l| l.split_once('=')).map(|(n, _)| n).filter(|n| *n != "_").collect();
        names.sort_unstable();
        let names: Vec<&str> = names
            .into_iter()
            .filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
            .collect();
        let expected: Vec<&str> = expected.split_whitespace().collect();
        let without_pwd: Vec<&str> = expected.iter().copied().filter(|n| *n != "PWD").collect();
        assert!(names == expected || names == without_pwd, "{query}: {names:?}");
        for line in [
            "LANG=C.UTF-8",
            "CI=true",
            "EXTRA=e x=tra",
            "PHASED_PROJECT=shop",
            "PHASED_BRANCH=main",
            "PHASED_STEP=sh#1",
        ] {
            assert!(log.contains(line), "{line}: {log}");
        }
    }
    let host = &run.logs["?step=production"];
    for line in
        ["PHASED_HOST_ID=h1", "PHASED_ENVIRONMENT=production", "PHASED_PHASE=deploy", "USER=fleet", "LOGNAME=fleet"]
    {
        assert!(host.contains(line), "{line}: {host}");
    }
}

#[test]
fn sh_takes_cwd_env_stdin_and_the_shell_to_use() {
    on_host(
        r#"local r = host:sh { "pwd; cat; echo $A", cwd = "@DIR@", stdin = "from stdin\n", env = { A = 5 } }
        assert(r.stdout:find("/h1\nfrom stdin\n5\n", 1, true), r.stdout)
        local r = host:sh { "set -o | grep pipefail; [[ a == a ]]; f() { local x=(1 2); echo ${#x[@]}; }; f", shell = "bash" }
        assert(r.stdout:find "pipefail%s+on" and r.stdout:find "2", r.stdout)
        local r = host:sh { "false | true", check = false, shell = "bash" }
        assert(r.code == 1, r.code)
        local r = host:sh { "cat" }
        assert(r.stdout == "", "no stdin is empty stdin")"#,
    );
}

#[test]
fn a_failure_is_raised_or_returned() {
    on_host(
        r#"local r = host:sh { "echo out; echo err >&2; exit 42", check = false }
        assert(r.code == 42 and r.stdout == "out\n" and r.stderr == "err\n")
        local ok, e = pcall(function() host:sh "exit 41" end)
        assert(not ok and e.message:find "41", e.message)
        local r = host:sh { "sleep 60", timeout = "300ms", check = false }
        assert(r.code == nil, "a time-out has no exit code")
        local ok, e = pcall(function() host:sh { "sleep 60", timeout = "300ms" } end)
        assert(not ok and e.message:find "300ms", e.message)"#,
    );
}

#[test]
fn a_step_is_tried_again_with_a_growing_pause() {
    let (world, _) = on_host(
        r#"host:sh { [[date +%s%3N >>"$D/tries"; [ "$(wc -l <"$D/tries")" -ge 3 ] ]], env = { D = "@DIR@" }, retries = 4, backoff = "200ms" }"#,
    );
    let tries: Vec<i64> = read(&world, "tries").lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(tries.len(), 3);
    assert!(tries[1] - tries[0] >= 200 && tries[2] - tries[1] >= 400, "{tries:?}");
}

#[test]
fn exec_runs_a_program_without_a_shell() {
    on_host(
        r#"local r = host:exec { "printf", "%s|%s|%s", "$HOME", "a b", "*" }
        assert(r.stdout == "$HOME|a b|*", r.stdout)
        local r = host:exec { "sh", "-c", "exit 7", check = false }
        assert(r.code == 7)
        local ok, e = pcall(function() host:exec { "no-such-program" } end)
        assert(not ok and e.message:find "no%-such%-program", e.message)"#,
    );
}

#[test]
fn write_changes_a_file_only_when_it_is_different() {
    let (world, _) = on_host(
        r#"assert(host:write { "@DIR@/conf", content = "a = 1\n", mode = "0640" }.changed)
        assert(not host:write { "@DIR@/conf", content = "a = 1\n", mode = "0640" }.changed)
        assert(host:write { "@DIR@/conf", content = "a = 2\n" }.changed)
        host:write { "@DIR@/env", mode = "0600", env = { TOKEN = phased.secret "token", PORT = 8080, ODD = 'a"b$c`d\\e' } }
        local r = host:sh { '. "$D/env"; printf "%s|%s|%s" "$TOKEN" "$PORT" "$ODD"', env = { D = "@DIR@" } }
        assert(r.stdout:find([=[|8080|a"b$c`d\e]=], 1, true), r.stdout)"#,
    );
    assert_eq!(read(&world, "conf"), "a = 2\n");
    let mode = |name: &str| {
        std::os::unix::fs::PermissionsExt::mode(&world.host("h1").join(name).metadata().unwrap().permissions())
    };
    assert_eq!((mode("conf") & 0o777, mode("env") & 0o777), (0o640, 0o600));
    assert!(read(&world, "env").contains("s3cr3t-value"));
}

#[test]
fn files_go_up_and_come_down() {
    let (world, _) = on_host(
        r#"assert(host:upload { "build/app.txt", to = "@DIR@/app.txt", mode = "0755" }.changed)
        assert(not host:upload { "build/app.txt", to = "@DIR@/app.txt", mode = "0755" }.changed)
        host:sh { 'head -c 3000000 /dev/urandom >"$D/big"', env = { D = "@DIR@" } }
        local d = host:download { "@DIR@/big", to = "fetched-big" }
        assert(d.size == 3000000 and #d.sha256 == 64)
        assert(host:sh { 'sha256sum <"$D/big"', env = { D = "@DIR@" } }.stdout:sub(1, 64) == d.sha256)
        host:upload { "fetched-big", to = "@DIR@/again" }
        host:sh { 'cmp "$D/big" "$D/again"', env = { D = "@DIR@" } }
        local ok, e = pcall(function() host:upload { "nothing", to = "@DIR@/x" } end)
        assert(not ok and e.message:find "nothing", e.message)
        local ok, e = pcall(function() host:download { "@DIR@/nothing", to = "x" } end)
        assert(not ok and e.message:find "nothing", e.message)"#,
    );
    assert_eq!(read(&world, "app.txt"), "the app\n");
}

#[test]
fn wait_sleep_and_now_tell_time() {
    on_host(
        r#"local before = host:now()
        host:sleep "300ms"
        local after = host:now()
        assert(after.ms - before.ms >= 300 and after.text:sub(-1) == "Z", after.text)
        host:wait { command = "true", timeout = "5s" }
        local ok, e = pcall(function() host:wait { command = "echo not yet; false", timeout = "600ms", interval = "100ms" } end)
        assert(not ok and e.message:find "not yet", e.message)
        local ok, e = pcall(function() host:wait { tcp = ":1", timeout = "600ms", interval = "100ms" } end)
        assert(not ok, "nothing listens there")"#,
    );
}

#[test]
fn a_full_url_is_asked_from_here() {
    let sink = crate::fixture::Sink::start();
    let lua = r#"local r = host:http { "URL", method = "POST", json = { a = { 1, 2 }, t = phased.secret "token" }, headers = { ["x-y"] = "z" } }
      assert(r.status == 200)
      local ok, e = pcall(function() host:http { "http://127.0.0.1:1/", timeout = "2s" } end)
      assert(not ok and e.message:find "127.0.0.1:1", e.message)"#;
    on_host(&lua.replace("URL", &sink.url()));
    assert_eq!(sink.messages(), [serde_json::json!({ "a": [1, 2], "t": "s3cr3t-value" })]);
}

#[test]
fn parallel_runs_side_by_side_and_raises_the_first_error_by_name() {
    on_host(
        r#"local before = host:now().ms
        local results = host:parallel {
          a = function() host:sh "sleep 1"; return 1 end,
          b = function() host:sh "sleep 1"; return "two" end,
          c = function() host:sleep "1s" end,
        }
        assert(results.a == 1 and results.b == "two")
        assert(host:now().ms - before < 2900, "side by side")
        local ok, e = pcall(function()
          host:parallel { x = function() host:sleep "300ms"; host:fail "slow" end, y = function() host:fail "quick" end }
        end)
        assert(not ok and tostring(e) == "slow" and e.code == "failed", tostring(e))"#,
    );
}

#[test]
fn a_service_is_restarted_by_exactly_one_sudo_line_and_a_refusal_names_it() {
    // No sudo is needed for this: a sudo of the test's own is first in PATH and writes down what it was asked.
    let project = Project::new("shop").ssh(r#"path = "@ROOT@/h1/bin:/usr/bin:/bin""#);
    let (world, _) = on_host_with(
        project,
        r#"host:sh { 'mkdir -p "$D/bin"', env = { D = "@DIR@" } }
        host:write { "@DIR@/bin/sudo", mode = "0755", content = '#!/bin/sh\necho "$*" >>@DIR@/asked\n[ ! -e @DIR@/refuse ] || { echo "sudo: a password is required" >&2; exit 1; }\n' }
        host:service("shop"):restart()
        host:service("shop@1.timer"):stop()
        host:write { "@DIR@/refuse", content = "" }
        local ok, e = pcall(function() host:service("shop"):start() end)
        assert(not ok and e.message:find("fleet ALL=(root) NOPASSWD: /usr/bin/systemctl start shop.service", 1, true), e.message)"#,
    );
    assert_eq!(
        read(&world, "asked"),
        "-n systemctl restart shop.service\n-n systemctl stop shop@1.timer\n-n systemctl start shop.service\n"
    );
}

#[test]
fn log_and_fail_say_it_in_the_authors_words() {
    let (world, daemon) =
        World::with(&Project::new("shop").hosts(&["h1"]).deploy(r#"host:log "almost there"; host:fail "but no""#));
    world.repo.push("x");
    let run = daemon.deploy().is("failed");
    assert!(run.log().contains("almost there"), "{}", run.log());
    assert!(run.host("h1")["cause"]["message"].as_str().unwrap().contains("but no"), "{:#}", run.view);
}

#[test]
fn the_checkout_is_the_jobs_own_and_fresh_for_every_run() {
    let test = r#"assert(run.dir:sub(1, 1) == "/")
      run:sh "sh ./run.sh; test ! -e left; touch left; git log -1 --format=%H; git status --porcelain | grep left""#;
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", test));
    let daemon = world.start();
    world.repo.commit(&[("run.sh", "echo from the checkout")], "one");
    let commit = world.repo.push_as("main");
    let run = daemon.deploy().is("succeeded");
    assert!(run.log().contains("from the checkout") && run.log().contains(&commit), "{}", run.log());
    daemon.idle();
    daemon.press_with(&serde_json::json!({ "retest": true })).wait().is("succeeded");
}
