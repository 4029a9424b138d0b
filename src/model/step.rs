//! Steps and calls: their keys, requests and outcomes. Keys, tokens and arguments are formats.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{
    Deserialize, Serialize,
    de::{IntoDeserializer as _, value::StrDeserializer},
};
use serde_json::Value;

use super::{
    cause::Cause,
    ids::{Digest, HostId, RunId},
};

/// What the key of a call ends in that undoes another.
const UNDO: &str = ".undo";

/// One Lua function called for one purpose: `test/unit/run`, `production#1/i-0ab/deploy`, `production#1/verify`.
///
/// Its parts are percent-encoded outside `[A-Za-z0-9._-]` and joined by `/`; `#` stands between an environment and the number
/// of the deployment in its run.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallKey(Arc<str>);

impl CallKey {
    /// A call of a test stage; `function` is `setup`, `run` or `cleanup`.
    #[must_use]
    pub fn stage(stage: &str, function: &str) -> Self {
        CallKey(Arc::from(format!("test/{}/{}", encode(stage), encode(function))))
    }

    /// A call of a deployment on one host; `function` is `prepare`, `drain`, `deploy` or `undrain`.
    #[must_use]
    pub fn host(environment: &str, deployment: u32, host: &str, function: &str) -> Self {
        CallKey(Arc::from(format!("{}#{deployment}/{}/{}", encode(environment), encode(host), encode(function))))
    }

    /// A call of a deployment as a whole; `function` is `before`, `verify`, `after`.
    #[must_use]
    pub fn deployment(environment: &str, deployment: u32, function: &str) -> Self {
        CallKey(Arc::from(format!("{}#{deployment}/{}", encode(environment), encode(function))))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The call that undoes this one: `production#1/i-0ab/deploy.undo`.
    #[must_use]
    pub fn undo(&self) -> Self {
        CallKey(Arc::from(format!("{self}{UNDO}")))
    }

    /// The call that this one undoes; `None` for every other.
    #[must_use]
    pub fn undone(&self) -> Option<Self> {
        self.0.strip_suffix(UNDO).map(|key| CallKey(Arc::from(key)))
    }

    /// Whether it brings to its end what another call began: a `cleanup`, or an undo.
    #[must_use]
    pub fn is_cleaning(&self) -> bool {
        self.undone().is_some() || matches!(self.place(), Some(Place::Stage { function, .. }) if function == "cleanup")
    }

    /// Takes the key apart; `None` for a text that is no call key.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        let parts: Vec<&str> = self.0.split('/').collect();
        let deployment = |part: &str| part.rsplit_once('#').and_then(|(_, n)| n.parse().ok());
        match parts.as_slice() {
            ["test", stage, function] => Some(Place::Stage { stage: decode(stage), function: decode(function) }),
            [deployed, function] => {
                Some(Place::Deployment { deployment: deployment(deployed)?, function: decode(function) })
            }
            [deployed, host, function] => Some(Place::Host {
                deployment: deployment(deployed)?,
                host: decode(host).parse().ok()?,
                function: decode(function),
            }),
            _ => None,
        }
    }
}

impl fmt::Display for CallKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for CallKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Where in a run a call belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// To a test stage.
    Stage {
        /// Which.
        stage: String,
        /// `setup`, `run` or `cleanup`.
        function: String,
    },
    /// To a deployment as a whole.
    Deployment {
        /// Its number in the run.
        deployment: u32,
        /// `verify`.
        function: String,
    },
    /// To one host of a deployment.
    Host {
        /// The deployment's number in the run.
        deployment: u32,
        /// Which host.
        host: HostId,
        /// `deploy`.
        function: String,
    },
}

/// One step of a call: `<call>/<branch>/<verb>#<n>`; n counts this verb in this branch from 1.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepKey(Arc<str>);

impl StepKey {
    /// The key of the `n`th `verb` in `branch` of `call`.
    #[must_use]
    pub fn new(call: &CallKey, branch: &Branch, verb: &str, n: u32) -> Self {
        StepKey(Arc::from(format!("{call}/{branch}/{verb}#{n}")))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The call it belongs to.
    #[must_use]
    pub fn call(&self) -> CallKey {
        let mut parts = self.0.rsplitn(3, '/');
        let _verb_and_branch = (parts.next(), parts.next());
        CallKey(Arc::from(parts.next().unwrap_or("")))
    }

    /// The fibre that asked for it.
    #[must_use]
    pub fn branch(&self) -> Branch {
        Branch(Arc::from(self.0.rsplit('/').nth(1).unwrap_or("-")))
    }

    /// What it does, and the how-manieth of that in its branch; `None` for a text that is no step key.
    #[must_use]
    pub fn verb(&self) -> Option<(Verb, u32)> {
        let (verb, n) = self.short().split_once('#')?;
        Some((verb.parse().ok()?, n.parse().ok()?))
    }

    /// `sh#1`: what `PHASED_STEP` holds and logs show when the step has no name.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or("")
    }

    /// The step's idempotency id on every host and service: `sha256(run | key | attempt)`.
    #[must_use]
    pub fn token(&self, run: &RunId, attempt: u32) -> Digest {
        Digest::of(format!("{run}|{}|{attempt}", self.0).as_bytes())
    }
}

impl fmt::Display for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A fibre of a call: `-` is the top, `a` a branch of `run:parallel`, `a:b` one within it. One key part.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Branch(Arc<str>);

impl Branch {
    /// The call's own fibre.
    #[must_use]
    pub fn top() -> Self {
        Branch(Arc::from("-"))
    }

