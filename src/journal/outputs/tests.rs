use super::*;
use crate::{model::step::Branch, ports::outputs::Stream};

struct Fixture {
    dir: tempfile::TempDir,
    outputs: FileOutputs,
}

impl Fixture {
    /// Little goes to the shared log of all calls, much to a log of their own.
    fn new() -> Self {
        Fixture::sharing(500)
    }

    fn sharing(shared: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let outputs = FileOutputs::keeping(dir.path().to_owned(), Sizes { kept: 1000, shared, calls: 100 }).unwrap();
        Fixture { dir, outputs }
    }

    /// With each way in which output may be spread over the logs: all of it shared, nothing but that there is some, or both.
    fn each() -> [Self; 3] {
        [1_000_000, 0, 500].map(Fixture::sharing)
    }

    /// As after a crash: nothing but the files.
    fn restart(&mut self) {
        self.outputs = FileOutputs::keeping(self.dir.path().to_owned(), self.outputs.sizes).unwrap();
    }

    fn print(&self, step: &StepKey, stream: Stream, offset: u64, bytes: &[u8]) {
        let raw_len = bytes.len() as u64;
        let frame =
            Frame { step: step.clone(), attempt: 1, stream, offset, raw_len, wall_ms: 1, bytes: bytes.to_vec() };
        self.outputs.append(&run(), frame).unwrap();
    }

    /// Prints `count` numbered lines of 10 bytes, from line `from` on.
    fn lines(&self, step: &StepKey, from: u64, count: u64) {
        for n in from..from + count {
            self.print(step, Stream::Out, n * 10, format!("line{n:05}\n").as_bytes());
        }
    }

    fn read_all(&self, limit: usize) -> Vec<Frame> {
        let (mut all, mut at) = (Vec::new(), Position::default());
        loop {
            let (frames, next) = self.outputs.read(&run(), &call(), at, limit).unwrap();
            if next == at {
                return all;
            }
            all.extend(frames);
            at = next;
        }
    }

    fn text(&self) -> String {
        self.read_all(100).into_iter().map(|f| String::from_utf8(f.bytes).unwrap()).collect()
    }

    fn shared(&self) -> PathBuf {
        self.outputs.dir(&run()).join(shared::NAME)
    }

    fn own(&self) -> PathBuf {
        self.outputs.dir(&run()).join(frame::log_name(&call()))
    }

    fn files(&self) -> usize {
        fs::read_dir(self.outputs.dir(&run())).unwrap().count()
    }
}

fn run() -> RunId {
    RunId::new(1_700_000_000_000, 1)
}

fn call() -> CallKey {
    CallKey::stage("unit", "run")
}

fn step(n: u32) -> StepKey {
    StepKey::new(&call(), &Branch::top(), "sh", n)
}

#[test]
fn what_is_printed_is_followed_in_order() {
    Fixture::each().iter().for_each(followed_in_order);
}

fn followed_in_order(fixture: &Fixture) {
    let changed = fixture.outputs.changed();
    assert_eq!(fixture.outputs.read(&run(), &call(), Position(0), 10).unwrap(), (vec![], Position(0)));
    fixture.print(&step(1), Stream::Out, 0, b"a");
    assert!(changed.has_changed().unwrap());
    fixture.print(&step(1), Stream::Err, 0, b"b");
    let (frames, at) = fixture.outputs.read(&run(), &call(), Position(0), 1_000_000).unwrap();
    assert_eq!(
        frames.iter().filter(|f| !f.bytes.is_empty()).map(|f| (f.stream, &f.bytes[..])).collect::<Vec<_>>(),
        [(Stream::Out, &b"a"[..]), (Stream::Err, b"b")]
    );
    assert_eq!(frames[0].step, step(1));
    fixture.print(&step(2), Stream::Out, 0, b"c");
    let (frames, end) = fixture.outputs.read(&run(), &call(), at, 1_000_000).unwrap();
    assert_eq!(frames.len(), 1);
    assert_eq!(fixture.outputs.read(&run(), &call(), end, 10).unwrap(), (vec![], end));
    assert_eq!(fixture.text(), "abc");
    assert_eq!(fixture.read_all(1), fixture.read_all(1_000_000));
}

