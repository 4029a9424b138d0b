//! What unit tests share: counts, and bytes that chance has changed.

use std::time::Duration;

use crate::{
    sim::Random,
    time::{Clock as _, SystemClock},
};

/// `few` times normally, `many` under scripts/crash (`PHASED_CRASH_FULL=1`).
pub fn times(few: usize, many: usize) -> usize {
    if std::env::var_os("PHASED_CRASH_FULL").is_some() { many } else { few }
}

/// The numbers for what chance tries, and its cases: `few` normally, `many` under scripts/crash, the same each time. Under `scripts/crash fuzz`,
/// which sets `PHASED_FUZZ_SECONDS`, as many as there is time for (`few` at least) and others each time: the seed is printed, and
/// `PHASED_CRASH_SEED` has it again.
pub fn chance(of: &str, few: usize, many: usize) -> (Random, impl Iterator<Item = usize> + use<>) {
    let number = |name: &str| {
        std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let (clock, span) = (SystemClock::new(), number("PHASED_FUZZ_SECONDS").map(Duration::from_secs));
    let (begun, most) = (clock.now(), times(few, many));
    let seed = match span {
        None => 1,
        Some(_) => number("PHASED_CRASH_SEED").unwrap_or_else(|| begun.wall_ms.unsigned_abs()),
    };
    if span.is_some() {
        eprintln!("{of}: PHASED_CRASH_SEED={seed}");
    }
    let (random, of) = (Random::of(seed, of), of.to_owned());
    let cases = (0..).take_while(move |case| {
        let Some(span) = span else { return *case < most };
        let more = *case < few || clock.now().since(&begun) < span;
        if !more {
            eprintln!("{of}: {case} cases in {span:?}");
        }
        more
    });
    (random, cases)
}

/// One of `0..n`.
pub fn below(random: &mut Random, n: usize) -> usize {
    usize::try_from(random.below(n as u64)).unwrap()
}

/// `whole`, in which up to four places are not what they were: a bit, a byte, a piece that is gone or there twice, one of `words`; or the rest is missing.
pub fn mutated(random: &mut Random, whole: &str, words: &[&str]) -> Vec<u8> {
    let mut bytes = whole.as_bytes().to_vec();
    for _ in 0..=below(random, 4) {
        let from = below(random, bytes.len() + 1);
        let to = (from + below(random, 20)).min(bytes.len());
        match below(random, 12) {
            0 if from < bytes.len() => bytes[from] ^= 1 << below(random, 8),
            0 | 1 => bytes.insert(from, u8::try_from(below(random, 256)).unwrap()),
            2 => drop(bytes.drain(from..to)),
            3 => bytes.extend_from_within(from..to),
            4 => bytes.truncate(from),
            _ => drop(bytes.splice(from..to, words[below(random, words.len())].bytes())),
        }
    }
    bytes
}
