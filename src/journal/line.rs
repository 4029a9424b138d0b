//! One record as a line, and what a file of lines says after a crash. Pure functions over bytes.
//!
//! ```text
//! crc32c seq synced json\n
//! 1a2b3c4d 17 15 {"at":...}
//! ```
//!
//! - `crc32c`: 8 lower-case hex digits, CRC-32C (Castagnoli) of every byte after them up to the newline, which is not in it: the
//!   space before `seq` is the first byte counted, the last byte of the JSON the last.
//! - `seq`: decimal, no leading zero; one more than the line's before. A run's journal begins with 1; the control log may begin
//!   anywhere, since compaction keeps the numbers.
//! - `synced`: decimal; the highest `seq` of this file known to be on disk when the line was written, so always below `seq`.
//! - `json`: one value without raw newlines. The whole line is at most 64 KiB, newline included.

use std::ops::Range;

/// The longest line, newline included: what a reader must be able to hold, and a bound on what one bad length can cost.
pub const MAX_LINE: usize = 64 * 1024;

/// Room for the fields before the JSON: 8 + 1 + 20 + 1 + 20 + 1, and the newline.
const OVERHEAD: usize = 52;

/// The largest JSON that fits a line whatever its numbers.
pub const MAX_JSON: usize = MAX_LINE - OVERHEAD;

/// A valid line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The record's number.
    pub seq: u64,
    /// What was known to be on disk when it was written.
    pub synced: u64,
    /// The line's checksum.
    pub crc: u32,
    /// Where its JSON lies in the scanned bytes.
    pub json: Range<usize>,
}

/// Where a file may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// With record 1: a run's journal.
    One,
    /// Anywhere: the control log, which is compacted.
    Any,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// The records up to the first bad line.
    pub lines: Vec<Line>,
    /// How many bytes they take: everything from here on is tail or damage.
    pub kept: usize,
    /// Records that were on disk are bad; otherwise what follows `kept` is an unsynced tail, to be cut.
    pub damage: Option<Damage>,
}

/// A record that was on disk can no longer be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {seq} is damaged at byte {at}: record {proof} after it is whole and says that it was on disk")]
pub struct Damage {
    /// The number the bad line should have.
    pub seq: u64,
    /// Where it begins.
    pub at: usize,
    /// The later line that proves it.
    pub proof: u64,
}

/// A record does not fit a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a record of {0} bytes does not fit a journal line of {MAX_LINE}, or holds a raw newline")]
pub struct Unfit(pub usize);

/// Appends the line of a record to `out` and returns its checksum.
///
/// # Errors
/// [`Unfit`]; `out` is unchanged then.
pub fn encode(out: &mut Vec<u8>, seq: u64, synced: u64, json: &[u8]) -> Result<u32, Unfit> {
    if json.len() > MAX_JSON || json.contains(&b'\n') {
        return Err(Unfit(json.len()));
    }
    let fields = format!(" {seq} {synced} ");
    let crc = crc32c::crc32c_append(crc32c::crc32c(fields.as_bytes()), json);
    out.extend_from_slice(format!("{crc:08x}").as_bytes());
    out.extend_from_slice(fields.as_bytes());
    out.extend_from_slice(json);
    out.push(b'\n');
    Ok(crc)
}

/// Reads a file's bytes by the tail rule: at the first bad line *b*, a later valid line whose `synced` is at least *b* proves damage
/// (what it says was on disk is not there any more); else *b* and everything after it never was acknowledged and is cut.
#[must_use]
pub fn scan(bytes: &[u8], first: First) -> Scan {
    let mut lines: Vec<Line> = Vec::new();
    let mut at = 0;
    while let Some(line) = next_line(bytes, at) {
        let wanted = lines.last().map(|last| last.seq.saturating_add(1)).or((first == First::One).then_some(1));
        match parse(bytes, line.clone()) {
            Some(good) if wanted.is_none_or(|wanted| good.seq == wanted) => lines.push(good),
            _ => break,
        }
        at = line.end;
    }
    // Without a good line before it, the first bad one of a compacted log has an unknown number of at least 1: any later line
    // that saw something on disk proves it.
    let bad = lines.last().map_or(1, |last| last.seq.saturating_add(1));
    let damage = proof(bytes, at, bad).map(|proof| Damage { seq: bad, at, proof });
    Scan { lines, kept: at, damage }
}

/// The number of a valid line after the bad one at `at` that saw record `bad` on disk.
fn proof(bytes: &[u8], mut at: usize, bad: u64) -> Option<u64> {
    while let Some(line) = next_line(bytes, at) {
        at = line.end;
        if let Some(later) = parse(bytes, line)
            && later.synced >= bad
        {
            return Some(later.seq);
        }
    }
    None
}

/// The range of the line at `at`, newline included; `None` when no newline follows.
fn next_line(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let rest = bytes.get(at..)?;
    let length = rest.iter().position(|byte| *byte == b'\n')?;
    Some(at..at + length + 1)
}

