//! Each kind of step, cut at its worst moment: it goes on, or says that nobody can tell.

use std::{net::TcpListener, path::Path};

use crate::fixture::{Daemon, Dice, Project, Run, Sink, World, eventually, journal::between, times};

/// A stage that does this and what `waits` adds; `T` is where it leaves traces.
fn stage(lua: &str) -> Project {
    let head = "local T = { T = '@TESTED@' }\nlocal go = [[until [ -e \"$T/go\" ]; do sleep 0.05; done]]\n";
    Project::new("shop").hosts(&["h1"]).head(head).stage("unit", lua)
}

fn go(world: &World) {
    std::fs::write(world.path("tested/go"), "").unwrap();
}

fn trace(world: &World) -> Vec<String> {
    let trace = std::fs::read_to_string(world.path("tested/trace")).unwrap_or_default();
    trace.lines().map(str::to_owned).collect()
}

/// A run that was begun and has printed `text`, its daemon killed.
fn cut_at(project: &Project, text: &str) -> (World, Run) {
    let (world, daemon) = World::with(project);
    world.repo.push("cut off");
    let run = daemon.press();
    run.prints(text);
    daemon.kill();
    (world, run)
}

/// A run whose journal has `event`, its daemon killed then.
fn cut_after(project: &Project, event: &str) -> (World, Run) {
    let (world, daemon) = World::with(project);
    world.repo.push("cut off");
    let run = daemon.press();
    eventually(&format!("there is a {event}"), || world.events(&run.id, event).pop());
    daemon.kill();
    (world, run)
}

fn again(world: &World, run: &Run) -> (Daemon, Run) {
    let daemon = world.start();
    let run = daemon.run(&run.id);
    (daemon, run)
}

#[test]
fn branches_go_on_side_by_side_and_each_ran_once() {
    let branch = |name: &str| {
        format!(
            r#"{name} = function()
              run:log "{name} begins"
              run:sh {{ [[echo {name} >>"$T/trace"; echo {name} runs; ]] .. go, env = T }}
              run:sh {{ 'echo {name} ends >>"$T/trace"', env = T }}
              return "{name}"
            end"#
        )
    };
    let lua = format!(
        r#"local got = run:parallel {{ {}, {}, {} }} run:log(got.a .. got.b .. got.c)"#,
        branch("a"),
        branch("b"),
        branch("c")
    );
    let (world, run) = cut_at(&stage(&lua), "c runs");
    for _ in 0..2 {
        world.start().kill();
    }
    go(&world);
    let (_daemon, run) = again(&world, &run);
    let ended = run.wait().is("succeeded");
    let mut trace = trace(&world);
    trace.sort();
    assert_eq!(trace, ["a", "a ends", "b", "b ends", "c", "c ends"]);
    for line in ["# a begins", "# b begins", "# c begins", "# abc", "a runs", "b runs", "c runs"] {
        assert_eq!(ended.log().lines().filter(|l| *l == line).count(), 1, "{line}\n{}", ended.log());
    }
}

#[test]
fn lines_of_the_log_are_there_once_however_often_it_was_cut() {
    let lua = r#"run:log "first" run:sh { [[echo waits; ]] .. go, env = T }
      for i = 1, 3 do run:log("line " .. i) end run:sh { "sleep 0.3" } run:log "last""#;
    let (world, run) = cut_at(&stage(lua), "waits");
    let mut dice = Dice::new("log");
    let daemon = world.start();
    go(&world);
    let (daemon, _) = world.kills(daemon, &run, 4, &mut dice);
    let log = daemon.run(&run.id).wait().is("succeeded").log();
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with('#')).collect();
    assert_eq!(lines, ["# first", "# line 1", "# line 2", "# line 3", "# last"]);
}

#[test]
fn a_retry_is_made_after_its_backoff_and_not_sooner_and_failures_are_counted_on() {
    let lua = r#"run:sh { [[echo try >>"$T/trace"; exit 3]], env = T, retries = 2, backoff = "2s" }"#;
    let (world, run) = cut_after(&stage(lua), "done");
    let (_daemon, run) = again(&world, &run);
    run.wait().is("failed");
    assert_eq!(trace(&world), ["try", "try", "try"]);
    let (done, begin) = (world.events(&run.id, "done"), world.events(&run.id, "begin"));
    assert!(between(&done[0], &begin[1]) >= 2000 && between(&done[1], &begin[2]) >= 4000, "{done:?} {begin:?}");
}

