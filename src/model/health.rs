//! The verdict over a host's health: a pure fold of what probes saw.

use std::time::Duration;

use super::{cause::Cause, pipeline::Health};

/// A watch: healthy means every check good, without a break, for `min_healthy_time`, before `healthy_deadline`.
#[derive(Debug, Clone)]
pub struct Watch {
    min_healthy_time: Duration,
    deadline: Duration,
    good_since: Option<Duration>,
    looks: u32,
    last_bad: Option<(Duration, String)>,
}

/// What a look led to.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Look again.
    Open,
    /// Healthy for long enough.
    Healthy,
    /// Not in time.
    Unhealthy(Cause),
}

impl Watch {
    /// A watch that begins now.
    #[must_use]
    pub fn new(health: &Health) -> Self {
        Watch {
            min_healthy_time: Duration::from_millis(health.min_healthy_time_ms),
            deadline: Duration::from_millis(health.healthy_deadline_ms),
            good_since: None,
            looks: 0,
            last_bad: None,
        }
    }

    /// One that goes on `elapsed` after it began: what was seen before is forgotten, so there is time to see it again.
    #[must_use]
    pub fn again(health: &Health, elapsed: Duration) -> Self {
        let least = Duration::from_millis(health.min_healthy_time_ms + 3 * health.interval_ms);
        let watch = Watch::new(health);
        Watch { deadline: watch.deadline.max(elapsed + least), ..watch }
    }

    /// Folds one round of looks that ended `elapsed` after the watch began; `bad` is what the first bad check saw, with its name.
    pub fn see(&mut self, elapsed: Duration, bad: Option<String>) -> Verdict {
        self.looks += 1;
        match bad {
            Some(seen) => {
                self.good_since = None;
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
        Verdict::Unhealthy(Cause::new("unhealthy", message).with("looks", self.looks).with("last_seen", seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        let ms = |s: u64| s * 1000;
        Watch::new(&Health {
            checks: Vec::new(),
            min_healthy_time_ms: ms(10),
            healthy_deadline_ms: ms(60),
            interval_ms: ms(1),
            timeout_ms: ms(5),
        })
    }

    fn s(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn good_without_a_break_is_healthy() {
        let mut watch = watch();
        assert_eq!(watch.see(s(1), None), Verdict::Open);
        assert_eq!(watch.see(s(10), None), Verdict::Open);
        assert_eq!(watch.see(s(11), None), Verdict::Healthy);
    }

    #[test]
    fn a_break_starts_the_window_anew() {
        let mut watch = watch();
        watch.see(s(1), None);
        watch.see(s(9), Some("connection refused".into()));
        assert_eq!(watch.see(s(10), None), Verdict::Open);
        assert_eq!(watch.see(s(19), None), Verdict::Open);
        assert_eq!(watch.see(s(20), None), Verdict::Healthy);
    }

    #[test]
    fn the_deadline_ends_it_and_says_what_was_seen() {
        let mut watch = watch();
        assert_eq!(watch.see(s(59), Some("500 in 3 ms".into())), Verdict::Open);
        let Verdict::Unhealthy(cause) = watch.see(s(60), Some("500 in 3 ms".into())) else { panic!("open") };
        assert!(cause.message.contains("within 1m") && cause.message.contains("500 in 3 ms"), "{cause}");
    }

    #[test]
    fn one_that_got_well_just_before_the_deadline_may_finish_but_a_flapping_one_ends() {
        let mut late = watch();
        late.see(s(59), None);
        assert_eq!(late.see(s(65), None), Verdict::Open);
        assert_eq!(late.see(s(69), None), Verdict::Healthy);
        let mut flapping = watch();
        flapping.see(s(59), None);
        assert!(matches!(flapping.see(s(61), Some("refused".into())), Verdict::Unhealthy(_)));
    }
}
