//! READY, STATUS, RELOADING, STOPPING.

use nix::sys::signal::Signal;

use super::{Manager, Served, go, waiting};
use crate::fixture::{Daemon, Project, World, output};

#[test]
fn it_says_that_it_answers_what_runs_and_that_it_goes_down() {
    let world = World::new();
    world.project(&waiting());
    world.repo.push("first");
    let manager = Manager::listen(&world, "notify");
    let served = Served::of(&world, &manager);
    // Said once it answers, and not before.
    served.api.get("/healthz").is(200);
    assert!(manager.heard()[0].iter().any(|line| line.starts_with("STATUS=starting")), "{:?}", manager.heard());
    let run = served.press();
    manager.status_is("what runs", |status| status == "shop testing");

    // After a kill the run is taken up before anything is said to be ready.
    served.end(Signal::SIGKILL);
    let before = manager.heard().len();
    let served = Served::of(&world, &manager);
    let heard = manager.heard();
    let ready = heard[before..].iter().find(|lines| lines.contains(&"READY=1".to_owned())).unwrap();
    assert!(ready.contains(&"STATUS=shop testing".to_owned()), "{ready:?}");
    go(&world);
    assert_eq!(served.wait(&run)["state"], "succeeded");
    manager.status_is("that nothing runs", |status| status == "idle, 1 project");

    assert!(served.end(Signal::SIGTERM).success());
    let heard = manager.heard();
    assert_eq!(heard.last().unwrap()[0], "STOPPING=1", "{heard:?}");
}

/// Messages since `from` that concern a reload.
fn reload(manager: &Manager, from: usize) -> Vec<Vec<String>> {
    let concerns = |lines: &Vec<String>| lines.iter().any(|line| line == "RELOADING=1" || line == "READY=1");
    manager.heard()[from..].iter().filter(|lines| concerns(lines)).cloned().collect()
}

#[test]
fn a_reload_is_told_with_how_it_went() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let manager = Manager::listen(&world, "notify");
    let served = Served::of(&world, &manager);
    let file = world.path("plugins/projects/shop.lua");
    let good = std::fs::read_to_string(&file).unwrap();

    std::fs::write(&file, good.replace("queue =", "kueue =")).unwrap();
    let from = manager.heard().len();
    served.signal(Signal::SIGHUP);
    manager.status_is("that the reload failed", |status| status.starts_with("reload failed: "));
    let told = reload(&manager, from);
    let [begun, ended] = &told[..] else { panic!("{told:?}") };
    // Both in one message, else newer ones of systemd wait for ever.
    assert_eq!(begun[0], "RELOADING=1");
    let since: u64 = begun[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
    assert!(since > 0);
    assert_eq!(ended[0], "READY=1");
    assert!(ended[1].contains("shop.lua:") && ended[1].contains("queue"), "{ended:?}");
    served.api.get("/v1/projects/shop/status").is(200);

    // The command line's verb is told as well, and waits: it is what ExecReload calls.
    let cli = |word: &str| {
        let mut command = std::process::Command::new(crate::fixture::BINARY);
        command.arg(word).env("PHASED_ADDR", format!("unix://{}", world.path("phased.sock").display()));
        output(&mut command)
    };
    let refused = cli("reload");
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("shop.lua:"), "{refused:?}");
    std::fs::write(&file, good).unwrap();
    let from = manager.heard().len();
    assert_eq!(cli("reload").code, 0);
    manager.status_is("well again", |status| !status.starts_with("reload failed"));
    assert_eq!(
        reload(&manager, from).iter().map(|lines| lines[0].as_str()).collect::<Vec<_>>(),
        ["RELOADING=1", "READY=1"]
    );
}

#[test]
fn why_it_does_not_start_is_the_status() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    let file = world.path("plugins/projects/shop.lua");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replace("queue =", "kueue =")).unwrap();
    let manager = Manager::listen(&world, "notify");
    let mut command = Daemon::command(&Daemon::configure(&world));
    let ended = output(command.env("NOTIFY_SOCKET", &manager.path));
    assert_eq!(ended.code, 1);
    manager.status_is("why", |status| status.starts_with("not started: ") && status.contains("kueue"));
    assert!(manager.times("READY=1").is_empty());
}

#[test]
fn nobody_is_told_anything_where_nobody_listens() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]));
    // A manager that went away is no reason to fail.
    let gone = world.path("gone");
    let daemon = world.start_with(&[("NOTIFY_SOCKET", gone.to_str().unwrap())]);
    daemon.api.get("/healthz").is(200);
    assert!(daemon.said().contains("the service manager cannot be told"));
    assert!(daemon.terminate().0.success());
    let bad = output(Daemon::command(&Daemon::configure(&world)).env("PHASED_STALL", "nowhere:/x"));
    assert_eq!(bad.code, 1);
    assert!(bad.stderr.contains("is no stall point"), "{bad:?}");
}
