//! Time zones by their IANA names.

use jiff::tz::TimeZone;

/// The zone called `Europe/Berlin`, by the rules this machine has; a machine without any has those that are built in. `None`: there is no
/// such zone.
#[must_use]
pub fn zone(name: &str) -> Option<TimeZone> {
    // What the database would take as well: the machine's own zone, which is another one on another machine, and files that are no zones.
    let plain = name == "UTC" || (name.contains('/') && !name.starts_with(['/', '.']) && !name.contains(".."));
    if !plain || ["posix/", "right/"].iter().any(|odd| name.starts_with(odd)) {
        return None;
    }
    TimeZone::get(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_have_the_names_of_the_iana() {
        for name in ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5"] {
            assert!(zone(name).is_some(), "{name}");
        }
        for name in ["", "Europe", "Europe/Berln", "localtime", "/etc/passwd", "../etc/passwd", "right/UTC", "CET"] {
            assert!(zone(name).is_none(), "{name}");
        }
    }
}
