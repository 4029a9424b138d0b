//! What systemd is told: sd_notify(3). Without `NOTIFY_SOCKET` nobody is told anything.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sd_notify::NotifyState;

use crate::{
    engine::{Conductor, reload::Reload},
    lifecycle::Tasks,
    model::cause::one_line,
    time::{Clock, Stamp},
};

/// The status changes with every step of every run; people look at it now and then.
const RARELY: Duration = Duration::from_secs(1);

/// How much longer a start may take after each sign that it goes on, as long as systemd gives it by default.
const MORE: Duration = Duration::from_secs(90);

/// The longest status, in characters: `systemctl status` shows one line.
const LONGEST: usize = 400;

/// Who started the daemon, if they want to hear of it; by default nobody does. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Manager {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    listens: bool,
    /// What runs.
    work: String,
    /// Why the last reload changed nothing.
    refused: Option<String>,
    /// The status that was sent last.
    sent: String,
    /// When more time to start was last asked for.
    extended: Option<Stamp>,
}

impl State {
    fn status(&self) -> String {
        let status = match &self.refused {
            Some(why) => format!("reload failed: {why} | {}", self.work),
            None => self.work.clone(),
        };
        one_line(&status, LONGEST)
    }
}

impl Manager {
    /// Whoever `NOTIFY_SOCKET` names.
    #[must_use]
    pub fn of_environment() -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        Manager { state: Arc::new(Mutex::new(State { listens, ..State::default() })) }
    }

    fn say(&self, words: &[NotifyState<'_>]) {
        let listens = self.state.lock().unwrap_or_else(PoisonError::into_inner).listens;
        if listens && let Err(error) = sd_notify::notify(words) {
            tracing::warn!(%error, "the service manager cannot be told: {words:?}");
        }
    }

    /// Changes what is to be said of the daemon and says it, with `words` before it; without any only where it is news.
    fn change(&self, words: &[NotifyState<'_>], change: impl FnOnce(&mut State)) {
        let status = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut state);
            let status = state.status();
            if words.is_empty() && status == state.sent {
                return;
            }
            state.sent.clone_from(&status);
            status
        };
        let mut all = words.to_vec();
        all.push(NotifyState::Status(&status));
        self.say(&all);
    }

    /// It does this, and does not answer yet.
    pub fn starting(&self, what: &str) {
        self.change(&[], |state| state.work = what.to_owned());
    }

    /// The start goes on, and may take longer: there may be many journals. Said at most every second.
    pub fn starts_on(&self, n: usize, all: usize, clock: &dyn Clock) {
        let now = clock.now();
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.extended.as_ref().is_some_and(|at| now.since(at) < RARELY) {
                return;
            }
            state.extended = Some(now);
        }
        let more = NotifyState::ExtendTimeoutUsec(u32::try_from(MORE.as_micros()).unwrap_or(u32::MAX));
        self.change(&[more], |state| state.work = format!("starting: {n} of {all} runs looked at"));
    }

    /// It answers, and what was left unfinished is taken up.
    pub fn ready(&self, work: String) {
        self.change(&[NotifyState::Ready], |state| state.work = work);
    }

    /// It does this now.
    pub fn works(&self, work: String) {
        self.change(&[], |state| state.work = work);
    }

    /// The projects are being loaded anew. Both words are one message: a manager that got the first alone would take the reload for one
    /// that hangs (systemd 253 and later).
    pub fn reloading(&self) {
        let mut words = vec![NotifyState::Reloading];
        words.extend(NotifyState::monotonic_usec_now());
        self.change(&words, |_| {});
    }

    /// They are, or what was loaded stays.
    pub fn reloaded(&self, done: Result<usize, String>) {
        self.change(&[NotifyState::Ready], |state| state.refused = done.err().map(|why| first_lines(&why)));
    }

    /// It goes down.
    pub fn stopping(&self) {
        self.change(&[NotifyState::Stopping], |state| {
            state.refused = None;
            state.work = "going down; runs go on with the next start".to_owned();
        });
    }

    /// It works.
    pub fn ping(&self) {
        self.say(&[NotifyState::Watchdog]);
    }

    /// Keeps whoever started the daemon up to date until it goes down.
    pub fn follow(&self, conductor: &Conductor, tasks: &Tasks, clock: Arc<dyn Clock>) {
        if !self.state.lock().unwrap_or_else(PoisonError::into_inner).listens {
            return;
        }
        tasks.spawn("service status", follow_work(self.clone(), conductor.clone(), tasks.clone(), clock));
        tasks.spawn("service reloads", follow_reloads(self.clone(), conductor.clone(), tasks.clone()));
    }
}

async fn follow_work(manager: Manager, conductor: Conductor, tasks: Tasks, clock: Arc<dyn Clock>) {
    let (stopping, mut versions) = (tasks.stopping(), conductor.versions());
    loop {
        manager.works(conductor.summary());
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            // What is wrong and who waits may change without a view.
            () = clock.sleep(RARELY * 10) => {}
            changed = versions.changed() => if changed.is_err() { return },
        }
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = clock.sleep(RARELY) => {}
        }
    }
}

async fn follow_reloads(manager: Manager, conductor: Conductor, tasks: Tasks) {
    let (stopping, mut reloads) = (tasks.stopping(), conductor.reloads());
    let mut told = 0;
    loop {
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            changed = reloads.changed() => if changed.is_err() { return },
        }
        let Reload { number, done } = reloads.borrow_and_update().clone();
        if told != number {
            // Also where its beginning and its end were seen at once.
            manager.reloading();
            told = number;
        }
        if let Some(done) = done {
            manager.reloaded(done);
        }
    }
}

/// A refusal's heading and the first thing that is wrong.
fn first_lines(why: &str) -> String {
    let mut lines = why.lines();
    let first: Vec<&str> = lines.by_ref().take(2).collect();
    match lines.count() {
        0 => first.join(" "),
        more => format!("{} (and {more} more)", first.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_that_a_reload_failed_until_one_works() {
        let mut state = State { work: "idle, 1 project".to_owned(), ..State::default() };
        assert_eq!(state.status(), "idle, 1 project");
        state.refused = Some(first_lines("the projects were not reloaded:\nshop.lua:1:1: error: no\nb\nc"));
        let status =
            "reload failed: the projects were not reloaded: shop.lua:1:1: error: no (and 2 more) | idle, 1 project";
        assert_eq!(state.status(), status);
        state.refused = Some("x\u{1b}[31m".repeat(500));
        assert_eq!(state.status().chars().count(), LONGEST);
        assert!(!state.status().chars().any(char::is_control));
    }
}
