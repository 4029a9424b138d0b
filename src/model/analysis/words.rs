//! The numbers of an analysis, for people.

use std::time::Duration;

use super::{Analysis, Assessment, Compare, Condition, Series, Worse, ranks};
use crate::time::Span;

/// A number as people write it: four digits that matter.
#[must_use]
pub fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if value == value.trunc() && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let size = value.abs();
    if !(1e-4..1e15).contains(&size) {
        return format!("{value:.3e}");
    }
    #[allow(clippy::cast_possible_truncation)] // -4 to 15
    let before = size.log10().floor() as i32;
    let digits = usize::try_from(3 - before).unwrap_or(0);
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn measurements(n: u32) -> String {
    if n == 1 { "1 measurement".to_owned() } else { format!("{n} measurements") }
}

impl Condition {
    /// `above 0.01`, `from 0.9 to 1.1`.
    #[must_use]
    pub fn words(&self) -> String {
        let parts = [
            self.above.map(|level| format!("above {}", number(level.0))),
            self.below.map(|level| format!("below {}", number(level.0))),
            self.between.map(|(least, most)| format!("from {} to {}", number(least.0), number(most.0))),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
    }

    /// The only number it has, if there is only one.
    fn only(&self) -> Option<f64> {
        match (self.above, self.below, self.between) {
            (Some(level), None, None) | (None, Some(level), None) => Some(level.0),
            _ => None,
        }
    }
}

impl Analysis {
    /// What a good value is: `limit 0.01`, `wanted from 0.9 to 1.1`.
    fn limit(&self) -> String {
        match (&self.failure, &self.success) {
            (Some(bad), _) if bad.only().is_some() => format!("limit {}", number(bad.only().unwrap_or_default())),
            (None, Some(good)) if good.only().is_some() => format!("limit {}", number(good.only().unwrap_or_default())),
            (_, Some(good)) => format!("wanted {}", good.words()),
            (Some(bad), None) => format!("bad is {}", bad.words()),
            (None, None) => "no limit".to_owned(),
        }
    }

    /// How far a bad value is from the nearest number that any condition names.
    pub(super) fn distance(&self, value: f64) -> f64 {
        let conditions = self.success.iter().chain(&self.failure);
        let levels = conditions.flat_map(|c| {
            [c.above, c.below, c.between.map(|(least, _)| least), c.between.map(|(_, most)| most)].into_iter().flatten()
        });
        levels.map(|level| (value - level.0).abs()).fold(f64::INFINITY, f64::min)
    }

    /// When it fires: `above 0.01 for 2m`.
    #[must_use]
    pub fn fires(&self) -> String {
        let mut parts = Vec::new();
        let lasting = match self.lasting_ms {
            0 => String::new(),
            ms => format!(" for {}", Span(Duration::from_millis(ms))),
        };
        let often = match self.failure_limit {
            0 => String::new(),
            limit => format!(", in more than {}", measurements(limit)),
        };
        match (&self.failure, &self.success) {
            (Some(bad), _) => parts.push(format!("{}{lasting}{often}", bad.words())),
            (None, Some(good)) => parts.push(format!("not {}{lasting}{often}", good.words())),
            (None, None) => {}
        }
        if let Some(compare) = &self.compare {
            let worse = if compare.worse == Worse::Higher { "higher" } else { "lower" };
            parts.push(format!("{worse} than the baseline{}", tolerance(compare)));
        }
        parts.join(", or ")
    }

    /// What it can see in a bake of that length, for the plan: the smallest thing that it would notice, or why it would notice nothing.
    #[must_use]
    pub fn sees(&self, bake: Duration) -> String {
        let looks = self.looks(bake);
        let within = format!("{} in a bake of {}", measurements(looks), Span(bake));
        let mut seen = Vec::new();
        if self.success.is_some() || self.failure.is_some() {
            let bad = match (&self.failure, &self.success) {
                (Some(bad), _) => bad.words(),
                (None, Some(good)) => format!("not {}", good.words()),
                (None, None) => String::new(),
            };
            // The first bad value begins the time that it has to last, and the one after that time counts.
            let lasting = u32::try_from(self.lasting_ms.div_ceil(self.interval_ms.max(1))).unwrap_or(u32::MAX);
            let needed = lasting.saturating_add(self.failure_limit).saturating_add(1);
            let how = match needed {
                1 => format!("a single measurement {bad}"),
                needed => format!("{needed} measurements {bad}"),
            };
            seen.push(if needed > looks {
                format!("nothing: it takes {how}, and there is room for {looks}")
            } else {
                how
            });
        }
        if let Some(compare) = &self.compare {
            let worse = if compare.worse == Worse::Higher { "higher" } else { "lower" };
            seen.push(match ranks::smallest_effect(looks) {
                Some(part) => format!(
                    "a difference to the baseline where the new release is {worse}{} in {:.0} of 100 pairs",
                    tolerance(compare),
                    part * 100.0
                ),
                None => {
                    format!("no difference to the baseline: that takes {} a side", measurements(ranks::least_samples()))
                }
            });
        }
        format!("{within}; it notices {}", seen.join(", and "))
    }
}

fn tolerance(compare: &Compare) -> String {
    if compare.tolerance == 0 { String::new() } else { format!(" by more than {} %", compare.tolerance) }
}

impl Series {
    fn of(&self, part: u32) -> String {
        format!("in {part} of {}", measurements(self.samples()))
    }

