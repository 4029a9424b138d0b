//! Names that mean something to a shell, a format, a path or a terminal: they stay names.

use crate::fixture::{Project, World};

/// Each would leave a file `CANARY` somewhere, or change what is run, if anything read it as more than text.
const HOSTILE: &[&str] = &[
    "$(touch CANARY)",
    "`touch CANARY`",
    "'; touch CANARY; '",
    "\"; touch CANARY; \"",
    "\\'; touch CANARY #",
    "; touch CANARY",
    "& touch CANARY &",
    "| touch CANARY",
    "|| touch CANARY",
    "&& touch CANARY",
    "> CANARY",
    "< /etc/passwd > CANARY",
    "$(>CANARY)",
    "${IFS}touch${IFS}CANARY",
    "$IFS$9touch$IFS$9CANARY",
    "$((1+1))",
    "$HOME",
    "${PATH}",
    "$0 $1 $@ $* $# $$ $!",
    "!! !$ !touch",
    "~root",
    "*",
    "? [a-z]*",
    "{a,b}",
    "-rf /",
    "--upload-pack=touch CANARY",
    "--help",
    "-oProxyCommand=touch CANARY",
    "--",
    "-",
    "\\",
    "\\n\\t\\0",
    "trailing backslash \\",
    "%s%n%x",
    "%(refname)",
    "#{system('touch CANARY')}",
    "{{7*7}}",
    "<script>touch</script>",
    "' OR 1=1 --",
    "\u{202e}gnp.exe",
    "\u{200b}zero width",
    "café ☕ 🌕",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "CON",
    "a\ttab",
    "a\u{1b}[31mred\u{1b}[0m",
    "a\u{7}bell",
    "Z-PHASED-END-1",
    "EOF",
    "X exit 0 0",
    "O 1 0 5",
    "[[ ]] (( ))",
    "]==] .. os.execute('touch CANARY')",
    "name=value",
    "export PATH=/tmp",
    "0123456789abcdef0123456789abcdef01234567",
    "null",
    "true",
    "\"\"",
    "''",
    " leading and trailing ",
];

#[test]
fn there_are_enough_of_them() {
    assert!(HOSTILE.len() >= 50);
}

/// Nothing below the world is called like the canary.
#[track_caller]
fn no_canary(world: &World) {
    let found = std::process::Command::new("find").arg(world.root()).args(["-name", "*CANARY*"]).output().unwrap();
    // The test's own files only have the word within longer names.
    let names = String::from_utf8(found.stdout).unwrap();
    let canaries: Vec<&str> = names.lines().filter(|l| l.ends_with("/CANARY")).collect();
    assert_eq!(canaries, Vec::<&str>::new());
    assert!(!std::path::Path::new("/CANARY").exists());
}

#[test]
fn every_hostile_text_reaches_environments_arguments_and_stdin_byte_by_byte() {
    let escaped = |h: &str| h.bytes().map(|b| format!("\\{b:03}")).collect::<String>();
    let texts: Vec<String> = HOSTILE.iter().map(|h| format!("\"{}\"", escaped(h))).collect();
    let each = format!(
        r#"for _, text in ipairs {{ {} }} do
          local r = on:sh {{ 'printf %s "$T"; printf %s "$T" >&2', env = {{ T = text }} }}
          assert(r.stdout == text and r.stderr == text, "env: " .. text)
          local r = on:exec {{ "printf", "%s", text }}
          assert(r.stdout == text, "argv: " .. text)
          local r = on:sh {{ "cat", stdin = text }}
          assert(r.stdout == text, "stdin: " .. text)
        end"#,
        texts.join(", ")
    );
    let project = Project::new("shop")
        .hosts(&["h1"])
        .stage("unit", &format!("local on = run; {each}"))
        .deploy(&format!("local on = host; {each}"));
    let (world, daemon) = World::with(&project);
    world.repo.push("texts");
    daemon.deploy().is("succeeded");
    no_canary(&world);
}

