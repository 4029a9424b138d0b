//! Durations as people write them: `"10s"`, `"5m"`, `"1h30m"`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration that reads and writes as `"1h30m"`; units `ms s m h d`, largest first, whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

/// Why a text is no duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{text:?} is not a duration: write a whole number and a unit, as in \"500ms\", \"10s\", \"5m\", \"1h30m\" or \"2d\""
)]
pub struct SpanError {
    text: String,
}

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Span {
    /// `secs` seconds.
    #[must_use]
    pub const fn secs(secs: u64) -> Self {
        Span(Duration::from_secs(secs))
    }

    /// `minutes` minutes.
    #[must_use]
    pub const fn minutes(minutes: u64) -> Self {
        Span(Duration::from_secs(minutes * 60))
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let error = || SpanError { text: text.chars().take(40).collect() };
        let (mut rest, mut total, mut smallest) = (text, 0u64, u64::MAX);
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let number: u64 = rest[..digits].parse().map_err(|_| error())?;
            rest = &rest[digits..];
            let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
            let (_, ms) = UNITS.iter().find(|(unit, _)| *unit == &rest[..letters]).ok_or_else(error)?;
            // Largest first, each once: "1m1h" and "5s5s" are slips, not sums.
            if *ms >= smallest {
                return Err(error());
            }
            smallest = *ms;
            total = number.checked_mul(*ms).and_then(|n| total.checked_add(n)).ok_or_else(error)?;
            rest = &rest[letters..];
        }
        if smallest == u64::MAX || total > 10 * 366 * 86_400_000 {
            return Err(error());
        }
        Ok(Span(Duration::from_millis(total)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if ms == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in UNITS {
            if ms >= size {
                write!(f, "{}{unit}", ms / size)?;
                ms %= size;
            }
        }
        Ok(())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration in quotes, such as \"10s\" or \"1h30m\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read_and_written_back() {
        for text in ["500ms", "10s", "5m", "1h30m", "2d", "1d2h3m4s5ms", "0s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("90s".parse::<Span>().unwrap().to_string(), "1m30s");
    }

    #[test]
    fn slips_are_refused() {
        for text in
            ["", "5", "m", "5 m", "-5m", "1m1h", "5s5s", "5M", "1.5h", "99999999999999999999s", "9999999d", "5µs"]
        {
            assert!(text.parse::<Span>().is_err(), "{text:?}");
        }
    }
}
