//! systemd's journal, played by the test: entries with fields.

use std::{
    collections::BTreeMap,
    os::unix::{fs::MetadataExt as _, net::UnixDatagram},
    sync::{Arc, Mutex},
};

use super::{Manager, Served};
use crate::fixture::{Daemon, Project, World, eventually};

type Entry = BTreeMap<String, String>;

/// An entry without values of several lines.
fn entry(bytes: &[u8]) -> Entry {
    let text = String::from_utf8_lossy(bytes).into_owned();
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn runs_are_found_in_the_journal_by_project_run_environment_and_host() {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1", "h2"]));
    world.project(&Project::new("web").hosts(&["h3"]).deploy(r#"host:sh "exit 3""#));
    world.repo.push("first");
    let journal = UnixDatagram::bind(world.path("journal")).unwrap();
    let entries: Arc<Mutex<Vec<Entry>>> = Arc::default();
    let kept = Arc::clone(&entries);
    std::thread::spawn(move || {
        let mut bytes = vec![0; 512 * 1024];
        while let Ok(length) = journal.recv(&mut bytes) {
            kept.lock().unwrap().push(entry(&bytes[..length]));
        }
    });
    let config = Daemon::configure(&world);
    let text = std::fs::read_to_string(&config).unwrap().replace("format = \"json\"", "format = \"text\"");
    std::fs::write(&config, text.replace("info,phased=debug", "info")).unwrap();
    let log = std::fs::File::create(world.path("daemon.log")).unwrap().metadata().unwrap();
    let mut command = Daemon::command(&config);
    command.env("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino()));
    command.env("PHASED_JOURNAL_SOCKET", world.path("journal"));
    let manager = Manager::listen(&world, "notify");
    let served = Served::start(&world, &manager, command);
    let run = served.press();
    assert_eq!(served.wait(&run)["state"], "succeeded");
    let web = served.api.post("/v1/projects/web/start", &serde_json::json!({})).is(202).json();
    assert_ne!(served.wait(web["id"].as_str().unwrap())["state"], "succeeded");

    // What `journalctl PHASED_PROJECT=... PHASED_HOST=...` would show.
    let find = |wanted: &[(&str, &str)]| {
        let entries = entries.lock().unwrap().clone();
        let is = |entry: &&Entry| wanted.iter().all(|(name, value)| entry.get(*name).is_some_and(|v| v == value));
        entries.iter().filter(is).map(|entry| entry["MESSAGE"].clone()).collect::<Vec<_>>()
    };
    let has = |wanted: &[(&str, &str)], text: &str| {
        eventually(&format!("{wanted:?}: {text}"), || find(wanted).iter().any(|m| m.starts_with(text)).then_some(()));
    };
    has(&[("PHASED_PROJECT", "shop"), ("PHASED_RUN", &run), ("PRIORITY", "6")], "the run: succeeded");
    has(&[("PHASED_PROJECT", "shop"), ("PHASED_RUN", &run)], "stage unit: succeeded");
    has(&[("PHASED_PROJECT", "shop"), ("PHASED_ENVIRONMENT", "production")], "the deployment to production: succeeded");
    has(&[("PHASED_RUN", &run), ("PHASED_ENVIRONMENT", "production"), ("PHASED_HOST", "h2")], "host h2: healthy");
    has(&[("PHASED_PROJECT", "web"), ("PHASED_HOST", "h3"), ("PRIORITY", "4")], "host h3: failed: ");
    has(&[("SYSLOG_IDENTIFIER", "phased"), ("PRIORITY", "6")], "phased is ready");
    assert!(find(&[("PHASED_PROJECT", "shop"), ("PHASED_HOST", "h3")]).is_empty());
    // Whatever names a run names its project: the filter by project misses nothing.
    let entries = entries.lock().unwrap().clone();
    let without: Vec<&Entry> =
        entries.iter().filter(|e| e.contains_key("PHASED_RUN") && !e.contains_key("PHASED_PROJECT")).collect();
    assert!(without.is_empty(), "{without:?}");
    assert_eq!(served.said(), "", "nothing is said twice");
}
