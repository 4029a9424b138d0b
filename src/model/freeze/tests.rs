use jiff::Timestamp;

use super::*;
use crate::time::zone;

fn zones(name: &str) -> TimeZone {
    zone(name).unwrap()
}

fn written(days: &str, from: &str, to: &str, zone: &str) -> Written {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Written { days: some(days), from: some(from), to: some(to), zone: zone.to_owned(), reason: None }
}

fn window(days: &str, from: &str, to: &str, zone: &str) -> Window {
    written(days, from, to, zone).try_into().unwrap()
}

fn at(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

/// Until when it is frozen at a moment, as text.
fn until(windows: &[Window], by_hand: &ByHand, now: &str) -> String {
    match frozen(windows, by_hand, at(now), &zones) {
        None => "open".to_owned(),
        Some(Frozen { until_ms: None, .. }) => "for ever".to_owned(),
        Some(Frozen { until_ms: Some(until), .. }) => Timestamp::from_millisecond(until).unwrap().to_string(),
    }
}

fn of(window: &Window, now: &str) -> String {
    until(std::slice::from_ref(window), &ByHand::default(), now)
}

#[test]
fn a_weekend_passes_the_weeks_end() {
    // In winter Berlin is an hour ahead.
    let weekend = window("", "fri 16:00", "mon 08:00", "Europe/Berlin");
    for (now, then) in [
        ("2026-01-09T14:59:59Z", "open"),
        ("2026-01-09T15:00:00Z", "2026-01-12T07:00:00Z"),
        ("2026-01-11T23:30:00Z", "2026-01-12T07:00:00Z"),
        ("2026-01-12T06:59:59Z", "2026-01-12T07:00:00Z"),
        ("2026-01-12T07:00:00Z", "open"),
    ] {
        assert_eq!(of(&weekend, now), then, "{now}");
    }
    let same_day = window("", "wed 16:00", "wed 08:00", "UTC");
    assert_eq!(of(&same_day, "2026-01-07T15:59:59Z"), "open");
    assert_eq!(of(&same_day, "2026-01-07T16:00:00Z"), "2026-01-14T08:00:00Z");
    assert_eq!(of(&window("", "sat 00:00", "sun 24:00", "UTC"), "2026-01-11T23:59:59Z"), "2026-01-12T00:00:00Z");
}

#[test]
fn nights_pass_midnight_and_days_alone_are_whole() {
    let nights = window("mon-fri", "22:00", "06:00", "UTC");
    for (now, then) in [
        ("2026-01-09T21:59:59Z", "open"),
        ("2026-01-09T22:00:00Z", "2026-01-10T06:00:00Z"),
        ("2026-01-10T05:00:00Z", "2026-01-10T06:00:00Z"),
        // No night begins on Saturday.
        ("2026-01-10T23:00:00Z", "open"),
        ("2026-01-11T23:00:00Z", "open"),
        ("2026-01-12T03:00:00Z", "open"),
        ("2026-01-12T22:00:00Z", "2026-01-13T06:00:00Z"),
    ] {
        assert_eq!(of(&nights, now), then, "{now}");
    }
    // Two whole days in a row are one freeze.
    let weekend = window("sat,sun", "", "", "UTC");
    assert_eq!(of(&weekend, "2026-01-10T00:00:00Z"), "2026-01-12T00:00:00Z");
    assert_eq!(of(&weekend, "2026-01-09T23:59:59Z"), "open");
    assert_eq!(of(&window("fri-mon", "10:00", "24:00", "UTC"), "2026-01-11T10:00:00Z"), "2026-01-12T00:00:00Z");
    assert_eq!(of(&window("", "10:00", "12:00", "UTC"), "2026-01-07T11:00:00Z"), "2026-01-07T12:00:00Z");
}

#[test]
fn a_last_date_is_the_whole_of_that_day() {
    let holidays = window("", "2026-12-20", "2027-01-02", "America/New_York");
    assert_eq!(of(&holidays, "2026-12-20T04:59:59Z"), "open");
    assert_eq!(of(&holidays, "2026-12-20T05:00:00Z"), "2027-01-03T05:00:00Z");
    assert_eq!(of(&holidays, "2027-01-03T04:59:59Z"), "2027-01-03T05:00:00Z");
    assert_eq!(of(&holidays, "2027-01-03T05:00:00Z"), "open");
    let hours = window("", "2026-12-20 16:30", "2026-12-21 08:00:15", "UTC");
    assert_eq!(of(&hours, "2026-12-20T16:30:00Z"), "2026-12-21T08:00:15Z");
}

#[test]
fn where_the_clock_is_set_a_window_lasts_at_least_as_long_as_it_says() {
    // 29 March 2026: 02:00 to 03:00 is not there. 25 October: 02:00 to 03:00 is there twice.
    let gap = window("", "02:30", "04:00", "Europe/Berlin");
    assert_eq!(of(&gap, "2026-03-29T00:29:59Z"), "open");
    assert_eq!(of(&gap, "2026-03-29T00:30:00Z"), "2026-03-29T02:00:00Z");
    let gap = window("", "01:00", "02:30", "Europe/Berlin");
    assert_eq!(of(&gap, "2026-03-29T00:00:00Z"), "2026-03-29T01:30:00Z");
    let fold = window("", "02:30", "02:45", "Europe/Berlin");
    assert_eq!(of(&fold, "2026-10-25T00:29:59Z"), "open");
    assert_eq!(of(&fold, "2026-10-25T00:30:00Z"), "2026-10-25T01:45:00Z");
    assert_eq!(of(&fold, "2026-10-25T01:45:00Z"), "open");
    // Half a year later it is at the same local time.
    let evening = window("", "fri 16:00", "fri 18:00", "Europe/Berlin");
    assert_eq!(of(&evening, "2026-01-09T15:30:00Z"), "2026-01-09T17:00:00Z");
    assert_eq!(of(&evening, "2026-07-10T14:30:00Z"), "2026-07-10T16:00:00Z");
}

#[test]
fn what_follows_without_a_gap_is_one_freeze() {
    let windows = [
        window("", "2026-12-20", "2026-12-24", "UTC"),
        window("", "2026-12-25", "2026-12-25", "UTC"),
        window("", "fri 12:00", "sun 12:00", "UTC"),
    ];
    assert_eq!(until(&windows, &ByHand::default(), "2026-12-22T00:00:00Z"), "2026-12-27T12:00:00Z");
    let all = [window("mon-wed", "", "", "UTC"), window("thu-sun", "", "", "UTC")];
    assert_eq!(until(&all, &ByHand::default(), "2026-12-22T00:00:00Z"), "for ever");
}

fn said(until: Option<&str>) -> Option<Said> {
    Some(Said { by: "ann".to_owned(), reason: None, since_ms: 0, until_ms: until.map(at) })
}

#[test]
fn people_freeze_and_lift() {
    let weekend = [window("", "fri 16:00", "mon 08:00", "UTC")];
    let friday = "2026-01-09T12:00:00Z";
    let by = |frozen, lifted| ByHand { frozen, lifted };
    assert_eq!(until(&[], &by(said(None), None), friday), "for ever");
    assert_eq!(until(&[], &by(said(Some("2026-01-09T13:00:00Z")), None), friday), "2026-01-09T13:00:00Z");
    assert_eq!(until(&[], &by(said(Some(friday)), None), friday), "open", "it is over");
    // Into the window.
    let hand = by(said(Some("2026-01-09T17:00:00Z")), None);
    assert_eq!(until(&weekend, &hand, friday), "2026-01-12T08:00:00Z");
    assert!(matches!(frozen(&weekend, &hand, at(friday), &zones).unwrap().whose, Whose::Hand(_)));
    let lifted = by(None, said(Some("2026-01-12T08:00:00Z")));
    assert_eq!(until(&weekend, &lifted, "2026-01-10T00:00:00Z"), "open");
    assert_eq!(until(&weekend, &lifted, "2026-01-17T00:00:00Z"), "2026-01-19T08:00:00Z", "only this once");
    // Who lifts the file's windows does not lift what another says.
    let both = by(said(Some("2026-01-10T01:00:00Z")), said(Some("2026-01-12T08:00:00Z")));
    assert_eq!(until(&weekend, &both, "2026-01-10T00:00:00Z"), "2026-01-10T01:00:00Z");
    assert_eq!(both.clone().still(at("2026-01-11T00:00:00Z")), lifted);
    assert_eq!(both.still(at("2026-01-12T08:00:00Z")), ByHand::default());
}

#[test]
fn nonsense_is_said() {
    for (days, from, to, key, why) in [
        ("", "", "", "from", "says no time"),
        ("", "16:00", "", "to", "has no end"),
        ("", "", "16:00", "from", "has no beginning"),
        ("", "4pm", "17:00", "from", "\"4pm\" is no time"),
        ("", "16:00", "25:00", "to", "\"25:00\" is no time"),
        ("", "fri 16:00", "08:00", "to", "of one kind"),
        ("", "2026-12-20", "08:00", "to", "of one kind"),
        ("", "2026-12-20", "2026-12-19", "to", "over before it begins"),
        ("", "2026-02-30", "2026-12-19", "from", "is no time"),
        ("", "friday 16:00", "mon 08:00", "from", "is no time"),
        ("fri-sun", "fri 16:00", "mon 08:00", "days", "goes with times of day"),
        ("fry", "", "", "days", "are no days"),
        ("mon-", "", "", "days", "are no days"),
        ("", "00:00", "24:00", "to", "every day"),
        ("mon-sun", "", "", "to", "every day"),
        ("mon-sun", "10:00", "10:00", "to", "every day"),
        ("", "mon 08:00", "mon 08:00", "to", "the whole week"),
        ("", "24:00", "08:00", "from", "is an end"),
        ("", "mon 24:00", "tue 08:00", "from", "is an end"),
    ] {
        let refused = Window::try_from(written(days, from, to, "UTC")).unwrap_err();
        assert!(refused.key == key && refused.message.contains(why), "{days} {from} {to}: {refused:?}");
    }
}

#[test]
fn journals_keep_what_the_author_wrote() {
    let json = r#"{"days":"mon-fri","from":"22:00","to":"06:00","zone":"Europe/Berlin","reason":"nobody is there"}"#;
    let read: Window = serde_json::from_str(json).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), json);
    assert_eq!(read.to_string(), "mon-fri 22:00 to 06:00 Europe/Berlin");
    assert!(serde_json::from_str::<Window>(r#"{"from":"1","to":"2","zone":"UTC"}"#).is_err());
}

/// Windows by chance.
struct Random(crate::sim::Random);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0.below(n)
    }

    fn clock(&mut self) -> String {
        format!("{:02}:{:02}", self.below(24), 15 * self.below(4))
    }

    fn window_in(&mut self, zones: &[&str; 3]) -> Option<Window> {
        let zone = zones[usize::try_from(self.below(3)).unwrap()];
        let day = |random: &mut Self| DAYS[usize::try_from(random.below(7)).unwrap()];
        let written = match self.below(3) {
            0 => {
                let (first, last) = (day(self), day(self));
                let days = match self.below(2) {
                    0 => format!("{first}-{last}"),
                    _ => format!("{first},{last}"),
                };
                written(&days, &self.clock(), &self.clock(), zone)
            }
            1 => {
                let from = format!("{} {}", day(self), self.clock());
                let to = format!("{} {}", day(self), self.clock());
                written("", &from, &to, zone)
            }
            _ => {
                let date = |random: &mut Self| format!("2026-03-{:02} {}", 20 + random.below(12), random.clock());
                written("", &date(self), &date(self), zone)
            }
        };
        Window::try_from(written).ok()
    }
}

