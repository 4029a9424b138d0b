//! What the daemon asks of `phased job`, and what that answers: one line of JSON each.
//!
//! ```text
//! {"v": 1, "run": {...}} with three pipes       {"started": null}, and in the end {"ended": {"code": 0}}
//! {"v": 1, "give": {...}}                       {"ready": null}
//!   a byte with up to 100 files, any number of times    {"taken": 100}
//!   end of file
//! anything that is not done                     {"refused": "why"}, or {"later": "why"} where asking again may help
//! ```
//! `v` goes up with each change of the requests: a binary is replaced under a daemon that runs.
//! The answer's reader believes nothing either: what code under test can reach it may have written.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    model::ids::ProjectName,
    ports::link::{Exit, LinkError},
};

/// The longest line. A probe's text is part of one.
pub(super) const LINE: usize = 256 * 1024;
/// The longest answer.
pub(super) const ANSWER: usize = 8 * 1024;
/// Of `argv` and of `env`.
const MOST: usize = 256;

/// Of the requests.
const VERSION: u32 = 1;

/// Nobody can be the job user, or nothing can be started as them.
pub(super) fn refuse(message: String) -> LinkError {
    LinkError::new("job_user", message)
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// Start a program as a job user.
    Run(Run),
    /// Give files to a job user.
    Give(Give),
}

/// A request as it is sent.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    v: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<Run>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    give: Option<Give>,
}

/// Whether `line` may be read: `false` = it is a request of another version.
pub(super) fn understood(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Any {
        #[serde(default)]
        v: u32,
    }
    // What is no request at all is refused as that.
    serde_json::from_slice(line).map_or(true, |Any { v }| v == VERSION)
}

/// Who it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Who {
    /// Whose job user; for the unit's log.
    pub project: ProjectName,
    /// Its uid.
    pub uid: u32,
    /// Its gid.
    pub gid: u32,
}

/// A program to start in a session of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    /// As whom.
    #[serde(rename = "as")]
    pub who: Who,
    /// The program, looked up in `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// All of its environment.
    pub env: Vec<(String, String)>,
    /// Where it starts.
    pub cwd: String,
}

/// Files that follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Give {
    /// To whom.
    #[serde(rename = "to")]
    pub who: Who,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    /// The program runs.
    Started,
    /// It has ended.
    Ended(Ended),
    /// Files may come.
    Ready,
    /// So many files were given.
    Taken(usize),
    /// It was not done, for this reason.
    Refused(String),
    /// It was not done, and to ask again may help.
    Later(String),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ended {
    /// With this code.
    Code(u32),
    /// By this signal, without `SIG`.
    Signal(String),
}

impl Ended {
    pub(super) fn exit(self) -> Exit {
        match self {
            Ended::Code(code) => Exit::Code(code),
            Ended::Signal(name) => Exit::Signal(name),
        }
    }
}

impl Request {
    pub(super) fn who(&self) -> &Who {
        match self {
            Request::Run(run) => &run.who,
            Request::Give(give) => &give.who,
        }
    }

    /// Reads one line, without its end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(line: &[u8]) -> Result<Request, String> {
        let sent: Sent = serde_json::from_slice(line).map_err(|error| format!("it is no request: {error}"))?;
        let request = match sent {
            Sent { v: VERSION, run: Some(run), give: None } => Request::Run(run),
            Sent { v: VERSION, run: None, give: Some(give) } => Request::Give(give),
            _ => {
                return Err(
                    "it is no request: it asks for nothing, or for two things, or in another version".to_owned()
                );
            }
        };
        let Who { uid, gid, .. } = request.who();
        // 65535 and 4294967295 mean "leave it as it is" to the kernel's calls: root would stay root.
        if [*uid, *gid].iter().any(|id| [0, 65_535, u32::MAX].contains(id)) {
            return Err(format!("uid {uid}, gid {gid} are no job user's"));
        }
        if let Request::Run(run) = &request {
            run.check()?;
        }
        Ok(request)
    }

    pub(super) fn line(&self) -> std::io::Result<Vec<u8>> {
        let (run, give) = match self.clone() {
            Request::Run(run) => (Some(run), None),
            Request::Give(give) => (None, Some(give)),
        };
        line(&Sent { v: VERSION, run, give })
    }
}

impl Run {
    fn check(&self) -> Result<(), String> {
        let Run { argv, env, cwd, .. } = self;
        if argv.first().is_none_or(String::is_empty) {
            return Err("it names no program".to_owned());
        }
        if argv.len() > MOST || env.len() > MOST {
            return Err(format!("it has more than {MOST} arguments or variables"));
        }
        if let Some((name, _)) = env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
            return Err(format!("{name:?} cannot be the name of a variable"));
        }
        let texts = argv.iter().chain(env.iter().flat_map(|(name, value)| [name, value])).chain([cwd]);
        if texts.into_iter().any(|text| text.contains('\0')) {
            return Err("it has a NUL byte, which no program can be given".to_owned());
        }
        if !Path::new(cwd).is_absolute() {
            return Err(format!("cwd {cwd:?} is not absolute"));
        }
        Ok(())
    }
}