#[test]
fn calls_share_a_log_until_one_of_them_prints_much() {
    let mut fixture = Fixture::new();
    let step_of =
        |n: u32| StepKey::new(&CallKey::host("production", 1, &format!("h{n}"), "deploy"), &Branch::top(), "sh", 1);
    for round in 0..3u64 {
        for n in 0..20 {
            fixture.print(&step_of(n), Stream::Out, round * 3, format!("{n:02}\n").as_bytes());
        }
    }
    assert_eq!(fixture.files(), 1);
    fixture.lines(&step(1), 0, 90);
    assert_eq!(fixture.files(), 2, "one has a log of its own");
    let check = |fixture: &Fixture| {
        let calls = fixture.outputs.calls(&run()).unwrap();
        assert_eq!(calls.len(), 21);
        for (n, key) in calls.iter().take(20).enumerate() {
            let (frames, at) = fixture.outputs.read(&run(), key, Position(0), 1000).unwrap();
            let text: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes.clone()).collect();
            assert_eq!(String::from_utf8(text).unwrap(), format!("{n:02}\n").repeat(3));
            assert!(frames.iter().all(|frame| frame.step == step_of(u32::try_from(n).unwrap())));
            assert_eq!(fixture.outputs.read(&run(), key, at, 1000).unwrap(), (vec![], at));
        }
        assert_eq!(fixture.text(), (0..90).map(|n| format!("line{n:05}\n")).collect::<String>());
    };
    check(&fixture);
    fixture.restart();
    check(&fixture);
    // The one that has a log of its own goes on there, the others where all are.
    let before = fs::metadata(fixture.shared()).unwrap().len();
    fixture.restart();
    fixture.print(&step(1), Stream::Out, 900, b"x");
    assert_eq!(fs::metadata(fixture.shared()).unwrap().len(), before);
    fixture.print(&step_of(3), Stream::Err, 0, b"x");
    assert!(fs::metadata(fixture.shared()).unwrap().len() > before && fixture.files() == 2);
}

#[test]
fn without_the_shared_log_what_lies_in_others_is_found_and_gone_on_with() {
    let mut fixture = Fixture::new();
    fixture.lines(&step(1), 0, 50);
    let shared: usize = fixture.read_all(1000).iter().take_while(|frame| frame.offset < 50).count();
    fs::remove_file(fixture.shared()).unwrap();
    fixture.restart();
    let text = |from: u64, to: u64| (from..to).map(|n| format!("line{n:05}\n")).collect::<String>();
    let left = fixture.text();
    assert!(shared > 0 && !left.is_empty() && text(0, 50).ends_with(&left), "{left}");
    assert_eq!(fixture.outputs.calls(&run()).unwrap(), [call()]);
    assert_eq!(fixture.outputs.stored(&run(), &step(1), 1, 10).unwrap()[0].end, 500);
    fixture.lines(&step(1), 50, 10);
    for _ in 0..2 {
        assert_eq!(fixture.text(), format!("{left}{}", text(50, 60)));
        assert_eq!(fixture.outputs.calls(&run()).unwrap(), [call()]);
        fixture.restart();
    }
}

#[test]
fn a_backup_takes_the_shared_log_last() {
    for call in [call(), CallKey::host("~", 1, "~", "~"), CallKey::host("zz", 9, &"~".repeat(200), "z")] {
        assert!(frame::log_name(&call).as_str() < shared::NAME, "{}", frame::log_name(&call));
    }
}

#[test]
fn a_shared_log_that_is_damaged_says_so_and_what_was_before_is_read() {
    let mut fixture = Fixture::sharing(1_000_000);
    let other = StepKey::new(&CallKey::stage("other", "run"), &Branch::top(), "sh", 1);
    fixture.print(&step(1), Stream::Out, 0, b"first");
    let good = fs::metadata(fixture.shared()).unwrap().len();
    fixture.print(&other, Stream::Out, 0, b"second");
    let mut bytes = fs::read(fixture.shared()).unwrap();
    *bytes.last_mut().unwrap() ^= 0x40;
    fs::write(fixture.shared(), &bytes).unwrap();
    let damaged = fixture.outputs.read(&run(), &other.call(), Position(0), 10).unwrap_err().to_string();
    assert!(damaged.contains("is damaged at byte"), "{damaged}");
    fixture.restart();
    let (frames, at) = fixture.outputs.read(&run(), &call(), Position(0), 10).unwrap();
    assert_eq!((frames.len(), at), (1, Position(good)));
    let damaged = fixture.outputs.read(&run(), &call(), at, 10).unwrap_err().to_string();
    assert!(damaged.contains(&format!("is damaged at byte {good}")), "{damaged}");
    // Whoever writes goes on where it is whole, and what was damaged is kept.
    fixture.print(&step(2), Stream::Out, 0, b"third");
    assert_eq!(fixture.text(), "firstthird");
    assert_eq!(fs::read(fixture.shared().with_extension(format!("damaged-{good}"))).unwrap(), bytes);
}

