//! The file system under the data directory: whether it can be written, and what to do when it cannot.

use std::path::Path;

use crate::{lifecycle::watch, model::cause::Cause};

/// How the data directory's file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// As it should be.
    Well,
    /// There is no room. The reserve was let go of, so that what runs can write on for a while; nothing new is begun, and what cannot
    /// be written waits.
    Full,
    /// A write or a sync failed with something else: what lies in the page cache is not to be believed any more. Until the daemon
    /// is started again nothing is changed. The text says which file and why.
    Failed(String),
}

impl Condition {
    /// What people are shown of it, unless all is well; `data_dir` is where.
    #[must_use]
    pub fn cause(&self, data_dir: &Path) -> Option<Cause> {
        let dir = data_dir.display();
        let (code, message) = match self {
            Condition::Well => return None,
            Condition::Full => (
                "disk_full",
                format!(
                    "the disk that holds {dir} is full: nothing new is begun, what runs goes on for a while. Make room there (see `df \
                     {dir}`); phased goes on by itself within seconds"
                ),
            ),
            Condition::Failed(why) => (
                "degraded",
                format!(
                    "the disk failed, and nothing is changed any more: {why}. What runs on hosts goes on. Look at the disk (`dmesg`), then \
                     restart phased: it takes up everything that is on disk"
                ),
            ),
        };
        Some(Cause::new(code, message))
    }
}

/// The file system under the data directory.
pub trait Storage: Send + Sync {
    /// How it is, and every change of that.
    fn condition(&self) -> watch::Receiver<Condition>;

    /// Somebody found no room: the reserve is let go of, unless that was done before. Blocks for a moment.
    fn lacked(&self);

    /// Looks whether there is room again; if so the reserve is made anew and all is well. Who waits tries again either way. Blocks on
    /// the disk.
    fn look(&self);

    /// How many bytes the data directory takes on its disk. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn used(&self) -> std::io::Result<u64>;
}
