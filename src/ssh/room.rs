//! How many sessions and handshakes there may be at the same moment: of the whole daemon, and sessions of one environment.
//!
//! Whoever comes when there is no room waits in line. A session's place is taken before anything is sent and given back when the session is
//! gone, so that there are never more of them than there may be.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    config::Limits,
    lifecycle::watch,
    model::host_key::Realm,
    ports::link::LinkError,
    time::{Clock, Span, within},
};

/// The longest wait in line: sessions that are in use come to an end, but not always soon.
pub(super) const WAIT: Duration = Duration::from_secs(300);

/// The longest wait for a turn of a server that has greeted: it waits too, and not for ever (sshd's `LoginGraceTime` is 120 s).
const GREETED: Duration = Duration::from_secs(30);

/// Limits of the daemon on its sessions to hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SshLimits {
    /// Sessions to hosts; those to bastions are few and not counted.
    pub sessions: usize,
    /// Handshakes under way.
    pub handshakes: usize,
}

impl Default for SshLimits {
    fn default() -> Self {
        let Limits { sessions, handshakes, .. } = Limits::default();
        SshLimits { sessions, handshakes }
    }
}

/// Room for sessions.
pub(super) struct Room {
    all: Arc<Semaphore>,
    limits: SshLimits,
    /// By environment and its limit: a run with older code may have another one.
    some: Mutex<BTreeMap<(Realm, u32), Arc<Semaphore>>>,
    handshakes: Arc<Semaphore>,
    waiting: watch::Sender<usize>,
}

/// A session's place.
pub(super) struct Held {
    _all: OwnedSemaphorePermit,
    _some: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(super) fn new(limits: SshLimits) -> Self {
        Room {
            all: Arc::new(Semaphore::new(limits.sessions)),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            some: Mutex::default(),
            waiting: watch::Sender::new(0),
            limits,
        }
    }

    /// How many wait for a session's place.
    pub(super) fn waiting(&self) -> watch::Receiver<usize> {
        self.waiting.subscribe()
    }

    /// A place for a session to a host of `realm`, once there is one. Cancel safe.
    ///
    /// # Errors
    /// `session_limit`: there was none for too long.
    pub(super) async fn session(&self, clock: &dyn Clock, realm: &Realm, most: Option<u32>) -> Result<Held, LinkError> {
        let some = match most {
            None => None,
            Some(most) => {
                let line = self.line(realm, most);
                let what = || format!("{realm} has ssh.max_sessions = {most}, and all of them are");
                Some(self.place(clock, &line, what).await?)
            }
        };
        // The daemon's own comes last: nobody keeps others waiting with a place that is of no use yet.
        let what = || format!("[limits] sessions = {}, and all of them are", self.limits.sessions);
        let all = self.place(clock, &self.all, what).await?;
        Ok(Held { _all: all, _some: some })
    }

    /// A turn for a handshake. Cancel safe.
    ///
    /// # Errors
    /// `session_limit`: there was none for too long.
    pub(super) async fn handshake(&self, clock: &dyn Clock) -> Result<OwnedSemaphorePermit, LinkError> {
        let turn = within(clock, GREETED, Arc::clone(&self.handshakes).acquire_owned()).await;
        turn.and_then(Result::ok).ok_or_else(|| {
            in_vain(&format!("[limits] handshakes = {}, and all of them are", self.limits.handshakes), GREETED)
        })
    }

    fn line(&self, realm: &Realm, most: u32) -> Arc<Semaphore> {
        let mut some = self.some.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody stands in or has a place of are made anew when they are wanted.
        some.retain(|(_, most), line| Arc::strong_count(line) > 1 || line.available_permits() < *most as usize);
        let line = some.entry((realm.clone(), most)).or_insert_with(|| Arc::new(Semaphore::new(most as usize)));
        Arc::clone(line)
    }

