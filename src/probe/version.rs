//! Looks at the version a host reports.

use std::time::Duration;

use serde_json::Value;

use super::{MAX_SEEN, Probes, is_good, sight, why};
use crate::{
    model::{
        cause::{Cause, one_line},
        health::{Fact, Sight},
        pipeline::{Version, VersionFrom},
    },
    ports::link::{Exit, Link},
};

/// The largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

impl Probes {
    pub(super) async fn version(&self, link: &dyn Link, version: &Version, limit: Duration) -> Result<Sight, Cause> {
        let answer = match &version.from {
            VersionFrom::Http(target) => {
                let answer = self.get(link, target, MAX_ANSWER, limit).await?;
                if !is_good(&answer) {
                    return Ok(sight(false, format!("{}{}", answer.status, why(&answer))));
                }
                if answer.truncated {
                    return Ok(sight(false, format!("the answer has more than {} KiB", MAX_ANSWER / 1024)));
                }
                answer.body
            }
            VersionFrom::Command(text) => {
                let ended = self.run(link, text, MAX_ANSWER).await?;
                if ended.exit != Exit::Code(0) {
                    return Ok(sight(false, ended.words()));
                }
                ended.out
            }
        };
        Ok(match reported(&answer, version.json.as_deref()) {
            Ok(text) => Sight { good: true, seen: format!("reports {text}"), fact: Some(Fact::Version(text)) },
            Err(why) => sight(false, why),
        })
    }
}

/// The version in an answer.
fn reported(answer: &[u8], path: Option<&str>) -> Result<String, String> {
    let text = String::from_utf8_lossy(answer);
    let text = text.trim();
    let Some(path) = path else {
        return match text.lines().count() {
            0 | 1 => Ok(one_line(text, MAX_SEEN)),
            lines => {
                Err(format!("the answer has {lines} lines and not only the version: name its place (json = \"key\")"))
            }
        };
    };
    let data: Value =
        serde_json::from_str(text).map_err(|_| format!("the answer is no JSON: {}", one_line(text, MAX_SEEN)))?;
    let mut at = &data;
    for key in path.split('.') {
        let below = match (at, key.parse::<usize>()) {
            (Value::Array(items), Ok(n)) => items.get(n),
            _ => at.get(key),
        };
        at = below.ok_or_else(|| format!("the answer has no {key:?} (json = {path:?})"))?;
    }
    match at {
        Value::String(text) => Ok(one_line(text, MAX_SEEN)),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(format!("{path:?} of the answer is no text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_answer_or_a_place_in_its_json() {
        for (answer, path, expected) in [
            ("a1b2c3d\n", None, Ok("a1b2c3d")),
            ("", None, Ok("")),
            (r#"{"revision": "a1b2c3d"}"#, Some("revision"), Ok("a1b2c3d")),
            (r#"{"build": {"git": [{"sha": 1234567}]}}"#, Some("build.git.0.sha"), Ok("1234567")),
            ("a\nb", None, Err("2 lines")),
            ("<html>", Some("revision"), Err("no JSON: <html>")),
            ("{}", Some("a.b"), Err("has no \"a\" (json = \"a.b\")")),
            (r#"{"a": {"b": null}}"#, Some("a.b"), Err("no text")),
            (r#"{"a": "x"}"#, Some("a.b"), Err("has no \"b\"")),
        ] {
            match (reported(answer.as_bytes(), path), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
                (found, _) => panic!("{answer}: {found:?}"),
            }
        }
    }
}
