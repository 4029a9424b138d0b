use std::{collections::BTreeMap, fs};

use nix::errno::Errno;
use serde_json::json;

use super::*;
use crate::{
    dice::Dice,
    journal::disk::{
        Disk as _,
        faulty::{self, FaultyDisk},
        simulated::{SimulatedDisk, states},
    },
    ports::storage::{Condition, Storage as _},
    time::SystemClock,
};

fn means(dir: &Path, disk: Arc<dyn disk::Disk>) -> Means {
    Means { disk, data: Arc::new(DataDisk::keeping(dir, 4096).unwrap()), kill: Kill::default(), later: None }
}

fn open(dir: &Path) -> io::Result<ControlLog> {
    ControlLog::with(means(dir, Arc::new(RealDisk)), dir, Arc::new(SystemClock::new()), FLOOR)
}

fn put(key: &str, value: Value) -> Vec<(String, Option<Value>)> {
    vec![(key.to_owned(), Some(value))]
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let control = open(dir.path()).unwrap();
    control.commit(Commit::Setting, &[], put("a/1", json!({"x": 1}))).unwrap();
    control.commit(Commit::Setting, &[], put("a/2", json!("two"))).unwrap();
    control.commit(Commit::Setting, &[], put("b", json!(3))).unwrap();
    let gone = vec![("a/1".to_owned(), None), ("a/2".to_owned(), Some(json!("zwei")))];
    control.commit(Commit::Token, &[], gone).unwrap().synced().await.unwrap();
    for control in [control, open(dir.path()).unwrap()] {
        assert_eq!(control.get("a/1"), None);
        assert_eq!(control.scan("a/"), vec![Entry { key: "a/2".into(), revision: Revision(4), value: json!("zwei") }]);
        assert_eq!(control.scan("").len(), 2);
    }
    let ticket = open(dir.path()).unwrap().commit(Commit::Token, &[], put("c", json!(1))).unwrap();
    assert_eq!(ticket.seq().0, 5);
    ticket.synced().await.unwrap();
}

#[tokio::test]
async fn the_record_is_golden() {
    let dir = tempfile::tempdir().unwrap();
    let control = open(dir.path()).unwrap();
    let puts = vec![("run/1".to_owned(), Some(json!({"b": 1, "a": null}))), ("x".to_owned(), None)];
    control.commit(Commit::RunRequested, &[], puts).unwrap().synced().await.unwrap();
    let text = fs::read_to_string(dir.path().join("control")).unwrap();
    let json = text.splitn(4, ' ').nth(3).unwrap();
    let at = json.split("\"at_ms\":").nth(1).unwrap().split(',').next().unwrap();
    assert_eq!(
        json.replace(at, "0"),
        "{\"commit\":\"RunRequested\",\"at_ms\":0,\"puts\":[{\"key\":\"run/1\",\"value\":{\"a\":null,\"b\":1}},{\"key\":\"x\",\"value\":null}]}\n"
    );
}

#[tokio::test]
async fn a_commit_holds_only_at_the_revisions_it_saw() {
    let dir = tempfile::tempdir().unwrap();
    let control = open(dir.path()).unwrap();
    let mut changed = control.changed();
    let absent = [("k".to_owned(), Revision(0))];
    control.commit(Commit::Lease, &absent, put("k", json!(1))).unwrap();
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    let again = control.commit(Commit::Lease, &absent, put("k", json!(2)));
    assert!(matches!(again, Err(CommitError::Conflict { key }) if key == "k"));
    assert!(!changed.has_changed().unwrap());
    assert_eq!(control.get("k").unwrap().value, json!(1));
    control.commit(Commit::Lease, &[("k".to_owned(), Revision(1))], vec![("k".to_owned(), Some(Value::Null))]).unwrap();
    assert_eq!(control.get("k"), None, "null deletes, now as after a restart");
}