#[test]
fn one_damaged_log_hides_no_other() {
    let mut fixture = Fixture::new();
    let other = StepKey::new(&CallKey::stage("other", "run"), &Branch::top(), "sh", 1);
    fixture.lines(&step(1), 0, 50);
    fixture.print(&other, Stream::Out, 0, b"other");
    let whole = fs::read(fixture.own()).unwrap();
    for at in [0, 4, 9, 20] {
        let mut bad = whole.clone();
        bad[at] ^= 0x40;
        fs::write(fixture.own(), &bad).unwrap();
        fixture.restart();
        assert_eq!(fixture.outputs.calls(&run()).unwrap(), [call(), other.call()]);
        let (frames, _) = fixture.outputs.read(&run(), &other.call(), Position(0), 1000).unwrap();
        assert_eq!(frames[0].bytes, b"other");
        let mut from = Position(0);
        let damaged = loop {
            match fixture.outputs.read(&run(), &call(), from, 100) {
                Err(error) => break error.to_string(),
                Ok((_, next)) => assert!(std::mem::replace(&mut from, next) != next, "byte {at}: nothing is told"),
            }
        };
        assert!(damaged.contains("is damaged at byte 0"), "{damaged}");
    }
    // What is printed from now on is read; what was there is kept.
    fixture.lines(&step(1), 50, 10);
    assert!(fixture.text().ends_with("line00058\nline00059\n"));
    assert_eq!(fs::read(fixture.own().with_extension("damaged-0")).unwrap().len(), whole.len());
    // The shared one, at its very beginning: no call is known any more, and that is told.
    fs::remove_file(fixture.own()).unwrap();
    let mut bad = fs::read(fixture.shared()).unwrap();
    bad[9] ^= 0x40;
    fs::write(fixture.shared(), bad).unwrap();
    fixture.restart();
    assert!(fixture.outputs.calls(&run()).unwrap_err().to_string().contains("is damaged at byte 0"));
}

#[test]
fn of_a_log_that_could_not_be_made_nothing_is_stored_and_it_is_made_later() {
    let fixture = Fixture::new();
    let in_its_way = fixture.dir.path().join(run().as_str());
    fs::write(&in_its_way, "").unwrap();
    let frame = |offset| {
        let (step, bytes) = (step(1), b"x".to_vec());
        Frame { step, attempt: 1, stream: Stream::Out, offset, raw_len: 1, wall_ms: 1, bytes }
    };
    fixture.outputs.append(&run(), frame(0)).unwrap_err();
    fs::remove_file(in_its_way).unwrap();
    let [out, err] = fixture.outputs.stored(&run(), &step(1), 1, 10).unwrap();
    assert_eq!((out.end, err.end), (0, 0));
    fixture.outputs.append(&run(), frame(0)).unwrap();
    fixture.outputs.append(&run(), frame(1)).unwrap();
    assert_eq!(fixture.text(), "xx");
}

#[test]
fn calls_come_in_the_order_they_began_also_after_a_restart() {
    let mut fixture = Fixture::new();
    let calls = ["z", "a", "m"].map(|stage| CallKey::stage(stage, "run"));
    let long = CallKey::host("production", 1, &"é#/".repeat(80), "deploy");
    for call in calls.iter().chain([&long]) {
        fixture.print(&StepKey::new(call, &Branch::top(), "sh", 1), Stream::Out, 0, b"x");
        fixture.restart();
    }
    assert_eq!(fixture.outputs.calls(&run()).unwrap(), [&calls[..], &[long]].concat());
    assert!(fixture.outputs.calls(&RunId::new(1, 1)).unwrap().is_empty());
}

#[test]
fn little_output_is_kept_whole_and_finishing_nothing_makes_nothing() {
    let fixture = Fixture::new();
    fixture.outputs.finish(&run(), &step(1), 1).unwrap();
    assert!(!fixture.outputs.dir(&run()).exists());
    fixture.lines(&step(1), 0, 100);
    fixture.outputs.finish(&run(), &step(1), 1).unwrap();
    assert_eq!(fixture.text(), (0..100).map(|n| format!("line{n:05}\n")).collect::<String>());
}

