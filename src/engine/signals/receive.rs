//! The receiver: which signals are taken, and what becomes of them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Taken, epoch_key, pieces, stands, token_key};
use crate::{
    engine::{
        conductor::{Ask, Conductor},
        handle::{Refusal, Signalled},
        ledger,
        view::signals::{AcceptedView, SignalsView},
    },
    lifecycle::locks::locked,
    model::{
        cause::Cause,
        event::{Purpose, Wanted},
        ids::{Digest, RunId},
        pipeline::{Environment, When},
        run::{RunState, Trigger},
        signal::{
            self, Answer, Deploy, Domain, MOST_BYTES, Newest, Order, Received, Rules, RunStands, Said, Signal, in_order,
        },
    },
    ports::{
        control::{Commit, CommitError, Revision},
        program::Loaded,
        signals::{Accepted, Listening},
    },
};

/// How often a change by somebody else is met before giving up.
const TRIES: usize = 16;

/// Takes the bytes of a signal and its signature, `<fingerprint> <base64>`; `piece` is what came beside it.
pub(in crate::engine) async fn take(
    conductor: &Conductor,
    document: &[u8],
    signature: &str,
    piece: Option<&[u8]>,
) -> Signalled {
    let world = &conductor.inner.world;
    let now_ms = world.clock.now().wall_ms;
    let (signal, key) = match genuine(conductor, document, signature) {
        Ok(found) => found,
        // Nobody knows who asks: nothing is signed for them.
        Err(cause) => {
            told(conductor, now_ms, None, &cause);
            return Signalled::Nobody { status: status(&cause), cause };
        }
    };
    let done = done(conductor, &signal, key, now_ms, piece).await;
    let (status, said) = match done {
        Ok((word, said)) => {
            conductor.inner.inbox.took(word);
            (if word == "deploy" { 202 } else { 200 }, said)
        }
        Err(cause) => {
            // Every sender asks first whether its order is known, and may stop one that never came.
            let asks = matches!(signal.order, Order::Follow { .. } | Order::Stop { .. });
            if cause.code == "signal_no_run" && asks {
                conductor.inner.inbox.took(signal.order.word());
            } else {
                told(conductor, now_ms, Some(&signal), &cause);
            }
            (status(&cause), Said::Refused { cause })
        }
    };
    answered(conductor, &signal, status, said)
}

fn told(conductor: &Conductor, now_ms: i64, signal: Option<&Signal>, cause: &Cause) {
    if conductor.inner.inbox.refused(now_ms, signal, cause) {
        let (project, order) = (signal.map(|s| s.project.as_str()), signal.map(|s| s.order.word()));
        tracing::warn!(project, order, code = cause.code, "a signal was refused: {}", cause.message);
    }
}

/// The answer, signed.
fn answered(conductor: &Conductor, signal: &Signal, status: u16, said: Said) -> Signalled {
    let world = &conductor.inner.world;
    let listening = &world.listening;
    let answer =
        Answer { version: signal::VERSION, nonce: signal.nonce.clone(), audience: listening.host.clone(), said };
    let body = signal::written(&answer);
    let signed = listening.key.as_ref().ok_or_else(off).and_then(|key| world.signer.sign(key, Domain::Answer, &body));
    match signed {
        Ok((key, signature)) => {
            Signalled::Answer { status, body, signature: format!("{} {signature}", key.fingerprint()) }
        }
        Err(cause) => Signalled::Nobody { status: self::status(&cause), cause },
    }
}

/// The HTTP status of a refusal.
fn status(cause: &Cause) -> u16 {
    match cause.code.as_str() {
        "signal_form" => 400,
        "signal_signature" => 401,
        "signal_audience" | "signal_not_allowed" => 403,
        "signal_off" | "signal_unknown" => 404,
        "signal_paused" | "signal_not_taken" | "signal_unsure" => 503,
        // Said without a signature, for want of it: it gets no better by asking again.
        "signal_key" => 500,
        _ => 409,
    }
}

fn off() -> Cause {
    Cause::new("signal_off", "this daemon listens to no signals: [signals] of its phased.toml names no key")
}

