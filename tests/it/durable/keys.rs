//! The same script asks for the same steps in every process.

use serde_json::{Value, json};

use crate::fixture::{Project, World, times};

/// Everything whose order depends on a hash, an address or a clock elsewhere.
const SCRIPT: &str = r#"
  local t = {}
  for i = 1, 300 do t["key" .. (i * 7919 % 1000)] = i t[i * 31 % 97] = i end
  t[true], t[false], t[1.5], t[-3] = 1, 2, 3, 4
  local n = 0
  for k, v in pairs(t) do
    n = n + 1
    if n % 20 == 0 then run:sh { "true", env = { K = tostring(k), V = v } } end
  end
  run:exec { "echo", tostring({}), tostring(error), tostring(run), ("%s"):format({}) }
  table.sort(t, function(a, b) return a % 3 < b % 3 end)
  run:sh { "true", env = { FIRST = t[1], NEXT = tostring((next(t))), JSON = phased.json.encode { z = 1, a = { 1, 2 }, m = "x" } } }
  run:parallel {
    q = function() run:sh "echo q" end, b = function() run:sh "echo b" run:sh "echo b again" end,
    z1 = function() run:sh "echo z" end, a = function() run:parallel { y = function() run:sh "true" end, x = function() run:sh "true" end } end,
  }
  local ok, why = pcall(function() run:sh "exit 3" end)
  run:sh { "true", env = { WHY = tostring(ok) .. tostring(why) } }"#;

/// What was begun, by key and arguments; and in which order, where one step followed another.
fn begun(world: &World, run: &str) -> (Vec<String>, Vec<String>) {
    let begin = world.events(run, "begin");
    let text = |begin: &Value| format!("{} {}", begin["key"], begin["args"]);
    let followed = begin.iter().filter(|b| b["key"].as_str().unwrap().contains("/-/")).map(text).collect();
    let mut all: Vec<String> = begin.iter().map(text).collect();
    all.sort();
    (all, followed)
}

#[test]
fn the_same_script_has_the_same_keys_in_every_process() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).stage("unit", SCRIPT));
    world.repo.push("x");
    let mut first = None;
    for process in 0..times(12, 100) {
        let daemon = world.start();
        let id = match process {
            // The branch's head, found by itself.
            0 => daemon.nth_run(1).id,
            _ => daemon.press_with(&json!({ "redeploy": true, "retest": true })).id,
        };
        daemon.run(&id).wait().is("succeeded");
        let keys = begun(&world, &id);
        daemon.idle();
        daemon.kill();
        assert!(keys.0.len() > 25, "{keys:#?}");
        assert_eq!(first.get_or_insert_with(|| keys.clone()), &keys, "process {process}");
    }
}