#[test]
fn of_much_output_both_ends_are_kept_with_a_gap_between() {
    let fixture = Fixture::new();
    fixture.lines(&step(1), 0, 1234);
    fixture.print(&step(1), Stream::Err, 0, b"oops\n");
    assert!(fixture.files() <= 4, "two logs and two tail files");
    fixture.outputs.finish(&run(), &step(1), 1).unwrap();
    assert_eq!(fixture.files(), 2);
    let text = fixture.text();
    let line = |n: u64| format!("line{n:05}\n");
    let head: String = (0..100).map(line).collect();
    let tail: String = (1134..1234).map(line).collect();
    assert_eq!(
        text,
        format!(
            "{head}[over 0 MiB of stdout: the last of it follows when the step has ended]\noops\n\
             [10340 bytes of stdout are not kept]\n{tail}"
        )
    );
    let gap = fixture.read_all(1000).into_iter().rfind(|frame| frame.stream == Stream::Note).unwrap();
    assert_eq!((gap.offset, gap.raw_len), (1000, 10340));
}

#[test]
fn output_that_just_passes_the_limit_has_no_gap() {
    let fixture = Fixture::new();
    fixture.lines(&step(1), 0, 150);
    fixture.outputs.finish(&run(), &step(1), 1).unwrap();
    let text = fixture.text();
    assert!(text.contains("line00149\n") && text.contains("line00100\n") && !text.contains("not kept"), "{text}");
}

#[test]
fn a_crash_before_the_end_of_an_attempt_costs_nothing_that_was_kept() {
    let mut fixture = Fixture::new();
    fixture.lines(&step(1), 0, 600);
    fixture.restart();
    fixture.lines(&step(1), 600, 634);
    fixture.restart();
    fixture.outputs.finish(&run(), &step(1), 1).unwrap();
    let text = fixture.text();
    assert!(text.ends_with(&(1134..1234).map(|n| format!("line{n:05}\n")).collect::<String>()));
    assert!(text.contains("[10340 bytes of stdout are not kept]\nline01134\n"), "{text}");
    assert_eq!(fixture.files(), 2);
}

#[test]
fn a_log_cut_at_any_byte_is_mended_and_goes_on() {
    for (shared, is_shared) in [(1_000_000, true), (0, false)] {
        let mut fixture = Fixture::sharing(shared);
        for n in 0..3 {
            fixture.print(&step(n + 1), Stream::Out, 0, b"0123456789");
        }
        let log = if is_shared { fixture.shared() } else { fixture.own() };
        let whole = fs::read(&log).unwrap();
        let frames = fixture.read_all(1000);
        for cut in 0..=whole.len() {
            fs::write(&log, &whole[..cut]).unwrap();
            fixture.restart();
            let before = fixture.read_all(1000);
            assert_eq!(before, frames[..before.len()]);
            fixture.print(&step(9), Stream::Out, 0, b"more");
            let after = fixture.read_all(1000);
            assert_eq!(after[..before.len()], before[..]);
            let last = &after[after.len() - 1].bytes[..];
            assert_eq!((after.len(), last), (before.len() + 1, &b"more"[..]), "cut at {cut}");
            fixture.restart();
            assert_eq!(fixture.read_all(1000), after);
        }
    }
}

#[test]
fn damage_and_foreign_positions_are_errors_and_no_output() {
    for (shared, is_shared) in [(1_000_000, true), (0, false)] {
        let fixture = Fixture::sharing(shared);
        fixture.print(&step(1), Stream::Out, 0, b"0123456789");
        fixture.print(&step(2), Stream::Out, 0, b"0123456789");
        let log = if is_shared { fixture.shared() } else { fixture.own() };
        let whole = fs::read(&log).unwrap();
        let ours = |frames: &[Frame]| frames.iter().all(|frame| frame.bytes.is_empty() || frame.bytes == b"0123456789");
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x40;
            fs::write(&log, &bad).unwrap();
            let mut from = Position(0);
            while let Ok((frames, next)) = fixture.outputs.read(&run(), &call(), from, 1) {
                assert!(ours(&frames));
                if next == from {
                    break;
                }
                from = next;
            }
        }
        fs::write(&log, &whole).unwrap();
        for from in (0..whole.len() as u64 + 10).flat_map(|from| [from, OWN + from]) {
            if let Ok((frames, _)) = fixture.outputs.read(&run(), &call(), Position(from), 100) {
                assert!(ours(&frames));
            }
        }
        for far in [OWN - 1, OWN + (1 << 40), u64::MAX] {
            assert!(ours(&fixture.outputs.read(&run(), &call(), Position(far), 1).unwrap().0));
        }
    }
}