#[tokio::test]
async fn of_many_contenders_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let control = open(dir.path()).unwrap();
    let won = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..16)
            .map(|n| {
                let control = &control;
                scope.spawn(move || {
                    control.commit(Commit::Lease, &[("k".to_owned(), Revision(0))], put("k", json!(n))).is_ok()
                })
            })
            .collect();
        tries.into_iter().filter(|_| true).map(|t| t.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(won, 1);
}

#[test]
fn too_large_a_record_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let control = open(dir.path()).unwrap();
    let refused = control.commit(Commit::Setting, &[], put("k", json!("x".repeat(MAX_RECORD))));
    assert!(matches!(refused, Err(CommitError::TooLarge { limit: MAX_RECORD, .. })));
    assert_eq!(control.get("k"), None);
    control.commit(Commit::Setting, &[], put("k", json!("x".repeat(MAX_RECORD - 200)))).unwrap();
    drop(control);
    assert!(open(dir.path()).unwrap().get("k").is_some());
}

#[test]
fn a_torn_tail_is_cut_and_damage_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    for n in 0..4 {
        open(dir.path()).unwrap().commit(Commit::Setting, &[], put("k", json!(n))).unwrap();
    }
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    assert_eq!(open(dir.path()).unwrap().get("k").unwrap().value, json!(2));
    let mut bad = whole.clone();
    bad[20] ^= 1;
    fs::write(&path, &bad).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("from byte 0 on") && error.to_string().contains("backup"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bad);
    let mut unknown = Vec::new();
    line::encode(&mut unknown, 1, 0, br#"{"commit":"Later","at_ms":0,"puts":[]}"#).unwrap();
    fs::write(&path, &unknown).unwrap();
    assert!(open(dir.path()).err().unwrap().to_string().contains("record 1 is not understood"));
}

/// So small that a few commits compact it.
const SMALL: u64 = 300;

fn small(dir: &Path, disk: Arc<dyn disk::Disk>, data: Arc<DataDisk>) -> io::Result<ControlLog> {
    ControlLog::with(Means { disk, data, kill: Kill::default(), later: None }, dir, Arc::new(SystemClock::new()), SMALL)
}

#[tokio::test]
async fn any_call_that_fails_loses_nothing_that_was_acknowledged() {
    for error in [Errno::EIO, Errno::ENOSPC] {
        for (once, reserve) in [(true, true), (true, false), (false, true), (false, false)] {
            for fail_at in 1.. {
                let dir = tempfile::tempdir().unwrap();
                let disk = FaultyDisk::new(fail_at, once, error);
                let data = faulty::data(dir.path(), reserve);
                let at = format!("{error} at call {fail_at}, once {once}, reserve {reserve}");
                let Ok(control) = small(dir.path(), Arc::new(disk.clone()), data.clone()) else {
                    // The start has the reserve, and does not wait.
                    assert!(error == Errno::EIO || disk.sync_failed() || !once || !reserve, "{at}");
                    continue;
                };
                let (mut acknowledged, mut failed) = (0, false);
                for n in 1..=12 {
                    let done = match control.commit(Commit::Setting, &[], put("k", json!([n, "x".repeat(60)]))) {
                        Ok(ticket) => faulty::acknowledged(&ticket, &disk, &data).await,
                        Err(_) => false,
                    };
                    assert!(!(done && failed), "acknowledged after a failure: {at}");
                    failed |= !done;
                    acknowledged = if done { n } else { acknowledged };
                }
                drop(control);
                let hit = disk.calls() >= fail_at;
                // A write that found no room was made again. A compaction that found none was left, one that could not be synced failed
                // the log, though perhaps after all of this.
                let sticky = hit && (error == Errno::EIO || disk.sync_failed());
                assert!(failed <= sticky, "{at}");
                assert_eq!(matches!(*data.condition().borrow(), Condition::Failed(_)), sticky, "{at}");
                assert_eq!(disk.syncs_after_failure(), 0, "{at}");
                let found = open(dir.path()).unwrap().get("k").map_or(0, |entry| entry.value[0].as_i64().unwrap());
                assert!(found >= acknowledged, "{at}: {found} of {acknowledged}");
                if !hit {
                    break;
                }
            }
        }
    }
}

