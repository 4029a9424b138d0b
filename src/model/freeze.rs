//! Times in which nothing new is deployed: windows of the project's file, and what people say by hand. Pure: windows and the wall time in,
//! until when and by whom out.
//!
//! A window says local times of its zone. Where the clock is set forward or back, a window lasts at least as long as it says: it begins at
//! the earlier and ends at the later of the moments that its times may mean.

use std::fmt;

use jiff::{
    ToSpan as _,
    civil::{Date, DateTime, Time, Weekday},
    tz::TimeZone,
};
use serde::{Deserialize, Serialize};

/// A window as it is written, in the Lua file and in journals.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Written {
    /// `mon-fri`, `sat,sun`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub days: Option<String>,
    /// `16:00`, `fri 16:00`, `2026-12-20` or `2026-12-20 16:00`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<String>,
    /// The same kind; a date alone is the whole of that day.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to: Option<String>,
    /// `Europe/Berlin`, `UTC`.
    pub zone: String,
    /// For those who wait.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// A window that makes sense; its zone is looked up when it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Window {
    written: Written,
    when: When,
}

/// Why a window makes none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Nonsense {
    /// The key that is to be changed: `days`, `from` or `to`.
    pub key: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// When a window is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum When {
    /// Once.
    Dated { from: DateTime, to: DateTime },
    /// From one moment of the week to another.
    Weekly { from: (Weekday, Time), days: i32, to: Time },
    /// On each of these days, Monday first, for so many midnights.
    Daily { on: [bool; 7], from: Time, midnights: i32, to: Time },
}

/// One end of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Day(Date),
    Moment(DateTime),
    Week(Weekday, Clock),
    Clock(Clock),
}

/// A time of day, and whether it is `24:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Clock {
    midnights: i32,
    time: Time,
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

fn weekday(text: &str) -> Option<Weekday> {
    let at = DAYS.iter().position(|day| *day == text)?;
    Weekday::from_monday_zero_offset(i8::try_from(at).ok()?).ok()
}

fn clock(text: &str) -> Option<Clock> {
    if text == "24:00" {
        return Some(Clock { midnights: 1, time: Time::midnight() });
    }
    let digits = text.len() == 5 || text.len() == 8;
    let plain = digits && text.bytes().all(|b| b.is_ascii_digit() || b == b':');
    let time = plain.then(|| text.parse().ok()).flatten()?;
    Some(Clock { midnights: 0, time })
}

fn date(text: &str) -> Option<Date> {
    (text.len() == 10).then(|| text.parse().ok()).flatten()
}

impl Clock {
    fn on(self, date: Date) -> Option<DateTime> {
        Some(date.checked_add(self.midnights.days()).ok()?.to_datetime(self.time))
    }
}

impl End {
    fn read(text: &str) -> Option<End> {
        if let Some(clock) = clock(text) {
            return Some(End::Clock(clock));
        }
        let (first, rest) = match text.split_once([' ', 'T']) {
            None => return date(text).map(End::Day),
            Some(both) => both,
        };
        match weekday(first) {
            Some(day) => Some(End::Week(day, clock(rest)?)),
            None => Some(End::Moment(clock(rest)?.on(date(first)?)?)),
        }
    }
}

fn wrong<T>(key: &'static str, message: impl Into<String>) -> Result<T, Nonsense> {
    Err(Nonsense { key, message: message.into() })
}

/// `mon-fri`, `sat,sun`, `fri-mon,wed`: Monday first.
fn days(text: &str) -> Result<[bool; 7], Nonsense> {
    let mut on = [false; 7];
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (weekday(first.trim()), weekday(last.trim())) else {
            return wrong("days", format!("{text:?} are no days: write them as in \"mon-fri\" or \"sat,sun\""));
        };
        let mut day = first;
        loop {
            if let Some(on) = on.get_mut(usize::try_from(day.to_monday_zero_offset()).unwrap_or(0)) {
                *on = true;
            }
            if day == last {
                break;
            }
            day = day.next();
        }
    }
    Ok(on)
}

impl TryFrom<Written> for Window {
    type Error = Nonsense;

