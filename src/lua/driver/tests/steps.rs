//! What steps ask for, and what they raise.

use super::*;

#[test]
fn steps_ask_as_the_registry_says_and_count_by_branch_and_verb() {
    let (asked, end) = run(r#"
      local a = run:sh "one"
      run:exec { "ls", "-l", cwd = "/" }
      local b = run:sh { "two", env = { PORT = 80, KEY = phased.secret "k" }, on_unknown = function() end }
      run:log(5)
      run:sleep "1s"
      return a.stdout .. b.stdout"#);
    assert_eq!(
        asked,
        [
            r#"- sh#1 local {"command":"one"}"#,
            r#"- exec#1 local {"argv":["ls","-l"],"cwd":"/"}"#,
            r#"- sh#2 local {"command":"two","env":{"KEY":{"$secret":"k"},"PORT":"80"}}"#,
            r#"- log#1 local {"text":"5"}"#,
            r#"- sleep#1 local {"duration":"1s"}"#,
        ]
    );
    assert_eq!(end, Turn::Return(json!("onetwo")));
}

#[test]
fn hosts_are_named_by_id_and_services_are_steps() {
    let text = project(
        r#"
      local host, it = run, release
      host:service("shop"):restart { timeout = "1m" }
      rawset(host, "id", "another")
      host:sh "x"
      return it:changed "db/**""#,
    );
    let mut driving = Driving::of(bundle(&text, &[]), Limits::default());
    let (asked, end) = through(&mut driving, "environments/p/deploy");
    assert_eq!(
        asked,
        [r#"- service#1 h/1 {"action":"restart","timeout":"1m","unit":"shop"}"#, r#"- sh#1 h/1 {"command":"x"}"#]
    );
    assert_eq!(end, Turn::Return(json!(true)));
}

#[test]
fn a_step_may_be_taken_wherever_lua_itself_calls() {
    for (body, steps) in [
        ("pcall(function() run:sh 'x' end)", 1),
        ("pcall(run.sh, run, 'x')", 1),
        ("xpcall(function() run:sh 'x' end, function(e) return e end)", 1),
        ("table.sort({ 3, 1, 2 }, function(a, b) run:sh 'x' return a < b end)", 3),
        ("local _ = ('a b'):gsub('%a', function(c) run:sh(c) return c end)", 2),
        ("for w in ('a b'):gmatch '%a' do run:sh(w) end", 2),
        ("local x = setmetatable({}, { __index = function(_, k) run:sh(k) return k end }).key", 1),
        ("local x = setmetatable({}, { __add = function() run:sh 'x' end }) + 1", 1),
        ("local x = tostring(setmetatable({}, { __tostring = function() run:sh 'x' return 't' end }))", 1),
        ("local x = ('%s'):format(setmetatable({}, { __tostring = function() run:sh 'x' return 't' end }))", 1),
        ("for k in pairs(setmetatable({}, { __pairs = function() run:sh 'x' return function() end end })) do end", 1),
        ("setmetatable({}, { __call = function(_, c) run:sh(c) end })('x')", 1),
        ("table.concat(setmetatable({}, { __index = function() run:sh 'x' return 'v' end }), ',', 1, 2)", 2),
    ] {
        let (asked, end) = run(body);
        assert_eq!((asked.len(), end), (steps, Turn::Return(Json::Null)), "{body}");
    }
}

#[test]
fn where_no_step_can_wait_none_is_asked_for() {
    for (body, late) in [
        ("xpcall(error, function() run:sh 'x' end) return 'on'", ""),
        ("for _, v in ipairs(setmetatable({}, { __index = function() run:sh 'x' end })) do end", ""),
        ("phased.run = run require 'late'", "phased.run:sh 'x'"),
        ("phased.run = run pcall(require, 'late') require 'late'", "phased.run:parallel { a = function() end }"),
    ] {
        let text = project(body);
        let (asked, end) =
            through(&mut Driving::of(bundle(&text, &[("late", late)]), Limits::default()), "test/unit/run");
        assert!(asked.is_empty(), "{body}: {asked:?}");
        match end {
            Turn::Return(value) => assert_eq!(value, json!("on"), "{body}"),
            Turn::Raised { cause, .. } => assert!(cause.message.contains("cannot wait in here"), "{body}: {cause:?}"),
            other => panic!("{body}: {other:?}"),
        }
    }
    // While the project's own file is loaded there is nobody to answer.
    let text = "phased.http 'https://x'\nreturn phased.project {}";
    let Turn::Raised { cause, .. } = Driving::of(bundle(text, &[]), Limits::default()).start() else {
        panic!("raised")
    };
    assert_eq!(cause.facts["at"], "projects/shop.lua:1");
    assert!(cause.message.contains("use run:http or host:http"), "{cause:?}");
}

#[test]
fn branches_run_side_by_side_and_all_are_waited_for() {
    let (asked, end) = run(r#"
      local r = run:parallel {
        b = function() run:sh "b1" run:sh "b2" return "B" end,
        a = function()
          local inner = run:parallel { y = function() return run:sh("y").stdout end, ["x-1"] = function() run:log "l" end }
          return inner.y
        end,
        c = function() end,
      }
      run:sh "after"
      return r.a .. r.b .. tostring(r.c)"#);
    let mut sorted = asked.clone();
    sorted.sort();
    assert_eq!(
        sorted,
        [
            r#"- sh#1 local {"command":"after"}"#,
            r#"a:x-1 log#1 local {"text":"l"}"#,
            r#"a:y sh#1 local {"command":"y"}"#,
            r#"b sh#1 local {"command":"b1"}"#,
            r#"b sh#2 local {"command":"b2"}"#,
        ]
    );
    assert!(asked.last().unwrap().starts_with("- sh#1"), "{asked:?}");
    assert_eq!(end, Turn::Return(json!("yBnil")));
    assert_eq!(returned("return run:parallel {}"), json!([]));
}

#[test]
fn the_first_error_by_name_is_raised_after_all_have_ended() {
    let mut driving = Driving::new(
        r#"
      local ok, why = pcall(run.parallel, run, {
        z = function() error("z failed") end,
        b = function() run:sh "b" end,
        c = function() run:sh "c" end,
      })
      return { ok, why.message, tostring(why), why.exit }"#,
    );
    let Turn::Requests(requests) = driving.start() else { panic!("requests") };
    let branch = |name: &str| requests.iter().find(|r| r.branch.as_str() == name).unwrap().branch.clone();
    assert_eq!(requests.len(), 2, "z has failed already and the others go on");
    driving.answer(&branch("c"), &failed("c failed"));
    assert!(driving.is_silent());
    driving.answer(&branch("b"), &failed("b failed"));
    assert_eq!(driving.turn(), Turn::Return(json!([false, "b failed", "b failed", 3])));
}

#[test]
fn nobody_knows_and_a_function_finds_out() {
    let lost = Outcome::Unknown { cause: Cause::new("lost", "the command is gone") };
    let body = |verdict: &str| {
        format!("return run:sh {{ 'x', on_unknown = function(on, why) asked = on.id .. why.code {verdict} end }}")
            .replace("asked =", "local asked =")
    };
    let mut driving = Driving::new(&body("return true"));
    driving.start();
    let Turn::Return(value) = driving.resume(&lost) else { panic!("it happened") };
    assert_eq!((value["code"].as_i64(), value["stdout"].as_str()), (Some(0), Some("")));
    let mut driving = Driving::new(&body("return false"));
    driving.start();
    let Turn::Requests(again) = driving.resume(&lost) else { panic!("again") };
    assert_eq!((again[0].n, &again[0].args), (2, &json!({"command": "x"})));
    assert_eq!(crate::model::pipeline::StepOptions::of(&again[0].args), Default::default());
    for verdict in ["", "return nil", "return 'yes'", "return 1"] {
        let mut driving = Driving::new(&body(verdict));
        driving.start();
        let Turn::Raised { cause, .. } = driving.resume(&lost) else { panic!("{verdict}") };
        assert_eq!(
            (cause.code.as_str(), cause.facts["at"].as_str()),
            ("lost", Some("projects/shop.lua:1")),
            "a tail call leaves only this"
        );
    }
    for plain in ["run:sh 'x'", "run:sh { 'x', on_unknown = 'fail', check = false }"] {
        let mut driving = Driving::new(plain);
        driving.start();
        assert!(matches!(driving.resume(&lost), Turn::Raised { cause, .. } if cause.code == "lost"));
    }
}

#[test]
fn a_failure_is_raised_or_returned() {
    let mut driving = Driving::new("local r = run:sh { 'x', check = false } return { r.code, r.stdout, r.error.code }");
    driving.start();
    assert_eq!(driving.resume(&failed("no")), Turn::Return(json!([3, "out", "exit"])));
    let mut driving = Driving::new("local function deep()\n  run:sh 'x'\nend\ndeep()");
    driving.start();
    let Turn::Raised { cause, .. } = driving.resume(&failed("no")) else { panic!("raised") };
    assert_eq!((cause.code.as_str(), cause.message.as_str(), cause.facts["exit"].as_i64()), ("exit", "no", Some(3)));
    assert_eq!(cause.facts["at"], "projects/shop.lua:3");
    let traceback = cause.facts["traceback"].as_str().unwrap();
    assert!(traceback.starts_with("projects/shop.lua:3 in deep\nprojects/shop.lua:5"), "{traceback}");
    assert!(!traceback.contains("prelude") && !traceback.contains("[C]"), "{traceback}");
    for text in ["why .. '!'", "'' .. why .. '!'", "tostring(why) .. '!'"] {
        let body = format!("local ok, why = pcall(run.fail, run, 'no') return {text}");
        assert_eq!(returned(&body), json!("no!"), "{text}");
    }
}

#[test]
fn errors_say_what_and_where() {
    for (body, code, message) in [
        ("run:fail 'the schema is old'", "failed", "the schema is old"),
        ("error { code = 'mine', message = 'm', n = 1 }", "mine", "m"),
        ("error { 'first' }", "failed", "first"),
        ("error 'text'", "lua_error", "text"),
        ("error('text', 0)", "lua_error", "text"),
        ("error()", "lua_error", "an error without a message was raised: error(nil)"),
        ("error(5)", "lua_error", "5"),
        ("error {}", "lua_error", "a table without a message was raised: error { code = ..., message = ... }"),
        ("error(phased.secret 'k')", "lua_error", "an error without a message was raised: it is the secret \"k\""),
        ("local x = nil; return x.y", "lua_error", "attempt to index a nil value (local 'x')"),
        ("return 1 + {}", "lua_error", "attempt to perform arithmetic on a table value"),
        ("run:shh 'x'", "lua_error", "run has no \"shh\"; did you mean \"sh\"?"),
        ("run:artifact { 'x' }", "lua_error", "run:artifact needs one of path or value"),
        ("return run.dri", "lua_error", "run has no \"dri\"; did you mean \"dir\"?"),
        ("run.x = 1", "lua_error", "run.x cannot be set"),
        ("run.sh 'x'", "lua_error", "run:sh is called with a colon, on the run"),
        ("run:sh { 'x', timout = '1s' }", "lua_error", "unknown key \"timout\" in run:sh (did you mean \"timeout\"?)"),
        ("return run.release.revison", "lua_error", "release has no \"revison\"; did you mean \"revision\"?"),
        ("return run.release.artifacts.app", "lua_error", "the release has no artifact app: it has image, tree"),
        (
            "return 'x' .. run.release.artifacts.image",
            "lua_error",
            "the artifact \"image\" cannot be joined to text: its text is .value, as in release.artifacts.image.value",
        ),
        (
            "return run.release.artifacts.tree .. 'x'",
            "lua_error",
            "the artifact \"tree\" is a tree and cannot be joined to text: pass it to host:upload, or use its .sha256 or .size",
        ),
        ("return run.release.artifacts.tree.sha", "lua_error", "an artifact has no \"sha\"; it has name, kind, sha256"),
        ("run.release.artifacts.x = 1", "lua_error", "release.artifacts.x cannot be set"),
        ("run.release:changed '['", "lua_error", "release:changed: \"[\" is no glob"),
        ("run:parallel { a = 1 }", "lua_error", "run:parallel: branches.a must be a function, not 1"),
        ("local s = phased.secret 'k' .. 'x'", "lua_error", "the secret \"k\" cannot be joined to text"),
        ("phased.http 'https://x'", "lua_error", "phased.http is for discovery, probes and alerts"),
        ("prnt 'x'", "lua_error", "there is no variable \"prnt\""),
        ("paris {}", "lua_error", "there is no variable \"paris\"; did you mean \"pairs\"?"),
        ("x = 1", "lua_error", "a global \"x\" would be made here: write local"),
        ("print 'x'", "lua_error", "there is no variable \"print\"; use run:log"),
        ("('x'):rep(-1, {})", "lua_error", "bad argument #3 to 'rep' (string expected, got table)"),
        ("('x'):find()", "lua_error", "bad argument #2"),
        ("('x'):find '[a'", "lua_error", "malformed pattern (missing ']')"),
        ("table.concat { 1, {} }", "lua_error", "invalid value (at index 2) in table for 'concat'"),
        ("table.sort { 1, 'x' }", "lua_error", "attempt to compare"),
        ("pairs { [{}] = 1 }", "lua_error", "a table with a table as a key has no order"),
        ("phased.json.decode '{'", "lua_error", "no JSON"),
        ("require 'not.there'", "lua_error", "module \"not.there\" is not in the pinned code"),
        ("error(setmetatable({}, { __tostring = error }))", "lua_error", "a table without a message"),
    ] {
        let cause = raised(body);
        assert_eq!(cause.code, code, "{body}: {cause:?}");
        assert!(cause.message.starts_with(message), "{body}: {cause:?}");
        assert_eq!(cause.facts.get("at"), Some(&json!("projects/shop.lua:2")), "{body}: {cause:?}");
        assert!(!cause.message.contains("0x"), "{body}: {cause:?}");
    }
    let caught = returned("local ok, why = pcall(function()\n  return ('x'):find '[a'\nend) return why");
    assert_eq!(caught, "projects/shop.lua:3: malformed pattern (missing ']')");
}

#[test]
fn answers_that_fit_nothing_do_no_harm() {
    let mut driving = Driving::new("local r = run:parallel { a = function() return run:sh 'x' end } return r.a");
    let Turn::Requests(requests) = driving.start() else { panic!("requests") };
    driving.answer(&Branch::top(), &Outcome::Ok(json!(1)));
    driving.answer(&Branch::top().child("none"), &Outcome::Ok(json!(1)));
    assert!(driving.is_silent());
    driving.answer(&requests[0].branch, &Outcome::Ok(json!([{"$b64": "/w=="}, {"$b64": "!"}, null, 1e300])));
    assert!(matches!(driving.turn(), Turn::Return(_)));
    driving.answer(&requests[0].branch, &Outcome::Ok(json!(2)));
    assert!(driving.is_silent(), "the call has ended");
    // Ended: nothing of it goes on.
    let mut driving = Driving::new("pcall(run.sh, run, 'x') return 1");
    driving.start();
    let key = driving.key.clone();
    driving.program.end(&key, Cause::new("stopped", "enough"));
    assert!(matches!(driving.turn(), Turn::Ended { .. }));
    driving.answer(&Branch::top(), &Outcome::Ok(Json::Null));
    assert!(driving.is_silent());
    assert!(matches!(driving.call("test/unit/none"), Turn::Raised { .. } | Turn::Ended { .. }));
}

#[test]
fn verify_is_given_the_run_and_the_deployment() {
    let text =
        project("return { run.id, #release.hosts, release.hosts[2].name, release.release.id, release.previous.id }");
    let (_, end) = through(&mut Driving::of(bundle(&text, &[]), Limits::default()), "environments/p/verify");
    assert_eq!(end, Turn::Return(json!(["01k", 2, "name-h2", "a1b2c3d4e5f6", "old"])));
}

/// `cargo test -- --ignored --nocapture ten_thousand_calls`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods)]
fn ten_thousand_calls() {
    let began = std::time::Instant::now();
    let mut driving = Driving::new("for i = 1, 3 do run:sh { 'step', env = { N = i } } end");
    for _ in 0..10_000 {
        driving.start();
        for _ in 0..3 {
            driving.resume(&Outcome::Ok(json!({"stdout": "x", "stderr": "", "code": 0})));
        }
    }
    println!("10,000 calls of three steps, each a VM: {:?}", began.elapsed());
}
