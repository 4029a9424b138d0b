//! `reports`: the JUnit files a test command wrote. Read as the job user, counted anew (a file's own counters are never believed).

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use super::Job;
use crate::{
    engine::command::{CommandSpec, Download, OutputSink, Shell, Verdict, What},
    model::{cause::Cause, ids::Digest},
    ports::outputs::Stream,
};

/// Files read of one command, and bytes of one file: more is a mistake in the pattern.
const MOST_FILES: usize = 500;
const LARGEST: usize = 16 * 1024 * 1024;
/// For looking and reading.
const LIMIT: Duration = Duration::from_secs(60);
/// Failed tests that are named.
const NAMED: usize = 20;

/// What the reports say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tests {
    pub(super) files: usize,
    pub(super) total: usize,
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    /// The first failed ones, `suite.name: message`.
    pub(super) failures: Vec<String>,
    /// Files that are no JUnit reports, and why.
    pub(super) unreadable: Vec<String>,
}

impl Tests {
    /// One sentence.
    pub(super) fn summary(&self) -> String {
        format!("{} of {} tests failed, {} skipped", self.failed, self.total, self.skipped)
    }
}

struct Memory(Vec<u8>);

#[async_trait]
impl OutputSink for Memory {
    async fn output(&mut self, stream: Stream, _offset: u64, bytes: &[u8]) {
        if stream == Stream::Out {
            let room = (LARGEST + 1).saturating_sub(self.0.len()).min(bytes.len());
            self.0.extend_from_slice(&bytes[..room]);
        }
    }
}

/// Reads every report that `patterns` match below the checkout.
///
/// # Errors
/// `reports`: they cannot be looked for.
pub(super) async fn read(job: &Job, dir: &str, patterns: &[String]) -> Result<Tests, Cause> {
    let text = b"for f in $PATTERNS; do [ ! -f \"$f\" ] || printf '%s\\n' \"$f\"; done".to_vec();
    // Not part of the step's own journal: looking twice changes nothing.
    let token = Digest::of(format!("{}|reports", job.token).as_bytes());
    let mut spec = CommandSpec::new(token, What::Sh { text, shell: Shell::Sh }, LIMIT);
    spec.env = vec![("PATTERNS".to_owned(), patterns.join(" ").into_bytes())];
    spec.path = Some(job.world.limits.path.clone());
    spec.cwd = Some(dir.to_owned());
    let session = job.sessions.local();
    let mut listed = Memory(Vec::new());
    let verdict = session.run(&spec, &mut listed, &job.stop).await;
    if !matches!(verdict, Verdict::Exited { code: 0, .. }) {
        let cause = verdict.cause("the integration server", LIMIT);
        let why = cause.map_or_else(String::new, |cause| cause.message);
        return Err(Cause::new("reports", format!("the test reports cannot be looked for: {why}")));
    }
    let listed = String::from_utf8_lossy(&listed.0).into_owned();
    let mut tests = Tests::default();
    for file in listed.lines().take(MOST_FILES) {
        let from = std::path::Path::new(dir).join(file).to_string_lossy().into_owned();
        let mut bytes = Memory(Vec::new());
        let download = Download { from, timeout: LIMIT };
        let verdict = session.download(&download, &mut bytes, &job.stop).await;
        let read = match verdict {
            Verdict::Exited { code: 0, .. } if bytes.0.len() <= LARGEST => count(&bytes.0, &mut tests),
            Verdict::Exited { code: 0, .. } => Err("it is larger than 16 MiB".to_owned()),
            _ => Err("it cannot be read".to_owned()),
        };
        tests.files += 1;
        if let Err(why) = read {
            tests.unreadable.push(format!("{file}: {why}"));
        }
    }
    Ok(tests)
}

/// Adds what one JUnit file says. All variants: `testsuites`, one `testsuite`, nested ones.
fn count(bytes: &[u8], tests: &mut Tests) -> Result<(), String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let options = roxmltree::ParsingOptions { allow_dtd: false, nodes_limit: 2_000_000, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(text, options).map_err(|e| format!("no XML: {e}"))?;
    if !matches!(document.root_element().tag_name().name(), "testsuites" | "testsuite") {
        return Err(format!("no JUnit report: its root is <{}>", document.root_element().tag_name().name()));
    }
    for case in document.descendants().filter(|node| node.has_tag_name("testcase")) {
        tests.total += 1;
        let child = |names: &[&str]| case.children().find(|c| names.contains(&c.tag_name().name()));
        if let Some(failure) = child(&["failure", "error"]) {
            tests.failed += 1;
            if tests.failures.len() < NAMED {
                let suite = case.attribute("classname").map(|c| format!("{c}.")).unwrap_or_default();
                let name = case.attribute("name").unwrap_or("?");
                let said = failure.attribute("message").or_else(|| failure.text()).unwrap_or_default();
                let said: String = said.trim().lines().next().unwrap_or_default().chars().take(200).collect();
                tests.failures.push(format!("{suite}{name}: {said}"));
            }
        } else if child(&["skipped"]).is_some()
            || case.attribute("status").is_some_and(|s| matches!(s, "disabled" | "notrun"))
        {
            tests.skipped += 1;
        } else {
            tests.passed += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> Result<Tests, String> {
        let mut tests = Tests::default();
        count(text.as_bytes(), &mut tests).map(|()| tests)
    }

    #[test]
    fn cases_are_counted_and_counters_are_not_believed() {
        let tests = counted(
            r#"<testsuites tests="1"><testsuite name="a" failures="0"><testcase classname="shop" name="adds"/>
            <testcase classname="shop" name="pays"><failure message="wanted 1&#10;got 2">trace</failure></testcase>
            <testsuite name="nested"><testcase name="loads"><error>boom</error></testcase>
            <testcase name="later"><skipped/></testcase><testcase name="flaky"><flakyFailure/></testcase></testsuite>
            </testsuite></testsuites>"#,
        )
        .unwrap();
        assert_eq!((tests.total, tests.passed, tests.failed, tests.skipped), (5, 2, 2, 1));
        assert_eq!(tests.failures, ["shop.pays: wanted 1", "loads: boom"]);
        assert_eq!(tests.summary(), "2 of 5 tests failed, 1 skipped");
    }

    #[test]
    fn what_is_no_report_is_said() {
        assert!(counted("").unwrap_err().contains("no XML"));
        assert!(counted("<html/>").unwrap_err().contains("<html>"));
        assert!(counted("<!DOCTYPE x [<!ENTITY a \"b\">]><testsuite/>").is_err());
        let mut tests = Tests::default();
        assert!(count(b"\xff\xfe", &mut tests).is_err());
    }
}
