//! The numbers of a rollout as a project writes them, and what they come to for so many hosts. Times are milliseconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How an environment is rolled out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rollout {
    /// Hosts that come first, by themselves.
    pub canary: Canary,
    /// How the rest follows.
    pub waves: Waves,
    /// Hosts updated at the same moment.
    pub max_parallel: u32,
    /// At least so long between the beginnings of two hosts.
    pub stagger_ms: u64,
    /// Watched after the canary and after every wave.
    pub bake_time_ms: u64,
    /// A bake that nothing can be concluded from is given up after so long.
    pub max_bake_ms: u64,
    /// Failed hosts that do not stop the rollout: it stops when this is exceeded.
    pub max_failures: Budget,
    /// The same within one wave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_failures_per_wave: Option<Budget>,
    /// The same for unreachable hosts.
    pub max_unreachable: Budget,
    /// Healthy hosts below which none is taken; `None` = those healthy at plan time less `max_parallel` and what
    /// the budgets allow; hosts that have ended since do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_healthy: Option<Budget>,
    /// Without a newly healthy host for so long the rollout has failed; 0 = the limits of its calls are all.
    pub progress_deadline_ms: u64,
    /// A pause ends here, and the deployment `halted`.
    pub pause_timeout_ms: u64,
    /// Hosts that go back at the same moment; `None` = as many as went forward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_parallel: Option<u32>,
    /// A list of hosts that has lost more than this stops the deployment.
    pub max_shrink: Budget,
    /// Hosts of two zones are never updated at the same moment.
    pub zones: bool,
    /// What happens when it fails after a host was touched.
    pub on_failure: OnFailure,
    /// What happens when a bake ends without a verdict.
    pub on_inconclusive: OnInconclusive,
}

impl Default for Rollout {
    /// What journals mean that say nothing of it: one wave, no bake, and a failure leaves it halted. What a project means that says
    /// nothing is for its loader to know.
    fn default() -> Self {
        Rollout {
            canary: Canary::Count(Budget::Count(0)),
            waves: Waves::Targets(vec![Budget::Percent(100)]),
            max_parallel: 1,
            stagger_ms: 0,
            bake_time_ms: 0,
            max_bake_ms: 0,
            max_failures: Budget::Count(0),
            max_failures_per_wave: None,
            max_unreachable: Budget::Count(0),
            min_healthy: None,
            progress_deadline_ms: 0,
            pause_timeout_ms: 24 * 3_600_000,
            rollback_parallel: None,
            max_shrink: Budget::Percent(30),
            zones: false,
            on_failure: OnFailure::Halt,
            on_inconclusive: OnInconclusive::Halt,
        }
    }
}

/// Which hosts come first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Canary {
    /// So many, the first by name; 0 = none.
    Count(Budget),
    /// Those that have all of these labels.
    Labels(BTreeMap<String, String>),
}

/// How the hosts after the canary are divided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waves {
    /// How many hosts have it after each wave, the canary included; the last is all.
    Targets(Vec<Budget>),
    /// How many hosts each wave has.
    Each(Budget),
}

/// A number of hosts, or a part of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// So many.
    Count(u32),
    /// Hundredths of the hosts at plan time.
    Percent(u32),
}

impl Budget {
    /// The absolute number for `hosts` hosts, rounded down; it may be 0.
    #[must_use]
    pub fn of(self, hosts: usize) -> usize {
        match self {
            Budget::Count(n) => n as usize,
            Budget::Percent(p) => hosts * p as usize / 100,
        }
    }

    /// The absolute number as a floor: rounded up.
    #[must_use]
    pub fn floor_of(self, hosts: usize) -> usize {
        match self {
            Budget::Count(n) => n as usize,
            Budget::Percent(p) => (hosts * p as usize).div_ceil(100),
        }
    }

    /// The size of a wave: rounded down, at least 1, at most all.
    #[must_use]
    pub fn size_of(self, hosts: usize) -> usize {
        self.of(hosts).max(1).min(hosts)
    }
}

/// `on_failure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Back to the known-good release.
    Rollback,
    /// It stands still as it is.
    Halt,
    /// It waits for a person, up to `pause_timeout`.
    Pause,
}

/// `on_inconclusive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInconclusive {
    /// Back to the known-good release.
    Rollback,
    /// It stands still as it is.
    Halt,
    /// It goes on.
    Promote,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_down_to_at_least_one_budgets_to_nothing_and_floors_up() {
        let percent = Budget::Percent;
        assert_eq!([percent(10).size_of(10), percent(10).size_of(9), percent(30).size_of(10)], [1, 1, 3]);
        assert_eq!([percent(10).of(9), percent(50).of(3), Budget::Count(2).of(9)], [0, 1, 2]);
        assert_eq!([percent(50).floor_of(3), percent(75).floor_of(10), percent(100).floor_of(7)], [2, 8, 7]);
        assert_eq!(Budget::Count(9).size_of(3), 3);
    }

    #[test]
    fn a_journal_without_the_new_words_means_what_it_meant() {
        let old = r#"{"max_parallel":3,"max_failures":{"count":1},"max_unreachable":{"percent":10}}"#;
        let rollout: Rollout = serde_json::from_str(old).unwrap();
        let wanted = Rollout {
            max_parallel: 3,
            max_failures: Budget::Count(1),
            max_unreachable: Budget::Percent(10),
            ..Rollout::default()
        };
        assert_eq!(rollout, wanted);
    }
}
