use serde_json::json;

use super::*;
use crate::{journal::disk::faulty::FaultyDisk, time::SystemClock};

fn open(dir: &Path) -> io::Result<ControlLog> {
    ControlLog::open(dir, Arc::new(SystemClock::new()), Kill::default())
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

#[tokio::test]
async fn after_a_failed_sync_nothing_is_committed_any_more() {
    for fail_at in 1..14 {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(FaultyDisk::new(fail_at, true));
        let Ok(control) = ControlLog::on(disk, dir.path(), Arc::new(SystemClock::new()), Kill::default()) else {
            continue;
        };
        let (mut acknowledged, mut failed) = (0, false);
        for n in 1..=8 {
            let done = match control.commit(Commit::Setting, &[], put("k", json!(n))) {
                Ok(ticket) => ticket.synced().await.is_ok(),
                Err(_) => false,
            };
            assert!(!(done && failed));
            failed |= !done;
            if done {
                acknowledged = n;
            }
        }
        assert!(failed);
        drop(control);
        let found = open(dir.path()).unwrap().get("k").map_or(0, |entry| entry.value.as_i64().unwrap());
        assert!(found >= acknowledged);
    }
}