#[test]
fn a_retry_that_fell_due_while_the_daemon_was_gone_is_made_at_once() {
    let lua = r#"run:sh { [[echo try >>"$T/trace"; test -e "$T/go"]], env = T, retries = 1, backoff = "4m" }"#;
    let (world, run) = cut_after(&stage(lua), "done");
    world.passes(&run.id, 300);
    go(&world);
    let (_daemon, run) = again(&world, &run);
    run.wait().is("succeeded");
    assert_eq!(trace(&world), ["try", "try"]);
}

#[test]
fn a_sleep_lasts_as_long_as_it_was_to_last() {
    let (world, run) = cut_after(&stage(r#"run:sleep "3s""#), "begin");
    let (_daemon, run) = again(&world, &run);
    run.wait().is("succeeded");
    let (begin, done) = (world.events(&run.id, "begin"), world.events(&run.id, "done"));
    assert!(between(&begin[0], &done[0]) >= 3000, "{begin:?} {done:?}");
}

#[test]
fn a_sleep_that_is_over_when_the_daemon_comes_back_is_over() {
    let (world, run) = cut_after(&stage(r#"run:sleep "20m""#), "begin");
    world.passes(&run.id, 1201);
    let (_daemon, run) = again(&world, &run);
    run.wait().is("succeeded");
}

#[test]
fn a_wait_goes_on_and_its_time_with_it() {
    let lua = r#"run:wait { command = "exit 1", timeout = "20m" }"#;
    let (world, run) = cut_after(&stage(lua), "begin");
    world.passes(&run.id, 1201);
    let (_daemon, run) = again(&world, &run);
    assert!(run.wait().is("failed").message().contains("not good within 20m"));
}

#[test]
fn a_wait_that_becomes_good_after_a_crash_is_good() {
    let lua = r#"run:wait { command = "test -e @TESTED@/go", timeout = "20m" }"#;
    let (world, run) = cut_after(&stage(lua), "begin");
    go(&world);
    let (_daemon, run) = again(&world, &run);
    run.wait().is("succeeded");
}

#[test]
fn the_limit_of_a_call_does_not_count_the_time_when_no_daemon_was_there() {
    let keys = r#"timeout = "20m", run = function(run)
      run:sh { 'echo begun; until [ -e "$T/go" ]; do sleep 0.05; done', env = { T = "@TESTED@" } }
    end"#;
    let project = Project::new("shop").hosts(&["h1"]).stage_of("unit", keys);
    let (world, run) = cut_at(&project, "begun");
    world.passes(&run.id, 1201);
    let (_daemon, run) = again(&world, &run);
    std::fs::write(world.path("tested/go"), "").unwrap();
    run.wait().is("succeeded");
}

/// A run that is asking `sink`, which does not answer, its daemon killed.
fn cut_asking(lua: &str, sink: &Sink) -> (World, Run) {
    sink.ignore(1);
    let (world, daemon) = World::with(&stage(&lua.replace("@URL@", &sink.url())));
    world.repo.push("cut off");
    let run = daemon.press();
    eventually("it asks", || (!sink.asked().is_empty()).then_some(()));
    daemon.kill();
    (world, run)
}

#[test]
fn a_post_under_way_is_not_sent_again_and_the_cause_says_what_to_do() {
    let sink = Sink::start();
    let (world, run) = cut_asking(r#"run:http { "@URL@", method = "POST", body = "once", retries = 3 }"#, &sink);
    let (_daemon, run) = again(&world, &run);
    let ended = run.wait().is("failed");
    assert_eq!(ended.code(), "lost", "{}", ended.message());
    assert!(
        ended.message().contains("nobody can tell") && ended.message().contains("idempotent = true"),
        "{}",
        ended.message()
    );
    assert_eq!(sink.asked().len(), 1);
}

#[test]
fn requests_that_may_come_twice_are_sent_again() {
    for options in ["", r#", method = "PUT", body = "x""#, r#", method = "POST", body = "x", idempotent = true"#] {
        let sink = Sink::start();
        let (world, run) = cut_asking(&format!(r#"run:http {{ "@URL@"{options} }}"#), &sink);
        let (_daemon, run) = again(&world, &run);
        run.wait().is("succeeded");
        assert_eq!(sink.asked().len(), 2, "{options}");
    }
}

#[test]
fn what_nobody_can_tell_is_tried_again_where_the_author_says_so() {
    let sink = Sink::start();
    let lua = r#"run:http { "@URL@", method = "POST", body = "x", on_unknown = "retry", backoff = "10ms" }"#;
    let (world, run) = cut_asking(lua, &sink);
    let (_daemon, run) = again(&world, &run);
    run.wait().is("succeeded");
    assert_eq!(sink.asked().len(), 2);
}

#[test]
fn what_nobody_can_tell_is_found_out_by_the_authors_function() {
    for (verdict, state, asked) in [("true", "succeeded", 1), ("false", "succeeded", 2), ("nil", "failed", 1)] {
        let sink = Sink::start();
        let lua = format!(
            r#"run:http {{ "@URL@", method = "POST", body = "x", on_unknown = function(on, why)
                 on:sh {{ 'echo "$WHY" >>"$T/trace"', env = {{ T = '@TESTED@', WHY = why.code }} }}
                 return {verdict}
               end }}"#
        );
        let (world, run) = cut_asking(&lua, &sink);
        let (_daemon, run) = again(&world, &run);
        run.wait().is(state);
        assert_eq!((trace(&world), sink.asked().len()), (vec!["lost".to_owned()], asked), "{verdict}");
    }
}

#[test]
fn a_secret_used_before_a_crash_is_not_shown_after_it() {
    let lua = r#"
      run:sh { 'printf %s "$PW" >"$T/leak"; chmod 600 "$T/leak"', env = { T = '@TESTED@', PW = phased.secret "pw" } }
      run:sh { [[echo waits; ]] .. go .. [[; echo "it is $(cat "$T/leak")"; cat "$T/leak" >&2; exit 3]], env = T }"#;
    let world = World::new();
    world.secret("pw", "correct-horse-battery");
    let sink = Sink::start();
    world.project(&stage(lua).tells(&sink));
    let daemon = world.start();
    world.repo.push("cut off");
    let run = daemon.press();
    run.prints("waits");
    daemon.kill();
    go(&world);
    let (daemon, run) = again(&world, &run);
    let ended = run.wait().is("failed");
    assert!(ended.log().contains("it is "), "{}", ended.log());
    sink.message_of(&run.id);
    let shown = [ended.log(), ended.view.to_string(), daemon.said(), String::from_utf8(sink.raw()).unwrap()].concat();
    assert!(!shown.contains("correct-horse-battery"), "{shown}");
}

/// 24 MiB that are not alike anywhere.
fn large() -> String {
    (0..400_000u64).map(|n| format!("{:060x}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
}

/// Whether a file below `dir` has begun to come.
fn comes(dir: &Path) -> Option<()> {
    let mut files = std::fs::read_dir(dir).ok()?.flatten();
    files.any(|file| file.metadata().is_ok_and(|data| data.is_file() && data.len() > 0)).then_some(())
}

#[test]
fn an_upload_cut_in_the_middle_arrives_whole() {
    let mut dice = Dice::new("upload");
    let lua = r#"host:upload { "large", to = "@ROOT@/h1/large", mode = "0640" }"#;
    let (world, daemon) = World::with(&Project::new("shop").hosts(&["h1"]).deploy_after(lua));
    let large = large();
    world.repo.commit(&[("large", &large)], "large");
    let mut daemon = daemon;
    for _ in 0..times(1, 20) {
        let commit = world.repo.push(&format!("large {}", dice.below(u64::MAX)));
        let _gone = std::fs::remove_file(world.host("h1").join("large"));
        let _gone = std::fs::remove_dir_all(world.host("h1").join("base/blobs"));
        let run = daemon.press();
        eventually("it comes", || comes(&world.host("h1").join("base/blobs")));
        (daemon, _) = world.kills(daemon, &run, 5, &mut dice);
        daemon.run(&run.id).wait().is("succeeded");
        assert!(std::fs::read_to_string(world.host("h1").join("large")).unwrap() == large);
        assert!(world.hosts_have(&["h1"], &commit));
        daemon.idle();
    }
}

#[test]
fn a_download_cut_in_the_middle_arrives_whole() {
    let mut dice = Dice::new("download");
    let lua = r#"local got = deployment.hosts[1]:download { "@ROOT@/h1/large", to = "got" }
      run:sh { [[printf '%s  got\n' "$SUM" | sha256sum -c; cp got "$T/got"]], env = { SUM = got.sha256, T = "@TESTED@" } }"#;
    let (world, mut daemon) = World::with(&Project::new("shop").hosts(&["h1"]).verify(lua));
    let large = large();
    std::fs::write(world.host("h1").join("large"), &large).unwrap();
    for n in 0..times(1, 20) {
        world.repo.push(&format!("large {n}"));
        let run = daemon.press();
        eventually("it comes", || comes(&world.path("data/tmp")));
        (daemon, _) = world.kills(daemon, &run, 5, &mut dice);
        daemon.run(&run.id).wait().is("succeeded");
        assert!(std::fs::read_to_string(world.path("tested/got")).unwrap() == large);
        daemon.idle();
        std::fs::remove_file(world.path("tested/got")).unwrap();
        assert!(comes(&world.path("data/tmp")).is_none(), "something is left of what was cut");
    }
}

/// A host whose health is what a file says.
fn watched(keys: &str) -> Project {
    let health = format!(r#"command = "test -e @ROOT@/h1/well", interval = "200ms", {keys}"#);
    Project::new("shop").hosts(&["h1"]).health(&health)
}

#[test]
fn a_health_window_that_was_cut_begins_anew() {
    let project = watched(r#"min_healthy_time = "2s", healthy_deadline = "2m""#);
    let (world, daemon) = World::with(&project);
    std::fs::write(world.host("h1").join("well"), "").unwrap();
    world.repo.push("well");
    let run = daemon.press();
    eventually("it is watched", || world.events(&run.id, "health_began").pop());
    daemon.kill();
    let (_daemon, run) = again(&world, &run);
    run.wait().is("succeeded");
    let (resumed, verdict) = (world.events(&run.id, "resumed"), world.events(&run.id, "health_verdict"));
    assert!(between(&resumed[0], &verdict[0]) >= 2000, "{resumed:?} {verdict:?}");
}

#[test]
fn a_health_deadline_that_passed_while_the_daemon_was_gone_leaves_time_to_look() {
    let project = watched(r#"min_healthy_time = "2s", healthy_deadline = "3s""#);
    for well in [true, false] {
        let (world, run) = cut_after(&project, "health_began");
        world.passes(&run.id, 600);
        if well {
            std::fs::write(world.host("h1").join("well"), "").unwrap();
        }
        let (_daemon, run) = again(&world, &run);
        let ended = run.wait().is(if well { "succeeded" } else { "halted" });
        let (resumed, verdict) = (world.events(&run.id, "resumed"), world.events(&run.id, "health_verdict"));
        let least = if well { 2000 } else { 2000 + 3 * 200 };
        assert!(between(&resumed[0], &verdict[0]) >= least, "{}: {resumed:?} {verdict:?}", ended.message());
    }
}

#[test]
fn a_port_that_nobody_answers_on_any_more_ends_a_wait_and_not_the_daemon() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    let lua = format!(
        r#"run:wait {{ tcp = "{address}", timeout = "3s" }} run:sh {{ [[echo waits; ]] .. go, env = T }}
        run:wait {{ tcp = "{address}", timeout = "2s", interval = "100ms" }}"#
    );
    let (world, run) = cut_at(&stage(&lua), "waits");
    drop(gone);
    go(&world);
    let (_daemon, run) = again(&world, &run);
    assert_eq!(run.wait().is("failed").code(), "timeout");
}
