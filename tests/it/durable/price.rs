//! What a replay costs: time and memory, of a journal of 10,000 records with 64 open calls. A release build's figures count, and scripts/crash
//! asks for them.

use std::time::{Duration, Instant};

use crate::fixture::{Project, Sink, World, eventually};

const CALLS: usize = 64;
const STEPS: usize = 77;

#[test]
#[ignore = "a measurement: scripts/crash makes it with a release build"]
fn replay_of_ten_thousand_records_is_cheap_and_has_no_effect() {
    let sink = Sink::start();
    let hosts: Vec<String> = (1..=CALLS).map(|n| format!("h{n:02}")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let deploy = format!(
        r#"for i = 1, {STEPS} do host:http {{ "{}", method = "POST", body = host.id .. i }} end
           host:log "replayed"
           host:sleep "1h""#,
        sink.url()
    );
    let world = World::new();
    world.project(&Project::new("shop").hosts(&hosts).rollout("max_parallel = 64").deploy(&deploy));
    let daemon = world.start();
    let before = daemon.memory();
    world.repo.push("x");
    let run = daemon.press();
    let lines = |run: &crate::fixture::Run| run.log().matches("# replayed").count();
    // Longer than anything else here: in a debug build it takes its time.
    let began = Instant::now();
    while lines(&run) < CALLS {
        assert!(began.elapsed() < Duration::from_secs(300), "{} of {CALLS} calls are there", lines(&run));
        std::thread::sleep(Duration::from_millis(200));
    }
    daemon.kill();
    let records = world.journal(&run.id).len();
    let effects = sink.asked().len();
    assert!(records > 9_900 && effects == CALLS * STEPS, "{records} records, {effects} requests");
    // Each call writes its line again where it is not there any more: that is how its replay is seen to have ended.
    std::fs::remove_dir_all(world.path(&format!("data/journal/runs/{}/out", run.id))).unwrap();
    let out = world.path(&format!("data/journal/runs/{}/out", run.id));
    let began = Instant::now();
    let daemon = world.start();
    let ready = began.elapsed();
    let written = || std::fs::read_dir(&out).map_or(0, Iterator::count);
    eventually("every call is replayed", || (written() == CALLS).then_some(()));
    let whole = began.elapsed();
    let (after, highest) = (daemon.memory(), daemon.peak_memory());
    assert_eq!(sink.asked().len(), effects, "a replay had an effect");
    println!(
        "replay: {records} records, {CALLS} open calls: ready after {ready:?}, every call replayed {whole:?} after the start of the process; RSS {} MiB \
         before, {} MiB after, {} MiB at most; {} requests before, {} after",
        before / 1024,
        after / 1024,
        highest / 1024,
        effects,
        sink.asked().len()
    );
    if cfg!(debug_assertions) {
        return;
    }
    assert!(whole < Duration::from_secs(5), "five times the goal");
    assert!(highest < before + 64 * 1024, "more than 64 MiB more");
}