fn lines(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("control")).unwrap();
    text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_log_that_has_outgrown_what_lives_in_it_is_compacted_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let control = small(dir.path(), Arc::new(RealDisk), faulty::data(dir.path(), true)).unwrap();
    let kept = control.commit(Commit::Token, &[], put("token/a", json!("mine"))).unwrap().seq();
    let mut last = kept;
    for n in 0..200 {
        let before = [("k".to_owned(), control.get("k").map_or(Revision(0), |entry| entry.revision))];
        let ticket = control.commit(Commit::Setting, &before, put("k", json!(n))).unwrap();
        assert_eq!(ticket.seq().0, last.0 + 1, "numbers go on");
        last = ticket.seq();
        if n % 7 == 0 {
            ticket.synced().await.unwrap();
        }
    }
    // What was seen before holds after: revisions are those of the records that wrote the keys.
    assert_eq!(control.get("token/a").unwrap().revision, Revision(kept.0));
    let stale = [("token/a".to_owned(), Revision(kept.0 + 1))];
    assert!(matches!(control.commit(Commit::Token, &stale, vec![]), Err(CommitError::Conflict { .. })));
    drop(control);
    let length = fs::metadata(dir.path().join("control")).unwrap().len();
    assert!(length < 200 * 80 / 4, "{length}");
    assert!(lines(dir.path())[0].starts_with(r#"{"commit":"Kept""#));
    let again = small(dir.path(), Arc::new(RealDisk), faulty::data(dir.path(), true)).unwrap();
    assert_eq!((again.get("k").unwrap().value, again.get("token/a").unwrap().value), (json!(199), json!("mine")));
    assert_eq!(again.commit(Commit::Setting, &[], put("k", json!(0))).unwrap().seq().0, last.0 + 1);
}

#[test]
fn a_log_that_has_outgrown_what_lives_in_it_is_compacted_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let control = open(dir.path()).unwrap();
    for n in 0..50 {
        control.commit(Commit::Setting, &[], put(&format!("k/{}", n % 3), json!(n))).unwrap();
    }
    control.commit(Commit::Setting, &[], vec![("k/0".into(), None)]).unwrap();
    drop(control);
    for _ in 0..2 {
        let control = small(dir.path(), Arc::new(RealDisk), faulty::data(dir.path(), true)).unwrap();
        let found: Vec<_> = control.scan("").into_iter().map(|entry| (entry.key, entry.value)).collect();
        assert_eq!(found, [("k/1".to_owned(), json!(49)), ("k/2".to_owned(), json!(47))]);
        assert_eq!(*control.changed().borrow(), 51);
    }
    let lines = lines(dir.path());
    let at = |line: &str| line.split("\"at_ms\":").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let golden: Vec<String> = lines.iter().map(|line| line.replace(&at(line), "0")).collect();
    assert_eq!(
        golden,
        [
            r#"{"commit":"Kept","at_ms":0,"puts":[{"key":"k/1","value":49},{"key":"k/2","value":47}]}"#,
            r#"{"commit":"Compacted","at_ms":0,"lines":1,"puts":[]}"#,
        ]
    );
}

#[test]
fn large_values_are_kept_in_as_many_records_as_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let control = small(dir.path(), Arc::new(RealDisk), faulty::data(dir.path(), true)).unwrap();
    for n in 0..60 {
        let value = json!("x".repeat(if n % 5 == 0 { MAX_RECORD - 200 } else { 20_000 }));
        control.commit(Commit::Setting, &[], put(&format!("k/{}", n % 10), value)).unwrap();
    }
    let before = control.scan("");
    drop(control);
    let after = small(dir.path(), Arc::new(RealDisk), faulty::data(dir.path(), true)).unwrap().scan("");
    let values = |entries: Vec<Entry>| entries.into_iter().map(|e| (e.key, e.value)).collect::<Vec<_>>();
    assert_eq!(values(after), values(before));
}