/// What costs the same for everybody: the size, then the signature of a key that is known, then the form.
fn genuine<'c>(conductor: &'c Conductor, document: &[u8], signature: &str) -> Result<(Signal, &'c Accepted), Cause> {
    let world = &conductor.inner.world;
    let Listening { key: Some(_), accept, .. } = &world.listening else { return Err(off()) };
    if document.len() > MOST_BYTES {
        return Err(Cause::new("signal_form", format!("it is larger than {} KiB", MOST_BYTES >> 10)));
    }
    // Always the same words: whoever has no key learns nothing of those that are known.
    let forged = || {
        let message = "it is not signed by a key that is accepted here (Phased-Signature: FINGERPRINT BASE64); add the sender's public \
                       key to `accept` in [signals]";
        Cause::new("signal_signature", message)
    };
    let (fingerprint, signature) = signature.split_once(' ').ok_or_else(forged)?;
    let accepted = accept.iter().find(|accepted| accepted.key.fingerprint() == fingerprint).ok_or_else(forged)?;
    if !world.signer.verify(&accepted.key, Domain::Signal, document, signature) {
        return Err(forged());
    }
    let signal = signal::read::<Signal>(document)
        .map_err(|why| Cause::new("signal_form", format!("the signal cannot be read: {why}")))?;
    Ok((signal, accepted))
}

/// Does what a genuine signal asks for, if it may: the word to count it by, and the answer.
async fn done(
    conductor: &Conductor,
    signal: &Signal,
    accepted: &Accepted,
    now_ms: i64,
    piece: Option<&[u8]>,
) -> Result<(&'static str, Said), Cause> {
    let listening = &conductor.inner.world.listening;
    let rules = Rules { host: &listening.host, projects: &accepted.projects, max_age: listening.max_age, now_ms };
    signal::check(signal, &rules)?;
    signal::remembered(signal, conductor.inner.since.wall_ms)?;
    locked(&conductor.inner.inbox.nonces).see(signal, &rules)?;
    let place = Place::of(conductor, signal)?;
    let word = signal.order.word();
    let said = match (&signal.order, piece) {
        (Order::Deploy(deploy), None) => return deployed(conductor, signal, deploy, accepted, &place, now_ms).await,
        (Order::Follow { token }, None) => {
            let run = run_of(conductor, signal, token)?;
            run_said(stands::run(conductor, &run).await?)
        }
        (Order::Stop { token, reason }, None) => {
            let run = stopped(conductor, signal, token, now_ms).await?;
            let stopped = conductor.stop(&run, false, Some(reason.clone()), &sender(accepted)).await;
            stopped.map_err(|refusal| not_taken(&refusal))?;
            run_said(stands::run(conductor, &run).await?)
        }
        (Order::Look { release, .. }, None) => {
            Said::Live(Box::new(stands::live(conductor, &place.loaded, place.environment(), release, now_ms).await))
        }
        (Order::Piece { blob, size, offset, sha256 }, Some(bytes)) => {
            let piece = pieces::Piece { blob, size: *size, offset: *offset, sha256, bytes };
            Said::Missing { blobs: vec![pieces::keep(conductor, piece).await?] }
        }
        (Order::Piece { .. }, None) | (_, Some(_)) => {
            let message = "a piece of a blob and a signal about it come together, and nothing else comes with bytes";
            return Err(Cause::new("signal_form", message));
        }
    };
    Ok((word, said))
}

/// What a signal is about here.
struct Place {
    loaded: Arc<Loaded>,
    at: usize,
}

impl Place {
    /// The environment, if it listens.
    fn of(conductor: &Conductor, signal: &Signal) -> Result<Place, Cause> {
        let unknown = |why: String| Cause::new("signal_unknown", why);
        let loaded = conductor
            .project(signal.project.as_str())
            .map_err(|_| unknown(format!("there is no project {} in the plugin directories here", signal.project)))?;
        let environments = &loaded.pipeline.environments;
        let Some(at) = environments.iter().position(|environment| environment.name == signal.environment) else {
            let known = environments.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", ");
            let message =
                format!("project {} has no environment {} here; it has {known}", signal.project, signal.environment);
            return Err(unknown(message));
        };
        if environments[at].when != When::Signal {
            let message = format!(
                "{}/{} does not listen to signals here: write when = \"signal\" in its project file",
                signal.project, signal.environment
            );
            return Err(unknown(message));
        }
        Ok(Place { loaded, at })
    }

    fn environment(&self) -> &Environment {
        &self.loaded.pipeline.environments[self.at]
    }
}