    fn try_from(written: Written) -> Result<Self, Nonsense> {
        let end = |key: &'static str, text: &Option<String>| {
            match text.as_deref() {
            None => Ok(None),
            Some(text) => End::read(text).map(Some).map_or_else(
                || {
                    wrong(
                        key,
                        format!(
                            "{text:?} is no time: write \"16:00\", \"fri 16:00\", \"2026-12-20\" or \"2026-12-20 16:00\""
                        ),
                    )
                },
                Ok,
            ),
        }
        };
        let (from, to) = (end("from", &written.from)?, end("to", &written.to)?);
        let midnight = Clock { midnights: 0, time: Time::midnight() };
        let dated = |from: DateTime, to: DateTime| match from < to {
            true => Ok(When::Dated { from, to }),
            false => wrong("to", "it is over before it begins: \"to\" must be later than \"from\""),
        };
        let midnight_of = |day: Date| day.to_datetime(Time::midnight());
        // The whole of the last day.
        let end_of = |day: Date| midnight_of(day.tomorrow().unwrap_or(day));
        let when = match (from, to) {
            (None, None) if written.days.is_none() => {
                return wrong("from", "it says no time: give from and to, or days");
            }
            (Some(_), None) => return wrong("to", "\"from\" without \"to\" has no end: give both"),
            (None, Some(_)) => return wrong("from", "\"to\" without \"from\" has no beginning: give both"),
            (Some(End::Day(from)), Some(End::Day(to))) => dated(midnight_of(from), end_of(to))?,
            (Some(End::Day(from)), Some(End::Moment(to))) => dated(midnight_of(from), to)?,
            (Some(End::Moment(from)), Some(End::Day(to))) => dated(from, end_of(to))?,
            (Some(End::Moment(from)), Some(End::Moment(to))) => dated(from, to)?,
            (Some(End::Week(day, from)), Some(End::Week(last, to))) => {
                if from.midnights > 0 {
                    return wrong("from", "\"24:00\" is an end: begin at \"00:00\" of the next day");
                }
                let mut days = i32::from(day.until(last)) + to.midnights;
                if days == 0 && to.time <= from.time {
                    days = 7;
                }
                if days == 7 && to.time >= from.time {
                    return wrong("to", "it is the whole week, so nothing would ever be deployed");
                }
                When::Weekly { from: (day, from.time), days, to: to.time }
            }
            (Some(End::Clock(Clock { midnights: 1, .. })), _) => {
                return wrong("from", "\"24:00\" is an end: begin at \"00:00\"");
            }
            (Some(End::Clock(_)), Some(End::Clock(_))) | (None, None) => {
                let clock = |end: Option<End>, or: Clock| match end {
                    Some(End::Clock(clock)) => clock,
                    _ => or,
                };
                let (from, to) = (clock(from, midnight), clock(to, Clock { midnights: 1, ..midnight }));
                // One that is not later on the same day is meant on the next.
                let midnights = if to <= from { 1 } else { to.midnights };
                let on = written.days.as_deref().map_or(Ok([true; 7]), days)?;
                if on == [true; 7] && midnights == 1 && to.time >= from.time {
                    return wrong("to", "it is every day from end to end, so nothing would ever be deployed");
                }
                When::Daily { on, from: from.time, midnights, to: to.time }
            }
            _ => {
                return wrong(
                    "to",
                    "\"from\" and \"to\" must be of one kind: both times of day, both with a day of the week, or both with a date",
                );
            }
        };
        if written.days.is_some() && !matches!(when, When::Daily { .. }) {
            return wrong("days", "\"days\" goes with times of day: \"from\" and \"to\" say the days already");
        }
        Ok(Window { written, when })
    }
}

impl From<Window> for Written {
    fn from(window: Window) -> Written {
        window.written
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Written { days, from, to, zone, .. } = &self.written;
        if let Some(days) = days {
            write!(f, "{days} ")?;
        }
        if let (Some(from), Some(to)) = (from, to) {
            write!(f, "{from} to {to} ")?;
        }
        f.write_str(zone)
    }
}

impl Window {
    /// The zone its times are of.
    #[must_use]
    pub fn zone(&self) -> &str {
        &self.written.zone
    }

    /// Why, in the author's words.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.written.reason.as_deref()
    }

    /// Whether it comes again and again.
    #[must_use]
    pub fn recurs(&self) -> bool {
        !matches!(self.when, When::Dated { .. })
    }

    /// When it ends, if it is on at `now`; both wall ms.
    fn end(&self, now: i64, zone: &TimeZone) -> Option<i64> {
        match &self.when {
            When::Dated { from, to } => on(now, *from, *to, zone),
            When::Weekly { from: (day, from), days, to } => {
                of_days(now, zone, 8, |date| (date.weekday() == *day).then_some((*from, *days, *to)))
            }
            When::Daily { on, from, midnights, to } => of_days(now, zone, 2, |date| {
                let index = usize::try_from(date.weekday().to_monday_zero_offset()).ok()?;
                on.get(index)?.then_some((*from, *midnights, *to))
            }),
        }
    }
}

