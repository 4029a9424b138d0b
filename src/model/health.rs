//! The verdict over a host's health: a pure fold of what probes saw.
//!
//! A look sees the present only. What has to hold over time is decided here, with what the watch remembers: how often a unit had been
//! restarted when the watch began, and which release the host is to run.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    cause::Cause,
    ids::{ReleaseId, Sha},
    pipeline::{Check, Health},
    release::Release,
};

/// What one look at one check saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Whether it was as it should be, as far as one look can tell.
    pub good: bool,
    /// What was seen, one line: `200 in 12 ms`, `connection refused`, `exit 1: ...`.
    pub seen: String,
    /// What only the watch can judge.
    pub fact: Option<Fact>,
}

/// What a look found out that has to be held against something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A unit or container as it is now.
    Process(Incarnation),
    /// The version a host reports.
    Version(String),
    /// It is bad, and looking again would not make it better.
    Hopeless,
}

/// One life of a unit or container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// How often it was started again because it had ended; counted since somebody started it.
    pub restarts: u64,
    /// Changes with every start: the invocation of a unit, id and start time of a container; empty while there is none.
    pub id: String,
}

/// What a host is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployed {
    /// The release's id.
    pub release: ReleaseId,
    /// Its commit.
    pub revision: Sha,
    /// The commit that was live before, where it is another one.
    pub previous: Option<Sha>,
}

impl Deployed {
    /// `release`, over what was there before.
    #[must_use]
    pub fn new(release: &Release, previous: Option<&Release>) -> Self {
        let revision = release.commit.sha.clone();
        let previous = previous.map(|previous| previous.commit.sha.clone()).filter(|previous| *previous != revision);
        Deployed { release: release.id.clone(), revision, previous }
    }

    /// What is wrong with the version that a host reports, if anything: it must be the release's id, its commit, or at least
    /// [`SHORTEST`] digits of it.
    ///
    /// # Errors
    /// `reports a1b2c3d, deployed is ...`.
    pub fn check(&self, reported: &str) -> Result<(), String> {
        let reported = reported.trim();
        let begins = |sha: &Sha| sha.as_str().starts_with(&reported.to_ascii_lowercase());
        let shown = if reported.is_empty() { "nothing" } else { reported };
        let wrong = |why: &str| {
            let (short, release) = (&self.revision.as_str()[..12], self.release.as_str());
            let release = if release == short { String::new() } else { format!(" (release {release})") };
            Err(format!("reports {shown}, deployed is {short}{release}{why}"))
        };
        if reported == self.release.as_str() {
            return Ok(());
        }
        if !begins(&self.revision) || reported.is_empty() {
            let before = self.previous.as_ref().is_some_and(|previous| reported.len() >= SHORTEST && begins(previous));
            return wrong(if before { ": it still runs what was live before" } else { "" });
        }
        if reported.len() < SHORTEST {
            return wrong(&format!(": {} digits are too few to tell, give {SHORTEST}", reported.len()));
        }
        match &self.previous {
            Some(previous) if begins(previous) => {
                wrong(&format!(": that is also the beginning of {previous}, which was live before"))
            }
            _ => Ok(()),
        }
    }
}

/// The fewest digits of a commit that say which one it is; what `git rev-parse --short` prints.
pub const SHORTEST: usize = 7;

/// The full name of a unit: a name without its kind is a service, as `systemctl` takes it.
#[must_use]
pub fn full_unit(name: &str) -> String {
    const KINDS: [&str; 7] = [".service", ".socket", ".timer", ".target", ".path", ".mount", ".scope"];
    if KINDS.iter().any(|kind| name.ends_with(kind)) { name.to_owned() } else { format!("{name}.service") }
}

/// A watch: healthy means every check good, without a break, for `min_healthy_time`, before `healthy_deadline`.
#[derive(Debug, Clone)]
pub struct Watch {
    checks: Vec<Check>,
    min_healthy_time: Duration,
    deadline: Duration,
    deployed: Option<Deployed>,
    good_since: Option<Duration>,
    looks: u32,
    last_bad: Option<(Duration, String)>,
    /// By the check's place: what was seen there first, or since somebody restarted it.
    processes: BTreeMap<usize, Incarnation>,
    evidence: Vec<String>,
}