/// A deployment: the run that its token began, or a new one.
async fn deployed(
    conductor: &Conductor,
    signal: &Signal,
    deploy: &Deploy,
    accepted: &Accepted,
    place: &Place,
    now_ms: i64,
) -> Result<(&'static str, Said), Cause> {
    let control = &*conductor.inner.world.control;
    let (project, environment) = (&signal.project, &signal.environment);
    let (token_key, epoch_key) = (token_key(project, environment, &deploy.token), epoch_key(project, environment));
    // Two at the same moment: whoever writes second finds the first when it looks again.
    for _ in 0..TRIES {
        if let Some(entry) = control.get(&token_key) {
            // Kept also where what is remembered of nonces is not: in another life.
            if entry.value.get("nonce").and_then(Value::as_str) == Some(&*signal.nonce) {
                return Err(signal::replayed());
            }
            if entry.value.get("stopped").is_some() {
                let message = "its sender told it to stop before it began; nothing was done";
                return Err(Cause::new("signal_stopped", message));
            }
            let run = run_of(conductor, signal, &deploy.token)?;
            return Ok(("repeated", began(conductor, run).await));
        }
        let entry = control.get(&epoch_key);
        let newest = entry.as_ref().map(|entry| serde_json::from_value::<Newest>(entry.value.clone()));
        let newest = newest.transpose().map_err(|error| Cause::new("signal_not_taken", error.to_string()))?;
        in_order(signal, newest.as_ref())?;
        by_its_own_rules(conductor, deploy, place, now_ms)?;
        // Until the run names them no sweep takes them.
        let _hold = conductor.inner.world.blobs.hold();
        let missing = pieces::missing(conductor, &deploy.release.artifacts).await?;
        if !missing.is_empty() {
            return Ok(("missing", Said::Missing { blobs: missing }));
        }
        let received = Received {
            key: accepted.key.fingerprint(),
            token: deploy.token.clone(),
            run: deploy.run.clone(),
            release: deploy.release.clone(),
            back: deploy.back,
        };
        let taken = Taken {
            received,
            project: project.clone(),
            environment: environment.clone(),
            newest: Newest::of(deploy),
            nonce: signal.nonce.clone(),
        };
        let ask = Ask {
            wanted: Wanted::Named(deploy.release.revision.to_string()),
            environment: Some(environment.clone()),
            reason: deploy.reason.clone(),
            purpose: purpose(conductor, deploy, place),
            redeploy: true,
            retry_bad: deploy.retry_bad,
            signal: Some(Box::new(taken)),
            ..Ask::default()
        };
        let revision = entry.map_or_else(Revision::default, |entry| entry.revision);
        let only_if = [(token_key.clone(), Revision::default()), (epoch_key.clone(), revision)];
        let by = format!("{}, run {}", sender(accepted), deploy.run);
        let asked = conductor.request(&place.loaded.name, Trigger::Signal, by, ask, &only_if, Vec::new()).await;
        match asked {
            // Somebody else's came first.
            Ok(None) => {}
            Ok(Some(_)) => return Ok(("deploy", began(conductor, run_of(conductor, signal, &deploy.token)?).await)),
            Err(refusal) => {
                // Also one that waits for room on the disk was taken: it may still be done.
                let run = run_of(conductor, signal, &deploy.token).map_err(|_| not_taken(&refusal))?;
                return Ok(("deploy", began(conductor, run).await));
            }
        }
    }
    Err(Cause::new("signal_not_taken", "too many signals at once; send it again"))
}

/// What this daemon's own project file, and people here, say to it.
fn by_its_own_rules(conductor: &Conductor, deploy: &Deploy, place: &Place, now_ms: i64) -> Result<(), Cause> {
    if let Some(shut) = stands::shut(conductor, &place.loaded, place.environment(), now_ms, deploy.back) {
        return Err(shut);
    }
    // Somebody says so, or it puts back what was good here since.
    if deploy.retry_bad || !purpose(conductor, deploy, place).is_deploy() {
        return Ok(());
    }
    match ledger::bad_release(&*conductor.inner.world.control, &place.loaded.name, &deploy.release.id) {
        None => Ok(()),
        Some(bad) => {
            let message = format!("{} was found bad here by run {}: {}", deploy.release.id, bad.run, bad.cause.message);
            Err(Cause::new("signal_bad_release", message))
        }
    }
}

