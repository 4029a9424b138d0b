//! The plan of a rollout: which host is in which wave, and what the budgets come to. Pure, and stored before the first host is touched.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    adoption::Adoption,
    cause::Cause,
    host::Host,
    ids::{Digest, HostId, ReleaseId, RunId},
    pipeline::Environment,
    release::Release,
    rollout::{Budget, Canary, Rollout, Waves},
};

/// A release that an environment can be brought back to: known-good there, with the code that made it so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// What ships.
    pub release: Release,
    /// The pinned code that made it known-good.
    pub code: Digest,
    /// The environment as that code describes it.
    pub environment: Environment,
    /// The run that made it known-good.
    pub run: RunId,
}

/// The phases of a deployment, as numbers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Phases {
    /// How many hosts each wave has, in the order of the hosts. None: all of them are one.
    pub waves: Vec<u32>,
    /// The first wave is the canary.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub canary: bool,
    /// Failed hosts of one wave that do not stop it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_failures_per_wave: Option<u32>,
    /// Healthy hosts below which none is taken.
    #[serde(default)]
    pub min_healthy: u32,
    /// Hosts that were not healthy before it began, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub ill: BTreeMap<HostId, String>,
    /// What each host has, as far as it is known.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub current: BTreeMap<HostId, ReleaseId>,
    /// Hosts that an earlier deployment set aside.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", default)]
    pub quarantined: BTreeSet<HostId>,
    /// What a failure goes back to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<Box<Target>>,
    /// Why a failure cannot go back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub no_target: Option<Cause>,
    /// That what it goes back to was adopted: nothing had been deployed here before, and every host reports it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub adopted: Option<Adoption>,
    /// How long the last success here took, ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expected_ms: Option<u64>,
}

/// What is known of an environment's hosts when its plan is made.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fleet {
    /// Every host.
    pub hosts: Vec<Host>,
    /// Those that are not healthy, and why.
    pub ill: BTreeMap<HostId, String>,
    /// Those that an earlier deployment set aside.
    pub quarantined: BTreeSet<HostId>,
    /// What each has.
    pub current: BTreeMap<HostId, ReleaseId>,
}

/// How many of `count` hosts may be missing where the project says nothing of `min_healthy`: those that are taken at a time, and those that
/// may fail; each with the key that says so.
#[must_use]
pub fn missing(rollout: &Rollout, count: usize) -> [(&'static str, usize); 3] {
    [
        ("max_parallel", rollout.max_parallel.max(1) as usize),
        ("max_failures", rollout.max_failures.of(count)),
        ("max_unreachable", rollout.max_unreachable.of(count)),
    ]
}

/// The hosts in the order of the rollout, and its phases.
///
/// # Errors
/// `canary_labels`: no host has them. `min_healthy`: not one healthy host could be taken.
pub fn phases(rollout: &Rollout, fleet: Fleet) -> Result<(Vec<Host>, Phases), Cause> {
    let Fleet { mut hosts, ill, quarantined, current } = fleet;
    hosts.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    let count = hosts.len();
    // Those that failed last time come last: they are not what a canary is to be judged by.
    let canaries: BTreeSet<HostId> = match &rollout.canary {
        Canary::Count(budget) => {
            let first = hosts.iter().filter(|host| !quarantined.contains(&host.id));
            let size =
                if matches!(budget, Budget::Percent(p) if *p > 0) { budget.size_of(count) } else { budget.of(count) };
            first.take(size).map(|host| host.id.clone()).collect()
        }
        Canary::Labels(labels) => {
            let has = |host: &&Host| labels.iter().all(|(name, value)| host.labels.get(name) == Some(value));
            hosts.iter().filter(has).map(|host| host.id.clone()).collect()
        }
    };
    if let (Canary::Labels(labels), true) = (&rollout.canary, canaries.is_empty()) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
        let message = format!("none of the {count} hosts has the labels of the canary, {}", labels.join(", "));
        return Err(Cause::new("canary_labels", message));
    }
    hosts.sort_by_key(|host| (!canaries.contains(&host.id), quarantined.contains(&host.id)));
    let healthy = count - hosts.iter().filter(|host| ill.contains_key(&host.id)).count();
    let missing: usize = missing(rollout, count).into_iter().map(|(_, hosts)| hosts).sum();
    let min_healthy = rollout.min_healthy.map_or(healthy.saturating_sub(missing), |floor| floor.floor_of(count));
    if healthy > 0 && min_healthy >= healthy && healthy == count {
        let message = format!(
            "min_healthy is {min_healthy} and {healthy} of {count} hosts are healthy: not one could be taken; lower min_healthy"
        );
        return Err(Cause::new("min_healthy", message));
    }
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let phases = Phases {
        waves: sizes(&rollout.waves, canaries.len(), count).into_iter().map(number).collect(),
        canary: !canaries.is_empty(),
        max_failures_per_wave: rollout.max_failures_per_wave.map(|budget| number(budget.of(count))),
        min_healthy: number(min_healthy),
        ill,
        current,
        quarantined,
        ..Phases::default()
    };
    Ok((hosts, phases))
}