    fn said(&self) -> String {
        self.said.as_ref().map(|said| format!(" ({said})")).unwrap_or_default()
    }

    pub(super) fn failed_words(&self) -> String {
        let lasting = match self.analysis.lasting_ms {
            0 => String::new(),
            ms => format!(" for {}", Span(Duration::from_millis(ms))),
        };
        let worst = number(self.worst.unwrap_or_default());
        let (of, limit) = (self.of(self.failed), self.analysis.limit());
        format!("{} {worst} {of}, {limit}{lasting}{}", self.name, self.said())
    }

    pub(super) fn between_words(&self) -> String {
        let between = number(self.between.unwrap_or_default());
        let good = self.analysis.success.as_ref().map(Condition::words).unwrap_or_default();
        let bad = self.analysis.failure.as_ref().map(Condition::words).unwrap_or_default();
        let of = self.of(self.inconclusive);
        format!("{} {between} {of} was neither good ({good}) nor bad ({bad})", self.name)
    }

    pub(super) fn nothing_words(&self) -> String {
        let row = self.nothing_in_a_row;
        let which = if row == 1 { "last measurement".to_owned() } else { format!("last {row} measurements") };
        format!("{} had no data in the {which}{}", self.name, self.said())
    }

    pub(super) fn pending_words(&self) -> String {
        let value = self.last.and_then(|(_, value)| value).map(number).unwrap_or_default();
        let lasting = Span(Duration::from_millis(self.analysis.lasting_ms));
        format!("{} {value} is bad, but not for {lasting} yet, {}{}", self.name, self.analysis.limit(), self.said())
    }

    pub(super) fn few_words(&self, wanted: u32) -> String {
        let without = if self.nothing > 0 { format!(", {} without data", self.nothing) } else { String::new() };
        format!("{} has {}{without}; it takes {wanted} to tell", self.name, measurements(self.samples()))
    }

    pub(super) fn open_words(&self) -> String {
        match &self.last {
            None => format!("{} was not measured yet", self.name),
            Some((super::Phase::Nothing, _)) => self.nothing_words(),
            Some((super::Phase::Pending, _)) => self.pending_words(),
            Some((_, value)) => {
                let value = value.map(number).unwrap_or_default();
                format!("{} {value} now, bad {}, {}", self.name, self.of(self.failed), self.analysis.limit())
            }
        }
    }

    pub(super) fn passed_words(&self) -> String {
        let value = self.last.and_then(|(_, value)| value).map(number).unwrap_or_default();
        let limit = self.analysis.limit();
        match self.failed {
            0 => format!("{} {value} and never bad in {}, {limit}", self.name, measurements(self.samples())),
            failed => format!("{} {value} and bad {} only, {limit}", self.name, self.of(failed)),
        }
    }

    pub(super) fn compared_words(&self, compare: &Compare, test: &ranks::Test) -> String {
        let worse = if compare.worse == Worse::Higher { "higher" } else { "lower" };
        let side = measurements(u32::try_from(self.canary.len()).unwrap_or(u32::MAX));
        let medians = format!("{} {} against {}", self.name, median(&self.canary), median(&self.baseline));
        let pairs = format!("{worse}{} in {:.0} of 100 pairs", tolerance(compare), test.larger * 100.0);
        if test.least_p > ranks::ALPHA {
            let least = ranks::least_samples();
            return format!("{medians} of the baseline, {side} a side; it takes {least} a side to tell a difference");
        }
        let chance = if test.p < 0.001 { "less than 0.001".to_owned() } else { format!("{:.3}", test.p) };
        format!("{medians} of the baseline, {pairs}, {side} a side; chance alone: {chance}, limit {}", ranks::ALPHA)
    }
}

fn median(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get(sorted.len().saturating_sub(1) / 2), sorted.get(sorted.len() / 2));
    match (low, high) {
        (Some(low), Some(high)) => number((low + high) / 2.0),
        _ => "nothing".to_owned(),
    }
}

impl std::fmt::Display for Assessment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