    /// The branch `name` within this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        // A branch that a user calls "-" must not be the top one.
        let name = if name == "-" { "%2D".to_owned() } else { encode(name) };
        Branch(if &*self.0 == "-" { Arc::from(name) } else { Arc::from(format!("{}:{name}", self.0)) })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Percent-encodes a key part outside `[A-Za-z0-9._-]`.
#[must_use]
pub fn encode(part: &str) -> String {
    const KEPT: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');
    percent_encoding::utf8_percent_encode(part, KEPT).to_string()
}

/// Undoes [`encode`]; bytes that are no UTF-8 are replaced.
#[must_use]
pub fn decode(part: &str) -> String {
    percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned()
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Text under a shell.
    Sh,
    /// An argument vector, no shell.
    Exec,
    /// An artifact or file to the host.
    Upload,
    /// A file of the host to the run's directory.
    Download,
    /// Something of the run's directory, or a value, is stored with the release.
    Artifact,
    /// A stored artifact is brought into the run's directory.
    ArtifactPath,
    /// A file written by temporary file and rename.
    Write,
    /// One HTTP request.
    Http,
    /// Asks until the answer is right or the time is up.
    Wait,
    /// Waits a while.
    Sleep,
    /// The time, recorded.
    Now,
    /// `systemctl` on one unit.
    Service,
    /// A signal to the host's own daemon, whose run is then followed to its end.
    Signal,
    /// A line in the run's log. Has no effect outside the log and is not journaled.
    Log,
}

impl Verb {
    /// The word in keys and in Lua.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Sh => "sh",
            Verb::Exec => "exec",
            Verb::Upload => "upload",
            Verb::Download => "download",
            Verb::Artifact => "artifact",
            Verb::ArtifactPath => "artifact_path",
            Verb::Write => "write",
            Verb::Http => "http",
            Verb::Wait => "wait",
            Verb::Sleep => "sleep",
            Verb::Now => "now",
            Verb::Service => "service",
            Verb::Signal => "signal",
            Verb::Log => "log",
        }
    }
}

impl FromStr for Verb {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let text: StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
        Verb::deserialize(text).map_err(|_| ())
    }
}

/// Where a step acts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The integration server, in the run's directory, as the project's job user.
    Local,
    /// A host of the call's deployment, by id.
    Host(super::ids::HostId),
}

/// What a driven program asks for: one step, not yet begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The fibre that waits for the answer.
    pub branch: Branch,
    /// What to do.
    pub verb: Verb,
    /// This verb's number in its branch, from 1.
    pub n: u32,
    /// Where.
    pub target: Target,
    /// What the author wrote, validated and named, as canonical JSON data: positional values under their names, secrets as
    /// `{"$secret": name}`, bytes that are no UTF-8 as `{"$b64": text}`. Functions (`on_unknown`) stay in the program.
    pub args: Value,
    /// `file:line` of the request in the pinned code, for messages.
    pub at: String,
}

/// How an attempt of a step ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It did what it should; the value is what Lua gets.
    Ok(Value),
    /// It failed, for a known reason; commands also have their result (`stdout stderr code ...`).
    Failed {
        /// Why.
        cause: Cause,
        /// The result as far as there is one; `Null` otherwise.
        value: Value,
    },
    /// It may or may not have happened, and nobody can tell: the host rebooted or lost the command.
    Unknown {
        /// `lost`, `rebooted`, `orphaned`, `replaced`.
        cause: Cause,
    },
    /// It was ended or prevented from outside: stop, or the call's time-out.
    Cut {
        /// `stopped`, `timeout`.
        cause: Cause,
    },
}

impl Outcome {
    /// A failure without a result.
    #[must_use]
    pub fn failed(cause: Cause) -> Self {
        Outcome::Failed { cause, value: Value::Null }
    }

    /// Why it did not succeed.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Outcome::Ok(_) => None,
            Outcome::Failed { cause, .. } | Outcome::Unknown { cause } | Outcome::Cut { cause } => Some(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_golden() {
        let call = CallKey::host("production", 1, "i-0ab/é x", "deploy");
        assert_eq!(call.as_str(), "production#1/i-0ab%2F%C3%A9%20x/deploy");
        let step = StepKey::new(&call, &Branch::top(), "sh", 2);
        assert_eq!(step.as_str(), "production#1/i-0ab%2F%C3%A9%20x/deploy/-/sh#2");
        assert_eq!(step.call(), call);
        let place = Place::Host { deployment: 1, host: "i-0ab/é x".parse().unwrap(), function: "deploy".into() };
        assert_eq!(call.place(), Some(place));
        let place = Place::Deployment { deployment: 2, function: "verify".into() };
        assert_eq!(CallKey::deployment("a b", 2, "verify").place(), Some(place));
        assert_eq!(call.undo().as_str(), "production#1/i-0ab%2F%C3%A9%20x/deploy.undo");
        assert_eq!((call.undo().undone(), call.undone()), (Some(call.clone()), None));
        assert_eq!((step.branch(), step.verb()), (Branch::top(), Some((Verb::Sh, 2))));
        assert_eq!(
            StepKey::new(&CallKey::stage("unit", "run"), &Branch::top().child("a b").child("-"), "exec", 1).as_str(),
            "test/unit/run/a%20b:%2D/exec#1"
        );
        let run = RunId::new(1_700_000_000_000, 1);
        assert_eq!(step.token(&run, 1), Digest::of(format!("{run}|{step}|1").as_bytes()));
        assert_ne!(step.token(&run, 1), step.token(&run, 2));
    }
}
