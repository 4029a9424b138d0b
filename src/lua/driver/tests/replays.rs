//! A call is taken up where its journal ends, and undone.

use super::*;
use crate::{model::step::StepKey, ports::program::Past};

/// Takes steps of each kind of shape: one after the other, side by side, in a loop, after a failure that was caught.
const BODY: &str = r#"
  local names = {}
  for i = 1, 3 do names[#names + 1] = run:sh("list " .. i).stdout end
  run:log("listed " .. #names)
  local got = run:parallel {
    b = function() run:log "b begins" local x = run:sh("b " .. math.random(1000)) return x.stdout .. run:exec { "b" }.stdout end,
    a = function() return run:sh("a " .. math.random(1000)).stdout end,
  }
  local ok, why = pcall(function() run:sh { "may fail", name = "risky" } end)
  run:log(tostring(ok) .. " " .. tostring(why))
  run:http { "http://example.com/", method = "POST", json = got }
  return { got = got, last = run:sh("end").stdout, ok = ok }"#;

fn key(call: &CallKey, request: &Request) -> StepKey {
    StepKey::new(call, &request.branch, request.verb.as_str(), request.n)
}

/// The answers of this world: each depends on what was asked alone.
fn answer(request: &Request) -> Outcome {
    if request.args["name"] == "risky" {
        return failed("it did");
    }
    Outcome::Ok(json!({ "stdout": format!("<{}>", request.args), "stderr": "", "code": 0 }))
}

/// Plays a call to its end, the newest request first; its journal, the lines of its log and its end.
fn play(driving: &mut Driving, mut turn: Turn, past: &mut Vec<Past>, open: &mut Vec<Request>) -> (Vec<String>, Turn) {
    let call = driving.key.clone();
    let mut lines = Vec::new();
    loop {
        match turn {
            Turn::Requests(requests) => {
                for request in requests {
                    if request.verb == Verb::Log {
                        lines.push(request.args["text"].as_str().unwrap().to_owned());
                        continue;
                    }
                    let (key, target, args) = (key(&call, &request), request.target.clone(), request.args.clone());
                    if !past.iter().any(|past| matches!(past, Past::Begun { key: k, .. } if *k == key)) {
                        past.push(Past::Begun { key, target, args });
                    }
                    open.push(request);
                }
            }
            end => return (lines, end),
        }
        let Some(request) = open.pop() else {
            turn = driving.turn();
            continue;
        };
        past.push(Past::Done { key: key(&call, &request), outcome: answer(&request) });
        driving.answer(&request.branch, &answer(&request));
        turn = driving.turn();
    }
}

/// The parallel branches answer two at once, and one of those answers brings no turn: this body has none.
const PLAIN: &str = r#"
  local sum = 0
  for i = 1, 5 do sum = sum + #run:sh("step " .. i .. " " .. math.random(100)).stdout end
  run:log("sum " .. sum)
  local ok = pcall(function() run:sh { "x", name = "risky" } end)
  return { sum = sum, ok = ok, r = math.random(1000000) }"#;

#[test]
fn a_call_cut_after_any_record_ends_as_one_that_was_not() {
    let mut whole = Driving::new(PLAIN);
    let (mut past, mut open) = (Vec::new(), Vec::new());
    let first = whole.start();
    let (lines, end) = play(&mut whole, first, &mut past, &mut open);
    assert!(matches!(end, Turn::Return(_)) && past.len() == 12, "{end:?} {past:?}");
    for cut in 0..=past.len() {
        let mut again = Driving::new(PLAIN);
        let (mut kept, mut open) = (past[..cut].to_vec(), Vec::new());
        let key = again.key.clone();
        again.program.call(&key, Opening { past: kept.clone(), ..opening("test/unit/run") });
        let turn = again.turn();
        let (told, ended) = play(&mut again, turn, &mut kept, &mut open);
        assert_eq!((ended, told, kept), (end.clone(), lines.clone(), past.clone()), "cut at {cut}");
    }
}

#[test]
fn side_by_side_answers_are_given_in_the_order_of_the_journal() {
    // Both orders of the two branches, each replayed to every point.
    for order in [["a", "b"], ["b", "a"]] {
        let driving = Driving::new(BODY);
        let call = driving.key.clone();
        let request = |branch: &str, verb: Verb, n: u32, args: Json| {
            let branch = if branch == "-" { Branch::top() } else { Branch::top().child(branch) };
            Request { branch, verb, n, target: Target::Local, args, at: String::new() }
        };
        drop(driving);
        let mut past = Vec::new();
        let mut took = |request: &Request| {
            let (key, args) = (key(&call, request), request.args.clone());
            past.push(Past::Begun { key: key.clone(), target: Target::Local, args });
            past.push(Past::Done { key, outcome: answer(request) });
        };
        for n in 1..=3 {
            took(&request("-", Verb::Sh, n, json!({ "command": format!("list {n}") })));
        }
        // What the code draws at random is the same in every process: taken from a first run.
        let mut first = Driving::new(BODY);
        first.program.call(&call, Opening { past: past.clone(), ..opening("test/unit/run") });
        let Turn::Requests(asked) = first.turn() else { panic!("requests") };
        let of =
            |name: &str| asked.iter().find(|r| r.verb == Verb::Sh && r.branch == Branch::top().child(name)).unwrap();
        for name in order {
            let request = of(name);
            let (key, args) = (key(&call, request), request.args.clone());
            past.push(Past::Begun { key: key.clone(), target: Target::Local, args });
            past.push(Past::Done { key, outcome: answer(request) });
        }
        let mut second = Driving::new(BODY);
        second.program.call(&call, Opening { past, ..opening("test/unit/run") });
        let Turn::Requests(asked) = second.turn() else { panic!("requests") };
        let asked: Vec<String> =
            asked.iter().map(|r| format!("{} {}#{}", r.branch.as_str(), r.verb.as_str(), r.n)).collect();
        assert_eq!(asked, ["- log#1", "b log#1", "b exec#1"], "{order:?}");
    }
}

/// How a replay of `past` by a project of `body` ends.
fn replayed(body: &str, past: Vec<Past>) -> Turn {
    let mut driving = Driving::new(body);
    let key = driving.key.clone();
    driving.program.call(&key, Opening { past, ..opening("test/unit/run") });
    driving.turn()
}

#[test]
fn a_replay_that_asks_for_something_else_diverges_and_shows_both_sides() {
    let call = CallKey::stage("unit", "run");
    let step = |verb: &str, n| StepKey::new(&call, &Branch::top(), verb, n);
    let begun = |verb: &str, n, args: Json| Past::Begun { key: step(verb, n), target: Target::Local, args };
    let done = |verb: &str, n| Past::Done { key: step(verb, n), outcome: Outcome::Ok(json!({})) };
    let sh = json!({ "command": "one" });
    for (body, past, journal, code) in [
        ("run:sh 'two'", vec![begun("sh", 1, sh.clone())], r#"{"command":"one"}"#, r#"{"command":"two"}"#),
        ("run:exec { 'one' }", vec![begun("sh", 1, sh.clone())], "sh#1", "exec#1"),
        ("run:exec { 'one' }", vec![begun("sh", 1, sh.clone()), done("sh", 1)], "sh#1", "exec#1"),
        ("return 1", vec![begun("sh", 1, sh.clone())], "sh#1", "it returns"),
        ("error 'no'", vec![begun("sh", 1, sh.clone()), done("sh", 1)], "sh#1", "it fails: no"),
        (
            "run:sh 'one' return 1",
            vec![begun("sh", 1, sh.clone()), done("sh", 1), begun("sh", 2, sh.clone())],
            "sh#2",
            "it returns",
        ),
    ] {
        let Turn::Ended { cause, undos: 0 } = replayed(body, past) else { panic!("{body}") };
        assert_eq!(cause.code, "diverged", "{body}");
        let fact = |name: &str| cause.facts[name].as_str().unwrap().to_owned();
        assert!(fact("journal").contains(journal) && fact("code_now").contains(code), "{body}: {cause:?}");
        assert!(cause.message.contains(journal) && cause.message.contains(code), "{body}: {cause:?}");
    }
    let Turn::Requests(asked) = replayed("run:sh 'one'", vec![begun("sh", 1, sh)]) else { panic!("requests") };
    assert_eq!(asked.len(), 1);
}

#[test]
fn a_call_that_was_being_ended_is_ended_again() {
    let call = CallKey::stage("unit", "run");
    let key = StepKey::new(&call, &Branch::top(), "sh", 1);
    let args = json!({ "command": "one" });
    let cause = Cause::new("stopped", "stopped by uid 0");
    let past = vec![
        Past::Begun { key: key.clone(), target: Target::Local, args },
        Past::Done { key, outcome: Outcome::Cut { cause: cause.clone() } },
    ];
    let turn = replayed("run:undo('x', function() end) run:sh 'one' run:sh 'two'", past);
    assert_eq!(turn, Turn::Ended { cause, undos: 1 });
}

const LEAVES: &str = r#"
  run:undo("first", function() run:sh "undo first" end)
  local name = run:sh("make").stdout
  run:undo("second", function() run:sh("undo " .. name .. math.random(1000)) run:log "second is undone" end)
  run:sh "fails"
  run:undo("never", function() run:sh "undo never" end)"#;

#[test]
fn a_failed_call_says_what_it_leaves_and_an_undo_does_it_newest_first() {
    let mut driving = Driving::new(LEAVES);
    let call = driving.key.clone();
    let Turn::Requests(make) = driving.start() else { panic!("requests") };
    let made = Outcome::Ok(json!({ "stdout": "it" }));
    let Turn::Requests(fails) = driving.resume(&made) else { panic!("requests") };
    let Turn::Raised { undos: 2, .. } = driving.resume(&failed("no")) else { panic!("raised") };
    let begun =
        |request: &Request| Past::Begun { key: key(&call, request), target: Target::Local, args: request.args.clone() };
    let done = |request: &Request, outcome| Past::Done { key: key(&call, request), outcome };
    let undoes = vec![begun(&make[0]), done(&make[0], made), begun(&fails[0]), done(&fails[0], failed("no"))];
    let undo = |past: Vec<Past>| {
        let mut undoing = Driving::new(LEAVES);
        undoing.key = call.undo();
        undoing.program.call(&call.undo(), Opening { past, undoes: undoes.clone(), ..opening("test/unit/run") });
        undoing
    };
    let mut undoing = undo(Vec::new());
    let Turn::Requests(second) = undoing.turn() else { panic!("requests") };
    assert!(second[0].args["command"].as_str().unwrap().starts_with("undo it"), "{second:?}");
    let Turn::Requests(then) = undoing.resume(&failed("cannot")) else { panic!("requests") };
    assert_eq!(then[0].args["command"], "undo first", "one that fails does not keep the others from it");
    let Turn::Raised { cause, .. } = undoing.resume(&Outcome::Ok(json!({}))) else { panic!("raised") };
    assert_eq!((cause.code.as_str(), cause.facts["undo"].as_str()), ("undo_failed", Some("second")));
    // A crash in the middle of it: the same again.
    let step = |request: &Request| StepKey::new(&call.undo(), &request.branch, request.verb.as_str(), request.n);
    let past = vec![
        Past::Begun { key: step(&second[0]), target: Target::Local, args: second[0].args.clone() },
        Past::Done { key: step(&second[0]), outcome: Outcome::Ok(json!({})) },
    ];
    let mut again = undo(past);
    let Turn::Requests(asked) = again.turn() else { panic!("requests") };
    let asked: Vec<String> = asked.iter().map(|request| request.args.to_string()).collect();
    assert_eq!(asked, [r#"{"text":"second is undone"}"#, r#"{"command":"undo first"}"#]);
    assert_eq!(again.resume(&Outcome::Ok(json!({}))), Turn::Return(Json::Null));
}

#[test]
fn what_a_call_has_used_is_not_taken_from_its_undos_and_one_that_a_limit_ended_says_that_it_is_not_undone() {
    let limits = Limits { instructions: 200_000, ..Limits::default() };
    let used = "for _ = 1, 30000 do local _ = #'x' end";
    let undone = |last: &str| {
        let body = format!("run:undo('x', function() {used} run:sh 'undo' end) run:sh 'make' {used} {last}");
        let text = project(&body);
        let mut driving = Driving::of(bundle(&text, &[]), limits.clone());
        let Turn::Requests(make) = driving.start() else { panic!("requests") };
        let (Turn::Raised { undos: 1, .. } | Turn::Ended { undos: 1, .. }) = driving.resume(&Outcome::Ok(json!({})))
        else {
            panic!("it failed")
        };
        let key = key(&driving.key, &make[0]);
        let begun = Past::Begun { key: key.clone(), target: Target::Local, args: make[0].args.clone() };
        let undoes = vec![begun, Past::Done { key, outcome: Outcome::Ok(json!({})) }];
        let mut undoing = Driving::of(bundle(&text, &[]), limits.clone());
        let undo = driving.key.undo();
        undoing.program.call(&undo, Opening { undoes, ..opening("test/unit/run") });
        undoing.turn()
    };
    let Turn::Requests(asked) = undone("error 'no'") else { panic!("requests") };
    assert_eq!(asked[0].args["command"], "undo");
    let Turn::Ended { cause, .. } = undone("while true do end") else { panic!("ended") };
    assert_eq!(cause.code, "limit_instructions");
}

#[test]
fn what_ends_well_beside_a_step_that_was_cut_is_still_told() {
    let body = "run:parallel {
        a = function() run:sh 'a' end,
        b = function() run:sh 'b' run:undo('b', function() end) run:sh 'more' end,
      }";
    let call = CallKey::stage("unit", "run");
    let key = |branch: &str| StepKey::new(&call, &Branch::top().child(branch), "sh", 1);
    let begun = |b: &str| Past::Begun { key: key(b), target: Target::Local, args: json!({ "command": b }) };
    let cause = Cause::new("stopped", "by uid 0");
    let past = vec![
        begun("a"),
        begun("b"),
        Past::Done { key: key("a"), outcome: Outcome::Cut { cause: cause.clone() } },
        Past::Done { key: key("b"), outcome: Outcome::Ok(json!({})) },
    ];
    assert_eq!(replayed(body, past), Turn::Ended { cause, undos: 1 });
}

#[test]
fn an_end_from_outside_comes_after_all_that_was_told_and_counts_what_is_left() {
    let mut driving = Driving::new(LEAVES);
    driving.start();
    driving.answer(&Branch::top(), &Outcome::Ok(json!({ "stdout": "it" })));
    let key = driving.key.clone();
    driving.program.end(&key, Cause::new("stopped", "by uid 0"));
    assert!(matches!(driving.turn(), Turn::Requests(_)));
    let Turn::Ended { cause, undos: 2 } = driving.turn() else { panic!("ended") };
    assert_eq!(cause.code, "stopped");
    driving.program.end(&key, Cause::new("stopped", "twice"));
    assert!(driving.is_silent());
}

#[test]
fn undo_is_checked_and_cannot_be_used_while_undoing() {
    for (body, said) in [
        ("run:undo('x')", "run:undo has no run"),
        ("run:undo(function() end)", "name"),
        ("run:undo('x', 5)", "function"),
    ] {
        assert!(raised(body).message.contains(said), "{body}: {:?}", raised(body));
    }
    let body =
        "run:undo('x', function() run:undo('y', function() end) end) run:undo { 'z', function() end } error 'no'";
    let mut driving = Driving::new(body);
    let Turn::Raised { undos: 2, .. } = driving.start() else { panic!("raised") };
    let undo = driving.key.undo();
    driving.program.call(&undo, opening("test/unit/run"));
    let Turn::Raised { cause, .. } = driving.turn() else { panic!("raised") };
    assert!(cause.message.contains("cannot be used while undoing"), "{cause:?}");
}

#[test]
fn ten_thousand_records_are_replayed_without_an_effect() {
    let body = "local n = 0 for i = 1, 5000 do n = n + #run:sh('step ' .. i).stdout end return n";
    let call = CallKey::stage("unit", "run");
    let past = (1..=5000).flat_map(|n| {
        let key = StepKey::new(&call, &Branch::top(), "sh", n);
        let begun =
            Past::Begun { key: key.clone(), target: Target::Local, args: json!({ "command": format!("step {n}") }) };
        [begun, Past::Done { key, outcome: Outcome::Ok(json!({ "stdout": "ab" })) }]
    });
    assert_eq!(replayed(body, past.collect()), Turn::Return(json!(10_000)));
}
