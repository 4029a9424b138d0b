//! Adoption: the release that was there before phased deployed anything becomes known-good because every host reports it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{cause::Cause, health::SHORTEST, ids::HostId};

/// That a release was adopted, and by what evidence.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Adoption {
    /// What each host reported as its version.
    pub reports: BTreeMap<HostId, String>,
}

/// How many hosts are named of those that say the same, and how many different things are told.
const TOLD: usize = 5;

/// The one commit that all hosts report, as its longest form; `said` is each host's name and its version, or why it has none.
///
/// # Errors
/// `hosts_disagree`: which host says what.
pub fn agreed(said: &[(&str, &Result<String, Cause>)]) -> Result<String, Cause> {
    let versions = said.iter().filter_map(|(_, said)| said.as_ref().ok()).map(|version| plain(version));
    let longest = versions.filter(|version| is_commit(version)).max_by_key(String::len).unwrap_or_default();
    let one = |said: &Result<String, Cause>| {
        said.as_ref().is_ok_and(|version| is_commit(&plain(version)) && longest.starts_with(&plain(version)))
    };
    if !said.is_empty() && said.iter().all(|(_, said)| one(said)) {
        return Ok(longest);
    }
    Err(Cause::new("hosts_disagree", format!("its hosts do not all report one commit: {}", told(said))))
}

fn plain(version: &str) -> String {
    version.trim().to_ascii_lowercase()
}

fn is_commit(version: &str) -> bool {
    (SHORTEST..=64).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_hexdigit())
}

/// `web1, web2: a1b2c3d; web3: exit 1`, those that say the most common thing first.
fn told(said: &[(&str, &Result<String, Cause>)]) -> String {
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, said) in said {
        let words = match said {
            Ok(version) if is_commit(&plain(version)) => plain(version).chars().take(12).collect(),
            Ok(version) if version.trim().is_empty() => "nothing".to_owned(),
            Ok(version) => format!("{:?}, which is no commit", version.chars().take(60).collect::<String>()),
            Err(why) => why.message.chars().take(200).collect(),
        };
        groups.entry(words).or_default().push(name);
    }
    let mut groups: Vec<(String, Vec<&str>)> = groups.into_iter().collect();
    groups.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    let rest = groups.len().saturating_sub(TOLD);
    let told = groups.into_iter().take(TOLD).map(|(words, names)| {
        let shown: Vec<&str> = names.iter().copied().take(TOLD).collect();
        let more = names.len().saturating_sub(TOLD);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}: {words}", shown.join(", "))
    });
    let mut told = told.collect::<Vec<_>>().join("; ");
    if rest > 0 {
        told.push_str(&format!("; and {rest} further answers"));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(said: &[Result<&str, &str>]) -> Result<String, String> {
        let said: Vec<(String, Result<String, Cause>)> = (1..)
            .zip(said)
            .map(|(n, said)| (format!("web{n}"), said.map(str::to_owned).map_err(|why| Cause::new("unreachable", why))))
            .collect();
        let said: Vec<(&str, &Result<String, Cause>)> = said.iter().map(|(name, said)| (name.as_str(), said)).collect();
        agreed(&said).map_err(|cause| cause.message)
    }

    #[test]
    fn hosts_agree_where_all_report_the_same_commit_however_long() {
        let whole = "a1b2c3d4e5f6a1b2c3d4e5f6a1b2c3d4e5f6a1b2";
        assert_eq!(of(&[Ok("a1b2c3d4e5f6"), Ok("a1b2c3d4e5f6")]), Ok("a1b2c3d4e5f6".to_owned()));
        assert_eq!(of(&[Ok("A1B2C3D\n"), Ok(whole), Ok("a1b2c3d4")]), Ok(whole.to_owned()));
    }

    #[test]
    fn where_they_do_not_it_is_said_which_host_says_what() {
        let prefix = "its hosts do not all report one commit: ";
        for (said, told) in [
            (vec![Ok("a1b2c3d"), Ok("b2c3d4e"), Ok("a1b2c3d")], "web1, web3: a1b2c3d; web2: b2c3d4e"),
            (vec![Ok("a1b2c3d"), Err("refused")], "web1: a1b2c3d; web2: refused"),
            (vec![Ok("a1b2c3"), Ok("a1b2c3")], "web1, web2: \"a1b2c3\", which is no commit"),
            (vec![Ok("main")], "web1: \"main\", which is no commit"),
            (vec![Ok("")], "web1: nothing"),
            (vec![], ""),
        ] {
            assert_eq!(of(&said), Err(format!("{prefix}{told}")));
        }
        let many: Vec<Result<&str, &str>> = vec![Err("refused"); 8];
        assert!(of(&many).unwrap_err().ends_with("web1, web2, web3, web4, web5 and 3 more: refused"));
    }
}