    async fn place(
        &self,
        clock: &dyn Clock,
        line: &Arc<Semaphore>,
        what: impl Fn() -> String,
    ) -> Result<OwnedSemaphorePermit, LinkError> {
        if let Ok(free) = Arc::clone(line).try_acquire_owned() {
            return Ok(free);
        }
        let _in_line = InLine::stand(&self.waiting);
        let place = within(clock, WAIT, Arc::clone(line).acquire_owned()).await;
        place.and_then(Result::ok).ok_or_else(|| in_vain(&what(), WAIT))
    }
}

fn in_vain(what: &str, waited: Duration) -> LinkError {
    let message =
        format!("nothing was sent to the host: {what} in use for {}. Raise it, or do less at once", Span(waited));
    LinkError::new("session_limit", message)
}

/// Counted for as long as it is held.
struct InLine<'w>(&'w watch::Sender<usize>);

impl<'w> InLine<'w> {
    fn stand(waiting: &'w watch::Sender<usize>) -> Self {
        waiting.send_modify(|n| *n += 1);
        InLine(waiting)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lifecycle::Tasks, time::SystemClock};

    fn realm(environment: &str) -> Realm {
        Realm { project: "shop".parse().unwrap(), environment: environment.parse().unwrap() }
    }

    #[tokio::test]
    async fn there_are_never_more_sessions_than_there_may_be() {
        let (room, clock) = (Arc::new(Room::new(SshLimits { sessions: 3, handshakes: 1 })), SystemClock::new());
        let (staging, production, tasks) = (realm("staging"), realm("production"), Tasks::new());
        let first = room.session(&clock, &staging, Some(1)).await.unwrap();
        let waits = |of: &Realm, most| {
            let (room, of, clock) = (Arc::clone(&room), of.clone(), SystemClock::new());
            tasks.spawn("waits", async move { room.session(&clock, &of, most).await.unwrap() })
        };
        // One environment's line is no other's, and who stands in it takes no place of the daemon's.
        let second = waits(&staging, Some(1));
        let (a, _b) = (
            room.session(&clock, &production, None).await.unwrap(),
            room.session(&clock, &production, None).await.unwrap(),
        );
        let mut waiting = room.waiting();
        waiting.wait_for(|n| *n == 1).await.unwrap();
        // The place in the environment is there; the daemon's is not before another one goes.
        let third = waits(&production, None);
        waiting.wait_for(|n| *n == 2).await.unwrap();
        assert_eq!(room.all.available_permits(), 0);
        drop(a);
        let _third = third.await.unwrap();
        drop(first);
        let _second = second.await.unwrap();
        assert_eq!((*room.waiting().borrow(), room.all.available_permits()), (0, 0));
    }

    /// A clock on which every wait is over at once.
    struct Hasty(SystemClock);

    #[async_trait::async_trait]
    impl Clock for Hasty {
        fn now(&self) -> crate::time::Stamp {
            self.0.now()
        }
        async fn sleep(&self, _: Duration) {}
    }

    #[tokio::test]
    async fn a_wait_in_vain_says_which_limit_it_was() {
        let (room, clock) = (Room::new(SshLimits { sessions: 1, handshakes: 1 }), Hasty(SystemClock::new()));
        let _held = room.session(&clock, &realm("staging"), None).await.unwrap();
        let error = room.session(&clock, &realm("staging"), None).await.err().unwrap();
        assert!(
            error.cause.code == "session_limit" && error.cause.message.contains("[limits] sessions = 1"),
            "{error}"
        );
        let _turn = room.handshake(&clock).await.unwrap();
        assert!(room.handshake(&clock).await.unwrap_err().cause.message.contains("handshakes = 1"));
        let room = Room::new(SshLimits { sessions: 2, handshakes: 1 });
        let _held = room.session(&clock, &realm("staging"), Some(1)).await.unwrap();
        let error = room.session(&clock, &realm("staging"), Some(1)).await.err().unwrap();
        assert!(error.cause.message.contains("shop staging has ssh.max_sessions = 1"), "{error}");
        assert_eq!(*room.waiting().borrow(), 0);
    }
}