/// What the order is here. What was known-good here comes back as it does on every way back: by the code that made it so, past tests, hooks of
/// the deployment, canary and bake. What was never good here is new here, also where its sender goes back to it.
fn purpose(conductor: &Conductor, deploy: &Deploy, place: &Place) -> Purpose {
    let control = &*conductor.inner.world.control;
    let (project, environment) = (&place.loaded.name, &place.environment().name);
    match deploy.back && ledger::is_good(control, project, environment, &deploy.release.id) {
        true => Purpose::Rollback { to: Some(deploy.release.id.to_string()) },
        false => Purpose::Deploy,
    }
}

/// The run that a token began.
fn run_of(conductor: &Conductor, signal: &Signal, token: &Digest) -> Result<RunId, Cause> {
    let entry = conductor.inner.world.control.get(&token_key(&signal.project, &signal.environment, token));
    let run = entry.and_then(|entry| entry.value.get("run")?.as_str()?.parse().ok());
    run.ok_or_else(|| Cause::new("signal_no_run", "no run was begun here by a signal with this token"))
}

/// The run that is to be stopped. A token that has begun none never will: its order may still be under way.
async fn stopped(conductor: &Conductor, signal: &Signal, token: &Digest, now_ms: i64) -> Result<RunId, Cause> {
    let control = &*conductor.inner.world.control;
    let key = token_key(&signal.project, &signal.environment, token);
    if control.get(&key).is_none() {
        conductor.writable().map_err(|refusal| not_taken(&refusal))?;
        let tombstone = json!({ "stopped": true, "nonce": signal.nonce, "at_ms": now_ms });
        let puts = vec![(key.clone(), Some(tombstone))];
        match control.commit(Commit::Setting, &[(key, Revision::default())], puts) {
            Ok(ticket) => conductor.synced(&ticket).await.map_err(|refusal| not_taken(&refusal))?,
            // The order itself came meanwhile.
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(not_taken(&conductor.refused(&error))),
        }
    }
    run_of(conductor, signal, token)
}

/// What is answered once the token is in control: never that nothing was done.
async fn began(conductor: &Conductor, run: RunId) -> Said {
    let queued = RunStands { run: run.clone(), state: RunState::Queued, over: false, bad: false, cause: None };
    run_said(stands::run(conductor, &run).await.unwrap_or(queued))
}

fn run_said(stands: RunStands) -> Said {
    Said::Run(Box::new(stands))
}

/// Who asks, as runs and the audit name them.
fn sender(accepted: &Accepted) -> String {
    format!("signal of {}", accepted.key.name())
}

/// What a disk that fails has kept is seen at the next start: that is no word for nothing.
fn not_taken(refusal: &Refusal) -> Cause {
    let code = if matches!(refusal, Refusal::Degraded(_)) { "signal_unsure" } else { "signal_not_taken" };
    Cause::new(code, refusal.to_string())
}

/// What people see of it.
pub(in crate::engine) fn view(conductor: &Conductor) -> SignalsView {
    let world = &conductor.inner.world;
    let listening = &world.listening;
    let own = listening.key.as_ref().map(|key| world.signer.sign(key, Domain::Answer, b""));
    let counts = locked(&conductor.inner.inbox.counts);
    SignalsView {
        listens: listening.key.is_some(),
        host: listening.host.to_string(),
        key: own.and_then(Result::ok).map(|(key, _)| key.to_string()),
        accept: listening
            .accept
            .iter()
            .map(|accepted| AcceptedView {
                key: accepted.key.to_string(),
                fingerprint: accepted.key.fingerprint(),
                projects: accepted.projects.clone(),
            })
            .collect(),
        since: conductor.inner.since.rfc3339(),
        taken: counts.taken.iter().map(|(word, n)| ((*word).to_owned(), *n)).collect(),
        refused: counts.refused.clone(),
        recent: counts.recent.iter().cloned().collect(),
    }
}
