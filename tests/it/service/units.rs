//! The units that the packages install.

use std::process::Command;

use super::{Manager, Served, waiting};
use crate::fixture::{BINARY, Daemon, World, output};

#[test]
fn the_daemons_exposure_is_at_most_2_5() {
    let unit = "packaging/systemd/phased.service";
    let judged = output(Command::new("systemd-analyze").args([
        "security",
        "--offline=true",
        "--threshold=25",
        "--no-pager",
        unit,
    ]));
    assert_eq!(judged.code, 0, "{}", judged.stdout);
    assert!(judged.stdout.contains("Overall exposure level"), "{}", judged.stdout);
}

#[test]
fn the_units_are_such_as_systemd_takes_without_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["phased.service", "phased.socket"] {
        let unit = std::fs::read_to_string(format!("packaging/systemd/{name}")).unwrap();
        // Not installed here; the manual is the package's.
        let unit: Vec<String> = unit
            .lines()
            .filter(|l| !l.starts_with("Documentation="))
            .map(|l| l.replace("/usr/bin/phased", BINARY))
            .collect();
        std::fs::write(dir.path().join(name), unit.join("\n") + "\n").unwrap();
    }
    let mut command = Command::new("systemd-analyze");
    let verified =
        output(command.arg("verify").arg(dir.path().join("phased.service")).arg(dir.path().join("phased.socket")));
    let ours: Vec<&str> = verified.stderr.lines().filter(|line| line.contains("phased")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
}

#[test]
fn the_units_and_the_daemon_agree() {
    let socket = std::fs::read_to_string("packaging/systemd/phased.socket").unwrap();
    let config = phased::config::Config::default();
    assert!(socket.contains(&format!("ListenStream={}\n", config.api.socket.display())));
    assert!(socket.contains(&format!("ListenStream={}\n", config.api.listen.unwrap())));
    let service = std::fs::read_to_string("packaging/systemd/phased.service").unwrap();
    // Recovery needs the id of the boot.
    assert!(!service.lines().any(|line| line.starts_with("ProcSubset=")));
    let files = service.lines().find_map(|line| line.strip_prefix("LimitNOFILE=")).unwrap().parse::<usize>().unwrap();
    assert!(files > config.limits.sessions * 3 + 4096);
}

#[test]
fn open_files_are_as_many_as_there_may_be_and_too_few_are_said() {
    let world = World::new();
    world.project(&waiting());
    let manager = Manager::listen(&world, "notify");
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -Sn 256; ulimit -Hn 1024; exec "$0" serve --config "$1""#, BINARY]);
    let served = Served::start(&world, &manager, {
        command.arg(Daemon::configure(&world));
        command
    });
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", served.child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["1024", "1024"]);
    assert!(served.said().contains("1024 open files are too few for `sessions = 500`"), "{}", served.said());
}
