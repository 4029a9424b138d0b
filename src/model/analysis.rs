//! What an alarm's measurements mean: a pure fold into pass, fail or inconclusive, with the numbers in words.
//!
//! The words and rules are those of Argo Rollouts' analysis (<https://argo-rollouts.readthedocs.io/en/stable/features/analysis/>):
//! a measurement is successful, failed or inconclusive by its conditions; more than `failure_limit` failed ones fail, more than
//! `inconclusive_limit` inconclusive ones are inconclusive, `count` of them without either, or `consecutive_success_limit` successful
//! ones in a row, pass. Two things differ, on purpose. Errors and missing data never fail a release, which they say nothing about, and
//! never pass one: the analysis is inconclusive for as long as they are the last that was seen. And a bad value may have to last.

mod ranks;
mod words;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cause::Cause;
pub use words::number;

/// A number that a condition names: finite.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Level(pub f64);

// No condition holds NaN: the loader takes finite numbers only.
impl Eq for Level {}

/// What a value must be; everything that is given must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Condition {
    /// More than this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub above: Option<Level>,
    /// Less than this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub below: Option<Level>,
    /// From the first to the second, both included.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub between: Option<(Level, Level)>,
}

impl Condition {
    /// Whether `value` meets it.
    #[must_use]
    pub fn holds(&self, value: f64) -> bool {
        self.above.is_none_or(|level| value > level.0)
            && self.below.is_none_or(|level| value < level.0)
            && self.between.is_none_or(|(least, most)| value >= least.0 && value <= most.0)
    }
}

/// Which values are the worse ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Worse {
    /// Error rates, latencies.
    #[default]
    Higher,
    /// Throughput, success rates.
    Lower,
}

/// Compared with hosts that still run what was live before, as many of them, measured at the same moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Compare {
    /// Which way is bad.
    pub worse: Worse,
    /// A difference of so many hundredths of the baseline is none.
    pub tolerance: u32,
}

/// How an alarm is judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Analysis {
    /// A measurement is good when this holds; with `failure` alone, whenever that does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success: Option<Condition>,
    /// A measurement is bad when this holds; with `success` alone, whenever that does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Condition>,
    /// A bad value counts once it has been there for so long without a good one in between.
    pub lasting_ms: u64,
    /// Between measurements.
    pub interval_ms: u64,
    /// After so many measurements it is over; `None` = when the bake is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Failed measurements that do not fail it.
    pub failure_limit: u32,
    /// Inconclusive measurements that do not make it inconclusive.
    pub inconclusive_limit: u32,
    /// Errors and measurements without data, in a row, that do not make it inconclusive.
    pub consecutive_error_limit: u32,
    /// So many successful ones in a row pass before the end; `None` = that is no reason to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_success_limit: Option<u32>,
    /// With fewer values it does not pass.
    pub min_samples: u32,
    /// Held against a baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compare: Option<Compare>,
    /// The limit of one measurement.
    pub timeout_ms: u64,
}

impl Default for Analysis {
    fn default() -> Self {
        Analysis {
            success: None,
            failure: None,
            lasting_ms: 0,
            interval_ms: 30_000,
            count: None,
            failure_limit: 0,
            inconclusive_limit: 0,
            consecutive_error_limit: 4,
            consecutive_success_limit: None,
            min_samples: 1,
            compare: None,
            timeout_ms: 10_000,
        }
    }
}

/// What one measurement found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// A number, and the probe's own words about it.
    Value(f64, Option<String>),
    /// Nobody measured anything, in the probe's words.
    NoData(Option<String>),
    /// The probe failed.
    Error(Cause),
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// When, since the analysis began; ms in a record.
    #[serde(with = "millis")]
    pub at: Duration,
    /// What was found; for a comparison, among the hosts with the new release.
    pub found: Found,
    /// What was found at the same moment among the baseline's hosts; only for a comparison.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub baseline: Option<Found>,
}

/// A duration as a record has it.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(at.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// What one measurement means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// As it should be.
    Successful,
    /// Bad, and for long enough.
    Failed,
    /// Bad, but not for long enough yet.
    Pending,
    /// Neither good nor bad by the conditions.
    Inconclusive,
    /// No data, or an error: says nothing.
    Nothing,
}

/// Where an analysis stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Open,
    /// Nothing bad was seen, and enough was seen.
    Pass,
    /// The release is bad.
    Fail,
    /// Nobody can tell: not (yet) enough is known.
    Inconclusive,
}