#[test]
fn many_runs_are_forgotten_and_found_again() {
    let fixture = Fixture::new();
    let of = |n: usize| RunId::new(1_700_000_000_000 + i64::try_from(n).unwrap(), 1);
    for round in 0..2u64 {
        for n in 0..REMEMBERED + 20 {
            let (step, bytes) = (step(1), vec![b'a' + u8::try_from(round).unwrap()]);
            let frame = Frame { step, attempt: 1, stream: Stream::Out, offset: round, raw_len: 1, wall_ms: 1, bytes };
            fixture.outputs.append(&of(n), frame).unwrap();
        }
    }
    assert!(locked(&fixture.outputs.known).runs.len() <= REMEMBERED);
    for n in 0..REMEMBERED + 20 {
        let (frames, _) = fixture.outputs.read(&of(n), &call(), Position(0), 1000).unwrap();
        assert_eq!(frames.iter().flat_map(|frame| frame.bytes.clone()).collect::<Vec<u8>>(), b"ab");
    }
}

#[test]
fn of_runs_with_many_calls_few_are_remembered() {
    let fixture = Fixture::new();
    let of = |n: usize| RunId::new(1_700_000_000_000 + i64::try_from(n).unwrap(), 1);
    let print = |run: usize, calls: usize| {
        for call in 0..calls {
            let call = CallKey::host("production", 1, &format!("web{call}"), "deploy");
            let step = StepKey::new(&call, &Branch::top(), "sh", 1);
            let bytes = vec![b'a'];
            let frame = Frame { step, attempt: 1, stream: Stream::Out, offset: 0, raw_len: 1, wall_ms: 1, bytes };
            fixture.outputs.append(&of(run), frame).unwrap();
        }
    };
    let remembered = |runs: &[usize]| {
        let known: Vec<RunId> = locked(&fixture.outputs.known).runs.keys().cloned().collect();
        assert_eq!(known, runs.iter().copied().map(of).collect::<Vec<_>>());
    };
    // 100 calls in 50 runs, one that has just begun, and one that somebody uses: of that there must not be another.
    print(0, 2);
    let used = fixture.outputs.log(&of(0));
    (1..60).for_each(|run| print(run, 2));
    remembered(&[[0].as_slice(), &Vec::from_iter(9..60)].concat());
    // Those that were used last stay, however many they have.
    (100..100 + LATELY).for_each(|run| print(run, 200));
    remembered(&[[0].as_slice(), &Vec::from_iter(100..100 + LATELY)].concat());
    drop(used);
    print(200, 1);
    remembered(&[Vec::from_iter(101..100 + LATELY), vec![200]].concat());
    for (run, calls) in [(0, 2), (1, 2), (59, 2), (100, 200), (99 + LATELY, 200), (200, 1)] {
        assert_eq!(fixture.outputs.calls(&of(run)).unwrap().len(), calls);
    }
}

/// Figures, not a check: `cargo test --lib outputs -- --ignored --nocapture figures`.
#[test]
#[ignore = "prints figures of this machine"]
#[allow(clippy::disallowed_methods)]
fn figures() {
    let dir = tempfile::tempdir().unwrap();
    let outputs = FileOutputs::open(dir.path().to_owned()).unwrap();
    let begun = std::time::Instant::now();
    let (chunk, count) = (vec![b'x'; 32 * 1024], 8192u64);
    for n in 0..count {
        let (offset, raw_len) = (n * chunk.len() as u64, chunk.len() as u64);
        let bytes = chunk.clone();
        let frame = Frame { step: step(1), attempt: 1, stream: Stream::Out, offset, raw_len, wall_ms: 1, bytes };
        outputs.append(&run(), frame).unwrap();
    }
    let printed = begun.elapsed();
    outputs.finish(&run(), &step(1), 1).unwrap();
    let logs = fs::read_dir(outputs.dir(&run())).unwrap();
    let stored: u64 = logs.map(|log| log.unwrap().metadata().unwrap().len()).sum();
    println!("256 MiB in 32 KiB frames: {printed:?}, finish {:?}, stored {stored} bytes", begun.elapsed() - printed);
}