impl Reply {
    pub(super) fn line(&self) -> std::io::Result<Vec<u8>> {
        line(self)
    }

    pub(super) fn parse(line: &[u8]) -> Result<Reply, String> {
        serde_json::from_slice(line).map_err(|error| format!("its answer is not understood: {error}"))
    }
}

fn line(value: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run() -> Value {
        json!({ "v": 1, "run": {
            "as": { "project": "shop", "uid": 61_000, "gid": 61_000 },
            "argv": ["sh", "-c", "echo"], "env": [["PATH", "/bin"], ["EMPTY", ""]], "cwd": "/",
        } })
    }

    fn parse(value: &Value) -> Result<Request, String> {
        Request::parse(value.to_string().as_bytes())
    }

    #[test]
    fn requests_and_answers_come_back_as_they_were_sent() {
        let give = json!({ "v": 1, "give": { "to": { "project": "shop", "uid": 61_000, "gid": 100 } } });
        for value in [run(), give] {
            let request = parse(&value).unwrap();
            let line = request.line().unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&line).unwrap(), value);
            assert_eq!(Request::parse(line.strip_suffix(b"\n").unwrap()).unwrap(), request);
        }
        let refused = Reply::Refused("two\nlines".into());
        for reply in
            [Reply::Started, Reply::Ready, Reply::Taken(3), Reply::Ended(Ended::Signal("KILL".into())), refused]
        {
            let line = reply.line().unwrap();
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            assert_eq!(Reply::parse(&line), Ok(reply));
        }
        assert!(Reply::parse(b"{}").is_err() && Reply::parse(b"\xff").is_err() && Reply::parse(b"").is_err());
    }

    #[test]
    fn hostile_requests_are_refused_by_what_is_wrong() {
        let with = |at: &str, value: Value| {
            let mut run = run();
            *run.pointer_mut(&format!("/run/{at}")).unwrap() = value;
            run
        };
        for (value, why) in [
            (with("as/uid", json!(0)), "no job user's"),
            (with("as/gid", json!(0)), "no job user's"),
            (with("as/uid", json!(u32::MAX)), "no job user's"),
            (with("as/gid", json!(65_535)), "no job user's"),
            (with("as/uid", json!(-1)), "no request"),
            (with("as/uid", json!(4_294_967_296_u64)), "no request"),
            (with("as/uid", json!("61000")), "no request"),
            (with("as/project", json!("../etc")), "no request"),
            (with("argv", json!([])), "no program"),
            (with("argv", json!([""])), "no program"),
            (with("argv", json!(vec!["a"; 1000])), "more than"),
            (with("argv/2", json!("a\0b")), "NUL"),
            (with("argv/2", json!(7)), "no request"),
            (with("env", json!([["A=B", "x"]])), "name of a variable"),
            (with("env", json!([["", "x"]])), "name of a variable"),
            (with("env/0/1", json!("\0")), "NUL"),
            (with("env", json!([["A"]])), "no request"),
            (with("cwd", json!("tmp")), "not absolute"),
            (with("cwd", json!("/\0")), "NUL"),
            (json!({ "v": 1, "run": {} }), "no request"),
            (json!({ "v": 1, "shell": {} }), "no request"),
            (json!({ "v": 1 }), "no request"),
            (json!({ "v": 2, "run": run()["run"] }), "no request"),
            (json!({ "run": run()["run"] }), "no request"),
            (json!({ "v": 1, "run": run()["run"], "give": { "to": run()["run"]["as"] } }), "no request"),
            (json!({}), "no request"),
            (json!([run(), run()]), "no request"),
            (json!(null), "no request"),
        ] {
            let error = parse(&value).unwrap_err();
            assert!(error.contains(why), "{value}: {error}");
        }
        // Nothing is passed over that somebody may have meant.
        let mut more = run();
        more["run"]["groups"] = json!([0]);
        assert!(parse(&more).unwrap_err().contains("unknown field `groups`"));
        let twice = r#"{"v":1,"run":{"as":{"project":"shop","uid":61000,"uid":0,"gid":61000},"argv":["sh"],"env":[],"cwd":"/"}}"#;
        assert!(Request::parse(twice.as_bytes()).unwrap_err().contains("duplicate field"));
        for (line, may) in [
            (run().to_string(), true),
            (json!({ "v": 2, "whatever": [] }).to_string(), false),
            (json!({ "give": {} }).to_string(), false),
            ("garbage".to_owned(), true),
        ] {
            assert_eq!(understood(line.as_bytes()), may, "{line}");
        }
        let text = run().to_string();
        for cut in 0..text.len() {
            assert!(Request::parse(&text.as_bytes()[..cut]).is_err(), "{cut}");
        }
        assert!(Request::parse(format!("{text} {text}").as_bytes()).is_err(), "two at once");
        assert!(Request::parse(&vec![b'['; 100_000]).is_err(), "deep");
    }
}