/// A verdict with its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assessment {
    /// What it is.
    pub verdict: Verdict,
    /// Why, one line: `error rate 0.031 in 3 of 5 measurements, limit 0.01`.
    pub message: String,
}

impl Analysis {
    /// What a value means by the conditions alone.
    #[must_use]
    pub fn phase(&self, value: f64) -> Phase {
        let holds = |condition: &Option<Condition>| condition.as_ref().map(|condition| condition.holds(value));
        match (holds(&self.success), holds(&self.failure)) {
            // NaN meets no condition and says nothing.
            _ if !value.is_finite() => Phase::Nothing,
            (_, Some(true)) | (Some(false), None) => Phase::Failed,
            (Some(true), _) | (None, Some(false) | None) => Phase::Successful,
            (Some(false), Some(false)) => Phase::Inconclusive,
        }
    }

    /// How many measurements there are in `bake`; the first one is an interval after its begin.
    #[must_use]
    pub fn looks(&self, bake: Duration) -> u32 {
        let within = u64::try_from(bake.as_millis()).unwrap_or(u64::MAX) / self.interval_ms.max(1);
        let within = u32::try_from(within).unwrap_or(u32::MAX);
        self.count.map_or(within, |count| count.min(within))
    }
}

/// An analysis under way: the fold.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    name: String,
    analysis: Analysis,
    successful: u32,
    failed: u32,
    inconclusive: u32,
    nothing: u32,
    nothing_in_a_row: u32,
    good_in_a_row: u32,
    /// Since when every value was bad.
    bad_since: Option<Duration>,
    /// The failed value that is furthest from good, and the one that was neither.
    worst: Option<f64>,
    between: Option<f64>,
    last: Option<(Phase, Option<f64>)>,
    /// The probe's words about the last failed value, or why there was none.
    said: Option<String>,
    canary: Vec<f64>,
    baseline: Vec<f64>,
}

impl Series {
    /// The analysis of the alarm `name`, before its first measurement.
    #[must_use]
    pub fn new(name: &str, analysis: &Analysis) -> Self {
        Series {
            name: name.to_owned(),
            analysis: analysis.clone(),
            successful: 0,
            failed: 0,
            inconclusive: 0,
            nothing: 0,
            nothing_in_a_row: 0,
            good_in_a_row: 0,
            bad_since: None,
            worst: None,
            between: None,
            last: None,
            said: None,
            canary: Vec::new(),
            baseline: Vec::new(),
        }
    }

    /// Folds one measurement; what it meant.
    pub fn see(&mut self, measurement: &Measurement) -> Phase {
        let (value, mut said) = match &measurement.found {
            Found::Value(value, said) => (Some(*value), said.clone()),
            Found::NoData(said) => (None, said.clone()),
            Found::Error(cause) => (None, Some(cause.message.clone())),
        };
        let mut value = value.filter(|value| value.is_finite());
        if self.analysis.compare.is_some() {
            match (value, &measurement.baseline) {
                (Some(mine), Some(Found::Value(other, _))) if other.is_finite() => {
                    self.canary.push(mine);
                    self.baseline.push(*other);
                }
                (Some(_), other) => {
                    value = None;
                    said = Some(match other {
                        Some(Found::Error(cause)) => format!("the baseline: {}", cause.message),
                        _ => "the baseline has no data".to_owned(),
                    });
                }
                (None, _) => {}
            }
        }
        let phase = match value.map(|value| (value, self.analysis.phase(value))) {
            None => Phase::Nothing,
            Some((value, Phase::Failed)) => self.bad(value, measurement.at),
            Some((_, phase)) => phase,
        };
        match phase {
            Phase::Successful => {
                self.successful += 1;
                self.good_in_a_row += 1;
                self.bad_since = None;
            }
            Phase::Failed | Phase::Pending => {
                self.failed += u32::from(phase == Phase::Failed);
                self.good_in_a_row = 0;
                self.said = said;
            }
            Phase::Inconclusive => {
                self.inconclusive += 1;
                self.good_in_a_row = 0;
                self.bad_since = None;
                self.between = value;
            }
            Phase::Nothing => {
                self.nothing += 1;
                self.nothing_in_a_row += 1;
                self.good_in_a_row = 0;
                self.said = said;
            }
        }
        if phase != Phase::Nothing {
            self.nothing_in_a_row = 0;
        }
        self.last = Some((phase, value));
        phase
    }

