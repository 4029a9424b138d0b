//! What README tells a newcomer to run first.

use std::process::Command;

#[test]
fn the_demo_goes_as_described_and_leaves_nothing_behind() {
    let shown = Command::new(env!("CARGO_BIN_EXE_phased")).args(["demo", "--once"]).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success(), "{text}\n{}", String::from_utf8_lossy(&shown.stderr));
    for said in [
        "tested, rolled out host by host",
        "refused, and people were told why",
        "stopped at the first host",
        "All three went as described.",
    ] {
        assert!(text.contains(said), "{said:?} is not in\n{text}");
    }
    let directory = text.lines().find_map(|line| line.split_once("repository").map(|(_, rest)| rest.trim().to_owned()));
    let directory = std::path::PathBuf::from(directory.unwrap());
    assert!(!directory.parent().unwrap().exists(), "{} is left behind", directory.display());
}