#[test]
fn hostile_messages_authors_and_files_reach_lua_the_api_and_alerts_as_they_are() {
    let deploy = r#"host:sh { 'printf %s "$M" >"$ROOT/h1/message"; printf %s "$A" >"$ROOT/h1/author"',
      env = { ROOT = "@ROOT@", M = release.message, A = release.author } }"#;
    let sink = crate::fixture::Sink::start();
    let notify =
        format!(r#"{{ bad = require "alerts.log" {{}}, good = require "alerts.webhook" {{ "{}" }} }}"#, sink.url());
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).deploy(deploy).notify(&notify));
    let all = HOSTILE.join("\n");
    let files: Vec<(String, String)> = HOSTILE
        .iter()
        .enumerate()
        .filter(|(_, h)| !h.contains('/') && !h.starts_with('.'))
        .map(|(i, h)| (format!("files/{h} {i}"), (*h).to_owned()))
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(n, c)| (n.as_str(), c.as_str())).collect();
    world.repo.commit_by("$(touch CANARY) `touch CANARY`", &files, &all);
    world.repo.push_as("main");
    let run = daemon.deploy().is("succeeded");
    let message = std::fs::read_to_string(world.host("h1").join("message")).unwrap();
    assert_eq!(message.trim_end(), all.trim_end());
    let author = std::fs::read_to_string(world.host("h1").join("author")).unwrap();
    assert_eq!(author, "$(touch CANARY) `touch CANARY` <ada@example.com>");
    assert_eq!(run.view["release"]["author"], author);
    assert!(run.view["release"]["message"].as_str().unwrap().starts_with(HOSTILE[0]));
    assert_eq!(sink.message_of(&run.id)["author"], author);
    no_canary(&world);
}

#[test]
fn hostile_branches_are_tested_and_deployed() {
    // What git allows in a branch's name; each one reaches stage and host as it is.
    let branches = [
        "$(touch${IFS}CANARY)",
        "`touch${IFS}CANARY`",
        "';touch${IFS}CANARY;'",
        "\"a\"b",
        "feature/$HOME",
        "a;b&c|d",
        "a#b%s{x}",
        "0123456789abcdef0123456789abcdef01234567",
        "déjà-vu-☕",
        "a'b",
        "!!",
        "x-oProxyCommand=y",
    ];
    let world = World::new();
    let seen = r#"'printf %s "$PHASED_BRANCH" >"$OUT"'"#;
    for (i, branch) in branches.iter().enumerate() {
        let stage = format!(r#"run:sh {{ {seen}, env = {{ OUT = "@ROOT@/../tested/branch{i}" }} }}"#);
        let deploy = format!(r#"host:sh {{ {seen}, env = {{ OUT = "@ROOT@/h{i}/branch" }} }}"#);
        let host = format!("h{i}");
        world.project(
            &Project::new(&format!("p{i}")).branch(branch).stage("unit", &stage).hosts(&[&host]).deploy(&deploy),
        );
        world.repo.commit(&[("branch", branch)], branch);
        world.repo.push_as(branch);
    }
    let daemon = world.start();
    for (i, branch) in branches.iter().enumerate() {
        let runs =
            || daemon.api.get(&format!("/v1/runs?project=p{i}")).json()["items"][0]["id"].as_str().map(str::to_owned);
        let id = crate::fixture::eventually("the branch is found", runs);
        let run = daemon.run(&id).wait().is("succeeded");
        assert_eq!(std::fs::read_to_string(world.path(&format!("tested/branch{i}"))).unwrap(), *branch);
        assert_eq!(std::fs::read_to_string(world.host(&format!("h{i}")).join("branch")).unwrap(), *branch);
        assert_eq!(run.view["release"]["branch"], *branch);
    }
    no_canary(&world);
}

#[test]
fn hostile_host_ids_and_names_are_only_names() {
    let world = World::new();
    let hostile = ["$(touch CANARY)", "`touch CANARY`", "'; touch CANARY; '", "-rf", "..", "a b", "%2e%2e%2fx", "☕"];
    let tables: Vec<String> = hostile
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let table = world.host_table(&format!("n{i}"));
            let escaped: String = name.bytes().map(|b| format!("\\{b:03}")).collect();
            table.replace(
                &format!("id = \"n{i}\""),
                &format!("id = \"n{i}\", name = \"{escaped}\", labels = {{ n = {i} }}"),
            )
        })
        .collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let deploy = r#"host:sh { 'printf %s "$PHASED_HOST_NAME" >"$OUT"', env = { OUT = "@ROOT@/n" .. host.labels.n .. "/name" } }"#;
    world.project(&Project::new("shop").hosts(&tables).deploy(deploy));
    let daemon = world.start();
    world.repo.push("x");
    daemon.deploy().is("succeeded");
    for (i, name) in hostile.iter().enumerate() {
        assert_eq!(std::fs::read_to_string(world.host(&format!("n{i}")).join("name")).unwrap(), *name);
    }
    no_canary(&world);
}

#[test]
fn hostile_references_in_a_request_are_refused_or_only_looked_up() {
    let (world, daemon) = World::with(&Project::new("shop"));
    world.repo.push("x");
    for reference in HOSTILE {
        let answer = daemon.api.post("/v1/projects/shop/start", &serde_json::json!({ "ref": reference }));
        let (status, code) = answer.problem();
        assert!(status == 422 && (code.starts_with("ref_") || code == "bad_value"), "{reference:?}: {}", answer.text());
    }
    assert!(daemon.runs().is_empty());
    no_canary(&world);
}
