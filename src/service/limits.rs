//! File descriptors: as many as there may be, and a word where that is too few for what the configuration allows.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Limits;

/// More than this nobody needs, and programs that close every descriptor there might be would take minutes over a billion of them.
const MOST: u64 = 524_288;

/// What the daemon has open besides sessions: connections to its API, journals, logs of commands, the index.
const BESIDES: u64 = 2 * 1024 + 512;

/// An SSH session, and the end of a local command or a bastion's channel beside it.
const PER_SESSION: u64 = 2;

/// Raises the soft limit to the hard one. Says so in the log where even that does not suffice for `limits`, or cannot be had.
pub fn raise_open_files(limits: &Limits) {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(both) => both,
        Err(error) => return tracing::warn!(%error, "the limit of open files cannot be asked for"),
    };
    let wanted = hard.min(MOST);
    let now = if soft < wanted {
        match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
            Ok(()) => wanted,
            Err(error) => {
                tracing::warn!(%error, soft, hard, "the limit of open files cannot be raised");
                soft
            }
        }
    } else {
        soft
    };
    if let Some((what, todo)) = too_few(limits, now) {
        tracing::warn!(limit = now, "{what}: {todo}");
    }
}

/// How many files this process may have open now, where that can be told.
#[must_use]
pub fn open_files() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

/// How many files may have to be open at once.
#[must_use]
pub fn needed(limits: &Limits) -> u64 {
    BESIDES + PER_SESSION * u64::try_from(limits.sessions).unwrap_or(MOST)
}

/// What is wrong, and what to do, where `now` open files are too few.
#[must_use]
pub fn too_few(limits: &Limits, now: u64) -> Option<(String, &'static str)> {
    let needed = needed(limits);
    (now < needed).then(|| {
        let what = format!(
            "{now} open files are too few for `sessions = {}` in [limits], which may take {needed}",
            limits.sessions
        );
        (what, "raise LimitNOFILE= (systemd) or `ulimit -Hn` (init script), or lower `sessions`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_is_said_with_what_to_do() {
        let limits = Limits::default();
        assert_eq!(too_few(&limits, 65_536), None);
        let (words, _) = too_few(&limits, 1024).unwrap();
        assert!(
            words.contains("1024 open files") && words.contains("sessions = 500") && words.contains("3560"),
            "{words}"
        );
        assert!(too_few(&Limits { sessions: 100_000, ..Limits::default() }, 65_536).is_some());
    }
}