    /// A gap in the data neither ends nor begins a bad time.
    fn bad(&mut self, value: f64, at: Duration) -> Phase {
        let since = *self.bad_since.get_or_insert(at);
        if at.saturating_sub(since) < Duration::from_millis(self.analysis.lasting_ms) {
            return Phase::Pending;
        }
        let further = |than: f64| self.analysis.distance(value) > self.analysis.distance(than);
        if self.worst.is_none_or(further) {
            self.worst = Some(value);
        }
        Phase::Failed
    }

    /// Measurements that brought a value which counts.
    #[must_use]
    pub fn samples(&self) -> u32 {
        self.successful + self.failed + self.inconclusive
    }

    /// Where it stands; `over` = nothing more is going to be measured. A later measurement may change an inconclusive verdict that is for
    /// want of data.
    #[must_use]
    pub fn assess(&self, over: bool) -> Assessment {
        let analysis = &self.analysis;
        let is = |verdict, message: String| Assessment { verdict, message };
        if self.failed > analysis.failure_limit {
            return is(Verdict::Fail, self.failed_words());
        }
        if self.inconclusive > analysis.inconclusive_limit {
            return is(Verdict::Inconclusive, self.between_words());
        }
        if self.nothing_in_a_row > analysis.consecutive_error_limit {
            return is(Verdict::Inconclusive, self.nothing_words());
        }
        let counted = analysis.count.is_some_and(|count| self.samples() >= count);
        let in_a_row = analysis.consecutive_success_limit.is_some_and(|limit| self.good_in_a_row >= limit);
        if !over && !counted && !in_a_row {
            return is(Verdict::Open, self.open_words());
        }
        match self.last {
            None => return is(Verdict::Inconclusive, format!("{} was never measured", self.name)),
            Some((Phase::Nothing, _)) => return is(Verdict::Inconclusive, self.nothing_words()),
            // It has not lasted yet, and nobody knows whether it would.
            Some((Phase::Pending, _)) if !over => return is(Verdict::Open, self.pending_words()),
            Some((Phase::Pending, _)) => return is(Verdict::Inconclusive, self.pending_words()),
            Some(_) => {}
        }
        if self.samples() < analysis.min_samples {
            return is(Verdict::Inconclusive, self.few_words(analysis.min_samples));
        }
        if let Some(limit) = analysis.consecutive_success_limit.filter(|_| !in_a_row) {
            let row = self.good_in_a_row;
            let message = format!("{} was good in {row} measurements in a row at the end, wanted {limit}", self.name);
            return is(Verdict::Inconclusive, message);
        }
        match &analysis.compare {
            Some(compare) => self.compared(compare),
            None => is(Verdict::Pass, self.passed_words()),
        }
    }

    /// The difference to the baseline, by the Mann-Whitney U test: of all pairs of one value of the new release and one of the old, in how
    /// many is the new one worse, and how seldom would chance alone bring that many? It asks nothing of how the values are distributed.
    fn compared(&self, compare: &Compare) -> Assessment {
        let factor = f64::from(compare.tolerance) / 100.0;
        // Turned so that more is worse, with what is tolerated given to the baseline.
        let sign = if compare.worse == Worse::Higher { 1.0 } else { -1.0 };
        let canary: Vec<f64> = self.canary.iter().map(|value| sign * value).collect();
        let baseline: Vec<f64> = self.baseline.iter().map(|value| sign * value + factor * value.abs()).collect();
        let test = ranks::test(&canary, &baseline);
        let numbers = self.compared_words(compare, &test);
        let verdict = match &test {
            test if test.p <= ranks::ALPHA => Verdict::Fail,
            test if test.least_p > ranks::ALPHA => Verdict::Inconclusive,
            _ => Verdict::Pass,
        };
        Assessment { verdict, message: numbers }
    }
}

/// Which hosts a canary is compared with: as many as it has, of those that run what was live before, the first by name, from the
/// canary's own zones where there are such.
#[must_use]
pub fn baseline<'h>(canary: &[&'h super::host::Host], others: &[&'h super::host::Host]) -> Vec<&'h super::host::Host> {
    let zones: Vec<_> = canary.iter().map(|host| &host.zone).collect();
    let mut others = others.to_vec();
    others.sort_by_key(|host| (!zones.contains(&&host.zone), host.name.clone(), host.id.clone()));
    others.truncate(canary.len());
    others
}

#[cfg(test)]
mod tests;