/// What a look led to.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Look again.
    Open,
    /// Healthy for long enough.
    Healthy,
    /// Not in time, or for good.
    Unhealthy(Cause),
}

/// What a sight means to a watch.
enum Judged {
    Good(String),
    Bad(String),
    /// Bad, and looking again would not make it better.
    Hopeless(String),
}

impl Watch {
    /// A watch that begins now, over a host that is to run `deployed`.
    #[must_use]
    pub fn new(health: &Health, deployed: Option<Deployed>) -> Self {
        Watch {
            checks: health.checks.clone(),
            min_healthy_time: Duration::from_millis(health.min_healthy_time_ms),
            deadline: Duration::from_millis(health.healthy_deadline_ms),
            deployed,
            good_since: None,
            looks: 0,
            last_bad: None,
            processes: BTreeMap::new(),
            evidence: Vec::new(),
        }
    }

    /// The same for one whose `processes` were seen before.
    #[must_use]
    pub fn over(self, processes: &[(usize, Incarnation)]) -> Self {
        Watch { processes: processes.iter().cloned().collect(), ..self }
    }

    /// What later looks at units and containers are held against, by the check's place.
    #[must_use]
    pub fn processes(&self) -> Vec<(usize, Incarnation)> {
        self.processes.clone().into_iter().collect()
    }

    /// One that goes on `elapsed` after it began: what was good before is forgotten, so there is time to see it again.
    #[must_use]
    pub fn again(health: &Health, deployed: Option<Deployed>, elapsed: Duration) -> Self {
        let least = Duration::from_millis(health.min_healthy_time_ms + 3 * health.interval_ms);
        let watch = Watch::new(health, deployed);
        Watch { deadline: watch.deadline.max(elapsed + least), ..watch }
    }

    /// What was seen last, one line a check.
    #[must_use]
    pub fn evidence(&self) -> &[String] {
        &self.evidence
    }

    /// Folds one round of looks that ended `elapsed` after the watch began: what each check saw, in their order, or why none could look.
    pub fn see(&mut self, elapsed: Duration, round: Result<&[Sight], String>) -> Verdict {
        let bad = self.round(round);
        let hopeless = bad.as_ref().is_some_and(|(_, hopeless)| *hopeless);
        match bad {
            Some((seen, _)) => {
                self.good_since = None;
                if hopeless {
                    let message = format!("{seen} (after {} looks)", self.looks);
                    return Verdict::Unhealthy(self.unhealthy(message, seen));
                }
                self.last_bad = Some((elapsed, seen));
            }
            None => {
                let since = *self.good_since.get_or_insert(elapsed);
                if elapsed.saturating_sub(since) >= self.min_healthy_time {
                    return Verdict::Healthy;
                }
            }
        }
        // A host that began to be well before the deadline may finish its healthy time: a deadline is for becoming healthy.
        let limit = if self.good_since.is_some() { self.deadline + self.min_healthy_time } else { self.deadline };
        if elapsed < limit {
            return Verdict::Open;
        }
        let seen =
            self.last_bad.as_ref().map_or("it was never good for long enough".to_owned(), |(_, seen)| seen.clone());
        let message = format!(
            "not healthy within {} (after {} looks); last seen: {seen}",
            crate::time::Span(self.deadline),
            self.looks
        );
        Verdict::Unhealthy(self.unhealthy(message, seen))
    }

    /// The same without a verdict: what was bad, and whether looking again would not make it better.
    pub fn round(&mut self, round: Result<&[Sight], String>) -> Option<(String, bool)> {
        self.looks += 1;
        let mut bad: Option<(String, bool)> = None;
        self.evidence.clear();
        let sights = match round {
            Ok(sights) => sights,
            Err(seen) => {
                self.evidence.push(seen.clone());
                return Some((seen, false));
            }
        };
        for (n, sight) in sights.iter().enumerate() {
            let name = self.checks.get(n).map(Check::name).unwrap_or_default();
            let judged = self.judge(n, sight);
            let (Judged::Good(seen) | Judged::Bad(seen) | Judged::Hopeless(seen)) = &judged;
            let seen = format!("{name}: {seen}");
            self.evidence.push(seen.clone());
            match (judged, &bad) {
                (Judged::Bad(_), None) => bad = Some((seen, false)),
                // What will not pass is what there is to say, whatever else was bad.
                (Judged::Hopeless(_), None | Some((_, false))) => bad = Some((seen, true)),
                _ => {}
            }
        }
        bad
    }

