//! How a verb ends: why one did not do what it should, and the exit codes, a contract with scripts.

use std::process::ExitCode;

use crate::{api::problem::Problem, engine::view::RunView, model::deployment::DeploymentState, model::run::RunState};

/// Why a verb did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The command line says something impossible.
    #[error("{0}")]
    Usage(String),
    /// There is no daemon at the other end.
    #[error("{0}")]
    Unreachable(String),
    /// The daemon answered, but not as it should.
    #[error("{0}")]
    Broken(String),
    /// The daemon refused.
    #[error("{}", .0.detail)]
    Problem(Problem),
    /// Nobody reads our output any more.
    #[error("the output was closed")]
    OutputClosed,
}

/// How a verb ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Code {
    Ok = 0,
    Error = 1,
    Usage = 2,
    RunFailed = 3,
    RolledBack = 4,
    Paused = 5,
    TimedOut = 6,
    NotAuthorised = 7,
    NotFound = 8,
    Conflict = 9,
    Unreachable = 10,
    Interrupted = 130,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        ExitCode::from(code as u8)
    }
}

impl Code {
    /// Of a run that was waited for.
    pub(super) fn of_run(run: &RunView) -> Code {
        match run.state {
            RunState::Succeeded => Code::Ok,
            RunState::Failed | RunState::RollbackFailed | RunState::Halted | RunState::Stopped | RunState::Damaged => {
                Code::RunFailed
            }
            RunState::RolledBack => Code::RolledBack,
            RunState::Superseded => Code::Conflict,
            RunState::Queued | RunState::Testing | RunState::Deploying if is_paused(run) => Code::Paused,
            RunState::Queued | RunState::Testing | RunState::Deploying => Code::TimedOut,
        }
    }

    pub(super) fn of_failure(failure: &Failure) -> Code {
        match failure {
            Failure::Usage(_) => Code::Usage,
            Failure::Unreachable(_) => Code::Unreachable,
            Failure::Broken(_) => Code::Error,
            // Whoever reads our output has enough of it: `phased runs | head`.
            Failure::OutputClosed => Code::Ok,
            Failure::Problem(problem) => match problem.status {
                401 | 403 => Code::NotAuthorised,
                404 => Code::NotFound,
                409 => Code::Conflict,
                504 if problem.code == "wait_timed_out" => Code::TimedOut,
                424 => problem.run.as_deref().map_or(Code::RunFailed, Code::of_run),
                _ => Code::Error,
            },
        }
    }
}

/// Whether it goes on only when somebody says so.
pub(super) fn is_paused(run: &RunView) -> bool {
    !run.state.is_end() && run.deployments.iter().any(|d| d.state == DeploymentState::Paused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{problem::Problem, render::tests::a_run};

    #[test]
    fn runs_end_with_their_code() {
        for (state, code) in [
            ("succeeded", 0),
            ("failed", 3),
            ("halted", 3),
            ("stopped", 3),
            ("damaged", 3),
            ("rollback_failed", 3),
            ("rolled_back", 4),
            ("superseded", 9),
            ("deploying", 6),
        ] {
            assert_eq!(Code::of_run(&a_run(state)) as u8, code, "{state}");
        }
        let mut paused = a_run("deploying");
        paused.deployments[0].state = DeploymentState::Paused;
        assert_eq!(Code::of_run(&paused) as u8, 5);
    }

    #[test]
    fn failures_end_with_their_code() {
        for (status, code, exit) in [
            (401, "token_missing", 7),
            (403, "insufficient_scope", 7),
            (404, "project_unknown", 8),
            (409, "nothing_to_stop", 9),
            (504, "wait_timed_out", 6),
            (504, "other", 1),
            (422, "ref_unknown", 1),
            (502, "git_unreachable", 1),
            (503, "degraded", 1),
            (500, "internal", 1),
        ] {
            let problem = Problem::new(hyper::http::StatusCode::from_u16(status).unwrap(), code, "x");
            assert_eq!(Code::of_failure(&Failure::Problem(problem)) as u8, exit, "{status} {code}");
        }
        assert_eq!(Code::of_failure(&Failure::Unreachable(String::new())) as u8, 10);
        assert_eq!(Code::of_failure(&Failure::Usage(String::new())) as u8, 2);
    }
}