/// Whether `window` is on by what it says, minute by minute, without any arithmetic of moments; right where no clock is set.
fn says(window: &Window, now: i64) -> bool {
    let local = Timestamp::from_millisecond(now).unwrap().to_zoned(zones(window.zone())).datetime();
    let minute = |time: Time| i64::from(time.hour()) * 60 + i64::from(time.minute());
    let week = |day: Weekday, time: Time| i64::from(day.to_monday_zero_offset()) * 1440 + minute(time);
    let here = week(local.weekday(), local.time());
    match &window.when {
        When::Dated { from, to } => *from <= local && local < *to,
        When::Weekly { from: (day, from), days, to } => {
            let begin = week(*day, *from);
            let length = i64::from(*days) * 1440 + minute(*to) - minute(*from);
            (here - begin).rem_euclid(7 * 1440) < length
        }
        When::Daily { on, from, midnights, to } => (0..7).any(|day| {
            let begin = day * 1440 + minute(*from);
            let length = i64::from(*midnights) * 1440 + minute(*to) - minute(*from);
            on[usize::try_from(day).unwrap()] && (here - begin).rem_euclid(7 * 1440) < length
        }),
    }
}

#[test]
fn at_every_moment_it_is_what_the_windows_say() {
    let mut random = Random(crate::sim::Random::of(1, ""));
    let mut seen = 0;
    for _ in 0..300 {
        let mut windows = Vec::new();
        for _ in 0..=random.below(3) {
            windows.extend(random.window_in(&["UTC", "Asia/Kolkata", "Etc/GMT+8"]));
        }
        let now = at("2026-03-18T00:00:00Z") + i64::try_from(random.below(20 * 1440)).unwrap() * 60_000;
        let by_hand = ByHand::default();
        let expected = windows.iter().any(|window| says(window, now));
        let found = frozen(&windows, &by_hand, now, &zones);
        assert_eq!(found.is_some(), expected, "{windows:?} at {now}");
        if let Some(Frozen { until_ms: Some(until), .. }) = found {
            seen += 1;
            // To the minute: all of it until then, and not a moment longer.
            for minute in (now..until).step_by(60_000).take(1500) {
                assert!(windows.iter().any(|window| says(window, minute)), "{windows:?} at {minute} until {until}");
            }
            assert!(!windows.iter().any(|window| says(window, until)), "{windows:?} until {until}");
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn also_where_the_clock_is_set_what_is_told_holds() {
    let mut random = Random(crate::sim::Random::of(2, ""));
    for _ in 0..60 {
        let mut windows = Vec::new();
        for _ in 0..=random.below(3) {
            windows.extend(random.window_in(&["Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns"]));
        }
        // Berlin's clocks go forward on 29 March, Lord Howe's back on 5 April.
        let now = at("2026-03-27T00:00:00Z") + i64::try_from(random.below(12 * 1440)).unwrap() * 60_000;
        let by_hand = ByHand::default();
        let Some(Frozen { until_ms: Some(until), .. }) = frozen(&windows, &by_hand, now, &zones) else { continue };
        assert!(until > now);
        assert_eq!(frozen(&windows, &by_hand, until, &zones), None, "{windows:?} at {now}");
        for moment in (now..until).step_by(29 * 60_000).chain([until - 1]) {
            let then = frozen(&windows, &by_hand, moment, &zones).map(|frozen| frozen.until_ms);
            assert_eq!(then, Some(Some(until)), "{windows:?} at {now} and {moment}");
        }
    }
}
