use super::{
    disk::{SCHEMA, SCHEMA_KEY, position_key, wrap},
    *,
};
use crate::time::SystemClock;

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

fn fresh(dir: &Path) -> StateIndex {
    let (index, aside) = StateIndex::open(dir, &clock()).unwrap();
    assert_eq!(aside, None);
    index
}

fn aside(dir: &Path) -> (StateIndex, SetAside) {
    let (index, aside) = StateIndex::open(dir, &clock()).unwrap();
    assert_eq!(index.scan("", None, 10, false).unwrap(), vec![], "the new one is empty");
    let aside = aside.expect("it is set aside");
    assert!(aside.path.exists());
    (index, aside)
}

fn put(index: &dyn Index, keys: &[&str]) {
    let puts = keys.iter().map(|key| ((*key).to_owned(), Some(key.as_bytes().to_vec()))).collect();
    index.apply(Batch { run: None, puts }).unwrap();
}

fn keys(index: &dyn Index, prefix: &str, after: Option<&str>, limit: usize, reverse: bool) -> Vec<String> {
    index.scan(prefix, after, limit, reverse).unwrap().into_iter().map(|(key, _)| key).collect()
}

fn db(index: &StateIndex) -> sled::Db {
    on_disk(index).db
}

fn on_disk(index: &StateIndex) -> Disk {
    let Documents::Disk(disk) = index.written() else { panic!("it is in memory") };
    disk
}

fn run(n: u128) -> RunId {
    RunId::new(1_700_000_000_000, n)
}

#[test]
fn documents_and_position_are_written_together_and_outlast_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let index = fresh(&state);
    let puts = vec![("run/1".to_owned(), Some(b"{}".to_vec())), ("run/2".to_owned(), None)];
    index.apply(Batch { run: Some((run(1), Seq(9), 0xdead_beef)), puts }).unwrap();
    index.close().unwrap();
    let index = fresh(&state);
    assert_eq!(index.get("run/1").unwrap().unwrap(), b"{}");
    assert_eq!(index.get("run/2").unwrap(), None);
    assert_eq!(index.position(&run(1)).unwrap(), Some((Seq(9), 0xdead_beef)));
    assert_eq!(index.position(&run(2)).unwrap(), None);
}

#[test]
fn pages_go_both_ways_and_stay_within_the_prefix() {
    let dir = tempfile::tempdir().unwrap();
    for index in [&fresh(dir.path()) as &dyn Index, &MemoryIndex::default()] {
        put(index, &["a", "r/", "r/1", "r/2", "r/3", "r0", "z"]);
        assert_eq!(keys(index, "r/", None, 10, false), ["r/", "r/1", "r/2", "r/3"]);
        assert_eq!(keys(index, "r/", None, 2, true), ["r/3", "r/2"]);
        assert_eq!(keys(index, "r/", Some("r/1"), 10, false), ["r/2", "r/3"]);
        assert_eq!(keys(index, "r/", Some("r/2"), 10, true), ["r/1", "r/"]);
        assert_eq!(keys(index, "", None, 100, true).len(), 7);
        // A cursor from elsewhere is no error.
        assert_eq!(keys(index, "r/", Some("a"), 1, false), ["r/"]);
        assert_eq!(keys(index, "r/", Some("z"), 1, true), ["r/3"]);
        assert!(keys(index, "r/", Some("a"), 1, true).is_empty());
        assert!(keys(index, "r/", Some("r/3"), 1, false).is_empty());
        assert!(keys(index, "r/", Some("z"), 1, false).is_empty());
        assert!(keys(index, "r/", None, 0, false).is_empty());
        assert!(keys(index, "none", None, 10, true).is_empty());
    }
}

#[test]
fn clearing_forgets_everything_but_the_schema() {
    let dir = tempfile::tempdir().unwrap();
    let index = fresh(dir.path());
    let puts = (0..2500).map(|n| (format!("k{n}"), Some(vec![1]))).collect();
    index.apply(Batch { run: Some((run(1), Seq(1), 1)), puts }).unwrap();
    index.clear().unwrap();
    assert!(keys(&index, "", None, 10, false).is_empty());
    assert_eq!(index.position(&run(1)).unwrap(), None);
    index.close().unwrap();
    fresh(dir.path());
}

#[test]
fn while_it_is_made_anew_the_old_one_answers_and_the_new_one_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let index = fresh(&state);
    put(&index, &["a", "b"]);
    find_no_room(&index);
    // The first attempt comes to nothing.
    index.renew(Medium::Disk).unwrap();
    put(&index, &["lost"]);
    index.renew(Medium::Disk).unwrap();
    assert!(!index.full());
    put(&index, &["b", "c"]);
    assert_eq!(keys(&index, "", None, 10, false), ["a", "b"]);
    index.renewed();
    assert_eq!(keys(&index, "", None, 10, false), ["b", "c"]);
    index.close().unwrap();
    assert_eq!(keys(&fresh(&state), "", None, 10, false), ["b", "c"]);
}

