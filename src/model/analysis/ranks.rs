//! The Mann-Whitney U test (Mann and Whitney 1947), one-sided: are the values of one sample larger than those of another?
//!
//! Small samples are tested exactly, ties included: every way to deal the pooled mid-ranks is counted. Larger ones by the normal
//! approximation with the corrections for ties and continuity.

/// At most so seldom may chance alone fail a good release: 2 in 100, as Kayenta's default.
pub const ALPHA: f64 = 0.02;
/// The normal quantiles of 1 - [`ALPHA`], and of the chance to see what is there (80 in 100).
const Z_ALPHA: f64 = 2.053_749;
const Z_POWER: f64 = 0.841_621;
/// Pooled values up to which all deals are counted.
const EXACT: usize = 60;

/// What a test found.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// How likely chance alone brings a difference as large or larger.
    pub p: f64,
    /// In which part of all pairs the first sample's value is the larger one; a tie is half a pair.
    pub larger: f64,
    /// The least `p` that samples of these sizes can have.
    pub least_p: f64,
}

/// Tests whether the values of `first` are larger.
pub fn test(first: &[f64], second: &[f64]) -> Test {
    let (n, m) = (first.len(), second.len());
    if n == 0 || m == 0 {
        return Test { p: 1.0, larger: 0.5, least_p: 1.0 };
    }
    let mut pooled: Vec<(f64, bool)> =
        first.iter().map(|v| (*v, true)).chain(second.iter().map(|v| (*v, false))).collect();
    pooled.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Doubled, so that the middle of two ranks is whole.
    let mut ranks = vec![0usize; pooled.len()];
    let mut ties = Vec::new();
    let mut at = 0;
    while at < pooled.len() {
        let end = at + pooled[at..].iter().take_while(|(value, _)| *value == pooled[at].0).count();
        ranks[at..end].fill(at + 1 + end);
        ties.push(end - at);
        at = end;
    }
    let sum: usize = ranks.iter().zip(&pooled).filter(|(_, (_, mine))| *mine).map(|(rank, _)| rank).sum();
    let pairs = count(n) * count(m);
    let u = count(sum) / 2.0 - count(n) * (count(n) + 1.0) / 2.0;
    let p = if n + m <= EXACT { exact(&ranks, n, sum) } else { approximate(u, n, m, &ties) };
    Test { p, larger: u / pairs, least_p: 1.0 / ways(n + m, n) }
}

/// The least part of all pairs in which one sample must be larger to be noticed 4 times of 5 with `n` values a side (Noether 1987);
/// `None` = so few values show nothing.
pub fn smallest_effect(n: u32) -> Option<f64> {
    let n = n as usize;
    let effect = 0.5 + (Z_ALPHA + Z_POWER) / (6.0 * count(n)).sqrt();
    (n > 0 && 1.0 / ways(2 * n, n) <= ALPHA).then(|| effect.min(1.0))
}

