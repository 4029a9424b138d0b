use std::time::Duration;

use nix::errno::Errno;

use super::*;
use crate::{
    blobs::FileBlobs,
    dice::Dice,
    journal::disk::{
        Disk as _,
        faulty::{self, FaultyDisk},
        simulated::{SimulatedDisk, states},
    },
    model::event::Event,
    ports::storage::{Condition, Storage as _},
    time::Stamp,
};

type Heard = Vec<(RunId, Vec<(Seq, u32, Record)>)>;

#[derive(Default)]
struct Ear(Mutex<Heard>);

impl Feed for Ear {
    fn synced(&self, run: &RunId, records: Vec<(Seq, u32, Record)>) {
        self.0.lock().unwrap().push((run.clone(), records));
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    ear: Arc<Ear>,
}

impl Fixture {
    fn new() -> Self {
        Fixture { dir: tempfile::tempdir().unwrap(), ear: Arc::default() }
    }

    fn over(&self, disk: Arc<dyn disk::Disk>, data: Arc<DataDisk>) -> RunJournals {
        let blobs = Arc::new(FileBlobs::open(self.dir.path().join("blobs")).unwrap());
        let dir = self.dir.path().join("runs");
        fs::create_dir_all(&dir).unwrap();
        RunJournals::with(Means { disk, data, kill: Kill::default(), later: None }, dir, blobs, self.ear.clone())
            .unwrap()
    }

    fn real(&self) -> RunJournals {
        self.over(Arc::new(RealDisk), faulty::data(self.dir.path(), true))
    }

    fn heard(&self) -> Vec<(Seq, u32, Record)> {
        self.ear.0.lock().unwrap().iter().flat_map(|(_, records)| records.clone()).collect()
    }

