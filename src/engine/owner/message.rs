//! What reaches an owner, and how far it says that its run is.

use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::change::Change;
use crate::{
    lifecycle::{pulse::Beat, watch},
    model::{
        cause::Cause,
        event::Event,
        ids::{EnvironmentName, HostId},
        step::{CallKey, Outcome, StepKey},
    },
    ports::{
        blobs::Hold,
        program::{Opening, Sink, Turn},
    },
};

/// What reaches an owner. The queue is bounded; whoever sends waits.
pub(in crate::engine) enum Message {
    /// A call had its turn.
    Turn(CallKey, Turn),
    /// An action of this name brought forth these facts.
    Facts { action: String, events: Vec<Event>, over: bool },
    /// An attempt of a step ended.
    StepDone { key: StepKey, attempt: u32, outcome: Outcome, hold: Option<Hold> },
    /// Somebody wants something else of a deployment under way; answered once that is on disk, or with why it cannot be.
    Change { environment: EnvironmentName, change: Change, by: String, reason: Option<String>, reply: Reply },
    /// Somebody wants the run to end; answered once that is on disk.
    Stop { by: String, now: bool, reason: Option<String>, reply: oneshot::Sender<Result<(), String>> },
    /// A host answered for the first time, as this machine; answered once that is on disk.
    HostMet {
        deployment: u32,
        host: HostId,
        machine: String,
        key: Option<String>,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// A call that failed has been read and is to be undone: how it began, and what it did.
    Undo { action: String, key: CallKey, opening: Box<Opening> },
    /// Everything is done: control knows of the end. Or why the run stands still.
    Finished(Result<(), String>),
    /// Somebody wants to know whether this owner, and the Lua of its run, still work.
    Beat(Beat),
}

/// Who waits for an answer: whether the deployment has touched anything.
pub(super) type Reply = oneshot::Sender<Result<bool, Cause>>;

/// How far a run is, for the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::engine) enum Progress {
    /// It holds the project's testing slot.
    Testing,
    /// It is past it.
    Deploying,
    /// It is over.
    Over,
}

/// A run never goes back.
pub(super) fn further(progress: &watch::Sender<Progress>, to: Progress) {
    progress.send_if_modified(|now| {
        let further = to > *now;
        *now = to.max(*now);
        further
    });
}

/// Where a program tells what its calls do.
pub(in crate::engine) fn turns(sender: mpsc::Sender<Message>) -> Sink {
    Box::new(move |key, turn| {
        // A program that answers at once, in its owner's own task, finds room; it could not wait for any.
        if let Err(TrySendError::Full(message)) = sender.try_send(Message::Turn(key.clone(), turn)) {
            // On the program's own thread: waiting there is what bounds the queue.
            let _owner_gone = sender.blocking_send(message);
        }
    })
}