/// As a write to a full disk does.
fn find_no_room(index: &StateIndex) {
    finds_no_room(&on_disk(index));
    assert!(index.full());
}

fn finds_no_room(disk: &Disk) {
    let found: Result<(), IndexError> =
        disk.asked("writing", |_| Err(io::Error::from(io::ErrorKind::StorageFull).into()));
    assert!(found.is_err());
}

#[test]
fn what_somebody_finds_late_in_the_one_before_is_no_word_of_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let index = fresh(&dir.path().join("state"));
    let before = on_disk(&index);
    find_no_room(&index);
    index.renew(Medium::Disk).unwrap();
    finds_no_room(&before);
    assert!(!index.full());
    index.renewed();
    finds_no_room(&before);
    assert!(!index.full());
}

#[test]
fn without_room_it_is_in_memory_and_goes_back_to_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let index = fresh(&state);
    put(&index, &["a"]);
    find_no_room(&index);
    index.renew(Medium::Memory).unwrap();
    assert!(index.in_memory() && !index.full());
    let puts = vec![("b".to_owned(), Some(vec![1])), ("c".to_owned(), Some(vec![2]))];
    index.apply(Batch { run: Some((run(1), Seq(9), 7)), puts }).unwrap();
    assert_eq!(keys(&index, "", None, 10, false), ["a"], "until it has everything");
    index.renewed();
    assert_eq!(keys(&index, "", None, 10, false), ["b", "c"]);
    assert_eq!(index.position(&run(1)).unwrap(), Some((Seq(9), 7)));
    assert!(index.apply(Batch { run: None, puts: vec![("k".repeat(MAX_KEY + 1), None)] }).is_err());
    // Room, which is gone again at once; then for good.
    index.renew(Medium::Disk).unwrap();
    find_no_room(&index);
    assert_eq!(keys(&index, "", None, 10, false), ["b", "c"], "what was in memory is read on");
    index.renew(Medium::Memory).unwrap();
    put(&index, &["d"]);
    index.renewed();
    assert_eq!(keys(&index, "", None, 10, false), ["d"]);
    index.renew(Medium::Disk).unwrap();
    put(&index, &["d", "e"]);
    assert_eq!(index.position(&run(1)).unwrap(), None, "of the new one");
    index.renewed();
    assert!(!index.in_memory());
    index.close().unwrap();
    assert_eq!(keys(&fresh(&state), "", None, 10, false), ["d", "e"]);
}

#[test]
fn what_is_too_large_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let index = fresh(dir.path());
    put(&index, &["small"]);
    for (key, size) in [("big".to_owned(), MAX_DOCUMENT + 1), ("k".repeat(MAX_KEY + 1), 1)] {
        let puts = vec![("small".to_owned(), None), (key, Some(vec![0; size]))];
        assert!(index.apply(Batch { run: None, puts }).is_err());
    }
    assert!(index.get("small").unwrap().is_some());
    let most = vec![("k".repeat(MAX_KEY), Some(vec![0; MAX_DOCUMENT]))];
    index.apply(Batch { run: None, puts: most }).unwrap();
}

#[test]
fn a_snapshot_cut_off_by_a_kill_does_not_keep_it_from_opening() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    put(&fresh(&state), &["a"]);
    fs::write(state.join("snap.00000000FFFFFFFF.generating"), b"half").unwrap();
    assert_eq!(keys(&fresh(&state), "", None, 10, false), ["a"]);
}

#[test]
fn a_broken_index_gives_way_to_one_that_works() {
    for break_it in [
        // The log or its configuration is garbage, the directory is no directory.
        |state: &Path| fs::write(state.join("db"), vec![0xa5; 1 << 20]).unwrap(),
        |state: &Path| fs::write(state.join("conf"), b"nonsense").unwrap(),
        |state: &Path| {
            fs::remove_dir_all(state).unwrap();
            fs::write(state, b"a file").unwrap();
        },
        |state: &Path| fs::write(state.join("snap.00000000FFFFFFFF"), b"no snapshot").unwrap(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let index = fresh(&state);
        put(&index, &["a"]);
        index.close().unwrap();
        break_it(&state);
        // sled itself starts anew over some kinds of garbage: then nothing is set aside and nothing is found either.
        let (index, _) = StateIndex::open(&state, &clock()).unwrap();
        assert!(index.get("a").unwrap().is_none_or(|found| found == b"a"));
        index.clear().unwrap();
        put(&index, &["b"]);
        index.close().unwrap();
        assert_eq!(keys(&fresh(&state), "", None, 10, false), ["b"]);
    }
}

#[test]
fn a_deleted_or_zeroed_index_comes_up_empty() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let index = fresh(&state);
    put(&index, &["a"]);
    index.close().unwrap();
    fs::remove_dir_all(&state).unwrap();
    let index = fresh(&state);
    put(&index, &["a"]);
    index.close().unwrap();
    let size = usize::try_from(fs::metadata(state.join("db")).unwrap().len()).unwrap();
    fs::write(state.join("db"), vec![0; size]).unwrap();
    let (index, _) = StateIndex::open(&state, &clock()).unwrap();
    assert!(keys(&index, "", None, 10, false).is_empty());
}