/// The least values a side with which anything shows.
pub fn least_samples() -> u32 {
    (1..).find(|n| smallest_effect(*n).is_some()).unwrap_or(u32::MAX)
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn count(n: usize) -> f64 {
    n as f64
}

/// n over k.
fn ways(n: usize, k: usize) -> f64 {
    (1..=k).map(|i| count(n - k + i) / count(i)).product()
}

/// The part of all choices of `n` of the doubled ranks whose sum is at least `sum`.
fn exact(ranks: &[usize], n: usize, sum: usize) -> f64 {
    let most: usize = ranks.iter().sum();
    // chosen[k][s]: the ways to choose k of the ranks looked at so far with the sum s.
    let mut chosen = vec![vec![0.0f64; most + 1]; n + 1];
    chosen[0][0] = 1.0;
    for (seen, rank) in ranks.iter().enumerate() {
        for k in (1..=n.min(seen + 1)).rev() {
            let (fewer, these) = chosen.split_at_mut(k);
            for s in (*rank..=most).rev() {
                these[0][s] += fewer[k - 1][s - rank];
            }
        }
    }
    let all: f64 = chosen[n].iter().sum();
    chosen[n].iter().skip(sum).sum::<f64>() / all
}

fn approximate(u: f64, n: usize, m: usize, ties: &[usize]) -> f64 {
    let (n, m) = (count(n), count(m));
    let all = n + m;
    let tied: f64 = ties.iter().map(|t| count(*t).powi(3) - count(*t)).sum();
    let variance = n * m / 12.0 * ((all + 1.0) - tied / (all * (all - 1.0)));
    if variance <= 0.0 {
        return 1.0;
    }
    upper_tail((u - n * m / 2.0 - 0.5) / variance.sqrt())
}

/// The chance of a standard normal value above `z` (Abramowitz and Stegun 7.1.26; off by less than 2e-7).
fn upper_tail(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let terms = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let tail = terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t) * (-x * x).exp() / 2.0;
    if z >= 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    fn near(a: f64, b: f64, off: f64) -> bool {
        (a - b).abs() <= off
    }

    #[test]
    fn small_samples_are_tested_as_the_tables_have_it() {
        // Without ties and wholly apart: one deal of n + m over n.
        let apart = test(&[4.0, 5.0, 6.0], &[1.0, 2.0, 3.0]);
        assert!(near(apart.p, 0.05, 1e-12) && apart.larger == 1.0, "{apart:?}");
        // U = 8 of n = m = 3: 2 of 20 deals.
        assert!(near(test(&[3.0, 5.0, 6.0], &[1.0, 2.0, 4.0]).p, 0.1, 1e-12));
        // The other way round.
        assert!(near(test(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]).p, 1.0, 1e-12));
        // All the same: nothing.
        let same = test(&[1.0; 5], &[1.0; 5]);
        assert!(near(same.p, 1.0, 1e-12) && near(same.larger, 0.5, 1e-12), "{same:?}");
        // Ties: of 6 deals of {1, 2, 2, 3} the sums of mid-ranks 1, 2.5, 2.5, 4 are at least 6.5 in two.
        assert!(near(test(&[2.0, 3.0], &[1.0, 2.0]).p, 2.0 / 6.0, 1e-12));
    }

    #[test]
    fn the_approximation_meets_the_exact_test() {
        let mut dice = Dice::at(7);
        let mut next = || dice.below(40);
        for _ in 0..5 {
            let first: Vec<f64> = (0..30).map(|_| next() as f64 + 4.0).collect();
            let second: Vec<f64> = (0..30).map(|_| next() as f64).collect();
            let exact = test(&first, &second);
            let u = exact.larger * 900.0;
            let mut all: Vec<f64> = first.iter().chain(&second).copied().collect();
            all.sort_by(f64::total_cmp);
            let ties: Vec<usize> = all.chunk_by(|a, b| a == b).map(<[f64]>::len).collect();
            assert!(near(exact.p, approximate(u, 30, 30, &ties), 0.005), "{exact:?}");
        }
        assert!(near(upper_tail(Z_ALPHA), ALPHA, 1e-5) && near(upper_tail(-1.0), 0.841_345, 1e-5));
    }

    #[test]
    fn chance_alone_fails_as_seldom_as_promised() {
        // Every deal of ten different values: how many fail?
        let mut failed = 0;
        let mut all = 0;
        for choice in 0u32..1 << 10 {
            if choice.count_ones() != 5 {
                continue;
            }
            let part = |mine: bool| -> Vec<f64> {
                (0..10).filter(|i| (choice >> i & 1 == 1) == mine).map(f64::from).collect()
            };
            all += 1;
            failed += u32::from(test(&part(true), &part(false)).p <= ALPHA);
        }
        assert_eq!(all, 252);
        assert!(failed > 0 && f64::from(failed) / 252.0 <= ALPHA, "{failed}");
    }

    #[test]
    fn more_values_show_less() {
        assert_eq!((least_samples(), smallest_effect(3)), (4, None));
        let effects: Vec<f64> = [4, 8, 16, 100].iter().map(|n| smallest_effect(*n).unwrap()).collect();
        assert!(effects.windows(2).all(|pair| pair[0] > pair[1]) && effects[3] < 0.63, "{effects:?}");
    }
}
