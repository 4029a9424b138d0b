//! Journals that earlier builds wrote, altered as no disk alters them, with checksums that are right: by a hand, or by a phased with a mistake.

use std::path::Path;

use super::*;
use crate::tests::{below, chance, mutated};

/// The records of each journal in `tests/golden`, as text.
fn golden() -> Vec<Vec<String>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let journals = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path().join("journal"));
    let mut journals: Vec<_> = journals.filter(|path| path.exists()).collect();
    journals.sort();
    let json = |line: &str| line.splitn(4, ' ').nth(3).unwrap().to_owned();
    journals.iter().map(|path| std::fs::read_to_string(path).unwrap().lines().map(json).collect()).collect()
}

/// `records`, of which one is altered, or one is missing, there twice, elsewhere, or of another run.
fn altered(random: &mut Random, mut records: Vec<String>, all: &[Vec<String>]) -> Vec<String> {
    const WORDS: [&str; 16] = [
        "null",
        "0",
        "-1",
        "18446744073709551615",
        "1e400",
        "true",
        "\"\"",
        "\"x\"",
        "[]",
        "{}",
        "[null]",
        ",",
        ":",
        "production",
        "\\u0000",
        "\u{e9}",
    ];
    let at = below(random, records.len());
    match below(random, 8) {
        0 => drop(records.remove(at)),
        1 => records.insert(at, records[at].clone()),
        2 => records.truncate(at + 1),
        3 => {
            let to = below(random, records.len());
            records.swap(at, to);
        }
        4 => {
            let other = &all[below(random, all.len())];
            records.insert(at, other[below(random, other.len())].clone());
        }
        // A number or a word in the place of another that the journal has: often of a kind that fits.
        5 => {
            let values: Vec<&str> =
                records.iter().flat_map(|record| record.split(['"', ':', ',', '{', '}', '[', ']'])).collect();
            let value = values[below(random, values.len())].to_owned();
            let parts: Vec<&str> = records[at].split_inclusive(['"', ':', ',', '{', '}', '[', ']']).collect();
            let n = below(random, parts.len());
            let exchanged = |(i, part): (usize, &&str)| match part.char_indices().last() {
                Some((end, _)) if i == n => format!("{value}{}", &part[end..]),
                _ => (*part).to_owned(),
            };
            records[at] = parts.iter().enumerate().map(exchanged).collect();
        }
        _ => records[at] = String::from_utf8_lossy(&mutated(random, &records[at], &WORDS)).into_owned(),
    }
    records
}

/// It is refused with a reason, or it is a run, and what to do next can be decided.
#[test]
fn random_records_are_refused_or_are_a_run() {
    let all = golden();
    assert!(all.len() > 20);
    let (mut random, cases) = chance("records", 1500, 100_000);
    let (mut unread, mut illegal, mut folded) = (0, 0, 0);
    for case in cases {
        let whole = all[below(&mut random, all.len())].clone();
        let records: Result<Vec<Record>, _> =
            altered(&mut random, whole, &all).iter().map(|json| serde_json::from_str(json)).collect();
        let Ok(records) = records else {
            unread += 1;
            continue;
        };
        match Run::fold((1..).map(Seq).zip(&records)) {
            Err(why) => {
                assert!(why.to_string().contains("cannot follow: "), "case {case}: {why}");
                illegal += 1;
            }
            Ok(run) => {
                let last = &records.last().unwrap().at;
                for now in [last.clone(), last.plus(Duration::from_secs(86_400))] {
                    let finishes = decide(&run, &now).actions == [Action::Finish];
                    assert_eq!(finishes, run.end.is_some(), "case {case}");
                }
                folded += 1;
            }
        }
    }
    assert!([unread, illegal, folded].iter().all(|n| *n > 100), "all of it is met: {unread}, {illegal}, {folded}");
}
