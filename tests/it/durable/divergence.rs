//! A journal that its code does not agree with, and code that is gone: the run ends `damaged`, nothing is done, nobody is locked out.

use serde_json::json;

use crate::fixture::{Daemon, Project, Run, Sink, World, times};

/// Three steps on h1, of which the second waits to be let go; each writes down that it ran.
fn waiting(sink: &Sink) -> Project {
    let deploy = r#"
      local env = { HERE = "@ROOT@/" .. host.id }
      host:sh { 'echo one >>"$HERE/trace"', env = env }
      host:sh { 'echo two >>"$HERE/trace"; echo waits; until [ -e "$HERE/go" ]; do sleep 0.05; done', env = env }
      host:sh { 'echo three >>"$HERE/trace"', env = env }"#;
    Project::new("shop").hosts(&["h1", "h2"]).deploy(deploy).tells(sink)
}

/// A run that waits on h1, its daemon killed.
fn cut(sink: &Sink) -> (World, Run) {
    let (world, daemon) = World::with(&waiting(sink));
    world.repo.push("x");
    let run = daemon.press();
    run.prints("waits");
    daemon.kill();
    (world, run)
}

fn trace(world: &World, host: &str) -> String {
    std::fs::read_to_string(world.host(host).join("trace")).unwrap_or_default()
}

fn go(world: &World) {
    for host in ["h1", "h2"] {
        std::fs::write(world.host(host).join("go"), "").unwrap();
    }
}

/// One alert, nothing begun after the cut, and the environment is the next one's.
#[track_caller]
fn ends_damaged(world: &World, daemon: &Daemon, run: &Run, sink: &Sink, code: &str) -> String {
    let ended = daemon.run(&run.id).wait().is("damaged");
    assert_eq!(ended.code(), code, "{}", ended.view);
    let deployment = ended.deployment("production");
    assert_eq!((&deployment["state"], &deployment["cause"]["code"]), (&json!("halted"), &json!(code)), "{deployment}");
    daemon.idle();
    assert_eq!((trace(world, "h1").as_str(), trace(world, "h2").as_str()), ("one\ntwo\n", ""));
    assert_eq!(sink.message_of(&run.id)["event"], "damaged");
    daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded");
    assert_eq!(sink.count_of(&run.id), 1);
    ended.message().to_owned()
}

#[test]
fn a_journal_with_other_arguments_ends_the_run_and_shows_both_sides() {
    let sink = Sink::start();
    let (world, run) = cut(&sink);
    world.rewrite(&run.id, |records| {
        let first = records.iter_mut().find(|r| r["key"] == "production#1/h1/deploy/-/sh#1" && r["event"] == "begin");
        first.unwrap()["args"]["command"] = "rm -rf /another".into();
    });
    let daemon = world.start();
    go(&world);
    let told = ends_damaged(&world, &daemon, &run, &sink, "diverged");
    assert!(told.contains("rm -rf /another") && told.contains("echo one"), "{told}");
}

#[test]
fn a_journal_with_a_step_the_code_does_not_take_ends_the_run() {
    let sink = Sink::start();
    let (world, run) = cut(&sink);
    world.rewrite(&run.id, |records| {
        let begun = records.iter_mut().find(|r| r["key"] == "production#1/h1/deploy/-/sh#2" && r["event"] == "begin");
        begun.unwrap()["key"] = "production#1/h1/deploy/-/http#1".into();
    });
    let daemon = world.start();
    go(&world);
    ends_damaged(&world, &daemon, &run, &sink, "diverged");
}

/// The only file of pinned code that `run` names.
fn pinned(world: &World, run: &Run) -> std::path::PathBuf {
    let started = &world.journal(&run.id)[0];
    world.path("data/code").join(started["code"].as_str().unwrap())
}

#[test]
fn code_that_is_gone_ends_the_run_and_nothing_is_done() {
    let sink = Sink::start();
    let (world, run) = cut(&sink);
    let code = pinned(&world, &run);
    std::fs::remove_dir_all(&code).or_else(|_| std::fs::remove_file(&code)).unwrap();
    // Otherwise the next start would pin the very same code again.
    world.project(&waiting(&sink).head("local another = true\n"));
    let daemon = world.start();
    go(&world);
    ends_damaged(&world, &daemon, &run, &sink, "code_missing");
}

/// Every file below `path`.
fn files(path: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return vec![path.to_owned()] };
    entries.flatten().flat_map(|entry| files(&entry.path())).collect()
}

#[test]
fn code_that_is_damaged_ends_the_run_and_nothing_is_done() {
    let sink = Sink::start();
    let (world, run) = cut(&sink);
    for file in files(&pinned(&world, &run)) {
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("echo three", "echo other")).unwrap();
    }
    world.project(&waiting(&sink).head("local another = true\n"));
    let daemon = world.start();
    go(&world);
    ends_damaged(&world, &daemon, &run, &sink, "code_damaged");
}

#[test]
fn damaged_code_of_a_project_as_it_is_now_is_pinned_anew() {
    let sink = Sink::start();
    let (world, run) = cut(&sink);
    for file in files(&pinned(&world, &run)) {
        std::fs::write(&file, "not Lua").unwrap();
    }
    let daemon = world.start();
    go(&world);
    daemon.run(&run.id).wait().is("succeeded");
    assert_eq!(trace(&world, "h1"), "one\ntwo\nthree\n");
}

#[test]
fn killed_while_a_damaged_run_is_ended_the_environment_is_given_back_all_the_same() {
    for n in (1..=4).step_by(times(3, 1)) {
        let sink = Sink::start();
        let (world, run) = cut(&sink);
        std::fs::remove_dir_all(world.path("data/code")).unwrap();
        world.project(&waiting(&sink).head("local another = true\n"));
        // With fewer records than that it lives to the end.
        world.doomed(&[("PHASED_KILL", &format!("control-after:{n}"))], || sink.count_of(&run.id) == 1);
        let daemon = world.start();
        go(&world);
        daemon.run(&run.id).wait().is("damaged");
        daemon.idle();
        daemon.press_with(&json!({ "redeploy": true })).wait().is("succeeded");
        assert_eq!(sink.message_of(&run.id)["event"], "damaged", "killed after record {n} of control");
    }
}

#[test]
fn a_step_that_was_begun_on_another_host_than_the_code_means_ends_the_run() {
    let sink = Sink::start();
    let verify = r#"deployment.hosts[1]:sh { 'echo verified >>"$T/trace"; echo waits here; until [ -e "$T/go2" ]; do sleep 0.05; done', env = { T = "@ROOT@/h1" } }"#;
    let (world, daemon) = World::with(&waiting(&sink).verify(verify));
    go(&world);
    world.repo.push("x");
    let run = daemon.press();
    run.prints("waits here");
    daemon.kill();
    world.rewrite(&run.id, |records| {
        let begun = records.iter_mut().find(|r| r["event"] == "begin" && r["host"] == "h1");
        begun.unwrap()["host"] = "h2".into();
    });
    let daemon = world.start();
    std::fs::write(world.host("h1").join("go2"), "").unwrap();
    let ended = daemon.run(&run.id).wait().is("damaged");
    assert!(ended.message().contains("on h2 with") && ended.message().contains("on h1 with"), "{}", ended.message());
    assert_eq!(sink.message_of(&run.id)["event"], "damaged");
}