fn parse(bytes: &[u8], range: Range<usize>) -> Option<Line> {
    if range.len() > MAX_LINE {
        return None;
    }
    let text = bytes.get(range.start..range.end.checked_sub(1)?)?;
    let (crc, covered) = text.split_at_checked(8)?;
    let crc = hex(crc)?;
    if crc32c::crc32c(covered) != crc {
        return None;
    }
    let mut fields = covered.strip_prefix(b" ")?.splitn(3, |byte| *byte == b' ');
    let seq = decimal(fields.next()?)?;
    let synced = decimal(fields.next()?)?;
    let json = fields.next()?;
    if seq == 0 || synced >= seq {
        return None;
    }
    let end = range.end - 1;
    Some(Line { seq, synced, crc, json: end - json.len()..end })
}

/// Lower case only: a line has one spelling.
fn hex(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b)) {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || digits.first() != Some(&b'0'));
    if plain { std::str::from_utf8(digits).ok()?.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{below, chance, mutated};

    /// `count` records, each written when all before the last group of three was on disk, and where each ends.
    fn journal(count: u64, payload: usize) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for seq in 1..=count {
            let json = format!(r#"{{"n":{seq},"x":"{}"}}"#, "é".repeat(payload));
            encode(&mut bytes, seq, (seq - 1) / 3 * 3, json.as_bytes()).unwrap();
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn the_line_is_golden() {
        let mut bytes = Vec::new();
        let crc = encode(&mut bytes, 17, 15, br#"{"a":1}"#).unwrap();
        assert_eq!(crc, crc32c::crc32c(br#" 17 15 {"a":1}"#));
        assert_eq!(String::from_utf8(bytes).unwrap(), format!("{crc:08x} 17 15 {{\"a\":1}}\n"));
    }

    #[test]
    fn a_journal_cut_at_any_byte_gives_the_exact_prefix() {
        let (bytes, ends) = journal(200, 4);
        let whole = scan(&bytes, First::One);
        assert_eq!((whole.lines.len(), whole.kept, &whole.damage), (200, bytes.len(), &None));
        for cut in 0..bytes.len() {
            let scan = scan(&bytes[..cut], First::One);
            let records = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(scan.lines, whole.lines[..records], "cut at {cut}");
            assert_eq!((scan.kept, scan.damage), (ends[records], None), "cut at {cut}");
        }
    }

    #[test]
    fn no_altered_byte_gets_an_altered_record_accepted() {
        let (bytes, ends) = journal(60, 10);
        let whole = scan(&bytes, First::One);
        let mut altered = bytes.clone();
        for at in 0..bytes.len() {
            let index = ends.iter().filter(|end| **end <= at).count() - 1;
            for flip in [0x01, 0x20, 0x80, 0xff] {
                altered[at] = bytes[at] ^ flip;
                let scan = scan(&altered, First::One);
                assert_eq!(scan.lines, whole.lines[..index], "byte {at} ^ {flip:02x}");
                // Records are in groups of three, so a record before the last group has a proof somewhere behind the next line.
                let proven = index + 6 < 60;
                assert!(!proven || scan.damage.as_ref().is_some_and(|d| d.seq == index as u64 + 1), "byte {at}");
            }
            altered[at] = bytes[at];
        }
    }

    #[test]
    fn an_unsynced_tail_is_cut_even_when_later_pages_of_it_survived() {
        let mut bytes = Vec::new();
        for (seq, synced) in [(1, 0), (2, 1), (3, 1), (4, 1), (5, 1)] {
            encode(&mut bytes, seq, synced, b"{}").unwrap();
        }
        let third = scan(&bytes, First::One).lines[2].json.clone();
        bytes[third].fill(0);
        let scan = scan(&bytes, First::One);
        assert_eq!((scan.lines.len(), scan.damage), (2, None));
    }

    /// Every byte where that is quick or asked for, every 61st in a debug build.
    #[test]
    fn a_journal_of_64_kib_with_any_byte_flipped_gives_what_comes_before_it() {
        let (mut bytes, ends) = journal(300, 96);
        assert!(bytes.len() >= 64 * 1024);
        let whole = scan(&bytes, First::One);
        let full = !cfg!(debug_assertions) || std::env::var_os("PHASED_CRASH_FULL").is_some();
        for at in (0..64 * 1024).step_by(if full { 1 } else { 61 }) {
            bytes[at] ^= 1 << (at % 8);
            let index = ends.iter().filter(|end| **end <= at).count() - 1;
            let scan = scan(&bytes, First::One);
            assert_eq!(scan.lines, whole.lines[..index], "byte {at}");
            assert_eq!(scan.damage.map(|damage| damage.seq), Some(index as u64 + 1), "byte {at}");
            bytes[at] ^= 1 << (at % 8);
        }
    }

    /// Whatever becomes of the bytes: what is kept is lines that were written, as they were and in their order, and damage is what a line
    /// that was not altered proves.
    #[test]
    fn random_journals_give_no_record_that_was_not_written() {
        const WORDS: [&str; 12] = [
            "\n",
            " ",
            " 1 0 ",
            " 2 1 ",
            "{}",
            "00000000 1 0 {}\n",
            "0",
            "9",
            "\0",
            "\n\n",
            "\u{ff}",
            "18446744073709551615",
        ];
        let (mut random, cases) = chance("journals", 2000, 100_000);
        let (mut whole, mut cut, mut damaged, mut alike) = (0, 0, 0, 0);
        for case in cases {
            let (bytes, ends) = journal(1 + random.below(12), below(&mut random, 30));
            let written = scan(&bytes, First::One).lines;
            let line = |n: usize| &bytes[ends[n]..ends[n + 1]];
            let other = mutated(&mut random, std::str::from_utf8(&bytes).unwrap(), &WORDS);
            for first in [First::One, First::Any] {
                let scan = scan(&other, first);
                let shown = || other.escape_ascii().to_string();
                // A log that is compacted may begin with any record.
                let begin = scan.lines.first().map_or(1, |line| line.seq);
                assert!(first == First::Any || begin == 1, "case {case}: {}", shown());
                let (from, count) = (usize::try_from(begin).unwrap() - 1, scan.lines.len());
                let as_written =
                    from + count <= written.len() && other[..scan.kept] == bytes[ends[from]..ends[from + count]];
                if !as_written {
                    // One altered line in four thousand million has a checksum that is right.
                    let right = |line: &Line| {
                        let from =
                            other[..line.json.start].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                        crc32c::crc32c(&other[from + 8..line.json.end]) == line.crc
                    };
                    assert!(scan.lines.iter().all(right), "case {case}: {}", shown());
                    alike += 1;
                    continue;
                }
                let same = |(read, of): (&Line, &Line)| {
                    let json = other[read.json.clone()] == bytes[of.json.clone()];
                    json && (read.seq, read.synced, read.crc) == (of.seq, of.synced, of.crc)
                };
                assert!(scan.lines.iter().zip(&written[from..]).all(same), "case {case}: {}", shown());
                let bad = scan.lines.last().map_or(1, |line| line.seq + 1);
                let proves = |later: &[u8]| (0..written.len()).any(|n| line(n) == later && written[n].synced >= bad);
                let proven = other[scan.kept..].split_inclusive(|byte| *byte == b'\n').any(proves);
                assert_eq!(scan.damage.is_some(), proven, "case {case}: {}", shown());
                match scan.damage {
                    Some(damage) => {
                        assert_eq!((damage.seq, damage.at), (bad, scan.kept), "case {case}: {}", shown());
                        damaged += 1;
                    }
                    None if scan.kept == bytes.len() => whole += 1,
                    None => cut += 1,
                }
            }
        }
        assert!(alike <= 1, "{alike}");
        assert!([whole, cut, damaged].iter().all(|n| *n > 50), "all of it is met: {whole}, {cut}, {damaged}");
    }

    #[test]
    fn a_lost_or_repeated_line_is_bad() {
        let (bytes, ends) = journal(30, 1);
        let lost = [&bytes[..ends[10]], &bytes[ends[11]..]].concat();
        assert_eq!(scan(&lost, First::One).damage, Some(Damage { seq: 11, at: ends[10], proof: 13 }));
        let repeated = [&bytes[..ends[10]], &bytes[ends[9]..]].concat();
        assert_eq!(scan(&repeated, First::One).lines.len(), 10);
    }

    #[test]
    fn what_is_no_journal_is_empty() {
        let long = [vec![b'a'; MAX_LINE + 1], b"\n".to_vec()].concat();
        for bad in [&b""[..], b"\n", b"\n\n\n", b"hello\n", b"00000000 1 0 {}\n", &[0; 4096], &long, b"12345678"] {
            assert_eq!(scan(bad, First::One), Scan { lines: vec![], kept: 0, damage: None });
        }
        for fields in [" 01 0 {}", " 1 1 {}", " 0 0 {}", " +1 0 {}", " 1 0", " 1  {}", " 99999999999999999999 0 {}"] {
            let line = format!("{:08x}{fields}\n", crc32c::crc32c(fields.as_bytes()));
            assert!(scan(line.as_bytes(), First::Any).lines.is_empty(), "{fields:?}");
        }
    }

    #[test]
    fn a_compacted_log_begins_anywhere_and_a_bad_first_line_is_proven() {
        let mut bytes = Vec::new();
        encode(&mut bytes, 900, 899, b"{}").unwrap();
        encode(&mut bytes, 901, 900, b"{}").unwrap();
        assert_eq!(scan(&bytes, First::Any).lines.len(), 2);
        assert!(scan(&bytes, First::One).damage.is_some());
        bytes[3] ^= 1;
        assert_eq!(scan(&bytes, First::Any).damage.map(|d| d.proof), Some(901));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut out = Vec::new();
        assert!(encode(&mut out, u64::MAX, u64::MAX - 1, &vec![b'1'; MAX_JSON]).is_ok());
        assert!(out.len() <= MAX_LINE && scan(&out, First::Any).lines.len() == 1);
        assert_eq!(encode(&mut out, 1, 0, &vec![b'1'; MAX_JSON + 1]), Err(Unfit(MAX_JSON + 1)));
        assert!(encode(&mut out, 1, 0, b"{\n}").is_err());
    }
}