#[test]
fn a_compacted_log_cut_at_any_byte_is_whole_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let control = small(dir.path(), Arc::new(RealDisk), faulty::data(dir.path(), true)).unwrap();
    for n in 0..40 {
        control.commit(Commit::Setting, &[], put(&format!("k/{}", n % 4), json!(["x".repeat(80), n]))).unwrap();
    }
    drop(control);
    drop(small(dir.path(), Arc::new(RealDisk), faulty::data(dir.path(), true)).unwrap());
    let path = dir.path().join("control");
    let whole = fs::read(&path).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let mark = text.find("Compacted").unwrap();
    let end = mark + text[mark..].find('\n').unwrap() + 1;
    for cut in 11..whole.len() {
        match read(&path, &whole[..cut]) {
            Ok((state, ..)) => assert!(cut >= end && state.by_key.since("").count() == 4, "cut at {cut}"),
            Err(error) => {
                assert!(cut < end && error.to_string().contains("end of that is missing"), "cut at {cut}: {error}");
            }
        }
    }
    // The mark taken out of the middle, or a record of the compaction.
    let without =
        |what: &str| text.lines().filter(|line| !line.contains(what)).map(|l| format!("{l}\n")).collect::<String>();
    for bad in [without("Compacted"), without("Kept")] {
        assert!(read(&path, bad.as_bytes()).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn whatever_a_power_loss_leaves_every_acknowledged_commit_is_there_and_no_other() {
    let real = tempfile::tempdir().unwrap();
    let data = faulty::data(real.path(), true);
    let dir = Path::new("/journal");
    let (mut lost, mut compacted) = (0, 0);
    for seed in 0..states() {
        let mut dice = Dice::of(seed);
        let mut disk = SimulatedDisk::new(seed, dir, 2 + dice.below(60) as u64);
        // What lived after each record, and the last one acknowledged.
        let mut history: BTreeMap<u64, BTreeMap<String, Value>> = BTreeMap::from([(0, BTreeMap::new())]);
        let mut acknowledged = 0;
        for life in 0..4 {
            let at = format!("seed {seed}, life {life}");
            match small(dir, Arc::new(disk.clone()), data.clone()) {
                Err(error) => assert!(!disk.has_power(), "{at}: {error}"),
                Ok(control) => {
                    let last = *control.changed().borrow();
                    let found: BTreeMap<String, Value> =
                        control.scan("").into_iter().map(|e| (e.key, e.value)).collect();
                    assert!(last >= acknowledged, "an acknowledged commit is gone: {at}");
                    assert_eq!(history.get(&last), Some(&found), "{at}");
                    lost += history.split_off(&(last + 1)).len();
                    let mut lives = found;
                    for _ in 0..dice.below(25) {
                        let (key, number) = (format!("k/{}", dice.below(4)), dice.below(1 << 30));
                        let value = (dice.below(5) > 0).then(|| json!([number, "x".repeat(dice.below(90))]));
                        let Ok(ticket) = control.commit(Commit::Setting, &[], vec![(key.clone(), value.clone())])
                        else {
                            break;
                        };
                        match value {
                            Some(value) => lives.insert(key, value),
                            None => lives.remove(&key),
                        };
                        history.insert(ticket.seq().0, lives.clone());
                        if dice.below(3) == 0 && ticket.synced().await.is_ok() {
                            acknowledged = ticket.seq().0;
                        }
                    }
                }
            }
            compacted +=
                usize::from(disk.read(&dir.join("control")).is_ok_and(|b| b.windows(9).any(|w| w == b"Compacted")));
            disk = disk.back(if life == 2 { u64::MAX } else { 2 + dice.below(60) as u64 });
        }
    }
    assert!(lost > 0 && compacted > 0, "{lost} {compacted}");
}