    fn journal(&self, run: &RunId) -> PathBuf {
        self.dir.path().join("runs").join(run.as_str()).join("journal")
    }
}

fn run(n: u128) -> RunId {
    RunId::new(1_700_000_000_000, n)
}

fn record(dir: &str) -> Record {
    let event = Event::CheckedOut { dir: dir.into() };
    Record { at: Stamp { wall_ms: 1, boot_ms: 2, boot: "b".into() }, by: "c".into(), event }
}

const E: Epoch = Epoch(7);

#[tokio::test]
async fn what_is_acknowledged_is_read_back_and_was_heard_in_order() {
    let fixture = Fixture::new();
    let journals = fixture.real();
    let mut at = Seq(0);
    for n in 0..20 {
        let ticket = journals.append(&run(1), E, at, vec![record(&n.to_string()), record("x")]).unwrap();
        at = ticket.seq();
        if n % 3 == 0 {
            ticket.synced().await.unwrap();
        }
    }
    journals.append(&run(1), E, at, vec![]).unwrap().synced().await.unwrap();
    let found = journals.read(&run(1)).unwrap();
    assert_eq!((found.records.len(), &found.damage), (40, &None));
    assert_eq!(found.records, fixture.heard());
    assert_eq!(journals.runs().unwrap(), vec![run(1)]);
}

/// It rests, and yet gets to the disk when nothing follows it.
#[tokio::test]
async fn what_nobody_hurries_gets_to_the_disk_by_itself_and_in_its_place() {
    let fixture = Fixture::new();
    let journals = fixture.real();
    let key = crate::model::step::CallKey::stage("unit", "run");
    let event =
        Event::Return { key, result: crate::model::event::CallResult::Returned(serde_json::Value::Null), undos: 0 };
    let rests = Record { event, ..record("") };
    let ticket = journals.append(&run(1), E, Seq(0), vec![rests.clone()]).unwrap();
    ticket.synced().await.unwrap();
    let ticket = journals.append(&run(1), E, Seq(1), vec![rests.clone()]).unwrap();
    journals.append(&run(1), E, Seq(2), vec![record("at once")]).unwrap().synced().await.unwrap();
    ticket.synced().await.unwrap();
    let ticket = journals.append(&run(1), E, Seq(3), vec![rests]).unwrap();
    drop(journals);
    ticket.synced().await.unwrap();
    let found: Vec<_> = fixture.heard().into_iter().map(|(seq, _, record)| (seq.0, record.event.may_rest())).collect();
    assert_eq!(found, [(1, true), (2, true), (3, false), (4, true)]);
}

#[tokio::test]
async fn the_first_line_is_golden() {
    let fixture = Fixture::new();
    fixture.real().append(&run(1), E, Seq(0), vec![record("why")]).unwrap().synced().await.unwrap();
    assert_eq!(
        fs::read_to_string(fixture.journal(&run(1))).unwrap(),
        "22721e23 1 0 {\"at\":[1,2,\"b\"],\"controller\":\"c\",\"event\":\"checked_out\",\"dir\":\"why\"}\n"
    );
}

#[tokio::test]
async fn a_large_record_is_a_blob_and_nobody_sees_the_difference() {
    let fixture = Fixture::new();
    let journals = fixture.real();
    let large = record(&"x".repeat(300_000));
    journals.append(&run(1), E, Seq(0), vec![large.clone()]).unwrap().synced().await.unwrap();
    assert!(fs::metadata(fixture.journal(&run(1))).unwrap().len() < 200);
    assert_eq!(journals.read(&run(1)).unwrap().records[0].2, large);
    assert_eq!(fixture.heard()[0].2, large);
    for blob in fs::read_dir(fixture.dir.path().join("blobs")).unwrap() {
        fs::remove_file(blob.unwrap().path()).unwrap();
    }
    let found = journals.read(&run(1)).unwrap();
    assert!(found.records.is_empty() && found.damage.unwrap().contains("record 1 cannot be read: blob"));
}

#[tokio::test]
async fn appending_is_fenced_and_conditional() {
    let fixture = Fixture::new();
    let journals = fixture.real();
    assert!(matches!(journals.append(&run(1), E, Seq(3), vec![]), Err(AppendError::Broken { .. })));
    journals.append(&run(1), E, Seq(0), vec![record("a")]).unwrap().synced().await.unwrap();
    let conflict = journals.append(&run(1), E, Seq(0), vec![record("b")]);
    assert!(matches!(conflict, Err(AppendError::Conflict { found: Seq(1), .. })));
    let fenced = journals.append(&run(1), Epoch(6), Seq(1), vec![record("b")]);
    assert!(matches!(fenced, Err(AppendError::Fenced { .. })));
    journals.close(&run(1));
    assert!(matches!(journals.append(&run(1), E, Seq(1), vec![record("b")]), Err(AppendError::Broken { .. })));
    assert!(matches!(journals.append(&run(1), E, Seq(0), vec![record("b")]), Err(AppendError::Broken { .. })));
    assert_eq!(journals.read(&run(1)).unwrap().records.len(), 1);
}

#[tokio::test]
async fn reopening_cuts_the_tail_and_goes_on_where_it_ended() {
    let fixture = Fixture::new();
    let ticket = {
        let journals = fixture.real();
        let ticket = journals.append(&run(1), E, Seq(0), vec![record("a"), record("b")]).unwrap();
        journals.close(&run(1));
        ticket
    };
    ticket.synced().await.expect("dropping the journals writes what was appended");
    let path = fixture.journal(&run(1));
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], b"12345678 3 2 {\"at"].concat()).unwrap();
    let journals = fixture.real();
    assert_eq!(journals.reopen(&run(1), E).unwrap().records.len(), 2);
    assert_eq!(fs::read(&path).unwrap(), whole);
    journals.append(&run(1), E, Seq(2), vec![record("c")]).unwrap().synced().await.unwrap();
    assert_eq!(journals.read(&run(1)).unwrap().records.len(), 3);
    // Nothing was kept: the run begins again with its first record.
    journals.close(&run(1));
    fs::write(&path, b"torn").unwrap();
    assert!(journals.reopen(&run(1), E).unwrap().records.is_empty());
    journals.append(&run(1), E, Seq(0), vec![record("a")]).unwrap().synced().await.unwrap();
}

