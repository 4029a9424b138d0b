//! What a run's commands have left running on the integration server is ended once nobody needs it any more: a server that a test began
//! in the background would keep its port, its memory and, in the job unit, its place from everybody after it.
//!
//! How it is found: by the units the commands were in, where the job unit starts them, which nothing leaves; and by `PHASED_RUN` in the
//! environment, wherever they run.
//!
//! What this machine has kept of the commands, how they ended and what they printed, goes with it: all of that is in the run's journal by then.

use std::time::Duration;

use super::{
    Discard, GRACE, Session,
    channel::{Answer, Nothing, Reply, Request, one_line},
    program,
};
use crate::{
    model::{cause::Cause, ids::Digest},
    ports::link::{LinkError, REFUSED},
    time::within,
};

/// How long it may take in all: a channel is waited for as long as that of a command.
const LIMIT: Duration = Duration::from_secs(60).saturating_add(REFUSED);
/// The longest pause between two attempts.
const PAUSE: Duration = Duration::from_secs(2);

/// What was left running.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Left {
    /// Processes there were.
    pub found: u32,
    /// That run still: nothing ends them.
    pub remain: u32,
    /// The programs of the first of them.
    pub names: String,
}

impl Left {
    /// What became of it, in words that follow a name of who left it; `None` where there was nothing.
    pub fn told(left: &Result<Left, Cause>) -> Option<String> {
        Some(match left {
            Ok(Left { found: 0, .. }) => return None,
            Ok(Left { found, remain: 0, names }) => {
                format!("left {found} processes running, which were ended: {names}")
            }
            Ok(Left { found, remain, names }) => {
                format!("left {found} processes running, of which {remain} could not be ended: {names}")
            }
            Err(cause) => format!("may have left processes running, which were not ended: {}", cause.message),
        })
    }
}

impl Session {
    /// Ends what commands of its run have left running: TERM, and KILL after a grace. Commands that are under way are ended with it. Of those
    /// that had ended the machine forgets how, so that must be on our disk; asked for once more a command is not begun, and `Void`.
    ///
    /// # Errors
    /// `LinkError`'s, `timeout`, or `internal`: the session is of no run. Doing it again completes it; so cancel safe, too.
    pub async fn end_left(&self) -> Result<Left, Cause> {
        let Some(run) = self.run_of() else { return Err(Cause::new("internal", "the session is of no run")) };
        let mark = program::mark(&Digest::of(format!("left {run}").as_bytes()));
        let build = |frame: &program::Frame<'_>| program::left(frame, GRACE);
        let request = Request { build: &build, mark: &mark, from: [0; 2], follow: None };
        let began = self.clock().now();
        let asking = async {
            let mut pause = PAUSE / 16;
            loop {
                let (mut at, mut sent) = ([0; 2], false);
                let (mut sink, mut feed) = (Discard, Nothing);
                let mut reply = Reply { sink: &mut sink, feed: &mut feed, at: &mut at, sent: &mut sent };
                let error = match self.link().await {
                    Err(error) => error,
                    Ok(link) => match self.ask(&link, &request, &mut reply).await {
                        Answer::Words(words) => return read(&words),
                        Answer::Refused(cause) => return Err(cause),
                        Answer::More => continue,
                        Answer::Cut { error, broken } => {
                            self.forget(&link, broken).await;
                            error
                        }
                    },
                };
                let again = matches!(error.cause.code.as_str(), "channel_refused" | "connection_lost");
                if !again || self.clock().now().since(&began) > REFUSED {
                    return Err(error.cause);
                }
                self.pause(pause).await;
                pause = (pause * 2).min(PAUSE);
            }
        };
        let silent = || Cause::new("timeout", "this machine has not said in time what was left running");
        within(self.clock(), LIMIT, asking).await.unwrap_or_else(|| Err(silent()))
    }
}

fn read(words: &[String]) -> Result<Left, Cause> {
    let number = |word: &String| word.parse::<u32>().ok();
    if let [verb, found, remain, names @ ..] = words
        && let ("left", Some(found), Some(remain)) = (verb.as_str(), number(found), number(remain))
    {
        let names = one_line(names.join(" ").as_bytes());
        return Ok(Left { found, remain, names: names.trim_end_matches(';').trim_end().to_owned() });
    }
    let message = format!("the answer is not understood: {}", one_line(words.join(" ").as_bytes()));
    Err(LinkError::new("host_unsupported", message).cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_it_is_told_in_one_sentence() {
        let left = |found, remain| Ok(Left { found, remain, names: "sleep; sh".to_owned() });
        let told = |left: Result<Left, Cause>| Left::told(&left);
        assert_eq!(told(left(0, 0)), None);
        assert_eq!(told(left(2, 0)).unwrap(), "left 2 processes running, which were ended: sleep; sh");
        assert_eq!(told(left(2, 1)).unwrap(), "left 2 processes running, of which 1 could not be ended: sleep; sh");
        let unknown = told(Err(Cause::new("timeout", "nobody answers"))).unwrap();
        assert_eq!(unknown, "may have left processes running, which were not ended: nobody answers");
    }
}