#[test]
fn another_schema_is_set_aside() {
    for schema in [&(SCHEMA + 1).to_le_bytes()[..], &0u32.to_le_bytes(), b""] {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let index = fresh(&state);
        put(&index, &["a"]);
        db(&index).insert(SCHEMA_KEY, wrap(schema)).unwrap();
        index.close().unwrap();
        assert!(aside(&state).1.why.contains("schema"));
    }
    let dir = tempfile::tempdir().unwrap();
    let index = fresh(dir.path().join("state").as_path());
    put(&index, &["a"]);
    db(&index).remove(SCHEMA_KEY).unwrap();
    index.close().unwrap();
    assert!(aside(&dir.path().join("state")).1.why.contains("no schema"));
}

#[test]
fn a_damaged_value_is_an_error_and_no_document_and_the_next_start_makes_the_index_anew() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let index = fresh(&state);
    let good = wrap(b"document");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        db(&index).insert(b"da", bad).unwrap();
        assert!(index.get("a").is_err() && index.scan("", None, 1, false).is_err());
    }
    for length in 0..5 {
        db(&index).insert(b"da", &good[..length]).unwrap();
        assert!(index.get("a").is_err());
    }
    db(&index).insert(position_key(&run(1)), wrap(b"short")).unwrap();
    assert!(index.position(&run(1)).is_err());
    index.close().unwrap();
    assert!(aside(&state).1.why.contains("is damaged"));
    fresh(&state);
}

#[test]
fn without_room_to_open_it_is_in_memory_and_what_is_there_stays() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let index = fresh(&state);
    put(&index, &["a"]);
    index.close().unwrap();
    let (conf, kept) = (state.join("conf"), dir.path().join("conf"));
    fs::rename(&conf, &kept).unwrap();
    std::os::unix::fs::symlink("/dev/full", &conf).unwrap();
    let index = fresh(&state);
    assert!(index.in_memory() && !index.full());
    put(&index, &["b"]);
    assert_eq!(keys(&index, "", None, 10, false), ["b"]);
    index.close().unwrap();
    fs::rename(&kept, &conf).unwrap();
    assert_eq!(keys(&fresh(&state), "", None, 10, false), ["a"]);
    // Nothing but want of room is a reason.
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(StateIndex::open(&dir.path().join("file/state"), &clock()).is_err());
}

#[test]
fn an_open_that_hangs_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    put(&fresh(&state), &["a"]);
    assert!(StateIndex::open_within(&state, &clock(), Duration::ZERO).is_err());
    assert!(fs::read_dir(dir.path()).unwrap().count() >= 1);
}

fn rss_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Figures, not a check: `cargo test --lib store -- --ignored --nocapture figures`, each in a process of its own.
#[test]
#[ignore = "prints figures of this machine"]
#[allow(clippy::disallowed_methods)]
fn figures() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let measure = |what: &str| {
        let (before, begun) = (rss_kb(), std::time::Instant::now());
        let index = fresh(&state);
        println!("{what}: open {:?}, RSS {} kB -> {} kB", begun.elapsed(), before, rss_kb());
        index
    };
    if std::env::var_os("STATE_DIR").is_none() {
        let index = measure("empty");
        let begun = std::time::Instant::now();
        for n in 0..1000u128 {
            let puts = (0..12).map(|host| (format!("run/{n}/host/{host}"), Some(vec![b'x'; 600]))).collect();
            index.apply(Batch { run: Some((run(n), Seq(40), 1)), puts }).unwrap();
        }
        println!("1000 runs of 12 documents: {:?}, RSS {} kB", begun.elapsed(), rss_kb());
        let begun = std::time::Instant::now();
        assert_eq!(keys(&index, "run/", None, 20_000, false).len(), 12_000);
        println!("scan of all: {:?}, RSS {} kB", begun.elapsed(), rss_kb());
        index.close().unwrap();
        println!("closed, RSS {} kB", rss_kb());
        println!("keep: STATE_DIR={}", dir.keep().display());
    } else {
        let state = PathBuf::from(std::env::var_os("STATE_DIR").unwrap()).join("state");
        let (before, begun) = (rss_kb(), std::time::Instant::now());
        let index = fresh(&state);
        println!("1000 runs: open {:?}, RSS {before} kB -> {} kB", begun.elapsed(), rss_kb());
        assert_eq!(keys(&index, "run/", None, 100, true).len(), 100);
        println!("after a page of 100: RSS {} kB", rss_kb());
    }
}