#[tokio::test]
async fn damage_is_told_and_the_file_is_left_alone() {
    let fixture = Fixture::new();
    let journals = fixture.real();
    for n in 0..5 {
        journals.append(&run(1), E, Seq(n), vec![record("a")]).unwrap().synced().await.unwrap();
    }
    journals.close(&run(1));
    let mut bytes = fs::read(fixture.journal(&run(1))).unwrap();
    bytes[130] ^= 4;
    fs::write(fixture.journal(&run(1)), &bytes).unwrap();
    let found = journals.reopen(&run(1), E).unwrap();
    assert_eq!(found.records.len(), 1);
    assert!(found.damage.unwrap().contains("record 2 is damaged at byte"));
    assert_eq!(fs::read(fixture.journal(&run(1))).unwrap(), bytes);
    assert!(matches!(journals.append(&run(1), E, Seq(1), vec![record("b")]), Err(AppendError::Broken { .. })));
}

/// Bits, pieces and ends of a journal as a bad disk leaves them: what is read is the beginning of what was written, or damage is told.
#[tokio::test]
async fn whatever_becomes_of_a_journal_it_is_read_set_aside_or_refused() {
    let fixture = Fixture::new();
    let journals = fixture.real();
    for n in 0..30usize {
        journals.append(&run(1), E, Seq(n as u64), vec![record(&"d".repeat(n * 7))]).unwrap().synced().await.unwrap();
    }
    let written = journals.read(&run(1)).unwrap().records;
    journals.close(&run(1));
    let path = fixture.journal(&run(1));
    let whole = fs::read(&path).unwrap();
    let (mut dice, mut seen) = (Dice::of(7), [0; 3]);
    for case in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..1 + dice.below(3) {
            let at = dice.below(bytes.len().max(1));
            match dice.below(6) {
                _ if bytes.is_empty() => {}
                0 | 1 => bytes[at] ^= 1 << dice.below(8),
                2 => bytes.truncate(at),
                3 => bytes.iter_mut().skip(at).take(512).for_each(|byte| *byte = 0),
                4 => drop(bytes.drain(at..(at + 1 + dice.below(200)).min(bytes.len()))),
                _ => bytes.extend_from_within(at..),
            }
        }
        fs::write(&path, &bytes).unwrap();
        let found = journals.read(&run(1)).unwrap();
        assert_eq!(found.records, written[..found.records.len()], "case {case}");
        let reopened = journals.reopen(&run(1), E).unwrap();
        assert_eq!((reopened.records.len(), &reopened.damage), (found.records.len(), &found.damage), "case {case}");
        let at = Seq(found.records.len() as u64);
        match &found.damage {
            Some(why) => {
                assert!(why.contains("is damaged at byte"), "{why}");
                assert_eq!(fs::read(&path).unwrap(), bytes, "what is damaged is left alone");
                assert!(journals.append(&run(1), E, at, vec![record("x")]).is_err());
                seen[0] += 1;
            }
            None => {
                journals.append(&run(1), E, at, vec![record("x")]).unwrap().synced().await.unwrap();
                assert_eq!(journals.read(&run(1)).unwrap().records.len(), found.records.len() + 1, "case {case}");
                seen[1 + usize::from(found.records.len() == written.len())] += 1;
            }
        }
        journals.close(&run(1));
    }
    assert!(seen.iter().all(|n| *n > 5), "damage, a cut and a whole one are met: {seen:?}");
}

