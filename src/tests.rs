//! What unit tests share: counts, and bytes that chance has changed.

use crate::sim::Random;

/// `few` times normally, `many` under scripts/crash (`PHASED_CRASH_FULL=1`).
pub fn times(few: usize, many: usize) -> usize {
    if std::env::var_os("PHASED_CRASH_FULL").is_some() { many } else { few }
}

/// One of `0..n`.
pub fn below(random: &mut Random, n: usize) -> usize {
    usize::try_from(random.below(n as u64)).unwrap()
}

/// `whole`, in which up to four places are not what they were: a bit, a byte, a piece that is gone or there twice, one of `words`.
pub fn mutated(random: &mut Random, whole: &str, words: &[&str]) -> Vec<u8> {
    let mut bytes = whole.as_bytes().to_vec();
    for _ in 0..=below(random, 4) {
        let from = below(random, bytes.len() + 1);
        let to = (from + below(random, 20)).min(bytes.len());
        match below(random, 7) {
            0 if from < bytes.len() => bytes[from] ^= 1 << below(random, 8),
            0 | 1 => bytes.insert(from, u8::try_from(below(random, 256)).unwrap()),
            2 => drop(bytes.drain(from..to)),
            3 => bytes.extend_from_within(from..to),
            _ => drop(bytes.splice(from..to, words[below(random, words.len())].bytes())),
        }
    }
    bytes
}
