//! What README tells a newcomer to run first.

use std::process::Command;

#[cfg(feature = "ec2")]
use crate::fixture::output;

/// Runs the demo, which is to say all of this and to leave nothing behind; returns all it said.
fn demo(how: &str, said: &[&str]) -> String {
    let shown = Command::new(env!("CARGO_BIN_EXE_phased")).args(["demo", how]).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success(), "{text}\n{}", String::from_utf8_lossy(&shown.stderr));
    for said in said {
        assert!(text.contains(said), "{said:?} is not in\n{text}");
    }
    let directory = text.lines().find_map(|line| line.split_once("repository").map(|(_, rest)| rest.trim().to_owned()));
    let directory = std::path::PathBuf::from(directory.unwrap());
    assert!(!directory.parent().unwrap().exists(), "{} is left behind", directory.display());
    text
}

#[test]
fn the_demo_goes_as_described_and_leaves_nothing_behind() {
    let said = [
        "tested, rolled out host by host",
        "refused, and people were told why",
        "went back by itself; no other host saw it",
        "caught while it was watched, after the canary had passed",
        "All four went as described.",
    ];
    demo("--once", &said);
}

#[test]
fn production_that_listens_to_signals_goes_as_described() {
    let said = [
        "every server deployed it by its own project file",
        "the others were never asked",
        "unreachable within the budget, then converged",
        "refused, counted, and shown by `phased signals`",
        "All four went as described.",
    ];
    demo("--signals", &said);
}

#[test]
fn a_daemon_killed_ten_times_on_the_way_does_all_of_it_once() {
    let said = [
        "kill 10 killed the daemon while web-5 was being switched",
        "each of the 11 commands ran exactly once",
        "each of the 111 lines they printed is in the log once, in order",
        "killed 10 times, and the same end as without",
    ];
    let text = demo("--crash", &said);
    assert_eq!(text.matches("killed the daemon while").count(), 10, "{text}");
}

/// What docs/how-to/hosts-from-ec2.md tells to run.
#[test]
#[cfg(feature = "ec2")]
fn the_demo_of_ec2_goes_as_described_and_leaves_nothing_behind() {
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/demo-ec2");
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(script);
    command.arg(env!("CARGO_BIN_EXE_phased")).env("TMPDIR", place.path());
    let shown = output(&mut command);
    let said = format!("{}\n{}", shown.stdout, shown.stderr);
    assert_eq!(shown.code, 0, "{said}");
    for part in [
        "shop production: 4 hosts",
        "ec2 says it is terminated: ",
        "had 4 hosts and finds 0 now",
        "That is all. Nothing was asked of Amazon, and nothing is left behind.",
    ] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    let new = said.lines().find_map(|line| line.strip_prefix("what is on the new instance ")).unwrap();
    let (_, release) = new.split_once(": ").unwrap();
    assert!(release.len() == 12 && release.bytes().all(|b| b.is_ascii_hexdigit()), "{new}");
    let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