    fn unhealthy(&self, message: String, seen: String) -> Cause {
        Cause::new("unhealthy", message).with("looks", self.looks).with("last_seen", seen)
    }

    fn judge(&mut self, n: usize, sight: &Sight) -> Judged {
        let seen = sight.seen.clone();
        match &sight.fact {
            Some(Fact::Process(now)) => self.alive(n, sight.good, seen, now),
            Some(Fact::Version(reported)) if sight.good => match self.deployed.as_ref().map(|d| d.check(reported)) {
                Some(Err(why)) => Judged::Bad(why),
                Some(Ok(())) | None => Judged::Good(seen),
            },
            Some(Fact::Hopeless) => Judged::Hopeless(seen),
            _ if sight.good => Judged::Good(seen),
            _ => Judged::Bad(seen),
        }
    }

    /// A restart by itself since the watch began is a crash, and a crash is what the watch is there to see: one that happens now and
    /// then would else find a quiet moment of `min_healthy_time` before the deadline. Somebody else's restart only begins the window anew.
    fn alive(&mut self, n: usize, good: bool, seen: String, now: &Incarnation) -> Judged {
        let judged = |seen| if good { Judged::Good(seen) } else { Judged::Bad(seen) };
        let first = self.processes.get(&n);
        let times = first.map_or(0, |first| now.restarts.saturating_sub(first.restarts));
        if times > 0 {
            let times = if times == 1 { "once".to_owned() } else { format!("{times} times") };
            return Judged::Hopeless(format!("it ended and was restarted {times} since it was watched; now {seen}"));
        }
        let Some(first) = first.filter(|first| !first.id.is_empty()) else {
            self.processes.insert(n, now.clone());
            return judged(seen);
        };
        if now.id != first.id && !now.id.is_empty() {
            self.processes.insert(n, now.clone());
            return Judged::Bad(format!("somebody restarted it meanwhile; now {seen}"));
        }
        judged(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pipeline::{Version, VersionFrom};

    const SHA: &str = "a1b2c3d4e5f60718293a4b5c6d7e8f9012345678";
    const BEFORE: &str = "a1b2c3d000000000000000000000000000000000";

    fn deployed(previous: Option<&str>) -> Deployed {
        Deployed {
            release: "a1b2c3d4e5f6.2".parse().unwrap(),
            revision: SHA.parse().unwrap(),
            previous: previous.map(|sha| sha.parse().unwrap()),
        }
    }

    fn health() -> Health {
        let ms = |s: u64| s * 1000;
        let version = Version { from: VersionFrom::Command("cat".to_owned()), json: None };
        Health {
            checks: vec![Check::Service("shop.service".to_owned()), Check::Version(version)],
            min_healthy_time_ms: ms(10),
            healthy_deadline_ms: ms(60),
            interval_ms: ms(1),
            timeout_ms: ms(5),
        }
    }

    fn watch() -> Watch {
        Watch::new(&health(), Some(deployed(None)))
    }

    fn s(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    const GOOD: Result<&[Sight], String> = Ok(&[]);

    fn bad(seen: &str) -> Result<&'static [Sight], String> {
        Err(seen.to_owned())
    }

    fn unit(good: bool, restarts: u64, id: &str) -> Sight {
        let seen = if good { "active (running)" } else { "activating (auto-restart)" };
        let now = Incarnation { restarts, id: id.to_owned() };
        Sight { good, seen: seen.to_owned(), fact: Some(Fact::Process(now)) }
    }

    fn version(reported: &str) -> Sight {
        Sight { good: true, seen: format!("reports {reported}"), fact: Some(Fact::Version(reported.to_owned())) }
    }

    fn last_seen(verdict: Verdict) -> String {
        let Verdict::Unhealthy(cause) = verdict else { panic!("{verdict:?}") };
        assert_eq!(cause.code, "unhealthy");
        cause.facts["last_seen"].as_str().unwrap().to_owned()
    }

    #[test]
    fn good_without_a_break_is_healthy() {
        let mut watch = watch();
        assert_eq!(watch.see(s(1), GOOD), Verdict::Open);
        assert_eq!(watch.see(s(10), GOOD), Verdict::Open);
        assert_eq!(watch.see(s(11), GOOD), Verdict::Healthy);
    }

    #[test]
    fn a_break_starts_the_window_anew() {
        let mut watch = watch();
        watch.see(s(1), GOOD);
        watch.see(s(9), bad("connection refused"));
        assert_eq!(watch.see(s(10), GOOD), Verdict::Open);
        assert_eq!(watch.see(s(19), GOOD), Verdict::Open);
        assert_eq!(watch.see(s(20), GOOD), Verdict::Healthy);
    }

    #[test]
    fn the_deadline_ends_it_and_says_what_was_seen() {
        let mut watch = watch();
        assert_eq!(watch.see(s(59), bad("500 in 3 ms")), Verdict::Open);
        let Verdict::Unhealthy(cause) = watch.see(s(60), bad("500 in 3 ms")) else { panic!("open") };
        assert!(cause.message.contains("within 1m") && cause.message.contains("500 in 3 ms"), "{cause}");
        assert_eq!(watch.evidence(), ["500 in 3 ms"]);
    }

    #[test]
    fn one_that_got_well_just_before_the_deadline_may_finish_but_a_flapping_one_ends() {
        let mut late = watch();
        late.see(s(59), GOOD);
        assert_eq!(late.see(s(65), GOOD), Verdict::Open);
        assert_eq!(late.see(s(69), GOOD), Verdict::Healthy);
        let mut flapping = watch();
        flapping.see(s(59), GOOD);
        assert!(matches!(flapping.see(s(61), bad("refused")), Verdict::Unhealthy(_)));
    }

    #[test]
    fn a_unit_that_restarts_by_itself_is_unhealthy_at_once_however_active_it_looks() {
        let mut watch = watch();
        assert_eq!(watch.see(s(1), Ok(&[unit(true, 4, "a")])), Verdict::Open);
        let verdict = watch.see(s(2), Ok(&[unit(true, 5, "b"), version("0000000")]));
        assert_eq!(
            last_seen(verdict),
            "service shop.service: it ended and was restarted once since it was watched; now active (running)"
        );
        assert_eq!(watch.evidence().len(), 2, "{:?}", watch.evidence());
        // What is merely bad does not hide it.
        let mut both = Watch::new(&health(), None);
        both.see(s(1), Ok(&[unit(true, 0, "a")]));
        let sights = [unit(false, 3, "d"), version("0000000")];
        assert!(last_seen(both.see(s(2), Ok(&sights))).contains("restarted 3 times"));
    }

    #[test]
    fn one_that_restarts_while_nobody_looks_is_unhealthy_also_to_another_life_of_the_daemon() {
        let mut first = watch();
        assert_eq!(first.see(s(1), Ok(&[unit(true, 2, "a")])), Verdict::Open);
        // The daemon is restarted, and meanwhile the unit: what is seen now is calm, and would stay so.
        let mut next = Watch::again(&health(), Some(deployed(None)), s(5)).over(&first.processes());
        assert!(last_seen(next.see(s(5), Ok(&[unit(true, 3, "b")]))).contains("restarted once since it was watched"));
        // One that nothing happened to goes on, and somebody else's restart begins the window anew.
        let mut next = Watch::again(&health(), Some(deployed(None)), s(5)).over(&first.processes());
        assert_eq!(next.see(s(5), Ok(&[unit(true, 2, "a")])), Verdict::Open);
        assert_eq!(next.see(s(6), Ok(&[unit(true, 0, "c")])), Verdict::Open);
        assert!(next.evidence()[0].contains("somebody restarted it meanwhile"), "{:?}", next.evidence());
        assert_eq!(next.processes(), [(0, Incarnation { restarts: 0, id: "c".to_owned() })]);
        // It had not started yet when it was looked at first, and has crashed since.
        let mut starting = watch();
        assert_eq!(starting.see(s(0), Ok(&[unit(false, 0, "")])), Verdict::Open);
        assert!(last_seen(starting.see(s(1), Ok(&[unit(true, 1, "b")]))).contains("restarted once"));
    }

    #[test]
    fn a_restart_by_somebody_else_begins_the_window_anew() {
        let mut watch = watch();
        let (first, second) = ([unit(true, 2, "a")], [unit(true, 0, "b")]);
        assert_eq!(watch.see(s(0), Ok(&first)), Verdict::Open);
        assert_eq!(watch.see(s(9), Ok(&second)), Verdict::Open);
        assert_eq!(watch.evidence(), ["service shop.service: somebody restarted it meanwhile; now active (running)"]);
        assert_eq!(watch.see(s(10), Ok(&second)), Verdict::Open);
        assert_eq!(watch.see(s(19), Ok(&second)), Verdict::Open);
        assert_eq!(watch.see(s(20), Ok(&second)), Verdict::Healthy);
    }

    #[test]
    fn a_unit_that_was_not_there_yet_has_not_been_restarted() {
        let mut watch = watch();
        let on = [unit(true, 0, "a")];
        assert_eq!(watch.see(s(0), Ok(&[unit(false, 0, "")])), Verdict::Open);
        assert_eq!(watch.see(s(1), Ok(&on)), Verdict::Open);
        assert_eq!(watch.see(s(11), Ok(&on)), Verdict::Healthy);
        // One that is gone for a moment comes back as another.
        assert_eq!(watch.see(s(12), Ok(&[unit(false, 0, "")])), Verdict::Open);
        assert_eq!(watch.see(s(13), Ok(&[unit(true, 0, "b")])), Verdict::Open);
        assert!(watch.evidence()[0].contains("somebody restarted it"), "{:?}", watch.evidence());
    }

    #[test]
    fn a_look_that_could_not_be_taken_says_nothing_about_restarts() {
        let mut watch = watch();
        let (on, none) = ([unit(true, 1, "a")], Sight { good: false, seen: "no answer".to_owned(), fact: None });
        watch.see(s(0), Ok(&on));
        watch.see(s(1), Ok(&[none]));
        assert_eq!(watch.see(s(2), Ok(&on)), Verdict::Open);
        assert_eq!(watch.see(s(12), Ok(&on)), Verdict::Healthy);
    }

    #[test]
    fn the_wrong_version_is_bad_until_it_is_the_right_one() {
        let mut watch = watch();
        let sights = |reported: &str| [unit(true, 0, "a"), version(reported)];
        assert_eq!(watch.see(s(0), Ok(&sights("0123456"))), Verdict::Open);
        assert_eq!(watch.evidence()[1], "version: reports 0123456, deployed is a1b2c3d4e5f6 (release a1b2c3d4e5f6.2)");
        assert_eq!(watch.see(s(1), Ok(&sights("a1b2c3d"))), Verdict::Open);
        assert_eq!(watch.see(s(11), Ok(&sights("a1b2c3d"))), Verdict::Healthy);
    }

    #[test]
    fn versions_are_the_release_the_commit_or_enough_of_it() {
        for right in [SHA, "a1b2c3d", "A1B2C3D4", "a1b2c3d4e5f6", "a1b2c3d4e5f6.2", " a1b2c3d\n"] {
            assert_eq!(deployed(None).check(right), Ok(()), "{right}");
        }
        for (wrong, why) in [
            ("", "reports nothing, deployed is a1b2c3d4e5f6"),
            ("a1b2c3", "6 digits are too few"),
            ("a1b2c3e", "reports a1b2c3e, deployed is"),
            ("a1b2c3d4e5f6.3", "reports a1b2c3d4e5f6.3"),
            ("v1.2", "reports v1.2"),
            (&format!("{SHA}0"), "deployed is"),
        ] {
            let said = deployed(None).check(wrong).unwrap_err();
            assert!(said.contains(why), "{wrong}: {said}");
        }
        let said = deployed(Some(BEFORE)).check("a1b2c3d").unwrap_err();
        assert!(said.contains("also the beginning of a1b2c3d0000"), "{said}");
        assert_eq!(deployed(Some(BEFORE)).check("a1b2c3d4"), Ok(()));
        let said = deployed(Some(BEFORE)).check("a1b2c3d0").unwrap_err();
        assert!(said.ends_with("it still runs what was live before"), "{said}");
    }
}
