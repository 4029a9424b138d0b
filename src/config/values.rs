//! Values that need more than their TOML type, each refused with what would be right.

use std::{fmt, marker::PhantomData, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de::Error};

/// Reads a text; what is none is refused with what it should be, and how that is written.
pub(super) fn text<'de, T, D>(deserializer: D, expected: &'static str) -> Result<T, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    struct Visitor<T>(&'static str, PhantomData<T>);
    impl<T: FromStr<Err: fmt::Display>> serde::de::Visitor<'_> for Visitor<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Visitor(expected, PhantomData))
}

/// A number of bytes: `"256MiB"`, or a plain integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// `n` MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Size(n * 1024 * 1024)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            format!("{text:?} is not a size: write a whole number and a unit, as in \"512KiB\", \"64MiB\" or \"2GiB\"")
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error())?;
        let unit: u64 = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return Err(error()),
        };
        number.checked_mul(unit).map(Size).ok_or_else(error)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"64MiB\"")
            }
            fn visit_i64<E: Error>(self, n: i64) -> Result<Size, E> {
                u64::try_from(n).map(Size).map_err(|_| E::custom(format!("{n} is not a size: it is negative")))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// How often something may happen: `"600/m"`, `"20/s"`, `"100/h"`, or `"none"` for as often as one likes. All of one period may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(Option<(u32, Duration)>);

impl Rate {
    /// As often as one likes.
    pub const NONE: Rate = Rate(None);

    /// `n` a minute.
    #[must_use]
    pub const fn per_minute(n: u32) -> Self {
        Rate(Some((n, Duration::from_secs(60))))
    }

    /// How many in which time; nothing when there is no limit.
    #[must_use]
    pub fn limit(self) -> Option<(u32, Duration)> {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Rate::NONE);
        }
        let error = || {
            format!(
                "{text:?} is no rate: write how many a second, minute or hour, as in \"600/m\" (s, m or h), or \"none\""
            )
        };
        let (number, unit) = text.split_once('/').ok_or_else(error)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(error()),
        };
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        match number.parse::<u32>() {
            Ok(n @ 1..=1_000_000) => Ok(Rate(Some((n, Duration::from_secs(seconds))))),
            _ => Err(format!("{text:?} is no rate: from 1 to 1000000 of them")),
        }
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "a rate in quotes, such as \"600/m\", or \"none\"")
    }
}

/// User ids from `first` to `last`, both included: `"61000-61999"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UidRange {
    /// At least 1: never root.
    pub first: u32,
    /// At least `first`.
    pub last: u32,
}

impl FromStr for UidRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = |why: &str| {
            format!("{text:?} is not a range of user ids{why}: write the first and last, as in \"61000-61999\"")
        };
        let (first, last) = text.split_once('-').ok_or_else(|| error(""))?;
        let plain = |n: &str| n.bytes().all(|b| b.is_ascii_digit()).then(|| n.parse::<u32>().ok()).flatten();
        let (Some(first), Some(last)) = (plain(first), plain(last)) else { return Err(error("")) };
        if first == 0 {
            return Err(error(", it contains root"));
        }
        // 65535 and 4294967295 mean "no user" to the kernel's calls.
        if [65_535, u32::MAX].iter().any(|none| (first..=last).contains(none)) {
            return Err(error(", 65535 and 4294967295 are no users"));
        }
        if first > last {
            return Err(error(", it ends before it begins"));
        }
        Ok(UidRange { first, last })
    }
}

impl<'de> Deserialize<'de> for UidRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "the first and last user id in quotes, such as \"61000-61999\"")
    }
}

/// A daemon's working directory is nobody's: relative paths would mean something else at each start.
fn check_absolute(path: PathBuf) -> Result<PathBuf, String> {
    if path.is_absolute() { Ok(path) } else { Err(format!("{path:?} must be an absolute path")) }
}

pub(super) fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    check_absolute(text(deserializer, "an absolute path in quotes")?).map_err(Error::custom)
}

pub(super) fn some_absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    absolute(deserializer).map(Some)
}

pub(super) fn absolutes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    let paths = Vec::<PathBuf>::deserialize(deserializer)?;
    if paths.is_empty() {
        return Err(Error::custom("the list is empty: projects are found in `projects/` of these directories"));
    }
    paths.into_iter().map(|path| check_absolute(path).map_err(Error::custom)).collect()
}

pub(super) fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text: String = text(deserializer, "an address and port in quotes, such as \"127.0.0.1:7427\", or \"none\"")?;
    if text == "none" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Error::custom(format!(
            "{text:?} is not an address and port: write \"127.0.0.1:7427\", \"[::1]:7427\" or \"none\""
        ))
    })
}

pub(super) fn filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text: String = text(deserializer, "a filter in quotes, such as \"info\"")?;
    match tracing_subscriber::EnvFilter::builder().parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(Error::custom(format!(
            "{text:?} is not a log filter ({error}): write \"info\" or \"info,phased::ssh=debug\""
        ))),
    }
}
