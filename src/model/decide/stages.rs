//! The test stages: in order, the first failure ends the run, cleanup always.

use super::{
    Decision,
    calls::{call, undo},
    cut_short, end, environments,
};
use crate::{
    model::{
        cause::Cause,
        run::{CallEnd, Progress, Run, RunState, StageRun},
        step::CallKey,
    },
    time::Stamp,
};

/// The test stages: in order, the first failure ends the run, cleanup always.
pub(super) fn stages(run: &Run, now: &Stamp, decision: &mut Decision) {
    if run.passed.is_some() && !run.header.request.retest {
        return environments::environments(run, now, decision);
    }
    for (stage, spec) in run.stages.iter().zip(&run.header.pipeline.stages) {
        let call = |function: &str| {
            call(run, CallKey::stage(spec.name.as_str(), function), format!("test/{}/{function}", spec.name))
        };
        let ending = cut_short(run);
        for (function, progress) in stage.functions() {
            undo(run, &CallKey::stage(spec.name.as_str(), function), progress, decision);
        }
        if stage.functions().iter().any(|(_, progress)| progress.is_open()) {
            return;
        }
        match (&stage.setup, &stage.run, &stage.cleanup) {
            (Progress::Due, Progress::Due, _) if ending.is_some() => {}
            (Progress::Due, Progress::Due, _) if spec.setup => return decision.act(call("setup")),
            (Progress::Due | Progress::Ended(CallEnd::Returned), Progress::Due, Progress::Due) if ending.is_none() => {
                return decision.act(call("run"));
            }
            (.., Progress::Due) if spec.cleanup => return decision.act(call("cleanup")),
            _ => {}
        }
        if let Some(cause) = stage_cause(stage, spec.name.as_str()) {
            // An author's failure stays one although a stop came while it was cleaned up.
            let state = if cause.code == "stopped" { RunState::Stopped } else { RunState::Failed };
            return end(run, decision, state, Some(cause));
        }
        if stage.run == Progress::Due {
            // Its turn never came, though its setup may have gone well: what was not run was not passed.
            if let Some((state, cause)) = ending {
                return end(run, decision, state, Some(cause));
            }
        }
    }
    environments::environments(run, now, decision);
}

/// Why a stage that is over did not succeed: what failed first. A cleanup that fails is a failure too: it leaves a mess.
pub(super) fn stage_cause(stage: &StageRun, name: &str) -> Option<Cause> {
    let (function, cause) = stage
        .functions()
        .into_iter()
        .find_map(|(function, progress)| progress.cause().map(|cause| (function, cause)))?;
    let cause = cause.clone().with("stage", name);
    Some(if function == "run" { cause } else { cause.with("function", function) })
}