/// The end of what lasts from `from` to `to`, if that is on.
fn on(now: i64, from: DateTime, to: DateTime, zone: &TimeZone) -> Option<i64> {
    // Beyond what a clock can say it is not on.
    let from = zone.to_ambiguous_timestamp(from).earlier().ok()?.as_millisecond();
    let to = zone.to_ambiguous_timestamp(to).later().ok()?.as_millisecond();
    (from <= now && now < to).then_some(to)
}

/// The latest end of those on that began on one of the last `back` days.
fn of_days(now: i64, zone: &TimeZone, back: i32, begins: impl Fn(Date) -> Option<(Time, i32, Time)>) -> Option<i64> {
    let today = jiff::Timestamp::from_millisecond(now).ok()?.to_zoned(zone.clone()).date();
    let days = (-1..=back).filter_map(|ago| today.checked_sub(ago.days()).ok());
    days.filter_map(|date| {
        let (from, days, to) = begins(date)?;
        on(now, date.to_datetime(from), date.checked_add(days.days()).ok()?.to_datetime(to), zone)
    })
    .max()
}

/// What somebody said by hand, and when it is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Who.
    pub by: String,
    /// In their words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Wall ms.
    pub since_ms: i64,
    /// Wall ms; `None`: until somebody says otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until_ms: Option<i64>,
}

impl Said {
    fn holds(&self, now: i64) -> bool {
        self.until_ms.is_none_or(|until| now < until)
    }
}

/// What people have said of one environment; the value of its key in control.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ByHand {
    /// Nothing new, please.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frozen: Option<Said>,
    /// The windows of the file do not count.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lifted: Option<Said>,
}

impl ByHand {
    /// Without what is over by now.
    #[must_use]
    pub fn still(self, now: i64) -> Self {
        ByHand {
            frozen: self.frozen.filter(|said| said.holds(now)),
            lifted: self.lifted.filter(|said| said.holds(now)),
        }
    }
}

/// Whose freeze it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose<'a> {
    /// A window of the project's file.
    File(&'a Window),
    /// Somebody's.
    Hand(&'a Said),
}

/// A freeze that is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen<'a> {
    /// The first moment at which something may be deployed, as far as is known now, wall ms; `None`: not before somebody says so.
    pub until_ms: Option<i64>,
    /// Whose; a person's before the file's.
    pub whose: Whose<'a>,
}

/// How many windows, one after the other, are looked at for an end. Windows without any gap never end; the loader refuses them.
const LONGEST_CHAIN: usize = 100;

/// Whether `windows` and people keep everything new away at `now`, wall ms; `zones` knows the zones, and is not asked for more.
pub fn frozen<'a>(
    windows: &'a [Window],
    by_hand: &'a ByHand,
    now: i64,
    zones: &dyn Fn(&str) -> TimeZone,
) -> Option<Frozen<'a>> {
    let zones: Vec<TimeZone> = windows.iter().map(|window| zones(window.zone())).collect();
    let on = |at: i64| -> Option<(Option<i64>, Whose<'a>)> {
        let hand = by_hand.frozen.as_ref().filter(|said| said.holds(at));
        let counts = !by_hand.lifted.as_ref().is_some_and(|said| said.holds(at));
        let ends = windows.iter().zip(&zones).filter(|_| counts);
        let window =
            ends.filter_map(|(window, zone)| Some((window.end(at, zone)?, window))).max_by_key(|(end, _)| *end);
        match (hand, window) {
            (Some(said), None) => Some((said.until_ms, Whose::Hand(said))),
            (Some(said), Some((end, _))) => Some((said.until_ms.map(|until| until.max(end)), Whose::Hand(said))),
            (None, Some((end, window))) => Some((Some(end), Whose::File(window))),
            (None, None) => None,
        }
    };
    let (mut until, whose) = on(now)?;
    // What begins as this ends belongs to it: the end that people are told is one.
    for _ in 0..LONGEST_CHAIN {
        let Some(end) = until else { return Some(Frozen { until_ms: None, whose }) };
        match on(end) {
            None => return Some(Frozen { until_ms: Some(end), whose }),
            Some((later, _)) => until = later,
        }
    }
    Some(Frozen { until_ms: None, whose })
}

#[cfg(test)]
mod tests;
