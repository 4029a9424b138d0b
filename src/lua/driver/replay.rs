//! Replay: a call's VM is brought to where its journal ends, by the answers that the journal holds and in their order. Nothing has an
//! effect on the way; what the code asks for is held against what the journal says was begun.

use std::collections::{BTreeMap, BTreeSet};

use mlua::Value;
use serde_json::Value as Json;

use super::{Stand, Vm};
use crate::{
    model::{
        canonical,
        cause::Cause,
        step::{CallKey, Outcome, Request, StepKey, Target, Verb},
    },
    ports::program::Past,
};

/// What of a call's requests has been seen.
struct Seen<'a> {
    call: &'a CallKey,
    begun: BTreeMap<&'a StepKey, (&'a Target, &'a Json)>,
    /// Asked for and not answered.
    open: BTreeMap<StepKey, Request>,
    /// Lines of the log, in order.
    logs: Vec<Request>,
    /// Begun according to the journal, and asked for.
    met: BTreeSet<StepKey>,
}

/// Goes on from `back` by what `past` holds; where the call stands then, its log again, and what it waits for.
///
/// # Errors
/// `diverged`, with both sides: the code asks for something else than the journal holds. Or why the call was being ended when the
/// journal ends, or the limit it has reached.
pub(super) fn go(
    vm: &Vm,
    call: &CallKey,
    back: mlua::Result<Value>,
    past: &[Past],
) -> Result<(Stand, Vec<Request>), Cause> {
    let (stand, seen, ending) = answered(vm, call, back, past)?;
    if let Stand::Ended(cause) = stand {
        // A limit that was reached is no disagreement.
        return Err(cause);
    }
    if let Some(cause) = ending {
        return Err(cause);
    }
    if let Some((key, (_, args))) = seen.begun.iter().find(|(key, _)| !seen.met.contains(**key)) {
        return Err(seen.diverged(&format!("{key} was begun with {}", canonical::to_string(args)), &seen.asks(&stand)));
    }
    Ok((stand, seen.logs.into_iter().chain(seen.open.into_values()).collect()))
}

/// As [`go`], for a call that is over: all that is wanted of it is what it has left to be undone.
///
/// # Errors
/// `diverged`; or the limit that ended it and ends it again, for no VM is fit for anything after that.
pub(super) fn over(vm: &Vm, call: &CallKey, back: mlua::Result<Value>, past: &[Past]) -> Result<(), Cause> {
    match answered(vm, call, back, past)? {
        (Stand::Ended(cause), ..) => Err(cause),
        _ => Ok(()),
    }
}

/// Gives every answer of `past`. The cause: it was being ended from outside; a step that was cut for it has no answer, and its fibre
/// waits for ever.
fn answered<'a>(
    vm: &Vm,
    call: &'a CallKey,
    back: mlua::Result<Value>,
    past: &'a [Past],
) -> Result<(Stand, Seen<'a>, Option<Cause>), Cause> {
    let begun = past.iter().filter_map(|past| match past {
        Past::Begun { key, target, args } => Some((key, (target, args))),
        Past::Done { .. } => None,
    });
    let mut seen = Seen { call, begun: begun.collect(), open: BTreeMap::new(), logs: Vec::new(), met: BTreeSet::new() };
    let (mut stand, mut ending) = (seen.take(vm.stand(back))?, None);
    for past in past {
        let Past::Done { key, outcome } = past else { continue };
        if let Outcome::Cut { cause } = outcome {
            ending.get_or_insert_with(|| cause.clone());
            continue;
        }
        if let Stand::Ended(_) = stand {
            break;
        }
        let Some(request) = seen.open.remove(key).filter(|_| matches!(stand, Stand::Waits)) else {
            return Err(seen.diverged(&format!("{key} was answered"), &seen.asks(&stand)));
        };
        vm.sandbox.turn();
        stand = seen.take(vm.stand(vm.go_on(&request.branch, outcome)))?;
    }
    Ok((stand, seen, ending))
}

impl Seen<'_> {
    fn take(&mut self, (stand, asked): (Stand, Vec<Request>)) -> Result<Stand, Cause> {
        for request in asked {
            if request.verb == Verb::Log {
                self.logs.push(request);
                continue;
            }
            let key = StepKey::new(self.call, &request.branch, request.verb.as_str(), request.n);
            if let Some((target, args)) = self.begun.get(&key) {
                let (journal, code) = (canonical::to_string(args), canonical::to_string(&request.args));
                if journal != code || **target != request.target {
                    let said = |target: &Target, args: &str| format!("{key} on {} with {args}", place(target));
                    return Err(self.diverged(&said(target, &journal), &said(&request.target, &code)));
                }
                self.met.insert(key.clone());
            }
            self.open.insert(key, request);
        }
        Ok(stand)
    }

    /// What the code does instead of what the journal holds.
    fn asks(&self, stand: &Stand) -> String {
        let open = self.open.iter().filter(|(key, _)| !self.begun.contains_key(key));
        let open: Vec<String> =
            open.take(3).map(|(key, request)| format!("{key} with {}", canonical::to_string(&request.args))).collect();
        match stand {
            Stand::Done(Ok(_)) => "it returns".to_owned(),
            Stand::Done(Err(cause)) | Stand::Ended(cause) => format!("it fails: {}", cause.message),
            Stand::Waits if open.is_empty() => "it asks for nothing".to_owned(),
            Stand::Waits => open.join(", "),
        }
    }

    fn diverged(&self, journal: &str, code: &str) -> Cause {
        let cut = |text: &str| text.chars().take(2000).collect::<String>();
        let (journal, code) = (cut(journal), cut(code));
        let message = format!(
            "the replay of {} does not agree with its journal, so nobody can tell how it was to go on. The journal: {journal}. The code \
             now: {code}. Look at what it has done, then start the run again",
            self.call
        );
        Cause::new("diverged", message).with("call", self.call.as_str()).with("journal", journal).with("code_now", code)
    }
}

fn place(target: &Target) -> &str {
    match target {
        Target::Local => "the integration server",
        Target::Host(host) => host.as_str(),
    }
}