#[tokio::test]
async fn any_call_that_fails_loses_nothing_that_was_acknowledged() {
    for error in [Errno::EIO, Errno::ENOSPC] {
        for (once, reserve) in [(true, true), (true, false), (false, true), (false, false)] {
            for fail_at in 1.. {
                let fixture = Fixture::new();
                let disk = FaultyDisk::new(fail_at, once, error);
                let data = faulty::data(fixture.dir.path(), reserve);
                let journals = fixture.over(Arc::new(disk.clone()), data.clone());
                let at = format!("{error} at call {fail_at}, once {once}, reserve {reserve}");
                let (mut acknowledged, mut failed) = (0, false);
                for n in 0..12 {
                    let done = match journals.append(&run(1), E, Seq(n), vec![record("a")]) {
                        Ok(ticket) => faulty::acknowledged(&ticket, &disk, &data).await,
                        Err(error) => {
                            assert!(matches!(error, AppendError::Broken { .. }));
                            false
                        }
                    };
                    assert!(!(done && failed), "acknowledged after a failure: {at}");
                    failed |= !done;
                    acknowledged += u64::from(done);
                }
                // Only a write that found no room is made again.
                let hit = disk.calls() >= fail_at;
                assert_eq!(failed, hit && (error == Errno::EIO || disk.sync_failed()), "{at}");
                assert_eq!(matches!(*data.condition().borrow(), Condition::Failed(_)), failed, "{at}");
                assert_eq!(disk.syncs_after_failure(), 0, "{at}");
                assert_eq!(fixture.heard().len() as u64, acknowledged, "{at}");
                // The next daemon finds at least what was acknowledged, in order and unaltered.
                drop(journals);
                if fixture.journal(&run(1)).exists() {
                    let found = fixture.real().reopen(&run(1), E).unwrap();
                    assert!(found.records.len() as u64 >= acknowledged && found.damage.is_none(), "{at}");
                }
                if !hit {
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn who_waits_for_room_is_let_go_when_the_daemon_ends() {
    let fixture = Fixture::new();
    let disk = FaultyDisk::new(1, false, Errno::ENOSPC);
    let data = faulty::data(fixture.dir.path(), false);
    let journals = fixture.over(Arc::new(disk), data.clone());
    let ticket = journals.append(&run(1), E, Seq(0), vec![record("a")]).unwrap();
    data.condition().wait_for(|condition| *condition == Condition::Full).await.unwrap();
    drop(journals);
    assert!(ticket.synced().await.is_err());
}

#[tokio::test]
async fn a_failed_journal_leaves_the_others_alone() {
    let fixture = Fixture::new();
    let journals = fixture.real();
    // Its directory is a file: it cannot be created.
    fs::write(fixture.dir.path().join("runs").join(run(2).as_str()), b"").unwrap();
    let bad = journals.append(&run(2), E, Seq(0), vec![record("a")]).unwrap();
    let good = journals.append(&run(1), E, Seq(0), vec![record("a")]).unwrap();
    assert!(bad.synced().await.unwrap_err().to_string().contains("cannot be written"));
    good.synced().await.unwrap();
}

/// Figures, not a check: `cargo test --lib journal -- --ignored --nocapture figures`.
#[tokio::test]
#[ignore = "prints figures of this machine's disk"]
#[allow(clippy::disallowed_methods)]
async fn figures() {
    let root = std::env::var_os("FIGURES_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let fixture = Fixture { dir: tempfile::tempdir_in(root).unwrap(), ear: Arc::default() };
    let journals = Arc::new(fixture.real());
    let percentiles = |mut times: Vec<Duration>| {
        times.sort();
        (times[times.len() / 2], times[times.len() * 99 / 100])
    };
    let mut create = Vec::new();
    for n in 0..50 {
        let begun = std::time::Instant::now();
        journals.append(&run(1000 + n), E, Seq(0), vec![record("x")]).unwrap().synced().await.unwrap();
        create.push(begun.elapsed());
    }
    let mut one = Vec::new();
    for n in 0..300 {
        let begun = std::time::Instant::now();
        journals.append(&run(1), E, Seq(n), vec![record("x")]).unwrap().synced().await.unwrap();
        one.push(begun.elapsed());
    }
    println!("first append of a run p50, p99: {:?}; append p50, p99: {:?}", percentiles(create), percentiles(one));
    for separate in [true, false] {
        let shared = Arc::new(Mutex::new(Seq(300)));
        let begun = std::time::Instant::now();
        let tasks: Vec<_> = (0..50)
            .map(|task| {
                let (journals, shared) = (journals.clone(), shared.clone());
                tokio::spawn(async move {
                    let mut times = Vec::new();
                    for n in 0..20 {
                        let begun = std::time::Instant::now();
                        let ticket = if separate {
                            journals.append(&run(2000 + task), E, Seq(n), vec![record("x")]).unwrap()
                        } else {
                            let mut at = shared.lock().unwrap();
                            let ticket = journals.append(&run(1), E, *at, vec![record("x")]).unwrap();
                            *at = ticket.seq();
                            ticket
                        };
                        ticket.synced().await.unwrap();
                        times.push(begun.elapsed());
                    }
                    times
                })
            })
            .collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await.unwrap());
        }
        let (p50, p99) = percentiles(times);
        println!("50 appenders, separate journals {separate}: p50 {p50:?} p99 {p99:?}, {:?} for 1000", begun.elapsed());
    }
}

/// What a run's journal was given, how much of it was acknowledged.
#[derive(Default)]
struct Given {
    records: Vec<Record>,
    acknowledged: usize,
}

#[tokio::test]
async fn whatever_a_power_loss_leaves_every_acknowledged_record_is_there_and_no_other() {
    let real = Fixture::new();
    let data = faulty::data(real.dir.path(), true);
    let blobs = Arc::new(FileBlobs::open(real.dir.path().join("blobs")).unwrap());
    let dir = Path::new("/journal/runs");
    let (mut acknowledged, mut lost, mut reopened) = (0, 0, 0);
    for seed in 0..states() {
        let mut dice = Dice::of(seed);
        let mut disk = SimulatedDisk::new(seed, dir, 2 + dice.below(40) as u64);
        let mut given = [Given::default(), Given::default()];
        // Some lives, the last of which goes on in peace: the power fails in recovery, too.
        for life in 0..4 {
            let means = Means { disk: Arc::new(disk.clone()), data: data.clone(), kill: Kill::default(), later: None };
            let journals = RunJournals::with(means, dir.to_owned(), blobs.clone(), real.ear.clone()).unwrap();
            for (n, given) in given.iter_mut().enumerate() {
                let (id, at) = (run(n as u128), format!("seed {seed}, life {life}, run {n}"));
                if !disk.exists(&journals.path(&id)) {
                    assert_eq!(given.acknowledged, 0, "the journal is gone: {at}");
                    given.records.clear();
                } else {
                    let Ok(found) = journals.reopen(&id, E) else {
                        assert!(!disk.has_power(), "{at}");
                        continue;
                    };
                    let found: Vec<Record> = found.records.into_iter().map(|(.., record)| record).collect();
                    assert!(found.len() >= given.acknowledged, "an acknowledged record is gone: {at}");
                    assert!(given.records.starts_with(&found), "a record that nobody wrote: {at}");
                    lost += given.records.len() - found.len();
                    reopened += 1;
                    given.records.truncate(found.len());
                }
                for _ in 0..dice.below(6) {
                    let batch: Vec<Record> = (0..1 + dice.below(3))
                        .map(|_| record(&format!("{}", dice.below(1 << 30)).repeat(1 + dice.below(60))))
                        .collect();
                    let expected = Seq(given.records.len() as u64);
                    let Ok(ticket) = journals.append(&id, E, expected, batch.clone()) else { break };
                    given.records.extend(batch);
                    if dice.below(3) == 0 && ticket.synced().await.is_ok() {
                        given.acknowledged = given.records.len();
                    }
                }
                // Or somebody waited for the last one after all.
                acknowledged += given.acknowledged;
            }
            drop(journals);
            let calls = if life == 2 { u64::MAX } else { 2 + dice.below(40) as u64 };
            disk = disk.back(calls);
        }
    }
    assert!(acknowledged > 0 && lost > 0 && reopened > 0, "{acknowledged} {lost} {reopened}");
}