/// The hosts that get a release without canary and waves, those first that do not serve, and how many have to serve meanwhile: what the hosts do
/// that do not go counts for that.
#[must_use]
pub fn straight(rollout: &Rollout, fleet: Fleet, goes: impl Fn(&Host) -> bool) -> (Vec<Host>, Phases) {
    let Fleet { hosts, ill, quarantined, current } = fleet;
    let count = hosts.len();
    let serves = |host: &Host| !ill.contains_key(&host.id);
    let serving = |hosts: &[Host]| hosts.iter().filter(|host| serves(host)).count();
    let usual = serving(&hosts).saturating_sub(rollout.max_parallel as usize);
    let floor = rollout.min_healthy.map_or(usual, |floor| floor.floor_of(count));
    let (mut hosts, others): (Vec<Host>, Vec<Host>) = hosts.into_iter().partition(goes);
    hosts.sort_by(|a, b| (serves(a), &a.name, &a.id).cmp(&(serves(b), &b.name, &b.id)));
    let min_healthy = u32::try_from(floor.saturating_sub(serving(&others))).unwrap_or(u32::MAX);
    (hosts, Phases { min_healthy, ill, quarantined, current, ..Phases::default() })
}

/// How many hosts each wave has; a target that is reached already is no wave.
fn sizes(waves: &Waves, canary: usize, count: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = (canary > 0).then_some(canary).into_iter().collect();
    let mut done = canary;
    let mut until = |target: usize| {
        if target > done {
            sizes.push(target - done);
            done = target;
        }
    };
    match waves {
        Waves::Targets(targets) => targets.iter().for_each(|target| until(target.size_of(count))),
        Waves::Each(size) => {
            let size = size.size_of(count).max(1);
            (1..).map(|n| canary + n * size).take_while(|reached| *reached < count).for_each(&mut until);
        }
    }
    until(count);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: usize) -> Host {
        let name = format!("web{n:03}");
        let labels = BTreeMap::from([("n".to_owned(), n.to_string())]);
        Host { labels, ..Host::at(name.parse().unwrap(), name) }
    }

    fn fleet(count: usize) -> Fleet {
        Fleet { hosts: (1..=count).rev().map(host).collect(), ..Fleet::default() }
    }

    fn waves(canary: u32, waves: Waves, count: usize) -> Vec<u32> {
        let canary = Canary::Count(Budget::Count(canary));
        phases(&Rollout { canary, waves, ..Rollout::default() }, fleet(count)).unwrap().1.waves
    }

    #[test]
    fn a_list_is_cumulative_and_a_single_value_is_the_size_of_every_wave() {
        let percent = |list: &[u32]| Waves::Targets(list.iter().map(|p| Budget::Percent(*p)).collect());
        assert_eq!(waves(1, percent(&[10, 50, 100]), 10), [1, 4, 5], "10% is the canary");
        assert_eq!(waves(1, percent(&[10, 50, 100]), 100), [1, 9, 40, 50]);
        assert_eq!(waves(0, percent(&[10, 50, 100]), 3), [1, 2]);
        assert_eq!(waves(1, percent(&[100]), 1), [1]);
        assert_eq!(waves(1, Waves::Each(Budget::Percent(25)), 10), [1, 2, 2, 2, 2, 1]);
        assert_eq!(waves(0, Waves::Each(Budget::Count(4)), 10), [4, 4, 2]);
        assert_eq!(waves(5, Waves::Each(Budget::Percent(1)), 7), [5, 1, 1]);
        assert_eq!(waves(9, percent(&[100]), 4), [4]);
    }

    #[test]
    fn the_canary_is_the_first_by_name_or_by_label_and_what_failed_last_comes_last() {
        let quarantined = BTreeSet::from(["web001".parse().unwrap()]);
        let rollout = Rollout { canary: Canary::Count(Budget::Count(1)), ..Rollout::default() };
        let (hosts, _) = phases(&rollout, Fleet { quarantined, ..fleet(3) }).unwrap();
        assert_eq!(hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["web002", "web003", "web001"]);
        let labels = |n: &str| Rollout {
            canary: Canary::Labels(BTreeMap::from([("n".to_owned(), n.to_owned())])),
            ..Rollout::default()
        };
        let (hosts, phases_) = phases(&labels("3"), fleet(3)).unwrap();
        assert_eq!((hosts[0].name.as_str(), phases_.canary), ("web003", true));
        assert_eq!(phases(&labels("9"), fleet(3)).unwrap_err().code, "canary_labels");
    }

    #[test]
    fn straight_goes_first_where_nothing_serves_and_the_others_count() {
        let ill = BTreeMap::from([(host(3).id, "down".to_owned())]);
        let goes = |host: &Host| host.name != "web001";
        let rollout = Rollout { min_healthy: Some(Budget::Count(2)), ..Rollout::default() };
        let (hosts, phases) = straight(&rollout, Fleet { ill, ..fleet(4) }, goes);
        assert_eq!(hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["web003", "web002", "web004"]);
        assert_eq!((phases.min_healthy, phases.waves.len()), (1, 0));
        assert_eq!(straight(&Rollout::default(), fleet(4), |_| true).1.min_healthy, 3);
    }

    #[test]
    fn the_floor_is_what_is_healthy_less_what_is_taken_and_one_that_forbids_all_is_refused() {
        let of = |min_healthy, max_parallel, ill: usize| {
            let ill = (1..=ill).map(|n| (host(n).id, "down".to_owned())).collect();
            let rollout = Rollout { min_healthy, max_parallel, ..Rollout::default() };
            phases(&rollout, Fleet { ill, ..fleet(10) }).map(|(_, phases)| phases.min_healthy)
        };
        assert_eq!(of(None, 3, 0), Ok(7));
        assert_eq!(of(None, 3, 8), Ok(0));
        assert_eq!(of(Some(Budget::Percent(75)), 1, 0), Ok(8));
        assert_eq!(of(Some(Budget::Percent(100)), 1, 0).unwrap_err().code, "min_healthy");
    }
}
