//! Numbers that look random and are the same every time: what is tried by chance, in tests and in simulations, is tried again as it was.

/// A source of numbers. A copy of it says the same again.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Begins at `state`; two that are alike begin alike.
    #[must_use]
    pub fn at(state: u64) -> Self {
        Dice(state)
    }

    /// For one of many seeds, which count up: they do not begin alike.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// Any number; its low bits are hardly random.
    pub fn bits(&mut self) -> u64 {
        // The linear congruential generator of MMIX (Knuth, The Art of Computer Programming, volume 2, 3.3.4).
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0
    }

    /// One of `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.bits() >> 33).unwrap_or(0) % n.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_seed_gives_stays_what_it_is() {
        let six = |mut dice: Dice| [(); 6].map(|()| dice.below(100));
        assert_eq!(six(Dice::at(1)), [74, 53, 96, 70, 34, 95]);
        assert_eq!(six(Dice::of(7)), [0, 45, 68, 81, 68, 7]);
        let mut dice = Dice::at(1);
        assert_eq!([dice.bits(), dice.bits()], [0x6c57_6fac_43fd_007c, 0x8268_86b3_864a_1b1b]);
    }
}
